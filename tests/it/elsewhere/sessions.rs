//! What happened to sessions and their tokens.

use std::time::Duration;

use countersign_proto::v1;
use tonic::{Code, Status};

use super::ends_after;
use crate::{
    harness::{
        Client, Failure, World, calls,
        calls::{caller, claims, is_dead, refresh, validates},
        eventually, refused,
    },
    on_both,
};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A session that is not refreshed for so long ends, by default.
const IDLE: Duration = Duration::from_secs(7 * 24 * 3600);
/// For so long a refresh token that was used gets the same successor.
const GRACE: Duration = Duration::from_secs(30);
/// By so much clocks may differ, by default.
const LEEWAY: Duration = Duration::from_secs(5);

const REFUSED: (Code, &str) = (Code::Unauthenticated, "REFRESH_TOKEN_INVALID");

/// Refreshes until the answer is none that says to come again.
async fn settled(client: Client, token: String) -> Result<v1::TokenPair, Status> {
    for _ in 0..200 {
        match refresh(&client, &token).await {
            Err(status) if Failure::from(&status).retry => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            result => return result,
        }
    }
    panic!("refused with a hint two hundred times");
}

async fn count(world: &World, rows: &str) -> String {
    let found = world.query(&format!("SELECT count(*) FROM {rows}")).await;
    found.concat()
}

/// Changes what a role permits.
async fn permit(admin: &Client, role: &str, permissions: &[&str]) {
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
    admin.clone().roles.update_role(request).await.unwrap();
}

