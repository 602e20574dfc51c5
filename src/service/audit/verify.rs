//! Checking the log: every record by its MAC, every place by its link, every
//! checkpoint by its signature, and the end of the log by an anchor that was
//! kept elsewhere. The first thing that is wrong is named.
//!
//! The log is read page by page while it grows: a batch and its checkpoint are
//! committed together, so records without one are looked for before checkpoints
//! are.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    crypto::{
        AuditKeys,
        audit::{Link, origin_digest},
    },
    domain::{
        Call,
        audit::{Checkpoint, StoredEvent},
        id,
    },
    error::{Error, Reason, Result},
    service::Core,
    store::audit::chain as log,
};

/// Records, or checkpoints, of one query.
const PAGE: i64 = 500;

/// Ids of one query.
const UNSEALED_PAGE: i64 = 10_000;

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
    pub unsealed: usize,
    /// The time of the last of those, by its id.
    pub last_unsealed: Option<Timestamp>,
    /// Whether the end of the chain was reached.
    pub complete: bool,
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
    /// By none of the log's keys.
    AnchorForged = "anchor_forged", "the anchor is not signed by a key of this log";
    /// The log ends before the anchor.
    AnchorMissing = "anchor_missing", "the log ends before the anchor: its end was cut off, or an older copy was restored";
    /// The log has another checkpoint there.
    AnchorDiffers = "anchor_differs", "the log is not the one that the anchor is of";
}

impl Fault {
    fn of_batch(what: What, batch: i64) -> Self {
        Self {
            what,
            batch: Some(batch),
            position: None,
            id: None,
        }
    }

