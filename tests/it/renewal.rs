//! A certificate is renewed while calls go on: none of them fails.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use countersign_proto::v1;
use tokio::task::JoinSet;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::{
    harness::{
        Client,
        binary::{Program, Server},
        eventually,
    },
    on_both,
    workloads::{dns, issuer, sign},
};

const RELOADED: &str = "the TLS certificate was reloaded";
const UNUSABLE: &str = "the new TLS certificate cannot be used; the old one stays";

/// Calls that go on until they are stopped.
struct Load {
    over: Arc<AtomicBool>,
    connected: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Half of it on one connection each, half on a new connection for each call.
    fn start(endpoint: &Endpoint) -> Self {
        let mut load = Self {
            over: Arc::default(),
            connected: Arc::default(),
            tasks: JoinSet::new(),
        };
        for number in 0..6 {
            let (over, connected) = (Arc::clone(&load.over), Arc::clone(&load.connected));
            let endpoint = endpoint.clone();
            load.tasks.spawn(async move {
                let mut client = None;
                while !over.load(Relaxed) {
                    if client.is_none() {
                        let channel = endpoint.connect().await.expect("a connection");
                        connected.fetch_add(1, Relaxed);
                        client = Some(Client::new(channel, None));
                    }
                    if let Some(client) = &mut client {
                        let answer = client.tokens.get_jwks(v1::GetJwksRequest {}).await;
                        answer.expect("no call fails");
                    }
                    client = client.filter(|_| number % 2 == 0);
                }
            });
        }
        load
    }

    /// Waits until so many more have connected anew.
    async fn goes_on(&self) {
        let before = self.connected.load(Relaxed);
        eventually("others connect", async || {
            self.connected.load(Relaxed) >= before + 20
        })
        .await;
    }

    async fn stop(mut self) {
        self.over.store(true, Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("no call fails");
        }
    }
}

/// How often the server said so.
fn said(server: &Server, words: &str) -> usize {
    server.log().matches(words).count()
}

on_both! {
    async fn no_call_fails_while_the_certificate_is_renewed(program: Program) {
        let issuer = issuer();
        let new = || sign(&issuer, vec![dns("localhost")], (2020, 2100));
        let [chain, key] = ["chain.pem", "key.pem"].map(|file| program.folder().join(file));
        let (certificate, its_key) = new();
        fs::write(&chain, certificate.pem()).unwrap();
        fs::write(&key, its_key.serialize_pem()).unwrap();
        let program = program
            .set("COUNTERSIGN_LISTEN__TLS_CERTIFICATE_FILE", "chain.pem")
            .set("COUNTERSIGN_LISTEN__TLS_KEY_FILE", "key.pem")
            .set("COUNTERSIGN_LISTEN__TLS_RELOAD_SECONDS", "1");
        let mut server = program.serve("server").await;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(issuer.pem()))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).unwrap();
        let load = Load::start(&endpoint.tls_config(tls).unwrap());
        load.goes_on().await;
        for round in 1..=3 {
            let (certificate, its_key) = new();
            // One file after the other: what does not belong together is not taken up.
            fs::write(&chain, certificate.pem()).unwrap();
            server.until("said so", |server| said(server, UNUSABLE) >= round).await;
            load.goes_on().await;
            fs::write(&key, its_key.serialize_pem()).unwrap();
            server.until("reloaded", |server| said(server, RELOADED) >= round).await;
            load.goes_on().await;
        }
        load.stop().await;
    }
}
