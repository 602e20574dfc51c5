//! The chain: events that have no place yet get theirs, in the order in which
//! they are found committed; checkpoints say how far it goes.

use diesel::{
    SqliteConnection,
    dsl::sql,
    prelude::*,
    sql_types::{Array, BigInt, Binary, Bool},
};
use diesel_async::RunQueryDsl;

use super::{EventRow, OriginRow};
use crate::{
    domain::{
        UserStatus,
        audit::{Checkpoint, StoredEvent},
    },
    error::{Error, Result},
    store::{
        conn::{Conn, on},
        failure::Outcome as _,
        kept::Keep as _,
        schema::{audit_checkpoints, audit_events, audit_origins, audit_retention, users},
        types::{At, Id, Uuid},
    },
};

/// Any number that nobody else locks.
const TRY_LOCK: &str = "pg_try_advisory_xact_lock(7233166413867938149)";

/// An event that has no place yet: its id and its MAC.
pub type Unchained = (uuid::Uuid, Vec<u8>);

#[derive(Insertable, Queryable, Selectable)]
#[diesel(table_name = audit_checkpoints)]
struct CheckpointRow {
    batch: i64,
    position: i64,
    root: Vec<u8>,
    created_at: At,
    key_id: i32,
    signature: Vec<u8>,
}

impl From<&Checkpoint> for CheckpointRow {
    fn from(checkpoint: &Checkpoint) -> Self {
        Self {
            batch: checkpoint.batch,
            position: checkpoint.position,
            root: checkpoint.root.to_vec(),
            created_at: checkpoint.created_at.into(),
            key_id: checkpoint.key_id,
            signature: checkpoint.signature.to_vec(),
        }
    }
}

impl From<CheckpointRow> for Checkpoint {
    fn from(row: CheckpointRow) -> Self {
        Self {
            batch: row.batch,
            position: row.position,
            created_at: row.created_at.0,
            key_id: row.key_id,
            // What is of another length was altered; it is not signed, and nor
            // are zeroes.
            root: row.root.try_into().unwrap_or([0; 32]),
            signature: row.signature.try_into().unwrap_or([0; 64]),
        }
    }
}

/// Keeps others from chaining until the transaction ends. False if somebody
/// else is at it.
pub async fn try_lock(conn: &mut Conn) -> Result<bool> {
    // On SQLite the transaction itself is the lock.
    if !conn.is_postgres() {
        return Ok(true);
    }
    Ok(on!(conn, |c| diesel::select(sql::<Bool>(TRY_LOCK))
        .get_result(c))?)
}

/// Whether there are events without a place. What has no MAC gets none.
pub async fn has_unchained(conn: &mut Conn) -> Result<bool> {
    let unchained = audit_events::table
        .filter(audit_events::position.is_null())
        .filter(audit_events::mac.is_not_null());
    Ok(on!(conn, |c| diesel::select(diesel::dsl::exists(
        unchained
    ))
    .get_result(c))?)
}

/// Up to `limit` committed events without a place.
pub async fn unchained(conn: &mut Conn, limit: i64) -> Result<Vec<Unchained>> {
    let rows: Vec<(Id, Option<Vec<u8>>)> = on!(conn, |c| audit_events::table
        .filter(audit_events::position.is_null())
        .filter(audit_events::mac.is_not_null())
        .order(audit_events::id.asc())
        .limit(limit)
        .select((audit_events::id, audit_events::mac))
        .load(c))?;
    let rows = rows.into_iter();
    Ok(rows
        .map(|(id, mac)| (id.0, mac.unwrap_or_default()))
        .collect())
}

