//! TrustService: the feed of validators, from memory, on the serving runtime.
//!
//! A stream is pulled by its reader. Nothing is made before it is asked for, and
//! nothing waits for it elsewhere but its place in the feed's ring; so a reader
//! that stops reading costs what the connection buffers, and is detached when
//! it asks again too late.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use countersign_proto::v1::{self, trust_service_server::TrustService, watch_trust_response};
use countersign_verifier::{Caller, Clock, Rejection, wire};
use futures_util::{Stream, stream};
use tokio::{
    sync::{
        Mutex,
        broadcast::{self, error::RecvError},
    },
    task::spawn_blocking,
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
    /// Made for one reader and good for all who come while it is held by one and
    /// the changes since are known: a fleet that comes back at once costs one
    /// walk and one copy. Locked while it is made.
    snapshot: Mutex<Weak<Snapshot>>,
}

/// A snapshot in the parts that it is sent in.
#[derive(Debug)]
struct Snapshot {
    position: Position,
    known_as_of: Duration,
    parts: Vec<v1::TrustSnapshot>,
}

/// Where a reader begins.
struct Begin {
    snapshot: Option<Arc<Snapshot>>,
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
    /// What it began with, kept up to the first heartbeat for those who come now.
    begun: Option<Arc<Snapshot>>,
}

/// What is made into messages when it is asked for, and takes little room until
/// then.
enum Queued {
    /// With the time as of which this is what was known.
    Message(Message, Duration),
    Part(Arc<Snapshot>, usize),
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
    async fn begin(&self, at: Option<Position>) -> Result<Begin> {
        // First, or what is read then would seem fresher than it is.
        let known_as_of = self.0.feed.known_as_of();
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
        let mut kept = self.0.snapshot.lock().await;
        // A reader who is as far may refuse one that is not new, and come back for
        // the same.
        let serves = |snapshot: &Arc<Snapshot>| {
            at.is_none_or(|at| at.0 < snapshot.position.0)
                || known_as_of.saturating_sub(snapshot.known_as_of) < HEARTBEAT
        };
        if let Some(snapshot) = kept.upgrade().filter(serves) {
            let Subscription { start, events } = self.subscribe(Some(snapshot.position))?;
            if let Start::Changes(changes) = start {
                return Ok(Begin {
                    snapshot: Some(snapshot),
                    changes,
                    events,
                });
            }
        }
        let uptime = self.0.feed.verifier().uptime();
        // A million of revocations takes a second, which no decision is to wait for.
        let making = spawn_blocking(move || Snapshot {
            position: (state.seq, state.nonce),
            known_as_of,
            parts: wire::snapshot(&state, uptime),
        });
        let snapshot = Arc::new(making.await.map_err(Error::internal)?);
        *kept = Arc::downgrade(&snapshot);
        Ok(Begin {
            snapshot: Some(snapshot),
            changes: Vec::new(),
            events,
        })
    }

    fn subscribe(&self, at: Option<Position>) -> Result<Subscription> {
        self.0.feed.subscribe(at).ok_or_else(Error::not_ready)
    }

    fn response(&self, event: Message, known_as_of: Duration) -> v1::WatchTrustResponse {
        let uptime = self.0.feed.verifier().clock().monotonic();
        let age = uptime.saturating_sub(known_as_of);
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
            if let Some((message, known_as_of)) = self.pop() {
                return Ok(self.api.response(message, known_as_of));
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
                None => {
                    let known_as_of = self.api.0.feed.known_as_of();
                    // What was known by then is in the ring, and is told first.
                    if self.events.is_empty() {
                        let heartbeat = Queued::Message(self.heartbeat(), known_as_of);
                        self.queue.push_back(heartbeat);
                    }
                    self.begun = None;
                }
                Some(Ok(Event::Changed(change))) => self.change(change),
                Some(Ok(Event::Replaced)) => {
                    let begin = self.api.begin(None).await?;
                    self.events = begin.events;
                    self.begin(begin.snapshot, begin.changes);
                }
                Some(Err(RecvError::Lagged(_))) => return Err(Reason::FeedLagged.into()),
                Some(Err(RecvError::Closed)) => return Err(Error::not_ready()),
            }
        }
    }

    fn begin(&mut self, snapshot: Option<Arc<Snapshot>>, changes: Vec<Change>) {
        if let Some(snapshot) = &snapshot {
            self.position = snapshot.position;
            let parts = (0..snapshot.parts.len()).map(|i| Queued::Part(Arc::clone(snapshot), i));
            self.queue.extend(parts);
        }
        self.begun = snapshot;
        for change in changes {
            self.change(change);
        }
    }

    fn change(&mut self, change: Change) {
        self.position = (change.delta.seq, change.delta.nonce);
        self.queue.push_back(Queued::Change(change));
    }

    fn pop(&mut self) -> Option<(Message, Duration)> {
        match self.queue.pop_front()? {
            Queued::Message(message, known_as_of) => Some((message, known_as_of)),
            Queued::Part(snapshot, i) => {
                let part = snapshot.parts.get(i).cloned();
                part.map(|part| (Message::Snapshot(part), snapshot.known_as_of))
            }
            Queued::Change(Change {
                from,
                delta,
                known_as_of,
            }) => {
                let uptime = self.api.0.feed.verifier().uptime();
                let deltas = wire::deltas(&delta, from, uptime).into_iter();
                for delta in deltas.rev() {
                    let message = Message::Delta(delta);
                    self.queue.push_front(Queued::Message(message, known_as_of));
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
        } = self.begin(at).await?;
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
            queue: VecDeque::from([Queued::Message(welcome, self.0.feed.known_as_of())]),
            events,
            heartbeats,
            begun: None,
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

pub(super) fn watch(message: v1::WatchTrustRequest) -> Result<(Option<Position>, String)> {
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
mod tests;
