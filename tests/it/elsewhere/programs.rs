//! What happened to the keys of programs: they lived longer and did more than
//! they were made for.

use std::time::Duration;

use countersign::domain::Permission;
use countersign_proto::v1;
use tonic::{Code, Status};

use super::ends_after;
use crate::{
    harness::{
        Client, World, calls,
        calls::{caller, create_api_key, rotate_api_key, validates},
        refused,
        world::PASSWORD,
    },
    on_both,
};

const NEW: &str = "another horse entirely, thanks";
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the key of these tests lives.
const LIFE: Duration = Duration::from_secs(600);

const KIND: (Code, &str) = (Code::PermissionDenied, "CREDENTIAL_KIND_NOT_ALLOWED");
const HIGH: (Code, &str) = (Code::PermissionDenied, "TARGET_OUTRANKS_CALLER");

/// A key that ends, with all permissions that there are.
fn mighty() -> v1::CreateApiKeyRequest {
    v1::CreateApiKeyRequest {
        name: "may do everything".into(),
        scopes: Permission::ALL
            .iter()
            .map(|permission| permission.name().to_owned())
            .collect(),
        expires_at: Some(ends_after(LIFE)),
        ..Default::default()
    }
}

async fn create(
    client: &Client,
    request: v1::CreateApiKeyRequest,
) -> Result<v1::CreateApiKeyResponse, Status> {
    let reply = client.clone().api_keys.create_api_key(request).await?;
    Ok(reply.into_inner())
}

on_both! {
    // Leans on `in_person` in middleware/access.rs for the key itself, and for its
    // owner on the smaller of two ends in the verifier's api_key.rs, caller.
    async fn an_api_key_made_itself_immortal(world: World) {
        let admin = world.admin().await;
        let made = create(&admin.client, mighty()).await.unwrap();
        let key = made.api_key.unwrap();
        let program = world.anonymous().with_token(&made.secret);
        // It may do everything, and nothing that would outlive it.
        program.clone().users.list_users(v1::ListUsersRequest::default()).await.unwrap();
        refused(rotate_api_key(&program, &key.api_key_id, MONTH).await, KIND.0, KIND.1);
        refused(create_api_key(&program, &[]).await, KIND.0, KIND.1);
        let for_another = v1::CreateApiKeyRequest { user_id: admin.user_id.clone(), expires_at: None, ..mighty() };
        refused(create(&program, for_another).await, KIND.0, KIND.1);
        refused(calls::set_password(&program, &admin.user_id, NEW).await, KIND.0, KIND.1);
        refused(calls::change_password(&program, PASSWORD, NEW).await, KIND.0, KIND.1);
        // An account that it has made has no password, and so no way in.
        let request = v1::CreateUserRequest { email: world.new_email(), roles: vec!["admin".into()], ..Default::default() };
        let account = program.clone().users.create_user(request.clone()).await.unwrap().into_inner().user.unwrap();
        refused(calls::set_password(&program, &account.user_id, NEW).await, KIND.0, KIND.1);
        let request = v1::CreateUserRequest { email: world.new_email(), password: NEW.into(), ..request };
        refused(program.clone().users.create_user(request).await, KIND.0, KIND.1);

        // Who rotates it gives it another secret and no other end, whatever the overlap.
        let (rotated, second) = rotate_api_key(&admin.client, &key.api_key_id, MONTH).await.unwrap();
        assert_eq!(rotated.expires_at, Some(ends_after(LIFE)));
        for secret in [&made.secret, &second] {
            let known = caller(&world.anonymous(), secret).await.unwrap();
            assert_eq!(known.expires_at, Some(ends_after(LIFE)));
        }
        world.clock.advance(LIFE);
        for secret in [&made.secret, &second] {
            assert!(!validates(&world.anonymous(), secret).await);
        }
        refused(
            rotate_api_key(&admin.client, &key.api_key_id, MONTH).await,
            Code::NotFound, "API_KEY_NOT_FOUND",
        );
        let world = world.restarted(|_| {}).await;
        for secret in [&made.secret, &second] {
            assert!(!validates(&world.anonymous(), secret).await);
        }
    }

    // Leans on `covers` in service/authority.rs, which asks for what the key holds
    // and not for what its owner does.
    async fn an_api_key_handed_out_what_it_was_not_given(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let given = ["countersign.roles.grant", "countersign.roles.write", "countersign.users.write"];
        let (_, secret) = create_api_key(&admin.client, &given).await.unwrap();
        let program = world.anonymous().with_token(&secret);
        refused(calls::grant(&program, &ana.user_id, "admin").await, HIGH.0, HIGH.1);
        let beyond = calls::create_role(&program, "beyond", &["countersign.users.delete"]).await;
        refused(beyond, HIGH.0, HIGH.1);
        let request = v1::CreateUserRequest { email: world.new_email(), roles: vec!["admin".into()], ..Default::default() };
        refused(program.clone().users.create_user(request).await, HIGH.0, HIGH.1);
        // A role is not made to permit more later, either.
        calls::create_role(&program, "helper", &["countersign.users.write", "orders.read"]).await.unwrap();
        let request = v1::UpdateRoleRequest {
            role: Some(v1::Role {
                name: "helper".into(),
                permissions: vec!["countersign.users.set_password".into()],
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["permissions".into()] }),
        };
        refused(program.clone().roles.update_role(request).await, HIGH.0, HIGH.1);
        // What it was given it may hand out.
        calls::grant(&program, &ana.user_id, "helper").await.unwrap();
        let ana = ana.again().await;
        let known = caller(&world.anonymous(), &ana.tokens.access_token).await.unwrap();
        assert_eq!((known.roles, known.scopes), (vec!["helper".to_owned()], vec!["countersign.users.write".to_owned(), "orders.read".to_owned()]));
    }

    // Leans on `held` in service/api_keys.rs and on the form of a permission's name
    // in domain/permission.rs: scopes stand in one claim, with spaces between them.
    async fn scopes_that_nobody_had_granted_were_in_a_credential(world: World) {
        let admin = world.admin().await.client;
        let ana = world.person_who_may(&["orders.read"]).await;
        for name in [
            "orders.read countersign.users.write", "orders.read\tcountersign.users.write",
            "orders.read\u{a0}countersign.users.write", "orders.read\ncountersign.users.write",
            "orders.read,countersign.users.write", "orders.*", "*", "orders.read\0", " orders.read",
        ] {
            let role = calls::create_role(&admin, "odd", &[name]).await;
            assert_eq!(refused(role, Code::InvalidArgument, "INVALID_REQUEST").fields, ["permissions[0]"], "{name:?}");
            let key = create_api_key(&ana.client, &["orders.read", name]).await;
            assert_eq!(refused(key, Code::InvalidArgument, "INVALID_REQUEST").fields, ["scopes[1]"], "{name:?}");
        }
        for name in ["orders.write", "orders", "orders.read.all", "countersign.users.read"] {
            let key = create_api_key(&ana.client, &["orders.read", name]).await;
            assert_eq!(refused(key, Code::InvalidArgument, "INVALID_REQUEST").fields, ["scopes[1]"], "{name:?}");
        }
        assert_eq!(world.query("SELECT count(*) FROM api_keys").await, ["0"]);
        // One that is a part of another does not stand for it.
        let (_, secret) = create_api_key(&ana.client, &["orders.read", "orders.read"]).await.unwrap();
        let known = caller(&world.anonymous(), &secret).await.unwrap();
        assert_eq!(known.scopes, ["orders.read"]);
    }
}
