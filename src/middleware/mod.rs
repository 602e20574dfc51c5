//! Everything that happens to a call before its handler, as tower layers.
//!
//! [`stack`] is the whole of it: one function that lists the layers in order,
//! with the reason for each place. A layer that refuses a call returns our
//! `Error`; it becomes a response in one place.
//!
//! Nothing here knows a handler, the database or a password.

use std::{convert::Infallible, sync::Arc, time::Duration};

use countersign_verifier::{Clock, Verifier};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Bytes;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tonic::{Status, service::Routes};
use tower::{BoxError, Service, ServiceBuilder, layer::layer_fn};

use crate::{
    breaker::Breaker,
    domain::{Entropy, Workloads, workload::SubjectName},
};

pub mod access;
pub mod answer;
pub mod authenticate;
pub mod concurrency;
pub mod deadline;
pub mod dependency;
pub mod held;
pub mod method;
pub mod observe;
pub mod peer;
pub mod rate;
mod rpc;
pub mod share;
pub mod trace_context;
pub mod web;
pub mod whole;

#[cfg(test)]
pub(crate) mod tests;

pub use rate::PeerLimits;

/// `[limits]`: what one peer, and all together, may ask of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether calls are counted per peer. Off for load tests only.
    pub rate_limits_enabled: bool,
    /// Calls per minute and peer that try a password.
    pub login_per_minute: u32,
    /// Registrations per minute and peer.
    pub register_per_minute: u32,
    /// Refreshes per minute and peer.
    pub refresh_per_minute: u32,
    /// By how much more a whole network may do each of these.
    pub network_factor: u32,
    /// Networks of the proxies whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Names in the certificates of workloads that are believed like them.
    pub trusted_workloads: Vec<String>,
    /// The longest that a call may take, whatever deadline it brings.
    pub max_deadline_seconds: u64,
    /// Calls at once, by class.
    pub concurrency: concurrency::Config,
}

/// What the layers work with.
#[derive(Debug)]
pub struct Parts {
    /// The limits.
    pub config: Config,
    /// Dates correlation ids.
    pub clock: Arc<dyn Clock>,
    /// Makes correlation and trace ids.
    pub entropy: Arc<dyn Entropy>,
    /// Judges bearer tokens.
    pub verifier: Arc<Verifier>,
    /// The audience of tokens that are for this API.
    pub audience: String,
    /// Whom client certificates may speak for.
    pub workloads: Workloads,
    /// The database, as its breaker sees it; none in a process without one.
    pub database: Option<Breaker>,
    /// Counts calls per peer. Its `run` is a task of the process.
    pub peer_limits: Arc<PeerLimits>,
    /// The RPCs that are served.
    pub access: &'static [access::Row],
    /// One of so many good validations has a line in the access log.
    pub validation_log_sample: u32,
    /// Whether spans are exported, and so get their trace ids there.
    pub traces_exported: bool,
}

/// The service that a listener serves: all layers around the routes.
pub fn stack<B>(
    routes: Routes,
    parts: &Parts,
) -> impl Service<
    Request<B>,
    Response = Response<impl Body<Data = Bytes, Error = Status> + Send + use<B>>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ use<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let longest = Duration::from_secs(parts.config.max_deadline_seconds);
    let places = concurrency::Places::new(&parts.config.concurrency);
    let arriving = share::Stock::new(whole::MEMORY);
    ServiceBuilder::new()
        // Sees every answer, whoever gives it: correlation id, span, access log
        // and metrics leave no call out. It finds the RPC's row.
        .layer(layer_fn(|inner| observe::Observe::new(inner, parts)))
        // Around everything that refuses or could panic: one place makes the
        // response. Within the span, as it logs causes.
        .layer(layer_fn(answer::Answer))
        // Default deny, before anything is spent on a call that nobody knows.
        .filter(method::check)
        // A call whose time is over takes up no place; one that waits further
        // in is given up, and with it its place.
        .filter(deadline::Read { longest })
        .layer(layer_fn(deadline::Enforce))
        // A place is for work, and there is none before the message is here.
        .layer(layer_fn(|inner| {
            whole::Whole::new(inner, Arc::clone(&arriving))
        }))
        // Bounds everything that follows, the signature check included.
        .layer(layer_fn(|inner| {
            concurrency::Limit::new(inner, Arc::clone(&places))
        }))
        // While the database is gone a call that needs it must cost nothing, nor
        // use up its peer's allowance.
        .filter(dependency::Reachable(parts.database.clone()))
        // Before authentication: guessing credentials is what it limits.
        .filter(rate::Check(Arc::clone(&parts.peer_limits)))
        // Last, as it costs most. What passes has a caller, if its row asks for
        // one.
        .filter(authenticate::Authenticate {
            verifier: Arc::clone(&parts.verifier),
            audience: parts.audience.as_str().into(),
            workloads: parts.workloads.clone(),
        })
        .service(routes.prepare())
}

/// Counts a call that was refused to protect the node.
fn refused(by: &'static str, kind: &'static str) {
    metrics::counter!("countersign_refused_total", "by" => by, "kind" => kind).increment(1);
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rate_limits_enabled: true,
            login_per_minute: 30,
            register_per_minute: 10,
            refresh_per_minute: 120,
            network_factor: 10,
            trusted_proxies: Vec::new(),
            trusted_workloads: Vec::new(),
            max_deadline_seconds: 30,
            concurrency: concurrency::Config::default(),
        }
    }
}

impl Config {
    /// Whose word on the client's address counts.
    fn trusted(&self) -> peer::Trusted {
        let workloads = self.trusted_workloads.iter();
        peer::Trusted {
            proxies: self.trusted_proxies.clone(),
            workloads: workloads.filter_map(|name| name.parse().ok()).collect(),
        }
    }

    /// Checks the values.
    ///
    /// # Errors
    ///
    /// What is wrong with each key, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        for (key, per_minute) in [
            ("login_per_minute", self.login_per_minute),
            ("register_per_minute", self.register_per_minute),
            ("refresh_per_minute", self.refresh_per_minute),
            ("network_factor", self.network_factor),
        ] {
            if per_minute == 0 {
                problems.push(format!(
                    "limits.{key} is 0, which lets nobody in; set it to 1 or more, or switch the \
                     limits off by limits.rate_limits_enabled"
                ));
            }
        }
        for name in &self.trusted_workloads {
            if let Err(why) = name.parse::<SubjectName>() {
                problems.push(format!("limits.trusted_workloads: {name:?} {why}"));
            }
        }
        if !(1..=3600).contains(&self.max_deadline_seconds) {
            problems.push(format!(
                "limits.max_deadline_seconds is {}; set it to 1 to 3600",
                self.max_deadline_seconds
            ));
        }
        self.concurrency.validate(&mut problems);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }
}