on_both! {
    // Leans on `revoked_at.is_null()` in store/sessions.rs, advance: whichever of
    // the two is first, the session has ended once both are answered.
    async fn a_copied_refresh_token_and_its_successor_used_at_once_left_two_families(world: World) {
        let other = world.another_node().await;
        // A SQLite file is served by one node.
        let second = other.as_ref().unwrap_or(&world.node);
        for _ in 0..15 {
            let ana = world.person().await;
            let copied = ana.tokens.refresh_token.clone();
            let current = refresh(&world.anonymous(), &copied).await.unwrap();
            world.clock.advance(GRACE + SECOND);
            let (by_thief, by_owner) = tokio::join!(
                tokio::spawn(settled(world.node.new_connection(), copied)),
                tokio::spawn(settled(second.new_connection(), current.refresh_token.clone())),
            );
            refused(by_thief.unwrap(), REFUSED.0, REFUSED.1);
            let mut pairs = vec![current];
            pairs.extend(by_owner.unwrap().ok());
            for pair in &pairs {
                assert!(is_dead(&world.anonymous(), pair).await, "{} pairs", pairs.len());
                // The other node has heard of it within a moment.
                eventually("it is dead there too", async || is_dead(&second.client(), pair).await).await;
            }
        }
    }

    // Leans on `Progress::judge`, which knows nothing of when the process began.
    async fn a_restart_made_used_refresh_tokens_good_again(world: World) {
        let ana = world.person().await;
        let next = refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        world.clock.advance(GRACE + SECOND);
        let world = world.restarted(|_| {}).await;
        refused(refresh(&world.anonymous(), &ana.tokens.refresh_token).await, REFUSED.0, REFUSED.1);
        assert!(is_dead(&world.anonymous(), &next).await, "and it was seen as theft");
    }

    // Leans on the announcement in service/users.rs, role_changed, for tokens that
    // are there, and on service/refresh.rs, step, which reads the roles anew, also
    // for a successor that is derived once more.
    async fn a_role_that_was_taken_away_stayed_in_the_next_token(world: World) {
        let admin = world.admin().await.client;
        calls::create_role(&admin, "buyer", &["orders.buy"]).await.unwrap();
        calls::create_role(&admin, "reader", &["orders.list", "orders.read"]).await.unwrap();
        let ana = world.person().await;
        for role in ["buyer", "reader"] {
            calls::grant(&admin, &ana.user_id, role).await.unwrap();
        }
        let ana = ana.again().await;
        let nobody = world.anonymous();
        assert_eq!(caller(&nobody, &ana.tokens.access_token).await.unwrap().roles, ["buyer", "reader"]);
        let next = refresh(&nobody, &ana.tokens.refresh_token).await.unwrap();

        calls::revoke_role(&admin, &ana.user_id, "buyer").await.unwrap();
        calls::delete_role(&admin, "buyer").await.unwrap();
        for old in [&ana.tokens, &next] {
            assert!(!validates(&nobody, &old.access_token).await);
        }
        // The same successor again, a further one, and a new session.
        let derived = refresh(&nobody, &ana.tokens.refresh_token).await.unwrap();
        assert_eq!(derived.refresh_token, next.refresh_token);
        let further = refresh(&nobody, &next.refresh_token).await.unwrap();
        for pair in [&derived, &further, &ana.again().await.tokens] {
            let caller = caller(&nobody, &pair.access_token).await.unwrap();
            assert_eq!((caller.roles, caller.scopes), (vec!["reader".to_owned()], vec!["orders.list".to_owned(), "orders.read".to_owned()]));
            // Nor is it in there for those who read tokens themselves.
            let claims = claims(&pair.access_token);
            assert_eq!((&claims["scope"], &claims["roles"]), (&"orders.list orders.read".into(), &serde_json::json!(["reader"])));
        }

        // A permission that the role has lost.
        permit(&admin, "reader", &["orders.list"]).await;
        assert!(!validates(&nobody, &further.access_token).await);
        let further = refresh(&nobody, &further.refresh_token).await.unwrap();
        assert_eq!(caller(&nobody, &further.access_token).await.unwrap().scopes, ["orders.list"]);

        // The last role of all.
        calls::revoke_role(&admin, &ana.user_id, "reader").await.unwrap();
        assert!(!validates(&nobody, &further.access_token).await);
        let without = refresh(&nobody, &further.refresh_token).await.unwrap();
        let caller = caller(&nobody, &without.access_token).await.unwrap();
        assert!(caller.roles.is_empty() && caller.scopes.is_empty(), "{caller:?}");
    }

    // Leans on the times in the queries: `expires_at.gt(now)` in store/sessions.rs,
    // advance, and `at <= now` in the verifier's api_key.rs. A day later the janitor
    // clears away; until then the rows are there.
    async fn what_had_expired_was_good_until_the_clean_up(world: World) {
        let (ana, ben) = (world.person().await, world.person().await);
        let request = v1::CreateApiKeyRequest {
            name: "ends".into(),
            expires_at: Some(ends_after(IDLE)),
            ..Default::default()
        };
        let made = ana.client.clone().api_keys.create_api_key(request).await.unwrap().into_inner();
        // And one that has a successor.
        let (key, before) = calls::create_api_key(&ana.client, &[]).await.unwrap();
        calls::rotate_api_key(&ana.client, &key.api_key_id, IDLE).await.unwrap();
        let nobody = world.anonymous();
        let good = async |secret: &str| validates(&nobody, secret).await;

        world.clock.advance(IDLE - Duration::from_millis(1));
        assert!(good(&made.secret).await && good(&before).await);
        let ben = refresh(&nobody, &ben.tokens.refresh_token).await.unwrap();
        world.clock.advance(Duration::from_millis(1));
        let ended = (count(&world, "sessions WHERE revoked_at IS NULL").await, count(&world, "api_keys").await);
        assert_eq!(ended, ("2".to_owned(), "2".to_owned()), "nobody has cleared anything away");
        assert!(!good(&made.secret).await && !good(&before).await);
        refused(refresh(&nobody, &ana.tokens.refresh_token).await, REFUSED.0, REFUSED.1);
        // Nobody sees a session that is over.
        let admin = world.admin().await;
        assert!(calls::sessions(&admin.client, &ana.user_id).await.unwrap().is_empty());
        assert!(validates(&nobody, &ben.access_token).await, "who was in time goes on");
    }

    // Leans on `.min(refresh_expires_at…)` in service/token.rs, pair.
    async fn an_access_token_outlived_its_session(world: World) {
        let ana = world.person().await;
        let nobody = world.anonymous();
        let mut tokens = ana.tokens;
        for _ in 0..4 {
            world.clock.advance(IDLE - SECOND);
            tokens = refresh(&nobody, &tokens.refresh_token).await.unwrap();
        }
        // A minute before the end that no refresh puts off.
        world.clock.advance(2 * DAY + 4 * SECOND - 60 * SECOND);
        let last = refresh(&nobody, &tokens.refresh_token).await.unwrap();
        assert_eq!(last.refresh_expires_at, Some(ends_after(30 * DAY)));
        assert_eq!(last.expires_at, last.refresh_expires_at);
        world.clock.advance(60 * SECOND + LEEWAY - Duration::from_millis(1));
        assert!(validates(&nobody, &last.access_token).await);
        world.clock.advance(Duration::from_millis(1));
        assert!(is_dead(&nobody, &last).await);
    }
}
