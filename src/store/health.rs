//! What is known of the database's health, shared by all connections.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use countersign_verifier::Clock;
use jiff::Timestamp;

use crate::{breaker::Breaker, domain::session::Outage, error::Error};

/// Names the database in errors.
const NAME: &str = "database";

/// After a lock or a deadlock the next try may be the one.
const BUSY_RETRY: Duration = Duration::from_millis(100);

/// What is known of the database's health.
pub(super) struct Health {
    pub(super) breaker: Breaker,
    pub(super) clock: Arc<dyn Clock>,
    /// Nothing has answered since the start or since it was lost. Read alone, it
    /// costs no lock.
    lost: AtomicBool,
    outages: Mutex<Outages>,
}

#[derive(Default)]
struct Outages {
    /// When the one that goes on was noticed.
    lost_at: Option<Timestamp>,
    last: Option<Outage>,
}

impl Health {
    pub(super) fn new(breaker: Breaker, clock: Arc<dyn Clock>) -> Self {
        Self {
            breaker,
            clock,
            lost: AtomicBool::new(true),
            outages: Mutex::default(),
        }
    }

    /// The database did not answer.
    pub(super) fn lost(&self) {
        let mut outages = self.outages();
        // Whoever starts in an outage does not know since when it has lasted.
        let unknown = self.lost.swap(true, SeqCst);
        let since = if unknown {
            Timestamp::MIN
        } else {
            self.clock.now()
        };
        outages.lost_at.get_or_insert(since);
        drop(outages);
        metrics::counter!("countersign_database_lost_total").increment(1);
    }

    /// The database answered.
    pub(super) fn answered(&self) {
        if !self.lost.load(SeqCst) {
            return;
        }
        let mut outages = self.outages();
        self.lost.store(false, SeqCst);
        if let Some(lost_at) = outages.lost_at.take() {
            outages.last = Some(Outage {
                lost_at,
                recovered_at: self.clock.now(),
            });
        }
    }

    /// The last time in which it did not answer, once that is over.
    pub(super) fn last_outage(&self) -> Option<Outage> {
        self.outages().last
    }

    fn outages(&self) -> MutexGuard<'_, Outages> {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error when it does not answer.
    pub(super) fn unavailable(&self) -> Error {
        Error::unavailable(NAME, self.breaker.retry_after())
    }

    /// The error when it answered that somebody else was in the way.
    pub(super) fn busy() -> Error {
        Error::unavailable(NAME, BUSY_RETRY)
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("breaker", &self.breaker)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}
