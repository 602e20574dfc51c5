//! Refresh tokens: minted from a session's row, read without a database.
//!
//! ```text
//! csr_ base64url( version 1 | key id 4 | session id 16 | generation 8
//!               | MAC 20 | binding MAC 20 ) checksum 4
//! ```
//!
//! The first MAC says that we issued the token, so that a forgery costs no
//! query. The second also covers a random value that only the session's row
//! holds: a key that leaks without the database forges nothing. Both are
//! HMAC-SHA-256 cut to 160 bits. The same inputs give the same token, which
//! is how a replay within the grace gets the successor that was lost.
//!
//! The checksum is no security: by it a secret scanner tells a token from
//! chance, without our keys.
//!
//! Whether a token is current, replayed or stolen is the session's to say.

use std::fmt;

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use thiserror::Error as ThisError;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    seal::Sealer,
    secret_key::{Ring, equal, mac},
};
use crate::{
    domain::{
        SessionId,
        signing_key::{Purpose, SecretKey},
    },
    error::Result,
};

/// What every refresh token starts with.
pub const PREFIX: &str = "csr_";

/// The length of every refresh token. Nothing in it is padded: 69 bytes are
/// 92 characters, and a checksum of 3 bytes is 4.
pub const LENGTH: usize = PREFIX.len() + 92 + CHECKSUM;

const CHECKSUM: usize = 4;
const VERSION: u8 = 1;
const PAYLOAD: usize = 1 + 4 + 16 + 8;
const MAC: usize = 20;
const ISSUED: &[u8] = b"countersign refresh token v1\0";
const BOUND: &[u8] = b"countersign refresh token binding v1\0";

/// The keys of refresh tokens.
#[derive(Debug)]
pub struct RefreshKeys(Ring);

/// A refresh token to be handed out: mute in logs, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshToken(Zeroizing<String>);

/// A refresh token that we issued, as its first MAC says. It counts for
/// nothing until it is [bound](Presented::bound_to) to its session's row.
#[derive(Clone, PartialEq, Eq)]
pub struct Presented {
    /// The key that it was made with.
    pub key_id: i32,
    /// Its session.
    pub session_id: SessionId,
    /// Its place in the session's row of tokens.
    pub generation: i64,
    binding_mac: [u8; MAC],
}

/// Why a text is no refresh token of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
pub enum Unreadable {
    /// Its form or its MAC is wrong.
    #[error("not a refresh token of this service")]
    Forged,
    /// Its form is right, its key is not known. Another node may have made the
    /// key since; but anyone can write such a text, so whoever reloads the
    /// keys for it bounds how often.
    #[error("made with the unknown key {0}")]
    UnknownKey(i32),
}

impl RefreshKeys {
    /// Opens the refresh keys among these; fails if there is none.
    pub fn open(keys: &[SecretKey], sealer: &Sealer) -> Result<Self> {
        Ring::open(keys, Purpose::Refresh, sealer).map(Self)
    }

    /// The id of the key for new tokens.
    pub fn maker(&self, now: Timestamp) -> i32 {
        self.0.maker(now).0
    }

    /// The token of this generation of a session; none if the key is not
    /// known. `binding` is the random value in the session's row.
    pub fn mint(
        &self,
        key_id: i32,
        session_id: SessionId,
        generation: i64,
        binding: &[u8; 16],
    ) -> Option<RefreshToken> {
        let payload = payload(key_id, session_id, generation);
        let key = self.0.get(key_id)?;
        let issued: [u8; MAC] = mac(key, &[ISSUED, &payload]);
        let bound: [u8; MAC] = mac(key, &[BOUND, &payload, binding]);
        let mut text = Zeroizing::new(String::with_capacity(LENGTH));
        text.push_str(PREFIX);
        let body = Zeroizing::new([payload.as_slice(), &issued, &bound].concat());
        URL_SAFE_NO_PAD.encode_string(body.as_slice(), &mut text);
        let checksum = checksum(&text);
        text.push_str(&checksum);
        Some(RefreshToken(text))
    }

