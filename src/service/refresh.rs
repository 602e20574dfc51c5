//! Refreshing: safe to retry, deadly to steal.
//!
//! A session's row knows the generation of its current token. A token of that
//! generation advances the row by one guarded update, which is taken back if the
//! row's random value says that the token was made for another. The one before it,
//! presented again within the grace, gets the same successor: it is derived,
//! not stored. An older one means that somebody kept a copy, and ends the
//! session.

use jiff::Timestamp;

use super::{
    Core, record, skew,
    token::{self, Subject, TokenPair},
};
use crate::{
    crypto::refresh::{Presented as PresentedToken, Unreadable},
    domain::{
        Call, Role, UserId,
        audit::Action,
        session::{Presented, Progress},
        trust::TrustChange,
    },
    error::{Error, Result},
    service::keyring::Keys,
    store::{
        Conn, roles,
        sessions::{self, SessionState},
    },
};

/// What became of the token, as its transaction saw it. Theft is not an error
/// there: its revocation must commit although the call fails.
enum Outcome {
    Refused,
    Stolen,
    Successor(Box<Successor>),
}

/// What the next pair is minted from. The account's epoch was read by the same
/// statement that found the session live: read later, a token could carry the
/// epoch of the very change that forbids it.
struct Successor {
    user_id: UserId,
    epoch: i64,
    generation: i64,
    key_id: i32,
    binding: [u8; 16],
    auth_time: Timestamp,
    expires_at: Timestamp,
    roles: Vec<Role>,
}

/// Trades a refresh token for the next pair.
pub async fn refresh(
    core: &Core,
    call: &Call,
    refresh_token: &str,
    audiences: Vec<String>,
) -> Result<TokenPair> {
    let audiences = token::audiences(core, audiences)?;
    skew::refuse_when_off(core, call).await?;
    let (keys, presented) = read(core, call, refresh_token).await?;
    let written = core
        .store
        .write(call, async |tx| {
            step(core, call, tx, &keys, &presented).await
        })
        .await?;
    core.trust.reach(written.seq).await?;
    let Outcome::Successor(next) = written.value else {
        return Err(token::refused());
    };
    let session_id = presented.session_id;
    let token = keys
        .refresh
        .mint(next.key_id, session_id, next.generation, &next.binding);
    let subject = Subject {
        user_id: next.user_id,
        session_id,
        epoch: next.epoch,
        roles: next.roles,
        client_id: core.client_id(call),
        authenticated_at: next.auth_time,
        audiences,
    };
    token::pair(
        core,
        &keys,
        &subject,
        // Another node made its key; this one has not heard of it yet.
        token.ok_or_else(Error::not_ready)?,
        next.expires_at,
    )
}

/// Reads a refresh token without the database: a forgery dies here. An unknown
/// key id may be one that another node has just made, so the keys are read
/// again before it is refused.
pub(super) async fn read(
    core: &Core,
    call: &Call,
    text: &str,
) -> Result<(std::sync::Arc<Keys>, PresentedToken)> {
    let keys = core.keyring.keys()?;
    match keys.refresh.read(text) {
        Ok(presented) => Ok((keys, presented)),
        Err(Unreadable::Forged) => Err(token::refused()),
        Err(Unreadable::UnknownKey(_)) => {
            let keys = core.keyring.look_again(core, call).await?;
            let presented = keys.refresh.read(text).map_err(|_| token::refused())?;
            Ok((keys, presented))
        }
    }
}

async fn step(
    core: &Core,
    call: &Call,
    tx: &mut Conn,
    keys: &Keys,
    presented: &PresentedToken,
) -> Result<Outcome> {
    let id = presented.session_id;
    let now = core.now();
    let lifetimes = core.policy.sessions.lifetimes();
    let newest = keys.refresh.maker(now);
    let idle_until = now + lifetimes.idle;
    let advanced = sessions::advance(tx, id, presented.generation, newest, now, idle_until).await?;
    if let Some(row) = advanced {
        if !presented.bound_to(&keys.refresh, &row.binding) {
            // An error, so that nothing of it stays.
            return Err(token::refused());
        }
        let roles = if row.has_roles {
            roles::of_user(tx, row.user_id).await?
        } else {
            Vec::new()
        };
        return Ok(Outcome::Successor(Box::new(Successor {
            user_id: row.user_id,
            epoch: row.user_epoch,
            generation: row.generation,
            key_id: row.key_id,
            binding: row.binding,
            auth_time: row.auth_time,
            expires_at: row.expires_at,
            roles,
        })));
    }
    // Not the current one, or not live.
    let Some(state) = bound(tx, keys, presented).await? else {
        return Ok(Outcome::Refused);
    };
    if !state.is_live(now) {
        return Ok(Outcome::Refused);
    }
    let progress = Progress {
        generation: state.generation,
        rotated_at: state.rotated_at,
    };
    let outage = core.store.last_outage();
    match progress.judge(presented.generation, now, outage, lifetimes.grace) {
        // The guarded update has just refused it: the session is ending.
        Presented::Current => Ok(Outcome::Refused),
        Presented::Replayed => {
            let event = record::event(core, call, Action::RefreshReplayed);
            record::insert(core, tx, &event.about(state.user_id).session(id)).await?;
            let roles = roles::of_user(tx, state.user_id).await?;
            Ok(Outcome::Successor(Box::new(Successor {
                user_id: state.user_id,
                epoch: state.user_epoch,
                generation: state.generation,
                key_id: state.key_id,
                binding: state.binding,
                auth_time: state.auth_time,
                expires_at: state.expires_at,
                roles,
            })))
        }
        Presented::Stolen => {
            // Only on the step from live to dead.
            if sessions::revoke(tx, id, now).await? {
                let event = record::event(core, call, Action::RefreshStolen).failed();
                record::insert(core, tx, &event.about(state.user_id).session(id)).await?;
                tx.announce(TrustChange::SessionRevoked { session_id: id });
                tracing::warn!(session_id = %id, "a stale refresh token was presented; the session is ended");
            }
            Ok(Outcome::Stolen)
        }
    }
}

/// The session's row, if the token is bound to it by the row's random value.
async fn bound(
    tx: &mut Conn,
    keys: &Keys,
    presented: &PresentedToken,
) -> Result<Option<SessionState>> {
    let state = sessions::state(tx, presented.session_id).await?;
    Ok(state.filter(|state| presented.bound_to(&keys.refresh, &state.binding)))
}
