//! Countersign: the authentication service that internal microservices call
//! over gRPC.
//!
//! The tour, from the outside in:
//!
//! - [`cli`] reads what was asked for, [`config`] the settings; [`app`] composes
//!   a node of them, [`sidecar`] a process that only decides, and [`process`] is
//!   what both have in common;
//! - [`listen`] accepts connections and [`http`] is the side port;
//! - [`middleware`] is everything that happens to a call before its handler:
//!   one function lists the layers;
//! - [`grpc`] turns messages into domain types and back;
//! - [`service`] holds the rules;
//! - [`store`] keeps rows, [`crypto`] keeps secrets, [`breach_list`] asks elsewhere
//!   which passwords are known;
//! - [`domain`] says what things are, [`error`] what can go wrong.
//!
//! Whether a token is good is decided in the crate `countersign-verifier`, from
//! memory. ARCHITECTURE.md walks three requests through all of it.

pub mod app;
pub mod breach_list;
pub mod breaker;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod health;
pub mod http;
pub mod listen;
pub mod middleware;
pub mod process;
pub mod roots;
pub mod service;
pub mod sidecar;
pub mod store;
pub mod telemetry;
