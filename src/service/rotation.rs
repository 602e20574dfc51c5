//! Rotation by schedule: each node looks whether the active signing key has
//! reached its age, stages the next one in time, and activates it. What is to
//! be done follows from the keys alone, so that any node goes on where another
//! has stopped, and what one has done the others find done.

use std::{sync::Arc, time::Duration};

use countersign_verifier::KeyState;
use jiff::Timestamp;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Core, keys};
use crate::{
    domain::{Call, signing_key::SigningKey},
    error::{Reason, Result},
};

/// How often the keys are looked at. They are in memory; the database is asked
/// only when something is to be done.
const EVERY: Duration = Duration::from_secs(1);

/// The task that rotates signing keys.
#[derive(Debug)]
pub struct Rotation {
    core: Arc<Core>,
    call: Call,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Due {
    Nothing,
    Stage,
    Activate(String),
}

impl Rotation {
    /// Rotates the keys of this core.
    pub fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            call: Call::internal("key-rotation"),
        }
    }

    /// Works until told to stop.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut said = None;
        loop {
            tokio::select! {
                () = sleep(EVERY) => {}
                () = shutdown.cancelled() => return,
            }
            let outcome = self.step().await;
            let why = outcome.as_ref().err().map(crate::error::Error::reason);
            if let Err(error) = &outcome
                && why != said
            {
                tracing::warn!(
                    cause = crate::error::chain(error),
                    "the signing keys are not rotated yet; trying again"
                );
            }
            said = why;
        }
    }

    async fn step(&self) -> Result<()> {
        let core = &*self.core;
        // Without keys there is nothing to rotate yet; with a clock that is off
        // nobody knows how old they are.
        let Ok(keys) = core.keyring.keys() else {
            return Ok(());
        };
        let now = core.now();
        if let Some(active) = keys.stored.iter().find(|key| key.state == KeyState::Active) {
            let age = now.duration_since(active.changed_at).as_secs_f64();
            metrics::gauge!("countersign_signing_key_age_seconds").set(age);
        }
        if core.skew.is_off() || core.store.breaker().is_open() {
            return Ok(());
        }
        let done = match self.due(&keys.stored, now) {
            Due::Nothing => return Ok(()),
            Due::Stage => {
                let is_due = |stored: &[SigningKey]| self.due(stored, now) == Due::Stage;
                let staged = keys::stage_when_due(core, &self.call, is_due).await;
                staged.map(|key| key.map(|key| ("staged the next signing key", key.kid)))
            }
            Due::Activate(kid) => {
                let wish = keys::Activation {
                    kid,
                    force: false,
                    retire_previous: false,
                };
                keys::activate_within(core, &self.call, &wish, Duration::ZERO)
                    .await
                    .map(|key| Some(("activated the next signing key", key.kid)))
            }
        };
        match done {
            Ok(Some((what, kid))) => tracing::info!(kid, "{what}"),
            Ok(None) => {}
            // Another node or somebody by hand was first.
            Err(error)
                if matches!(
                    error.reason(),
                    Reason::KeyNotNext | Reason::KeyNotFound | Reason::KeyAlreadyStaged
                ) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn due(&self, stored: &[SigningKey], now: Timestamp) -> Due {
        let policy = &self.core.policy.keys;
        let find = |state| stored.iter().find(|key| key.state == state);
        let (Some(every), Some(active)) = (policy.rotate_every, find(KeyState::Active)) else {
            return Due::Nothing;
        };
        let age = now.duration_since(active.changed_at);
        match find(KeyState::Next) {
            None if age >= every - policy.publish_ahead => Due::Stage,
            Some(next)
                if age >= every && now.duration_since(next.changed_at) >= policy.publish_ahead =>
            {
                Due::Activate(next.kid.clone())
            }
            _ => Due::Nothing,
        }
    }
}
