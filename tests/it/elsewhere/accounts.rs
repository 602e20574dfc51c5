//! What happened to accounts: their passwords, their ends, and the first of
//! them.

use std::time::Duration;

use countersign::service::throttle;
use countersign_proto::v1;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    harness::{
        Failure, Person, World,
        binary::get,
        calls,
        calls::{caller, create_api_key, is_dead, rotate_api_key, validates},
        refused,
        world::{PASSWORD, login},
    },
    on_both,
};

const WRONG: &str = "not the password at all";
const NEW: &str = "another horse entirely, thanks";

/// The defaults, but for the failures before the first wait.
fn after(failures: u32) -> throttle::Config {
    throttle::Config {
        failures_before_delay: failures,
        ..throttle::Config::default()
    }
}

fn reason<T>(result: Result<T, Status>) -> String {
    let failed = result.map(drop).expect_err("refused");
    Failure::from(&failed).reason
}

/// What somebody had before they were disabled.
struct Left {
    pairs: Vec<v1::TokenPair>,
    device_token: String,
    api_keys: Vec<String>,
}

impl Left {
    /// Fails if any of it lets them in.
    async fn is_worth_nothing(&self, world: &World, person: &Person, password: &str) {
        let nobody = world.anonymous();
        for pair in &self.pairs {
            assert!(is_dead(&nobody, pair).await);
            let theirs = nobody.with_token(&pair.access_token);
            let changed = calls::change_password(&theirs, password, NEW).await;
            refused(changed, Code::Unauthenticated, "TOKEN_INVALID");
            let made = create_api_key(&theirs, &[]).await;
            refused(made, Code::Unauthenticated, "TOKEN_INVALID");
        }
        for secret in &self.api_keys {
            assert!(!validates(&nobody, secret).await);
        }
        for device_token in ["", &self.device_token] {
            let request = v1::LoginRequest {
                identifier: person.email.clone(),
                password: password.into(),
                device_token: device_token.into(),
                ..Default::default()
            };
            let reply = nobody.clone().auth.login(request).await;
            refused(reply, Code::Unauthenticated, "LOGIN_FAILED");
        }
    }
}

/// Nobody in particular: no role, no permission, and no way to any.
async fn is_powerless(person: &Person) {
    let token = &person.tokens.access_token;
    let known = caller(&person.client, token).await.unwrap();
    assert!(
        known.roles.is_empty() && known.scopes.is_empty(),
        "{known:?}"
    );
    let denied = (Code::PermissionDenied, "PERMISSION_DENIED");
    let own = &person.user_id;
    let granted = calls::grant(&person.client, own, "admin").await;
    refused(granted, denied.0, denied.1);
    let made = calls::create_role(&person.client, "mine", &["countersign.users.read"]).await;
    refused(made, denied.0, denied.1);
}

/// A good password of so many characters, each of them one byte.
fn password_of(length: usize) -> String {
    let trees = ["oak", "elm", "ash", "fir", "yew"];
    let words = (1..100_usize).map(|n| format!("{}{} ", trees[n % 5], n * 7919));
    words.collect::<String>().chars().take(length).collect()
}

