//! Where calls that touch the database run: a runtime of its own, so that a
//! caller who leaves does not cut a transaction short, and so that a slow
//! database never holds a serving thread.

use std::future::Future;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::error::{Error, Result};

/// A handle to the runtime.
#[derive(Debug, Clone)]
pub struct Work {
    handle: Handle,
    tracker: TaskTracker,
}

impl Work {
    /// Runs calls on `handle`; `tracker` knows which still run at shutdown.
    pub fn new(handle: Handle, tracker: TaskTracker) -> Self {
        Self { handle, tracker }
    }

    /// Runs one call to its end, whether or not anybody still waits for it. The
    /// call's `Call` is part of it, and with it the place that it takes up.
    pub async fn run<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let task = call.in_current_span();
        match self.tracker.spawn_on(task, &self.handle).await {
            Ok(result) => result,
            Err(failed) => Err(Error::internal(failed)),
        }
    }
}
