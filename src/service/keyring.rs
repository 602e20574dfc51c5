//! The keys in use on this node: opened copies of what the database holds
//! sealed. They are made at first start, under a lock, so that nodes that
//! start at once agree on them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use countersign_verifier::{KeySet, KeyState, PublicKey};
use jiff::Timestamp;

use super::Core;
use crate::{
    crypto::{
        AuditKeys, PasswordKeys, RefreshKeys, RequestKeys, Seal, Sealer, Signer, secret_key,
        signing,
    },
    domain::{
        Call,
        audit::Action,
        signing_key::{Purpose, SecretKey, SigningKey},
        trust::TrustChange,
    },
    error::{Error, Result},
    service::record,
    store::{Store, keys},
};

/// How often an unknown key id is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Opened keys of one moment.
#[derive(Debug)]
pub struct Keys {
    /// Signs access tokens.
    pub signer: Signer,
    /// Mints and reads refresh tokens.
    pub refresh: RefreshKeys,
    /// Authenticates page tokens and request bodies.
    pub request: RequestKeys,
    /// Seals the audit log.
    pub audit: AuditKeys,
    /// Seal password hashes, where they are sealed.
    pub passwords: PasswordKeys,
    /// The public halves of all signing keys.
    pub public: KeySet,
    /// All signing keys as they are stored, sealed.
    pub stored: Vec<SigningKey>,
}

/// The keys in use.
#[derive(Debug)]
pub struct Keyring {
    sealer: Sealer,
    keys: ArcSwapOption<Keys>,
    /// Held while keys are read, so that an older reading never replaces a
    /// newer one.
    seen: tokio::sync::Mutex<Seen>,
    /// When an unknown key id was last looked for.
    looked: Mutex<Option<Instant>>,
}

impl Keyring {
    /// A ring without keys until it is loaded.
    pub fn new(sealer: Sealer) -> Self {
        Self {
            sealer,
            keys: ArcSwapOption::empty(),
            seen: tokio::sync::Mutex::default(),
            looked: Mutex::new(None),
        }
    }

    /// The keys; NOT_READY before the first load.
    pub fn keys(&self) -> Result<Arc<Keys>> {
        self.keys.load_full().ok_or_else(Error::not_ready)
    }

    /// What opens the keys.
    pub(super) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// What a new key beside these is sealed with: what the key that signs is,
    /// and so what all of them are. A node whose ring begins with a new master
    /// key must not use it before all nodes have it, which is a rewrap's to see.
    pub(super) fn seal_beside(&self, stored: &[SigningKey]) -> Result<&Seal> {
        let active = stored.iter().filter(|key| key.state == KeyState::Active);
        let mut seal = Ok(self.sealer.first());
        // One whose row was altered must not keep another from taking its place.
        for key in active.chain(stored) {
            seal = signing::open(key, &self.sealer).map(|opened| opened.seal);
            if seal.is_ok() {
                break;
            }
        }
        seal
    }

    /// Reads all keys anew because a token names one that is not known. Anybody
    /// can write such a token, so this asks the database once a second at most;
    /// within that second nothing is said about the token.
    pub(super) async fn look_again(&self, core: &Core, call: &Call) -> Result<Arc<Keys>> {
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                return Err(Error::not_ready());
            }
            *looked = Some(Instant::now());
        }
        self.reload(core, call).await
    }

    /// The keys of the audit log alone: whoever checks it needs no others.
    pub async fn audit_keys(&self, store: &Store, call: &Call) -> Result<AuditKeys> {
        let secrets = keys::secret_keys(&mut store.read(call).await?).await?;
        AuditKeys::open(&secrets, &self.sealer)
    }

    /// Reads all keys anew.
    pub async fn reload(&self, core: &Core, call: &Call) -> Result<Arc<Keys>> {
        let mut seen = self.seen.lock().await;
        let (pairs, secrets) = {
            let mut conn = core.store.read(call).await?;
            (
                keys::signing_keys(&mut conn).await?,
                keys::secret_keys(&mut conn).await?,
            )
        };
        let (pairs, refused) = seen.trusted(pairs, &self.sealer, core.now());
        let secrets = seen.not_gone(secrets);
        let Some(active) = pairs.iter().find(|key| key.state == KeyState::Active) else {
            return Err(
                refused.unwrap_or_else(|| Error::internal("there is no active signing key"))
            );
        };
        let mut public = KeySet::default();
        for key in &pairs {
            let key = PublicKey::new(key.kid.clone(), key.algorithm, key.state, &key.public_key);
            public.insert(key.map_err(Error::internal)?);
        }
        let loaded = Arc::new(Keys {
            signer: Signer::open(active, &self.sealer)?,
            refresh: RefreshKeys::open(&secrets, &self.sealer)?,
            request: RequestKeys::open(&secrets, &self.sealer)?,
            audit: AuditKeys::open(&secrets, &self.sealer)?,
            passwords: PasswordKeys::open(&secrets, &self.sealer)?,
            public,
            stored: pairs,
        });
        self.keys.store(Some(Arc::clone(&loaded)));
        Ok(loaded)
    }
}

/// How far each key has come, as this process has seen it. A key only goes
/// forward; whoever can write rows may have kept old ones, which are as
/// authentic as they ever were.
#[derive(Debug, Default)]
struct Seen {
    signing: HashMap<String, Step>,
    /// Whether the key of this id is still there. No id is given twice.
    secret: HashMap<i32, bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Next,
    Active,
    Retired,
    Gone,
}

