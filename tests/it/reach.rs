//! What one node does, every validator hears: many of them, over two nodes, and
//! with something broken. On PostgreSQL, as a SQLite file is served by one node.

use std::{sync::Arc, time::Duration};

use countersign_proto::v1;
use tokio::time::Instant;

use crate::harness::{
    Client, Fault, Kind, Node, Person, Proxy, World,
    calls::validates,
    database, eventually,
    sidecar::Sidecar,
    validator::{Validator, all_decide},
};

const WATCH: &str = "countersign.trust.watch";

/// The promise is a second; a busy machine gets more.
const SOON: Duration = Duration::from_secs(5);

/// A world with two nodes that have room for so many validators.
async fn two_nodes() -> (World, Node) {
    let world = World::with(Kind::Postgres, |config| {
        config.limits.concurrency.stream = 4_096;
    })
    .await;
    let other = world.another_node().await.expect("a second node");
    (world, other)
}

/// Validators that have heard a first state.
async fn follow(world: &World, count: usize, nodes: &[String], token: &str) -> Vec<Validator> {
    let validators: Vec<_> = (0..count)
        .map(|_| Validator::follow(&world.clock, nodes, token))
        .collect();
    eventually("all know something", async || {
        validators.iter().all(|it| it.verifier.state().is_some())
    })
    .await;
    validators
}

async fn watcher(world: &World) -> String {
    let watcher = world.person_who_may(&[WATCH]).await;
    watcher.tokens.access_token
}

async fn log_out(client: &Client, person: &Person) {
    let mut client = client.with_token(&person.tokens.access_token);
    let request = v1::LogoutRequest::default();
    client.auth.logout(request).await.expect("logs out");
}

/// Ends a session on a node and waits until all validators refuse its token.
async fn revoke(node: &Node, person: &Person, validators: &[Validator]) -> Vec<Duration> {
    all_decide(validators, person, true, Instant::now()).await;
    let sent = Instant::now();
    log_out(&node.client(), person).await;
    all_decide(validators, person, false, sent).await
}

