//! Failed logins in a row, counted by name. Each row is changed only as it was
//! seen, so that of two nodes one has to look again.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use jiff::Timestamp;

use super::{
    conn::{Conn, on},
    failure::Outcome,
    kept::Keep as _,
    schema::login_throttle,
    types::{At, illegal},
};
use crate::{
    domain::throttle::{Counter, ThrottleKey},
    error::{Error, Result},
};

#[derive(Insertable, AsChangeset, Queryable, Selectable)]
#[diesel(table_name = login_throttle)]
pub(super) struct Row {
    failures: i32,
    not_before: At,
    recorded: bool,
    expires_at: At,
}

impl TryFrom<Row> for Counter {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        let failures = u32::try_from(row.failures)
            .map_err(|why| illegal("login_throttle", "failures", "a name", why))?;
        Ok(Self {
            failures,
            not_before: row.not_before.0,
            recorded: row.recorded,
            expires_at: row.expires_at.0,
        })
    }
}

impl From<&Counter> for Row {
    fn from(counter: &Counter) -> Self {
        Self {
            failures: i32::try_from(counter.failures).unwrap_or(i32::MAX),
            not_before: At(counter.not_before),
            recorded: counter.recorded,
            expires_at: At(counter.expires_at),
        }
    }
}

/// The counter of this name. Logins read theirs with the account:
/// [`super::users::for_login`].
pub async fn find(conn: &mut Conn, key: &ThrottleKey) -> Result<Option<Counter>> {
    let row: Option<Row> = on!(conn, |c| login_throttle::table
        .find(key.0.as_slice())
        .select(Row::as_select())
        .first(c))
    .optional()?;
    row.map(Counter::try_from).transpose()
}

/// Begins a counter. False if there is one.
pub async fn insert(conn: &mut Conn, key: &ThrottleKey, counter: &Counter) -> Result<bool> {
    let inserted = on!(conn, |c| diesel::insert_into(login_throttle::table)
        .values((login_throttle::key.eq(key.0.as_slice()), Row::from(counter)))
        .on_conflict_do_nothing()
        .kept()
        .execute(c))?;
    Ok(inserted == 1)
}

/// Replaces a counter as it was seen. False if it is not like that any more.
pub async fn replace(
    conn: &mut Conn,
    key: &ThrottleKey,
    seen: &Counter,
    next: &Counter,
) -> Result<bool> {
    let seen = Row::from(seen);
    let replaced = on!(conn, |c| diesel::update(
        login_throttle::table
            .find(key.0.as_slice())
            .filter(login_throttle::failures.eq(seen.failures))
            .filter(login_throttle::not_before.eq(seen.not_before))
            .filter(login_throttle::recorded.eq(seen.recorded))
    )
    .set(Row::from(next))
    .kept()
    .execute(c))?;
    Ok(replaced == 1)
}

/// Forgets these counters. Returns how many there were.
pub async fn clear(conn: &mut Conn, keys: &[ThrottleKey]) -> Result<usize> {
    let keys: Vec<&[u8]> = keys.iter().map(|key| key.0.as_slice()).collect();
    Ok(on!(conn, |c| diesel::delete(
        login_throttle::table.filter(login_throttle::key.eq_any(keys))
    )
    .execute(c))?)
}

/// Forgets up to `limit` of the counters that have expired.
pub async fn delete_expired(conn: &mut Conn, now: Timestamp, limit: i64) -> Result<usize> {
    let batch: Vec<Vec<u8>> = on!(conn, |c| login_throttle::table
        .filter(login_throttle::expires_at.le(At(now)))
        .order(login_throttle::expires_at.asc())
        .limit(limit)
        .select(login_throttle::key)
        .load(c))?;
    // One of them may have failed again meanwhile.
    Ok(on!(conn, |c| diesel::delete(
        login_throttle::table
            .filter(login_throttle::key.eq_any(batch))
            .filter(login_throttle::expires_at.le(At(now)))
    )
    .execute(c))?)
}
