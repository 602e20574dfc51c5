//! Refuses calls that need the database while its breaker is open, before they
//! take up a connection, a hash lane or a signature check.
//!
//! This only looks. Permits are taken, and results recorded, around the queries
//! themselves; and it is a probe in the background that closes the breaker.

use http::Request;
use tower::{BoxError, filter::Predicate};

use super::method;
use crate::breaker::Breaker;

/// Lets a call pass if what it needs can be reached. Without a breaker there is
/// no database, and no row may need one.
#[derive(Debug, Clone)]
pub struct Reachable(pub Option<Breaker>);

impl<B> Predicate<Request<B>> for Reachable {
    type Request = Request<B>;

    fn check(&mut self, request: Request<B>) -> Result<Request<B>, BoxError> {
        if method::row(&request)?.needs_database
            && let Some(breaker) = &self.0
            && breaker.is_open()
        {
            return Err(breaker.refuse().into());
        }
        Ok(request)
    }
}
