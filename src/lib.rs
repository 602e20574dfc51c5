//! Countersign: the authentication service that internal microservices call
//! over gRPC.

pub mod breaker;
pub mod crypto;
pub mod domain;
pub mod error;
pub mod health;
pub mod http;
pub mod listen;
pub mod middleware;
pub mod telemetry;
