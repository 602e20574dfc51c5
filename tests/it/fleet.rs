//! What stands around the nodes (a real Envoy, sidecars, validators in process):
//! together as `scripts/topology` starts them, while the nodes are gone, and while
//! signing keys change.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use countersign_proto::v1;
use countersign_verifier::{
    Clock as _, Policy, SystemClock, Verifier, api_key_text,
    client::{Bearer, Config, Feed},
};
use tokio::{net::TcpStream, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::harness::{
    Cluster, Kind, Node, Person, World,
    calls::{self, activate_key, claims, retire_key, signer, stage_key, validates},
    clock::MockClock,
    envoy::Envoy,
    eventually,
    sidecar::Sidecar,
    world,
};

const WATCH: &str = "countersign.trust.watch";

/// The issuer that `deploy/envoy/jwt_authn.yaml` expects.
const ISSUER: &str = "https://auth.example.com";

/// Longer than an access token lives.
const A_LIFE: Duration = Duration::from_secs(16 * 60);

/// Longer than the `max_staleness` of `/admin/` in `deploy/envoy/ext_authz.yaml`.
const STALE: Duration = Duration::from_secs(31);

/// An API key of this person's, and its secret.
async fn api_key(person: &Person, life: Option<(&World, Duration)>) -> (String, String) {
    let expires_at = life.map(|(world, life)| prost_types::Timestamp {
        seconds: (world.clock.now() + life).as_second(),
        nanos: 0,
    });
    let request = v1::CreateApiKeyRequest {
        name: "a program".to_owned(),
        expires_at,
        ..Default::default()
    };
    let reply = person.client.clone().api_keys.create_api_key(request).await;
    let reply = reply.unwrap().into_inner();
    (reply.api_key.unwrap().api_key_id, reply.secret)
}

async fn log_out(person: &Person) {
    let request = v1::LogoutRequest::default();
    person.client.clone().auth.logout(request).await.unwrap();
}

async fn is_gone(address: SocketAddr) -> bool {
    TcpStream::connect(address).await.is_err()
}

async fn answers(envoy: &Envoy, path: &str, credentials: &[(&str, String)], status: u16) {
    for (what, credential) in credentials {
        let answer = envoy.get(path, Some(credential)).await;
        assert_eq!(answer.status, status, "{path}: {what}: {}", answer.body);
    }
}

/// PostgreSQL only: there is a database to kill, and more than one node.
mod postgres {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn envoy_and_a_sidecar_go_on_when_all_nodes_and_the_database_are_gone() {
        let cluster = Cluster::start().await;
        let mut world = World::with(Kind::Postgres, |config| {
            config.database.url.clone_from(&cluster.url);
        })
        .await;
        world.database.url.clone_from(&cluster.url);
        let other = world.another_node().await.unwrap();

        let watcher = world.person_who_may(&[WATCH]).await;
        let (_, credential) = calls::create_api_key(&watcher.client, &[WATCH])
            .await
            .unwrap();
        let early = world.person().await;
        let (_, short) = api_key(&early, Some((&world, Duration::from_secs(60)))).await;
        world.clock.advance(A_LIFE);
        let (ana, gone, admin) = (
            world.person().await,
            world.person().await,
            world.admin().await,
        );
        let (_, key) = api_key(&ana, None).await;
        let (ended_id, ended) = api_key(&ana, None).await;
        let tokens = [("a token", ana.tokens.access_token.clone())];
        let admins = [("an admin's token", admin.tokens.access_token.clone())];
        let keys = [("an API key", key)];
        let bad = [
            ("no token", "a.b.c".to_owned()),
            ("an unknown API key", api_key_text(&[7; 24])),
            ("a revoked token", gone.tokens.access_token.clone()),
            ("a revoked API key", ended),
            ("an expired token", early.tokens.access_token.clone()),
            ("an expired API key", short),
        ];

        let nodes = [&world.node, &other];
        let mut sidecar = Sidecar::start(&world, &nodes, &credential).await;
        let address = sidecar.address().parse().unwrap();
        let envoy = Envoy::start("ext_authz.yaml", address, world.node.http, &[]).await;
        let revoked = [&bad[2].1, &bad[3].1];
        for credential in revoked {
            let passes = async || envoy.get("/", Some(credential)).await.status == 200;
            eventually("what is to be revoked passes", passes).await;
        }
        log_out(&gone).await;
        calls::revoke_api_key(&ana.client, &ended_id).await.unwrap();
        for credential in revoked {
            let refused = async || envoy.get("/", Some(credential)).await.status == 401;
            eventually("what is revoked is refused", refused).await;
        }
        answers(&envoy, "/admin/", &admins, 200).await;

        cluster.kill().await;
        for node in nodes {
            node.running.process().abort();
            eventually("the node is gone", async || is_gone(node.address).await).await;
        }
        let goes_on = async || {
            for good in [&tokens, &admins, &keys] {
                answers(&envoy, "/", good, 200).await;
            }
            answers(&envoy, "/", &bad, 401).await;
        };
        goes_on().await;
        answers(&envoy, "/admin/", &admins, 200).await;
        // Beyond its max_staleness a route refuses even the best credential, and no other does.
        world.clock.advance(STALE);
        goes_on().await;
        answers(&envoy, "/admin/", &admins, 503).await;

        // Nor does starting again, from its snapshot, make a sidecar's knowledge any younger.
        sidecar.config.listen.address = sidecar.address();
        sidecar.stop().await;
        sidecar.resume().await;
        let back = async || envoy.get("/", Some(&tokens[0].1)).await.status == 200;
        eventually("the sidecar is back", back).await;
        goes_on().await;
        answers(&envoy, "/admin/", &admins, 503).await;
        envoy.upstream.take();
        answers(&envoy, "/", &keys, 200).await;
        let staleness = envoy.upstream.take_one();
        let staleness: u64 = staleness.one("x-countersign-staleness").parse().unwrap();
        assert!(staleness >= STALE.as_secs(), "{staleness}");

        // Tokens expire without anybody's help.
        world.clock.advance(A_LIFE);
        answers(&envoy, "/", &tokens, 401).await;
        answers(&envoy, "/", &bad, 401).await;
        answers(&envoy, "/", &keys, 200).await;

        cluster.restart().await;
        let mut config = world.config.clone();
        config.listen.address = world.node.address.to_string();
        let node = Node::start(&config, &world.clock, 99).await;
        let again = world::login(&node.client(), &admin.email, world::PASSWORD).await;
        let again = again.unwrap().access_token;
        let fresh = async || envoy.get("/admin/", Some(&again)).await.status == 200;
        eventually("the sidecar hears again", fresh).await;
        answers(&envoy, "/", &bad, 401).await;
    }
}

mod the_topology_comes_up {
    use super::*;

    /// PostgreSQL alone: two nodes share a database.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        let countersign = Path::new(env!("CARGO_BIN_EXE_countersign"));
        // Cargo builds it for the example's own test, which has this one's name.
        let orders = countersign.with_file_name("orders");
        assert!(
            orders.exists(),
            "examples/orders is not built: run the tests by scripts/test, or cargo build -p orders"
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/topology");
        let mut command = Command::new(script);
        command
            .args(["--fleet", "--check"])
            .env("COUNTERSIGN_BIN", countersign)
            .env("ORDERS_BIN", orders);
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        for what in ["serve the same keys", "not once it is revoked"] {
            assert!(said.contains(what), "{said}");
        }
    }
}

/// Lets a world's clock go with the machine's, which Envoy reads.
fn go_with_the_machine(clock: Arc<MockClock>, over: CancellationToken) {
    let go = async move {
        loop {
            let behind = SystemClock.now().duration_since(clock.now());
            if let Ok(behind) = behind.try_into() {
                clock.advance(behind);
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::spawn(async move { over.run_until_cancelled(go).await });
}

/// Sends one request after another, each with a token that has time left, until
/// it is over. Returns the tokens, and what failed.
async fn requests(
    world: &World,
    envoy: &Envoy,
    person: &Person,
    over: &CancellationToken,
) -> (Vec<String>, Vec<String>) {
    let (mut tokens, mut failures) = (Vec::new(), Vec::new());
    let mut login_at = Instant::now();
    while !over.is_cancelled() {
        if Instant::now() >= login_at {
            let pair = world::login(&world.anonymous(), &person.email, world::PASSWORD).await;
            tokens.push(pair.unwrap().access_token);
            login_at = Instant::now() + Duration::from_millis(300);
        }
        for token in tokens.iter().rev() {
            // What expires on the way is refused by right.
            let soon = (world.clock.now() + Duration::from_secs(1)).as_second();
            if claims(token)["exp"].as_i64().unwrap() <= soon {
                break;
            }
            let status = envoy.get("/", Some(token)).await.status;
            if status != 200 {
                failures.push(format!("{status} for key {}", signer(token)));
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    (tokens, failures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoys_own_check_goes_through_a_rotation_without_a_failed_request() {
    const LIFE: u32 = 6;
    let world = World::at_the_real_time(Kind::Sqlite, |config| {
        config.issuer = ISSUER.to_owned();
        config.tokens.access_seconds = LIFE;
        // Envoy keeps the keys for two seconds, below.
        config.keys.publish_ahead_seconds = 4;
    })
    .await;
    let over = CancellationToken::new();
    let _over = over.clone().drop_guard();
    go_with_the_machine(Arc::clone(&world.clock), over.clone());
    let often = ("cache_duration: 300s", "cache_duration: 2s");
    let Node { address, http, .. } = world.node;
    let envoy = Envoy::start("jwt_authn.yaml", address, http, &[often]).await;
    let (ana, admin) = (world.person().await, world.admin().await);
    let old = signer(&ana.tokens.access_token);

    let rotate = async {
        sleep(Duration::from_secs(1)).await;
        // An admin's token, too, lives for some seconds only.
        let admin = admin.again().await;
        let next = stage_key(&admin.client).await.unwrap().kid;
        let request = v1::ActivateKeyRequest {
            kid: next.clone(),
            ..Default::default()
        };
        // It waits until the key has been published for long enough.
        activate_key(&admin.client, request).await.unwrap();
        sleep(Duration::from_secs(u64::from(LIFE) + 1)).await;
        let admin = admin.again().await;
        retire_key(&admin.client, &old).await.unwrap();
        // Envoy hears of that, too.
        sleep(Duration::from_secs(4)).await;
        over.cancel();
        next
    };
    let (next, (tokens, failures)) = tokio::join!(rotate, requests(&world, &envoy, &ana, &over));
    assert!(failures.is_empty(), "{failures:#?} {}", envoy.log());
    let signers: BTreeSet<_> = tokens.iter().map(|token| signer(token)).collect();
    assert_eq!(signers, BTreeSet::from([old, next]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaked_key_is_gone_from_the_feed_at_once_and_from_envoys_cache_in_its_time() {
    let world = World::at_the_real_time(Kind::Sqlite, |config| {
        config.issuer = ISSUER.to_owned();
    })
    .await;
    let (ana, admin) = (world.person().await, world.admin().await);
    let watcher = world.person_who_may(&[WATCH]).await;
    // A token of the leaked key would end the feed with it.
    let (_, credential) = calls::create_api_key(&watcher.client, &[WATCH])
        .await
        .unwrap();
    let leaked = ana.tokens.access_token.clone();

    let sidecar = Sidecar::start(&world, &[&world.node], &credential).await;
    let in_process = Arc::new(Verifier::new(world.clock.clone(), Policy::default()));
    let node = Endpoint::from_shared(format!("http://{}", world.node.address));
    let config = Config {
        endpoints: vec![node.unwrap()],
        bearer: Bearer::Text(credential),
        instance: "test".to_owned(),
        issuer: Some(ISSUER.to_owned()),
    };
    let feed = Feed::new(Arc::clone(&in_process), config);
    let following = tokio::spawn(feed.run());
    let Node { address, http, .. } = world.node;
    let often = ("cache_duration: 300s", "cache_duration: 2s");
    let quick = Envoy::start("jwt_authn.yaml", address, http, &[often]).await;
    let slow = Envoy::start("jwt_authn.yaml", address, http, &[]).await;
    let judged = async |token: &str| {
        (
            validates(&sidecar.client(), token).await,
            in_process.verify(token, None).is_ok(),
        )
    };
    let heard = async || judged(&leaked).await == (true, true);
    eventually("the validators know the key", heard).await;
    for envoy in [&quick, &slow] {
        assert_eq!(envoy.get("/", Some(&leaked)).await.status, 200);
    }

    let next = stage_key(&admin.client).await.unwrap();
    let emergency = v1::ActivateKeyRequest {
        kid: next.kid,
        force: true,
        retire_previous: true,
    };
    activate_key(&admin.client, emergency).await.unwrap();
    let fresh = ana.again().await.tokens.access_token;
    let heard = async || judged(&leaked).await == (false, false);
    eventually("the validators refuse it", heard).await;
    let heard = async || judged(&fresh).await == (true, true);
    eventually("the validators know its successor", heard).await;
    let status = async |envoy: &Envoy, token: &str| envoy.get("/", Some(token)).await.status;
    eventually("a short cache is over", async || {
        (status(&quick, &leaked).await, status(&quick, &fresh).await) == (401, 200)
    })
    .await;
    // What docs/envoy.md warns of: the old key passes, the new one does not.
    assert_eq!(status(&slow, &leaked).await, 200);
    assert_eq!(status(&slow, &fresh).await, 401);
    following.abort();
}
