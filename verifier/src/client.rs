//! Follows the feed of the issuer's nodes and keeps a [`Verifier`] up to date.
//!
//! One stream to one node at a time. It goes on from where the last one ended, so changing nodes costs
//! what was missed and no more. When the node's knowledge grows old, or its stream ends, the others are
//! asked, and whoever knows something fresher is followed. While nobody answers the verifier decides by
//! what it knows, and its [staleness](Verifier::staleness) grows; what to do about that is for whoever
//! asks it. No call is made per token or per key, ever.
//!
//! A state that lacks something this validator knows is believed only if it was read after that was
//! known: a node that lags is refused, a restored backup is taken, and neither revives what was revoked.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use countersign_verifier::{Policy, SystemClock, Verifier, client::{Bearer, Config, Feed}};
//! # use tonic::transport::Endpoint;
//! # async fn example() -> Result<(), tonic::transport::Error> {
//! let verifier = Arc::new(Verifier::new(Arc::new(SystemClock), Policy::default()));
//! let feed = Feed::new(
//!     Arc::clone(&verifier),
//!     Config {
//!         endpoints: vec![
//!             Endpoint::from_static("http://auth-1:50051"),
//!             Endpoint::from_static("http://auth-2:50051"),
//!         ],
//!         bearer: Bearer::File("/run/secrets/countersign-api-key".into()),
//!         instance: "orders-7f9c".into(),
//!         issuer: Some("https://auth.example.com".into()),
//!     },
//! );
//! tokio::spawn(feed.run());
//! # Ok(())
//! # }
//! ```

mod bearer;
mod jwks;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use aws_lc_rs::rand;
use countersign_proto::v1::{self, watch_trust_response::Event};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::transport::Endpoint;

pub use self::bearer::Bearer;
use self::jwks::Polled;
use self::stream::{Lost, Stream, age};
use crate::wire::{self, Assembler, Malformed};
use crate::{TrustState, Verifier};

/// A node answers within this, or another is asked.
const CONNECT: Duration = Duration::from_secs(3);

/// A stream that says nothing for so long is dead: it has a heartbeat each second.
const QUIET: Duration = Duration::from_secs(5);

/// Knowledge older than this makes us ask the other nodes.
const OLD: Duration = Duration::from_secs(3);

/// How often the others are asked while the knowledge is old.
const ASK_OTHERS: Duration = Duration::from_secs(2);

/// By how much a node must know better to be followed instead.
const FRESHER: Duration = Duration::from_secs(1);

/// A state that lacks what we know must have been read so long after we learned it: what the age of a
/// message does not count is its time on the way.
const MARGIN: Duration = Duration::from_secs(5);

/// The first wait after a failure; it doubles up to [`MOST_WAIT`], and is cut at random so that a fleet
/// does not come back in step.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const MOST_WAIT: Duration = Duration::from_secs(10);

/// Without the feed for so long, the public keys alone are asked for, which needs no credential.
const KEYS_AFTER: Duration = Duration::from_secs(30);

/// What to follow.
#[derive(Clone, Debug)]
pub struct Config {
    /// The issuer's nodes, TLS and all. With several, the freshest is followed.
    pub endpoints: Vec<Endpoint>,
    /// The credential; it needs the permission `countersign.trust.watch`.
    pub bearer: Bearer,
    /// Names this validator to the issuer's operators. At most 64 bytes.
    pub instance: String,
    /// The issuer that is expected. Another's state is refused. None takes the first that is heard.
    pub issuer: Option<String>,
}

/// Follows the feed. [`run`](Self::run) is its work.
#[derive(Debug)]
pub struct Feed {
    verifier: Arc<Verifier>,
    config: Config,
    nodes: Vec<Node>,
    counts: Arc<Counts>,
    /// When we last learned something, by the monotonic clock.
    learned_at: Duration,
    polled: Option<Polled>,
    poll_keys_at: Instant,
    prune_at: Instant,
}

