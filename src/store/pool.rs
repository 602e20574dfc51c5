//! Opening the database: pools, connections and their settings, TLS.
//!
//! SQLite has one connection that writes and several that read, each query on
//! a blocking thread. PostgreSQL's pool is lazy: the process starts, and stays
//! up, without it. A pooler between must pool sessions, not transactions:
//! connections have settings and prepared statements.

use std::{
    error::Error as StdError,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use diesel::{
    Connection as _, ConnectionError, ConnectionResult, SqliteConnection,
    connection::SimpleConnection,
};
use diesel_async::{
    AsyncPgConnection, SimpleAsyncConnection,
    pooled_connection::{
        AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
        deadpool::{Object, Pool},
    },
    sync_connection_wrapper::{SpawnBlocking, SyncConnectionWrapper},
};
use futures_util::{FutureExt, TryFutureExt, future::BoxFuture};
use tokio_postgres::{Client, Connection, Socket, config::SslMode, tls::MakeTlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    SetupError,
    config::{Config, Target},
    group::Line,
};
use crate::roots;

pub(super) type Lite = SyncConnectionWrapper<SqliteConnection, Threads>;
pub(super) type Pg = AsyncPgConnection;

/// Runs SQLite's queries on tokio's blocking threads. diesel-async's own way
/// makes whoever drops a query wait for it, on the runtime's thread; here the
/// thread keeps the connection until the query ends, and closes it if nobody
/// wants it any more.
pub(super) struct Threads;

/// The connections of one database.
pub(super) enum Pools {
    Sqlite {
        path: PathBuf,
        readers: Pool<Lite>,
        writer: Pool<Lite>,
        line: Arc<Line>,
    },
    Postgres {
        connector: Connector,
        pool: Pool<Pg>,
    },
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Read,
    Write,
}

/// What may be between a connection and its socket.
pub(super) type Encrypted = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// A connection on loan from its pool.
pub(super) enum Link {
    Sqlite(Object<Lite>),
    Postgres(Box<Object<Pg>>),
    /// Given back.
    Closed,
}

/// Connects to PostgreSQL.
#[derive(Clone)]
pub(super) struct Connector {
    config: Arc<tokio_postgres::Config>,
    tls: MakeRustlsConnect,
}

impl SpawnBlocking for Threads {
    fn spawn_blocking<'a, R>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn StdError + Send + Sync + 'static>>>
    where
        R: Send + 'static,
    {
        tokio::task::spawn_blocking(task).map_err(Box::from).boxed()
    }

    fn get_runtime() -> Self {
        Self
    }
}

impl Pools {
    /// Prepares the pools. A SQLite file is created if there is none;
    /// PostgreSQL is not asked yet.
    pub(super) async fn open(config: &Config) -> Result<Self, SetupError> {
        let query = config.query_timeout();
        match config.target().map_err(SetupError::Config)? {
            Target::Sqlite(path) => {
                let file = path.clone();
                tokio::task::spawn_blocking(move || create(&file))
                    .await
                    .map_err(SetupError::database)??;
                let pool = |side, size| {
                    let path = path.clone();
                    let setup = move || open_file(path.clone(), side, query).boxed();
                    pool(setup, size)
                };
                Ok(Self::Sqlite {
                    readers: pool(Side::Read, config.max_connections)?,
                    writer: pool(Side::Write, 1)?,
                    line: Arc::default(),
                    path,
                })
            }
            Target::Postgres(target) => {
                let connector = Connector::new(*target, config)?;
                let statements = session_settings(query);
                let ours = connector.clone();
                let setup = move || {
                    let (connector, statements) = (ours.clone(), statements.clone());
                    async move { connector.connect(&statements).await }.boxed()
                };
                Ok(Self::Postgres {
                    pool: pool(setup, config.max_connections)?,
                    connector,
                })
            }
        }
    }

    /// The line of those who write, where one connection does.
    pub(super) fn line(&self, side: Side) -> Option<&Arc<Line>> {
        match (self, side) {
            (Self::Sqlite { line, .. }, Side::Write) => Some(line),
            _ => None,
        }
    }

    /// Borrows a connection, waiting for at most `limit`.
    pub(super) async fn get(&self, side: Side, limit: Duration) -> Result<Link, Unreachable> {
        match self.borrow(side, Duration::ZERO, limit).await {
            // Whoever waits may be left with too little time to make a
            // connection, which is then no sign that none can be made.
            Err(Unreachable::Exhausted) => {
                tokio::time::timeout(limit, self.borrow(side, limit, limit))
                    .await
                    .unwrap_or(Err(Unreachable::Exhausted))
            }
            outcome => outcome,
        }
    }

    async fn borrow(
        &self,
        side: Side,
        wait: Duration,
        limit: Duration,
    ) -> Result<Link, Unreachable> {
        let timeouts = deadpool::managed::Timeouts {
            wait: Some(wait),
            create: Some(limit),
            recycle: Some(limit),
        };
        match (self, side) {
            (Self::Sqlite { readers: pool, .. }, Side::Read)
            | (Self::Sqlite { writer: pool, .. }, Side::Write) => {
                Ok(Link::Sqlite(pool.timeout_get(&timeouts).await?))
            }
            (Self::Postgres { pool, .. }, _) => {
                Ok(Link::Postgres(Box::new(pool.timeout_get(&timeouts).await?)))
            }
        }
    }
}

/// Why no connection could be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreachable {
    /// All are in use. The database may be well.
    #[error("no connection became free in time")]
    Exhausted,
    /// No new one could be made.
    #[error("no connection could be made: {0}")]
    Refused(String),
}

