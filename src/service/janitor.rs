//! Deletes what has expired, in small batches, so that no transaction is long
//! and no table grows for ever.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Core, token};
use crate::{
    domain::Call,
    error::Result,
    store::{janitor, trust},
};

/// Rows deleted in one transaction.
const BATCH: i64 = 500;

/// A dead session is kept for so long, so that a late theft is still seen for
/// what it is and a person can ask what happened.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// What expires.
#[derive(Debug, Clone, Copy)]
enum Expired {
    Sessions,
    Requests,
    TrustEntries,
}

/// The task that tidies up.
#[derive(Debug)]
pub struct Janitor {
    core: Arc<Core>,
    every: Duration,
    call: Call,
}

impl Janitor {
    /// Tidies up at this interval.
    pub fn new(core: Arc<Core>, every: Duration) -> Self {
        Self {
            core,
            every,
            call: Call::internal("janitor"),
        }
    }

    /// Works until told to stop.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut quiet = false;
        loop {
            tokio::select! {
                () = sleep(self.every) => {}
                () = shutdown.cancelled() => return,
            }
            match self.sweep(&shutdown).await {
                Ok(()) => quiet = false,
                Err(error) => {
                    if !quiet {
                        tracing::warn!(
                            cause = crate::error::chain(&error),
                            "expired rows could not be deleted"
                        );
                    }
                    quiet = true;
                }
            }
        }
    }

    /// One round; stops between batches when told to.
    pub async fn sweep(&self, shutdown: &CancellationToken) -> Result<()> {
        let now = self.core.now();
        for kind in [Expired::Sessions, Expired::Requests, Expired::TrustEntries] {
            while !shutdown.is_cancelled() && self.batch(kind, now).await? >= BATCH {}
        }
        let oldest = {
            let mut conn = self.core.store.read(&self.call).await?;
            janitor::oldest_dead(&mut conn, now).await?
        };
        let age = oldest.map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        metrics::gauge!("countersign_oldest_dead_row_seconds").set(age);
        Ok(())
    }

    /// Deletes some rows and returns how many.
    async fn batch(&self, kind: Expired, now: Timestamp) -> Result<i64> {
        let written = self
            .core
            .store
            .write(&self.call, async |tx| match kind {
                Expired::Sessions => janitor::delete_dead_sessions(tx, now - KEPT, BATCH).await,
                Expired::Requests => janitor::delete_expired_idempotency(tx, now, BATCH).await,
                // Nodes that start read the log from its beginning: an entry
                // goes twice as late as it might.
                Expired::TrustEntries => trust::prune(tx, now - token::RETENTION * 2, BATCH).await,
            })
            .await?;
        Ok(i64::try_from(written.value).unwrap_or(BATCH))
    }
}
