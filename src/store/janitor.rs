//! Clearing away what is dead, in batches small enough to stand in nobody's
//! way. The trust log has its own [`super::trust::prune`]; API keys, which
//! validators hear of, and failed logins have theirs in their files.

use diesel::{dsl::min, prelude::*, sql_types::BigInt};
use diesel_async::RunQueryDsl;
use jiff::Timestamp;

use super::{
    conn::{Conn, on},
    schema::{api_keys, idempotency, login_throttle, sessions},
    types::{At, Id, Instant},
};
use crate::error::Result;

/// Deletes up to `limit` of the sessions that have expired, and as many of those
/// that were revoked. What was revoked stays refused: validators hear it from
/// the trust log, and a session that is gone is not refreshed.
pub async fn delete_dead_sessions(conn: &mut Conn, now: Timestamp, limit: i64) -> Result<usize> {
    let batch: Vec<Id> = on!(conn, |c| sessions::table
        .filter(sessions::expires_at.le(At(now)))
        .order(sessions::expires_at.asc())
        .limit(limit)
        .select(sessions::id)
        .load(c))?;
    let expired = on!(conn, |c| diesel::delete(
        sessions::table.filter(sessions::id.eq_any(batch))
    )
    .execute(c))?;
    let batch: Vec<Id> = on!(conn, |c| sessions::table
        .filter(sessions::revoked_at.le(At(now)))
        .order(sessions::revoked_at.asc())
        .limit(limit)
        .select(sessions::id)
        .load(c))?;
    let revoked = on!(conn, |c| diesel::delete(
        sessions::table.filter(sessions::id.eq_any(batch))
    )
    .execute(c))?;
    Ok(expired + revoked)
}

/// Deletes up to `limit` of the replies that have expired.
pub async fn delete_expired_idempotency(
    conn: &mut Conn,
    now: Timestamp,
    limit: i64,
) -> Result<usize> {
    // diesel has no IN over several columns.
    Ok(on!(conn, |c| diesel::sql_query(
        "DELETE FROM idempotency WHERE (method, caller, request_id) IN (\
             SELECT method, caller, request_id FROM idempotency \
             WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)",
    )
    .bind::<Instant, _>(At(now))
    .bind::<BigInt, _>(limit)
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
    let ended_keys: Option<At> = on!(conn, |c| api_keys::table
        .filter(api_keys::expires_at.le(At(now)))
        .select(min(api_keys::expires_at))
        .first(c))?;
    let revoked_keys: Option<At> = on!(conn, |c| api_keys::table
        .filter(api_keys::revoked_at.le(At(now)))
        .select(min(api_keys::revoked_at))
        .first(c))?;
    let counters: Option<At> = on!(conn, |c| login_throttle::table
        .filter(login_throttle::expires_at.le(At(now)))
        .select(min(login_throttle::expires_at))
        .first(c))?;
    let all = [
        expired,
        revoked,
        replies,
        ended_keys,
        revoked_keys,
        counters,
    ];
    Ok(all.into_iter().flatten().min().map(|at| at.0))
}
