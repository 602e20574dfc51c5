//! Rotations with two nodes. On PostgreSQL, as a SQLite file is served by one.

use countersign_verifier::Verifier;

use super::*;
use crate::harness::{Fault, Proxy, sidecar::Sidecar, validator::Validator};

async fn two(adjust: impl FnOnce(&mut countersign::config::Config)) -> (World, Node) {
    let world = World::with(Kind::Postgres, adjust).await;
    let other = world.another_node().await.expect("a second node");
    let told = async || world.query("SELECT count(*) FROM nodes").await == ["2"];
    eventually("both have told of themselves", told).await;
    (world, other)
}

/// Logs in and validates, over and over, while something else is done.
#[derive(Clone)]
struct Load {
    over: CancellationToken,
    tokens: Arc<Mutex<Vec<String>>>,
    failures: Arc<Mutex<Vec<String>>>,
}

/// Of all kinds.
#[derive(Clone)]
struct Validators {
    /// Two nodes and a sidecar.
    clients: [Client; 3],
    in_process: Arc<Verifier>,
}

impl Load {
    /// What one node mints, all must know at once.
    async fn mint(self, person: Person, minter: Client, validators: Validators) {
        while !self.over.is_cancelled() {
            match world::login(&minter, &person.email, PASSWORD).await {
                Ok(pair) => {
                    self.check(&pair.access_token, &validators).await;
                    self.tokens.lock().unwrap().push(pair.access_token);
                }
                Err(status) => self
                    .failures
                    .lock()
                    .unwrap()
                    .push(format!("login: {status:?}")),
            }
        }
    }

