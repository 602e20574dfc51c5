//! API keys: made by people for their programs, one's own or another's with
//! permission.
//!
//! The secret leaves in the answer that made it and is kept nowhere. What a key
//! may do is never more than its owner may: a scope beyond that is refused when
//! the key is made, and what the owner loses later, the key loses with it.

use std::{collections::BTreeSet, fmt};

use countersign_verifier::{ApiKeyHash, api_key_text};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Core, authority,
    once::{self, Made, Repeatable},
    page::{Listing, PageRequest, moment},
    record, token,
};
use crate::{
    domain::{
        ApiKey, ApiKeyId, ApiKeyName, Call, Invalid, Permission, PermissionName, UserId,
        UserStatus, Violations, api_key::Overlap, audit::Action, trust::TrustChange,
    },
    error::{Error, Reason, Result},
    store::{Conn, api_keys, roles, users},
};

/// Settings of API keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The most live keys of an account.
    pub max_per_user: u32,
}

/// What a new key is to be.
#[derive(Debug)]
pub struct NewApiKey {
    /// Whom it acts for; none: the caller.
    pub owner: Option<UserId>,
    /// What it is called.
    pub name: ApiKeyName,
    /// What it may do, in the order asked for.
    pub scopes: Vec<PermissionName>,
    /// Whom it is meant for; empty means all.
    pub audiences: Vec<String>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

/// The text of an API key; mute in logs, wiped when dropped.
pub struct Secret(Zeroizing<String>);

impl Default for Config {
    fn default() -> Self {
        Self { max_per_user: 50 }
    }
}

impl Config {
    /// What is wrong with the settings, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        if self.max_per_user == 0 {
            return Err(vec!["api_keys.max_per_user must be at least 1".to_owned()]);
        }
        Ok(())
    }
}

impl Secret {
    fn new(core: &Core) -> Result<(Self, ApiKeyHash)> {
        let random = Zeroizing::new(core.entropy.array());
        let text = Zeroizing::new(api_key_text(&random));
        let hash = ApiKeyHash::of(&text);
        let hash = hash.ok_or_else(|| Error::internal("a new API key has not its own form"))?;
        Ok((Self(text), hash))
    }

