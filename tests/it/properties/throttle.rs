//! Guessing passwords, in whatever order and by whatever clock.

use std::{collections::BTreeMap, time::Duration};

use countersign::service::throttle;
use countersign_proto::v1;
use jiff::SignedDuration;
use proptest::{collection::vec, prelude::*};
use tonic::Status;
use tonic_types::StatusExt as _;

use super::{Verdict, try_cases};
use crate::{
    harness::{Failure, Person, World, calls, world::PASSWORD},
    on_both,
};

const WRONG: &str = "not the password at all";

/// Blocks that one hash of these tests fills.
const HASH: u64 = 8;

const YEAR: i64 = 365 * 24 * 3_600;

#[derive(Debug, Clone)]
enum Step {
    /// Tries a password.
    Try {
        under: Name,
        right: bool,
        /// From the device that the account's owner has.
        by_device: bool,
    },
    /// Tries so many wrong passwords, each once the wait is over.
    Fail(Name, u32),
    /// Time passes, in seconds.
    Pass(u64),
    /// Time passes until so many seconds before or after a wait that somebody was told
    /// is over.
    PassTheWait(i64),
    /// Somebody sets the clock.
    Set(i64),
    /// An admin forgets the failures.
    Unlock,
    /// An admin gives the account another username.
    Rename(usize),
}

#[derive(Debug, Clone, Copy)]
enum Name {
    Email,
    /// One of those that the account may have, whether or not it has it now.
    Username(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = || prop_oneof![3 => Just(Name::Email), 3 => (0_usize..2).prop_map(Name::Username)];
    let attempt = (name(), prop::bool::weighted(0.1), prop::bool::weighted(0.2));
    vec(
        prop_oneof![
            8 => attempt.prop_map(|(under, right, by_device)| Step::Try { under, right, by_device }),
            3 => (name(), 1_u32..6).prop_map(|(under, times)| Step::Fail(under, times)),
            2 => (1_u64..200).prop_map(Step::Pass),
            3 => (-1_i64..2).prop_map(Step::PassTheWait),
            1 => (-3_600_i64..3_600).prop_map(Step::Set),
            1 => Just(Step::Unlock),
            2 => (0_usize..2).prop_map(Step::Rename),
        ],
        1..25,
    )
}

/// Failures in a row, and when the next password is looked at. By the wall clock.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Count {
    failures: u32,
    not_before: i64,
}

impl Count {
    /// The wait that so many failures bring: three bring the first one, seven a reset.
    fn delay(self) -> i64 {
        match self.failures {
            0..3 => 0,
            3 => 30,
            4 => 60,
            5..7 => 100,
            _ => YEAR,
        }
    }

    fn wait(self, now: i64) -> i64 {
        (self.not_before - now).clamp(0, self.delay())
    }
}

/// A case: one account, and what is counted under its names.
struct Case<'a> {
    world: &'a World,
    admin: &'a Person,
    ana: Person,
    device_token: String,
    usernames: [String; 2],
    username: Option<usize>,
    /// By name; the device's count has a name that nobody can have.
    counts: BTreeMap<String, Count>,
    /// When the next password is looked at at the earliest, as somebody was told under
    /// this name; by a clock that nobody sets.
    promised: BTreeMap<String, Duration>,
}

const DEVICE: &str = "the device";

