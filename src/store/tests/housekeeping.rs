//! Audit rows, idempotency, and what is cleared away.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use jiff::Timestamp;
use uuid::Uuid;

use super::{Database, id, on_both, seconds, users};
use crate::{
    domain::{
        AuditEvent, SessionId, UserId,
        audit::{Action, Origin, Outcome, Record, Seal, SealedEvent},
        trust::TrustChange,
    },
    store::{
        audit,
        conn::on,
        idempotency, janitor,
        schema::{audit_events, audit_origins},
        sessions::{self, NewSession},
        trust,
    },
};

const METHOD: &str = "/countersign.v1.AuthService/Register";

fn event(db: &Database, actor: Option<UserId>, subject: Option<UserId>) -> SealedEvent {
    let event = AuditEvent {
        id: id(),
        at: db.now(),
        action: Action::Login,
        outcome: Outcome::Failure,
        actor,
        workload: None,
        subject,
        session_id: Some(SessionId(id())),
        kid: None,
        role_id: None,
        api_key_id: None,
        correlation_id: "c-1".to_owned(),
        address: None,
        user_agent: String::new(),
        represents: 1,
    };
    SealedEvent {
        record: Record::of(&event),
        origin: Some(Origin {
            salt: vec![7; 16],
            address: Some("192.0.2.7".to_owned()),
            user_agent: "curl".to_owned(),
        }),
        seal: Seal {
            key_id: 1,
            mac: vec![8; 32],
        },
    }
}

fn record(
    caller: Option<Uuid>,
    request_id: Uuid,
    body_mac: &[u8],
    expires_at: Timestamp,
) -> idempotency::NewRecord<'_> {
    idempotency::NewRecord {
        method: METHOD,
        caller,
        request_id,
        body_mac,
        reply: b"reply",
        subject: None,
        expires_at,
    }
}

async fn counts(db: &Database) -> (i64, i64) {
    let mut conn = db.read().await;
    let events = on!(&mut conn, |c| audit_events::table.count().get_result(c)).unwrap();
    let origins = on!(&mut conn, |c| audit_origins::table.count().get_result(c)).unwrap();
    (events, origins)
}

async fn session(db: &Database, user: UserId, life: i64) -> SessionId {
    let now = db.now();
    let session = NewSession {
        id: SessionId(id()),
        user_id: user,
        epoch: 0,
        key_id: 1,
        binding: [0; 16],
        device_name: "phone".to_owned(),
        user_agent: "agent".to_owned(),
        address: Some("192.0.2.8".parse().unwrap()),
        client_id: "countersign".to_owned(),
        now,
        expires_at: now + seconds(life),
        absolute_expires_at: now + seconds(life),
    };
    let opened = db
        .write(async |tx| sessions::open(tx, &session).await)
        .await;
    assert!(opened.is_some());
    session.id
}

