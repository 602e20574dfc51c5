//! SQL types with one meaning and a native column type on each database, and
//! the Rust values that travel through them. Both sides are ours because no
//! impl can join a foreign value to a foreign type.

use std::{collections::BTreeMap, fmt, io::Write, str::FromStr};

use diesel::{
    deserialize::{self, FromSql, FromSqlRow},
    expression::AsExpression,
    pg::{Pg, PgValue},
    query_builder::QueryId,
    serialize::{self, IsNull, Output, ToSql},
    sql_types::{BigInt, Binary, SqlOrd, SqlType, Text},
    sqlite::{Sqlite, SqliteValue},
};

use crate::{
    domain::{ApiKeyId, RoleId, SessionId, UserId},
    error::Error,
};

/// `uuid` on PostgreSQL, a BLOB of 16 bytes on SQLite.
#[derive(Debug, Clone, Copy, Default, SqlType, QueryId)]
#[diesel(postgres_type(oid = 2950, array_oid = 2951))]
#[diesel(sqlite_type(name = "Binary"))]
pub struct Uuid;

/// `timestamptz` on PostgreSQL, microseconds since 1970 on SQLite.
#[derive(Debug, Clone, Copy, Default, SqlType, QueryId)]
#[diesel(postgres_type(oid = 1184, array_oid = 1185))]
#[diesel(sqlite_type(name = "Long"))]
pub struct Instant;

impl SqlOrd for Instant {}

/// `jsonb` on PostgreSQL, TEXT on SQLite.
#[derive(Debug, Clone, Copy, Default, SqlType, QueryId)]
#[diesel(postgres_type(oid = 3802, array_oid = 3807))]
#[diesel(sqlite_type(name = "Text"))]
pub struct Json;

/// An id of any kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, AsExpression, FromSqlRow)]
#[diesel(sql_type = Uuid)]
pub struct Id(pub uuid::Uuid);

/// A time. What is finer than a microsecond is cut off on the way in, as
/// PostgreSQL would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, AsExpression, FromSqlRow)]
#[diesel(sql_type = Instant)]
pub struct At(pub jiff::Timestamp);

/// An object of texts.
#[derive(Debug, Clone, PartialEq, Eq, AsExpression, FromSqlRow)]
#[diesel(sql_type = Json)]
pub struct Labels(pub BTreeMap<String, String>);

/// A column holds what no such value can be.
#[derive(Debug, thiserror::Error)]
#[error("{table}.{column} of {id} is not legal: {why}")]
struct Illegal {
    table: &'static str,
    column: &'static str,
    id: String,
    why: String,
}

/// The error for a row that cannot be a legal value. The value itself stays
/// out of it.
pub(super) fn illegal(
    table: &'static str,
    column: &'static str,
    id: impl fmt::Display,
    why: impl fmt::Display,
) -> Error {
    Error::internal(Illegal {
        table,
        column,
        id: id.to_string(),
        why: why.to_string(),
    })
}

/// Reads a column that holds a value in its text form.
pub(super) fn parse<T>(
    table: &'static str,
    column: &'static str,
    id: impl fmt::Display,
    text: &str,
) -> Result<T, Error>
where
    T: FromStr<Err: fmt::Display>,
{
    text.parse().map_err(|why| illegal(table, column, id, why))
}

macro_rules! ids {
    ($($name:ident),+) => {$(
        impl From<$name> for Id {
            fn from(id: $name) -> Self {
                Self(id.0)
            }
        }

        impl From<Id> for $name {
            fn from(id: Id) -> Self {
                Self(id.0)
            }
        }
    )+};
}
ids!(UserId, SessionId, RoleId, ApiKeyId);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ToSql<Uuid, Pg> for Id {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(self.0.as_bytes())?;
        Ok(IsNull::No)
    }
}

impl FromSql<Uuid, Pg> for Id {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        Ok(Self(uuid::Uuid::from_slice(value.as_bytes())?))
    }
}

impl ToSql<Uuid, Sqlite> for Id {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(self.0.as_bytes().as_slice());
        Ok(IsNull::No)
    }
}

impl FromSql<Uuid, Sqlite> for Id {
    fn from_sql(value: SqliteValue<'_, '_, '_>) -> deserialize::Result<Self> {
        let bytes = <Vec<u8> as FromSql<Binary, Sqlite>>::from_sql(value)?;
        Ok(Self(uuid::Uuid::from_slice(&bytes)?))
    }
}

/// PostgreSQL counts from the year 2000.
const PG_EPOCH_MICROS: i64 = 946_684_800_000_000;

impl From<jiff::Timestamp> for At {
    fn from(time: jiff::Timestamp) -> Self {
        Self(time)
    }
}

impl ToSql<Instant, Pg> for At {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        let micros = self.0.as_microsecond() - PG_EPOCH_MICROS;
        out.write_all(&micros.to_be_bytes())?;
        Ok(IsNull::No)
    }
}

impl FromSql<Instant, Pg> for At {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        let micros = <i64 as FromSql<BigInt, Pg>>::from_sql(value)?;
        // PostgreSQL's infinities are the ends of the range.
        let micros = micros.saturating_add(PG_EPOCH_MICROS);
        Ok(Self(jiff::Timestamp::from_microsecond(micros)?))
    }
}

impl ToSql<Instant, Sqlite> for At {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(self.0.as_microsecond());
        Ok(IsNull::No)
    }
}

impl FromSql<Instant, Sqlite> for At {
    fn from_sql(value: SqliteValue<'_, '_, '_>) -> deserialize::Result<Self> {
        let micros = <i64 as FromSql<BigInt, Sqlite>>::from_sql(value)?;
        Ok(Self(jiff::Timestamp::from_microsecond(micros)?))
    }
}

/// What the binary form of a `jsonb` starts with.
const JSONB_VERSION: u8 = 1;

impl ToSql<Json, Pg> for Labels {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(&[JSONB_VERSION])?;
        serde_json::to_writer(out, &self.0)?;
        Ok(IsNull::No)
    }
}

impl FromSql<Json, Pg> for Labels {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        match value.as_bytes().split_first() {
            Some((&JSONB_VERSION, json)) => Ok(Self(serde_json::from_slice(json)?)),
            _ => Err("a jsonb of an unknown version".into()),
        }
    }
}

impl ToSql<Json, Sqlite> for Labels {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(serde_json::to_string(&self.0)?);
        Ok(IsNull::No)
    }
}

impl FromSql<Json, Sqlite> for Labels {
    fn from_sql(value: SqliteValue<'_, '_, '_>) -> deserialize::Result<Self> {
        let json = <String as FromSql<Text, Sqlite>>::from_sql(value)?;
        Ok(Self(serde_json::from_str(&json)?))
    }
}
