//! How far this node's clock is from the database's. A token that is minted by
//! a wrong clock lives too long or not at all, so a node whose clock is off
//! alarms and mints no more; it validates on, as best it can.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::SignedDuration;

use super::Core;
use crate::{
    domain::Call,
    error::{Error, Reason, Result},
    store::nodes,
};

/// The clock is measured about every second.
const RETRY: Duration = Duration::from_secs(2);

/// What is known of the clock.
#[derive(Debug)]
pub struct Skew {
    most: SignedDuration,
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    ahead: SignedDuration,
    off: bool,
}

impl Skew {
    /// Nothing is known yet. Beyond `most_seconds` the clock is off.
    pub fn new(most_seconds: u32) -> Self {
        Self {
            most: SignedDuration::from_secs(most_seconds.into()),
            known: Mutex::default(),
        }
    }

    /// Whether the clock is known to be off.
    pub fn is_off(&self) -> bool {
        self.known().is_some_and(|known| known.off)
    }

    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a measurement that is at most so wrong.
    fn note(&self, ahead: SignedDuration, doubt: SignedDuration) -> Known {
        let off = ahead.abs() - doubt > self.most;
        let seconds = ahead.as_secs_f64();
        metrics::gauge!("countersign_clock_skew_seconds").set(seconds);
        let was_off = self.is_off();
        if off && !was_off {
            tracing::error!(
                ahead_seconds = seconds,
                "this node's clock is not the database's: no tokens are minted here until it is set right"
            );
        } else if was_off && !off {
            tracing::info!("this node's clock is right again: tokens are minted");
        }
        let known = Known { ahead, off };
        *self.known() = Some(known);
        known
    }
}

/// Measures by how much this node's clock is ahead of the database's. SQLite
/// has no other clock.
pub(super) async fn measure(core: &Core, call: &Call) -> Result<SignedDuration> {
    let known = if core.store.is_postgres() {
        let mut conn = core.store.read(call).await?;
        let (asked_at, began) = (core.clock.now(), core.clock.monotonic());
        let theirs = nodes::database_clock(&mut conn).await?;
        // The database has looked at its clock between the two, in the middle
        // as far as is known.
        let doubt = (core.clock.monotonic().saturating_sub(began)) / 2;
        let doubt = SignedDuration::try_from(doubt).unwrap_or(SignedDuration::MAX);
        let ours = asked_at + doubt;
        let ahead = theirs.map_or(SignedDuration::ZERO, |theirs| ours.duration_since(theirs));
        core.skew.note(ahead, doubt)
    } else {
        core.skew.note(SignedDuration::ZERO, SignedDuration::ZERO)
    };
    Ok(known.ahead)
}

/// Comes before anything that ends in a new token.
pub(super) async fn refuse_when_off(core: &Core, call: &Call) -> Result<()> {
    let unknown = core.skew.known().is_none();
    if unknown {
        measure(core, call).await?;
    }
    if core.skew.is_off() {
        return Err(Error::new(Reason::ClockSkewed).retry_after(RETRY));
    }
    Ok(())
}
