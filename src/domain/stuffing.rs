//! Credential stuffing and spraying: many names tried from one place, and few
//! that get in. No single name is tried often, so what counts is the names, each
//! once, and only those under which nobody got in: people mistype.
//!
//! Whether few get in is told by accounts: one that is renamed again and again
//! gets in under many names.
//!
//! A place is watched in windows of time. How many there were is estimated from
//! bits (linear counting), so that a place takes the same memory whatever is tried
//! from it, and no name can be read back.

use std::time::Duration;

/// When logins from a place look like stuffing, and how they are slowed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a window is, and for how long an episode goes on after the last
    /// sign of it.
    pub window: Duration,
    /// Names that failed.
    pub failed_names: u32,
    /// If of names that failed and accounts that somebody got into so many in a
    /// hundred are accounts, or more, it is a place where people log in.
    pub success_percent: u32,
    /// The time from one login to the next in an episode.
    pub pause: Duration,
}

/// How many there were in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Names under which nobody got in.
    pub failed: u32,
    /// Accounts that somebody got into.
    pub accounts: u32,
}

/// A place that is watched.
#[derive(Debug)]
pub struct Watch {
    since: Duration,
    failed: Set,
    succeeded: Set,
    accounts: Set,
    episode: Option<Episode>,
}

/// A time in which logins are slowed.
#[derive(Debug, Clone, Copy)]
struct Episode {
    until: Duration,
    /// When the next login may be.
    next: Duration,
}

/// A set of names or of accounts, each a bit.
#[derive(Debug)]
struct Set(Box<[u64]>);

impl Watch {
    /// Nothing was seen yet. It can tell apart about three times as many names as
    /// there are bits in so many words.
    pub fn new(words: usize, now: Duration) -> Self {
        let none = || Set(vec![0; words].into());
        Self {
            since: now,
            failed: none(),
            succeeded: none(),
            accounts: none(),
            episode: None,
        }
    }

    /// Counts a login under the name that has this hash, and the account that it
    /// led to. True if an episode begins with it.
    pub fn count(
        &mut self,
        name: u64,
        account: Option<u64>,
        limits: &Limits,
        now: Duration,
    ) -> bool {
        if self.is_past(limits, now) {
            self.since = now;
            self.failed.clear();
            self.succeeded.clear();
            self.accounts.clear();
        }
        if let Some(account) = account {
            self.succeeded.insert(name);
            self.accounts.insert(account);
            return false;
        }
        self.failed.insert(name);
        if !self.tally().is_suspicious(limits) {
            return false;
        }
        let until = now + limits.window;
        match &mut self.episode {
            Some(episode) if now < episode.until => {
                episode.until = until;
                false
            }
            _ => {
                let next = now + limits.pause;
                self.episode = Some(Episode { until, next });
                true
            }
        }
    }

    /// Lets a login pass; in an episode, if it is time for one. Else says how long
    /// it is until then.
    pub fn admit(&mut self, limits: &Limits, now: Duration) -> Result<(), Duration> {
        let episode = self.episode.as_mut();
        let Some(episode) = episode.filter(|episode| now < episode.until) else {
            return Ok(());
        };
        if now < episode.next {
            return Err(episode.next.min(episode.until).saturating_sub(now));
        }
        episode.next = now + limits.pause;
        Ok(())
    }

    /// Whether there is an episode now.
    pub fn is_slowed(&self, now: Duration) -> bool {
        self.episode.is_some_and(|episode| now < episode.until)
    }

    /// Whether nothing of it matters any more.
    pub fn is_idle(&self, limits: &Limits, now: Duration) -> bool {
        !self.is_slowed(now) && self.is_past(limits, now)
    }

    /// The names and accounts of this window.
    pub fn tally(&self) -> Tally {
        let bits = self.failed.bits();
        let succeeded = self.succeeded.count();
        // A name that failed and got in is not among these, nor is one that has
        // the bit of another that got in: so it is a share of the other bits.
        let failed = self.failed.without(&self.succeeded);
        Tally {
            failed: estimate(failed, bits - succeeded, bits),
            accounts: estimate(self.accounts.count(), bits, bits),
        }
    }

    fn is_past(&self, limits: &Limits, now: Duration) -> bool {
        now >= self.since + limits.window
    }
}

impl Tally {
    fn is_suspicious(self, limits: &Limits) -> bool {
        let (failed, accounts) = (u64::from(self.failed), u64::from(self.accounts));
        self.failed >= limits.failed_names
            && accounts * 100 < (failed + accounts) * u64::from(limits.success_percent)
    }
}

impl Set {
    fn bits(&self) -> u32 {
        u32::try_from(self.0.len() * 64).unwrap_or(u32::MAX)
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }

    fn insert(&mut self, hash: u64) {
        let bit = hash % u64::from(self.bits()).max(1);
        let word = usize::try_from(bit / 64).unwrap_or_default();
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << (bit % 64);
        }
    }

    fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// How many of its bits the other does not have.
    fn without(&self, other: &Self) -> u32 {
        let pairs = self.0.iter().zip(&other.0);
        pairs
            .map(|(mine, theirs)| (mine & !theirs).count_ones())
            .sum()
    }
}

/// How many it took to set so many of the bits that they could have set, where
/// each sets one of all bits (Whang et al., 1990).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is positive, and no more than a few million"
)]
fn estimate(set: u32, of: u32, bits: u32) -> u32 {
    // With all of them set there is no telling; one may be half set.
    let unset = (f64::from(of) - f64::from(set)).max(0.5);
    let number = -f64::from(bits) * (unset / f64::from(of).max(0.5)).ln();
    number.round() as u32
}

#[cfg(test)]
mod tests;
