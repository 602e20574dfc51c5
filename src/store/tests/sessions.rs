//! Sessions: opening, the guarded advance, revoking.

use std::sync::{Arc, Mutex};

use diesel::connection::{Instrumentation, InstrumentationEvent};
use diesel_async::AsyncConnection as _;
use jiff::Timestamp;

use super::{Database, call, id, on_both, page, seconds, users};
use crate::{
    domain::{SessionId, StoredPassword, UserId, UserStatus},
    store::{
        Conn, Store,
        pool::Link,
        sessions::{self, Advanced, NewSession, Renewal},
    },
};

fn new_session(user: UserId, epoch: i64, now: Timestamp) -> NewSession {
    NewSession {
        id: SessionId(id()),
        user_id: user,
        epoch,
        key_id: 1,
        binding: [7; 16],
        device_name: "laptop".to_owned(),
        user_agent: "grpcurl/1.9".to_owned(),
        address: Some("2001:db8::1".parse().unwrap()),
        client_id: "countersign".to_owned(),
        now,
        expires_at: now + seconds(100),
        absolute_expires_at: now + seconds(1_000),
    }
}

async fn open(db: &Database, user: UserId, epoch: i64) -> Option<SessionId> {
    let session = new_session(user, epoch, db.now());
    let opened = db
        .write(async |tx| sessions::open(tx, &session).await)
        .await;
    opened.map(|_| session.id)
}

async fn advance(store: &Store, id: SessionId, from: i64, now: Timestamp) -> Option<Advanced> {
    store
        .write(&call(), async |tx| {
            sessions::advance(tx, id, from, 2, now, now + seconds(100)).await
        })
        .await
        .unwrap()
        .value
}

async fn renew(db: &Database, id: SessionId) -> Option<i64> {
    let renewal = Renewal {
        epoch: 1,
        key_id: 3,
        binding: [9; 16],
        now: db.now(),
    };
    db.write(async |tx| sessions::renew(tx, id, &renewal).await)
        .await
}

async fn generation(db: &Database, id: SessionId) -> i64 {
    let state = sessions::state(&mut db.read().await, id).await.unwrap();
    state.unwrap().generation
}

async fn disable(db: &Database, user: UserId) {
    let (from, to) = (UserStatus::Active, UserStatus::Disabled);
    let done = db
        .write(async |tx| users::set_status(tx, user, from, to, db.now()).await)
        .await;
    assert!(done.is_some());
}

/// The statements that a connection has prepared for good.
#[derive(Clone, Default)]
struct Prepared(Arc<Mutex<Vec<String>>>);

impl Instrumentation for Prepared {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if let InstrumentationEvent::CacheQuery { sql, .. } = event {
            self.0.lock().unwrap().push(sql.replace(['"', '`'], ""));
        }
    }
}

impl Prepared {
    fn watch(conn: &mut Conn) -> Self {
        let prepared = Self::default();
        match &mut conn.link {
            Link::Sqlite(link) => link.set_instrumentation(prepared.clone()),
            Link::Postgres(link) => link.set_instrumentation(prepared.clone()),
            Link::Closed => panic!("the connection is closed"),
        }
        prepared
    }
}

