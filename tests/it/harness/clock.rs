//! A clock that only moves when told, and randomness from a seed.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use countersign::domain::Entropy;
use countersign_verifier::Clock;
use jiff::{SignedDuration, Timestamp};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng},
};

/// Starts at a fixed moment and stands still until [`MockClock::advance`].
#[derive(Debug)]
pub struct MockClock {
    start: Timestamp,
    elapsed: AtomicU64,
    /// By how much somebody has set it, in microseconds.
    set: AtomicI64,
}

impl MockClock {
    pub fn new() -> Self {
        // 2030-01-01T00:00:00Z
        Self::at(Timestamp::from_second(1_893_456_000).unwrap())
    }

    pub fn at(start: Timestamp) -> Self {
        Self {
            start,
            elapsed: AtomicU64::new(0),
            set: AtomicI64::new(0),
        }
    }

    /// Somebody sets the time of day; how long things take is not changed.
    pub fn step(&self, by: SignedDuration) {
        self.set
            .fetch_add(i64::try_from(by.as_micros()).unwrap(), SeqCst);
    }

    pub fn advance(&self, by: Duration) {
        self.elapsed
            .fetch_add(u64::try_from(by.as_micros()).unwrap(), SeqCst);
    }
}

impl Clock for MockClock {
    fn now(&self) -> Timestamp {
        let set = SignedDuration::from_micros(self.set.load(SeqCst));
        self.start + self.monotonic() + set
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.elapsed.load(SeqCst))
    }
}

/// Random bytes that are the same in every run.
#[derive(Debug)]
pub struct Seeded(Mutex<ChaCha20Rng>);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(ChaCha20Rng::seed_from_u64(seed)))
    }
}

impl Entropy for Seeded {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().unwrap().fill_bytes(buffer);
    }
}
