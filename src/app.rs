//! The composition root: settings become parts, parts become servers and
//! background tasks, and at the end all of it is drained. The only place that
//! spawns.

use std::{net::SocketAddr, panic::AssertUnwindSafe, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use countersign_verifier::{Clock, Policy as VerifierPolicy, SystemClock, Verifier};
use futures_util::{FutureExt as _, TryFutureExt as _};
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{
    breaker::Breaker,
    cli,
    config::{Config, Loaded, data_dir},
    crypto::{Lanes, MasterKey, Sealer, SystemEntropy},
    domain::Entropy,
    error::{Error, Result, chain},
    grpc::{self, Api, TokenApi, TrustApi, ext_authz::Authorization},
    health::{Health, Readiness},
    http::SidePort,
    listen::Listener,
    middleware::{self, PeerLimits, access, web},
    service::{
        Core, Feed, Keyring, Policy, Skew, Trust, Work, janitor::Janitor, presence::Presence,
        rotation::Rotation, trust::Follower, wake::Wake,
    },
    store::Store,
    telemetry::{self, Telemetry},
};

/// How often expired rows are looked for.
const JANITOR_EVERY: Duration = Duration::from_secs(30);

/// How often a start is looked at.
const READY_POLL: Duration = Duration::from_millis(20);

/// How long work may go on after the last connection has ended.
const WORK_ENDS: Duration = Duration::from_secs(5);

/// Signals that follow the first one within this time are the same wish: whoever
/// signals a whole process group, as `timeout` does, may signal twice.
const SAME_WISH: Duration = Duration::from_millis(500);

/// What a test puts in the place of the system's.
#[derive(Debug, Clone)]
pub struct Seams {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl Default for Seams {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
        }
    }
}

/// The rules over an opened store, without servers: what the command line works
/// with, and what a node is built around.
pub async fn core(
    config: &Config,
    master_key: &MasterKey,
    seams: &Seams,
    trust: Trust,
) -> anyhow::Result<Core> {
    let Seams { clock, entropy } = seams.clone();
    let breaker = Breaker::new("database", &config.database.breaker);
    let store = Store::open(
        &config.database,
        Arc::clone(&clock),
        Arc::clone(&entropy),
        breaker,
    );
    let sealer = Sealer::new(master_key).context("the master key cannot be used")?;
    Ok(Core {
        node_id: uuid::Builder::from_random_bytes(entropy.array()).into_uuid(),
        store: store.await?,
        lanes: Lanes::start(&config.hashing, Arc::clone(&entropy))?,
        clock,
        entropy,
        keyring: Arc::new(Keyring::new(sealer)),
        trust,
        skew: Skew::new(config.tokens.max_clock_skew_seconds),
        policy: Policy {
            issuer: config.issuer.clone(),
            audiences: config.audiences.clone(),
            client_id: config.client_id.clone(),
            self_registration: config.self_registration,
            keys: config.keys.policy(config.http.jwks_max_age_seconds),
            tokens: config.tokens.clone(),
            sessions: config.sessions.clone(),
            api_keys: config.api_keys.clone(),
        },
    })
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    core: Arc<Core>,
    feed: Arc<Feed>,
    address: String,
    http_address: SocketAddr,
    /// Cancelled when the node begins to stop: it tells so, accepts nothing
    /// new and finishes what runs.
    draining: CancellationToken,
    /// Cancelled when nothing runs any more: background tasks end.
    over: CancellationToken,
    /// Ends when the last connection has.
    listener: TaskTracker,
    work: TaskTracker,
    tasks: Tasks,
}

/// What runs as long as the node, and why the node cannot go on if one of them
/// fails. A task that died unnoticed would be worse than a node that ends: it
/// would serve on and hear no revocation.
#[derive(Debug)]
struct Tasks {
    tracker: TaskTracker,
    failed: watch::Sender<Option<String>>,
}

