//! Keys at rest: AES-256-GCM under a master key.
//!
//! What is sealed is bound to where it belongs (purpose, id, public half and
//! whatever else its row says are associated data), so that whoever can write
//! rows cannot pass one key for another, nor for what it is not. Nonces are random: one master key seals a few dozen keys in
//! its life, far from the 2^32 of NIST SP 800-38D, section 8.3.
//!
//! A sealed text of version 2 is
//!
//! ```text
//! version 1 | master key id 8 | nonce 12 | ciphertext and tag
//! ```
//!
//! and its first two parts are authenticated with the rest. Version 1, which is
//! opened and no longer made, has no id: whichever key opens it is the one. Nor
//! does it bind more than purpose, id and public half.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use thiserror::Error as ThisError;
use zeroize::Zeroizing;

use super::master_key::{MasterKey, MasterKeys};
use crate::{
    domain::{Entropy, MasterKeyId},
    error::{Error, Result},
};

const VERSION: u8 = 2;
const LABEL: &[u8] = b"countersign sealed key v2\0";
const OLD_VERSION: u8 = 1;
const OLD_LABEL: &[u8] = b"countersign sealed key v1\0";

/// Seals keys for the database under one master key.
pub struct Seal {
    id: MasterKeyId,
    key: LessSafeKey,
}

/// Opens sealed keys, whichever master key of the ring they are under, and has
/// the seals for new ones.
#[derive(Debug)]
pub struct Sealer {
    first: Seal,
    others: Vec<Seal>,
}

/// A sealed key that was opened.
pub struct Opened<'a> {
    /// What was sealed.
    pub plain: Zeroizing<Vec<u8>>,
    /// What it was sealed with.
    pub seal: &'a Seal,
    /// Whether the sealed text is of the version that is made today.
    pub is_current: bool,
}

/// Where a sealed key belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// What the key is for.
    pub purpose: &'a str,
    /// Its id.
    pub id: &'a str,
    /// The public half; empty for a symmetric key.
    pub public_key: &'a [u8],
    /// What else its row says.
    pub facts: &'a str,
}

/// A sealed key did not open.
#[derive(Debug, ThisError)]
enum Shut {
    #[error(
        "the {purpose} key {id} is sealed under the master key {under}, which is not in this ring \
         ({ring}); add it to the ring again, or, where both are, run `countersign key rewrap`"
    )]
    NotInRing {
        purpose: String,
        id: String,
        under: MasterKeyId,
        ring: String,
    },
    #[error(
        "the {purpose} key {id} does not open: its row was altered, or it was sealed under a \
         master key that is not in this ring ({ring})"
    )]
    Altered {
        purpose: String,
        id: String,
        ring: String,
    },
}

