//! Registering, logging in and out: one answer for every reason that depends
//! on the account.

use std::time::Duration;

use countersign_proto::v1;
use tonic::{Code, Status};

use crate::{
    harness::{
        Client, World, calls,
        calls::{access_line, claims, is_dead, named, register, validates},
        refused,
        world::{PASSWORD, login},
    },
    on_both,
};

const LEEWAY: Duration = Duration::from_secs(5);

/// A failed login as its caller can see it, and what it cost.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    message: String,
    /// Names of the details, with everything in them but the correlation id.
    pub details: String,
    details_bytes: usize,
    /// Names and sizes of what came with it.
    metadata: Vec<(String, usize)>,
    /// Blocks that the hash lanes filled.
    pub hashing: u64,
    queries: u64,
    /// Rows in the audit log and their origins.
    pub recorded: String,
}

pub async fn refusal(world: &World, identifier: &str, password: &str) -> Refusal {
    let id = &calls::unique_id();
    let lanes = &world.node.running.core().lanes;
    let before = lanes.work();
    let request = v1::LoginRequest {
        identifier: identifier.to_owned(),
        password: password.to_owned(),
        ..Default::default()
    };
    let reply = world.anonymous().auth.login(named(id, request)).await;
    let status = reply.expect_err("refused");
    let details = tonic_types::StatusExt::get_error_details(&status);
    let mut metadata: Vec<_> = status
        .metadata()
        .iter()
        .map(|pair| match pair {
            tonic::metadata::KeyAndValueRef::Ascii(key, value) => {
                (key.to_string(), value.as_encoded_bytes().len())
            }
            tonic::metadata::KeyAndValueRef::Binary(key, value) => {
                (key.to_string(), value.as_encoded_bytes().len())
            }
        })
        .collect();
    metadata.sort();
    let line = access_line(id);
    let recorded = world
        .query(&format!(
            "SELECT e.action || ' ' || e.outcome || ' ' || count(o.event_id) FROM audit_events e \
             LEFT JOIN audit_origins o ON o.event_id = e.id WHERE e.correlation_id = '{id}' \
             GROUP BY e.action, e.outcome"
        ))
        .await;
    Refusal {
        code: status.code(),
        message: status.message().to_owned(),
        details: format!("{details:?}").replace(id, "ID"),
        details_bytes: status.details().len(),
        metadata,
        hashing: lanes.work() - before,
        queries: line["queries"].as_u64().expect("queries"),
        recorded: recorded.join(","),
    }
}

/// A good password of so many characters, in which nothing repeats.
fn password_of(length: usize) -> String {
    let words = (1..200).map(|n| format!("\u{e9}{} ", n * 7919));
    words.collect::<String>().chars().take(length).collect()
}

/// The answer to a login with nothing special.
async fn try_login(client: &Client, identifier: &str, password: &str) -> Result<(), Status> {
    login(client, identifier, password).await.map(drop)
}

fn registration(email: &str, password: &str) -> v1::RegisterRequest {
    v1::RegisterRequest {
        email: email.to_owned(),
        password: password.to_owned(),
        ..Default::default()
    }
}

async fn logout(client: &Client, refresh_token: &str) -> Result<(), Status> {
    let request = v1::LogoutRequest {
        refresh_token: refresh_token.to_owned(),
    };
    client.clone().auth.logout(request).await.map(drop)
}

