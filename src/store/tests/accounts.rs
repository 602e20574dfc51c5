//! Accounts and roles.

use std::collections::BTreeSet;

use super::{Database, id, new_user, on_both, page, run, seconds, users};
use crate::{
    domain::{
        Metadata, Role, RoleId, RoleName, StoredPassword, UserId, UserStatus, user::UserFilter,
    },
    error::{Reason, Result},
    store::{
        roles,
        users::{Inserted, Saved, UserColumns},
    },
};

fn hash(text: &str) -> StoredPassword {
    StoredPassword::new(text.to_owned())
}

async fn role(db: &Database, name: &str, permissions: &[&str]) -> Role {
    let role = Role {
        id: RoleId(id()),
        name: name.parse().unwrap(),
        description: "for tests".to_owned(),
        permissions: permissions.iter().map(|p| p.parse().unwrap()).collect(),
        built_in: false,
        created_at: db.now(),
        updated_at: db.now(),
    };
    assert!(db.write(async |tx| roles::insert(tx, &role).await).await);
    role
}

async fn grant(db: &Database, user: UserId, role: RoleId) -> bool {
    db.write(async |tx| roles::grant(tx, user, role).await)
        .await
}

async fn list(db: &Database, filter: &UserFilter) -> Vec<String> {
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let listed = users::list(&mut db.read().await, filter, after, page(2))
            .await
            .unwrap();
        names.extend(
            listed
                .items
                .iter()
                .map(|user| user.display_name.as_str().to_owned()),
        );
        after = listed.next;
        if after.is_none() {
            return names;
        }
    }
}

