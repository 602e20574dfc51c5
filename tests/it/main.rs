//! Everything is tested through the front door. One binary: see `harness`.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test exports nothing, and fails by panicking"
)]

mod audit;
mod canary;
mod cancel;
mod cli;
mod clients;
mod correlation;
mod harness;
mod idempotency;
mod inputs;
mod janitor;
mod kill;
mod login;
mod matrix;
mod metrics;
mod nodes;
mod outage;
mod process;
mod races;
mod refresh;
mod roles;
mod rooms;
mod sessions;
mod users;
mod wire;
