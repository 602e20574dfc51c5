//! The metrics that this process has: the list that `/metrics` explains and the
//! documentation is checked against. Whoever counts names the metric here too.

use metrics::Unit;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How long something took, in seconds.
    Seconds,
}

/// A metric, its labels and its meaning.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The name.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// The labels that it is split by.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// From a validation (tens of microseconds) to a call that meets its deadline.
const BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0,
];

/// All metrics, sorted by name.
pub const METRICS: &[Metric] = &[
    metric(
        "countersign_audit_chain_records",
        Kind::Gauge,
        &[],
        "Records of the audit log that are chained, as this node knows",
    ),
    metric(
        "countersign_audit_chain_up",
        Kind::Gauge,
        &[],
        "1 if this node's last look at the chain of the audit log went well, else 0",
    ),
    metric(
        "countersign_audit_left_out_total",
        Kind::Counter,
        &["action"],
        "Failures and episodes beyond audit.failures_per_minute: in the audit log one record a second stands for them",
    ),
    metric(
        "countersign_breach_list_checks_total",
        Kind::Counter,
        &["outcome"],
        "New passwords that were looked up in the list of breached ones: breached, clear, and \
         where it did not answer accepted or refused",
    ),
    metric(
        "countersign_breach_list_seconds",
        Kind::Seconds,
        &[],
        "Waiting for an answer of the list of breached passwords",
    ),
    metric(
        "countersign_breaker_opened_total",
        Kind::Counter,
        &["dependency"],
        "Times that the circuit breaker of a dependency opened",
    ),
    metric(
        "countersign_breaker_rejected_total",
        Kind::Counter,
        &["dependency"],
        "Calls refused because the circuit breaker was open",
    ),
    metric(
        "countersign_breaker_state",
        Kind::Gauge,
        &["dependency"],
        "Circuit breaker: 0 closed, 1 half open, 2 open",
    ),
    metric(
        "countersign_clock_skew_seconds",
        Kind::Gauge,
        &[],
        "By how much this node's clock is ahead of PostgreSQL's",
    ),
    metric(
        "countersign_connections",
        Kind::Gauge,
        &[],
        "Connections that are open on the gRPC port",
    ),
    metric(
        "countersign_connections_calmed_total",
        Kind::Counter,
        &[],
        "Connections cut off for too many frames that are no calls",
    ),
    metric(
        "countersign_connections_refused_total",
        Kind::Counter,
        &["cause"],
        "Connections closed at once: a cap in total or per address, or no file descriptor left",
    ),
    metric(
        "countersign_database_acquire_seconds",
        Kind::Seconds,
        &[],
        "Waiting for a connection of the database pool",
    ),
    metric(
        "countersign_database_lost_total",
        Kind::Counter,
        &[],
        "Times that the database was lost",
    ),
    metric(
        "countersign_database_query_seconds",
        Kind::Seconds,
        &[],
        "Queries of the database",
    ),
    metric(
        "countersign_database_shared_commits_total",
        Kind::Counter,
        &[],
        "Transactions on SQLite that were committed together with others",
    ),
    metric(
        "countersign_ext_authz_checks_total",
        Kind::Counter,
        &["verdict"],
        "Requests that Envoy asked about",
    ),
    metric(
        "countersign_feed_ended_total",
        Kind::Counter,
        &["reason"],
        "Streams of validators that this node ended",
    ),
    metric(
        "countersign_hash_queue_depth",
        Kind::Gauge,
        &[],
        "Places taken for password hashing: held, waiting and running",
    ),
    metric(
        "countersign_hash_seconds",
        Kind::Seconds,
        &[],
        "Hashing a password",
    ),
    metric(
        "countersign_hash_shed_total",
        Kind::Counter,
        &["cause"],
        "Calls refused because the hash queue was full, or too long for their deadline",
    ),
    metric(
        "countersign_hash_wait_seconds",
        Kind::Seconds,
        &[],
        "Waiting for a hash lane",
    ),
    metric(
        "countersign_login_throttled_total",
        Kind::Counter,
        &[],
        "Passwords that were not looked at, as too many before them were wrong",
    ),
    metric(
        "countersign_oldest_dead_row_seconds",
        Kind::Gauge,
        &[],
        "Since when the oldest expired row has been waiting to be deleted",
    ),
    metric(
        "countersign_password_hashes_shut_total",
        Kind::Counter,
        &[],
        "Stored password hashes that did not open: their key is gone, or their row was altered",
    ),
    metric(
        "countersign_rate_limit_buckets",
        Kind::Gauge,
        &[],
        "Buckets in use that count the calls of peers",
    ),
    metric(
        "countersign_refused_total",
        Kind::Counter,
        &["by", "kind"],
        "Calls refused by a limit: concurrency, of all or of one peer (concurrency_of_peer) (kind: \
         class of call), rate (kind: limit) or memory (kind: arriving)",
    ),
    metric(
        "countersign_request_seconds",
        Kind::Seconds,
        &["rpc"],
        "Calls, from their first byte to their status",
    ),
    metric(
        "countersign_requests_total",
        Kind::Counter,
        &["rpc", "code"],
        "Calls that have ended, by gRPC code",
    ),
    metric(
        "countersign_signing_key_age_seconds",
        Kind::Gauge,
        &[],
        "For how long the active signing key has been signing",
    ),
    metric(
        "countersign_signing_keys_refused",
        Kind::Gauge,
        &[],
        "Stored signing keys whose rows were altered or put back: they are not trusted",
    ),
    metric(
        "countersign_stuffing_episodes_total",
        Kind::Counter,
        &["of"],
        "Times that logins from a network, or on the whole node, began to look like credential \
         stuffing (of: network, node)",
    ),
    metric(
        "countersign_stuffing_networks",
        Kind::Gauge,
        &[],
        "Networks whose logins are slowed, as many names fail from there",
    ),
    metric(
        "countersign_stuffing_refused_total",
        Kind::Counter,
        &[],
        "Logins refused because their network is slowed",
    ),
    metric(
        "countersign_tls_handshake_failures_total",
        Kind::Counter,
        &["cause"],
        "TLS handshakes that failed or took too long",
    ),
    metric(
        "countersign_token_rejections_total",
        Kind::Counter,
        &["rejection"],
        "Access tokens that were refused, by the exact reason",
    ),
    metric(
        "countersign_trust_age_seconds",
        Kind::Gauge,
        &[],
        "How old this node's knowledge of keys and revocations is",
    ),
    metric(
        "countersign_trust_listener_state",
        Kind::Gauge,
        &[],
        "Whether PostgreSQL tells at once of changes in the trust log: 1 it does, 0 the poll finds them",
    ),
    metric(
        "countersign_validators",
        Kind::Gauge,
        &[],
        "Validators that follow this node's feed",
    ),
];

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