on_both! {
    async fn an_account_is_stored_whole(db) {
        let new = new_user("ana", db.now());
        db.write(async |tx| users::insert(tx, &new).await).await;
        let mut conn = db.read().await;
        let user = users::get(&mut conn, new.id).await.unwrap().unwrap();
        assert_eq!((user.email, user.username), (Some(new.email.clone()), new.username.clone()));
        assert_eq!((user.display_name, user.metadata), (new.display_name, new.metadata));
        assert_eq!((user.status, user.email_verified), (UserStatus::Active, false));
        assert_eq!((user.epoch, user.min_session_epoch), (0, 0));
        assert_eq!((user.created_at, user.updated_at), (db.now(), db.now()));
        assert!(user.roles.is_empty());
        for name in ["ana@example.com", "ana"] {
            let found = users::credentials(&mut conn, &name.parse().unwrap()).await.unwrap().unwrap();
            assert_eq!((found.user_id, found.status), (new.id, UserStatus::Active));
            assert_eq!((found.password, found.epoch), (Some(hash("$hash$ana")), 0));
        }
        assert!(users::credentials(&mut conn, &"bob".parse().unwrap()).await.unwrap().is_none());
        let by_id = users::credentials_by_id(&mut conn, new.id).await.unwrap().unwrap();
        assert_eq!(by_id.min_session_epoch, 0);
        assert_eq!(users::get(&mut conn, UserId(id())).await.unwrap(), None);
    }

    async fn times_are_kept_to_the_microsecond(db) {
        let now = db.now() + jiff::SignedDuration::from_nanos(1_999);
        let new = new_user("ana", now);
        db.write(async |tx| users::insert(tx, &new).await).await;
        let user = users::get(&mut db.read().await, new.id).await.unwrap().unwrap();
        assert_eq!(user.created_at, db.now() + jiff::SignedDuration::from_micros(1));
    }

    async fn a_name_is_taken_once(db) {
        db.user("ana").await;
        let mut second = new_user("bob", db.now());
        second.email = "ana@example.com".parse().unwrap();
        let insert = async |user: &users::NewUser| {
            db.write(async |tx| users::insert(tx, user).await).await
        };
        assert_eq!(insert(&second).await, Inserted::EmailTaken);
        second.email = "bob@example.com".parse().unwrap();
        second.username = Some("ana".parse().unwrap());
        assert_eq!(insert(&second).await, Inserted::UsernameTaken);
        second.username = None;
        assert_eq!(insert(&second).await, Inserted::Done);
        let mut third = new_user("eve", db.now());
        third.username = None;
        assert_eq!(insert(&third).await, Inserted::Done);
    }

    async fn one_of_many_gets_a_name(db) {
        let mut racing = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (store, user) = (db.store.clone(), new_user("ana", db.now()));
            racing.spawn(async move {
                let call = super::call();
                store.write(&call, async |tx| users::insert(tx, &user).await).await.unwrap().value
            });
        }
        let outcomes = racing.join_all().await;
        let count = |outcome| outcomes.iter().filter(|o| **o == outcome).count();
        assert_eq!((count(Inserted::Done), count(Inserted::EmailTaken)), (1, 19));
    }

    async fn columns_are_updated(db) {
        let ana = db.user("ana").await;
        db.user("bob").await;
        db.clock.pass(seconds(5));
        let mut columns = UserColumns {
            email: "new@example.com".parse().unwrap(),
            email_verified: true,
            username: None,
            display_name: "Ana".parse().unwrap(),
            metadata: Metadata::default(),
        };
        let update = async |id, columns: &UserColumns| {
            db.write(async |tx| users::update(tx, id, columns, db.now()).await).await
        };
        assert_eq!(update(ana, &columns).await, Saved::Done);
        let user = users::get(&mut db.read().await, ana).await.unwrap().unwrap();
        assert_eq!((user.email, user.username), (Some(columns.email.clone()), None));
        assert_eq!((user.display_name.as_str(), user.email_verified), ("Ana", true));
        assert!(user.metadata.labels().is_empty());
        assert_eq!((user.updated_at, user.epoch), (db.now(), 0));
        assert_eq!(update(UserId(id()), &columns).await, Saved::Gone);
        columns.email = "bob@example.com".parse().unwrap();
        let conflict = db
            .try_write(async |tx| {
                let saved = users::update(tx, ana, &columns, db.now()).await?;
                assert_eq!(saved, Saved::Conflict);
                Err::<(), _>(Reason::EmailTaken.into())
            })
            .await;
        assert_eq!(conflict.unwrap_err().reason(), Reason::EmailTaken);
    }

    async fn a_new_password_raises_both_epochs_and_a_new_form_none(db) {
        let ana = db.user("ana").await;
        let rehash = async |old, new| {
            db.write(async |tx| users::rehash(tx, ana, &hash(old), &hash(new)).await).await
        };
        assert!(rehash("$hash$ana", "$stronger").await);
        assert!(!rehash("$hash$ana", "$lost").await);
        let set = async |id| {
            db.write(async |tx| users::set_password(tx, id, &hash("$new"), db.now()).await).await
        };
        let epochs = set(ana).await.unwrap();
        assert_eq!((epochs.epoch, epochs.min_session_epoch), (1, 1));
        let stored = users::credentials_by_id(&mut db.read().await, ana).await.unwrap().unwrap();
        assert_eq!((stored.password, stored.epoch), (Some(hash("$new")), 1));
        assert_eq!(set(UserId(id())).await, None);
    }

    async fn disabling_raises_both_epochs_and_enabling_none(db) {
        let ana = db.user("ana").await;
        let set = async |from, to| {
            db.write(async |tx| users::set_status(tx, ana, from, to, db.now()).await).await
        };
        let (active, disabled) = (UserStatus::Active, UserStatus::Disabled);
        assert_eq!(set(disabled, active).await, None);
        let epochs = set(active, disabled).await.unwrap();
        assert_eq!((epochs.epoch, epochs.min_session_epoch), (1, 1));
        assert_eq!(set(active, disabled).await, None);
        assert_eq!(set(disabled, active).await, Some(epochs));
        let outcome = db
            .try_write(async |tx| {
                users::set_status(tx, ana, active, UserStatus::Deleted, db.now()).await
            })
            .await;
        assert!(outcome.is_err());
    }

    async fn a_tombstone_keeps_nothing(db) {
        let ana = db.user("ana").await;
        let admin = roles::get(&mut db.read().await, &RoleName::admin()).await.unwrap().unwrap();
        assert!(grant(db, ana, admin.id).await);
        let epochs = db.write(async |tx| users::erase(tx, ana, db.now()).await).await.unwrap();
        assert_eq!((epochs.epoch, epochs.min_session_epoch), (1, 1));
        let user = users::get(&mut db.read().await, ana).await.unwrap().unwrap();
        assert_eq!((user.email, user.username, user.status), (None, None, UserStatus::Deleted));
        assert_eq!(user.display_name.as_str(), "");
        assert!(user.metadata.labels().is_empty() && user.roles.is_empty());
        // It cannot be brought back, and its names are free.
        assert_eq!(db.write(async |tx| users::erase(tx, ana, db.now()).await).await, None);
        assert_eq!(db.write(async |tx| users::bump_epoch(tx, ana, db.now()).await).await, None);
        assert!(!db.write(async |tx| users::lock(tx, ana).await).await);
        assert_eq!(
            db.write(async |tx| users::set_password(tx, ana, &hash("$x"), db.now()).await).await,
            None
        );
        db.user("ana").await;
    }

    async fn accounts_are_got_in_the_order_asked_for(db) {
        let (ana, bob) = (db.user("ana").await, db.user("bob").await);
        let found = users::get_many(&mut db.read().await, &[bob, UserId(id()), ana]).await.unwrap();
        assert_eq!(found.iter().map(|user| user.id).collect::<Vec<_>>(), [bob, ana]);
        assert!(users::get_many(&mut db.read().await, &[]).await.unwrap().is_empty());
    }

    async fn lists_are_filtered_and_in_order(db) {
        for name in ["ana", "anb", "an_c", "bob", "eve"] {
            db.user(name).await;
            db.clock.pass(seconds(1));
        }
        let start = db.now() - seconds(5);
        let staff = role(db, "staff", &[]).await;
        let of = async |name: &str| {
            let name = name.parse().unwrap();
            users::credentials(&mut db.read().await, &name).await.unwrap().unwrap().user_id
        };
        grant(db, of("bob").await, staff.id).await;
        grant(db, of("ana").await, staff.id).await;
        let eve = of("eve").await;
        db.write(async |tx| {
            users::set_status(tx, eve, UserStatus::Active, UserStatus::Disabled, db.now()).await
        })
        .await;
        let any = UserFilter::default();
        assert_eq!(list(db, &any).await, ["ana", "anb", "an_c", "bob", "eve"]);
        let prefix = |text: &str| UserFilter { email_prefix: Some(text.to_owned()), ..any.clone() };
        assert_eq!(list(db, &prefix("an")).await, ["ana", "anb", "an_c"]);
        // No pattern: these are letters like others.
        assert_eq!(list(db, &prefix("an_")).await, ["an_c"]);
        assert!(list(db, &prefix("a%")).await.is_empty());
        assert_eq!(list(db, &prefix("")).await.len(), 5);
        let status = |status| UserFilter { status: Some(status), ..any.clone() };
        assert_eq!(list(db, &status(UserStatus::Disabled)).await, ["eve"]);
        assert_eq!(list(db, &status(UserStatus::Active)).await.len(), 4);
        let staff = UserFilter { role: Some(staff.name), ..any.clone() };
        assert_eq!(list(db, &staff).await, ["ana", "bob"]);
        let range = UserFilter {
            created_from: Some(start + seconds(1)),
            created_before: Some(start + seconds(3)),
            ..any.clone()
        };
        assert_eq!(list(db, &range).await, ["anb", "an_c"]);
        db.write(async |tx| users::erase(tx, eve, db.now()).await).await;
        assert_eq!(list(db, &any).await.len(), 4);
        assert_eq!(list(db, &status(UserStatus::Deleted)).await, [""]);
    }

    async fn roles_are_stored_whole(db) {
        let mut staff = role(db, "staff", &["orders.read", "countersign.users.read"]).await;
        let mut conn = db.read().await;
        assert_eq!(roles::get(&mut conn, &staff.name).await.unwrap(), Some(staff.clone()));
        drop(conn);
        assert!(!db.write(async |tx| roles::insert(tx, &Role { id: RoleId(id()), ..staff.clone() }).await).await);
        db.clock.pass(seconds(1));
        staff.description = "other".to_owned();
        staff.permissions = BTreeSet::from(["orders.write".parse().unwrap()]);
        staff.updated_at = db.now();
        assert!(db.write(async |tx| roles::update(tx, &staff).await).await);
        let mut conn = db.read().await;
        let names = [staff.name.clone(), "none".parse().unwrap(), RoleName::admin()];
        let found = roles::get_by_names(&mut conn, &names).await.unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], staff);
        assert_eq!(found[0].permissions, Role::admin_permissions());
        let first = roles::list(&mut conn, None, page(1)).await.unwrap();
        assert_eq!(first.items, found[..1]);
        let rest = roles::list(&mut conn, first.next, page(1)).await.unwrap();
        assert_eq!((rest.items, rest.next), (found[1..].to_vec(), None));
    }

    async fn the_built_in_role_stays_as_it_is(db) {
        let admin = roles::get(&mut db.read().await, &RoleName::admin()).await.unwrap().unwrap();
        assert!(admin.built_in);
        assert_eq!(admin.id.to_string(), "00000000-0000-7000-8000-000000000001");
        assert!(!db.write(async |tx| roles::update(tx, &admin).await).await);
        assert!(!db.write(async |tx| roles::delete(tx, admin.id).await).await);
    }

    async fn roles_are_granted_and_revoked(db) {
        let (ana, bob) = (db.user("ana").await, db.user("bob").await);
        let staff = role(db, "staff", &["orders.read"]).await;
        let other = role(db, "auditors", &[]).await;
        assert!(grant(db, ana, staff.id).await);
        assert!(!grant(db, ana, staff.id).await);
        assert!(grant(db, bob, staff.id).await);
        assert!(grant(db, ana, other.id).await);
        let mut conn = db.read().await;
        let held = roles::of_user(&mut conn, ana).await.unwrap();
        assert_eq!(held, [other.clone(), staff.clone()]);
        let user = users::get(&mut conn, ana).await.unwrap().unwrap();
        assert_eq!(user.roles, [other.name.clone(), staff.name.clone()]);
        assert_eq!(roles::holders(&mut conn, staff.id).await.unwrap(), 2);
        drop(conn);
        let (active, disabled) = (UserStatus::Active, UserStatus::Disabled);
        db.write(async |tx| users::set_status(tx, bob, active, disabled, db.now()).await).await;
        assert_eq!(roles::active_holders(&mut db.read().await, staff.id).await.unwrap(), 1);
        let mut raised = db
            .write(async |tx| users::bump_epoch_of_role(tx, staff.id, db.now()).await)
            .await;
        raised.sort();
        let mut expected = [(ana, 1), (bob, 2)];
        expected.sort();
        assert_eq!(raised, expected);
        let delete = async |id| db.write(async |tx| roles::delete(tx, id).await).await;
        assert!(!delete(staff.id).await);
        let revoke = async |user| db.write(async |tx| roles::revoke(tx, user, staff.id).await).await;
        assert!(revoke(ana).await);
        assert!(!revoke(ana).await);
        assert!(revoke(bob).await);
        assert!(delete(staff.id).await);
        assert!(!delete(staff.id).await);
    }

    async fn a_role_of_very_many_is_changed_in_chunks(db) {
        let staff = role(db, "staff", &[]).await;
        db.write(async |tx| {
            for n in 0..1_005 {
                let user = super::new_user(&format!("user{n}"), db.now());
                users::insert(tx, &user).await?;
                roles::grant(tx, user.id, staff.id).await?;
            }
            Ok(())
        })
        .await;
        let bob = db.user("bob").await;
        let raised = db
            .write(async |tx| users::bump_epoch_of_role(tx, staff.id, db.now()).await)
            .await;
        let holders: std::collections::BTreeMap<_, _> = raised.iter().copied().collect();
        assert_eq!((raised.len(), holders.len()), (1_005, 1_005));
        assert!(holders.values().all(|epoch| *epoch == 1));
        assert!(!holders.contains_key(&bob));
    }

    async fn who_locks_first_decides(db) {
        let (ana, bob) = (db.user("ana").await, db.user("bob").await);
        let staff = role(db, "staff", &[]).await;
        grant(db, ana, staff.id).await;
        grant(db, bob, staff.id).await;
        let mut leaving = tokio::task::JoinSet::new();
        for user in [ana, bob] {
            let (store, id) = (db.store.clone(), staff.id);
            leaving.spawn(async move {
                let work = async |tx: &mut crate::store::Conn| -> Result<()> {
                    assert!(roles::lock(tx, id).await?);
                    if roles::active_holders(tx, id).await? < 2 {
                        return Err(Reason::LastAdmin.into());
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    roles::revoke(tx, user, id).await?;
                    Ok(())
                };
                store.write(&super::call(), work).await.is_ok()
            });
        }
        let left = leaving.join_all().await;
        assert_eq!(left.iter().filter(|left| **left).count(), 1);
        assert_eq!(roles::holders(&mut db.read().await, staff.id).await.unwrap(), 1);
        assert!(!db.write(async |tx| roles::lock(tx, RoleId(id())).await).await);
        assert!(db.write(async |tx| users::lock(tx, ana).await).await);
    }

    async fn a_row_that_cannot_be_is_named(db) {
        let ana = db.user("ana").await;
        db.write(async |tx| run(tx, "UPDATE users SET email = 'nonsense'").await).await;
        let error = users::get(&mut db.read().await, ana).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Internal);
        let cause = format!("{error:?}");
        assert!(cause.contains("users") && cause.contains("email"), "{cause}");
        assert!(cause.contains(&ana.to_string()) && !cause.contains("nonsense"), "{cause}");
    }
}
