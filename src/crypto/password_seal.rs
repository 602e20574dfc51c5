//! Password hashes at rest, sealed: a pepper, without which who has the database
//! alone has nothing to guess at (NIST SP 800-63B-4, section 3.1.1.2).
//!
//! The hash is made as ever and encrypted afterwards; nothing is mixed into the
//! password before. So a key is changed without anybody's password, and the lanes
//! know nothing of it. The keys are of the purpose `password`, sealed under the
//! master key as all others: changing that touches no account.
//!
//! A sealed hash is
//!
//! ```text
//! $sealed$v=1$KEY ID$base64 of nonce 12, ciphertext and tag
//! ```
//!
//! by AES-256-GCM, with key id and account as associated data: it opens for no
//! other account. Nonces are random, and one key seals far less than the 2^32 of
//! NIST SP 800-38D, section 8.3. Opening one takes some microseconds of a login's
//! many milliseconds.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use jiff::Timestamp;
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

use super::{
    seal::Sealer,
    secret_key::{Ring, mac},
};
use crate::{
    domain::{
        Entropy, PasswordHash, StoredPassword, UserId,
        signing_key::{Purpose, SecretKey},
    },
    error::{Error, Result},
};

const SEALED: &str = "$sealed$";
const VERSION: &str = "v=1$";
/// Ids of keys begin at 1.
const NO_KEY: i32 = 0;
const KEY: &[u8] = b"countersign password hash key v1\0";
const LABEL: &[u8] = b"countersign password hash v1\0";

/// The keys that password hashes are sealed under; there may be none.
#[derive(Debug)]
pub struct PasswordKeys(Option<Ring>);

/// A sealed hash did not open.
#[derive(Debug, ThisError)]
enum Shut {
    #[error("a password hash is sealed under the password key {0}, which there is not")]
    NoKey(i32),
    #[error("a password hash does not open: its row was altered, or it is of another account")]
    Altered,
}

impl PasswordKeys {
    /// Opens the password keys among these.
    pub fn open(keys: &[SecretKey], sealer: &Sealer) -> Result<Self> {
        let any = keys.iter().any(|key| key.purpose == Purpose::Password);
        let ring = any.then(|| Ring::open(keys, Purpose::Password, sealer));
        ring.transpose().map(Self)
    }

    /// Seals a hash for its account, under the key that makes.
    pub fn seal(
        &self,
        now: Timestamp,
        user_id: UserId,
        hash: &PasswordHash,
        entropy: &dyn Entropy,
    ) -> Result<StoredPassword> {
        let ring = self.0.as_ref();
        let ring = ring.ok_or_else(|| Error::internal("there is no password key"))?;
        let (id, key) = ring.maker(now);
        let nonce: [u8; NONCE_LEN] = entropy.array();
        let mut text = hash.as_phc().as_bytes().to_vec();
        aead(key)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place(id, user_id)),
                &mut text,
            )
            .map_err(Error::internal)?;
        let body = STANDARD_NO_PAD.encode([nonce.as_slice(), &text].concat());
        Ok(StoredPassword::new(format!("{}{body}", head(id))))
    }

    /// Whether the key is there that it is sealed under, if it is.
    pub fn has_key_of(&self, stored: &StoredPassword) -> bool {
        key_of(stored).is_none_or(|id| id == NO_KEY || self.get(id).is_some())
    }

    /// The hash, for its account; one that was never sealed is as it is.
    pub fn unseal(&self, user_id: UserId, stored: &StoredPassword) -> Result<PasswordHash> {
        let Some((id, body)) = parts(stored) else {
            return Ok(PasswordHash::from_phc(stored.as_str().to_owned()));
        };
        let opened = match self.get(id) {
            None if id != NO_KEY => return Err(Error::internal(Shut::NoKey(id))),
            key => key.and_then(|key| open(key, &place(id, user_id), body)),
        };
        opened
            .map(PasswordHash::from_phc)
            .ok_or_else(|| Error::internal(Shut::Altered))
    }

    /// Whether it is stored as it would be now: sealed under the key that makes, or
    /// not at all.
    pub fn is_current(&self, now: Timestamp, stored: &StoredPassword, sealed: bool) -> bool {
        let maker = self.0.as_ref().map(|ring| ring.maker(now).0);
        key_of(stored) == maker.filter(|_| sealed)
    }

    fn get(&self, id: i32) -> Option<&hmac::Key> {
        self.0.as_ref()?.get(id)
    }
}

