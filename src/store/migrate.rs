//! Migrations: embedded, in pairs of the same name for both databases, run by
//! one process at a time. A schema that this program does not know is left
//! alone: a newer one may be at work beside it.

use std::time::Duration;

use diesel::{
    SqliteConnection, backend::Backend, connection::SimpleConnection, migration::MigrationVersion,
};
use diesel_async::{AsyncMigrationHarness, SimpleAsyncConnection as _};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use tokio::time::timeout;

use super::{
    SetupError, Store,
    pool::{Pools, establish},
};

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// Locks out other processes that migrate; and, unlike queries, there is time.
const POSTGRES_LOCK: &str = "SET statement_timeout = 0; \
     SET lock_timeout = '60s'; \
     SELECT pg_advisory_lock(7233166413867938147)";
const CONNECT: Duration = Duration::from_secs(5);
const LOCK: Duration = Duration::from_secs(65);
const SQLITE_LOCK: &str = "PRAGMA busy_timeout = 60000; PRAGMA foreign_keys = ON;";

/// A migration and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Its name, or its version if this program does not know it.
    pub name: String,
    /// Where it stands.
    pub state: MigrationState,
}

/// Where a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationState {
    /// The schema has it.
    Applied,
    /// The schema does not have it yet.
    Pending,
    /// The schema has it and this program does not: that is older.
    Unknown,
}

enum Step {
    Up,
    Down,
    Look,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Store {
    /// Brings the schema up to what this program needs. Returns the names of
    /// what was applied. Refuses a schema newer than the program.
    pub async fn migrate_up(&self) -> Result<Vec<String>, SetupError> {
        let (before, after) = self.migrate(Step::Up).await?;
        Ok(difference(&before, &after))
    }

    /// Takes back the last migration, and what it stored is lost. Returns its
    /// name, or none if there was none.
    pub async fn migrate_down(&self) -> Result<Option<String>, SetupError> {
        let (before, after) = self.migrate(Step::Down).await?;
        Ok(difference(&before, &after).pop())
    }

    /// All migrations, oldest first.
    pub async fn migrate_status(&self) -> Result<Vec<Migration>, SetupError> {
        Ok(self.migrate(Step::Look).await?.1)
    }

    /// The migrations before and after.
    async fn migrate(&self, step: Step) -> Result<(Vec<Migration>, Vec<Migration>), SetupError> {
        let task: Box<dyn FnOnce() -> _ + Send> = match self.pools() {
            Pools::Sqlite { path, .. } => {
                let path = path.clone();
                Box::new(move || migrate_file(&path, &step))
            }
            Pools::Postgres { connector, .. } => {
                // Bounded: a server may accept connections and say nothing.
                let connected = match timeout(CONNECT, connector.connect("")).await {
                    Ok(connected) => connected.map_err(SetupError::database),
                    Err(late) => Err(SetupError::database(late)),
                };
                // A process that starts in an outage must know of it when it
                // is over, as one that ran before does.
                let mut connection = connected.inspect_err(|_| self.0.health.lost())?;
                timeout(LOCK, connection.batch_execute(POSTGRES_LOCK))
                    .await
                    .map_err(SetupError::database)??;
                // Closing the connection ends the lock.
                Box::new(move || {
                    run(
                        &mut AsyncMigrationHarness::new(connection),
                        || POSTGRES,
                        &step,
                    )
                })
            }
        };
        tokio::task::spawn_blocking(task)
            .await
            .map_err(SetupError::database)?
    }
}

fn migrate_file(
    path: &std::path::Path,
    step: &Step,
) -> Result<(Vec<Migration>, Vec<Migration>), SetupError> {
    let mut connection = establish(path).map_err(SetupError::database)?;
    connection
        .batch_execute(SQLITE_LOCK)
        .map_err(SetupError::database)?;
    if let Step::Look = step {
        return run(&mut connection, || SQLITE, step);
    }
    // The transaction is the lock. An error ends it without effect.
    connection
        .exclusive_transaction(|connection: &mut SqliteConnection| run(connection, || SQLITE, step))
}

/// Works on a locked database.
fn run<DB: Backend>(
    harness: &mut impl MigrationHarness<DB>,
    source: fn() -> EmbeddedMigrations,
    step: &Step,
) -> Result<(Vec<Migration>, Vec<Migration>), SetupError>
where
    EmbeddedMigrations: diesel::migration::MigrationSource<DB>,
{
    let failed = |failure: Failure| SetupError::Database(failure);
    let before = look(harness, &source()).map_err(failed)?;
    let newer: Vec<&str> = before
        .iter()
        .filter(|migration| migration.state == MigrationState::Unknown)
        .map(|migration| migration.name.as_str())
        .collect();
    if let Step::Look = step {
        return Ok((Vec::new(), before));
    }
    if !newer.is_empty() {
        return Err(SetupError::SchemaNewer(newer.join(", ")));
    }
    match step {
        Step::Up => drop(harness.run_pending_migrations(source()).map_err(failed)?),
        Step::Down if before.iter().any(|m| m.state == MigrationState::Applied) => {
            drop(harness.revert_last_migration(source()).map_err(failed)?);
        }
        Step::Down | Step::Look => {}
    }
    let after = look(harness, &source()).map_err(failed)?;
    Ok((before, after))
}

fn look<DB: Backend>(
    harness: &mut impl MigrationHarness<DB>,
    source: &EmbeddedMigrations,
) -> Result<Vec<Migration>, Failure>
where
    EmbeddedMigrations: diesel::migration::MigrationSource<DB>,
{
    let mut applied: Vec<MigrationVersion<'static>> = harness.applied_migrations()?;
    let mut known = diesel::migration::MigrationSource::<DB>::migrations(source)?;
    known.sort_by(|a, b| a.name().version().cmp(&b.name().version()));
    let mut migrations = Vec::new();
    for migration in known {
        let version = migration.name().version();
        let before = applied.len();
        applied.retain(|other| *other != version);
        migrations.push(Migration {
            name: migration.name().to_string(),
            state: if applied.len() < before {
                MigrationState::Applied
            } else {
                MigrationState::Pending
            },
        });
    }
    applied.sort();
    migrations.extend(applied.into_iter().map(|version| Migration {
        name: version.to_string(),
        state: MigrationState::Unknown,
    }));
    Ok(migrations)
}

/// Names of the migrations whose state changed.
fn difference(before: &[Migration], after: &[Migration]) -> Vec<String> {
    after
        .iter()
        .filter(|migration| !before.contains(migration))
        .map(|migration| migration.name.clone())
        .collect()
}