on_both! {
    async fn events_stay_when_a_person_goes(db) {
        let (ana, bob) = (db.user("ana").await, db.user("bob").await);
        let phone = session(db, ana, 100).await;
        let mut nowhere = event(db, None, None);
        nowhere.origin = None;
        let events = [
            event(db, Some(ana), Some(ana)),
            event(db, None, Some(ana)),
            event(db, Some(bob), Some(ana)),
            nowhere,
        ];
        db.write(async |tx| {
            for event in events {
                audit::insert(tx, event).await?;
            }
            Ok(())
        })
        .await;
        assert_eq!(counts(db).await, (4, 3));
        db.write(async |tx| users::erase(tx, ana, db.now()).await).await;
        // Bob's address is Bob's.
        assert_eq!(counts(db).await, (4, 1));
        let mut conn = db.read().await;
        let left: (String, String, Option<String>) = on!(&mut conn, |c| {
            use crate::store::schema::sessions;
            sessions::table
                .find(crate::store::types::Id::from(phone))
                .select((sessions::device_name, sessions::user_agent, sessions::address))
                .first(c)
        })
        .unwrap();
        assert_eq!(left, (String::new(), String::new(), None));
    }

    async fn rows_of_one_moment_are_more_than_one_batch(db) {
        let ana = db.user("ana").await;
        let until = db.now() + seconds(10);
        for _ in 0..5 {
            session(db, ana, 10).await;
            let record = record(None, id(), b"m", until);
            db.write(async |tx| {
                tx.announce(TrustChange::SigningKeys);
                idempotency::insert(tx, &record).await
            })
            .await;
        }
        db.clock.pass(seconds(20));
        let now = db.now();
        for left in [2, 2, 1, 0] {
            let deleted = db
                .write(async |tx| {
                    Ok([
                        janitor::delete_dead_sessions(tx, now, 2).await?,
                        janitor::delete_expired_idempotency(tx, now, 2).await?,
                        trust::prune(tx, now, 2).await?,
                    ])
                })
                .await;
            assert_eq!(deleted, [left; 3]);
        }
    }

    async fn a_reply_is_found_until_it_expires(db) {
        let (request, caller) = (id(), id());
        let until = db.now() + seconds(60);
        let insert = async |caller, mac: &[u8], until| {
            db.write(async |tx| {
                idempotency::insert(tx, &record(caller, request, mac, until)).await
            })
            .await
        };
        let find = async |caller| {
            let mut conn = db.read().await;
            idempotency::find(&mut conn, METHOD, caller, request, db.now()).await.unwrap()
        };
        assert!(insert(None, b"mac", until).await);
        assert!(!insert(None, b"other", until).await);
        assert_eq!(find(Some(caller)).await, None);
        assert!(insert(Some(caller), b"mine", until).await);
        let found = find(None).await.unwrap();
        assert_eq!((found.body_mac.as_slice(), found.reply.as_slice()), (&b"mac"[..], &b"reply"[..]));
        assert_eq!(find(Some(caller)).await.unwrap().body_mac, b"mine");
        db.clock.pass(seconds(60));
        assert_eq!(find(None).await, None);
        // Whatever the janitor has left over is in nobody's way.
        assert!(insert(None, b"again", db.now() + seconds(60)).await);
        assert_eq!(find(None).await.unwrap().body_mac, b"again");
    }

    async fn one_of_many_with_one_request_id_has_the_effect(db) {
        let (request, until) = (id(), db.now() + seconds(60));
        let mut racing = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let store = db.store.clone();
            racing.spawn(async move {
                let insert = async |tx: &mut crate::store::Conn| {
                    idempotency::insert(tx, &record(None, request, b"mac", until)).await
                };
                store.write(&super::call(), insert).await.unwrap().value
            });
        }
        let won = racing.join_all().await;
        assert_eq!(won.iter().filter(|won| **won).count(), 1);
    }

    async fn the_dead_are_cleared_away_in_batches(db) {
        let ana = db.user("ana").await;
        for life in [10, 20, 30, 1_000, 1_000, 1_000] {
            session(db, ana, life).await;
        }
        let live = session(db, ana, 1_000).await;
        let oldest = async || janitor::oldest_dead(&mut db.read().await, db.now()).await.unwrap();
        assert_eq!(oldest().await, None);
        let start = db.now();
        db.clock.pass(seconds(5));
        let revoked = db
            .write(async |tx| sessions::revoke_all(tx, ana, Some(live), db.now()).await)
            .await;
        assert_eq!(revoked.len(), 6);
        db.clock.pass(seconds(100));
        assert_eq!(oldest().await, Some(start + seconds(5)));
        let delete = async || {
            db.write(async |tx| janitor::delete_dead_sessions(tx, db.now(), 2).await).await
        };
        let mut deleted = 0;
        for _ in 0..4 {
            deleted += delete().await;
        }
        assert_eq!((deleted, delete().await), (6, 0));
        assert_eq!(oldest().await, None);
        assert!(sessions::get(&mut db.read().await, live, db.now()).await.unwrap().is_some());
        for life in [1, 2, 3, 500] {
            let until = db.now() + seconds(life);
            let request = id();
            db.write(async |tx| {
                idempotency::insert(tx, &record(None, request, b"mac", until)).await
            })
            .await;
        }
        db.clock.pass(seconds(10));
        assert_eq!(oldest().await, Some(db.now() - seconds(9)));
        let delete = async || {
            db.write(async |tx| janitor::delete_expired_idempotency(tx, db.now(), 2).await).await
        };
        assert_eq!((delete().await, delete().await, delete().await), (2, 1, 0));
    }
}
