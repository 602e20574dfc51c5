//! Circuit breakers: when a dependency keeps failing, calls that need it are
//! refused at once, and one cheap probe in the background finds out when it is
//! back.
//!
//! Built on `failsafe`'s state machine, which by itself lets every caller
//! through when it is half open, closes on any late success, and has no state
//! to read. So callers here get permits only while it is closed, a permit from
//! before an opening counts for nothing, and half open belongs to the probe.
//!
//! What is a failure is for the holder of the permit to say: a caller who
//! leaves or a broken constraint says nothing about the dependency.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use failsafe::{FailurePolicy, Instrument, StateMachine};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};

#[cfg(test)]
mod tests;

/// When a breaker opens, and how often it looks whether it may close.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Opens after this many failures in a row.
    pub consecutive_failures: u32,
    /// Opens when half of the calls of this many seconds failed …
    pub window_seconds: u64,
    /// … and there were at least this many.
    pub window_calls: u32,
    /// How often an open breaker probes.
    pub probe_interval_ms: u64,
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// Calls are refused, and the probe is on its way.
    HalfOpen,
}

/// The breaker of one dependency. Clones share its state.
#[derive(Clone)]
pub struct Breaker(Arc<Inner>);

struct Inner {
    watch: Arc<Watch>,
    /// Held while an outcome is compared with the openings and counted.
    machine: Mutex<StateMachine<Policy, Reporter>>,
    interval: Duration,
}

/// Leave to use the dependency once. Dropping it counts for nothing.
#[derive(Debug)]
#[must_use = "say how the call ended"]
pub struct Permit {
    breaker: Breaker,
    opened: u64,
}

/// What `failsafe` reports, kept where it can be read.
struct Watch {
    name: &'static str,
    state: AtomicU8,
    opened: AtomicU64,
    changed: Notify,
}

/// Hands `failsafe`'s reports to the watch.
struct Reporter(Arc<Watch>);

/// Decides when to open.
struct Policy {
    consecutive: u32,
    limit: u32,
    window: Window,
    start: Instant,
}

/// Calls and failures of the last seconds.
#[derive(Debug)]
struct Window {
    seconds: u64,
    fewest: u32,
    /// (second, calls, failures), oldest first.
    counts: VecDeque<(u64, u32, u32)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            window_seconds: 10,
            window_calls: 20,
            probe_interval_ms: 1_000,
        }
    }
}

