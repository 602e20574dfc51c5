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
mod harness;
mod janitor;
mod login;
mod nodes;
mod races;
mod refresh;
mod roles;
mod rooms;
mod sessions;
mod users;
