//! Login: one answer, in one time, for every reason that depends on the
//! account.

use super::{
    Core, password_hash, record, skew, throttle,
    throttle::Attempt,
    token::{self, Subject, TokenPair},
};
use crate::{
    crypto::Verdict,
    domain::{
        Call, Identifier, Password, SessionId, UserId, UserStatus, audit::Action,
        trust::TrustChange,
    },
    error::{Reason, Result},
    store::{roles, sessions, users::Credentials},
};

/// Who wants to log in, and to what.
#[derive(Debug)]
pub struct Login {
    /// Address or username.
    pub identifier: Identifier,
    /// The password.
    pub password: Password,
    /// A name for the session in lists.
    pub device_name: String,
    /// What the tokens are to be meant for; empty means all.
    pub audiences: Vec<String>,
    /// What the device was given at an earlier login; empty if nothing.
    pub device_token: String,
}

/// What a login leads to.
#[derive(Debug)]
pub struct LoggedIn {
    /// What the session holds.
    pub tokens: TokenPair,
    /// For the device's next login: what it had, if that was good.
    pub device_token: String,
}

/// Opens a session.
///
/// The order matters. A node without keys says so before it looks at anything; the
/// lane's ticket comes next, so that a shed call costs no query and is not counted;
/// then a node whose clock is wrong says so; then the throttle looks whether the
/// device is known, as whoever comes from where many names fail may have to wait
/// unless it is; then a stored hash that does not open is our fault and no guess; then
/// the throttle may refuse itself; the connection is given back before the hash, so
/// that waiting logins hold none; the session is opened only if nothing has ended the
/// account's sessions since the password was checked, so that no login with an old
/// password outlives its change.
pub async fn login(core: &Core, call: &Call, wish: Login) -> Result<LoggedIn> {
    let audiences = token::audiences(core, wish.audiences)?;
    let keys = core.keyring.keys()?;
    let ticket = core.lanes.ticket(call)?;
    skew::refuse_when_off(core, call).await?;
    let device = keys.request.device(&wish.device_token);
    let look = throttle::look(core, call, &wish.identifier, device).await?;
    let known_device = look.by_device;
    if !known_device {
        core.stuffing.admit(call)?;
    }
    let hash = password_hash::opened(core, call, look.account.as_ref()).await?;
    let (found, attempt) = throttle::admit(core, call, look).await?;
    let user_id = found.as_ref().map(|account| account.user_id);
    // An account that may not log in is judged like one that is not there: a
    // match would cost an upgrade, and so tell that the password was right.
    let is_active = |account: &Credentials| account.status == UserStatus::Active;
    let hash = hash.filter(|_| found.as_ref().is_some_and(is_active));
    let verdict = ticket.verify(&wish.password, hash.as_ref(), call).await?;
    let (Some(account), Some(hash), Verdict::Match { upgraded }) = (found, hash, verdict) else {
        return refuse(core, call, &wish.identifier, &attempt, user_id).await;
    };
    let renewal = match account.password {
        Some(old) => {
            let new = password_hash::renewed(core, account.user_id, &old, hash, upgraded)?;
            new.map(|new| (old, new))
        }
        None => None,
    };

    let now = core.now();
    let lifetimes = core.policy.sessions.lifetimes();
    let session = sessions::NewSession {
        id: SessionId::new(now, &*core.entropy),
        user_id: account.user_id,
        epoch: account.epoch,
        key_id: keys.refresh.maker(now),
        binding: core.entropy.array(),
        device_name: wish.device_name,
        user_agent: call.user_agent.clone(),
        address: call.peer.address,
        client_id: core.client_id(call),
        now,
        expires_at: lifetimes.expiry(now, now),
        absolute_expires_at: now + lifetimes.absolute,
    };
    let keep = core.policy.sessions.max_per_user();
    let opened = core
        .store
        .write(call, async |tx| {
            let Some(epoch) = sessions::open(tx, &session).await? else {
                return Ok(None);
            };
            attempt.succeeded(tx).await?;
            for session_id in sessions::end_excess(tx, account.user_id, keep, now).await? {
                tx.announce(TrustChange::SessionRevoked { session_id });
            }
            if let Some(renewal) = &renewal {
                password_hash::replace(core, call, tx, account.user_id, renewal).await?;
            }
            let event = record::event(core, call, Action::Login);
            let event = event
                .about(account.user_id)
                .by(account.user_id)
                .session(session.id);
            record::insert(core, tx, &event).await?;
            let roles = roles::of_user(tx, account.user_id).await?;
            Ok(Some((epoch, roles)))
        })
        .await?;
    let Some((epoch, roles)) = opened.value else {
        return refuse(core, call, &wish.identifier, &attempt, user_id).await;
    };
    core.stuffing
        .count(call, &wish.identifier, Some(account.user_id));
    // Whoever comes next under this name need not wait for the rest.
    drop(attempt);
    core.trust.reach(opened.seq).await?;
    let subject = Subject {
        user_id: account.user_id,
        session_id: session.id,
        epoch,
        roles,
        client_id: session.client_id,
        authenticated_at: now,
        audiences,
    };
    let refresh = keys
        .refresh
        .mint(session.key_id, session.id, 0, &session.binding);
    let refresh = refresh.ok_or_else(token::refused)?;
    let device_token = if known_device {
        wish.device_token
    } else {
        let id = core.entropy.array();
        let epoch = account.min_session_epoch;
        keys.request.device_token(now, account.user_id, epoch, id)
    };
    Ok(LoggedIn {
        tokens: token::pair(core, &keys, &subject, refresh, session.expires_at)?,
        device_token,
    })
}

/// Counts and records the failure, however late it is, and gives the one answer.
async fn refuse(
    core: &Core,
    call: &Call,
    name: &Identifier,
    attempt: &Attempt<'_>,
    subject: Option<UserId>,
) -> Result<LoggedIn> {
    core.stuffing.count(call, name, None);
    let mut event = record::event(core, call, Action::Login).failed();
    event.subject = subject;
    record::failure(core, &call.without_deadline(), event, async |tx| {
        attempt.failed(core, tx).await?;
        Ok(true)
    })
    .await?;
    Err(Reason::LoginFailed.into())
}
