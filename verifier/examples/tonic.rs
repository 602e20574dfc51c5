//! A gRPC service on tonic that lets the layer decide who may do what.
//!
//! `cargo run -p countersign-verifier --example tonic --features layer`. It calls itself as nobody, as
//! somebody, and as somebody whose key is then taken away, and prints what comes back.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::error::Error;
use std::sync::Arc;

use aws_lc_rs::rand;
use countersign_verifier::layer::{GuardLayer, Require, Routes};
use countersign_verifier::{
    ApiKey, ApiKeyHash, ApiKeySecret, ApiKeys, Clock as _, KeySet, Policy, Revocations,
    SystemClock, TrustState, Verifier, api_key_text,
};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;
use uuid::Uuid;

const KEY: Uuid = Uuid::from_u128(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut random = [0; 24];
    rand::fill(&mut random)?;
    let secret = api_key_text(&random);

    // A real service has its knowledge from the feed; this one knows a single API key.
    let verifier = Arc::new(Verifier::new(Arc::new(SystemClock), Policy::default()));
    verifier.replace(knowing(&secret)?);

    let routes = Routes::default()
        .prefix("/grpc.health.v1.Health", Require::caller())
        .path(
            "/grpc.health.v1.Health/Check",
            Require::scope("health.read"),
        );
    let guard = GuardLayer::new(Arc::clone(&verifier), routes)?.audience("orders");
    let (_reporter, health) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = Server::builder().layer(guard).add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));

    let channel = Channel::from_shared(format!("http://{address}"))?.connect_lazy();
    println!("nobody:   {}", said(check(&channel, None).await));
    println!("somebody: {}", said(check(&channel, Some(&secret)).await));
    verifier.update(|state| state.api_keys.remove(KEY));
    println!("revoked:  {}", said(check(&channel, Some(&secret)).await));
    Ok(())
}

async fn check(channel: &Channel, secret: Option<&str>) -> Result<(), Status> {
    let mut request = Request::new(HealthCheckRequest::default());
    if let Some(secret) = secret {
        let bearer = format!("Bearer {secret}").parse();
        let bearer = bearer.map_err(|_| Status::internal("not a header"))?;
        request.metadata_mut().insert("authorization", bearer);
    }
    let mut client = HealthClient::new(channel.clone());
    client.check(request).await.map(|_| ())
}

fn said(result: Result<(), Status>) -> String {
    match result {
        Ok(()) => "served".into(),
        Err(status) => {
            let reason = status.get_details_error_info().map(|info| info.reason);
            format!("{:?}, {}", status.code(), reason.unwrap_or_default())
        }
    }
}

fn knowing(secret: &str) -> Result<TrustState, Box<dyn Error>> {
    let mut api_keys = ApiKeys::default();
    api_keys.insert(ApiKey {
        id: KEY,
        owner: Uuid::from_u128(2),
        name: "example".into(),
        scopes: vec!["health.read".into()],
        audience: vec!["orders".into()],
        created_at: SystemClock.now(),
        expires_at: None,
        secrets: vec![ApiKeySecret {
            hash: ApiKeyHash::of(secret).ok_or("not an API key")?,
            expires_at: None,
        }],
    });
    Ok(TrustState {
        issuer: "https://auth.example.com".into(),
        audiences: vec!["orders".into()],
        keys: KeySet::default(),
        revocations: Revocations::default(),
        api_keys,
        seq: 0,
        nonce: Uuid::nil(),
    })
}
