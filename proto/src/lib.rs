//! Generated stubs of the Countersign API, and of the part of Envoy's that
//! Countersign serves, compiled once for the server, its tests and Rust clients.
//! The `.proto` files beside this crate are the documentation; generated code
//! keeps lints of its own.

/// The package `countersign.v1`.
pub mod v1 {
    #![allow(
        clippy::all,
        clippy::pedantic,
        missing_debug_implementations,
        unreachable_pub
    )]
    tonic::include_proto!("countersign.v1");
}

/// Envoy's packages, nested as they name each other.
pub mod envoy {
    #![allow(
        clippy::all,
        clippy::pedantic,
        missing_debug_implementations,
        unreachable_pub
    )]
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    pub mod service {
        pub mod auth {
            pub mod v3 {
                tonic::include_proto!("envoy.service.auth.v3");
            }
        }
    }
    pub mod r#type {
        pub mod v3 {
            tonic::include_proto!("envoy.r#type.v3");
        }
    }
}

/// All descriptors with their comments, for reflection and for tests that walk
/// every RPC.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