/// Gives events their places, from `first` on, and their links.
pub async fn place(
    conn: &mut Conn,
    first: i64,
    ids: &[uuid::Uuid],
    links: &[[u8; 32]],
) -> Result<()> {
    let ids: Vec<Id> = ids.iter().copied().map(Id).collect();
    let links: Vec<Vec<u8>> = links.iter().map(|link| link.to_vec()).collect();
    let count = ids.len();
    let placed = on!(
        conn,
        sqlite | c | c.spawn_blocking(move |c| place_each(c, first, ids, links)),
        postgres
            | c
            | diesel::sql_query(
                "UPDATE audit_events SET position = $1 + p.n - 1, link = p.link \
                 FROM unnest($2, $3) WITH ORDINALITY AS p (id, link, n) \
                 WHERE audit_events.id = p.id AND position IS NULL",
            )
            .bind::<BigInt, _>(first)
            .bind::<Array<Uuid>, _>(ids)
            .bind::<Array<Binary>, _>(links)
            .execute(c)
    )?;
    if placed == count {
        Ok(())
    } else {
        Err(Error::internal("an event went away while it was chained"))
    }
}

/// An update of many rows by values that differ is not portable, and is not
/// needed: no network is between. All of them at once, as others wait to write.
fn place_each(
    conn: &mut SqliteConnection,
    first: i64,
    ids: Vec<Id>,
    links: Vec<Vec<u8>>,
) -> QueryResult<usize> {
    let mut placed = 0;
    for (position, (id, link)) in (first..).zip(ids.into_iter().zip(links)) {
        let event = diesel::update(audit_events::table.find(id))
            .filter(audit_events::position.is_null())
            .set((
                audit_events::position.eq(position),
                audit_events::link.eq(link),
            ));
        placed += diesel::RunQueryDsl::execute(event.kept(), conn)?;
    }
    Ok(placed)
}

/// Adds a checkpoint.
pub async fn insert_checkpoint(conn: &mut Conn, checkpoint: &Checkpoint) -> Result<()> {
    let row = CheckpointRow::from(checkpoint);
    on!(conn, |c| diesel::insert_into(audit_checkpoints::table)
        .values(&row)
        .kept()
        .execute(c))?;
    Ok(())
}

/// The checkpoint that the chain goes up to.
pub async fn newest_checkpoint(conn: &mut Conn) -> Result<Option<Checkpoint>> {
    let row: Option<CheckpointRow> = on!(conn, |c| audit_checkpoints::table
        .order(audit_checkpoints::batch.desc())
        .select(CheckpointRow::as_select())
        .first(c))
    .optional()?;
    Ok(row.map(Checkpoint::from))
}

/// What says up to where the log went by age.
pub async fn mark(conn: &mut Conn) -> Result<Option<Checkpoint>> {
    let mark: Option<String> = on!(conn, |c| audit_retention::table
        .select(audit_retention::mark)
        .first(c))
    .optional()?;
    let mark = mark.map(|text| text.parse()).transpose();
    mark.map_err(|_| Error::internal("audit_retention.mark is no checkpoint"))
}

/// Moves it. False if somebody else has.
pub async fn move_mark(
    conn: &mut Conn,
    from: Option<&Checkpoint>,
    to: &Checkpoint,
) -> Result<bool> {
    let mark = audit_retention::mark.eq(to.anchor());
    let moved = match from {
        None => on!(conn, |c| diesel::insert_into(audit_retention::table)
            .values((audit_retention::id.eq(1), mark))
            .on_conflict_do_nothing()
            .kept()
            .execute(c))?,
        Some(from) => {
            let here = audit_retention::table.filter(audit_retention::mark.eq(from.anchor()));
            on!(conn, |c| diesel::update(here).set(mark).kept().execute(c))?
        }
    };
    Ok(moved > 0)
}

/// Deletes up to `limit` events of the chain up to this position, with their
/// origins.
pub async fn delete_up_to(conn: &mut Conn, position: i64, limit: i64) -> Result<usize> {
    let oldest: Vec<Id> = on!(conn, |c| audit_events::table
        .filter(audit_events::position.gt(0))
        .filter(audit_events::position.le(position))
        .order(audit_events::position.asc())
        .limit(limit)
        .select(audit_events::id)
        .load(c))?;
    Ok(on!(conn, |c| diesel::delete(
        audit_events::table.filter(audit_events::id.eq_any(oldest))
    )
    .execute(c))?)
}