/// What the feed did so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Streams that were opened.
    pub streams: AtomicU64,
    /// Streams that could not be opened, or ended.
    pub failures: AtomicU64,
    /// Snapshots that were put in place.
    pub snapshots: AtomicU64,
    /// Deltas that were applied.
    pub deltas: AtomicU64,
    /// States that were refused, as they lacked what was known.
    pub refused: AtomicU64,
    /// Times that the public keys alone were asked for.
    pub keys_polled: AtomicU64,
}

/// A node, and when it may be tried again.
#[derive(Debug)]
struct Node {
    endpoint: Endpoint,
    failures: u32,
    not_before: Instant,
}

/// What a message changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    Position,
    Keys,
}

impl Feed {
    /// A feed for this verifier. Nothing happens before [`run`](Self::run).
    pub fn new(verifier: Arc<Verifier>, config: Config) -> Self {
        let now = Instant::now();
        let nodes = config.endpoints.iter().map(|endpoint| Node {
            endpoint: endpoint.clone(),
            failures: 0,
            not_before: now,
        });
        let learned_at = verifier.clock().monotonic();
        Self {
            nodes: nodes.collect(),
            verifier,
            config,
            counts: Arc::default(),
            learned_at,
            polled: None,
            poll_keys_at: now + KEYS_AFTER,
            prune_at: now,
        }
    }

    /// What the feed did so far.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Follows until it is dropped.
    pub async fn run(mut self) {
        if self.nodes.is_empty() {
            tracing::error!("the feed has no endpoints and follows nothing");
            return std::future::pending().await;
        }
        loop {
            let mut stream = Some(self.open_any().await);
            while let Some(current) = stream {
                let node = current.node;
                stream = match self.follow(current).await {
                    Ok(fresher) => Some(fresher),
                    Err(lost) => {
                        self.lost(node, &lost);
                        None
                    }
                };
            }
        }
    }

    /// Opens a stream to whichever node lets us, however long that takes.
    async fn open_any(&mut self) -> Stream {
        loop {
            let next =
                (0..self.nodes.len()).min_by_key(|i| self.nodes.get(*i).map(|n| n.not_before));
            let node = next.unwrap_or_default();
            if let Some(next) = self.nodes.get(node) {
                sleep_until(next.not_before).await;
            }
            match self.open(node).await {
                Ok(stream) => return stream,
                Err(lost) => self.lost(node, &lost),
            }
            self.poll_keys(node).await;
        }
    }

    async fn open(&self, node: usize) -> Result<Stream, Lost> {
        let endpoint = self.nodes.get(node).map(|node| &node.endpoint);
        let endpoint = endpoint.ok_or(Lost::Quiet)?;
        let bearer = self.config.bearer.read()?;
        let request = v1::WatchTrustRequest {
            resume_from: self
                .verifier
                .state()
                .map(|s| wire::position(s.seq, s.nonce)),
            instance: self.config.instance.clone(),
        };
        let opening = Stream::open(node, endpoint, bearer, request);
        let stream = timeout(CONNECT, opening).await.map_err(|_| Lost::Quiet)??;
        self.counts.streams.fetch_add(1, Relaxed);
        Ok(stream)
    }

