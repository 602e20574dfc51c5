//! The rules: who may do what, in which order, and what must hold together in
//! one transaction. Each function takes the [`Core`] and the [`Call`] it works
//! for, speaks domain types, and knows no wire.
//!
//! | file | rules |
//! | --- | --- |
//! | `register`, `login`, `refresh`, `logout`, `password` | what an account's owner goes through |
//! | `password_hash` | how a hash is stored |
//! | `users`, `roles`, `sessions`, `api_keys` | managing them |
//! | `token` | what a pair of tokens holds, and its life |
//! | `keyring` | the keys in use, and their creation at first start |
//! | `keys`, `rotation` | rotating signing keys, by hand and by schedule |
//! | `rewrap` | changing the master key |
//! | `secret_keys` | rotating symmetric keys, and taking them away |
//! | `presence` | what a node tells the others about itself |
//! | `skew` | whether its clock is right |
//! | `throttle` | slowing down those who guess passwords |
//! | `stuffing` | the same where they try many names |
//! | `trust` | following the trust log |
//! | `wake` | being told that it has grown |
//! | `feed` | telling validators what the log says |
//! | `once` | idempotency of what creates |
//! | `authority` | who may act upon whom |
//! | `record` | audit events from calls |
//! | `audit` | bounding, chaining, reading, checking and deleting them |
//! | `janitor` | deleting expired rows |
//! | `work` | the runtime that all of this runs on |

pub mod api_keys;
pub mod audit;
pub mod authority;
pub mod feed;
pub mod janitor;
pub mod keyring;
pub mod keys;
pub mod login;
pub mod logout;
pub mod once;
pub mod page;
pub mod password;
pub mod password_hash;
pub mod presence;
mod record;
pub mod refresh;
pub mod register;
pub mod rewrap;
pub mod roles;
pub mod rotation;
pub mod secret_keys;
pub mod session;
pub mod sessions;
pub mod skew;
pub mod stuffing;
pub mod throttle;
pub mod token;
pub mod trust;
pub mod users;
pub mod wake;
pub mod work;

use std::sync::Arc;

use countersign_verifier::Clock;
use uuid::Uuid;

use crate::{
    breach_list::BreachList,
    crypto::Lanes,
    domain::{Call, Entropy},
    store::Store,
};

pub use feed::Feed;
pub use keyring::Keyring;
pub use skew::Skew;
pub use stuffing::Stuffing;
pub use throttle::Throttle;
pub use trust::Trust;
pub use work::Work;

/// What every rule works with.
#[derive(Debug)]
pub struct Core {
    /// This process among the nodes.
    pub node_id: Uuid,
    /// Rows.
    pub store: Store,
    /// Password hashing.
    pub lanes: Lanes,
    /// Passwords that are known from breaches, if a list is asked.
    pub breach_list: Option<BreachList>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// The keys in use.
    pub keyring: Arc<Keyring>,
    /// The trust log, as this node has heard it.
    pub trust: Trust,
    /// How far the clock is off.
    pub skew: Skew,
    /// Whose passwords are being checked.
    pub throttle: Throttle,
    /// Which events are recorded one by one.
    pub sampler: audit::Sampler,
    /// From where names are tried that fail.
    pub stuffing: Stuffing,
    /// The rules' settings.
    pub policy: Policy,
}

/// The rules' settings.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The claim `iss`.
    pub issuer: String,
    /// What tokens may be meant for.
    pub audiences: Vec<String>,
    /// The claim `client_id` where no workload has proved who it is.
    pub client_id: String,
    /// Whether anybody may register.
    pub self_registration: bool,
    /// Signing keys.
    pub keys: keys::Policy,
    /// New passwords.
    pub passwords: password::Config,
    /// Access tokens.
    pub tokens: token::Config,
    /// Sessions.
    pub sessions: session::Config,
    /// API keys.
    pub api_keys: api_keys::Config,
    /// The audit log.
    pub audit: audit::Config,
}

impl Core {
    /// The claim `client_id`: the workload that asks.
    pub(crate) fn client_id(&self, call: &Call) -> String {
        let workload = call.workload.as_deref();
        workload.unwrap_or(&self.policy.client_id).to_owned()
    }

    /// The time, in the precision that rows keep.
    pub(crate) fn now(&self) -> jiff::Timestamp {
        let now = self.clock.now();
        jiff::Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }
}
