//! What calls with a `request_id` answered, so that a repetition has the same
//! answer and no second effect.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    conn::{Conn, on},
    failure::Outcome,
    kept::Keep as _,
    schema::idempotency,
    types::{At, Id},
};
use crate::{domain::UserId, error::Result};

/// What an earlier call with the same id was and answered.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// A MAC over the whole request.
    pub body_mac: Vec<u8>,
    /// The reply, encoded; empty once the account that it named is erased.
    pub reply: Vec<u8>,
}

/// A reply to be.
#[derive(Clone, Copy)]
pub struct NewRecord<'a> {
    /// The RPC's name.
    pub method: &'a str,
    /// Who calls; none for anonymous callers.
    pub caller: Option<Uuid>,
    /// The caller's id for the request.
    pub request_id: Uuid,
    /// A MAC over the whole request.
    pub body_mac: &'a [u8],
    /// The reply, encoded; not empty.
    pub reply: &'a [u8],
    /// The account that the reply names.
    pub subject: Option<UserId>,
    /// When it is forgotten.
    pub expires_at: Timestamp,
}

/// The nil UUID stands for anonymous callers: a key has no nulls.
fn key(caller: Option<Uuid>) -> Id {
    Id(caller.unwrap_or_default())
}

/// What this caller's earlier call with the same id answered, unless that has
/// expired.
pub async fn find(
    conn: &mut Conn,
    method: &str,
    caller: Option<Uuid>,
    request_id: Uuid,
    now: Timestamp,
) -> Result<Option<Record>> {
    let row: Option<(Vec<u8>, Vec<u8>)> = on!(conn, |c| idempotency::table
        .find((method, key(caller), Id(request_id)))
        .filter(idempotency::expires_at.gt(At(now)))
        .select((idempotency::body_mac, idempotency::reply))
        .first(c))
    .optional()?;
    Ok(row.map(|(body_mac, reply)| Record { body_mac, reply }))
}

/// Records a reply, in the transaction of its effect. False if another call
/// with the same id was faster: end the transaction with an error and
/// [`find`] its reply.
pub async fn insert(conn: &mut Conn, record: &NewRecord<'_>) -> Result<bool> {
    // One that has expired and was not cleared away yet is in nobody's way.
    let now = conn.now();
    on!(conn, |c| diesel::delete(
        idempotency::table
            .find((record.method, key(record.caller), Id(record.request_id)))
            .filter(idempotency::expires_at.le(At(now)))
    )
    .execute(c))?;
    let inserted = on!(conn, |c| diesel::insert_into(idempotency::table)
        .values((
            idempotency::method.eq(record.method),
            idempotency::caller.eq(key(record.caller)),
            idempotency::request_id.eq(Id(record.request_id)),
            idempotency::body_mac.eq(record.body_mac),
            idempotency::reply.eq(record.reply),
            idempotency::subject.eq(record.subject.map(Id::from)),
            idempotency::expires_at.eq(At(record.expires_at)),
        ))
        .on_conflict_do_nothing()
        .kept()
        .execute(c))?;
    Ok(inserted == 1)
}

/// Replies may name people: `Debug` shows sizes only.
impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("reply_bytes", &self.reply.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for NewRecord<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewRecord")
            .field("method", &self.method)
            .field("reply_bytes", &self.reply.len())
            .finish_non_exhaustive()
    }
}
