//! The database away: what needs it says so and leaves it alone, what does not
//! goes on, and all is well when it is back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use countersign::domain::Call;
use countersign_proto::v1;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use uuid::Uuid;

use crate::{
    harness::{
        Client, Cluster, Fault, Kind, Lock, Node, Person, Proxy, World, binary::get, eventually,
        refused, world,
    },
    on_both,
};

/// So rarely that a test sees none of it.
const NEVER_MS: u64 = 600_000;

const SERVICES: [&str; 4] = [
    "AuthService",
    "UserService",
    "RoleService",
    "SessionService",
];

/// Uses what is answered from memory, over and over, while something else is
/// done.
struct Watch {
    over: CancellationToken,
    rounds: Arc<AtomicU64>,
    task: JoinHandle<Vec<String>>,
}

impl Watch {
    fn start(world: &World, person: &Person) -> Self {
        let (over, rounds) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let (until, counted) = (over.clone(), Arc::clone(&rounds));
        let (client, http) = (world.node.new_connection(), world.node.http);
        let token = person.tokens.access_token.clone();
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !until.is_cancelled() {
                if let Err(status) = validate(&client, &token).await {
                    failures.push(format!("ValidateToken: {status:?}"));
                }
                let mut tokens = client.tokens.clone();
                if let Err(status) = tokens.get_jwks(v1::GetJwksRequest {}).await {
                    failures.push(format!("GetJwks: {status:?}"));
                }
                for path in ["/.well-known/jwks.json", "/readyz", "/livez"] {
                    let (status, _) = get(http, path).await;
                    if status != 200 {
                        failures.push(format!("{path}: {status}"));
                    }
                }
                counted.fetch_add(1, SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            failures
        });
        Self { over, rounds, task }
    }

    /// Waits until everything has been used a few times more.
    async fn look(&self) {
        let goal = self.rounds.load(SeqCst) + 5;
        let reached = async || self.rounds.load(SeqCst) >= goal;
        eventually("what needs no database is answered", reached).await;
    }

    async fn without_a_failure(self) {
        self.look().await;
        self.over.cancel();
        let failures = self.task.await.unwrap();
        assert!(failures.is_empty(), "{failures:#?}");
    }
}

async fn validate(client: &Client, token: &str) -> Result<(), Status> {
    let request = v1::ValidateTokenRequest {
        token: token.to_owned(),
        audience: String::new(),
    };
    client.clone().tokens.validate_token(request).await?;
    Ok(())
}

async fn register(client: &Client, email: &str, id: Uuid) -> Result<v1::User, Status> {
    let request = v1::RegisterRequest {
        email: email.to_owned(),
        password: world::PASSWORD.to_owned(),
        request_id: id.to_string(),
        ..Default::default()
    };
    let reply = client.clone().auth.register(request).await?;
    Ok(reply.into_inner().user.expect("a user"))
}

async fn refresh(client: &Client, token: &str) -> Result<v1::TokenPair, Status> {
    let request = v1::RefreshRequest {
        refresh_token: token.to_owned(),
        audiences: Vec::new(),
    };
    let reply = client.clone().auth.refresh(request).await?;
    Ok(reply.into_inner().tokens.expect("tokens"))
}

async fn login(client: &Client, person: &Person, password: &str) -> Result<(), Status> {
    world::login(client, &person.email, password)
        .await
        .map(drop)
}

/// One call of each kind that needs the database, all at once.
async fn needy(person: &Person, client: &Client) -> Vec<(&'static str, Result<(), Status>)> {
    let theirs = client.with_token(&person.tokens.access_token);
    let (mut asks, mut lists, mut leaves) = (theirs.clone(), theirs.clone(), theirs.clone());
    let email = format!("{}@example.com", Uuid::from_u128(7));
    let (right, wrong, registered, refreshed, asked, listed, left) = tokio::join!(
        login(client, person, world::PASSWORD),
        login(client, person, "a password that is not theirs"),
        register(client, &email, Uuid::from_u128(7)),
        refresh(client, &person.tokens.refresh_token),
        asks.auth.who_am_i(v1::WhoAmIRequest {}),
        lists
            .sessions
            .list_sessions(v1::ListSessionsRequest::default()),
        leaves.auth.logout(v1::LogoutRequest::default()),
    );
    vec![
        ("Login", right),
        ("Login with a wrong password", wrong),
        ("Register", registered.map(drop)),
        ("Refresh", refreshed.map(drop)),
        ("WhoAmI", asked.map(drop)),
        ("ListSessions", listed.map(drop)),
        ("Logout", left.map(drop)),
    ]
}

