//! Generated stubs of the Countersign API, compiled once for the server, its
//! tests and Rust clients. The `.proto` files beside this crate are the
//! documentation; generated code keeps lints of its own.

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

/// All descriptors with their comments, for reflection and for tests that walk
/// every RPC.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
