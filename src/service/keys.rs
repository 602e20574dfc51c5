//! Rotating signing keys: next, active, retired, gone. A key is published
//! before it signs, and verifies until its last token has expired.
//!
//! Whoever changes keys holds their lock, and each change is a guarded update
//! besides, so that of several nodes or callers at once exactly one succeeds.

use std::time::Duration;

use countersign_verifier::{Algorithm, KeyState};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{
    Core,
    once::{self, Made, Repeatable},
    record, token, trust,
};
use crate::{
    crypto::signing,
    domain::{Call, Node, audit::Action, signing_key::SigningKey, trust::TrustChange},
    error::{Error, Reason, Result},
    store::{Conn, keys, nodes, trust as log},
};

/// More than a rotation each minute leaves behind.
const MOST_KEYS: usize = 64;

/// The longest wait for everybody to know a key.
const PATIENCE: Duration = Duration::from_secs(10);

/// What of a call's time is left for the change itself.
const RESERVE: Duration = Duration::from_secs(1);

/// How often it is looked whether everybody knows it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a JWKS may be on its way into a client's cache.
const FETCHING: u64 = 60;

/// Settings of signing keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// At which age a signing key is replaced; 0 means never.
    pub rotate_every_days: u32,
    /// How long a key is published before it signs; 0 means as long as clients
    /// may cache the JWKS, and a minute.
    pub publish_ahead_seconds: u32,
}

/// What the settings mean.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// At which age a signing key is replaced.
    pub rotate_every: Option<SignedDuration>,
    /// How long a key is published before it signs.
    pub publish_ahead: SignedDuration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rotate_every_days: 90,
            publish_ahead_seconds: 0,
        }
    }
}

impl Config {
    /// What is wrong with the settings, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        if self.rotate_every_days > 3_650 {
            problems.push("keys.rotate_every_days must be at most 3650".to_owned());
        }
        if self.publish_ahead_seconds > 86_400 {
            problems.push("keys.publish_ahead_seconds must be at most 86400".to_owned());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// What they mean where clients may cache the JWKS for so long.
    pub fn policy(&self, jwks_max_age_seconds: u64) -> Policy {
        let ahead = match self.publish_ahead_seconds {
            0 => jwks_max_age_seconds.saturating_add(FETCHING),
            seconds => seconds.into(),
        };
        let days = i64::from(self.rotate_every_days);
        Policy {
            rotate_every: (days > 0).then(|| SignedDuration::from_hours(24 * days)),
            publish_ahead: SignedDuration::from_secs(i64::try_from(ahead).unwrap_or(i64::MAX)),
        }
    }
}

/// How a key is put to work.
#[derive(Debug, Clone)]
pub struct Activation {
    /// The next key.
    pub kid: String,
    /// Also if not everybody knows it yet.
    pub force: bool,
    /// Whether the key before it is taken away at once.
    pub retire_previous: bool,
}

/// All signing keys, oldest first.
pub async fn list(core: &Core, call: &Call) -> Result<Vec<SigningKey>> {
    let mut conn = core.store.read(call).await?;
    keys::signing_keys(&mut conn).await
}

/// Makes the next key, and publishes it.
pub async fn stage(
    core: &Core,
    call: &Call,
    algorithm: Option<Algorithm>,
    request: Repeatable<SigningKey>,
) -> Result<Made<SigningKey>> {
    let claim = match once::earlier(core, call, request).await? {
        Ok(claim) => claim,
        Err(reply) => return before(core, call, reply).await,
    };
    let written = core
        .store
        .write(call, async |tx| {
            keys::lock(tx).await?;
            let all = keys::signing_keys(tx).await?;
            let key = make(core, algorithm, &all)?;
            if !claim.take(core, call, tx, &key, None).await? {
                return Ok(None);
            }
            insert(core, call, tx, &all, &key).await?;
            Ok(Some(key))
        })
        .await?;
    let Some(key) = written.value else {
        return before(core, call, claim.winner(core, call).await?).await;
    };
    core.trust.reach(written.seq).await?;
    Ok(Made::Now(key))
}

