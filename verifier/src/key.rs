//! Public signing keys, and the set of them that is trusted.
//!
//! A key knows its own algorithm, and that one alone is used: what a token's header says is compared
//! with it, never obeyed (RFC 8725, section 3.1). Keys are parsed once, when they are made.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use thiserror::Error;

use crate::TOKEN_TYPE;

/// What a key signs with. There are no others: no HMAC, no RSA, no `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Ed25519 (RFC 8037), `EdDSA` on the wire.
    Ed25519,
    /// ECDSA on P-256 with SHA-256 (RFC 7518, section 3.4), `ES256` on the wire.
    Es256,
}

/// Where a key stands in its life. In each state its tokens verify: a key may be activated, or
/// retired, on another node before this one hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyState {
    /// Published, to sign later.
    Next,
    /// Signs.
    Active,
    /// Signs no more; kept until its last token has expired.
    Retired,
}

/// A public key that access tokens are signed with.
#[derive(Clone)]
pub struct PublicKey {
    kid: String,
    algorithm: Algorithm,
    state: KeyState,
    parsed: ParsedPublicKey,
    token_header: String,
}

/// The bytes are not a public key of the algorithm, or the key id is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a public key of this algorithm, or no key id")]
pub struct InvalidKey;

/// A public key as a JSON Web Key (RFC 7517; RFC 8037 for Ed25519, RFC 7518 for P-256).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Jwk {
    /// `OKP` or `EC`.
    pub kty: &'static str,
    /// `Ed25519` or `P-256`.
    pub crv: &'static str,
    /// The key, or its x coordinate; base64url without padding.
    pub x: String,
    /// The y coordinate of a P-256 key; base64url without padding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
    /// Key id.
    pub kid: String,
    /// `EdDSA` or `ES256`.
    pub alg: &'static str,
    /// Always `sig`.
    #[serde(rename = "use")]
    pub use_: &'static str,
}

/// The keys that are trusted, by key id. A copy is cheap; changing one copies it if it is shared.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Arc<BTreeMap<String, Arc<PublicKey>>>,
}

impl KeyState {
    /// The name, for people and databases.
    pub fn name(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Active => "active",
            Self::Retired => "retired",
        }
    }
}

impl Algorithm {
    /// The value of `alg` on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ed25519 => "EdDSA",
            Self::Es256 => "ES256",
        }
    }

    /// The algorithm of this name on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Ed25519, Self::Es256]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Ed25519 => &ED25519,
            Self::Es256 => &ECDSA_P256_SHA256_FIXED,
        }
    }

    /// How many bytes a raw public key has; for P-256 that is the uncompressed point (SEC 1, 2.3.3).
    fn public_key_bytes(self) -> usize {
        match self {
            Self::Ed25519 => 32,
            Self::Es256 => 65,
        }
    }
}

impl PublicKey {
    /// Makes a key from its raw public bytes: 32 for Ed25519, the 65 of the uncompressed point
    /// (`04 || x || y`) for P-256.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] if the bytes have another length or are no point of the curve, or `kid` is empty.
    pub fn new(
        kid: impl Into<String>,
        algorithm: Algorithm,
        state: KeyState,
        public: &[u8],
    ) -> Result<Self, InvalidKey> {
        let kid = kid.into();
        // The parser below would also take other encodings.
        if kid.is_empty() || public.len() != algorithm.public_key_bytes() {
            return Err(InvalidKey);
        }
        let parsed =
            ParsedPublicKey::new(algorithm.verification(), public).map_err(|_| InvalidKey)?;
        Ok(Self {
            token_header: token_header(algorithm, &kid),
            kid,
            algorithm,
            state,
            parsed,
        })
    }

    /// Key id.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What the key signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Where the key stands in its life.
    pub fn state(&self) -> KeyState {
        self.state
    }

    /// The raw public bytes, as [`new`](Self::new) takes them.
    pub fn public_bytes(&self) -> &[u8] {
        self.parsed.as_ref()
    }

    /// The header that the issuer writes into this key's tokens, as its base64url. It says the three
    /// things that must be said; a token whose header says them in other words is as good.
    pub fn token_header(&self) -> &str {
        &self.token_header
    }

