//! A small gRPC service that Countersign protects: what to copy into a service of one's own.
//!
//! - `routes` says for each RPC who may call it, and what happens to it while no news of
//!   revocations comes. What is not listed there is refused.
//! - The tower layer enforces that before a handler runs, and hands it the caller.
//! - `client::Feed` follows Countersign's nodes and keeps what the layer decides by up to date. No
//!   call is made to them per request, and none is missed while they are away.
//!
//! The feed comes from nodes. A sidecar has none to give: it decides for those who ask it, such as
//! an Envoy in front of this service, which may well be there, too.

mod book;

/// Generated from `proto/orders/v1/orders.proto`.
pub mod v1 {
    #![allow(
        clippy::all,
        clippy::allow_attributes,
        clippy::pedantic,
        missing_debug_implementations,
        unreachable_pub
    )]
    tonic::include_proto!("orders.v1");

    pub(crate) const FILE_DESCRIPTOR_SET: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
}

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::routing::get;
use countersign_verifier::{
    Policy, SystemClock, Verifier,
    client::{Bearer, Config, Feed},
    layer::{GuardLayer, Require, Routes},
};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    time::{interval, sleep},
};
use tonic::{
    service,
    transport::{Endpoint, Server, server::TcpIncoming},
};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::{book::Book, v1::orders_service_server::OrdersServiceServer};

/// How often the log says that there is still nothing to decide by.
const REMIND: Duration = Duration::from_secs(10);

/// How long calls that run may go on once the service is told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// How often to look whether there is something to decide by.
const LOOK: Duration = Duration::from_millis(100);

/// What the service needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Countersign's nodes. With several the freshest is followed.
    pub nodes: Vec<Endpoint>,
    /// File with an API key that has the permission `countersign.trust.watch`.
    pub credential_file: PathBuf,
    /// The nodes' issuer. Others' tokens are refused.
    pub issuer: String,
    /// Tokens must be meant for this audience.
    pub audience: String,
    /// For how long changes are made without news of revocations.
    pub max_staleness: Duration,
}

/// Who may call what.
fn routes(max_staleness: Duration) -> Routes {
    let changes = |who: Require| who.fresh_within(max_staleness);
    let looks = |who: Require| who.mark_beyond(max_staleness);
    Routes::default()
        .path(
            "/orders.v1.OrdersService/PlaceOrder",
            changes(Require::scope("orders.write")),
        )
        .path(
            "/orders.v1.OrdersService/CancelOrder",
            changes(Require::any_role(["buyer"])),
        )
        .path(
            "/orders.v1.OrdersService/ListOrders",
            looks(Require::caller()),
        )
        .path("/orders", looks(Require::caller()))
        .prefix("/grpc.health.v1.Health", Require::nothing())
        .prefix("/grpc.reflection.v1.ServerReflection", Require::nothing())
        .prefix(
            "/grpc.reflection.v1alpha.ServerReflection",
            Require::nothing(),
        )
}

/// Serves until it is told to stop, and then finishes what runs.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let verifier = Arc::new(Verifier::new(Arc::new(SystemClock), Policy::default()));
    let guard = GuardLayer::new(Arc::clone(&verifier), routes(settings.max_staleness))?;
    let guard = guard.audience(settings.audience);
    let feed = Feed::new(
        Arc::clone(&verifier),
        Config {
            endpoints: settings.nodes,
            bearer: Bearer::File(settings.credential_file),
            instance: "orders".to_owned(),
            issuer: Some(settings.issuer),
        },
    );

    let (reporter, health) = health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // With the details of errors, so that grpcurl prints a refusal whole.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let book = Book::default();
    let grpc = service::Routes::new(OrdersServiceServer::new(book.clone()))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let http = axum::Router::new()
        .route("/orders", get(book::list))
        .with_state(book);
    let (stopping, stopped) = oneshot::channel();
    let last_word = reporter.clone();
    let stop = async move {
        stop.await;
        last_word
            .set_not_serving::<OrdersServiceServer<Book>>()
            .await;
        stopping.send(()).ok();
    };
    let serving = Server::builder()
        .accept_http1(true)
        // Outside of everything that acts on a request.
        .layer(guard)
        .add_routes(grpc.into_axum_router().merge(http).into())
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop);
    tokio::select! {
        served = serving => Ok(served?),
        () = grace(stopped) => anyhow::bail!("calls that ran were cut off"),
        // Neither of these ends by itself.
        () = feed.run() => Ok(()),
        () = tell_health(&verifier, reporter) => Ok(()),
    }
}

/// Ends some time after the service was told to stop.
async fn grace(stopped: oneshot::Receiver<()>) {
    match stopped.await {
        Ok(()) => sleep(GRACE).await,
        Err(_) => std::future::pending().await,
    }
}

/// Says that the service serves once there is something to decide by, and says why not until then.
async fn tell_health(verifier: &Verifier, reporter: HealthReporter) {
    reporter
        .set_not_serving::<OrdersServiceServer<Book>>()
        .await;
    let mut reminders = interval(REMIND);
    loop {
        tokio::select! {
            _ = reminders.tick() => tracing::warn!(
                "nothing is known yet, so every call is refused; waiting for a node"
            ),
            () = ready(verifier) => break,
        }
    }
    tracing::info!("ready: deciding by what the nodes say");
    reporter.set_serving::<OrdersServiceServer<Book>>().await;
    std::future::pending::<()>().await;
}

async fn ready(verifier: &Verifier) {
    let mut looks = interval(LOOK);
    while verifier.state().is_none() {
        looks.tick().await;
    }
}
