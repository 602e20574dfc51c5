//! The task that chains. One node at a time does, under a lock; events come in
//! the order in which they are found committed, so that one whose transaction
//! takes long is in a later batch and none is passed over. It also records what
//! this node has only counted (`super::sample`).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    crypto::{AuditKeys, audit::Link},
    domain::{Call, audit::Checkpoint, id},
    error::{Error, Result},
    service::{Core, record},
    store::{Conn, audit::chain as log},
};

/// How often committed events are looked for.
const EVERY: Duration = Duration::from_secs(1);

/// How often the newest checkpoint leaves for the log, at the most.
const SAY_EVERY: Duration = Duration::from_mins(1);

/// How often a node that cannot chain says so.
const WARN_EVERY: Duration = Duration::from_mins(1);

/// Events of one batch: few enough that nobody notices the transaction.
const BATCH: usize = 500;

/// Batches of one round, of which the next follows soon.
const ROUND: usize = 20;

/// The task that chains.
#[derive(Debug)]
pub struct Chainer {
    core: Arc<Core>,
    call: Call,
    /// The newest checkpoint that this node knows of. A log that ends before it,
    /// or otherwise, was rewritten, and signing it would hide that.
    newest: Option<Checkpoint>,
}

impl Chainer {
    /// Chains the log of this core.
    pub fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            call: Call::internal("audit-chain"),
            newest: None,
        }
    }

    /// Chains until told to stop, and then what is left.
    pub async fn run(mut self, shutdown: CancellationToken) {
        // A checkpoint that this node has made and not said yet.
        let mut unsaid: Option<Checkpoint> = None;
        let (mut said, mut warned) = (None, None);
        let is_due = |last: Option<Instant>, every| last.is_none_or(|at| at.elapsed() >= every);
        while !shutdown.is_cancelled() {
            shutdown.run_until_cancelled(sleep(EVERY)).await;
            match self.step().await {
                Ok(made) => {
                    unsaid = made.or(unsaid);
                    warned = None;
                }
                Err(error) if is_due(warned, WARN_EVERY) => {
                    up(false);
                    tracing::error!(
                        cause = crate::error::chain(&error),
                        "the audit log is not chained; trying again"
                    );
                    warned = Some(Instant::now());
                }
                Err(_) => up(false),
            }
            if (is_due(said, SAY_EVERY) || shutdown.is_cancelled())
                && let Some(checkpoint) = unsaid.take()
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
    async fn step(&mut self) -> Result<Option<Checkpoint>> {
        let core = &*self.core;
        let Ok(keys) = core.keyring.keys() else {
            return Ok(None);
        };
        if core.store.breaker().is_open() {
            up(false);
            return Ok(None);
        }
        record_left_out(core, &self.call).await?;
        let known = self.newest.as_ref();
        let (newest, made) = chain(core, &self.call, &keys.audit, known).await?;
        if let Some(newest) = &newest {
            #[expect(clippy::cast_precision_loss, reason = "not below 2^52 records")]
            metrics::gauge!("countersign_audit_chain_records").set(newest.position as f64);
        }
        self.newest = newest;
        up(true);
        Ok(self.newest.clone().filter(|_| made))
    }
}

/// Whether the last look at the chain went well.
fn up(is_up: bool) {
    metrics::gauge!("countersign_audit_chain_up").set(f64::from(is_up));
}

/// Records what was only counted since the last look. What cannot be recorded now
/// is counted on, under another id: its COMMIT may have come through although no
/// answer came, and what is counted twice is better than what is lost.
async fn record_left_out(core: &Core, call: &Call) -> Result<()> {
    let mut left_out = core.sampler.take_left_out();
    if left_out.is_empty() {
        return Ok(());
    }
    for event in &mut left_out {
        event.id = id::uuid_v7(event.at, &*core.entropy);
    }
    let written = core.store.write(call, async |tx| {
        for event in &left_out {
            record::insert(core, tx, event).await?;
        }
        Ok(())
    });
    let written = written.await;
    if written.is_err() {
        for event in left_out {
            core.sampler.leave_out(event, &*core.entropy);
        }
    }
    written.map(drop)
}

/// Gives committed events their places, batch by batch, and returns the newest
/// checkpoint and whether this made it. Nothing is done if another node is at it.
///
/// Fails if the log does not go on from `known`, or its newest checkpoint is not
/// ours.
pub async fn chain(
    core: &Core,
    call: &Call,
    keys: &AuditKeys,
    known: Option<&Checkpoint>,
) -> Result<(Option<Checkpoint>, bool)> {
    let (mut newest, has_unchained) = {
        let mut conn = core.store.read(call).await?;
        // Most often there is nothing, and nobody is to wait for a lock then.
        let has_unchained = log::has_unchained(&mut conn).await?;
        (goes_on(&mut conn, keys, known).await?, has_unchained)
    };
    let mut made = false;
    for _ in 0..if has_unchained { ROUND } else { 0 } {
        let batch = async |tx: &mut Conn| batch(core, keys, tx, newest.as_ref()).await;
        let Some((checkpoint, count)) = core.store.write(call, batch).await?.value else {
            break;
        };
        (newest, made) = (Some(checkpoint), true);
        // What has come meanwhile can wait: a batch costs its checkpoint.
        if count < BATCH {
            break;
        }
    }
    Ok((newest, made))
}

/// The newest checkpoint, which must be ours. The one that is known must be there
/// still, however far the log has come since: somebody else may have chained
/// what was rewritten.
async fn goes_on(
    conn: &mut Conn,
    keys: &AuditKeys,
    known: Option<&Checkpoint>,
) -> Result<Option<Checkpoint>> {
    let newest = log::newest_checkpoint(conn).await?;
    if let Some(Checkpoint { key_id, batch, .. }) = &newest
        && keys.public_key(*key_id).is_none()
    {
        return Err(Error::internal(format!(
            "checkpoint {batch} of the audit log is under the audit key {key_id}, which this node \
             does not know (yet)"
        )));
    }
    if let Some(newest) = &newest
        && !keys.is_signed(newest)
    {
        return Err(Error::internal(format!(
            "checkpoint {} of the audit log is not signed by this service: somebody has written to \
             the database; see `countersign audit verify`",
            newest.batch
        )));
    }
    let Some(known) = known.filter(|known| newest.as_ref() != Some(known)) else {
        return Ok(newest);
    };
    let there = log::checkpoints_after(conn, known.batch - 1, 1)
        .await?
        .pop();
    if there.as_ref() == Some(known) {
        return Ok(newest);
    }
    Err(Error::internal(format!(
        "the audit log does not go on from its checkpoint {}: its end was cut off or rewritten, or \
         an older copy of the database was restored; this node chains it only after a restart. \
         Check it first: countersign audit verify --anchor {known}",
        known.batch
    )))
}

/// One batch and how many events are in it. None if there was none, or another
/// node is at it.
async fn batch(
    core: &Core,
    keys: &AuditKeys,
    tx: &mut Conn,
    known: Option<&Checkpoint>,
) -> Result<Option<(Checkpoint, usize)>> {
    if !log::try_lock(tx).await? {
        return Ok(None);
    }
    let limit = i64::try_from(BATCH).map_err(Error::internal)?;
    let events = log::unchained(tx, limit).await?;
    if events.is_empty() {
        return Ok(None);
    }
    let before = goes_on(tx, keys, known).await?;
    let (batch, position, mut root, oldest_key) = match &before {
        Some(newest) => (newest.batch, newest.position, newest.root, newest.key_id),
        None => (0, 0, Link::default(), 0),
    };
    // Another node may have been told of a newer key first.
    let key_id = keys.maker_id(core.now()).max(oldest_key);
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
    Ok(Some((checkpoint, ids.len())))
}
