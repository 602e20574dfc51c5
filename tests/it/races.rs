//! Races over one account, one role, one name: whoever wins, what must hold
//! holds.

use countersign_proto::v1;
use futures_util::future::join_all;
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::{
    harness::{
        Client, Failure, Lock, Node, Person, World, calls,
        calls::{is_dead, validates},
        eventually,
        world::{PASSWORD, login},
    },
    on_both,
};

const ROUNDS: usize = 25;

/// Repeats a call that was refused with a hint to come back, as a well-made
/// client does.
async fn retrying<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, Status> {
    for _ in 0..200 {
        match call().await {
            Err(status) if Failure::from(&status).retry => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            result => return result,
        }
    }
    panic!("refused with a hint two hundred times");
}

fn reason(status: &Status) -> String {
    Failure::from(status).reason
}

/// Logins with the personas' password while `change` ends the account's
/// sessions: those that got tokens, after both have ended.
async fn racing_logins<T>(
    world: &World,
    ana: &Person,
    change: impl AsyncFnOnce() -> Result<T, Status>,
) -> (T, Vec<v1::TokenPair>) {
    let logins = (0..6).map(async |_| {
        let client = world.node.new_connection();
        retrying(async || login(&client, &ana.email, PASSWORD).await).await
    });
    let (logins, changed) = tokio::join!(join_all(logins), change());
    let changed = changed.expect("changes");
    let mut opened = Vec::new();
    for login in logins {
        match login {
            Ok(pair) => opened.push(pair),
            Err(status) => assert_eq!(reason(&status), "LOGIN_FAILED", "{status:?}"),
        }
    }
    (changed, opened)
}

/// Sessions of an account that nobody has ended.
async fn rows_alive(world: &World, email: &str) -> usize {
    let query = format!(
        "SELECT count(*) FROM sessions s JOIN users u ON u.id = s.user_id \
         WHERE s.revoked_at IS NULL AND u.email = '{email}'"
    );
    world.query(&query).await[0].parse().unwrap()
}

