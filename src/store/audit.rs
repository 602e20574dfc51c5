//! The audit log. Events hold ids only; where a call came from is a row of its
//! own, deleted with the person.

use diesel::{
    prelude::*,
    sql_types::{Nullable, Text},
};
use diesel_async::RunQueryDsl;

use super::{
    conn::{Conn, on},
    schema::{audit_events, audit_origins, users},
    types::{At, Id, Uuid},
};
use crate::{
    domain::{AuditEvent, UserStatus, audit::Outcome},
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
    kid: Option<String>,
    correlation_id: &'a str,
    api_key_id: Option<Id>,
    workload: Option<String>,
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
        kid: event.kid.clone(),
        correlation_id: &event.correlation_id,
        api_key_id: event.api_key_id.map(Id::from),
        workload: event.workload.as_deref().map(str::to_owned),
    };
    on!(conn, |c| diesel::insert_into(audit_events::table)
        .values(&row)
        .execute(c))?;
    if event.address.is_none() && event.user_agent.is_empty() {
        return Ok(());
    }
    let address = event.address.map(|address| address.to_string());
    // Who called, as far as that is known.
    let Some(user) = event.actor.or(event.subject) else {
        on!(conn, |c| diesel::insert_into(audit_origins::table)
            .values((
                audit_origins::event_id.eq(Id(event.id)),
                audit_origins::address.eq(address),
                audit_origins::user_agent.eq(&event.user_agent),
            ))
            .execute(c))?;
        return Ok(());
    };
    // Nothing about a person who has been erased since the call began.
    let origin = users::table
        .filter(users::id.eq(Id::from(user)))
        .filter(users::status.ne(UserStatus::Deleted.as_str()))
        .select((
            Id(event.id).into_sql::<Uuid>(),
            users::id.nullable(),
            address.into_sql::<Nullable<Text>>(),
            event.user_agent.as_str().into_sql::<Text>(),
        ));
    let columns = (
        audit_origins::event_id,
        audit_origins::user_id,
        audit_origins::address,
        audit_origins::user_agent,
    );
    // On SQLite nobody else writes meanwhile. On PostgreSQL the lock makes an
    // erasure that is under way be waited for, and one to come wait; no other
    // change of the account collides with it.
    on!(
        conn,
        sqlite
            | c
            | origin
                .insert_into(audit_origins::table)
                .into_columns(columns)
                .execute(c),
        postgres
            | c
            | origin
                .for_key_share()
                .insert_into(audit_origins::table)
                .into_columns(columns)
                .execute(c)
    )?;
    Ok(())
}
