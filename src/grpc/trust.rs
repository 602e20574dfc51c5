//! TrustService: the feed of validators, from memory, on the serving runtime.
//!
//! A stream is pulled by its reader. Nothing is made before it is asked for, and
//! nothing waits for it elsewhere but its place in the feed's ring; so a reader
//! that stops reading costs what the connection buffers, and is detached when
//! it asks again too late.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use countersign_proto::v1::{self, trust_service_server::TrustService, watch_trust_response};
use countersign_verifier::{Caller, Clock, Rejection, wire};
use futures_util::{Stream, stream};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};
use uuid::Uuid;
use watch_trust_response::Event as Message;

use super::{call, convert};
use crate::{
    domain::{Entropy, Invalid, Violations, call::MESSAGE_BYTES, id},
    error::{Error, Reason, Result, reason_name},
    service::{
        Feed,
        feed::{Change, Event, Position, Seat, Start, Subscription},
    },
};

/// How often a stream says that nothing changed.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The most bytes of an instance's name.
const MOST_INSTANCE: usize = 64;

/// The service. Clones share it.
#[derive(Debug, Clone)]
pub struct TrustApi(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    feed: Arc<Feed>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    draining: CancellationToken,
    /// Made for one reader and good for all who come while the changes since
    /// are known: a fleet that comes back at once costs one walk and one copy.
    snapshot: Mutex<Option<Snapshot>>,
}

/// A snapshot in the parts that it is sent in.
#[derive(Debug, Clone)]
struct Snapshot {
    position: Position,
    parts: Arc<[v1::TrustSnapshot]>,
}

/// Where a reader begins.
struct Begin {
    snapshot: Option<Snapshot>,
    changes: Vec<Change>,
    events: broadcast::Receiver<Event>,
}

/// What one reader has yet to be told.
struct Reader {
    api: TrustApi,
    caller: Arc<Caller>,
    /// Dropped with the stream.
    seat: Seat,
    /// Where the reader is once the queue is empty.
    position: Position,
    queue: VecDeque<Queued>,
    events: broadcast::Receiver<Event>,
    heartbeats: Interval,
}

/// What is made into messages when it is asked for, and takes little room until
/// then.
enum Queued {
    Message(Message),
    Part(Arc<[v1::TrustSnapshot]>, usize),
    Change(Change),
}

impl TrustApi {
    /// The service over this feed. Streams end when `draining` is cancelled.
    pub fn new(
        feed: Arc<Feed>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        draining: CancellationToken,
    ) -> Self {
        Self(Arc::new(Parts {
            feed,
            clock,
            entropy,
            draining,
            snapshot: Mutex::default(),
        }))
    }

    /// Adds the service to the routes.
    pub fn routes(self, routes: Routes) -> Routes {
        let trust = v1::trust_service_server::TrustServiceServer::new(self);
        routes.add_service(trust.max_decoding_message_size(MESSAGE_BYTES))
    }

    /// Where a reader begins: after its own position, after a snapshot that is
    /// there, or after a new one.
    fn begin(&self, at: Option<Position>) -> Result<Begin> {
        let Subscription { start, events } = self.subscribe(at)?;
        let state = match start {
            Start::State(state) => state,
            Start::Changes(changes) => {
                return Ok(Begin {
                    snapshot: None,
                    changes,
                    events,
                });
            }
        };
        let kept = self.0.snapshot.lock();
        let mut kept = kept.unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = kept.as_ref() {
            let Subscription { start, events } = self.subscribe(Some(snapshot.position))?;
            if let Start::Changes(changes) = start {
                return Ok(Begin {
                    snapshot: Some(snapshot.clone()),
                    changes,
                    events,
                });
            }
        }
        let snapshot = Snapshot {
            position: (state.seq, state.nonce),
            parts: wire::snapshot(&state, self.0.feed.verifier().uptime()).into(),
        };
        *kept = Some(snapshot.clone());
        Ok(Begin {
            snapshot: Some(snapshot),
            changes: Vec::new(),
            events,
        })
    }

    fn subscribe(&self, at: Option<Position>) -> Result<Subscription> {
        self.0.feed.subscribe(at).ok_or_else(Error::not_ready)
    }

    fn response(&self, event: Message) -> v1::WatchTrustResponse {
        let age = self.0.feed.verifier().staleness().unwrap_or(Duration::MAX);
        v1::WatchTrustResponse {
            age: prost_types::Duration::try_from(age).ok(),
            sent_at: Some(convert::timestamp(self.0.clock.now())),
            event: Some(event),
        }
    }
}

impl Reader {
    async fn step(mut self) -> Result<Option<(v1::WatchTrustResponse, Self)>, Status> {
        match self.next().await {
            Ok(message) => Ok(Some((message, self))),
            Err(error) => {
                let reason = reason_name(error.reason());
                metrics::counter!("countersign_feed_ended_total", "reason" => reason).increment(1);
                tracing::info!(id = %self.seat.id(), reason, "a validator's stream ends");
                Err(error.into())
            }
        }
    }

