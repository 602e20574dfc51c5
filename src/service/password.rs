//! Passwords: what a new one must be, and replacing one.

use serde::{Deserialize, Serialize};

use super::{
    Core, authority, password_hash, record, skew, throttle,
    token::{self, Subject, TokenPair},
};
use crate::{
    crypto::Verdict,
    domain::{
        Call, DisplayName, Email, Identifier, Invalid, Password, User, UserId, UserStatus,
        Username, Violations, audit::Action, blocklist, trust::TrustChange,
    },
    error::{Error, Reason, Result},
    store::{roles, sessions, users},
};

/// The most words; each costs every new password a look.
const MOST_WORDS: usize = 1_000;

/// What new passwords must not be made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Words that people here would try first.
    pub context_words: Vec<String>,
    /// Whether the hashes are sealed under a key from outside of the database.
    pub seal_hashes: bool,
}

impl Config {
    /// Names every setting that makes no sense, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        if self.context_words.len() > MOST_WORDS {
            wrong.push(format!(
                "passwords.context_words must be at most {MOST_WORDS}"
            ));
        }
        for word in self
            .context_words
            .iter()
            .filter(|word| !blocklist::has_word(word))
        {
            wrong.push(format!(
                "passwords.context_words: {word:?} has no 3 letters in a row, and would not count"
            ));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

/// Judges a new password (NIST SP 800-63B-4, section 3.1.1.2): long enough and
/// not a common one; no rules of composition.
pub(super) fn judge(
    core: &Core,
    password: &Password,
    field: &'static str,
    email: Option<&Email>,
    username: Option<&Username>,
    display_name: &DisplayName,
) -> Result<()> {
    let mut violations = Violations::default();
    if password.length() < Password::FEWEST {
        violations.add(field, Invalid::new("must be at least 15 characters"));
    }
    let mut names = Vec::new();
    names.extend(email.map(Email::as_str));
    names.extend(username.map(Username::as_str));
    names.push(display_name.as_str());
    let words = &core.policy.passwords.context_words;
    names.extend(words.iter().map(String::as_str));
    if let Err(reason) = blocklist::check(password, &names) {
        violations.add(field, reason);
    }
    Ok(violations.finish()?)
}

/// Refuses a new password that is known from a breach. The last of the checks, as
/// it is the dearest, and before anything is held: no connection, no ticket.
pub(super) async fn refuse_breached(
    core: &Core,
    call: &Call,
    password: &Password,
    field: &'static str,
) -> Result<()> {
    if let Some(list) = &core.breach_list
        && list.contains(password, call).await?
    {
        let mut violations = Violations::default();
        violations.add(
            field,
            Invalid::coded(
                "PASSWORD_BREACHED",
                "must not be a password that is known from a breach; use another one everywhere",
            ),
        );
        return Err(violations.into());
    }
    Ok(())
}

fn judge_for(core: &Core, user: &User, new: &Password, field: &'static str) -> Result<()> {
    let (email, username) = (user.email.as_ref(), user.username.as_ref());
    judge(core, new, field, email, username, &user.display_name)
}

/// Replaces the caller's own password. Its other sessions end; this one goes
/// on with fresh tokens, and those it had are no longer good.
pub async fn change(
    core: &Core,
    call: &Call,
    current: &Password,
    new: &Password,
) -> Result<TokenPair> {
    let user_id = authority::caller(call)?;
    let session_id = call.session_id().ok_or(Reason::CredentialsMissing)?;
    let keys = core.keyring.keys()?;
    skew::refuse_when_off(core, call).await?;
    let user = {
        let mut conn = core.store.read(call).await?;
        users::get(&mut conn, user_id).await?
    };
    // A deleted account has no address.
    let Some((email, user)) = user.and_then(|user| Some((user.email.clone()?, user))) else {
        return Err(Reason::TokenInvalid.into());
    };
    judge_for(core, &user, new, "new_password")?;
    refuse_breached(core, call, new, "new_password").await?;
    // Both at once: a call that is shed is not counted as a guess.
    let (checking, hashing) = (core.lanes.ticket(call)?, core.lanes.ticket(call)?);
    let name = Identifier::Email(email);
    let look = throttle::look_within(core, call, user_id, &name).await?;
    let stored = password_hash::opened(core, call, look.account.as_ref()).await?;
    let (account, attempt) = throttle::admit(core, call, look).await?;
    let Some(account) = account.filter(|account| account.user_id == user_id) else {
        return Err(Reason::TokenInvalid.into());
    };
    let verdict = checking.verify(current, stored.as_ref(), call).await?;
    if matches!(verdict, Verdict::Mismatch) {
        let event = record::event(core, call, Action::PasswordChanged)
            .failed()
            .about(user_id);
        record::failure(core, &call.without_deadline(), event, async |tx| {
            attempt.failed(core, tx).await?;
            Ok(true)
        })
        .await?;
        return Err(Reason::CurrentPasswordIncorrect.into());
    }
    let hash = hashing.hash(new, call).await?;
    let password = password_hash::stored(core, user_id, hash)?;

    let now = core.now();
    let key_id = keys.refresh.maker(now);
    let binding = core.entropy.array();
    let written = core
        .store
        .write(call, async |tx| {
            // The password that was checked must still be the one in force, however
            // its hash is stored by now, and the session alive: a disabled account
            // must not revive it.
            users::lock(tx, user_id).await?;
            let still = users::credentials_by_id(tx, user_id).await?;
            let session = sessions::state(tx, session_id).await?;
            if still.is_none_or(|now| now.min_session_epoch != account.min_session_epoch)
                || session.is_none_or(|s| s.user_id != user_id || !s.is_live(now))
            {
                return Err(Reason::TokenInvalid.into());
            }
            password_hash::hold_key(tx, &password).await?;
            let epochs = users::set_password(tx, user_id, &password, now).await?;
            let epochs = epochs.ok_or(Reason::TokenInvalid)?;
            throttle::forget(core, tx, &user).await?;
            // A new binding, so that no refresh token of before fits.
            let renewal = sessions::Renewal {
                epoch: epochs.epoch,
                key_id,
                binding,
                now,
            };
            sessions::renew(tx, session_id, &renewal)
                .await?
                .ok_or(Reason::TokenInvalid)?;
            sessions::revoke_all(tx, user_id, Some(session_id), now).await?;
            let event = record::event(core, call, Action::PasswordChanged);
            record::insert(core, tx, &event.about(user_id)).await?;
            tx.announce(TrustChange::UserEpoch {
                user_id,
                min_epoch: epochs.epoch,
            });
            let state = sessions::state(tx, session_id)
                .await?
                .ok_or(Reason::TokenInvalid)?;
            Ok((state, roles::of_user(tx, user_id).await?))
        })
        .await?;
    core.trust.reach(written.seq).await?;
    let (state, roles) = written.value;
    let refresh = keys
        .refresh
        .mint(key_id, session_id, state.generation, &binding);
    let subject = Subject {
        user_id,
        session_id,
        epoch: state.user_epoch,
        roles,
        client_id: core.client_id(call),
        authenticated_at: state.auth_time,
        audiences: core.policy.audiences.clone(),
    };
    token::pair(
        core,
        &keys,
        &subject,
        refresh.ok_or_else(token::refused)?,
        state.expires_at,
    )
}

/// Sets another's password and ends all its sessions. What was guessed at the
/// one before is forgotten.
pub async fn set(core: &Core, call: &Call, user_id: UserId, new: &Password) -> Result<()> {
    let user = {
        let mut conn = core.store.read(call).await?;
        authority::outranked(&mut conn, call, user_id).await?;
        users::get(&mut conn, user_id)
            .await?
            .ok_or(Reason::UserNotFound)?
    };
    // Again in the transaction; here so that a refusal costs no hash.
    if user.status == UserStatus::Deleted {
        return Err(Reason::UserNotFound.into());
    }
    judge_for(core, &user, new, "password")?;
    refuse_breached(core, call, new, "password").await?;
    let hash = core.lanes.ticket(call)?.hash(new, call).await?;
    let password = password_hash::stored(core, user_id, hash)?;
    let written = core
        .store
        .write(call, async |tx| {
            authority::outranked(tx, call, user_id).await?;
            let now = core.now();
            password_hash::hold_key(tx, &password).await?;
            let epochs = users::set_password(tx, user_id, &password, now).await?;
            let epochs = epochs.ok_or(Error::new(Reason::UserNotFound))?;
            throttle::forget(core, tx, &user).await?;
            sessions::revoke_all(tx, user_id, None, now).await?;
            let event = record::event(core, call, Action::PasswordSet);
            record::insert(core, tx, &event.about(user_id)).await?;
            tx.announce(TrustChange::UserEpoch {
                user_id,
                min_epoch: epochs.epoch,
            });
            Ok(())
        })
        .await?;
    core.trust.reach(written.seq).await
}
