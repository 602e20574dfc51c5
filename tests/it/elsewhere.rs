//! What went wrong in other identity servers, tried here.
//!
//! Each test is named after what happened there. Faults of this kind come back:
//! in another product, by another way, years later. The tests of our own
//! features follow our own design; these follow the attacks, and so find the
//! place that a design has not thought of. docs/elsewhere.md lists all of them,
//! with those that the tests of a feature look for already.

use std::collections::BTreeSet;

use prost::Message;
use tonic::{Request, Response, Status, client::Grpc, transport::Channel};

use crate::harness::rpc::Raw;

mod accounts;
mod headers;
mod programs;
mod secrets;
mod sessions;
mod tokens;

/// When the clock of a world begins: 2030-01-01, in seconds since 1970.
const START: i64 = 1_893_456_000;

/// The end of something, so long after the beginning of a world.
fn ends_after(life: std::time::Duration) -> prost_types::Timestamp {
    let seconds = i64::try_from(life.as_secs()).expect("not so long");
    prost_types::Timestamp {
        seconds: START + seconds,
        nanos: 0,
    }
}

/// Calls an RPC by its path with exactly these headers.
async fn call_with<H: AsRef<str>>(
    channel: &Channel,
    path: &str,
    headers: &[(&'static str, H)],
    message: &impl Message,
) -> Result<Vec<u8>, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("the node listens");
    let mut request = Request::new(message.encode_to_vec());
    for (name, value) in headers {
        let value = value.as_ref().parse().expect("a header");
        request.metadata_mut().append(*name, value);
    }
    let path = http::uri::PathAndQuery::try_from(path).expect("a path");
    grpc.unary(request, path, Raw)
        .await
        .map(Response::into_inner)
}

/// The names of the tests in a file of this folder.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let on_both = line.strip_prefix("    async fn ");
        let on_both = on_both.and_then(|rest| rest.strip_suffix("(world: World) {"));
        let on_one = line.strip_prefix("mod ");
        on_both.or(on_one.and_then(|rest| rest.strip_suffix(" {")))
    })
}

#[test]
fn the_page_has_each_of_these_tests_and_no_other() {
    let mut tests = BTreeSet::new();
    for (file, text) in [
        ("accounts", include_str!("elsewhere/accounts.rs")),
        ("headers", include_str!("elsewhere/headers.rs")),
        ("programs", include_str!("elsewhere/programs.rs")),
        ("secrets", include_str!("elsewhere/secrets.rs")),
        ("sessions", include_str!("elsewhere/sessions.rs")),
        ("tokens", include_str!("elsewhere/tokens.rs")),
    ] {
        tests.extend(names(text).map(|name| format!("elsewhere::{file}::{name}")));
    }
    assert!(tests.len() > 20, "{tests:?}");
    let page = include_str!("../../docs/elsewhere.md");
    let listed = page
        .split('`')
        .filter(|text| text.starts_with("elsewhere::"));
    assert_eq!(listed.map(str::to_owned).collect::<BTreeSet<_>>(), tests);
}
