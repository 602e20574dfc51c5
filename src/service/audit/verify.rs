//! Checking the log: every record by its MAC, every place by its link, every
//! checkpoint by its signature, and the end of the log by an anchor that was
//! kept elsewhere. The first thing that is wrong is named.
//!
//! The log is read page by page while it grows: a batch and its checkpoint are
//! committed together, so records without one are looked for before checkpoints
//! are. Of batches that went by age, as a signed mark says, only the checkpoints
//! are there.

mod outside;

use std::collections::{HashSet, VecDeque};

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    report::{Fault, Report, What},
    retention,
};
use crate::{
    crypto::{
        AuditKeys,
        audit::{Link, origin_digest},
    },
    domain::{
        Call,
        audit::{Checkpoint, StoredEvent},
    },
    error::{Error, Reason, Result},
    service::Core,
    store::audit::chain as log,
};

/// Records, or checkpoints, of one query.
const PAGE: i64 = 500;

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
        Fault::of_record(What::RecordAltered, batch, position, None).into()
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

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Found(fault)
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
/// batch in which `limit` more records were in order, or with what is outside of
/// the chain.
pub async fn verify_part(
    core: &Core,
    call: &Call,
    keys: &AuditKeys,
    anchor: Option<&Checkpoint>,
    after: i64,
    limit: i64,
) -> Result<Report> {
    let mut walk = Walk::new(core, call, keys, anchor);
    let end = match walk.part(after, limit).await {
        Ok(()) if walk.report.complete => walk.outside().await,
        end => end,
    };
    walk.end(end)
}

/// Checks what was chained before this time, likewise.
pub async fn verify_old(
    core: &Core,
    call: &Call,
    keys: &AuditKeys,
    after: i64,
    before: Timestamp,
    limit: i64,
) -> Result<Report> {
    let mut walk = Walk::new(core, call, keys, None);
    walk.before = before;
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
    /// Ends with the last checkpoint that was made before.
    before: Timestamp,
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
            before: Timestamp::MAX,
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
        self.outside().await
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
            return Err(Fault::of_batch(What::AnchorForged, anchor.batch).into());
        }
        self.look_at_the_mark().await?;
        if after == 0 {
            return Ok(());
        }
        let start = self.signed(after).await?;
        if let Some(anchor) = self.anchor
            && anchor.batch < after
            && self.signed(anchor.batch).await? != *anchor
        {
            return Err(Fault::of_batch(What::AnchorDiffers, anchor.batch).into());
        }
        self.is_the_anchor(&start)?;
        self.is_expired(&start)?;
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
        let fault = |what| Stop::from(Fault::of_batch(what, batch));
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
                Err(Fault::of_batch(What::AnchorDiffers, anchor.batch).into())
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
                Err(Fault::of_batch(What::CheckpointAltered, after + 1).into())
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
                return Err(Fault::of_batch(What::CheckpointMissing, missing).into());
            }
            if page.is_empty() {
                break;
            }
            for checkpoint in page {
                if checkpoint.created_at >= self.before {
                    return Ok(());
                }
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
            return Err(Fault::of_batch(What::AnchorMissing, anchor.batch).into());
        }
        if let Some(mark) = &self.report.expired
            && mark.batch > self.report.batches
        {
            return Err(Fault::of_batch(What::CheckpointMissing, mark.batch).into());
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
        let found = |what| Err(Fault::of_batch(what, expected).into());
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
        if let Err(stop) = self.records(&checkpoint).await {
            // Perhaps they go by age while we look.
            self.look_at_the_mark().await?;
            self.ahead.clear();
            if !self.is_expired(&checkpoint)? {
                return Err(stop);
            }
        }
        if self.is_expired(&checkpoint)? {
            self.root = checkpoint.root;
            self.report.records = checkpoint.position;
        }
        if self.root != checkpoint.root {
            return found(What::CheckpointAltered);
        }
        self.report.batches = expected;
        self.report.newest = Some(checkpoint);
        Ok(())
    }

    /// Its records, unless they went by age.
    async fn records(&mut self, checkpoint: &Checkpoint) -> Result<(), Stop> {
        while !self.is_expired(checkpoint)? && self.report.records < checkpoint.position {
            self.record(checkpoint).await?;
        }
        Ok(())
    }

    /// Whether the records of this checkpoint went by age. The mark is of the last
    /// that did, and of no key that was succeeded by then.
    fn is_expired(&self, checkpoint: &Checkpoint) -> Result<bool, Stop> {
        let Some(mark) = &self.report.expired else {
            return Ok(false);
        };
        let is_same = (mark.position, mark.root) == (checkpoint.position, checkpoint.root)
            && mark.key_id >= checkpoint.key_id;
        if mark.batch == checkpoint.batch && !is_same {
            return Err(Fault::of_batch(What::RetentionAltered, mark.batch).into());
        }
        Ok(checkpoint.batch <= mark.batch)
    }

    /// Up to where the log went by age by now.
    async fn look_at_the_mark(&mut self) -> Result<(), Stop> {
        let mut conn = self.core.store.read(self.call).await?;
        self.report.expired = match retention::marked(&mut conn, self.keys).await {
            Err(error) if error.reason() == Reason::Internal => {
                return Err(Fault::of_record(What::RetentionAltered, None, None, None).into());
            }
            mark => mark?,
        };
        Ok(())
    }

    /// The next record, which belongs to this checkpoint.
    async fn record(&mut self, checkpoint: &Checkpoint) -> Result<(), Stop> {
        let expected = self.report.records + 1;
        let next = self.next().await?;
        let id = next.map(|event| event.record.id);
        let found = next.and_then(|event| event.position).unwrap_or(i64::MAX);
        let fault = |what, id| {
            Err(Fault::of_record(what, Some(checkpoint.batch), Some(expected), id).into())
        };
        if found > expected {
            return fault(What::RecordMissing, None);
        }
        if found < expected {
            let batch = Some(checkpoint.batch);
            return Err(Fault::of_record(What::RecordAdded, batch, Some(found), id).into());
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
            let expired = self.report.expired.as_ref().map_or(0, |mark| mark.position);
            let records = self.report.records;
            let from = records.max(expired + 1);
            let mut conn = self.core.store.read(self.call).await?;
            let page = match log::events_from(&mut conn, from, PAGE + 1).await {
                // A row cannot be read; those before it can.
                Err(error) if error.reason() == Reason::Internal => {
                    let one = 1 + i64::from(self.last.is_some());
                    match log::events_from(&mut conn, from, one).await {
                        // Perhaps it is the one before this part.
                        Err(error) if error.reason() == Reason::Internal => {
                            log::events_from(&mut conn, from.max(records + 1), 1).await
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
