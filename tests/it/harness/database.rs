//! A fresh database for each test: a file, or a database of its own in the
//! cluster that `scripts/test` has started.

use std::{
    env,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use tempfile::TempDir;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// A database, gone when dropped (a PostgreSQL one goes with its cluster).
#[derive(Debug)]
pub struct Database {
    pub kind: Kind,
    pub url: String,
    pub folder: TempDir,
}

/// What a database held at one time.
#[derive(Debug)]
pub struct Backup(String);

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Database {
    pub async fn create(kind: Kind) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = match kind {
            Kind::Sqlite => format!("sqlite://{}", folder.path().join("test.db").display()),
            Kind::Postgres => {
                let number = NUMBER.fetch_add(1, Relaxed);
                let name = format!("it_{}_{number}", std::process::id());
                execute(&cluster_url(), &format!("CREATE DATABASE {name}")).await;
                let mut url = url::Url::parse(&cluster_url()).expect("a URL");
                url.set_path(&name);
                url.to_string()
            }
        };
        Self { kind, url, folder }
    }

    /// A copy of what it holds; nobody else may be using it.
    pub async fn backup(&self) -> Backup {
        match self.kind {
            Kind::Sqlite => {
                let copy = self.folder.path().join("backup.db").display().to_string();
                execute_on(self, &format!("VACUUM INTO '{copy}'")).await;
                Backup(copy)
            }
            Kind::Postgres => {
                let (name, copy) = (self.name(), format!("{}_backup", self.name()));
                copy_database(name, &copy).await;
                Backup(copy)
            }
        }
    }

    /// Holds again what it held then; nobody else may be using it.
    pub async fn restore(&self, Backup(copy): &Backup) {
        match self.kind {
            Kind::Sqlite => {
                for rest in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(format!("{}{rest}", self.name()));
                }
                std::fs::copy(copy, self.name()).expect("copies");
            }
            Kind::Postgres => {
                let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name());
                execute(&cluster_url(), &drop).await;
                copy_database(copy, self.name()).await;
            }
        }
    }

    /// Of the file, or of the database in its cluster.
    fn name(&self) -> &str {
        match self.kind {
            Kind::Sqlite => self.url.strip_prefix("sqlite://").expect("a SQLite URL"),
            Kind::Postgres => self.url.rsplit('/').next().expect("a name"),
        }
    }
}

async fn copy_database(from: &str, to: &str) {
    // A copy is refused while somebody is connected.
    execute(
        &cluster_url(),
        &format!(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{from}'"
        ),
    )
    .await;
    execute(
        &cluster_url(),
        &format!("CREATE DATABASE {to} TEMPLATE {from}"),
    )
    .await;
}

/// The URL of the throwaway cluster.
pub fn cluster_url() -> String {
    env::var("COUNTERSIGN_TEST_POSTGRES_URL").expect(
        "COUNTERSIGN_TEST_POSTGRES_URL is not set: run the tests by scripts/test, or start a \
         cluster by scripts/postgres and set it",
    )
}

/// Runs one statement on a connection of its own.
pub async fn execute(url: &str, statement: &str) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls)
        .await
        .expect("PostgreSQL answers");
    let driver = tokio::spawn(connection);
    client.batch_execute(statement).await.expect(statement);
    drop(client);
    driver
        .await
        .expect("the connection ends")
        .expect("the connection ends well");
}

/// Runs one statement on a test's database.
pub async fn execute_on(database: &Database, statement: &str) {
    match database.kind {
        Kind::Postgres => execute(&database.url, statement).await,
        Kind::Sqlite => {
            use diesel::{Connection as _, SqliteConnection, connection::SimpleConnection as _};
            let path = database
                .url
                .strip_prefix("sqlite://")
                .expect("a SQLite URL");
            let mut connection = SqliteConnection::establish(path).expect("opens");
            connection
                .batch_execute("PRAGMA busy_timeout = 5000")
                .expect("waits");
            connection.batch_execute(statement).expect(statement);
        }
    }
}

/// The first column of a query's rows on a test's database, as text.
pub async fn query_on(database: &Database, query: &str) -> Vec<String> {
    match database.kind {
        Kind::Postgres => {
            let connected = tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await;
            let (client, connection) = connected.expect("PostgreSQL answers");
            let driver = tokio::spawn(connection);
            let messages = client.simple_query(query).await.expect(query);
            drop(client);
            driver.await.expect("ends").expect("ends well");
            let rows = messages.iter().filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            rows.collect()
        }
        Kind::Sqlite => {
            use diesel::{
                Connection as _, QueryableByName, RunQueryDsl as _, SqliteConnection,
                connection::SimpleConnection as _,
            };
            #[derive(QueryableByName)]
            struct Row {
                #[diesel(sql_type = diesel::sql_types::Text)]
                value: String,
            }
            let path = database.url.strip_prefix("sqlite://");
            let path = path.expect("a SQLite URL");
            let mut connection = SqliteConnection::establish(path).expect("opens");
            connection
                .batch_execute("PRAGMA busy_timeout = 5000")
                .expect("waits");
            let query = format!("WITH q(v) AS ({query}) SELECT CAST(v AS TEXT) AS value FROM q");
            let rows: Vec<Row> = diesel::sql_query(&query)
                .load(&mut connection)
                .expect(&query);
            rows.into_iter().map(|row| row.value).collect()
        }
    }
}

/// Every row of every table as one text, its bytes in hexadecimal.
pub async fn dump(database: &Database) -> Vec<String> {
    let tables = match database.kind {
        Kind::Postgres => "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
        Kind::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'table'",
    };
    let mut rows = Vec::new();
    for table in query_on(database, tables).await {
        let columns = match database.kind {
            Kind::Postgres => "t::text".to_owned(),
            Kind::Sqlite => {
                let columns =
                    format!("SELECT 'quote(\"' || name || '\")' FROM pragma_table_info('{table}')");
                query_on(database, &columns).await.join(" || ' ' || ")
            }
        };
        let found = query_on(database, &format!("SELECT {columns} FROM \"{table}\" t")).await;
        rows.extend(found.into_iter().map(|row| format!("{table}: {row}")));
    }
    rows
}
