//! The schema, up and down.

use std::collections::BTreeSet;

use super::{Database, on_both, run};
use crate::{
    domain::signing_key::{Purpose, SecretKey},
    store::{MigrationState, SetupError, conn::on, keys},
};

/// The last migration that was made.
async fn newest(db: &Database) -> Option<String> {
    let status = db.store.migrate_status().await.unwrap();
    let mut applied = status
        .into_iter()
        .filter(|migration| migration.state == MigrationState::Applied);
    applied.next_back().map(|migration| migration.name)
}

on_both! {
    async fn up_down_and_up_again(db) {
        db.user("ana").await;
        assert!(db.store.migrate_up().await.unwrap().is_empty());
        let status = db.store.migrate_status().await.unwrap();
        assert!(status.iter().all(|m| m.state == MigrationState::Applied));
        for migration in status.iter().rev() {
            let reverted = db.store.migrate_down().await.unwrap();
            assert_eq!(reverted.as_deref(), Some(migration.name.as_str()));
        }
        assert_eq!(db.store.migrate_down().await.unwrap(), None);
        assert_eq!(tables(db).await.len(), 0);
        let applied = db.store.migrate_up().await.unwrap();
        let names: Vec<String> = status.into_iter().map(|m| m.name).collect();
        assert_eq!(applied, names);
        db.user("ana").await;
    }

    async fn what_would_break_the_audit_log_is_not_taken_back(db) {
        db.write(async |tx| run(tx, "INSERT INTO audit_retention (id, mark) VALUES (1, 'csa_')").await).await;
        let (id, at) = if db.is_postgres() {
            ("'00000000-0000-7000-8000-000000000099'", "now()")
        } else {
            ("x'00000000000070008000000000000099'", "0")
        };
        let several = format!(
            "INSERT INTO audit_events (id, at, action, outcome, correlation_id, represents) \
             VALUES ({id}, {at}, 'session.login', 'failure', 'c', 7)"
        );
        db.write(async |tx| run(tx, &several).await).await;
        for (last, says, mend) in [
            ("audit_retention", "went by age", "DELETE FROM audit_retention"),
            ("audit_sampling", "stand for several", "UPDATE audit_events SET represents = 1"),
        ] {
            while newest(db).await.is_some_and(|name| !name.ends_with(last)) {
                db.store.migrate_down().await.unwrap();
            }
            let before = tables(db).await;
            for _ in 0..2 {
                let refused = db.store.migrate_down().await.unwrap_err();
                assert!(crate::error::chain(&refused).contains(says), "{refused:?}");
                assert_eq!(tables(db).await, before);
            }
            db.write(async |tx| run(tx, mend).await).await;
            let reverted = db.store.migrate_down().await.unwrap();
            assert!(reverted.is_some_and(|name| name.ends_with(last)), "{last}");
        }
    }

    async fn nobody_waits_long_for_others_who_migrate(db) {
        let begun = std::time::Instant::now();
        let refused = db
            .write(async |tx| {
                if db.is_postgres() {
                    tx.batch("SELECT pg_advisory_xact_lock(7233166413867938147)").await?;
                }
                let slow = std::time::Duration::from_secs(20);
                Ok(tokio::time::timeout(slow, db.store.migrate_up()).await)
            })
            .await;
        let refused = refused.unwrap();
        assert!(matches!(refused, Err(SetupError::Database(_))), "{refused:?}");
        assert!(begun.elapsed() > std::time::Duration::from_secs(5));
    }

    async fn a_newer_schema_is_refused(db) {
        db.write(async |tx| run(
            tx,
            "INSERT INTO __diesel_schema_migrations (version) VALUES ('29990101000000')",
        ).await)
        .await;
        let refused = db.store.migrate_up().await;
        assert!(
            matches!(&refused, Err(SetupError::SchemaNewer(unknown)) if unknown == "29990101000000"),
            "{refused:?}"
        );
        assert!(db.store.migrate_down().await.is_err());
        let status = db.store.migrate_status().await.unwrap();
        assert_eq!(status.last().unwrap().state, MigrationState::Unknown);
        assert!(!tables(db).await.is_empty());
    }

    async fn a_key_that_password_hashes_are_under_is_not_migrated_away(db) {
        db.user("ana").await;
        let key = SecretKey {
            id: 1,
            purpose: Purpose::Password,
            sealed: vec![0],
            created_at: db.now(),
        };
        db.write(async |tx| keys::insert_secret_key(tx, &key).await).await;
        db.write(async |tx| run(tx, "UPDATE users SET password = '$sealed$v=1$1$AAAA'").await).await;
        while newest(db).await.is_some_and(|name| !name.ends_with("password_keys")) {
            db.store.migrate_down().await.unwrap();
        }
        let refused = db.store.migrate_down().await;
        assert!(matches!(refused, Err(SetupError::Database(_))), "{refused:?}");
        db.write(async |tx| run(tx, "UPDATE users SET password = '$argon2id$'").await).await;
        db.store.migrate_down().await.unwrap();
    }

    async fn several_nodes_may_migrate_at_once(db) {
        while db.store.migrate_down().await.unwrap().is_some() {}
        let mut nodes = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let node = db.open(|_| ()).await;
            nodes.spawn(async move { node.migrate_up().await.unwrap().len() });
        }
        let applied = nodes.join_all().await;
        let all = db.store.migrate_status().await.unwrap().len();
        assert_eq!(applied.iter().sum::<usize>(), all, "{applied:?}");
    }
}

/// Tables with their columns, but for diesel's own.
async fn tables(db: &Database) -> BTreeSet<(String, String, bool)> {
    use diesel_async::RunQueryDsl as _;

    #[derive(diesel::QueryableByName)]
    struct Column {
        #[diesel(sql_type = diesel::sql_types::Text)]
        table_name: String,
        #[diesel(sql_type = diesel::sql_types::Text, column_name = "column_name")]
        name: String,
        #[diesel(sql_type = diesel::sql_types::Bool)]
        required: bool,
    }

    let sql = if db.is_postgres() {
        "SELECT table_name::text, column_name::text, is_nullable = 'NO' AS required
         FROM information_schema.columns WHERE table_schema = 'public'"
    } else {
        // A key of integers is never null, though SQLite does not say so.
        "SELECT m.name AS table_name, c.name AS column_name, c.\"notnull\" OR c.pk AS required
         FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table'"
    };
    let mut conn = db.read().await;
    let columns: Vec<Column> = on!(&mut conn, |c| diesel::sql_query(sql).load(c)).unwrap();
    columns
        .into_iter()
        .filter(|column| column.table_name != "__diesel_schema_migrations")
        .map(|column| (column.table_name, column.name, column.required))
        .collect()
}

mod alone {
    use super::*;
    mod postgres {
        use super::*;

        /// It needs both databases, and counts as one of PostgreSQL's.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn both_schemas_hold_the_same_tables_and_columns() {
            let (sqlite, postgres) = (Database::sqlite().await, Database::postgres().await);
            let (left, right) = (tables(&sqlite).await, tables(&postgres).await);
            assert!(left.len() > 60, "{left:?}");
            let differing: Vec<_> = left.symmetric_difference(&right).collect();
            assert!(differing.is_empty(), "{differing:?}");
            postgres.remove().await;
        }
    }
}
