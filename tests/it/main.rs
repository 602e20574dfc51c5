//! Everything is tested through the front door. One binary: see `harness`.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::assigning_clones,
    clippy::duration_suboptimal_units,
    clippy::float_cmp,
    clippy::format_collect,
    clippy::items_after_statements,
    clippy::large_futures,
    clippy::print_stdout,
    clippy::unchecked_time_subtraction,
    reason = "a test exports nothing, fails by panicking, and may be plain about numbers"
)]

mod api_keys;
mod audit;
mod audit_chain;
mod audit_flood;
mod audit_retention;
mod audit_service;
mod breached;
mod canary;
mod cancel;
mod cli;
mod clients;
mod correlation;
mod elsewhere;
mod envoy;
mod explain;
mod fleet;
mod fuzz;
mod grpc_web;
mod harness;
mod http2;
mod idempotency;
mod inputs;
mod janitor;
mod keys;
mod kill;
mod login;
mod matrix;
mod metrics;
mod model;
mod nodes;
mod orders;
mod outage;
mod passwords;
mod process;
mod properties;
mod races;
mod reach;
mod refresh;
mod renewal;
mod roles;
mod rooms;
mod sealed_passwords;
mod sessions;
mod sidecar;
mod stuffing;
mod throttle;
mod trust;
mod users;
mod wire;
mod workloads;
