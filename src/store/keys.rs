//! Keys, sealed. What opens them is not known here.

use countersign_verifier::{Algorithm, KeyState};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use jiff::Timestamp;

use super::{
    conn::{Conn, on},
    failure::Outcome as _,
    schema::{secret_keys, signing_keys},
    types::{At, illegal, parse},
};
use crate::{
    domain::signing_key::{SecretKey, SigningKey},
    error::{Error, Result},
};

/// Any number that nobody else locks.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7233166413867938148)";

/// The same number, beside others that do so.
const SHARED_LOCK: &str = "SELECT pg_advisory_xact_lock_shared(7233166413867938148)";

#[derive(Insertable, Queryable, Selectable)]
#[diesel(table_name = signing_keys)]
struct SigningRow {
    kid: String,
    algorithm: String,
    state: String,
    public_key: Vec<u8>,
    sealed: Vec<u8>,
    created_at: At,
    changed_at: At,
    verify_until: Option<At>,
}

#[derive(Insertable, Queryable, Selectable)]
#[diesel(table_name = secret_keys)]
struct SecretRow {
    id: i32,
    purpose: String,
    sealed: Vec<u8>,
    created_at: At,
}

impl TryFrom<SigningRow> for SigningKey {
    type Error = Error;

    fn try_from(row: SigningRow) -> Result<Self> {
        let algorithm = match row.algorithm.as_str() {
            "EdDSA" => Algorithm::Ed25519,
            "ES256" => Algorithm::Es256,
            _ => return Err(illegal("signing_keys", "algorithm", row.kid, "is unknown")),
        };
        let state = match row.state.as_str() {
            "next" => KeyState::Next,
            "active" => KeyState::Active,
            "retired" => KeyState::Retired,
            _ => return Err(illegal("signing_keys", "state", row.kid, "is unknown")),
        };
        Ok(Self {
            kid: row.kid,
            algorithm,
            state,
            public_key: row.public_key,
            sealed: row.sealed,
            created_at: row.created_at.0,
            changed_at: row.changed_at.0,
            verify_until: row.verify_until.map(|at| at.0),
        })
    }
}

/// All signing keys, oldest first.
pub async fn signing_keys(conn: &mut Conn) -> Result<Vec<SigningKey>> {
    let rows: Vec<SigningRow> = on!(conn, |c| signing_keys::table
        .order((signing_keys::created_at.asc(), signing_keys::kid.asc()))
        .select(SigningRow::as_select())
        .load(c))?;
    rows.into_iter().map(SigningKey::try_from).collect()
}

/// Adds a signing key. False if there is another active or next one, or one of
/// the same id.
pub async fn insert_signing_key(conn: &mut Conn, key: &SigningKey) -> Result<bool> {
    let row = SigningRow {
        kid: key.kid.clone(),
        algorithm: match key.algorithm {
            Algorithm::Ed25519 => "EdDSA",
            Algorithm::Es256 => "ES256",
        }
        .to_owned(),
        state: key.state.name().to_owned(),
        public_key: key.public_key.clone(),
        sealed: key.sealed.clone(),
        created_at: key.created_at.into(),
        changed_at: key.changed_at.into(),
        verify_until: key.verify_until.map(At),
    };
    let inserted = on!(conn, |c| diesel::insert_into(signing_keys::table)
        .values(&row)
        .on_conflict_do_nothing()
        .execute(c))?;
    Ok(inserted == 1)
}

/// Has a key enter another state. False if it is not what it was, or if another
/// is in a state that only one can be in.
pub async fn change_signing_key(
    conn: &mut Conn,
    from: &SigningKey,
    to: &SigningKey,
) -> Result<bool> {
    let key = signing_keys::table
        .find(&from.kid)
        .filter(signing_keys::state.eq(from.state.name()))
        .filter(signing_keys::sealed.eq(&from.sealed));
    let changed = on!(conn, |c| diesel::update(key)
        .set((
            signing_keys::state.eq(to.state.name()),
            signing_keys::changed_at.eq(At(to.changed_at)),
            signing_keys::verify_until.eq(to.verify_until.map(At)),
            signing_keys::sealed.eq(&to.sealed),
        ))
        .execute(c))
    .unless_conflict()?;
    Ok(changed == Some(1))
}

