//! The audit log. Events hold ids only; where a call came from is a row of its
//! own, deleted with the person.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{
    conn::{Conn, on},
    schema::{audit_events, audit_origins},
    types::{At, Id},
};
use crate::{
    domain::{AuditEvent, audit::Outcome},
    error::Result,
};

#[derive(Insertable)]
#[diesel(table_name = audit_events, treat_none_as_default_value = false)]
struct EventRow<'a> {
    id: Id,
    at: At,
    action: &'a str,
    outcome: &'a str,
    actor: Option<Id>,
    subject: Option<Id>,
    session_id: Option<Id>,
    role_id: Option<Id>,
    correlation_id: &'a str,
}

#[derive(Insertable)]
#[diesel(table_name = audit_origins, treat_none_as_default_value = false)]
struct OriginRow<'a> {
    event_id: Id,
    user_id: Option<Id>,
    address: Option<String>,
    user_agent: &'a str,
}

/// Records an event. Call it in the transaction of what it tells of.
pub async fn insert(conn: &mut Conn, event: &AuditEvent) -> Result<()> {
    let row = EventRow {
        id: Id(event.id),
        at: event.at.into(),
        action: event.action.as_str(),
        outcome: match event.outcome {
            Outcome::Success => "success",
            Outcome::Failure => "failure",
        },
        actor: event.actor.map(Id::from),
        subject: event.subject.map(Id::from),
        session_id: event.session_id.map(Id::from),
        role_id: event.role_id.map(Id::from),
        correlation_id: &event.correlation_id,
    };
    on!(conn, |c| diesel::insert_into(audit_events::table)
        .values(&row)
        .execute(c))?;
    if event.address.is_none() && event.user_agent.is_empty() {
        return Ok(());
    }
    let origin = OriginRow {
        event_id: Id(event.id),
        // Who called, as far as that is known.
        user_id: event.actor.or(event.subject).map(Id::from),
        address: event.address.map(|address| address.to_string()),
        user_agent: &event.user_agent,
    };
    on!(conn, |c| diesel::insert_into(audit_origins::table)
        .values(&origin)
        .execute(c))?;
    Ok(())
}
