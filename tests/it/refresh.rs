//! Refreshing: safe to retry, deadly to steal.

use std::{collections::HashSet, time::Duration};

use countersign_proto::v1;
use tonic::Code;

use crate::{
    harness::{Client, Kind, Person, World, refused, world},
    on_both,
};

const GRACE: Duration = Duration::from_secs(30);

async fn refresh(client: &Client, token: &str) -> Result<v1::TokenPair, tonic::Status> {
    let request = v1::RefreshRequest {
        refresh_token: token.to_owned(),
        audiences: Vec::new(),
    };
    let reply = client.clone().auth.refresh(request).await?;
    Ok(reply.into_inner().tokens.expect("tokens"))
}

async fn validates(client: &Client, token: &str) -> bool {
    let request = v1::ValidateTokenRequest {
        token: token.to_owned(),
        audience: String::new(),
    };
    client.clone().tokens.validate_token(request).await.is_ok()
}

async fn sessions(person: &Person) -> Result<usize, tonic::Status> {
    let mut client = person.client.clone();
    let reply = client
        .sessions
        .list_sessions(v1::ListSessionsRequest::default())
        .await?;
    Ok(reply.into_inner().sessions.len())
}

on_both! {
    async fn a_refresh_gives_the_next_pair(world: World) {
        let ana = world.person().await;
        let next = refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        assert_ne!(next.refresh_token, ana.tokens.refresh_token);
        assert_eq!(next.session_id, ana.tokens.session_id);
        assert!(validates(&world.anonymous(), &next.access_token).await);
        assert!(refresh(&world.anonymous(), &next.refresh_token).await.is_ok());
    }

    async fn two_hundred_at_once_get_one_successor(world: World) {
        let other = world.another_node().await;
        let ana = world.person().await;
        // A SQLite file is served by one node.
        let second = other.as_ref().unwrap_or(&world.node);
        let clients = [
            world.node.new_connection(),
            world.node.new_connection(),
            second.new_connection(),
            second.new_connection(),
        ];
        let calls = (0..200).map(|i| {
            let (client, token) = (clients[i % 4].clone(), ana.tokens.refresh_token.clone());
            tokio::spawn(async move { retrying(&client, &token).await })
        });
        let mut successors = HashSet::new();
        for call in calls.collect::<Vec<_>>() {
            successors.insert(call.await.unwrap().refresh_token);
        }
        assert_eq!(successors.len(), 1);
        // One live generation: the successor advances, the first one is history.
        let successor = successors.into_iter().next().unwrap();
        let third = refresh(&world.anonymous(), &successor).await.unwrap();
        assert!(!successor.is_empty() && third.refresh_token != successor);
        refused(
            refresh(&world.anonymous(), &ana.tokens.refresh_token).await,
            Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
        );
    }

    async fn a_replay_within_the_grace_gets_the_same_successor(world: World) {
        let ana = world.person().await;
        let first = refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        world.clock.advance(GRACE);
        let again = refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        assert_eq!(first.refresh_token, again.refresh_token);
    }

    async fn a_replay_after_the_grace_is_theft_and_ends_the_session(world: World) {
        let ana = world.person().await;
        let next = refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        world.clock.advance(GRACE + Duration::from_secs(1));
        refused(
            refresh(&world.anonymous(), &ana.tokens.refresh_token).await,
            Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
        );
        // The call failed, and its effect is there: at once, and for good.
        assert!(!validates(&world.anonymous(), &next.access_token).await);
        refused(
            refresh(&world.anonymous(), &next.refresh_token).await,
            Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
        );
    }

    async fn a_token_two_generations_old_is_theft_even_within_the_grace(world: World) {
        let ana = world.person().await;
        let second = refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        let third = refresh(&world.anonymous(), &second.refresh_token).await.unwrap();
        refused(
            refresh(&world.anonymous(), &ana.tokens.refresh_token).await,
            Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
        );
        assert!(!validates(&world.anonymous(), &third.access_token).await);
    }

    async fn a_token_ahead_of_its_row_advances_it(world: World) {
        // A failover lost the commit that issued the second token.
        let ana = world.person().await;
        let second = refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        let third = refresh(&world.anonymous(), &second.refresh_token).await.unwrap();
        world.execute("UPDATE sessions SET generation = 0").await;
        let fourth = refresh(&world.anonymous(), &third.refresh_token).await.unwrap();
        assert_ne!(fourth.refresh_token, third.refresh_token);
        assert!(refresh(&world.anonymous(), &fourth.refresh_token).await.is_ok());
    }

    async fn a_token_of_another_history_is_refused_and_changes_nothing(world: World) {
        let ana = world.person().await;
        let row = "SELECT generation || ' ' || key_id || ' ' || rotated_at FROM sessions";
        // As after a backup was restored, under which the password was changed.
        let binding = match world.database.kind {
            Kind::Sqlite => "X'000102030405060708090a0b0c0d0e0f'",
            Kind::Postgres => "'\\x000102030405060708090a0b0c0d0e0f'",
        };
        world.execute(&format!("UPDATE sessions SET binding = {binding}")).await;
        let before = world.query(row).await;
        world.clock.advance(Duration::from_secs(1));
        refused(
            refresh(&world.anonymous(), &ana.tokens.refresh_token).await,
            Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
        );
        assert_eq!(world.query(row).await, before);
        assert!(validates(&world.anonymous(), &ana.tokens.access_token).await);
    }

    async fn a_session_ends_when_idle_and_at_its_absolute_age(world: World) {
        let ana = world.person().await;
        let day = Duration::from_secs(24 * 3600);
        world.clock.advance(7 * day + Duration::from_secs(1));
        refused(
            refresh(&world.anonymous(), &ana.tokens.refresh_token).await,
            Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
        );
        let mut tokens = world::login(&world.anonymous(), &ana.email, world::PASSWORD).await.unwrap();
        for _ in 0..5 {
            world.clock.advance(6 * day - Duration::from_secs(1));
            let next = refresh(&world.anonymous(), &tokens.refresh_token).await;
            tokens = next.expect("active within its 30 days");
        }
        world.clock.advance(Duration::from_secs(6));
        refused(
            refresh(&world.anonymous(), &tokens.refresh_token).await,
            Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
        );
    }

    async fn every_flipped_character_is_refused(world: World) {
        let ana = world.person().await;
        let token = ana.tokens.refresh_token.clone();
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(bytes).unwrap();
            refused(
                refresh(&world.anonymous(), &forged).await,
                Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
            );
        }
        assert!(refresh(&world.anonymous(), &token).await.is_ok(), "forgeries had an effect");
    }

    async fn role_changes_kill_access_tokens_and_sessions_refresh_into_them(world: World) {
        let mut admin = world.admin().await;
        let ana = world.person().await;
        let role = v1::CreateRoleRequest {
            name: "buyer".into(),
            permissions: vec!["orders.read".into()],
            ..Default::default()
        };
        admin.client.roles.create_role(role).await.unwrap();
        let grant = v1::GrantRoleRequest { user_id: ana.user_id.clone(), role: "buyer".into() };
        admin.client.users.grant_role(grant).await.unwrap();
        assert!(!validates(&world.anonymous(), &ana.tokens.access_token).await);
        let next = refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        let request = v1::ValidateTokenRequest { token: next.access_token, ..Default::default() };
        let caller = world.anonymous().tokens.validate_token(request).await.unwrap();
        let caller = caller.into_inner().caller.unwrap();
        assert_eq!((caller.roles, caller.scopes), (vec!["buyer".into()], vec!["orders.read".into()]));
    }

    async fn refresh_racing_a_logout_leaves_nothing(world: World) {
        for _ in 0..20 {
            let ana = world.person().await;
            let (client, token) = (world.node.new_connection(), ana.tokens.refresh_token.clone());
            let racing = tokio::spawn(async move { refresh(&client, &token).await });
            let mut leaving = ana.client.clone();
            leaving.auth.logout(v1::LogoutRequest::default()).await.unwrap();
            if let Ok(pair) = racing.await.unwrap() {
                assert!(!validates(&world.anonymous(), &pair.access_token).await);
                assert!(refresh(&world.anonymous(), &pair.refresh_token).await.is_err());
            }
        }
    }

    async fn refresh_racing_a_disable_leaves_nothing(world: World) {
        let admin = world.admin().await;
        for _ in 0..20 {
            let ana = world.person().await;
            let (client, token) = (world.node.new_connection(), ana.tokens.refresh_token.clone());
            let racing = tokio::spawn(async move { refresh(&client, &token).await });
            let request = v1::DisableUserRequest { user_id: ana.user_id.clone() };
            admin.client.clone().users.disable_user(request).await.unwrap();
            if let Ok(pair) = racing.await.unwrap() {
                assert!(!validates(&world.anonymous(), &pair.access_token).await);
                assert!(refresh(&world.anonymous(), &pair.refresh_token).await.is_err());
            }
            assert!(sessions(&ana).await.is_err());
        }
    }

    async fn refresh_racing_a_password_change_leaves_only_the_new_pair(world: World) {
        for _ in 0..20 {
            let ana = world.person().await;
            let (client, token) = (world.node.new_connection(), ana.tokens.refresh_token.clone());
            let racing = tokio::spawn(async move { refresh(&client, &token).await });
            let change = v1::ChangePasswordRequest {
                current_password: world::PASSWORD.into(),
                new_password: "another horse entirely, thanks".into(),
            };
            let fresh = ana.client.clone().auth.change_password(change).await;
            let raced = racing.await.unwrap();
            let fresh = fresh.unwrap().into_inner().tokens.unwrap();
            if let Ok(pair) = raced {
                assert!(!validates(&world.anonymous(), &pair.access_token).await);
                assert!(refresh(&world.anonymous(), &pair.refresh_token).await.is_err());
            }
            assert!(validates(&world.anonymous(), &fresh.access_token).await);
            assert!(refresh(&world.anonymous(), &fresh.refresh_token).await.is_ok());
        }
    }
}

/// Refreshes as a well-made client does: again after a refusal that says so.
async fn retrying(client: &Client, token: &str) -> v1::TokenPair {
    for _ in 0..100 {
        match refresh(client, token).await {
            Ok(pair) => return pair,
            Err(status) => {
                let failure = crate::harness::Failure::from(&status);
                assert!(failure.retry, "{status:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    panic!("refused a hundred times");
}
