//! Slowing down those who guess passwords (NIST SP 800-63B-4, section 3.2.2).
//!
//! Failures in a row are counted by the name that was tried, whether or not
//! anybody has it, in rows that all nodes share. `domain::throttle` says what
//! wait how many of them bring.
//!
//! Two things keep parallel guesses from getting past a limit:
//! - Under one name a node checks one password at a time. The others wait for
//!   their turn, and then see what came of it.
//! - Where there is a counter, the failure is counted before the password is
//!   looked at, by a change of the row as it was seen. Of two nodes that do so
//!   at once, one has to look again.
//!
//! Where there is no counter yet nothing is written before the check, so that a
//! login that succeeds costs no write of ours; a failure is committed before
//! its answer. So all nodes together look at as many passwords as the limit
//! says, and at most one more for each node but one.
//!
//! A device from which somebody has logged in before has a count of its own, and
//! so has an account for those who are logged in to it: what strangers try under
//! a name shuts its owner out of neither.
//!
//! The turn comes after the ticket of the hash lanes, as a call that is shed is
//! not counted. Those who wait for it keep theirs, so only so many may wait under
//! one name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tokio::{sync::OwnedMutexGuard, time::timeout};

use super::{Core, record};
use crate::{
    crypto::Device,
    domain::{
        Call, Identifier, User, UserId,
        audit::Action,
        throttle::{Counter, Limits, ThrottleKey},
    },
    error::{Error, Reason, Result},
    store::{
        Conn, login_throttle,
        users::{self, Credentials},
    },
};

/// When somebody may come back who has found the line too long.
const LINE_MOVES: Duration = Duration::from_secs(1);

/// Settings of the throttle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The failure in a row that brings the first wait.
    pub failures_before_delay: u32,
    /// That wait; each further failure doubles it.
    pub first_delay_seconds: u32,
    /// The longest wait.
    pub longest_delay_seconds: u32,
    /// After so many failures in a row somebody has to reset it.
    pub failures_before_reset: u32,
    /// When failures are forgotten.
    pub forget_after_days: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            failures_before_delay: 5,
            first_delay_seconds: 30,
            longest_delay_seconds: 3600,
            failures_before_reset: 100,
            forget_after_days: 30,
        }
    }
}

impl Config {
    /// What is wrong with the settings, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        if !(1..self.failures_before_reset).contains(&self.failures_before_delay) {
            problems.push(
                "login_throttle.failures_before_delay must be at least 1 and less than \
                 login_throttle.failures_before_reset"
                    .to_owned(),
            );
        }
        if self.failures_before_reset > 100 {
            problems.push(
                "login_throttle.failures_before_reset must be at most 100 (NIST SP 800-63B-4, \
                 section 3.2.2)"
                    .to_owned(),
            );
        }
        if !(1..=86_400).contains(&self.longest_delay_seconds)
            || !(1..=self.longest_delay_seconds).contains(&self.first_delay_seconds)
        {
            problems.push(
                "login_throttle.first_delay_seconds must be at least 1 and at most \
                 login_throttle.longest_delay_seconds, and that at most 86400"
                    .to_owned(),
            );
        }
        if !(1..=365).contains(&self.forget_after_days) {
            problems.push("login_throttle.forget_after_days must be 1 to 365".to_owned());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// The settings as the rules take them.
    pub fn limits(&self) -> Limits {
        let seconds = |n: u32| SignedDuration::from_secs(i64::from(n));
        Limits {
            before_delay: self.failures_before_delay,
            first_delay: seconds(self.first_delay_seconds),
            longest_delay: seconds(self.longest_delay_seconds),
            before_reset: self.failures_before_reset,
            kept: SignedDuration::from_hours(i64::from(self.forget_after_days) * 24),
        }
    }
}

/// The limits, and who waits for a turn on this node.
#[derive(Debug)]
pub struct Throttle {
    limits: Limits,
    longest_line: usize,
    lines: Mutex<HashMap<ThrottleKey, Line>>,
}

/// Those who have a password checked under one name, or wait for it.
#[derive(Debug, Default)]
struct Line {
    turn: Arc<tokio::sync::Mutex<()>>,
    people: usize,
}

