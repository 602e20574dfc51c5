//! Holding back credential stuffing and spraying, where each name is tried but a
//! few times and no counter by name sees it. `domain::stuffing` says what looks
//! like it; here are the places that are watched (networks, and the node as a
//! whole), on this node alone and in its memory.
//!
//! A network that looks like it is slowed and not shut out: behind it may be an
//! office, and one of its people, or something on one of its machines, can bring
//! this about. Whoever has logged in from a device before does not feel it. The
//! node as a whole is not slowed at all, as then whoever has networks enough
//! could keep everybody out; it takes less to slow a network, and people are told.
//!
//! There is room for so many networks. Once it is used up, those that are not slowed
//! are forgotten and begin anew: their names count by themselves still
//! (`super::throttle`), and so does the node.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use countersign_verifier::Clock;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Core, record};
use crate::{
    domain::{
        AuditEvent, Call, Identifier, UserId,
        audit::Action,
        network,
        stuffing::{Limits, Tally, Watch},
    },
    error::{Error, Result},
};

/// Networks that can be watched at once; each takes about 400 bytes.
const PLACES: usize = 1 << 15;

/// Words of bits for the names of a network: it can tell apart some 1,500.
const WORDS: usize = 8;

/// For those of the node: some 200,000.
const WORDS_OF_NODE: usize = 1024;

/// A node on which many names fail slows a network for so many times fewer.
const WARY: u32 = 4;

/// But no fewer: that few fail wherever people type.
const LEAST_NAMES: u32 = 3;

/// How often the ends of episodes are looked for. Beginnings are told at once.
const EVERY: Duration = Duration::from_secs(5);

/// `[credential_stuffing]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// For how long names are counted.
    pub window_seconds: u32,
    /// Names that fail from one network.
    pub failed_names: u32,
    /// Names that fail on the node.
    pub failed_names_of_node: u32,
    /// Nothing is slowed if of names that fail and accounts that somebody got into
    /// so many in a hundred are accounts.
    pub success_percent: u32,
    /// Logins from a network that is slowed.
    pub logins_per_minute: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window_seconds: 600,
            failed_names: 20,
            failed_names_of_node: 500,
            success_percent: 20,
            logins_per_minute: 6,
        }
    }
}

impl Config {
    /// What is wrong with the settings, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let ranges = [
            ("window_seconds", self.window_seconds, 60..=86_400),
            ("failed_names", self.failed_names, 5..=1_000),
            (
                "failed_names_of_node",
                self.failed_names_of_node,
                self.failed_names..=100_000,
            ),
            ("success_percent", self.success_percent, 1..=100),
            ("logins_per_minute", self.logins_per_minute, 1..=600),
        ];
        let wrong = ranges
            .into_iter()
            .filter(|(_, value, range)| !range.contains(value));
        let problems: Vec<_> = wrong
            .map(|(key, value, range)| {
                format!(
                    "credential_stuffing.{key} is {value}; set it to {} to {}",
                    range.start(),
                    range.end()
                )
            })
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    fn limits(&self, failed_names: u32) -> Limits {
        Limits {
            window: Duration::from_secs(u64::from(self.window_seconds)),
            failed_names,
            success_percent: self.success_percent,
            pause: Duration::from_mins(1) / self.logins_per_minute.max(1),
        }
    }
}

/// From where names are tried, and what came of it.
#[derive(Debug)]
pub struct Stuffing {
    enabled: bool,
    of_network: Limits,
    of_node: Limits,
    clock: Arc<dyn Clock>,
    seed: RandomState,
    places: Mutex<Places>,
    began: Notify,
}

#[derive(Debug)]
struct Places {
    node: Place,
    networks: HashMap<IpNet, Place>,
}

/// A network, or the node.
#[derive(Debug)]
struct Place {
    watch: Watch,
    /// Whether people were told of the episode that there is, or was.
    told: bool,
}

/// An episode that has begun, or ended.
#[derive(Debug)]
struct Turn {
    network: Option<IpNet>,
    began: bool,
    tally: Tally,
}

