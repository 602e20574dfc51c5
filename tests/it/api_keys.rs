//! API keys: what they open, and what ends them.

use std::{sync::Arc, time::Duration};

use countersign::service::janitor::Janitor;
use countersign_proto::v1;
use countersign_verifier::ApiKeyHash;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    harness::{
        Client, Failure, Kind, Person, World, calls,
        calls::{api_keys, create_api_key, revoke_api_key, rotate_api_key, validates},
        database, eventually, refused,
    },
    on_both,
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the key may do now; none if it is not good.
async fn scopes(client: &Client, secret: &str) -> Option<Vec<String>> {
    let caller = calls::caller(client, secret).await;
    caller.ok().map(|caller| caller.scopes)
}

fn list(scopes: &[&str]) -> Vec<String> {
    scopes.iter().map(ToString::to_string).collect()
}

/// Changes what a role permits.
async fn permit(admin: &Person, role: &str, permissions: &[&str]) {
    let request = v1::UpdateRoleRequest {
        role: Some(v1::Role {
            name: role.into(),
            permissions: permissions.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["permissions".into()],
        }),
    };
    admin
        .client
        .clone()
        .roles
        .update_role(request)
        .await
        .unwrap();
}

async fn sweep(world: &World) {
    let core = Arc::clone(world.node.running.core());
    let janitor = Janitor::new(core, HOUR);
    janitor.sweep(&CancellationToken::new()).await.unwrap();
}

async fn count(world: &World, what: &str) -> usize {
    let rows = world.query(&format!("SELECT count(*) FROM {what}")).await;
    rows[0].parse().unwrap()
}

