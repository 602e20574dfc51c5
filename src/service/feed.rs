//! What validators are told: the trust state whole, and then each change to it,
//! in the order in which this node applied them.
//!
//! The follower of the trust log is the one who publishes; a change is in force
//! on this node before anybody is told. Readers are many and of unknown speed,
//! so nothing waits for them: changes are kept for a while, shared by all, and a
//! reader who falls behind further than that is detached and comes back.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use countersign_verifier::{Delta, TrustState, Verifier};
use tokio::sync::broadcast;
use uuid::Uuid;

/// How many changes are kept for readers who come back, and for slow ones. One
/// holds at most what one read of the log gives.
const KEPT: usize = 1_024;

/// The feed of this node.
#[derive(Debug)]
pub struct Feed {
    verifier: Arc<Verifier>,
    recent: Mutex<Recent>,
    events: broadcast::Sender<Event>,
    validators: Mutex<HashMap<Uuid, Validator>>,
}

/// A place in the trust log.
pub type Position = (i64, Uuid);

/// Changes that were published last; each goes on from the one before.
#[derive(Debug, Default)]
struct Recent {
    changes: VecDeque<Change>,
}

/// A change, and the position that it goes on from.
#[derive(Debug, Clone)]
pub struct Change {
    /// The position before.
    pub from: Position,
    /// What changed.
    pub delta: Arc<Delta>,
    /// Up to when, by the monotonic clock, everything is known to whoever has
    /// made it.
    pub known_as_of: Duration,
}

/// What readers hear.
#[derive(Debug, Clone)]
pub enum Event {
    /// Something changed.
    Changed(Change),
    /// Another state took the place of the last; read it whole.
    Replaced,
}

/// Where a reader begins, and what comes after.
#[derive(Debug)]
pub struct Subscription {
    /// Where to begin.
    pub start: Start,
    /// What happens from then on, nothing left out.
    pub events: broadcast::Receiver<Event>,
}

/// Where a reader begins.
#[derive(Debug)]
pub enum Start {
    /// After these changes.
    Changes(Vec<Change>),
    /// From everything.
    State(Arc<TrustState>),
}

/// A validator that reads this feed now.
#[derive(Debug, Clone)]
struct Validator {
    acknowledged: i64,
}

/// A validator's place among those who read. It ends with this.
#[derive(Debug)]
pub struct Seat {
    feed: Arc<Feed>,
    id: Uuid,
}

impl Feed {
    /// The feed of what this verifier is told.
    pub fn new(verifier: Arc<Verifier>) -> Self {
        Self {
            verifier,
            recent: Mutex::default(),
            events: broadcast::Sender::new(KEPT),
            validators: Mutex::default(),
        }
    }

    /// Decides by what was published here.
    pub fn verifier(&self) -> &Arc<Verifier> {
        &self.verifier
    }

    /// Puts a state in place of whatever was there; it is so old already.
    pub fn replace(&self, state: TrustState, age: Duration) {
        let mut recent = self.recent();
        self.verifier.replace_aged(state, age);
        recent.changes.clear();
        // An error says that nobody listens.
        let _ = self.events.send(Event::Replaced);
    }

    /// Makes a change and tells it. Does nothing before the first state.
    pub fn publish(&self, delta: Delta) {
        let mut recent = self.recent();
        let Some(state) = self.verifier.state() else {
            return;
        };
        let known_as_of = self.known_as_of_unlocked();
        self.verifier.update(|state| state.apply(&delta));
        let change = Change {
            known_as_of,
            from: (state.seq, state.nonce),
            delta: Arc::new(delta),
        };
        if recent.changes.len() == KEPT {
            recent.changes.pop_front();
        }
        recent.changes.push_back(change.clone());
        let _ = self.events.send(Event::Changed(change));
    }

    /// Up to when, by the monotonic clock, everything is known here that was
    /// committed. Whoever asks can then read an event for all of it.
    pub fn known_as_of(&self) -> Duration {
        // Held, so that no state is in place that has not been told.
        let _recent = self.recent();
        self.known_as_of_unlocked()
    }

    fn known_as_of_unlocked(&self) -> Duration {
        // The clock first: what passes between must not make it seem fresher.
        let now = self.verifier.clock().monotonic();
        now.saturating_sub(self.verifier.staleness().unwrap_or(Duration::MAX))
    }

    /// Subscribes a reader who is at a position: it gets the changes since, or
    /// everything where that position is not known (any more). None before the
    /// first state.
    pub fn subscribe(&self, at: Option<Position>) -> Option<Subscription> {
        // Held while both are taken, so that nothing falls between them.
        let recent = self.recent();
        let state = self.verifier.state()?;
        let changes = at.and_then(|at| recent.since(at, (state.seq, state.nonce)));
        Some(Subscription {
            start: match changes {
                Some(changes) => Start::Changes(changes),
                None => Start::State(state),
            },
            events: self.events.subscribe(),
        })
    }

    /// Seats a validator, which has acknowledged nothing yet.
    pub fn seat(self: &Arc<Self>, id: Uuid) -> Seat {
        let validator = Validator { acknowledged: 0 };
        let mut validators = self.validators_now();
        validators.insert(id, validator);
        Self::count(&validators);
        drop(validators);
        Seat {
            feed: Arc::clone(self),
            id,
        }
    }

    /// Notes up to where a validator decides. False if it has no seat here.
    pub fn acknowledge(&self, id: Uuid, seq: i64) -> bool {
        match self.validators_now().get_mut(&id) {
            Some(validator) => {
                validator.acknowledged = validator.acknowledged.max(seq);
                true
            }
            None => false,
        }
    }

    /// How many validators read this feed, and up to where all of them decide.
    pub fn validators(&self) -> (usize, Option<i64>) {
        let validators = self.validators_now();
        let least = validators.values().map(|validator| validator.acknowledged);
        (validators.len(), least.min())
    }

    fn count(validators: &HashMap<Uuid, Validator>) {
        let count = u32::try_from(validators.len()).unwrap_or(u32::MAX);
        metrics::gauge!("countersign_validators").set(count);
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn validators_now(&self) -> MutexGuard<'_, HashMap<Uuid, Validator>> {
        let validators = self.validators.lock();
        validators.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    /// The changes after a position, if it is known.
    fn since(&self, at: Position, now: Position) -> Option<Vec<Change>> {
        match self.changes.iter().position(|change| change.from == at) {
            Some(first) => Some(self.changes.range(first..).cloned().collect()),
            None => (at == now).then(Vec::new),
        }
    }
}

impl Seat {
    /// Names the validator's stream.
    pub fn id(&self) -> Uuid {
        self.id
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut validators = self.feed.validators_now();
        validators.remove(&self.id);
        Feed::count(&validators);
    }
}
