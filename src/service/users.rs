//! Managing accounts.

use std::{collections::BTreeSet, slice};

use super::{
    Core, authority,
    once::{self, Made, Repeatable},
    page::{Listing, PageRequest, moment},
    password, record, register, throttle, trust,
};
use crate::{
    domain::{
        Call, DisplayName, Email, Identifier, Metadata, Password, Permission, Role, RoleName, User,
        UserId, UserStatus, Username, Violations,
        audit::Action,
        trust::TrustChange,
        user::{UserChange, UserFilter},
    },
    error::{Error, Reason, Result},
    store::{Conn, Written, roles, sessions, users},
};

/// What an account that is created for another is to be.
#[derive(Debug)]
pub struct NewUser {
    /// Its address.
    pub email: Email,
    /// Without one it cannot log in yet.
    pub password: Option<Password>,
    /// A second name to log in with.
    pub username: Option<Username>,
    /// A name for people.
    pub display_name: DisplayName,
    /// Roles to grant.
    pub roles: BTreeSet<RoleName>,
    /// Free labels.
    pub metadata: Metadata,
}

/// Creates an account for another.
pub async fn create(
    core: &Core,
    call: &Call,
    wish: NewUser,
    request: Repeatable<User>,
) -> Result<Made<User>> {
    if !wish.roles.is_empty() {
        authority::require(call, Permission::RolesGrant)?;
    }
    if wish.roles.len() > Role::MOST_PER_USER {
        return Err(Reason::TooManyRoles.into());
    }
    if let Some(new) = &wish.password {
        authority::in_person(call)?;
        authority::require(call, Permission::UsersSetPassword)?;
        let (email, username) = (Some(&wish.email), wish.username.as_ref());
        let names = &wish.display_name;
        password::judge(core, new, "password", email, username, names)?;
    }
    let claim = match once::earlier(core, call, request).await? {
        Ok(claim) => claim,
        Err(reply) => return Ok(Made::Before(reply)),
    };
    let hash = match &wish.password {
        Some(new) => {
            password::refuse_breached(core, call, new, "password").await?;
            Some(core.lanes.ticket(call)?.hash(new, call).await?)
        }
        None => None,
    };
    let mut user = register::new_user(
        core,
        wish.email,
        wish.username,
        wish.display_name,
        wish.metadata,
    );
    user.roles = wish.roles.into_iter().collect();
    let written = core
        .store
        .write(call, async |tx| {
            if !claim.take(core, call, tx, &user, Some(user.id)).await? {
                return Ok(false);
            }
            register::insert(core, tx, &user, hash).await?;
            let event = record::event(core, call, Action::UserCreated);
            record::insert(core, tx, &event.about(user.id)).await?;
            for name in &user.roles {
                let role = grantable(tx, call, name).await?;
                roles::grant(tx, user.id, role.id).await?;
                let event = record::event(core, call, Action::RoleGranted);
                record::insert(core, tx, &event.about(user.id).role(role.id)).await?;
            }
            Ok(true)
        })
        .await?;
    if written.value {
        Ok(Made::Now(user))
    } else {
        Ok(Made::Before(claim.winner(core, call).await?))
    }
}

/// Returns one account; one's own, or another's with permission.
pub async fn get(core: &Core, call: &Call, user_id: UserId) -> Result<User> {
    authority::own_or(call, user_id, Permission::UsersRead)?;
    let user = users::get(&mut core.store.read(call).await?, user_id).await?;
    let user = user.ok_or(Reason::UserNotFound)?;
    shown(core, call, slice::from_ref(&user)).await?;
    Ok(user)
}

/// Records whose accounts are about to be shown.
async fn shown(core: &Core, call: &Call, users: &[User]) -> Result<()> {
    let others = others(call, users).map(Some);
    record::reading_each(core, call, Action::UserRead, others).await
}

/// Those that are not the caller's own.
fn others(call: &Call, users: &[User]) -> impl Iterator<Item = UserId> {
    let ids = users.iter().map(|user| user.id);
    ids.filter(|id| !authority::is_own(call, *id))
}

