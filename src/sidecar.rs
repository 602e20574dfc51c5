//! The second composition root: a process that decides, and holds nothing else.
//!
//! It follows the feed of central nodes, and serves from memory what they serve
//! from memory: TokenService, Envoy's ext_authz and health. No store, no keys
//! that sign. It starts and answers when no node can be reached, by what it last
//! knew: a sealed snapshot on its disk, whose age goes on by the wall clock.

mod config;
pub mod snapshot;

use std::{process::ExitCode, sync::Arc, time::Duration};

use countersign_verifier::{
    Policy, Verifier,
    client::{Counts, Feed},
};
use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use config::Config;
use snapshot::Snapshot;

use crate::{
    app::Seams,
    config::{Config as Settings, Loaded},
    grpc::{TokenApi, ext_authz::Authorization},
    health::Readiness,
    middleware::access,
    process::{Ports, Process, StopSignals},
    telemetry::{self, Telemetry},
};

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    verifier: Arc<Verifier>,
    counts: Arc<Counts>,
    process: Process,
}

impl Sidecar {
    /// Reads what was known last, opens the ports and begins to follow, on
    /// `work`: what arrives keeps no decision waiting. No node need be up.
    pub async fn start(
        settings: &Settings,
        seams: Seams,
        telemetry: &Telemetry,
        work: &Handle,
    ) -> anyhow::Result<Self> {
        let policy = Policy {
            leeway: Duration::from_secs(u64::from(settings.tokens.leeway_seconds)),
            ..Policy::default()
        };
        let verifier = Arc::new(Verifier::new(Arc::clone(&seams.clock), policy));
        let feed = settings.sidecar.feed(&settings.issuer)?;
        let feed = Feed::new(Arc::clone(&verifier), feed);
        let counts = Arc::clone(feed.counts());
        let snapshot = Snapshot::new(settings, Arc::clone(&verifier), Arc::clone(&seams.entropy))?;
        snapshot.restore();
        let readiness = Readiness {
            verifier: Arc::clone(&verifier),
            database: None,
            draining: CancellationToken::new(),
        };
        let ports = Ports::open(settings, &seams, telemetry, readiness).await?;
        let jwks_max_age = Duration::from_secs(settings.http.jwks_max_age_seconds);
        let routes = TokenApi::new(Arc::clone(&verifier), jwks_max_age).routes(Routes::default());
        let routes = Authorization::new(Arc::clone(&verifier)).routes(routes);
        let process = ports.serve(settings, seams, routes, access::from_memory())?;

        let Process { tasks, over, .. } = &process;
        let until = over.clone();
        let following = async move { until.run_until_cancelled(feed.run()).await };
        tasks.spawn("following the feed", work, following.map(|_| Ok(())));
        let keeping = snapshot.run(over.clone());
        tasks.spawn("keeping the snapshot", work, keeping.map(Ok));
        Ok(Self {
            verifier,
            counts,
            process,
        })
    }

    /// Decides.
    pub fn verifier(&self) -> &Arc<Verifier> {
        &self.verifier
    }

    /// What the feed did.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// The sidecar as a process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Drains: tells so, accepts nothing new, finishes what runs, ends.
    pub async fn stop(&self) {
        self.process.drain().await;
        self.process.end().await;
    }
}

/// Runs a sidecar until the process is told to stop. `level` reads the log level
/// that the configuration has now, for SIGHUP; `work` is for what must not hold
/// up the serving threads.
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
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let sidecar = Sidecar::start(&config, Seams::default(), &telemetry, &work).await?;
    let (process, stop) = (sidecar.process(), sidecar.stop());
    process
        .run(told, telemetry, &config, &settings, level, stop)
        .await
}
