//! The store: rows of SQLite or PostgreSQL, and the only room that names
//! diesel.
//!
//! A tour. `config` says which database; `pool` opens it; `conn` is a
//! connection on loan to one call, and the macro `on!` that runs one query text
//! on both databases; `failure` says whose fault it is if that fails; `kept` has a connection prepare a statement once; `group`
//! lets those who write to SQLite share a COMMIT; `types` and `schema` are the
//! columns and tables; `migrate` makes them. Then a file for each group of
//! tables: [`users`], [`roles`], [`sessions`], [`api_keys`], [`keys`],
//! [`nodes`], [`trust`], [`audit`], [`idempotency`], [`login_throttle`]; and
//! [`janitor`], which clears away. `listener` hears from PostgreSQL that the
//! trust log has grown.
//!
//! Functions of those files take a [`Conn`] and times as arguments, and return
//! domain values; what is not there is `None`. Reading goes through
//! [`Store::read`], where each query stands alone. Changing goes through
//! [`Store::write`], one transaction, which also appends what validators must
//! hear to the trust log. Both databases refuse a change outside of it.
//!
//! What it does not do: decide anything, or retry. A transaction that failed
//! had no effect, but for the reason `OUTCOME_UNKNOWN`.

pub mod api_keys;
pub mod audit;
mod config;
mod conn;
mod failure;
mod group;
mod health;
pub mod idempotency;
pub mod janitor;
mod kept;
pub mod keys;
mod listener;
pub mod login_throttle;
mod migrate;
pub mod nodes;
mod pool;
pub mod roles;
mod schema;
pub mod sessions;
#[cfg(test)]
mod tests;
pub mod trust;
mod types;
pub mod users;

use std::{
    fmt,
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use countersign_verifier::Clock;
use diesel::{RunQueryDsl as _, connection::SimpleConnection as _};

pub use self::{
    config::Config,
    conn::Conn,
    listener::{Heard, Listener},
    migrate::{Migration, MigrationState},
};
use self::{
    group::{End, Group},
    health::Health,
    pool::{Pools, Side, Unreachable},
};
use crate::{
    breaker::Breaker,
    domain::{Call, Cost, Entropy, session::Outage},
    error::{Error, Reason, Result},
};

/// The pause before a group's COMMIT is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// The database. Clones share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    pools: Pools,
    health: Arc<Health>,
    entropy: Arc<dyn Entropy>,
    acquire: Duration,
    query: Duration,
    /// Held for the life of the process by the one that serves.
    instance: Mutex<Option<File>>,
}

/// What a transaction returned, and the number of its last entry in the trust
/// log if it made any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written<R> {
    /// What the transaction returned.
    pub value: R,
    /// Its last entry in the trust log.
    pub seq: Option<i64>,
}

/// Why the database could not be set up; for whoever runs the service, not for
/// its callers.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A setting is wrong.
    #[error("{0}")]
    Config(String),
    /// A file cannot be used.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process serves the same file.
    #[error("{} is in use by another countersign that serves", .0.display())]
    InUse(PathBuf),
    /// The schema has migrations that this program does not know.
    #[error("the schema is newer than this program; run a newer one (unknown: {0})")]
    SchemaNewer(String),
    /// The command is for SQLite only.
    #[error("PostgreSQL has a tool of its own for this: {0}")]
    SqliteOnly(&'static str),
    /// The database failed.
    #[error("the database failed: {0}")]
    Database(Box<dyn std::error::Error + Send + Sync>),
}

impl SetupError {
    fn database(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Database(error.into())
    }
}

impl From<diesel::result::Error> for SetupError {
    fn from(error: diesel::result::Error) -> Self {
        Self::database(error)
    }
}

impl From<SetupError> for Error {
    fn from(error: SetupError) -> Self {
        match error {
            // It may answer the next time.
            SetupError::Database(_) => {
                Self::unavailable("database", Duration::from_secs(1)).because(error)
            }
            _ => Self::internal(error),
        }
    }
}

