//! Kill.