    /// Whatever was minted is good to its end.
    async fn validate(self, validators: Validators) {
        let mut at = 0;
        while !self.over.is_cancelled() {
            let token = {
                let tokens = self.tokens.lock().unwrap();
                at += 7;
                tokens.get(at % tokens.len().max(1)).cloned()
            };
            match token {
                Some(token) => self.check(&token, &validators).await,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    async fn check(&self, token: &str, validators: &Validators) {
        let fails = |who: &str, why: &dyn std::fmt::Debug| {
            let failure = format!("{who}, key {}: {why:?}", signer(token));
            self.failures.lock().unwrap().push(failure);
        };
        let names = ["one node", "the other", "the sidecar"];
        for (client, name) in validators.clients.iter().zip(names) {
            if let Err(status) = calls::caller(client, token).await {
                fails(name, &status);
            }
        }
        if let Err(rejection) = validators.in_process.verify(token, None) {
            fails("in process", &rejection);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_rotations_under_load_refuse_no_token() {
    let (world, other) = two(|config| config.keys.publish_ahead_seconds = 1).await;
    let admin = world.admin().await;
    let ana = world.person().await;
    let load = Load {
        over: CancellationToken::new(),
        tokens: Arc::new(Mutex::new(vec![ana.tokens.access_token.clone()])),
        failures: Arc::default(),
    };
    // Two of them hear late, so that not to wait for them would be noticed.
    let line = Proxy::before(&format!("http://{}", other.address)).await;
    line.make(Fault::Slow(Duration::from_millis(50)));
    let slow = format!("127.0.0.1:{}", line.port);
    let watcher = world.person_who_may(&["countersign.trust.watch"]).await;
    let credential = &watcher.tokens.access_token;
    let nodes = vec![format!("http://{slow}")];
    let sidecar = Sidecar::following(&world, nodes, credential).await;
    let in_process = Validator::follow(&world.clock, &[slow], credential);
    eventually("both have heard", async || {
        let verifiers = [sidecar.running().verifier(), &in_process.verifier];
        verifiers.iter().all(|it| it.state().is_some())
    })
    .await;
    let mut tasks = tokio::task::JoinSet::new();
    for minter in [&world.node, &other] {
        let validators = || Validators {
            clients: [
                world.node.new_connection(),
                other.new_connection(),
                sidecar.client(),
            ],
            in_process: Arc::clone(&in_process.verifier),
        };
        let minter = minter.new_connection();
        tasks.spawn(load.clone().mint(ana.clone(), minter, validators()));
        tasks.spawn(load.clone().validate(validators()));
    }
    let there = other.client().with_token(&admin.tokens.access_token);
    for round in 0..20 {
        // The other node must have it too before it signs.
        let turn = if round % 2 == 0 {
            &admin.client
        } else {
            &there
        };
        let next = stage(turn).await.unwrap();
        world.clock.advance(Duration::from_secs(1));
        activate(turn, &next.kid).await.unwrap();
    }
    load.over.cancel();
    tasks.join_all().await;
    let failures = load.failures.lock().unwrap().clone();
    assert!(
        failures.is_empty(),
        "{} failures: {:#?}",
        failures.len(),
        failures.first()
    );
    let tokens = load.tokens.lock().unwrap().clone();
    let signers: BTreeSet<String> = tokens.iter().map(|token| signer(token)).collect();
    println!("{} tokens of {} keys", tokens.len(), signers.len());
    assert!(signers.len() > 15, "{signers:?}");
    assert_eq!(list(&admin.client).await.len(), 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaked_key_is_gone_everywhere() {
    let (world, other) = two(|_| {}).await;
    let admin = world.admin().await;
    let ana = world.person().await;
    let (here, there) = (world.anonymous(), other.client());
    let leaked = ana.tokens.access_token.clone();
    assert!(validates(&here, &leaked).await && validates(&there, &leaked).await);
    let next = stage(&admin.client).await.unwrap();
    let emergency = v1::ActivateKeyRequest {
        force: true,
        retire_previous: true,
        ..activation(&next.kid)
    };
    activate_as(&admin.client, emergency).await.unwrap();
    assert!(!validates(&here, &leaked).await, "at once where it is done");
    eventually("the other node refuses it", async || {
        !validates(&there, &leaked).await
    })
    .await;
    for client in [&here, &there] {
        assert_eq!(published(client).await, BTreeSet::from([next.kid.clone()]));
    }
    let pair = calls::refresh(&there, &ana.tokens.refresh_token)
        .await
        .unwrap();
    assert_eq!(signer(&pair.access_token), next.kid);
    assert!(validates(&here, &pair.access_token).await);
    assert_eq!(recorded(&world, "key.removed").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schedule_rotates_once_for_all_nodes() {
    let (world, other) = two(|config| config.keys.rotate_every_days = 1).await;
    let clients = [world.anonymous(), other.client()];
    let count = async |action: &str| recorded(&world, action).await;
    // A few looks of each node, in which nothing more may happen.
    let looks = || tokio::time::sleep(Duration::from_millis(2_500));
    looks().await;
    assert_eq!(count("key.staged").await, 0);
    world.clock.advance(DAY - AHEAD);
    for round in 1..=3 {
        eventually("the next key is staged", async || {
            count("key.staged").await == round
        })
        .await;
        looks().await;
        assert_eq!(
            (count("key.staged").await, count("key.activated").await),
            (round, round - 1)
        );
        let next = world
            .query("SELECT kid FROM signing_keys WHERE state = 'next'")
            .await;
        for client in &clients {
            assert!(
                published(client).await.contains(&next[0]),
                "published before it signs"
            );
        }
        world.clock.advance(AHEAD);
        eventually("it is activated", async || {
            count("key.activated").await == round
        })
        .await;
        looks().await;
        assert_eq!(
            (count("key.staged").await, count("key.activated").await),
            (round, round)
        );
        assert_eq!(
            world
                .query("SELECT kid FROM signing_keys WHERE state = 'active'")
                .await,
            next
        );
        world.clock.advance(DAY - AHEAD);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ends_takes_its_row_away() {
    let (world, _other) = two(|_| {}).await;
    let third = Node::launch(&world.config, &world.clock, 77).await;
    third.ready().await.unwrap();
    let told = async || world.query("SELECT count(*) FROM nodes").await == ["3"];
    eventually("it has told of itself", told).await;
    third.stop().await;
    assert_eq!(world.query("SELECT count(*) FROM nodes").await, ["2"]);
}

/// PostgreSQL only: SQLite has no other clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_is_off_mints_no_more() {
    let world = World::at_the_real_time(Kind::Postgres, |config| {
        config.tokens.max_clock_skew_seconds = 30;
    })
    .await;
    let ana = world.person().await;
    let client = world.anonymous();
    for step in [
        Duration::from_secs(90).try_into().unwrap(),
        jiff::SignedDuration::from_secs(-90),
    ] {
        world.clock.step(step);
        let refuses = async || {
            login_says(&client, &ana).await == (Code::Unavailable, "CLOCK_SKEWED".to_owned())
        };
        eventually("no login gives a token", refuses).await;
        let outcome = calls::refresh(&client, &ana.tokens.refresh_token).await;
        assert!(refused(outcome, Code::Unavailable, "CLOCK_SKEWED").retry);
        world.clock.step(-step);
        eventually("logins give tokens again", async || {
            login_says(&client, &ana).await.0 == Code::Ok
        })
        .await;
    }
    // Validation goes on, and so does what gives no token.
    world.clock.step(jiff::SignedDuration::from_secs(90));
    let refuses = async || login_says(&client, &ana).await.0 == Code::Unavailable;
    eventually("no login gives a token", refuses).await;
    assert!(validates(&client, &ana.tokens.access_token).await);
    let change =
        calls::change_password(&ana.client, PASSWORD, "another horse entirely, thanks").await;
    refused(change, Code::Unavailable, "CLOCK_SKEWED");
    ana.client
        .auth
        .clone()
        .who_am_i(v1::WhoAmIRequest {})
        .await
        .unwrap();
    let skew = world
        .query("SELECT clock_skew_us FROM nodes")
        .await
        .remove(0)
        .parse::<i64>()
        .unwrap();
    assert!((60_000_000..91_000_000).contains(&skew), "{skew}");
    world.clock.step(jiff::SignedDuration::from_secs(-90));
    eventually("logins give tokens again", async || {
        login_says(&client, &ana).await.0 == Code::Ok
    })
    .await;
    calls::refresh(&client, &ana.tokens.refresh_token)
        .await
        .unwrap();

    // One that starts with a wrong clock mints not even its first token.
    world.clock.step(jiff::SignedDuration::from_secs(-90));
    let late = Node::start(&world.config, &world.clock, 55).await;
    assert_eq!(
        login_says(&late.client(), &ana).await,
        (Code::Unavailable, "CLOCK_SKEWED".to_owned())
    );
}

async fn login_says(client: &Client, person: &Person) -> (Code, String) {
    match world::login(client, &person.email, PASSWORD).await {
        Ok(_) => (Code::Ok, String::new()),
        Err(status) => (status.code(), crate::harness::Failure::from(&status).reason),
    }
}
