//! API keys: the digests of their secrets, what they were given, and what of it
//! their owners still hold.

use std::collections::{BTreeSet, HashMap, HashSet};

use countersign_verifier::{ApiKey as LiveKey, ApiKeyHash, ApiKeySecret};
use diesel::{dsl::max, prelude::*};
use diesel_async::RunQueryDsl;
use jiff::Timestamp;

use super::{
    conn::{Conn, on},
    kept::Keep as _,
    schema::{
        api_key_audiences, api_key_scopes, api_key_secrets, api_keys, role_permissions, roles,
        user_roles, users,
    },
    types::{At, Id, illegal, parse},
};
use crate::{
    domain::{ApiKey, ApiKeyId, Page, PageSize, Role, RoleName, UserId, UserStatus},
    error::Result,
};

/// Keys or owners of one statement.
const CHUNK: usize = 500;

/// Which keys are asked for.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// All.
    All,
    /// Those of these ids.
    Ids(&'a [ApiKeyId]),
    /// Those of these accounts.
    Owners(&'a [UserId]),
}

/// What was asked for, as validators are to know it.
#[derive(Debug, Default)]
pub struct Found {
    /// The keys that are good now.
    pub live: Vec<LiveKey>,
    /// The others that were asked for, as far as there was anything of them.
    pub dead: Vec<ApiKeyId>,
}

impl Which<'_> {
    /// Whether nothing is asked for.
    pub fn is_nothing(&self) -> bool {
        match self {
            Self::All => false,
            Self::Ids(ids) => ids.is_empty(),
            Self::Owners(owners) => owners.is_empty(),
        }
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = api_keys)]
struct Row {
    id: Id,
    owner: Id,
    name: String,
    created_at: At,
    expires_at: Option<At>,
    rotated_at: Option<At>,
    revoked_at: Option<At>,
}

impl Row {
    fn is_live(&self, status: &str, now: Timestamp) -> bool {
        self.revoked_at.is_none()
            && self.expires_at.is_none_or(|at| at.0 > now)
            && status == UserStatus::Active.as_str()
    }
}

/// Adds a key and its first secret. Several statements: call it in a
/// transaction.
pub async fn insert(conn: &mut Conn, key: &ApiKey, secret: ApiKeyHash) -> Result<()> {
    let id = Id::from(key.id);
    on!(conn, |c| diesel::insert_into(api_keys::table)
        .values((
            api_keys::id.eq(id),
            api_keys::owner.eq(Id::from(key.owner)),
            api_keys::name.eq(key.name.as_str()),
            api_keys::created_at.eq(At(key.created_at)),
            api_keys::expires_at.eq(key.expires_at.map(At)),
        ))
        .kept()
        .execute(c))?;
    for scope in &key.scopes {
        on!(conn, |c| diesel::insert_into(api_key_scopes::table)
            .values((
                api_key_scopes::api_key_id.eq(id),
                api_key_scopes::scope.eq(scope.as_str()),
            ))
            .kept()
            .execute(c))?;
    }
    for audience in &key.audiences {
        on!(conn, |c| diesel::insert_into(api_key_audiences::table)
            .values((
                api_key_audiences::api_key_id.eq(id),
                api_key_audiences::audience.eq(audience),
            ))
            .kept()
            .execute(c))?;
    }
    insert_secret(conn, id, secret, key.created_at).await
}

async fn insert_secret(conn: &mut Conn, id: Id, secret: ApiKeyHash, now: Timestamp) -> Result<()> {
    on!(conn, |c| diesel::insert_into(api_key_secrets::table)
        .values((
            api_key_secrets::sha256.eq(&secret.0[..]),
            api_key_secrets::api_key_id.eq(id),
            api_key_secrets::created_at.eq(At(now)),
        ))
        .kept()
        .execute(c))?;
    Ok(())
}

