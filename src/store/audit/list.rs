//! Events for whoever reads the log, newest first. Ids are ordered by time, so
//! that the table's own key serves every list, and a list with a filter looks at
//! so many rows at a time that no query takes long however rare its hits are.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{EventRow, OriginRow};
use crate::{
    domain::{
        Page, PageSize,
        audit::{EventFilter, StoredEvent},
        id,
    },
    error::Result,
    store::{
        conn::{Conn, on},
        failure::Outcome as _,
        schema::{audit_events, audit_origins},
        types::{At, Id},
    },
};

/// Rows that one page looks at.
const WINDOW: i64 = 10_000;

const MILLISECOND: SignedDuration = SignedDuration::from_millis(1);

/// A page of events with ids below this one, newest first. It may be short, or
/// empty, and yet have a next one.
pub async fn list(
    conn: &mut Conn,
    filter: &EventFilter,
    below: Option<Uuid>,
    size: PageSize,
) -> Result<Page<StoredEvent, Uuid>> {
    // An id has milliseconds; `at` decides within one.
    let after = |at: Timestamp| at.checked_add(MILLISECOND).unwrap_or(at);
    let newest = filter.before.map(|at| id::first_at(after(at)));
    let below = [below, newest].into_iter().flatten().min();
    let below = Id(below.unwrap_or(Uuid::max()));
    let oldest = Id(filter.from.map_or(Uuid::nil(), id::first_at));
    let end: Option<Id> = if filter.is_by_time_alone() {
        None
    } else {
        on!(conn, |c| audit_events::table
            .filter(audit_events::id.lt(below))
            .filter(audit_events::id.ge(oldest))
            .order(audit_events::id.desc())
            .offset(WINDOW - 1)
            .select(audit_events::id)
            .first(c))
        .optional()?
    };
    let rows: Vec<(EventRow, Option<OriginRow>)> = on!(conn, |c| {
        let mut query = audit_events::table
            .left_join(audit_origins::table.on(audit_origins::event_id.eq(audit_events::id)))
            .filter(audit_events::id.lt(below))
            .filter(audit_events::id.ge(end.unwrap_or(oldest)))
            .order(audit_events::id.desc())
            .limit(size.limit())
            .select((EventRow::as_select(), Option::<OriginRow>::as_select()))
            .into_boxed();
        if let Some(actor) = filter.actor {
            query = query.filter(audit_events::actor.eq(Id::from(actor)));
        }
        if let Some(subject) = filter.subject {
            query = query.filter(audit_events::subject.eq(Id::from(subject)));
        }
        if let Some(session_id) = filter.session_id {
            query = query.filter(audit_events::session_id.eq(Id::from(session_id)));
        }
        if let Some(action) = filter.action {
            query = query.filter(audit_events::action.eq(action.as_str()));
        }
        if let Some(outcome) = filter.outcome {
            query = query.filter(audit_events::outcome.eq(outcome.as_str()));
        }
        if let Some(from) = filter.from {
            query = query.filter(audit_events::at.ge(At(from)));
        }
        if let Some(before) = filter.before {
            query = query.filter(audit_events::at.lt(At(before)));
        }
        query.load(c)
    })?;
    let events = rows.into_iter().map(StoredEvent::from).collect();
    let page = Page::cut(events, size, |event: &StoredEvent| event.record.id);
    Ok(Page {
        next: page.next.or(end.map(|end| end.0)),
        ..page
    })
}
