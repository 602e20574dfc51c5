//! Deleting by age: whole batches, the oldest first. Their checkpoints stay, so
//! that anchors of them still count, and the chain goes on from the last of them.
//!
//! First the *mark* moves: a checkpoint signed anew as the last that went, which
//! nobody makes without a key. Records up to there are deleted after it, piece by
//! piece, and whatever else is missing is found. What goes is checked before: a
//! mark must not cover up what was done to it.

use jiff::SignedDuration;

use super::verify;
use crate::{
    crypto::AuditKeys,
    domain::{
        AuditEvent, Call,
        audit::{Action, Checkpoint},
    },
    error::{Error, Result},
    service::{Core, record, skew},
    store::{Conn, audit::chain as log},
};

/// The mark moves once in so long, unless there is much to delete: each move is a
/// record.
const EVERY: SignedDuration = SignedDuration::from_hours(24);

/// Records that one move covers; they are checked before it.
const MOVE: i64 = 10_000;

/// Records deleted in one transaction.
const PIECE: i64 = 500;

/// Moves the mark if that is due, else deletes a piece of what is up to it.
/// False if there is nothing to do; nothing goes by a clock that is wrong.
pub async fn step(core: &Core, call: &Call) -> Result<bool> {
    let Some(kept) = core.policy.audit.kept() else {
        return Ok(false);
    };
    let keys = core.keyring.keys()?;
    let keys = &keys.audit;
    let mut conn = core.store.read(call).await?;
    let mark = marked(&mut conn, keys).await?;
    let after = mark.as_ref().map_or(0, |mark| mark.batch);
    let oldest = log::checkpoints_after(&mut conn, after, 1).await?.pop();
    drop(conn);
    if let Some(mark) = &mark {
        let piece = async |tx: &mut Conn| log::delete_up_to(tx, mark.position, PIECE).await;
        if core.store.write(call, piece).await?.value > 0 {
            return Ok(true);
        }
    }
    let before = core.now() - kept;
    if oldest.is_none_or(|oldest| oldest.created_at >= before - EVERY) {
        return Ok(false);
    }
    // What goes does not come back, so the clock is not believed for what it was.
    skew::measure(core, call).await?;
    if core.skew.is_off() {
        return Ok(false);
    }
    let report = verify::verify_old(core, call, keys, after, before, MOVE).await?;
    if let Some(fault) = report.fault {
        return Err(Error::internal(format!(
            "the audit log is not whole where it is old, so nothing of it is deleted: {fault}; see \
             `countersign audit verify`"
        )));
    }
    match report.newest.filter(|newest| newest.batch > after) {
        Some(newest) => move_to(core, call, keys, mark.as_ref(), newest).await,
        None => Ok(false),
    }
}

/// The mark, if there is one. It must be ours: what it covers is deleted.
pub async fn marked(conn: &mut Conn, keys: &AuditKeys) -> Result<Option<Checkpoint>> {
    let mark = log::mark(conn).await?;
    if mark.as_ref().is_some_and(|mark| !keys.is_mark(mark)) {
        return Err(Error::internal(
            "what says how much of the audit log went by age is not signed by this service: \
             somebody has written to the database; see `countersign audit verify`",
        ));
    }
    Ok(mark)
}

/// Moves the mark and records that. False if another node has.
async fn move_to(
    core: &Core,
    call: &Call,
    keys: &AuditKeys,
    from: Option<&Checkpoint>,
    to: Checkpoint,
) -> Result<bool> {
    let now = core.now();
    let mark = keys.sign_mark(Checkpoint {
        created_at: now,
        key_id: keys.maker_id(now).max(to.key_id),
        ..to
    })?;
    let event = AuditEvent {
        represents: mark.position - from.map_or(0, |from| from.position),
        ..record::event(core, call, Action::AuditExpired)
    };
    let written = core.store.write(call, async |tx| {
        let moved = log::move_mark(tx, from, &mark).await?;
        if moved {
            record::insert(core, tx, &event).await?;
        }
        Ok(moved)
    });
    Ok(written.await?.value)
}
