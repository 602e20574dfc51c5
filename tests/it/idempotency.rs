//! The same `request_id` has its effect once, and one address has one account,
//! however often and from wherever both are sent.

use std::{future::Future, time::Duration};

use countersign_proto::v1;
use tonic::{Code, Status};

use crate::{
    harness::{Client, Failure, World, refused, world},
    on_both,
};

/// A second less than an answer is kept.
const NEARLY_A_DAY: Duration = Duration::from_secs(24 * 3600 - 1);

/// A version 4 UUID that is the same in every run.
fn id(n: u32) -> String {
    format!("{n:08x}-0000-4000-8000-000000000000")
}

fn registration(email: &str, request_id: &str) -> v1::RegisterRequest {
    v1::RegisterRequest {
        email: email.to_owned(),
        password: world::PASSWORD.to_owned(),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

async fn register(client: &Client, wish: v1::RegisterRequest) -> Result<v1::User, Status> {
    let reply = client.clone().auth.register(wish).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

async fn create_user(client: &Client, wish: v1::CreateUserRequest) -> Result<v1::User, Status> {
    let reply = client.clone().users.create_user(wish).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

async fn create_role(client: &Client, wish: v1::CreateRoleRequest) -> Result<v1::Role, Status> {
    let reply = client.clone().roles.create_role(wish).await?;
    Ok(reply.into_inner().role.expect("a role"))
}

async fn accounts(admin: &Client, email_prefix: &str) -> usize {
    let request = v1::ListUsersRequest {
        filter: Some(v1::UserFilter {
            email_prefix: email_prefix.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let reply = admin.clone().users.list_users(request).await;
    reply.expect("lists").into_inner().users.len()
}

/// Makes the same call `times` at once over four connections of a client each,
/// again where the refusal says so.
async fn at_once<T, F>(
    clients: &[Client],
    times: usize,
    call: impl Fn(usize, Client) -> F + Clone + Send + 'static,
) -> Vec<Result<T, Status>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Status>> + Send,
{
    let calls = (0..times).map(|i| {
        let (client, call) = (clients[i % clients.len()].clone(), call.clone());
        tokio::spawn(async move {
            for _ in 0..100 {
                match call(i, client.clone()).await {
                    Err(status) if Failure::from(&status).retry => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    settled => return settled,
                }
            }
            panic!("refused a hundred times");
        })
    });
    let mut results = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        results.push(call.await.expect("ends"));
    }
    results
}

fn connections(world: &World, token: Option<&str>) -> Vec<Client> {
    let connect = || {
        let client = world.node.new_connection();
        token.map_or(client.clone(), |token| client.with_token(token))
    };
    (0..4).map(|_| connect()).collect()
}

on_both! {
    async fn a_hundred_registrations_of_one_address_make_one_account(world: World) {
        let admin = world.admin().await;
        let results = at_once(&connections(&world, None), 100, |i, client| async move {
            // The same address in two spellings.
            let email = if i % 2 == 0 { "wanted@example.com" } else { "Wanted@Example.COM" };
            register(&client, registration(email, "")).await
        }).await;
        let (made, others): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(made.len(), 1);
        for other in others {
            refused(other, Code::AlreadyExists, "EMAIL_TAKEN");
        }
        assert_eq!(accounts(&admin.client, "wanted@").await, 1);
        world::login(&world.anonymous(), "wanted@example.com", world::PASSWORD).await.unwrap();
    }

    async fn a_request_id_sent_many_times_at_once_has_one_effect(world: World) {
        let admin = world.admin().await;
        let token = admin.tokens.access_token.as_str();

        let registered = at_once(&connections(&world, None), 32, |_, client| async move {
            register(&client, registration("once@example.com", &id(1))).await
        }).await;
        let created = at_once(&connections(&world, Some(token)), 32, |_, client| async move {
            let wish = v1::CreateUserRequest {
                email: "twice@example.com".into(),
                request_id: id(1),
                ..Default::default()
            };
            create_user(&client, wish).await
        }).await;
        for (results, prefix) in [(registered, "once@"), (created, "twice@")] {
            let replies: Vec<v1::User> = results.into_iter().map(|r| r.expect("an answer")).collect();
            assert!(replies.iter().all(|reply| *reply == replies[0]), "{replies:#?}");
            assert_eq!(accounts(&admin.client, prefix).await, 1);
        }

        let roles = at_once(&connections(&world, Some(token)), 32, |_, client| async move {
            let wish = v1::CreateRoleRequest {
                name: "once".into(),
                permissions: vec!["orders.read".into()],
                request_id: id(1),
                ..Default::default()
            };
            create_role(&client, wish).await
        }).await;
        let replies: Vec<v1::Role> = roles.into_iter().map(|r| r.expect("an answer")).collect();
        assert!(replies.iter().all(|reply| *reply == replies[0]), "{replies:#?}");
    }

    async fn another_node_repeats_the_answer(world: World) {
        // A SQLite file is served by one node: the same one, later.
        let other = world.another_node().await;
        let first = register(&world.anonymous(), registration("a@example.com", &id(1))).await;
        world.clock.advance(Duration::from_hours(1));
        let second = other.as_ref().unwrap_or(&world.node).client();
        let again = register(&second, registration("a@example.com", &id(1))).await;
        assert_eq!(first.unwrap(), again.unwrap());
    }

    async fn the_same_id_with_another_body_is_refused_and_changes_nothing(world: World) {
        let admin = world.admin().await;
        let reused = (Code::InvalidArgument, "REQUEST_ID_REUSED");
        let first = registration("first@example.com", &id(1));
        register(&world.anonymous(), first.clone()).await.unwrap();
        for other in [
            v1::RegisterRequest { email: "other@example.com".into(), ..first.clone() },
            v1::RegisterRequest { password: "another horse entirely, thanks".into(), ..first.clone() },
            v1::RegisterRequest { display_name: "Ana".into(), ..first.clone() },
            v1::RegisterRequest { username: "ana.lima".into(), ..first.clone() },
        ] {
            refused(register(&world.anonymous(), other).await, reused.0, reused.1);
        }
        assert_eq!(accounts(&admin.client, "other@").await, 0);

        let first = v1::CreateUserRequest {
            email: "made@example.com".into(),
            request_id: id(2),
            ..Default::default()
        };
        create_user(&admin.client, first.clone()).await.unwrap();
        for other in [
            v1::CreateUserRequest { email: "other@example.com".into(), ..first.clone() },
            v1::CreateUserRequest { roles: vec!["admin".into()], ..first.clone() },
            v1::CreateUserRequest { metadata: [("a".into(), "b".into())].into(), ..first.clone() },
        ] {
            refused(create_user(&admin.client, other).await, reused.0, reused.1);
        }
        assert_eq!(accounts(&admin.client, "other@").await, 0);

        let first = v1::CreateRoleRequest {
            name: "first".into(),
            request_id: id(3),
            ..Default::default()
        };
        create_role(&admin.client, first.clone()).await.unwrap();
        for other in [
            v1::CreateRoleRequest { name: "other".into(), ..first.clone() },
            v1::CreateRoleRequest { permissions: vec!["a".into()], ..first.clone() },
        ] {
            refused(create_role(&admin.client, other).await, reused.0, reused.1);
        }
    }

    async fn ids_of_different_callers_and_methods_do_not_meet(world: World) {
        let (ana, bob) = (world.admin().await, world.admin().await);
        let wish = |email: &str| v1::CreateUserRequest {
            email: email.to_owned(),
            request_id: id(1),
            ..Default::default()
        };
        let first = create_user(&ana.client, wish("first@example.com")).await.unwrap();
        let second = create_user(&bob.client, wish("second@example.com")).await.unwrap();
        assert_ne!(first.user_id, second.user_id);
        refused(
            create_user(&bob.client, wish("first@example.com")).await,
            Code::InvalidArgument, "REQUEST_ID_REUSED",
        );
        // The very body of another caller's request is no way to its answer.
        let third = v1::CreateUserRequest { request_id: id(2), ..wish("third@example.com") };
        create_user(&ana.client, third.clone()).await.unwrap();
        refused(create_user(&bob.client, third).await, Code::AlreadyExists, "EMAIL_TAKEN");

        register(&world.anonymous(), registration("fourth@example.com", &id(1))).await.unwrap();
        let role = v1::CreateRoleRequest {
            name: "a".into(),
            request_id: id(1),
            ..Default::default()
        };
        create_role(&ana.client, role.clone()).await.unwrap();
        refused(create_role(&bob.client, role).await, Code::AlreadyExists, "ROLE_EXISTS");
    }

    async fn an_id_is_free_again_after_a_day(world: World) {
        let first = registration("first@example.com", &id(1));
        let other = registration("other@example.com", &id(1));
        let made = register(&world.anonymous(), first.clone()).await.unwrap();
        world.clock.advance(NEARLY_A_DAY);
        let again = register(&world.anonymous(), first.clone()).await.unwrap();
        assert_eq!(again, made);
        refused(
            register(&world.anonymous(), other.clone()).await,
            Code::InvalidArgument, "REQUEST_ID_REUSED",
        );
        // A repetition does not make it last longer.
        world.clock.advance(Duration::from_secs(1));
        refused(
            register(&world.anonymous(), first.clone()).await,
            Code::AlreadyExists, "EMAIL_TAKEN",
        );
        let made = register(&world.anonymous(), other.clone()).await.unwrap();
        assert_eq!(register(&world.anonymous(), other).await.unwrap(), made);
    }

    async fn a_refused_call_leaves_its_id_free(world: World) {
        let admin = world.admin().await;
        let taken = registration(&admin.email, &id(1));
        for _ in 0..2 {
            refused(
                register(&world.anonymous(), taken.clone()).await,
                Code::AlreadyExists, "EMAIL_TAKEN",
            );
        }
        register(&world.anonymous(), registration("free@example.com", &id(1))).await.unwrap();

        // Refused at its last step, once the account was in the transaction.
        let unknown = v1::CreateUserRequest {
            email: "made@example.com".into(),
            roles: vec!["nobody-made-it".into()],
            request_id: id(2),
            ..Default::default()
        };
        refused(
            create_user(&admin.client, unknown.clone()).await,
            Code::NotFound, "ROLE_NOT_FOUND",
        );
        assert_eq!(accounts(&admin.client, "made@").await, 0);
        let known = v1::CreateUserRequest { roles: vec![], ..unknown };
        create_user(&admin.client, known).await.unwrap();
        let role = v1::CreateRoleRequest {
            name: "admin".into(),
            request_id: id(3),
            ..Default::default()
        };
        refused(
            create_role(&admin.client, role.clone()).await,
            Code::AlreadyExists, "ROLE_EXISTS",
        );
        create_role(&admin.client, v1::CreateRoleRequest { name: "free".into(), ..role }).await.unwrap();
    }

    async fn ids_that_are_no_uuids_are_refused(world: World) {
        for id in ["1", "not-a-uuid", "00000000000040008000000000000000", " ", "\u{202e}"] {
            let failure = refused(
                register(&world.anonymous(), registration("a@example.com", id)).await,
                Code::InvalidArgument, "INVALID_REQUEST",
            );
            assert_eq!(failure.fields, ["request_id"]);
        }
    }
}
