//! New passwords are looked up in a list of breached ones, where one is set: what
//! it is told, what it changes, and what becomes of them when it does not answer.

use std::{collections::BTreeMap, time::Duration};

use countersign::{breach_list::OnFailure, domain::Call};
use countersign_proto::v1;
use tokio::task::JoinSet;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::{
    harness::{
        Client, Kind, World,
        binary::{self, Program},
        breach_list::{Answer, BreachList, sha1},
        calls::{self, named, register, unique_id},
        eventually, logs, refused,
        world::{PASSWORD, login},
    },
    on_both,
};

/// Good in every other way.
const BREACHED: &str = "velvet otter parliament 6";
const GOOD: &str = "another horse entirely, thanks";

fn registration(email: &str, password: &str) -> v1::RegisterRequest {
    v1::RegisterRequest {
        email: email.to_owned(),
        password: password.to_owned(),
        ..Default::default()
    }
}

async fn create(client: &Client, email: &str, password: &str) -> Result<(), Status> {
    let request = v1::CreateUserRequest {
        email: email.to_owned(),
        password: password.to_owned(),
        ..Default::default()
    };
    client.clone().users.create_user(request).await.map(drop)
}

/// The refusal of a breached password, of this field, for programs and people.
#[track_caller]
fn breached<T: std::fmt::Debug>(result: Result<T, Status>, field: &str) {
    let details = result.as_ref().expect_err("refused").get_error_details();
    let violations = &details.bad_request().expect("violations").field_violations;
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert_eq!(violations[0].field, field);
    assert_eq!(violations[0].reason, "PASSWORD_BREACHED");
    assert!(violations[0].description.contains("known from a breach"));
    refused(result, Code::InvalidArgument, "INVALID_REQUEST");
}

/// The failure of a call that needs the list.
#[track_caller]
fn unavailable<T: std::fmt::Debug>(result: Result<T, Status>) {
    let details = result.as_ref().expect_err("refused").get_error_details();
    let metadata = &details.error_info().expect("ErrorInfo").metadata;
    let metadata: BTreeMap<_, _> = metadata.iter().collect();
    assert_eq!(metadata[&"dependency".to_owned()], "breach_list");
    assert!(refused(result, Code::Unavailable, "DEPENDENCY_UNAVAILABLE").retry);
}

/// The world with a node that asks the list.
async fn asking(world: World, list: &BreachList, on_failure: OnFailure) -> World {
    let url = list.url.clone();
    world
        .restarted(|config| {
            config.breached_passwords.url = url;
            config.breached_passwords.on_failure = on_failure;
        })
        .await
}

