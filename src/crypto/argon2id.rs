//! Argon2id (RFC 9106) in memory that is reused, and the PHC strings that keep
//! its results.
//!
//! Memory is reserved from the start and filled by the first hash: a node that
//! hashes nothing does without. It is wiped after a single pass only: with more
//! each block holds a mix of them, and guessing a password from it costs what
//! guessing it from the stored hash does.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use countersign_argon2id::{Input, Kernel, Memory, OUTPUT, Params, agrees_with_rfc_9106, hash};
use phc::{Ident, Output, ParamsString, Salt};
use subtle::ConstantTimeEq;
use thiserror::Error as ThisError;

use super::lanes::Verdict;
use crate::{
    domain::{Password, PasswordHash},
    error::{Error, Result},
};

/// Bytes of a new salt (RFC 9106, section 3.1).
pub(super) const SALT: usize = 16;
const LONGEST_SALT: usize = 32;
/// Argon2id and its version, as PHC strings have them.
const ALGORITHM: &str = "argon2id";
const VERSION: u32 = 0x13;

/// The most that a stored hash may ask for, whatever is configured: a row must
/// not decide how long a lane is busy or how much memory it takes.
pub(super) const MOST_MEMORY_KIB: u32 = 64 * 1024;
pub(super) const MOST_ITERATIONS: u32 = 10;
pub(super) const MOST_PARALLELISM: u32 = 4;

/// A stored hash is not one that we write, or asks for more than we pay.
#[derive(Debug, ThisError)]
#[error("a stored password hash is not a PHC string of Argon2id within the caps")]
struct Unusable;

/// A stored hash, read.
#[derive(Clone)]
pub(super) struct Stored {
    params: Params,
    salt: Salt,
    output: Output,
}

/// Hashes, in memory of its own.
pub(super) struct Hasher {
    params: Params,
    memory: Memory,
    work: Arc<AtomicU64>,
}

/// The parameters, if they are legal and within the caps.
pub(super) fn parameters(memory_kib: u32, iterations: u32, parallelism: u32) -> Option<Params> {
    let within = memory_kib <= MOST_MEMORY_KIB
        && iterations <= MOST_ITERATIONS
        && parallelism <= MOST_PARALLELISM;
    let params = Params::new(memory_kib, iterations, parallelism)?;
    within.then_some(params)
}

/// The instructions that this machine hashes by, once they are known to hash
/// right.
pub(super) fn instructions() -> Result<Kernel> {
    let kernel = Kernel::best();
    if agrees_with_rfc_9106(kernel).map_err(Error::internal)? {
        Ok(kernel)
    } else {
        Err(Error::internal(format!(
            "the {kernel} instructions of this machine do not give the Argon2id of RFC 9106"
        )))
    }
}

impl Stored {
    /// Reads a PHC string, strictly: only what [`write`] writes.
    pub(super) fn parse(hash: &PasswordHash) -> Result<Self> {
        Self::try_parse(hash.as_phc()).ok_or_else(|| Error::internal(Unusable))
    }

    fn try_parse(text: &str) -> Option<Self> {
        let phc = phc::PasswordHash::new(text).ok()?;
        let [memory, passes, lanes] = ["m", "t", "p"].map(|name| phc.params.get_decimal(name));
        let params = parameters(memory?, passes?, lanes?)?;
        let stored = Self {
            params,
            salt: phc.salt?,
            output: phc.hash?,
        };
        let fits = (SALT..=LONGEST_SALT).contains(&stored.salt.len())
            && stored.output.len() == OUTPUT
            // Refuses what the parser forgives: parameters that are missing,
            // repeated, unknown or out of order, another algorithm or version.
            && write(&stored.params, stored.salt, stored.output)? == text;
        fits.then_some(stored)
    }
}

