//! How requests have fared, as counters that any metrics library can read.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Pass;
use super::refusal::Refusal;

/// How requests have fared since the layer was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardCounts {
    /// Passed on; those of `stale_served` are among them.
    pub passed: u64,
    /// Passed on although the knowledge was older than the route wants.
    pub stale_served: u64,
    /// Refused because the knowledge was older than the route accepts.
    pub stale_refused: u64,
    /// Refused because nothing was known yet.
    pub not_ready: u64,
    /// Refused for want of a good credential.
    pub unauthenticated: u64,
    /// Refused for want of a role or a scope, or because the route is not listed.
    pub forbidden: u64,
    /// Refused for a path that could be read in two ways.
    pub unclear: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    passed: AtomicU64,
    stale_served: AtomicU64,
    stale_refused: AtomicU64,
    not_ready: AtomicU64,
    unauthenticated: AtomicU64,
    forbidden: AtomicU64,
    unclear: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, verdict: &Result<Pass, Refusal>) {
        let counter = match verdict {
            Ok(pass) => {
                if pass.stale.is_some() {
                    self.stale_served.fetch_add(1, Ordering::Relaxed);
                }
                &self.passed
            }
            Err(Refusal::Stale) => &self.stale_refused,
            Err(Refusal::NotReady) => &self.not_ready,
            Err(Refusal::Missing | Refusal::Bad) => &self.unauthenticated,
            Err(Refusal::Unlisted | Refusal::Lacking { .. }) => &self.forbidden,
            Err(Refusal::Unclear) => &self.unclear,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> GuardCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GuardCounts {
            passed: read(&self.passed),
            stale_served: read(&self.stale_served),
            stale_refused: read(&self.stale_refused),
            not_ready: read(&self.not_ready),
            unauthenticated: read(&self.unauthenticated),
            forbidden: read(&self.forbidden),
            unclear: read(&self.unclear),
        }
    }
}