/// Each kind of call that needs the database is told that it is away, and when
/// to come again.
async fn all_unavailable(person: &Person, client: &Client) {
    for (name, outcome) in needy(person, client).await {
        unavailable(name, outcome);
    }
}

#[track_caller]
fn unavailable<T: std::fmt::Debug>(name: &str, outcome: Result<T, Status>) {
    let failure = refused(outcome, Code::Unavailable, "DEPENDENCY_UNAVAILABLE");
    assert!(failure.retry, "{name} does not say when to come again");
}

async fn serves(node: &Node, service: &str) -> bool {
    let mut health = HealthClient::new(node.client().channel);
    let service = service.to_owned();
    let reply = health.check(HealthCheckRequest { service }).await;
    // 1 is SERVING.
    reply.unwrap().into_inner().status == 1
}

/// Whether every service that needs the database says so of itself.
async fn all_serve(node: &Node, serving: bool) -> bool {
    for service in SERVICES {
        if serves(node, &format!("countersign.v1.{service}")).await != serving {
            return false;
        }
    }
    true
}

fn breaker(node: &Node) -> countersign::breaker::Breaker {
    node.running.core().store.breaker().clone()
}

async fn opens(node: &Node, person: &Person) {
    let breaker = breaker(node);
    eventually("the breaker is open", async || {
        all_unavailable(person, &node.client()).await;
        breaker.is_open()
    })
    .await;
}

/// Everything works at the first try.
async fn works(world: &World, person: &Person) {
    let client = world.anonymous();
    login(&client, person, world::PASSWORD).await.unwrap();
    let other = world.person().await;
    let next = refresh(&client, &person.tokens.refresh_token)
        .await
        .unwrap();
    assert_eq!(next.session_id, person.tokens.session_id);
    let mut leaving = other.client.clone();
    leaving
        .auth
        .logout(v1::LogoutRequest::default())
        .await
        .unwrap();
    assert!(validate(&client, &other.tokens.access_token).await.is_err());
}

/// A world on a cluster of its own.
async fn fragile(cluster: &Cluster) -> World {
    let mut world = World::with(Kind::Postgres, |config| {
        config.database.url.clone_from(&cluster.url);
    })
    .await;
    world.database.url.clone_from(&cluster.url);
    world
}

/// A world on the shared cluster, over a line of its own.
async fn wired(adjust: impl FnOnce(&mut countersign::config::Config)) -> (World, Proxy) {
    let proxy = Proxy::before(&crate::harness::database::cluster_url()).await;
    let world = World::with(Kind::Postgres, |config| {
        config.database.url = proxy.url(&config.database.url);
        adjust(config);
    })
    .await;
    (world, proxy)
}

/// PostgreSQL only: SQLite is a file in this process, and cannot be away.
mod postgres {
    use super::*;

