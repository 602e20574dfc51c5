//! Sessions: seeing and ending them.

use std::time::Duration;

use countersign_proto::v1;
use tonic::{Code, Status, transport::Endpoint};

use crate::{
    harness::{
        Client, Person, World, calls,
        calls::{is_dead, revoke_session, sessions, validates},
        refused,
        world::PASSWORD,
    },
    on_both,
};

async fn revoke_all(client: &Client, user_id: &str, keep_current: bool) -> Result<i32, Status> {
    let request = v1::RevokeAllSessionsRequest {
        user_id: user_id.to_owned(),
        keep_current,
    };
    let reply = client.clone().sessions.revoke_all_sessions(request).await?;
    Ok(reply.into_inner().revoked_count)
}

/// Logs in from a named device by a program of its own.
async fn from_device(world: &World, ana: &Person, device: &str, agent: &str) -> Person {
    let endpoint = Endpoint::from_shared(format!("http://{}", world.node.address)).unwrap();
    let channel = endpoint.user_agent(agent).unwrap().connect_lazy();
    let client = Client::new(channel, None);
    let request = v1::LoginRequest {
        identifier: ana.email.clone(),
        password: PASSWORD.into(),
        device_name: device.into(),
        ..Default::default()
    };
    let reply = client.clone().auth.login(request).await.unwrap();
    let Some(v1::login_response::Result::Tokens(tokens)) = reply.into_inner().result else {
        panic!("no tokens");
    };
    Person {
        client: client.with_token(&tokens.access_token),
        tokens,
        ..ana.clone()
    }
}