/// The PHC string, in the order in which the reference implementation writes.
fn write(params: &Params, salt: Salt, output: Output) -> Option<String> {
    let mut costs = ParamsString::new();
    costs.add_decimal("m", params.memory_kib()).ok()?;
    costs.add_decimal("t", params.iterations()).ok()?;
    costs.add_decimal("p", params.parallelism()).ok()?;
    let phc = phc::PasswordHash {
        algorithm: Ident::new(ALGORITHM).ok()?,
        version: Some(VERSION),
        params: costs,
        salt: Some(salt),
        hash: Some(output),
    };
    Some(phc.to_string())
}

impl Hasher {
    /// Reserves the memory that these parameters need, at once and for good.
    /// `work` counts the blocks that are filled.
    pub(super) fn new(params: Params, work: Arc<AtomicU64>) -> Result<Self> {
        let memory = Memory::reserve(&params).map_err(Error::internal)?;
        Ok(Self {
            params,
            memory,
            work,
        })
    }

    /// Hashes a new password.
    pub(super) fn hash(&mut self, password: &Password, salt: [u8; SALT]) -> Result<PasswordHash> {
        let params = self.params;
        let salt = Salt::new(&salt).map_err(Error::internal)?;
        let output = self.compute(&params, password, &salt)?;
        let text = write(&params, salt, output).ok_or_else(|| Error::internal(Unusable))?;
        Ok(PasswordHash::from_phc(text))
    }

    /// Compares a password with a stored hash, or with none. Both cost what
    /// the parameters in force cost, unless the stored ones cost more; a match
    /// under other parameters costs one hash more, for the new one.
    pub(super) fn verify(
        &mut self,
        password: &Password,
        stored: Option<&Stored>,
        new_salt: [u8; SALT],
    ) -> Result<Verdict> {
        let Some(stored) = stored else {
            self.waste(password, work(&self.params))?;
            return Ok(Verdict::Mismatch);
        };
        let output = self.compute(&stored.params, password, &stored.salt)?;
        if !bool::from(output.as_ref().ct_eq(stored.output.as_ref())) {
            let missing = work(&self.params).saturating_sub(work(&stored.params));
            self.waste(password, missing)?;
            return Ok(Verdict::Mismatch);
        }
        let upgraded = if stored.params == self.params {
            None
        } else {
            Some(self.hash(password, new_salt)?)
        };
        Ok(Verdict::Match { upgraded })
    }

    /// Pays for work and throws the result away: whole passes over as much
    /// memory as the parameters in force use, fewer blocks if less is due.
    fn waste(&mut self, password: &Password, due: u64) -> Result<()> {
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        if due == 0 {
            return Ok(());
        }
        let passes = due.div_ceil(self.params.memory_kib());
        let memory = (due / passes).max(Params::LEAST_MEMORY_KIB);
        let params = Params::new(memory, passes, 1)
            .ok_or_else(|| Error::internal("work that no parameters cost"))?;
        let salt = Salt::new(&[0; SALT]).map_err(Error::internal)?;
        self.compute(&params, password, &salt).map(drop)
    }

    fn compute(&mut self, params: &Params, password: &Password, salt: &Salt) -> Result<Output> {
        let mut more;
        let memory = if params.blocks() <= self.params.blocks() {
            &mut self.memory
        } else {
            // Rare: a hash from when more was configured.
            more = Memory::reserve(params).map_err(Error::internal)?;
            &mut more
        };
        let input = Input {
            password: password.expose().as_bytes(),
            salt,
            ..Input::default()
        };
        let output = hash(params, &input, memory).map_err(Error::internal)?;
        if params.iterations() == 1 {
            memory.wipe();
        }
        self.work.fetch_add(work(params), Relaxed);
        Output::new(&output).map_err(Error::internal)
    }
}

