//! Accounts: changing passwords, ending them, managing and listing them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use countersign_proto::v1;
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::{
    harness::{
        Client, Kind, Person, World, calls,
        calls::{is_dead, named, validates},
        database, refused,
        world::{PASSWORD, login},
    },
    on_both,
};

const NEW: &str = "another horse entirely, thanks";

async fn update(client: &Client, user: v1::User, paths: &[&str]) -> Result<v1::User, Status> {
    let request = v1::UpdateUserRequest {
        user: Some(user),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
    };
    let reply = client.clone().users.update_user(request).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.map(|(key, value)| (key.into(), value.into())).into()
}

fn of(person: &Person) -> v1::User {
    v1::User {
        user_id: person.user_id.clone(),
        ..Default::default()
    }
}

async fn list(
    client: &Client,
    filter: v1::UserFilter,
    page_size: i32,
    page_token: &str,
) -> Result<v1::ListUsersResponse, Status> {
    let request = v1::ListUsersRequest {
        page_size,
        page_token: page_token.to_owned(),
        filter: Some(filter),
    };
    Ok(client.clone().users.list_users(request).await?.into_inner())
}

/// All pages, as addresses.
async fn emails(client: &Client, filter: v1::UserFilter, page_size: i32) -> Vec<String> {
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let page = list(client, filter.clone(), page_size, &token)
            .await
            .unwrap();
        assert!(i32::try_from(page.users.len()).unwrap() <= page_size);
        found.extend(page.users.into_iter().map(|user| user.email));
        token = page.next_page_token;
        if token.is_empty() {
            return found;
        }
    }
}

async fn create(admin: &Person, email: &str) -> v1::User {
    let request = v1::CreateUserRequest {
        email: email.into(),
        ..Default::default()
    };
    let reply = admin.client.clone().users.create_user(request).await;
    reply.unwrap().into_inner().user.unwrap()
}

/// A login that does not go through.
async fn cannot_log_in(world: &World, identifier: &str, password: &str) {
    refused(
        login(&world.anonymous(), identifier, password).await,
        Code::Unauthenticated,
        "LOGIN_FAILED",
    );
}

