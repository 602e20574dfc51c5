//! What the fuzz targets have in common: each is one function of [`targets`], which
//! the ordinary tests also run, on the corpora.

pub mod targets;

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// No input may take longer, of what may come from anybody.
const LONGEST: Duration = Duration::from_millis(50);

/// Runs a target on one input.
///
/// # Panics
///
/// If the target does, or if the input takes too long.
pub fn run(target: fn(&[u8]), data: &[u8]) {
    run_within(LONGEST, target, data);
}

/// The same where more is done for one input. The processor's time and not the
/// clock's: a machine with other work makes nothing slow.
///
/// # Panics
///
/// If the target does, or if the input takes too long.
pub fn run_within(longest: Duration, target: fn(&[u8]), data: &[u8]) {
    let began = cpu_time();
    target(data);
    let took = cpu_time().saturating_sub(began);
    assert!(took < longest, "{} bytes took {took:?}", data.len());
}

fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}
