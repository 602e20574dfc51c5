//! The audit log as a whole. Each event is sealed when it is recorded
//! (`service::record`), or counted where strangers cause too many ([`sample`]); a
//! task then gives committed events their places in one chain and signs how far it
//! goes, and [`verify`] finds what was done to it.
//!
//! Recording an event waits for nobody: the chain follows within a second. What
//! is removed before that is not missed; what is altered is found at once.

pub mod chain;
pub mod read;
pub mod report;
pub mod sample;
pub mod verify;

use serde::{Deserialize, Serialize};

pub use chain::Chainer;
pub use sample::Sampler;

/// Settings of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Failures of each kind that a node records one by one within a minute.
    pub failures_per_minute: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            failures_per_minute: 100,
        }
    }
}

impl Config {
    /// What decides which events are recorded one by one.
    pub fn sampler(&self) -> Sampler {
        Sampler::new(self.failures_per_minute)
    }
}
