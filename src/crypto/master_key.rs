//! Master keys: the keys that all others are sealed under. They are kept outside
//! of the database; how they seal is in [`super::seal`].

use std::{fmt, str::FromStr};

use aws_lc_rs::{hkdf, hmac};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD},
};
use zeroize::Zeroizing;

use crate::{
    domain::{Entropy, Invalid, MasterKeyId},
    error::{Error, Result},
};

const DERIVED: &[u8] = b"countersign sealed key v1\0";
const ID: &[u8] = b"countersign master key id v1\0";

/// One of them.
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; Self::BYTES]>);

/// The ring of master keys that a process has. The first is the one that all
/// keys are to be sealed under; the others open what is not yet.
#[derive(Clone, Debug)]
pub struct MasterKeys {
    /// The first.
    pub first: MasterKey,
    /// The others.
    pub others: Vec<MasterKey>,
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
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, DERIVED);
        let mut key = Zeroizing::new([0; Self::BYTES]);
        let prk = salt.extract(secret.trim().as_bytes());
        let okm = prk.expand(&[b"derived key"], hkdf::HKDF_SHA256);
        okm.and_then(|okm| okm.fill(key.as_mut()))
            .map_err(Error::internal)?;
        Ok(Self(key))
    }

    /// Its name: the first bytes of a MAC that only the key makes.
    pub fn id(&self) -> MasterKeyId {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_ref());
        let mac = hmac::sign(&key, ID);
        MasterKeyId(mac.as_ref().first_chunk().copied().unwrap_or_default())
    }

    /// The key as base64url, the form in which its file is written.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0.as_ref()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_ref()
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

impl MasterKeys {
    /// All of them, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = &MasterKey> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl From<MasterKey> for MasterKeys {
    fn from(first: MasterKey) -> Self {
        Self {
            first,
            others: Vec::new(),
        }
    }
}

impl FromStr for MasterKeys {
    type Err = Invalid;

    /// Reads keys with white space or commas between them.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let texts = text.split(|c: char| c.is_whitespace() || c == ',');
        let mut texts = texts.filter(|text| !text.is_empty());
        let ring = Self {
            first: texts.next().unwrap_or_default().parse()?,
            others: texts.map(str::parse).collect::<Result<_, _>>()?,
        };
        let mut ids: Vec<_> = ring.iter().map(MasterKey::id).collect();
        ids.sort_unstable();
        if ids.array_windows().any(|[one, next]| one == next) {
            return Err(Invalid::new("must not hold a key twice"));
        }
        Ok(ring)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::testing::Seeded;

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
            assert!(text.parse::<MasterKeys>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_ring_is_read_in_its_order() {
        let entropy = Seeded::new(7);
        let [one, three] = [(); 2].map(|()| MasterKey::generate(&entropy));
        let hexadecimal = "2a".repeat(32);
        let two: MasterKey = hexadecimal.parse().unwrap();
        let text = |key: &MasterKey| (*key.to_text()).clone();
        let ids = |ring: &MasterKeys| ring.iter().map(MasterKey::id).collect::<Vec<_>>();
        for (before, between) in [("", "\n"), ("\n ", "\r\n\r\n"), ("", ","), ("", ", ")] {
            let written = [&one, &two, &three].map(text).join(between);
            let ring: MasterKeys = format!("{before}{written}\n").parse().unwrap();
            assert_eq!(ids(&ring), [one.id(), two.id(), three.id()], "{between:?}");
        }
        let alone: MasterKeys = text(&one).parse().unwrap();
        assert_eq!(ids(&alone), [one.id()]);

        // In another form it is the same key.
        let twice = format!("{} {} {hexadecimal}", text(&one), text(&two));
        let error = twice.parse::<MasterKeys>().unwrap_err();
        assert_eq!(error.to_string(), "must not hold a key twice");
        let broken = format!("{}\nsecret", text(&one));
        assert!(broken.parse::<MasterKeys>().is_err());
    }

    /// Nodes of different versions must mean the same key by an id.
    #[test]
    fn the_id_of_a_key_stays_as_it_is() {
        let key: MasterKey = "00".repeat(32).parse().unwrap();
        insta::assert_snapshot!(key.id(), @"rArsrF6yHa0");
        assert_eq!(key.id().to_string().parse(), Ok(key.id()));
        for text in ["", "AAAAAAAAAA", "AAAAAAAAAAAA", "AAAAAAAAA=="] {
            assert!(text.parse::<MasterKeyId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn debug_says_nothing() {
        let key = MasterKey::generate(&Seeded::new(6));
        assert_eq!(format!("{key:?}"), "MasterKey(…)");
        let ring = MasterKeys::from(key);
        let expected = "MasterKeys { first: MasterKey(…), others: [] }";
        assert_eq!(format!("{ring:?}"), expected);
    }
}
