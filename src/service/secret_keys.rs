//! Symmetric keys: rotated while nodes serve, and taken away when they have leaked.
//!
//! A new key is known to all nodes for a while before it makes anything
//! ([`SecretKey::AHEAD`]). The one before it verifies for as long as what it has
//! made may be shown, and then goes by itself.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use uuid::Uuid;

use super::{Core, record};
use crate::{
    crypto::{password_seal, secret_key},
    domain::{
        Call, Node, SessionId,
        audit::Action,
        signing_key::{Purpose, SecretKey},
        trust::TrustChange,
    },
    error::{Error, Reason, Result},
    store::{Conn, keys, nodes, sessions, users},
};

/// More than anybody needs.
const MOST_KEYS: usize = 64;

/// How long device tokens are good, which outlive page tokens and idempotency. A
/// device whose token has ended gets another when it logs in.
const REQUEST_KEPT: SignedDuration = SignedDuration::from_hours(90 * 24);

/// A refresh token may be on its way, or be shown once more, when it has ended.
const MARGIN: SignedDuration = SignedDuration::from_hours(1);

/// Sessions that one transaction ends.
const BATCH: i64 = 500;

/// The longest wait for all nodes to know that a key is gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether they do.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What became of a key that was taken away.
#[derive(Debug)]
pub struct Retired {
    /// The sessions that were ended with it.
    pub sessions: usize,
    /// Live nodes that may still not know of it.
    pub unaware: usize,
}

/// All symmetric keys, oldest first.
pub async fn list(core: &Core, call: &Call) -> Result<Vec<SecretKey>> {
    let mut conn = core.store.read(call).await?;
    keys::secret_keys(&mut conn).await
}

/// Makes a new key, which takes over soon after.
pub async fn rotate(core: &Core, call: &Call, purpose: Purpose) -> Result<SecretKey> {
    let written = core
        .store
        .write(call, async |tx| {
            keys::lock(tx).await?;
            let all = keys::secret_keys(tx).await?;
            insert(core, call, tx, &all, purpose).await
        })
        .await?;
    core.trust.reach(written.seq).await?;
    Ok(written.value)
}

async fn insert(
    core: &Core,
    call: &Call,
    tx: &mut Conn,
    all: &[SecretKey],
    purpose: Purpose,
) -> Result<SecretKey> {
    // Of the others there may be many: audit keys stay.
    let same = all.iter().filter(|key| key.purpose == purpose);
    if same.count() >= MOST_KEYS {
        return Err(Reason::TooManyKeys.into());
    }
    let pairs = keys::signing_keys(tx).await?;
    let seal = core.keyring.seal_beside(&pairs)?;
    let id = 1 + all.iter().map(|key| key.id).max().unwrap_or(0);
    let key = secret_key::generate(id, purpose, core.now(), &*core.entropy, seal)?;
    keys::insert_secret_key(tx, &key).await?;
    record_key(core, call, tx, Action::SecretKeyCreated, &key).await?;
    Ok(key)
}

async fn record_key(
    core: &Core,
    call: &Call,
    tx: &mut Conn,
    action: Action,
    key: &SecretKey,
) -> Result<()> {
    let name = format!("{} {}", key.purpose.as_str(), key.id);
    record::insert(core, tx, &record::event(core, call, action).key(&name)).await?;
    tx.announce(TrustChange::SecretKeys);
    Ok(())
}

/// Takes a key away that has leaked, and puts a new one in its place. All that it
/// has made is refused from then on; of a refresh key the sessions end, too. Done
/// again, it goes on ending sessions where it was cut short. Refused while records of
/// the audit log or password hashes are under the key.
pub async fn retire(core: &Core, call: &Call, id: i32) -> Result<Retired> {
    let written = core
        .store
        .write(call, async |tx| {
            keys::lock(tx).await?;
            let all = keys::secret_keys(tx).await?;
            let Some(key) = all.iter().find(|key| key.id == id) else {
                return Ok(false);
            };
            refuse_if_needed(tx, key).await?;
            // Password hashes have had to move to a newer one before.
            let newest = all.iter().rfind(|other| other.purpose == key.purpose);
            if key.purpose != Purpose::Password || newest.is_some_and(|newest| newest.id == id) {
                insert(core, call, tx, &all, key.purpose).await?;
            }
            keys::delete_secret_key(tx, id).await?;
            record_key(core, call, tx, Action::SecretKeyRemoved, key).await?;
            Ok(true)
        })
        .await?;
    core.trust.reach(written.seq).await?;
    let mut sessions = end_sessions(core, call, id).await?;
    if !written.value && sessions == 0 {
        return Err(Reason::KeyNotFound.into());
    }
    // A node that had not heard of it may have opened some meanwhile.
    let unaware = heard(core, call, written.seq).await?;
    sessions += end_sessions(core, call, id).await?;
    Ok(Retired { sessions, unaware })
}

