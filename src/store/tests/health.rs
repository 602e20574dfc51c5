//! What is bounded, counted and judged.

use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};

use super::{Database, call, id, new_user, on_both, postgres_url, seconds, server, slow, users};
use crate::{
    breaker::State,
    domain::{UserId, session::Outage},
    error::Reason,
    store::{Conn, Store, conn::on},
};

async fn quick(db: &Database) -> Store {
    db.open(|config| {
        config.max_connections = 1;
        config.acquire_timeout_ms = 900;
        config.query_timeout_ms = 1_000;
    })
    .await
}

async fn look(store: &Store) -> crate::error::Result<()> {
    let mut conn = store.read(&call()).await?;
    users::get(&mut conn, UserId(id())).await?;
    Ok(())
}

on_both! {
    async fn a_query_is_bounded_and_its_connection_closed(db) {
        let store = quick(db).await;
        let mut conn = store.read(&call()).await.unwrap();
        let begun = Instant::now();
        let outcome = slow(&mut conn).await;
        assert_eq!(outcome.unwrap_err().reason(), Reason::DependencyUnavailable);
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        // It is of no use any more, and says so without waiting.
        let again = users::get(&mut conn, UserId(id())).await;
        assert!(again.is_err());
        drop(conn);
        look(&store).await.unwrap();
    }

    async fn a_recovery_is_noted_by_the_clock(db) {
        let store = quick(db).await;
        look(&store).await.unwrap();
        assert_eq!(store.last_outage(), None);
        let lost_at = db.now();
        for _ in 0..2 {
            let mut conn = store.read(&call()).await.unwrap();
            conn.gauge.lose();
            db.clock.pass(seconds(30));
            assert_eq!(store.last_outage(), None);
        }
        db.clock.pass(seconds(30));
        look(&store).await.unwrap();
        let outage = store.last_outage();
        assert_eq!(outage, Some(Outage { lost_at, recovered_at: db.now() }));
        db.clock.pass(seconds(60));
        look(&store).await.unwrap();
        assert_eq!(store.last_outage(), outage);
        // One that goes on when the node starts has begun nobody knows when.
        let late = quick(db).await;
        late.0.health.lost();
        look(&late).await.unwrap();
        assert_eq!(late.last_outage().unwrap().lost_at, jiff::Timestamp::MIN);
    }

    async fn failures_open_the_breaker_and_then_nothing_is_asked(db) {
        let store = quick(db).await;
        for _ in 0..5 {
            assert_eq!(store.breaker().state(), State::Closed);
            let mut conn = store.read(&call()).await.unwrap();
            slow(&mut conn).await.unwrap_err();
        }
        assert_eq!(store.breaker().state(), State::Open);
        let call = call();
        let outcome = store.read(&call).await.map(drop);
        assert_eq!(outcome.unwrap_err().reason(), Reason::DependencyUnavailable);
        let written = store.write(&call, async |_| Ok(())).await.map(drop);
        assert_eq!(written.unwrap_err().reason(), Reason::DependencyUnavailable);
        assert_eq!((call.cost.queries(), call.cost.database_micros()), (0, 0));
        // The probe still gets through.
        store.ping().await.unwrap();
    }

    async fn an_exhausted_pool_is_told_soon(db) {
        let store = quick(db).await;
        let held = store.read(&call()).await.unwrap();
        let begun = Instant::now();
        for _ in 0..5 {
            let outcome = store.read(&call()).await.map(drop);
            assert_eq!(outcome.unwrap_err().reason(), Reason::DependencyUnavailable);
        }
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        // It was never lost: nobody is refused, and nobody's grace is longer.
        assert!(!store.breaker().is_open());
        drop(held);
        look(&store).await.unwrap();
        assert_eq!(store.last_outage(), None);
    }

    async fn a_short_deadline_says_nothing_about_the_database(db) {
        let store = quick(db).await;
        let held = store.read(&call()).await.unwrap();
        for _ in 0..10 {
            let mut call = call();
            call.deadline = Some(Instant::now() + Duration::from_millis(20));
            let outcome = store.read(&call).await.map(drop);
            assert_eq!(outcome.unwrap_err().reason(), Reason::DeadlineExceeded);
        }
        drop(held);
        assert!(!store.breaker().is_open());
        let mut late = call();
        late.deadline = Some(Instant::now());
        let outcome = store.write(&late, async |_| Ok(())).await.map(drop);
        assert_eq!(outcome.unwrap_err().reason(), Reason::DeadlineExceeded);
        assert_eq!(late.cost.queries(), 0);
    }

    async fn conflicts_and_callers_who_leave_are_neutral(db) {
        db.user("ana").await;
        let bob = db.user("bob").await;
        let store = quick(db).await;
        for _ in 0..10 {
            let outcome = store
                .write(&call(), async |tx| super::run(
                    tx,
                    "UPDATE users SET email = 'ana@example.com' WHERE username = 'bob'",
                ).await)
                .await;
            outcome.unwrap_err();
            let mut conn = store.read(&call()).await.unwrap();
            let query = slow(&mut conn);
            assert!(tokio::time::timeout(Duration::from_millis(30), query).await.is_err());
        }
        assert!(!store.breaker().is_open());
        assert_eq!(store.last_outage(), None);
        let mut conn = store.read(&call()).await.unwrap();
        assert!(users::get(&mut conn, bob).await.unwrap().is_some());
    }

    async fn a_query_that_cannot_be_done_is_an_answer(db) {
        let sql = if db.is_postgres() {
            // 22008, a timestamp out of range.
            "SELECT timestamptz '294276-12-31' + interval '1 year'"
        } else {
            "SELECT abs(-9223372036854775807 - 1)"
        };
        for _ in 0..10 {
            let mut conn = db.read().await;
            let refused = super::run(&mut conn, sql).await;
            assert_eq!(refused.unwrap_err().reason(), Reason::Internal);
        }
        assert!(!db.store.breaker().is_open());
        assert_eq!(db.store.last_outage(), None);
    }

    async fn a_lock_of_others_says_nothing_about_the_database(db) {
        let ana = db.user("ana").await;
        let store = quick(db).await;
        db.write(async |tx| {
            users::lock(tx, ana).await?;
            for _ in 0..5 {
                let waiting = store
                    .write(&call(), async |tx| users::bump_epoch(tx, ana, db.now()).await)
                    .await;
                let busy = waiting.unwrap_err();
                assert_eq!(busy.reason(), Reason::DependencyUnavailable);
            }
            Ok(())
        })
        .await;
        assert!(!store.breaker().is_open());
        assert_eq!(store.last_outage(), None);
    }

    async fn queries_are_counted(db) {
        let call = call();
        let user = new_user("ana", db.now());
        db.store
            .write(&call, async |tx| users::insert(tx, &user).await)
            .await
            .unwrap();
        // BEGIN, INSERT, COMMIT.
        assert_eq!(call.cost.queries(), 3);
        assert!(call.cost.database_micros() > 0);
    }
}

