//! What a check of the log finds: how far it is in order, and the first thing that
//! is wrong.

use std::fmt;

use jiff::Timestamp;
use uuid::Uuid;

use crate::domain::audit::Checkpoint;

/// What the log was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The last position that is in order, and so how many records are.
    pub records: i64,
    /// The last batch that is in order.
    pub batches: i64,
    /// Records that are as they were written and wait for their place.
    pub unchained: i64,
    /// Records without a MAC, of an older version: nothing is known about them.
    pub unsealed: i64,
    /// The time of the last of those, by its id.
    pub last_unsealed: Option<Timestamp>,
    /// Whether the end of the chain was reached.
    pub complete: bool,
    /// Up to where records went by age; what is said of them is said by their
    /// checkpoints.
    pub expired: Option<Checkpoint>,
    /// The last checkpoint that is in order.
    pub newest: Option<Checkpoint>,
    /// The first thing that is wrong.
    pub fault: Option<Fault>,
}

/// Something that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub what: What,
    /// With which checkpoint, or at which one the record was looked for.
    pub batch: Option<i64>,
    /// With the record at this place.
    pub position: Option<i64>,
    /// With this record.
    pub id: Option<Uuid>,
}

macro_rules! faults {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal, $words:literal;)+) => {
        /// What is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum What {
            $($(#[$doc])+ $variant,)+
        }

        impl What {
            /// Its name, for programs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// For people, after the place.
            pub const fn words(self) -> &'static str {
                match self {
                    $(Self::$variant => $words,)+
                }
            }
        }
    };
}

faults! {
    /// A column of a record.
    RecordAltered = "record_altered", "the record is not as it was written";
    /// Nothing is at this place.
    RecordMissing = "record_missing", "the record is missing";
    /// Another record is at this place.
    RecordMoved = "record_moved", "this is not the record that was chained here: records were removed, added or reordered";
    /// Two records are at one place.
    RecordAdded = "record_added", "there are two records at this place";
    /// The digest of the address and user agent.
    OriginAltered = "origin_altered", "the address or user agent is not as it was written";
    /// They were not erased with the person.
    OriginMissing = "origin_missing", "the address and user agent are missing, and the person has not been erased";
    /// It names an older key than the one before it.
    CheckpointKeyOlder = "checkpoint_key_older", "the checkpoint is signed by an older key than the one before it";
    /// A column of a checkpoint.
    CheckpointAltered = "checkpoint_altered", "the checkpoint is not as it was signed";
    /// There is none of this number.
    CheckpointMissing = "checkpoint_missing", "the checkpoint is missing";
    /// The mark of what went by age.
    RetentionAltered = "retention_altered", "what says how much of the log went by age is not as it was signed";
    /// By none of the log's keys.
    AnchorForged = "anchor_forged", "the anchor is not signed by a key of this log";
    /// The log ends before the anchor.
    AnchorMissing = "anchor_missing", "the log ends before the anchor: its end was cut off, or an older copy was restored";
    /// The log has another checkpoint there.
    AnchorDiffers = "anchor_differs", "the log is not the one that the anchor is of";
}

impl Fault {
    pub(super) fn of_batch(what: What, batch: i64) -> Self {
        Self::of_record(what, Some(batch), None, None)
    }

    pub(super) fn of_record(
        what: What,
        batch: Option<i64>,
        position: Option<i64>,
        id: Option<Uuid>,
    ) -> Self {
        Self {
            what,
            batch,
            position,
            id,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = Vec::new();
        place.extend(self.batch.map(|batch| format!("batch {batch}")));
        place.extend(self.position.map(|position| format!("position {position}")));
        place.extend(self.id.map(|id| format!("record {id}")));
        if !place.is_empty() {
            write!(f, "{}: ", place.join(", "))?;
        }
        f.write_str(self.what.words())
    }
}