/// Up to `limit` checkpoints after this one, in order.
pub async fn checkpoints_after(conn: &mut Conn, batch: i64, limit: i64) -> Result<Vec<Checkpoint>> {
    let rows: Vec<CheckpointRow> = on!(conn, |c| audit_checkpoints::table
        .filter(audit_checkpoints::batch.gt(batch))
        .order(audit_checkpoints::batch.asc())
        .limit(limit)
        .select(CheckpointRow::as_select())
        .load(c))?;
    Ok(rows.into_iter().map(Checkpoint::from).collect())
}

/// Up to `limit` events from this position on, with their origins, in order.
pub async fn events_from(conn: &mut Conn, position: i64, limit: i64) -> Result<Vec<StoredEvent>> {
    let rows: Vec<(EventRow, Option<OriginRow>)> = on!(conn, |c| audit_events::table
        .left_join(audit_origins::table.on(audit_origins::event_id.eq(audit_events::id)))
        .filter(audit_events::position.ge(position))
        .order((audit_events::position.asc(), audit_events::id.asc()))
        .limit(limit)
        .select((EventRow::as_select(), Option::<OriginRow>::as_select()))
        .load(c))?;
    Ok(rows.into_iter().map(StoredEvent::from).collect())
}

/// Up to `limit` events without a place, with ids above this one, with their
/// origins.
pub async fn unchained_after(
    conn: &mut Conn,
    id: uuid::Uuid,
    limit: i64,
) -> Result<Vec<StoredEvent>> {
    let rows: Vec<(EventRow, Option<OriginRow>)> = on!(conn, |c| audit_events::table
        .left_join(audit_origins::table.on(audit_origins::event_id.eq(audit_events::id)))
        .filter(audit_events::position.is_null())
        .filter(audit_events::mac.is_not_null())
        .filter(audit_events::id.gt(Id(id)))
        .order(audit_events::id.asc())
        .limit(limit)
        .select((EventRow::as_select(), Option::<OriginRow>::as_select()))
        .load(c))?;
    Ok(rows.into_iter().map(StoredEvent::from).collect())
}

/// Up to `limit` ids of events without a MAC, from this one on.
pub async fn unsealed_from(conn: &mut Conn, id: uuid::Uuid, limit: i64) -> Result<Vec<uuid::Uuid>> {
    let ids: Vec<Id> = on!(conn, |c| audit_events::table
        .filter(audit_events::mac.is_null())
        .filter(audit_events::id.ge(Id(id)))
        .order(audit_events::id.asc())
        .limit(limit)
        .select(audit_events::id)
        .load(c))?;
    Ok(ids.into_iter().map(|id| id.0).collect())
}

/// The event at this place.
pub async fn id_at(conn: &mut Conn, position: i64) -> Result<Option<uuid::Uuid>> {
    let id: Option<Id> = on!(conn, |c| audit_events::table
        .filter(audit_events::position.eq(position))
        .select(audit_events::id)
        .first(c))
    .optional()?;
    Ok(id.map(|id| id.0))
}

/// An event at a place that nobody gives, before the first.
pub async fn before_the_first(conn: &mut Conn) -> Result<Option<uuid::Uuid>> {
    let id: Option<Id> = on!(conn, |c| audit_events::table
        .filter(audit_events::position.le(0))
        .select(audit_events::id)
        .first(c))
    .optional()?;
    Ok(id.map(|id| id.0))
}

/// Those of these accounts whose personal data has been erased.
pub async fn erased(conn: &mut Conn, ids: Vec<uuid::Uuid>) -> Result<Vec<uuid::Uuid>> {
    let ids: Vec<Id> = ids.into_iter().map(Id).collect();
    let erased: Vec<Id> = on!(conn, |c| users::table
        .filter(users::id.eq_any(ids))
        .filter(users::status.eq(UserStatus::Deleted.as_str()))
        .select(users::id)
        .load(c))?;
    Ok(erased.into_iter().map(|id| id.0).collect())
}
