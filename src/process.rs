//! What a node and a sidecar have in common as processes: two ports, the layers,
//! health, tasks that are watched, and an orderly end. The only place that
//! spawns, with the composition roots that use it.

use std::{net::SocketAddr, panic::AssertUnwindSafe, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use futures_util::{FutureExt as _, TryFutureExt as _};
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{
    app::Seams,
    cli,
    config::{Config, Settings},
    error::{Error, Result, chain},
    grpc,
    health::{Health, Readiness},
    http::SidePort,
    listen::Listener,
    middleware::{self, PeerLimits, access, web},
    telemetry::Telemetry,
};

/// How long work may go on after the last connection has ended.
pub const WORK_ENDS: Duration = Duration::from_secs(5);

/// Signals that follow the first one within this time are the same wish: whoever
/// signals a whole process group, as `timeout` does, may signal twice.
const SAME_WISH: Duration = Duration::from_millis(500);

/// A process that serves.
#[derive(Debug)]
pub struct Process {
    address: String,
    http_address: SocketAddr,
    /// Cancelled when the process begins to stop: it tells so, accepts nothing
    /// new and finishes what runs.
    pub draining: CancellationToken,
    /// Cancelled when nothing runs any more: background tasks end.
    pub over: CancellationToken,
    /// Ends when the last connection has.
    connections: TaskTracker,
    /// What runs beside the servers.
    pub tasks: Tasks,
}

/// The ports of a process that does not serve yet.
#[derive(Debug)]
pub struct Ports {
    listener: Listener,
    side_port: SidePort,
    readiness: Readiness,
}

/// What runs as long as the process, and why it cannot go on if one of them
/// fails. A task that died unnoticed would be worse than a process that ends: it
/// would serve on and hear no revocation.
#[derive(Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    failed: watch::Sender<Option<String>>,
}

impl Tasks {
    /// Runs a task on a runtime, watched.
    pub fn spawn(
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
}

impl Ports {
    /// Opens the ports. Nothing is accepted yet.
    pub async fn open(
        config: &Config,
        seams: &Seams,
        telemetry: &Telemetry,
        readiness: Readiness,
    ) -> anyhow::Result<Self> {
        let side_port = SidePort::bind(&config.http, readiness.clone(), telemetry.metrics())
            .await
            .with_context(|| format!("cannot listen on {}", config.http.address))?;
        let listener = Listener::bind(&config.listen, Arc::clone(&seams.entropy)).await?;
        Ok(Self {
            listener: listener.on_threads()?,
            side_port,
            readiness,
        })
    }

    /// Serves: the routes behind all layers, health per service, the side port.
    pub fn serve(
        self,
        config: &Config,
        seams: Seams,
        routes: Routes,
        rows: &'static [access::Row],
    ) -> anyhow::Result<Process> {
        let Self {
            listener,
            side_port,
            readiness,
        } = self;
        let Seams { clock, entropy } = seams;
        let (reporter, health) = tonic_health::server::health_reporter();
        let mut routes = routes.add_service(health);
        if config.reflection {
            routes = grpc::reflection(routes)?;
        }
        let peer_limits = Arc::new(PeerLimits::new(&config.limits, Arc::clone(&clock)));
        let parts = middleware::Parts {
            config: config.limits.clone(),
            clock,
            entropy,
            verifier: Arc::clone(&readiness.verifier),
            audience: config.own_audience.clone(),
            workloads: config.listen.workloads(),
            database: readiness.database.clone(),
            peer_limits: Arc::clone(&peer_limits),
            access: rows,
            validation_log_sample: config.telemetry.validation_log_sample,
            traces_exported: config.telemetry.exports_traces(),
        };
        let process = Process {
            address: listener.address().to_owned(),
            http_address: side_port.address()?,
            draining: readiness.draining.clone(),
            over: CancellationToken::new(),
            connections: TaskTracker::new(),
            tasks: Tasks {
                tracker: TaskTracker::new(),
                failed: watch::Sender::new(None),
            },
        };
        let Process {
            draining,
            over,
            connections,
            tasks,
            ..
        } = &process;
        let serving = Handle::current();
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
        let health = Health::new(reporter, readiness, rows).run(over.clone());
        tasks.spawn("health", &serving, health.map(Ok));
        let sweeping = peer_limits.run(over.clone());
        tasks.spawn("the limits per peer", &serving, sweeping.map(Ok));
        Ok(process)
    }
}

impl Process {
    /// The gRPC address in the form of the configuration.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address of the side port.
    pub fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Waits until the process cannot go on, and returns why. While all is well
    /// that is never.
    pub async fn failed(&self) -> anyhow::Error {
        let mut failed = self.tasks.failed.subscribe();
        match failed.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(why)) => anyhow::anyhow!("{why}"),
            // The sender is ours and lives as long as we do.
            _ => std::future::pending().await,
        }
    }

    /// Says that it stops, accepts nothing new, and waits for what runs on its
    /// connections.
    pub async fn drain(&self) {
        self.draining.cancel();
        self.connections.wait().await;
    }

    /// Ends what runs beside the servers.
    pub async fn end(&self) {
        // The side port has said until now that this process is draining.
        self.over.cancel();
        let tracker = &self.tasks.tracker;
        tracker.close();
        if timeout(WORK_ENDS, tracker.wait()).await.is_err() {
            tracing::warn!(tasks = tracker.len(), "stopped while tasks were running");
        }
    }

    /// Ends at once and without waiting for anything, as a test that is over
    /// may.
    pub fn abort(&self) {
        self.draining.cancel();
        self.over.cancel();
    }

    /// Waits until the process is told to stop or cannot go on, and stops it.
    /// `level` reads the log level that the configuration has now, for SIGHUP.
    pub async fn run(
        &self,
        mut told: StopSignals,
        telemetry: Telemetry,
        config: &Config,
        settings: &Settings,
        level: impl Fn() -> Option<String> + Send + 'static,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<ExitCode> {
        let serving = Handle::current();
        let upkeep = telemetry.clone().run(self.over.clone());
        self.tasks.spawn("the metrics", &serving, upkeep.map(Ok));
        let hangups = telemetry.clone().follow_hangups(level, self.over.clone());
        let hangups = hangups.map_err(Error::internal);
        self.tasks.spawn("the log level", &serving, hangups);
        tracing::info!(
            version = cli::VERSION,
            profile = config.profile.as_str(),
            grpc = self.address(),
            http = %self.http_address(),
            settings = settings.changes(),
            "serving"
        );
        let failure = tokio::select! {
            signal = told.recv() => {
                tracing::info!(signal, "stopping: finishing what runs; a second signal ends it");
                None
            }
            failure = self.failed() => Some(failure),
        };
        let in_time = tokio::select! {
            () = stop => true,
            signal = told.recv_again() => {
                tracing::warn!(signal, "ended at once");
                false
            }
        };
        telemetry.flush().await;
        match failure {
            Some(failure) => Err(failure),
            None if in_time => Ok(ExitCode::SUCCESS),
            None => Ok(ExitCode::FAILURE),
        }
    }
}

/// The signals by which a process is told to stop.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Listens from now on; until then a signal ends the process.
    pub fn new() -> std::io::Result<Self> {
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