on_both! {
    async fn no_login_with_the_old_password_outlives_its_change(world: World) {
        let (mut before, mut after) = (0, 0);
        for _ in 0..ROUNDS {
            let ana = world.person().await;
            let new = "another horse entirely, thanks";
            let (fresh, opened) = racing_logins(&world, &ana, async || {
                retrying(async || calls::change_password(&ana.client, PASSWORD, new).await).await
            }).await;
            before += opened.len();
            after += 6 - opened.len();
            for pair in &opened {
                assert!(is_dead(&world.anonymous(), pair).await);
            }
            assert_eq!(rows_alive(&world, &ana.email).await, 1, "its own");
            assert!(validates(&world.anonymous(), &fresh.access_token).await);
        }
        println!("logins before the change: {before}, after: {after}");
    }

    async fn no_login_outlives_a_disabling(world: World) {
        let admin = world.admin().await;
        for _ in 0..ROUNDS {
            let ana = world.person().await;
            let (_, opened) = racing_logins(&world, &ana, async || {
                retrying(async || calls::disable(&admin.client, &ana.user_id).await).await
            }).await;
            assert_eq!(rows_alive(&world, &ana.email).await, 0);
            // Nor does it come back.
            calls::enable(&admin.client, &ana.user_id).await.unwrap();
            for pair in &opened {
                assert!(is_dead(&world.anonymous(), pair).await);
            }
        }
    }

    async fn nothing_of_a_person_is_left_by_a_login_racing_the_deletion(world: World) {
        let admin = world.admin().await;
        for _ in 0..ROUNDS {
            let ana = world.person().await;
            let ((), opened) = racing_logins(&world, &ana, async || {
                retrying(async || calls::delete(&admin.client, &ana.user_id).await).await
            }).await;
            for pair in &opened {
                assert!(is_dead(&world.anonymous(), pair).await);
            }
        }
        let left = "SELECT count(*) FROM sessions s JOIN users u ON u.id = s.user_id \
                    WHERE u.status = 'deleted' AND (s.user_agent <> '' OR s.address IS NOT NULL)";
        assert_eq!(world.query(left).await, ["0"]);
        let left = "SELECT count(*) FROM audit_origins o JOIN users u ON u.id = o.user_id \
                    WHERE u.status = 'deleted'";
        assert_eq!(world.query(left).await, ["0"]);
    }

    async fn a_role_granted_during_a_login_does_not_make_it_fail(world: World) {
        let admin = world.admin().await;
        for n in 0..ROUNDS {
            let ana = world.person().await;
            let role = format!("role{n}");
            calls::create_role(&admin.client, &role, &["orders.read"]).await.unwrap();
            let (_, opened) = racing_logins(&world, &ana, async || {
                retrying(async || calls::grant(&admin.client, &ana.user_id, &role).await).await
            }).await;
            assert_eq!(opened.len(), 6, "the password was right");
            for pair in opened {
                // Its access token may be of before; its session goes on into the role.
                if let Ok(caller) = calls::caller(&world.anonymous(), &pair.access_token).await {
                    assert_eq!(caller.roles, [role.as_str()]);
                }
                let next = calls::refresh(&world.anonymous(), &pair.refresh_token).await.unwrap();
                let caller = calls::caller(&world.anonymous(), &next.access_token).await.unwrap();
                assert_eq!(caller.roles, [role.as_str()]);
            }
        }
    }

    async fn of_two_admins_who_remove_each_other_one_remains(world: World) {
        let other = world.another_node().await;
        let demote = |client: Client, id: String| async move {
            calls::revoke_role(&client, &id, "admin").await.map(drop)
        };
        let disable = |client: Client, id: String| async move {
            calls::disable(&client, &id).await.map(drop)
        };
        let delete = |client: Client, id: String| async move { calls::delete(&client, &id).await };
        let (mut first, mut fought) = (world.admin().await, 0);
        for round in 0..ROUNDS {
            let second = world.admin().await;
            // On two nodes, where there may be two.
            let elsewhere = other.as_ref().unwrap_or(&world.node).new_connection();
            let theirs = elsewhere.with_token(&second.tokens.access_token);
            let ours = first.client.clone();
            let (a, b) = (first.user_id.clone(), second.user_id.clone());
            let (mine, yours) = match round % 4 {
                0 => tokio::join!(
                    retrying(async || demote(ours.clone(), b.clone()).await),
                    retrying(async || demote(theirs.clone(), a.clone()).await)
                ),
                1 => tokio::join!(
                    retrying(async || disable(ours.clone(), b.clone()).await),
                    retrying(async || delete(theirs.clone(), a.clone()).await)
                ),
                2 => tokio::join!(
                    retrying(async || disable(ours.clone(), b.clone()).await),
                    retrying(async || disable(theirs.clone(), a.clone()).await)
                ),
                _ => tokio::join!(
                    retrying(async || delete(ours.clone(), b.clone()).await),
                    retrying(async || demote(theirs.clone(), a.clone()).await)
                ),
            };
            let admins = world.query(
                "SELECT lower(u.email) FROM users u JOIN user_roles r ON r.user_id = u.id \
                 WHERE u.status = 'active'"
            ).await;
            assert_eq!(admins.len(), 1, "round {round}: {mine:?} {yours:?}");
            for result in [&mine, &yours] {
                if let Err(status) = result {
                    let reason = reason(status);
                    assert!(["LAST_ADMIN", "TOKEN_INVALID", "TARGET_OUTRANKS_CALLER", "PERMISSION_DENIED"].contains(&reason.as_str()), "{reason}");
                    fought += usize::from(reason == "LAST_ADMIN");
                }
            }
            // Whoever is left goes on.
            let email = admins.into_iter().next().unwrap();
            let left = if email == first.email { &first } else { &second };
            first = left.again().await;
        }
        println!("decided by the rule of the last admin: {fought} of {ROUNDS}");
    }

    async fn a_grant_racing_the_roles_deletion(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        for n in 0..ROUNDS {
            let role = format!("role{n}");
            calls::create_role(&admin.client, &role, &["orders.read"]).await.unwrap();
            let elsewhere = world.node.new_connection().with_token(&admin.tokens.access_token);
            let (granted, deleted) = tokio::join!(
                retrying(async || calls::grant(&admin.client, &ana.user_id, &role).await),
                retrying(async || calls::delete_role(&elsewhere, &role).await)
            );
            let held = calls::get_user(&admin.client, &ana.user_id).await.unwrap().roles;
            match (granted, deleted) {
                (Ok(_), Err(status)) => {
                    assert_eq!((reason(&status).as_str(), held), ("ROLE_IN_USE", vec![role.clone()]));
                    calls::revoke_role(&admin.client, &ana.user_id, &role).await.unwrap();
                }
                (Err(status), Ok(())) => {
                    assert_eq!((reason(&status).as_str(), held), ("ROLE_NOT_FOUND", vec![]));
                }
                both => panic!("{both:?}"),
            }
        }
    }

    async fn roles_change_and_are_granted_at_once_without_a_deadlock_that_shows(world: World) {
        let admin = world.admin().await;
        let people = [world.person().await, world.person().await, world.person().await];
        for role in ["one", "two"] {
            calls::create_role(&admin.client, role, &["orders.read"]).await.unwrap();
            for person in &people {
                calls::grant(&admin.client, &person.user_id, role).await.unwrap();
            }
        }
        let racing = (0..24).map(async |n| {
            let client = world.node.new_connection().with_token(&admin.tokens.access_token);
            let role = if n % 2 == 0 { "one" } else { "two" };
            let request = v1::UpdateRoleRequest {
                role: Some(v1::Role {
                    name: role.into(),
                    permissions: vec![format!("orders.n{n}")],
                    ..Default::default()
                }),
                update_mask: Some(FieldMask { paths: vec!["permissions".into()] }),
            };
            retrying(async || client.clone().roles.update_role(request.clone()).await).await
        });
        for result in join_all(racing).await {
            result.unwrap();
        }
    }

    async fn one_person_logs_in_many_times_at_once(world: World) {
        let ana = world.person().await;
        let logins = (0..40).map(async |_| {
            let client = world.node.new_connection();
            retrying(async || login(&client, &ana.email, PASSWORD).await).await
        });
        let mut ids = std::collections::BTreeSet::new();
        for pair in join_all(logins).await {
            let pair = pair.unwrap();
            assert!(validates(&world.anonymous(), &pair.access_token).await);
            ids.insert(pair.session_id);
        }
        assert_eq!(ids.len(), 40);
        assert_eq!(calls::sessions(&ana.client, "").await.unwrap().len(), 41);
    }

    /// At two nodes on PostgreSQL, as one node checks one password at a time.
    async fn of_two_changes_in_one_session_one_counts(world: World) {
        let ana = world.person().await;
        let other = world.another_node().await;
        let nodes: Vec<&Node> = [&world.node].into_iter().chain(other.as_ref()).collect();
        let work = || nodes.iter().map(|node| node.running.core().lanes.work()).sum::<u64>();
        // So far she has registered and logged in.
        let one = work() / 2;
        let checked = work() + 2 * one * nodes.len() as u64;
        let lock = Lock::take(&world.database).await;
        let mut changes = tokio::task::JoinSet::new();
        for (node, new) in nodes.iter().cycle().zip(["one horse after the other", "the other horse first"]) {
            let client = node.client().with_token(&ana.tokens.access_token);
            changes.spawn(async move {
                calls::change_password(&client, PASSWORD, new).await.map(|_| new)
            });
        }
        eventually("each node has checked the password", async || work() == checked).await;
        lock.release().await;
        let done = changes.join_all().await;
        let counts: Vec<_> = done.iter().flatten().collect();
        assert_eq!(counts.len(), 1, "{done:?}");
        login(&world.anonymous(), &ana.email, counts[0]).await.unwrap();
    }

    async fn one_name_for_two_people_at_once(world: World) {
        let admin = world.admin().await;
        let people = [world.person().await, world.person().await];
        for n in 0..ROUNDS {
            for (path, taken) in [("email", "EMAIL_TAKEN"), ("username", "USERNAME_TAKEN")] {
                let wish = |person: &Person| v1::UpdateUserRequest {
                    user: Some(v1::User {
                        user_id: person.user_id.clone(),
                        email: format!("wanted{n}@example.com"),
                        username: format!("wanted{n}"),
                        ..Default::default()
                    }),
                    update_mask: Some(FieldMask { paths: vec![path.into()] }),
                };
                let ours = admin.client.clone();
                let theirs = world.node.new_connection().with_token(&admin.tokens.access_token);
                let (a, b) = tokio::join!(
                    retrying(async || ours.clone().users.update_user(wish(&people[0])).await),
                    retrying(async || theirs.clone().users.update_user(wish(&people[1])).await)
                );
                let lost = match (a, b) {
                    (Ok(_), Err(status)) | (Err(status), Ok(_)) => status,
                    both => panic!("{both:?}"),
                };
                assert_eq!((lost.code(), reason(&lost).as_str()), (Code::AlreadyExists, taken));
            }
        }
    }
}
