//! A sidecar in this process, beside the nodes of a world.

use std::{path::PathBuf, sync::Arc};

use countersign::{
    app::Seams,
    config::{Config, Secret},
    sidecar,
    telemetry::Telemetry,
};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tonic::transport::Endpoint;

use super::{
    Client, Node, World,
    clock::{MockClock, Seeded},
    logs,
};

/// A sidecar, and what it is started with.
#[derive(Debug)]
pub struct Sidecar {
    pub config: Config,
    pub clock: Arc<MockClock>,
    pub running: Option<sidecar::Sidecar>,
    folder: TempDir,
}

impl Sidecar {
    /// A sidecar that follows these nodes with this credential. It may not have
    /// heard of anything yet.
    pub async fn start(world: &World, nodes: &[&Node], credential: &str) -> Self {
        let urls = nodes.iter().map(|node| format!("http://{}", node.address));
        Self::following(world, urls.collect(), credential).await
    }

    pub async fn following(world: &World, nodes: Vec<String>, credential: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = world.config.clone();
        config.sidecar.nodes = nodes;
        config.sidecar.credential = Some(Secret::new(credential.to_owned()));
        config.sidecar.snapshot_file = Some(folder.path().join("snapshot"));
        let mut sidecar = Self {
            config,
            clock: Arc::clone(&world.clock),
            running: None,
            folder,
        };
        sidecar.resume().await;
        sidecar
    }

    /// Stops it, as SIGTERM does.
    pub async fn stop(&mut self) {
        self.running.take().expect("it runs").stop().await;
    }

    /// Starts it (again).
    pub async fn resume(&mut self) {
        let seams = Seams {
            clock: self.clock.clone(),
            entropy: Arc::new(Seeded::new(77)),
        };
        let telemetry = Telemetry::install_to(&self.config.telemetry, logs::writer());
        let telemetry = telemetry.expect("telemetry");
        let started =
            sidecar::Sidecar::start(&self.config, seams, &telemetry, &Handle::current()).await;
        self.running = Some(started.expect("starts"));
    }

    pub fn running(&self) -> &sidecar::Sidecar {
        self.running.as_ref().expect("it runs")
    }

    pub fn address(&self) -> String {
        self.running().process().address().to_owned()
    }

    pub fn client(&self) -> Client {
        let channel = Endpoint::from_shared(format!("http://{}", self.address()))
            .expect("a URI")
            .connect_lazy();
        Client::new(channel, None)
    }

    /// Where it keeps what it knows.
    pub fn snapshot(&self) -> PathBuf {
        self.folder.path().join("snapshot")
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.process().abort();
        }
    }
}