    /// The text, for the wire only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Creates a key. The answer that is kept for a repeated request has no secret.
pub async fn create(
    core: &Core,
    call: &Call,
    wish: NewApiKey,
    request: Repeatable<ApiKey>,
) -> Result<Made<(ApiKey, Secret)>> {
    let owner = authority::named_or_own(call, wish.owner)?;
    authority::own_or(call, owner, Permission::ApiKeysWrite)?;
    let now = core.now();
    let mut violations = Violations::default();
    if wish.expires_at.is_some_and(|at| at <= now) {
        violations.add("expires_at", Invalid::new("must be in the future"));
    }
    violations.finish()?;
    let audiences = token::audiences(core, wish.audiences)?;
    let claim = match once::earlier(core, call, request).await? {
        Ok(claim) => claim,
        Err(reply) => return Ok(Made::Before(reply)),
    };
    let key = ApiKey {
        id: ApiKeyId::new(now, &*core.entropy),
        owner,
        name: wish.name,
        scopes: wish.scopes.iter().cloned().collect(),
        audiences: audiences.into_iter().collect(),
        created_at: now,
        expires_at: wish.expires_at,
        rotated_at: None,
        overlap_until: None,
    };
    let (secret, hash) = Secret::new(core)?;
    let written = core
        .store
        .write(call, async |tx| {
            if !claim.take(core, call, tx, &key, Some(owner)).await? {
                return Ok(false);
            }
            // Locked, so that the keys are counted right.
            users::lock(tx, owner).await?;
            let user = users::get(tx, owner).await?;
            if user.is_none_or(|user| user.status == UserStatus::Deleted) {
                return Err(Reason::UserNotFound.into());
            }
            if !authority::is_own(call, owner) {
                authority::outranked(tx, call, owner).await?;
            }
            held(tx, owner, &wish.scopes).await?;
            let most = i64::from(core.policy.api_keys.max_per_user);
            if api_keys::count(tx, owner, now).await? >= most {
                return Err(Reason::TooManyApiKeys.into());
            }
            api_keys::insert(tx, &key, hash).await?;
            changed(core, call, tx, &key, Action::ApiKeyCreated).await?;
            Ok(true)
        })
        .await?;
    core.trust.reach(written.seq).await?;
    if written.value {
        Ok(Made::Now((key, secret)))
    } else {
        Ok(Made::Before(claim.winner(core, call).await?))
    }
}

/// Fails if the account does not hold all of these permissions, and says which.
async fn held(tx: &mut Conn, owner: UserId, scopes: &[PermissionName]) -> Result<()> {
    let roles = roles::of_user(tx, owner).await?;
    let held: BTreeSet<_> = roles.iter().flat_map(|role| &role.permissions).collect();
    let mut violations = Violations::default();
    for (i, scope) in scopes.iter().enumerate() {
        if !held.contains(scope) {
            let reason = Invalid::new("is no permission that the key's owner holds");
            violations.add(format!("scopes[{i}]"), reason);
        }
    }
    Ok(violations.finish()?)
}

/// Lists the keys of an account, newest first.
pub async fn list(
    core: &Core,
    call: &Call,
    owner: Option<UserId>,
    page: PageRequest,
) -> Result<Listing<ApiKey>> {
    let owner = authority::named_or_own(call, owner)?;
    authority::own_or(call, owner, Permission::ApiKeysRead)?;
    let after = match page.cursor(core, call)? {
        Some(bytes) => Some(moment::read(bytes).map(|(at, id)| (at, ApiKeyId(id)))?),
        None => None,
    };
    let mut conn = core.store.read(call).await?;
    let rows = api_keys::list(&mut conn, owner, core.now(), after, page.size).await?;
    drop(conn);
    if !authority::is_own(call, owner) {
        record::reading(core, call, Action::ApiKeysListed, Some(owner)).await?;
    }
    page.listing(core, call, rows, |(at, id)| moment::write(at, id.0))
}

/// Gives a key another secret. Those before it are good for as long as
/// `overlap` says, and no longer than they would have been without.
pub async fn rotate(
    core: &Core,
    call: &Call,
    id: ApiKeyId,
    overlap: Overlap,
) -> Result<(ApiKey, Secret)> {
    let (secret, hash) = Secret::new(core)?;
    let written = core
        .store
        .write(call, async |tx| {
            let now = core.now();
            within_reach(core, call, tx, id).await?;
            if !api_keys::rotate(tx, id, hash, overlap.until(now), now).await? {
                return Err(Reason::ApiKeyNotFound.into());
            }
            // As it is now.
            let key = api_keys::get(tx, id, now)
                .await?
                .ok_or(Reason::ApiKeyNotFound)?;
            changed(core, call, tx, &key, Action::ApiKeyRotated).await?;
            Ok(key)
        })
        .await?;
    core.trust.reach(written.seq).await?;
    Ok((written.value, secret))
}

/// Ends a key. Another's is not found by a caller who may not end it.
pub async fn revoke(core: &Core, call: &Call, id: ApiKeyId) -> Result<()> {
    let written = core
        .store
        .write(call, async |tx| {
            let key = within_reach(core, call, tx, id).await?;
            if !api_keys::revoke(tx, id, core.now()).await? {
                return Err(Reason::ApiKeyNotFound.into());
            }
            changed(core, call, tx, &key, Action::ApiKeyRevoked).await
        })
        .await?;
    core.trust.reach(written.seq).await
}

/// A key that the caller may change.
async fn within_reach(core: &Core, call: &Call, tx: &mut Conn, id: ApiKeyId) -> Result<ApiKey> {
    let not_found = || Error::new(Reason::ApiKeyNotFound);
    let key = api_keys::get(tx, id, core.now()).await?;
    let key = key.ok_or_else(not_found)?;
    if !authority::is_own(call, key.owner) {
        authority::require(call, Permission::ApiKeysWrite).map_err(|_| not_found())?;
        authority::outranked(tx, call, key.owner).await?;
    }
    Ok(key)
}

async fn changed(
    core: &Core,
    call: &Call,
    tx: &mut Conn,
    key: &ApiKey,
    action: Action,
) -> Result<()> {
    let event = record::event(core, call, action);
    record::insert(core, tx, &event.about(key.owner).api_key(key.id)).await?;
    tx.announce(TrustChange::ApiKey { api_key_id: key.id });
    Ok(())
}
