//! A node's word about itself: a row that it writes about once a second. From
//! these rows each node knows which others there are, how far they have read
//! the trust log, and what their validators have acknowledged.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Core, Feed, skew};
use crate::{
    domain::{Call, Node},
    error::Result,
    store::nodes,
};

/// How often the row is written.
const EVERY: Duration = Duration::from_secs(1);

/// The task that keeps the row fresh.
#[derive(Debug)]
pub struct Presence {
    core: Arc<Core>,
    feed: Arc<Feed>,
    started_at: Timestamp,
    call: Call,
}

impl Presence {
    /// A node that starts now.
    pub fn new(core: Arc<Core>, feed: Arc<Feed>) -> Self {
        Self {
            started_at: core.now(),
            core,
            feed,
            call: Call::internal("presence"),
        }
    }

    /// Writes until told to stop, and takes the row away at the end. A database
    /// that is known to be away is left alone.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut quiet = false;
        while !shutdown.is_cancelled() {
            if let Some(applied) = self.feed.verifier().applied_seq()
                && !self.core.store.breaker().is_open()
            {
                let told = self.tell(applied).await;
                if let Err(error) = &told
                    && !quiet
                {
                    tracing::warn!(
                        cause = crate::error::chain(error),
                        "other nodes are not told of this one"
                    );
                }
                quiet = told.is_err();
            }
            shutdown.run_until_cancelled(sleep(EVERY)).await;
        }
        if !self.core.store.breaker().is_open() {
            // Otherwise the others will see that it is silent.
            self.leave().await.ok();
        }
    }

    async fn tell(&self, applied_seq: i64) -> Result<()> {
        let clock_skew = skew::measure(&self.core, &self.call).await?;
        let (validators, acked_seq) = self.feed.validators();
        let node = Node {
            id: self.core.node_id,
            started_at: self.started_at,
            seen_at: self.core.now(),
            applied_seq,
            validators: u32::try_from(validators).unwrap_or(u32::MAX),
            acked_seq,
            clock_skew,
            master_keys: self.core.keyring.sealer().ids().collect(),
        };
        let tell = async |tx: &mut _| nodes::tell(tx, &node).await;
        self.core.store.write(&self.call, tell).await?;
        Ok(())
    }

    async fn leave(&self) -> Result<()> {
        let leave = async |tx: &mut _| nodes::remove(tx, self.core.node_id).await;
        self.core.store.write(&self.call, leave).await?;
        Ok(())
    }
}
