//! Remembers which signatures have been checked, as that is nearly all that a decision costs.
//!
//! What is kept is a [`Proof`]: what a good signature proved, not that the token was accepted. So a
//! hit saves the signature check and nothing else: expiry, issuer, audience and revocations are
//! judged at every hit by the code that judges a new token, and a proof counts only while the very
//! key that gave it is trusted. A token that was refused leaves nothing here.
//!
//! Tokens are known by their SHA-256 digest; the text itself, a secret, is not kept.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use quick_cache::UnitWeighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

use crate::proof::Proof;

/// How much work the token cache has saved, since the verifier was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Access tokens whose signature had been checked before.
    pub hits: u64,
    /// Access tokens whose signature had to be checked, forged ones included.
    pub misses: u64,
    /// How many tokens are remembered now.
    pub entries: usize,
}

/// What a token is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u8; 32]);

/// Proofs by the digest of their token; bounded, and may forget any of them at any time.
pub(crate) struct TokenCache {
    /// None if it is to hold nothing.
    proofs: Option<Cache<Digest, Arc<Proof>, UnitWeighter, FirstBytes>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// A digest is its own hash. Nobody can choose where theirs lies to slow others down: what is kept
/// here has been signed by the issuer.
#[derive(Clone, Copy, Default)]
struct FirstBytes(u64);

impl Digest {
    fn of(token: &str) -> Option<Self> {
        let digest = digest(&SHA256, token.as_bytes());
        digest.as_ref().try_into().ok().map(Self)
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write(&self.0);
    }
}

impl BuildHasher for FirstBytes {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for FirstBytes {
    fn write(&mut self, digest: &[u8]) {
        self.0 = digest.first_chunk().copied().map_or(0, u64::from_le_bytes);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl TokenCache {
    pub(crate) fn new(entries: usize) -> Self {
        let cache = || {
            let weight = u64::try_from(entries).unwrap_or(u64::MAX);
            let hasher = FirstBytes::default();
            Cache::with(
                entries,
                weight,
                UnitWeighter,
                hasher,
                DefaultLifecycle::default(),
            )
        };
        Self {
            proofs: (entries > 0).then(cache),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// What this token is known by; none if nothing is to be remembered.
    pub(crate) fn digest(&self, token: &str) -> Option<Digest> {
        self.proofs.as_ref().and_then(|_| Digest::of(token))
    }

    /// What the token's signature proved, if that was found before and `holds` still.
    pub(crate) fn get(
        &self,
        digest: Option<&Digest>,
        holds: impl FnOnce(&Proof) -> bool,
    ) -> Option<Arc<Proof>> {
        let known = self.proofs.as_ref().zip(digest);
        let proof = known.and_then(|(proofs, digest)| proofs.get(digest));
        let proof = proof.filter(|proof| holds(proof));
        let counter = if proof.is_some() {
            &self.hits
        } else {
            &self.misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
        proof
    }

    pub(crate) fn insert(&self, digest: Option<Digest>, proof: Arc<Proof>) {
        if let Some((proofs, digest)) = self.proofs.as_ref().zip(digest) {
            proofs.insert(digest, proof);
        }
    }

    pub(crate) fn remove(&self, digest: Option<&Digest>) {
        if let Some((proofs, digest)) = self.proofs.as_ref().zip(digest) {
            proofs.remove(digest);
        }
    }

    pub(crate) fn counts(&self) -> CacheCounts {
        CacheCounts {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            entries: self.proofs.as_ref().map_or(0, Cache::len),
        }
    }
}

impl std::fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.counts().fmt(f)
    }
}
