//! Limits per peer on the RPCs that let strangers in (GCRA). They hold back one
//! noisy address, and a network full of them; guessing that is spread further is
//! for the account's own limits, and for who watches how many names fail.
//!
//! Memory is capped by counting in a fixed number of buckets: an address or a
//! network, hashed under a random key, names its bucket. So no flood of addresses makes
//! the table grow, nobody can choose whom to share a bucket with, and two quiet
//! peers who do share one never notice.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hash},
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use countersign_verifier::Clock;
use governor::{
    Quota, RateLimiter, clock::Clock as _, middleware::NoOpMiddleware,
    state::keyed::DashMapStateStore,
};
use http::Request;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, filter::Predicate};

use super::{Config, access::Rate, method, peer, refused};
use crate::{
    domain::{Call, network},
    error::{Error, Result},
};

/// How many buckets a limit has. One takes a few dozen bytes once it is used.
const BUCKETS: u64 = 1 << 17;

/// How often buckets that are full again are forgotten.
const SWEEP: Duration = Duration::from_mins(1);

type Limiter = RateLimiter<u64, DashMapStateStore<u64>, Monotonic, NoOpMiddleware<Duration>>;

/// The limits, and how much of them each peer has used.
#[derive(Debug)]
pub struct PeerLimits {
    enabled: bool,
    seed: RandomState,
    clock: Monotonic,
    login: Limit,
    register: Limit,
    refresh: Limit,
}

/// What one address may, and what its whole network.
#[derive(Debug)]
struct Limit {
    address: Limiter,
    network: Limiter,
}

/// Lets a call pass if its peer has not made too many.
#[derive(Debug, Clone)]
pub struct Check(pub Arc<PeerLimits>);

/// Governor's idea of our clock.
#[derive(Debug, Clone)]
struct Monotonic(Arc<dyn Clock>);

impl governor::clock::Clock for Monotonic {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic()
    }
}

impl PeerLimits {
    /// Nothing used yet.
    pub fn new(config: &Config, clock: Arc<dyn Clock>) -> Self {
        let clock = Monotonic(clock);
        let limiter = |per_minute| {
            let per_minute = NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN);
            let store = DashMapStateStore::default();
            RateLimiter::new(Quota::per_minute(per_minute), store, clock.clone())
        };
        let limit = |per_minute: u32| Limit {
            address: limiter(per_minute),
            network: limiter(per_minute.saturating_mul(config.network_factor)),
        };
        Self {
            enabled: config.rate_limits_enabled,
            seed: RandomState::new(),
            login: limit(config.login_per_minute),
            register: limit(config.register_per_minute),
            refresh: limit(config.refresh_per_minute),
            clock,
        }
    }

    /// Forgets, once a minute, the peers that have been quiet.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(SWEEP);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            self.sweep();
        }
    }

    pub(super) fn sweep(&self) {
        for limiter in self.limiters() {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        metrics::gauge!("countersign_rate_limit_buckets").set(self.used() as f64);
    }

    /// How many buckets are in use.
    pub(super) fn used(&self) -> usize {
        self.limiters().map(RateLimiter::len).sum()
    }

    fn limiters(&self) -> impl Iterator<Item = &Limiter> {
        let limits = [&self.login, &self.register, &self.refresh];
        limits
            .into_iter()
            .flat_map(|limit| [&limit.address, &limit.network])
    }

    fn limit(&self, rate: Rate) -> &Limit {
        match rate {
            Rate::Login => &self.login,
            Rate::Register => &self.register,
            Rate::Refresh => &self.refresh,
        }
    }

    /// Counts a call. The address comes first: one that calls too often uses up
    /// none of what its neighbours may.
    pub(super) fn count(&self, rate: Rate, address: IpAddr) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let Limit {
            address: one,
            network: all,
        } = self.limit(rate);
        self.check(one, peer::host(address), rate.label())?;
        self.check(all, network::of(address), rate.network_label())
    }

    fn check(&self, limiter: &Limiter, counted: impl Hash, label: &'static str) -> Result<()> {
        let bucket = self.seed.hash_one(counted) % BUCKETS;
        limiter.check_key(&bucket).map_err(|not_until| {
            refused("rate", label);
            let wait = not_until.wait_time_from(self.clock.now());
            Error::rate_limited(label, wait)
        })
    }
}

impl<B> Predicate<Request<B>> for Check {
    type Request = Request<B>;

    fn check(&mut self, request: Request<B>) -> Result<Request<B>, BoxError> {
        let call = request.extensions().get::<Call>();
        // Whoever comes over the Unix socket has no address; the socket's mode
        // says who may.
        let address = call.and_then(|call| call.peer.address);
        if let (Some(rate), Some(address)) = (method::row(&request)?.rate, address) {
            self.0.count(rate, address)?;
        }
        Ok(request)
    }
}
