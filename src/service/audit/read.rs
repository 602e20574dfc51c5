//! Reading the log: page by page, or along the chain.

use uuid::Uuid;

use super::{report::Report, retention, verify};
use crate::{
    crypto::AuditKeys,
    domain::{
        Call,
        audit::{Action, Checkpoint, EventFilter, StoredEvent},
    },
    error::{Reason, Result},
    service::{
        Core,
        page::{Listing, PageRequest},
        record,
    },
    store::{
        Conn,
        audit::{chain, list},
    },
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

/// An event as a reader is shown it.
#[derive(Debug)]
pub struct Shown {
    /// The event.
    pub event: StoredEvent,
    /// Whether it is as it was written.
    pub is_authentic: bool,
}

fn shown(keys: &AuditKeys) -> impl Fn(StoredEvent) -> Shown {
    |event| Shown {
        is_authentic: verify::is_authentic(keys, &event),
        event,
    }
}

/// Lists events, newest first.
pub async fn list(
    core: &Core,
    call: &Call,
    filter: &EventFilter,
    page: PageRequest,
) -> Result<Listing<Shown>> {
    let keys = core.keyring.keys()?;
    let below = page.cursor(core, call)?.map(Uuid::from_bytes);
    let mut conn = core.store.read(call).await?;
    let events = list::list(&mut conn, filter, below, page.size).await?;
    drop(conn);
    record::reading(core, call, Action::AuditRead, filter.subject).await?;
    let listing = page.listing(core, call, events, |id| id.as_bytes().to_vec())?;
    Ok(Listing {
        items: listing.items.into_iter().map(shown(&keys.audit)).collect(),
        next_page_token: listing.next_page_token,
    })
}

/// Events after a position, in the order of the chain; 0 is before the first that
/// is kept. Fails if the log does not go on from there: whoever follows it would
/// miss something and not know.
pub async fn after(core: &Core, call: &Call, position: i64) -> Result<Vec<Shown>> {
    let keys = core.keyring.keys()?;
    let mut conn = core.store.read(call).await?;
    let position = match position {
        0 => retention::marked(&mut conn, &keys.audit)
            .await?
            .map_or(0, |mark| mark.position),
        position => position,
    };
    let next = position.saturating_add(1);
    let events = chain::events_from(&mut conn, next, BATCH).await?;
    let mut expected = position;
    let has_gaps = events.iter().any(|event| {
        expected = expected.saturating_add(1);
        event.position != Some(expected)
    });
    if has_gaps || (events.is_empty() && last(&mut conn).await? < position) {
        return Err(Reason::AuditLogBroken.into());
    }
    Ok(events.into_iter().map(shown(&keys.audit)).collect())
}

/// Where somebody begins who wants to follow the log: after this position, else at
/// its end.
pub async fn follow(core: &Core, call: &Call, position: Option<i64>) -> Result<i64> {
    let position = match position {
        Some(position) => position,
        None => last(&mut core.store.read(call).await?).await?,
    };
    record::reading(core, call, Action::AuditRead, None).await?;
    Ok(position)
}

async fn last(conn: &mut Conn) -> Result<i64> {
    let newest = chain::newest_checkpoint(conn).await?;
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
