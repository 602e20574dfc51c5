//! Countersign: the authentication service that internal microservices call
//! over gRPC.

pub mod app;
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
pub mod service;
pub mod store;
pub mod telemetry;
