//! How long sessions live, and how many an account may have.

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::domain::session::Lifetimes;

/// Settings of sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A session that is not refreshed for so long ends.
    pub idle_seconds: u32,
    /// A session ends so long after its login, however often it is refreshed.
    pub absolute_seconds: u32,
    /// How long a replayed refresh token still gets its successor.
    pub grace_seconds: u32,
    /// The most live sessions of an account; a login beyond ends the oldest.
    pub max_per_user: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            idle_seconds: 7 * 24 * 3600,
            absolute_seconds: 30 * 24 * 3600,
            grace_seconds: 30,
            max_per_user: 100,
        }
    }
}

impl Config {
    /// What is wrong with the settings, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        if self.idle_seconds == 0 || self.absolute_seconds < self.idle_seconds {
            problems.push(
                "sessions.idle_seconds must be at least 1 and at most sessions.absolute_seconds"
                    .to_owned(),
            );
        }
        if self.grace_seconds > 300 {
            problems.push(
                "sessions.grace_seconds must be at most 300: a thief can use a stolen refresh \
                 token unnoticed for so long"
                    .to_owned(),
            );
        }
        if self.max_per_user == 0 {
            problems.push("sessions.max_per_user must be at least 1".to_owned());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// The most live sessions of an account.
    pub fn max_per_user(&self) -> usize {
        usize::try_from(self.max_per_user).unwrap_or(usize::MAX)
    }

    /// The settings as durations.
    pub fn lifetimes(&self) -> Lifetimes {
        let seconds = |n: u32| SignedDuration::from_secs(i64::from(n));
        Lifetimes {
            idle: seconds(self.idle_seconds),
            absolute: seconds(self.absolute_seconds),
            grace: seconds(self.grace_seconds),
        }
    }
}
