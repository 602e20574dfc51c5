//! Password hashes on their way to their rows and back: sealed where that is set
//! ([`crate::crypto::PasswordKeys`]), and brought up to date when they are not as
//! they would be stored now.

use super::{Core, keyring::Keys, record};
use crate::{
    crypto::password_seal,
    domain::{Call, PasswordHash, StoredPassword, UserId, audit::Action},
    error::{Error, Result},
    store::{
        Conn, keys,
        users::{self, Credentials},
    },
};

/// Accounts that are looked at in one go.
const BATCH: i64 = 200;

/// What became of all hashes.
#[derive(Debug, Default)]
pub struct Resealed {
    /// How many were stored anew.
    pub stored: usize,
    /// The accounts whose hashes did not open, and are as they were.
    pub shut: Vec<UserId>,
}

/// A hash as it is to be stored for this account.
pub(super) fn stored(core: &Core, user_id: UserId, hash: PasswordHash) -> Result<StoredPassword> {
    if !core.policy.passwords.seal_hashes {
        return Ok(StoredPassword::new(hash.as_phc().to_owned()));
    }
    let keys = core.keyring.keys()?;
    keys.passwords
        .seal(core.now(), user_id, &hash, &*core.entropy)
}

/// To be called in the transaction that stores it: the key that it is sealed under is
/// not taken away meanwhile. If it has been, the call is to be made again, under
/// another.
pub(super) async fn hold_key(tx: &mut Conn, password: &StoredPassword) -> Result<()> {
    if let Some(id) = password_seal::key_of(password)
        && !keys::hold_secret_key(tx, id).await?
    {
        return Err(Error::not_ready());
    }
    Ok(())
}

/// The hash of an account that has one. Comes before the throttle counts: where it
/// does not open, that is our fault and nobody's guess.
pub(super) async fn opened(
    core: &Core,
    call: &Call,
    account: Option<&Credentials>,
) -> Result<Option<PasswordHash>> {
    let Some((account, password)) = account.and_then(|a| Some((a, a.password.as_ref()?))) else {
        return Ok(None);
    };
    let mut keys = core.keyring.keys()?;
    // Another node may have begun to seal.
    if !keys.passwords.has_key_of(password) {
        keys = core.keyring.reload(core, call).await?;
    }
    open(&keys, account.user_id, password).map(Some)
}

fn open(keys: &Keys, user_id: UserId, password: &StoredPassword) -> Result<PasswordHash> {
    keys.passwords.unseal(user_id, password).inspect_err(|_| {
        metrics::counter!("countersign_password_hashes_shut_total").increment(1);
    })
}

/// What to store instead of an account's password, whose hash is `hash`, or anew
/// `upgraded`; none if it is stored as it would be now.
pub(super) fn renewed(
    core: &Core,
    user_id: UserId,
    old: &StoredPassword,
    hash: PasswordHash,
    upgraded: Option<PasswordHash>,
) -> Result<Option<StoredPassword>> {
    let sealed = core.policy.passwords.seal_hashes;
    let keys = core.keyring.keys()?;
    if upgraded.is_none() && keys.passwords.is_current(core.now(), old, sealed) {
        return Ok(None);
    }
    stored(core, user_id, upgraded.unwrap_or(hash)).map(Some)
}

/// Stores the hash of the same password in the place of the one before, if that is
/// still there, and records it.
pub(super) async fn replace(
    core: &Core,
    call: &Call,
    tx: &mut Conn,
    user_id: UserId,
    (old, new): &(StoredPassword, StoredPassword),
) -> Result<bool> {
    hold_key(tx, new).await?;
    let replaced = users::rehash(tx, user_id, old, new).await?;
    if replaced {
        let event = record::event(core, call, Action::PasswordRehashed);
        record::insert(core, tx, &event.about(user_id)).await?;
    }
    Ok(replaced)
}

/// Stores the hashes of all accounts as they would be stored now, while nodes
/// serve. Cut short, it can be done again.
pub async fn reseal(core: &Core, call: &Call) -> Result<Resealed> {
    let (mut after, mut done) = (None, Resealed::default());
    loop {
        // A new key may take over while this goes on.
        let keys = core.keyring.reload(core, call).await?;
        let batch = {
            let mut conn = core.store.read(call).await?;
            users::passwords(&mut conn, after, BATCH).await?
        };
        let Some((last, _)) = batch.last() else {
            return Ok(done);
        };
        after = Some(*last);
        let mut changes = Vec::new();
        for (user_id, old) in batch {
            let Ok(hash) = open(&keys, user_id, &old) else {
                done.shut.push(user_id);
                continue;
            };
            if let Some(new) = renewed(core, user_id, &old, hash, None)? {
                changes.push((user_id, (old, new)));
            }
        }
        let written = core
            .store
            .write(call, async |tx| {
                let mut count = 0;
                for (user_id, change) in &changes {
                    count += usize::from(replace(core, call, tx, *user_id, change).await?);
                }
                Ok(count)
            })
            .await?;
        done.stored += written.value;
    }
}
