//! Managing roles.

use std::collections::BTreeSet;

use super::{
    Core, authority,
    once::{self, Made, Repeatable},
    page::{Listing, PageRequest},
    record,
};
use crate::{
    domain::{Call, PermissionName, Role, RoleId, RoleName, audit::Action, trust::TrustChange},
    error::{Error, Reason, Result},
    store::{Conn, roles, users},
};

/// What a new role is to be.
#[derive(Debug)]
pub struct NewRole {
    /// Its name.
    pub name: RoleName,
    /// For people.
    pub description: String,
    /// What it permits.
    pub permissions: BTreeSet<PermissionName>,
}

/// What is to change about a role; what is None stays.
#[derive(Debug, Default)]
pub struct RoleChange {
    /// For people.
    pub description: Option<String>,
    /// What it permits.
    pub permissions: Option<BTreeSet<PermissionName>>,
}

/// Creates a role that nobody holds yet.
pub async fn create(
    core: &Core,
    call: &Call,
    wish: NewRole,
    request: Repeatable<Role>,
) -> Result<Made<Role>> {
    authority::covers(call, &wish.permissions)?;
    let claim = match once::earlier(core, call, request).await? {
        Ok(claim) => claim,
        Err(reply) => return Ok(Made::Before(reply)),
    };
    let now = core.now();
    let role = Role {
        id: RoleId::new(now, &*core.entropy),
        name: wish.name,
        description: wish.description,
        permissions: wish.permissions,
        built_in: false,
        created_at: now,
        updated_at: now,
    };
    let written = core
        .store
        .write(call, async |tx| {
            if !claim.take(core, call, tx, &role, None).await? {
                return Ok(false);
            }
            if !roles::insert(tx, &role).await? {
                return Err(Reason::RoleExists.into());
            }
            let event = record::event(core, call, Action::RoleCreated).role(role.id);
            record::insert(core, tx, &event).await?;
            Ok(true)
        })
        .await?;
    if written.value {
        Ok(Made::Now(role))
    } else {
        Ok(Made::Before(claim.winner(core, call).await?))
    }
}

/// Lists roles by name.
pub async fn list(core: &Core, call: &Call, page: PageRequest) -> Result<Listing<Role>> {
    let after = match page.text_cursor(core, call)? {
        Some(name) => Some(
            name.parse()
                .map_err(|_| Error::new(Reason::PageTokenInvalid))?,
        ),
        None => None,
    };
    let mut conn = core.store.read(call).await?;
    let rows = roles::list(&mut conn, after, page.size).await?;
    page.listing(core, call, rows, |name: RoleName| {
        name.as_str().as_bytes().to_vec()
    })
}

/// Changes a role; whoever holds it gets new access tokens if its permissions
/// change.
pub async fn update(core: &Core, call: &Call, name: &RoleName, change: RoleChange) -> Result<Role> {
    let written = core
        .store
        .write(call, async |tx| {
            let mut role = changeable(tx, call, name).await?;
            if let Some(description) = change.description {
                role.description = description;
            }
            let before = role.permissions.clone();
            if let Some(permissions) = change.permissions {
                authority::covers(call, &permissions)?;
                role.permissions = permissions;
            }
            let now = core.now();
            role.updated_at = now;
            roles::update(tx, &role).await?;
            let event = record::event(core, call, Action::RoleUpdated).role(role.id);
            record::insert(core, tx, &event).await?;
            if role.permissions != before {
                for (user_id, min_epoch) in users::bump_epoch_of_role(tx, role.id, now).await? {
                    tx.announce(TrustChange::UserEpoch { user_id, min_epoch });
                }
            }
            Ok(role)
        })
        .await?;
    core.trust.reach(written.seq).await?;
    Ok(written.value)
}

/// Deletes a role that nobody holds.
pub async fn delete(core: &Core, call: &Call, name: &RoleName) -> Result<()> {
    core.store
        .write(call, async |tx| {
            let role = changeable(tx, call, name).await?;
            if roles::holders(tx, role.id).await? > 0 {
                return Err(Reason::RoleInUse.into());
            }
            roles::delete(tx, role.id).await?;
            let event = record::event(core, call, Action::RoleDeleted).role(role.id);
            record::insert(core, tx, &event).await
        })
        .await?;
    Ok(())
}

/// A role that the caller may change; locked, so that nobody is granted it
/// meanwhile.
async fn changeable(tx: &mut Conn, call: &Call, name: &RoleName) -> Result<Role> {
    let role = authority::locked_role(tx, name).await?;
    if role.built_in {
        return Err(Reason::RoleBuiltIn.into());
    }
    authority::covers(call, &role.permissions)?;
    Ok(role)
}