impl Tasks {
    fn spawn(
        &self,
        name: &'static str,
        runtime: &Handle,
        task: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        let failed = self.failed.clone();
        let watched = async move {
            let why = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => chain(&error),
                Err(_) => "it panicked; the log says where".to_owned(),
            };
            failed.send_replace(Some(format!("{name} failed: {why}")));
        };
        self.tracker.spawn_on(watched, runtime);
    }

    /// What works on the database in the background.
    fn spawn_work(
        &self,
        config: &Config,
        core: &Arc<Core>,
        feed: &Arc<Feed>,
        work: &Handle,
        over: &CancellationToken,
    ) {
        let poll = Duration::from_millis(config.database.trust_poll_ms);
        let follower = Follower::new(Arc::clone(core), Arc::clone(feed), poll);
        self.spawn("following the trust log", work, follower.run(over.clone()));
        let listening = Wake::new(Arc::clone(core)).run(over.clone());
        self.spawn("listening to the trust log", work, listening.map(Ok));
        let presence = Presence::new(Arc::clone(core), Arc::clone(feed)).run(over.clone());
        self.spawn("telling other nodes", work, presence.map(Ok));
        let rotation = Rotation::new(Arc::clone(core)).run(over.clone());
        self.spawn("rotating signing keys", work, rotation.map(Ok));
        let janitor = Janitor::new(Arc::clone(core), JANITOR_EVERY).run(over.clone());
        self.spawn("the janitor", work, janitor.map(Ok));
        let (store, until) = (core.store.clone(), over.clone());
        let every = Duration::from_millis(config.database.breaker.probe_interval_ms);
        let breaker = core.store.breaker().clone();
        let probe = breaker.probe(async move || store.ping().await.is_ok(), every, until);
        self.spawn("probing the database", work, probe.map(Ok));
    }
}

impl Node {
    /// Opens the ports and starts everything. Servers run on the runtime that
    /// this is called on, everything that touches the database on `work`. The
    /// database need not be up: see [`Node::ready`].
    pub async fn start(
        config: &Config,
        master_key: &MasterKey,
        seams: Seams,
        telemetry: &Telemetry,
        work: &Handle,
    ) -> anyhow::Result<Self> {
        let Seams { clock, entropy } = seams.clone();
        let core = Arc::new(core(config, master_key, &seams, Trust::default()).await?);
        core.store.lock_instance()?;
        let leeway = Duration::from_secs(u64::from(config.tokens.leeway_seconds));
        let policy = VerifierPolicy {
            leeway,
            ..VerifierPolicy::default()
        };
        let verifier = Arc::new(Verifier::new(Arc::clone(&clock), policy));
        let breaker = core.store.breaker().clone();
        let (draining, over) = (CancellationToken::new(), CancellationToken::new());
        let readiness = Readiness {
            verifier: Arc::clone(&verifier),
            database: Some(breaker.clone()),
            draining: draining.clone(),
        };
        let side_port = SidePort::bind(&config.http, readiness.clone(), telemetry.metrics())
            .await
            .with_context(|| format!("cannot listen on {}", config.http.address))?;
        let listener = Listener::bind(&config.listen, Arc::clone(&entropy)).await?;
        let (address, http_address) = (listener.address().to_owned(), side_port.address()?);

        let calls = TaskTracker::new();
        let tasks = Tasks {
            tracker: TaskTracker::new(),
            failed: watch::Sender::new(None),
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        let jwks_max_age = Duration::from_secs(config.http.jwks_max_age_seconds);
        let routes = TokenApi::new(Arc::clone(&verifier), jwks_max_age).routes(Routes::default());
        let routes = Authorization::new(Arc::clone(&verifier)).routes(routes);
        let feed = Arc::new(Feed::new(Arc::clone(&verifier)));
        let trust = TrustApi::new(
            Arc::clone(&feed),
            Arc::clone(&clock),
            Arc::clone(&entropy),
            draining.clone(),
        );
        let routes = trust.routes(routes);
        let api = Api::new(Arc::clone(&core), Work::new(work.clone(), calls.clone()));
        let mut routes = api.routes(routes).add_service(health);
        if config.reflection {
            routes = grpc::reflection(routes)?;
        }
        let peer_limits = Arc::new(PeerLimits::new(&config.limits, Arc::clone(&clock)));
        let parts = middleware::Parts {
            config: config.limits.clone(),
            clock,
            entropy,
            verifier: Arc::clone(&verifier),
            audience: config.own_audience.clone(),
            workloads: config.listen.workloads(),
            database: Some(breaker.clone()),
            peer_limits: Arc::clone(&peer_limits),
            access: access::ROWS,
            validation_log_sample: config.telemetry.validation_log_sample,
            traces_exported: config.telemetry.exports_traces(),
        };
        let serving = Handle::current();
        let connections = TaskTracker::new();
        let until = draining.clone();
        let listening = if config.grpc_web.is_on() {
            let stack = web::around(middleware::stack(routes, &parts), &config.grpc_web);
            listener.and_http1().serve(stack, until).left_future()
        } else {
            let stack = middleware::stack(routes, &parts);
            listener.serve(stack, until).right_future()
        };
        let listening = connections.track_future(listening);
        tasks.spawn("the listener", &serving, listening.map(Ok));
        connections.close();
        let until = over.clone();
        tasks.spawn("the side port", &serving, side_port.serve(until).map(Ok));
        let health = Health::new(reporter, readiness, access::ROWS).run(over.clone());
        tasks.spawn("health", &serving, health.map(Ok));
        let sweeping = peer_limits.run(over.clone());
        tasks.spawn("the limits per peer", &serving, sweeping.map(Ok));

        tasks.spawn_work(config, &core, &feed, work, &over);
        Ok(Self {
            core,
            feed,
            address,
            http_address,
            draining,
            over,
            listener: connections,
            work: calls,
            tasks,
        })
    }

    /// The gRPC address in the form of the configuration.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address of the side port.
    pub fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// The rules.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// What validators are told.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Waits until keys and revocations are loaded, so that tokens validate.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let loaded = async {
            while self.feed.verifier().applied_seq().is_none() {
                sleep(READY_POLL).await;
            }
        };
        tokio::select! {
            () = loaded => Ok(()),
            failure = self.failed() => Err(failure),
        }
    }

    /// Waits until the node cannot go on, and returns why. While all is well
    /// that is never.
    pub async fn failed(&self) -> anyhow::Error {
        let mut failed = self.tasks.failed.subscribe();
        match failed.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(why)) => anyhow::anyhow!("{why}"),
            // The sender is ours and lives as long as we do.
            _ => std::future::pending().await,
        }
    }

    /// Drains: tells so, accepts nothing new, finishes what runs, ends.
    pub async fn stop(self) {
        self.draining.cancel();
        self.listener.wait().await;
        self.work.close();
        if timeout(WORK_ENDS, self.work.wait()).await.is_err() {
            tracing::warn!(calls = self.work.len(), "stopped while calls were running");
        }
        // The side port has said until now that this node is draining.
        self.over.cancel();
        self.tasks.tracker.close();
        if timeout(WORK_ENDS, self.tasks.tracker.wait()).await.is_err() {
            tracing::warn!(
                tasks = self.tasks.tracker.len(),
                "stopped while tasks were running"
            );
        }
    }

    /// Ends at once and without waiting for anything, as a test that is over
    /// may.
    pub fn abort(&self) {
        self.draining.cancel();
        self.over.cancel();
    }
}

