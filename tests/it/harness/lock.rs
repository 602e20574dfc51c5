//! Somebody else who holds up everyone that writes.

use diesel::{Connection as _, SqliteConnection, connection::SimpleConnection as _};

use super::database::{Database, Kind};

/// Writers wait until it is released; readers do not.
pub enum Lock {
    Sqlite(SqliteConnection),
    Postgres(tokio_postgres::Client),
}

impl Lock {
    pub async fn take(database: &Database) -> Self {
        match database.kind {
            Kind::Sqlite => {
                let path = database.url.strip_prefix("sqlite://").expect("a path");
                let mut connection = SqliteConnection::establish(path).expect("opens");
                connection
                    .batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE")
                    .expect("the lock");
                Self::Sqlite(connection)
            }
            Kind::Postgres => {
                let connected = tokio_postgres::connect(&database.url, tokio_postgres::NoTls);
                let (client, connection) = connected.await.expect("PostgreSQL answers");
                tokio::spawn(connection);
                client
                    .batch_execute(
                        "BEGIN; LOCK TABLE users, sessions, idempotency, audit_events \
                         IN SHARE MODE",
                    )
                    .await
                    .expect("the lock");
                Self::Postgres(client)
            }
        }
    }

    /// Changes something before anybody else does.
    pub async fn commit(self, statement: &str) {
        let batch = format!("{statement}; COMMIT");
        match self {
            Self::Sqlite(mut connection) => connection.batch_execute(&batch).expect("committed"),
            Self::Postgres(client) => client.batch_execute(&batch).await.expect("committed"),
        }
    }

    pub async fn release(self) {
        match self {
            Self::Sqlite(mut connection) => connection.batch_execute("ROLLBACK").expect("released"),
            Self::Postgres(client) => client.batch_execute("ROLLBACK").await.expect("released"),
        }
    }
}