on_both! {
    async fn a_breached_password_is_refused_wherever_one_is_set(world: World) {
        let list = BreachList::start(&[(BREACHED, 3)]).await;
        register(&world.anonymous(), registration("old@example.com", BREACHED)).await.unwrap();
        let world = asking(world, &list, OnFailure::Accept).await;
        let (admin, ana) = (world.admin().await, world.person().await);
        assert_eq!(list.asked(), [list.question(PASSWORD), list.question(PASSWORD)]);

        let before = world.node.running.core().lanes.work();
        breached(register(&world.anonymous(), registration("new@example.com", BREACHED)).await, "password");
        breached(create(&admin.client, "new@example.com", BREACHED).await, "password");
        breached(calls::change_password(&ana.client, PASSWORD, BREACHED).await, "new_password");
        breached(calls::set_password(&admin.client, &ana.user_id, BREACHED).await, "password");
        assert_eq!(world.node.running.core().lanes.work(), before, "a refusal costs no hash");
        let asked = list.asked();
        assert_eq!(asked[2..], vec![list.question(BREACHED); 4]);

        // Nothing has happened, and a password that is not known does it.
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        create(&admin.client, "new@example.com", GOOD).await.unwrap();
        register(&world.anonymous(), registration("newer@example.com", GOOD)).await.unwrap();
        calls::change_password(&ana.client, PASSWORD, GOOD).await.unwrap();
        calls::set_password(&admin.client, &ana.user_id, PASSWORD).await.unwrap();
        let asked = list.asked().len();

        // What is too short or common is not even asked about, and whoever logs
        // in is not asked about at all.
        for bad in ["short", "password1234567"] {
            let failed = register(&world.anonymous(), registration("bad@example.com", bad)).await;
            refused(failed, Code::InvalidArgument, "INVALID_REQUEST");
        }
        login(&world.anonymous(), "old@example.com", BREACHED).await.unwrap();
        login(&world.anonymous(), "old@example.com", PASSWORD).await.unwrap_err();
        assert_eq!(list.asked().len(), asked);
        let (_, shown) = binary::get(world.node.http, "/metrics").await;
        for outcome in ["breached", "clear"] {
            assert!(shown.contains(&format!("countersign_breach_list_checks_total{{outcome=\"{outcome}\"}}")));
        }
    }

    async fn padding_is_no_hit_and_rare_ones_may_be_taken(world: World) {
        let list = BreachList::start(&[(BREACHED, 0), ("seen nine times over", 9), ("seen ten times over!", 10)]).await;
        let world = asking(world, &list, OnFailure::Refuse).await;
        register(&world.anonymous(), registration("padding@example.com", BREACHED)).await.unwrap();
        breached(register(&world.anonymous(), registration("nine@example.com", "seen nine times over")).await, "password");
        let world = world.restarted(|config| config.breached_passwords.least_count = 10).await;
        register(&world.anonymous(), registration("nine@example.com", "seen nine times over")).await.unwrap();
        breached(register(&world.anonymous(), registration("ten@example.com", "seen ten times over!")).await, "password");
    }

    async fn a_list_that_does_not_answer_accepts_or_refuses(world: World) {
        let list = BreachList::start(&[(BREACHED, 3)]).await;
        let line = "0018A45C4D1DEF81644B54AB7F969B88D65:21\r\n";
        let bad = [
            Answer::Status(500),
            // Not followed.
            Answer::Status(302),
            Answer::Status(404),
            Answer::Text(String::new()),
            Answer::Text("<html>Log in to the network</html>".to_owned()),
            Answer::Text(format!("{line}{}:x", &sha1(BREACHED)[5..])),
            // Legal, and too much of it.
            Answer::Text(line.repeat(1024 * 1024 / line.len() + 1)),
            Answer::Silence,
        ];
        let mut world = world;
        for on_failure in [OnFailure::Accept, OnFailure::Refuse] {
            world = asking(world, &list, on_failure).await;
            world = world.restarted(|config| config.breached_passwords.timeout_ms = 500).await;
            for (number, answer) in bad.iter().enumerate() {
                let asked = list.asked().len();
                list.answer(answer.clone());
                let (email, id) = (world.new_email(), unique_id());
                let request = named(&id, registration(&email, BREACHED));
                let result = world.anonymous().auth.register(request).await;
                assert_eq!(list.asked().len(), asked + 1, "{number}");
                list.answer(Answer::Range);
                if on_failure == OnFailure::Accept {
                    result.unwrap_or_else(|status| panic!("{number}: {status:?}"));
                    login(&world.anonymous(), &email, BREACHED).await.unwrap();
                } else {
                    unavailable(result);
                    // Nothing has happened. This also keeps the breaker closed.
                    register(&world.anonymous(), registration(&email, GOOD)).await.unwrap();
                }
                // The log says why, and not what was asked.
                let lines: Vec<_> = logs::lines().into_iter().filter(|line| line.contains(&id)).collect();
                assert!(lines.iter().any(|line| line.contains("the breach list")), "{lines:#?}");
                for line in lines {
                    assert!(!line.contains(&sha1(BREACHED)[..5]) && !line.contains(&sha1(BREACHED)[5..]), "{line}");
                }
                // Successes between keep the breaker closed.
                breached(register(&world.anonymous(), registration("x@example.com", BREACHED)).await, "password");
            }
        }
    }

    async fn nothing_is_held_while_the_list_is_asked(world: World) {
        let list = BreachList::start(&[]).await;
        let world = asking(world, &list, OnFailure::Refuse).await;
        let world = world
            .restarted(|config| {
                config.database.max_connections = 1;
                config.hashing.lanes = 1;
                config.hashing.queue = 1;
                config.breached_passwords.timeout_ms = 20_000;
            })
            .await;
        let (admin, ana) = (world.admin().await, world.person().await);
        list.answer(Answer::Silence);
        let (before, mut waiting) = (list.asked().len(), JoinSet::new());
        for number in 0..3 {
            let (client, email) = (world.anonymous(), format!("held{number}@example.com"));
            waiting.spawn(async move { register(&client, registration(&email, GOOD)).await.map(drop) });
        }
        let client = ana.client.clone();
        waiting.spawn(async move { calls::change_password(&client, PASSWORD, GOOD).await.map(drop) });
        let (client, id) = (admin.client.clone(), ana.user_id.clone());
        waiting.spawn(async move { calls::set_password(&client, &id, GOOD).await });
        let client = admin.client.clone();
        waiting.spawn(async move { create(&client, "held@example.com", GOOD).await });
        eventually("all of them are asked about", async || list.asked().len() == before + 6).await;

        let core = world.node.running.core();
        let tickets: Vec<_> = (0..core.lanes.capacity()).map(|_| core.lanes.ticket(&Call::internal("test"))).collect();
        assert!(tickets.iter().all(Result::is_ok), "a ticket is held");
        drop(tickets);
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        calls::disable(&admin.client, &ana.user_id).await.unwrap();
        waiting.shutdown().await;
    }

    async fn the_command_line_looks_too(program: Program) {
        let list = BreachList::start(&[(BREACHED, 3)]).await;
        let program = program
            .set("COUNTERSIGN_BREACHED_PASSWORDS__URL", &list.url)
            .set("COUNTERSIGN_BREACHED_PASSWORDS__ON_FAILURE", "refuse");
        let create = ["user", "create", "--email", "ana@example.com", "--password-stdin"];
        let (error, program) = blocking(program, move |program| program.fail(&create, BREACHED)).await;
        assert!(error.contains("password must not be a password that is known from a breach"), "{error}");
        let (_, program) = blocking(program, move |program| program.succeed(&create, GOOD)).await;
        let set = ["user", "set-password", "ana@example.com", "--password-stdin"];
        let (error, program) = blocking(program, move |program| program.fail(&set, BREACHED)).await;
        assert!(error.contains("known from a breach"), "{error}");
        list.answer(Answer::Status(503));
        let (error, _) = blocking(program, move |program| program.fail(&set, PASSWORD)).await;
        assert!(error.contains("breach list"), "{error}");
        assert_eq!(list.asked().len(), 4);
    }
}