impl Seal {
    fn new(key: &MasterKey) -> Result<Self> {
        let id = key.id();
        let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).map_err(Error::internal)?;
        Ok(Self {
            id,
            key: LessSafeKey::new(key),
        })
    }

    /// The master key.
    pub fn id(&self) -> MasterKeyId {
        self.id
    }

    /// Seals `plain` for its place.
    pub fn seal(&self, context: &Context, plain: &[u8], entropy: &dyn Entropy) -> Result<Vec<u8>> {
        let nonce: [u8; NONCE_LEN] = entropy.array();
        // Encrypted in place in a buffer of the final size, so that no copy
        // of the plain text stays behind.
        let mut text = Zeroizing::new(Vec::with_capacity(plain.len() + AES_256_GCM.tag_len()));
        text.extend_from_slice(plain);
        let header = header(self.id);
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context.associated_data(&header)),
                &mut *text,
            )
            .map_err(Error::internal)?;
        Ok([header.as_slice(), &nonce, &text].concat())
    }

    fn open(&self, nonce: &[u8], data: &[u8], text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut plain = Zeroizing::new(text.to_vec());
        let opened = self.key.open_in_place(nonce, Aad::from(data), &mut plain);
        let length = opened.ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

fn header(id: MasterKeyId) -> Vec<u8> {
    [&[VERSION], id.0.as_slice()].concat()
}

/// The master key that a text says it is sealed under; none if it does not say.
pub fn sealed_under(sealed: &[u8]) -> Option<MasterKeyId> {
    let (version, rest) = sealed.split_first()?;
    let id = rest.first_chunk()?;
    (*version == VERSION).then_some(MasterKeyId(*id))
}

impl Sealer {
    /// Works with the keys of this ring.
    pub fn new(ring: &MasterKeys) -> Result<Self> {
        Ok(Self {
            first: Seal::new(&ring.first)?,
            others: ring.others.iter().map(Seal::new).collect::<Result<_>>()?,
        })
    }

    /// The seal of the first key of the ring.
    pub fn first(&self) -> &Seal {
        &self.first
    }

    /// The ids of the ring, the first one first.
    pub fn ids(&self) -> impl Iterator<Item = MasterKeyId> {
        self.seals().map(Seal::id)
    }

    fn seals(&self) -> impl Iterator<Item = &Seal> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Opens what [`Seal::seal`] made for the same place.
    pub fn open(&self, context: &Context, sealed: &[u8]) -> Result<Opened<'_>> {
        self.try_open(context, sealed).ok_or_else(|| {
            let (purpose, id) = (context.purpose.to_owned(), context.id.to_owned());
            let ring: Vec<_> = self.ids().map(|id| id.to_string()).collect();
            let ring = ring.join(", ");
            let under = sealed_under(sealed).filter(|under| self.ids().all(|id| id != *under));
            Error::internal(match under {
                Some(under) => Shut::NotInRing {
                    purpose,
                    id,
                    under,
                    ring,
                },
                None => Shut::Altered { purpose, id, ring },
            })
        })
    }

    /// Whether it is sealed as it would be today: under the first key of the ring,
    /// in the version that is made.
    pub fn is_up_to_date(&self, opened: &Opened) -> bool {
        opened.is_current && opened.seal.id == self.first.id
    }

    fn try_open(&self, context: &Context, sealed: &[u8]) -> Option<Opened<'_>> {
        let under = sealed_under(sealed);
        let (data, rest) = if let Some(id) = under {
            let header = header(id);
            let data = context.associated_data(&header);
            (data, sealed.get(header.len()..)?)
        } else {
            let rest = sealed.strip_prefix(&[OLD_VERSION])?;
            (context.old_associated_data(), rest)
        };
        let (nonce, text) = rest.split_at_checked(NONCE_LEN)?;
        let mut seals = self
            .seals()
            .filter(|seal| under.is_none_or(|id| seal.id == id));
        seals.find_map(|seal| {
            Some(Opened {
                plain: seal.open(nonce, &data, text)?,
                seal,
                is_current: under.is_some(),
            })
        })
    }
}

impl Context<'_> {
    fn associated_data(&self, header: &[u8]) -> Vec<u8> {
        let facts = self.facts.as_bytes();
        let parts = [
            self.purpose.as_bytes(),
            self.id.as_bytes(),
            self.public_key,
            facts,
        ];
        written(&[LABEL, header].concat(), &parts)
    }

    /// The same for version 1.
    fn old_associated_data(&self) -> Vec<u8> {
        let parts = [self.purpose.as_bytes(), self.id.as_bytes(), self.public_key];
        written(OLD_LABEL, &parts)
    }
}

/// Each part is preceded by its length, so that no two contexts are written
/// alike.
fn written(label: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut data = label.to_vec();
    for part in parts {
        data.extend_from_slice(&(part.len() as u64).to_be_bytes());
        data.extend_from_slice(part);
    }
    data
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seal({})", self.id)
    }
}

