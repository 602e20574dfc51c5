//! One call, as the rooms behind the wire see it.

use std::{
    any::Any,
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use countersign_verifier::{Caller, Credential};

use super::{ApiKeyId, SessionId, UserId};

/// The largest message of a request, in bytes.
pub const MESSAGE_BYTES: usize = 64 * 1024;

/// The same where a request carries many tokens.
pub const BATCH_BYTES: usize = 1024 * 1024;

/// The largest message of Envoy's Check. Envoy accepts 60 KiB of headers by
/// default, and a path among them is sent twice.
pub const CHECK_BYTES: usize = 256 * 1024;

/// Who calls, from where, until when, and what it has cost so far. Every
/// service function takes one.
#[derive(Debug, Clone)]
pub struct Call {
    /// Whom the credential speaks for; none for anonymous calls.
    pub caller: Option<Arc<Caller>>,
    /// The workload whose certificate the connection showed, whether it calls for
    /// itself or for whoever the access token speaks for.
    pub workload: Option<Arc<str>>,
    /// Where the call came from.
    pub peer: Peer,
    /// The `user-agent`, cleaned and cut.
    pub user_agent: String,
    /// Names the call in logs, errors and the audit log.
    pub correlation_id: CorrelationId,
    /// Work that cannot finish by then is not begun.
    pub deadline: Option<Instant>,
    /// What it has cost so far.
    pub cost: Arc<Cost>,
    /// Whether anybody still waits for the answer.
    pub presence: Presence,
    /// Its place among the calls of its kind, given back with the last clone:
    /// work that outlives its caller keeps it.
    pub place: Option<Arc<dyn Any + Send + Sync>>,
}

/// Whether the caller still waits. The edge ends it when the caller leaves;
/// work that was not begun by then need not be. Clones are of the same caller.
#[derive(Debug, Clone, Default)]
pub struct Presence(Arc<AtomicBool>);

/// Where a call came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peer {
    /// The client's address: that of the connection, or what a trusted proxy
    /// says. None on a Unix socket and for background work.
    pub address: Option<IpAddr>,
}

/// Names a call in logs, errors and the audit log: at most 64 printable ASCII
/// characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CorrelationId(Arc<str>);

/// What a call has cost so far. Shared with work that outlives the call.
#[derive(Debug, Default)]
pub struct Cost {
    queries: AtomicU64,
    database: AtomicU64,
    hash_wait: AtomicU64,
    hash: AtomicU64,
}

impl Call {
    /// A call that the process makes itself: a task or the command line.
    pub fn internal(name: &str) -> Self {
        Self {
            caller: None,
            workload: None,
            peer: Peer::default(),
            user_agent: String::new(),
            correlation_id: CorrelationId(name.into()),
            deadline: None,
            cost: Arc::default(),
            presence: Presence::default(),
            place: None,
        }
    }

    /// The same, for what has to be done however late it is.
    pub fn without_deadline(&self) -> Self {
        Self {
            deadline: None,
            ..self.clone()
        }
    }

    /// The user who calls, or whose API key does.
    pub fn user_id(&self) -> Option<UserId> {
        let caller = self.caller.as_ref();
        caller.and_then(|caller| caller.user_id()).map(UserId)
    }

    /// The session of the access token.
    pub fn session_id(&self) -> Option<SessionId> {
        let caller = self.caller.as_ref();
        caller.and_then(|caller| caller.session_id()).map(SessionId)
    }

    /// The API key that calls.
    pub fn api_key_id(&self) -> Option<ApiKeyId> {
        match self.caller.as_ref()?.credential {
            Credential::ApiKey { id, .. } => Some(ApiKeyId(id)),
            _ => None,
        }
    }

    /// How long there is left, if there is a deadline.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether the caller has left without its answer. Nobody would hear of
    /// work that begins now; what has begun to change something goes on.
    pub fn is_abandoned(&self) -> bool {
        self.presence.has_ended()
    }

    /// Whether the deadline has passed.
    pub fn is_late(&self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }
}

impl Presence {
    /// The caller has left.
    pub fn end(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether the caller has left.
    pub fn has_ended(&self) -> bool {
        self.0.load(Relaxed)
    }
}

impl CorrelationId {
    /// The most characters.
    pub const MOST: usize = 64;

    /// Takes a caller's id if its form is harmless: 1 to 64 of letters,
    /// digits, `.`, `_`, `-`, `:`.
    pub fn accept(text: &str) -> Option<Self> {
        let harmless = |b: u8| b.is_ascii_alphanumeric() || b"._-:".contains(&b);
        ((1..=Self::MOST).contains(&text.len()) && text.bytes().all(harmless))
            .then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<uuid::Uuid> for CorrelationId {
    fn from(id: uuid::Uuid) -> Self {
        Self(id.simple().to_string().into())
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Cost {
    /// Adds one query and the time that it took, acquiring a connection
    /// included.
    pub fn add_query(&self, time: Duration) {
        self.queries.fetch_add(1, Relaxed);
        self.add_database(time);
    }

    /// Adds time spent on the database but not on a query: waiting for a
    /// connection.
    pub fn add_database(&self, time: Duration) {
        self.database.fetch_add(micros(time), Relaxed);
    }

    /// Adds a wait for a hash lane and the hashing itself.
    pub fn add_hash(&self, wait: Duration, hashing: Duration) {
        self.hash_wait.fetch_add(micros(wait), Relaxed);
        self.hash.fetch_add(micros(hashing), Relaxed);
    }

    /// Number of queries.
    pub fn queries(&self) -> u64 {
        self.queries.load(Relaxed)
    }

    /// Microseconds spent on the database.
    pub fn database_micros(&self) -> u64 {
        self.database.load(Relaxed)
    }

    /// Microseconds spent waiting for a hash lane.
    pub fn hash_wait_micros(&self) -> u64 {
        self.hash_wait.load(Relaxed)
    }

    /// Microseconds spent hashing.
    pub fn hash_micros(&self) -> u64 {
        self.hash.load(Relaxed)
    }
}

/// The kind of a caller's credential, as errors and logs name it.
pub fn kind(caller: &Caller) -> &'static str {
    match caller.credential {
        Credential::AccessToken { .. } => "access_token",
        Credential::ApiKey { .. } => "api_key",
        Credential::Certificate => "workload",
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