/// Runs what blocks, where the list goes on answering.
async fn blocking<T: Send + 'static>(
    program: Program,
    act: impl FnOnce(&Program) -> T + Send + 'static,
) -> (T, Program) {
    let run = tokio::task::spawn_blocking(move || (act(&program), program));
    run.await.expect("a result")
}

// The breaker and TLS have nothing to do with the database: these run on one.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_silent_is_left_alone_until_it_is_back() {
    let list = BreachList::start(&[(BREACHED, 3)]).await;
    let world = World::with(Kind::Sqlite, |config| {
        config.breached_passwords.url = list.url.clone();
        config.breached_passwords.on_failure = OnFailure::Refuse;
        config.breached_passwords.timeout_ms = 100;
    })
    .await;
    list.answer(Answer::Silence);
    let attempt = async || {
        let request = registration(&world.new_email(), BREACHED);
        register(&world.anonymous(), request).await
    };
    for _ in 0..5 {
        unavailable(attempt().await);
    }
    assert_eq!(list.asked().len(), 5);
    for _ in 0..5 {
        unavailable(attempt().await);
    }
    assert_eq!(
        list.asked().len(),
        5,
        "it is asked while the breaker is open"
    );

    list.answer(Answer::Range);
    eventually("the list is asked again", async || {
        let status = attempt().await.expect_err("refused");
        status.code() == Code::InvalidArgument
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_password_that_was_not_looked_up_has_a_line() {
    let list = BreachList::start(&[]).await;
    let world = World::with(Kind::Sqlite, |config| {
        config.breached_passwords.url = list.url.clone();
    })
    .await;
    list.answer(Answer::Status(503));
    for number in 0..8 {
        let id = unique_id();
        let request = registration(&world.new_email(), GOOD);
        let mut auth = world.anonymous().auth;
        auth.register(named(&id, request)).await.unwrap();
        let lines = logs::lines().into_iter();
        let mut lines = lines.filter(|line| line.contains(&id) && line.contains("not looked up"));
        let line = lines.next().expect("a line");
        if number >= 5 {
            assert!(line.contains("the breaker is open"), "{line}");
        }
    }
    assert_eq!(list.asked().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_in_a_hurry_opens_no_breaker() {
    let list = BreachList::start(&[]).await;
    let world = World::with(Kind::Sqlite, |config| {
        config.breached_passwords.url = list.url.clone();
        config.breached_passwords.timeout_ms = 20_000;
    })
    .await;
    list.answer(Answer::Silence);
    for number in 0..10 {
        let mut request = Request::new(registration(&world.new_email(), GOOD));
        request.set_timeout(Duration::from_millis(300));
        // Whether the client or the node is first to say so.
        let failed = world.anonymous().auth.register(request).await;
        failed.unwrap_err();
        eventually("it was asked", async || list.asked().len() == number + 1).await;
    }
    list.answer(Answer::Range);
    let request = registration(&world.new_email(), GOOD);
    register(&world.anonymous(), request).await.unwrap();
    assert_eq!(list.asked().len(), 11, "the breaker is open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_nobody_certifies_is_told_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (
        folder.path().join("own.pem"),
        folder.path().join("other.pem"),
    );
    let list = BreachList::start_with_tls(&[(BREACHED, 3)], &own).await;
    let _other = BreachList::start_with_tls(&[], &other).await;
    for (file, trusted) in [(None, false), (Some(other), false), (Some(own), true)] {
        let world = World::with(Kind::Sqlite, |config| {
            config.breached_passwords.url = list.url.clone();
            config.breached_passwords.ca_file = file;
            config.breached_passwords.on_failure = OnFailure::Refuse;
        })
        .await;
        let asked = list.asked().len();
        let result = register(
            &world.anonymous(),
            registration("ana@example.com", BREACHED),
        )
        .await;
        if trusted {
            breached(result, "password");
            assert_eq!(list.asked(), [list.question(BREACHED)]);
        } else {
            unavailable(result);
            assert_eq!(list.asked().len(), asked);
        }
    }
}