/// A place in line, and after the wait the turn itself. Left when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    throttle: &'a Throttle,
    key: ThrottleKey,
    held: Option<OwnedMutexGuard<()>>,
}

/// What a password is to be checked against, and what was counted before.
#[derive(Debug)]
pub(super) struct Look<'a> {
    turn: Turn<'a>,
    /// The account that has the name.
    pub account: Option<Credentials>,
    /// Whether the count is that of the device.
    pub by_device: bool,
    failures: Option<Counter>,
}

/// A password that may be checked. Keep it until what came of the check is
/// committed.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    turn: Turn<'a>,
    /// Whether it counts as a failure already.
    counted: bool,
}

impl Throttle {
    /// Nobody waits yet, and no more than `longest_line` will under one name.
    pub fn new(limits: Limits, longest_line: usize) -> Self {
        Self {
            limits,
            longest_line: longest_line.max(1),
            lines: Mutex::default(),
        }
    }

    /// Under how many names passwords are being checked on this node.
    pub fn names(&self) -> usize {
        self.lines().len()
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<ThrottleKey, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other password is checked under this name on this node;
    /// fails with `OVERLOADED` where too many wait.
    pub(super) async fn turn(&self, call: &Call, key: ThrottleKey) -> Result<Turn<'_>> {
        let free = {
            let mut lines = self.lines();
            let line = lines.entry(key).or_default();
            if line.people >= self.longest_line {
                return Err(Error::overloaded(LINE_MOVES));
            }
            line.people += 1;
            Arc::clone(&line.turn)
        };
        let mut turn = Turn {
            throttle: self,
            key,
            held: None,
        };
        let free = free.lock_owned();
        turn.held = Some(match call.remaining() {
            None => free.await,
            Some(left) => timeout(left, free)
                .await
                .map_err(|_| Reason::DeadlineExceeded)?,
        });
        if call.is_abandoned() {
            return Err(Reason::Cancelled.into());
        }
        Ok(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut lines = self.throttle.lines();
        if let Some(line) = lines.get_mut(&self.key) {
            line.people -= 1;
            if line.people == 0 {
                lines.remove(&self.key);
            }
        }
    }
}

/// Looks up what is needed to check a password under this name, once it is its
/// turn. The count is that of the device if its token is of the account, from
/// after whatever ended the account's sessions last; a device that has to wait is
/// like any other.
pub(super) async fn look<'a>(
    core: &'a Core,
    call: &Call,
    name: &Identifier,
    device: Option<Device>,
) -> Result<Look<'a>> {
    if let Some(device) = device {
        let look = look_by(core, call, name, device.key, true).await?;
        let is_of = |account: &Credentials| {
            (account.user_id, account.min_session_epoch) == (device.user_id, device.epoch)
        };
        let waits = |counter| core.throttle.limits.wait(counter, core.now()).is_some();
        if look.account.as_ref().is_some_and(is_of) && !look.failures.as_ref().is_some_and(waits) {
            return Ok(look);
        }
    }
    let key = core.keyring.keys()?.request.throttle_key(name);
    look_by(core, call, name, key, false).await
}

/// The same for whoever is logged in to the account of that name.
pub(super) async fn look_within<'a>(
    core: &'a Core,
    call: &Call,
    user_id: UserId,
    name: &Identifier,
) -> Result<Look<'a>> {
    let key = core.keyring.keys()?.request.account_key(user_id);
    look_by(core, call, name, key, false).await
}

async fn look_by<'a>(
    core: &'a Core,
    call: &Call,
    name: &Identifier,
    key: ThrottleKey,
    by_device: bool,
) -> Result<Look<'a>> {
    let turn = core.throttle.turn(call, key).await?;
    let mut conn = core.store.read(call).await?;
    let (account, failures) = users::for_login(&mut conn, name, &key).await?;
    Ok(Look {
        turn,
        account,
        by_device,
        failures,
    })
}

