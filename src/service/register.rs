//! Registration, by the account's owner.

use super::{
    Core,
    once::{self, Made, Repeatable},
    password_hash, record, throttle,
};
use crate::{
    domain::{
        Call, DisplayName, Email, Metadata, Password, PasswordHash, User, UserId, UserStatus,
        Username, audit::Action,
    },
    error::{Error, Reason, Result},
    service::password,
    store::{Conn, users},
};

/// What a new account is to be.
#[derive(Debug)]
pub struct Registration {
    /// Its address.
    pub email: Email,
    /// Its password, not judged yet.
    pub password: Password,
    /// A second name to log in with.
    pub username: Option<Username>,
    /// A name for people.
    pub display_name: DisplayName,
}

/// Creates an account that can log in at once.
pub async fn register(
    core: &Core,
    call: &Call,
    wish: Registration,
    request: Repeatable<User>,
) -> Result<Made<User>> {
    if !core.policy.self_registration {
        return Err(Error::new(Reason::PermissionDenied).with("setting", "self_registration"));
    }
    password::judge(
        core,
        &wish.password,
        "password",
        Some(&wish.email),
        wish.username.as_ref(),
        &wish.display_name,
    )?;
    let claim = match once::earlier(core, call, request).await? {
        Ok(claim) => claim,
        Err(reply) => return Ok(Made::Before(reply)),
    };
    password::refuse_breached(core, call, &wish.password, "password").await?;
    let hash = core.lanes.ticket(call)?.hash(&wish.password, call).await?;
    let user = new_user(
        core,
        wish.email,
        wish.username,
        wish.display_name,
        Metadata::default(),
    );
    let written = core
        .store
        .write(call, async |tx| {
            if !claim.take(core, call, tx, &user, Some(user.id)).await? {
                return Ok(false);
            }
            insert(core, tx, &user, Some(hash)).await?;
            let event = record::event(core, call, Action::UserRegistered);
            record::insert(core, tx, &event.about(user.id).by(user.id)).await?;
            Ok(true)
        })
        .await?;
    if written.value {
        Ok(Made::Now(user))
    } else {
        Ok(Made::Before(claim.winner(core, call).await?))
    }
}

/// An account as it is when new.
pub(super) fn new_user(
    core: &Core,
    email: Email,
    username: Option<Username>,
    display_name: DisplayName,
    metadata: Metadata,
) -> User {
    let now = core.now();
    User {
        id: UserId::new(now, &*core.entropy),
        email: Some(email),
        email_verified: false,
        username,
        display_name,
        status: UserStatus::Active,
        roles: Vec::new(),
        metadata,
        epoch: 0,
        min_session_epoch: 0,
        created_at: now,
        updated_at: now,
    }
}

/// Inserts a new account, or says which of its names is taken. What was tried
/// under its names before was at nobody's password.
pub(super) async fn insert(
    core: &Core,
    tx: &mut Conn,
    user: &User,
    password: Option<PasswordHash>,
) -> Result<()> {
    let email = user
        .email
        .clone()
        .ok_or_else(|| Error::internal("a new account has no address"))?;
    let password = password
        .map(|hash| password_hash::stored(core, user.id, hash))
        .transpose()?;
    if let Some(password) = &password {
        password_hash::hold_key(tx, password).await?;
    }
    let row = users::NewUser {
        id: user.id,
        email,
        username: user.username.clone(),
        display_name: user.display_name.clone(),
        password,
        metadata: user.metadata.clone(),
        now: user.created_at,
    };
    match users::insert(tx, &row).await? {
        users::Inserted::Done => throttle::forget(core, tx, user).await.map(drop),
        users::Inserted::EmailTaken => Err(Reason::EmailTaken.into()),
        users::Inserted::UsernameTaken => Err(Reason::UsernameTaken.into()),
    }
}
