//! What validators must hear: the entries of the trust log.

use jiff::Timestamp;
use uuid::Uuid;

use super::{ApiKeyId, SessionId, UserId};

/// One change that validators must hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustChange {
    /// The session's tokens are refused.
    SessionRevoked {
        /// Which.
        session_id: SessionId,
    },
    /// The user's tokens of smaller epochs are refused.
    UserEpoch {
        /// Whose.
        user_id: UserId,
        /// The smallest epoch that is still good.
        min_epoch: i64,
    },
    /// An API key was created, rotated or revoked, or has ended: read it again.
    ApiKey {
        /// Which.
        api_key_id: ApiKeyId,
    },
    /// Signing keys were staged, activated, retired or revoked: read them
    /// again.
    SigningKeys,
    /// Symmetric keys were added or removed: read them again.
    SecretKeys,
}

/// A change with its place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustEntry {
    /// Its number. Numbers commit in order, so a cursor skips nothing.
    pub seq: i64,
    /// Tells this history from another with the same numbers (a restored
    /// backup).
    pub nonce: Uuid,
    /// What changed.
    pub change: TrustChange,
    /// When; for people and for clearing away, never for a verdict.
    pub created_at: Timestamp,
}

impl TrustEntry {
    /// Whether keys must be read again.
    pub fn is_about_keys(&self) -> bool {
        matches!(
            self.change,
            TrustChange::SigningKeys | TrustChange::SecretKeys
        )
    }
}