on_both! {
    async fn a_key_says_whom_it_acts_for_and_what_it_may(world: World) {
        let ana = world.person_who_may(&["orders.read", "orders.write"]).await;
        let (key, secret) = create_api_key(&ana.client, &["orders.read"]).await.unwrap();
        assert_eq!((key.user_id.as_str(), key.name.as_str()), (ana.user_id.as_str(), "a program"));
        assert_eq!((key.audiences.as_slice(), key.expires_at), (&["countersign".to_owned()][..], None));
        // Good at once.
        let caller = calls::caller(&world.anonymous(), &secret).await.unwrap();
        assert_eq!((caller.subject.as_str(), caller.kind()), (ana.user_id.as_str(), v1::CallerKind::ApiKey));
        assert_eq!((&caller.api_key_id, caller.session_id.as_str()), (&key.api_key_id, ""));
        assert_eq!((caller.scopes.as_slice(), caller.roles.len()), (&["orders.read".to_owned()][..], 0));
        assert_eq!((caller.audience.as_slice(), caller.expires_at), (&["countersign".to_owned()][..], None));
        assert_eq!(api_keys(&ana.client, "").await.unwrap(), [key]);
        // Of the secret nothing is kept but a digest.
        let rows = database::dump(&world.database).await.join("\n").to_lowercase();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(rows.contains(&hex(&ApiKeyHash::of(&secret).unwrap().0)));
        let random = &secret["csk_".len()..];
        assert!(!rows.contains(&random.to_lowercase()) && !rows.contains(&hex(random.as_bytes())));
    }

    async fn a_key_may_do_no_more_than_its_owner(world: World) {
        let ana = world.person_who_may(&["orders.read"]).await;
        let wish = ["orders.read", "orders.write", "countersign.users.read"];
        let failure = refused(create_api_key(&ana.client, &wish).await, Code::InvalidArgument, "INVALID_REQUEST");
        assert_eq!(failure.fields, ["scopes[1]", "scopes[2]"]);
        assert_eq!(count(&world, "api_keys").await, 0);
        // Whoever makes it for another gives what that one holds, not what they hold themselves.
        let admin = world.admin().await;
        let request = |user_id: &str, scope: &str| v1::CreateApiKeyRequest {
            user_id: user_id.into(),
            name: "for another".into(),
            scopes: vec![scope.into()],
            ..Default::default()
        };
        let mut makers = admin.client.clone();
        let beyond = makers.api_keys.create_api_key(request(&ana.user_id, "countersign.users.read")).await;
        assert_eq!(refused(beyond, Code::InvalidArgument, "INVALID_REQUEST").fields, ["scopes[0]"]);
        let made = makers.api_keys.create_api_key(request(&ana.user_id, "orders.read")).await.unwrap();
        let caller = calls::caller(&world.anonymous(), &made.into_inner().secret).await.unwrap();
        assert_eq!(caller.subject, ana.user_id);
        let nobody = "00000000-0000-7000-8000-000000000000";
        let unknown = makers.api_keys.create_api_key(request(nobody, "orders.read")).await;
        refused(unknown, Code::NotFound, "USER_NOT_FOUND");
    }

    async fn what_the_owner_loses_the_key_loses(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        calls::create_role(&admin.client, "reader", &["orders.read", "stock.read"]).await.unwrap();
        calls::create_role(&admin.client, "buyer", &["orders.buy"]).await.unwrap();
        for role in ["reader", "buyer"] {
            calls::grant(&admin.client, &ana.user_id, role).await.unwrap();
        }
        let ana = ana.again().await;
        let (_, secret) = create_api_key(&ana.client, &["orders.buy", "orders.read", "stock.read"]).await.unwrap();
        let now = async || scopes(&world.anonymous(), &secret).await;
        assert_eq!(now().await, Some(list(&["orders.buy", "orders.read", "stock.read"])));
        // Each answers once it is so.
        calls::revoke_role(&admin.client, &ana.user_id, "buyer").await.unwrap();
        assert_eq!(now().await, Some(list(&["orders.read", "stock.read"])));
        permit(&admin, "reader", &["orders.read", "orders.delete"]).await;
        assert_eq!(now().await, Some(list(&["orders.read"])));
        permit(&admin, "reader", &["stock.read"]).await;
        assert_eq!(now().await, Some(list(&["stock.read"])));
        calls::grant(&admin.client, &ana.user_id, "buyer").await.unwrap();
        assert_eq!(now().await, Some(list(&["orders.buy", "stock.read"])));
        calls::disable(&admin.client, &ana.user_id).await.unwrap();
        assert_eq!(now().await, None);
        // While its owner is disabled it changes nothing that others may change.
        permit(&admin, "reader", &["orders.read"]).await;
        assert_eq!(now().await, None);
        calls::enable(&admin.client, &ana.user_id).await.unwrap();
        assert_eq!(now().await, Some(list(&["orders.buy", "orders.read"])));
        calls::delete(&admin.client, &ana.user_id).await.unwrap();
        assert_eq!(now().await, None);
        assert_eq!(count(&world, "api_keys WHERE name <> ''").await, 0, "names may be personal");
        // The same after a restart, which reads all of it anew.
        let world = world.restarted(|_| {}).await;
        assert!(!validates(&world.anonymous(), &secret).await);
    }

    async fn an_admins_key_may_do_what_it_was_given(world: World) {
        let admin = world.admin().await;
        let (_, secret) = create_api_key(&admin.client, &["countersign.users.read"]).await.unwrap();
        let mut program = world.anonymous().with_token(&secret);
        program.users.list_users(v1::ListUsersRequest::default()).await.unwrap();
        let denied = program.roles.list_roles(v1::ListRolesRequest::default()).await;
        refused(denied, Code::PermissionDenied, "PERMISSION_DENIED");
        let world = world.restarted(|_| {}).await;
        assert_eq!(scopes(&world.anonymous(), &secret).await, Some(list(&["countersign.users.read"])));
    }

    async fn a_revoked_key_is_refused_from_the_answer_on(world: World) {
        let (ana, ben) = (world.person().await, world.person().await);
        let (key, secret) = create_api_key(&ana.client, &[]).await.unwrap();
        let (_, other) = create_api_key(&ana.client, &[]).await.unwrap();
        let not_found = (Code::NotFound, "API_KEY_NOT_FOUND");
        refused(revoke_api_key(&ben.client, &key.api_key_id).await, not_found.0, not_found.1);
        refused(rotate_api_key(&ben.client, &key.api_key_id, HOUR).await, not_found.0, not_found.1);
        assert!(validates(&world.anonymous(), &secret).await);
        revoke_api_key(&ana.client, &key.api_key_id).await.unwrap();
        assert!(!validates(&world.anonymous(), &secret).await);
        assert!(validates(&world.anonymous(), &other).await);
        refused(revoke_api_key(&ana.client, &key.api_key_id).await, not_found.0, not_found.1);
        refused(rotate_api_key(&ana.client, &key.api_key_id, HOUR).await, not_found.0, not_found.1);
        assert_eq!(api_keys(&ana.client, "").await.unwrap().len(), 1);
        let world = world.restarted(|_| {}).await;
        assert!(!validates(&world.anonymous(), &secret).await);
        assert!(validates(&world.anonymous(), &other).await);
    }

    async fn old_secrets_are_good_for_the_overlap(world: World) {
        let ana = world.person().await;
        let (key, first) = create_api_key(&ana.client, &[]).await.unwrap();
        let good = async |secret: &str| validates(&world.anonymous(), secret).await;
        let (rotated, second) = rotate_api_key(&ana.client, &key.api_key_id, 2 * HOUR).await.unwrap();
        assert_eq!(rotated.overlap_until.unwrap().seconds - rotated.rotated_at.unwrap().seconds, 7200);
        let until = calls::caller(&world.anonymous(), &first).await.unwrap().expires_at;
        assert_eq!(until, rotated.overlap_until);
        // The answer was lost, and the next try does not end what is in use.
        world.clock.advance(Duration::from_secs(60));
        let ana = ana.again().await;
        let (_, third) = rotate_api_key(&ana.client, &key.api_key_id, 24 * HOUR).await.unwrap();
        assert!(good(&first).await && good(&second).await && good(&third).await);
        world.clock.advance(2 * HOUR - Duration::from_secs(61));
        assert!(good(&first).await);
        world.clock.advance(Duration::from_secs(1));
        assert!(!good(&first).await, "a later rotation prolongs nothing");
        assert!(good(&second).await && good(&third).await);
        // An overlap of nothing ends all that were before.
        let ana = ana.again().await;
        let (rotated, fourth) = rotate_api_key(&ana.client, &key.api_key_id, Duration::ZERO).await.unwrap();
        assert_eq!(rotated.overlap_until, None);
        assert!(!good(&second).await && !good(&third).await && good(&fourth).await);
        let world = world.restarted(|_| {}).await;
        for (secret, good) in [(first, false), (second, false), (third, false), (fourth, true)] {
            assert_eq!(validates(&world.anonymous(), &secret).await, good);
        }
    }

    async fn an_overlap_has_bounds(world: World) {
        let ana = world.person().await;
        let (key, _) = create_api_key(&ana.client, &[]).await.unwrap();
        let rotate = async |seconds, nanos| {
            let request = v1::RotateApiKeyRequest {
                api_key_id: key.api_key_id.clone(),
                overlap: Some(prost_types::Duration { seconds, nanos }),
            };
            ana.client.clone().api_keys.rotate_api_key(request).await
        };
        let month = 30 * 24 * 3600;
        for (seconds, nanos) in [
            (-1, 0), (0, -1), (-1, 1), (1, -1), (month, 1), (month + 1, 0), (0, 1_000_000_000), (i64::MAX, i32::MAX), (i64::MIN, i32::MIN),
        ] {
            let failure = refused(rotate(seconds, nanos).await, Code::InvalidArgument, "INVALID_REQUEST");
            assert_eq!(failure.fields, ["overlap"], "{seconds} {nanos}");
        }
        rotate(month, 0).await.unwrap();
        // Unset is a day.
        let request = v1::RotateApiKeyRequest { api_key_id: key.api_key_id.clone(), overlap: None };
        ana.client.clone().api_keys.rotate_api_key(request).await.unwrap();
        let left = world.query("SELECT count(*) FROM api_key_secrets WHERE ends_at IS NOT NULL").await;
        assert_eq!(left, ["2"]);
    }

    async fn no_more_than_five_secrets_are_good_at_once(world: World) {
        let ana = world.person().await;
        let (key, secret) = create_api_key(&ana.client, &[]).await.unwrap();
        let mut secrets = vec![secret];
        for _ in 0..6 {
            world.clock.advance(Duration::from_secs(1));
            secrets.push(rotate_api_key(&ana.client, &key.api_key_id, DAY).await.unwrap().1);
        }
        let mut good = Vec::new();
        for secret in &secrets {
            good.push(validates(&world.anonymous(), secret).await);
        }
        assert_eq!(good, [false, false, true, true, true, true, true]);
        assert_eq!(count(&world, "api_key_secrets").await, 5);
    }

    async fn a_key_ends_when_it_was_to_end(world: World) {
        let ana = world.person().await;
        let ends = |seconds: i64| prost_types::Timestamp { seconds: 1_893_456_000 + seconds, nanos: 0 };
        let create = async |expires_at| {
            let request = v1::CreateApiKeyRequest { name: "short".into(), expires_at: Some(expires_at), ..Default::default() };
            ana.client.clone().api_keys.create_api_key(request).await
        };
        for past in [ends(0), ends(-1)] {
            let failure = refused(create(past).await, Code::InvalidArgument, "INVALID_REQUEST");
            assert_eq!(failure.fields, ["expires_at"]);
        }
        let made = create(ends(600)).await.unwrap().into_inner();
        let key = made.api_key.unwrap();
        let caller = calls::caller(&world.anonymous(), &made.secret).await.unwrap();
        assert_eq!((key.expires_at, caller.expires_at), (Some(ends(600)), Some(ends(600))));
        world.clock.advance(Duration::from_millis(599_999));
        assert!(validates(&world.anonymous(), &made.secret).await);
        world.clock.advance(Duration::from_millis(1));
        assert!(!validates(&world.anonymous(), &made.secret).await, "no leeway");
        // It is there to be seen, and gets no new secret.
        assert_eq!(api_keys(&ana.client, "").await.unwrap().len(), 1);
        refused(rotate_api_key(&ana.client, &key.api_key_id, HOUR).await, Code::NotFound, "API_KEY_NOT_FOUND");
        revoke_api_key(&ana.client, &key.api_key_id).await.unwrap();
        assert_eq!(api_keys(&ana.client, "").await.unwrap().len(), 0);
    }

    async fn a_repeated_creation_gets_the_key_without_its_secret(world: World) {
        let ana = world.person().await;
        let request = v1::CreateApiKeyRequest {
            name: "once".into(),
            request_id: "00000001-0000-4000-8000-000000000000".into(),
            ..Default::default()
        };
        let mut made = Vec::new();
        for _ in 0..3 {
            let reply = ana.client.clone().api_keys.create_api_key(request.clone()).await;
            made.push(reply.unwrap().into_inner());
        }
        assert_eq!(made.iter().map(|reply| reply.secret.is_empty()).collect::<Vec<_>>(), [false, true, true]);
        assert!(made.iter().all(|reply| reply.api_key == made[0].api_key));
        assert_eq!(api_keys(&ana.client, "").await.unwrap().len(), 1);
        let other = v1::CreateApiKeyRequest { name: "twice".into(), ..request.clone() };
        let reused = ana.client.clone().api_keys.create_api_key(other).await;
        refused(reused, Code::InvalidArgument, "REQUEST_ID_REUSED");
        // Racing calls too.
        let request = v1::CreateApiKeyRequest { request_id: "00000002-0000-4000-8000-000000000000".into(), ..request };
        let calls = (0..8).map(|_| {
            let (mut client, request) = (ana.client.clone(), request.clone());
            tokio::spawn(async move { client.api_keys.create_api_key(request).await })
        });
        let mut secrets = 0;
        for call in calls.collect::<Vec<_>>() {
            secrets += usize::from(!call.await.unwrap().unwrap().into_inner().secret.is_empty());
        }
        assert_eq!((secrets, api_keys(&ana.client, "").await.unwrap().len()), (1, 2));
    }

    async fn an_account_has_only_so_many_keys(world: World) {
        let world = world.restarted(|config| config.api_keys.max_per_user = 5).await;
        let ana = world.person().await;
        // At once, so that nobody counts what others have not committed yet.
        let calls = (0..20).map(|_| {
            let client = ana.client.clone();
            tokio::spawn(async move {
                loop {
                    match create_api_key(&client, &[]).await {
                        Err(status) if Failure::from(&status).retry => {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                        settled => return settled,
                    }
                }
            })
        });
        let mut made = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            match call.await.unwrap() {
                Ok((key, _)) => made.push(key),
                refusal => _ = refused(refusal, Code::FailedPrecondition, "TOO_MANY_API_KEYS"),
            }
        }
        assert_eq!(made.len(), 5);
        revoke_api_key(&ana.client, &made[0].api_key_id).await.unwrap();
        create_api_key(&ana.client, &[]).await.unwrap();
        refused(create_api_key(&ana.client, &[]).await, Code::FailedPrecondition, "TOO_MANY_API_KEYS");
        let ben = world.person().await;
        create_api_key(&ben.client, &[]).await.unwrap();
    }

    async fn keys_are_listed_in_pages(world: World) {
        let ana = world.person().await;
        let mut expected = Vec::new();
        for i in 0..5 {
            // Some of one moment.
            world.clock.advance(Duration::from_secs(u64::from(i % 2 == 0)));
            expected.push(create_api_key(&ana.client, &[]).await.unwrap().0);
        }
        expected.sort_by(|a, b| {
            let key = |key: &v1::ApiKey| (key.created_at.map(|at| (at.seconds, at.nanos)), key.api_key_id.clone());
            key(b).cmp(&key(a))
        });
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListApiKeysRequest { page_size: 2, page_token, ..Default::default() };
            let reply = ana.client.clone().api_keys.list_api_keys(request).await.unwrap().into_inner();
            assert!(reply.api_keys.len() <= 2);
            found.extend(reply.api_keys);
            page_token = reply.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(found, expected);
    }

    async fn what_has_ended_is_cleared_away_and_forgotten(world: World) {
        let ana = world.person().await;
        let request = v1::CreateApiKeyRequest {
            name: "short".into(),
            expires_at: Some(prost_types::Timestamp { seconds: 1_893_456_000 + 7200, nanos: 0 }),
            ..Default::default()
        };
        let short = ana.client.clone().api_keys.create_api_key(request).await.unwrap().into_inner();
        let (revoked, _) = create_api_key(&ana.client, &[]).await.unwrap();
        revoke_api_key(&ana.client, &revoked.api_key_id).await.unwrap();
        let (kept, old) = create_api_key(&ana.client, &[]).await.unwrap();
        let (_, new) = rotate_api_key(&ana.client, &kept.api_key_id, HOUR).await.unwrap();
        let known = || {
            let state = world.node.running.feed().verifier().state().unwrap();
            let secrets = state.api_keys.iter().map(|key| key.secrets.len());
            (state.api_keys.len(), secrets.sum::<usize>())
        };
        assert_eq!((known(), count(&world, "api_key_secrets").await), ((2, 3), 4));
        world.clock.advance(HOUR);
        sweep(&world).await;
        assert_eq!((count(&world, "api_keys").await, count(&world, "api_key_secrets").await), (3, 3));
        eventually("the old secret is forgotten", async || known() == (2, 2)).await;
        world.clock.advance(DAY - HOUR);
        sweep(&world).await;
        assert_eq!(count(&world, "api_keys").await, 2, "a day after its end");
        world.clock.advance(2 * HOUR);
        sweep(&world).await;
        assert_eq!((count(&world, "api_keys").await, count(&world, "api_key_secrets").await), (1, 1));
        assert_eq!((count(&world, "api_key_scopes").await, count(&world, "api_key_audiences").await), (0, 1));
        eventually("the ended key is forgotten", async || known() == (1, 1)).await;
        for (secret, good) in [(&short.secret, false), (&old, false), (&new, true)] {
            assert_eq!(validates(&world.anonymous(), secret).await, good);
        }
    }

    async fn keys_are_judged_while_the_database_is_gone(world: World) {
        let ana = world.person_who_may(&["orders.read"]).await;
        let (_, secret) = create_api_key(&ana.client, &["orders.read"]).await.unwrap();
        world.execute("ALTER TABLE api_keys RENAME TO gone").await;
        assert_eq!(scopes(&world.anonymous(), &secret).await, Some(list(&["orders.read"])));
        assert!(!validates(&world.anonymous(), &countersign_verifier::api_key_text(&[7; 24])).await);
    }
}