on_both! {
    async fn a_list_shows_where_each_session_came_from(world: World) {
        let ana = world.person().await;
        let start = ana.tokens.refresh_expires_at.unwrap().seconds - 7 * 24 * 3600;
        world.clock.advance(Duration::from_secs(60));
        let phone = from_device(&world, &ana, "Ana's phone", "app/2.1").await;
        world.clock.advance(Duration::from_secs(60));
        calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        let listed = sessions(&phone.client, "").await.unwrap();
        let ids: Vec<_> = listed.iter().map(|session| session.session_id.as_str()).collect();
        assert_eq!(ids, [&phone.tokens.session_id, &ana.tokens.session_id], "newest first");
        let [newest, oldest] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((newest.device_name.as_str(), newest.address.as_str()), ("Ana's phone", "127.0.0.1"));
        assert!(newest.user_agent.starts_with("app/2.1 tonic/"), "{}", newest.user_agent);
        assert_eq!((newest.user_id.as_str(), newest.current, oldest.current), (ana.user_id.as_str(), true, false));
        let seconds = |session: &v1::Session| {
            [session.created_at, session.last_used_at, session.expires_at].map(|at| at.unwrap().seconds - start)
        };
        let week = 7 * 24 * 3600;
        assert_eq!(seconds(newest), [60, 60, week + 60]);
        assert_eq!(seconds(oldest), [0, 120, week + 120]);
        // The same from the other side.
        let listed = sessions(&ana.client, &ana.user_id).await.unwrap();
        let current: Vec<_> = listed.iter().map(|session| session.current).collect();
        assert_eq!(current, [false, true]);
    }

    async fn only_live_sessions_are_listed(world: World) {
        let ana = world.person().await;
        let other = ana.again().await;
        revoke_session(&ana.client, &other.tokens.session_id).await.unwrap();
        assert_eq!(sessions(&ana.client, "").await.unwrap().len(), 1);
        world.clock.advance(Duration::from_secs(7 * 24 * 3600 + 1));
        let ana = ana.again().await;
        assert_eq!(sessions(&ana.client, "").await.unwrap().len(), 1);
        assert_eq!(revoke_all(&ana.client, "", true).await.unwrap(), 0);
    }

    async fn ending_ones_own(world: World) {
        let ana = world.person().await;
        let (phone, tablet) = (ana.again().await, ana.again().await);
        revoke_session(&ana.client, &phone.tokens.session_id).await.unwrap();
        assert!(is_dead(&world.anonymous(), &phone.tokens).await);
        refused(
            phone.client.clone().auth.who_am_i(v1::WhoAmIRequest {}).await,
            Code::Unauthenticated, "TOKEN_INVALID",
        );
        refused(
            revoke_session(&ana.client, &phone.tokens.session_id).await,
            Code::NotFound, "SESSION_NOT_FOUND",
        );
        assert!(validates(&world.anonymous(), &tablet.tokens.access_token).await);
        // The one that the call is made in, too.
        revoke_session(&ana.client, &ana.tokens.session_id).await.unwrap();
        assert!(is_dead(&world.anonymous(), &ana.tokens).await);
        assert_eq!(sessions(&tablet.client, "").await.unwrap().len(), 1);
    }

    async fn anothers_are_not_there_for_who_may_not(world: World) {
        let ana = world.person().await;
        let ben = world.person().await;
        let nobody = uuid::Uuid::from_u128(7).to_string();
        for id in [&ben.tokens.session_id, &nobody] {
            let failure = refused(revoke_session(&ana.client, id).await, Code::NotFound, "SESSION_NOT_FOUND");
            assert!(failure.fields.is_empty());
        }
        for id in [&ben.user_id, &nobody] {
            refused(sessions(&ana.client, id).await, Code::PermissionDenied, "PERMISSION_DENIED");
            refused(revoke_all(&ana.client, id, false).await, Code::PermissionDenied, "PERMISSION_DENIED");
        }
        assert!(validates(&world.anonymous(), &ben.tokens.access_token).await);
    }

    async fn anothers_with_permission(world: World) {
        let ben = world.person().await;
        let other = ben.again().await;
        let reader = world.person_who_may(&["countersign.sessions.read"]).await;
        let listed = sessions(&reader.client, &ben.user_id).await.unwrap();
        assert_eq!(listed.len(), 2);
        assert!(listed.iter().all(|session| !session.current));
        // Seeing is not ending.
        refused(revoke_session(&reader.client, &ben.tokens.session_id).await, Code::NotFound, "SESSION_NOT_FOUND");
        refused(revoke_all(&reader.client, &ben.user_id, false).await, Code::PermissionDenied, "PERMISSION_DENIED");
        let revoker = world.person_who_may(&["countersign.sessions.revoke"]).await;
        refused(sessions(&revoker.client, &ben.user_id).await, Code::PermissionDenied, "PERMISSION_DENIED");
        revoke_session(&revoker.client, &ben.tokens.session_id).await.unwrap();
        assert!(is_dead(&world.anonymous(), &ben.tokens).await);
        // `keep_current` keeps nobody else's.
        assert_eq!(revoke_all(&revoker.client, &ben.user_id, true).await.unwrap(), 1);
        assert!(is_dead(&world.anonymous(), &other.tokens).await);
        assert!(validates(&world.anonymous(), &revoker.tokens.access_token).await);
        let nobody = uuid::Uuid::from_u128(7).to_string();
        refused(revoke_all(&revoker.client, &nobody, false).await, Code::NotFound, "USER_NOT_FOUND");
    }

    async fn ending_all_of_ones_own(world: World) {
        let ana = world.person().await;
        let ben = world.person().await;
        let others = [ana.again().await, ana.again().await];
        assert_eq!(revoke_all(&ana.client, "", true).await.unwrap(), 2);
        for other in &others {
            assert!(is_dead(&world.anonymous(), &other.tokens).await);
        }
        assert!(validates(&world.anonymous(), &ana.tokens.access_token).await);
        let more = ana.again().await;
        assert_eq!(revoke_all(&ana.client, "", false).await.unwrap(), 2);
        for dead in [&ana, &more] {
            assert!(is_dead(&world.anonymous(), &dead.tokens).await);
        }
        assert!(validates(&world.anonymous(), &ben.tokens.access_token).await);
    }

    async fn a_replay_of_a_session_that_has_ended_is_refused(world: World) {
        // Within the grace, which is for sessions that live.
        let admin = world.admin().await;
        for ending in 0..5 {
            let ana = world.person().await;
            let next = calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
            let (own, id) = (world.anonymous().with_token(&next.access_token), ana.user_id.as_str());
            match ending {
                0 => _ = own.clone().auth.logout(v1::LogoutRequest::default()).await.unwrap(),
                1 => revoke_session(&own, &next.session_id).await.unwrap(),
                2 => _ = calls::disable(&admin.client, id).await.unwrap(),
                3 => calls::set_password(&admin.client, id, "another horse entirely, thanks").await.unwrap(),
                _ => calls::delete(&admin.client, id).await.unwrap(),
            }
            for token in [&ana.tokens.refresh_token, &next.refresh_token] {
                refused(
                    calls::refresh(&world.anonymous(), token).await,
                    Code::Unauthenticated, "REFRESH_TOKEN_INVALID",
                );
            }
        }
        let replays = "SELECT count(*) FROM audit_events WHERE action = 'session.refresh_replayed'";
        assert_eq!(world.query(replays).await, ["0"]);
    }

    async fn a_login_beyond_the_most_ends_the_oldest(world: World) {
        let world = world.restarted(|config| config.sessions.max_per_user = 3).await;
        let ben = world.person().await;
        let mut anas = vec![world.person().await];
        for _ in 0..4 {
            world.clock.advance(Duration::from_secs(1));
            anas.push(anas[0].again().await);
        }
        let live: Vec<_> = sessions(&anas[4].client, "").await.unwrap().into_iter().map(|s| s.session_id).collect();
        assert_eq!(live, [4, 3, 2].map(|n: usize| anas[n].tokens.session_id.clone()));
        for (n, ana) in anas.iter().enumerate() {
            assert_eq!(is_dead(&world.anonymous(), &ana.tokens).await, n < 2, "{n}");
        }
        assert!(validates(&world.anonymous(), &ben.tokens.access_token).await);
    }

    async fn sessions_come_in_pages(world: World) {
        let ana = world.person().await;
        let mut expected = vec![ana.tokens.session_id.clone()];
        for n in 0..6 {
            // Several of one moment.
            if n % 3 == 0 {
                world.clock.advance(Duration::from_micros(1));
            }
            expected.push(ana.again().await.tokens.session_id);
        }
        let page = |client: &Client, size: i32, token: String| {
            let mut sessions = client.sessions.clone();
            let request = v1::ListSessionsRequest { page_size: size, page_token: token, ..Default::default() };
            async move { sessions.list_sessions(request).await.map(tonic::Response::into_inner) }
        };
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let reply = page(&ana.client, 2, token).await.unwrap();
            assert!(reply.sessions.len() <= 2);
            found.extend(reply.sessions.into_iter().map(|session| session.session_id));
            token = reply.next_page_token;
            if token.is_empty() {
                break;
            }
            // A new one comes first, and so on no later page.
            world.clock.advance(Duration::from_micros(1));
            ana.again().await;
        }
        assert_eq!(found[0], expected[6].clone().max(expected[5].clone()).max(expected[4].clone()));
        found.sort();
        expected.sort();
        assert_eq!(found, expected);

        let token = page(&ana.client, 1, String::new()).await.unwrap().next_page_token;
        let ben = world.person().await;
        ben.again().await;
        refused(page(&ben.client, 1, token.clone()).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
        // A token of one's own list does not open another's.
        let reader = world.person_who_may(&["countersign.sessions.read"]).await;
        reader.again().await;
        let token = page(&reader.client, 1, String::new()).await.unwrap().next_page_token;
        let request = v1::ListSessionsRequest { user_id: ana.user_id.clone(), page_token: token, ..Default::default() };
        refused(
            reader.client.clone().sessions.list_sessions(request).await,
            Code::InvalidArgument, "PAGE_TOKEN_INVALID",
        );
        refused(page(&ana.client, -1, String::new()).await, Code::InvalidArgument, "INVALID_REQUEST");
    }
}
