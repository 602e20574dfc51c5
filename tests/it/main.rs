//! Everything is tested through the front door. One binary: see `harness`.

mod harness;
mod rooms;
