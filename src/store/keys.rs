//! Keys, sealed. What opens them is not known here.

use countersign_verifier::{Algorithm, KeyState};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{
    conn::{Conn, on},
    schema::{secret_keys, signing_keys},
    types::{At, illegal, parse},
};
use crate::{
    domain::signing_key::{SecretKey, SigningKey},
    error::{Error, Result},
};

/// Any number that nobody else locks.
const CREATION_LOCK: &str = "SELECT pg_advisory_xact_lock(7233166413867938148)";

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
        state: match key.state {
            KeyState::Next => "next",
            KeyState::Active => "active",
            KeyState::Retired => "retired",
        }
        .to_owned(),
        public_key: key.public_key.clone(),
        sealed: key.sealed.clone(),
        created_at: key.created_at.into(),
        changed_at: key.changed_at.into(),
    };
    let inserted = on!(conn, |c| diesel::insert_into(signing_keys::table)
        .values(&row)
        .on_conflict_do_nothing()
        .execute(c))?;
    Ok(inserted == 1)
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

/// Lets one transaction at a time look for keys and create what is missing: two
/// nodes may start at once. Lasts until the transaction ends.
pub async fn lock_creation(conn: &mut Conn) -> Result<()> {
    // On SQLite the transaction itself is the lock.
    if conn.is_postgres() {
        conn.batch(CREATION_LOCK).await?;
    }
    Ok(())
}
