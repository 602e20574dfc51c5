//! Deletes what has expired, in small batches, so that no transaction is long
//! and no table grows for ever.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Core, audit::retention, keys, secret_keys, token};
use crate::{
    domain::{ApiKeyId, Call, trust::TrustChange},
    error::Result,
    store::{Conn, api_keys, janitor, login_throttle, nodes, trust},
};

/// Rows deleted in one transaction.
const BATCH: i64 = 500;

/// A dead session or API key is kept for so long, so that a late theft is still seen for
/// what it is and a person can ask what happened.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// A node that has ended without a word is shown for so long.
const SILENT_KEPT: SignedDuration = SignedDuration::from_hours(1);

/// What expires.
#[derive(Debug, Clone, Copy)]
enum Expired {
    Sessions,
    ApiKeys,
    ApiKeySecrets,
    Requests,
    FailedLogins,
    TrustEntries,
    SigningKeys,
    SecretKeys,
    Nodes,
}

impl Expired {
    const ALL: [Self; 9] = [
        Self::Sessions,
        Self::ApiKeys,
        Self::ApiKeySecrets,
        Self::Requests,
        Self::FailedLogins,
        Self::TrustEntries,
        Self::SigningKeys,
        Self::SecretKeys,
        Self::Nodes,
    ];
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

    /// One round; stops between batches when told to. A kind that fails keeps
    /// no other from being swept; the first error is returned.
    pub async fn sweep(&self, shutdown: &CancellationToken) -> Result<()> {
        let now = self.core.now();
        let mut outcome = Ok(());
        for kind in Expired::ALL {
            outcome = outcome.and(self.sweep_kind(kind, now, shutdown).await);
        }
        outcome = outcome.and(self.expire_events(shutdown).await);
        outcome?;
        let oldest = {
            let mut conn = self.core.store.read(&self.call).await?;
            janitor::oldest_dead(&mut conn, now).await?
        };
        let age = oldest.map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        metrics::gauge!("countersign_oldest_dead_row_seconds").set(age);
        Ok(())
    }

    async fn sweep_kind(
        &self,
        kind: Expired,
        now: Timestamp,
        shutdown: &CancellationToken,
    ) -> Result<()> {
        while !shutdown.is_cancelled() && self.batch(kind, now).await? >= BATCH {}
        Ok(())
    }

    /// The audit log goes by rules of its own.
    async fn expire_events(&self, shutdown: &CancellationToken) -> Result<()> {
        while !shutdown.is_cancelled() && retention::step(&self.core, &self.call).await? {}
        Ok(())
    }

    /// Deletes some rows and returns how many.
    async fn batch(&self, kind: Expired, now: Timestamp) -> Result<i64> {
        let written = self
            .core
            .store
            .write(&self.call, async |tx| match kind {
                Expired::Sessions => janitor::delete_dead_sessions(tx, now - KEPT, BATCH).await,
                Expired::ApiKeys => {
                    let ended = api_keys::delete_dead(tx, now - KEPT, BATCH).await?;
                    Ok(announced(tx, ended))
                }
                Expired::ApiKeySecrets => {
                    let changed = api_keys::delete_ended_secrets(tx, now, BATCH).await?;
                    Ok(announced(tx, changed))
                }
                Expired::Requests => janitor::delete_expired_idempotency(tx, now, BATCH).await,
                Expired::FailedLogins => login_throttle::delete_expired(tx, now, BATCH).await,
                // Nodes that start read the log from its beginning: an entry
                // goes twice as late as it might.
                Expired::TrustEntries => trust::prune(tx, now - token::RETENTION * 2, BATCH).await,
                Expired::SigningKeys => keys::remove_expired(&self.core, &self.call, tx).await,
                Expired::SecretKeys => {
                    secret_keys::remove_expired(&self.core, &self.call, tx).await
                }
                Expired::Nodes => nodes::delete_silent(tx, now - SILENT_KEPT).await,
            })
            .await?;
        Ok(i64::try_from(written.value).unwrap_or(BATCH))
    }
}

/// Lets validators forget what is of no use any more. Returns how much it was.
fn announced(tx: &mut Conn, api_keys: Vec<ApiKeyId>) -> usize {
    let count = api_keys.len();
    for api_key_id in api_keys {
        tx.announce(TrustChange::ApiKey { api_key_id });
    }
    count
}
