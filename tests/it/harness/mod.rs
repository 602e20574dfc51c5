//! What every test here enters by: nodes with real sockets, all layers and a
//! real database, people who use them, a clock that stands still and hashing
//! that costs nothing.

pub mod binary;
pub mod breach_list;
pub mod calls;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod database;
pub mod envoy;
pub mod lock;
pub mod logs;
pub mod proxy;
pub mod rpc;
pub mod sidecar;
pub mod validator;
pub mod world;

use std::time::{Duration, Instant};

pub use client::{Client, Failure, refused};
pub use cluster::Cluster;
pub use database::Kind;
pub use lock::Lock;
pub use proxy::{Fault, Proxy};
pub use world::{Node, Person, World};

/// Waits until something holds; fails if it does not within half a minute.
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < deadline, "it never holds that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Declares a test that runs on SQLite and on PostgreSQL, in a [`World`] or with
/// a [`binary::Program`].
#[macro_export]
macro_rules! on_both {
    ($($(#[$attribute:meta])* async fn $name:ident($world:ident: $type:ty) $body:block)+) => {$(
        $(#[$attribute])*
        mod $name {
            use super::*;

            async fn test($world: $type) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                test(<$type>::new($crate::harness::Kind::Sqlite).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                test(<$type>::new($crate::harness::Kind::Postgres).await).await;
            }
        }
    )+};
}
