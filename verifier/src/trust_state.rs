//! Everything a decision rests on, as one value.

use jiff::Timestamp;
use uuid::Uuid;

use crate::{ApiKey, ApiKeys, KeySet, Revocations};

/// What a verifier believes at one moment.
///
/// A plain value, and cheap to copy: a feed makes the next state from the last one, changes it by a
/// batch of log entries, and puts it in place whole. So a decision never sees half a batch.
#[derive(Clone, Debug)]
pub struct TrustState {
    /// The one issuer, compared exactly with `iss`.
    pub issuer: String,
    /// Audiences that are accepted when a call names none.
    pub audiences: Vec<String>,
    /// The keys that access tokens are signed with.
    pub keys: KeySet,
    /// What has been revoked.
    pub revocations: Revocations,
    /// The live API keys.
    pub api_keys: ApiKeys,
    /// Number of the last trust log entry that is in this state.
    pub seq: i64,
    /// Random, of that entry: the same number with another nonce is another history, such as a
    /// restored backup. Nil before the first entry.
    pub nonce: Uuid,
}

/// What changed between one trust state and a later one.
///
/// It may be applied more than once, and to a state that holds some of it already.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Number of the last trust log entry that is in it.
    pub seq: i64,
    /// Nonce of that entry.
    pub nonce: Uuid,
    /// Revoked sessions, and until when each entry is kept.
    pub sessions: Vec<(Uuid, Timestamp)>,
    /// Users, the least epoch that their tokens must carry, and until when each entry is kept.
    pub users: Vec<(Uuid, i64, Timestamp)>,
    /// All signing keys, if they changed.
    pub keys: Option<KeySet>,
    /// API keys that are new or changed.
    pub api_keys: Vec<ApiKey>,
    /// API keys that are gone.
    pub removed_api_keys: Vec<Uuid>,
}

impl TrustState {
    /// Makes the change.
    pub fn apply(&mut self, delta: &Delta) {
        for (session_id, keep_until) in &delta.sessions {
            self.revocations.revoke_session(*session_id, *keep_until);
        }
        for (user_id, min_epoch, keep_until) in &delta.users {
            self.revocations
                .revoke_user(*user_id, *min_epoch, *keep_until);
        }
        if let Some(keys) = &delta.keys {
            self.keys = keys.clone();
        }
        for id in &delta.removed_api_keys {
            self.api_keys.remove(*id);
        }
        for key in &delta.api_keys {
            self.api_keys.insert(key.clone());
        }
        self.seq = delta.seq;
        self.nonce = delta.nonce;
    }
}
