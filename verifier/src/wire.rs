//! The trust state as it travels: the messages of `TrustService.WatchTrust`, and what they mean.
//!
//! A node writes, a validator reads, and a sidecar keeps a snapshot on disk in the same form. What
//! comes in is not believed to be well formed: whatever does not have the documented form is
//! [`Malformed`], as a whole, and nothing of it is applied.
//!
//! Entries travel with the seconds for which they are still needed, not with a time: the clocks on the
//! two sides need not agree. `now` and `keep_until` are of whatever time line the state on this side
//! counts in.

use countersign_proto::v1;
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;
use uuid::Uuid;

use crate::{
    Algorithm, ApiKey, ApiKeyHash, ApiKeySecret, ApiKeys, Delta, KeySet, KeyState, PublicKey,
    Revocations, TrustState,
};

/// How many entries one message carries: some hundred kilobytes at most.
const CHUNK: usize = 1_000;

/// The longest that a validator keeps an entry, whatever it is told: a day. The issuer's tokens live an
/// hour at most.
const MOST_KEPT: i64 = 24 * 60 * 60;

/// A message does not have the documented form; names the part at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// Puts the parts of a snapshot together.
#[derive(Debug, Default)]
pub struct Assembler(Option<TrustState>);

/// The parts of a snapshot of this state. Each is small enough for one message; the state is walked
/// once.
pub fn snapshot(state: &TrustState, now: Timestamp) -> Vec<v1::TrustSnapshot> {
    let mut parts = vec![v1::TrustSnapshot {
        position: Some(position(state.seq, state.nonce)),
        policy: Some(v1::TrustPolicy {
            issuer: state.issuer.clone(),
            audiences: state.audiences.clone(),
        }),
        changes: Some(v1::TrustChanges {
            keys: Some(keys(&state.keys)),
            ..v1::TrustChanges::default()
        }),
        last: false,
    }];
    let sessions = state
        .revocations
        .sessions()
        .map(|(id, keep_until)| Entry::Session(session(id, keep_until, now)));
    let users = state
        .revocations
        .users()
        .map(|(id, min_epoch, keep_until)| Entry::User(user(id, min_epoch, keep_until, now)));
    let api_keys = state.api_keys.iter().map(|key| Entry::ApiKey(api_key(key)));
    let rest = chunks(sessions.chain(users).chain(api_keys));
    parts.extend(rest.into_iter().map(|changes| v1::TrustSnapshot {
        position: Some(position(state.seq, state.nonce)),
        policy: None,
        changes: Some(changes),
        last: false,
    }));
    if let Some(last) = parts.last_mut() {
        last.last = true;
    }
    parts
}

/// What changed, as messages to a validator that is at `from`: several if it is much, of which only
/// the last moves the validator's position.
pub fn deltas(delta: &Delta, from: (i64, Uuid), now: Timestamp) -> Vec<v1::TrustDelta> {
    let sessions = delta
        .sessions
        .iter()
        .map(|(id, keep_until)| Entry::Session(session(*id, *keep_until, now)));
    let users = delta
        .users
        .iter()
        .map(|(id, min_epoch, keep_until)| Entry::User(user(*id, *min_epoch, *keep_until, now)));
    let removed = delta.removed_api_keys.iter().map(|id| Entry::Removed(*id));
    let api_keys = delta.api_keys.iter().map(|key| Entry::ApiKey(api_key(key)));
    let mut parts = chunks(sessions.chain(users).chain(removed).chain(api_keys));
    if parts.is_empty() {
        parts.push(v1::TrustChanges::default());
    }
    let mut parts: Vec<_> = parts
        .into_iter()
        .map(|changes| v1::TrustDelta {
            position: Some(position(from.0, from.1)),
            changes: Some(changes),
        })
        .collect();
    if let Some(last) = parts.last_mut() {
        last.position = Some(position(delta.seq, delta.nonce));
        if let Some(changes) = &mut last.changes {
            changes.keys = delta.keys.as_ref().map(keys);
        }
    }
    parts
}

