//! The nodes that serve, as they tell each other.

use diesel::{dsl::sql, prelude::*, upsert::excluded};
use diesel_async::RunQueryDsl;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    conn::{Conn, on},
    kept::Keep as _,
    schema::nodes,
    types::{At, Id, Instant, illegal, parse},
};
use crate::{
    domain::Node,
    error::{Error, Result},
};

#[derive(Insertable, Queryable, Selectable)]
#[diesel(table_name = nodes, treat_none_as_default_value = false)]
struct Row {
    id: Id,
    started_at: At,
    seen_at: At,
    applied_seq: i64,
    validators: i32,
    acked_seq: Option<i64>,
    clock_skew_us: i64,
    /// With a space between each two.
    master_keys: String,
}

impl TryFrom<Row> for Node {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        let validators = u32::try_from(row.validators)
            .map_err(|why| illegal("nodes", "validators", row.id, why))?;
        let master_keys = row.master_keys.split_whitespace();
        let master_keys = master_keys
            .map(|id| parse("nodes", "master_keys", row.id, id))
            .collect::<Result<_>>()?;
        Ok(Self {
            id: row.id.0,
            started_at: row.started_at.0,
            seen_at: row.seen_at.0,
            applied_seq: row.applied_seq,
            validators,
            acked_seq: row.acked_seq,
            clock_skew: SignedDuration::from_micros(row.clock_skew_us),
            master_keys,
        })
    }
}

/// Writes the row of a node, or makes it anew.
pub async fn tell(conn: &mut Conn, node: &Node) -> Result<()> {
    let master_keys = node.master_keys.iter().map(ToString::to_string);
    let row = Row {
        id: Id(node.id),
        started_at: node.started_at.into(),
        seen_at: node.seen_at.into(),
        applied_seq: node.applied_seq,
        validators: i32::try_from(node.validators).unwrap_or(i32::MAX),
        acked_seq: node.acked_seq,
        clock_skew_us: i64::try_from(node.clock_skew.as_micros()).unwrap_or(i64::MAX),
        master_keys: master_keys.collect::<Vec<_>>().join(" "),
    };
    on!(conn, |c| diesel::insert_into(nodes::table)
        .values(&row)
        .on_conflict(nodes::id)
        .do_update()
        .set((
            nodes::seen_at.eq(excluded(nodes::seen_at)),
            nodes::applied_seq.eq(excluded(nodes::applied_seq)),
            nodes::validators.eq(excluded(nodes::validators)),
            nodes::acked_seq.eq(excluded(nodes::acked_seq)),
            nodes::clock_skew_us.eq(excluded(nodes::clock_skew_us)),
            nodes::master_keys.eq(excluded(nodes::master_keys)),
        ))
        .kept()
        .execute(c))?;
    Ok(())
}

/// Takes a node away that ends.
pub async fn remove(conn: &mut Conn, id: Uuid) -> Result<()> {
    on!(conn, |c| diesel::delete(nodes::table.find(Id(id)))
        .execute(c))?;
    Ok(())
}

/// The nodes that were heard of since.
pub async fn seen_since(conn: &mut Conn, since: Timestamp) -> Result<Vec<Node>> {
    let rows: Vec<Row> = on!(conn, |c| nodes::table
        .filter(nodes::seen_at.ge(At(since)))
        .order((nodes::started_at.asc(), nodes::id.asc()))
        .select(Row::as_select())
        .load(c))?;
    rows.into_iter().map(Node::try_from).collect()
}

/// Deletes the nodes that were not heard of since: they have ended without a
/// word.
pub async fn delete_silent(conn: &mut Conn, since: Timestamp) -> Result<usize> {
    Ok(on!(conn, |c| diesel::delete(
        nodes::table.filter(nodes::seen_at.lt(At(since)))
    )
    .execute(c))?)
}

/// What the database's own clock says; none on SQLite, which has this
/// machine's.
pub async fn database_clock(conn: &mut Conn) -> Result<Option<Timestamp>> {
    if !conn.is_postgres() {
        return Ok(None);
    }
    let now: At = on!(conn, |c| diesel::select(sql::<Instant>(
        "clock_timestamp()"
    ))
    .get_result(c))?;
    Ok(Some(now.0))
}