    /// Reads a token. It was issued by us if this succeeds; whether it still
    /// stands for anything is the session's to say.
    pub fn read(&self, text: &str) -> Result<Presented, Unreadable> {
        let forged = Unreadable::Forged;
        if text.len() != LENGTH {
            return Err(forged);
        }
        let (token, sum) = text.split_at_checked(LENGTH - CHECKSUM).ok_or(forged)?;
        let encoded = token.strip_prefix(PREFIX).ok_or(forged)?;
        if sum != checksum(token) {
            return Err(forged);
        }
        let body = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| forged)?;
        let (payload, macs) = body.split_first_chunk::<PAYLOAD>().ok_or(forged)?;
        let (issued, bound) = macs.split_first_chunk::<MAC>().ok_or(forged)?;
        let (&version, rest) = payload.split_first().ok_or(forged)?;
        let (&key_id, rest) = rest.split_first_chunk().ok_or(forged)?;
        let (&session, rest) = rest.split_first_chunk().ok_or(forged)?;
        let &generation = rest.first_chunk().ok_or(forged)?;
        if version != VERSION {
            return Err(forged);
        }
        let key_id = i32::from_be_bytes(key_id);
        let key = self.0.get(key_id).ok_or(Unreadable::UnknownKey(key_id))?;
        if !equal(&mac::<MAC>(key, &[ISSUED, payload]), issued) {
            return Err(forged);
        }
        Ok(Presented {
            key_id,
            session_id: SessionId(Uuid::from_bytes(session)),
            generation: i64::from_be_bytes(generation),
            binding_mac: *bound.first_chunk().ok_or(forged)?,
        })
    }
}

fn payload(key_id: i32, session_id: SessionId, generation: i64) -> [u8; PAYLOAD] {
    let mut payload = [0; PAYLOAD];
    let parts = [VERSION]
        .into_iter()
        .chain(key_id.to_be_bytes())
        .chain(session_id.0.into_bytes())
        .chain(generation.to_be_bytes());
    for (place, byte) in payload.iter_mut().zip(parts) {
        *place = byte;
    }
    payload
}

/// The first 3 bytes of SHA-256 over all that stands before, as base64url.
fn checksum(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    let first: [u8; 3] = digest.as_ref().first_chunk().copied().unwrap_or_default();
    URL_SAFE_NO_PAD.encode(first)
}

impl RefreshToken {
    /// The text, for the reply only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Presented {
    /// Whether the token was made for the session whose row holds `binding`;
    /// in constant time. False too if the key is gone.
    pub fn bound_to(&self, keys: &RefreshKeys, binding: &[u8; 16]) -> bool {
        let payload = payload(self.key_id, self.session_id, self.generation);
        keys.0.get(self.key_id).is_some_and(|key| {
            let bound: [u8; MAC] = mac(key, &[BOUND, &payload, binding]);
            equal(&bound, &self.binding_mac)
        })
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshToken(…)")
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented")
            .field("key_id", &self.key_id)
            .field("session_id", &self.session_id)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::{
        crypto::{MasterKey, secret_key, testing::Seeded},
        domain::Entropy,
    };

    const SESSION: SessionId =
        SessionId(Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001));
    const BINDING: [u8; 16] = [7; 16];

    /// Keys 1 and 2 of 2026, in one ring; the third stands alone.
    fn keys() -> (RefreshKeys, RefreshKeys) {
        let entropy = Seeded::new(1);
        let sealer = Sealer::new(&MasterKey::generate(&entropy).into()).unwrap();
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let make = |id, purpose| {
            let now = start + SignedDuration::from_hours(i64::from(id));
            secret_key::generate(id, purpose, now, &entropy as &dyn Entropy, sealer.first())
                .unwrap()
        };
        let ring = [
            make(2, Purpose::Refresh),
            make(9, Purpose::Request),
            make(1, Purpose::Refresh),
        ];
        let alone = [make(3, Purpose::Refresh)];
        (
            RefreshKeys::open(&ring, &sealer).unwrap(),
            RefreshKeys::open(&alone, &sealer).unwrap(),
        )
    }

    fn mint(keys: &RefreshKeys, key_id: i32, generation: i64) -> RefreshToken {
        keys.mint(key_id, SESSION, generation, &BINDING).unwrap()
    }

    #[test]
    fn a_token_is_read_as_it_was_minted() {
        let (keys, _) = keys();
        let made = |hours| {
            "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hours)
        };
        // A key makes when all nodes have had the time to hear of it.
        let before = SecretKey::AHEAD - SignedDuration::from_nanos(1);
        assert_eq!(keys.maker(made(2) + before), 1);
        assert_eq!(keys.maker(made(2) + SecretKey::AHEAD), 2);
        // The first has no other before it.
        assert_eq!(keys.maker(made(0)), 1);
        for (key_id, generation) in [(1, 0), (2, 1), (2, i64::MAX)] {
            let token = mint(&keys, key_id, generation);
            assert_eq!(token.expose().len(), LENGTH);
            let presented = keys.read(token.expose()).unwrap();
            assert_eq!(
                (presented.key_id, presented.session_id, presented.generation),
                (key_id, SESSION, generation)
            );
            assert!(presented.bound_to(&keys, &BINDING));
            // Deterministic: the successor of a replay is the same token.
            assert_eq!(token, mint(&keys, key_id, generation));
        }
        assert!(keys.mint(9, SESSION, 0, &BINDING).is_none());
    }

