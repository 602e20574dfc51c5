//! What somebody who can write rows, and has no master key, can do to keys.

use countersign::{
    cli::key,
    domain::{Call, signing_key::Purpose},
    service::{
        Core,
        keys::{self, Activation},
        once::{Made, Repeatable},
        secret_keys,
    },
};

use super::{
    rewrap::{NEW, rewrapped, ring, told, with},
    *,
};
use crate::harness::world::MASTER_KEY;

/// The keys that would be published by these rows; none if nothing would. The
/// core of a node has seen what was there before, a fresh one has not.
async fn trusts(core: &Core) -> Option<BTreeSet<String>> {
    let loaded = core.keyring.reload(core, &Call::internal("test")).await;
    let keys = loaded.ok()?;
    Some(keys.stored.iter().map(|key| key.kid.clone()).collect())
}

/// A retired, the active and the next key.
async fn three(admin: &Client) -> [String; 3] {
    let [first] = &list(admin).await[..] else {
        panic!("one key")
    };
    let second = stage(admin).await.unwrap().kid;
    force(admin, &second).await.unwrap();
    let third = stage(admin).await.unwrap().kid;
    [first.kid.clone(), second, third]
}

async fn keep(world: &World, name: &str) {
    let copy = format!("CREATE TABLE {name} AS SELECT * FROM signing_keys");
    world.execute(&copy).await;
}

/// Writes the kept rows over those of these keys.
async fn put_back(world: &World, name: &str, kids: &str) {
    // The active one last, as there is one only.
    let back = format!(
        "DELETE FROM signing_keys WHERE kid IN ({kids}); \
         INSERT INTO signing_keys SELECT * FROM {name} WHERE kid IN ({kids})"
    );
    world.execute(&back).await;
}

fn said_of(kid: &str) -> bool {
    let lines = crate::harness::logs::lines().into_iter();
    let mut lines = lines.filter(|line| line.contains("a signing key is not trusted"));
    lines.any(|line| line.contains(kid))
}

