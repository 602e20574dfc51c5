//! Symmetric keys: made, sealed, opened, and kept as rings.
//!
//! A ring holds all keys of one purpose. The newest one makes, from a while after
//! it was made itself, so that no node is shown what it cannot verify; all of
//! them verify, so that what was made before a new key came still counts.

use aws_lc_rs::{constant_time, hmac};
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::seal::{Context, Opened, Seal, Sealer};
use crate::{
    domain::{
        Entropy,
        signing_key::{Purpose, SecretKey},
    },
    error::{Error, Result},
};

/// As long as the output of the hash (RFC 2104, section 3).
const BYTES: usize = 32;

/// A new sealed key.
pub fn generate(
    id: i32,
    purpose: Purpose,
    now: Timestamp,
    entropy: &dyn Entropy,
    seal: &Seal,
) -> Result<SecretKey> {
    let mut plain = Zeroizing::new([0; BYTES]);
    entropy.fill(plain.as_mut());
    let key = SecretKey {
        id,
        purpose,
        sealed: Vec::new(),
        created_at: now,
    };
    sealed(key, plain.as_ref(), seal, entropy)
}

/// Seals what the row says together with the key.
fn sealed(key: SecretKey, plain: &[u8], seal: &Seal, entropy: &dyn Entropy) -> Result<SecretKey> {
    let (id, facts) = (key.id.to_string(), facts(&key));
    let sealed = seal.seal(&context(&key, &id, &facts), plain, entropy)?;
    Ok(SecretKey { sealed, ..key })
}

/// Opens a key; fails if its row says anything else than when it was sealed.
pub fn open<'a>(key: &SecretKey, sealer: &'a Sealer) -> Result<Opened<'a>> {
    let (id, facts) = (key.id.to_string(), facts(key));
    sealer.open(&context(key, &id, &facts), &key.sealed)
}

/// The key under the first master key of the ring; none if it is already.
pub fn rewrapped(
    key: &SecretKey,
    sealer: &Sealer,
    entropy: &dyn Entropy,
) -> Result<Option<SecretKey>> {
    let opened = open(key, sealer)?;
    if sealer.is_up_to_date(&opened) {
        return Ok(None);
    }
    sealed(key.clone(), &opened.plain, sealer.first(), entropy).map(Some)
}

fn context<'a>(key: &SecretKey, id: &'a str, facts: &'a str) -> Context<'a> {
    Context {
        purpose: key.purpose.as_str(),
        id,
        public_key: &[],
        facts,
    }
}

/// Its age decides which key makes.
fn facts(key: &SecretKey) -> String {
    key.created_at.as_microsecond().to_string()
}

/// The keys of one purpose, oldest first; at least one.
#[derive(Debug)]
pub(super) struct Ring {
    oldest: Member,
    younger: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    id: i32,
    created_at: Timestamp,
    key: hmac::Key,
}

impl Ring {
    /// Opens the keys of this purpose and passes over all others. Fails if
    /// there is none or one does not open.
    pub(super) fn open(keys: &[SecretKey], purpose: Purpose, sealer: &Sealer) -> Result<Self> {
        let mut members = keys
            .iter()
            .filter(|key| key.purpose == purpose)
            .map(|key| {
                let opened = open(key, sealer)?;
                Ok(Member {
                    id: key.id,
                    created_at: key.created_at,
                    key: hmac::Key::new(hmac::HMAC_SHA256, &opened.plain),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        members.sort_by_key(|member| (member.created_at, member.id));
        let mut members = members.into_iter();
        let oldest = members.next();
        let oldest = oldest
            .ok_or_else(|| Error::internal(format!("there is no {} key", purpose.as_str())))?;
        Ok(Self {
            oldest,
            younger: members.collect(),
        })
    }

    /// The key that makes, and its id: the newest that all nodes have had the
    /// time to hear of. A first key has nobody to wait for.
    pub(super) fn maker(&self, now: Timestamp) -> (i32, &hmac::Key) {
        let known = |member: &&Member| member.created_at + SecretKey::AHEAD <= now;
        let newest = self.younger.iter().rfind(known).unwrap_or(&self.oldest);
        (newest.id, &newest.key)
    }

    /// The first that there was.
    pub(super) fn first(&self) -> &hmac::Key {
        &self.oldest.key
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.oldest).chain(&self.younger)
    }

    /// The key of this id.
    pub(super) fn get(&self, id: i32) -> Option<&hmac::Key> {
        let mut members = self.members();
        let found = members.find(|member| member.id == id);
        found.map(|member| &member.key)
    }

    /// All ids, with their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i32, &hmac::Key)> {
        self.members().map(|member| (member.id, &member.key))
    }

    /// All keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &hmac::Key> {
        self.members().map(|member| &member.key)
    }
}

/// The first `N` bytes of HMAC-SHA-256 over the parts, one after the other;
/// `N` is 16 at the least and 32 at the most (RFC 2104, section 5). Callers
/// start with a label that nothing else starts with, and see to it that the
/// rest cannot be divided in two ways.
pub(super) fn mac<const N: usize>(key: &hmac::Key, parts: &[&[u8]]) -> [u8; N] {
    const { assert!(N >= 16 && N <= 32) };
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    let mut mac = [0; N];
    for (place, byte) in mac.iter_mut().zip(context.sign().as_ref()) {
        *place = *byte;
    }
    mac
}

/// Whether `own` and `other` are equal; in constant time.
pub(super) fn equal(own: &[u8], other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(own, other).is_ok()
}