/// How all hashes begin that are sealed under this key, and no others.
pub fn head(id: i32) -> String {
    format!("{SEALED}{VERSION}{id}$")
}

/// The id of the key that a hash is sealed under; none for one that is not sealed.
pub fn key_of(stored: &StoredPassword) -> Option<i32> {
    parts(stored).map(|(id, _)| id)
}

/// The id of the key and the body of a sealed hash; none for one that is not
/// sealed. One that cannot be read is of [`NO_KEY`].
fn parts(stored: &StoredPassword) -> Option<(i32, &str)> {
    let rest = stored.as_str().strip_prefix(SEALED)?;
    let read = || {
        let (id, _) = rest.strip_prefix(VERSION)?.split_once('$')?;
        let id = id.parse().ok()?;
        // Not `+1` nor `01`, which [`head`] would not find.
        Some((id, stored.as_str().strip_prefix(&head(id))?))
    };
    Some(read().unwrap_or((NO_KEY, "")))
}

fn open(key: &hmac::Key, place: &[u8], body: &str) -> Option<String> {
    let bytes = STANDARD_NO_PAD.decode(body).ok()?;
    let (nonce, text) = bytes.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut plain = text.to_vec();
    let opened = aead(key)
        .ok()?
        .open_in_place(nonce, Aad::from(place), &mut plain);
    let length = opened.ok()?.len();
    plain.truncate(length);
    String::from_utf8(plain).ok()
}

/// What is bound in.
fn place(id: i32, user_id: UserId) -> Vec<u8> {
    [LABEL, &id.to_be_bytes(), user_id.0.as_bytes()].concat()
}