/// Stages a key if the active one is so old that its successor is to be
/// published, and returns it. None if it is not, or if somebody else was first.
pub(super) async fn stage_when_due(
    core: &Core,
    call: &Call,
    is_due: impl Fn(&[SigningKey]) -> bool,
) -> Result<Option<SigningKey>> {
    let written = core
        .store
        .write(call, async |tx| {
            keys::lock(tx).await?;
            let all = keys::signing_keys(tx).await?;
            if !is_due(&all) {
                return Ok(None);
            }
            let key = make(core, None, &all)?;
            insert(core, call, tx, &all, &key).await?;
            Ok(Some(key))
        })
        .await?;
    core.trust.reach(written.seq).await?;
    Ok(written.value)
}

/// The answer to a call that had its effect before, once that is in force here.
async fn before(core: &Core, call: &Call, reply: Vec<u8>) -> Result<Made<SigningKey>> {
    trust::reach_head(core, call).await?;
    Ok(Made::Before(reply))
}

/// A new key beside these.
fn make(core: &Core, algorithm: Option<Algorithm>, all: &[SigningKey]) -> Result<SigningKey> {
    let algorithm = algorithm.or_else(|| core.policy.tokens.algorithm());
    let algorithm = algorithm.ok_or_else(|| Error::internal("tokens.algorithm is not known"))?;
    let seal = core.keyring.seal_beside(all)?;
    let (now, entropy) = (core.now(), &*core.entropy);
    signing::generate(algorithm, KeyState::Next, now, entropy, seal)
}

async fn insert(
    core: &Core,
    call: &Call,
    tx: &mut Conn,
    all: &[SigningKey],
    key: &SigningKey,
) -> Result<()> {
    if let Some(next) = all.iter().find(|key| key.state == KeyState::Next) {
        return Err(Error::new(Reason::KeyAlreadyStaged).with("kid", &*next.kid));
    }
    if all.len() >= MOST_KEYS {
        return Err(Reason::TooManyKeys.into());
    }
    if !keys::insert_signing_key(tx, key).await? {
        return Err(Reason::KeyAlreadyStaged.into());
    }
    let event = record::event(core, call, Action::KeyStaged).key(&key.kid);
    record::insert(core, tx, &event).await?;
    tx.announce(TrustChange::SigningKeys);
    Ok(())
}

/// Has the next key sign, and the active one no more.
pub async fn activate(core: &Core, call: &Call, wish: &Activation) -> Result<SigningKey> {
    let left = call.remaining().unwrap_or(Duration::MAX);
    activate_within(core, call, wish, left.saturating_sub(RESERVE).min(PATIENCE)).await
}

/// The same, waiting for so long until everybody knows the key.
pub(super) async fn activate_within(
    core: &Core,
    call: &Call,
    wish: &Activation,
    patience: Duration,
) -> Result<SigningKey> {
    if !wish.force {
        published(core, call, &wish.kid, patience).await?;
    }
    let written = core
        .store
        .write(call, async |tx| {
            keys::lock(tx).await?;
            switch(core, call, tx, wish).await
        })
        .await?;
    core.trust.reach(written.seq).await?;
    Ok(written.value)
}

async fn switch(core: &Core, call: &Call, tx: &mut Conn, wish: &Activation) -> Result<SigningKey> {
    let all = keys::signing_keys(tx).await?;
    let next = staged(&all, &wish.kid)?;
    let (now, entropy) = (core.now(), &*core.entropy);
    let sealer = core.keyring.sealer();
    if let Some(previous) = all.iter().find(|key| key.state == KeyState::Active) {
        let kid = &previous.kid;
        let done = if wish.retire_previous {
            keys::delete_signing_key(tx, kid, KeyState::Active).await?
        } else {
            let until = now + token::RETENTION;
            let retired = signing::retired(previous, now, until, sealer, entropy)?;
            keys::change_signing_key(tx, previous, &retired).await?
        };
        if !done {
            return Err(not_next(KeyState::Active));
        }
        if wish.retire_previous {
            let event = record::event(core, call, Action::KeyRemoved).key(kid);
            record::insert(core, tx, &event).await?;
        }
    }
    let active = signing::activated(next, now, sealer, entropy)?;
    if !keys::change_signing_key(tx, next, &active).await? {
        return Err(not_next(KeyState::Active));
    }
    let event = record::event(core, call, Action::KeyActivated).key(&wish.kid);
    record::insert(core, tx, &event).await?;
    tx.announce(TrustChange::SigningKeys);
    Ok(active)
}