/// Reads what changed.
///
/// # Errors
///
/// [`Malformed`].
pub fn read_delta(message: v1::TrustDelta, now: Timestamp) -> Result<Delta, Malformed> {
    let (seq, nonce) = read_position(message.position.as_ref())?;
    let changes = message.changes.unwrap_or_default();
    let keys = changes.keys.map(read_keys).transpose()?;
    let sessions = changes
        .sessions
        .iter()
        .map(|entry| Ok((id(&entry.id)?, kept(now, entry.keep_seconds))));
    let users = changes.users.iter().map(|entry| {
        Ok((
            id(&entry.id)?,
            entry.min_epoch,
            kept(now, entry.keep_seconds),
        ))
    });
    Ok(Delta {
        seq,
        nonce,
        sessions: sessions.collect::<Result<_, Malformed>>()?,
        users: users.collect::<Result<_, Malformed>>()?,
        keys,
        api_keys: changes
            .api_keys
            .into_iter()
            .map(read_api_key)
            .collect::<Result<_, _>>()?,
        removed_api_keys: changes
            .removed_api_keys
            .iter()
            .map(|bytes| id(bytes))
            .collect::<Result<_, _>>()?,
    })
}

/// Number and nonce of a position.
///
/// # Errors
///
/// [`Malformed`].
pub fn read_position(position: Option<&v1::TrustPosition>) -> Result<(i64, Uuid), Malformed> {
    let position = position.ok_or(Malformed("position"))?;
    let nonce = Uuid::from_slice(&position.nonce).map_err(|_| Malformed("position"))?;
    Ok((position.seq, nonce))
}

/// A position as it travels.
pub fn position(seq: i64, nonce: Uuid) -> v1::TrustPosition {
    v1::TrustPosition {
        seq,
        nonce: nonce.as_bytes().to_vec(),
    }
}

impl Assembler {
    /// Takes the next part; gives the state once it is whole. Nothing is kept after that, nor after an
    /// error.
    ///
    /// # Errors
    ///
    /// [`Malformed`], or a part of another snapshot.
    pub fn add(
        &mut self,
        part: v1::TrustSnapshot,
        now: Timestamp,
    ) -> Result<Option<TrustState>, Malformed> {
        let begun = self.0.take();
        let last = part.last;
        let delta = read_delta(
            v1::TrustDelta {
                position: part.position,
                changes: part.changes,
            },
            now,
        )?;
        let mut state = match (part.policy, begun) {
            (Some(policy), _) if !policy.issuer.is_empty() && delta.keys.is_some() => TrustState {
                issuer: policy.issuer,
                audiences: policy.audiences,
                keys: KeySet::default(),
                revocations: Revocations::default(),
                api_keys: ApiKeys::default(),
                seq: delta.seq,
                nonce: delta.nonce,
            },
            (None, Some(state)) if (state.seq, state.nonce) == (delta.seq, delta.nonce) => state,
            _ => return Err(Malformed("snapshot")),
        };
        state.apply(&delta);
        if last {
            return Ok(Some(state));
        }
        self.0 = Some(state);
        Ok(None)
    }
}

/// One of many.
enum Entry {
    Session(v1::RevokedSession),
    User(v1::RevokedUser),
    ApiKey(v1::TrustApiKey),
    Removed(Uuid),
}

fn chunks(entries: impl Iterator<Item = Entry>) -> Vec<v1::TrustChanges> {
    let mut chunks = Vec::new();
    for (i, entry) in entries.enumerate() {
        if i % CHUNK == 0 {
            chunks.push(v1::TrustChanges::default());
        }
        let Some(chunk) = chunks.last_mut() else {
            continue;
        };
        match entry {
            Entry::Session(session) => chunk.sessions.push(session),
            Entry::User(user) => chunk.users.push(user),
            Entry::ApiKey(key) => chunk.api_keys.push(key),
            Entry::Removed(id) => chunk.removed_api_keys.push(id.as_bytes().to_vec()),
        }
    }
    chunks
}

fn session(id: Uuid, keep_until: Timestamp, now: Timestamp) -> v1::RevokedSession {
    v1::RevokedSession {
        id: id.as_bytes().to_vec(),
        keep_seconds: keep_seconds(keep_until, now),
    }
}

