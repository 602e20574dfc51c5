//! Group commit on SQLite.
//!
//! One connection writes, and each COMMIT waits for the disk. So whoever has it
//! while others stand in line leaves its transaction open for them, and a task
//! stands in line again, behind them, to COMMIT for all. Each of them works
//! within a savepoint of its own, which is taken back if its work fails.
//!
//! Nobody is told anything before that COMMIT, not even a failure: what it was
//! judged by may be another's work. If it fails, or the connection is lost, all
//! of them have failed.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::health::Health;
use crate::error::{Error, Reason, Result};

/// Those who want to write.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: AtomicUsize,
    /// Whose transaction is open on the connection that nobody has.
    open: Mutex<Option<Arc<Group>>>,
}

/// Somebody in line.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Line);

/// Those whose work is in one transaction.
#[derive(Debug)]
pub(super) struct Group {
    /// Which connection it is open on.
    connection: Instant,
    end: watch::Sender<Option<End>>,
    members: AtomicU64,
}

/// How a group's transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Committed,
    /// Nothing of it was done, as somebody was in the way or the connection was
    /// lost.
    TakenBack,
    /// Nothing of it was done, and trying again would not help.
    Refused,
    /// COMMIT was sent, and there was no answer.
    Unknown,
}

impl Line {
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(self)
    }

    pub(super) fn length(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// The group whose transaction is open on this connection. One that was
    /// open on another has ended with it.
    pub(super) fn take(&self, connection: Instant) -> Option<Arc<Group>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.take().filter(|group| group.connection == connection)
    }

    /// The connection is given back with the group's transaction open.
    pub(super) fn leave(&self, group: Arc<Group>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open = Some(group);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Group {
    /// The group of a transaction on this connection, with one member.
    pub(super) fn new(connection: Instant) -> Self {
        Self {
            connection,
            end: watch::Sender::new(None),
            members: AtomicU64::new(1),
        }
    }

    pub(super) fn join(&self) {
        self.members.fetch_add(1, Relaxed);
    }

    /// Tells all members.
    pub(super) fn ended(&self, end: End) {
        self.end.send_replace(Some(end));
        let members = self.members.load(Relaxed);
        if end == End::Committed && members > 1 {
            metrics::counter!("countersign_database_shared_commits_total").increment(members);
        }
    }

    /// Waits for the end, for so long and no longer.
    pub(super) async fn outcome(&self, limit: Duration) -> Result<()> {
        let mut told = self.end.subscribe();
        let end = tokio::time::timeout(limit, told.wait_for(Option::is_some)).await;
        match end.ok().and_then(|end| end.ok().and_then(|end| *end)) {
            Some(End::Committed) => Ok(()),
            Some(End::TakenBack) => {
                Err(Health::busy().because("the transaction that it shared with others failed"))
            }
            Some(End::Refused) => Err(Error::internal(
                "the COMMIT that it shared with others was refused",
            )),
            Some(End::Unknown) | None => Err(Reason::OutcomeUnknown.into()),
        }
    }
}
