//! The side port, plain HTTP for what does not speak gRPC:
//!
//! | path | answer |
//! | --- | --- |
//! | `/.well-known/jwks.json` | the public keys (RFC 7517); 503 before the first trust state |
//! | `/.well-known/oauth-authorization-server` | what kind of server this is (RFC 8414); 503 likewise |
//! | `/livez` | 200 while the process runs; asks nobody |
//! | `/readyz` | 200 while tokens are validated here, else 503; JSON with the reasons |
//! | `/metrics` | Prometheus text |
//!
//! Nothing here changes anything or needs the database, and nothing is secret:
//! whether `/metrics` may be seen from outside is for the network to say.

use std::{io, sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{
    HeaderMap, StatusCode, Uri,
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RETRY_AFTER},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::health::Readiness;

const JWKS: &str = "/.well-known/jwks.json";
const METADATA: &str = "/.well-known/oauth-authorization-server";

/// How long a request's head may take, and a connection be idle.
const HEAD: Duration = Duration::from_secs(10);

/// How long a connection may live: scrapers and probes come anew.
const LIFE: Duration = Duration::from_mins(1);

/// How long requests may go on once the process stops.
const GRACE: Duration = Duration::from_secs(2);

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 256;

/// `[http]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `ADDRESS:PORT`.
    pub address: String,
    /// How long others may keep the public keys before they ask again. A new
    /// key must be published for longer than this before it signs.
    pub jwks_max_age_seconds: u64,
}

/// The port, open.
#[derive(Debug)]
pub struct SidePort {
    listener: TcpListener,
    router: Router,
}

#[derive(Debug, Clone)]
struct Shared {
    readiness: Readiness,
    metrics: PrometheusHandle,
    jwks_cache_control: Arc<str>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:8081".into(),
            jwks_max_age_seconds: 300,
        }
    }
}

impl Config {
    /// Checks the values.
    ///
    /// # Errors
    ///
    /// What is wrong with each key, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        let (_, port) = self.address.rsplit_once(':').unwrap_or_default();
        if port.parse::<u16>().is_err() {
            problems.push(format!(
                "http.address is \"{}\"; write it as \"127.0.0.1:8081\" or \"[::]:8081\"",
                self.address
            ));
        }
        if !(1..=86_400).contains(&self.jwks_max_age_seconds) {
            problems.push(format!(
                "http.jwks_max_age_seconds is {}; set it to 1 to 86400",
                self.jwks_max_age_seconds
            ));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }
}

impl SidePort {
    /// Opens the port.
    ///
    /// # Errors
    ///
    /// The address cannot be listened on.
    pub async fn bind(
        config: &Config,
        readiness: Readiness,
        metrics: PrometheusHandle,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(&config.address).await?;
        let max_age = config.jwks_max_age_seconds;
        let shared = Shared {
            readiness,
            metrics,
            jwks_cache_control: format!("public, max-age={max_age}").into(),
        };
        let router = Router::new()
            .route(JWKS, get(jwks))
            .route(METADATA, get(metadata))
            // Where the issuer has a path, it follows (RFC 8414, section 3.1).
            .route(&format!("{METADATA}/{{*path}}"), get(metadata))
            .route("/livez", get(StatusCode::OK))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_text))
            .with_state(shared);
        Ok(Self { listener, router })
    }

    /// The address, with the port that was chosen if that was 0.
    ///
    /// # Errors
    ///
    /// The system does not say.
    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, and then what runs.
    pub async fn serve(self, shutdown: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let connections = TaskTracker::new();
        let accept = async {
            loop {
                let place = Arc::clone(&places).acquire_owned().await;
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let serving = converse(stream, self.router.clone(), shutdown.clone());
                        connections.spawn(async move {
                            serving.await;
                            drop(place);
                        });
                    }
                    // No file descriptor is left, or the caller is gone.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        shutdown.run_until_cancelled(accept).await;
        drop(self.listener);
        connections.close();
        connections.wait().await;
    }
}

async fn converse(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let life = tokio::time::sleep(LIFE);
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = shutdown.cancelled() => {}
        () = life => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(GRACE, connection).await;
}

