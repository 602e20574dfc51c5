//! Each security-relevant change is recorded in its own transaction, and a
//! change that was rolled back is not.

use countersign_proto::v1;
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::{
    harness::{
        Failure, Kind, Person, World, calls,
        calls::{named, unique_id},
        refused,
        world::{PASSWORD, login},
    },
    on_both,
};

const NEW: &str = "another horse entirely, thanks";

/// The events of the call of this id: action, outcome, and the ids of actor,
/// subject and session, `-` for none; and how many origins there are.
async fn events(world: &World, id: &str) -> Vec<String> {
    let text = |column: &str| match world.database.kind {
        // hex makes an empty text of NULL.
        Kind::Sqlite => format!("coalesce(nullif(lower(hex({column})), ''), '-')"),
        Kind::Postgres => format!("coalesce(replace({column}::text, '-', ''), '-')"),
    };
    let (actor, subject, session) = (text("e.actor"), text("e.subject"), text("e.session_id"));
    let query = format!(
        "SELECT e.action || ' ' || e.outcome || ' ' || {actor} || ' ' || {subject} || ' ' || {session} || ' ' || \
         (SELECT count(*) FROM audit_origins o WHERE o.event_id = e.id AND o.address = '127.0.0.1') \
         FROM audit_events e WHERE e.correlation_id = '{id}' ORDER BY e.id"
    );
    world.query(&query).await
}

fn event(action: &str, outcome: &str, actor: &str, subject: &str, session: &str) -> String {
    let plain = |id: &str| id.replace('-', "");
    let or_none = |id: &str| {
        if id.is_empty() {
            "-".to_owned()
        } else {
            plain(id)
        }
    };
    let (actor, subject, session) = (or_none(actor), or_none(subject), or_none(session));
    format!("{action} {outcome} {actor} {subject} {session} 1")
}

/// Calls under an id of its own, and compares what was recorded.
macro_rules! records {
    ($world:expr, $person:expr, $service:ident . $method:ident($message:expr) => [$($event:expr),* $(,)?]) => {{
        let id = unique_id();
        let mut client = $person.client.clone();
        let reply = client.$service.$method(named(&id, $message)).await;
        let expected: Vec<String> = vec![$($event),*];
        let found = events(&$world, &id).await;
        assert_eq!(found, expected, "{} answered {:?}", stringify!($method), reply.map(drop));
    }};
}

fn user_id<M>(person: &Person, make: impl FnOnce(String) -> M) -> M {
    make(person.user_id.clone())
}

fn rename(user_id: &str, email: &str) -> v1::UpdateUserRequest {
    v1::UpdateUserRequest {
        user: Some(v1::User {
            user_id: user_id.into(),
            email: email.into(),
            ..Default::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["email".into()],
        }),
    }
}

fn registration(email: &str) -> v1::RegisterRequest {
    v1::RegisterRequest {
        email: email.into(),
        password: PASSWORD.into(),
        ..Default::default()
    }
}