/// What is under these keys cannot be made anew.
async fn refuse_if_needed(tx: &mut Conn, key: &SecretKey) -> Result<()> {
    let reason = match key.purpose {
        Purpose::Audit => "is the id of a key that records of the audit log are checked by".into(),
        Purpose::Password => match users::stored_under(tx, &password_seal::head(key.id)).await? {
            0 => return Ok(()),
            hashes => format!("is the id of a key that {hashes} password hashes are sealed under"),
        },
        Purpose::Refresh | Purpose::Request | Purpose::Throttle => return Ok(()),
    };
    Err(Error::invalid("id", reason))
}

/// Ends the sessions whose refresh token is under this key, in batches.
async fn end_sessions(core: &Core, call: &Call, key_id: i32) -> Result<usize> {
    let (mut from, mut ended) = (Some(SessionId(Uuid::nil())), 0);
    while let Some(after) = from {
        let written = core
            .store
            .write(call, async |tx| {
                let now = core.now();
                let (revoked, last) =
                    sessions::revoke_under_key(tx, key_id, after, BATCH, now).await?;
                let count = revoked.len();
                for session_id in revoked {
                    tx.announce(TrustChange::SessionRevoked { session_id });
                }
                Ok((count, last))
            })
            .await?;
        core.trust.reach(written.seq).await?;
        let (count, last) = written.value;
        ended += count;
        from = last;
    }
    Ok(ended)
}

/// Waits until all live nodes have applied an entry. Returns how many have not.
async fn heard(core: &Core, call: &Call, seq: Option<i64>) -> Result<usize> {
    let mut left = PATIENCE;
    loop {
        let nodes = {
            let mut conn = core.store.read(call).await?;
            nodes::seen_since(&mut conn, core.now() - Node::SILENCE).await?
        };
        let behind = |node: &&Node| seq.is_some_and(|seq| !node.has_applied(seq));
        let unaware = nodes.iter().filter(behind).count();
        if unaware == 0 || left < LOOK_EVERY {
            return Ok(unaware);
        }
        sleep(LOOK_EVERY).await;
        left -= LOOK_EVERY;
    }
}

/// Takes away the keys that nothing is under any more. A refresh key stays while a
/// session is: another node, or an earlier setting, may let sessions live longer.
pub(super) async fn remove_expired(core: &Core, call: &Call, tx: &mut Conn) -> Result<usize> {
    let now = core.now();
    let all = keys::secret_keys(tx).await?;
    let mut removed = 0;
    for (place, key) in all.iter().enumerate() {
        let mut younger = all.iter().skip(place + 1);
        let successor = younger.find(|other| other.purpose == key.purpose);
        let ended = successor.is_some_and(|next| is_over(core, key.purpose, next.created_at, now));
        if !ended
            || (key.purpose == Purpose::Refresh && sessions::any_under_key(tx, key.id, now).await?)
        {
            continue;
        }
        if keys::delete_secret_key(tx, key.id).await? {
            record_key(core, call, tx, Action::SecretKeyRemoved, key).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Whether what a key has made has ended, if its successor is of then.
fn is_over(core: &Core, purpose: Purpose, succeeded_at: Timestamp, now: Timestamp) -> bool {
    let lifetimes = core.policy.sessions.lifetimes();
    let kept = match purpose {
        Purpose::Refresh => lifetimes.idle + lifetimes.grace + MARGIN,
        Purpose::Request => REQUEST_KEPT,
        // What is under these is there for ever.
        Purpose::Throttle | Purpose::Audit | Purpose::Password => return false,
    };
    now >= succeeded_at + SecretKey::AHEAD + kept
}
