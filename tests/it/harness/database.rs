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