/// PostgreSQL only: a SQLite file is served by one node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_nodes_hear_of_keys() {
    let world = World::new(Kind::Postgres).await;
    let other = world.another_node().await.expect("a second node");
    let admin = world.admin().await;
    let ana = world.person_who_may(&["orders.read"]).await;
    let (key, first) = create_api_key(&ana.client, &["orders.read"]).await.unwrap();
    let there = other.client();
    eventually("the key is known", async || validates(&there, &first).await).await;
    let (_, second) = rotate_api_key(&ana.client, &key.api_key_id, Duration::ZERO)
        .await
        .unwrap();
    eventually("the new secret is known", async || {
        validates(&there, &second).await && !validates(&there, &first).await
    })
    .await;
    calls::disable(&admin.client, &ana.user_id).await.unwrap();
    eventually("the owner is disabled", async || {
        !validates(&there, &second).await
    })
    .await;
    calls::enable(&admin.client, &ana.user_id).await.unwrap();
    eventually("the owner is enabled", async || {
        validates(&there, &second).await
    })
    .await;
    let mut admins = other.client().with_token(&admin.tokens.access_token);
    let revoke = v1::RevokeApiKeyRequest {
        api_key_id: key.api_key_id,
    };
    admins.api_keys.revoke_api_key(revoke).await.unwrap();
    assert!(
        !validates(&there, &second).await,
        "at once where it is done"
    );
    eventually("the key is revoked", async || {
        !validates(&world.anonymous(), &second).await
    })
    .await;
}
