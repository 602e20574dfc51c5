//! Roles: what they are, who may hand them out, and what changes of them do
//! to tokens.

use countersign_proto::v1;
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::{
    harness::{
        Client, World, calls,
        calls::{create_role, delete_role, grant, revoke_role, validates},
        refused,
        world::PASSWORD,
    },
    on_both,
};

const NEW: &str = "another horse entirely, thanks";

async fn update(client: &Client, role: v1::Role, paths: &[&str]) -> Result<v1::Role, Status> {
    let request = v1::UpdateRoleRequest {
        role: Some(role),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
    };
    let reply = client.clone().roles.update_role(request).await?;
    Ok(reply.into_inner().role.expect("a role"))
}

fn role(name: &str, permissions: &[&str]) -> v1::Role {
    v1::Role {
        name: name.into(),
        permissions: permissions.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn outranks<T: std::fmt::Debug>(result: Result<T, Status>) {
    refused(result, Code::PermissionDenied, "TARGET_OUTRANKS_CALLER");
}

on_both! {
    async fn a_role_is_created_changed_and_deleted(world: World) {
        let admin = world.admin().await;
        let request = v1::CreateRoleRequest {
            name: "buyer".into(),
            description: "Buys things.".into(),
            permissions: ["stock.read", "orders.write", "orders.write"].map(String::from).into(),
            ..Default::default()
        };
        let made = admin.client.clone().roles.create_role(request.clone()).await.unwrap().into_inner().role.unwrap();
        assert_eq!(made.permissions, ["orders.write", "stock.read"]);
        assert!(!made.built_in);
        refused(admin.client.clone().roles.create_role(request).await, Code::AlreadyExists, "ROLE_EXISTS");

        let wish = v1::Role { description: "Sells things.".into(), ..role("buyer", &["orders.read"]) };
        let changed = update(&admin.client, wish.clone(), &["description"]).await.unwrap();
        assert_eq!((changed.description.as_str(), changed.permissions.len()), ("Sells things.", 2));
        let changed = update(&admin.client, wish, &["permissions"]).await.unwrap();
        assert_eq!(changed.permissions, ["orders.read"]);
        let changed = update(&admin.client, role("buyer", &[]), &["permissions", "description"]).await.unwrap();
        assert!(changed.permissions.is_empty() && changed.description.is_empty());
        let listed = admin.client.clone().roles.list_roles(v1::ListRolesRequest::default()).await.unwrap().into_inner();
        let names: Vec<_> = listed.roles.iter().map(|role| (role.name.as_str(), role.built_in)).collect();
        assert_eq!(names, [("admin", true), ("buyer", false)]);

        for path in ["name", "built_in", "created_at", "*"] {
            let failure = refused(update(&admin.client, role("buyer", &[]), &[path]).await, Code::InvalidArgument, "INVALID_REQUEST");
            assert_eq!(failure.fields, ["update_mask"]);
        }
        refused(update(&admin.client, role("buyer", &[]), &[]).await, Code::InvalidArgument, "INVALID_REQUEST");
        refused(update(&admin.client, role("none", &[]), &["description"]).await, Code::NotFound, "ROLE_NOT_FOUND");
        delete_role(&admin.client, "buyer").await.unwrap();
        refused(delete_role(&admin.client, "buyer").await, Code::NotFound, "ROLE_NOT_FOUND");
        // The name is free again.
        create_role(&admin.client, "buyer", &[]).await.unwrap();
    }

    async fn what_is_no_role_is_refused(world: World) {
        let admin = world.admin().await;
        for bad in ["", "Buyer", "1st", "a b", "\u{e9}", &"a".repeat(65)] {
            let failure = refused(create_role(&admin.client, bad, &[]).await, Code::InvalidArgument, "INVALID_REQUEST");
            assert_eq!(failure.fields, ["name"], "{bad:?}");
        }
        for bad in ["countersign.nothing", "countersign.", "Orders", "orders read", "", &"a".repeat(65)] {
            let failure = refused(create_role(&admin.client, "good", &["orders.read", bad]).await, Code::InvalidArgument, "INVALID_REQUEST");
            assert_eq!(failure.fields, ["permissions[1]"], "{bad:?}");
        }
        let many: Vec<String> = (0..33).map(|n| format!("p{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        refused(create_role(&admin.client, "good", &many).await, Code::InvalidArgument, "INVALID_REQUEST");
        create_role(&admin.client, "good", &many[..32]).await.unwrap();
        let long: Vec<String> = (0..9).map(|n| format!("{n:a>57}")).collect();
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        refused(update(&admin.client, role("good", &long), &["permissions"]).await, Code::InvalidArgument, "INVALID_REQUEST");
        update(&admin.client, role("good", &long[..8]), &["permissions"]).await.unwrap();
    }

    async fn a_role_in_use_or_built_in_stays(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        create_role(&admin.client, "buyer", &["orders.read"]).await.unwrap();
        grant(&admin.client, &ana.user_id, "buyer").await.unwrap();
        refused(delete_role(&admin.client, "buyer").await, Code::FailedPrecondition, "ROLE_IN_USE");
        // A disabled holder is a holder.
        calls::disable(&admin.client, &ana.user_id).await.unwrap();
        refused(delete_role(&admin.client, "buyer").await, Code::FailedPrecondition, "ROLE_IN_USE");
        revoke_role(&admin.client, &ana.user_id, "buyer").await.unwrap();
        delete_role(&admin.client, "buyer").await.unwrap();
        refused(delete_role(&admin.client, "admin").await, Code::FailedPrecondition, "ROLE_BUILT_IN");
        for path in ["permissions", "description"] {
            refused(update(&admin.client, role("admin", &[]), &[path]).await, Code::FailedPrecondition, "ROLE_BUILT_IN");
        }
        refused(create_role(&admin.client, "admin", &[]).await, Code::AlreadyExists, "ROLE_EXISTS");
    }

    async fn a_ninth_role_is_too_many(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        for n in 0..9 {
            create_role(&admin.client, &format!("role{n}"), &["orders.read"]).await.unwrap();
        }
        for n in 0..8 {
            let user = grant(&admin.client, &ana.user_id, &format!("role{n}")).await.unwrap();
            assert_eq!(user.roles.len(), n + 1);
        }
        refused(grant(&admin.client, &ana.user_id, "role8").await, Code::FailedPrecondition, "TOO_MANY_ROLES");
        // What it has already is no ninth.
        assert_eq!(grant(&admin.client, &ana.user_id, "role7").await.unwrap().roles.len(), 8);
        revoke_role(&admin.client, &ana.user_id, "role0").await.unwrap();
        // Nor is taking what it does not have an error.
        revoke_role(&admin.client, &ana.user_id, "role0").await.unwrap();
        grant(&admin.client, &ana.user_id, "role8").await.unwrap();
        refused(grant(&admin.client, &ana.user_id, "none").await, Code::NotFound, "ROLE_NOT_FOUND");
        let nobody = uuid::Uuid::from_u128(7).to_string();
        refused(grant(&admin.client, &nobody, "role0").await, Code::NotFound, "USER_NOT_FOUND");
        refused(revoke_role(&admin.client, &nobody, "role0").await, Code::NotFound, "USER_NOT_FOUND");
    }

    async fn a_token_with_eight_full_roles_is_accepted(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        for n in 0..8 {
            // 32 permissions of 16 bytes, and a name of 64.
            let permissions: Vec<String> = (0..32).map(|p| format!("p{n}.{p:x>13}")).collect();
            let permissions: Vec<&str> = permissions.iter().map(String::as_str).collect();
            assert_eq!(permissions.iter().map(|p| p.len()).sum::<usize>(), 512);
            let name = format!("r{n:a>63}");
            create_role(&admin.client, &name, &permissions).await.unwrap();
            grant(&admin.client, &ana.user_id, &name).await.unwrap();
        }
        let ana = ana.again().await;
        let size = ana.tokens.access_token.len();
        println!("{size} bytes");
        assert!((6_000..8 * 1024).contains(&size), "{size}");
        let caller = calls::caller(&world.anonymous(), &ana.tokens.access_token).await.unwrap();
        assert_eq!((caller.roles.len(), caller.scopes.len()), (8, 256));
        // And as a bearer.
        ana.client.clone().auth.who_am_i(v1::WhoAmIRequest {}).await.unwrap();
    }

    async fn nobody_acts_upon_who_holds_more(world: World) {
        let admin = world.admin().await;
        let clerk = world.person_who_may(&[
            "countersign.users.read", "countersign.users.write", "countersign.users.set_password",
            "countersign.users.delete", "countersign.sessions.read", "countersign.sessions.revoke",
            "countersign.roles.read",
        ]).await;
        let peer = world.person_who_may(&["countersign.users.write", "orders.everything"]).await;
        let above = world.person_who_may(&["countersign.roles.grant"]).await;
        let mut disabled = world.admin().await;
        calls::disable(&admin.client, &disabled.user_id).await.unwrap();
        disabled.client = admin.client.clone();
        for target in [&admin, &above, &disabled] {
            let (client, id) = (&clerk.client, target.user_id.as_str());
            outranks(calls::set_password(client, id, NEW).await);
            outranks(calls::disable(client, id).await);
            outranks(calls::enable(client, id).await);
            outranks(calls::delete(client, id).await);
            let rename = v1::UpdateUserRequest {
                user: Some(v1::User { user_id: id.into(), email: "mine@example.com".into(), ..Default::default() }),
                update_mask: Some(FieldMask { paths: vec!["email".into()] }),
            };
            outranks(client.clone().users.update_user(rename).await);
            let all = v1::RevokeAllSessionsRequest { user_id: id.into(), ..Default::default() };
            outranks(client.clone().sessions.revoke_all_sessions(all).await);
            if target.user_id != disabled.user_id {
                outranks(calls::revoke_session(client, &target.tokens.session_id).await);
                assert!(validates(&world.anonymous(), &target.tokens.access_token).await);
            }
            // Looking is another matter.
            calls::get_user(client, id).await.unwrap();
        }
        // Permissions of other services are labels.
        calls::set_password(&clerk.client, &peer.user_id, NEW).await.unwrap();
        calls::disable(&clerk.client, &peer.user_id).await.unwrap();
        calls::enable(&clerk.client, &peer.user_id).await.unwrap();
    }

    async fn nobody_hands_out_what_they_lack(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let keeper = world.person_who_may(&[
            "countersign.roles.write", "countersign.roles.grant", "countersign.users.read", "countersign.users.write",
        ]).await;
        let client = &keeper.client;
        outranks(grant(client, &ana.user_id, "admin").await);
        outranks(grant(client, &keeper.user_id, "admin").await);
        outranks(revoke_role(client, &admin.user_id, "admin").await);
        outranks(create_role(client, "strong", &["countersign.users.delete"]).await);
        create_role(&admin.client, "strong", &["countersign.users.delete"]).await.unwrap();
        outranks(grant(client, &ana.user_id, "strong").await);
        outranks(update(client, role("strong", &[]), &["permissions"]).await);
        outranks(update(client, role("strong", &[]), &["description"]).await);
        outranks(delete_role(client, "strong").await);
        let mut users = client.users.clone();
        let made = v1::CreateUserRequest {
            email: "strong@example.com".into(),
            roles: vec!["strong".into()],
            ..Default::default()
        };
        outranks(users.create_user(made).await);
        // What they have they may give, and other services' permissions too.
        create_role(client, "writer", &["countersign.users.write", "orders.everything"]).await.unwrap();
        grant(client, &ana.user_id, "writer").await.unwrap();
        outranks(update(client, role("writer", &["countersign.users.delete"]), &["permissions"]).await);
        update(client, role("writer", &["countersign.users.read"]), &["permissions"]).await.unwrap();
        // A role for somebody who holds more is out of reach, whatever the role.
        create_role(client, "label", &["orders.read"]).await.unwrap();
        outranks(grant(client, &admin.user_id, "label").await);
        // Permissions of the token count, not those of the account by now.
        revoke_role(&admin.client, &keeper.user_id, "none").await.unwrap_err();
    }

    async fn changed_permissions_reach_every_holder_at_once(world: World) {
        let admin = world.admin().await;
        create_role(&admin.client, "buyer", &["orders.read"]).await.unwrap();
        let mut holders = Vec::new();
        for _ in 0..5 {
            let person = world.person().await;
            grant(&admin.client, &person.user_id, "buyer").await.unwrap();
            holders.push(person.again().await);
        }
        let other = world.person().await;
        let described = v1::Role { description: "Buys.".into(), ..role("buyer", &["orders.read"]) };
        update(&admin.client, described, &["description", "permissions"]).await.unwrap();
        for person in &holders {
            assert!(validates(&world.anonymous(), &person.tokens.access_token).await, "nothing has changed");
        }
        update(&admin.client, role("buyer", &["orders.write"]), &["permissions"]).await.unwrap();
        assert!(validates(&world.anonymous(), &other.tokens.access_token).await);
        for person in &holders {
            refused(
                calls::caller(&world.anonymous(), &person.tokens.access_token).await,
                Code::Unauthenticated, "TOKEN_INVALID",
            );
            let next = calls::refresh(&world.anonymous(), &person.tokens.refresh_token).await.unwrap();
            let caller = calls::caller(&world.anonymous(), &next.access_token).await.unwrap();
            assert_eq!(caller.scopes, ["orders.write"]);
            assert_eq!(next.session_id, person.tokens.session_id);
        }
        // Revoking is heard likewise.
        let ana = holders[0].again().await;
        revoke_role(&admin.client, &ana.user_id, "buyer").await.unwrap();
        assert!(!validates(&world.anonymous(), &ana.tokens.access_token).await);
        let next = calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        let caller = calls::caller(&world.anonymous(), &next.access_token).await.unwrap();
        assert!(caller.roles.is_empty() && caller.scopes.is_empty());
    }

    async fn managing_roles_needs_its_permissions(world: World) {
        let admin = world.admin().await;
        let ana = world.person_who_may(&["countersign.roles.read"]).await;
        ana.client.clone().roles.list_roles(v1::ListRolesRequest::default()).await.unwrap();
        let denied = |result: Result<(), Status>| refused(result, Code::PermissionDenied, "PERMISSION_DENIED");
        denied(create_role(&ana.client, "mine", &[]).await.map(drop));
        denied(update(&ana.client, role("admin", &[]), &["description"]).await.map(drop));
        denied(delete_role(&ana.client, "admin").await);
        denied(grant(&ana.client, &ana.user_id, "admin").await.map(drop));
        denied(revoke_role(&ana.client, &admin.user_id, "admin").await.map(drop));
        denied(calls::set_password(&ana.client, &admin.user_id, PASSWORD).await);
        let ben = world.person().await;
        let listed = ben.client.clone().roles.list_roles(v1::ListRolesRequest::default()).await;
        denied(listed.map(drop));
    }

    async fn roles_come_in_pages(world: World) {
        let admin = world.admin().await;
        let mut expected = vec!["admin".to_owned()];
        for name in ["b-1", "b_1", "b1", "c", "zz"] {
            create_role(&admin.client, name, &["orders.read"]).await.unwrap();
            expected.push(name.to_owned());
        }
        expected.sort();
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListRolesRequest { page_size: 2, page_token: token };
            let page = admin.client.clone().roles.list_roles(request).await.unwrap().into_inner();
            found.extend(page.roles.into_iter().map(|role| role.name));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(found, expected);
        let negative = v1::ListRolesRequest { page_size: -1, ..Default::default() };
        refused(admin.client.clone().roles.list_roles(negative).await, Code::InvalidArgument, "INVALID_REQUEST");
    }
}