async fn kill_listeners(world: &World) {
    let killed = world
        .query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND query ILIKE 'LISTEN%'",
        )
        .await;
    assert_eq!(killed, ["t", "t"], "one of each node");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_validators_and_three_sidecars_hear_of_every_revocation() {
    let (world, other) = two_nodes().await;
    let token = watcher(&world).await;
    let mut validators = follow(&world, 100, &[world.node.address.to_string()], &token).await;
    validators.extend(follow(&world, 100, &[other.address.to_string()], &token).await);
    let sidecars = [
        Sidecar::start(&world, &[&world.node], &token).await,
        Sidecar::start(&world, &[&other], &token).await,
        Sidecar::start(&world, &[&world.node, &other], &token).await,
    ];
    let mut times = Vec::new();
    for _ in 0..8 {
        let person = world.person().await;
        times.extend(revoke(&world.node, &person, &validators).await);
        for sidecar in &sidecars {
            let client = sidecar.client();
            eventually("the sidecar refuses", async || {
                !validates(&client, &person.tokens.access_token).await
            })
            .await;
        }
    }
    times.sort_unstable();
    let [.., slowest] = &times[..] else {
        panic!("nobody heard")
    };
    println!(
        "{} times heard: median {:?}, slowest {slowest:?}",
        times.len(),
        times[times.len() / 2]
    );
    assert!(*slowest < SOON, "{slowest:?}");

    // Nobody who is told tells: it is heard by looking for it.
    kill_listeners(&world).await;
    let person = world.person().await;
    revoke(&world.node, &person, &validators).await;

    // Offline they know what they knew.
    let [living, gone] = [world.person().await, world.person().await];
    revoke(&world.node, &gone, &validators).await;
    all_decide(&validators, &living, true, Instant::now()).await;
    for node in [&world.node, &other] {
        node.running.process().abort();
    }
    for mut sidecar in sidecars {
        let refuses = sidecar.client();
        eventually("the sidecar refuses", async || {
            !validates(&refuses, &gone.tokens.access_token).await
        })
        .await;
        sidecar.stop().await;
        sidecar.resume().await;
        let client = sidecar.client();
        assert!(!validates(&client, &gone.tokens.access_token).await);
        assert!(validates(&client, &living.tokens.access_token).await);
    }
    assert!(
        validators
            .iter()
            .all(|it| it.accepts(&living) && !it.accepts(&gone))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_cut_off_from_one_node_hears_from_another() {
    let (world, other) = two_nodes().await;
    let token = watcher(&world).await;
    let line = Proxy::before(&format!("http://{}", world.node.address)).await;
    let cut = format!("127.0.0.1:{}", line.port);
    let both = [cut.clone(), other.address.to_string()];
    let lucky = follow(&world, 10, &both, &token).await;
    let alone = follow(&world, 10, &[cut], &token).await;
    line.make(Fault::Silent);
    let [one, two] = [world.person().await, world.person().await];
    log_out(&world.anonymous(), &one).await;
    all_decide(&lucky, &one, false, Instant::now()).await;
    // It decides by what it knows.
    assert!(alone.iter().all(|it| it.accepts(&one)));
    revoke(&other, &two, &lucky).await;
    line.make(Fault::None);
    for gone in [&one, &two] {
        all_decide(&alone, gone, false, Instant::now()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_tells_what_was_missed() {
    let (mut world, other) = two_nodes().await;
    let token = watcher(&world).await;
    let address = other.address.to_string();
    let validators = follow(&world, 20, std::slice::from_ref(&address), &token).await;
    let [missed, later] = [world.person().await, world.person().await];
    other.ended().await;
    log_out(&world.anonymous(), &missed).await;
    assert!(validators.iter().all(|it| it.accepts(&missed)));
    world.config.listen.address = address;
    let again = world.another_node().await.expect("a second node");
    all_decide(&validators, &missed, false, Instant::now()).await;
    revoke(&again, &later, &validators).await;
}

/// The transaction that began first ends last. Were its number the smaller one,
/// whoever had read the larger one by then would never look at it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_in_another_order_are_all_heard() {
    let line = Proxy::before(&database::cluster_url()).await;
    let mut world = World::with(Kind::Postgres, |config| {
        config.database.url = line.url(&config.database.url);
    })
    .await;
    world.config.database.url.clone_from(&world.database.url);
    let other = world.another_node().await.expect("a second node");
    let token = watcher(&world).await;
    let nodes = [&world.node, &other].map(|node| vec![node.address.to_string()]);
    let validators = [
        follow(&world, 1, &nodes[0], &token).await,
        follow(&world, 1, &nodes[1], &token).await,
    ];
    for round in 0..4 {
        let [slow, quick] = [world.person().await, world.person().await];
        line.make(Fault::HoldsCommit(Duration::from_millis(200)));
        let held = line.held();
        let (client, late) = (world.anonymous(), slow.clone());
        let late = tokio::spawn(async move { log_out(&client, &late).await });
        eventually("its COMMIT is held", async || line.held() > held).await;
        log_out(&other.client(), &quick).await;
        late.await.unwrap();
        line.make(Fault::None);
        for validators in &validators {
            for gone in [&slow, &quick] {
                all_decide(validators, gone, false, Instant::now()).await;
            }
        }
        println!("round {round}: both are heard by both");
    }
}

/// Nobody but the node itself is asked about anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validator_makes_no_call_for_what_it_is_shown() {
    let (world, _other) = two_nodes().await;
    let token = watcher(&world).await;
    let line = Proxy::before(&format!("http://{}", world.node.address)).await;
    let nodes = [format!("127.0.0.1:{}", line.port)];
    let [validator] = &follow(&world, 1, &nodes, &token).await[..] else {
        panic!("one")
    };
    let person = world.person().await;
    let verifier = Arc::clone(&validator.verifier);
    let (connections, _) = line.traffic();
    for i in 0..5_000_u32 {
        let unknown = format!("eyJhbGciOiJFZERTQSIsImtpZCI6ImsrNz{i}In0.e30.AAAA");
        verifier.verify(&unknown, None).unwrap_err();
        let key = countersign_verifier::api_key_text(&{
            let mut bytes = [7; 24];
            bytes[..4].copy_from_slice(&i.to_be_bytes());
            bytes
        });
        verifier.verify(&key, None).unwrap_err();
        verifier.verify(&person.tokens.access_token, None).unwrap();
    }
    assert_eq!(line.traffic().0, connections);
    assert_eq!(
        validator
            .counts
            .streams
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
}
