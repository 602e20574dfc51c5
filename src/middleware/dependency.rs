//! Refuses calls that need the database while its breaker is open, before they
//! take up a connection, a hash lane or a signature check.
//!
//! This only looks. Permits are taken, and results recorded, around the queries
//! themselves; and it is a probe in the background that closes the breaker.

use std::{fmt, sync::Arc, time::Duration};

use http::Request;
use tower::{BoxError, filter::Predicate};

use super::{method, refused};
use crate::error::Error;

/// Something behind the service, and whether it can be reached.
#[derive(Clone)]
pub struct Dependency {
    name: &'static str,
    shut: Arc<dyn Fn() -> Option<Duration> + Send + Sync>,
}

impl Dependency {
    /// `shut` says, cheaply, that the breaker is open and when to try again.
    pub fn new(
        name: &'static str,
        shut: impl Fn() -> Option<Duration> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            shut: Arc::new(shut),
        }
    }

    /// When to try again, if the breaker is open.
    pub fn shut(&self) -> Option<Duration> {
        (self.shut)()
    }
}

impl<B> Predicate<Request<B>> for Dependency {
    type Request = Request<B>;

    fn check(&mut self, request: Request<B>) -> Result<Request<B>, BoxError> {
        if method::row(&request)?.needs_database
            && let Some(retry_after) = self.shut()
        {
            refused("breaker", self.name);
            return Err(Error::unavailable(self.name, retry_after).into());
        }
        Ok(request)
    }
}

impl fmt::Debug for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dependency").field(&self.name).finish()
    }
}