/// The key, unless it was revoked.
pub async fn get(conn: &mut Conn, id: ApiKeyId, now: Timestamp) -> Result<Option<ApiKey>> {
    let rows: Vec<Row> = on!(conn, |c| api_keys::table
        .find(Id::from(id))
        .filter(api_keys::revoked_at.is_null())
        .select(Row::as_select())
        .load(c))?;
    Ok(with_details(conn, rows, now).await?.pop())
}

/// A page of the keys of an account that were not revoked, newest first. What
/// has expired is there until it is cleared away.
pub async fn list(
    conn: &mut Conn,
    owner: UserId,
    now: Timestamp,
    after: Option<(Timestamp, ApiKeyId)>,
    size: PageSize,
) -> Result<Page<ApiKey, (Timestamp, ApiKeyId)>> {
    let rows: Vec<Row> = on!(conn, |c| {
        let mut query = api_keys::table
            .filter(api_keys::owner.eq(Id::from(owner)))
            .filter(api_keys::revoked_at.is_null())
            .order((api_keys::created_at.desc(), api_keys::id.desc()))
            .limit(size.limit())
            .select(Row::as_select())
            .into_boxed();
        if let Some((at, id)) = after {
            query = query.filter(
                api_keys::created_at.lt(At(at)).or(api_keys::created_at
                    .eq(At(at))
                    .and(api_keys::id.lt(Id::from(id)))),
            );
        }
        query.load(c)
    })?;
    let keys = with_details(conn, rows, now).await?;
    Ok(Page::cut(keys, size, |key| (key.created_at, key.id)))
}

async fn with_details(conn: &mut Conn, rows: Vec<Row>, now: Timestamp) -> Result<Vec<ApiKey>> {
    let ids: Vec<Id> = rows.iter().map(|row| row.id).collect();
    let mut scopes = scopes(conn, &ids).await?;
    let mut audiences = audiences(conn, &ids).await?;
    let overlaps: Vec<(Id, Option<At>)> = on!(conn, |c| api_key_secrets::table
        .filter(api_key_secrets::api_key_id.eq_any(&ids))
        .filter(api_key_secrets::ends_at.gt(At(now)))
        .group_by(api_key_secrets::api_key_id)
        .select((api_key_secrets::api_key_id, max(api_key_secrets::ends_at)))
        .load(c))?;
    let overlaps: HashMap<Id, Option<At>> = overlaps.into_iter().collect();
    rows.into_iter()
        .map(|row| {
            let scopes = scopes.remove(&row.id).unwrap_or_default();
            let scopes = scopes
                .iter()
                .map(|scope| parse("api_key_scopes", "scope", row.id, scope));
            Ok(ApiKey {
                id: row.id.into(),
                owner: row.owner.into(),
                name: row
                    .name
                    .parse()
                    .map_err(|why| illegal("api_keys", "name", row.id, why))?,
                scopes: scopes.collect::<Result<_>>()?,
                audiences: audiences
                    .remove(&row.id)
                    .unwrap_or_default()
                    .into_iter()
                    .collect(),
                created_at: row.created_at.0,
                expires_at: row.expires_at.map(|at| at.0),
                rotated_at: row.rotated_at.map(|at| at.0),
                overlap_until: overlaps.get(&row.id).copied().flatten().map(|at| at.0),
            })
        })
        .collect()
}

async fn scopes(conn: &mut Conn, ids: &[Id]) -> Result<HashMap<Id, Vec<String>>> {
    let rows: Vec<(Id, String)> = on!(conn, |c| api_key_scopes::table
        .filter(api_key_scopes::api_key_id.eq_any(ids))
        .order(api_key_scopes::scope.asc())
        .select((api_key_scopes::api_key_id, api_key_scopes::scope))
        .load(c))?;
    Ok(grouped(rows))
}

async fn audiences(conn: &mut Conn, ids: &[Id]) -> Result<HashMap<Id, Vec<String>>> {
    let rows: Vec<(Id, String)> = on!(conn, |c| api_key_audiences::table
        .filter(api_key_audiences::api_key_id.eq_any(ids))
        .order(api_key_audiences::audience.asc())
        .select((api_key_audiences::api_key_id, api_key_audiences::audience))
        .load(c))?;
    Ok(grouped(rows))
}

