//! What is not recorded one by one, so that nobody fills the log at will.
//!
//! *Failures that anybody can cause*: of each kind a node records the first of a
//! minute whole. The rest is counted, and about once a second one of them, drawn by
//! lot, is recorded with the number that it stands for (`service::audit::chain`). So a
//! flood costs a bounded number of rows, and none of it is lost silently. So it is
//! with beginnings and ends of credential stuffing. What else succeeds, and what
//! has an effect, is never counted only.
//!
//! *Reads*: the same caller who reads the same again and again, as a page that
//! polls does, is recorded once in a while.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use uuid::Uuid;

use crate::domain::{ApiKeyId, AuditEvent, Entropy, UserId, audit::Action};

/// How long a budget of failures is for.
const MINUTE: Duration = Duration::from_mins(1);

/// Reads that are remembered. Who makes more has them recorded again.
const MOST_READS: usize = 10_000;

/// What this node has recorded of late, and what it has only counted.
#[derive(Debug)]
pub struct Sampler {
    failures_per_minute: u32,
    reads_every: Duration,
    failures: Mutex<HashMap<Action, Failures>>,
    reads: Mutex<HashMap<Read, Duration>>,
}

/// Failures of one kind.
#[derive(Debug)]
struct Failures {
    /// When this minute began.
    begun: Duration,
    /// How many there were since.
    seen: u32,
    /// One of those that were not recorded; it stands for all of them.
    left_out: Option<AuditEvent>,
}

/// Who reads what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Read {
    /// The account or the workload.
    pub caller: Uuid,
    /// Its API key, if it came by one.
    pub api_key: Option<ApiKeyId>,
    /// What it reads.
    pub action: Action,
    /// Whose.
    pub subject: Option<UserId>,
}

impl Sampler {
    /// Records so many failures of each kind in a minute, and the same read once
    /// in so long.
    pub fn new(failures_per_minute: u32, reads_every: Duration) -> Self {
        Self {
            failures_per_minute,
            reads_every,
            failures: Mutex::default(),
            reads: Mutex::default(),
        }
    }

    /// Whether a failure of this kind is recorded by itself.
    pub fn records(&self, action: Action, now: Duration) -> bool {
        let mut all = locked(&self.failures);
        let failures = all.entry(action).or_insert(Failures {
            begun: now,
            seen: 0,
            left_out: None,
        });
        if now.saturating_sub(failures.begun) >= MINUTE {
            failures.begun = now;
            failures.seen = 0;
        }
        failures.seen = failures.seen.saturating_add(1);
        failures.seen <= self.failures_per_minute
    }

    /// Counts failures that are not recorded by themselves. Each is as likely as the
    /// others to be the one that stands for all: nobody is to choose it by coming
    /// first.
    pub fn leave_out(&self, event: AuditEvent, entropy: &dyn Entropy) {
        let mut all = locked(&self.failures);
        let Some(failures) = all.get_mut(&event.action) else {
            return;
        };
        match &mut failures.left_out {
            Some(drawn) => {
                let all = drawn.represents + event.represents;
                if i64::from_be_bytes(entropy.array()).rem_euclid(all) < event.represents {
                    *drawn = event;
                }
                drawn.represents = all;
            }
            none => *none = Some(event),
        }
    }

    /// What was counted since the last time: of each kind one event, that stands
    /// for all. Whoever cannot record them leaves them out again.
    pub fn take_left_out(&self) -> Vec<AuditEvent> {
        let mut all = locked(&self.failures);
        let left_out = all.values_mut().map(|failures| &mut failures.left_out);
        left_out.filter_map(mem::take).collect()
    }

    /// Whether reads are recorded, and this one was not of late.
    pub fn is_new(&self, read: &Read, now: Duration) -> bool {
        let last = locked(&self.reads).get(read).copied();
        !self.reads_every.is_zero() && last.is_none_or(|last| self.is_over(last, now))
    }

    /// Remembers that a read was recorded.
    pub fn recorded(&self, read: Read, now: Duration) {
        let mut reads = locked(&self.reads);
        if reads.len() >= MOST_READS {
            reads.retain(|_, last| !self.is_over(*last, now));
        }
        if reads.len() >= MOST_READS {
            reads.clear();
        }
        reads.insert(read, now);
    }