fn user(id: Uuid, min_epoch: i64, keep_until: Timestamp, now: Timestamp) -> v1::RevokedUser {
    v1::RevokedUser {
        id: id.as_bytes().to_vec(),
        min_epoch,
        keep_seconds: keep_seconds(keep_until, now),
    }
}

/// Rounded up: an entry that is kept for too long does no harm.
fn keep_seconds(keep_until: Timestamp, now: Timestamp) -> i64 {
    keep_until
        .duration_since(now)
        .as_secs()
        .saturating_add(1)
        .max(1)
}

fn kept(now: Timestamp, seconds: i64) -> Timestamp {
    let kept = SignedDuration::from_secs(seconds.clamp(1, MOST_KEPT));
    now.checked_add(kept).unwrap_or(Timestamp::MAX)
}

fn keys(keys: &KeySet) -> v1::TrustKeys {
    let key = |key: &PublicKey| v1::TrustKey {
        kid: key.kid().to_owned(),
        alg: key.algorithm().name().to_owned(),
        state: match key.state() {
            KeyState::Next => v1::TrustKeyState::Next,
            KeyState::Active => v1::TrustKeyState::Active,
            KeyState::Retired => v1::TrustKeyState::Retired,
        }
        .into(),
        public_key: key.public_bytes().to_vec(),
    };
    v1::TrustKeys {
        keys: keys.iter().map(key).collect(),
    }
}

fn read_keys(message: v1::TrustKeys) -> Result<KeySet, Malformed> {
    let mut keys = KeySet::default();
    for key in message.keys {
        let state = match key.state() {
            v1::TrustKeyState::Next => KeyState::Next,
            v1::TrustKeyState::Active => KeyState::Active,
            v1::TrustKeyState::Retired => KeyState::Retired,
            v1::TrustKeyState::Unspecified => return Err(Malformed("key")),
        };
        let algorithm = Algorithm::from_name(&key.alg).ok_or(Malformed("key"))?;
        let key = PublicKey::new(key.kid, algorithm, state, &key.public_key);
        keys.insert(key.map_err(|_| Malformed("key"))?);
    }
    Ok(keys)
}

fn api_key(key: &ApiKey) -> v1::TrustApiKey {
    let secret = |secret: &ApiKeySecret| v1::TrustApiKeySecret {
        sha256: secret.hash.0.to_vec(),
        expires_at: secret.expires_at.map(timestamp),
    };
    v1::TrustApiKey {
        id: key.id.as_bytes().to_vec(),
        owner: key.owner.as_bytes().to_vec(),
        name: key.name.clone(),
        scopes: key.scopes.clone(),
        audience: key.audience.clone(),
        created_at: Some(timestamp(key.created_at)),
        expires_at: key.expires_at.map(timestamp),
        secrets: key.secrets.iter().map(secret).collect(),
    }
}

fn read_api_key(message: v1::TrustApiKey) -> Result<ApiKey, Malformed> {
    let malformed = Malformed("API key");
    let secret = |secret: v1::TrustApiKeySecret| {
        let hash = secret.sha256.try_into().map_err(|_| malformed)?;
        Ok(ApiKeySecret {
            hash: ApiKeyHash(hash),
            expires_at: secret.expires_at.map(read_timestamp).transpose()?,
        })
    };
    Ok(ApiKey {
        id: id(&message.id)?,
        owner: id(&message.owner)?,
        name: message.name,
        scopes: message.scopes,
        audience: message.audience,
        created_at: read_timestamp(message.created_at.ok_or(malformed)?)?,
        expires_at: message.expires_at.map(read_timestamp).transpose()?,
        secrets: message
            .secrets
            .into_iter()
            .map(secret)
            .collect::<Result<_, Malformed>>()?,
    })
}

fn id(bytes: &[u8]) -> Result<Uuid, Malformed> {
    Uuid::from_slice(bytes).map_err(|_| Malformed("id"))
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

fn read_timestamp(time: prost_types::Timestamp) -> Result<Timestamp, Malformed> {
    Timestamp::new(time.seconds, time.nanos).map_err(|_| Malformed("time"))
}
