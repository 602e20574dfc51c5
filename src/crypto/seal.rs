//! Keys at rest: AES-256-GCM under the master key.
//!
//! What is sealed is bound to where it belongs (purpose, id and public half
//! are associated data), so that whoever can write rows cannot pass one key
//! for another. Nonces are random: one master key seals a few dozen keys in
//! its life, far from the 2^32 of NIST SP 800-38D, section 8.3.
//!
//! A sealed text is a version byte, the nonce, the ciphertext and its tag.
//! Changing the master key is not done here.

use std::{fmt, str::FromStr};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD},
};
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

use crate::{
    domain::{Entropy, Invalid},
    error::{Error, Result},
};

const VERSION: u8 = 1;
const LABEL: &[u8] = b"countersign sealed key v1\0";

/// The key that all others are sealed under. Kept outside the database.
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; Self::BYTES]>);

/// Seals keys for the database and opens them again.
pub struct Sealer(LessSafeKey);

/// Where a sealed key belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// What the key is for.
    pub purpose: &'a str,
    /// Its id.
    pub id: &'a str,
    /// The public half; empty for a symmetric key.
    pub public_key: &'a [u8],
}

/// A sealed key did not open.
#[derive(Debug, ThisError)]
#[error(
    "the {purpose} key {id} does not open: it was sealed under another master key, or its row was altered"
)]
struct DoesNotOpen {
    purpose: String,
    id: String,
}

impl MasterKey {
    /// Its length.
    pub const BYTES: usize = 32;

    /// A new random key.
    pub fn generate(entropy: &dyn Entropy) -> Self {
        let mut key = Zeroizing::new([0; Self::BYTES]);
        entropy.fill(key.as_mut());
        Self(key)
    }

    /// The key that follows from another secret, which must be as hard to guess
    /// (HKDF-SHA-256, RFC 5869).
    pub fn derived(secret: &str) -> Result<Self> {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, LABEL);
        let mut key = Zeroizing::new([0; Self::BYTES]);
        let prk = salt.extract(secret.trim().as_bytes());
        let okm = prk.expand(&[b"derived key"], hkdf::HKDF_SHA256);
        okm.and_then(|okm| okm.fill(key.as_mut()))
            .map_err(Error::internal)?;
        Ok(Self(key))
    }

    /// The key as base64url, the form in which its file is written.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0.as_ref()))
    }
}

impl FromStr for MasterKey {
    type Err = Invalid;

    /// Reads 32 bytes written as base64url, base64 or hexadecimal digits,
    /// which differ in length; space around them is ignored.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let bytes = match text.len() {
            43 => URL_SAFE_NO_PAD
                .decode(text)
                .or_else(|_| STANDARD.decode([text, "="].concat()))
                .ok(),
            44 => URL_SAFE
                .decode(text)
                .or_else(|_| STANDARD.decode(text))
                .ok(),
            64 => hexadecimal(text),
            _ => None,
        };
        let bytes = Zeroizing::new(bytes.unwrap_or_default());
        let key = bytes.as_slice().try_into();
        key.map(|key| Self(Zeroizing::new(key)))
            .map_err(|_| Invalid::new("must be 32 bytes as base64url, base64 or hexadecimal"))
    }
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|digit| digit.to_digit(16));
    let digits: Option<Vec<u32>> = digits.collect();
    let pairs = digits?;
    let (pairs, _) = pairs.as_chunks::<2>();
    pairs
        .iter()
        .map(|[high, low]| u8::try_from(high * 16 + low).ok())
        .collect()
}

impl Sealer {
    /// A sealer under this key.
    pub fn new(key: &MasterKey) -> Result<Self> {
        UnboundKey::new(&AES_256_GCM, key.0.as_ref())
            .map(|key| Self(LessSafeKey::new(key)))
            .map_err(Error::internal)
    }

