//! API keys: opaque secrets that stand where an access token stands.
//!
//! ```text
//! csk_ base64url( 24 random bytes ) checksum 4
//! ```
//!
//! The issuer and every validator hold SHA-256 digests only. 192 random bits need no slow hash: there
//! is nothing to guess. The checksum is no security: by it a secret scanner tells a key from chance,
//! and a typing error is seen without a look-up.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use rpds::HashTrieMapSync;
use uuid::Uuid;

use crate::{Caller, Credential, Rejection, Subject};

/// What every API key starts with.
pub const API_KEY_PREFIX: &str = "csk_";

/// The length of every API key: 24 bytes are 32 characters, and a checksum of 3 bytes is 4.
pub const API_KEY_LENGTH: usize = API_KEY_PREFIX.len() + 32 + CHECKSUM;

const CHECKSUM: usize = 4;

/// The SHA-256 digest of an API key's text: all that is stored and sent of the secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApiKeyHash(pub [u8; 32]);

/// A live API key, as validators know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: Uuid,
    /// The user who owns it and for whom it acts.
    pub owner: Uuid,
    /// What its owner called it.
    pub name: String,
    /// What it may do now: what it was given, less what its owner may not do any more.
    pub scopes: Vec<String>,
    /// Whom it is meant for.
    pub audience: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// The digests by which it is known.
    pub secrets: Vec<ApiKeySecret>,
}

/// One digest of an API key. After a rotation there are two for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiKeySecret {
    /// The digest.
    pub hash: ApiKeyHash,
    /// From when on this secret is refused, if its successor has been made.
    pub expires_at: Option<Timestamp>,
}

/// The live API keys. A copy costs nothing and shares all that does not change.
#[derive(Clone, Default)]
pub struct ApiKeys {
    by_id: HashTrieMapSync<Uuid, Arc<ApiKey>>,
    /// Whom each secret speaks for, made once; no two keys share a secret.
    by_hash: HashTrieMapSync<ApiKeyHash, Arc<Caller>>,
}

impl ApiKeyHash {
    /// The digest of an API key, if the text has the form of one.
    pub fn of(text: &str) -> Option<Self> {
        if text.len() != API_KEY_LENGTH || !text.starts_with(API_KEY_PREFIX) {
            return None;
        }
        let (body, sum) = text.split_at_checked(API_KEY_LENGTH - CHECKSUM)?;
        if sum != checksum(body) {
            return None;
        }
        digest(&SHA256, text.as_bytes())
            .as_ref()
            .try_into()
            .ok()
            .map(Self)
    }
}

/// Writes the text of an API key from 24 random bytes.
pub fn api_key_text(random: &[u8; 24]) -> String {
    let mut text = String::with_capacity(API_KEY_LENGTH);
    text.push_str(API_KEY_PREFIX);
    URL_SAFE_NO_PAD.encode_string(random, &mut text);
    let sum = checksum(&text);
    text.push_str(&sum);
    text
}

fn checksum(body: &str) -> String {
    let digest = digest(&SHA256, body.as_bytes());
    URL_SAFE_NO_PAD.encode(digest.as_ref().get(..3).unwrap_or_default())
}

/// A digest is no secret, but it names one: the first bytes will do.
impl fmt::Debug for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.0.first_chunk().copied().map(u32::from_be_bytes);
        write!(f, "ApiKeyHash({:08x}…)", start.unwrap_or_default())
    }
}

/// Counts, not entries.
impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys")
            .field("keys", &self.len())
            .finish()
    }
}

impl ApiKeys {
    /// Adds a key, in place of the one with the same id.
    pub fn insert(&mut self, key: ApiKey) {
        self.remove(key.id);
        for secret in &key.secrets {
            let caller = Arc::new(key.caller(*secret));
            self.by_hash.insert_mut(secret.hash, caller);
        }
        self.by_id.insert_mut(key.id, Arc::new(key));
    }

    /// Drops a key; it is unknown from then on.
    pub fn remove(&mut self, id: Uuid) {
        if let Some(key) = self.by_id.get(&id).cloned() {
            for secret in &key.secrets {
                self.by_hash.remove_mut(&secret.hash);
            }
            self.by_id.remove_mut(&id);
        }
    }

    /// The key with this id.
    pub fn get(&self, id: Uuid) -> Option<&Arc<ApiKey>> {
        self.by_id.get(&id)
    }

    /// All keys, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ApiKey>> {
        self.by_id.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.size()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whom the key with this secret speaks for, or did until it ended.
    pub(crate) fn known(&self, hash: ApiKeyHash) -> Option<&Arc<Caller>> {
        self.by_hash.get(&hash)
    }