on_both! {
    async fn statements_are_prepared_once(db) {
        let user = db.user("ana").await;
        let store = db.open(|config| config.max_connections = 1).await;
        let call = call();
        let prepared = store.write(&call, async |tx| {
            let prepared = Prepared::watch(tx);
            for from in 0..3 {
                let session = new_session(user, 0, db.now());
                sessions::open(tx, &session).await?;
                let until = db.now() + seconds(100);
                assert!(sessions::advance(tx, session.id, from, 2, db.now(), until).await?.is_some());
            }
            Ok(prepared)
        });
        let prepared = prepared.await.unwrap().value.0.lock().unwrap().clone();
        let begins = |what: &str| prepared.iter().filter(|sql| sql.starts_with(what)).count();
        for what in ["UPDATE users", "INSERT INTO sessions", "UPDATE sessions"] {
            assert_eq!(begins(what), 1, "{what}: {prepared:#?}");
        }
        assert_eq!(prepared.len(), 3, "{prepared:#?}");
    }

    async fn a_session_is_stored_whole(db) {
        let user = db.user("ana").await;
        let id = open(db, user, 0).await.unwrap();
        let mut conn = db.read().await;
        let state = sessions::state(&mut conn, id).await.unwrap().unwrap();
        assert_eq!(
            (state.session_id, state.user_id, state.epoch, state.generation, state.key_id),
            (id, user, 0, 0, 1)
        );
        assert_eq!((state.binding, state.client_id.as_str()), ([7; 16], "countersign"));
        assert_eq!((state.rotated_at, state.auth_time), (db.now(), db.now()));
        assert_eq!(state.absolute_expires_at, db.now() + seconds(1_000));
        assert!(state.is_live(db.now()));
        let session = sessions::get(&mut conn, id, db.now()).await.unwrap().unwrap();
        assert_eq!((session.device_name.as_str(), session.user_agent.as_str()), ("laptop", "grpcurl/1.9"));
        assert_eq!(session.address, Some("2001:db8::1".parse().unwrap()));
        assert_eq!(session.expires_at, db.now() + seconds(100));
        assert_eq!(sessions::state(&mut conn, SessionId(super::id())).await.unwrap(), None);
    }

    async fn none_opens_once_the_account_has_changed(db) {
        let user = db.user("ana").await;
        let password = StoredPassword::new("$new".to_owned());
        db.write(async |tx| users::set_password(tx, user, &password, db.now()).await).await;
        assert_eq!(open(db, user, 0).await, None);
        let id = open(db, user, 1).await.unwrap();
        disable(db, user).await;
        assert_eq!(open(db, user, 2).await, None);
        assert_eq!(open(db, UserId(super::id()), 0).await, None);
        let mut conn = db.read().await;
        assert!(!sessions::state(&mut conn, id).await.unwrap().unwrap().is_live(db.now()));
    }

    async fn a_change_of_roles_keeps_no_one_from_opening(db) {
        let user = db.user("ana").await;
        db.write(async |tx| users::bump_epoch(tx, user, db.now()).await).await;
        let session = new_session(user, 0, db.now());
        let epoch = db.write(async |tx| sessions::open(tx, &session).await).await;
        // Tokens are minted in the account's epoch, and so is the session.
        assert_eq!(epoch, Some(1));
        let state = sessions::state(&mut db.read().await, session.id).await.unwrap().unwrap();
        assert_eq!(state.epoch, 1);
    }

    async fn it_advances_by_one(db) {
        let user = db.user("ana").await;
        let id = open(db, user, 0).await.unwrap();
        db.write(async |tx| users::bump_epoch(tx, user, db.now()).await).await;
        db.clock.pass(seconds(50));
        let advanced = advance(&db.store, id, 0, db.now()).await.unwrap();
        assert_eq!(
            (advanced.generation, advanced.user_id, advanced.user_epoch, advanced.key_id),
            (1, user, 1, 2)
        );
        assert_eq!(advanced.binding, [7; 16]);
        assert_eq!(advanced.auth_time, db.now() - seconds(50));
        assert_eq!(advanced.expires_at, db.now() + seconds(100));
        assert_eq!(advance(&db.store, id, 0, db.now()).await, None);
        assert_eq!(generation(db, id).await, 1);
        // The row is behind the token: a failover lost commits.
        assert_eq!(advance(&db.store, id, 9, db.now()).await.unwrap().generation, 10);
        // In any case it ends when it was to end at the latest.
        let end = db.now() + seconds(950);
        for n in 0..10 {
            db.clock.pass(seconds(90));
            advance(&db.store, id, 20 + n, db.now()).await.unwrap();
            let state = sessions::state(&mut db.read().await, id).await.unwrap().unwrap();
            assert_eq!(state.expires_at, end.min(db.now() + seconds(100)));
        }
    }

    async fn of_many_with_one_token_one_advances(db) {
        let user = db.user("ana").await;
        let id = open(db, user, 0).await.unwrap();
        let nodes = [db.open(|_| ()).await, db.open(|_| ()).await];
        let mut racing = tokio::task::JoinSet::new();
        for n in 0..60 {
            let (store, now) = (nodes[n % 2].clone(), db.now());
            racing.spawn(async move { advance(&store, id, 0, now).await.is_some() });
        }
        let won = racing.join_all().await;
        assert_eq!(won.iter().filter(|won| **won).count(), 1);
        assert_eq!(generation(db, id).await, 1);
    }

    async fn the_dead_do_not_advance(db) {
        let user = db.user("ana").await;
        // Revoked.
        let id = open(db, user, 0).await.unwrap();
        let revoke = async || db.write(async |tx| sessions::revoke(tx, id, db.now()).await).await;
        assert!(revoke().await);
        assert!(!revoke().await);
        assert_eq!(advance(&db.store, id, 0, db.now()).await, None);
        // Expired, at the very moment.
        let id = open(db, user, 0).await.unwrap();
        assert_eq!(advance(&db.store, id, 0, db.now() + seconds(100)).await, None);
        let late = db.now() + seconds(100);
        assert!(!db.write(async |tx| sessions::revoke(tx, id, late).await).await);
        // Of an epoch that a new password has ended.
        let password = StoredPassword::new("$new".to_owned());
        db.write(async |tx| users::set_password(tx, user, &password, db.now()).await).await;
        assert_eq!(advance(&db.store, id, 0, db.now()).await, None);
        // Unless it is the one that changed it.
        assert_eq!(renew(db, id).await, Some(1));
        let state = sessions::state(&mut db.read().await, id).await.unwrap().unwrap();
        assert_eq!((state.epoch, state.key_id, state.binding), (1, 3, [9; 16]));
        // By what the row says now a token of before is told.
        let advanced = advance(&db.store, id, 1, db.now()).await.unwrap();
        assert_eq!((advanced.user_epoch, advanced.binding), (1, [9; 16]));
        db.write(async |tx| sessions::revoke(tx, id, db.now()).await).await;
        assert_eq!(renew(db, id).await, None);
        // Of a disabled account.
        let id = open(db, user, 1).await.unwrap();
        disable(db, user).await;
        assert_eq!(advance(&db.store, id, 0, db.now()).await, None);
        assert_eq!(generation(db, id).await, 0);
    }

    async fn all_are_revoked_but_one(db) {
        let (ana, bob) = (db.user("ana").await, db.user("bob").await);
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(open(db, ana, 0).await.unwrap());
        }
        let other = open(db, bob, 0).await.unwrap();
        let mut revoked = db
            .write(async |tx| sessions::revoke_all(tx, ana, Some(ids[0]), db.now()).await)
            .await;
        revoked.sort();
        let mut expected = ids[1..].to_vec();
        expected.sort();
        assert_eq!(revoked, expected);
        let revoked = db.write(async |tx| sessions::revoke_all(tx, ana, None, db.now()).await).await;
        assert_eq!(revoked, ids[..1]);
        let mut conn = db.read().await;
        assert!(sessions::get(&mut conn, other, db.now()).await.unwrap().is_some());
        assert!(sessions::get(&mut conn, ids[0], db.now()).await.unwrap().is_none());
    }

    async fn the_oldest_beyond_the_most_are_ended(db) {
        let (ana, bob) = (db.user("ana").await, db.user("bob").await);
        let mut ids = Vec::new();
        for _ in 0..6 {
            ids.push(open(db, ana, 0).await.unwrap());
            open(db, bob, 0).await.unwrap();
            db.clock.pass(seconds(1));
        }
        // The dead do not count.
        db.write(async |tx| sessions::revoke(tx, ids[4], db.now()).await).await;
        let end = async |keep| {
            let mut ended = db
                .write(async |tx| sessions::end_excess(tx, ana, keep, db.now()).await)
                .await;
            ended.sort();
            ended
        };
        assert_eq!(end(5).await, []);
        let mut oldest = ids[..3].to_vec();
        oldest.sort();
        assert_eq!(end(2).await, oldest);
        assert_eq!(end(2).await, []);
        let left = async |user| {
            let listed = sessions::list(&mut db.read().await, user, db.now(), None, page(9)).await;
            listed.unwrap().items.into_iter().map(|session| session.id).collect::<Vec<_>>()
        };
        assert_eq!(left(ana).await, [ids[5], ids[3]]);
        assert_eq!(left(bob).await.len(), 6);
    }

    async fn lists_show_the_live_newest_first(db) {
        let (ana, bob) = (db.user("ana").await, db.user("bob").await);
        let mut ids = Vec::new();
        for n in 0..6 {
            ids.push(open(db, ana, 0).await.unwrap());
            if n % 2 == 0 {
                db.clock.pass(seconds(1));
            }
        }
        open(db, bob, 0).await.unwrap();
        let dead = ids.remove(2);
        db.write(async |tx| sessions::revoke(tx, dead, db.now()).await).await;
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let listed = sessions::list(&mut db.read().await, ana, db.now(), after, page(2)).await.unwrap();
            assert!(listed.items.len() <= 2);
            seen.extend(listed.items.iter().map(|session| (session.created_at, session.id)));
            after = listed.next;
            if after.is_none() {
                break;
            }
        }
        let mut sorted = seen.clone();
        sorted.sort_by(|a, b| b.cmp(a));
        assert_eq!(seen, sorted);
        let mut found: Vec<_> = seen.into_iter().map(|(_, id)| id).collect();
        found.sort();
        ids.sort();
        assert_eq!(found, ids);
        disable(db, ana).await;
        let none = sessions::list(&mut db.read().await, ana, db.now(), None, page(2)).await.unwrap();
        assert!(none.items.is_empty());
    }
}
