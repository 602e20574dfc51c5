//! Threads that do nothing but serve connections, each with a runtime of its
//! own.
//!
//! A call that is answered from memory costs less than handing it from one
//! thread to another, which is what a runtime of many threads does with it; here
//! a connection stays where it is. The price: a connection can keep one core
//! busy and no more, so that a client who needs more opens more.

use std::{io, sync::Arc, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};
use tokio_util::task::TaskTracker;

/// The threads. They end when this is dropped, and what they serve with them.
#[derive(Debug)]
pub(super) struct Threads(Vec<Thread>);

#[derive(Debug)]
struct Thread {
    runtime: Handle,
    /// One more holder for each connection that is served here.
    connections: Arc<()>,
    /// Dropped to end the thread.
    _until: Option<oneshot::Sender<()>>,
}

impl Threads {
    /// Starts so many threads.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        (0..count)
            .map(Thread::start)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// The thread, or threads, that this is called on.
    pub(super) fn here() -> Self {
        Self(vec![Thread {
            runtime: Handle::current(),
            connections: Arc::default(),
            _until: None,
        }])
    }

    /// Serves a connection where there are the fewest, tracked.
    pub(super) fn spawn(
        &self,
        connection: impl Future<Output = ()> + Send + 'static,
        tracker: &TaskTracker,
    ) {
        let count = |thread: &&Thread| Arc::strong_count(&thread.connections);
        // There is always one.
        let Some(thread) = self.0.iter().min_by_key(count) else {
            return;
        };
        let counted = Arc::clone(&thread.connections);
        let connection = async move {
            connection.await;
            drop(counted);
        };
        tracker.spawn_on(connection, &thread.runtime);
    }
}

impl Thread {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (until, over) = oneshot::channel();
        thread::Builder::new()
            .name(format!("serve-{number}"))
            .spawn(move || {
                // An error is the sender's end, which is what is waited for.
                let _ = runtime.block_on(over);
            })?;
        Ok(Self {
            runtime: handle,
            connections: Arc::default(),
            _until: Some(until),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says where it runs, and stays there until its sender is dropped.
    async fn connection(said: oneshot::Sender<Option<String>>, until: oneshot::Receiver<()>) {
        let name = thread::current().name().map(str::to_owned);
        said.send(name).unwrap();
        let _ = until.await;
    }

    #[tokio::test]
    async fn connections_go_where_the_fewest_are_and_end_with_the_threads() {
        let threads = Threads::start(2).unwrap();
        let tracker = TaskTracker::new();
        let open = async || {
            let (said, name) = oneshot::channel();
            let (end, until) = oneshot::channel();
            threads.spawn(connection(said, until), &tracker);
            (name.await.unwrap().unwrap(), end)
        };
        let (first, _stays) = open().await;
        let (second, ends) = open().await;
        assert_ne!(first, second);
        drop(ends);
        while tracker.len() > 1 {
            tokio::task::yield_now().await;
        }
        let (third, mut over) = open().await;
        assert_eq!(third, second);
        drop(threads);
        over.closed().await;
    }
}