/// Returns the account that the caller has logged in to, if it has.
pub async fn own(core: &Core, call: &Call) -> Result<Option<User>> {
    match call.user_id().filter(|id| authority::is_own(call, *id)) {
        Some(user_id) => get(core, call, user_id).await.map(Some),
        None => Ok(None),
    }
}

/// Returns accounts in the order asked for, and the ids that name none.
pub async fn get_batch(
    core: &Core,
    call: &Call,
    ids: &[UserId],
) -> Result<(Vec<User>, Vec<UserId>)> {
    let found = users::get_many(&mut core.store.read(call).await?, ids).await?;
    shown(core, call, &found).await?;
    let by_id: std::collections::HashMap<_, _> = found.into_iter().map(|u| (u.id, u)).collect();
    let missing = ids
        .iter()
        .copied()
        .filter(|id| !by_id.contains_key(id))
        .collect();
    Ok((
        ids.iter().filter_map(|id| by_id.get(id).cloned()).collect(),
        missing,
    ))
}

/// Lists accounts, oldest first.
pub async fn list(
    core: &Core,
    call: &Call,
    filter: &UserFilter,
    page: PageRequest,
) -> Result<Listing<User>> {
    let after = match page.cursor(core, call)? {
        Some(bytes) => Some(moment::read(bytes).map(|(at, id)| (at, UserId(id)))?),
        None => None,
    };
    let rows = users::list(&mut core.store.read(call).await?, filter, after, page.size).await?;
    // Whoever goes through all of them leaves one record and not one for each.
    if others(call, &rows.items).nth(1).is_some() {
        record::reading(core, call, Action::UsersListed, None).await?;
    } else {
        shown(core, call, &rows.items).await?;
    }
    page.listing(core, call, rows, |(at, id)| moment::write(at, id.0))
}

/// Changes an account's own fields.
pub async fn update(core: &Core, call: &Call, user_id: UserId, change: UserChange) -> Result<User> {
    let personal = authority::is_own(call, user_id) && change.is_personal();
    if !personal {
        authority::require(call, Permission::UsersWrite)?;
    }
    let written = core
        .store
        .write(call, async |tx| {
            users::lock(tx, user_id).await?;
            let mut user = existing(tx, user_id).await?;
            if !personal {
                authority::outranked(tx, call, user_id).await?;
            }
            let before = user.clone();
            apply(&mut user, change)?;
            user.updated_at = core.now();
            let (new_email, new_username) =
                (user.email != before.email, user.username != before.username);
            save(tx, &user, new_email, new_username).await?;
            if new_email || new_username {
                throttle::carry(core, tx, &before, &user).await?;
            }
            let event = record::event(core, call, Action::UserUpdated);
            record::insert(core, tx, &event.about(user_id)).await?;
            Ok(user)
        })
        .await?;
    Ok(written.value)
}

/// Writes the account's own fields; the names that are new are looked up
/// first, so that the answer can say which of them is taken.
async fn save(tx: &mut Conn, user: &User, new_email: bool, new_username: bool) -> Result<()> {
    let Some(email) = &user.email else {
        return Err(Reason::UserNotFound.into());
    };
    if new_email
        && users::credentials(tx, &Identifier::Email(email.clone()))
            .await?
            .is_some()
    {
        return Err(Reason::EmailTaken.into());
    }
    if let (true, Some(name)) = (new_username, &user.username)
        && users::credentials(tx, &Identifier::Username(name.clone()))
            .await?
            .is_some()
    {
        return Err(Reason::UsernameTaken.into());
    }
    let columns = users::UserColumns {
        email: email.clone(),
        email_verified: user.email_verified,
        username: user.username.clone(),
        display_name: user.display_name.clone(),
        metadata: user.metadata.clone(),
    };
    match users::update(tx, user.id, &columns, user.updated_at).await? {
        users::Saved::Done => Ok(()),
        users::Saved::Gone => Err(Reason::UserNotFound.into()),
        // Taken since we looked. The transaction is over, so which of two it was
        // cannot be looked up; a repeated call will say.
        users::Saved::Conflict if new_email => Err(Reason::EmailTaken.into()),
        users::Saved::Conflict => Err(Reason::UsernameTaken.into()),
    }
}

