//! Changing the master key while nodes serve, in the order that needs no pause:
//! the new one is added to the ring of every node, all keys are rewrapped, the
//! old one is taken out of the rings.
//!
//! Rewrapping is refused while a node lives that does not have the new master
//! key: it could not open what is rewrapped. It is one transaction, so one that
//! is cut short has changed nothing, and one that is repeated finds it done. The
//! keys themselves stay what they are: no token notices.

use std::collections::BTreeMap;

use super::{Core, record};
use crate::{
    crypto::{seal::sealed_under, secret_key, signing},
    domain::{Call, MasterKeyId, Node, audit::Action, trust::TrustChange},
    error::Result,
    store::{Conn, keys, nodes},
};

/// Which master keys there are, and who has them.
#[derive(Debug)]
pub struct Standing {
    /// The one that all keys are to be under: the first of this process's ring.
    pub to: MasterKeyId,
    /// The ring.
    pub ring: Vec<MasterKeyId>,
    /// How many keys are sealed under each.
    pub in_use: BTreeMap<MasterKeyId, usize>,
    /// The nodes that live.
    pub nodes: Vec<Node>,
}

/// What a rewrap did.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing: a node does not have the first master key.
    Lacking(Standing),
    /// All keys are under the first master key of the ring.
    Rewrapped {
        /// That master key.
        to: MasterKeyId,
        /// How many keys were not.
        keys: usize,
    },
}

impl Standing {
    /// All master keys of the ring, then others that are in use.
    pub fn master_keys(&self) -> Vec<MasterKeyId> {
        let others = self.in_use.keys().filter(|id| !self.ring.contains(id));
        self.ring.iter().chain(others).copied().collect()
    }

    /// The nodes that do not have a master key.
    pub fn lacking(&self, id: MasterKeyId) -> impl Iterator<Item = &Node> {
        let nodes = self.nodes.iter();
        nodes.filter(move |node| !node.master_keys.contains(&id))
    }
}

/// How it stands.
pub async fn standing(core: &Core, call: &Call) -> Result<Standing> {
    let mut conn = core.store.read(call).await?;
    look(core, &mut conn).await
}

async fn look(core: &Core, conn: &mut Conn) -> Result<Standing> {
    let sealer = core.keyring.sealer();
    let mut in_use = BTreeMap::new();
    let mut count = |id| *in_use.entry(id).or_default() += 1;
    for key in keys::signing_keys(conn).await? {
        count(match sealed_under(&key.sealed) {
            Some(id) => id,
            None => signing::open(&key, sealer)?.seal.id(),
        });
    }
    for key in keys::secret_keys(conn).await? {
        count(match sealed_under(&key.sealed) {
            Some(id) => id,
            None => secret_key::open(&key, sealer)?.seal.id(),
        });
    }
    Ok(Standing {
        to: sealer.first().id(),
        ring: sealer.ids().collect(),
        in_use,
        nodes: nodes::seen_since(conn, core.now() - Node::SILENCE).await?,
    })
}

/// Seals all keys under the first master key of this process's ring.
pub async fn rewrap(core: &Core, call: &Call) -> Result<Outcome> {
    let (sealer, entropy) = (core.keyring.sealer(), &*core.entropy);
    let written = core
        .store
        .write(call, async |tx| {
            // Nobody seals a new key meanwhile.
            keys::lock(tx).await?;
            let standing = look(core, tx).await?;
            let to = standing.to;
            if standing.lacking(to).next().is_some() {
                return Ok(Outcome::Lacking(standing));
            }
            let mut done = 0;
            // One that is not there any more has expired meanwhile.
            for key in keys::signing_keys(tx).await? {
                if let Some(new) = signing::rewrapped(&key, sealer, entropy)?
                    && keys::reseal_signing_key(tx, &key.kid, &key.sealed, &new.sealed).await?
                {
                    done += 1;
                }
            }
            for key in keys::secret_keys(tx).await? {
                if let Some(new) = secret_key::rewrapped(&key, sealer, entropy)?
                    && keys::reseal_secret_key(tx, key.id, &key.sealed, &new.sealed).await?
                {
                    done += 1;
                }
            }
            if done > 0 {
                let event = record::event(core, call, Action::KeysRewrapped);
                record::insert(core, tx, &event.key(&to.to_string())).await?;
                tx.announce(TrustChange::SigningKeys);
                tx.announce(TrustChange::SecretKeys);
            }
            Ok(Outcome::Rewrapped { to, keys: done })
        })
        .await?;
    core.trust.reach(written.seq).await?;
    Ok(written.value)
}
