//! A node as the others see it.

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::MasterKeyId;

/// A node's word about itself, given about once a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id, another one at each start.
    pub id: Uuid,
    /// When it started.
    pub started_at: Timestamp,
    /// When it said this.
    pub seen_at: Timestamp,
    /// The last entry of the trust log that is in force there.
    pub applied_seq: i64,
    /// How many validators it feeds.
    pub validators: u32,
    /// The last entry that all of them have acknowledged; none without any,
    /// or while one has acknowledged nothing.
    pub acked_seq: Option<i64>,
    /// By how much its clock is ahead of the database's.
    pub clock_skew: SignedDuration,
    /// The master keys that it has; none are told by versions that know of one
    /// only.
    pub master_keys: Vec<MasterKeyId>,
}

impl Node {
    /// A node that was last heard of before so long does not count any more.
    pub const SILENCE: SignedDuration = SignedDuration::from_secs(15);

    /// Whether the entry is in force there.
    pub fn has_applied(&self, seq: i64) -> bool {
        self.applied_seq >= seq
    }

    /// Whether the entry is in force at all that it feeds.
    pub fn all_acknowledged(&self, seq: i64) -> bool {
        self.validators == 0 || self.acked_seq.is_some_and(|acked| acked >= seq)
    }
}