fn grouped<T>(rows: Vec<(Id, T)>) -> HashMap<Id, Vec<T>> {
    let mut groups: HashMap<Id, Vec<T>> = HashMap::new();
    for (id, value) in rows {
        groups.entry(id).or_default().push(value);
    }
    groups
}

/// How many keys of the account are neither revoked nor expired. Before relying
/// on it, lock the account.
pub async fn count(conn: &mut Conn, owner: UserId, now: Timestamp) -> Result<i64> {
    Ok(on!(conn, |c| api_keys::table
        .filter(api_keys::owner.eq(Id::from(owner)))
        .filter(api_keys::revoked_at.is_null())
        .filter(
            api_keys::expires_at
                .is_null()
                .or(api_keys::expires_at.gt(At(now)))
        )
        .count()
        .get_result(c))?)
}

/// Gives a key another secret; those before it are good until `overlap_until`
/// at the latest, and no more than [`ApiKey::MOST_SECRETS`] are in all. False if
/// there is no such key or it has ended. Several statements: call it in a
/// transaction.
pub async fn rotate(
    conn: &mut Conn,
    id: ApiKeyId,
    secret: ApiKeyHash,
    overlap_until: Timestamp,
    now: Timestamp,
) -> Result<bool> {
    let id = Id::from(id);
    let done = on!(conn, |c| diesel::update(
        api_keys::table
            .find(id)
            .filter(api_keys::revoked_at.is_null())
            .filter(
                api_keys::expires_at
                    .is_null()
                    .or(api_keys::expires_at.gt(At(now)))
            )
    )
    .set(api_keys::rotated_at.eq(At(now)))
    .kept()
    .execute(c))?;
    if done == 0 {
        return Ok(false);
    }
    let ends_later = api_key_secrets::ends_at
        .is_null()
        .or(api_key_secrets::ends_at.gt(At(overlap_until)));
    on!(conn, |c| diesel::update(
        api_key_secrets::table
            .filter(api_key_secrets::api_key_id.eq(id))
            .filter(ends_later)
    )
    .set(api_key_secrets::ends_at.eq(At(overlap_until)))
    .kept()
    .execute(c))?;
    let newest_first: Vec<Vec<u8>> = on!(conn, |c| api_key_secrets::table
        .filter(api_key_secrets::api_key_id.eq(id))
        .order(api_key_secrets::created_at.desc())
        .select(api_key_secrets::sha256)
        .load(c))?;
    let excess: Vec<Vec<u8>> = newest_first
        .into_iter()
        .skip(ApiKey::MOST_SECRETS - 1)
        .collect();
    on!(conn, |c| diesel::delete(
        api_key_secrets::table.filter(api_key_secrets::sha256.eq_any(excess))
    )
    .execute(c))?;
    insert_secret(conn, id, secret, now).await?;
    Ok(true)
}

/// Ends a key. False if there is no such key or it was revoked before.
pub async fn revoke(conn: &mut Conn, id: ApiKeyId, now: Timestamp) -> Result<bool> {
    let done = on!(conn, |c| diesel::update(
        api_keys::table
            .find(Id::from(id))
            .filter(api_keys::revoked_at.is_null())
    )
    .set(api_keys::revoked_at.eq(At(now)))
    .kept()
    .execute(c))?;
    Ok(done == 1)
}

/// Ends all keys of an account that is being erased, and erases their names.
pub(super) async fn erase(conn: &mut Conn, owner: UserId, now: Timestamp) -> Result<()> {
    on!(conn, |c| diesel::update(
        api_keys::table.filter(api_keys::owner.eq(Id::from(owner)))
    )
    .set((api_keys::name.eq(""), api_keys::revoked_at.eq(At(now))))
    .kept()
    .execute(c))?;
    Ok(())
}

