//! Everything is tested through the front door. One binary: see `harness`.

#![expect(unreachable_pub, reason = "a test binary exports nothing")]

mod harness;
mod refresh;
mod rooms;
