//! The fuzz targets: whatever comes from outside and is read by code of ours. No
//! input may make one panic, and each says besides what must hold of its answer.
//!
//! Who is outside differs: callers write frames, tokens, requests and headers;
//! operators write the configuration; a list elsewhere writes what it knows of breached
//! passwords; whoever can write to the database or the disk writes stored hashes,
//! anchors and snapshots.
//!
//! The tests of the workspace compile these files too (`tests/it/fuzz.rs`).

mod network;
mod requests;
mod settings;
mod tokens;
mod trust;

/// A target.
#[derive(Debug)]
pub struct Target {
    /// Its name, of its binary and of its corpus.
    pub name: &'static str,
    /// Judges one input; panics if something is wrong.
    pub run: fn(&[u8]),
    /// The inputs to begin with that are not written by hand, by file name.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<(String, Vec<u8>)>,
) -> Target {
    Target { name, run, seeds }
}

/// All of them.
pub const ALL: &[Target] = &[
    target("access_token", access_token, tokens::access_token_seeds),
    target("api_key", api_key, tokens::api_key_seeds),
    target("audit_anchor", audit_anchor, trust::audit_anchor_seeds),
    target("breach_range", breach_range, network::breach_range_seeds),
    target(
        "check_request",
        check_request,
        requests::check_request_seeds,
    ),
    target("claims", claims, tokens::claims_seeds),
    target("configuration", configuration, Vec::new),
    target("device_token", device_token, tokens::device_token_seeds),
    target("explanation", explanation, tokens::access_token_seeds),
    target("frames", frames, network::frames_seeds),
    target("headers", headers, Vec::new),
    target("page_token", page_token, tokens::page_token_seeds),
    target("password_hash", password_hash, Vec::new),
    target("refresh_token", refresh_token, tokens::refresh_token_seeds),
    target("requests", requests, requests::requests_seeds),
    target("trust_delta", trust_delta, trust::trust_delta_seeds),
    target(
        "trust_snapshot",
        trust_snapshot,
        trust::trust_snapshot_seeds,
    ),
];

pub use network::{breach_range, frames};
pub use requests::{check_request, headers, requests};
pub use settings::configuration;
pub use tokens::{
    access_token, api_key, claims, device_token, explanation, page_token, password_hash,
    refresh_token,
};
pub use trust::{audit_anchor, trust_delta, trust_snapshot};

/// A file of a corpus.
fn seed(name: &str, bytes: impl Into<Vec<u8>>) -> (String, Vec<u8>) {
    (name.to_owned(), bytes.into())
}