async fn jwks(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let Some(state) = shared.readiness.verifier.state() else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")]).into_response();
    };
    let body = json!({ "keys": state.keys.jwks() }).to_string();
    cacheable(&shared, &headers, "application/jwk-set+json", body)
}

/// Says what is true and no more. There is no endpoint for authorization or
/// tokens, as people log in over gRPC. Without `grant_types_supported` two grants
/// would be taken for granted, and `response_types_supported` is required; so
/// both stand there empty, although section 3.2 would leave out what is.
async fn metadata(State(shared): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    let Some(state) = shared.readiness.verifier.state() else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")]).into_response();
    };
    let issuer = state.issuer.as_str();
    let of_issuer = issuer.parse::<url::Url>().ok();
    let of_issuer = of_issuer.as_ref().map_or("", url::Url::path);
    let asked = uri.path().strip_prefix(METADATA).unwrap_or_default();
    if !asked.is_empty() && asked != of_issuer.trim_end_matches('/') {
        return StatusCode::NOT_FOUND.into_response();
    }
    let body = json!({
        "issuer": issuer,
        "jwks_uri": format!("{}{JWKS}", issuer.trim_end_matches('/')),
        "grant_types_supported": [],
        "response_types_supported": [],
    });
    cacheable(&shared, &headers, "application/json", body.to_string())
}

/// An answer that may be kept as long as the keys may.
fn cacheable(shared: &Shared, headers: &HeaderMap, kind: &str, body: String) -> Response {
    let hash = digest(&SHA256, body.as_bytes());
    let tag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(hash));
    let known = is_known(headers, &tag);
    let caching = [(CACHE_CONTROL, &*shared.jwks_cache_control), (ETAG, &*tag)];
    if known {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (caching, [(CONTENT_TYPE, kind)], body).into_response()
}

/// Whether `If-None-Match` names the tag (RFC 9110, section 13.1.2; weak
/// comparison).
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(IF_NONE_MATCH).iter();
    let mut tags = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    tags.any(|given| {
        let given = given.trim();
        given == "*" || given.strip_prefix("W/").unwrap_or(given) == tag
    })
}

async fn readyz(State(Shared { readiness, .. }): State<Shared>) -> Response {
    let ready = readiness.is_ready();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let staleness = readiness.verifier.staleness();
    let body = json!({
        "ready": ready,
        "draining": readiness.is_draining(),
        // How old what is known of keys and revocations is.
        "trust_age_ms": staleness.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        // Shown, but validation does without.
        "database": readiness.database_answers().map(|up| if up { "up" } else { "down" }),
    });
    (status, Json(body)).into_response()
}

