//! Time as an argument, so that a test owns it.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

/// Where the time comes from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock. It may be set back or forward while the process runs.
    fn now(&self) -> Timestamp;

    /// Time since an arbitrary start. It never goes back; only differences mean something.
    fn monotonic(&self) -> Duration;
}

/// The clock of the machine.
///
/// Its monotonic side goes on while the machine is suspended: what was known before a night's sleep is
/// a night old.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    #[cfg(target_os = "linux")]
    fn monotonic(&self) -> Duration {
        // `Instant` is CLOCK_MONOTONIC here, which stands still in suspension.
        let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(since_boot).unwrap_or_default()
    }

    /// Elsewhere, where nobody runs us in production, as good as [`Instant`](std::time::Instant) is.
    #[cfg(not(target_os = "linux"))]
    fn monotonic(&self) -> Duration {
        static START: std::sync::LazyLock<std::time::Instant> =
            std::sync::LazyLock::new(std::time::Instant::now);
        START.elapsed()
    }
}
