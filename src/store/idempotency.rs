//! What calls with a `request_id` answered, so that a repetition has the same
//! answer and no second effect.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    conn::{Conn, Outcome, on},
    schema::idempotency,
    types::{At, Id},
};
use crate::{domain::UserId, error::Result};

/// What an earlier call with the same id was and answered.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// A MAC over the whole request.
    pub body_mac: Vec<u8>,
    /// The reply, encoded.
    pub reply: Vec<u8>,
}

/// The nil UUID stands for anonymous callers: a key has no nulls.
fn key(caller: Option<UserId>) -> Id {
    Id(caller.map_or(Uuid::nil(), |user| user.0))
}

/// What this caller's earlier call with the same id answered, unless that has
/// expired.
pub async fn find(
    conn: &mut Conn,
    method: &str,
    caller: Option<UserId>,
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
pub async fn insert(
    conn: &mut Conn,
    method: &str,
    caller: Option<UserId>,
    request_id: Uuid,
    body_mac: &[u8],
    reply: &[u8],
    expires_at: Timestamp,
) -> Result<bool> {
    // One that has expired and was not cleared away yet is in nobody's way.
    let now = conn.now();
    on!(conn, |c| diesel::delete(
        idempotency::table
            .find((method, key(caller), Id(request_id)))
            .filter(idempotency::expires_at.le(At(now)))
    )
    .execute(c))?;
    let inserted = on!(conn, |c| diesel::insert_into(idempotency::table)
        .values((
            idempotency::method.eq(method),
            idempotency::caller.eq(key(caller)),
            idempotency::request_id.eq(Id(request_id)),
            idempotency::body_mac.eq(body_mac),
            idempotency::reply.eq(reply),
            idempotency::expires_at.eq(At(expires_at)),
        ))
        .on_conflict_do_nothing()
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
