//! Everything a decision rests on, as one value.

use crate::{KeySet, Revocations};

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
    /// Number of the last trust log entry that is in this state.
    pub seq: i64,
}
