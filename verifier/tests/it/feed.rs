//! The client of the feed, beside nodes that say what a test wants them to say.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use countersign_proto::v1::{
    self,
    token_service_server::{TokenService, TokenServiceServer},
    trust_service_server::{TrustService, TrustServiceServer},
    watch_trust_response::Event,
};
use countersign_verifier::client::{Bearer, Config, Counts, Feed};
use countersign_verifier::{
    Algorithm, Delta, KeySet, KeyState, Rejection, TrustState, Verifier, wire,
};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::codegen::tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::minting::{
    ISSUER, MockClock, SESSION, Signer, api_key, encode, good_token, secret, trust_state,
};

const HOUR: Timestamp = Timestamp::constant(3600, 0);

/// A node of its own history, which can be switched off.
#[derive(Clone)]
struct Node {
    address: SocketAddr,
    known: Arc<Mutex<Known>>,
}

struct Known {
    state: TrustState,
    /// What brought it there, as far as it remembers.
    log: Vec<Delta>,
    age: Duration,
    /// Whether it has a feed; its keys are told all the same.
    is_up: bool,
    /// Says a position in its heartbeats that is not its own.
    lies: bool,
    keys: KeySet,
    streams: usize,
    acknowledged: i64,
    bearers: Vec<String>,
}

