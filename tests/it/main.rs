//! Everything is tested through the front door. One binary: see `harness`.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test exports nothing, and fails by panicking"
)]

mod cancel;
mod harness;
mod idempotency;
mod inputs;
mod matrix;
mod kill;
mod outage;
mod canary;
mod cli;
mod clients;
mod correlation;
mod harness;
mod metrics;
mod process;
mod refresh;
mod rooms;
mod wire;