on_both! {
    async fn a_changed_password_ends_the_other_sessions(world: World) {
        let ana = world.person().await;
        let other = ana.again().await;
        refused(
            calls::change_password(&ana.client, "not the password at all", NEW).await,
            Code::PermissionDenied, "CURRENT_PASSWORD_INCORRECT",
        );
        assert!(validates(&world.anonymous(), &other.tokens.access_token).await, "a failure has no effect");

        let fresh = calls::change_password(&ana.client, PASSWORD, NEW).await.unwrap();
        assert_eq!(fresh.session_id, ana.tokens.session_id);
        for old in [&ana.tokens, &other.tokens] {
            assert!(is_dead(&world.anonymous(), old).await);
        }
        let client = world.anonymous().with_token(&fresh.access_token);
        let sessions = calls::sessions(&client, "").await.unwrap();
        assert_eq!(sessions.len(), 1);
        assert!(sessions[0].current);
        // Presenting the old refresh token was no theft: it never was this session's.
        let next = calls::refresh(&world.anonymous(), &fresh.refresh_token).await.unwrap();
        assert!(validates(&world.anonymous(), &next.access_token).await);
        cannot_log_in(&world, &ana.email, PASSWORD).await;
        login(&world.anonymous(), &ana.email, NEW).await.unwrap();
    }

    async fn a_password_set_by_another_ends_all_sessions(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let other = ana.again().await;
        calls::set_password(&admin.client, &ana.user_id, NEW).await.unwrap();
        for old in [&ana.tokens, &other.tokens] {
            assert!(is_dead(&world.anonymous(), old).await);
        }
        cannot_log_in(&world, &ana.email, PASSWORD).await;
        login(&world.anonymous(), &ana.email, NEW).await.unwrap();
        // Nobody who lacks the permission, not even for themselves.
        refused(
            calls::set_password(&world.person().await.client, &ana.user_id, PASSWORD).await,
            Code::PermissionDenied, "PERMISSION_DENIED",
        );
        let nobody = uuid::Uuid::from_u128(7).to_string();
        refused(
            calls::set_password(&admin.client, &nobody, NEW).await,
            Code::NotFound, "USER_NOT_FOUND",
        );
        // Its own: the session that it is done in ends as well.
        calls::set_password(&admin.client, &admin.user_id, NEW).await.unwrap();
        assert!(is_dead(&world.anonymous(), &admin.tokens).await);
    }

    async fn a_disabled_account_has_no_sessions_until_it_logs_in_again(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let other = ana.again().await;
        for _ in 0..2 {
            // Twice is no error.
            let user = calls::disable(&admin.client, &ana.user_id).await.unwrap();
            assert_eq!(user.status(), v1::UserStatus::Disabled);
            for old in [&ana.tokens, &other.tokens] {
                assert!(is_dead(&world.anonymous(), old).await);
            }
            cannot_log_in(&world, &ana.email, PASSWORD).await;
        }
        // A password that is set meanwhile does not enable it.
        calls::set_password(&admin.client, &ana.user_id, NEW).await.unwrap();
        cannot_log_in(&world, &ana.email, NEW).await;
        for _ in 0..2 {
            let user = calls::enable(&admin.client, &ana.user_id).await.unwrap();
            assert_eq!(user.status(), v1::UserStatus::Active);
        }
        for old in [&ana.tokens, &other.tokens] {
            assert!(is_dead(&world.anonymous(), old).await, "enabling brings nothing back");
        }
        let tokens = login(&world.anonymous(), &ana.email, NEW).await.unwrap();
        assert!(validates(&world.anonymous(), &tokens.access_token).await);
    }

    async fn nothing_of_a_deleted_person_is_left(world: World) {
        let admin = world.admin().await;
        let email = "canary.person@example.com";
        let request = v1::RegisterRequest {
            email: email.into(),
            username: "canary.username".into(),
            display_name: "Canary Displayname".into(),
            password: PASSWORD.into(),
            request_id: "6f1c2a34-0000-4000-8000-00000000cafe".into(),
        };
        let user = calls::register(&world.anonymous(), request.clone()).await.unwrap();
        let made = v1::CreateUserRequest {
            email: "canary.made@example.com".into(),
            request_id: "6f1c2a34-0000-4000-8000-00000000beef".into(),
            display_name: "Canary Displayname".into(),
            ..Default::default()
        };
        let made = admin.client.clone().users.create_user(made).await.unwrap().into_inner().user.unwrap();
        let wish = v1::LoginRequest {
            identifier: email.into(),
            password: PASSWORD.into(),
            device_name: "Canary Device".into(),
            ..Default::default()
        };
        // An agent of their own: origins of other people's calls stay.
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", world.node.address))
            .unwrap().user_agent("canary-agent/1").unwrap().connect_lazy();
        let theirs = Client::new(channel, None);
        let mut tokens = Vec::new();
        for _ in 0..2 {
            let reply = theirs.clone().auth.login(wish.clone()).await.unwrap().into_inner();
            let Some(v1::login_response::Result::Tokens(pair)) = reply.result else { panic!() };
            tokens.push(pair);
        }
        let wrong = v1::LoginRequest { password: "not the password".into(), ..wish.clone() };
        theirs.clone().auth.login(wrong).await.unwrap_err();
        // A replay, an own update, and a logout leave their marks too.
        calls::refresh(&theirs, &tokens[0].refresh_token).await.unwrap();
        calls::refresh(&theirs, &tokens[0].refresh_token).await.unwrap();
        let own = theirs.with_token(&tokens[1].access_token);
        let id = v1::User { user_id: user.user_id.clone(), display_name: "Canary Displayname".into(), ..Default::default() };
        update(&own, id.clone(), &["display_name"]).await.unwrap();
        let label = v1::User { metadata: labels([("note", "Canary Label")]), ..id };
        update(&admin.client, label, &["metadata"]).await.unwrap();
        own.clone().auth.logout(v1::LogoutRequest::default()).await.unwrap();

        let canary = |rows: &[String]| -> Vec<String> {
            let hex: String = "canary".bytes().map(|byte| format!("{byte:02x}")).collect();
            let capital: String = "Canary".bytes().map(|byte| format!("{byte:02x}")).collect();
            let found = rows.iter().map(|row| row.to_lowercase());
            found.filter(|row| row.contains("canary") || row.contains(&hex) || row.contains(&capital)).collect()
        };
        let before = canary(&database::dump(&world.database).await);
        for table in ["users:", "sessions:", "audit_origins:", "idempotency:"] {
            assert!(before.iter().any(|row| row.starts_with(table)), "{table} {before:#?}");
        }
        let addresses = "SELECT count(*) FROM audit_origins o JOIN audit_events e ON e.id = o.event_id \
                         WHERE e.subject IN (SELECT id FROM users WHERE status = 'deleted') AND o.user_id = e.subject";

        for id in [&user.user_id, &made.user_id] {
            calls::delete(&admin.client, id).await.unwrap();
            refused(calls::delete(&admin.client, id).await, Code::NotFound, "USER_NOT_FOUND");
        }
        let left = canary(&database::dump(&world.database).await);
        assert!(left.is_empty(), "{left:#?}");
        assert_eq!(world.query(addresses).await, ["0"]);
        assert_eq!(world.query("SELECT count(*) FROM sessions WHERE address IS NOT NULL AND revoked_at IS NOT NULL").await, ["0"]);
        for pair in &tokens {
            assert!(is_dead(&world.anonymous(), pair).await);
        }
        cannot_log_in(&world, email, PASSWORD).await;
        // A late repetition of the registration does not bring the person back.
        refused(
            calls::register(&world.anonymous(), request.clone()).await,
            Code::NotFound, "USER_NOT_FOUND",
        );
        let left = canary(&database::dump(&world.database).await);
        assert!(left.is_empty(), "{left:#?}");
        // The names are free again, for another account.
        let again = v1::RegisterRequest { request_id: String::new(), ..request };
        let again = calls::register(&world.anonymous(), again).await.unwrap();
        assert_ne!(again.user_id, user.user_id);
        login(&world.anonymous(), email, PASSWORD).await.unwrap();
    }

    async fn a_tombstone_keeps_the_id_and_is_listed_on_demand(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        calls::grant(&admin.client, &ana.user_id, "admin").await.unwrap();
        calls::delete(&admin.client, &ana.user_id).await.unwrap();
        let tombstone = calls::get_user(&admin.client, &ana.user_id).await.unwrap();
        let expected = v1::User {
            user_id: ana.user_id.clone(),
            status: v1::UserStatus::Deleted.into(),
            created_at: tombstone.created_at,
            updated_at: tombstone.updated_at,
            ..Default::default()
        };
        assert_eq!(tombstone, expected);
        assert_eq!(emails(&admin.client, v1::UserFilter::default(), 50).await, [admin.email.as_str()]);
        let deleted = v1::UserFilter { status: v1::UserStatus::Deleted.into(), ..Default::default() };
        let page = list(&admin.client, deleted, 0, "").await.unwrap();
        assert_eq!(page.users, [expected]);
        // Nothing can be done to it any more.
        let (client, id) = (&admin.client, ana.user_id.as_str());
        let not_found = |status: Option<Status>| refused(Err::<(), _>(status.unwrap()), Code::NotFound, "USER_NOT_FOUND");
        not_found(calls::enable(client, id).await.err());
        not_found(calls::disable(client, id).await.err());
        not_found(calls::set_password(client, id, NEW).await.err());
        not_found(calls::grant(client, id, "admin").await.err());
        not_found(calls::revoke_role(client, id, "admin").await.err());
        not_found(update(client, of(&ana), &["display_name"]).await.err());
    }

    async fn what_people_may_change_of_themselves(world: World) {
        let ana = world.person().await;
        let ben = world.person().await;
        let wish = v1::User {
            display_name: "Ana".into(),
            username: "ANA.lima".into(),
            email: "other@example.com".into(),
            email_verified: true,
            metadata: labels([("team", "red")]),
            roles: vec!["admin".into()],
            status: v1::UserStatus::Disabled.into(),
            ..of(&ana)
        };
        let user = update(&ana.client, wish.clone(), &["display_name", "username"]).await.unwrap();
        assert_eq!((user.display_name.as_str(), user.username.as_str()), ("Ana", "ana.lima"));
        assert_eq!((user.email.as_str(), user.email_verified), (ana.email.as_str(), false));
        assert!(user.roles.is_empty() && user.metadata.is_empty());
        login(&world.anonymous(), "ana.lima", PASSWORD).await.unwrap();
        // The rest, and others, needs a permission.
        for paths in [&["email"][..], &["metadata"], &["metadata.team"], &["display_name", "email"]] {
            refused(update(&ana.client, wish.clone(), paths).await, Code::PermissionDenied, "PERMISSION_DENIED");
        }
        refused(
            update(&ana.client, of(&ben), &["display_name"]).await,
            Code::PermissionDenied, "PERMISSION_DENIED",
        );
        // And some is out of everybody's reach.
        let admin = world.admin().await;
        for path in ["password", "roles", "email_verified", "status", "user_id", "created_at", "*", "metadata.", "Email"] {
            let failure = refused(
                update(&admin.client, wish.clone(), &[path]).await,
                Code::InvalidArgument, "INVALID_REQUEST",
            );
            assert_eq!(failure.fields, ["update_mask"], "{path}");
        }
        for client in [&ana.client, &admin.client] {
            refused(update(client, wish.clone(), &[]).await, Code::InvalidArgument, "INVALID_REQUEST");
        }
        // A username can be given back.
        let none = v1::User { username: String::new(), ..wish };
        assert_eq!(update(&ana.client, none, &["username"]).await.unwrap().username, "");
        cannot_log_in(&world, "ana.lima", PASSWORD).await;
    }

    async fn what_an_admin_may_change(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let ben = world.person().await;
        world.execute(&match world.database.kind {
            Kind::Sqlite => "UPDATE users SET email_verified = 1".to_owned(),
            Kind::Postgres => "UPDATE users SET email_verified = true".to_owned(),
        }).await;
        // The same address in other letters is no change.
        let same = v1::User { email: ana.email.to_uppercase(), ..of(&ana) };
        assert!(update(&admin.client, same, &["email"]).await.unwrap().email_verified);
        world.clock.advance(Duration::from_secs(1));
        let other = v1::User { email: "New.Ana@example.com".into(), ..of(&ana) };
        let user = update(&admin.client, other, &["email"]).await.unwrap();
        assert_eq!((user.email.as_str(), user.email_verified), ("new.ana@example.com", false));
        assert_eq!(user.updated_at.unwrap().seconds, user.created_at.unwrap().seconds + 1);
        cannot_log_in(&world, &ana.email, PASSWORD).await;
        login(&world.anonymous(), "new.ana@example.com", PASSWORD).await.unwrap();
        assert!(validates(&world.anonymous(), &ana.tokens.access_token).await, "tokens do not carry it");
        for taken in [&ben.email, &ben.email.to_uppercase()] {
            let taken = v1::User { email: taken.clone(), ..of(&ana) };
            refused(update(&admin.client, taken, &["email"]).await, Code::AlreadyExists, "EMAIL_TAKEN");
        }
        update(&ben.client, v1::User { username: "ben".into(), ..of(&ben) }, &["username"]).await.unwrap();
        let taken = v1::User { username: "BEN".into(), ..of(&ana) };
        refused(update(&admin.client, taken, &["username"]).await, Code::AlreadyExists, "USERNAME_TAKEN");

        // Labels: whole, one by one, removed by naming what is not given.
        let with = |pairs: BTreeMap<_, _>| v1::User { metadata: pairs, ..of(&ana) };
        let red = with(labels([("team", "red"), ("floor", "2"), ("key", "k")]));
        assert_eq!(update(&admin.client, red, &["metadata"]).await.unwrap().metadata.len(), 3);
        let change = with(labels([("team", "blue"), ("floor", "not named")]));
        let user = update(&admin.client, change, &["metadata.team", "metadata.key"]).await.unwrap();
        assert_eq!(user.metadata, labels([("team", "blue"), ("floor", "2")]));
        assert_eq!(calls::get_user(&ana.client, &ana.user_id).await.unwrap().metadata, user.metadata);
        let both = with(labels([("team", "red")]));
        refused(
            update(&admin.client, both, &["metadata", "metadata.team"]).await,
            Code::InvalidArgument, "INVALID_REQUEST",
        );
        // 32 labels and no more, also when they come one by one.
        let many: BTreeMap<_, _> = (0..32).map(|n| (format!("k{n}"), "v".to_owned())).collect();
        update(&admin.client, with(many), &["metadata"]).await.unwrap();
        let failure = refused(
            update(&admin.client, with(labels([("more", "v")])), &["metadata.more"]).await,
            Code::InvalidArgument, "INVALID_REQUEST",
        );
        assert_eq!(failure.fields, ["user.metadata"]);
        let nobody = v1::User { user_id: uuid::Uuid::from_u128(7).to_string(), ..Default::default() };
        refused(update(&admin.client, nobody, &["display_name"]).await, Code::NotFound, "USER_NOT_FOUND");
    }

    async fn getting_accounts(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let ben = world.person().await;
        let user = calls::get_user(&ana.client, &ana.user_id).await.unwrap();
        assert_eq!(user.email, ana.email);
        let who = ana.client.clone().auth.who_am_i(v1::WhoAmIRequest {}).await.unwrap().into_inner();
        assert_eq!(who.user.unwrap(), user);
        assert_eq!(who.caller.unwrap().session_id, ana.tokens.session_id);
        let nobody = uuid::Uuid::from_u128(7).to_string();
        for other in [&ben.user_id, &nobody] {
            // Whether there is such an account is not told.
            let failure = refused(calls::get_user(&ana.client, other).await, Code::PermissionDenied, "PERMISSION_DENIED");
            assert!(failure.fields.is_empty());
        }
        assert_eq!(calls::get_user(&admin.client, &ana.user_id).await.unwrap(), user);
        refused(calls::get_user(&admin.client, &nobody).await, Code::NotFound, "USER_NOT_FOUND");

        let batch = |client: &Client, ids: Vec<String>| {
            let mut users = client.users.clone();
            async move { users.batch_get_users(v1::BatchGetUsersRequest { user_ids: ids }).await }
        };
        let wish = [&ben.user_id, &nobody, &ana.user_id, &ben.user_id, &admin.user_id];
        let reply = batch(&admin.client, wish.map(Clone::clone).into()).await.unwrap().into_inner();
        let found: Vec<_> = reply.users.iter().map(|user| user.email.as_str()).collect();
        assert_eq!(found, [&ben.email, &ana.email, &ben.email, &admin.email]);
        assert_eq!(reply.missing_user_ids, std::slice::from_ref(&nobody));
        refused(batch(&ana.client, vec![ana.user_id.clone()]).await, Code::PermissionDenied, "PERMISSION_DENIED");
        for (count, legal) in [(0, false), (1, true), (100, true), (101, false)] {
            let reply = batch(&admin.client, vec![nobody.clone(); count]).await;
            assert_eq!(reply.is_ok(), legal, "{count}");
        }
    }

    async fn lists_are_narrowed_by_every_filter(world: World) {
        let admin = world.admin().await;
        let start = world.query("SELECT 0").await;
        assert_eq!(start, ["0"]);
        let mut all = Vec::new();
        for (n, email) in ["ab@x.org", "abc@x.org", "abd@x.org", "ac@x.org", "a_b@x.org", "a%b@x.org", "zé@x.org"].iter().enumerate() {
            world.clock.advance(Duration::from_secs(60));
            let user = create(&admin, email).await;
            if n % 2 == 0 {
                calls::disable(&admin.client, &user.user_id).await.unwrap();
            }
            all.push(user);
        }
        calls::create_role(&admin.client, "buyer", &["orders.read"]).await.unwrap();
        for n in [1, 2, 3] {
            calls::grant(&admin.client, &all[n].user_id, "buyer").await.unwrap();
        }
        let by = |filter: v1::UserFilter| {
            let client = admin.client.clone();
            async move { emails(&client, filter, 2).await }
        };
        let prefix = |text: &str| v1::UserFilter { email_prefix: text.into(), ..Default::default() };
        assert_eq!(by(prefix("ab")).await, ["ab@x.org", "abc@x.org", "abd@x.org"]);
        assert_eq!(by(prefix("AB")).await, ["ab@x.org", "abc@x.org", "abd@x.org"]);
        assert_eq!(by(prefix("a_")).await, ["a_b@x.org"], "no wildcard");
        assert_eq!(by(prefix("a%")).await, ["a%b@x.org"], "no wildcard");
        assert_eq!(by(prefix("ze\u{301}")).await, ["z\u{e9}@x.org"]);
        assert_eq!(by(prefix("abc@x.org2")).await, [""; 0]);
        let disabled = v1::UserFilter { status: v1::UserStatus::Disabled.into(), ..Default::default() };
        assert_eq!(by(disabled.clone()).await, ["ab@x.org", "abd@x.org", "a_b@x.org", "z\u{e9}@x.org"]);
        let role = |name: &str| v1::UserFilter { role: name.into(), ..Default::default() };
        assert_eq!(by(role("buyer")).await, ["abc@x.org", "abd@x.org", "ac@x.org"]);
        assert_eq!(by(role("admin")).await, [admin.email.as_str()]);
        assert_eq!(by(role("nobodys")).await, [""; 0]);
        // From is included, before is not.
        let range = v1::UserFilter { created_from: all[2].created_at, created_before: all[4].created_at, ..Default::default() };
        assert_eq!(by(range.clone()).await, ["abd@x.org", "ac@x.org"]);
        let together = v1::UserFilter { email_prefix: "ab".into(), role: "buyer".into(), ..disabled };
        assert_eq!(by(v1::UserFilter { created_before: None, ..together.clone() }).await, ["abd@x.org"]);
        assert_eq!(by(v1::UserFilter { created_from: all[3].created_at, ..together }).await, [""; 0]);
        assert_eq!(by(v1::UserFilter::default()).await.len(), 8);
        for (bad, field) in [
            (v1::UserFilter { status: 9, ..Default::default() }, "filter.status"),
            (role("No Role"), "filter.role"),
            (prefix(&"a".repeat(255)), "filter.email_prefix"),
            (v1::UserFilter { created_from: Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), ..Default::default() }, "filter.created_from"),
        ] {
            let failure = refused(list(&admin.client, bad, 0, "").await, Code::InvalidArgument, "INVALID_REQUEST");
            assert_eq!(failure.fields, [field]);
        }
        refused(
            list(&world.person().await.client, v1::UserFilter::default(), 0, "").await,
            Code::PermissionDenied, "PERMISSION_DENIED",
        );
    }

    async fn pages_are_stable_under_inserts(world: World) {
        let admin = world.admin().await;
        let mut expected = BTreeSet::new();
        for n in 0..25 {
            // Several of one microsecond, so that the id has to decide.
            if n % 5 == 0 {
                world.clock.advance(Duration::from_micros(1));
            }
            let email = format!("u{n}@example.com");
            create(&admin, &email).await;
            expected.insert(email);
        }
        let (mut seen, mut token, mut n) = (Vec::new(), String::new(), 0);
        loop {
            let page = list(&admin.client, v1::UserFilter::default(), 4, &token).await.unwrap();
            seen.extend(page.users.into_iter().map(|user| user.email));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
            // Somebody comes, and somebody seen goes.
            create(&admin, &format!("later{n}@example.com")).await;
            n += 1;
        }
        let unique: BTreeSet<_> = seen.iter().cloned().collect();
        assert_eq!(unique.len(), seen.len(), "nobody twice: {seen:?}");
        assert!(expected.is_subset(&unique), "nobody left out: {seen:?}");
    }

    async fn a_page_token_continues_its_own_list_only(world: World) {
        let admin = world.admin().await;
        let other = world.person_who_may(&["countersign.users.read", "countersign.roles.read"]).await;
        let filter = v1::UserFilter { email_prefix: "p".into(), ..Default::default() };
        let token = list(&admin.client, filter.clone(), 1, "").await.unwrap().next_page_token;
        assert!(list(&admin.client, filter.clone(), 1, &token).await.is_ok());
        assert!(list(&admin.client, filter.clone(), 7, &token).await.is_ok(), "the size may change");
        let invalid = |result: Result<v1::ListUsersResponse, Status>| {
            refused(result, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
        };
        invalid(list(&other.client, filter.clone(), 1, &token).await);
        invalid(list(&admin.client, v1::UserFilter::default(), 1, &token).await);
        let wider = v1::UserFilter { status: v1::UserStatus::Deleted.into(), ..filter.clone() };
        invalid(list(&admin.client, wider, 1, &token).await);
        for forged in ["x", "AAAA", "\u{e9}", &token[1..], &format!("{token}A"), &token.to_lowercase()] {
            invalid(list(&admin.client, filter.clone(), 1, forged).await);
        }
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(bytes).unwrap();
            // The bits that base64 leaves over in the last character say nothing.
            let listed = list(&admin.client, filter.clone(), 1, &forged).await;
            assert!(listed.is_err(), "character {at} of {} may be anything", token.len());
        }
        // Nor does it fit another method's list.
        let roles = v1::ListRolesRequest { page_token: token.clone(), ..Default::default() };
        refused(admin.client.clone().roles.list_roles(roles).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
        let sessions = v1::ListSessionsRequest { page_token: token, ..Default::default() };
        refused(admin.client.clone().sessions.list_sessions(sessions).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
        let long = "A".repeat(1_025);
        refused(list(&admin.client, filter, 1, &long).await, Code::InvalidArgument, "INVALID_REQUEST");
    }

    async fn page_sizes_are_bounded(world: World) {
        let admin = world.admin().await;
        // 1,100 people at once, behind everybody's back.
        let (id, metadata, series) = match world.database.kind {
            Kind::Sqlite => ("randomblob(16)", "'{}'", "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 1100)"),
            Kind::Postgres => ("gen_random_uuid()", "'{}'::jsonb", "WITH s(n) AS (SELECT * FROM generate_series(1, 1100))"),
        };
        world.execute(&format!(
            "{series} INSERT INTO users (id, email, email_verified, username, display_name, password, status, metadata, \
             epoch, min_session_epoch, created_at, updated_at) SELECT {id}, 'bulk' || n || '@example.com', u.email_verified, \
             NULL, '', NULL, 'active', {metadata}, 0, 0, u.created_at, u.updated_at FROM s, users u"
        )).await;
        for (size, rows) in [(0, 50), (1, 1), (1_000, 1_000), (1_001, 1_000), (i32::MAX, 1_000)] {
            let page = list(&admin.client, v1::UserFilter::default(), size, "").await.unwrap();
            assert_eq!(page.users.len(), rows, "page_size {size}");
            assert!(!page.next_page_token.is_empty());
        }
        for size in [-1, i32::MIN] {
            let failure = refused(
                list(&admin.client, v1::UserFilter::default(), size, "").await,
                Code::InvalidArgument, "INVALID_REQUEST",
            );
            assert_eq!(failure.fields, ["page_size"]);
        }
        let found = emails(&admin.client, v1::UserFilter::default(), 1_000).await;
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 1_101);
    }

    async fn creating_for_another_needs_what_it_gives(world: World) {
        let writer = world.person_who_may(&["countersign.users.write"]).await;
        let request = v1::CreateUserRequest { email: "one@example.com".into(), ..Default::default() };
        let mut users = writer.client.users.clone();
        let user = users.create_user(request.clone()).await.unwrap().into_inner().user.unwrap();
        assert_eq!((user.status(), user.email_verified), (v1::UserStatus::Active, false));
        cannot_log_in(&world, "one@example.com", PASSWORD).await;
        let request = v1::CreateUserRequest { email: "two@example.com".into(), ..request };
        for more in [
            v1::CreateUserRequest { password: PASSWORD.into(), ..request.clone() },
            v1::CreateUserRequest { roles: vec!["admin".into()], ..request.clone() },
        ] {
            refused(users.create_user(more).await, Code::PermissionDenied, "PERMISSION_DENIED");
        }
        let admin = world.admin().await;
        calls::create_role(&admin.client, "buyer", &["orders.read"]).await.unwrap();
        let mut users = admin.client.users.clone();
        let whole = v1::CreateUserRequest {
            password: PASSWORD.into(),
            roles: vec!["buyer".into(), "admin".into(), "buyer".into()],
            metadata: labels([("team", "red")]),
            username: "two".into(),
            ..request.clone()
        };
        for (bad, code, reason) in [
            (v1::CreateUserRequest { roles: vec!["nobodys".into()], ..whole.clone() }, Code::NotFound, "ROLE_NOT_FOUND"),
            (v1::CreateUserRequest { email: admin.email.clone(), ..whole.clone() }, Code::AlreadyExists, "EMAIL_TAKEN"),
        ] {
            refused(users.create_user(bad).await, code, reason);
        }
        // A refusal left nothing behind.
        let user = users.create_user(named(&calls::unique_id(), whole)).await.unwrap().into_inner().user.unwrap();
        assert_eq!(user.roles, ["admin", "buyer"]);
        assert_eq!(user.metadata, labels([("team", "red")]));
        let tokens = login(&world.anonymous(), "two", PASSWORD).await.unwrap();
        let caller = calls::caller(&world.anonymous(), &tokens.access_token).await.unwrap();
        assert_eq!(caller.roles, ["admin", "buyer"]);
    }

    async fn the_last_active_admin_stays(world: World) {
        let admin = world.admin().await;
        let (client, id) = (&admin.client, admin.user_id.as_str());
        let last = |result: Result<(), Status>| refused(result, Code::FailedPrecondition, "LAST_ADMIN");
        last(calls::disable(client, id).await.map(drop));
        last(calls::delete(client, id).await);
        last(calls::revoke_role(client, id, "admin").await.map(drop));
        assert!(validates(&world.anonymous(), &admin.tokens.access_token).await, "a refusal has no effect");
        // One that is disabled does not count.
        let second = world.admin().await;
        calls::disable(client, &second.user_id).await.unwrap();
        last(calls::disable(client, id).await.map(drop));
        calls::enable(client, &second.user_id).await.unwrap();
        calls::delete(client, id).await.unwrap();
        assert!(is_dead(&world.anonymous(), &admin.tokens).await);
    }
}