on_both! {
    // Leans on the account's status in store/sessions.rs, open and advance, on
    // service/login.rs, which checks no password of it, and on `is_live` in
    // store/api_keys.rs, also for what others do on its behalf.
    async fn a_disabled_user_got_tokens_by_another_way(world: World) {
        let admin = world.admin().await.client;
        let ana = world.person_who_may(&["orders.read"]).await;
        let request = v1::LoginRequest {
            identifier: ana.email.clone(),
            password: PASSWORD.into(),
            ..Default::default()
        };
        let reply = world.anonymous().auth.login(request).await.unwrap().into_inner();
        let Some(v1::login_response::Result::Tokens(second)) = reply.result else {
            panic!("no tokens")
        };
        let (key, secret) = create_api_key(&ana.client, &["orders.read"]).await.unwrap();
        let mut left = Left {
            pairs: vec![ana.tokens.clone(), second],
            device_token: reply.device_token,
            api_keys: vec![secret],
        };
        calls::disable(&admin, &ana.user_id).await.unwrap();
        left.is_worth_nothing(&world, &ana, PASSWORD).await;

        // What somebody does for the account, who does not know that it is disabled.
        let (_, secret) = rotate_api_key(&admin, &key.api_key_id, Duration::ZERO).await.unwrap();
        left.api_keys.push(secret);
        let request = v1::CreateApiKeyRequest {
            user_id: ana.user_id.clone(),
            name: "for her".into(),
            scopes: vec!["orders.read".into()],
            ..Default::default()
        };
        let made = admin.clone().api_keys.create_api_key(request).await.unwrap();
        left.api_keys.push(made.into_inner().secret);
        calls::create_role(&admin, "buyer", &["orders.buy"]).await.unwrap();
        calls::grant(&admin, &ana.user_id, "buyer").await.unwrap();
        calls::unlock(&admin, &ana.user_id).await.unwrap();
        left.is_worth_nothing(&world, &ana, PASSWORD).await;
        calls::set_password(&admin, &ana.user_id, NEW).await.unwrap();
        left.is_worth_nothing(&world, &ana, NEW).await;
        // A node that reads all of it anew knows no better.
        let world = world.restarted(|_| {}).await;
        left.is_worth_nothing(&world, &ana, NEW).await;
        assert_eq!(world.query("SELECT count(*) FROM api_keys").await, ["2"], "they were there to be taken");
    }

    // Leans on middleware/access.rs, where all that makes an admin needs a
    // permission, on service/register.rs, which gives no role, and on
    // `keeping_an_admin`. There is no set-up over the network that could be left
    // open: the first admin is made on the command line.
    async fn the_first_set_up_could_be_done_again(world: World) {
        // Whoever comes first is nobody in particular.
        is_powerless(&world.person().await).await;
        let admin = world.admin().await;
        let gone = calls::delete(&admin.client, &admin.user_id).await;
        refused(gone, Code::FailedPrecondition, "LAST_ADMIN");
        is_powerless(&world.person().await).await;

        // Whoever comes when there is none any more, as after a broken restore.
        world.execute("DELETE FROM user_roles").await;
        let world = world.restarted(|_| {}).await;
        let late = world.person().await;
        is_powerless(&late).await;
        let nobody = world.anonymous();
        let granted = calls::grant(&nobody, &late.user_id, "admin").await;
        refused(granted, Code::Unauthenticated, "CREDENTIALS_MISSING");
        let request = v1::CreateUserRequest {
            email: world.new_email(),
            password: PASSWORD.into(),
            roles: vec!["admin".into()],
            ..Default::default()
        };
        let made = nobody.clone().users.create_user(request).await;
        refused(made, Code::Unauthenticated, "CREDENTIALS_MISSING");
        for path in ["/", "/setup", "/install", "/init", "/bootstrap", "/register", "/admin", "/ui", "/v1/setup"] {
            assert_eq!(get(world.node.http, path).await.0, 404, "{path}");
        }
        assert_eq!(world.query("SELECT count(*) FROM user_roles").await, ["0"]);
    }

    // Leans on the turn in service/throttle.rs: one password at a time is looked at.
    async fn passwords_tried_at_once_were_all_looked_at_before_the_lockout(world: World) {
        let email = world.person().await.email;
        let world = world.restarted(|config| {
            config.login_throttle = after(3);
            config.limits.concurrency.hash = 4_096;
            config.hashing.queue = 1_024;
            // A busy machine is no reason to be refused.
            config.database.acquire_timeout_ms = 10_000;
            config.database.query_timeout_ms = 20_000;
        }).await;
        let pair = login(&world.anonymous(), &email, PASSWORD).await.unwrap();
        // By whoever has stolen a token, too: what guards Login is not all.
        let mut tries = JoinSet::new();
        for _ in 0..40 {
            let client = world.node.new_connection().with_token(&pair.access_token);
            tries.spawn(async move { reason(calls::change_password(&client, WRONG, NEW).await) });
        }
        let said = tries.join_all().await;
        let count = |reason: &str| said.iter().filter(|said| *said == reason).count();
        assert_eq!((count("CURRENT_PASSWORD_INCORRECT"), count("LOGIN_THROTTLED")), (3, 37), "{said:?}");
    }

    // Leans on `Identifier`, which knows one spelling of a name, and on
    // service/throttle.rs, which counts by it.
    async fn each_spelling_of_a_name_had_a_count_of_its_own(world: World) {
        let request = v1::RegisterRequest {
            email: "ana.lima@example.com".into(),
            username: "ana.lima".into(),
            password: PASSWORD.into(),
            ..Default::default()
        };
        calls::register(&world.anonymous(), request).await.unwrap();
        let world = world.restarted(|config| config.login_throttle = after(3)).await;
        let client = world.anonymous();
        for spellings in [
            ["ana.lima@example.com", "Ana.Lima@example.com", "ANA.LIMA@EXAMPLE.COM", "ana.lima@Example.Com"],
            ["ana.lima", "Ana.Lima", "ANA.LIMA", "ana.LIMA"],
        ] {
            for spelling in &spellings[..3] {
                refused(login(&client, spelling, WRONG).await, Code::Unauthenticated, "LOGIN_FAILED");
            }
            for spelling in spellings {
                assert_eq!(reason(login(&client, spelling, PASSWORD).await), "LOGIN_THROTTLED", "{spelling}");
            }
        }
    }

    // Leans on crypto/argon2id.rs, compute, which hashes the whole password and
    // nothing but the password.
    async fn what_stood_behind_byte_72_of_a_password_did_not_count(world: World) {
        let nobody = world.anonymous();
        // Where a name is hashed with the password, a long name leaves no room for it.
        let long = format!("{}@{}.example.com", "n".repeat(60), "d".repeat(60));
        let all = password_of(256);
        for (email, length) in [("ana@example.com", 73), ("ben@example.com", 100), (long.as_str(), 40), ("cleo@example.com", 256)] {
            let password = &all[..length];
            let request = v1::RegisterRequest {
                email: email.into(),
                password: password.into(),
                ..Default::default()
            };
            calls::register(&nobody, request).await.unwrap();
            let pair = login(&nobody, email, password).await.unwrap();
            let other_end = format!("{}x", &password[..length - 1]);
            for wrong in [other_end.as_str(), &password[..length - 1], &password[..length.min(72)], &password[..36]] {
                if wrong != password {
                    let entered = login(&nobody, email, wrong).await;
                    refused(entered, Code::Unauthenticated, "LOGIN_FAILED");
                    let changed = calls::change_password(&nobody.with_token(&pair.access_token), wrong, NEW).await;
                    refused(changed, Code::PermissionDenied, "CURRENT_PASSWORD_INCORRECT");
                }
            }
            // A NUL ends nothing: it is refused.
            for cut in [format!("{password}\0"), format!("{password}\0and more")] {
                let entered = login(&nobody, email, &cut).await;
                assert_eq!(refused(entered, Code::InvalidArgument, "INVALID_REQUEST").fields, ["password"]);
            }
        }
    }
}
