//! Transactions that share a COMMIT, which they do on SQLite alone.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{Database, call, new_user, run, users};
use crate::{
    domain::{Cost, user::UserFilter},
    error::{Reason, Result},
    store::{Store, pool::Side},
};

/// A transaction that inserts an account and goes on when it is told to.
struct Writer {
    begun: Option<oneshot::Receiver<()>>,
    go_on: Option<oneshot::Sender<()>>,
    done: JoinHandle<Result<()>>,
    cost: Arc<Cost>,
}

impl Writer {
    fn start(db: &Database, name: &str) -> Self {
        Self::and_then(db, name, &[])
    }

    /// It runs these statements then.
    fn and_then(db: &Database, name: &str, more: &'static [&'static str]) -> Self {
        let (begins, begun) = oneshot::channel();
        let (go_on, goes_on) = oneshot::channel::<()>();
        let (store, user) = (db.store.clone(), new_user(name, db.now()));
        let call = call();
        let cost = Arc::clone(&call.cost);
        let done = tokio::spawn(async move {
            let written = store.write(&call, async |tx| {
                begins.send(()).unwrap();
                users::insert(tx, &user).await?;
                goes_on.await.unwrap();
                for sql in more {
                    run(tx, sql).await?;
                }
                Ok(())
            });
            written.await.map(drop)
        });
        Self {
            begun: Some(begun),
            go_on: Some(go_on),
            done,
            cost,
        }
    }

    async fn begins(&mut self) {
        self.begun.take().unwrap().await.unwrap();
    }

    fn goes_on(&mut self) {
        self.go_on.take().unwrap().send(()).unwrap();
    }

    /// What it cost, when it has ended well.
    async fn queries(self) -> u64 {
        let cost = Arc::clone(&self.cost);
        self.ends().await.unwrap();
        cost.queries()
    }

    async fn ends(self) -> Result<()> {
        self.done.await.unwrap()
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let holds = async {
        while !is() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let held = timeout(Duration::from_secs(30), holds).await;
    assert!(held.is_ok(), "it never holds that {what}");
}

async fn wait_in_line(store: &Store, count: usize) {
    let line = store.pools().line(Side::Write).unwrap();
    until("so many wait", || line.length() == count).await;
}

/// Two in one transaction: the first has done its part, and the second has
/// begun.
async fn two(db: &Database, second: impl FnOnce() -> Writer) -> (Writer, Writer) {
    let mut first = Writer::start(db, "ana");
    first.begins().await;
    let mut second = second();
    wait_in_line(&db.store, 1).await;
    first.goes_on();
    second.begins().await;
    (first, second)
}

async fn names(db: &Database) -> Vec<String> {
    let mut conn = db.read().await;
    let filter = UserFilter::default();
    let page = users::list(&mut conn, &filter, None, super::page(100)).await;
    let mut names: Vec<_> = page
        .unwrap()
        .items
        .into_iter()
        .map(|user| user.username.unwrap().as_str().to_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_before_all_is_committed() {
    let db = Database::sqlite().await;
    let (first, mut second) = two(&db, || Writer::start(&db, "ben")).await;
    sleep(Duration::from_millis(100)).await;
    assert!(!first.done.is_finished());
    assert!(names(&db).await.is_empty());
    second.goes_on();
    first.ends().await.unwrap();
    second.ends().await.unwrap();
    assert_eq!(names(&db).await, ["ana", "ben"]);
}

/// Else how many there were would tell callers apart that nothing else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_has_as_many_queries_as_when_it_is_alone() {
    let db = Database::sqlite().await;
    let (first, mut second) = two(&db, || Writer::start(&db, "ben")).await;
    second.goes_on();
    let together = (first.queries().await, second.queries().await);
    let mut alone = Writer::start(&db, "cleo");
    alone.goes_on();
    let alone = alone.queries().await;
    assert_eq!(together, (alone, alone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_takes_back_its_own_work_alone() {
    let db = Database::sqlite().await;
    let fails = || Writer::and_then(&db, "ben", &["INSERT INTO users (id) VALUES (NULL)"]);
    let mut first = Writer::start(&db, "ana");
    first.begins().await;
    let mut second = fails();
    wait_in_line(&db.store, 1).await;
    let mut third = Writer::start(&db, "cleo");
    wait_in_line(&db.store, 2).await;
    first.goes_on();
    second.goes_on();
    third.begins().await;
    // What it failed by may yet be taken back, so it is not told either.
    sleep(Duration::from_millis(100)).await;
    assert!(!second.done.is_finished());
    third.goes_on();
    assert_eq!(second.ends().await.unwrap_err().reason(), Reason::Internal);
    first.ends().await.unwrap();
    third.ends().await.unwrap();
    assert_eq!(names(&db).await, ["ana", "cleo"]);
}

/// As where it is alone: `cancellation::an_error_that_is_passed_over_is_found`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_is_passed_over_is_found() {
    let db = Database::sqlite().await;
    let passes_over = |name: &'static str| {
        let (begins, begun) = oneshot::channel();
        let (store, user) = (db.store.clone(), new_user(name, db.now()));
        let (go_on, goes_on) = oneshot::channel::<()>();
        let call = call();
        let cost = Arc::clone(&call.cost);
        let done = tokio::spawn(async move {
            let written = store.write(&call, async |tx| {
                begins.send(()).unwrap();
                users::insert(tx, &user).await?;
                run(tx, "INSERT INTO users (id) VALUES (NULL)")
                    .await
                    .unwrap_err();
                goes_on.await.unwrap();
                Ok(())
            });
            written.await.map(drop)
        });
        Writer {
            begun: Some(begun),
            go_on: Some(go_on),
            done,
            cost,
        }
    };
    // One that begins with others in line, and one that joins.
    let mut first = passes_over("ana");
    first.begins().await;
    let mut second = Writer::start(&db, "ben");
    wait_in_line(&db.store, 1).await;
    let mut third = passes_over("cleo");
    wait_in_line(&db.store, 2).await;
    first.goes_on();
    assert_eq!(first.ends().await.unwrap_err().reason(), Reason::Internal);
    second.goes_on();
    third.begins().await;
    third.goes_on();
    assert_eq!(third.ends().await.unwrap_err().reason(), Reason::Internal);
    second.ends().await.unwrap();
    assert_eq!(names(&db).await, ["ben"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_fails_all() {
    let db = Database::sqlite().await;
    let breaks = &[
        "PRAGMA defer_foreign_keys = ON",
        "INSERT INTO user_roles (user_id, role_id) VALUES (x'00', x'00')",
    ];
    let (first, mut second) = two(&db, || Writer::and_then(&db, "ben", breaks)).await;
    second.goes_on();
    for writer in [first, second] {
        let error = writer.ends().await.unwrap_err();
        assert_eq!(error.reason(), Reason::Internal);
    }
    assert!(names(&db).await.is_empty());
    db.user("cleo").await;
    assert_eq!(names(&db).await, ["cleo"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_lost_takes_all_with_it() {
    let db = Database::sqlite().await;
    let (first, second) = two(&db, || Writer::start(&db, "ben")).await;
    second.done.abort();
    let error = first.ends().await.unwrap_err();
    assert_eq!(error.reason(), Reason::DependencyUnavailable);
    assert!(names(&db).await.is_empty());
    db.user("cleo").await;
    assert_eq!(names(&db).await, ["cleo"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_leaves_before_the_end_is_in_it() {
    let db = Database::sqlite().await;
    let (first, mut second) = two(&db, || Writer::start(&db, "ben")).await;
    first.done.abort();
    until("it has left", || first.done.is_finished()).await;
    second.goes_on();
    second.ends().await.unwrap();
    assert_eq!(names(&db).await, ["ana", "ben"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_each_is_there_that_was_told_so() {
    let db = Database::sqlite().await;
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..90 {
        // Every third fails in the end.
        let (store, user) = (db.store.clone(), new_user(&format!("user{n}"), db.now()));
        writers.spawn(async move {
            let call = call();
            let written = store.write(&call, async |tx| {
                users::insert(tx, &user).await?;
                if n % 3 == 0 {
                    return Err(Reason::LoginFailed.into());
                }
                Ok(n)
            });
            written.await.map(|written| written.value)
        });
    }
    let told: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    assert_eq!(told.len(), 60);
    let mut expected: Vec<_> = told.into_iter().map(|n| format!("user{n}")).collect();
    expected.sort();
    assert_eq!(names(&db).await, expected);
}
