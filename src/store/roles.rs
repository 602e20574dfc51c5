//! Roles, and who holds them.
//!
//! Rules over several rows ("an administrator is left", "nobody holds a deleted
//! role") see only what is committed. Whoever relies on one takes [`lock`] on
//! the role first, and so does whoever grants or revokes it.

use std::collections::{BTreeSet, HashMap};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{
    conn::{Conn, on},
    failure::Failure,
    kept::Keep as _,
    schema::{role_permissions, roles, user_roles, users},
    types::{At, Id, illegal, parse},
};
use crate::{
    domain::{Page, PageSize, PermissionName, Role, RoleId, RoleName, UserId, UserStatus},
    error::Result,
};

#[derive(Insertable, Queryable, Selectable)]
#[diesel(table_name = roles)]
struct Row {
    id: Id,
    name: String,
    description: String,
    built_in: bool,
    created_at: At,
    updated_at: At,
}

/// Creates a role. False if its name is taken, which fails no transaction.
/// Several statements: call it in a transaction.
pub async fn insert(conn: &mut Conn, role: &Role) -> Result<bool> {
    let row = Row {
        id: role.id.into(),
        name: role.name.as_str().to_owned(),
        description: role.description.clone(),
        built_in: role.built_in,
        created_at: role.created_at.into(),
        updated_at: role.updated_at.into(),
    };
    let done = on!(conn, |c| diesel::insert_into(roles::table)
        .values(&row)
        .on_conflict_do_nothing()
        .kept()
        .execute(c))?;
    if done == 0 {
        return Ok(false);
    }
    insert_permissions(conn, role).await?;
    Ok(true)
}

async fn insert_permissions(conn: &mut Conn, role: &Role) -> Result<()> {
    for permission in &role.permissions {
        on!(conn, |c| diesel::insert_into(role_permissions::table)
            .values((
                role_permissions::role_id.eq(Id::from(role.id)),
                role_permissions::permission.eq(permission.as_str()),
            ))
            .kept()
            .execute(c))?;
    }
    Ok(())
}

/// The role of this name.
pub async fn get(conn: &mut Conn, name: &RoleName) -> Result<Option<Role>> {
    Ok(get_by_names(conn, std::slice::from_ref(name)).await?.pop())
}

/// The roles of these names, by name, without those that are not there.
pub async fn get_by_names(conn: &mut Conn, names: &[RoleName]) -> Result<Vec<Role>> {
    let names: Vec<&str> = names.iter().map(RoleName::as_str).collect();
    let rows: Vec<Row> = on!(conn, |c| roles::table
        .filter(roles::name.eq_any(names))
        .order(roles::name.asc())
        .select(Row::as_select())
        .load(c))?;
    with_permissions(conn, rows).await
}

/// A page of roles by name.
pub async fn list(
    conn: &mut Conn,
    after: Option<RoleName>,
    size: PageSize,
) -> Result<Page<Role, RoleName>> {
    // Every name comes after the empty one.
    let after = after.as_ref().map_or("", RoleName::as_str);
    let rows: Vec<Row> = on!(conn, |c| roles::table
        .filter(roles::name.gt(after))
        .order(roles::name.asc())
        .limit(size.limit())
        .select(Row::as_select())
        .load(c))?;
    let roles = with_permissions(conn, rows).await?;
    Ok(Page::cut(roles, size, |role| role.name.clone()))
}

/// The roles of an account with their permissions, by name.
pub async fn of_user(conn: &mut Conn, user: UserId) -> Result<Vec<Role>> {
    let rows: Vec<Row> = on!(conn, |c| roles::table
        .inner_join(user_roles::table)
        .filter(user_roles::user_id.eq(Id::from(user)))
        .order(roles::name.asc())
        .select(Row::as_select())
        .load(c))?;
    with_permissions(conn, rows).await
}