async fn metrics_text(State(shared): State<Shared>) -> impl IntoResponse {
    let kind = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, shared.metrics.render())
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::Value;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        task::JoinHandle,
    };

    use super::*;
    use crate::{
        breaker::{self, Breaker},
        middleware::tests::Mint,
    };

    struct Port {
        address: std::net::SocketAddr,
        mint: Mint,
        readiness: Readiness,
        shutdown: CancellationToken,
        done: JoinHandle<()>,
    }

    impl Port {
        async fn start() -> Self {
            let mint = Mint::new();
            let readiness = Readiness {
                verifier: mint.verifier.clone(),
                database: Some(Breaker::new("database", &breaker::Config::default())),
                draining: CancellationToken::new(),
            };
            let config = Config {
                address: "127.0.0.1:0".into(),
                ..Config::default()
            };
            let recorder = PrometheusBuilder::new().build_recorder();
            metrics::with_local_recorder(&recorder, || {
                metrics::counter!("countersign_test_total").increment(3);
            });
            let port = SidePort::bind(&config, readiness.clone(), recorder.handle())
                .await
                .unwrap();
            let shutdown = CancellationToken::new();
            Self {
                address: port.address().unwrap(),
                done: tokio::spawn(port.serve(shutdown.clone())),
                mint,
                readiness,
                shutdown,
            }
        }

        /// The head and the body of an answer.
        async fn get(&self, path: &str, header: &str) -> (String, String) {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: x\r\n{header}connection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.to_owned(), body.to_owned())
        }
    }

    fn status(head: &str) -> &str {
        head.split(' ').nth(1).unwrap()
    }

    fn header<'a>(head: &'a str, name: &str) -> &'a str {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| *key == name)
            .map_or("", |(_, value)| value)
    }

    #[tokio::test]
    async fn keys_are_published_once_they_are_known_and_may_be_kept() {
        let port = Port::start().await;
        let path = "/.well-known/jwks.json";
        assert_eq!(status(&port.get(path, "").await.0), "503");
        port.mint.publish();
        let (head, body) = port.get(path, "").await;
        assert_eq!(status(&head), "200");
        assert_eq!(header(&head, "content-type"), "application/jwk-set+json");
        assert_eq!(header(&head, "cache-control"), "public, max-age=300");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["keys"][0]["kid"], "k");
        let tag = header(&head, "etag");
        for known in [tag.to_owned(), format!("\"other\", W/{tag}"), "*".into()] {
            let (head, body) = port.get(path, &format!("if-none-match: {known}\r\n")).await;
            assert_eq!((status(&head), &*body), ("304", ""));
            assert_eq!(header(&head, "etag"), tag);
        }
        let (head, _) = port.get(path, "if-none-match: \"other\"\r\n").await;
        assert_eq!(status(&head), "200");
    }

    #[tokio::test]
    async fn metadata_says_what_is_true_and_no_more() {
        let port = Port::start().await;
        assert_eq!(status(&port.get(METADATA, "").await.0), "503");
        port.mint.publish();
        let (head, body) = port.get(METADATA, "").await;
        assert_eq!(header(&head, "content-type"), "application/json");
        assert_eq!(header(&head, "cache-control"), "public, max-age=300");
        let expected = json!({
            "issuer": "https://issuer.example",
            "jwks_uri": "https://issuer.example/.well-known/jwks.json",
            "grant_types_supported": [],
            "response_types_supported": [],
        });
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
        let tag = header(&head, "etag");
        let (head, body) = port
            .get(METADATA, &format!("if-none-match: {tag}\r\n"))
            .await;
        assert_eq!((status(&head), &*body), ("304", ""));

        let auth = format!("{METADATA}/auth");
        assert_eq!(status(&port.get(&auth, "").await.0), "404");
        let verifier = &port.mint.verifier;
        verifier.update(|state| state.issuer = "https://issuer.example/auth".into());
        for path in [METADATA, &auth] {
            let (_, body) = port.get(path, "").await;
            assert!(body.contains("https://issuer.example/auth/.well-known/jwks.json"));
        }
        assert_eq!(status(&port.get(&format!("{auth}/x"), "").await.0), "404");
    }

    #[tokio::test]
    async fn readiness_follows_validation_and_shows_the_database() {
        let port = Port::start().await;
        let ready = async || {
            let (head, body) = port.get("/readyz", "").await;
            let body: Value = serde_json::from_str(&body).unwrap();
            let database = body["database"].as_str().unwrap().to_owned();
            (
                status(&head).to_owned(),
                body["ready"].as_bool().unwrap(),
                database,
            )
        };
        assert_eq!(ready().await, ("503".into(), false, "up".into()));
        port.mint.publish();
        assert_eq!(ready().await, ("200".into(), true, "up".into()));
        while let Ok(permit) = port.readiness.database.as_ref().unwrap().permit() {
            permit.failure();
        }
        assert_eq!(ready().await, ("200".into(), true, "down".into()));
        port.readiness.draining.cancel();
        assert_eq!(ready().await, ("503".into(), false, "down".into()));
        assert_eq!(status(&port.get("/livez", "").await.0), "200");
    }

    #[tokio::test]
    async fn metrics_are_text_and_other_paths_are_nothing() {
        let port = Port::start().await;
        let (head, body) = port.get("/metrics", "").await;
        assert!(header(&head, "content-type").starts_with("text/plain; version=0.0.4"));
        assert!(body.contains("countersign_test_total 3"), "{body}");
        assert_eq!(status(&port.get("/", "").await.0), "404");
    }

    #[tokio::test]
    async fn a_stop_waits_for_nobody_who_says_nothing() {
        let port = Port::start().await;
        let _silent = TcpStream::connect(port.address).await.unwrap();
        port.get("/livez", "").await;
        port.shutdown.cancel();
        timeout(GRACE * 2, port.done)
            .await
            .expect("the port closes")
            .unwrap();
    }
}
