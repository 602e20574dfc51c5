//! A caller who leaves in the middle stands in nobody's way.

use std::time::{Duration, Instant};

use super::{Database, call, id, new_user, on_both, run, slow, users};
use crate::{
    domain::{StoredPassword, UserId},
    error::Reason,
    store::Store,
};

/// How long a write may take that nothing delays. Without the discarding of
/// connections it takes seconds, or never gets through.
const SOON: Duration = Duration::from_millis(1_500);

/// With a single connection, whatever is left on it meets the next caller.
async fn narrow(db: &Database) -> Store {
    db.open(|config| {
        config.max_connections = 1;
        config.acquire_timeout_ms = 2_000;
        config.query_timeout_ms = 3_000;
    })
    .await
}

async fn writes_soon(db: &Database, store: &Store) {
    for _ in 0..3 {
        let begun = Instant::now();
        let user = new_user(&format!("u{}", id().simple()), db.now());
        store
            .write(&call(), async |tx| users::insert(tx, &user).await)
            .await
            .unwrap();
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
}

on_both! {
    async fn inside_a_transaction(db) {
        let store = narrow(db).await;
        let user = new_user("ana", db.now());
        let call = call();
        let write = store.write(&call, async |tx| {
            users::insert(tx, &user).await?;
            std::future::pending::<()>().await;
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_millis(300), write).await.is_err());
        writes_soon(db, &store).await;
        // And it had no effect.
        let mut conn = store.read(&call).await.unwrap();
        assert_eq!(users::get(&mut conn, user.id).await.unwrap(), None);
    }

    async fn inside_a_query(db) {
        let store = narrow(db).await;
        let read = async {
            let mut conn = store.read(&call()).await.unwrap();
            slow(&mut conn).await
        };
        assert!(tokio::time::timeout(Duration::from_millis(200), read).await.is_err());
        let begun = Instant::now();
        let mut conn = store.read(&call()).await.unwrap();
        users::get(&mut conn, UserId(id())).await.unwrap();
        drop(conn);
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        writes_soon(db, &store).await;
        assert_eq!(store.breaker().opened_count(), 0);
    }

    async fn inside_the_first_statement_or_before_it(db) {
        let store = narrow(db).await;
        // Wherever it falls: acquiring, BEGIN, the insert, COMMIT.
        for micros in (0..40).map(|step| step * 250) {
            let user = new_user(&format!("u{}", id().simple()), db.now());
            let call = call();
            let write = store.write(&call, async |tx| users::insert(tx, &user).await);
            let _ = tokio::time::timeout(Duration::from_micros(micros), write).await;
        }
        writes_soon(db, &store).await;
    }

    async fn an_error_that_is_passed_over_is_found(db) {
        let ana = db.user("ana").await;
        let bob = db.user("bob").await;
        let outcome = db
            .try_write(async |tx| {
                let password = StoredPassword::new("$new".to_owned());
                users::set_password(tx, bob, &password, db.now()).await?;
                let _ = run(tx, "UPDATE users SET email = 'ana@example.com'").await;
                Ok(())
            })
            .await;
        assert_eq!(outcome.unwrap_err().reason(), Reason::Internal);
        let mut conn = db.read().await;
        for user in [ana, bob] {
            let found = users::get(&mut conn, user).await.unwrap().unwrap();
            assert_eq!(found.epoch, 0);
        }
    }

    async fn an_error_takes_everything_back(db) {
        let user = new_user("ana", db.now());
        let outcome = db
            .try_write(async |tx| {
                users::insert(tx, &user).await?;
                Err::<(), _>(Reason::RoleNotFound.into())
            })
            .await;
        assert_eq!(outcome.unwrap_err().reason(), Reason::RoleNotFound);
        assert_eq!(users::get(&mut db.read().await, user.id).await.unwrap(), None);
    }

    async fn a_change_outside_of_a_transaction_is_refused(db) {
        let user = new_user("ana", db.now());
        let mut conn = db.read().await;
        let outcome = users::insert(&mut conn, &user).await;
        assert_eq!(outcome.unwrap_err().reason(), Reason::Internal);
        assert!(!db.store.breaker().is_open());
    }

    async fn a_transaction_can_be_spawned(db) {
        let (store, user) = (db.store.clone(), new_user("ana", db.now()));
        let task = tokio::spawn(async move {
            store
                .write(&call(), async |tx| users::insert(tx, &user).await)
                .await
        });
        assert_eq!(task.await.unwrap().unwrap().value, users::Inserted::Done);
    }
}