on_both! {
    async fn by_address_in_any_case_and_by_username(world: World) {
        let request = v1::RegisterRequest {
            username: "Ana.Lima".into(),
            display_name: "Ana Lima".into(),
            ..registration("Ana.Lima@Example.COM", PASSWORD)
        };
        let user = register(&world.anonymous(), request).await.unwrap();
        assert_eq!((user.email.as_str(), user.username.as_str()), ("ana.lima@example.com", "ana.lima"));
        assert_eq!((user.email_verified, user.status()), (false, v1::UserStatus::Active));
        for identifier in ["ana.lima@example.com", "ANA.LIMA@EXAMPLE.COM", "ana.lima", "ANA.Lima"] {
            let tokens = login(&world.anonymous(), identifier, PASSWORD).await.unwrap();
            let caller = calls::caller(&world.anonymous(), &tokens.access_token).await.unwrap();
            assert_eq!((&caller.subject, &caller.session_id), (&user.user_id, &tokens.session_id));
            assert_eq!(tokens.token_type, "Bearer");
        }
    }

    async fn every_failure_has_one_answer_and_one_cost(world: World) {
        let admin = world.admin().await;
        let people = [world.person().await, world.person().await, world.person().await];
        let [ana, disabled, deleted] = people;
        calls::disable(&admin.client, &disabled.user_id).await.unwrap();
        calls::delete(&admin.client, &deleted.user_id).await.unwrap();
        let passwordless = v1::CreateUserRequest {
            email: "none@example.com".into(),
            ..Default::default()
        };
        admin.client.clone().users.create_user(passwordless).await.unwrap();
        let wrong = "not the password at all";
        let expected = refusal(&world, &ana.email, wrong).await;
        assert!(expected.details.contains("LOGIN_FAILED"), "{expected:?}");
        assert_eq!(expected.hashing, 8, "one hash: {expected:?}");
        for (n, (identifier, password)) in [
            ("nobody@example.com", PASSWORD),
            ("nobody", PASSWORD),
            (&disabled.email, PASSWORD),
            (&disabled.email, wrong),
            (&deleted.email, PASSWORD),
            ("none@example.com", PASSWORD),
            // Shorter than any password that may be set.
            (&ana.email, "x"),
        ]
        .into_iter()
        .enumerate()
        {
            // Each is the first of its name.
            world.execute("DELETE FROM login_throttle").await;
            let found = refusal(&world, identifier, password).await;
            assert_eq!(found, expected, "case {n}");
        }
    }

    async fn parameters_are_upgraded_at_login(world: World) {
        let ana = world.person().await;
        let world = world.restarted(|config| {
            config.hashing.memory_kib = 32;
            config.hashing.iterations = 2;
        }).await;
        let stored = "SELECT password FROM users WHERE password IS NOT NULL";
        let before = world.query(stored).await;
        assert!(before[0].starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{before:?}");
        // A cheaper stored hash is not told by its time: what it lacks is paid.
        let lanes = &world.node.running.core().lanes;
        let wrong = "not the password at all";
        let cheap = refusal(&world, &ana.email, wrong).await;
        let none = refusal(&world, "no@example.com", wrong).await;
        assert_eq!((&cheap, cheap.hashing), (&none, 64));
        assert_eq!(world.query(stored).await, before, "a failure upgrades nothing");

        let tokens = login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        assert!(validates(&world.anonymous(), &tokens.access_token).await);
        let after = world.query(stored).await;
        assert!(after[0].starts_with("$argon2id$v=19$m=32,t=2,p=1$"), "{after:?}");
        let rehashed = "SELECT count(*) FROM audit_events WHERE action = 'password.rehashed'";
        assert_eq!(world.query(rehashed).await, ["1"]);
        // From now on at the new cost and no other; sessions were not ended.
        let before = lanes.work();
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        assert_eq!(lanes.work() - before, 64);
        assert_eq!(world.query(stored).await, after);
        assert!(calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.is_ok());
    }

    async fn a_storm_is_shed_and_validation_does_not_feel_it(world: World) {
        let ana = world.person().await;
        let token = ana.tokens.access_token.clone();
        let world = world.restarted(|config| {
            config.hashing.memory_kib = 64 * 1024;
            config.hashing.iterations = 10;
            config.hashing.lanes = 1;
            config.hashing.queue = 1;
        }).await;
        let mut storm = tokio::task::JoinSet::new();
        for n in 0..12 {
            let (client, email) = (world.node.new_connection(), format!("no{n}@example.com"));
            storm.spawn(async move { try_login(&client, &email, "not the password at all").await });
        }
        // All that found no place are refused before the first hash ends.
        for _ in 0..10 {
            let shed = refused(storm.join_next().await.unwrap().unwrap(), Code::ResourceExhausted, "OVERLOADED");
            assert!(shed.retry);
        }
        let client = world.anonymous();
        for _ in 0..50 {
            assert!(validates(&client, &token).await);
        }
        assert!(storm.try_join_next().is_none(), "the storm was over before the validations were");
        while let Some(late) = storm.join_next().await {
            refused(late.unwrap(), Code::Unauthenticated, "LOGIN_FAILED");
        }
    }

    async fn bad_new_passwords_are_refused_by_field(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let long = password_of(257);
        let email = "ana.lima.surfs@example.com";
        let fourteen = "wobble hat kit";
        assert_eq!(fourteen.len(), 14);
        for bad in [
            "", fourteen, long.as_str(), email, "ANA.LIMA.SURFS@example.com",
            "passwordpassword", "123456789012345", "qwertyuiopasdfghjkl", "aaaaaaaaaaaaaaaaaaaa",
            "countersigncountersign", "tab\tinside the password",
        ] {
            let request = registration(email, bad);
            let failure = refused(register(&world.anonymous(), request).await, Code::InvalidArgument, "INVALID_REQUEST");
            assert_eq!(failure.fields, ["password"], "{bad:?}");
        }
        for bad in [fourteen, "passwordpassword", long.as_str()] {
            let failure = refused(
                calls::set_password(&admin.client, &ana.user_id, bad).await,
                Code::InvalidArgument, "INVALID_REQUEST",
            );
            assert_eq!(failure.fields, ["password"], "{bad:?}");
            let failure = refused(
                calls::change_password(&ana.client, PASSWORD, bad).await,
                Code::InvalidArgument, "INVALID_REQUEST",
            );
            assert_eq!(failure.fields, ["new_password"], "{bad:?}");
            let request = v1::CreateUserRequest {
                email: email.into(),
                password: bad.into(),
                ..Default::default()
            };
            let failure = refused(
                admin.client.clone().users.create_user(request).await,
                Code::InvalidArgument, "INVALID_REQUEST",
            );
            assert_eq!(failure.fields, ["password"], "{bad:?}");
        }
        // The display name is one's own, too.
        let request = v1::RegisterRequest {
            display_name: "Wolfgang Amadeus".into(),
            ..registration(email, "wolfgang-amadeus-1756")
        };
        let failure = refused(register(&world.anonymous(), request).await, Code::InvalidArgument, "INVALID_REQUEST");
        assert_eq!(failure.fields, ["password"]);
        // One's own address is judged for changes too.
        let failure = refused(
            calls::change_password(&ana.client, PASSWORD, &format!("{}!", ana.email)).await,
            Code::InvalidArgument, "INVALID_REQUEST",
        );
        assert_eq!(failure.fields, ["new_password"]);
        // The limits themselves are good: 15 and 256, in characters.
        for (n, good) in ["wobble hat kite".to_owned(), password_of(256)].iter().enumerate() {
            let request = registration(&format!("limits{n}@example.com"), good);
            register(&world.anonymous(), request).await.unwrap();
            login(&world.anonymous(), &format!("limits{n}@example.com"), good).await.unwrap();
        }
    }

    async fn a_password_from_another_keyboard_is_the_same(world: World) {
        let composed = "caf\u{e9} au lait, toujours";
        let decomposed = "cafe\u{301} au lait, toujours";
        let no_break = "caf\u{e9}\u{a0}au\u{3000}lait, toujours";
        register(&world.anonymous(), registration("ana@example.com", decomposed)).await.unwrap();
        for same in [composed, decomposed, no_break] {
            login(&world.anonymous(), "ana@example.com", same).await.unwrap();
        }
        for other in ["Caf\u{e9} au lait, toujours", "cafe au lait, toujours", " caf\u{e9} au lait, toujours"] {
            refused(
                try_login(&world.anonymous(), "ana@example.com", other).await,
                Code::Unauthenticated, "LOGIN_FAILED",
            );
        }
    }

    async fn self_registration_can_be_switched_off(world: World) {
        let world = world.restarted(|config| config.self_registration = false).await;
        let admin = world.admin().await;
        refused(
            register(&world.anonymous(), registration("ana@example.com", PASSWORD)).await,
            Code::PermissionDenied, "PERMISSION_DENIED",
        );
        // A taken address is not told either.
        refused(
            register(&world.anonymous(), registration(&admin.email, PASSWORD)).await,
            Code::PermissionDenied, "PERMISSION_DENIED",
        );
        let request = v1::CreateUserRequest {
            email: "ana@example.com".into(),
            password: PASSWORD.into(),
            ..Default::default()
        };
        admin.client.clone().users.create_user(request).await.unwrap();
        login(&world.anonymous(), "ana@example.com", PASSWORD).await.unwrap();
    }

    async fn a_taken_name_is_told(world: World) {
        let request = v1::RegisterRequest { username: "ana".into(), ..registration("ana@example.com", PASSWORD) };
        register(&world.anonymous(), request).await.unwrap();
        refused(
            register(&world.anonymous(), registration("ANA@example.com", PASSWORD)).await,
            Code::AlreadyExists, "EMAIL_TAKEN",
        );
        let request = v1::RegisterRequest { username: "ANA".into(), ..registration("ana2@example.com", PASSWORD) };
        refused(register(&world.anonymous(), request).await, Code::AlreadyExists, "USERNAME_TAKEN");
    }

    async fn tokens_are_for_the_audiences_asked_for(world: World) {
        let world = world.restarted(|config| {
            config.audiences = ["orders", "stock", "mail"].map(String::from).into();
            config.own_audience = "orders".to_owned();
        }).await;
        let ana = world.person().await;
        let mut auth = world.anonymous().auth;
        let request = |audiences: &[&str]| v1::LoginRequest {
            identifier: ana.email.clone(),
            password: PASSWORD.into(),
            audiences: audiences.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        for (wish, given) in [
            (&[][..], &["orders", "stock", "mail"][..]),
            (&["stock"], &["stock"]),
            (&["stock", "mail", "stock"], &["mail", "stock"]),
        ] {
            let reply = auth.login(request(wish)).await.unwrap().into_inner();
            let Some(v1::login_response::Result::Tokens(pair)) = reply.result else { panic!() };
            let caller = calls::caller(&world.anonymous(), &pair.access_token).await.unwrap();
            assert_eq!(caller.audience, given);
            // A refresh may ask anew.
            let again = v1::RefreshRequest { refresh_token: pair.refresh_token, audiences: vec!["mail".into()] };
            let pair = auth.refresh(again).await.unwrap().into_inner().tokens.unwrap();
            let caller = calls::caller(&world.anonymous(), &pair.access_token).await.unwrap();
            assert_eq!(caller.audience, ["mail"]);
            let meant_for = |audience: &str| v1::ValidateTokenRequest {
                token: pair.access_token.clone(),
                audience: audience.into(),
            };
            let mut tokens = world.anonymous().tokens;
            assert!(tokens.validate_token(meant_for("mail")).await.is_ok());
            for other in ["stock", "MAIL", "mai", "unknown"] {
                refused(tokens.validate_token(meant_for(other)).await, Code::Unauthenticated, "TOKEN_INVALID");
            }
        }
        for unknown in [&["payroll"][..], &["stock", "payroll"], &[""], &["STOCK"]] {
            let failure = refused(auth.login(request(unknown)).await, Code::InvalidArgument, "INVALID_REQUEST");
            assert_eq!(failure.fields, ["audiences"]);
        }
        // Asking for what there is not is told before the password is looked at.
        let bad = v1::LoginRequest { password: "wrong".into(), ..request(&["payroll"]) };
        refused(auth.login(bad).await, Code::InvalidArgument, "INVALID_REQUEST");
        let bad = v1::RefreshRequest { refresh_token: ana.tokens.refresh_token.clone(), audiences: vec!["payroll".into()] };
        refused(auth.refresh(bad).await, Code::InvalidArgument, "INVALID_REQUEST");
        assert!(calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.is_ok());
    }

    async fn an_access_token_lives_for_its_quarter_of_an_hour_less_a_little(world: World) {
        let ana = world.person().await;
        let mut lives = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let pair = login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
            let claims = claims(&pair.access_token);
            let at = |name: &str| claims[name].as_i64().unwrap();
            let life = at("exp") - at("iat");
            assert!((855..=900).contains(&life), "{life}");
            assert_eq!(pair.expires_at.unwrap().seconds, at("exp"));
            assert_eq!(pair.refresh_after.unwrap().seconds, at("iat") + life * 4 / 5);
            assert_eq!(pair.refresh_expires_at.unwrap().seconds, at("iat") + 7 * 24 * 3600);
            assert_eq!((at("auth_time"), at("nbf")), (at("iat"), at("iat")));
            assert_eq!(claims["iss"], "https://countersign.test");
            lives.insert(life);
        }
        assert!(lives.len() > 5, "a fleet would refresh in step: {lives:?}");
    }

    async fn an_access_token_dies_at_its_time(world: World) {
        let ana = world.person().await;
        let claims = claims(&ana.tokens.access_token);
        let life = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
        world.clock.advance(Duration::from_secs(life) + LEEWAY - Duration::from_millis(1));
        assert!(validates(&world.anonymous(), &ana.tokens.access_token).await);
        world.clock.advance(Duration::from_millis(1));
        assert!(!validates(&world.anonymous(), &ana.tokens.access_token).await);
        refused(
            ana.client.clone().auth.who_am_i(v1::WhoAmIRequest {}).await,
            Code::Unauthenticated, "TOKEN_INVALID",
        );
        assert!(calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.is_ok());
    }

    async fn logout_by_access_token(world: World) {
        let ana = world.person().await;
        let other = ana.again().await;
        logout(&ana.client, "").await.unwrap();
        assert!(is_dead(&world.anonymous(), &ana.tokens).await);
        refused(
            ana.client.clone().auth.who_am_i(v1::WhoAmIRequest {}).await,
            Code::Unauthenticated, "TOKEN_INVALID",
        );
        // The token that it was done by is no good for a second time.
        refused(logout(&ana.client, "").await, Code::Unauthenticated, "TOKEN_INVALID");
        // A dead credential is refused even where none is needed.
        refused(
            logout(&ana.client, &other.tokens.refresh_token).await,
            Code::Unauthenticated, "TOKEN_INVALID",
        );
        refused(logout(&world.anonymous(), "").await, Code::Unauthenticated, "CREDENTIALS_MISSING");
        assert!(validates(&world.anonymous(), &other.tokens.access_token).await);
    }

    async fn logout_by_refresh_token(world: World) {
        let ana = world.person().await;
        let next = calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        // An older token of the session names it as well.
        for token in [&next.refresh_token, &next.refresh_token, &ana.tokens.refresh_token] {
            logout(&world.anonymous(), token).await.unwrap();
            assert!(!validates(&world.anonymous(), &next.access_token).await);
            assert!(!validates(&world.anonymous(), &ana.tokens.access_token).await);
        }
        assert!(is_dead(&world.anonymous(), &next).await);
        let ended = "SELECT count(*) FROM audit_events WHERE action = 'session.logout'";
        assert_eq!(world.query(ended).await, ["1"], "only the step from live to dead is told");
    }

    async fn logout_by_a_token_that_is_not_the_sessions_has_no_effect(world: World) {
        let ana = world.person().await;
        // Bound to what the session was before its password changed.
        let fresh = calls::change_password(&ana.client, PASSWORD, "another horse entirely, thanks").await.unwrap();
        let stale = ana.tokens.refresh_token.clone();
        let mut forged = fresh.refresh_token.clone().into_bytes();
        let middle = forged.len() / 2;
        forged[middle] = if forged[middle] == b'A' { b'B' } else { b'A' };
        for token in [stale, String::from_utf8(forged).unwrap(), "csr_".into(), "x".into()] {
            refused(
                logout(&world.anonymous(), &token).await,
                Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
            );
        }
        assert!(validates(&world.anonymous(), &fresh.access_token).await);
        assert!(calls::refresh(&world.anonymous(), &fresh.refresh_token).await.is_ok());
    }

    async fn logout_by_another_sessions_refresh_token_ends_that_one(world: World) {
        let ana = world.person().await;
        let ben = world.person().await;
        // Whoever holds a refresh token may end its session, and no other.
        logout(&ana.client, &ben.tokens.refresh_token).await.unwrap();
        assert!(is_dead(&world.anonymous(), &ben.tokens).await);
        assert!(validates(&world.anonymous(), &ana.tokens.access_token).await);
    }
}