on_both! {
    async fn every_change_is_recorded(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let (by, about, within) = (admin.user_id.as_str(), ana.user_id.as_str(), admin.tokens.session_id.as_str());
        let did = |action: &str| event(action, "success", by, about, within);
        let role = || v1::CreateRoleRequest { name: "buyer".into(), permissions: vec!["orders.read".into()], ..Default::default() };
        let without_subject = |action: &str| event(action, "success", by, "", within);
        records!(world, admin, roles.create_role(role()) => [without_subject("role.created")]);
        let id = about.to_owned();
        records!(world, admin, users.grant_role(v1::GrantRoleRequest { user_id: id.clone(), role: "buyer".into() }) => [did("role.granted")]);
        // What changes nothing only shows the account, as a read does.
        let later = || world.clock.advance(std::time::Duration::from_secs(60));
        records!(world, admin, users.grant_role(v1::GrantRoleRequest { user_id: id.clone(), role: "buyer".into() }) => [did("user.read")]);
        records!(world, admin, users.grant_role(v1::GrantRoleRequest { user_id: id.clone(), role: "buyer".into() }) => []);
        later();
        let change = v1::UpdateRoleRequest {
            role: Some(v1::Role { name: "buyer".into(), permissions: vec!["orders.write".into()], ..Default::default() }),
            update_mask: Some(FieldMask { paths: vec!["permissions".into()] }),
        };
        records!(world, admin, roles.update_role(change) => [without_subject("role.updated")]);
        records!(world, admin, users.revoke_role(v1::RevokeRoleRequest { user_id: id.clone(), role: "buyer".into() }) => [did("role.revoked")]);
        records!(world, admin, users.revoke_role(v1::RevokeRoleRequest { user_id: id.clone(), role: "buyer".into() }) => [did("user.read")]);
        later();
        records!(world, admin, roles.delete_role(v1::DeleteRoleRequest { name: "buyer".into() }) => [without_subject("role.deleted")]);
        records!(world, admin, users.update_user(rename(about, "renamed@example.com")) => [did("user.updated")]);
        records!(world, admin, users.set_password(v1::SetPasswordRequest { user_id: id.clone(), password: NEW.into() }) => [did("password.set")]);
        records!(world, admin, users.disable_user(user_id(&ana, |user_id| v1::DisableUserRequest { user_id })) => [did("user.disabled")]);
        records!(world, admin, users.disable_user(user_id(&ana, |user_id| v1::DisableUserRequest { user_id })) => [did("user.read")]);
        later();
        records!(world, admin, users.enable_user(user_id(&ana, |user_id| v1::EnableUserRequest { user_id })) => [did("user.enabled")]);
        records!(world, admin, users.enable_user(user_id(&ana, |user_id| v1::EnableUserRequest { user_id })) => [did("user.read")]);
        later();
        records!(world, admin, users.unlock_user(user_id(&ana, |user_id| v1::UnlockUserRequest { user_id })) => [did("user.read")]);
        login(&world.anonymous(), "renamed@example.com", PASSWORD).await.unwrap_err();
        records!(world, admin, users.unlock_user(user_id(&ana, |user_id| v1::UnlockUserRequest { user_id })) => [did("user.unlocked")]);
        let pair = login(&world.anonymous(), "renamed@example.com", NEW).await.unwrap();
        let theirs = event("session.revoked", "success", by, about, &pair.session_id);
        records!(world, admin, sessions.revoke_session(v1::RevokeSessionRequest { session_id: pair.session_id }) => [theirs]);
        let all = v1::RevokeAllSessionsRequest { user_id: id.clone(), keep_current: false };
        records!(world, admin, sessions.revoke_all_sessions(all) => [did("session.revoked_all")]);
        let id = unique_id();
        let wish = v1::CreateApiKeyRequest { user_id: about.into(), name: "importer".into(), ..Default::default() };
        let made = admin.client.clone().api_keys.create_api_key(named(&id, wish)).await.unwrap().into_inner();
        assert_eq!(events(&world, &id).await, [did("api_key.created")]);
        let api_key_id = made.api_key.unwrap().api_key_id;
        let rotate = v1::RotateApiKeyRequest { api_key_id: api_key_id.clone(), overlap: None };
        records!(world, admin, api_keys.rotate_api_key(rotate) => [did("api_key.rotated")]);
        records!(world, admin, api_keys.revoke_api_key(v1::RevokeApiKeyRequest { api_key_id: api_key_id.clone() }) => [did("api_key.revoked")]);
        records!(world, admin, api_keys.revoke_api_key(v1::RevokeApiKeyRequest { api_key_id }) => []);
        records!(world, admin, users.delete_user(user_id(&ana, |user_id| v1::DeleteUserRequest { user_id })) => [did("user.deleted")]);

        let id = unique_id();
        let made = v1::CreateUserRequest { email: "made@example.com".into(), roles: vec!["admin".into()], ..Default::default() };
        let made = admin.client.clone().users.create_user(named(&id, made)).await.unwrap().into_inner().user.unwrap();
        let did = |action: &str| event(action, "success", by, &made.user_id, within);
        let mut found = events(&world, &id).await;
        found.sort();
        assert_eq!(found, [did("role.granted"), did("user.created")]);
    }

    async fn what_people_do_themselves_is_recorded(world: World) {
        let id = unique_id();
        let user = world.anonymous().auth.register(named(&id, registration("ana@example.com"))).await.unwrap();
        let user = user.into_inner().user.unwrap().user_id;
        let own = |action: &str, session: &str| event(action, "success", &user, &user, session);
        assert_eq!(events(&world, &id).await, [own("user.registered", "")]);

        let log_in = |password: &str| v1::LoginRequest {
            identifier: "ana@example.com".into(),
            password: password.into(),
            ..Default::default()
        };
        let id = unique_id();
        let reply = world.anonymous().auth.login(named(&id, log_in(PASSWORD))).await.unwrap().into_inner();
        let Some(v1::login_response::Result::Tokens(pair)) = reply.result else { panic!() };
        assert_eq!(events(&world, &id).await, [own("session.login", &pair.session_id)]);
        let ana = Person {
            email: "ana@example.com".into(),
            user_id: user.clone(),
            client: world.anonymous().with_token(&pair.access_token),
            tokens: pair.clone(),
        };
        // Failures are about the account, if there is one, and by nobody known.
        let nobody = Person { client: world.anonymous(), ..ana.clone() };
        let failed = |subject: &str| event("session.login", "failure", "", subject, "");
        records!(world, nobody, auth.login(log_in("not the password at all")) => [failed(&user)]);
        let unknown = v1::LoginRequest { identifier: "nobody@example.com".into(), ..log_in(PASSWORD) };
        records!(world, nobody, auth.login(unknown) => [failed("")]);

        // An ordinary refresh is recorded in the session's row only.
        let refresh = |token: &str| v1::RefreshRequest { refresh_token: token.into(), ..Default::default() };
        records!(world, nobody, auth.refresh(refresh(&pair.refresh_token)) => []);
        let replayed = event("session.refresh_replayed", "success", "", &user, &pair.session_id);
        records!(world, nobody, auth.refresh(refresh(&pair.refresh_token)) => [replayed]);
        world.clock.advance(std::time::Duration::from_secs(31));
        let stolen = event("session.refresh_stolen", "failure", "", &user, &pair.session_id);
        records!(world, nobody, auth.refresh(refresh(&pair.refresh_token)) => [stolen]);
        records!(world, nobody, auth.refresh(refresh(&pair.refresh_token)) => []);

        let ana = ana.again().await;
        let session = ana.tokens.session_id.clone();
        let wrong = v1::ChangePasswordRequest { current_password: "not the password".into(), new_password: NEW.into() };
        let failed = event("password.changed", "failure", &user, &user, &session);
        records!(world, ana, auth.change_password(wrong) => [failed]);
        let id = unique_id();
        let right = v1::ChangePasswordRequest { current_password: PASSWORD.into(), new_password: NEW.into() };
        let reply = ana.client.clone().auth.change_password(named(&id, right)).await.unwrap().into_inner();
        assert_eq!(events(&world, &id).await, [own("password.changed", &session)]);
        let pair = reply.tokens.unwrap();
        let ana = Person { client: world.anonymous().with_token(&pair.access_token), tokens: pair, ..ana };
        records!(world, ana, auth.logout(v1::LogoutRequest::default()) => [own("session.logout", &session)]);
    }

    async fn reads_of_others_data_are_recorded(world: World) {
        let admin = world.admin().await;
        let (ana, ben) = (world.person().await, world.person().await);
        let (by, about, within) = (admin.user_id.as_str(), ana.user_id.as_str(), admin.tokens.session_id.as_str());
        let did = |action: &str| event(action, "success", by, about, within);
        let of_all = |action: &str| event(action, "success", by, "", within);
        let get = |user_id: &str| v1::GetUserRequest { user_id: user_id.into() };
        let several = |ids: &[&str]| v1::BatchGetUsersRequest { user_ids: ids.iter().map(ToString::to_string).collect() };
        let sessions = |user_id: &str| v1::ListSessionsRequest { user_id: user_id.into(), ..Default::default() };
        let api_keys = |user_id: &str| v1::ListApiKeysRequest { user_id: user_id.into(), ..Default::default() };
        let listed = |subject_id: &str| v1::ListEventsRequest {
            filter: Some(v1::AuditFilter { subject_id: subject_id.into(), ..Default::default() }),
            ..Default::default()
        };
        records!(world, admin, users.get_user(get(about)) => [did("user.read")]);
        records!(world, admin, users.list_users(v1::ListUsersRequest::default()) => [of_all("user.listed")]);
        records!(world, admin, sessions.list_sessions(sessions(about)) => [did("session.listed")]);
        records!(world, admin, api_keys.list_api_keys(api_keys(about)) => [did("api_key.listed")]);
        records!(world, admin, audit.list_events(listed(about)) => [did("audit.read")]);
        records!(world, admin, audit.list_events(listed("")) => [of_all("audit.read")]);
        // One who polls is recorded once a minute, however the same is asked for.
        records!(world, admin, users.get_user(get(about)) => []);
        records!(world, admin, users.batch_get_users(several(&[about])) => []);
        records!(world, admin, users.batch_get_users(several(&[about, by])) => []);
        records!(world, admin, audit.watch_events(v1::WatchEventsRequest::default()) => []);
        world.clock.advance(std::time::Duration::from_secs(60));
        // By name, whoever else is asked for.
        records!(world, admin, users.batch_get_users(several(&[about, by])) => [did("user.read")]);
        let id = unique_id();
        let both = several(&[about, &ben.user_id, by]);
        admin.client.clone().users.batch_get_users(named(&id, both)).await.unwrap();
        let bens = event("user.read", "success", by, &ben.user_id, within);
        assert_eq!(events(&world, &id).await, [bens], "of ana it was recorded before");
        let prefix = |email: &str| v1::ListUsersRequest {
            filter: Some(v1::UserFilter { email_prefix: email.into(), ..Default::default() }),
            ..Default::default()
        };
        let cleo = world.person().await;
        let cleos = event("user.read", "success", by, &cleo.user_id, within);
        records!(world, admin, users.list_users(prefix(&cleo.email)) => [cleos]);
        records!(world, admin, users.list_users(v1::ListUsersRequest::default()) => [of_all("user.listed")]);
        records!(world, admin, audit.watch_events(v1::WatchEventsRequest::default()) => [of_all("audit.read")]);
        let other = world.admin().await;
        let theirs = event("user.read", "success", &other.user_id, about, &other.tokens.session_id);
        records!(world, other, users.get_user(get(about)) => [theirs]);

        // What is one's own, or not shown.
        let nobody = uuid::Uuid::from_u128(7).to_string();
        records!(world, admin, users.get_user(get(&nobody)) => []);
        records!(world, admin, users.batch_get_users(several(&[by])) => []);
        for own in ["", about] {
            records!(world, ana, users.get_user(get(own)) => []);
            records!(world, ana, sessions.list_sessions(sessions(own)) => []);
            records!(world, ana, api_keys.list_api_keys(api_keys(own)) => []);
        }
        records!(world, ana, users.get_user(get(by)) => []);
        records!(world, ana, sessions.list_sessions(sessions(by)) => []);
        let world = world.restarted(|config| config.audit.reads_recorded_every_seconds = 0).await;
        let admin = Person { client: world.anonymous().with_token(&admin.tokens.access_token), ..admin.clone() };
        records!(world, admin, users.get_user(get(about)) => []);
    }

    async fn a_read_that_cannot_be_recorded_is_not_answered(world: World) {
        let admin = world.admin().await;
        let (ana, ben) = (world.person().await, world.person().await);
        calls::get_user(&admin.client, &ana.user_id).await.unwrap();
        world.execute("ALTER TABLE audit_events RENAME TO gone").await;
        let refused = calls::get_user(&admin.client, &ben.user_id).await.unwrap_err();
        assert!([Code::Unavailable, Code::Internal].contains(&refused.code()), "{refused:?}");
        // What was not recorded is not taken for it.
        calls::get_user(&admin.client, &ben.user_id).await.unwrap_err();
        // What needs no record goes on.
        calls::get_user(&admin.client, &ana.user_id).await.unwrap();
        calls::get_user(&ben.client, &ben.user_id).await.unwrap();
        world.execute("ALTER TABLE gone RENAME TO audit_events").await;
        calls::get_user(&admin.client, &ben.user_id).await.unwrap();
    }

    async fn what_was_refused_is_not_recorded_as_done(world: World) {
        let clerk = world.person_who_may(&["countersign.users.write", "countersign.users.set_password"]).await;
        let admin = world.admin().await;
        world.execute(&format!(
            "DELETE FROM user_roles WHERE user_id NOT IN (SELECT id FROM users WHERE email IN ('{}', '{}'))",
            admin.email, clerk.email
        )).await;
        let ana = world.person().await;
        calls::create_role(&admin.client, "buyer", &["orders.read"]).await.unwrap();
        calls::grant(&admin.client, &ana.user_id, "buyer").await.unwrap();
        records!(world, admin, auth.register(registration(&ana.email)) => []);
        let made = v1::CreateUserRequest { email: "made@example.com".into(), roles: vec!["buyer".into(), "none".into()], ..Default::default() };
        records!(world, admin, users.create_user(made) => []);
        records!(world, admin, users.update_user(rename(&ana.user_id, &admin.email)) => []);
        records!(world, admin, users.disable_user(user_id(&admin, |user_id| v1::DisableUserRequest { user_id })) => []);
        records!(world, admin, users.delete_user(user_id(&admin, |user_id| v1::DeleteUserRequest { user_id })) => []);
        records!(world, admin, users.revoke_role(v1::RevokeRoleRequest { user_id: admin.user_id.clone(), role: "admin".into() }) => []);
        records!(world, admin, roles.delete_role(v1::DeleteRoleRequest { name: "buyer".into() }) => []);
        records!(world, clerk, users.disable_user(user_id(&admin, |user_id| v1::DisableUserRequest { user_id })) => []);
        records!(world, clerk, users.set_password(v1::SetPasswordRequest { user_id: admin.user_id.clone(), password: NEW.into() }) => []);
        records!(world, ana, sessions.revoke_session(v1::RevokeSessionRequest { session_id: admin.tokens.session_id.clone() }) => []);
        assert!(calls::validates(&world.anonymous(), &admin.tokens.access_token).await);
    }

    async fn a_change_that_cannot_be_recorded_does_not_happen(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        world.execute("ALTER TABLE audit_events RENAME TO gone").await;
        let fails = |result: Result<(), Status>| {
            let failure = Failure::from(&result.expect_err("not recorded"));
            assert!([Code::Unavailable, Code::Internal].contains(&failure.code), "{failure:?}");
        };
        fails(calls::disable(&admin.client, &ana.user_id).await.map(drop));
        fails(calls::grant(&admin.client, &ana.user_id, "admin").await.map(drop));
        fails(login(&world.anonymous(), &ana.email, PASSWORD).await.map(drop));
        fails(calls::register(&world.anonymous(), registration("new@example.com")).await.map(drop));
        world.execute("ALTER TABLE gone RENAME TO audit_events").await;
        assert!(calls::validates(&world.anonymous(), &ana.tokens.access_token).await);
        let user = calls::get_user(&ana.client, &ana.user_id).await.unwrap();
        assert_eq!((user.status(), user.roles.len()), (v1::UserStatus::Active, 0));
        assert_eq!(calls::sessions(&ana.client, "").await.unwrap().len(), 1);
        refused(
            login(&world.anonymous(), "new@example.com", PASSWORD).await,
            Code::Unauthenticated, "LOGIN_FAILED",
        );
    }
}
