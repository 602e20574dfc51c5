//! What validators are told of API keys, however many there are.

use std::collections::{BTreeMap, BTreeSet};

use countersign_verifier::ApiKeyHash;

use super::{Database, id, on_both, random, seconds};
use crate::{
    domain::{ApiKey, ApiKeyId, PermissionName, Role, RoleId, UserId, UserStatus},
    store::{
        api_keys::{self, Which},
        roles, users,
    },
};

/// More than one statement asks for.
const MANY: usize = 1_203;

fn permissions(names: &[&str]) -> BTreeSet<PermissionName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

async fn key(db: &Database, owner: UserId, scopes: &[&str], life: Option<i64>) -> ApiKeyId {
    let key = ApiKey {
        id: ApiKeyId(id()),
        owner,
        name: "a program".parse().unwrap(),
        scopes: permissions(scopes),
        audiences: ["orders".to_owned()].into(),
        created_at: db.now(),
        expires_at: life.map(|life| db.now() + seconds(life)),
        rotated_at: None,
        overlap_until: None,
    };
    db.write(async |tx| api_keys::insert(tx, &key, ApiKeyHash(random())).await)
        .await;
    key.id
}

async fn role(db: &Database, name: &str, names: &[&str], holders: &[UserId]) {
    let role = Role {
        id: RoleId(id()),
        name: name.parse().unwrap(),
        description: String::new(),
        permissions: permissions(names),
        built_in: false,
        created_at: db.now(),
        updated_at: db.now(),
    };
    db.write(async |tx| {
        roles::insert(tx, &role).await?;
        for holder in holders {
            roles::grant(tx, *holder, role.id).await?;
        }
        Ok(())
    })
    .await;
}

/// The live ones with their scopes, and the dead.
async fn live(
    db: &Database,
    which: Which<'_>,
) -> (BTreeMap<ApiKeyId, Vec<String>>, BTreeSet<ApiKeyId>) {
    let found = api_keys::live(&mut db.read().await, which, db.now()).await;
    let found = found.unwrap();
    let count = (found.live.len(), found.dead.len());
    let live = found.live.into_iter();
    let sorted = (
        live.map(|key| (ApiKeyId(key.id), key.scopes))
            .collect::<BTreeMap<_, _>>(),
        found.dead.into_iter().collect::<BTreeSet<_>>(),
    );
    assert_eq!((sorted.0.len(), sorted.1.len()), count, "none twice");
    sorted
}

on_both! {
    async fn each_key_has_what_its_owner_still_holds(db) {
        let (ana, ben) = (db.user("ana").await, db.user("ben").await);
        role(db, "reader", &["orders.read", "stock.read"], &[ana, ben]).await;
        role(db, "buyer", &["orders.buy", "orders.read"], &[ana]).await;
        let all = ["orders.buy", "orders.read", "orders.sell"];
        let (anas, bens) = (key(db, ana, &all, None).await, key(db, ben, &all, None).await);
        let bare = key(db, ana, &[], None).await;
        let (found, dead) = live(db, Which::All).await;
        assert_eq!(found[&anas], ["orders.buy", "orders.read"]);
        assert_eq!(found[&bens], ["orders.read"]);
        assert_eq!((found[&bare].len(), found.len(), dead.len()), (0, 3, 0));
        // The built-in role permits what the program knows, not what a row says.
        let cid = db.user("cid").await;
        let mine = key(db, cid, &["countersign.users.read", "orders.read"], None).await;
        assert_eq!(live(db, Which::Ids(&[mine])).await.0[&mine].len(), 0);
        db.write(async |tx| {
            let admin = roles::get(tx, &crate::domain::RoleName::admin()).await?.unwrap();
            roles::grant(tx, cid, admin.id).await
        }).await;
        assert_eq!(live(db, Which::Ids(&[mine])).await.0[&mine], ["countersign.users.read"]);
    }

    async fn what_is_dead_is_told_to_whoever_asks_for_it(db) {
        let (ana, ben) = (db.user("ana").await, db.user("ben").await);
        let kept = key(db, ana, &[], None).await;
        let (revoked, ended) = (key(db, ana, &[], None).await, key(db, ana, &[], Some(10)).await);
        let bens = key(db, ben, &[], None).await;
        db.clock.pass(seconds(9));
        assert_eq!(live(db, Which::All).await.0.len(), 4);
        db.clock.pass(seconds(1));
        assert!(db.write(async |tx| api_keys::revoke(tx, revoked, db.now()).await).await);
        assert!(!db.write(async |tx| api_keys::revoke(tx, revoked, db.now()).await).await);
        let (active, disabled) = (UserStatus::Active, UserStatus::Disabled);
        db.write(async |tx| users::set_status(tx, ben, active, disabled, db.now()).await).await;
        let unknown = ApiKeyId(id());
        let (found, dead) = live(db, Which::All).await;
        assert_eq!((found.keys().collect::<Vec<_>>(), dead.len()), (vec![&kept], 0));
        let (found, dead) = live(db, Which::Ids(&[kept, revoked, bens, unknown])).await;
        assert_eq!((found.keys().collect::<Vec<_>>(), dead), (vec![&kept], [revoked, bens, unknown].into()));
        let (found, dead) = live(db, Which::Owners(&[ana, ben, UserId(id())])).await;
        assert_eq!((found.keys().collect::<Vec<_>>(), dead), (vec![&kept], [revoked, ended, bens].into()));
    }

    async fn very_many_are_found_each_once(db) {
        let mut owners = Vec::new();
        let mut ids = BTreeSet::new();
        let now = db.now();
        for n in 0..MANY {
            owners.push(super::new_user(&format!("user{n}"), now));
        }
        role(db, "reader", &["orders.read"], &[]).await;
        db.write(async |tx| {
            let reader = roles::get(tx, &"reader".parse().unwrap()).await?.unwrap();
            for user in &owners {
                users::insert(tx, user).await?;
                roles::grant(tx, user.id, reader.id).await?;
                let key = ApiKey {
                    id: ApiKeyId(id()),
                    owner: user.id,
                    name: "a program".parse().unwrap(),
                    scopes: permissions(&["orders.read"]),
                    audiences: BTreeSet::new(),
                    created_at: now,
                    expires_at: None,
                    rotated_at: None,
                    overlap_until: None,
                };
                api_keys::insert(tx, &key, ApiKeyHash(random())).await?;
                ids.insert(key.id);
            }
            Ok(())
        })
        .await;
        let all: Vec<_> = ids.iter().copied().collect();
        let owners: Vec<_> = owners.iter().map(|user| user.id).collect();
        for which in [Which::All, Which::Ids(&all), Which::Owners(&owners)] {
            let (found, dead) = live(db, which).await;
            assert!(found.keys().eq(&ids) && dead.is_empty());
            assert!(found.values().all(|scopes| scopes == &["orders.read"]));
        }
    }
}
