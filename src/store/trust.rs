//! The trust log: what validators must hear, numbered in the order in which it
//! was committed.
//!
//! The numbers come from one row. Whoever appends updates it first and holds it
//! until COMMIT, so nobody gets a number before the smaller ones are visible,
//! and a reader who has seen one has missed none below.

use diesel::{
    dsl::{max, sql},
    prelude::*,
    sql_types::Text,
};
use diesel_async::RunQueryDsl;
use futures_util::TryFutureExt as _;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    conn::{Conn, on},
    kept::Keep as _,
    listener::NOTIFY,
    pool::Lite,
    schema::{trust_head, trust_log},
    types::{At, Id, illegal},
};
use crate::{
    domain::{
        Entropy,
        trust::{TrustChange, TrustEntry},
    },
    error::{Error, Result},
};

#[derive(Insertable, Queryable, Selectable)]
#[diesel(table_name = trust_log, treat_none_as_default_value = false)]
struct Row {
    seq: i64,
    nonce: Id,
    kind: String,
    session_id: Option<Id>,
    user_id: Option<Id>,
    min_epoch: Option<i64>,
    api_key_id: Option<Id>,
    created_at: At,
}

/// Entries of one statement.
const CHUNK: usize = 500;

const SESSION_REVOKED: &str = "session_revoked";
const USER_EPOCH: &str = "user_epoch";
const API_KEY: &str = "api_key";
const SIGNING_KEYS: &str = "signing_keys";
const SECRET_KEYS: &str = "secret_keys";

impl Row {
    fn new(seq: i64, nonce: Id, change: &TrustChange, now: Timestamp) -> Self {
        let mut row = Self {
            seq,
            nonce,
            kind: String::new(),
            session_id: None,
            user_id: None,
            min_epoch: None,
            api_key_id: None,
            created_at: now.into(),
        };
        let kind = match change {
            TrustChange::SessionRevoked { session_id } => {
                row.session_id = Some((*session_id).into());
                SESSION_REVOKED
            }
            TrustChange::UserEpoch { user_id, min_epoch } => {
                row.user_id = Some((*user_id).into());
                row.min_epoch = Some(*min_epoch);
                USER_EPOCH
            }
            TrustChange::ApiKey { api_key_id } => {
                row.api_key_id = Some((*api_key_id).into());
                API_KEY
            }
            TrustChange::SigningKeys => SIGNING_KEYS,
            TrustChange::SecretKeys => SECRET_KEYS,
        };
        kind.clone_into(&mut row.kind);
        row
    }
}

impl TryFrom<Row> for TrustEntry {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        let change = match (
            row.kind.as_str(),
            row.session_id,
            row.user_id,
            row.min_epoch,
            row.api_key_id,
        ) {
            (SESSION_REVOKED, Some(session), ..) => TrustChange::SessionRevoked {
                session_id: session.into(),
            },
            (USER_EPOCH, _, Some(user), Some(min_epoch), _) => TrustChange::UserEpoch {
                user_id: user.into(),
                min_epoch,
            },
            (API_KEY, .., Some(api_key)) => TrustChange::ApiKey {
                api_key_id: api_key.into(),
            },
            (SIGNING_KEYS, ..) => TrustChange::SigningKeys,
            (SECRET_KEYS, ..) => TrustChange::SecretKeys,
            _ => {
                return Err(illegal(
                    "trust_log",
                    "kind",
                    row.seq,
                    "is unknown or lacks its subject",
                ));
            }
        };
        Ok(Self {
            seq: row.seq,
            nonce: row.nonce.0,
            change,
            created_at: row.created_at.0,
        })
    }
}

/// Number and nonce of the last entry; 0 and nil before the first. Another
/// nonce under the same number is another history, such as a restored backup.
pub async fn head(conn: &mut Conn) -> Result<(i64, Uuid)> {
    let (seq, nonce): (i64, Id) = on!(conn, |c| trust_head::table
        .select((trust_head::seq, trust_head::nonce))
        .first(c))?;
    Ok((seq, nonce.0))
}

/// The number of the last entry about signing keys; 0 if there is none (any more).
pub async fn last_about_signing_keys(conn: &mut Conn) -> Result<i64> {
    let last: Option<i64> = on!(conn, |c| trust_log::table
        .filter(trust_log::kind.eq(SIGNING_KEYS))
        .select(max(trust_log::seq))
        .first(c))?;
    Ok(last.unwrap_or_default())
}

/// Up to `limit` entries with numbers above `seq`, in order.
pub async fn since(conn: &mut Conn, seq: i64, limit: i64) -> Result<Vec<TrustEntry>> {
    let rows: Vec<Row> = on!(conn, |c| trust_log::table
        .filter(trust_log::seq.gt(seq))
        .order(trust_log::seq.asc())
        .limit(limit)
        .select(Row::as_select())
        .load(c))?;
    rows.into_iter().map(TrustEntry::try_from).collect()
}

/// Appends changes and returns the number of the last. Only
/// [`super::Store::write`] calls it, as the last thing before COMMIT.
pub(super) async fn append(
    conn: &mut Conn,
    changes: &[TrustChange],
    now: Timestamp,
    entropy: &dyn Entropy,
) -> Result<i64> {
    let count = i64::try_from(changes.len()).map_err(Error::internal)?;
    let nonce = Id(uuid::Builder::from_random_bytes(entropy.array()).into_uuid());
    let advance = diesel::update(trust_head::table).set((
        trust_head::seq.eq(trust_head::seq + count),
        trust_head::nonce.eq(nonce),
    ));
    // Until COMMIT, everyone else who appends waits for this row. Telling those
    // who listen must cost no round trip meanwhile.
    let head: i64 = on!(
        conn,
        sqlite | c | advance.returning(trust_head::seq).kept().get_result(c),
        postgres
            | c
            | advance
                .returning((trust_head::seq, sql::<Text>(NOTIFY)))
                .get_result::<(i64, String)>(c)
                .map_ok(|(head, _)| head)
    )?;
    let rows: Vec<Row> = (head - count + 1..)
        .zip(changes)
        .map(|(seq, change)| Row::new(seq, nonce, change, now))
        .collect();
    for rows in rows.chunks(CHUNK) {
        on!(
            conn,
            sqlite | c | insert_each(c, rows),
            postgres
                | c
                | diesel::insert_into(trust_log::table)
                    .values(rows)
                    .execute(c)
        )?;
    }
    Ok(head)
}

/// Many rows in one statement do not compile for SQLite, and are not needed:
/// no network is between.
async fn insert_each(conn: &mut Lite, rows: &[Row]) -> QueryResult<usize> {
    for row in rows {
        diesel::insert_into(trust_log::table)
            .values(row)
            .kept()
            .execute(conn)
            .await?;
    }
    Ok(rows.len())
}

/// Deletes up to `limit` of the oldest entries from before a time at which every token
/// that they speak of has expired.
pub async fn prune(conn: &mut Conn, before: Timestamp, limit: i64) -> Result<usize> {
    let oldest: Vec<i64> = on!(conn, |c| trust_log::table
        .filter(trust_log::created_at.lt(At(before)))
        .order((trust_log::created_at.asc(), trust_log::seq.asc()))
        .limit(limit)
        .select(trust_log::seq)
        .load(c))?;
    Ok(on!(conn, |c| diesel::delete(
        trust_log::table.filter(trust_log::seq.eq_any(oldest))
    )
    .execute(c))?)
}