async fn with_permissions(conn: &mut Conn, rows: Vec<Row>) -> Result<Vec<Role>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Id> = rows.iter().map(|row| row.id).collect();
    let held: Vec<(Id, String)> = on!(conn, |c| role_permissions::table
        .filter(role_permissions::role_id.eq_any(ids))
        .select((role_permissions::role_id, role_permissions::permission))
        .load(c))?;
    let mut permissions: HashMap<Id, BTreeSet<PermissionName>> = HashMap::new();
    for (role, name) in held {
        let name = parse("role_permissions", "permission", role, &name)?;
        permissions.entry(role).or_default().insert(name);
    }
    rows.into_iter()
        .map(|row| {
            let name: RoleName = parse("roles", "name", row.id, &row.name)?;
            Role::check_description(&row.description)
                .map_err(|why| illegal("roles", "description", row.id, why))?;
            Ok(Role {
                id: row.id.into(),
                // What this program knows, so that a new permission needs no
                // migration.
                permissions: if row.built_in && name.is_admin() {
                    Role::admin_permissions()
                } else {
                    permissions.remove(&row.id).unwrap_or_default()
                },
                name,
                description: row.description,
                built_in: row.built_in,
                created_at: row.created_at.0,
                updated_at: row.updated_at.0,
            })
        })
        .collect()
}

/// Replaces description and permissions of a role that is not built in. False
/// if there is no such role. Several statements: call it in a transaction.
pub async fn update(conn: &mut Conn, role: &Role) -> Result<bool> {
    let id = Id::from(role.id);
    let done = on!(conn, |c| diesel::update(
        roles::table
            .filter(roles::id.eq(id))
            .filter(roles::built_in.eq(false))
    )
    .set((
        roles::description.eq(&role.description),
        roles::updated_at.eq(At(role.updated_at)),
    ))
    .kept()
    .execute(c))?;
    if done == 0 {
        return Ok(false);
    }
    on!(conn, |c| diesel::delete(
        role_permissions::table.filter(role_permissions::role_id.eq(id))
    )
    .execute(c))?;
    insert_permissions(conn, role).await?;
    Ok(true)
}

/// Deletes a role that is not built in and that nobody holds. False otherwise;
/// the transaction may then be over: return an error from it.
pub async fn delete(conn: &mut Conn, id: RoleId) -> Result<bool> {
    let id = Id::from(id);
    let deleted = on!(conn, |c| diesel::delete(
        roles::table
            .filter(roles::id.eq(id))
            .filter(roles::built_in.eq(false))
            .filter(diesel::dsl::not(diesel::dsl::exists(
                user_roles::table.filter(user_roles::role_id.eq(id))
            )))
    )
    .execute(c));
    match deleted {
        Ok(count) => Ok(count == 1),
        // Granted by a transaction that committed while this one waited.
        Err(Failure::Reference) => Ok(false),
        Err(failure) => Err(failure.into()),
    }
}

/// How many accounts hold the role.
pub async fn holders(conn: &mut Conn, id: RoleId) -> Result<i64> {
    Ok(on!(conn, |c| user_roles::table
        .filter(user_roles::role_id.eq(Id::from(id)))
        .count()
        .get_result(c))?)
}

/// How many active accounts hold the role. Before relying on it, take [`lock`].
pub async fn active_holders(conn: &mut Conn, id: RoleId) -> Result<i64> {
    Ok(on!(conn, |c| user_roles::table
        .inner_join(users::table)
        .filter(user_roles::role_id.eq(Id::from(id)))
        .filter(users::status.eq(UserStatus::Active.as_str()))
        .count()
        .get_result(c))?)
}

/// Locks the role until the transaction ends. False if there is none.
pub async fn lock(conn: &mut Conn, id: RoleId) -> Result<bool> {
    let locked = on!(conn, |c| diesel::update(
        roles::table.filter(roles::id.eq(Id::from(id)))
    )
    .set(roles::built_in.eq(roles::built_in))
    .kept()
    .execute(c))?;
    Ok(locked == 1)
}

/// Grants a role. False if the account held it already.
pub async fn grant(conn: &mut Conn, user: UserId, role: RoleId) -> Result<bool> {
    let granted = on!(conn, |c| diesel::insert_into(user_roles::table)
        .values((
            user_roles::user_id.eq(Id::from(user)),
            user_roles::role_id.eq(Id::from(role)),
        ))
        .on_conflict_do_nothing()
        .kept()
        .execute(c))?;
    Ok(granted == 1)
}

/// Revokes a role. False if the account did not hold it.
pub async fn revoke(conn: &mut Conn, user: UserId, role: RoleId) -> Result<bool> {
    let revoked = on!(conn, |c| diesel::delete(
        user_roles::table
            .filter(user_roles::user_id.eq(Id::from(user)))
            .filter(user_roles::role_id.eq(Id::from(role)))
    )
    .execute(c))?;
    Ok(revoked == 1)
}