/// Takes a key away. False if it is not there in this state.
pub async fn delete_signing_key(conn: &mut Conn, kid: &str, state: KeyState) -> Result<bool> {
    let key = signing_keys::table
        .find(kid)
        .filter(signing_keys::state.eq(state.name()));
    let deleted = on!(conn, |c| diesel::delete(key).execute(c))?;
    Ok(deleted == 1)
}

/// Takes retired keys away whose tokens have expired, and returns their ids.
pub async fn delete_expired_signing_keys(conn: &mut Conn, now: Timestamp) -> Result<Vec<String>> {
    let expired = signing_keys::table.filter(signing_keys::verify_until.le(At(now)));
    Ok(on!(conn, |c| diesel::delete(expired)
        .returning(signing_keys::kid)
        .get_results(c))?)
}

/// All symmetric keys, oldest first.
pub async fn secret_keys(conn: &mut Conn) -> Result<Vec<SecretKey>> {
    let rows: Vec<SecretRow> = on!(conn, |c| secret_keys::table
        .order((secret_keys::created_at.asc(), secret_keys::id.asc()))
        .select(SecretRow::as_select())
        .load(c))?;
    rows.into_iter()
        .map(|row| {
            Ok(SecretKey {
                id: row.id,
                purpose: parse("secret_keys", "purpose", row.id, &row.purpose)?,
                sealed: row.sealed,
                created_at: row.created_at.0,
            })
        })
        .collect()
}

/// Adds a symmetric key. False if there is one of the same id.
pub async fn insert_secret_key(conn: &mut Conn, key: &SecretKey) -> Result<bool> {
    let row = SecretRow {
        id: key.id,
        purpose: key.purpose.as_str().to_owned(),
        sealed: key.sealed.clone(),
        created_at: key.created_at.into(),
    };
    let inserted = on!(conn, |c| diesel::insert_into(secret_keys::table)
        .values(&row)
        .on_conflict_do_nothing()
        .execute(c))?;
    Ok(inserted == 1)
}

/// Takes a symmetric key away. False if it is not there.
pub async fn delete_secret_key(conn: &mut Conn, id: i32) -> Result<bool> {
    let deleted = on!(conn, |c| diesel::delete(secret_keys::table.find(id))
        .execute(c))?;
    Ok(deleted == 1)
}

/// Puts a sealed text in the place of another, if that is still there.
pub async fn reseal_signing_key(
    conn: &mut Conn,
    kid: &str,
    from: &[u8],
    to: &[u8],
) -> Result<bool> {
    let key = signing_keys::table
        .find(kid)
        .filter(signing_keys::sealed.eq(from));
    let resealed = on!(conn, |c| diesel::update(key)
        .set(signing_keys::sealed.eq(to))
        .execute(c))?;
    Ok(resealed == 1)
}

/// Puts a sealed text in the place of another, if that is still there.
pub async fn reseal_secret_key(conn: &mut Conn, id: i32, from: &[u8], to: &[u8]) -> Result<bool> {
    let key = secret_keys::table
        .find(id)
        .filter(secret_keys::sealed.eq(from));
    let resealed = on!(conn, |c| diesel::update(key)
        .set(secret_keys::sealed.eq(to))
        .execute(c))?;
    Ok(resealed == 1)
}

/// Lets one transaction at a time look at the keys and change them: two nodes
/// may start, or rotate, at once. Lasts until the transaction ends.
pub async fn lock(conn: &mut Conn) -> Result<()> {
    // On SQLite the transaction itself is the lock.
    if conn.is_postgres() {
        conn.batch(LOCK).await?;
    }
    Ok(())
}

/// Whether there is a symmetric key of this id. It then stays there until the
/// transaction ends: whoever takes one away has the [`lock`].
pub async fn hold_secret_key(conn: &mut Conn, id: i32) -> Result<bool> {
    if conn.is_postgres() {
        conn.batch(SHARED_LOCK).await?;
    }
    let count: i64 = on!(conn, |c| secret_keys::table.find(id).count().get_result(c))?;
    Ok(count == 1)
}