    /// The next message; an error ends the stream.
    async fn next(&mut self) -> Result<v1::WatchTrustResponse> {
        loop {
            if let Some(message) = self.pop() {
                return Ok(self.api.response(message));
            }
            let draining = &self.api.0.draining;
            let event = tokio::select! {
                biased;
                () = draining.cancelled() => return Err(Error::not_ready()),
                event = self.events.recv() => Some(event),
                // Not needed while there are changes: each says as much.
                _ = self.heartbeats.tick() => None,
            };
            // Before anything more is told.
            self.recheck()?;
            match event {
                None => self.queue.push_back(Queued::Message(self.heartbeat())),
                Some(Ok(Event::Changed(change))) => self.change(change),
                Some(Ok(Event::Replaced)) => {
                    let begin = self.api.begin(None)?;
                    self.events = begin.events;
                    self.begin(begin.snapshot, begin.changes);
                }
                Some(Err(RecvError::Lagged(_))) => return Err(Reason::FeedLagged.into()),
                Some(Err(RecvError::Closed)) => return Err(Error::not_ready()),
            }
        }
    }

    fn begin(&mut self, snapshot: Option<Snapshot>, changes: Vec<Change>) {
        if let Some(Snapshot { position, parts }) = snapshot {
            self.position = position;
            let parts = (0..parts.len()).map(|i| Queued::Part(Arc::clone(&parts), i));
            self.queue.extend(parts);
        }
        for change in changes {
            self.change(change);
        }
    }

    fn change(&mut self, change: Change) {
        self.position = (change.delta.seq, change.delta.nonce);
        self.queue.push_back(Queued::Change(change));
    }

    fn pop(&mut self) -> Option<Message> {
        match self.queue.pop_front()? {
            Queued::Message(message) => Some(message),
            Queued::Part(parts, i) => parts.get(i).cloned().map(Message::Snapshot),
            Queued::Change(Change { from, delta }) => {
                let uptime = self.api.0.feed.verifier().uptime();
                let deltas = wire::deltas(&delta, from, uptime).into_iter();
                for delta in deltas.rev() {
                    let message = Message::Delta(delta);
                    self.queue.push_front(Queued::Message(message));
                }
                self.pop()
            }
        }
    }

    fn heartbeat(&self) -> Message {
        Message::Heartbeat(v1::TrustHeartbeat {
            position: Some(wire::position(self.position.0, self.position.1)),
        })
    }

    /// The credential that opened the stream must be good still.
    fn recheck(&self) -> Result<()> {
        let verifier = self.api.0.feed.verifier();
        match verifier.recheck(&self.caller) {
            Ok(()) => Ok(()),
            Err(Rejection::NotReady) => Err(Error::not_ready()),
            Err(_) => Err(Reason::TokenInvalid.into()),
        }
    }
}

#[tonic::async_trait]
impl TrustService for TrustApi {
    type WatchTrustStream =
        Pin<Box<dyn Stream<Item = Result<v1::WatchTrustResponse, Status>> + Send>>;

    async fn watch_trust(
        &self,
        request: Request<v1::WatchTrustRequest>,
    ) -> Result<Response<Self::WatchTrustStream>, Status> {
        let (_, extensions, message) = request.into_parts();
        let caller = call(&extensions)?.caller;
        let caller = caller
            .ok_or(Reason::CredentialsMissing)
            .map_err(Error::from)?;
        let (at, instance) = watch(message)?;
        let Begin {
            snapshot,
            changes,
            events,
        } = self.begin(at)?;
        let id = id::uuid_v7(self.0.clock.now(), &*self.0.entropy);
        let resumed = snapshot.is_none();
        tracing::info!(%id, instance, subject = %caller.subject, resumed, "a validator follows");
        let welcome = Message::Welcome(v1::TrustWelcome {
            stream_id: id.to_string(),
            resumed,
        });
        let mut heartbeats = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reader = Reader {
            api: self.clone(),
            caller,
            seat: self.0.feed.seat(id),
            position: at.unwrap_or_default(),
            queue: VecDeque::from([Queued::Message(welcome)]),
            events,
            heartbeats,
        };
        reader.begin(snapshot, changes);
        let stream = stream::try_unfold(reader, Reader::step);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn ack_trust(
        &self,
        request: Request<v1::AckTrustRequest>,
    ) -> Result<Response<v1::AckTrustResponse>, Status> {
        let v1::AckTrustRequest { stream_id, seq } = request.into_inner();
        let id = stream_id
            .parse::<Uuid>()
            .ok()
            .filter(|_| stream_id.len() == 36);
        let id = id.ok_or_else(|| Error::invalid("stream_id", "must be a UUID"))?;
        if !self.0.feed.acknowledge(id, seq) {
            return Err(Error::new(Reason::StreamNotFound).into());
        }
        Ok(Response::new(v1::AckTrustResponse {}))
    }
}

fn watch(message: v1::WatchTrustRequest) -> Result<(Option<Position>, String)> {
    let mut violations = Violations::default();
    let at = message.resume_from.map(|at| wire::read_position(Some(&at)));
    if at == Some(Err(wire::Malformed("position"))) {
        violations.add("resume_from.nonce", Invalid::new("must be 16 bytes"));
    }
    let instance = message.instance;
    if instance.len() > MOST_INSTANCE || instance.contains(char::is_control) {
        violations.add(
            "instance",
            Invalid::new("must be at most 64 bytes without control characters"),
        );
    }
    violations.finish()?;
    Ok((at.and_then(Result::ok), instance))
}

#[cfg(test)]
mod tests {
    use countersign_verifier::{
        ApiKeys, Credential, Delta, KeySet, Policy, Revocations, Subject, SystemClock, TrustState,
        Verifier,
    };
    use futures_util::StreamExt as _;
    use jiff::Timestamp;
    use tonic::Code;