impl Node {
    fn start(state: TrustState) -> Self {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let node = Self {
            address: incoming.local_addr().unwrap(),
            known: Arc::new(Mutex::new(Known {
                keys: state.keys.clone(),
                state,
                log: Vec::new(),
                age: Duration::ZERO,
                is_up: true,
                lies: false,
                streams: 0,
                acknowledged: 0,
                bearers: Vec::new(),
            })),
        };
        let server = Server::builder()
            .add_service(TrustServiceServer::new(node.clone()))
            .add_service(TokenServiceServer::new(node.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        node
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// The next entry of its log.
    fn append(&self, change: Delta) {
        let mut known = self.known();
        let change = Delta {
            seq: known.state.seq + 1,
            nonce: Uuid::from_u128(known.state.nonce.as_u128() + 1),
            ..change
        };
        known.state.apply(&change);
        known.log.push(change);
    }

    fn revoke_session(&self) {
        self.append(Delta {
            sessions: vec![(SESSION, HOUR)],
            ..Delta::default()
        });
    }
}

impl Known {
    /// What a validator at this position has not heard; none if it is not on
    /// this history.
    fn since(&self, position: (i64, Uuid)) -> Option<Vec<v1::watch_trust_response::Event>> {
        if position == (self.state.seq, self.state.nonce) {
            return Some(Vec::new());
        }
        let mut from = position;
        let first = self.log.iter().position(|d| d.seq == position.0 + 1)?;
        if first > 0 {
            let before = self.log.get(first - 1)?;
            (before.nonce == position.1).then_some(())?;
        }
        let mut events = Vec::new();
        for delta in self.log.get(first..)? {
            let parts = wire::deltas(delta, from, Timestamp::UNIX_EPOCH);
            events.extend(parts.into_iter().map(Event::Delta));
            from = (delta.seq, delta.nonce);
        }
        Some(events)
    }

    fn snapshot(&self) -> Vec<Event> {
        let parts = wire::snapshot(&self.state, Timestamp::UNIX_EPOCH);
        parts.into_iter().map(Event::Snapshot).collect()
    }

    fn position(&self) -> (i64, Uuid) {
        (self.state.seq, self.state.nonce)
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<v1::WatchTrustResponse, Status>> + Send>>;

#[tonic::async_trait]
impl TrustService for Node {
    type WatchTrustStream = Messages;

    async fn watch_trust(
        &self,
        request: Request<v1::WatchTrustRequest>,
    ) -> Result<Response<Messages>, Status> {
        let bearer = request.metadata().get("authorization");
        let bearer = bearer.map(|it| it.to_str().unwrap().to_owned());
        let resume_from = request.into_inner().resume_from;
        let mut known = self.known();
        known.bearers.extend(bearer);
        if !known.is_up {
            return Err(Status::unavailable("down"));
        }
        known.streams += 1;
        let from = resume_from.map(|position| wire::read_position(Some(&position)).unwrap());
        let missed = from.and_then(|from| known.since(from));
        let welcome = v1::TrustWelcome {
            stream_id: known.streams.to_string(),
            resumed: missed.is_some(),
        };
        let mut events = vec![Event::Welcome(welcome)];
        events.extend(missed.unwrap_or_else(|| known.snapshot()));
        let at = known.position();
        drop(known);
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(self.clone().tell(sender, events, at));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn ack_trust(
        &self,
        request: Request<v1::AckTrustRequest>,
    ) -> Result<Response<v1::AckTrustResponse>, Status> {
        self.known().acknowledged = request.into_inner().seq;
        Ok(Response::new(v1::AckTrustResponse {}))
    }
}

impl Node {
    async fn tell(
        self,
        to: mpsc::Sender<Result<v1::WatchTrustResponse, Status>>,
        mut events: Vec<Event>,
        mut at: (i64, Uuid),
    ) {
        loop {
            let age = self.known().age.try_into().unwrap();
            for event in events {
                let message = v1::WatchTrustResponse {
                    age: Some(age),
                    sent_at: None,
                    event: Some(event),
                };
                if to.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            sleep(Duration::from_millis(10)).await;
            let known = self.known();
            if !known.is_up {
                return;
            }
            let Some(more) = known.since(at) else { return };
            events = more;
            at = known.position();
            let seq = at.0 + i64::from(known.lies);
            events.push(Event::Heartbeat(v1::TrustHeartbeat {
                position: Some(wire::position(seq, at.1)),
            }));
        }
    }
}

#[tonic::async_trait]
impl TokenService for Node {
    async fn get_jwks(
        &self,
        _request: Request<v1::GetJwksRequest>,
    ) -> Result<Response<v1::GetJwksResponse>, Status> {
        let known = self.known();
        let jwk = |key: &countersign_verifier::PublicKey| {
            let bytes = key.public_bytes();
            let (x, y) = match key.algorithm() {
                Algorithm::Ed25519 => (bytes, &[][..]),
                Algorithm::Es256 => (&bytes[1..33], &bytes[33..]),
            };
            v1::Jwk {
                x: encode(x),
                y: encode(y),
                kid: key.kid().to_owned(),
                alg: key.algorithm().name().to_owned(),
                ..v1::Jwk::default()
            }
        };
        let keys = known.keys.iter().map(jwk).collect();
        Ok(Response::new(v1::GetJwksResponse {
            keys,
            ..v1::GetJwksResponse::default()
        }))
    }

    async fn validate_token(
        &self,
        _request: Request<v1::ValidateTokenRequest>,
    ) -> Result<Response<v1::ValidateTokenResponse>, Status> {
        Err(Status::unimplemented("a validator never asks"))
    }

    async fn validate_tokens(
        &self,
        _request: Request<v1::ValidateTokensRequest>,
    ) -> Result<Response<v1::ValidateTokensResponse>, Status> {
        Err(Status::unimplemented("a validator never asks"))
    }
}

/// A verifier that follows nodes.
struct Validator {
    verifier: Arc<Verifier>,
    clock: Arc<MockClock>,
    counts: Arc<Counts>,
}

impl Validator {
    fn follow(nodes: &[&Node]) -> Self {
        Self::with(nodes, |_| {})
    }

    fn with(nodes: &[&Node], set: impl FnOnce(&mut Config)) -> Self {
        let clock = Arc::new(MockClock::default());
        clock.set_wall(crate::minting::NOW * 1000);
        clock.advance_monotonic(1_000_000);
        let policy = countersign_verifier::Policy::default();
        let verifier = Arc::new(Verifier::new(clock.clone(), policy));
        let endpoint = |node: &&Node| Endpoint::from_shared(format!("http://{}", node.address));
        let mut config = Config {
            endpoints: nodes
                .iter()
                .map(endpoint)
                .collect::<Result<_, _>>()
                .unwrap(),
            bearer: Bearer::None,
            instance: "test".to_owned(),
            issuer: Some(ISSUER.to_owned()),
        };
        set(&mut config);
        let feed = Feed::new(Arc::clone(&verifier), config);
        let counts = Arc::clone(feed.counts());
        tokio::spawn(feed.run());
        Self {
            verifier,
            clock,
            counts,
        }
    }

    async fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is(self) {
            assert!(
                Instant::now() < deadline,
                "it never holds that {what}: {self:?}"
            );
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn at(&self, seq: i64) {
        self.until(&format!("it is at {seq}"), |it| {
            it.verifier.applied_seq() == Some(seq)
        })
        .await;
    }

    fn refuses(&self) -> bool {
        self.verifier.verify(&good_token(), None) == Err(Rejection::SessionRevoked)
    }

    fn knows_key(&self, kid: &str) -> bool {
        self.verifier.state().unwrap().keys.get(kid).is_some()
    }

    fn refused(&self) -> u64 {
        self.counts.refused.load(Relaxed)
    }
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {:?}", self.counts, self.verifier.applied_seq())
    }
}

#[tokio::test]
async fn everything_is_heard_at_first_and_then_each_change() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    assert!(!validator.refuses());
    node.revoke_session();
    validator.at(42).await;
    assert!(validator.refuses());
    let key = secret(1);
    node.append(Delta {
        api_keys: vec![api_key(&[(&key, None)])],
        ..Delta::default()
    });
    validator.at(43).await;
    validator.verifier.verify(&key, None).unwrap();
    validator
        .until("it has acknowledged", |_| node.known().acknowledged == 43)
        .await;
    assert_eq!(node.known().streams, 1);
}

#[tokio::test]
async fn a_stream_goes_on_where_the_last_one_ended() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    node.known().is_up = false;
    validator
        .until("it notices", |it| it.counts.failures.load(Relaxed) > 0)
        .await;
    node.revoke_session();
    node.known().is_up = true;
    validator.at(42).await;
    assert!(validator.refuses());
    assert_eq!(validator.counts.snapshots.load(Relaxed), 1);
}

#[tokio::test]
async fn a_node_that_lags_revives_nothing() {
    let (fresh, lagging) = (Node::start(trust_state()), Node::start(trust_state()));
    let validator = Validator::follow(&[&fresh, &lagging]);
    validator.at(41).await;
    fresh.revoke_session();
    validator.at(42).await;
    fresh.known().is_up = false;
    validator
        .until("it has asked the other", |it| it.refused() > 0)
        .await;
    assert!(validator.refuses());
    assert_eq!(validator.verifier.applied_seq(), Some(42));
    fresh.revoke_session();
    fresh.known().is_up = true;
    validator.at(43).await;
}

#[tokio::test]
async fn a_restored_backup_is_taken_and_revives_nothing() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    node.revoke_session();
    validator.at(42).await;
    {
        let mut known = node.known();
        known.state = TrustState {
            seq: 40,
            nonce: Uuid::from_u128(7),
            ..trust_state()
        };
        known.log.clear();
    }
    validator
        .until("it is refused at first", |it| it.refused() > 0)
        .await;
    assert_eq!(validator.verifier.applied_seq(), Some(42));
    validator.clock.advance_monotonic(5_001);
    validator.at(40).await;
    assert!(validator.refuses());
}

#[tokio::test]
async fn another_issuer_is_never_believed() {
    let other = || TrustState {
        issuer: "https://elsewhere.example.com".to_owned(),
        seq: 100,
        ..trust_state()
    };
    let (other, good) = (Node::start(other()), Node::start(trust_state()));
    let validator = Validator::follow(&[&other, &good]);
    validator.at(41).await;
    assert_eq!(validator.counts.snapshots.load(Relaxed), 1);

    // Whoever expects none keeps to the first.
    let validator = Validator::with(&[&good, &other], |config| config.issuer = None);
    validator.at(41).await;
    good.known().is_up = false;
    let streams = other.known().streams;
    validator
        .until("it has asked the other", |_| {
            other.known().streams > streams + 1
        })
        .await;
    assert_eq!(validator.verifier.state().unwrap().issuer, ISSUER);
}

#[tokio::test]
async fn a_node_whose_knowledge_is_old_is_left_for_a_fresher_one() {
    let (one, two) = (Node::start(trust_state()), Node::start(trust_state()));
    let validator = Validator::follow(&[&one, &two]);
    validator.at(41).await;
    let (from, to) = match one.known().streams {
        1 => (&one, &two),
        _ => (&two, &one),
    };
    // Cut off from the database, both of them: there is nobody better.
    let age = Duration::from_mins(1);
    from.known().age = age;
    to.known().age = age;
    // What was said before that has come by then.
    sleep(Duration::from_millis(200)).await;
    validator.clock.advance_monotonic(60_000);
    validator
        .until("it has asked the other", |_| to.known().streams > 0)
        .await;
    sleep(Duration::from_millis(100)).await;
    from.revoke_session();
    validator.at(42).await;
    assert!(validator.verifier.staleness() >= Some(age));
    assert_eq!(to.known().acknowledged, 0, "it was asked and not followed");
    // The same history.
    to.revoke_session();
    to.known().age = Duration::ZERO;
    let is_fresh = |it: &Validator| it.verifier.staleness() < Some(Duration::from_secs(1));
    validator.until("it is up to date", is_fresh).await;
    to.revoke_session();
    validator.at(43).await;
}

#[tokio::test]
async fn keys_alone_come_from_elsewhere_and_those_taken_away_do_not() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    let mut left = KeySet::default();
    left.insert(Signer::es256().public("p256", KeyState::Active));
    node.append(Delta {
        keys: Some(left),
        ..Delta::default()
    });
    validator.at(42).await;
    assert!(!validator.knows_key("ed"));
    {
        // The feed is cut; a cache somewhere still has the key that is gone.
        let mut known = node.known();
        known.is_up = false;
        known
            .keys
            .insert(Signer::foreign().public("new", KeyState::Active));
    }
    validator
        .until("it notices", |it| it.counts.failures.load(Relaxed) > 0)
        .await;
    assert_eq!(validator.counts.keys_polled.load(Relaxed), 0);
    validator.clock.advance_monotonic(31_000);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    validator
        .until("it has the new key", |it| it.knows_key("new"))
        .await;
    assert!(validator.knows_key("p256") && !validator.knows_key("ed"));
    // Keys say nothing about revocations.
    assert!(validator.verifier.staleness() >= Some(Duration::from_secs(31)));
    assert_eq!(validator.counts.keys_polled.load(Relaxed), 1);
}

#[tokio::test]
async fn what_makes_no_sense_ends_the_stream_and_changes_nothing() {
    let node = Node::start(trust_state());
    let validator = Validator::follow(&[&node]);
    validator.at(41).await;
    validator.clock.advance_monotonic(10_000);
    validator
        .until("it is up to date", |it| {
            it.verifier.staleness() == Some(Duration::ZERO)
        })
        .await;
    node.known().lies = true;
    validator
        .until("it leaves", |it| it.counts.failures.load(Relaxed) > 0)
        .await;
    validator.clock.advance_monotonic(10_000);
    validator
        .until("it tries again", |it| it.counts.failures.load(Relaxed) > 1)
        .await;
    assert!(validator.verifier.staleness() >= Some(Duration::from_secs(10)));
    node.known().lies = false;
    validator
        .until("it is up to date", |it| {
            it.verifier.staleness() == Some(Duration::ZERO)
        })
        .await;
}

#[tokio::test]
async fn a_credential_in_a_file_is_read_again_for_each_stream() {
    let folder = std::env::temp_dir().join(format!("countersign-feed-{}", std::process::id()));
    std::fs::write(&folder, "first\n").unwrap();
    let node = Node::start(trust_state());
    let validator = Validator::with(&[&node], |config| {
        config.bearer = Bearer::File(folder.clone());
    });
    validator.at(41).await;
    std::fs::write(&folder, "second\n").unwrap();
    node.known().is_up = false;
    validator
        .until("it comes again", |_| node.known().bearers.len() > 1)
        .await;
    std::fs::remove_file(&folder).unwrap();
    assert_eq!(
        &node.known().bearers[..2],
        ["Bearer first", "Bearer second"]
    );
}