/// Runs a node until the process is told to stop. `level` reads the log level
/// that the configuration has now, for SIGHUP.
pub async fn serve(
    loaded: Loaded,
    level: impl Fn() -> Option<String> + Send + 'static,
    work: Handle,
) -> anyhow::Result<ExitCode> {
    let Loaded {
        config,
        settings,
        warnings,
    } = loaded;
    let mut stop = StopSignals::new()?;
    let telemetry = Telemetry::install(&config.telemetry)?;
    telemetry::log_panics();
    let seams = Seams::default();
    let prepared = data_dir::prepare(&config, &*seams.entropy)?;
    if let Some(banner) = cli::banner::banner(&config, &prepared) {
        cli::remark(&banner);
    }
    for warning in warnings.iter().chain(&prepared.warnings) {
        tracing::warn!("{warning}");
    }
    let node = Node::start(&config, &prepared.master_key, seams, &telemetry, &work).await?;
    let serving = Handle::current();
    let upkeep = telemetry.clone().run(node.over.clone());
    node.tasks.spawn("the metrics", &serving, upkeep.map(Ok));
    let hangups = telemetry.clone().follow_hangups(level, node.over.clone());
    node.tasks
        .spawn("the log level", &serving, hangups.map_err(Error::internal));
    tracing::info!(
        version = cli::VERSION,
        profile = config.profile.as_str(),
        grpc = node.address(),
        http = %node.http_address(),
        settings = settings.changes(),
        "serving"
    );
    let failure = tokio::select! {
        signal = stop.recv() => {
            tracing::info!(signal, "stopping: finishing what runs; a second signal ends it");
            None
        }
        failure = node.failed() => Some(failure),
    };
    let in_time = tokio::select! {
        () = node.stop() => true,
        signal = stop.recv_again() => {
            tracing::warn!(signal, "ended at once");
            false
        }
    };
    telemetry.flush();
    match failure {
        Some(failure) => Err(failure),
        None if in_time => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::FAILURE),
    }
}

/// The signals by which a process is told to stop.
#[derive(Debug)]
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// A signal after the first one.
    async fn recv_again(&mut self) -> &'static str {
        let echoes = async {
            loop {
                self.recv().await;
            }
        };
        let Err(_elapsed) = timeout(SAME_WISH, echoes).await;
        self.recv().await
    }
}
