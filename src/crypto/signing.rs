//! Signing keys: made, sealed, and put to work on access tokens.
//!
//! A key is named by its thumbprint (RFC 7638), so that an id cannot come to
//! mean another key, and no two keys share one. The private half is PKCS#8 and
//! leaves this file sealed only.
//!
//! A [`Signer`] keeps its parsed key pair: parsing the key for each signature,
//! as a general JWT library does, doubles what a token costs. What a token
//! says, and which key is active, is for callers to decide.

use std::fmt;

use aws_lc_rs::{
    digest,
    error::Unspecified,
    pkcs8::Document,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, Signature,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign_verifier::{Algorithm, Claims, KeyState, PublicKey};
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::seal::{Context, Opened, Seal, Sealer};
use crate::{
    domain::{Entropy, signing_key::SigningKey},
    error::{Error, Result},
};

const PURPOSE: &str = "signing";

/// Signs access tokens with one key.
pub struct Signer {
    kid: String,
    pair: Pair,
    /// What every token starts with: its header and the dot behind it.
    header: String,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    Es256(EcdsaKeyPair),
}

/// A new sealed key pair. Ed25519 takes its seed from `entropy`; P-256 comes
/// from the cryptographic library's own generator, which takes no seed.
pub fn generate(
    algorithm: Algorithm,
    state: KeyState,
    now: Timestamp,
    entropy: &dyn Entropy,
    seal: &Seal,
) -> Result<SigningKey> {
    let pair = Pair::generate(algorithm, entropy)?;
    let public_key = pair.public_key().to_vec();
    let private = pair.to_pkcs8().map_err(Error::internal)?;
    let key = SigningKey {
        kid: thumbprint(algorithm, &public_key)?,
        algorithm,
        state,
        public_key,
        sealed: Vec::new(),
        created_at: now,
        changed_at: now,
        verify_until: None,
    };
    sealed(key, private.as_ref(), seal, entropy)
}

/// Seals what the row says together with the private half. A retired key has
/// none any more, so that nobody can have it sign again: what is left of the text
/// is its tag.
fn sealed(
    key: SigningKey,
    private: &[u8],
    seal: &Seal,
    entropy: &dyn Entropy,
) -> Result<SigningKey> {
    let plain = match key.state {
        KeyState::Retired => &[],
        KeyState::Next | KeyState::Active => private,
    };
    let sealed = seal.seal(&context(&key, &facts(&key)), plain, entropy)?;
    Ok(SigningKey { sealed, ..key })
}

/// Opens a key; fails if its row says anything else than when it was sealed.
pub fn open<'a>(key: &SigningKey, sealer: &'a Sealer) -> Result<Opened<'a>> {
    sealer.open(&context(key, &facts(key)), &key.sealed)
}

/// The next key as the one that signs.
pub fn activated(
    key: &SigningKey,
    now: Timestamp,
    sealer: &Sealer,
    entropy: &dyn Entropy,
) -> Result<SigningKey> {
    let active = SigningKey {
        state: KeyState::Active,
        changed_at: now,
        ..key.clone()
    };
    let opened = open(key, sealer)?;
    sealed(active, &opened.plain, opened.seal, entropy)
}

/// The active key as one that signs no more, and whose tokens verify until then.
pub fn retired(
    key: &SigningKey,
    now: Timestamp,
    verify_until: Timestamp,
    sealer: &Sealer,
    entropy: &dyn Entropy,
) -> Result<SigningKey> {
    let retired = SigningKey {
        state: KeyState::Retired,
        changed_at: now,
        verify_until: Some(verify_until),
        ..key.clone()
    };
    sealed(retired, &[], open(key, sealer)?.seal, entropy)
}

/// The key under the first master key of the ring; none if it is already.
pub fn rewrapped(
    key: &SigningKey,
    sealer: &Sealer,
    entropy: &dyn Entropy,
) -> Result<Option<SigningKey>> {
    let opened = open(key, sealer)?;
    if sealer.is_up_to_date(&opened) {
        return Ok(None);
    }
    sealed(key.clone(), &opened.plain, sealer.first(), entropy).map(Some)
}

fn context<'a>(key: &'a SigningKey, facts: &'a str) -> Context<'a> {
    Context {
        purpose: PURPOSE,
        id: &key.kid,
        public_key: &key.public_key,
        facts,
    }
}