fn aead(key: &hmac::Key) -> Result<LessSafeKey> {
    let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(mac(key, &[KEY]));
    let key = UnboundKey::new(&AES_256_GCM, bytes.as_ref()).map_err(Error::internal)?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::crypto::{
        master_key::{MasterKey, MasterKeys},
        secret_key,
        testing::Seeded,
    };

    const HASH: &str = "$argon2id$v=19$m=64,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$LfR+3mNY7Repl21PztuJehADbUMqSs7xfSY7/Ji9IKw";

    fn hash() -> PasswordHash {
        PasswordHash::from_phc(HASH.to_owned())
    }

    fn user(number: u128) -> UserId {
        UserId(uuid::Uuid::from_u128(number))
    }

    /// Password keys of these ids, each a minute younger than the one before.
    fn keys(ids: &[i32]) -> PasswordKeys {
        // Each key follows from its id.
        keys_from(ids, |id| u64::try_from(id).unwrap())
    }

    fn keys_from(ids: &[i32], seed: impl Fn(i32) -> u64) -> PasswordKeys {
        let entropy = Seeded::new(7);
        let ring: MasterKeys = MasterKey::generate(&entropy).into();
        let sealer = Sealer::new(&ring).unwrap();
        let keys: Vec<_> = ids
            .iter()
            .map(|id| {
                let at = Timestamp::UNIX_EPOCH + SignedDuration::from_mins(i64::from(*id));
                let entropy = Seeded::new(seed(*id));
                secret_key::generate(*id, Purpose::Password, at, &entropy, sealer.first()).unwrap()
            })
            .collect();
        PasswordKeys::open(&keys, &sealer).unwrap()
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
    }

    #[test]
    fn a_sealed_hash_opens_for_its_account_only() {
        let keys = keys(&[3]);
        let sealed = keys.seal(at(9), user(1), &hash(), &Seeded::new(1)).unwrap();
        assert!(sealed.as_str().starts_with("$sealed$v=1$3$"));
        assert!(!sealed.as_str().contains("argon2"));
        assert_eq!(keys.unseal(user(1), &sealed).unwrap(), hash());
        assert!(keys.unseal(user(2), &sealed).is_err());
        let again = keys.seal(at(9), user(1), &hash(), &Seeded::new(2)).unwrap();
        assert_ne!(again, sealed);
    }

    #[test]
    fn no_altered_character_is_accepted() {
        let keys = keys(&[3, 4]);
        let sealed = keys.seal(at(3), user(1), &hash(), &Seeded::new(1)).unwrap();
        for at in 0..sealed.as_str().len() {
            let mut text = sealed.as_str().as_bytes().to_vec();
            text[at] = if text[at] == b'4' { b'3' } else { b'4' };
            let text = StoredPassword::new(String::from_utf8(text).unwrap());
            // Where the head is altered, it is a hash that no lane takes.
            if let Ok(opened) = keys.unseal(user(1), &text) {
                assert_eq!(opened.as_phc(), text.as_str());
            }
        }
        for text in [
            "$sealed$v=1$",
            "$sealed$v=1$3",
            "$sealed$v=1$3$",
            "$sealed$v=1$x$AAAA",
            &sealed.as_str().replacen("$3$", "$+3$", 1),
            &sealed.as_str().replacen("$3$", "$03$", 1),
        ] {
            assert!(
                keys.unseal(user(1), &StoredPassword::new(text.to_owned()))
                    .is_err()
            );
        }
    }

    #[test]
    fn the_id_of_the_key_is_bound_in() {
        // Two rows that hold one key.
        let keys = keys_from(&[3, 4], |_| 7);
        let sealed = keys.seal(at(3), user(1), &hash(), &Seeded::new(1)).unwrap();
        assert!(keys.unseal(user(1), &sealed).is_ok());
        let other = sealed.as_str().replacen("$3$", "$4$", 1);
        assert!(keys.unseal(user(1), &StoredPassword::new(other)).is_err());
    }

    #[test]
    fn what_is_not_sealed_is_as_it_is() {
        let stored = StoredPassword::new(HASH.to_owned());
        for keys in [keys(&[]), keys(&[1])] {
            assert!(keys.has_key_of(&stored));
            assert_eq!(keys.unseal(user(1), &stored).unwrap(), hash());
            assert!(keys.is_current(at(9), &stored, false));
        }
        assert!(!keys(&[1]).is_current(at(9), &stored, true));
        assert!(
            keys(&[])
                .seal(at(9), user(1), &hash(), &Seeded::new(1))
                .is_err()
        );
    }

    #[test]
    fn a_new_key_takes_over_and_the_old_one_opens() {
        let (one, both) = (keys(&[1]), keys(&[1, 5]));
        let old = one.seal(at(3), user(1), &hash(), &Seeded::new(1)).unwrap();
        assert!(one.is_current(at(9), &old, true) && !one.is_current(at(9), &old, false));
        // Not before all nodes have had the time to hear of it.
        assert!(both.is_current(at(5), &old, true));
        assert!(!both.is_current(at(6), &old, true));
        assert_eq!(both.unseal(user(1), &old).unwrap(), hash());
        let new = both.seal(at(6), user(1), &hash(), &Seeded::new(2)).unwrap();
        assert!(new.as_str().starts_with("$sealed$v=1$5$"));
        assert!(!one.has_key_of(&new) && both.has_key_of(&new));
        let error = one.unseal(user(1), &new).unwrap_err();
        assert!(crate::error::chain(&error).contains("the password key 5, which there is not"));
    }
}