    fn is_over(&self, last: Duration, now: Duration) -> bool {
        now.saturating_sub(last) >= self.reads_every
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{crypto::testing::Seeded, domain::audit::Outcome};

    const SECOND: Duration = Duration::from_secs(1);

    fn failed(action: Action, n: u128) -> AuditEvent {
        AuditEvent {
            id: Uuid::from_u128(n),
            at: Timestamp::UNIX_EPOCH,
            action,
            outcome: Outcome::Failure,
            actor: None,
            workload: None,
            subject: None,
            session_id: None,
            role_id: None,
            api_key_id: None,
            kid: None,
            correlation_id: String::new(),
            address: None,
            user_agent: String::new(),
            represents: 1,
        }
    }

    #[test]
    fn of_failures_beyond_the_budget_one_stands_for_all() {
        let (sampler, random) = (Sampler::new(3, MINUTE), Seeded::new(1));
        let happen = |action, n, now| {
            let is_recorded = sampler.records(action, now);
            if !is_recorded {
                sampler.leave_out(failed(action, n), &random);
            }
            is_recorded
        };
        let recorded = |from: u128, now| {
            (from..from + 10)
                .filter(|n| happen(Action::Login, *n, now))
                .count()
        };
        assert_eq!(recorded(0, SECOND), 3);
        // Another kind has a budget of its own.
        assert!(happen(Action::PasswordChanged, 20, SECOND));
        let left = sampler.take_left_out();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].represents, 7);
        assert!(sampler.take_left_out().is_empty());
        // What could not be recorded is counted with what has come since.
        assert_eq!(
            recorded(
                30,
                (SECOND + MINUTE).saturating_sub(Duration::from_micros(1))
            ),
            0
        );
        for event in left {
            sampler.leave_out(event, &random);
        }
        assert_eq!(sampler.take_left_out()[0].represents, 17);
        // A minute later it begins anew.
        assert_eq!(recorded(40, SECOND + MINUTE), 3);
        assert_eq!(sampler.take_left_out()[0].represents, 7);
    }

    #[test]
    fn whoever_comes_first_does_not_stand_for_the_rest() {
        let (sampler, random) = (Sampler::new(0, MINUTE), Seeded::new(1));
        let mut drawn = [0; 4];
        for _ in 0..1_000 {
            // One that was left out again stands for two.
            for (n, represents) in [(0, 1), (1, 1), (2, 2)] {
                assert!(!sampler.records(Action::Login, SECOND));
                let event = AuditEvent {
                    represents,
                    ..failed(Action::Login, n)
                };
                sampler.leave_out(event, &random);
            }
            let event = sampler.take_left_out().remove(0);
            assert_eq!(event.represents, 4);
            drawn[usize::try_from(event.id.as_u128()).unwrap()] += 1;
        }
        assert!(
            drawn[..2].iter().all(|n| (200..300).contains(n)),
            "{drawn:?}"
        );
        assert!((450..550).contains(&drawn[2]), "{drawn:?}");
    }

    #[test]
    fn the_same_read_is_new_once_in_a_while_and_memory_is_bounded() {
        let sampler = Sampler::new(1, MINUTE);
        let read = |caller, subject| Read {
            caller: Uuid::from_u128(caller),
            api_key: None,
            action: Action::UserRead,
            subject: Some(UserId(Uuid::from_u128(subject))),
        };
        assert!(sampler.is_new(&read(1, 1), SECOND));
        // Not before it was recorded.
        assert!(sampler.is_new(&read(1, 1), SECOND));
        sampler.recorded(read(1, 1), SECOND);
        assert!(!sampler.is_new(&read(1, 1), SECOND * 60));
        assert!(sampler.is_new(&read(1, 1), SECOND * 61));
        let by_key = Read {
            api_key: Some(ApiKeyId(Uuid::nil())),
            ..read(1, 1)
        };
        for other in [read(1, 2), read(2, 1), by_key] {
            assert!(sampler.is_new(&other, SECOND), "{other:?}");
        }
        for subject in 0..3 * MOST_READS as u128 {
            sampler.recorded(read(3, subject), SECOND);
            assert!(locked(&sampler.reads).len() <= MOST_READS);
        }
        let off = Sampler::new(1, Duration::ZERO);
        assert!(!off.is_new(&read(1, 1), SECOND));
    }
}
