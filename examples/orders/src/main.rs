//! The command line of the example, its log, and its end.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use orders::Settings;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tonic::transport::{ClientTlsConfig, Endpoint};
use tracing_subscriber::EnvFilter;

/// A small gRPC service that Countersign protects: everybody's orders, in memory.
#[derive(Debug, Parser)]
#[command(after_help = "\
It serves orders.v1.OrdersService, health and reflection, and the caller's orders as JSON at /orders.
Until a node has been heard it refuses every call, and goes on trying. It follows nodes, as a sidecar
has no feed to give. RUST_LOG sets the log level [default: info].

Example:
  (umask 077 && countersign api-key create ana@example.com --name orders \\
    --scope countersign.trust.watch >orders.key)
  orders --node http://127.0.0.1:50051 --issuer http://127.0.0.1:8081 --credential-file orders.key")]
struct Arguments {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// A node of Countersign to follow, http or https; may be given again
    #[arg(long = "node", value_name = "URL", required = true)]
    nodes: Vec<Endpoint>,
    /// The nodes' issuer
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// File with an API key that has the permission countersign.trust.watch
    #[arg(long, value_name = "FILE")]
    credential_file: PathBuf,
    /// Audience that tokens must be meant for
    #[arg(long, value_name = "NAME", default_value = "countersign")]
    audience: String,
    /// For how many seconds changes are made without news of revocations; lists are shown beyond it
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    max_staleness: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(std::io::stderr)
        .init();
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("stopping: finishing what runs");
    };
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    orders::serve(listener, arguments.settings()?, stop).await
}

impl Arguments {
    fn settings(self) -> anyhow::Result<Settings> {
        let nodes = self.nodes.into_iter().map(with_tls);
        Ok(Settings {
            nodes: nodes.collect::<anyhow::Result<_>>()?,
            credential_file: self.credential_file,
            issuer: self.issuer,
            audience: self.audience,
            max_staleness: Duration::from_secs(self.max_staleness),
        })
    }
}

/// An https node must show a certificate that the system's authorities have signed.
fn with_tls(node: Endpoint) -> anyhow::Result<Endpoint> {
    if node.uri().scheme_str() == Some("https") {
        let tls = ClientTlsConfig::new().with_native_roots();
        return Ok(node.tls_config(tls)?);
    }
    Ok(node)
}