impl From<diesel_async::pooled_connection::deadpool::PoolError> for Unreachable {
    fn from(error: diesel_async::pooled_connection::deadpool::PoolError) -> Self {
        use deadpool::managed::{PoolError, TimeoutType};
        match error {
            PoolError::Timeout(TimeoutType::Wait) => Self::Exhausted,
            PoolError::Timeout(_) => Self::Refused("no answer in time".to_owned()),
            PoolError::Backend(error) => Self::Refused(error.to_string()),
            other => Self::Refused(other.to_string()),
        }
    }
}

impl Link {
    /// When the connection was made, which tells it from others of its pool.
    pub(super) fn made_at(&self) -> Option<Instant> {
        match self {
            Self::Sqlite(object) => Some(Object::metrics(object).created),
            Self::Postgres(object) => Some(Object::metrics(object).created),
            Self::Closed => None,
        }
    }

    /// Closes the connection instead of giving it back. Those that idle in the
    /// pool are closed too if this one was lost: what happened to it has likely
    /// happened to them.
    pub(super) fn discard(self, lost: bool) {
        match self {
            Self::Sqlite(object) => drop(Object::take(object)),
            Self::Postgres(object) => {
                if lost && let Some(pool) = Object::pool(&object) {
                    pool.retain(|_, _| false);
                }
                drop(Object::take(*object));
            }
            Self::Closed => {}
        }
    }
}

impl Connector {
    fn new(mut target: tokio_postgres::Config, config: &Config) -> Result<Self, SetupError> {
        if target.get_application_name().is_none() {
            target.application_name("countersign");
        }
        if target.get_connect_timeout().is_none() {
            // Each host gets its share, so that the second is reached in time.
            let hosts = target.get_hosts().len().max(1);
            let hosts = u32::try_from(hosts).unwrap_or(u32::MAX);
            target.connect_timeout(config.acquire_timeout() / hosts);
        }
        let tls = match roots::client("database.ca_file", config.ca_file.as_deref()) {
            // A server without TLS needs none, and one with it will be refused.
            Err(why) if config.ca_file.is_none() && target.get_ssl_mode() != SslMode::Require => {
                if target.get_ssl_mode() != SslMode::Disable {
                    tracing::warn!(why, "PostgreSQL can be reached without TLS only");
                }
                roots::distrustful()
            }
            tls => tls,
        };
        Ok(Self {
            config: Arc::new(target),
            tls: MakeRustlsConnect::new(tls.map_err(SetupError::Config)?),
        })
    }

    /// A new connection as it is: the client asks, and the connection must be
    /// driven for it to be answered.
    pub(super) async fn open(
        &self,
    ) -> Result<(Client, Connection<Socket, Encrypted>), tokio_postgres::Error> {
        self.config.connect(self.tls.clone()).await
    }