/// Keys as validators are to know them: the live ones of active owners, each
/// with the part of its scopes that its owner holds now.
///
/// Several statements that see what is committed when each of them runs. A
/// change that commits between them has an entry in the trust log that is still
/// to be read, and whoever reads it asks again.
pub async fn live(conn: &mut Conn, which: Which<'_>, now: Timestamp) -> Result<Found> {
    let mut found = Found::default();
    match which {
        Which::All => {
            let mut after = Id(uuid::Uuid::nil());
            loop {
                let rows: Vec<(Row, String)> = on!(conn, |c| api_keys::table
                    .inner_join(users::table)
                    .filter(api_keys::id.gt(after))
                    .order(api_keys::id.asc())
                    .limit(i64::try_from(CHUNK).unwrap_or(i64::MAX))
                    .select((Row::as_select(), users::status))
                    .load(c))?;
                let Some((last, _)) = rows.last() else { break };
                after = last.id;
                found.take(conn, rows, now).await?;
            }
            // Whoever asks for all knows nothing of these.
            found.dead.clear();
        }
        Which::Ids(ids) => {
            for ids in ids.chunks(CHUNK) {
                let wanted: Vec<Id> = ids.iter().copied().map(Id::from).collect();
                let rows: Vec<(Row, String)> = on!(conn, |c| api_keys::table
                    .inner_join(users::table)
                    .filter(api_keys::id.eq_any(&wanted))
                    .select((Row::as_select(), users::status))
                    .load(c))?;
                let there: HashSet<Id> = rows.iter().map(|(row, _)| row.id).collect();
                let cleared = wanted.into_iter().filter(|id| !there.contains(id));
                found.dead.extend(cleared.map(ApiKeyId::from));
                found.take(conn, rows, now).await?;
            }
        }
        Which::Owners(owners) => {
            for owners in owners.chunks(CHUNK) {
                let owners: Vec<Id> = owners.iter().copied().map(Id::from).collect();
                let rows: Vec<(Row, String)> = on!(conn, |c| api_keys::table
                    .inner_join(users::table)
                    .filter(api_keys::owner.eq_any(owners))
                    .select((Row::as_select(), users::status))
                    .load(c))?;
                found.take(conn, rows, now).await?;
            }
        }
    }
    Ok(found)
}

impl Found {
    /// Sorts keys into the live and the dead.
    async fn take(
        &mut self,
        conn: &mut Conn,
        rows: Vec<(Row, String)>,
        now: Timestamp,
    ) -> Result<()> {
        let (live, dead): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .partition(|(row, status)| row.is_live(status, now));
        self.dead
            .extend(dead.into_iter().map(|(row, _)| ApiKeyId::from(row.id)));
        let live: Vec<Row> = live.into_iter().map(|(row, _)| row).collect();
        for rows in live.chunks(CHUNK) {
            self.live.extend(effective(conn, rows, now).await?);
        }
        Ok(())
    }
}

async fn effective(conn: &mut Conn, rows: &[Row], now: Timestamp) -> Result<Vec<LiveKey>> {
    let ids: Vec<Id> = rows.iter().map(|row| row.id).collect();
    let owners: BTreeSet<Id> = rows.iter().map(|row| row.owner).collect();
    let held = permissions(conn, owners.into_iter().collect()).await?;
    let mut scopes = scopes(conn, &ids).await?;
    let mut audiences = audiences(conn, &ids).await?;
    let secrets: Vec<(Id, Vec<u8>, Option<At>)> = on!(conn, |c| api_key_secrets::table
        .filter(api_key_secrets::api_key_id.eq_any(&ids))
        .filter(
            api_key_secrets::ends_at
                .is_null()
                .or(api_key_secrets::ends_at.gt(At(now)))
        )
        .order(api_key_secrets::created_at.asc())
        .select((
            api_key_secrets::api_key_id,
            api_key_secrets::sha256,
            api_key_secrets::ends_at,
        ))
        .load(c))?;
    let mut hashes: HashMap<Id, Vec<ApiKeySecret>> = HashMap::new();
    for (id, sha256, ends_at) in secrets {
        let hash = sha256
            .try_into()
            .map_err(|_| illegal("api_key_secrets", "sha256", id, "is no SHA-256"))?;
        hashes.entry(id).or_default().push(ApiKeySecret {
            hash: ApiKeyHash(hash),
            expires_at: ends_at.map(|at| at.0),
        });
    }
    let keys = rows.iter().map(|row| {
        let mut scopes = scopes.remove(&row.id).unwrap_or_default();
        let held = held.get(&row.owner);
        scopes.retain(|scope| held.is_some_and(|held| held.contains(scope)));
        LiveKey {
            id: row.id.0,
            owner: row.owner.0,
            name: row.name.clone(),
            scopes,
            audience: audiences.remove(&row.id).unwrap_or_default(),
            created_at: row.created_at.0,
            expires_at: row.expires_at.map(|at| at.0),
            secrets: hashes.remove(&row.id).unwrap_or_default(),
        }
    });
    Ok(keys.collect())
}