fn facts(key: &SigningKey) -> String {
    format!(
        "{} {} {} {} {}",
        key.algorithm.name(),
        key.state.name(),
        key.created_at.as_microsecond(),
        key.changed_at.as_microsecond(),
        key.verify_until.map_or(0, Timestamp::as_microsecond),
    )
}

/// SHA-256 over the required members of the JSON Web Key in the order of their
/// names (RFC 7638, section 3), as base64url.
fn thumbprint(algorithm: Algorithm, public_key: &[u8]) -> Result<String> {
    // The id is not among those members.
    let jwk = PublicKey::new("none yet", algorithm, KeyState::Next, public_key)
        .map_err(Error::internal)?
        .jwk();
    // Nothing in it needs to be escaped: two names and base64url.
    let y = jwk.y.map(|y| format!(r#","y":"{y}""#)).unwrap_or_default();
    let members = format!(
        r#"{{"crv":"{}","kty":"{}","x":"{}"{y}}}"#,
        jwk.crv, jwk.kty, jwk.x
    );
    let digest = digest::digest(&digest::SHA256, members.as_bytes());
    Ok(URL_SAFE_NO_PAD.encode(digest))
}

impl Signer {
    /// Opens a stored key. Fails if it does not open, or its halves do not
    /// belong together.
    pub fn open(key: &SigningKey, sealer: &Sealer) -> Result<Self> {
        let private = open(key, sealer)?;
        let pair = Pair::from_pkcs8(key.algorithm, &private.plain)?;
        if pair.public_key() != key.public_key {
            return Err(Error::internal(format!(
                "the halves of the signing key {} do not belong together",
                key.kid
            )));
        }
        let public = PublicKey::new(&*key.kid, key.algorithm, key.state, &key.public_key);
        let header = public.map_err(Error::internal)?.token_header().to_owned();
        Ok(Self {
            kid: key.kid.clone(),
            pair,
            header: header + ".",
        })
    }

    /// The id of the key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// An access token that says this (RFC 7515, compact serialisation).
    pub fn sign(&self, claims: &Claims) -> Result<String> {
        let claims = serde_json::to_vec(claims).map_err(Error::internal)?;
        let mut token = String::with_capacity(self.header.len() + claims.len() * 4 / 3 + 96);
        token.push_str(&self.header);
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.pair.sign(token.as_bytes()).map_err(Error::internal)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

impl Pair {
    fn generate(algorithm: Algorithm, entropy: &dyn Entropy) -> Result<Self> {
        match algorithm {
            Algorithm::Ed25519 => {
                let seed: Zeroizing<[u8; 32]> = Zeroizing::new(entropy.array());
                // Unchecked: there is no public half yet to compare with.
                Ed25519KeyPair::from_seed_unchecked(seed.as_ref())
                    .map(Self::Ed25519)
                    .map_err(Error::internal)
            }
            Algorithm::Es256 => EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
                .map(Self::Es256)
                .map_err(Error::internal),
        }
    }

    fn from_pkcs8(algorithm: Algorithm, private: &[u8]) -> Result<Self> {
        match algorithm {
            Algorithm::Ed25519 => Ed25519KeyPair::from_pkcs8(private).map(Self::Ed25519),
            Algorithm::Es256 => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private).map(Self::Es256)
            }
        }
        .map_err(Error::internal)
    }

    fn to_pkcs8(&self) -> Result<Document, Unspecified> {
        match self {
            Self::Ed25519(pair) => pair.to_pkcs8(),
            Self::Es256(pair) => pair.to_pkcs8v1(),
        }
    }

    fn public_key(&self) -> &[u8] {
        match self {
            Self::Ed25519(pair) => pair.public_key().as_ref(),
            Self::Es256(pair) => pair.public_key().as_ref(),
        }
    }

    /// For ES256 the fixed form `r || s` (RFC 7518, section 3.4).
    fn sign(&self, message: &[u8]) -> Result<Signature, Unspecified> {
        match self {
            Self::Ed25519(pair) => pair.try_sign(message),
            Self::Es256(pair) => pair.sign(&SystemRandom::new(), message),
        }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, jwk};
    use uuid::Uuid;

    use super::*;
    use crate::crypto::{MasterKey, testing::Seeded};

    const BOTH: [Algorithm; 2] = [Algorithm::Ed25519, Algorithm::Es256];

    fn sealer(seed: u64) -> Sealer {
        Sealer::new(&MasterKey::generate(&Seeded::new(seed)).into()).unwrap()
    }

    fn key(algorithm: Algorithm, seed: u64) -> SigningKey {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let entropy = Seeded::new(seed);
        generate(
            algorithm,
            KeyState::Active,
            now,
            &entropy,
            sealer(1).first(),
        )
        .unwrap()
    }

    fn claims() -> Claims {
        Claims {
            iss: "https://auth.example.com".into(),
            sub: Uuid::from_u128(1),
            aud: vec!["orders".into()],
            exp: 4_000_000_900,
            iat: 4_000_000_000,
            nbf: 4_000_000_000,
            jti: Uuid::from_u128(2),
            sid: Uuid::from_u128(3),
            client_id: "countersign".into(),
            scope: "users.read".into(),
            roles: vec!["admin".into()],
            amr: vec!["pwd".into()],
            auth_time: 4_000_000_000,
            epoch: 7,
        }
    }

    /// Another implementation reads our token with our published key.
    fn read_by_jsonwebtoken(key: &SigningKey, token: &str) -> jsonwebtoken::errors::Result<Claims> {
        let public = PublicKey::new(&*key.kid, key.algorithm, key.state, &key.public_key).unwrap();
        let jwk = serde_json::to_value(public.jwk()).unwrap();
        let jwk: jwk::Jwk = serde_json::from_value(jwk).unwrap();
        let mut validation = Validation::new(match key.algorithm {
            Algorithm::Ed25519 => jsonwebtoken::Algorithm::EdDSA,
            Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
        });
        validation.set_audience(&["orders"]);
        validation.validate_nbf = false;
        let decoding = DecodingKey::from_jwk(&jwk).unwrap();
        jsonwebtoken::decode(token, &decoding, &validation).map(|token| token.claims)
    }

    #[test]
    fn another_implementation_verifies_our_tokens() {
        for algorithm in BOTH {
            let key = key(algorithm, 2);
            let signer = Signer::open(&key, &sealer(1)).unwrap();
            assert_eq!(signer.kid(), key.kid);
            let token = signer.sign(&claims()).unwrap();
            assert_eq!(read_by_jsonwebtoken(&key, &token).unwrap(), claims());

            let header = jsonwebtoken::decode_header(&token).unwrap();
            assert_eq!(header.typ.as_deref(), Some("at+jwt"));
            assert_eq!(header.kid.as_deref(), Some(signer.kid()));
            let signature = token.rsplit('.').next().unwrap();
            assert_eq!(URL_SAFE_NO_PAD.decode(signature).unwrap().len(), 64);

            let altered = token.replacen('A', "B", 1);
            assert!(read_by_jsonwebtoken(&key, &altered).is_err());
            let other = super::tests::key(algorithm, 3);
            assert!(read_by_jsonwebtoken(&other, &token).is_err());
        }
    }

    #[test]
    fn the_header_says_three_things() {
        let signer = Signer::open(&key(Algorithm::Ed25519, 2), &sealer(1)).unwrap();
        let header = signer.header.strip_suffix('.').unwrap();
        let header = URL_SAFE_NO_PAD.decode(header).unwrap();
        assert_eq!(
            String::from_utf8(header).unwrap(),
            format!(r#"{{"alg":"EdDSA","kid":"{}","typ":"at+jwt"}}"#, signer.kid)
        );
    }

    /// RFC 8037, appendices A.1 to A.4.
    #[test]
    fn ed25519_agrees_with_rfc_8037() {
        let decode = |text| URL_SAFE_NO_PAD.decode(text).unwrap();
        let seed = decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A");
        let pair = Pair::Ed25519(Ed25519KeyPair::from_seed_unchecked(&seed).unwrap());
        assert_eq!(
            pair.public_key(),
            decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
        );
        assert_eq!(
            thumbprint(Algorithm::Ed25519, pair.public_key()).unwrap(),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
        );
        let signature = pair.sign(b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc");
        assert_eq!(
            signature.unwrap().as_ref(),
            decode(
                "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
            )
        );
    }

    #[test]
    fn the_thumbprint_of_a_p256_key_is_that_of_another_implementation() {
        let key = key(Algorithm::Es256, 2);
        let public = PublicKey::new("k", key.algorithm, key.state, &key.public_key).unwrap();
        let jwk = serde_json::to_value(public.jwk()).unwrap();
        let jwk: jwk::Jwk = serde_json::from_value(jwk).unwrap();
        assert_eq!(
            key.kid,
            jwk.thumbprint(jwk::ThumbprintHash::SHA256).unwrap()
        );
    }

    #[test]
    fn an_ed25519_key_follows_from_its_seed() {
        assert_eq!(key(Algorithm::Ed25519, 2), key(Algorithm::Ed25519, 2));
        assert_ne!(
            key(Algorithm::Ed25519, 2).kid,
            key(Algorithm::Ed25519, 3).kid
        );
        assert_ne!(key(Algorithm::Es256, 2).kid, key(Algorithm::Es256, 2).kid);
    }

    #[test]
    fn a_key_opens_as_itself_only() {
        for algorithm in BOTH {
            let key = key(algorithm, 2);
            let other = super::tests::key(algorithm, 3);
            let opens = |key: &SigningKey| Signer::open(key, &sealer(1)).is_ok();
            assert!(opens(&key));
            assert!(!opens(&SigningKey {
                kid: other.kid.clone(),
                ..key.clone()
            }));
            assert!(!opens(&SigningKey {
                public_key: other.public_key.clone(),
                ..key.clone()
            }));
            assert!(!opens(&SigningKey {
                sealed: other.sealed.clone(),
                ..key.clone()
            }));
            assert!(Signer::open(&key, &sealer(9)).is_err());
        }
    }

    #[test]
    fn whatever_the_row_says_is_sealed() {
        let (sealer, entropy) = (sealer(1), Seeded::new(4));
        let (now, later) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000001Z");
        let [now, later] = [now, later].map(|at| at.parse::<Timestamp>().unwrap());
        let next = generate(
            Algorithm::Ed25519,
            KeyState::Next,
            now,
            &entropy,
            sealer.first(),
        );
        let next = next.unwrap();
        let active = activated(&next, now, &sealer, &entropy).unwrap();
        let retired = retired(&active, now, later, &sealer, &entropy).unwrap();
        for key in [&next, &active, &retired] {
            assert!(open(key, &sealer).is_ok(), "{key:?}");
            let states = [KeyState::Next, KeyState::Active, KeyState::Retired];
            let states = states.into_iter().filter(|state| *state != key.state);
            let mut altered: Vec<SigningKey> = states
                .map(|state| SigningKey {
                    state,
                    ..key.clone()
                })
                .collect();
            let mut alter = |change: fn(&mut SigningKey, Timestamp)| {
                let mut key = key.clone();
                change(&mut key, later);
                altered.push(key);
            };
            alter(|key, _| key.algorithm = Algorithm::Es256);
            alter(|key, later| key.created_at = later);
            alter(|key, later| key.changed_at = later);
            alter(|key, later| {
                let other = key.verify_until.is_none().then_some(later);
                key.verify_until = other;
            });
            for key in altered {
                assert!(open(&key, &sealer).is_err(), "{key:?}");
            }
        }
        // A retired key can sign no more: its private half is nowhere.
        assert!(open(&retired, &sealer).unwrap().plain.is_empty());
        assert!(Signer::open(&retired, &sealer).is_err());
        assert!(Signer::open(&active, &sealer).is_ok());
    }

    #[test]
    fn halves_that_do_not_belong_together_are_refused() {
        let entropy = Seeded::new(4);
        let (mine, other) = (key(Algorithm::Ed25519, 2), key(Algorithm::Ed25519, 3));
        let sealer = sealer(1);
        let private = open(&other, &sealer).unwrap().plain;
        // Sealed for the place of the wrong public half.
        let mixed = sealed(mine, &private, sealer.first(), &entropy).unwrap();
        assert!(Signer::open(&mixed, &sealer).is_err());
    }

    #[test]
    fn debug_names_the_key_only() {
        let key = key(Algorithm::Ed25519, 2);
        let signer = Signer::open(&key, &sealer(1)).unwrap();
        let expected = format!("Signer {{ kid: {:?}, .. }}", key.kid);
        assert_eq!(format!("{signer:?}"), expected);
    }
}