on_both! {
    /// Each change of a row, one at a time.
    async fn a_row_that_was_altered_is_not_trusted(world: World) {
        let admin = world.admin().await;
        let [retired, active, next] = three(&admin.client).await;
        let all = BTreeSet::from([retired.clone(), active.clone(), next.clone()]);
        let running = world.node.running.core();
        assert_eq!(trusts(running).await, Some(all.clone()));
        keep(&world, "kept").await;
        let sealed = |of: &str| format!("sealed = (SELECT sealed FROM kept WHERE kid = '{of}')");
        let later = match world.database.kind {
            Kind::Sqlite => "+ 3600000000",
            Kind::Postgres => "+ interval '1 hour'",
        };
        let foreign = "public_key = (SELECT public_key FROM kept WHERE state = 'active')";
        let alone = format!("DELETE FROM signing_keys WHERE kid = '{active}'");
        for (kid, before, change) in [
            // The text of one key for another.
            (&retired, "", sealed(&active)),
            (&retired, "", sealed(&next)),
            (&next, "", sealed(&retired)),
            (&next, "", sealed(&active)),
            (&active, "", sealed(&next)),
            (&active, "", sealed(&retired)),
            // What a row says.
            (&retired, "", "algorithm = 'ES256'".to_owned()),
            (&next, "", "algorithm = 'ES256'".to_owned()),
            (&next, "", foreign.to_owned()),
            (&retired, "", foreign.to_owned()),
            (&retired, "", format!("verify_until = verify_until {later}")),
            (&retired, "", format!("created_at = created_at {later}")),
            (&next, "", format!("changed_at = changed_at {later}")),
            (&active, "", format!("changed_at = changed_at {later}")),
            (&next, "", "kid = 'another'".to_owned()),
            // The state, where the rows allow it.
            (&retired, &*alone, "state = 'active', verify_until = NULL".to_owned()),
            (&next, &*alone, "state = 'active'".to_owned()),
            (&active, "", format!("state = 'retired', verify_until = changed_at {later}")),
        ] {
            if !before.is_empty() {
                world.execute(before).await;
            }
            world.execute(&format!("UPDATE signing_keys SET {change} WHERE kid = '{kid}'")).await;
            let fresh = world.command_line().await;
            // To the node a row that is not there is gone for good.
            let removes = !before.is_empty() || change.starts_with("kid");
            for core in [&fresh, if removes { &fresh } else { running }] {
                let trusted = trusts(core).await;
                if *kid == active || !before.is_empty() {
                    assert_eq!(trusted, None, "{change}");
                } else {
                    let mut others = all.clone();
                    others.remove(kid);
                    assert_eq!(trusted, Some(others), "{change}");
                }
            }
            let name = if change.starts_with("kid") { "another" } else { kid };
            assert!(said_of(name), "{change}");
            // The node goes on with what it knows.
            assert!(validates(&world.anonymous(), &admin.tokens.access_token).await);
            world.execute("DELETE FROM signing_keys; INSERT INTO signing_keys SELECT * FROM kept").await;
            assert_eq!(trusts(running).await, Some(all.clone()), "{change}");
        }
    }

    /// A key of one's own, to sign tokens with.
    async fn a_foreign_public_key_is_neither_published_nor_put_to_work(world: World) {
        let admin = world.admin().await;
        let ana = world.person().await;
        let [retired, active, next] = three(&admin.client).await;
        retire(&admin.client, &next).await.unwrap();
        let columns = "state, algorithm, public_key, sealed, created_at, changed_at, verify_until";
        let foreign = match world.database.kind {
            Kind::Sqlite => "x'3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29'",
            Kind::Postgres => "'\\x3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29'",
        };
        let insert = async |like: &str| {
            let values = columns.replace("public_key", foreign);
            let insert = format!(
                "INSERT INTO signing_keys (kid, {columns}) SELECT 'foreign', {values} FROM {like}"
            );
            world.execute(&insert).await;
        };
        insert("signing_keys WHERE state = 'retired'").await;
        // Any change has the node read the keys.
        let next = stage(&admin.client).await.unwrap().kid;
        assert!(said_of("foreign"));
        let expected = BTreeSet::from([retired, active, next.clone()]);
        assert_eq!(published(&admin.client).await, expected);
        retire(&admin.client, "foreign").await.unwrap();

        // As a next one it stands in the way until it is taken away, and signs nothing.
        let copy = format!("CREATE TABLE kept AS SELECT * FROM signing_keys WHERE kid = '{next}'");
        world.execute(&copy).await;
        retire(&admin.client, &next).await.unwrap();
        insert("kept").await;
        let refusal = force(&admin.client, "foreign").await;
        refused(refusal, Code::Internal, "INTERNAL");
        refused(stage(&admin.client).await, Code::FailedPrecondition, "KEY_ALREADY_STAGED");
        retire(&admin.client, "foreign").await.unwrap();
        let fresh = stage(&admin.client).await.unwrap();
        force(&admin.client, &fresh.kid).await.unwrap();

        // As the active one it must not become a retired one that is authentic.
        let active = fresh.kid;
        world.execute(&format!("UPDATE signing_keys SET public_key = {foreign} WHERE kid = '{active}'")).await;
        let (core, call) = (world.command_line().await, Call::internal("test"));
        let made = keys::stage(&core, &call, None, Repeatable::once()).await.unwrap();
        let Made::Now(next) = made else { panic!("made before") };
        let wish = Activation {
            kid: next.kid.clone(),
            force: true,
            retire_previous: false,
        };
        let refusal = keys::activate(&core, &call, &wish).await.unwrap_err();
        let chain = countersign::error::chain(&refusal);
        assert!(chain.contains(&format!("the signing key {active} does not open")), "{chain}");
        // The way out, by a process that has loaded no keys and could not.
        let by_hand = key::Activate { kid: next.kid.clone(), force: true, retire_previous: true };
        key::run(key::Command::Activate(by_hand), &world.command_line().await).await.unwrap();
        let signs = async || signer(&login(&admin.client, &ana).await.access_token) == next.kid;
        eventually("the next key signs", signs).await;
        assert!(!published(&admin.client).await.contains(&active));
    }

    async fn a_symmetric_key_that_was_altered_is_not_used(world: World) {
        let core = world.node.running.core();
        let made = secret_keys::rotate(core, &Call::internal("test"), Purpose::Refresh).await;
        let id = made.unwrap().id;
        world.execute("CREATE TABLE kept AS SELECT * FROM secret_keys").await;
        let later = match world.database.kind {
            Kind::Sqlite => "+ 1",
            Kind::Postgres => "+ interval '1 microsecond'",
        };
        for change in [
            "sealed = (SELECT sealed FROM kept WHERE id = 1)".to_owned(),
            "purpose = 'request'".to_owned(),
            "id = 77".to_owned(),
            format!("created_at = created_at {later}"),
        ] {
            world.execute(&format!("UPDATE secret_keys SET {change} WHERE id = {id}")).await;
            assert_eq!(trusts(&world.command_line().await).await, None, "{change}");
            world.execute("DELETE FROM secret_keys; INSERT INTO secret_keys SELECT * FROM kept").await;
        }
        assert!(trusts(&world.command_line().await).await.is_some());
    }

    async fn a_retired_key_has_no_private_half(world: World) {
        let admin = world.admin().await;
        let [retired, active, _] = three(&admin.client).await;
        let length = async |kid: &str| {
            let query = format!("SELECT length(sealed) FROM signing_keys WHERE kid = '{kid}'");
            world.query(&query).await.concat().parse::<usize>().unwrap()
        };
        // Version, master key, nonce, tag.
        assert_eq!(length(&retired).await, 1 + 8 + 12 + 16);
        assert!(length(&active).await > 1 + 8 + 12 + 16 + 32);
    }

    /// Old rows, kept from before, are as authentic as they were. A process that has seen the
    /// newer ones does not fall for them; one that starts does, until the master key is another.
    async fn a_key_that_is_put_back_does_not_come_back(world: World) {
        let admin = world.admin().await;
        let running = world.node.running.core();
        let [first] = &list(&admin.client).await[..] else { panic!("one key") };
        let second = stage(&admin.client).await.unwrap().kid;
        keep(&world, "old").await;
        let wish = v1::ActivateKeyRequest {
            force: true,
            retire_previous: true,
            ..activation(&second)
        };
        activate_as(&admin.client, wish).await.unwrap();
        let only = Some(BTreeSet::from([second.clone()]));
        assert_eq!(trusts(running).await, only);
        keep(&world, "new").await;

        // The one that was gone comes back: alone, and with all as it was.
        let kids = [format!("'{}'", first.kid), format!("'{}', '{second}'", first.kid)];
        world.execute("DROP INDEX signing_keys_one_active").await;
        put_back(&world, "old", &kids[0]).await;
        assert_eq!(trusts(running).await, only);
        assert!(said_of(&first.kid));
        put_back(&world, "old", &kids[1]).await;
        assert_eq!(trusts(running).await, None);
        assert!(validates(&world.anonymous(), &world.person().await.tokens.access_token).await);
        assert!(!validates(&world.anonymous(), &admin.tokens.access_token).await);
        let fresh = world.command_line().await;
        let both = BTreeSet::from([first.kid.clone(), second.clone()]);
        assert_eq!(trusts(&fresh).await, Some(both), "what is left open");

        world.execute("DELETE FROM signing_keys; INSERT INTO signing_keys SELECT * FROM new").await;
        let world = world.restarted(with(&[NEW, MASTER_KEY])).await;
        told(&world, 1, NEW).await;
        assert_eq!(rewrapped(&world.command_line().await, NEW).await, 5);
        put_back(&world, "old", &kids[1]).await;
        let fresh = world.command_line_with(&ring(&[NEW])).await;
        assert_eq!(trusts(&fresh).await, None);
    }

    /// After its time a retired key is trusted no more, whatever the database keeps or puts back.
    async fn a_retired_key_ends_by_the_clock(world: World) {
        let admin = world.admin().await;
        let [retired, active, next] = three(&admin.client).await;
        keep(&world, "kept").await;
        let fresh = world.command_line().await;
        assert_eq!(trusts(&fresh).await.unwrap().len(), 3);
        world.clock.advance(VERIFIES);
        put_back(&world, "kept", &format!("'{retired}'")).await;
        for core in [&fresh, &**world.node.running.core()] {
            assert_eq!(trusts(core).await, Some(BTreeSet::from([active.clone(), next.clone()])));
        }
    }
}