/// What a hash costs, in blocks of 1 KiB filled.
fn work(params: &Params) -> u64 {
    params.blocks() as u64 * u64::from(params.iterations())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWORD: &str = "correct horse battery staple";

    /// Made by the reference implementation for [`PASSWORD`] and the salt
    /// 00 01 … 0f.
    const REFERENCE: [&str; 3] = [
        "$argon2id$v=19$m=64,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$LfR+3mNY7Repl21PztuJehADbUMqSs7xfSY7/Ji9IKw",
        "$argon2id$v=19$m=128,t=3,p=4$AAECAwQFBgcICQoLDA0ODw$H+irYzERw/FIaXzBL6FxdBg7CHWOD+cchPhYkrJIhvE",
        "$argon2id$v=19$m=19456,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$gYJZtjEAJqjg26xdLmknq8/bB7MiWPrE9hsYuA+SkIU",
    ];

    fn password(text: &str) -> Password {
        Password::parse(text).unwrap()
    }

    fn hasher(memory_kib: u32, iterations: u32, parallelism: u32) -> Hasher {
        let params = parameters(memory_kib, iterations, parallelism).unwrap();
        Hasher::new(params, Arc::default()).unwrap()
    }

    fn stored(text: &str) -> Stored {
        Stored::parse(&PasswordHash::from_phc(text.to_owned())).unwrap()
    }

    /// Blocks filled by what `act` does.
    fn cost<T>(hasher: &mut Hasher, act: impl FnOnce(&mut Hasher) -> T) -> (T, u64) {
        let before = hasher.work.load(Relaxed);
        let result = act(hasher);
        let cost = hasher.work.load(Relaxed) - before;
        (result, cost)
    }

    #[test]
    fn the_primitive_agrees_with_rfc_9106() {
        for kernel in Kernel::all() {
            assert!(agrees_with_rfc_9106(kernel).unwrap(), "{kernel}");
        }
        assert_eq!(instructions().unwrap(), Kernel::best());
    }

    #[test]
    fn hashes_of_the_reference_implementation_verify() {
        let mut hasher = hasher(64, 2, 1);
        for text in REFERENCE {
            let verdict = hasher.verify(&password(PASSWORD), Some(&stored(text)), [9; SALT]);
            assert!(matches!(verdict, Ok(Verdict::Match { .. })), "{text}");
            let verdict = hasher.verify(&password("another"), Some(&stored(text)), [9; SALT]);
            assert!(matches!(verdict, Ok(Verdict::Mismatch)), "{text}");
        }
    }

    #[test]
    fn we_write_what_the_reference_implementation_writes() {
        let salt = std::array::from_fn(|i| u8::try_from(i).unwrap());
        for (text, (m, t, p)) in REFERENCE.into_iter().zip([(64, 2, 1), (128, 3, 4)]) {
            let hash = hasher(m, t, p).hash(&password(PASSWORD), salt).unwrap();
            assert_eq!(hash.as_phc(), text);
        }
    }

    #[test]
    fn whatever_is_stored_a_mismatch_costs_the_same() {
        let mut hasher = hasher(128, 3, 1);
        let (_, none) = cost(&mut hasher, |h| h.verify(&password("no"), None, [0; SALT]));
        assert_eq!(none, 128 * 3);
        for (m, t, p) in [(128, 3, 1), (64, 1, 1), (128, 1, 1), (8, 1, 1), (100, 3, 2)] {
            let old = super::tests::hasher(m, t, p)
                .hash(&password(PASSWORD), [1; SALT])
                .unwrap();
            let old = stored(old.as_phc());
            let (_, cost) = cost(&mut hasher, |h| {
                h.verify(&password("no"), Some(&old), [0; SALT])
            });
            // Argon2 rounds memory down to a multiple of 4 blocks.
            assert!(cost.abs_diff(none) <= 12, "m={m} t={t}: {cost}");
        }
    }

    #[test]
    fn a_match_under_other_parameters_brings_a_new_hash() {
        let mut hasher = hasher(128, 3, 1);
        let verdict = hasher.verify(&password(PASSWORD), Some(&stored(REFERENCE[0])), [5; SALT]);
        let Verdict::Match {
            upgraded: Some(new),
        } = verdict.unwrap()
        else {
            panic!("not upgraded");
        };
        assert!(new.as_phc().starts_with("$argon2id$v=19$m=128,t=3,p=1$"));
        let (verdict, cost) = cost(&mut hasher, |h| {
            h.verify(&password(PASSWORD), Some(&stored(new.as_phc())), [6; SALT])
        });
        assert!(matches!(verdict, Ok(Verdict::Match { upgraded: None })));
        assert_eq!(cost, 128 * 3);
    }

    #[test]
    fn a_larger_stored_hash_takes_memory_for_one_call() {
        let mut hasher = hasher(8, 1, 1);
        let verdict = hasher.verify(&password(PASSWORD), Some(&stored(REFERENCE[2])), [0; SALT]);
        assert!(matches!(verdict, Ok(Verdict::Match { .. })));
        assert_eq!(hasher.memory.capacity(), 8);
        assert!(hasher.memory.is_blank());
    }

    #[test]
    fn a_single_pass_leaves_nothing_in_memory() {
        for (passes, leaves) in [(1, false), (2, true)] {
            let mut hasher = hasher(64, passes, 1);
            hasher.hash(&password(PASSWORD), [1; SALT]).unwrap();
            assert_eq!(!hasher.memory.is_blank(), leaves);
        }
    }

    #[test]
    fn only_canonical_strings_within_the_caps_are_read() {
        let salt = "AAECAwQFBgcICQoLDA0ODw";
        let hash = "LfR+3mNY7Repl21PztuJehADbUMqSs7xfSY7/Ji9IKw";
        let read = |head: &str, salt: &str, hash: &str| {
            Stored::try_parse(&format!("{head}${salt}${hash}")).is_some()
        };
        assert!(read("$argon2id$v=19$m=64,t=2,p=1", salt, hash));
        assert!(read("$argon2id$v=19$m=65536,t=10,p=4", salt, hash));
        for head in [
            "$argon2id$v=19$m=65537,t=2,p=1",
            "$argon2id$v=19$m=4294967295,t=2,p=1",
            "$argon2id$v=19$m=64,t=11,p=1",
            "$argon2id$v=19$m=64,t=2,p=5",
            "$argon2id$v=19$m=64,t=0,p=1",
            "$argon2id$v=19$m=7,t=2,p=1",
            "$argon2i$v=19$m=64,t=2,p=1",
            "$argon2d$v=19$m=64,t=2,p=1",
            "$argon2id$v=16$m=64,t=2,p=1",
            "$argon2id$m=64,t=2,p=1",
            "$argon2id$v=19$t=2,m=64,p=1",
            "$argon2id$v=19$m=64,t=2",
            "$argon2id$v=19$m=64,t=2,p=1,data=AAAA",
            "$argon2id$v=19$m=64,t=2,p=1,keyid=AAAA",
            "$argon2id$v=19$m=64,t=2,p=1,m=64",
            "$argon2id$v=19$m=064,t=2,p=1",
            "$argon2id$v=19$m=+64,t=2,p=1",
            "$scrypt$ln=16,r=8,p=1",
        ] {
            assert!(!read(head, salt, hash), "{head}");
        }
        let head = "$argon2id$v=19$m=64,t=2,p=1";
        assert!(
            !read(head, "AAECAwQFBgcICQoLDA0O", hash),
            "salt of 15 bytes"
        );
        assert!(!read(head, &"A".repeat(44), hash), "salt of 33 bytes");
        assert!(!read(head, salt, &hash[..42]), "short output");
        assert!(!read(head, salt, &format!("{hash}A")));
        assert!(!read(head, salt, &format!("{hash}=")));
        assert!(!read(head, salt, &format!("{hash}$")));
        assert!(!read(head, salt, &format!("{hash}\n")));
        // A bit after the last byte of the hash.
        assert!(!read(
            head,
            salt,
            "LfR+3mNY7Repl21PztuJehADbUMqSs7xfSY7/Ji9IKx"
        ));
        assert!(Stored::try_parse("").is_none());
    }
}