    use super::*;
    use crate::{crypto::SystemEntropy, domain::Call};

    fn feed() -> Arc<Feed> {
        let verifier = Verifier::new(Arc::new(SystemClock), Policy::default());
        let feed = Feed::new(Arc::new(verifier));
        feed.replace(TrustState {
            issuer: "https://auth.example.com".to_owned(),
            audiences: Vec::new(),
            keys: KeySet::default(),
            revocations: Revocations::default(),
            api_keys: ApiKeys::default(),
            seq: 0,
            nonce: Uuid::nil(),
        });
        Arc::new(feed)
    }

    fn revoke(feed: &Feed, seq: u32) {
        let nonce = Uuid::from_u128(seq.into());
        feed.publish(Delta {
            seq: seq.into(),
            nonce,
            sessions: vec![(nonce, Timestamp::MAX)],
            ..Delta::default()
        });
    }

    async fn watch(
        feed: &Arc<Feed>,
        at: Option<Position>,
    ) -> <TrustApi as TrustService>::WatchTrustStream {
        let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let api = TrustApi::new(Arc::clone(feed), clock, entropy, CancellationToken::new());
        let caller = Caller {
            subject: Subject::Workload("orders".into()),
            credential: Credential::Certificate,
            client_id: String::new(),
            roles: Vec::new(),
            scopes: Vec::new(),
            audience: Vec::new(),
            issued_at: Timestamp::UNIX_EPOCH,
            expires_at: None,
        };
        let mut call = Call::internal("test");
        call.caller = Some(Arc::new(caller));
        let mut request = Request::new(v1::WatchTrustRequest {
            resume_from: at.map(|(seq, nonce)| wire::position(seq, nonce)),
            instance: String::new(),
        });
        request.extensions_mut().insert(call);
        api.watch_trust(request).await.unwrap().into_inner()
    }

    /// Sequence numbers of what a stream has ready, up to the first heartbeat.
    async fn told(stream: &mut <TrustApi as TrustService>::WatchTrustStream) -> Vec<i64> {
        let mut seqs = Vec::new();
        loop {
            let message = stream.next().await.unwrap().unwrap();
            let position = match message.event.unwrap() {
                Message::Welcome(_) => continue,
                Message::Snapshot(part) => part.position,
                Message::Delta(delta) => delta.position,
                Message::Heartbeat(_) => return seqs,
            };
            seqs.push(position.unwrap().seq);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_falls_behind_is_detached_and_comes_back() {
        let feed = feed();
        let mut slow = watch(&feed, None).await;
        assert_eq!(told(&mut slow).await, [0]);
        for seq in 1..=3 {
            revoke(&feed, seq);
        }
        assert_eq!(told(&mut slow).await, [1, 2, 3]);
        for seq in 4..=2_000 {
            revoke(&feed, seq);
        }
        let ended = slow.next().await.unwrap().unwrap_err();
        assert_eq!(ended.code(), Code::Aborted);
        assert!(slow.next().await.is_none());
        assert_eq!(feed.validators().0, 0, "its seat is free");

        // Far back is read whole, not long ago is not.
        let mut again = watch(&feed, Some((3, Uuid::from_u128(3)))).await;
        // In three parts: keys, and a thousand sessions in each of the others.
        assert_eq!(told(&mut again).await, [2_000, 2_000, 2_000]);
        let mut again = watch(&feed, Some((1_998, Uuid::from_u128(1_998)))).await;
        assert_eq!(told(&mut again).await, [1_999, 2_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_come_together_share_one_snapshot() {
        let feed = feed();
        let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let api = TrustApi::new(Arc::clone(&feed), clock, entropy, CancellationToken::new());
        let first = api.begin(None).unwrap().snapshot.unwrap();
        revoke(&feed, 1);
        let second = api.begin(None).unwrap();
        assert!(Arc::ptr_eq(&first.parts, &second.snapshot.unwrap().parts));
        assert_eq!(second.changes.len(), 1);
        for seq in 2..=2_000 {
            revoke(&feed, seq);
        }
        let third = api.begin(None).unwrap();
        assert_eq!(third.snapshot.unwrap().position.0, 2_000);
        assert!(third.changes.is_empty());
    }
}