impl Stuffing {
    /// Nothing was seen yet.
    pub fn new(config: &Config, enabled: bool, clock: Arc<dyn Clock>) -> Self {
        let places = Places {
            node: Place::new(WORDS_OF_NODE, clock.monotonic()),
            networks: HashMap::new(),
        };
        Self {
            enabled,
            of_network: config.limits(config.failed_names),
            of_node: config.limits(config.failed_names_of_node),
            clock,
            seed: RandomState::new(),
            places: Mutex::new(places),
            began: Notify::new(),
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a login from an unknown device pass, unless its network is slowed and
    /// another has just passed.
    pub(super) fn admit(&self, call: &Call) -> Result<()> {
        let Some(address) = call.peer.address else {
            return Ok(());
        };
        let mut places = self.places();
        let Some(place) = places.networks.get_mut(&network::of(address)) else {
            return Ok(());
        };
        let now = self.clock.monotonic();
        place.watch.admit(&self.of_network, now).map_err(|wait| {
            metrics::counter!("countersign_stuffing_refused_total").increment(1);
            Error::rate_limited("failed_names_of_network", wait)
        })
    }

    /// Counts a password that was looked at, and the account that it led to.
    pub(super) fn count(&self, call: &Call, name: &Identifier, account: Option<UserId>) {
        if !self.enabled {
            return;
        }
        let name = self.seed.hash_one(name);
        let account = account.map(|account| self.seed.hash_one(account));
        let now = self.clock.monotonic();
        let mut places = self.places();
        let Places { node, networks } = &mut *places;
        let mut began = node.watch.count(name, account, &self.of_node, now);
        if let Some(address) = call.peer.address {
            let mut limits = self.of_network;
            if node.watch.is_slowed(now) {
                limits.failed_names = (limits.failed_names / WARY).max(LEAST_NAMES);
            }
            let network = network::of(address);
            if networks.len() < PLACES || networks.contains_key(&network) {
                let place = networks.entry(network);
                let place = place.or_insert_with(|| Place::new(WORDS, now));
                began |= place.watch.count(name, account, &limits, now);
            }
        }
        if began {
            self.began.notify_one();
        }
    }

    /// The episodes that have begun or ended since. Forgets networks that are quiet;
    /// all that are not slowed if there is no more room.
    fn turns(&self) -> Vec<Turn> {
        let now = self.clock.monotonic();
        let mut turns = Vec::new();
        let mut places = self.places();
        let Places { node, networks } = &mut *places;
        turns.extend(node.turn(None, now));
        let of = networks.iter_mut();
        turns.extend(of.filter_map(|(network, place)| place.turn(Some(*network), now)));
        let is_full = networks.len() >= PLACES;
        networks.retain(|_, Place { watch, .. }| {
            watch.is_slowed(now) || !(is_full || watch.is_idle(&self.of_network, now))
        });
        networks.shrink_to_fit();
        let slowed = networks.values().filter(|place| place.told).count();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        metrics::gauge!("countersign_stuffing_networks").set(slowed as f64);
        turns
    }
}

impl Place {
    fn new(words: usize, now: Duration) -> Self {
        Self {
            watch: Watch::new(words, now),
            told: false,
        }
    }

    fn turn(&mut self, network: Option<IpNet>, now: Duration) -> Option<Turn> {
        let began = self.watch.is_slowed(now);
        (began != std::mem::replace(&mut self.told, began)).then(|| Turn {
            network,
            began,
            tally: self.watch.tally(),
        })
    }
}

/// The task that tells people: a line in the log and a record in the audit log for
/// each beginning and each end. Whoever has many networks causes as many as they
/// like: what is too much is counted only (`super::audit::sample`).
#[derive(Debug)]
pub struct Lookout {
    core: Arc<Core>,
    call: Call,
}

impl Lookout {
    /// Nothing is told yet.
    pub fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            call: Call::internal("stuffing"),
        }
    }

    /// Works until told to stop, and then tells what is left.
    pub async fn run(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            tokio::select! {
                () = self.core.stuffing.began.notified() => {}
                () = sleep(EVERY) => {}
                () = shutdown.cancelled() => {}
            }
            if let Err(error) = self.tell().await {
                tracing::warn!(
                    cause = crate::error::chain(&error),
                    "credential stuffing could not be recorded; it is counted, and will be"
                );
            }
        }
    }

    /// Tells of what has begun and what has ended, and records it. What cannot be
    /// recorded is counted.
    pub async fn tell(&self) -> Result<()> {
        let core = &*self.core;
        let mut events = Vec::new();
        for turn in core.stuffing.turns() {
            turn.count();
            let event = turn.event(core, &self.call);
            if core.sampler.records(event.action, core.clock.monotonic()) {
                turn.log();
                events.push(event);
            } else {
                record::leave_out(core, event);
            }
        }
        if events.is_empty() {
            return Ok(());
        }
        let written = core.store.write(&self.call, async |tx| {
            for event in &events {
                record::insert(core, tx, event).await?;
            }
            Ok(())
        });
        let written = written.await;
        if written.is_err() {
            for event in events {
                record::leave_out(core, event);
            }
        }
        written.map(drop)
    }
}

impl Turn {
    /// What begins or ends: a network, or the node.
    fn of(&self) -> &'static str {
        if self.network.is_some() {
            "network"
        } else {
            "node"
        }
    }

    fn count(&self) {
        if self.began {
            let of = self.of();
            metrics::counter!("countersign_stuffing_episodes_total", "of" => of).increment(1);
        }
    }

    fn log(&self) {
        let Tally { failed, accounts } = self.tally;
        let network = self.network.map(|network| network.to_string());
        let network = network.as_deref();
        if !self.began {
            tracing::info!(network, "logins look like credential stuffing no more");
            return;
        }
        tracing::warn!(
            of = self.of(),
            network,
            failed_names = failed,
            accounts,
            "logins look like credential stuffing"
        );
    }

    fn event(&self, core: &Core, call: &Call) -> AuditEvent {
        let event = if self.began {
            record::event(core, call, Action::StuffingBegan).failed()
        } else {
            record::event(core, call, Action::StuffingEnded)
        };
        AuditEvent {
            address: self.network.map(|network| network.addr()),
            ..event
        }
    }
}

#[cfg(test)]
mod tests;