    /// The key in the form that it is published in.
    pub fn jwk(&self) -> Jwk {
        let public = self.public_bytes();
        let (kty, crv, x, y) = match self.algorithm {
            Algorithm::Ed25519 => ("OKP", "Ed25519", public, None),
            Algorithm::Es256 => {
                let point = public.get(1..).unwrap_or_default();
                let (x, y) = point.split_at(point.len() / 2);
                ("EC", "P-256", x, Some(y))
            }
        };
        Jwk {
            kty,
            crv,
            x: URL_SAFE_NO_PAD.encode(x),
            y: y.map(|y| URL_SAFE_NO_PAD.encode(y)),
            kid: self.kid.clone(),
            alg: self.algorithm.name(),
            use_: "sig",
        }
    }

    /// Whether `signature` (for ES256 the 64 bytes `r || s`) is this key's over `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
    }

    /// Whether the two verify the same signatures, whatever their ids and states.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.algorithm == other.algorithm && self.public_bytes() == other.public_bytes()
    }
}

fn token_header(algorithm: Algorithm, kid: &str) -> String {
    let [alg, kid, typ] = [algorithm.name(), kid, TOKEN_TYPE].map(serde_json::Value::from);
    URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":{alg},"kid":{kid},"typ":{typ}}}"#))
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl KeySet {
    /// Adds a key, in place of one with the same id.
    pub fn insert(&mut self, key: PublicKey) {
        Arc::make_mut(&mut self.keys).insert(key.kid.clone(), Arc::new(key));
    }

    /// Drops a key; its tokens are unknown from then on.
    pub fn remove(&mut self, kid: &str) {
        if self.keys.contains_key(kid) {
            Arc::make_mut(&mut self.keys).remove(kid);
        }
    }

    /// The key with this id.
    pub fn get(&self, kid: &str) -> Option<&PublicKey> {
        self.keys.get(kid).map(Arc::as_ref)
    }

    /// The key whose tokens have exactly this header. There are a few keys: looking at each is fast.
    pub(crate) fn with_header(&self, header: &str) -> Option<&Arc<PublicKey>> {
        self.keys.values().find(|key| key.token_header == header)
    }

    pub(crate) fn shared(&self, kid: &str) -> Option<&Arc<PublicKey>> {
        self.keys.get(kid)
    }

    /// All keys, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.values().map(Arc::as_ref)
    }

    /// The keys as they are published: active ones first, then next, then retired.
    pub fn jwks(&self) -> Vec<Jwk> {
        let mut keys: Vec<&PublicKey> = self.iter().collect();
        // Stable, so keys in the same state stay in the order of their ids.
        keys.sort_by_key(|key| match key.state {
            KeyState::Active => 0,
            KeyState::Next => 1,
            KeyState::Retired => 2,
        });
        keys.into_iter().map(PublicKey::jwk).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(base64url: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(base64url).unwrap()
    }

    // RFC 8037, appendix A.2.
    const ED25519_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    // RFC 7515, appendix A.3.
    const P256_X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    const P256_Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";

    fn ed25519(kid: &str, state: KeyState) -> PublicKey {
        PublicKey::new(kid, Algorithm::Ed25519, state, &bytes(ED25519_X)).unwrap()
    }

    fn p256_point() -> Vec<u8> {
        [vec![4], bytes(P256_X), bytes(P256_Y)].concat()
    }

    fn p256(kid: &str, state: KeyState) -> PublicKey {
        PublicKey::new(kid, Algorithm::Es256, state, &p256_point()).unwrap()
    }

    #[test]
    fn ed25519_agrees_with_rfc_8037_a_4() {
        let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let mut signature = bytes(
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        );
        let key = ed25519("k", KeyState::Active);
        assert!(key.verifies(message, &signature));
        assert!(!p256("k", KeyState::Active).verifies(message, &signature));
        signature[0] ^= 1;
        assert!(!key.verifies(message, &signature));
    }

    #[test]
    fn es256_agrees_with_rfc_7515_a_3() {
        let message = concat!(
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQog",
            "Imh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
        );
        let mut signature = bytes(
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        );
        let key = p256("k", KeyState::Active);
        assert!(key.verifies(message.as_bytes(), &signature));
        assert!(!ed25519("k", KeyState::Active).verifies(message.as_bytes(), &signature));
        signature[63] ^= 1;
        assert!(!key.verifies(message.as_bytes(), &signature));
        // r = s = 0 verified everywhere in a famous bug of another library.
        assert!(!key.verifies(message.as_bytes(), &[0; 64]));
    }

    #[test]
    fn only_raw_public_keys_of_the_algorithm_are_taken() {
        let new = |kid: &str, algorithm, public: &[u8]| {
            PublicKey::new(kid, algorithm, KeyState::Active, public).map(|key| key.kid)
        };
        let off_curve = [vec![4], vec![1; 64]].concat();
        let compressed = [vec![3], bytes(P256_X)].concat();
        let spki_prefix = [
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ]
        .to_vec();
        let spki = [spki_prefix, bytes(ED25519_X)].concat();
        assert_eq!(new("k", Algorithm::Es256, &off_curve), Err(InvalidKey));
        assert_eq!(new("k", Algorithm::Es256, &compressed), Err(InvalidKey));
        assert_eq!(
            new("k", Algorithm::Es256, &bytes(ED25519_X)),
            Err(InvalidKey)
        );
        assert_eq!(new("k", Algorithm::Ed25519, &spki), Err(InvalidKey));
        assert_eq!(new("k", Algorithm::Ed25519, &p256_point()), Err(InvalidKey));
        assert_eq!(new("k", Algorithm::Ed25519, &[]), Err(InvalidKey));
        assert_eq!(
            new("", Algorithm::Ed25519, &bytes(ED25519_X)),
            Err(InvalidKey)
        );
    }

    #[test]
    fn a_key_is_found_by_the_header_that_the_issuer_writes() {
        let mut keys = KeySet::default();
        for (kid, alg) in [(r#"a "b" \c"#, "EdDSA"), ("é", "ES256")] {
            let key = match alg {
                "EdDSA" => ed25519(kid, KeyState::Active),
                _ => p256(kid, KeyState::Active),
            };
            let header = bytes(key.token_header());
            assert_eq!(
                serde_json::from_slice::<serde_json::Value>(&header).unwrap(),
                serde_json::json!({"alg": alg, "kid": kid, "typ": "at+jwt"})
            );
            keys.insert(key.clone());
            let found = keys.with_header(key.token_header()).unwrap();
            assert_eq!(found.kid(), kid);
        }
        assert!(keys.with_header("").is_none());
        keys.remove("é");
        assert!(
            keys.with_header(p256("é", KeyState::Active).token_header())
                .is_none()
        );
    }

    #[test]
    fn jwks_are_as_published_and_active_ones_come_first() {
        let mut keys = KeySet::default();
        keys.insert(ed25519("a", KeyState::Retired));
        keys.insert(ed25519("b", KeyState::Next));
        keys.insert(p256("c", KeyState::Active));
        keys.insert(ed25519("d", KeyState::Next));

        let jwks = keys.jwks();
        let kids: Vec<&str> = jwks.iter().map(|jwk| jwk.kid.as_str()).collect();
        assert_eq!(kids, ["c", "b", "d", "a"]);
        assert_eq!(
            serde_json::to_value(&jwks[..2]).unwrap(),
            serde_json::json!([
                {"kty": "EC", "crv": "P-256", "x": P256_X, "y": P256_Y, "kid": "c", "alg": "ES256", "use": "sig"},
                {"kty": "OKP", "crv": "Ed25519", "x": ED25519_X, "kid": "b", "alg": "EdDSA", "use": "sig"},
            ])
        );
    }

    #[test]
    fn a_copied_key_set_does_not_see_later_changes() {
        let mut keys = KeySet::default();
        keys.insert(ed25519("a", KeyState::Next));
        let copy = keys.clone();
        keys.insert(ed25519("a", KeyState::Active));
        assert_eq!(keys.get("a").map(PublicKey::state), Some(KeyState::Active));
        keys.remove("a");
        keys.remove("never there");
        assert!(keys.get("a").is_none());
        assert_eq!(copy.get("a").map(PublicKey::state), Some(KeyState::Next));
        assert_eq!(copy.iter().count(), 1);
    }
}