    #[test]
    fn the_form_of_a_token_is_kept() {
        let (keys, _) = keys();
        insta::assert_snapshot!(mint(&keys, 2, 5).expose(), @"csr_AQAAAAIBkgAAAABwAIAAAAAAAAABAAAAAAAAAAVJAtNz4rAyt0ciCqPUqs4wpfcLOKfDpgecay7lcdn06vvgA_h6UKq0jhbU");
    }

    #[test]
    fn each_other_character_anywhere_is_refused() {
        let (keys, _) = keys();
        let token = mint(&keys, 1, 5).expose().to_owned();
        for at in 0..token.len() {
            for other in "AZaz09-_=+/. é".chars() {
                let altered: String = token
                    .char_indices()
                    .map(|(i, c)| if i == at { other } else { c })
                    .collect();
                if altered != token {
                    assert_eq!(keys.read(&altered), Err(Unreadable::Forged), "{at} {other}");
                }
            }
        }
        for length in 0..token.len() {
            assert_eq!(keys.read(&token[..length]), Err(Unreadable::Forged));
        }
        assert_eq!(keys.read(&format!("{token}A")), Err(Unreadable::Forged));
    }

    /// With the checksum put right, so that the MAC is what refuses.
    fn reassemble(body: &[u8]) -> String {
        let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(body));
        let checksum = checksum(&token);
        token + &checksum
    }

    #[test]
    fn any_flipped_bit_is_refused_by_a_mac() {
        let (keys, _) = keys();
        let token = mint(&keys, 1, 5).expose().to_owned();
        let body = URL_SAFE_NO_PAD
            .decode(&token[PREFIX.len()..LENGTH - CHECKSUM])
            .unwrap();
        assert_eq!(reassemble(&body), token);
        for bit in 0..body.len() * 8 {
            let mut altered = body.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let read = keys.read(&reassemble(&altered));
            match bit / 8 {
                // Another key id: unknown, or the other key of the ring.
                1..=4 => assert!(read.is_err(), "bit {bit}"),
                0 | 5..=48 => assert_eq!(read, Err(Unreadable::Forged), "bit {bit}"),
                _ => assert!(!read.unwrap().bound_to(&keys, &BINDING), "bit {bit}"),
            }
        }
    }

    #[test]
    fn a_token_fits_its_own_binding_only() {
        let (keys, _) = keys();
        let presented = keys.read(mint(&keys, 2, 5).expose()).unwrap();
        for bit in 0..128 {
            let mut binding = BINDING;
            binding[bit / 8] ^= 1 << (bit % 8);
            assert!(!presented.bound_to(&keys, &binding), "bit {bit}");
        }
        // The binding MAC of another session or generation does not do.
        let later = keys.read(mint(&keys, 2, 6).expose()).unwrap();
        let spliced = Presented {
            binding_mac: later.binding_mac,
            ..presented
        };
        assert!(!spliced.bound_to(&keys, &BINDING));
    }

    #[test]
    fn an_unknown_key_is_told_from_a_forgery() {
        let (keys, other) = keys();
        let token = mint(&other, 3, 0);
        assert_eq!(keys.read(token.expose()), Err(Unreadable::UnknownKey(3)));
        let presented = other.read(token.expose()).unwrap();
        assert!(!presented.bound_to(&keys, &BINDING));
    }

    #[test]
    fn a_ring_without_keys_is_an_error() {
        let sealer = Sealer::new(&MasterKey::generate(&Seeded::new(2)).into()).unwrap();
        assert!(RefreshKeys::open(&[], &sealer).is_err());
    }

    #[test]
    fn debug_says_nothing() {
        let (keys, _) = keys();
        let token = mint(&keys, 1, 5);
        assert_eq!(format!("{token:?}"), "RefreshToken(…)");
        let presented = keys.read(token.expose()).unwrap();
        assert!(!format!("{presented:?}").contains("mac"));
    }
}
