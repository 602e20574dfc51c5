//! The task that chains. One node at a time does, under a lock; events come in
//! the order in which they are found committed, so that one whose transaction
//! takes long is in a later batch and none is passed over.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    crypto::{AuditKeys, audit::Link},
    domain::{Call, audit::Checkpoint},
    error::{Error, Result},
    service::Core,
    store::{Conn, audit::chain as log},
};

/// How often committed events are looked for.
const EVERY: Duration = Duration::from_secs(1);

/// How often the newest checkpoint leaves for the log, at the most.
const SAY_EVERY: Duration = Duration::from_mins(1);

/// Events of one batch: few enough that nobody notices the transaction.
const BATCH: usize = 500;

/// The task that chains.
#[derive(Debug)]
pub struct Chainer {
    core: Arc<Core>,
    call: Call,
}

impl Chainer {
    /// Chains the log of this core.
    pub fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            call: Call::internal("audit-chain"),
        }
    }

    /// Chains until told to stop, and then what is left.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut quiet = false;
        let mut newest: Option<Checkpoint> = None;
        let mut said: Option<Instant> = None;
        while !shutdown.is_cancelled() {
            shutdown.run_until_cancelled(sleep(EVERY)).await;
            match self.step().await {
                Ok(made) => {
                    newest = made.or(newest);
                    quiet = false;
                }
                Err(error) => {
                    if !quiet {
                        tracing::warn!(
                            cause = crate::error::chain(&error),
                            "the audit log is not chained; trying again"
                        );
                    }
                    quiet = true;
                }
            }
            let is_due = said.is_none_or(|at| at.elapsed() >= SAY_EVERY);
            if (is_due || shutdown.is_cancelled())
                && let Some(checkpoint) = newest.take()
            {
                tracing::info!(
                    batch = checkpoint.batch,
                    records = checkpoint.position,
                    anchor = %checkpoint,
                    "the audit log is chained"
                );
                said = Some(Instant::now());
            }
        }
    }

    /// Chains what there is. A database that is known to be away is left alone,
    /// and without keys nothing has been recorded here yet.
    async fn step(&self) -> Result<Option<Checkpoint>> {
        let core = &*self.core;
        let Ok(keys) = core.keyring.keys() else {
            return Ok(None);
        };
        if core.store.breaker().is_open() {
            return Ok(None);
        }
        chain(core, &self.call, &keys.audit).await
    }
}

/// Gives all committed events their places, batch by batch, and returns the
/// newest checkpoint that this made. None if there was nothing to do or another
/// node is at it.
pub async fn chain(core: &Core, call: &Call, keys: &AuditKeys) -> Result<Option<Checkpoint>> {
    let mut newest = None;
    loop {
        // Most often there is nothing, and nobody is to wait for a lock then.
        if !log::has_unchained(&mut core.store.read(call).await?).await? {
            return Ok(newest);
        }
        let batch = async |tx: &mut Conn| batch(core, keys, tx).await;
        match core.store.write(call, batch).await?.value {
            None => return Ok(newest),
            made => newest = made,
        }
    }
}

async fn batch(core: &Core, keys: &AuditKeys, tx: &mut Conn) -> Result<Option<Checkpoint>> {
    if !log::try_lock(tx).await? {
        return Ok(None);
    }
    let limit = i64::try_from(BATCH).map_err(Error::internal)?;
    let events = log::unchained(tx, limit).await?;
    if events.is_empty() {
        return Ok(None);
    }
    let before = log::newest_checkpoint(tx).await?;
    let (batch, position, mut root) = match &before {
        Some(newest) => (newest.batch, newest.position, newest.root),
        None => (0, 0, Link::default()),
    };
    let key_id = keys.maker_id(core.now());
    let (mut ids, mut links) = (Vec::new(), Vec::new());
    let mut last = position;
    for (id, mac) in events {
        last += 1;
        let link = keys.link(key_id, &root, last, &mac);
        root = link.ok_or_else(|| Error::internal("there is no such audit key"))?;
        ids.push(id);
        links.push(root);
    }
    log::place(tx, position + 1, &ids, &links).await?;
    let checkpoint = keys.sign(Checkpoint {
        batch: batch + 1,
        position: last,
        created_at: core.now(),
        key_id,
        root,
        signature: [0; 64],
    })?;
    log::insert_checkpoint(tx, &checkpoint).await?;
    Ok(Some(checkpoint))
}
