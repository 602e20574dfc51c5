//! The layers around a stand-in for the routes, which does what the header
//! `x-do` says and remembers the calls that reach it.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign_verifier::{
    Algorithm, ApiKeys, Claims, Clock, KeySet, KeyState, Policy, PublicKey, Revocations,
    TrustState, Verifier,
};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use jiff::Timestamp;
use tonic::{Code, Status, body::Body, service::Routes};
use tonic_types::StatusExt as _;
use tower::{ServiceExt as _, util::BoxCloneService};
use uuid::Uuid;

use super::{Config, Parts, PeerLimits, access, peer::Connection, stack};
use crate::{
    breaker::{self, Breaker},
    domain::{Call, Entropy, Permission, Workloads},
    error::{Error, Reason},
};

mod access_rules;
mod ends;
mod identity;
mod messages;
mod wire;

pub(crate) const WHO_AM_I: &str = "/countersign.v1.AuthService/WhoAmI";
const VALIDATE: &str = "/countersign.v1.TokenService/ValidateToken";
const LOGIN: &str = "/countersign.v1.AuthService/Login";
const LOGOUT: &str = "/countersign.v1.AuthService/Logout";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// A clock that stands still until it is moved.
#[derive(Debug, Default)]
pub(crate) struct StoodClock(AtomicU64);

impl StoodClock {
    pub(crate) fn advance(&self, time: Duration) {
        self.0
            .fetch_add(u64::try_from(time.as_millis()).unwrap(), Relaxed);
    }
}

impl Clock for StoodClock {
    fn now(&self) -> Timestamp {
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        start + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed))
    }
}

/// Counts, so that no two ids are the same.
#[derive(Debug, Default)]
pub(crate) struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, buffer: &mut [u8]) {
        let count = (self.0.fetch_add(1, Relaxed) + 1).to_be_bytes();
        buffer.fill(0);
        let tail = buffer.len().saturating_sub(count.len());
        for (to, from) in buffer[tail..].iter_mut().zip(count) {
            *to = from;
        }
    }
}

/// A signing key, and a verifier that trusts it.
#[derive(Debug)]
pub(crate) struct Mint {
    key: Ed25519KeyPair,
    pub(crate) clock: Arc<StoodClock>,
    pub(crate) verifier: Arc<Verifier>,
}

impl Mint {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(StoodClock::default());
        let verifier = Verifier::new(clock.clone(), Policy::default());
        Self {
            key: Ed25519KeyPair::generate().unwrap(),
            clock,
            verifier: Arc::new(verifier),
        }
    }

    /// Lets the verifier know the key.
    pub(crate) fn publish(&self) {
        let public = self.key.public_key().as_ref();
        let mut keys = KeySet::default();
        let key = PublicKey::new("k", Algorithm::Ed25519, KeyState::Active, public).unwrap();
        keys.insert(key);
        self.verifier.replace(TrustState {
            issuer: "https://issuer.example".into(),
            audiences: vec!["countersign".into(), "elsewhere".into()],
            keys,
            revocations: Revocations::default(),
            api_keys: ApiKeys::default(),
            seq: 1,
            nonce: Uuid::nil(),
        });
    }

    pub(crate) fn token(&self, permissions: &[Permission]) -> String {
        self.token_for("countersign", permissions)
    }

    fn token_for(&self, audience: &str, permissions: &[Permission]) -> String {
        let now = self.clock.now().as_second();
        let scope: Vec<&str> = permissions.iter().map(|p| p.name()).collect();
        let claims = Claims {
            iss: "https://issuer.example".into(),
            sub: Uuid::from_u128(7),
            aud: vec![audience.into()],
            exp: now + 900,
            iat: now,
            nbf: now,
            jti: Uuid::from_u128(8),
            sid: Uuid::from_u128(9),
            client_id: "countersign".into(),
            scope: scope.join(" "),
            roles: Vec::new(),
            amr: vec!["pwd".into()],
            auth_time: now,
            epoch: 1,
        };
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k"}"#);
        let claims = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).unwrap());
        let signed = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

type ResponseBody = UnsyncBoxBody<Bytes, Status>;

/// The stack around the stand-in.
pub(crate) struct Edge {
    service: BoxCloneService<Request<Body>, Response<ResponseBody>, Infallible>,
    mint: Mint,
    reached: Arc<Mutex<Vec<Call>>>,
    breaker: Breaker,
    limits: Arc<PeerLimits>,
}

/// What a call came to.
#[derive(Debug)]
struct Ended {
    headers: HeaderMap,
    trailers: Option<HeaderMap>,
    status: Status,
}

impl Edge {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    fn parts(mint: &Mint) -> Parts {
        let config = Config::default();
        Parts {
            clock: mint.clock.clone(),
            entropy: Arc::new(Counting::default()),
            verifier: mint.verifier.clone(),
            audience: "countersign".into(),
            workloads: Workloads::default(),
            database: Some(Breaker::new("database", &breaker::Config::default())),
            peer_limits: Arc::new(PeerLimits::new(&config, mint.clock.clone())),
            config,
            access: access::ROWS,
            validation_log_sample: 1,
            traces_exported: false,
        }
    }

    fn with(change: impl FnOnce(&mut Parts)) -> Self {
        let mint = Mint::new();
        mint.publish();
        let mut parts = Self::parts(&mint);
        change(&mut parts);
        parts.peer_limits = Arc::new(PeerLimits::new(&parts.config, mint.clock.clone()));
        let reached = Arc::new(Mutex::new(Vec::new()));
        let service = stack(stand_in(&reached), &parts);
        let service = service.map_response(|response| response.map(BodyExt::boxed_unsync));
        Self {
            service: BoxCloneService::new(service),
            mint,
            reached,
            breaker: parts.database.unwrap(),
            limits: parts.peer_limits,
        }
    }

