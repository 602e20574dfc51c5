//! How often a password may be guessed: failures in a row under one name, and
//! the waits that they bring (NIST SP 800-63B-4, section 3.2.2). Whether
//! anybody has the name makes no difference here.

use jiff::{SignedDuration, Timestamp};

/// Names a counter: a MAC, so that the rows do not tell who was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ThrottleKey(pub [u8; 32]);

/// How many failures are borne, and what each of them brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The failure in a row that brings the first wait.
    pub before_delay: u32,
    /// That wait. Each further failure doubles it.
    pub first_delay: SignedDuration,
    /// The longest wait.
    pub longest_delay: SignedDuration,
    /// After so many somebody has to reset the password or the counter.
    pub before_reset: u32,
    /// A counter is forgotten so long after its wait.
    pub kept: SignedDuration,
}

/// Failures in a row under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// How many.
    pub failures: u32,
    /// No password is looked at before.
    pub not_before: Timestamp,
    /// Whether a refusal within this wait is in the audit log.
    pub recorded: bool,
    /// When it is forgotten.
    pub expires_at: Timestamp,
}

impl Counter {
    /// What counts where both do: the more failures, and the longer wait.
    pub fn stricter(self, other: Self) -> Self {
        let longer = if other.not_before > self.not_before {
            other
        } else {
            self
        };
        Self {
            failures: self.failures.max(other.failures),
            ..longer
        }
    }
}

/// Until somebody resets it, in effect; but no row is for ever.
const UNTIL_RESET: SignedDuration = SignedDuration::from_hours(365 * 24);

impl Limits {
    /// The wait that so many failures bring.
    pub fn delay(&self, failures: u32) -> SignedDuration {
        if failures >= self.before_reset {
            return UNTIL_RESET;
        }
        let Some(doublings) = failures.checked_sub(self.before_delay) else {
            return SignedDuration::ZERO;
        };
        let factor = 2_i32.checked_pow(doublings);
        let delay = factor.and_then(|factor| self.first_delay.checked_mul(factor));
        delay.map_or(self.longest_delay, |delay| delay.min(self.longest_delay))
    }

    /// How long the next one has to wait still; none if it need not.
    pub fn wait(&self, counter: &Counter, now: Timestamp) -> Option<SignedDuration> {
        let left = counter.not_before.duration_since(now);
        // More than these failures bring is left if the clock was set back.
        let left = left.min(self.delay(counter.failures));
        left.is_positive().then_some(left)
    }

    /// The counter after one more failure.
    pub fn failed(&self, seen: Option<&Counter>, now: Timestamp) -> Counter {
        let failures = seen.map_or(0, |counter| counter.failures);
        let failures = failures.saturating_add(1);
        self.waiting(failures, self.delay(failures), now)
    }

    /// The counter once it is known that somebody was refused because of it.
    pub fn refused(&self, seen: &Counter, wait: SignedDuration, now: Timestamp) -> Counter {
        Counter {
            recorded: true,
            ..self.waiting(seen.failures, wait, now)
        }
    }

    fn waiting(&self, failures: u32, wait: SignedDuration, now: Timestamp) -> Counter {
        let not_before = now + wait;
        Counter {
            failures,
            not_before,
            recorded: false,
            expires_at: not_before + self.kept,
        }
    }
}

#[cfg(test)]
mod tests;