    /// Follows a stream until it is lost, or until another node is found that knows better.
    async fn follow(&mut self, mut stream: Stream) -> Result<Stream, Lost> {
        let mut assembler = Assembler::default();
        let mut acknowledged = None;
        let mut ask_others_at = Instant::now() + ASK_OTHERS;
        let mut read_at = self.verifier.clock().monotonic();
        let mut lain = Duration::ZERO;
        tracing::info!(node = self.name(stream.node), "following the trust feed");
        loop {
            let asked_at = self.verifier.clock().monotonic();
            let message = timeout(QUIET, stream.messages.message()).await;
            let message = message.map_err(|_| Lost::Quiet)??.ok_or(Lost::Quiet)?;
            let now = self.verifier.clock().monotonic();
            // The machine has slept, which no timer notices. Who knows since when this message lay there.
            if now.saturating_sub(asked_at) > QUIET {
                return Err(Lost::Quiet);
            }
            // While we did something else it may have lain there, too, and others behind it. Whenever
            // we wait there are fewer of them.
            lain += asked_at.saturating_sub(read_at);
            lain = lain.saturating_sub(now.saturating_sub(asked_at));
            read_at = now;
            let age = age(&message)?.saturating_add(lain);
            let is_heartbeat = matches!(message.event, Some(Event::Heartbeat(_)));
            let change = self.apply(message, age, &mut assembler)?;
            // Not for parts of a state that may be refused in the end.
            if (is_heartbeat || change != Change::Nothing)
                && let Some(node) = self.nodes.get_mut(stream.node)
            {
                node.failures = 0;
            }
            let seq = self.verifier.applied_seq();
            if (change == Change::Keys || (is_heartbeat && seq != acknowledged))
                && stream.acknowledge(seq).await
            {
                acknowledged = seq;
            }
            self.prune();
            if is_heartbeat && self.nodes.len() > 1 && Instant::now() >= ask_others_at {
                if let Some(fresher) = self.fresher(stream.node).await {
                    return Ok(fresher);
                }
                ask_others_at = Instant::now() + ASK_OTHERS;
            }
        }
    }

    fn apply(
        &mut self,
        message: v1::WatchTrustResponse,
        age: Duration,
        assembler: &mut Assembler,
    ) -> Result<Change, Lost> {
        let now = self.verifier.uptime();
        let read_at = self.verifier.clock().monotonic().checked_sub(age);
        match message.event {
            Some(Event::Snapshot(part)) => match assembler.add(part, now)? {
                Some(state) => {
                    self.adopt(state, age, read_at)?;
                    Ok(Change::Keys)
                }
                None => Ok(Change::Nothing),
            },
            Some(Event::Delta(delta)) => {
                let mut delta = wire::read_delta(delta, now)?;
                let state = self.verifier.state().ok_or(Malformed("delta"))?;
                if let Some(keys) = &mut delta.keys {
                    jwks::choose(&mut self.polled, keys, delta.seq, read_at);
                }
                self.verifier.update(|state| state.apply(&delta));
                self.counts.deltas.fetch_add(1, Relaxed);
                if (delta.seq, delta.nonce) == (state.seq, state.nonce) {
                    // A part of more to come.
                    return Ok(Change::Nothing);
                }
                self.learned_at = self.verifier.clock().monotonic();
                self.verifier.heard_aged(age);
                Ok(match delta.keys {
                    Some(_) => Change::Keys,
                    None => Change::Position,
                })
            }
            Some(Event::Heartbeat(heartbeat)) => {
                let position = wire::read_position(heartbeat.position.as_ref())?;
                let state = self.verifier.state().ok_or(Malformed("heartbeat"))?;
                if position != (state.seq, state.nonce) {
                    return Err(Malformed("heartbeat").into());
                }
                // The keys have not changed.
                if let Some(mut keys) = self.polled.as_ref().map(|polled| polled.before.clone()) {
                    jwks::choose(&mut self.polled, &mut keys, state.seq, read_at);
                    self.verifier.update(|state| state.keys = keys);
                }
                self.verifier.heard_aged(age);
                Ok(Change::Nothing)
            }
            Some(Event::Welcome(_)) | None => Err(Malformed("message").into()),
        }
    }

    /// Puts a snapshot in place of what is known, if that loses nothing that counts.
    fn adopt(
        &mut self,
        mut state: TrustState,
        age: Duration,
        read_at: Option<Duration>,
    ) -> Result<(), Lost> {
        if let Some(issuer) = &self.config.issuer
            && *issuer != state.issuer
        {
            return Err(Lost::Issuer);
        }
        if let Some(known) = self.verifier.state() {
            if known.issuer != state.issuer {
                return Err(Lost::Issuer);
            }
            let goes_on =
                state.seq > known.seq || (state.seq, state.nonce) == (known.seq, known.nonce);
            let since = read_at.is_some_and(|at| at > self.learned_at + MARGIN);
            if !goes_on && !since {
                self.counts.refused.fetch_add(1, Relaxed);
                return Err(Lost::Behind);
            }
            state.revocations.merge(&known.revocations);
        }
        jwks::choose(&mut self.polled, &mut state.keys, state.seq, read_at);
        self.verifier.replace_aged(state, age);
        self.learned_at = self.verifier.clock().monotonic();
        self.counts.snapshots.fetch_add(1, Relaxed);
        Ok(())
    }