/// PostgreSQL only: SQLite's COMMIT is a call in this process.
mod alone {
    use super::*;
    mod postgres {
        use super::*;

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn a_commit_without_an_answer_is_unknown() {
            use diesel_async::RunQueryDsl as _;
            let db = Database::postgres().await;
            let user = new_user("ana", db.now());
            let outcome = db
                .try_write(async |tx| {
                    users::insert(tx, &user).await?;
                    let pid: i32 = on!(tx, |c| diesel::select(diesel::dsl::sql::<
                        diesel::sql_types::Integer,
                    >(
                        "pg_backend_pid()"
                    ))
                    .get_result(c))?;
                    server(&format!("SELECT pg_terminate_backend({pid}, 5000)")).await;
                    Ok(())
                })
                .await;
            assert_eq!(outcome.unwrap_err().reason(), Reason::OutcomeUnknown);
            // The next call finds a good connection.
            look(&db.store).await.unwrap();
            assert!(db.store.last_outage().is_some());
            db.remove().await;
        }

        /// A server of this test alone.
        struct Cluster(std::path::PathBuf);

        impl Cluster {
            fn script(&self, arguments: &[&str]) -> String {
                let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/postgres");
                let output = std::process::Command::new(script)
                    .args(arguments)
                    .arg(&self.0)
                    .output()
                    .unwrap();
                String::from_utf8(output.stdout).unwrap().trim().to_owned()
            }
        }

