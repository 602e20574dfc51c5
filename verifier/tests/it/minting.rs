//! A clock to turn, keys to sign with, and tokens as raw JSON, so that a test can write anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_verifier::{
    Algorithm, ApiKey, ApiKeyHash, ApiKeySecret, ApiKeys, Clock, KeySet, KeyState, Policy,
    PublicKey, Revocations, TrustState, Verifier, api_key_text,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) const ISSUER: &str = "https://auth.example.com";
pub(crate) const NOW: i64 = 1_800_000_000;
pub(crate) const USER: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
pub(crate) const SESSION: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0002);
pub(crate) const KEY: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0004);
pub(crate) const TOKEN: Uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0003);

/// Milliseconds, of both clocks.
#[derive(Debug, Default)]
pub(crate) struct MockClock {
    wall: AtomicI64,
    monotonic: AtomicI64,
}

impl MockClock {
    pub(crate) fn set_wall(&self, milliseconds: i64) {
        self.wall.store(milliseconds, Ordering::SeqCst);
    }

    pub(crate) fn advance_monotonic(&self, milliseconds: i64) {
        self.monotonic.fetch_add(milliseconds, Ordering::SeqCst);
    }
}

impl Clock for MockClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.wall.load(Ordering::SeqCst)).unwrap()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic.load(Ordering::SeqCst).try_into().unwrap())
    }
}

pub(crate) enum Signer {
    Ed25519(Ed25519KeyPair),
    Es256(EcdsaKeyPair),
}

impl Signer {
    pub(crate) fn ed25519() -> Self {
        Self::Ed25519(Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap())
    }

    /// An Ed25519 key that is trusted nowhere.
    pub(crate) fn foreign() -> Self {
        Self::Ed25519(Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap())
    }

    pub(crate) fn es256() -> Self {
        // The key of RFC 7515, appendix A.3.
        let private = decode("jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI");
        let x = decode("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU");
        let y = decode("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0");
        let public = [vec![4], x, y].concat();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        Self::Es256(
            EcdsaKeyPair::from_private_key_and_public_key(algorithm, &private, &public).unwrap(),
        )
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Es256(pair) => pair
                .sign(&SystemRandom::new(), message)
                .unwrap()
                .as_ref()
                .to_vec(),
        }
    }

    pub(crate) fn public(&self, kid: &str, state: KeyState) -> PublicKey {
        let (algorithm, bytes) = match self {
            Self::Ed25519(pair) => (Algorithm::Ed25519, pair.public_key().as_ref()),
            Self::Es256(pair) => (Algorithm::Es256, pair.public_key().as_ref()),
        };
        PublicKey::new(kid, algorithm, state, bytes).unwrap()
    }

    /// Encodes and signs this text as it stands.
    pub(crate) fn token(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self.sign(signed.as_bytes());
        format!("{signed}.{}", encode(signature))
    }
}

/// A verifier at `NOW` that trusts the Ed25519 key as "ed" and the P-256 key as "p256".
pub(crate) fn verifier() -> (Verifier, Arc<MockClock>) {
    let clock = Arc::new(MockClock::default());
    clock.set_wall(NOW * 1000);
    let verifier = Verifier::new(clock.clone(), Policy::default());
    verifier.replace(trust_state());
    (verifier, clock)
}

/// The text of the API key number `n`.
pub(crate) fn secret(n: u8) -> String {
    api_key_text(&[n; 24])
}

/// A good API key, `USER`'s for "orders", with these secrets and until when each is good.
pub(crate) fn api_key(secrets: &[(&str, Option<i64>)]) -> ApiKey {
    let at = |second| Timestamp::from_second(second).unwrap();
    let secrets = secrets.iter().map(|(text, until)| ApiKeySecret {
        hash: ApiKeyHash::of(text).unwrap(),
        expires_at: until.map(at),
    });
    ApiKey {
        id: KEY,
        owner: USER,
        name: "importer".into(),
        scopes: vec!["orders.read".into()],
        audience: vec!["orders".into()],
        created_at: at(NOW - 60),
        expires_at: None,
        secrets: secrets.collect(),
    }
}

pub(crate) fn trust_state() -> TrustState {
    let mut keys = KeySet::default();
    keys.insert(Signer::ed25519().public("ed", KeyState::Active));
    keys.insert(Signer::es256().public("p256", KeyState::Next));
    TrustState {
        issuer: ISSUER.into(),
        audiences: vec!["orders".into(), "billing".into()],
        keys,
        revocations: Revocations::default(),
        api_keys: ApiKeys::default(),
        seq: 41,
        nonce: Uuid::nil(),
    }
}

pub(crate) fn good_header() -> Value {
    json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "ed"})
}

pub(crate) fn good_claims() -> Value {
    json!({
        "iss": ISSUER, "sub": USER, "aud": ["orders"], "exp": NOW + 900, "iat": NOW, "nbf": NOW,
        "jti": TOKEN, "sid": SESSION, "client_id": "countersign", "scope": "orders.read orders.write",
        "roles": ["clerk"], "amr": ["pwd"], "auth_time": NOW - 60, "epoch": 3,
    })
}

pub(crate) fn good_token() -> String {
    with(json!({}), json!({}))
}

/// A good Ed25519 token, but for these members; `null` takes a member away.
pub(crate) fn with(header: Value, claims: Value) -> String {
    let header = merged(good_header(), header);
    let claims = merged(good_claims(), claims);
    Signer::ed25519().token(&header.to_string(), &claims.to_string())
}

pub(crate) fn merged(mut base: Value, changes: Value) -> Value {
    let members = base.as_object_mut().unwrap();
    let Value::Object(changes) = changes else {
        panic!("changes are an object")
    };
    for (name, value) in changes {
        if value.is_null() {
            members.remove(&name);
        } else {
            members.insert(name, value);
        }
    }
    base
}

/// `text`, an object, with one more member written at its end.
pub(crate) fn appended(text: &Value, member: &str) -> String {
    let text = text.to_string();
    format!("{},{member}}}", text.strip_suffix('}').unwrap())
}

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn decode(base64url: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(base64url).unwrap()
}
