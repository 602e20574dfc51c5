//! A node that says what a test wants it to say.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use countersign_proto::v1::{
    self,
    token_service_server::{TokenService, TokenServiceServer},
    trust_service_server::{TrustService, TrustServiceServer},
    watch_trust_response::Event,
};
use countersign_verifier::{Algorithm, Delta, KeySet, TrustState, wire};
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use tonic::codegen::tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::minting::{SESSION, encode};

const HOUR: Timestamp = Timestamp::constant(3600, 0);

/// A node of its own history, which can be switched off.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) address: SocketAddr,
    pub(super) known: Arc<Mutex<Known>>,
}

pub(super) struct Known {
    pub(super) state: TrustState,
    /// What brought it there, as far as it remembers.
    pub(super) log: Vec<Delta>,
    pub(super) age: Duration,
    /// Whether it has a feed; its keys are told all the same.
    pub(super) is_up: bool,
    /// Says a position in its heartbeats that is not its own.
    pub(super) lies: bool,
    pub(super) keys: KeySet,
    pub(super) streams: usize,
    pub(super) acknowledged: i64,
    /// Acknowledgements that it has no time for.
    pub(super) refuses_acks: usize,
    /// Acknowledgements are answered when it is told so.
    pub(super) holds_acks: Option<Arc<Notify>>,
    /// The issuer and the number under which it publishes its keys.
    pub(super) publishes_as: (String, i64),
    pub(super) bearers: Vec<String>,
}

impl Node {
    pub(super) fn start(state: TrustState) -> Self {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let node = Self {
            address: incoming.local_addr().unwrap(),
            known: Arc::new(Mutex::new(Known {
                keys: state.keys.clone(),
                publishes_as: (state.issuer.clone(), state.seq),
                state,
                log: Vec::new(),
                age: Duration::ZERO,
                is_up: true,
                lies: false,
                streams: 0,
                acknowledged: 0,
                refuses_acks: 0,
                holds_acks: None,
                bearers: Vec::new(),
            })),
        };
        let server = Server::builder()
            .add_service(TrustServiceServer::new(node.clone()))
            .add_service(TokenServiceServer::new(node.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        node
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// The next entry of its log.
    pub(super) fn append(&self, change: Delta) {
        let mut known = self.known();
        let change = Delta {
            seq: known.state.seq + 1,
            nonce: Uuid::from_u128(known.state.nonce.as_u128() + 1),
            ..change
        };
        known.state.apply(&change);
        known.log.push(change);
    }

    pub(super) fn revoke_session(&self) {
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
        let held = self.known().holds_acks.clone();
        if let Some(held) = held {
            held.notified().await;
        }
        let mut known = self.known();
        if known.refuses_acks > 0 {
            known.refuses_acks -= 1;
            return Err(Status::resource_exhausted("not now"));
        }
        known.acknowledged = request.into_inner().seq;
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
        let (issuer, seq) = known.publishes_as.clone();
        Ok(Response::new(v1::GetJwksResponse {
            keys,
            issuer,
            seq,
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

    async fn explain_token(
        &self,
        _request: Request<v1::ExplainTokenRequest>,
    ) -> Result<Response<v1::ExplainTokenResponse>, Status> {
        Err(Status::unimplemented("a validator never asks"))
    }
}
