//! docs/metrics.md says what `/metrics` shows, and `/metrics` shows nothing
//! else.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use countersign::{
    domain::Call,
    telemetry::metric::{Kind, METRICS},
};
use countersign_proto::v1;

use crate::{
    harness::{World, binary, world},
    on_both,
};

/// The page as it should be.
fn page() -> String {
    let mut page = String::from(
        "# Metrics

The side port serves them at `/metrics` in Prometheus' text format. A metric appears once there is
something to say. Durations are histograms in seconds (`_bucket`, `_sum`, `_count`).

| metric | kind | labels | meaning |
| --- | --- | --- | --- |
",
    );
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Seconds => "histogram",
        };
        let labels: Vec<_> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let (name, labels, help) = (metric.name, labels.join(", "), metric.help);
        writeln!(page, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
    }
    page.push_str(
        "
Worth an alert: `countersign_breaker_state` at 2, `countersign_refused_total` and
`countersign_hash_shed_total` growing, `countersign_requests_total` with code `INTERNAL` or `UNKNOWN`,
`countersign_clock_skew_seconds` beyond 2 in either direction (beyond `tokens.max_clock_skew_seconds` the node gives out no
tokens), `countersign_signing_key_age_seconds` beyond `keys.rotate_every_days` and a day.
",
    );
    page
}

#[test]
fn the_page_agrees_with_the_list() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    if std::env::var_os("COUNTERSIGN_TEST_WRITE").is_some() {
        fs::write(&path, page()).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == page(),
        "docs/metrics.md differs from METRICS; run \
         `COUNTERSIGN_TEST_WRITE=1 cargo test --test it metrics::the_page`",
    );
}

on_both! {
    async fn what_is_shown_is_listed_with_its_labels(world: World) {
        // A call that is shed, one that is refused, and an ordinary life.
        let person = world.person().await;
        let mut held = Vec::new();
        while let Ok(ticket) = world.node.running.core().lanes.ticket(&Call::internal("test")) {
            held.push(ticket);
        }
        world::login(&world.anonymous(), &person.email, world::PASSWORD).await.unwrap_err();
        let request = v1::ValidateTokenRequest { token: "x".into(), audience: String::new() };
        world.anonymous().tokens.validate_token(request).await.unwrap_err();
        let breaker = world.node.running.core().store.breaker();
        while let Ok(permit) = breaker.permit() {
            permit.failure();
        }

        let (_, text) = binary::get(world.node.http, "/metrics").await;
        let mut shown = BTreeSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .filter(|base| base.ends_with("_seconds"))
                .unwrap_or(name);
            let metric = METRICS.iter().find(|metric| metric.name == base);
            let metric = metric.unwrap_or_else(|| panic!("{name} is not listed"));
            let labels: BTreeSet<&str> = labels
                .trim_end_matches('}')
                .split("\",")
                .filter_map(|pair| Some(pair.split_once('=')?.0))
                .filter(|label| *label != "le")
                .collect();
            let listed: BTreeSet<&str> = metric.labels.iter().copied().collect();
            assert_eq!(labels, listed, "{line}");
            shown.insert(base.to_owned());
        }
        for name in [
            "countersign_breaker_opened_total", "countersign_connections",
            "countersign_database_query_seconds", "countersign_hash_seconds",
            "countersign_hash_shed_total", "countersign_requests_total",
            "countersign_request_seconds", "countersign_token_rejections_total",
        ] {
            assert!(shown.contains(name), "{name} is not shown: {shown:?}");
        }
    }
}
