//! What is known of the database's health, shared by all connections.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use countersign_verifier::Clock;
use jiff::Timestamp;

use crate::{breaker::Breaker, error::Error};

/// Names the database in errors.
const NAME: &str = "database";

/// After a lock or a deadlock the next try may be the one.
const BUSY_RETRY: Duration = Duration::from_millis(100);

/// What is known of the database's health.
pub(super) struct Health {
    pub(super) breaker: Breaker,
    pub(super) clock: Arc<dyn Clock>,
    /// The last try found no database.
    lost: AtomicBool,
    recovered_at: Mutex<Option<Timestamp>>,
}

impl Health {
    pub(super) fn new(breaker: Breaker, clock: Arc<dyn Clock>) -> Self {
        Self {
            breaker,
            clock,
            lost: AtomicBool::new(false),
            recovered_at: Mutex::new(None),
        }
    }

    /// The database did not answer.
    pub(super) fn lost(&self) {
        self.lost.store(true, SeqCst);
        metrics::counter!("countersign_database_lost_total").increment(1);
    }

    /// The database answered.
    pub(super) fn answered(&self) {
        if self.lost.load(SeqCst) && self.lost.swap(false, SeqCst) {
            *self.recovery() = Some(self.clock.now());
        }
    }

    /// When it last answered again after it had not.
    pub(super) fn recovered_at(&self) -> Option<Timestamp> {
        *self.recovery()
    }

    fn recovery(&self) -> std::sync::MutexGuard<'_, Option<Timestamp>> {
        self.recovered_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
