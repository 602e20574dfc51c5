//! The audit log as a whole. Each event is sealed when it is recorded
//! (`service::record`), or counted where strangers cause too many ([`sample`]); a
//! task then gives committed events their places in one chain and signs how far it
//! goes, and [`verify`] finds what was done to it. [`retention`] deletes what is old.
//!
//! Recording an event waits for nobody: the chain follows within a second. What
//! is removed before that is not missed; what is altered is found at once.

pub mod chain;
pub mod read;
pub mod report;
pub mod retention;
pub mod sample;
pub mod verify;

use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

pub use chain::Chainer;
pub use sample::Sampler;

/// Settings of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Failures of each kind that a node records one by one within a minute.
    pub failures_per_minute: u32,
    /// The same read of another's data is recorded once in so long; 0 means that
    /// none is.
    pub reads_recorded_every_seconds: u32,
    /// How long records are kept; 0 means for ever.
    pub retention_days: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            failures_per_minute: 100,
            reads_recorded_every_seconds: 60,
            retention_days: 400,
        }
    }
}

impl Config {
    /// What is wrong with the settings, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        if self.reads_recorded_every_seconds > 86_400 {
            problems.push("audit.reads_recorded_every_seconds must be at most 86400".to_owned());
        }
        if self.retention_days > 36_500 {
            problems.push("audit.retention_days must be at most 36500".to_owned());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// How long records are kept, if not for ever.
    pub fn kept(&self) -> Option<SignedDuration> {
        let days = i64::from(self.retention_days);
        (days > 0).then(|| SignedDuration::from_hours(24 * days))
    }

    /// What decides which events are recorded one by one.
    pub fn sampler(&self) -> Sampler {
        let reads_every = Duration::from_secs(self.reads_recorded_every_seconds.into());
        Sampler::new(self.failures_per_minute, reads_every)
    }
}