    /// Seals `plain` for its place.
    pub fn seal(&self, context: &Context, plain: &[u8], entropy: &dyn Entropy) -> Result<Vec<u8>> {
        let nonce: [u8; NONCE_LEN] = entropy.array();
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        // Encrypted in place in a buffer of the final size, so that no copy
        // of the plain text stays behind.
        let mut text = Zeroizing::new(Vec::with_capacity(plain.len() + AES_256_GCM.tag_len()));
        text.extend_from_slice(plain);
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context.associated_data()),
                &mut *text,
            )
            .map_err(Error::internal)?;
        sealed.extend_from_slice(&text);
        Ok(sealed)
    }

    /// Opens what [`Sealer::seal`] made for the same place.
    pub fn open(&self, context: &Context, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        self.try_open(context, sealed).ok_or_else(|| {
            Error::internal(DoesNotOpen {
                purpose: context.purpose.to_owned(),
                id: context.id.to_owned(),
            })
        })
    }

    fn try_open(&self, context: &Context, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (version, rest) = sealed.split_first()?;
        let (nonce, text) = rest.split_at_checked(NONCE_LEN)?;
        if *version != VERSION {
            return None;
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let aad = Aad::from(context.associated_data());
        let mut plain = Zeroizing::new(text.to_vec());
        let length = self.0.open_in_place(nonce, aad, &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl Context<'_> {
    /// Each part is preceded by its length, so that no two contexts are
    /// written alike.
    fn associated_data(&self) -> Vec<u8> {
        let mut data = LABEL.to_vec();
        for part in [self.purpose.as_bytes(), self.id.as_bytes(), self.public_key] {
            data.extend_from_slice(&(part.len() as u64).to_be_bytes());
            data.extend_from_slice(part);
        }
        data
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::Seeded;

    const CONTEXT: Context = Context {
        purpose: "signing",
        id: "k1",
        public_key: b"public",
    };

    fn sealer(entropy: &dyn Entropy) -> Sealer {
        Sealer::new(&MasterKey::generate(entropy)).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_in_its_place_only() {
        let entropy = Seeded::new(1);
        let sealer = sealer(&entropy);
        let sealed = sealer.seal(&CONTEXT, b"secret", &entropy).unwrap();
        assert_eq!(*sealer.open(&CONTEXT, &sealed).unwrap(), b"secret");
        let elsewhere = [
            Context {
                purpose: "refresh",
                ..CONTEXT
            },
            Context {
                id: "k2",
                ..CONTEXT
            },
            Context {
                public_key: b"other",
                ..CONTEXT
            },
            // The same bytes, divided otherwise.
            Context {
                purpose: "signingk",
                id: "1",
                ..CONTEXT
            },
        ];
        for context in elsewhere {
            assert!(sealer.open(&context, &sealed).is_err(), "{context:?}");
        }
        let other = super::tests::sealer(&entropy);
        assert!(other.open(&CONTEXT, &sealed).is_err());
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_refused() {
        let entropy = Seeded::new(2);
        let sealer = sealer(&entropy);
        let sealed = sealer.seal(&CONTEXT, b"secret", &entropy).unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(sealer.open(&CONTEXT, &altered).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(sealer.open(&CONTEXT, &sealed[..length]).is_err());
        }
    }

    #[test]
    fn two_seals_of_one_text_differ() {
        let entropy = Seeded::new(3);
        let sealer = sealer(&entropy);
        let seal = || sealer.seal(&CONTEXT, b"secret", &entropy).unwrap();
        assert_ne!(seal(), seal());
    }

    #[test]
    fn the_error_names_the_key_and_says_nothing_to_callers() {
        let error = sealer(&Seeded::new(4)).open(&CONTEXT, b"").unwrap_err();
        assert!(crate::error::chain(&error).contains("the signing key k1 does not open"));
        assert_eq!(error.reason(), crate::error::Reason::Internal);
    }

    #[test]
    fn a_master_key_is_read_in_each_of_its_forms() {
        // Its base64 has a `+` and a `/`.
        let bytes = [0xfb; 32];
        let forms = [
            URL_SAFE_NO_PAD.encode(bytes),
            URL_SAFE.encode(bytes),
            STANDARD.encode(bytes),
            STANDARD.encode(bytes).trim_end_matches('=').to_owned(),
            "fb".repeat(32),
            "FB".repeat(32),
            format!("{}\r\n", URL_SAFE_NO_PAD.encode(bytes)),
        ];
        for text in forms {
            assert_eq!(*text.parse::<MasterKey>().unwrap().0, bytes, "{text:?}");
        }
        let key = MasterKey::generate(&Seeded::new(5));
        assert_eq!(key.to_text().parse::<MasterKey>().unwrap().0, key.0);
    }

    #[test]
    fn what_is_no_master_key_is_refused() {
        let texts = [
            String::new(),
            "secret".into(),
            URL_SAFE_NO_PAD.encode([0; 31]),
            URL_SAFE_NO_PAD.encode([0; 33]),
            "0".repeat(63),
            "g".repeat(64),
            "é".repeat(32),
            // Bits after the last byte.
            format!("{}B", "A".repeat(42)),
        ];
        for text in texts {
            assert!(text.parse::<MasterKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn debug_says_nothing() {
        let key = MasterKey::generate(&Seeded::new(6));
        assert_eq!(format!("{key:?}"), "MasterKey(…)");
        assert_eq!(format!("{:?}", Sealer::new(&key).unwrap()), "Sealer(…)");
    }
}
