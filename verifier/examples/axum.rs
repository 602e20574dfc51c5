//! An HTTP service on axum that lets the layer decide who may do what.
//!
//! `cargo run -p countersign-verifier --example axum --features layer`, and then what it prints.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use axum::routing::get;
use axum::{Extension, Router};
use countersign_verifier::layer::{GuardLayer, Require, Routes, Staleness};
use countersign_verifier::{
    ApiKey, ApiKeyHash, ApiKeySecret, ApiKeys, Caller, Clock as _, KeySet, Policy, Revocations,
    SystemClock, TrustState, Verifier, api_key_text,
};
use tokio::net::TcpListener;
use uuid::Uuid;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut random = [0; 24];
    rand::fill(&mut random)?;
    let secret = api_key_text(&random);

    // A real service has its knowledge from the feed; this one knows a single API key.
    let verifier = Arc::new(Verifier::new(Arc::new(SystemClock), Policy::default()));
    verifier.replace(knowing(&secret)?);

    let routes = Routes::default()
        .path("/healthz", Require::nothing())
        .prefix(
            "/orders",
            Require::scope("orders.read").mark_beyond(Duration::from_secs(30)),
        )
        .path("/orders/export", Require::scope("orders.export"));
    let guard = GuardLayer::new(verifier, routes)?.audience("orders");
    let app = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/orders", get(orders))
        .route("/orders/export", get(async || "everything\n"))
        .layer(guard);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!("curl -i http://{address}/healthz                     # 200, for everyone");
    println!("curl -i http://{address}/orders                      # 401");
    println!("curl -i -H 'authorization: Bearer {secret}' http://{address}/orders         # 200");
    println!("curl -i -H 'authorization: Bearer {secret}' http://{address}/orders/export  # 403");
    axum::serve(listener, app).await?;
    Ok(())
}

async fn orders(
    Extension(caller): Extension<Arc<Caller>>,
    Extension(Staleness(age)): Extension<Staleness>,
) -> String {
    format!(
        "the orders of {}, as judged {age:?} after the last news\n",
        caller.subject
    )
}

fn knowing(secret: &str) -> Result<TrustState, Box<dyn Error>> {
    let mut api_keys = ApiKeys::default();
    api_keys.insert(ApiKey {
        id: Uuid::from_u128(1),
        owner: Uuid::from_u128(2),
        name: "example".into(),
        scopes: vec!["orders.read".into()],
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
