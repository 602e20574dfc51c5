//! What every test here enters by: nodes with real sockets, all layers and a
//! real database, people who use them, a clock that stands still and hashing
//! that costs nothing.

pub mod calls;
pub mod client;
pub mod clock;
pub mod database;
pub mod logs;
pub mod world;

pub use client::{Client, Failure, refused};
pub use database::Kind;
pub use world::{Node, Person, World};

/// Declares a test that runs on SQLite and on PostgreSQL.
#[macro_export]
macro_rules! on_both {
    ($($(#[$attribute:meta])* async fn $name:ident($world:ident: $type:ty) $body:block)+) => {$(
        $(#[$attribute])*
        mod $name {
            use super::*;

            async fn test($world: $type) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                test($crate::harness::World::new($crate::harness::Kind::Sqlite).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                test($crate::harness::World::new($crate::harness::Kind::Postgres).await).await;
            }
        }
    )+};
}