    /// A new connection on which the statements have run.
    pub(super) async fn connect(&self, statements: &str) -> ConnectionResult<Pg> {
        let bad = |error: &(dyn StdError + 'static)| {
            ConnectionError::BadConnection(crate::error::chain(error))
        };
        let (client, connection) = self.open().await.map_err(|error| bad(&error))?;
        let mut connection = Pg::try_from_client_and_connection(client, connection).await?;
        connection
            .batch_execute(statements)
            .await
            .map_err(|error| bad(&error))?;
        Ok(connection)
    }
}

fn pool<C>(
    setup: impl Fn() -> BoxFuture<'static, ConnectionResult<C>> + Send + Sync + 'static,
    size: usize,
) -> Result<Pool<C>, SetupError>
where
    C: diesel_async::pooled_connection::PoolableConnection + Send + 'static,
    AsyncDieselConnectionManager<C>: deadpool::managed::Manager<Type = C>,
{
    let mut manager = ManagerConfig::default();
    // A broken connection is found out by its first query; a check before each
    // would cost a round trip.
    manager.recycling_method = RecyclingMethod::Fast;
    manager.custom_setup = Box::new(move |_| setup());
    // The URL with its password stays out of diesel's hands.
    let manager = AsyncDieselConnectionManager::new_with_config(String::new(), manager);
    Pool::builder(manager)
        .max_size(size)
        .runtime(deadpool::Runtime::Tokio1)
        .build()
        .map_err(SetupError::database)
}

/// Settings of each connection to PostgreSQL.
fn session_settings(query: Duration) -> String {
    let query = query.as_millis();
    let idle = query * 4;
    // Shorter than the statement's, so that a wait for somebody else's lock is
    // told from a server that is too slow.
    let lock = (query * 3 / 4).max(1);
    // The server's own bounds stand beside the client's: they end what a
    // client that is gone has left behind. Reads are refused writes here, as
    // on SQLite; transactions say READ WRITE.
    format!(
        "SET synchronous_commit = on; \
         SET statement_timeout = {query}; \
         SET lock_timeout = {lock}; \
         SET idle_in_transaction_session_timeout = {idle}; \
         SET default_transaction_isolation = 'read committed'; \
         SET default_transaction_read_only = on"
    )
}

/// Creates the file, for its owner only, and makes it a WAL database: once, as
/// connections that switch at the same time lock each other out.
fn create(path: &Path) -> Result<(), SetupError> {
    let io = |error: io::Error| SetupError::File {
        path: path.to_owned(),
        error,
    };
    if path
        .parent()
        .is_some_and(|folder| !folder.as_os_str().is_empty() && !folder.is_dir())
    {
        return Err(io(io::Error::new(
            io::ErrorKind::NotFound,
            "its folder does not exist",
        )));
    }
    private_file(path).map_err(io)?;
    let mut connection = establish(path).map_err(SetupError::database)?;
    connection
        .batch_execute("PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL;")
        .map_err(SetupError::database)
}

/// Opens a file for writing, creating it for its owner only.
pub(super) fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Opens the file without any settings.
pub(super) fn establish(path: &Path) -> ConnectionResult<SqliteConnection> {
    let path = path
        .to_str()
        .ok_or_else(|| ConnectionError::InvalidConnectionUrl("the path is not UTF-8".to_owned()))?;
    SqliteConnection::establish(path)
}

async fn open_file(path: PathBuf, side: Side, query: Duration) -> ConnectionResult<Lite> {
    let open = move || {
        let mut connection = establish(&path)?;
        // SQLite cannot be interrupted from outside; its waits for locks are
        // bounded below the time that a query has.
        let busy = query.as_millis() * 3 / 4;
        let query_only = side == Side::Read;
        connection
            .batch_execute(&format!(
                "PRAGMA busy_timeout = {busy}; \
                 PRAGMA foreign_keys = ON; \
                 PRAGMA synchronous = FULL; \
                 PRAGMA trusted_schema = OFF; \
                 PRAGMA temp_store = MEMORY; \
                 PRAGMA query_only = {query_only};"
            ))
            .map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(Lite::with_runtime(connection, Threads))
    };
    tokio::task::spawn_blocking(open)
        .await
        .unwrap_or_else(|error| Err(ConnectionError::BadConnection(error.to_string())))
}
