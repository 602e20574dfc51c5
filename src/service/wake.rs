//! Being told that the trust log has grown, so that a revocation on another
//! node is in force here as soon as it is committed. Where nothing tells
//! (SQLite, or a connection that is lost), the follower's poll is as good and
//! only later.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Core;
use crate::store::{Heard, Listener};

/// The first wait before another try, and the longest. Each is shortened at
/// random by up to a half, so that nodes do not come back in step.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(8);

/// The task that listens.
#[derive(Debug)]
pub struct Wake {
    core: Arc<Core>,
}

impl Wake {
    /// Wakes the follower of this node.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Listens until told to stop; at once on SQLite.
    pub async fn run(self, shutdown: CancellationToken) {
        let Some(listener) = self.core.store.listener() else {
            return;
        };
        shutdown.run_until_cancelled(self.listen(&listener)).await;
    }

    async fn listen(&self, listener: &Listener) {
        let up = metrics::gauge!("countersign_trust_listener_state");
        up.set(0.0);
        let (mut wait, mut quiet) = (FIRST, false);
        loop {
            let heard = AtomicBool::new(false);
            let why = listener
                .listen(|what| {
                    if what == Heard::Listening {
                        heard.store(true, Relaxed);
                        up.set(1.0);
                        tracing::info!("listening for changes of the trust log");
                    }
                    self.core.trust.wake();
                })
                .await;
            up.set(0.0);
            if heard.into_inner() {
                (wait, quiet) = (FIRST, false);
            }
            if !quiet {
                tracing::warn!(
                    cause = crate::error::chain(&why),
                    "changes of the trust log are not told; looking for them meanwhile"
                );
            }
            quiet = true;
            self.pause(wait).await;
            wait = (wait * 2).min(LONGEST);
        }
    }

    /// Waits before the next try, and as long as the database is known to be
    /// away.
    async fn pause(&self, wait: Duration) {
        loop {
            let chance = u32::from(self.core.entropy.array::<1>()[0]);
            sleep(wait / 2 + wait / 2 * chance / u32::from(u8::MAX)).await;
            if !self.core.store.breaker().is_open() {
                return;
            }
        }
    }
}
