//! Clearing away what is dead, in batches small enough to stand in nobody's
//! way. The trust log has its own [`super::trust::prune`].

use diesel::{dsl::min, prelude::*};
use diesel_async::RunQueryDsl;
use jiff::Timestamp;

use super::{
    conn::{Conn, Outcome, on},
    schema::{idempotency, sessions},
    types::At,
};
use crate::error::Result;

/// Deletes up to about `limit` of the sessions that have expired, and as many
/// of those that were revoked. What was revoked stays refused: validators hear
/// it from the trust log, and a session that is gone is not refreshed.
pub async fn delete_dead_sessions(conn: &mut Conn, now: Timestamp, limit: i64) -> Result<usize> {
    // The batch ends at a time instead of after a number of rows: one index
    // finds it, and one statement deletes up to it.
    let end: Option<At> = on!(conn, |c| sessions::table
        .filter(sessions::expires_at.le(At(now)))
        .order(sessions::expires_at.asc())
        .offset(limit - 1)
        .limit(1)
        .select(sessions::expires_at)
        .first(c))
    .optional()?;
    let end = end.unwrap_or(At(now));
    let expired = on!(conn, |c| diesel::delete(
        sessions::table.filter(sessions::expires_at.le(end))
    )
    .execute(c))?;
    let end: Option<Option<At>> = on!(conn, |c| sessions::table
        .filter(sessions::revoked_at.le(At(now)))
        .order(sessions::revoked_at.asc())
        .offset(limit - 1)
        .limit(1)
        .select(sessions::revoked_at)
        .first(c))
    .optional()?;
    let end = end.flatten().unwrap_or(At(now));
    let revoked = on!(conn, |c| diesel::delete(
        sessions::table.filter(sessions::revoked_at.le(end))
    )
    .execute(c))?;
    Ok(expired + revoked)
}

/// Deletes up to about `limit` of the replies that have expired.
pub async fn delete_expired_idempotency(
    conn: &mut Conn,
    now: Timestamp,
    limit: i64,
) -> Result<usize> {
    let end: Option<At> = on!(conn, |c| idempotency::table
        .filter(idempotency::expires_at.le(At(now)))
        .order(idempotency::expires_at.asc())
        .offset(limit - 1)
        .limit(1)
        .select(idempotency::expires_at)
        .first(c))
    .optional()?;
    let end = end.unwrap_or(At(now));
    Ok(on!(conn, |c| diesel::delete(
        idempotency::table.filter(idempotency::expires_at.le(end))
    )
    .execute(c))?)
}

/// Since when the oldest row has been dead that is still there.
pub async fn oldest_dead(conn: &mut Conn, now: Timestamp) -> Result<Option<Timestamp>> {
    let expired: Option<At> = on!(conn, |c| sessions::table
        .filter(sessions::expires_at.le(At(now)))
        .select(min(sessions::expires_at))
        .first(c))?;
    let revoked: Option<At> = on!(conn, |c| sessions::table
        .filter(sessions::revoked_at.le(At(now)))
        .select(min(sessions::revoked_at))
        .first(c))?;
    let replies: Option<At> = on!(conn, |c| idempotency::table
        .filter(idempotency::expires_at.le(At(now)))
        .select(min(idempotency::expires_at))
        .first(c))?;
    Ok([expired, revoked, replies]
        .into_iter()
        .flatten()
        .min()
        .map(|at| at.0))
}
