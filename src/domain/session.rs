//! Sessions: one login and all tokens that come of it.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use super::{SessionId, UserId};

/// A session as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The claim `sid`.
    pub id: SessionId,
    /// Whose it is.
    pub user_id: UserId,
    /// What Login was given.
    pub device_name: String,
    /// The `user-agent` of the login.
    pub user_agent: String,
    /// The client address of the login.
    pub address: Option<IpAddr>,
    /// When the login was.
    pub created_at: Timestamp,
    /// When it was last refreshed.
    pub last_used_at: Timestamp,
    /// When it ends unless it is refreshed before.
    pub expires_at: Timestamp,
}

/// How long sessions live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Without a refresh.
    pub idle: SignedDuration,
    /// In all.
    pub absolute: SignedDuration,
    /// How long a replayed refresh token still gets its successor.
    pub grace: SignedDuration,
}

impl Lifetimes {
    /// When a session that is used now ends unless it is used again.
    pub fn expiry(&self, created_at: Timestamp, now: Timestamp) -> Timestamp {
        (now + self.idle).min(created_at + self.absolute)
    }
}

/// Where a session stands with its refresh tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The generation of its current token.
    pub generation: i64,
    /// When that was made.
    pub rotated_at: Timestamp,
}

/// A time in which this node had no answer from the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// When the database was first missed.
    pub lost_at: Timestamp,
    /// When it answered again.
    pub recovered_at: Timestamp,
}

/// What a presented refresh token of a live session means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presented {
    /// The current token, or one ahead of the row whose commit a failover
    /// lost: our MAC says that we issued it. It advances the session.
    Current,
    /// The one before, within the grace: a lost reply or racing clients. It
    /// gets the same successor.
    Replayed,
    /// Older than that: someone kept a copy.
    Stolen,
}

impl Progress {
    /// Judges a token of generation `presented`. The grace counts from the last
    /// rotation, or anew from the end of this node's last outage if that began
    /// within it: during an outage nobody could have retried.
    pub fn judge(
        &self,
        presented: i64,
        now: Timestamp,
        outage: Option<Outage>,
        grace: SignedDuration,
    ) -> Presented {
        if presented >= self.generation {
            return Presented::Current;
        }
        let from = match outage {
            Some(outage) if outage.lost_at <= self.rotated_at + grace => {
                outage.recovered_at.max(self.rotated_at)
            }
            _ => self.rotated_at,
        };
        if presented == self.generation - 1 && now <= from + grace {
            Presented::Replayed
        } else {
            Presented::Stolen
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngSeed};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            rng_seed: RngSeed::Fixed(1),
            ..ProptestConfig::default()
        })]

        /// Whatever the row, the clock and the outage.
        #[test]
        fn theft_is_never_forgiven_and_a_retry_within_the_grace_never_taken_for_it(
            (generation, presented) in (1_i64..6, 0_i64..8),
            (now, more) in (-60_i64..300, 0_i64..300),
            outage in prop::option::of((-60_i64..200, 0_i64..200)),
        ) {
            let at = |second| Timestamp::from_second(1_000_000 + second).unwrap();
            let grace = SignedDuration::from_secs(30);
            let row = Progress {
                generation,
                rotated_at: at(0),
            };
            let outage = outage.map(|(lost, lasted)| Outage {
                lost_at: at(lost),
                recovered_at: at(lost + lasted),
            });
            let judged = row.judge(presented, at(now), outage, grace);
            prop_assert_eq!(judged == Presented::Current, presented >= generation);
            if judged == Presented::Stolen {
                let later = row.judge(presented, at(now + more), outage, grace);
                prop_assert_eq!(later, Presented::Stolen);
            }
            let without = row.judge(presented, at(now), None, grace);
            let retried = presented == generation - 1 && now <= 30;
            prop_assert_eq!(without == Presented::Replayed, retried);
            if without != Presented::Stolen {
                prop_assert_eq!(judged, without);
            }
            if judged == Presented::Replayed {
                let recovered = outage.map_or(at(0), |outage| outage.recovered_at.max(at(0)));
                prop_assert!(presented == generation - 1 && at(now) <= recovered + grace);
            }
        }
    }

    #[test]
    fn a_token_is_judged_by_its_generation_and_the_grace() {
        let at = |second| Timestamp::from_second(1_000_000 + second).unwrap();
        let grace = SignedDuration::from_secs(30);
        let row = Progress {
            generation: 5,
            rotated_at: at(0),
        };
        let judge = |presented, now, outage: Option<(i64, i64)>| {
            let outage = outage.map(|(lost, recovered)| Outage {
                lost_at: at(lost),
                recovered_at: at(recovered),
            });
            row.judge(presented, at(now), outage, grace)
        };
        assert_eq!(judge(5, 9_999, None), Presented::Current);
        assert_eq!(judge(6, 0, None), Presented::Current);
        assert_eq!(judge(4, 30, None), Presented::Replayed);
        assert_eq!(judge(4, 31, None), Presented::Stolen);
        assert_eq!(judge(4, 120, Some((30, 90))), Presented::Replayed);
        assert_eq!(judge(4, 121, Some((30, 90))), Presented::Stolen);
        // The grace was over before the outage: it does not come back.
        assert_eq!(judge(4, 100, Some((31, 90))), Presented::Stolen);
        // An outage before the rotation takes nothing from it.
        assert_eq!(judge(4, 30, Some((-90, -60))), Presented::Replayed);
        assert_eq!(judge(3, 0, Some((0, 0))), Presented::Stolen);
    }
}