    fn of_record(what: What, batch: Option<i64>, position: Option<i64>, id: Option<Uuid>) -> Self {
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

/// Whether a record, and what there is of its origin, is as it was written.
pub fn is_authentic(keys: &AuditKeys, event: &StoredEvent) -> bool {
    is_sealed(keys, event) && is_its_origin(event)
}

fn is_sealed(keys: &AuditKeys, event: &StoredEvent) -> bool {
    let seal = event.seal.as_ref();
    seal.is_some_and(|seal| keys.is_ours(&event.record, seal))
}

/// Whether the origin is the record's, if there is one.
fn is_its_origin(event: &StoredEvent) -> bool {
    event.origin.as_ref().is_none_or(|(person, origin)| {
        let digest = event.record.origin_digest.as_ref();
        *person == event.record.person() && digest == Some(&origin_digest(origin))
    })
}

/// A row that cannot be read was altered; other failures say nothing of it.
fn unreadable(error: Error, batch: Option<i64>, position: Option<i64>) -> Stop {
    if error.reason() == Reason::Internal {
        Stop::Found(Fault::of_record(What::RecordAltered, batch, position, None))
    } else {
        Stop::Failed(error)
    }
}

/// Why the walk ended early.
enum Stop {
    Failed(Error),
    Found(Fault),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Checks the log after a checkpoint, 0 for the beginning, up to its end.
/// `progress` is told how many records were in order so far.
pub async fn verify(
    core: &Core,
    call: &Call,
    keys: &AuditKeys,
    anchor: Option<&Checkpoint>,
    after: i64,
    progress: impl FnMut(i64) + Send,
) -> Result<Report> {
    let mut walk = Walk::new(core, call, keys, anchor);
    let end = walk.all(after, progress).await;
    walk.end(end)
}

/// Checks the log after a checkpoint, 0 for the beginning, and ends with the
/// batch in which `limit` more records were in order.
pub async fn verify_part(
    core: &Core,
    call: &Call,
    keys: &AuditKeys,
    anchor: Option<&Checkpoint>,
    after: i64,
    limit: i64,
) -> Result<Report> {
    let mut walk = Walk::new(core, call, keys, anchor);
    let end = walk.part(after, limit).await;
    walk.end(end)
}

struct Walk<'a> {
    core: &'a Core,
    call: &'a Call,
    keys: &'a AuditKeys,
    anchor: Option<&'a Checkpoint>,
    report: Report,
    /// The link of the last record.
    root: Link,
    /// Records that were read and not looked at yet.
    ahead: VecDeque<StoredEvent>,
    /// The last record.
    last: Option<Uuid>,
    /// Who, of those read last, has been erased.
    erased: HashSet<Uuid>,
    /// Ends behind this position.
    until: i64,
}

impl<'a> Walk<'a> {
    fn new(
        core: &'a Core,
        call: &'a Call,
        keys: &'a AuditKeys,
        anchor: Option<&'a Checkpoint>,
    ) -> Self {
        Self {
            core,
            call,
            keys,
            anchor,
            report: Report::default(),
            root: Link::default(),
            ahead: VecDeque::new(),
            last: None,
            erased: HashSet::new(),
            until: i64::MAX,
        }
    }

    fn end(mut self, end: Result<(), Stop>) -> Result<Report> {
        match end {
            Ok(()) => Ok(self.report),
            Err(Stop::Found(fault)) => {
                self.report.fault = Some(fault);
                Ok(self.report)
            }
            Err(Stop::Failed(error)) => Err(error),
        }
    }
}

impl Walk<'_> {
    async fn all(&mut self, after: i64, progress: impl FnMut(i64) + Send) -> Result<(), Stop> {
        self.begin(after).await?;
        self.chain(progress).await?;
        self.outside().await?;
        self.unchained().await?;
        self.unsealed().await
    }

    async fn part(&mut self, after: i64, limit: i64) -> Result<(), Stop> {
        self.begin(after).await?;
        self.until = self.report.records.saturating_add(limit);
        self.chain(|_| ()).await
    }

    /// Begins after this checkpoint, which is believed for its signature.
    async fn begin(&mut self, after: i64) -> Result<(), Stop> {
        if let Some(anchor) = self.anchor
            && !self.keys.is_signed(anchor)
        {
            let fault = Fault::of_batch(What::AnchorForged, anchor.batch);
            return Err(Stop::Found(fault));
        }
        if after == 0 {
            return Ok(());
        }
        let start = self.signed(after).await?;
        if let Some(anchor) = self.anchor
            && anchor.batch < after
            && self.signed(anchor.batch).await? != *anchor
        {
            let fault = Fault::of_batch(What::AnchorDiffers, anchor.batch);
            return Err(Stop::Found(fault));
        }
        self.is_the_anchor(&start)?;
        self.root = start.root;
        self.report.records = start.position;
        self.report.batches = start.batch;
        // Its record is not of this part.
        self.last = self.at(start.position).await?;
        self.report.newest = Some(start);
        Ok(())
    }

    /// The checkpoint of this number.
    async fn signed(&self, batch: i64) -> Result<Checkpoint, Stop> {
        let found = self.checkpoints(batch - 1, 1).await?.pop();
        let found = found.filter(|checkpoint| checkpoint.batch == batch);
        let fault = |what| Stop::Found(Fault::of_batch(what, batch));
        let checkpoint = found.ok_or_else(|| fault(What::CheckpointMissing))?;
        if self.keys.is_signed(&checkpoint) {
            Ok(checkpoint)
        } else {
            Err(fault(What::CheckpointAltered))
        }
    }

    /// If the anchor is of this batch, it must be this checkpoint.
    fn is_the_anchor(&self, checkpoint: &Checkpoint) -> Result<(), Stop> {
        match self.anchor {
            Some(anchor) if anchor.batch == checkpoint.batch && anchor != checkpoint => {
                let fault = Fault::of_batch(What::AnchorDiffers, anchor.batch);
                Err(Stop::Found(fault))
            }
            _ => Ok(()),
        }
    }

    /// Up to `limit` checkpoints after this one. One that cannot be read was
    /// altered.
    async fn checkpoints(&self, after: i64, limit: i64) -> Result<Vec<Checkpoint>, Stop> {
        let mut conn = self.core.store.read(self.call).await?;
        match log::checkpoints_after(&mut conn, after, limit).await {
            Err(error) if error.reason() == Reason::Internal => {}
            page => return Ok(page?),
        }
        match log::checkpoints_after(&mut conn, after, 1).await {
            Err(error) if error.reason() == Reason::Internal => {
                let fault = Fault::of_batch(What::CheckpointAltered, after + 1);
                Err(Stop::Found(fault))
            }
            one => Ok(one?),
        }
    }

    /// The checkpoints, one by one, and at the end the anchor.
    async fn chain(&mut self, mut progress: impl FnMut(i64) + Send) -> Result<(), Stop> {
        loop {
            let is_beyond = self.next().await?.is_some();
            let page = self.checkpoints(self.report.batches, PAGE).await?;
            if page.is_empty() && is_beyond {
                let missing = self.report.batches + 1;
                let fault = Fault::of_batch(What::CheckpointMissing, missing);
                return Err(Stop::Found(fault));
            }
            if page.is_empty() {
                break;
            }
            for checkpoint in page {
                self.batch(checkpoint).await?;
                progress(self.report.records);
                if self.report.records >= self.until {
                    return Ok(());
                }
            }
        }
        if let Some(anchor) = self.anchor
            && anchor.batch > self.report.batches
        {
            let fault = Fault::of_batch(What::AnchorMissing, anchor.batch);
            return Err(Stop::Found(fault));
        }
        self.report.complete = true;
        Ok(())
    }

    /// The record at this place.
    async fn at(&self, position: i64) -> Result<Option<Uuid>> {
        log::id_at(&mut self.core.store.read(self.call).await?, position).await
    }

    /// One checkpoint, and the records up to it.
    async fn batch(&mut self, checkpoint: Checkpoint) -> Result<(), Stop> {
        let expected = self.report.batches + 1;
        let found = |what| Err(Stop::Found(Fault::of_batch(what, expected)));
        if checkpoint.batch != expected {
            return found(What::CheckpointMissing);
        }
        if !self.keys.is_signed(&checkpoint) {
            return found(What::CheckpointAltered);
        }
        self.is_the_anchor(&checkpoint)?;
        // Whoever has a key that was succeeded signs nothing that counts.
        let before = self.report.newest.as_ref();
        if before.is_some_and(|before| before.key_id > checkpoint.key_id) {
            return found(What::CheckpointKeyOlder);
        }
        while self.report.records < checkpoint.position {
            self.record(&checkpoint).await?;
        }
        if self.root != checkpoint.root {
            return found(What::CheckpointAltered);
        }
        self.report.batches = expected;
        self.report.newest = Some(checkpoint);
        Ok(())
    }

    /// The next record, which belongs to this checkpoint.
    async fn record(&mut self, checkpoint: &Checkpoint) -> Result<(), Stop> {
        let expected = self.report.records + 1;
        let next = self.next().await?;
        let id = next.map(|event| event.record.id);
        let found = next.and_then(|event| event.position).unwrap_or(i64::MAX);
        let fault = |what, id| {
            let fault = Fault::of_record(what, Some(checkpoint.batch), Some(expected), id);
            Err(Stop::Found(fault))
        };
        if found > expected {
            return fault(What::RecordMissing, None);
        }
        if found < expected {
            let batch = Some(checkpoint.batch);
            let fault = Fault::of_record(What::RecordAdded, batch, Some(found), id);
            return Err(Stop::Found(fault));
        }
        let Some(event) = self.ahead.pop_front() else {
            return fault(What::RecordMissing, None);
        };
        if let Some(what) = self.wrong_with(&event) {
            return fault(what, id);
        }
        let mac = event.seal.map(|seal| seal.mac).unwrap_or_default();
        let link = (self.keys).link(checkpoint.key_id, &self.root, expected, &mac);
        match (link, event.link) {
            (Some(link), Some(stored)) if stored == link => self.root = link,
            _ => return fault(What::RecordMoved, id),
        }
        self.last = id;
        self.report.records = expected;
        Ok(())
    }

    /// What is wrong with a record by itself.
    fn wrong_with(&self, event: &StoredEvent) -> Option<What> {
        let record = &event.record;
        let is_erased = || (record.person()).is_some_and(|id| self.erased.contains(&id));
        if !is_sealed(self.keys, event) {
            Some(What::RecordAltered)
        } else if !is_its_origin(event) {
            Some(What::OriginAltered)
        } else if record.origin_digest.is_some() && event.origin.is_none() && !is_erased() {
            Some(What::OriginMissing)
        } else {
            None
        }
    }

    /// The next record, if there is one.
    async fn next(&mut self) -> Result<Option<&StoredEvent>, Stop> {
        if self.ahead.is_empty() {
            // From the last one on: another one may stand in its place.
            let from = self.report.records.max(1);
            let mut conn = self.core.store.read(self.call).await?;
            let page = match log::events_from(&mut conn, from, PAGE + 1).await {
                // A row cannot be read; those before it can.
                Err(error) if error.reason() == Reason::Internal => {
                    let one = 1 + i64::from(self.last.is_some());
                    match log::events_from(&mut conn, from, one).await {
                        // Perhaps it is the one before this part.
                        Err(error) if error.reason() == Reason::Internal => {
                            log::events_from(&mut conn, self.report.records + 1, 1).await
                        }
                        page => page,
                    }
                }
                page => page,
            };
            drop(conn);
            let mut page = page.map_err(|error| {
                let (batch, next) = (self.report.batches + 1, self.report.records + 1);
                unreadable(error, Some(batch), Some(next))
            })?;
            page.retain(|event| Some(event.record.id) != self.last);
            self.ask_who_is_erased(&page).await?;
            self.ahead = page.into();
        }
        Ok(self.ahead.front())
    }

    /// Records that have no place yet.
    async fn unchained(&mut self) -> Result<(), Stop> {
        let mut after = Uuid::nil();
        loop {
            let mut conn = self.core.store.read(self.call).await?;
            let page = match log::unchained_after(&mut conn, after, PAGE).await {
                Err(error) if error.reason() == Reason::Internal => {
                    log::unchained_after(&mut conn, after, 1).await
                }
                page => page,
            };
            drop(conn);
            let page = page.map_err(|error| unreadable(error, None, None))?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.record.id;
            self.ask_who_is_erased(&page).await?;
            for event in page {
                if let Some(what) = self.wrong_with(&event) {
                    let fault = Fault::of_record(what, None, None, Some(event.record.id));
                    return Err(Stop::Found(fault));
                }
                self.report.unchained += 1;
            }
        }
    }

    /// Records at places that are in no chain.
    async fn outside(&self) -> Result<(), Stop> {
        let mut conn = self.core.store.read(self.call).await?;
        let found = log::before_the_first(&mut conn).await;
        match found.map_err(|error| unreadable(error, None, None))? {
            None => Ok(()),
            id => Err(Stop::Found(Fault::of_record(
                What::RecordMoved,
                None,
                None,
                id,
            ))),
        }
    }

    /// Records without a MAC.
    async fn unsealed(&mut self) -> Result<(), Stop> {
        let mut from = Uuid::nil();
        loop {
            let mut conn = self.core.store.read(self.call).await?;
            let page = log::unsealed_from(&mut conn, from, UNSEALED_PAGE).await;
            drop(conn);
            let page = page.map_err(|error| unreadable(error, None, None))?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            self.report.unsealed += page.len();
            self.report.last_unsealed = id::time_of(*last);
            let Some(next) = last.as_u128().checked_add(1) else {
                return Ok(());
            };
            from = Uuid::from_u128(next);
        }
    }

    async fn ask_who_is_erased(&mut self, page: &[StoredEvent]) -> Result<()> {
        let lacking = page
            .iter()
            .filter(|event| event.record.origin_digest.is_some() && event.origin.is_none());
        let people: HashSet<Uuid> = lacking.filter_map(|event| event.record.person()).collect();
        self.erased = if people.is_empty() {
            people
        } else {
            let mut conn = self.core.store.read(self.call).await?;
            let erased = log::erased(&mut conn, people.into_iter().collect()).await?;
            erased.into_iter().collect()
        };
        Ok(())
    }
}