    /// Whom the key with this secret speaks for, at this time. No leeway: such a key lives long.
    pub(crate) fn caller(
        &self,
        hash: ApiKeyHash,
        now: Timestamp,
    ) -> Result<&Arc<Caller>, Rejection> {
        let caller = self.by_hash.get(&hash).ok_or(Rejection::UnknownApiKey)?;
        if caller.expires_at.is_some_and(|at| at <= now) {
            return Err(Rejection::Expired);
        }
        Ok(caller)
    }
}

impl ApiKey {
    fn caller(&self, secret: ApiKeySecret) -> Caller {
        Caller {
            subject: Subject::User(self.owner),
            credential: Credential::ApiKey {
                id: self.id,
                hash: secret.hash,
            },
            // Its owner chose the name, which must not pass for a workload's.
            client_id: format!("api_key:{}", self.name),
            roles: Vec::new(),
            scopes: self.scopes.clone(),
            audience: self.audience.clone(),
            issued_at: self.created_at,
            expires_at: [self.expires_at, secret.expires_at]
                .into_iter()
                .flatten()
                .min(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u128, secrets: &[(&str, Option<i64>)], expires_at: Option<i64>) -> ApiKey {
        let at = |second| Timestamp::from_second(second).unwrap();
        ApiKey {
            id: Uuid::from_u128(id),
            owner: Uuid::from_u128(9),
            name: "importer".into(),
            scopes: vec!["orders.read".into()],
            audience: vec!["orders".into()],
            created_at: at(1),
            expires_at: expires_at.map(at),
            secrets: secrets
                .iter()
                .map(|(text, until)| ApiKeySecret {
                    hash: ApiKeyHash::of(text).unwrap(),
                    expires_at: until.map(at),
                })
                .collect(),
        }
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_text_with_any_character_changed_is_no_key() {
        let text = api_key_text(&[7; 24]);
        assert_eq!(text.len(), API_KEY_LENGTH);
        assert!(ApiKeyHash::of(&text).is_some());
        for i in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[i] = if bytes[i] == b'x' { b'y' } else { b'x' };
            assert_eq!(
                ApiKeyHash::of(std::str::from_utf8(&bytes).unwrap()),
                None,
                "{i}"
            );
        }
        assert_eq!(ApiKeyHash::of(&text[1..]), None);
        assert_eq!(ApiKeyHash::of(&format!("{text}A")), None);
        assert_eq!(ApiKeyHash::of(&"é".repeat(API_KEY_LENGTH / 2)), None);
    }

    #[test]
    fn a_key_is_known_by_each_of_its_secrets_until_that_ends() {
        let (old, new) = (api_key_text(&[1; 24]), api_key_text(&[2; 24]));
        let mut keys = ApiKeys::default();
        keys.insert(key(1, &[(&old, Some(100)), (&new, None)], Some(200)));
        let until = |text: &str, now| {
            keys.caller(ApiKeyHash::of(text).unwrap(), second(now))
                .map(|caller| caller.expires_at)
        };
        assert_eq!(until(&old, 99), Ok(Some(second(100))));
        assert_eq!(until(&old, 100), Err(Rejection::Expired));
        assert_eq!(until(&new, 199), Ok(Some(second(200))));
        assert_eq!(until(&new, 200), Err(Rejection::Expired));
        assert_eq!(
            until(&api_key_text(&[3; 24]), 1),
            Err(Rejection::UnknownApiKey)
        );
    }

    #[test]
    fn a_key_put_in_place_of_another_leaves_nothing_of_it() {
        let (old, new) = (api_key_text(&[1; 24]), api_key_text(&[2; 24]));
        let knows = |keys: &ApiKeys, text: &str| {
            keys.caller(ApiKeyHash::of(text).unwrap(), second(2))
                .is_ok()
        };
        let mut keys = ApiKeys::default();
        keys.insert(key(1, &[(&old, None)], None));
        let copy = keys.clone();
        keys.insert(key(1, &[(&new, None)], None));
        assert_eq!(keys.len(), 1);
        assert!(!knows(&keys, &old) && knows(&keys, &new));
        assert!(knows(&copy, &old) && !knows(&copy, &new));
        keys.remove(Uuid::from_u128(1));
        assert!(keys.is_empty() && !knows(&keys, &new));
    }

    #[test]
    fn debug_shows_no_whole_digest() {
        let hash = ApiKeyHash([0xab; 32]);
        assert_eq!(format!("{hash:?}"), "ApiKeyHash(abababab…)");
        assert_eq!(format!("{:?}", ApiKeys::default()), "ApiKeys { keys: 0 }");
    }
}