impl Store {
    /// Prepares the connections. A SQLite file is created if there is none, but
    /// not its folder; PostgreSQL need not be up.
    pub async fn open(
        config: &Config,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        breaker: Breaker,
    ) -> Result<Self, SetupError> {
        config
            .validate()
            .map_err(|wrong| SetupError::Config(wrong.join("; ")))?;
        Ok(Self(Arc::new(Inner {
            pools: Pools::open(config).await?,
            health: Arc::new(Health::new(breaker, clock)),
            entropy,
            acquire: config.acquire_timeout(),
            query: config.query_timeout(),
            instance: Mutex::new(None),
        })))
    }

    /// The breaker of the database.
    pub fn breaker(&self) -> &Breaker {
        &self.0.health.breaker
    }

    /// Whether the database is PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        matches!(self.0.pools, Pools::Postgres { .. })
    }

    /// The last time in which this node had no answer from the database, once
    /// that is over; None if it always had.
    pub fn last_outage(&self) -> Option<Outage> {
        self.0.health.last_outage()
    }

    /// Whether the database answers, past the breaker, for its probe. Takes as
    /// long as a query may.
    pub async fn ping(&self) -> Result<()> {
        let call = Call::internal("ping");
        let mut conn = self
            .connect(Side::Read, self.0.query, &call.cost, None)
            .await?;
        Ok(conn.batch("SELECT 1").await?)
    }

    /// A connection to read with. Each query sees what is committed when it
    /// runs. Give it back soon: hold it across no hashing and no other wait.
    pub async fn read(&self, call: &Call) -> Result<Conn> {
        self.acquire(call, Side::Read).await
    }

    /// Runs a transaction: all of it when `work` returns Ok, nothing of it when
    /// it returns an error. What it announced enters the trust log with it.
    ///
    /// `OUTCOME_UNKNOWN` means that COMMIT was sent and no answer came. A lock
    /// held too long by others is `DEPENDENCY_UNAVAILABLE` with a short retry.
    /// On SQLite those who write at the same time share a COMMIT (`group`).
    pub async fn write<R>(
        &self,
        call: &Call,
        work: impl AsyncFnOnce(&mut Conn) -> Result<R>,
    ) -> Result<Written<R>> {
        let waiting = self.pools().line(Side::Write).map(|line| line.wait());
        let mut conn = self.acquire(call, Side::Write).await?;
        drop(waiting);
        conn.begin().await?;
        let outcome = async {
            let value = work(&mut conn).await?;
            let changes = conn.take_changes();
            // Last: until COMMIT, everyone else who appends waits for this row.
            let seq = match changes.as_slice() {
                [] => None,
                changes => {
                    let now = self.0.health.clock.now();
                    Some(trust::append(&mut conn, changes, now, &*self.0.entropy).await?)
                }
            };
            Ok(Written { value, seq })
        }
        .await;
        if let Some(group) = conn.group().cloned() {
            if conn.is_lost() {
                return outcome;
            }
            conn.leave(outcome.is_ok()).await?;
            drop(conn);
            return match group.outcome(self.longest_commit()).await {
                Ok(()) => outcome,
                Err(error) if outcome.is_ok() => Err(error),
                // Of this one nothing was to stay.
                Err(error) => Err(Health::busy().because(error)),
            };
        }
        match outcome {
            Ok(written) => {
                let Some(group) = conn.lead() else {
                    conn.commit().await?;
                    return Ok(written);
                };
                drop(conn);
                // Not left undone by a caller who leaves.
                let cost = Arc::clone(&call.cost);
                tokio::spawn(self.clone().commit_for_all(Arc::clone(&group), cost));
                group.outcome(self.longest_commit()).await?;
                Ok(written)
            }
            Err(error) => {
                conn.rollback().await;
                Err(error)
            }
        }
    }

    /// Ends a group's transaction after those who stood in line for it. It costs
    /// whoever opened it, so that a call has as many queries as when it is alone.
    async fn commit_for_all(self, group: Arc<Group>, cost: Arc<Cost>) {
        loop {
            // Nobody stays in line for longer than this who came before.
            let limit = self.0.acquire + self.0.query;
            let permit = self.breaker().permit().ok();
            match self.connect(Side::Write, limit, &cost, permit).await {
                Ok(mut conn) if conn.group().is_some_and(|open| Arc::ptr_eq(open, &group)) => {
                    return conn.commit_group().await;
                }
                // Its own connection was lost.
                Ok(_) => return group.ended(End::TakenBack),
                Err(error) => {
                    tracing::warn!(%error, "a shared transaction waits for its end");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }

    /// How long a group may take to its end.
    fn longest_commit(&self) -> Duration {
        self.0.acquire + self.0.query * 2
    }

    async fn acquire(&self, call: &Call, side: Side) -> Result<Conn> {
        if call.is_late() {
            return Err(Reason::DeadlineExceeded.into());
        }
        let permit = self.breaker().permit()?;
        let left = call.remaining().unwrap_or(Duration::MAX);
        let limit = self.0.acquire.min(left);
        match self.connect(side, limit, &call.cost, Some(permit)).await {
            // The caller's haste says nothing about the database.
            Err(_) if call.is_late() => Err(Reason::DeadlineExceeded.into()),
            outcome => outcome,
        }
    }

    async fn connect(
        &self,
        side: Side,
        limit: Duration,
        cost: &Arc<Cost>,
        permit: Option<crate::breaker::Permit>,
    ) -> Result<Conn> {
        let Inner { pools, health, .. } = &*self.0;
        let begun = Instant::now();
        let link = pools.get(side, limit).await;
        let waited = begun.elapsed();
        cost.add_database(waited);
        metrics::histogram!("countersign_database_acquire_seconds").record(waited);
        let unreachable = match link {
            Ok(link) => {
                return Ok(Conn::new(
                    link,
                    Arc::clone(health),
                    Arc::clone(cost),
                    permit,
                    self.0.query,
                    waited,
                    pools.line(side).cloned(),
                ));
            }
            Err(unreachable) => unreachable,
        };
        // A full pool or a caller's haste say nothing about the database.
        if let Unreachable::Refused(_) = unreachable
            && limit >= self.0.acquire
        {
            health.lost();
            if let Some(permit) = permit {
                permit.failure();
            }
        }
        Err(health.unavailable().because(unreachable))
    }

    /// Refuses to go on if another process serves the same SQLite file, and
    /// keeps others from it while this process lives. Any number of nodes may
    /// share PostgreSQL.
    pub fn lock_instance(&self) -> Result<(), SetupError> {
        let Pools::Sqlite { path, .. } = self.pools() else {
            return Ok(());
        };
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let failed = |error| SetupError::File {
            path: lock.clone(),
            error,
        };
        let file = pool::private_file(&lock).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SetupError::InUse(path.clone())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        *self
            .0
            .instance
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Writes a consistent copy of the SQLite file while others go on using it.
    /// The copy appears under its name when it is whole.
    pub async fn backup(&self, to: &Path) -> Result<(), SetupError> {
        let Pools::Sqlite { path, .. } = self.pools() else {
            return Err(SetupError::SqliteOnly("pg_dump"));
        };
        let (path, to) = (path.clone(), to.to_owned());
        tokio::task::spawn_blocking(move || copy(&path, &to))
            .await
            .map_err(SetupError::database)?
    }

    fn pools(&self) -> &Pools {
        &self.0.pools
    }
}

fn copy(path: &Path, to: &Path) -> Result<(), SetupError> {
    let failed = |error| SetupError::File {
        path: to.to_owned(),
        error,
    };
    if to.exists() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    // Made here so that nobody else may read it; SQLite fills an empty file.
    let file = pool::private_file(&partial).map_err(failed)?;
    file.set_len(0).map_err(failed)?;
    let copied = vacuum_into(path, &partial).and_then(|()| {
        file.sync_all().map_err(failed)?;
        std::fs::rename(&partial, to).map_err(failed)
    });
    if copied.is_err() {
        // What is left of it is of no use; the error to tell is the first.
        let _ = std::fs::remove_file(&partial);
    }
    copied
}

fn vacuum_into(path: &Path, to: &Path) -> Result<(), SetupError> {
    let mut connection = pool::establish(path).map_err(SetupError::database)?;
    connection.batch_execute("PRAGMA busy_timeout = 10000")?;
    diesel::sql_query("VACUUM INTO ?")
        .bind::<diesel::sql_types::Text, _>(to.to_string_lossy())
        .execute(&mut connection)?;
    Ok(())
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("postgres", &self.is_postgres())
            .field("health", &self.0.health)
            .finish_non_exhaustive()
    }
}