        impl Drop for Cluster {
            fn drop(&mut self) {
                self.script(&["remove"]);
            }
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn a_server_that_is_stopped_opens_the_breaker() {
            let name = format!("countersign-stopped-{}", std::process::id());
            let cluster = Cluster(std::env::temp_dir().join(name));
            let config = crate::store::Config {
                url: cluster.script(&["start"]),
                ..Default::default()
            };
            let clock = std::sync::Arc::new(super::super::super::TestClock(0.into()));
            let store = super::super::super::open(&config, &clock).await;
            let look = async |store: Store| {
                store
                    .read(&call())
                    .await?
                    .batch("SELECT 1")
                    .await
                    .map_err(Into::into)
            };
            look(store.clone()).await.unwrap();
            cluster.script(&["signal", "STOP"]);
            // More than the pool has: most wait for those that wait.
            let mut waiting = tokio::task::JoinSet::new();
            for _ in 0..30 {
                let store = store.clone();
                waiting.spawn(async move {
                    let outcome: crate::error::Result<()> = look(store).await;
                    outcome.unwrap_err().reason()
                });
            }
            for reason in waiting.join_all().await {
                assert_eq!(reason, Reason::DependencyUnavailable);
            }
            assert!(store.breaker().is_open());
            cluster.script(&["signal", "CONT"]);
            store.ping().await.unwrap();
            assert!(store.last_outage().is_some());
        }

        /// Stands between the store and the server. Once frozen, the
        /// connections that exist neither answer nor close.
        async fn proxy() -> (u16, tokio::sync::watch::Sender<u32>) {
            let url = url::Url::parse(&postgres_url()).unwrap();
            let real = (url.host_str().unwrap().to_owned(), url.port().unwrap());
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let (freeze, frozen) = tokio::sync::watch::channel(0);
            tokio::spawn(async move {
                while let Ok((mut client, _)) = listener.accept().await {
                    let (real, mut frozen) = (real.clone(), frozen.clone());
                    frozen.mark_unchanged();
                    tokio::spawn(async move {
                        let mut server = TcpStream::connect(real).await.unwrap();
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                            _ = frozen.changed() => std::future::pending::<()>().await,
                        }
                    });
                }
            });
            (port, freeze)
        }

        /// BEGIN goes along with the first query, which is on its way by the time
        /// that BEGIN is refused.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn a_query_whose_begin_is_refused_changes_nothing() {
            let db = Database::postgres().await;
            let (ana, ben) = (new_user("ana", db.now()), new_user("ben", db.now()));
            let store = quick(&db).await;
            let call = call();
            // From here on the statement is prepared, and sent at once.
            store
                .write(&call, async |tx| users::insert(tx, &ana).await)
                .await
                .unwrap();
            let outcome = store
                .write(&call, async |tx| {
                    let begins = tx.gauge.begins.replace("BEGIN READ NOTHING");
                    assert_eq!(begins, Some("BEGIN READ WRITE"));
                    users::insert(tx, &ben).await
                })
                .await;
            assert_eq!(outcome.unwrap_err().reason(), Reason::Internal);
            let mut conn = store.read(&call).await.unwrap();
            assert_eq!(users::get(&mut conn, ben.id).await.unwrap(), None);
            drop(conn);
            store
                .write(&call, async |tx| users::insert(tx, &ben).await)
                .await
                .unwrap();
            db.remove().await;
        }

        /// BEGIN must answer the sooner, the longer its connection was waited for;
        /// the query behind it may wait for a lock as long as ever.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn a_lock_is_no_outage_after_a_wait_for_the_connection_either() {
            let db = Database::postgres().await;
            let ana = db.user("ana").await;
            let store = quick(&db).await;
            db.write(async |tx| {
                users::lock(tx, ana).await?;
                let held = store.read(&call()).await?;
                let write = async {
                    let call = call();
                    let bump = async |tx: &mut Conn| users::bump_epoch(tx, ana, db.now()).await;
                    store.write(&call, bump).await
                };
                let release = async {
                    tokio::time::sleep(Duration::from_millis(600)).await;
                    drop(held);
                };
                let (write, ()) = tokio::join!(write, release);
                assert_eq!(write.unwrap_err().reason(), Reason::DependencyUnavailable);
                Ok(())
            })
            .await;
            look(&store).await.unwrap();
            assert_eq!(store.last_outage(), None);
            db.remove().await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn idle_connections_to_a_server_that_is_gone_are_not_met_one_by_one() {
            let db = Database::postgres().await;
            let (port, freeze) = proxy().await;
            let store = db
                .open(|config| {
                    let mut url = url::Url::parse(&config.url).unwrap();
                    url.set_port(Some(port)).unwrap();
                    config.url = url.into();
                    config.acquire_timeout_ms = 900;
                    config.query_timeout_ms = 1_000;
                })
                .await;
            let mut held = Vec::new();
            for _ in 0..8 {
                held.push(store.read(&call()).await.unwrap());
            }
            drop(held);
            freeze.send(1).unwrap();
            look(&store).await.unwrap_err();
            for _ in 0..8 {
                look(&store).await.unwrap();
            }
            db.remove().await;
        }
    }
}
