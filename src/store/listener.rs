//! Hearing at once that the trust log has grown. PostgreSQL tells everybody who
//! listens when a transaction that has appended commits; SQLite has nobody else
//! to tell. Nothing depends on it but how soon the log is read.

use std::{fmt, pin::pin, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Client};

use super::{
    Store,
    pool::{Connector, Pools},
};
use crate::{breaker::Breaker, error::Error};

/// What the two sides say; a name of one database.
macro_rules! channel {
    () => {
        "countersign_trust"
    };
}

/// Tells whoever listens, at COMMIT. Several in one transaction are one.
pub(super) const NOTIFY: &str = concat!("pg_notify('", channel!(), "', '')::text");
const LISTEN: &str = concat!("LISTEN ", channel!());

/// How long the server may take over each step. Nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the server is asked whether it is still there: a connection whose
/// other end is gone says nothing, as one does on which nothing happens.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// What is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// From now on, appends are heard. Earlier ones may have been missed.
    Listening,
    /// The log has grown.
    Appended,
}

/// Listens on a connection of its own, outside the pool.
pub struct Listener {
    connector: Connector,
    breaker: Breaker,
}

impl Store {
    /// A listener; none on SQLite.
    pub fn listener(&self) -> Option<Listener> {
        match self.pools() {
            Pools::Sqlite { .. } => None,
            Pools::Postgres { connector, .. } => Some(Listener {
                connector: connector.clone(),
                breaker: self.breaker().clone(),
            }),
        }
    }
}

impl Listener {
    /// Tells what is heard until nothing can be heard any more, and returns why.
    pub async fn listen(&self, tell: impl Fn(Heard) + Sync) -> Error {
        let (client, mut connection) = match timeout(PATIENCE, self.connector.open()).await {
            Ok(Ok(open)) => open,
            Ok(Err(error)) => return Error::internal(error),
            Err(late) => return Error::internal(late),
        };
        // The connection works only while it is asked for messages.
        let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
        let mut asking = pin!(self.ask(&client, &tell));
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(Ok(AsyncMessage::Notification(_))) => tell(Heard::Appended),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Error::internal(error),
                    None => return Error::internal("the server has closed the connection"),
                },
                failed = &mut asking => return failed,
            }
        }
    }

    /// Asks to be told, again and again: the answer says that the server is still
    /// there.
    async fn ask(&self, client: &Client, tell: impl Fn(Heard)) -> Error {
        let mut is_first = true;
        loop {
            match timeout(PATIENCE, client.batch_execute(LISTEN)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Error::internal(error),
                Err(late) => return Error::internal(late),
            }
            if is_first {
                tell(Heard::Listening);
            }
            is_first = false;
            sleep(ASK_EVERY).await;
            // While the database is away it is left alone.
            while self.breaker.is_open() {
                sleep(ASK_EVERY).await;
            }
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}
