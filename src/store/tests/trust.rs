//! The trust log, and what else is settled between transactions.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use countersign_verifier::{Algorithm, KeyState};

use super::{Database, call, id, on_both, seconds};
use crate::{
    domain::{
        ApiKeyId, SessionId, UserId,
        signing_key::{Purpose, SecretKey, SigningKey},
        trust::TrustChange,
    },
    error::Reason,
    store::{keys, trust},
};

fn revoked() -> TrustChange {
    TrustChange::SessionRevoked {
        session_id: SessionId(id()),
    }
}

fn signing_key(db: &Database, kid: &str, state: KeyState) -> SigningKey {
    SigningKey {
        kid: kid.to_owned(),
        algorithm: Algorithm::Ed25519,
        state,
        public_key: vec![1; 32],
        sealed: vec![2; 80],
        created_at: db.now(),
        changed_at: db.now(),
        verify_until: (state == KeyState::Retired).then(|| db.now()),
    }
}

on_both! {
    async fn changes_come_out_as_they_went_in(db) {
        let (seq, nonce) = trust::head(&mut db.read().await).await.unwrap();
        assert_eq!((seq, nonce), (0, uuid::Uuid::nil()));
        let changes = [
            revoked(),
            TrustChange::UserEpoch { user_id: UserId(id()), min_epoch: 7 },
            TrustChange::ApiKey { api_key_id: ApiKeyId(id()) },
            TrustChange::SigningKeys,
            TrustChange::SecretKeys,
        ];
        let written = db
            .try_write(async |tx| {
                for change in &changes {
 tx.announce(change.clone());
}
                Ok("value")
            })
            .await
            .unwrap();
        assert_eq!((written.value, written.seq), ("value", Some(5)));
        let mut conn = db.read().await;
        let entries = trust::since(&mut conn, 0, 100).await.unwrap();
        assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(entries.iter().map(|e| &e.change).eq(&changes));
        assert!(entries.iter().all(|e| e.created_at == db.now()));
        let head = trust::head(&mut conn).await.unwrap();
        assert_eq!(head, (5, entries[4].nonce));
        assert_eq!(trust::since(&mut conn, 2, 1).await.unwrap(), entries[2..3]);
        drop(conn);
        // The same number in another history has another nonce.
        db.write(async |tx| { tx.announce(revoked()); Ok(()) }).await;
        let (_, nonce) = trust::head(&mut db.read().await).await.unwrap();
        assert_ne!(nonce, head.1);
    }

    async fn very_many_come_out_in_order(db) {
        let changes: Vec<_> = (0..1_203).map(|_| revoked()).collect();
        let written = db
            .try_write(async |tx| {
                for change in &changes {
                    tx.announce(change.clone());
                }
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(written.seq, Some(1_203));
        let entries = trust::since(&mut db.read().await, 0, 9_999).await.unwrap();
        assert!(entries.iter().map(|e| &e.change).eq(&changes));
        assert_eq!(entries.last().unwrap().seq, 1_203);
    }

    async fn what_is_taken_back_is_not_announced(db) {
        db.try_write(async |tx| {
            tx.announce(revoked());
            Err::<(), _>(Reason::LastAdmin.into())
        })
        .await
        .unwrap_err();
        let quiet = db.try_write(async |_| Ok(())).await.unwrap();
        assert_eq!(quiet.seq, None);
        assert_eq!(trust::head(&mut db.read().await).await.unwrap().0, 0);
    }

    async fn a_cursor_skips_nothing_while_many_write(db) {
        const WRITERS: usize = 8;
        const EACH: usize = 20;
        let done = Arc::new(AtomicBool::new(false));
        let tail = {
            let (store, done) = (db.open(|_| ()).await, Arc::clone(&done));
            tokio::spawn(async move {
                let (mut cursor, mut seen, mut polls) = (0, Vec::new(), 0_u32);
                loop {
                    let last = done.load(SeqCst);
                    let mut conn = store.read(&call()).await.unwrap();
                    let entries = trust::since(&mut conn, cursor, 7).await.unwrap();
                    drop(conn);
                    polls += 1;
                    if entries.is_empty() && last {
                        return (seen, polls);
                    }
                    cursor = entries.last().map_or(cursor, |entry| entry.seq);
                    seen.extend(entries.into_iter().map(|entry| entry.seq));
                    tokio::task::yield_now().await;
                }
            })
        };
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let store = db.store.clone();
            writers.spawn(async move {
                for n in 0..EACH {
                    store
                        .write(&call(), async |tx| {
                            tx.announce(revoked());
                            if (n + writer) % 3 == 0 {
                                tx.announce(revoked());
                            }
                            tokio::task::yield_now().await;
                            Ok(())
                        })
                        .await
                        .unwrap();
                }
            });
        }
        writers.join_all().await;
        done.store(true, SeqCst);
        let (seen, polls) = tail.await.unwrap();
        let (head, _) = trust::head(&mut db.read().await).await.unwrap();
        assert!(head >= i64::try_from(WRITERS * EACH).unwrap());
        assert_eq!(seen, (1..=head).collect::<Vec<_>>());
        assert!(polls > 10, "the reader ran beside the writers");
    }

    async fn old_entries_are_pruned_in_batches(db) {
        for _ in 0..5 {
            db.write(async |tx| { tx.announce(revoked()); Ok(()) }).await;
            db.clock.pass(seconds(1));
        }
        let before = db.now() - seconds(1);
        let prune = async || db.write(async |tx| trust::prune(tx, before, 3).await).await;
        assert_eq!(prune().await, 3);
        assert_eq!(prune().await, 1);
        assert_eq!(prune().await, 0);
        let mut conn = db.read().await;
        assert_eq!(trust::since(&mut conn, 0, 9).await.unwrap().len(), 1);
        assert_eq!(trust::head(&mut conn).await.unwrap().0, 5);
    }

    async fn there_is_one_active_and_one_next_key(db) {
        let add = async |kid, state| {
            let key = signing_key(db, kid, state);
            db.write(async |tx| keys::insert_signing_key(tx, &key).await).await
        };
        assert!(add("a", KeyState::Active).await);
        assert!(!add("b", KeyState::Active).await);
        assert!(add("c", KeyState::Next).await);
        assert!(!add("d", KeyState::Next).await);
        assert!(add("e", KeyState::Retired).await);
        assert!(add("f", KeyState::Retired).await);
        assert!(!add("f", KeyState::Retired).await);
        let stored = keys::signing_keys(&mut db.read().await).await.unwrap();
        assert_eq!(stored.len(), 4);
        assert_eq!(stored[0], signing_key(db, "a", KeyState::Active));
    }

    async fn symmetric_keys_are_kept(db) {
        let key = |id, purpose| SecretKey {
            id,
            purpose,
            sealed: vec![3; 60],
            created_at: db.now(),
        };
        let keys = [key(1, Purpose::Refresh), key(2, Purpose::Request)];
        for key in &keys {
            assert!(db.write(async |tx| keys::insert_secret_key(tx, key).await).await);
            assert!(!db.write(async |tx| keys::insert_secret_key(tx, key).await).await);
        }
        assert_eq!(keys::secret_keys(&mut db.read().await).await.unwrap(), keys);
    }

    async fn a_key_that_is_held_is_taken_away_afterwards(db) {
        let key = SecretKey {
            id: 1,
            purpose: Purpose::Password,
            sealed: vec![1],
            created_at: db.now(),
        };
        assert!(db.write(async |tx| keys::insert_secret_key(tx, &key).await).await);
        let other = db.open(|_| ()).await;
        let (is_held, held) = tokio::sync::oneshot::channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let taken = tokio::spawn(async move {
            held.await.unwrap();
            let taken = other
                .write(&call(), async |tx| {
                    keys::lock(tx).await?;
                    let over = over.load(SeqCst);
                    Ok((over, keys::delete_secret_key(tx, 1).await?))
                })
                .await;
            taken.unwrap().value
        });
        db.write(async |tx| {
            assert!(keys::hold_secret_key(tx, 1).await?);
            is_held.send(()).unwrap();
            // Time for the other to take it.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            is_over.store(true, SeqCst);
            Ok(())
        })
        .await;
        assert_eq!(taken.await.unwrap(), (true, true));
        assert!(!db.write(async |tx| keys::hold_secret_key(tx, 1).await).await);
    }

    async fn nodes_that_start_at_once_create_one_key(db) {
        let mut nodes = tokio::task::JoinSet::new();
        let mut stores = Vec::new();
        for _ in 0..6 {
            let store = db.open(|_| ()).await;
            store.ping().await.unwrap();
            stores.push(store);
        }
        for (node, store) in stores.into_iter().enumerate() {
            let key = signing_key(db, &format!("node{node}"), KeyState::Active);
            nodes.spawn(async move {
                let created = store
                    .write(&call(), async |tx| {
                        keys::lock(tx).await?;
                        if !keys::signing_keys(tx).await?.is_empty() {
                            return Ok(None);
                        }
                        // Time for the others to look as well.
                        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
                        Ok(Some(keys::insert_signing_key(tx, &key).await?))
                    })
                    .await;
                created.unwrap().value
            });
        }
        let created = nodes.join_all().await;
        // Nobody even tried a second one.
        assert_eq!(created.iter().flatten().collect::<Vec<_>>(), [&true]);
    }
}