    /// Breaks the database and mends it, with everybody watching.
    async fn outage(cluster: &Cluster, break_it: impl AsyncFn(), mend_it: impl AsyncFn()) {
        let world = fragile(cluster).await;
        let ana = world.person().await;
        eventually("all serve", async || all_serve(&world.node, true).await).await;
        let watch = Watch::start(&world, &ana);
        watch.look().await;

        break_it().await;
        let begun = Instant::now();
        opens(&world.node, &ana).await;
        println!("the breaker opened after {:?}", begun.elapsed());
        eventually("those that need it are NOT_SERVING", async || {
            all_serve(&world.node, false).await
        })
        .await;
        assert!(serves(&world.node, "").await);
        assert!(serves(&world.node, "countersign.v1.TokenService").await);
        let begun = Instant::now();
        for _ in 0..20 {
            all_unavailable(&ana, &world.anonymous()).await;
        }
        println!("140 calls were refused within {:?}", begun.elapsed());
        watch.look().await;

        mend_it().await;
        let begun = Instant::now();
        eventually("all serve again", async || {
            all_serve(&world.node, true).await
        })
        .await;
        println!("all served again after {:?}", begun.elapsed());
        works(&world, &ana).await;
        watch.without_a_failure().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn killed_and_back() {
        let cluster = Cluster::start().await;
        outage(
            &cluster,
            async || cluster.kill().await,
            async || cluster.restart().await,
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn stopped_and_back() {
        let cluster = Cluster::start().await;
        outage(
            &cluster,
            async || cluster.stop().await,
            async || cluster.cont().await,
        )
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_open_breaker_leaves_it_alone_and_only_the_probe_closes_it() {
        let (world, proxy) = wired(|config| {
            config.database.breaker.probe_interval_ms = NEVER_MS;
        })
        .await;
        let ana = world.person().await;
        proxy.make(Fault::Silent);
        opens(&world.node, &ana).await;
        let breaker = breaker(&world.node);
        // Calls that were let through before it opened have ended by now.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let before = proxy.traffic();
        for _ in 0..20 {
            all_unavailable(&ana, &world.anonymous()).await;
        }
        // Neither do calls that fail for a reason of their own pass or close it.
        let garbage = world::login(&world.anonymous(), "", "").await;
        unavailable("a call without sense", garbage);
        assert_eq!(proxy.traffic(), before, "the database was asked");

        // Back again, and nobody has looked yet.
        proxy.make(Fault::None);
        for _ in 0..20 {
            all_unavailable(&ana, &world.anonymous()).await;
        }
        assert!(breaker.is_open());
        assert_eq!(proxy.traffic(), before, "the database was asked");
        assert_eq!(breaker.opened_count(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn short_deadlines_and_callers_who_leave_do_not_open_it() {
        let (world, proxy) = wired(|config| {
            // Nobody is to wait for a connection so long that it does count.
            config.database.max_connections = 40;
            config.database.trust_poll_ms = NEVER_MS;
        })
        .await;
        let ana = world.person().await;
        proxy.make(Fault::Slow(Duration::from_millis(20)));
        let calls = (0..40).map(|number| {
            let (mut client, person) = (world.node.new_connection(), ana.clone());
            tokio::spawn(async move {
                let wish = v1::LoginRequest {
                    identifier: person.email,
                    password: world::PASSWORD.to_owned(),
                    ..Default::default()
                };
                let mut request = Request::new(wish);
                let patience = Duration::from_millis(10 + 3 * number);
                if number % 2 == 0 {
                    // The caller goes away without a word.
                    let call = client.auth.login(request);
                    tokio::time::timeout(patience, call).await.ok();
                } else {
                    request.set_timeout(patience);
                    client.auth.login(request).await.ok();
                }
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
        proxy.make(Fault::None);
        login(&world.anonymous(), &ana, world::PASSWORD)
            .await
            .unwrap();
        assert_eq!(breaker(&world.node).opened_count(), 0);
        assert!(!breaker(&world.node).is_open());
    }

    async fn starts_without_it(cluster: &Cluster, mend_it: impl AsyncFn()) {
        let donor = World::new(Kind::Postgres).await;
        let mut config = donor.config.clone();
        config.database.url.clone_from(&cluster.url);
        let node = Node::begin(&config, &donor.clock, 7).await;
        assert_eq!(get(node.http, "/livez").await.0, 200);
        assert_eq!(get(node.http, "/readyz").await.0, 503);
        assert!(!serves(&node, "").await);
        assert!(!serves(&node, "countersign.v1.TokenService").await);
        assert!(all_serve(&node, false).await);
        let asked = validate(&node.client(), "no token").await;
        assert!(refused(asked, Code::Unavailable, "NOT_READY").retry);
        let entered = world::login(&node.client(), "ana@example.com", world::PASSWORD).await;
        assert!(refused(entered, Code::Unavailable, "NOT_READY").retry);
        mend_it().await;
        eventually("the node is ready", async || {
            get(node.http, "/readyz").await.0 == 200
        })
        .await;
        eventually("all serve", async || all_serve(&node, true).await).await;
        let email = "ana@example.com";
        register(&node.client(), email, Uuid::from_u128(1))
            .await
            .unwrap();
        world::login(&node.client(), email, world::PASSWORD)
            .await
            .unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_starts_while_it_is_down() {
        let cluster = Cluster::start().await;
        cluster.kill().await;
        starts_without_it(&cluster, async || cluster.restart().await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_starts_while_it_is_stopped() {
        let cluster = Cluster::start().await;
        cluster.stop().await;
        starts_without_it(&cluster, async || cluster.cont().await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_without_it_can_be_told_to_end() {
        let proxy = Proxy::before(&crate::harness::database::cluster_url()).await;
        let donor = World::new(Kind::Postgres).await;
        let mut config = donor.config.clone();
        config.database.url = proxy.url(&config.database.url);
        proxy.make(Fault::Silent);
        let node = Node::launch(&config, &donor.clock, 7).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let begun = Instant::now();
        node.stop().await;
        // Less than any wait for the database.
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reply_lost_in_an_outage_longer_than_the_grace_logs_nobody_out() {
        let cluster = Cluster::start().await;
        let world = fragile(&cluster).await;
        let (ana, client) = (world.person().await, world.anonymous());
        let lost = refresh(&client, &ana.tokens.refresh_token).await.unwrap();
        cluster.stop().await;
        opens(&world.node, &ana).await;
        world.clock.advance(Duration::from_secs(600));
        cluster.cont().await;
        eventually("all serve again", async || {
            all_serve(&world.node, true).await
        })
        .await;
        let again = refresh(&client, &ana.tokens.refresh_token).await.unwrap();
        assert_eq!(lost.refresh_token, again.refresh_token);
        // The grace of an outage ends too.
        world.clock.advance(Duration::from_secs(31));
        refused(
            refresh(&client, &ana.tokens.refresh_token).await,
            Code::Unauthenticated,
            "REFRESH_TOKEN_INVALID",
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_starts_in_the_outage_logs_nobody_out_either() {
        let cluster = Cluster::start().await;
        let world = fragile(&cluster).await;
        let ana = world.person().await;
        let lost = refresh(&world.anonymous(), &ana.tokens.refresh_token)
            .await
            .unwrap();
        cluster.kill().await;
        world.clock.advance(Duration::from_secs(600));
        let node = Node::begin(&world.config, &world.clock, 7).await;
        // It has looked, and found nothing.
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.restart().await;
        node.running.ready().await.unwrap();
        let again = refresh(&node.client(), &ana.tokens.refresh_token).await;
        assert_eq!(lost.refresh_token, again.unwrap().refresh_token);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_commit_without_an_answer_is_unknown_and_a_retry_settles_it() {
        for (number, fault) in [(1, Fault::LosesCommit), (2, Fault::LosesAnswer)] {
            let (world, proxy) = wired(|_| ()).await;
            let ana = world.person().await;
            let client = world.anonymous();
            let (email, id) = (world.new_email(), Uuid::from_u128(number));
            proxy.make(fault);
            let outcome = register(&client, &email, id).await;
            refused(outcome, Code::Unknown, "OUTCOME_UNKNOWN");
            let outcome = refresh(&client, &ana.tokens.refresh_token).await;
            refused(outcome, Code::Unknown, "OUTCOME_UNKNOWN");
            let mut leaving = ana.client.clone();
            let outcome = leaving.auth.logout(v1::LogoutRequest::default()).await;
            refused(outcome, Code::Unknown, "OUTCOME_UNKNOWN");
            assert!(proxy.lost() >= 3);
            proxy.make(Fault::None);
            // Known to the database, if anything has arrived there.
            eventually("the breaker is closed", async || {
                !breaker(&world.node).is_open()
            })
            .await;
            let taken = world::login(&client, &email, world::PASSWORD).await;
            assert_eq!(taken.is_ok(), fault == Fault::LosesAnswer, "{taken:?}");
            let user = register(&client, &email, id).await.unwrap();
            let again = register(&client, &email, id).await.unwrap();
            assert_eq!(user, again);
            world::login(&client, &email, world::PASSWORD)
                .await
                .unwrap();
            let refreshed = refresh(&client, &ana.tokens.refresh_token).await;
            // The logout behind it has happened if it arrived.
            assert_eq!(
                refreshed.is_ok(),
                fault == Fault::LosesCommit,
                "{refreshed:?}"
            );
            if refreshed.is_ok() {
                leaving
                    .auth
                    .logout(v1::LogoutRequest::default())
                    .await
                    .unwrap();
            }
            assert!(validate(&client, &ana.tokens.access_token).await.is_err());
        }
    }
}

/// SQLite only: PostgreSQL locks rows, not the whole.
mod sqlite {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn another_writer_for_long() {
        let world = World::new(Kind::Sqlite).await;
        let ana = world.person().await;
        let watch = Watch::start(&world, &ana);
        let lock = Lock::take(&world.database).await;
        let client = world.anonymous();
        // One after the other, so that each has waited for the lock itself.
        unavailable("Login", login(&client, &ana, world::PASSWORD).await);
        unavailable("Login, wrong", login(&client, &ana, "not their own").await);
        unavailable("Refresh", refresh(&client, &ana.tokens.refresh_token).await);
        let id = Uuid::from_u128(1);
        let email = world.new_email();
        unavailable("Register", register(&client, &email, id).await);
        // Reading needs no lock, and a lock is no failure of the database.
        let mut asking = ana.client.clone();
        asking.auth.who_am_i(v1::WhoAmIRequest {}).await.unwrap();
        assert_eq!(breaker(&world.node).opened_count(), 0);
        lock.release().await;
        works(&world, &ana).await;
        watch.without_a_failure().await;
    }
}

on_both! {
    async fn a_full_pool_is_unavailable_and_no_outage(world: World) {
        let ana = world.person().await;
        let watch = Watch::start(&world, &ana);
        let store = world.node.running.core().store.clone();
        let (call, mut held) = (Call::internal("test"), Vec::new());
        while let Ok(conn) = store.read(&call).await {
            held.push(conn);
        }
        assert_eq!(held.len(), world.config.database.max_connections);
        for _ in 0..8 {
            let mut asking = ana.client.clone();
            unavailable("WhoAmI", asking.auth.who_am_i(v1::WhoAmIRequest {}).await);
            for password in [world::PASSWORD, "a password that is not theirs"] {
                unavailable("Login", login(&world.anonymous(), &ana, password).await);
            }
        }
        // The load is this node's own: the database is well, and stays in use.
        assert_eq!(breaker(&world.node).opened_count(), 0);
        watch.look().await;
        drop(held);
        works(&world, &ana).await;
        watch.without_a_failure().await;
    }

    async fn failures_of_other_kinds_do_not_open_it(world: World) {
        let ana = world.person().await;
        let admin = world.admin().await;
        let client = world.anonymous();
        for number in 0..30 {
            let id = Uuid::from_u128(100 + number);
            refused(register(&client, &ana.email, id).await, Code::AlreadyExists, "EMAIL_TAKEN");
            refused(
                login(&client, &ana, "a password that is not theirs").await,
                Code::Unauthenticated, "LOGIN_FAILED",
            );
            refused(register(&client, "\u{0}", id).await, Code::InvalidArgument, "INVALID_REQUEST");
            refused(refresh(&client, "csr_x").await, Code::Unauthenticated, "REFRESH_TOKEN_INVALID");
            let request = v1::GetUserRequest { user_id: id.to_string() };
            refused(
                admin.client.clone().users.get_user(request).await,
                Code::NotFound, "USER_NOT_FOUND",
            );
        }
        assert_eq!(breaker(&world.node).opened_count(), 0);
        works(&world, &ana).await;
    }

    async fn callers_who_leave_in_a_query_do_not_open_it(world: World) {
        let ana = world.person().await;
        let lock = Lock::take(&world.database).await;
        // More than the failures in a row that open it.
        let calls = (0..12).map(|_| {
            let (client, person) = (world.node.new_connection(), ana.clone());
            tokio::spawn(async move {
                let call = login(&client, &person, world::PASSWORD);
                tokio::time::timeout(Duration::from_millis(100), call).await.ok();
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
        lock.release().await;
        works(&world, &ana).await;
        assert_eq!(breaker(&world.node).opened_count(), 0);
    }
}
