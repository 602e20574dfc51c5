//! Reading the log: page by page, or along the chain.

use uuid::Uuid;

use super::verify::{self, Report};
use crate::{
    crypto::AuditKeys,
    domain::{
        Call,
        audit::{Checkpoint, EventFilter, StoredEvent},
    },
    error::Result,
    service::{
        Core,
        page::{Listing, PageRequest},
    },
    store::audit::{chain, list},
};

/// Events of one reading along the chain.
const BATCH: i64 = 500;

/// Records that one call checks, and those of the batch that it ends with.
const CHECKED: i64 = 10_000;

/// A part of the log that was checked.
#[derive(Debug)]
pub struct Checked {
    /// What was found.
    pub report: Report,
    /// What the last checkpoint that is in order was signed by.
    pub public_key: Vec<u8>,
}

/// Lists events, newest first.
pub async fn list(
    core: &Core,
    call: &Call,
    filter: &EventFilter,
    page: PageRequest,
) -> Result<Listing<StoredEvent>> {
    let below = page.cursor(core, call)?.map(Uuid::from_bytes);
    let mut conn = core.store.read(call).await?;
    let events = list::list(&mut conn, filter, below, page.size).await?;
    page.listing(core, call, events, |id| id.as_bytes().to_vec())
}

/// Events after a position, in the order of the chain.
pub async fn after(core: &Core, call: &Call, position: i64) -> Result<Vec<StoredEvent>> {
    let mut conn = core.store.read(call).await?;
    // What is at 0 and below is no part of the chain.
    chain::events_from(&mut conn, position.max(0).saturating_add(1), BATCH).await
}

/// The last position that there is.
pub async fn newest(core: &Core, call: &Call) -> Result<i64> {
    let mut conn = core.store.read(call).await?;
    let newest = chain::newest_checkpoint(&mut conn).await?;
    Ok(newest.map_or(0, |checkpoint| checkpoint.position))
}

/// Checks a part of the log.
pub async fn check(
    core: &Core,
    call: &Call,
    after: i64,
    anchor: Option<&Checkpoint>,
) -> Result<Checked> {
    let keys = core.keyring.keys()?;
    let keys: &AuditKeys = &keys.audit;
    let report = verify::verify_part(core, call, keys, anchor, after, CHECKED).await?;
    let newest = report.newest.as_ref();
    let public_key = newest.and_then(|newest| keys.public_key(newest.key_id));
    let public_key = public_key.unwrap_or_default().to_vec();
    Ok(Checked { report, public_key })
}
