//! Guessing passwords: how often, how soon again, and that nobody learns from
//! it who has an account.

use std::{sync::Arc, time::Duration};

use countersign::{
    domain::{Call, Password},
    service::{Core, janitor::Janitor, keyring, login, throttle},
};
use countersign_proto::v1;
use jiff::SignedDuration;
use tokio::{sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::{
    harness::{
        Client, Failure, Kind, Lock, Node, World, calls,
        calls::{access_line, named},
        eventually, refused,
        world::{self, PASSWORD},
    },
    login::refusal,
    on_both,
};

const WRONG: &str = "not the password at all";

/// Blocks that one hash of these tests fills.
const HASH: u64 = 8;

const FIRST: Duration = Duration::from_secs(30);

/// The defaults, but for the failures before the first wait.
fn after(failures: u32) -> throttle::Config {
    throttle::Config {
        failures_before_delay: failures,
        ..throttle::Config::default()
    }
}

/// A world that bears so many failures before the first wait.
async fn bearing(world: World, failures: u32) -> World {
    let limits = after(failures);
    world
        .restarted(|config| config.login_throttle = limits)
        .await
}

/// The reason why a login was refused, and the wait that it was told.
async fn guess(client: &Client, identifier: &str, password: &str) -> (String, Option<Duration>) {
    let status = world::login(client, identifier, password).await;
    told(&status.expect_err("refused"))
}

fn told(status: &Status) -> (String, Option<Duration>) {
    let retry = status.get_error_details().retry_info().cloned();
    (
        Failure::from(status).reason,
        retry.and_then(|retry| retry.retry_delay),
    )
}

fn throttled(wait: Duration) -> (String, Option<Duration>) {
    ("LOGIN_THROTTLED".to_owned(), Some(wait))
}

fn failed() -> (String, Option<Duration>) {
    ("LOGIN_FAILED".to_owned(), None)
}

/// Somebody's client, of the node that is there now.
async fn client_of(world: &World, email: &str) -> Client {
    let pair = world::login(&world.anonymous(), email, PASSWORD).await;
    let pair = pair.expect("logs in");
    world.anonymous().with_token(&pair.access_token)
}

/// Hashes that this node has made since it started.
fn hashes(core: &Core) -> u64 {
    core.lanes.work() / HASH
}

async fn counters(world: &World) -> usize {
    let rows = world.query("SELECT count(*) FROM login_throttle").await;
    rows[0].parse().unwrap()
}

/// A guess at a node that has no port, as a second one cannot have on SQLite.
async fn guess_beside(core: &Core, identifier: &str) -> String {
    let wish = login::Login {
        identifier: identifier.parse().unwrap(),
        password: Password::parse(WRONG).unwrap(),
        device_name: String::new(),
        audiences: Vec::new(),
        device_token: String::new(),
    };
    let refused = login::login(core, &Call::internal("guess"), wish).await;
    told(&Status::from(refused.unwrap_err())).0
}

on_both! {
    async fn of_parallel_guesses_at_two_nodes_no_more_are_looked_at_than_the_limit(world: World) {
        let ana = world.person().await.email;
        let world = world.restarted(|config| {
            config.login_throttle = after(10);
            config.limits.concurrency.hash = 4_096;
            config.hashing.queue = 1_024;
            // A busy machine is no reason to be refused.
            config.database.acquire_timeout_ms = 10_000;
            config.database.query_timeout_ms = 20_000;
        }).await;
        let beside = Arc::new(world.command_line().await);
        keyring::load(&beside, &Call::internal("test")).await.unwrap();
        let here = world.node.running.core();
        for (name, parallel, most) in [
            (&*ana, 200, 10 + 1),
            ("nobody@example.com", 200, 10 + 1),
            // After the wait there is one more, however many nodes there are.
            (&*ana, 50, 1),
            ("nobody@example.com", 50, 1),
        ] {
            if parallel == 50 {
                world.clock.advance(4 * FIRST);
            }
            let before = hashes(here) + hashes(&beside);
            let mut guesses = JoinSet::new();
            for n in 0..parallel {
                let name = name.to_owned();
                if n % 2 == 0 {
                    let client = world.node.new_connection();
                    guesses.spawn(async move { guess(&client, &name, WRONG).await.0 });
                } else {
                    let beside = Arc::clone(&beside);
                    guesses.spawn(async move { guess_beside(&beside, &name).await });
                }
            }
            let answers = guesses.join_all().await;
            let count = |reason: &str| answers.iter().filter(|answer| *answer == reason).count();
            let looked_at = hashes(here) + hashes(&beside) - before;
            println!("{parallel} guesses at once: {looked_at} looked at");
            assert!((most - 1..=most).contains(&looked_at), "{looked_at} hashes, {answers:?}");
            assert!(looked_at > 0);
            assert_eq!(count("LOGIN_FAILED") as u64, looked_at);
            assert_eq!(count("LOGIN_THROTTLED"), parallel - count("LOGIN_FAILED"), "{answers:?}");
        }
        assert_eq!((here.throttle.names(), beside.throttle.names()), (0, 0));
    }

    async fn waits_grow_and_the_right_password_is_not_looked_at_within_them(world: World) {
        let ana = world.person().await.email;
        let world = world.restarted(|config| {
            config.login_throttle = after(3);
            config.login_throttle.longest_delay_seconds = 100;
        }).await;
        let client = world.anonymous();
        for _ in 0..3 {
            assert_eq!(guess(&client, &ana, WRONG).await, failed());
        }
        for wait in [30, 60, 100, 100].map(Duration::from_secs) {
            let before = hashes(world.node.running.core());
            assert_eq!(guess(&client, &ana, PASSWORD).await, throttled(wait));
            world.clock.advance(wait - Duration::from_millis(1_500));
            assert_eq!(guess(&client, &ana, PASSWORD).await, throttled(Duration::from_secs(2)));
            assert_eq!(hashes(world.node.running.core()), before);
            world.clock.advance(Duration::from_millis(1_500));
            assert_eq!(guess(&client, &ana, WRONG).await, failed());
        }
        world.clock.advance(Duration::from_secs(100));
        world::login(&client, &ana, PASSWORD).await.unwrap();
        assert_eq!(counters(&world).await, 0);
    }

    async fn who_has_an_account_is_not_told(world: World) {
        let (ana, other) = (world.person().await, world.person().await);
        let admin = world.admin().await;
        calls::disable(&admin.client, &other.user_id).await.unwrap();
        let world = bearing(world, 2).await;
        let mut courses = Vec::new();
        for (identifier, password) in [
            (&*ana.email, WRONG),
            ("nobody7@example.com", WRONG),
            ("nobody8@example.com", PASSWORD),
            (&*other.email, PASSWORD),
        ] {
            let mut course = Vec::new();
            for step in 0..6 {
                if step == 4 {
                    world.clock.advance(FIRST);
                }
                course.push(refusal(&world, identifier, password).await);
            }
            courses.push(course);
        }
        let reasons: Vec<_> = courses[0].iter().map(|refusal| (refusal.code, refusal.hashing)).collect();
        let failed = (Code::Unauthenticated, HASH);
        let throttled = (Code::ResourceExhausted, 0);
        assert_eq!(reasons, [failed, failed, throttled, throttled, failed, throttled]);
        for course in &courses[1..] {
            assert_eq!(course, &courses[0]);
        }
    }

    async fn a_success_clears_and_costs_no_query_more(world: World) {
        let ana = world.person().await.email;
        let queries = async || {
            let id = calls::unique_id();
            let request = v1::LoginRequest {
                identifier: ana.clone(),
                password: PASSWORD.into(),
                ..Default::default()
            };
            world.anonymous().auth.login(named(&id, request)).await.unwrap();
            access_line(&id)["queries"].as_u64().unwrap()
        };
        // The account, with its failures; the transaction, begun and ended, with the
        // account's epoch, the session, those beyond the most, the event, its origin
        // and the roles.
        let usual = queries().await;
        assert_eq!(usual, 9);
        assert_eq!(counters(&world).await, 0);
        for _ in 0..2 {
            for _ in 0..4 {
                assert_eq!(guess(&world.anonymous(), &ana, WRONG).await, failed());
            }
            assert_eq!(counters(&world).await, 1);
            // Counted before it was known to be right, in a transaction of its own.
            assert_eq!(queries().await, usual + 4);
            assert_eq!(counters(&world).await, 0);
        }
        assert_eq!(queries().await, usual);
    }

    async fn neither_a_restart_nor_another_node_forgets(world: World) {
        let ana = world.person().await.email;
        let world = bearing(world, 4).await;
        for _ in 0..2 {
            assert_eq!(guess(&world.anonymous(), &ana, WRONG).await, failed());
        }
        let world = world.restarted(|_| {}).await;
        assert_eq!(guess(&world.anonymous(), &ana, WRONG).await, failed());
        let other = world.another_node().await;
        let beside = other.as_ref().map_or(world.anonymous(), Node::client);
        assert_eq!(guess(&beside, &ana, WRONG).await, failed());
        for client in [&beside, &world.anonymous()] {
            assert_eq!(guess(client, &ana, PASSWORD).await, throttled(FIRST));
        }
        drop(other);
        let world = world.restarted(|_| {}).await;
        assert_eq!(guess(&world.anonymous(), &ana, PASSWORD).await, throttled(FIRST));
    }

    async fn a_call_that_is_shed_is_not_counted(world: World) {
        let ana = world.person().await;
        let core = world.node.running.core();
        let mut held = Vec::new();
        while let Ok(ticket) = core.lanes.ticket(&Call::internal("test")) {
            held.push(ticket);
        }
        // One place is not enough for a changed password, which takes two.
        for places in [0, 1] {
            for _ in 0..10 {
                if places == 0 {
                    assert_eq!(guess(&world.anonymous(), &ana.email, WRONG).await.0, "OVERLOADED");
                }
                refused(
                    calls::change_password(&ana.client, WRONG, "another horse entirely").await,
                    Code::ResourceExhausted, "OVERLOADED",
                );
            }
            held.pop();
        }
        assert_eq!(counters(&world).await, 0);
        drop(held);
        world::login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
    }

    async fn a_clock_that_is_set_back_lets_nobody_in_early_and_keeps_nobody_out(world: World) {
        let ana = world.person().await.email;
        let world = bearing(world, 2).await;
        let client = world.anonymous();
        for _ in 0..2 {
            assert_eq!(guess(&client, &ana, WRONG).await, failed());
        }
        world.clock.step(SignedDuration::from_hours(-24));
        assert_eq!(guess(&client, &ana, PASSWORD).await, throttled(FIRST));
        world.clock.advance(FIRST - Duration::from_secs(1));
        assert_eq!(guess(&client, &ana, PASSWORD).await, throttled(Duration::from_secs(1)));
        world.clock.advance(Duration::from_secs(1));
        world::login(&client, &ana, PASSWORD).await.unwrap();
    }

    async fn after_the_last_failure_somebody_has_to_reset_it(world: World) {
        let admin = world.admin().await;
        let (ana, ben) = (world.person().await, world.person().await);
        calls::rename(&admin.client, &ana.user_id, "ana.lima").await;
        let world = world.restarted(|config| {
            config.login_throttle = after(2);
            config.login_throttle.failures_before_reset = 4;
        }).await;
        let client = world.anonymous();
        let lock = async |name: &str| {
            for wait in [0, 0, 30, 60].map(Duration::from_secs) {
                world.clock.advance(wait);
                assert_eq!(guess(&client, name, WRONG).await, failed());
            }
            world.clock.advance(Duration::from_secs(10 * 24 * 3600));
            let (reason, wait) = guess(&client, name, PASSWORD).await;
            assert_eq!(reason, "LOGIN_THROTTLED");
            assert!(wait > Some(Duration::from_secs(300 * 24 * 3600)), "{wait:?}");
        };
        for name in [&*ana.email, "ana.lima", &*ben.email, "nobody@example.com"] {
            lock(name).await;
        }
        let admin = client_of(&world, &admin.email).await;
        calls::unlock(&admin, &ana.user_id).await.unwrap();
        world::login(&client, &ana.email, PASSWORD).await.unwrap();
        world::login(&client, "ana.lima", PASSWORD).await.unwrap();
        let new = "another horse entirely, thanks";
        calls::set_password(&admin, &ben.user_id, new).await.unwrap();
        world::login(&client, &ben.email, new).await.unwrap();
        // No more than its own.
        assert_eq!(guess(&client, "nobody@example.com", WRONG).await.0, "LOGIN_THROTTLED");
    }

    async fn changing_the_password_is_guessing_too_on_a_count_of_its_own(world: World) {
        let (ana, admin) = (world.person().await, world.admin().await);
        let world = bearing(world, 3).await;
        let person = client_of(&world, &ana.email).await;
        let admin = client_of(&world, &admin.email).await;
        let new = "another horse entirely, thanks";
        let change = async |current: &str| calls::change_password(&person, current, new).await;
        let fail = async || {
            for _ in 0..3 {
                refused(change(WRONG).await, Code::PermissionDenied, "CURRENT_PASSWORD_INCORRECT");
            }
            let before = hashes(world.node.running.core());
            assert_eq!(told(&change(PASSWORD).await.unwrap_err()), throttled(FIRST));
            assert_eq!(hashes(world.node.running.core()), before);
        };
        fail().await;
        // Under another name it is the same account.
        calls::rename(&person, &ana.user_id, "ana.lima").await;
        assert_eq!(told(&change(PASSWORD).await.unwrap_err()), throttled(FIRST));
        calls::unlock(&admin, &ana.user_id).await.unwrap();
        fail().await;
        // What strangers try keeps nobody from it who is logged in.
        for _ in 0..3 {
            assert_eq!(guess(&world.anonymous(), &ana.email, WRONG).await, failed());
        }
        world.clock.advance(FIRST - Duration::from_secs(1));
        guess(&world.anonymous(), &ana.email, WRONG).await;
        world.clock.advance(Duration::from_secs(1));
        assert_eq!(guess(&world.anonymous(), &ana.email, WRONG).await, failed());
        change(PASSWORD).await.unwrap();
        assert_eq!(counters(&world).await, 0);
        world::login(&world.anonymous(), &ana.email, new).await.unwrap();
    }

    async fn a_rename_begins_no_new_count(world: World) {
        let (ana, ben) = (world.person().await, world.person().await);
        let world = bearing(world, 3).await;
        let person = client_of(&world, &ana.email).await;
        for _ in 0..3 {
            assert_eq!(guess(&world.anonymous(), &ana.email, WRONG).await, failed());
        }
        // One that was counted under already keeps the greater count.
        assert_eq!(guess(&world.anonymous(), "ana.lima", WRONG).await, failed());
        for name in ["ana.lima", "lima.ana"] {
            calls::rename(&person, &ana.user_id, name).await;
            assert_eq!(guess(&world.anonymous(), name, PASSWORD).await, throttled(FIRST));
        }
        assert_eq!(guess(&world.anonymous(), &ana.email, PASSWORD).await, throttled(FIRST));
        let person = client_of(&world, &ben.email).await;
        calls::rename(&person, &ben.user_id, "ben").await;
        world::login(&world.anonymous(), "ben", PASSWORD).await.unwrap();
    }

    async fn a_new_account_begins_with_no_failures(world: World) {
        let admin = world.admin().await;
        let world = bearing(world, 2).await;
        let admin = client_of(&world, &admin.email).await;
        let fail = async |name: &str| {
            for _ in 0..2 {
                assert_eq!(guess(&world.anonymous(), name, WRONG).await, failed());
            }
            assert_eq!(guess(&world.anonymous(), name, PASSWORD).await, throttled(FIRST));
        };
        for name in ["cleo@example.com", "cleo", "dora@example.com"] {
            fail(name).await;
        }
        let request = v1::RegisterRequest {
            email: "cleo@example.com".into(),
            username: "cleo".into(),
            password: PASSWORD.into(),
            ..Default::default()
        };
        calls::register(&world.anonymous(), request).await.unwrap();
        let request = v1::CreateUserRequest {
            email: "dora@example.com".into(),
            password: PASSWORD.into(),
            ..Default::default()
        };
        admin.clone().users.create_user(request).await.unwrap();
        for name in ["cleo@example.com", "cleo", "dora@example.com"] {
            world::login(&world.anonymous(), name, PASSWORD).await.unwrap();
        }
        assert_eq!(counters(&world).await, 0);
    }

    async fn whoever_tries_one_name_leaves_places_for_the_others(world: World) {
        let (ana, ben) = (world.person().await.email, world.person().await.email);
        let world = world.restarted(|config| {
            config.hashing.queue = 14;
            config.limits.concurrency.hash = 64;
        }).await;
        let lock = Lock::take(&world.database).await;
        let mut guesses = JoinSet::new();
        for _ in 0..12 {
            let (client, ana) = (world.node.new_connection(), ana.clone());
            guesses.spawn(async move { guess(&client, &ana, WRONG).await });
        }
        // Half as many as there are places wait for the first one's failure to be written.
        for _ in 0..4 {
            let shed = guesses.join_next().await.unwrap().unwrap();
            assert_eq!(shed, ("OVERLOADED".to_owned(), Some(Duration::from_secs(1))));
        }
        lock.release().await;
        world::login(&world.anonymous(), &ben, PASSWORD).await.unwrap();
        for answer in guesses.join_all().await {
            assert_eq!(answer, failed());
        }
    }

    async fn strangers_do_not_shut_out_a_known_device(world: World) {
        let (ana, ben) = (world.person().await, world.person().await.email);
        let (ana, id, admin) = (ana.email, ana.user_id, world.admin().await.email);
        let world = bearing(world, 3).await;
        let login = async |world: &World, name: &str, password: &str, device_token: &str| {
            let request = v1::LoginRequest {
                identifier: name.into(),
                password: password.into(),
                device_token: device_token.into(),
                ..Default::default()
            };
            let reply = world.anonymous().auth.login(request).await;
            reply.map(|reply| reply.into_inner().device_token).map_err(|status| told(&status))
        };
        let anas = login(&world, &ana, PASSWORD, "").await.unwrap();
        let bens = login(&world, &ben, PASSWORD, "").await.unwrap();
        let another = login(&world, &ana, PASSWORD, &bens).await.unwrap();
        assert!(anas.starts_with("csd_") && anas.len() == bens.len() && anas != another);
        for _ in 0..3 {
            assert_eq!(login(&world, &ana, WRONG, "").await, Err(failed()));
        }
        assert_eq!(login(&world, &ana, PASSWORD, "").await, Err(throttled(FIRST)));
        // Her own gets her in, and is hers on; neither does another's or none of ours.
        assert_eq!(login(&world, &ana, PASSWORD, &anas).await, Ok(anas.clone()));
        for not_hers in [&bens, &anas[..anas.len() - 1], "csd_", &anas.replace("csd_", "csr_")] {
            assert_eq!(login(&world, &ana, PASSWORD, not_hers).await, Err(throttled(FIRST)));
        }
        // It has its own count, under each of its owner's names and no other, also
        // on a node that was started since.
        assert_eq!(login(&world, "nobody@example.com", PASSWORD, &anas).await, Err(failed()));
        for _ in 0..2 {
            assert_eq!(login(&world, &ana, WRONG, &anas).await, Err(failed()));
        }
        let world = world.restarted(|_| {}).await;
        assert_eq!(login(&world, &ana, WRONG, &anas).await, Err(failed()));
        assert_eq!(login(&world, &ana, PASSWORD, &anas).await, Err(throttled(FIRST)));
        login(&world, &ana, PASSWORD, &another).await.unwrap();
        // What helps those without a device helps one that has to wait.
        let admin = client_of(&world, &admin).await;
        calls::unlock(&admin, &id).await.unwrap();
        assert_ne!(login(&world, &ana, PASSWORD, &anas).await.unwrap(), anas);
        world.clock.advance(FIRST);
        assert_eq!(login(&world, &ana, PASSWORD, &anas).await, Ok(anas.clone()));
        assert_eq!(counters(&world).await, 1, "of nobody's address");
        // It ends with the sessions of its time.
        let new = "another horse entirely, thanks";
        calls::set_password(&admin, &id, new).await.unwrap();
        for _ in 0..3 {
            assert_eq!(login(&world, &ana, WRONG, &anas).await, Err(failed()));
        }
        assert_eq!(login(&world, &ana, new, &anas).await, Err(throttled(FIRST)));
        // It opens nothing.
        refused(
            calls::get_user(&world.anonymous().with_token(&anas), "").await,
            Code::Unauthenticated, "TOKEN_INVALID",
        );
    }

    async fn refusals_are_recorded_once_for_each_wait(world: World) {
        let ana = world.person().await;
        let world = bearing(world, 2).await;
        let recorded = async || {
            let events = "SELECT outcome || ' ' || count(*) || ' ' || count(subject) FROM audit_events \
                          WHERE action = 'session.login_throttled' GROUP BY outcome";
            world.query(events).await.concat()
        };
        for name in [&*ana.email, "nobody@example.com"] {
            guess(&world.anonymous(), name, WRONG).await;
            guess(&world.anonymous(), name, WRONG).await;
        }
        assert_eq!(recorded().await, "");
        let line = calls::unique_id();
        for _ in 0..10 {
            let request = v1::LoginRequest {
                identifier: ana.email.clone(),
                password: PASSWORD.into(),
                ..Default::default()
            };
            world.anonymous().auth.login(named(&line, request)).await.unwrap_err();
        }
        assert_eq!(recorded().await, "failure 1 1");
        // Once it is recorded, a refusal costs a look at the counter.
        let line = access_line(&line);
        assert_eq!((&line["queries"], &line["reason"]), (&1.into(), &"LOGIN_THROTTLED".into()));
        assert_eq!(guess(&world.anonymous(), "nobody@example.com", WRONG).await, throttled(FIRST));
        assert_eq!(recorded().await, "failure 2 1");
        world.clock.advance(FIRST);
        assert_eq!(guess(&world.anonymous(), &ana.email, WRONG).await, failed());
        for _ in 0..3 {
            assert_eq!(guess(&world.anonymous(), &ana.email, WRONG).await, throttled(2 * FIRST));
        }
        assert_eq!(recorded().await, "failure 3 2");
    }

    async fn what_is_over_is_forgotten(world: World) {
        let ana = world.person().await.email;
        let world = bearing(world, 2).await;
        let sweep = async || {
            let core = world.node.running.core().clone();
            let janitor = Janitor::new(core, Duration::from_secs(60));
            janitor.sweep(&CancellationToken::new()).await.unwrap();
            counters(&world).await
        };
        guess(&world.anonymous(), "nobody@example.com", WRONG).await;
        for _ in 0..2 {
            assert_eq!(guess(&world.anonymous(), &ana, WRONG).await, failed());
        }
        let month = Duration::from_secs(30 * 24 * 3600);
        world.clock.advance(month - Duration::from_secs(1));
        assert_eq!(sweep().await, 2);
        world.clock.advance(Duration::from_secs(1));
        assert_eq!(sweep().await, 1, "the other has had a wait");
        world.clock.advance(FIRST);
        assert_eq!(sweep().await, 0);
        for _ in 0..2 {
            assert_eq!(guess(&world.anonymous(), &ana, WRONG).await, failed());
        }
    }
}

/// Only there can a test hold up the one connection that writes and no reads.
mod sqlite {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_failure_counts_however_late_it_is() {
        let world = World::with(Kind::Sqlite, |config| {
            config.database.acquire_timeout_ms = 10_000;
            config.database.query_timeout_ms = 20_000;
        })
        .await;
        let ana = world.person().await;
        let patience = Duration::from_millis(300);
        let mut login = Request::new(v1::LoginRequest {
            identifier: ana.email.clone(),
            password: WRONG.into(),
            ..Default::default()
        });
        login.set_timeout(patience);
        let mut change = Request::new(v1::ChangePasswordRequest {
            current_password: WRONG.into(),
            new_password: "another horse entirely, thanks".into(),
        });
        change.set_timeout(patience);
        let store = world.node.running.core().store.clone();
        let (held, holds) = oneshot::channel();
        let (release, released) = oneshot::channel::<()>();
        let writer = tokio::spawn(async move {
            let call = Call::internal("test");
            let written = store.write(&call, async |_| {
                held.send(()).unwrap();
                released.await.unwrap();
                Ok(())
            });
            written.await.map(drop)
        });
        holds.await.unwrap();
        let (mut anonymous, mut anas) = (world.node.new_connection(), ana.client.clone());
        let late = tokio::join!(
            anonymous.auth.login(login),
            anas.auth.change_password(change)
        );
        late.0.unwrap_err();
        late.1.unwrap_err();
        // Here their clients have given up, and there the service soon after.
        tokio::time::sleep(patience).await;
        assert_eq!(counters(&world).await, 0);
        release.send(()).unwrap();
        writer.await.unwrap().unwrap();
        eventually("they are counted", async || counters(&world).await == 2).await;
    }
}