impl From<KeyState> for Step {
    fn from(state: KeyState) -> Self {
        match state {
            KeyState::Next => Self::Next,
            KeyState::Active => Self::Active,
            KeyState::Retired => Self::Retired,
        }
    }
}

impl Seen {
    /// The stored keys that are what we have written, have not gone back, and
    /// may still have tokens. The log says of the others why not; the error is
    /// that of the active key.
    fn trusted(
        &mut self,
        stored: Vec<SigningKey>,
        sealer: &Sealer,
        now: Timestamp,
    ) -> (Vec<SigningKey>, Option<Error>) {
        for (kid, step) in &mut self.signing {
            if stored.iter().all(|key| key.kid != *kid) {
                *step = Step::Gone;
            }
        }
        let (mut trusted, mut refused, mut active) = (Vec::new(), 0_u32, None);
        for key in stored {
            let step = Step::from(key.state);
            let error = match (signing::open(&key, sealer), self.signing.get(&key.kid)) {
                (Err(error), _) => error,
                (Ok(_), Some(seen)) if *seen > step => {
                    let kid = &key.kid;
                    Error::internal(format!(
                        "the row of the signing key {kid} says {step:?}, and it was {seen:?} already"
                    ))
                }
                (Ok(_), _) => {
                    self.signing.insert(key.kid.clone(), step);
                    if key.verify_until.is_none_or(|until| now < until) {
                        trusted.push(key);
                    }
                    continue;
                }
            };
            refused += 1;
            let cause = crate::error::chain(&error);
            tracing::error!(kid = key.kid, cause, "a signing key is not trusted");
            if key.state == KeyState::Active {
                active = Some(error);
            }
        }
        metrics::gauge!("countersign_signing_keys_refused").set(refused);
        (trusted, active)
    }

    /// The symmetric keys without those that were gone already.
    fn not_gone(&mut self, mut stored: Vec<SecretKey>) -> Vec<SecretKey> {
        stored.retain(|key| {
            let is_gone = self.secret.get(&key.id) == Some(&false);
            if is_gone {
                let purpose = key.purpose.as_str();
                tracing::error!(id = key.id, purpose, "a key that was gone is not trusted");
            }
            !is_gone
        });
        for (id, is_there) in &mut self.secret {
            *is_there = stored.iter().any(|key| key.id == *id);
        }
        self.secret.extend(stored.iter().map(|key| (key.id, true)));
        stored
    }
}

/// Makes keys where there are none and loads all: for commands, which follow no
/// trust log that would do it.
pub async fn load(core: &Core, call: &Call) -> Result<()> {
    create_missing(core, call).await?;
    core.keyring.reload(core, call).await.map(drop)
}

/// Makes what keys there are none of yet. Enough for commands that record what
/// they did and need no other key: one whose row was altered is not in their way.
pub async fn create_missing(core: &Core, call: &Call) -> Result<()> {
    let algorithm = core.policy.tokens.algorithm();
    let algorithm = algorithm.ok_or_else(|| Error::internal("tokens.algorithm is not known"))?;
    let complete = {
        let mut conn = core.store.read(call).await?;
        let pairs = keys::signing_keys(&mut conn).await?;
        let secrets = keys::secret_keys(&mut conn).await?;
        pairs.iter().any(|key| key.state == KeyState::Active)
            && purposes(core).all(|purpose| secrets.iter().any(|key| key.purpose == purpose))
    };
    if complete {
        return Ok(());
    }
    core.store
        .write(call, async |tx| {
            keys::lock(tx).await?;
            let now = core.now();
            let pairs = keys::signing_keys(tx).await?;
            let seal = core.keyring.seal_beside(&pairs)?;
            let mut secrets = keys::secret_keys(tx).await?;
            let mut id = secrets.iter().map(|key| key.id).max().unwrap_or(0);
            for purpose in purposes(core) {
                if secrets.iter().all(|key| key.purpose != purpose) {
                    id += 1;
                    let key = secret_key::generate(id, purpose, now, &*core.entropy, seal)?;
                    keys::insert_secret_key(tx, &key).await?;
                    tx.announce(TrustChange::SecretKeys);
                    secrets.push(key);
                }
            }
            if !pairs.iter().any(|key| key.state == KeyState::Active) {
                let state = KeyState::Active;
                let key = signing::generate(algorithm, state, now, &*core.entropy, seal)?;
                if keys::insert_signing_key(tx, &key).await? {
                    tracing::info!(kid = key.kid, "created the first signing key");
                    let event = record::event(core, call, Action::KeyCreated).key(&key.kid);
                    let audit = AuditKeys::open(&secrets, core.keyring.sealer())?;
                    record::insert_under(&audit, core, tx, &event).await?;
                    tx.announce(TrustChange::SigningKeys);
                }
            }
            Ok(())
        })
        .await?;
    Ok(())
}

/// What there has to be a key for.
fn purposes(core: &Core) -> impl Iterator<Item = Purpose> + use<> {
    let sealed = core.policy.passwords.seal_hashes;
    [
        Purpose::Refresh,
        Purpose::Request,
        Purpose::Throttle,
        Purpose::Audit,
    ]
    .into_iter()
    .chain(sealed.then_some(Purpose::Password))
}