fn apply(user: &mut User, change: UserChange) -> Result<()> {
    let UserChange {
        email,
        username,
        display_name,
        metadata,
        labels,
    } = change;
    if let Some(email) = email
        && user.email.as_ref() != Some(&email)
    {
        user.email = Some(email);
        user.email_verified = false;
    }
    if let Some(username) = username {
        user.username = username;
    }
    if let Some(display_name) = display_name {
        user.display_name = display_name;
    }
    if let Some(metadata) = metadata {
        user.metadata = metadata;
    }
    let mut violations = Violations::default();
    for (key, value) in labels {
        match value {
            Some(value) => _ = violations.check("user.metadata", user.metadata.set(key, value)),
            None => user.metadata.remove(&key),
        }
    }
    Ok(violations.finish()?)
}

/// Erases an account's personal data, ends its sessions and keeps a tombstone.
pub async fn delete(core: &Core, call: &Call, user_id: UserId) -> Result<()> {
    let written = core
        .store
        .write(call, async |tx| {
            authority::keeping_an_admin(tx, async |tx| {
                users::lock(tx, user_id).await?;
                existing(tx, user_id).await?;
                authority::outranked(tx, call, user_id).await?;
                let now = core.now();
                let epochs = users::erase(tx, user_id, now)
                    .await?
                    .ok_or(Reason::UserNotFound)?;
                sessions::revoke_all(tx, user_id, None, now).await?;
                let event = record::event(core, call, Action::UserDeleted);
                record::insert(core, tx, &event.about(user_id)).await?;
                tx.announce(TrustChange::UserEpoch {
                    user_id,
                    min_epoch: epochs.epoch,
                });
                Ok(())
            })
            .await
        })
        .await?;
    core.trust.reach(written.seq).await
}

/// Ends all sessions of an account and refuses its logins.
pub async fn disable(core: &Core, call: &Call, user_id: UserId) -> Result<User> {
    let written = core
        .store
        .write(call, async |tx| {
            authority::keeping_an_admin(tx, async |tx| {
                users::lock(tx, user_id).await?;
                existing(tx, user_id).await?;
                authority::outranked(tx, call, user_id).await?;
                let now = core.now();
                let (from, to) = (UserStatus::Active, UserStatus::Disabled);
                if let Some(epochs) = users::set_status(tx, user_id, from, to, now).await? {
                    sessions::revoke_all(tx, user_id, None, now).await?;
                    let event = record::event(core, call, Action::UserDisabled);
                    record::insert(core, tx, &event.about(user_id)).await?;
                    tx.announce(TrustChange::UserEpoch {
                        user_id,
                        min_epoch: epochs.epoch,
                    });
                }
                existing(tx, user_id).await
            })
            .await
        })
        .await?;
    if written.seq.is_none() {
        // It was disabled before.
        trust::reach_head(core, call).await?;
    }
    answer(core, call, written).await
}

/// Answers a change of another's account with the account. Where nothing was left to
/// change and so nothing was recorded, that is a read like any other.
async fn answer(core: &Core, call: &Call, written: Written<User>) -> Result<User> {
    if written.seq.is_none() {
        shown(core, call, slice::from_ref(&written.value)).await?;
    }
    core.trust.reach(written.seq).await?;
    Ok(written.value)
}

/// Lets a disabled account log in again, and its API keys with it.
pub async fn enable(core: &Core, call: &Call, user_id: UserId) -> Result<User> {
    let written = core
        .store
        .write(call, async |tx| {
            users::lock(tx, user_id).await?;
            existing(tx, user_id).await?;
            authority::outranked(tx, call, user_id).await?;
            let (from, to) = (UserStatus::Disabled, UserStatus::Active);
            if let Some(epochs) = users::set_status(tx, user_id, from, to, core.now()).await? {
                let event = record::event(core, call, Action::UserEnabled);
                record::insert(core, tx, &event.about(user_id)).await?;
                // No epoch has changed, but the account's API keys are good again.
                tx.announce(TrustChange::UserEpoch {
                    user_id,
                    min_epoch: epochs.epoch,
                });
            }
            existing(tx, user_id).await
        })
        .await?;
    answer(core, call, written).await
}

