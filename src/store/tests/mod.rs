//! Tests of the store, each on SQLite and on PostgreSQL unless it says why not.

mod accounts;
mod api_keys;
mod cancellation;
mod connecting;
mod group;
mod health;
mod housekeeping;
mod migrations;
mod sessions;
mod trust;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use countersign_verifier::Clock;
use jiff::{SignedDuration, Timestamp};

use super::{Config, Conn, Store, Written, conn::on, pool::Link, users};
use crate::{
    breaker::Breaker,
    domain::{Call, Entropy, UserId, page::PageSize},
    error::Result,
};

/// Declares tests that run on both databases, as `sqlite::name` and
/// `postgres::name`.
macro_rules! on_both {
    ($(async fn $name:ident($db:ident) $body:block)+) => {
        $(async fn $name($db: &$crate::store::tests::Database) $body)+

        mod sqlite {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let db = $crate::store::tests::Database::sqlite().await;
                super::$name(&db).await;
            }
        )+}

        mod postgres {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let db = $crate::store::tests::Database::postgres().await;
                super::$name(&db).await;
                db.remove().await;
            }
        )+}
    };
}
use on_both;

/// A fresh database of one test, migrated.
struct Database {
    config: Config,
    store: Store,
    clock: Arc<TestClock>,
    /// Deletes SQLite's files when dropped.
    folder: tempfile::TempDir,
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
struct TestClock(AtomicI64);

/// Numbers that look random and are the same in every run.
#[derive(Debug, Default)]
struct TestEntropy(AtomicU64);

impl TestClock {
    fn pass(&self, time: SignedDuration) {
        let micros = i64::try_from(time.as_micros()).unwrap();
        self.0.fetch_add(micros, SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(self.0.load(SeqCst)).unwrap()
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

impl Entropy for TestEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        for byte in buffer {
            // SplitMix64.
            let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = z.to_le_bytes()[3];
        }
    }
}

/// URL of the server that tests make their databases on.
fn postgres_url() -> String {
    std::env::var("COUNTERSIGN_TEST_POSTGRES_URL").expect(
        "COUNTERSIGN_TEST_POSTGRES_URL names no PostgreSQL server; run the tests by scripts/test",
    )
}

/// Runs SQL on the server, outside of the store.
async fn server(sql: &str) -> Vec<String> {
    let (client, connection) = tokio_postgres::connect(&postgres_url(), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut values = Vec::new();
    for message in client.simple_query(sql).await.unwrap() {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            values.push(row.get(0).unwrap_or_default().to_owned());
        }
    }
    values
}

impl Database {
    async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/test.db", folder.path().display());
        Self::new(url, folder).await
    }

    async fn postgres() -> Self {
        let name = format!(
            "store_{}_{}",
            std::process::id(),
            uuid::Uuid::from_bytes(random()).simple()
        );
        server(&format!("CREATE DATABASE {name}")).await;
        let mut url = url::Url::parse(&postgres_url()).unwrap();
        url.set_path(&name);
        Self::new(url.into(), tempfile::tempdir().unwrap()).await
    }

    async fn new(url: String, folder: tempfile::TempDir) -> Self {
        let config = Config {
            url,
            // Generous: the machine may be busy with other tests.
            acquire_timeout_ms: 5_000,
            query_timeout_ms: 10_000,
            ..Config::default()
        };
        let clock = Arc::new(TestClock(AtomicI64::new(1_800_000_000_000_000)));
        let store = open(&config, &clock).await;
        store.migrate_up().await.unwrap();
        Self {
            config,
            store,
            clock,
            folder,
        }
    }

    /// Another store on the same database: another node, or other settings.
    async fn open(&self, change: impl FnOnce(&mut Config)) -> Store {
        let mut config = self.config.clone();
        change(&mut config);
        open(&config, &self.clock).await
    }

    fn is_postgres(&self) -> bool {
        self.store.is_postgres()
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn remove(&self) {
        let name = self.config.url.rsplit('/').next().unwrap();
        server(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
    }

    async fn read(&self) -> Conn {
        self.store.read(&call()).await.unwrap()
    }

    async fn write<R>(&self, work: impl AsyncFnOnce(&mut Conn) -> Result<R>) -> R {
        self.try_write(work).await.unwrap().value
    }

    async fn try_write<R>(
        &self,
        work: impl AsyncFnOnce(&mut Conn) -> Result<R>,
    ) -> Result<Written<R>> {
        self.store.write(&call(), work).await
    }

    /// An account that exists.
    async fn user(&self, name: &str) -> UserId {
        let user = new_user(name, self.now());
        let id = user.id;
        let inserted = self.write(async |tx| users::insert(tx, &user).await).await;
        assert_eq!(inserted, users::Inserted::Done);
        id
    }
}

async fn open(config: &Config, clock: &Arc<TestClock>) -> Store {
    let breaker = Breaker::new("database", &config.breaker);
    Store::open(
        config,
        Arc::clone(clock) as _,
        Arc::new(TestEntropy::default()),
        breaker,
    )
    .await
    .unwrap()
}

fn call() -> Call {
    Call::internal("test")
}

fn random<const N: usize>() -> [u8; N] {
    static SEED: TestEntropy = TestEntropy(AtomicU64::new(1));
    (&SEED as &dyn Entropy).array()
}

fn id() -> uuid::Uuid {
    uuid::Builder::from_random_bytes(random()).into_uuid()
}

fn page(size: i32) -> PageSize {
    PageSize::new(size).unwrap()
}

fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

fn new_user(name: &str, now: Timestamp) -> users::NewUser {
    users::NewUser {
        id: UserId(id()),
        email: format!("{name}@example.com").parse().unwrap(),
        username: Some(name.parse().unwrap()),
        display_name: name.parse().unwrap(),
        password: Some(crate::domain::StoredPassword::new(format!("$hash${name}"))),
        metadata: crate::domain::Metadata::new([("team".to_owned(), "blue".to_owned())]).unwrap(),
        now,
    }
}

/// Runs one statement that no function of the store offers.
async fn run(conn: &mut Conn, sql: &str) -> Result<usize> {
    use diesel_async::RunQueryDsl as _;
    Ok(on!(conn, |c| diesel::sql_query(sql).execute(c))?)
}

/// A query that runs for some seconds.
async fn slow(conn: &mut Conn) -> Result<usize> {
    if conn.is_postgres() {
        return run(conn, "SELECT pg_sleep(4)").await;
    }
    let Link::Sqlite(lite) = &mut conn.link else {
        unreachable!("it is one or the other")
    };
    let query = lite.spawn_blocking(|_| {
        std::thread::sleep(Duration::from_secs(4));
        Ok(0)
    });
    Ok(conn.gauge.run(query).await?)
}