impl Config {
    /// Names every setting that makes no sense, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        for (key, value) in [
            ("consecutive_failures", u64::from(self.consecutive_failures)),
            ("window_seconds", self.window_seconds),
            ("window_calls", u64::from(self.window_calls)),
            ("probe_interval_ms", self.probe_interval_ms),
        ] {
            if value == 0 {
                wrong.push(format!("breaker.{key} must be at least 1"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// How often an open breaker probes.
    pub fn probe_interval(&self) -> Duration {
        Duration::from_millis(self.probe_interval_ms)
    }
}

impl Breaker {
    /// A closed breaker; the name of the dependency stands in errors, metrics
    /// and logs.
    pub fn new(name: &'static str, config: &Config) -> Self {
        let watch = Arc::new(Watch {
            name,
            state: AtomicU8::new(State::Closed as u8),
            opened: AtomicU64::new(0),
            changed: Notify::new(),
        });
        let policy = Policy {
            consecutive: 0,
            limit: config.consecutive_failures,
            window: Window {
                seconds: config.window_seconds,
                fewest: config.window_calls,
                counts: VecDeque::new(),
            },
            start: Instant::now(),
        };
        metrics::counter!("countersign_breaker_opened_total", "dependency" => name).absolute(0);
        Self(Arc::new(Inner {
            machine: Mutex::new(StateMachine::new(policy, Reporter(Arc::clone(&watch)))),
            watch,
            interval: config.probe_interval(),
        }))
    }

    /// Whether calls are refused. Cheap: one atomic read.
    pub fn is_open(&self) -> bool {
        self.state() != State::Closed
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        match self.0.watch.state.load(SeqCst) {
            0 => State::Closed,
            1 => State::HalfOpen,
            _ => State::Open,
        }
    }

    /// How often it has opened since the start of the process.
    pub fn opened_count(&self) -> u64 {
        self.0.watch.opened.load(SeqCst)
    }

    /// When a refused caller may try again.
    pub fn retry_after(&self) -> Duration {
        self.0.interval
    }

    /// Leave to use the dependency, unless it is known to fail.
    pub fn permit(&self) -> Result<Permit> {
        let opened = self.opened_count();
        if self.is_open() {
            return Err(self.refuse());
        }
        Ok(Permit {
            breaker: self.clone(),
            opened,
        })
    }

    /// The error for a call that is refused because the breaker is open;
    /// counts it.
    pub fn refuse(&self) -> Error {
        let name = self.0.watch.name;
        metrics::counter!("countersign_breaker_rejected_total", "dependency" => name).increment(1);
        Error::unavailable(name, self.retry_after())
    }

    /// Runs until shutdown: whenever the breaker is open, checks the dependency
    /// every `interval`, and closes it again when the check succeeds. The check
    /// must be cheap and end by itself.
    pub async fn probe(
        self,
        check: impl AsyncFn() -> bool,
        interval: Duration,
        shutdown: CancellationToken,
    ) {
        let probing = async {
            loop {
                let changed = self.0.watch.changed.notified();
                if !self.is_open() {
                    changed.await;
                    continue;
                }
                tokio::time::sleep(interval).await;
                // Flips it to half open.
                if !self.machine().is_call_permitted() {
                    continue;
                }
                let good = check().await;
                let machine = self.machine();
                if good {
                    machine.on_success();
                } else {
                    machine.on_error();
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = probing => {}
        }
    }

    fn machine(&self) -> MutexGuard<'_, StateMachine<Policy, Reporter>> {
        self.0
            .machine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The dependency did its work.
    pub fn success(self) {
        self.count(StateMachine::on_success);
    }

    /// The dependency failed.
    pub fn failure(self) {
        self.count(StateMachine::on_error);
    }

    /// The call says nothing about the dependency.
    pub fn neutral(self) {
        drop(self);
    }

    fn count(self, outcome: impl FnOnce(&StateMachine<Policy, Reporter>)) {
        let machine = self.breaker.machine();
        // A call that began before the opening says nothing about now.
        if !self.breaker.is_open() && self.breaker.opened_count() == self.opened {
            outcome(&machine);
        }
    }
}

impl Watch {
    /// Returns the state before.
    fn enter(&self, state: State) -> u8 {
        let value: u8 = match state {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        };
        metrics::gauge!("countersign_breaker_state", "dependency" => self.name)
            .set(f64::from(value));
        let before = self.state.swap(value, SeqCst);
        self.changed.notify_waiters();
        before
    }
}

impl Instrument for Reporter {
    fn on_call_rejected(&self) {}

    fn on_open(&self) {
        // A probe that failed is no new opening.
        if self.0.state.load(SeqCst) == 0 {
            self.0.opened.fetch_add(1, SeqCst);
            metrics::counter!("countersign_breaker_opened_total", "dependency" => self.0.name)
                .increment(1);
            tracing::warn!(dependency = self.0.name, "breaker opened");
        }
        self.0.enter(State::Open);
    }

    fn on_half_open(&self) {
        self.0.enter(State::HalfOpen);
    }

    fn on_closed(&self) {
        if self.0.enter(State::Closed) != 0 {
            tracing::info!(dependency = self.0.name, "breaker closed");
        }
    }
}

impl FailurePolicy for Policy {
    fn record_success(&mut self) {
        self.consecutive = 0;
        self.window.record(self.start.elapsed().as_secs(), false);
    }

    fn mark_dead_on_failure(&mut self) -> Option<Duration> {
        self.consecutive += 1;
        let half = self.window.record(self.start.elapsed().as_secs(), true);
        // No wait in the state machine: the probe keeps the time.
        (half || self.consecutive >= self.limit).then_some(Duration::ZERO)
    }

    fn revived(&mut self) {
        self.consecutive = 0;
        self.window.counts.clear();
    }
}

impl Window {
    /// Counts a call in its second, and says whether half of enough calls
    /// failed.
    fn record(&mut self, second: u64, failed: bool) -> bool {
        while let Some((oldest, ..)) = self.counts.front()
            && oldest + self.seconds <= second
        {
            self.counts.pop_front();
        }
        let failed = u32::from(failed);
        match self.counts.back_mut() {
            Some((last, calls, failures)) if *last == second => {
                *calls += 1;
                *failures += failed;
            }
            _ => self.counts.push_back((second, 1, failed)),
        }
        let calls: u32 = self.counts.iter().map(|(_, calls, _)| calls).sum();
        let failures: u32 = self.counts.iter().map(|(.., failures)| failures).sum();
        calls >= self.fewest && failures * 2 >= calls
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("name", &self.0.watch.name)
            .field("state", &self.state())
            .finish()
    }
}
