//! The composition root of a node: settings become parts, parts become servers
//! and background tasks, and at the end all of it is drained.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use countersign_verifier::{Clock, Policy as VerifierPolicy, SystemClock, Verifier};
use futures_util::FutureExt as _;
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{
    breach_list::BreachList,
    breaker::Breaker,
    cli,
    config::{Config, Loaded, data_dir},
    crypto::{Lanes, MasterKeys, Sealer, SystemEntropy},
    domain::Entropy,
    grpc::{Api, AuditApi, TokenApi, TrustApi, ext_authz::Authorization},
    health::Readiness,
    middleware::access,
    process::{Ports, Process, StopSignals, WORK_ENDS},
    service::{
        Core, Feed, Keyring, Policy, Skew, Stuffing, Throttle, Trust, Work, audit::Chainer,
        janitor::Janitor, presence::Presence, rotation::Rotation, stuffing::Lookout,
        trust::Follower, wake::Wake,
    },
    store::Store,
    telemetry::{self, Telemetry},
};

/// How often expired rows are looked for.
const JANITOR_EVERY: Duration = Duration::from_secs(30);

/// How often a start is looked at.
const READY_POLL: Duration = Duration::from_millis(20);

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
    master_keys: &MasterKeys,
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
    let sealer = Sealer::new(master_keys).context("the master keys cannot be used")?;
    let lanes = Lanes::start(&config.hashing, Arc::clone(&entropy))?;
    let breach_list = BreachList::new(&config.breached_passwords).map_err(anyhow::Error::msg)?;
    // Whoever tries one name must leave places for all others.
    let longest_line = lanes.capacity() / 2;
    let watched = config.limits.rate_limits_enabled;
    let stuffing = Stuffing::new(&config.credential_stuffing, watched, Arc::clone(&clock));
    Ok(Core {
        node_id: uuid::Builder::from_random_bytes(entropy.array()).into_uuid(),
        store: store.await?,
        lanes,
        breach_list,
        clock,
        entropy,
        keyring: Arc::new(Keyring::new(sealer)),
        trust,
        skew: Skew::new(config.tokens.max_clock_skew_seconds),
        throttle: Throttle::new(config.login_throttle.limits(), longest_line),
        sampler: config.audit.sampler(),
        stuffing,
        policy: Policy {
            issuer: config.issuer.clone(),
            audiences: config.audiences.clone(),
            client_id: config.client_id.clone(),
            self_registration: config.self_registration,
            keys: config.keys.policy(config.http.jwks_max_age_seconds),
            passwords: config.passwords.clone(),
            tokens: config.tokens.clone(),
            sessions: config.sessions.clone(),
            api_keys: config.api_keys.clone(),
            audit: config.audit.clone(),
        },
    })
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    core: Arc<Core>,
    feed: Arc<Feed>,
    process: Process,
    work: TaskTracker,
}

impl Node {
    /// Opens the ports and starts everything. Servers run on the runtime that
    /// this is called on, everything that touches the database on `work`. The
    /// database need not be up: see [`Node::ready`].
    pub async fn start(
        config: &Config,
        master_keys: &MasterKeys,
        seams: Seams,
        telemetry: &Telemetry,
        work: &Handle,
    ) -> anyhow::Result<Self> {
        let clock = Arc::clone(&seams.clock);
        let core = Arc::new(core(config, master_keys, &seams, Trust::default()).await?);
        core.store.lock_instance()?;
        let leeway = Duration::from_secs(u64::from(config.tokens.leeway_seconds));
        let policy = VerifierPolicy {
            leeway,
            ..VerifierPolicy::default()
        };
        let verifier = Arc::new(Verifier::new(Arc::clone(&clock), policy));
        let breaker = core.store.breaker().clone();
        let readiness = Readiness {
            verifier: Arc::clone(&verifier),
            database: Some(breaker.clone()),
            draining: CancellationToken::new(),
        };
        let draining = readiness.draining.clone();
        let ports = Ports::open(config, &seams, telemetry, readiness).await?;

        let calls = TaskTracker::new();
        let feed = Arc::new(Feed::new(Arc::clone(&verifier)));
        let jwks_max_age = Duration::from_secs(config.http.jwks_max_age_seconds);
        let routes = TokenApi::new(Arc::clone(&verifier), jwks_max_age).routes(Routes::default());
        let routes = Authorization::new(Arc::clone(&verifier)).routes(routes);
        let entropy = Arc::clone(&seams.entropy);
        let until = draining.clone();
        let routes = TrustApi::new(Arc::clone(&feed), clock, entropy, until).routes(routes);
        let api = Api::new(Arc::clone(&core), Work::new(work.clone(), calls.clone()));
        let routes = AuditApi::new(api.clone(), verifier, draining).routes(routes);
        let process = ports.serve(config, seams, api.routes(routes), access::ROWS)?;

        spawn_work(&process, config, &core, &feed, work);
        Ok(Self {
            core,
            feed,
            process,
            work: calls,
        })
    }

    /// The node as a process.
    pub fn process(&self) -> &Process {
        &self.process
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
            failure = self.process.failed() => Err(failure),
        }
    }

    /// Drains: tells so, accepts nothing new, finishes what runs, ends.
    pub async fn stop(&self) {
        self.process.drain().await;
        self.work.close();
        if timeout(WORK_ENDS, self.work.wait()).await.is_err() {
            tracing::warn!(calls = self.work.len(), "stopped while calls were running");
        }
        self.process.end().await;
    }
}

/// What works on the database in the background.
fn spawn_work(
    process: &Process,
    config: &Config,
    core: &Arc<Core>,
    feed: &Arc<Feed>,
    work: &Handle,
) {
    let Process { tasks, over, .. } = process;
    let poll = Duration::from_millis(config.database.trust_poll_ms);
    let follower = Follower::new(Arc::clone(core), Arc::clone(feed), poll);
    tasks.spawn("following the trust log", work, follower.run(over.clone()));
    let listening = Wake::new(Arc::clone(core)).run(over.clone());
    tasks.spawn("listening to the trust log", work, listening.map(Ok));
    let presence = Presence::new(Arc::clone(core), Arc::clone(feed)).run(over.clone());
    tasks.spawn("telling other nodes", work, presence.map(Ok));
    let rotation = Rotation::new(Arc::clone(core)).run(over.clone());
    tasks.spawn("rotating signing keys", work, rotation.map(Ok));
    let chaining = Chainer::new(Arc::clone(core)).run(over.clone());
    tasks.spawn("chaining the audit log", work, chaining.map(Ok));
    let watching = Lookout::new(Arc::clone(core)).run(over.clone());
    tasks.spawn("watching failed logins", work, watching.map(Ok));
    let janitor = Janitor::new(Arc::clone(core), JANITOR_EVERY).run(over.clone());
    tasks.spawn("the janitor", work, janitor.map(Ok));
    let (store, until) = (core.store.clone(), over.clone());
    let every = Duration::from_millis(config.database.breaker.probe_interval_ms);
    let breaker = core.store.breaker().clone();
    let probe = breaker.probe(async move || store.ping().await.is_ok(), every, until);
    tasks.spawn("probing the database", work, probe.map(Ok));
    if let Some(list) = core.breach_list.clone() {
        let probe = list.run(over.clone());
        tasks.spawn("probing the breach list", work, probe.map(Ok));
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
    let told = StopSignals::new()?;
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
    let node = Node::start(&config, &prepared.master_keys, seams, &telemetry, &work).await?;
    let process = node.process();
    let stop = node.stop();
    process
        .run(told, telemetry, &config, &settings, level, stop)
        .await
}