impl fmt::Debug for Opened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("seal", &self.seal)
            .field("is_current", &self.is_current)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;
    use crate::crypto::testing::Seeded;

    const CONTEXT: Context = Context {
        purpose: "signing",
        id: "k1",
        public_key: b"public",
        facts: "active",
    };

    fn ring<const N: usize>(seeds: [u64; N]) -> Sealer {
        let mut keys = seeds
            .map(|seed| MasterKey::generate(&Seeded::new(seed)))
            .into_iter();
        let first = keys.next().unwrap();
        let others = keys.collect();
        Sealer::new(&MasterKeys { first, others }).unwrap()
    }

    fn seal(sealer: &Sealer, context: &Context) -> Vec<u8> {
        let entropy = Seeded::new(9);
        sealer.first().seal(context, b"secret", &entropy).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_in_its_place_only() {
        let sealer = ring([1]);
        let sealed = seal(&sealer, &CONTEXT);
        assert_eq!(*sealer.open(&CONTEXT, &sealed).unwrap().plain, b"secret");
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
            Context {
                facts: "next",
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
    }

    #[test]
    fn each_key_of_the_ring_opens_what_it_sealed() {
        let (old, new) = (ring([1]), ring([2]));
        let both = ring([2, 1]);
        let sealed = seal(&old, &CONTEXT);
        assert_eq!(sealed_under(&sealed), Some(old.first().id()));
        assert!(new.open(&CONTEXT, &sealed).is_err());
        let opened = both.open(&CONTEXT, &sealed).unwrap();
        assert_eq!(opened.seal.id(), old.first().id());
        assert!(opened.is_current);
        assert_eq!(both.first().id(), new.first().id());
        assert_eq!(
            both.ids().collect::<Vec<_>>(),
            [new.first().id(), old.first().id()]
        );
        // The id says which key is asked, and the key is not asked for another's.
        let renamed = [header(new.first().id()), sealed[9..].to_vec()].concat();
        assert!(both.open(&CONTEXT, &renamed).is_err());
    }

    /// As made by the program before there were ids.
    #[test]
    fn a_text_of_version_1_opens() {
        let sealed = STANDARD
            .decode("AQABAgMEBQYHCAkKCzRntWmgkfxw0qI8ZjAQDiiKSE6jbCA=")
            .unwrap();
        let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
        let key: MasterKey = key.parse().unwrap();
        let alone = Sealer::new(&key.clone().into()).unwrap();
        let other = MasterKey::generate(&Seeded::new(1));
        let ring = MasterKeys {
            first: other,
            others: vec![key],
        };
        let ring = Sealer::new(&ring).unwrap();
        for sealer in [&alone, &ring] {
            let opened = sealer.open(&CONTEXT, &sealed).unwrap();
            assert_eq!(*opened.plain, b"secret");
            assert_eq!(opened.seal.id(), alone.first().id());
            assert!(!opened.is_current);
            let elsewhere = Context {
                id: "k2",
                ..CONTEXT
            };
            assert!(sealer.open(&elsewhere, &sealed).is_err());
        }
        assert_eq!(sealed_under(&sealed), None);
        // Version 2 is no longer version 1 with more in front.
        let old = [&[OLD_VERSION], &seal(&alone, &CONTEXT)[9..]].concat();
        assert!(alone.open(&CONTEXT, &old).is_err());
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_refused() {
        let sealer = ring([1, 2]);
        let sealed = seal(&sealer, &CONTEXT);
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
        let (sealer, entropy) = (ring([1]), Seeded::new(3));
        let seal = || sealer.first().seal(&CONTEXT, b"secret", &entropy).unwrap();
        assert_ne!(seal(), seal());
    }

    #[test]
    fn the_error_names_the_keys_and_says_nothing_to_callers() {
        let sealer = ring([1]);
        let missing = seal(&ring([2]), &CONTEXT);
        for (sealed, says) in [
            (&[][..], "the signing key k1 does not open".to_owned()),
            (
                &missing,
                format!(
                    "under the master key {}, which is not",
                    ring([2]).first().id()
                ),
            ),
        ] {
            let error = sealer.open(&CONTEXT, sealed).unwrap_err();
            let chain = crate::error::chain(&error);
            assert!(chain.contains(&says), "{chain}");
            assert!(chain.contains(&sealer.first().id().to_string()), "{chain}");
            assert_eq!(error.reason(), crate::error::Reason::Internal);
        }
    }

    #[test]
    fn debug_names_the_keys_only() {
        let key: MasterKey = "00".repeat(32).parse().unwrap();
        let sealer = Sealer::new(&key.into()).unwrap();
        let expected = "Sealer { first: Seal(rArsrF6yHa0), others: [] }";
        assert_eq!(format!("{sealer:?}"), expected);
    }
}
