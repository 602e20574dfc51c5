//! The audit log. Events hold ids only; where a call came from is a row of its
//! own, deleted with the person. [`chain`] gives events their places.

pub mod chain;
pub mod list;

use diesel::{
    prelude::*,
    sql_types::{Binary, Nullable, Text},
};
use diesel_async::RunQueryDsl;

use super::{
    conn::{Conn, on},
    kept::Keep as _,
    schema::{audit_events, audit_origins, users},
    types::{At, Id, Uuid},
};
use crate::{
    domain::{
        UserStatus,
        audit::{Origin, Record, Seal, SealedEvent, StoredEvent},
    },
    error::Result,
};

#[derive(Insertable, Queryable, Selectable)]
#[diesel(table_name = audit_events, treat_none_as_default_value = false)]
struct EventRow {
    id: Id,
    at: At,
    action: String,
    outcome: String,
    actor: Option<Id>,
    subject: Option<Id>,
    session_id: Option<Id>,
    role_id: Option<Id>,
    kid: Option<String>,
    correlation_id: String,
    api_key_id: Option<Id>,
    workload: Option<String>,
    origin_digest: Option<Vec<u8>>,
    key_id: Option<i32>,
    mac: Option<Vec<u8>>,
    position: Option<i64>,
    link: Option<Vec<u8>>,
    represents: i64,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = audit_origins)]
struct OriginRow {
    user_id: Option<Id>,
    salt: Option<Vec<u8>>,
    address: Option<String>,
    user_agent: String,
}

impl From<SealedEvent> for EventRow {
    fn from(SealedEvent { record, seal, .. }: SealedEvent) -> Self {
        Self {
            id: Id(record.id),
            at: record.at.into(),
            action: record.action,
            outcome: record.outcome,
            actor: record.actor.map(Id),
            subject: record.subject.map(Id),
            session_id: record.session_id.map(Id),
            role_id: record.role_id.map(Id),
            kid: record.kid,
            correlation_id: record.correlation_id,
            api_key_id: record.api_key_id.map(Id),
            workload: record.workload,
            origin_digest: record.origin_digest,
            key_id: Some(seal.key_id),
            mac: Some(seal.mac),
            position: None,
            link: None,
            represents: record.represents,
        }
    }
}

impl From<(EventRow, Option<OriginRow>)> for StoredEvent {
    fn from((row, origin): (EventRow, Option<OriginRow>)) -> Self {
        let uuid = |id: Option<Id>| id.map(|id| id.0);
        Self {
            record: Record {
                id: row.id.0,
                at: row.at.0,
                action: row.action,
                outcome: row.outcome,
                actor: uuid(row.actor),
                workload: row.workload,
                subject: uuid(row.subject),
                session_id: uuid(row.session_id),
                role_id: uuid(row.role_id),
                api_key_id: uuid(row.api_key_id),
                kid: row.kid,
                correlation_id: row.correlation_id,
                origin_digest: row.origin_digest,
                represents: row.represents,
            },
            seal: match (row.key_id, row.mac) {
                (Some(key_id), Some(mac)) => Some(Seal { key_id, mac }),
                _ => None,
            },
            position: row.position,
            link: row.link,
            origin: origin.map(|row| {
                let origin = Origin {
                    salt: row.salt.unwrap_or_default(),
                    address: row.address,
                    user_agent: row.user_agent,
                };
                (uuid(row.user_id), origin)
            }),
        }
    }
}

/// Records an event. Call it in the transaction of what it tells of.
pub async fn insert(conn: &mut Conn, mut event: SealedEvent) -> Result<()> {
    let (id, person) = (Id(event.record.id), event.record.person());
    let origin = event.origin.take();
    let row = EventRow::from(event);
    on!(conn, |c| diesel::insert_into(audit_events::table)
        .values(&row)
        .kept()
        .execute(c))?;
    let Some(Origin {
        salt,
        address,
        user_agent,
    }) = origin
    else {
        return Ok(());
    };
    // Who called, as far as that is known.
    let Some(user) = person else {
        on!(conn, |c| diesel::insert_into(audit_origins::table)
            .values((
                audit_origins::event_id.eq(id),
                audit_origins::salt.eq(salt),
                audit_origins::address.eq(address),
                audit_origins::user_agent.eq(user_agent),
            ))
            .kept()
            .execute(c))?;
        return Ok(());
    };
    // Nothing about a person who has been erased since the call began.
    let origin = users::table
        .filter(users::id.eq(Id(user)))
        .filter(users::status.ne(UserStatus::Deleted.as_str()))
        .select((
            id.into_sql::<Uuid>(),
            users::id.nullable(),
            salt.into_sql::<Nullable<Binary>>(),
            address.into_sql::<Nullable<Text>>(),
            user_agent.into_sql::<Text>(),
        ));
    let columns = (
        audit_origins::event_id,
        audit_origins::user_id,
        audit_origins::salt,
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