    /// A stream to another node whose knowledge is fresher than ours, if ours is old.
    async fn fresher(&mut self, than: usize) -> Option<Stream> {
        let ours = self.verifier.staleness().filter(|age| *age > OLD)?;
        for node in 0..self.nodes.len() {
            let may = |node: &Node| node.not_before <= Instant::now();
            if node == than || !self.nodes.get(node).is_some_and(may) {
                continue;
            }
            match self.open(node).await {
                Ok(stream) if stream.age + FRESHER < ours => return Some(stream),
                Ok(_) => {}
                Err(lost) => self.lost(node, &lost),
            }
        }
        None
    }

    fn lost(&mut self, node: usize, lost: &Lost) {
        self.counts.failures.fetch_add(1, Relaxed);
        let name = self.name(node);
        let Some(node) = self.nodes.get_mut(node) else {
            return;
        };
        let wait = wait(node.failures);
        node.failures = node.failures.saturating_add(1);
        node.not_before = Instant::now() + wait;
        // Once per loss, and not for each attempt after.
        if node.failures == 1 {
            tracing::warn!(node = name, cause = %lost, "lost the trust feed; deciding by what is known");
        } else {
            tracing::debug!(node = name, cause = %lost, "the trust feed is still lost");
        }
    }

    /// Asks for the public keys alone. They say nothing about revocations, so the staleness stays; and
    /// they are in force only until the feed knows as much.
    async fn poll_keys(&mut self, node: usize) {
        let is_old = |age: Duration| age > KEYS_AFTER;
        if Instant::now() < self.poll_keys_at || !self.verifier.staleness().is_some_and(is_old) {
            return;
        }
        self.poll_keys_at = Instant::now() + KEYS_AFTER;
        let Some(endpoint) = self.nodes.get(node).map(|node| node.endpoint.clone()) else {
            return;
        };
        self.counts.keys_polled.fetch_add(1, Relaxed);
        let at = self.verifier.clock().monotonic();
        let Ok(Some(published)) = timeout(CONNECT, jwks::ask(&endpoint)).await else {
            return;
        };
        let Some(state) = self.verifier.state() else {
            return;
        };
        // An older list may lack the newest key, and may have one that is gone.
        let known = self.polled.as_ref().map_or(state.seq, |polled| polled.seq);
        if published.issuer != state.issuer || published.seq < known {
            return;
        }
        if let Some(keys) = jwks::read(&published.keys) {
            let before = self.polled.take().map(|polled| polled.before);
            self.polled = Some(Polled {
                before: before.unwrap_or_else(|| state.keys.clone()),
                keys: keys.clone(),
                seq: published.seq,
                at,
            });
            self.verifier.update(|state| state.keys = keys);
        }
    }

    fn prune(&mut self) {
        if Instant::now() >= self.prune_at {
            self.prune_at = Instant::now() + Duration::from_mins(1);
            let now = self.verifier.uptime();
            self.verifier.update(|state| state.revocations.prune(now));
        }
    }

    fn name(&self, node: usize) -> String {
        let endpoint = self.nodes.get(node).map(|node| node.endpoint.uri());
        endpoint.map(ToString::to_string).unwrap_or_default()
    }
}

/// Doubles with each failure; between half of it and all of it, at random.
fn wait(failures: u32) -> Duration {
    let wait = FIRST_WAIT
        .saturating_mul(1 << failures.min(10))
        .min(MOST_WAIT);
    let mut random = [0; 1];
    // Without randomness a fleet comes back in step, and no worse.
    let _ = rand::fill(&mut random);
    let [random] = random;
    wait / 2 + wait / 2 * u32::from(random) / 255
}
