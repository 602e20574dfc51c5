//! Countersign: the authentication service that internal microservices call
//! over gRPC.

pub mod breaker;
pub mod crypto;
pub mod domain;
pub mod error;
pub mod listen;
pub mod middleware;
