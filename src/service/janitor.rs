//! Deletes what has expired, in small batches, so that no transaction is long
//! and no table grows for ever.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Core;
use crate::{
    domain::Call,
    error::Result,
    store::{Conn, janitor, trust},
};

/// Rows deleted in one transaction.
const BATCH: i64 = 500;

/// A dead session is kept for so long, so that a late theft is still seen for
/// what it is and a person can ask what happened.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

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
        let sessions_before = now - KEPT;
        // The log is read from its start by nodes that start: what no
        // validator needs any more is gone twice as late as need be.
        let trust_before = now - self.core.policy.tokens.retention() * 2;
        self.all(shutdown, async |tx| {
            janitor::delete_dead_sessions(tx, sessions_before, BATCH).await
        })
        .await?;
        self.all(shutdown, async |tx| {
            janitor::delete_expired_idempotency(tx, now, BATCH).await
        })
        .await?;
        self.all(shutdown, async |tx| {
            trust::prune(tx, trust_before, BATCH).await
        })
        .await?;
        let oldest = {
            let mut conn = self.core.store.read(&self.call).await?;
            janitor::oldest_dead(&mut conn, now).await?
        };
        let age = oldest.map_or(0.0, |at| {
            (now - at).total(jiff::Unit::Second).unwrap_or(0.0)
        });
        metrics::gauge!("countersign_oldest_dead_row_seconds").set(age);
        Ok(())
    }

    async fn all(
        &self,
        shutdown: &CancellationToken,
        batch: impl AsyncFn(&mut Conn) -> Result<usize>,
    ) -> Result<()> {
        while !shutdown.is_cancelled() {
            let deleted = self
                .core
                .store
                .write(&self.call, async |tx| batch(tx).await)
                .await?;
            if i64::try_from(deleted.value).is_ok_and(|n| n < BATCH) {
                break;
            }
        }
        Ok(())
    }
}
