//! Time as an argument, so that a test owns it.

use std::fmt;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

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
/// Its monotonic side is [`Instant`], which on Linux stands still while the machine is suspended.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> Duration {
        START.elapsed()
    }
}