impl Case<'_> {
    fn now(&self) -> i64 {
        countersign_verifier::Clock::now(&*self.world.clock).as_second()
    }

    fn elapsed(&self) -> Duration {
        countersign_verifier::Clock::monotonic(&*self.world.clock)
    }

    fn hashes(&self) -> u64 {
        self.world.node.running.core().lanes.work() / HASH
    }

    fn name(&self, name: Name) -> String {
        match name {
            Name::Email => self.ana.email.clone(),
            Name::Username(number) => self.usernames[number].clone(),
        }
    }

    /// The names that the account has now.
    fn names(&self) -> Vec<String> {
        let username = self.username.map(|number| self.usernames[number].clone());
        [self.ana.email.clone()]
            .into_iter()
            .chain(username)
            .collect()
    }

    fn count(&self, name: &str) -> Count {
        self.counts.get(name).copied().unwrap_or_default()
    }

    async fn attempt(&mut self, under: Name, right: bool, by_device: bool) -> Verdict {
        let (now, elapsed) = (self.now(), self.elapsed());
        let name = self.name(under);
        let is_hers = self.names().contains(&name);
        let device_counts = by_device && is_hers && self.count(DEVICE).wait(now) == 0;
        let key = if device_counts {
            DEVICE.to_owned()
        } else {
            name.clone()
        };
        let mut count = self.count(&key);
        let wait = count.wait(now);

        let password = if right { PASSWORD } else { WRONG };
        let device_token = if by_device {
            self.device_token.as_str()
        } else {
            ""
        };
        let before = self.hashes();
        let said = login(self.world, &name, password, device_token).await;
        let looks = self.hashes() - before;

        if wait > 0 {
            let (reason, told) = said.expect_err("it has to wait");
            let wait = Duration::from_secs(wait.unsigned_abs());
            prop_assert_eq!((reason.as_str(), told), ("LOGIN_THROTTLED", Some(wait)));
            prop_assert_eq!(looks, 0, "it was looked at");
            count.not_before = count.not_before.min(now + count.delay());
            self.counts.insert(key.clone(), count);
            let until = self.promised.entry(key).or_default();
            *until = (*until).max(elapsed + wait);
            return Ok(());
        }
        prop_assert_eq!(looks, 1);
        let promised = self.promised.remove(&key).unwrap_or_default();
        prop_assert!(elapsed >= promised, "earlier than promised");
        if right && is_hers {
            prop_assert!(said.is_ok(), "{:?}", said);
            self.counts.remove(&key);
        } else {
            prop_assert_eq!(said, Err(("LOGIN_FAILED".to_owned(), None)));
            count.failures += 1;
            count.not_before = now + count.delay();
            self.counts.insert(key, count);
        }
        Ok(())
    }

    async fn step(&mut self, step: Step) -> Verdict {
        match step {
            Step::Try {
                under,
                right,
                by_device,
            } => return self.attempt(under, right, by_device).await,
            Step::Fail(under, times) => {
                for _ in 0..times {
                    let wait = self.count(&self.name(under)).wait(self.now());
                    if wait < YEAR / 2 {
                        self.world
                            .clock
                            .advance(Duration::from_secs(wait.unsigned_abs()));
                    }
                    self.attempt(under, false, false).await?;
                }
            }
            Step::Pass(seconds) => self.world.clock.advance(Duration::from_secs(seconds)),
            Step::PassTheWait(more) => {
                let now = self.now();
                let waits = self.counts.values().map(|count| count.wait(now));
                // Nobody waits for a year.
                let wait = waits.filter(|wait| (1..YEAR / 2).contains(wait)).min();
                let seconds = u64::try_from(wait.unwrap_or_default() + more).unwrap_or_default();
                self.world.clock.advance(Duration::from_secs(seconds));
            }
            Step::Set(by) => {
                self.world.clock.step(SignedDuration::from_secs(by));
                // Who sets the clock forward ends waits; who sets it back ends none.
                if by > 0 {
                    self.promised.clear();
                }
            }
            Step::Unlock => {
                let admin = self.admin.again().await;
                let unlocked = calls::unlock(&admin.client, &self.ana.user_id).await;
                unlocked.expect("forgets");
                for name in self.names() {
                    self.counts.remove(&name);
                    self.promised.remove(&name);
                }
            }
            Step::Rename(number) => {
                let admin = self.admin.again().await;
                calls::rename(&admin.client, &self.ana.user_id, &self.usernames[number]).await;
                let before = self.names();
                self.username = Some(number);
                let after = self.names();
                if before != after {
                    self.carry(&before, &after);
                }
            }
        }
        Ok(())
    }

    /// The new names have the failures and the wait of the old ones, if not worse.
    fn carry(&mut self, before: &[String], after: &[String]) {
        let counted: Vec<_> = before
            .iter()
            .filter_map(|name| self.counts.get(name))
            .collect();
        if counted.is_empty() {
            return;
        }
        let failures = counted
            .iter()
            .map(|count| count.failures)
            .max()
            .unwrap_or_default();
        let not_before = counted
            .iter()
            .map(|count| count.not_before)
            .max()
            .unwrap_or_default();
        for name in after {
            let count = self.counts.entry(name.clone()).or_default();
            count.failures = count.failures.max(failures);
            count.not_before = count.not_before.max(not_before);
        }
    }
}

/// The reason why a login was refused, and the wait that it was told.
async fn login(
    world: &World,
    identifier: &str,
    password: &str,
    device_token: &str,
) -> Result<String, (String, Option<Duration>)> {
    let request = v1::LoginRequest {
        identifier: identifier.to_owned(),
        password: password.to_owned(),
        device_token: device_token.to_owned(),
        ..Default::default()
    };
    let told = |status: Status| {
        let retry = status.get_error_details().retry_info().cloned();
        let wait = retry.and_then(|retry| retry.retry_delay);
        (Failure::from(&status).reason, wait)
    };
    let reply = world.anonymous().auth.login(request).await.map_err(told)?;
    Ok(reply.into_inner().device_token)
}

async fn answers_as_the_model(world: &World, admin: &Person, steps: Vec<Step>) -> Verdict {
    let ana = world.person().await;
    let device_token = login(world, &ana.email, PASSWORD, "")
        .await
        .expect("logs in");
    let usernames = ["a", "b"].map(|start| {
        let (name, _) = ana.email.split_once('@').expect("an address");
        format!("{start}.{name}")
    });
    let mut case = Case {
        world,
        admin,
        ana,
        device_token,
        usernames,
        username: None,
        counts: BTreeMap::new(),
        promised: BTreeMap::new(),
    };
    for step in steps {
        case.step(step).await?;
    }
    Ok(())
}

on_both! {
    async fn in_whatever_order_passwords_are_tried(world: World) {
        let world = world.restarted(|config| {
            config.login_throttle = throttle::Config {
                failures_before_delay: 3,
                first_delay_seconds: 30,
                longest_delay_seconds: 100,
                failures_before_reset: 7,
                ..throttle::Config::default()
            };
        }).await;
        let admin = world.admin().await;
        try_cases(&steps(), async |steps| answers_as_the_model(&world, &admin, steps).await);
    }
}
