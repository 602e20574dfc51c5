//! Who may act upon whom. The access table has checked the permission that an
//! RPC always needs; here is what depends on the object.

use std::collections::BTreeSet;

use countersign_verifier::Subject;
use uuid::Uuid;

use crate::{
    crypto::request,
    domain::{Call, Permission, PermissionName, Role, RoleName, UserId, call},
    error::{Error, Reason, Result},
    store::{Conn, roles},
};

/// The user who calls; the access table lets no other call come here.
pub(super) fn caller(call: &Call) -> Result<UserId> {
    call.user_id()
        .ok_or_else(|| Reason::CredentialsMissing.into())
}

/// The account that a request names, else the caller's.
pub(super) fn named_or_own(call: &Call, user_id: Option<UserId>) -> Result<UserId> {
    user_id.or(call.user_id()).ok_or_else(|| {
        let reason = "must name an account: the caller has none of its own";
        Error::invalid("user_id", reason)
    })
}

/// Tells callers apart, for what belongs to one of them. None for anonymous
/// callers and for the process itself.
pub(super) fn caller_id(call: &Call) -> Option<Uuid> {
    match &call.caller.as_ref()?.subject {
        Subject::User(id) => Some(*id),
        Subject::Workload(name) => Some(request::workload_id(name)),
    }
}

/// Whether the account is the caller's own: the one that it has logged in to. An
/// API key acts for an account, but it was given what its scopes say and nothing
/// besides: what people may do because an account is their own, it may not.
pub(super) fn is_own(call: &Call, account: UserId) -> bool {
    call.session_id().is_some() && call.user_id() == Some(account)
}

/// Fails unless the caller has logged in, or is the process itself.
pub(super) fn in_person(call: &Call) -> Result<()> {
    match call.caller.as_deref() {
        Some(caller) if call.session_id().is_none() => {
            Err(Error::kind_not_allowed(call::kind(caller)))
        }
        _ => Ok(()),
    }
}

/// Fails unless the caller holds the permission. The process itself (the
/// command line) holds all.
pub(super) fn require(call: &Call, permission: Permission) -> Result<()> {
    if holds(call, permission.name()) {
        Ok(())
    } else {
        Err(Error::permission_denied(permission.name()))
    }
}

/// Fails unless the object is the caller's own or the caller holds the
/// permission.
pub(super) fn own_or(call: &Call, owner: UserId, permission: Permission) -> Result<()> {
    if is_own(call, owner) {
        Ok(())
    } else {
        require(call, permission)
    }
}

/// Fails if the account acted upon holds permissions of Countersign that the
/// caller lacks: whoever may set passwords must not so become an admin.
pub(super) async fn outranked(tx: &mut Conn, call: &Call, target: UserId) -> Result<()> {
    for role in roles::of_user(tx, target).await? {
        covers(call, &role.permissions)?;
    }
    Ok(())
}

/// Fails if the set holds permissions of Countersign that the caller lacks.
/// Those of other services are labels that it hands out without judging them.
pub(super) fn covers(call: &Call, permissions: &BTreeSet<PermissionName>) -> Result<()> {
    let lacking = |p: &&PermissionName| p.is_own() && !holds(call, p.as_str());
    if permissions.iter().any(|p| lacking(&p)) {
        return Err(Reason::TargetOutranksCaller.into());
    }
    Ok(())
}

/// The role as it is once its row is ours until the transaction ends.
pub(super) async fn locked_role(tx: &mut Conn, name: &RoleName) -> Result<Role> {
    let not_found = || Error::new(Reason::RoleNotFound);
    let found = roles::get(tx, name).await?.ok_or_else(not_found)?;
    roles::lock(tx, found.id).await?;
    roles::get(tx, name).await?.ok_or_else(not_found)
}

fn holds(call: &Call, permission: &str) -> bool {
    call.caller
        .as_ref()
        .is_none_or(|caller| caller.has_scope(permission))
}

/// Runs a change that may take the last active admin away, and fails if it
/// did. The lock on the role's row comes first: without it two admins who
/// demote each other would each still see the other (READ COMMITTED).
pub(super) async fn keeping_an_admin<R>(
    tx: &mut Conn,
    change: impl AsyncFnOnce(&mut Conn) -> Result<R>,
) -> Result<R> {
    let admin = locked_role(tx, &RoleName::admin()).await?;
    let before = roles::active_holders(tx, admin.id).await?;
    let done = change(tx).await?;
    let after = roles::active_holders(tx, admin.id).await?;
    // A change that touches no admin is none of our business, even where
    // there is none yet.
    if after == 0 && before > 0 {
        return Err(Reason::LastAdmin.into());
    }
    Ok(done)
}