    pub(crate) fn exporting_traces() -> Self {
        Self::with(|parts| parts.traces_exported = true)
    }

    pub(crate) async fn get(&self, path: &str) {
        self.call(path, &[]).await;
    }

    pub(crate) async fn get_in_trace(&self, path: &str, traceparent: &str) {
        self.call(path, &[("traceparent", traceparent)]).await;
    }

    fn reached(&self) -> usize {
        self.reached.lock().unwrap().len()
    }

    /// Opens the database's breaker.
    fn lose_database(&self) {
        while let Ok(permit) = self.breaker.permit() {
            permit.failure();
        }
    }

    fn last_call(&self) -> Call {
        self.reached.lock().unwrap().last().unwrap().clone()
    }

    /// Sends a request and takes the head of the response.
    async fn send(&self, request: Request<Body>) -> Response<ResponseBody> {
        self.service.clone().oneshot(request).await.unwrap()
    }

    /// Makes a call to its end.
    async fn call(&self, path: &str, headers: &[(&str, &str)]) -> Ended {
        end(self.send(request(path, headers)).await).await
    }
}

impl Ended {
    fn reason(&self) -> String {
        let details = self.status.get_error_details();
        details
            .error_info()
            .map(|info| info.reason.clone())
            .unwrap_or_default()
    }

    fn request_id(&self) -> &str {
        self.headers["x-request-id"].to_str().unwrap()
    }

    /// A failure as every failure must be: our reason, the correlation id in
    /// headers and details, and no body where it comes at once.
    fn assert_failed(&self, code: Code, reason: Reason) {
        assert_eq!(
            (self.status.code(), &*self.reason()),
            (code, crate::error::reason_name(reason))
        );
        let details = self.status.get_error_details();
        assert_eq!(
            details.request_info().unwrap().request_id,
            self.request_id()
        );
        assert_eq!(self.headers["content-type"], "application/grpc");
    }
}

fn request(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::post(path).header("content-type", "application/grpc");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let address = Some("198.51.100.1".parse().unwrap());
    request
        .extension(Connection {
            address,
            ..Connection::default()
        })
        .body(Body::empty())
        .unwrap()
}

async fn end(response: Response<ResponseBody>) -> Ended {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned();
    let at_once = Status::from_header_map(&parts.headers);
    if at_once.is_some() {
        assert!(body.to_bytes().is_empty() && trailers.is_none());
    }
    let status = at_once
        .or_else(|| Status::from_header_map(trailers.as_ref()?))
        .expect("every call ends with a status");
    Ended {
        headers: parts.headers,
        trailers,
        status,
    }
}

fn stand_in(reached: &Arc<Mutex<Vec<Call>>>) -> Routes {
    let reached = Arc::clone(reached);
    let router = axum::Router::new().fallback(move |request: axum::extract::Request| {
        let call = request
            .extensions()
            .get::<Call>()
            .expect("handlers find a Call")
            .clone();
        // What is remembered takes up no place.
        let remembered = Call {
            place: None,
            ..call.clone()
        };
        reached.lock().unwrap().push(remembered);
        let what = request.headers().get("x-do");
        let what = what.map(|what| what.to_str().unwrap().to_owned());
        perform(call, what, request.into_body())
    });
    Routes::from(router)
}

async fn perform(call: Call, what: Option<String>, body: axum::body::Body) -> Response<Body> {
    tracing::info!("in the handler");
    match what.as_deref() {
        None => trailers(&Status::new(Code::Ok, "")),
        Some("cost") => {
            call.cost.add_query(Duration::from_millis(2));
            call.cost
                .add_hash(Duration::from_millis(3), Duration::from_millis(4));
            trailers(&Status::new(Code::Ok, ""))
        }
        Some("fail") => Status::from(Error::from(Reason::UserNotFound)).into_http(),
        Some("fail late") => trailers(&Error::from(Reason::OutcomeUnknown).into()),
        Some("fail as a library would") => Status::out_of_range("too large").into_http(),
        Some("count") => {
            let bytes = body.collect().await.unwrap().to_bytes();
            call.cost
                .add_database(Duration::from_micros(bytes.len() as u64));
            trailers(&Status::new(Code::Ok, ""))
        }
        Some("panic") => panic!("on purpose"),
        Some("wait") => {
            tokio::time::sleep(Duration::from_hours(1)).await;
            trailers(&Status::new(Code::Ok, ""))
        }
        Some("work on") => {
            let work = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(20)).await;
                drop(call);
            });
            work.await.unwrap();
            trailers(&Status::new(Code::Ok, ""))
        }
        Some("stream") => {
            let frames = futures_util::stream::pending::<Result<Frame<Bytes>, Status>>();
            grpc(Body::new(StreamBody::new(frames)))
        }
        Some(other) => panic!("the stand-in cannot {other}"),
    }
}

/// A message, and a status after it.
fn trailers(status: &Status) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers).unwrap();
    let message = Full::new(Bytes::from_static(b"\0\0\0\0\0"));
    grpc(Body::new(
        message.with_trailers(async move { Some(Ok(trailers)) }),
    ))
}

fn grpc(body: Body) -> Response<Body> {
    Response::builder()
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap()
}
