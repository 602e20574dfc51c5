//! Secrets at work: password hashing on its own threads, keys that sign, and
//! keys that seal and authenticate. No database, no wire.
//!
//! - [`Lanes`]: Argon2id on a few threads behind a bounded queue.
//! - [`Sealer`]: the other keys at rest, under [`MasterKeys`].
//! - [`Signer`]: access tokens.
//! - [`RefreshKeys`]: refresh tokens.
//! - [`RequestKeys`]: page and device tokens, MACs of request bodies and login
//!   names.
//! - [`PasswordKeys`]: password hashes at rest.
//! - [`AuditKeys`]: MACs, chain and checkpoints of the audit log.
//!
//! Keys enter and leave as the rows of `domain::signing_key`, sealed; what is
//! opened stays in here. The primitives are those of aws-lc-rs and argon2.

mod argon2id;
pub mod audit;
pub mod calibrate;
pub mod entropy;
pub mod lanes;
pub mod master_key;
pub mod password_seal;
pub mod refresh;
pub mod request;
pub mod seal;
pub mod secret_key;
pub mod signing;

pub use audit::AuditKeys;
pub use entropy::SystemEntropy;
pub use lanes::{Lanes, Ticket, Verdict};
pub use master_key::{MasterKey, MasterKeys};
pub use password_seal::PasswordKeys;
pub use refresh::{RefreshKeys, RefreshToken};
pub use request::{Device, RequestKeys};
pub use seal::{Seal, Sealer};
pub use signing::Signer;

/// Whether a text would be read as a stored password hash: the way in for the fuzz
/// target `password_hash`, as a lane would go on to hash.
#[doc(hidden)]
pub fn is_stored_hash(text: &str) -> bool {
    let hash = crate::domain::PasswordHash::from_phc(text.to_owned());
    argon2id::Stored::parse(&hash).is_ok()
}

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Mutex;

    use rand_chacha::{
        ChaCha20Rng,
        rand_core::{Rng, SeedableRng},
    };

    use crate::domain::Entropy;

    /// Randomness that a test repeats.
    #[derive(Debug)]
    pub(crate) struct Seeded(Mutex<ChaCha20Rng>);

    impl Seeded {
        pub(crate) fn new(seed: u64) -> Self {
            Self(Mutex::new(ChaCha20Rng::seed_from_u64(seed)))
        }
    }

    impl Entropy for Seeded {
        fn fill(&self, buffer: &mut [u8]) {
            self.0.lock().unwrap().fill_bytes(buffer);
        }
    }
}