/// A recorder with buckets that fit.
pub(super) fn builder() -> Result<PrometheusBuilder, BuildError> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    PrometheusBuilder::new().set_buckets_for_metric(seconds, BUCKETS)
}

/// Tells the recorder in force what each metric says.
pub(super) fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Seconds => {
                metrics::describe_histogram!(metric.name, Unit::Seconds, metric.help);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// The names of metrics that stand in a source file.
    fn named(text: &str) -> impl Iterator<Item = &str> {
        text.split("\"countersign_").skip(1).filter_map(|rest| {
            let name = rest.split('"').next()?;
            let known = [
                "_total",
                "_seconds",
                "_state",
                "_depth",
                "_connections",
                "_buckets",
            ];
            let like_one = known.iter().any(|end| format!("_{name}").ends_with(end));
            like_one.then_some(name)
        })
    }

    fn sources(folder: &Path, texts: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, texts);
            } else if path.extension().is_some_and(|end| end == "rs")
                && !path.ends_with("metric.rs")
            {
                texts.push(fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn whatever_is_counted_is_in_the_list() {
        let mut texts = Vec::new();
        sources(
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")),
            &mut texts,
        );
        let counted: BTreeSet<&str> = texts.iter().flat_map(|text| named(text)).collect();
        assert!(counted.contains("requests_total"), "{counted:?}");
        let listed: BTreeSet<&str> = METRICS
            .iter()
            .map(|metric| metric.name.trim_start_matches("countersign_"))
            .collect();
        let missing: Vec<_> = counted
            .difference(&listed)
            .filter(|name| **name != "test_total")
            .collect();
        assert!(missing.is_empty(), "not in the list: {missing:?}");
        assert!(METRICS.is_sorted_by_key(|metric| metric.name));
        assert_eq!(listed.len(), METRICS.len());
    }
}
