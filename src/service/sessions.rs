//! Managing sessions: one's own, or another's with permission.

use super::{
    Core, authority,
    page::{Listing, PageRequest, moment},
    record,
};
use crate::{
    domain::{Call, Permission, Session, SessionId, UserId, audit::Action, trust::TrustChange},
    error::{Error, Reason, Result},
    store::{sessions, users},
};

/// Lists the live sessions of an account, newest first.
pub async fn list(
    core: &Core,
    call: &Call,
    user_id: Option<UserId>,
    page: PageRequest,
) -> Result<Listing<Session>> {
    let user_id = authority::named_or_own(call, user_id)?;
    authority::own_or(call, user_id, Permission::SessionsRead)?;
    let after = match page.cursor(core, call)? {
        Some(bytes) => Some(moment::read(bytes).map(|(at, id)| (at, SessionId(id)))?),
        None => None,
    };
    let mut conn = core.store.read(call).await?;
    let rows = sessions::list(&mut conn, user_id, core.now(), after, page.size).await?;
    drop(conn);
    if !authority::is_own(call, user_id) {
        record::reading(core, call, Action::SessionsListed, Some(user_id)).await?;
    }
    page.listing(core, call, rows, |(at, id)| moment::write(at, id.0))
}

/// Ends one session. Another's is not found by a caller who may not end it.
pub async fn revoke(core: &Core, call: &Call, session_id: SessionId) -> Result<()> {
    let written = core
        .store
        .write(call, async |tx| {
            let now = core.now();
            let not_found = || Error::new(Reason::SessionNotFound);
            let session = sessions::get(tx, session_id, now)
                .await?
                .ok_or_else(not_found)?;
            if !authority::is_own(call, session.user_id) {
                authority::require(call, Permission::SessionsRevoke).map_err(|_| not_found())?;
                authority::outranked(tx, call, session.user_id).await?;
            }
            if !sessions::revoke(tx, session_id, now).await? {
                return Err(not_found());
            }
            let event = record::event(core, call, Action::SessionRevoked);
            record::insert(core, tx, &event.about(session.user_id).session(session_id)).await?;
            tx.announce(TrustChange::SessionRevoked { session_id });
            Ok(())
        })
        .await?;
    core.trust.reach(written.seq).await
}

/// Ends all sessions of an account, or all but the one of this call. Returns
/// how many there were.
pub async fn revoke_all(
    core: &Core,
    call: &Call,
    user_id: Option<UserId>,
    keep_current: bool,
) -> Result<usize> {
    let user_id = authority::named_or_own(call, user_id)?;
    authority::own_or(call, user_id, Permission::SessionsRevoke)?;
    let keep = if keep_current {
        call.session_id()
    } else {
        None
    };
    let written = core
        .store
        .write(call, async |tx| {
            if !authority::is_own(call, user_id) {
                users::get(tx, user_id)
                    .await?
                    .ok_or_else(|| Error::new(Reason::UserNotFound))?;
                authority::outranked(tx, call, user_id).await?;
            }
            users::lock(tx, user_id).await?;
            let revoked = sessions::revoke_all(tx, user_id, keep, core.now()).await?;
            for session_id in &revoked {
                tx.announce(TrustChange::SessionRevoked {
                    session_id: *session_id,
                });
            }
            let event = record::event(core, call, Action::SessionsRevoked);
            record::insert(core, tx, &event.about(user_id)).await?;
            Ok(revoked.len())
        })
        .await?;
    core.trust.reach(written.seq).await?;
    Ok(written.value)
}