/// What each of the accounts may do, by name. Names are not judged: another
/// version of the program may know more of them, and this node hears of all.
async fn permissions(conn: &mut Conn, owners: Vec<Id>) -> Result<HashMap<Id, HashSet<String>>> {
    let by_admins: Vec<Id> = on!(conn, |c| user_roles::table
        .inner_join(roles::table)
        .filter(user_roles::user_id.eq_any(&owners))
        .filter(roles::built_in.eq(true))
        .filter(roles::name.eq(RoleName::ADMIN))
        .select(user_roles::user_id)
        .load(c))?;
    let by_roles: Vec<(Id, String)> = on!(conn, |c| user_roles::table
        .inner_join(role_permissions::table.on(role_permissions::role_id.eq(user_roles::role_id)))
        .filter(user_roles::user_id.eq_any(&owners))
        .select((user_roles::user_id, role_permissions::permission))
        .load(c))?;
    let mut held: HashMap<Id, HashSet<String>> = HashMap::new();
    for owner in by_admins {
        let all = Role::admin_permissions();
        let names = all.iter().map(|permission| permission.as_str().to_owned());
        held.entry(owner).or_default().extend(names);
    }
    for (owner, permission) in by_roles {
        held.entry(owner).or_default().insert(permission);
    }
    Ok(held)
}

/// Deletes up to `limit` of the keys that expired before a time, and as many of
/// those that were revoked before it. Returns which.
pub async fn delete_dead(conn: &mut Conn, before: Timestamp, limit: i64) -> Result<Vec<ApiKeyId>> {
    let mut batch: Vec<Id> = on!(conn, |c| api_keys::table
        .filter(api_keys::expires_at.le(At(before)))
        .order(api_keys::expires_at.asc())
        .limit(limit)
        .select(api_keys::id)
        .load(c))?;
    let revoked: Vec<Id> = on!(conn, |c| api_keys::table
        .filter(api_keys::revoked_at.le(At(before)))
        .order(api_keys::revoked_at.asc())
        .limit(limit)
        .select(api_keys::id)
        .load(c))?;
    batch.extend(revoked);
    let deleted: Vec<Id> = on!(conn, |c| diesel::delete(
        api_keys::table.filter(api_keys::id.eq_any(batch))
    )
    .returning(api_keys::id)
    .get_results(c))?;
    Ok(deleted.into_iter().map(ApiKeyId::from).collect())
}

/// Deletes up to `limit` of the secrets whose overlap is over. Returns the keys
/// that they were of, as often as they had any.
pub async fn delete_ended_secrets(
    conn: &mut Conn,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<ApiKeyId>> {
    let batch: Vec<Vec<u8>> = on!(conn, |c| api_key_secrets::table
        .filter(api_key_secrets::ends_at.le(At(now)))
        .order(api_key_secrets::ends_at.asc())
        .limit(limit)
        .select(api_key_secrets::sha256)
        .load(c))?;
    let keys: Vec<Id> = on!(conn, |c| diesel::delete(
        api_key_secrets::table.filter(api_key_secrets::sha256.eq_any(batch))
    )
    .returning(api_key_secrets::api_key_id)
    .get_results(c))?;
    Ok(keys.into_iter().map(ApiKeyId::from).collect())
}
