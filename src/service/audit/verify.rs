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

use uuid::Uuid;

use crate::{
    crypto::{
        AuditKeys,
        audit::{Link, origin_digest},
    },
    domain::{
        Call,
        audit::{Checkpoint, StoredEvent},
    },
    error::{Error, Result},
    service::Core,
    store::audit::chain as log,
};

/// Records, or checkpoints, of one query.
const PAGE: i64 = 500;

/// What the log was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The last position that is in order, and so how many records are.
    pub records: i64,
    /// The last batch that is in order.
    pub batches: i64,
    /// Records that are as they were written and wait for their place.
    pub unchained: i64,
    /// Records from before there was a chain: nothing is known about them.
    pub before: i64,
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
        write!(f, "{}: {}", place.join(", "), self.what.words())
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

/// Checks the whole log. `progress` is told how many records were in order so
/// far.
pub async fn verify(
    core: &Core,
    call: &Call,
    keys: &AuditKeys,
    anchor: Option<&Checkpoint>,
    progress: impl FnMut(i64) + Send,
) -> Result<Report> {
    let mut walk = Walk::new(core, call, keys, anchor);
    let end = walk.all(progress).await;
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
    async fn all(&mut self, progress: impl FnMut(i64) + Send) -> Result<(), Stop> {
        self.chain(progress).await?;
        self.unchained().await?;
        let mut conn = self.core.store.read(self.call).await?;
        self.report.before = log::count_before(&mut conn).await?;
        Ok(())
    }

    async fn part(&mut self, after: i64, limit: i64) -> Result<(), Stop> {
        if after > 0 {
            let mut conn = self.core.store.read(self.call).await?;
            let found = log::checkpoints_after(&mut conn, after - 1, 1).await?.pop();
            drop(conn);
            let found = found.filter(|checkpoint| checkpoint.batch == after);
            let fault = |what| Stop::Found(Fault::of_batch(what, after));
            let start = found.ok_or_else(|| fault(What::CheckpointMissing))?;
            if !self.keys.is_signed(&start) {
                return Err(fault(What::CheckpointAltered));
            }
            self.root = start.root;
            self.report.records = start.position;
            self.report.batches = start.batch;
            self.until = start.position.saturating_add(limit);
            // Its record is not of this part.
            self.last = self.at(start.position).await?;
            self.report.newest = Some(start);
        } else {
            self.until = limit;
        }
        self.chain(|_| ()).await
    }

    /// The checkpoints, one by one, and at the end the anchor.
    async fn chain(&mut self, mut progress: impl FnMut(i64) + Send) -> Result<(), Stop> {
        if let Some(anchor) = self.anchor
            && !self.keys.is_signed(anchor)
        {
            let fault = Fault::of_batch(What::AnchorForged, anchor.batch);
            return Err(Stop::Found(fault));
        }
        loop {
            let is_beyond = self.next().await?.is_some();
            let page = {
                let mut conn = self.core.store.read(self.call).await?;
                log::checkpoints_after(&mut conn, self.report.batches, PAGE).await?
            };
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
        let mut conn = self.core.store.read(self.call).await?;
        let found = log::events_from(&mut conn, position, 1).await?.pop();
        let found = found.filter(|event| event.position == Some(position));
        Ok(found.map(|event| event.record.id))
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
        if let Some(anchor) = self.anchor
            && anchor.batch == expected
            && *anchor != checkpoint
        {
            return found(What::AnchorDiffers);
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
            let fault = Fault::of_record(What::RecordAdded, None, Some(found), id);
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
        let StoredEvent {
            record,
            seal,
            origin,
            ..
        } = event;
        if !seal
            .as_ref()
            .is_some_and(|seal| self.keys.is_ours(record, seal))
        {
            return Some(What::RecordAltered);
        }
        let person = record.person();
        match (&record.origin_digest, origin) {
            (None, None) => None,
            (Some(_), None) if person.is_some_and(|id| self.erased.contains(&id)) => None,
            (Some(_), None) => Some(What::OriginMissing),
            (Some(digest), Some((user, origin)))
                if *user == person && origin_digest(origin) == *digest =>
            {
                None
            }
            _ => Some(What::OriginAltered),
        }
    }

    /// The next record, if there is one.
    async fn next(&mut self) -> Result<Option<&StoredEvent>> {
        if self.ahead.is_empty() {
            // From the last one on: another one may stand in its place.
            let from = self.report.records.max(1);
            let mut conn = self.core.store.read(self.call).await?;
            let mut page = log::events_from(&mut conn, from, PAGE + 1).await?;
            drop(conn);
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
            let page = log::unchained_after(&mut conn, after, PAGE).await?;
            drop(conn);
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