/// Forgets the failed logins of an account, so that it may log in again at once.
pub async fn unlock(core: &Core, call: &Call, user_id: UserId) -> Result<User> {
    let written = core
        .store
        .write(call, async |tx| {
            users::lock(tx, user_id).await?;
            let user = existing(tx, user_id).await?;
            authority::outranked(tx, call, user_id).await?;
            let forgotten = throttle::forget(core, tx, &user).await?;
            if forgotten {
                let event = record::event(core, call, Action::UserUnlocked);
                record::insert(core, tx, &event.about(user_id)).await?;
            }
            Ok((user, forgotten))
        })
        .await?;
    let (user, forgotten) = written.value;
    if !forgotten {
        shown(core, call, slice::from_ref(&user)).await?;
    }
    Ok(user)
}

/// Gives a role to an account.
pub async fn grant(core: &Core, call: &Call, user_id: UserId, name: &RoleName) -> Result<User> {
    let written = core
        .store
        .write(call, async |tx| {
            let role = grantable(tx, call, name).await?;
            users::lock(tx, user_id).await?;
            let user = existing(tx, user_id).await?;
            authority::outranked(tx, call, user_id).await?;
            if user.roles.contains(name) {
                return Ok(user);
            }
            if user.roles.len() >= Role::MOST_PER_USER {
                return Err(Reason::TooManyRoles.into());
            }
            roles::grant(tx, user_id, role.id).await?;
            role_changed(core, call, tx, user_id, &role, Action::RoleGranted).await
        })
        .await?;
    answer(core, call, written).await
}

/// Takes a role from an account.
pub async fn revoke(core: &Core, call: &Call, user_id: UserId, name: &RoleName) -> Result<User> {
    let written = core
        .store
        .write(call, async |tx| {
            if name.is_admin() {
                authority::keeping_an_admin(tx, async |tx| {
                    take(core, call, tx, user_id, name).await
                })
                .await
            } else {
                take(core, call, tx, user_id, name).await
            }
        })
        .await?;
    answer(core, call, written).await
}

async fn take(
    core: &Core,
    call: &Call,
    tx: &mut Conn,
    user_id: UserId,
    name: &RoleName,
) -> Result<User> {
    let role = grantable(tx, call, name).await?;
    users::lock(tx, user_id).await?;
    let user = existing(tx, user_id).await?;
    authority::outranked(tx, call, user_id).await?;
    if !roles::revoke(tx, user_id, role.id).await? {
        return Ok(user);
    }
    role_changed(core, call, tx, user_id, &role, Action::RoleRevoked).await
}

/// An account that is not a tombstone.
async fn existing(tx: &mut Conn, user_id: UserId) -> Result<User> {
    let user = users::get(tx, user_id).await?;
    user.filter(|user| user.status != UserStatus::Deleted)
        .ok_or_else(|| Error::new(Reason::UserNotFound))
}

/// A role that the caller may hand out or take away; locked, so that it is not
/// deleted or changed meanwhile.
async fn grantable(tx: &mut Conn, call: &Call, name: &RoleName) -> Result<Role> {
    let role = authority::locked_role(tx, name).await?;
    authority::covers(call, &role.permissions)?;
    Ok(role)
}

/// Access tokens die, sessions live and refresh into the new roles.
async fn role_changed(
    core: &Core,
    call: &Call,
    tx: &mut Conn,
    user_id: UserId,
    role: &Role,
    action: Action,
) -> Result<User> {
    let epoch = users::bump_epoch(tx, user_id, core.now())
        .await?
        .ok_or(Reason::UserNotFound)?;
    let event = record::event(core, call, action)
        .about(user_id)
        .role(role.id);
    record::insert(core, tx, &event).await?;
    tx.announce(TrustChange::UserEpoch {
        user_id,
        min_epoch: epoch,
    });
    existing(tx, user_id).await
}