/// Lets a password be checked, or refuses with `LOGIN_THROTTLED`.
pub(super) async fn admit<'a>(
    core: &Core,
    call: &Call,
    look: Look<'a>,
) -> Result<(Option<Credentials>, Attempt<'a>)> {
    let Look {
        turn,
        account,
        failures: mut seen,
        ..
    } = look;
    let subject = account.as_ref().map(|account| account.user_id);
    let limits = &core.throttle.limits;
    // Another node that is faster has failed once more, or succeeded.
    while let Some(counter) = seen {
        let now = core.now();
        if let Some(wait) = limits.wait(&counter, now) {
            metrics::counter!("countersign_login_throttled_total").increment(1);
            let next = limits.refused(&counter, wait, now);
            // Once for each wait, and where the clock was set back.
            if !counter.recorded || next.not_before < counter.not_before {
                refused(core, call, &turn.key, &counter, &next, subject).await?;
            }
            return Err(Error::login_throttled(wait.unsigned_abs()));
        }
        let next = limits.failed(Some(&counter), now);
        let counted = core
            .store
            .write(call, async |tx| {
                login_throttle::replace(tx, &turn.key, &counter, &next).await
            })
            .await?;
        if counted.value {
            let counted = true;
            return Ok((account, Attempt { turn, counted }));
        }
        let mut conn = core.store.read(call).await?;
        seen = login_throttle::find(&mut conn, &turn.key).await?;
    }
    let counted = false;
    Ok((account, Attempt { turn, counted }))
}

/// Records that somebody was refused.
async fn refused(
    core: &Core,
    call: &Call,
    key: &ThrottleKey,
    seen: &Counter,
    next: &Counter,
    subject: Option<UserId>,
) -> Result<()> {
    let mut event = record::event(core, call, Action::LoginThrottled).failed();
    event.subject = subject;
    record::failure(core, call, event, async |tx| {
        Ok(login_throttle::replace(tx, key, seen, next).await? && !seen.recorded)
    })
    .await
}

impl Attempt<'_> {
    /// The password was wrong: counts it, unless that has been done, in the
    /// transaction that records it.
    pub(super) async fn failed(&self, core: &Core, tx: &mut Conn) -> Result<()> {
        let (limits, key) = (&core.throttle.limits, &self.turn.key);
        let mut counted = self.counted;
        while !counted {
            // Another node may have begun a counter since we looked.
            let seen = login_throttle::find(tx, key).await?;
            let next = limits.failed(seen.as_ref(), core.now());
            counted = match seen {
                None => login_throttle::insert(tx, key, &next).await?,
                Some(seen) => login_throttle::replace(tx, key, &seen, &next).await?,
            };
        }
        Ok(())
    }

    /// The password was right: the failures are forgotten with the transaction
    /// that this is for.
    pub(super) async fn succeeded(&self, tx: &mut Conn) -> Result<()> {
        if self.counted {
            login_throttle::clear(tx, &[self.turn.key]).await?;
        }
        Ok(())
    }
}

/// Forgets the failures under all names of an account, and those of whoever was
/// logged in to it. False if there were none.
pub(super) async fn forget(core: &Core, tx: &mut Conn, user: &User) -> Result<bool> {
    let mut keys = names(core, user)?;
    keys.push(core.keyring.keys()?.request.account_key(user.id));
    Ok(login_throttle::clear(tx, &keys).await? > 0)
}

/// What was counted under a name of an account counts under all that it has now:
/// whoever renames it does not begin anew.
pub(super) async fn carry(core: &Core, tx: &mut Conn, before: &User, after: &User) -> Result<()> {
    let mut counters = Vec::new();
    for key in names(core, before)? {
        counters.extend(login_throttle::find(tx, &key).await?);
    }
    let Some(strictest) = counters.into_iter().reduce(Counter::stricter) else {
        return Ok(());
    };
    for key in names(core, after)? {
        loop {
            let settled = match login_throttle::find(tx, &key).await? {
                None => login_throttle::insert(tx, &key, &strictest).await?,
                Some(seen) => match seen.stricter(strictest) {
                    same if same == seen => true,
                    next => login_throttle::replace(tx, &key, &seen, &next).await?,
                },
            };
            if settled {
                break;
            }
        }
    }
    Ok(())
}

fn names(core: &Core, user: &User) -> Result<Vec<ThrottleKey>> {
    let keys = core.keyring.keys()?;
    let email = user.email.clone().map(Identifier::Email);
    let username = user.username.clone().map(Identifier::Username);
    let names = email.into_iter().chain(username);
    Ok(names.map(|name| keys.request.throttle_key(&name)).collect())
}

#[cfg(test)]
mod tests;
