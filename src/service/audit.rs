//! The audit log as a whole. Each event is sealed when it is recorded
//! (`service::record`); a task then gives committed events their places in one
//! chain and signs how far it goes, and [`verify`] finds what was done to it.
//!
//! Recording an event waits for nobody: the chain follows within a second. What
//! is removed before that is not missed; what is altered is found at once.

pub mod chain;
pub mod read;
pub mod report;
pub mod verify;

pub use chain::Chainer;