/// Takes a key away that does not sign: its tokens are refused from now on.
pub async fn retire(core: &Core, call: &Call, kid: &str) -> Result<()> {
    let written = core
        .store
        .write(call, async |tx| {
            keys::lock(tx).await?;
            let all = keys::signing_keys(tx).await?;
            let key = all.iter().find(|key| key.kid == kid);
            let key = key.ok_or(Reason::KeyNotFound)?;
            if key.state == KeyState::Active {
                return Err(Reason::KeyActive.into());
            }
            if !keys::delete_signing_key(tx, kid, key.state).await? {
                return Err(Reason::KeyNotFound.into());
            }
            let event = record::event(core, call, Action::KeyRemoved).key(kid);
            record::insert(core, tx, &event).await?;
            tx.announce(TrustChange::SigningKeys);
            Ok(())
        })
        .await?;
    core.trust.reach(written.seq).await
}

/// Takes away the retired keys whose last token has expired.
pub(super) async fn remove_expired(core: &Core, call: &Call, tx: &mut Conn) -> Result<usize> {
    let expired = keys::delete_expired_signing_keys(tx, core.now()).await?;
    for kid in &expired {
        let event = record::event(core, call, Action::KeyRemoved).key(kid);
        record::insert(core, tx, &event).await?;
    }
    if !expired.is_empty() {
        tx.announce(TrustChange::SigningKeys);
    }
    Ok(expired.len())
}

fn staged<'a>(all: &'a [SigningKey], kid: &str) -> Result<&'a SigningKey> {
    let key = all.iter().find(|key| key.kid == kid);
    match key.ok_or(Reason::KeyNotFound)? {
        key if key.state == KeyState::Next => Ok(key),
        key => Err(not_next(key.state)),
    }
}

fn not_next(state: KeyState) -> Error {
    Error::new(Reason::KeyNotNext).with("state", state.name())
}

/// Who does not know a key yet.
#[derive(Debug, Clone, Copy)]
struct Missing {
    /// How long it is to be published still.
    wait: Duration,
    nodes: usize,
    validators: u32,
}

/// Waits until everybody knows the next key.
async fn published(core: &Core, call: &Call, kid: &str, patience: Duration) -> Result<()> {
    let mut left = patience;
    loop {
        let Some(missing) = missing(core, call, kid).await? else {
            return Ok(());
        };
        if left < LOOK_EVERY || missing.wait > left || call.is_abandoned() {
            let Missing {
                wait,
                nodes,
                validators,
            } = missing;
            return Err(Error::key_not_published(wait, nodes, validators));
        }
        sleep(LOOK_EVERY).await;
        left -= LOOK_EVERY;
    }
}

/// Who does not know the next key yet; none if everybody does.
async fn missing(core: &Core, call: &Call, kid: &str) -> Result<Option<Missing>> {
    let now = core.now();
    let (all, seq, nodes) = {
        let mut conn = core.store.read(call).await?;
        let all = keys::signing_keys(&mut conn).await?;
        // Not earlier than the entry that told of these keys.
        let seq = log::last_about_signing_keys(&mut conn).await?;
        let nodes = nodes::seen_since(&mut conn, now - Node::SILENCE).await?;
        (all, seq, nodes)
    };
    let key = staged(&all, kid)?;
    // This node's own row may be a second old.
    core.trust.reach(Some(seq)).await?;
    let others = nodes.iter().filter(|node| node.id != core.node_id);
    let wait = now.duration_until(key.changed_at + core.policy.keys.publish_ahead);
    let behind = nodes.iter().filter(|node| !node.all_acknowledged(seq));
    let missing = Missing {
        wait: Duration::try_from(wait).unwrap_or_default(),
        nodes: others.filter(|node| !node.has_applied(seq)).count(),
        validators: behind.map(|node| node.validators).sum(),
    };
    let nobody = missing.wait.is_zero() && missing.nodes == 0 && missing.validators == 0;
    Ok((!nobody).then_some(missing))
}
