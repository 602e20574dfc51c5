//! Password hashes that are sealed: who has the database alone can guess at
//! nothing, the keys are changed without anybody's password, and no login tells.

use std::{collections::BTreeSet, time::Duration};

use countersign::{
    config::Secret,
    domain::{Call, DisplayName, Metadata, Password, UserId, signing_key::Purpose},
    error::Reason,
    service::{
        Core, keyring, login, once::Repeatable, password, password_hash, rewrap, secret_keys, users,
    },
};
use countersign_proto::v1;
use tonic::Code;

use crate::{
    harness::{
        Lock, World,
        binary::{self, Program},
        calls::{self, access_line, named, unique_id},
        eventually, refused,
        world::{MASTER_KEY, PASSWORD, login},
    },
    on_both,
};

const NEW: &str = "another horse entirely, thanks";
const WRONG: &str = "not the password at all";
const OTHER_KEY: &str = "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf";
const OPEN: &str = "$argon2id$";

/// What the row of somebody's password says.
async fn stored(world: &World, email: &str) -> String {
    let query = format!("SELECT password FROM users WHERE email = '{email}'");
    world.query(&query).await.concat()
}

async fn sealing(world: World) -> World {
    world
        .restarted(|config| config.passwords.seal_hashes = true)
        .await
}

/// The id of the newest password key.
async fn key(world: &World) -> String {
    let query = "SELECT max(id) FROM secret_keys WHERE purpose = 'password'";
    world.query(query).await.concat()
}

/// How a hash begins that is sealed under this key.
fn under(key: &str) -> String {
    format!("$sealed$v=1${key}$")
}

/// How many hashes it stores anew. All open.
async fn reseal(core: &Core) -> usize {
    let done = password_hash::reseal(core, &Call::internal("test")).await;
    let done = done.unwrap();
    assert_eq!(done.shut, []);
    done.stored
}

/// Has another key take over, as far as the clock goes.
async fn rotate(world: &World, core: &Core) {
    let rotated = secret_keys::rotate(core, &Call::internal("test"), Purpose::Password).await;
    rotated.unwrap();
    world.clock.advance(Duration::from_secs(60));
}

/// What taking a key away is answered.
async fn retire(core: &Core, id: i32) -> Result<(), String> {
    let retired = secret_keys::retire(core, &Call::internal("test"), id).await;
    retired.map(drop).map_err(|error| error.to_string())
}

async fn rehashed(world: &World) -> String {
    let query = "SELECT count(*) FROM audit_events WHERE action = 'password.rehashed'";
    world.query(query).await.concat()
}

/// Hashes that did not open, in all tests of this process so far.
async fn shut(world: &World) -> u64 {
    let (_, shown) = binary::get(world.node.http, "/metrics").await;
    let count = shown
        .lines()
        .find_map(|line| line.strip_prefix("countersign_password_hashes_shut_total "));
    count.map_or(0, |count| count.parse().unwrap())
}

/// Why a core refuses a login, beside all nodes.
async fn refusal(core: &Core, email: &str, password: &str) -> Option<Reason> {
    let wish = login::Login {
        identifier: email.parse().unwrap(),
        password: Password::parse(password).unwrap(),
        device_name: String::new(),
        audiences: Vec::new(),
        device_token: String::new(),
    };
    let done = login::login(core, &Call::internal("test"), wish).await;
    done.err().map(|error| error.reason())
}

on_both! {
    async fn whatever_sets_a_password_seals_its_hash(world: World) {
        let world = sealing(world).await;
        let (admin, ana) = (world.admin().await, world.person().await);
        let head = under(&key(&world).await);
        let request = v1::CreateUserRequest {
            email: "made@example.com".into(),
            password: PASSWORD.into(),
            ..Default::default()
        };
        admin.client.clone().users.create_user(request).await.unwrap();
        for email in [&*admin.email, &*ana.email, "made@example.com"] {
            assert!(stored(&world, email).await.starts_with(&head), "{email}");
            login(&world.anonymous(), email, PASSWORD).await.unwrap();
            refused(login(&world.anonymous(), email, WRONG).await, Code::Unauthenticated, "LOGIN_FAILED");
        }
        let before = stored(&world, &ana.email).await;
        calls::change_password(&ana.client, PASSWORD, NEW).await.unwrap();
        let changed = stored(&world, &ana.email).await;
        calls::set_password(&admin.client, &ana.user_id, PASSWORD).await.unwrap();
        let set = stored(&world, &ana.email).await;
        assert!(changed.starts_with(&head) && set.starts_with(&head));
        assert!(before != changed && changed != set);
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        // Nothing was stored anew that was as it should be.
        assert_eq!(stored(&world, &ana.email).await, set);
        assert_eq!(rehashed(&world).await, "0");
    }

    async fn a_login_brings_the_hash_up_to_date(world: World) {
        let ana = world.person().await;
        assert!(stored(&world, &ana.email).await.starts_with(OPEN));
        let world = sealing(world).await;
        refused(login(&world.anonymous(), &ana.email, WRONG).await, Code::Unauthenticated, "LOGIN_FAILED");
        assert!(stored(&world, &ana.email).await.starts_with(OPEN));
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        let first = key(&world).await;
        assert!(stored(&world, &ana.email).await.starts_with(&under(&first)));

        // A new key, which takes over when all nodes know it.
        let core = world.node.running.core();
        secret_keys::rotate(core, &Call::internal("test"), Purpose::Password).await.unwrap();
        let second = key(&world).await;
        assert_ne!(first, second);
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        assert!(stored(&world, &ana.email).await.starts_with(&under(&first)));
        world.clock.advance(Duration::from_secs(60));
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        assert!(stored(&world, &ana.email).await.starts_with(&under(&second)));

        // What it costs is one hash, whatever is done with it.
        let before = core.lanes.work();
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        let one = core.lanes.work() - before;
        let world = world.restarted(|config| config.passwords.seal_hashes = false).await;
        let core = world.node.running.core();
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        assert_eq!(core.lanes.work(), one);
        assert!(stored(&world, &ana.email).await.starts_with(OPEN), "it is not opened again");
        assert_eq!(rehashed(&world).await, "3");
    }

    async fn sealed_or_not_a_failed_login_costs_the_same(world: World) {
        let open = world.person().await;
        let world = sealing(world).await;
        let sealed = world.person().await;
        let core = world.node.running.core();
        let mut costs = Vec::new();
        for name in [&*open.email, &*sealed.email, "nobody@example.com"] {
            let (id, before) = (unique_id(), core.lanes.work());
            let request = v1::LoginRequest {
                identifier: name.into(),
                password: WRONG.into(),
                ..Default::default()
            };
            let failed = world.anonymous().auth.login(named(&id, request)).await;
            refused(failed, Code::Unauthenticated, "LOGIN_FAILED");
            costs.push((core.lanes.work() - before, access_line(&id)["queries"].as_u64()));
        }
        assert!(costs[0].0 > 0 && costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");
    }

    async fn a_hash_that_does_not_open_is_our_fault_and_no_guess(world: World) {
        let open = world.person().await;
        let world = sealing(world).await;
        let (ana, ben) = (world.person().await, world.person().await);
        // A guess before, so that there is a counter.
        login(&world.anonymous(), &ana.email, WRONG).await.unwrap_err();
        let failures = async || world.query("SELECT failures FROM login_throttle").await;
        assert_eq!(failures().await, ["1"]);

        // Another's hash in one's row.
        let (own, others) = (stored(&world, &ana.email).await, stored(&world, &ben.email).await);
        let put = async |hash: &str| {
            let email = &ana.email;
            world.execute(&format!("UPDATE users SET password = '{hash}' WHERE email = '{email}'")).await;
        };
        for hash in [others, format!("{own}A"), own.replacen("$v=1$", "$v=2$", 1)] {
            put(&hash).await;
            for password in [PASSWORD, WRONG] {
                let failed = login(&world.anonymous(), &ana.email, password).await;
                refused(failed, Code::Internal, "INTERNAL");
            }
            let failed = calls::change_password(&ana.client, PASSWORD, NEW).await;
            refused(failed, Code::Internal, "INTERNAL");
        }
        put(&own).await;

        // Its key is gone.
        let world = world.restarted(|config| config.passwords.seal_hashes = false).await;
        world.execute("DELETE FROM secret_keys WHERE purpose = 'password'").await;
        let world = world.restarted(|_| ()).await;
        let before = shut(&world).await;
        let failed = login(&world.anonymous(), &ana.email, PASSWORD).await;
        refused(failed, Code::Internal, "INTERNAL");
        assert_eq!(world.query("SELECT failures FROM login_throttle").await, ["1"]);
        assert!(shut(&world).await > before);
        login(&world.anonymous(), &open.email, PASSWORD).await.unwrap();
    }

    async fn all_hashes_are_sealed_at_once_and_the_keys_can_change(world: World) {
        let mut people = Vec::new();
        for _ in 0..3 {
            people.push(world.person().await.email);
        }
        let world = sealing(world).await;
        people.push(world.person().await.email);
        let core = world.command_line().await;
        keyring::load(&core, &Call::internal("test")).await.unwrap();
        assert_eq!(reseal(&core).await, 3);
        assert_eq!(reseal(&core).await, 0);
        let all = async |world: &World, key: &str| {
            let head = under(key);
            for email in &people {
                assert!(stored(world, email).await.starts_with(&head), "{email}");
            }
        };
        all(&world, "5").await;
        rotate(&world, &core).await;
        assert_eq!(reseal(&core).await, 4);
        all(&world, "6").await;

        // The master key changes, and no row of an account.
        let before = world.query("SELECT password FROM users ORDER BY id").await;
        let ring = format!("{OTHER_KEY},{MASTER_KEY}");
        let world = world.restarted(|config| config.master_key = Some(Secret::new(ring))).await;
        let core = world.command_line().await;
        let told = async || {
            let standing = rewrap::standing(&core, &Call::internal("test")).await.unwrap();
            standing.lacking(standing.to).next().is_none()
        };
        eventually("the node has told of its master keys", told).await;
        let done = rewrap::rewrap(&core, &Call::internal("test")).await.unwrap();
        assert!(matches!(done, rewrap::Outcome::Rewrapped { keys: 7, .. }), "{done:?}");
        let world = world.restarted(|config| config.master_key = Some(Secret::new(OTHER_KEY.to_owned()))).await;
        assert_eq!(world.query("SELECT password FROM users ORDER BY id").await, before);
        for email in &people {
            login(&world.anonymous(), email, PASSWORD).await.unwrap();
        }
    }

    async fn a_hash_that_does_not_open_keeps_no_other_from_being_sealed(world: World) {
        let (ana, ben) = (world.person().await, world.person().await);
        let world = sealing(world).await;
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        let altered = format!("{}A", stored(&world, &ana.email).await);
        let email = &ana.email;
        world.execute(&format!("UPDATE users SET password = '{altered}' WHERE email = '{email}'")).await;
        let core = world.node.running.core();
        let done = password_hash::reseal(core, &Call::internal("test")).await.unwrap();
        assert_eq!((done.stored, done.shut), (1, vec![ana.user_id.parse().unwrap()]));
        assert_eq!(stored(&world, &ana.email).await, altered);
        assert!(stored(&world, &ben.email).await.starts_with(&under("5")));
    }

    async fn a_key_goes_when_no_hash_is_under_it(world: World) {
        let world = sealing(world).await;
        let ana = world.person().await;
        let core = world.node.running.core();
        let stays = "a key that 1 password hashes are sealed under";
        assert!(retire(core, 5).await.unwrap_err().contains(stays));
        rotate(&world, core).await;
        assert!(retire(core, 5).await.unwrap_err().contains(stays));
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        assert!(stored(&world, &ana.email).await.starts_with(&under("6")));
        retire(core, 5).await.unwrap();
        assert_eq!(key(&world).await, "6", "what has a successor is given no other");
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();

        // The last one, once nothing is sealed any more. Its id is not given again.
        let world = world.restarted(|config| config.passwords.seal_hashes = false).await;
        let core = world.node.running.core();
        assert!(retire(core, 6).await.unwrap_err().contains(stays));
        assert_eq!(reseal(core).await, 1);
        assert!(stored(&world, &ana.email).await.starts_with(OPEN));
        retire(core, 6).await.unwrap();
        assert_eq!(key(&world).await, "7");
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
    }

    async fn nothing_is_stored_under_a_key_that_is_gone(world: World) {
        let ana = world.person().await;
        let world = sealing(world).await;
        // Has not heard of it.
        let late = world.command_line().await;
        keyring::load(&late, &Call::internal("test")).await.unwrap();
        retire(world.node.running.core(), 5).await.unwrap();
        let before = stored(&world, &ana.email).await;
        let (id, new): (UserId, _) = (ana.user_id.parse().unwrap(), Password::parse(NEW).unwrap());
        let set = async || password::set(&late, &Call::internal("test"), id, &new).await;
        assert_eq!(set().await.unwrap_err().reason(), Reason::NotReady);
        assert_eq!(refusal(&late, &ana.email, PASSWORD).await, Some(Reason::NotReady));
        let wish = users::NewUser {
            email: world.new_email().parse().unwrap(),
            password: Some(Password::parse(PASSWORD).unwrap()),
            username: None,
            display_name: DisplayName::default(),
            roles: BTreeSet::new(),
            metadata: Metadata::default(),
        };
        let made = users::create(&late, &Call::internal("test"), wish, Repeatable::once()).await;
        assert_eq!(made.unwrap_err().reason(), Reason::NotReady);
        assert_eq!(stored(&world, &ana.email).await, before);
        // It looks for a key that it does not know when it meets it.
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        assert!(stored(&world, &ana.email).await.starts_with(&under("6")));
        assert_eq!(refusal(&late, &ana.email, WRONG).await, Some(Reason::LoginFailed));
        set().await.unwrap();
        assert!(stored(&world, &ana.email).await.starts_with(&under("6")));
        login(&world.anonymous(), &ana.email, NEW).await.unwrap();
    }

    async fn sealing_a_hash_meanwhile_does_not_keep_its_owner_from_changing_it(world: World) {
        let ana = world.person().await;
        let open = stored(&world, &ana.email).await;
        let world = sealing(world).await;
        let lanes = &world.node.running.core().lanes;
        let pair = login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        let one = lanes.work();
        assert_ne!(stored(&world, &ana.email).await, open);

        let lock = Lock::take(&world.database).await;
        let before = lanes.work();
        let client = world.anonymous().with_token(&pair.access_token);
        let change = tokio::spawn(async move { calls::change_password(&client, PASSWORD, NEW).await });
        eventually("the password is checked", async || lanes.work() == before + 2 * one).await;
        let email = &ana.email;
        lock.commit(&format!("UPDATE users SET password = '{open}' WHERE email = '{email}'")).await;
        change.await.unwrap().unwrap();
        login(&world.anonymous(), &ana.email, NEW).await.unwrap();
    }

    async fn a_person_who_is_erased_leaves_no_hash(world: World) {
        let world = sealing(world).await;
        let (admin, ana) = (world.admin().await, world.person().await);
        calls::delete(&admin.client, &ana.user_id).await.unwrap();
        let left = "SELECT count(*) FROM users WHERE password LIKE '$sealed$%'";
        assert_eq!(world.query(left).await, ["1"], "the administrator's");
        assert_eq!(reseal(world.node.running.core()).await, 0);
    }

    /// On PostgreSQL with two nodes.
    async fn nodes_that_seal_and_nodes_that_do_not_get_along(world: World) {
        let ana = world.person().await;
        let old = world.another_node().await;
        let world = sealing(world).await;
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        let sealed = stored(&world, &ana.email).await;
        assert!(sealed.starts_with(&under(&key(&world).await)));
        let old = old.as_ref().unwrap_or(&world.node).client();
        login(&old, &ana.email, PASSWORD).await.unwrap();
        refused(login(&old, &ana.email, WRONG).await, Code::Unauthenticated, "LOGIN_FAILED");
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
    }

    async fn the_command_line_seals_too(program: Program) {
        let program = program.set("COUNTERSIGN_MASTER_KEY", MASTER_KEY);
        let create = |email| ["user", "create", "--email", email, "--password-stdin"];
        program.succeed(&create("old@example.com"), PASSWORD);
        let program = program.set("COUNTERSIGN_PASSWORDS__SEAL_HASHES", "true");
        program.succeed(&create("new@example.com"), PASSWORD);
        assert_eq!(program.succeed(&["user", "reseal"], ""), "stored 1 password hashes anew\n");
        program.succeed(&["user", "set-password", "old@example.com", "--password-stdin"], NEW);
        let server = program.serve("sealed").await;
        login(&server.client(), "new@example.com", PASSWORD).await.unwrap();
        login(&server.client(), "old@example.com", NEW).await.unwrap();
        let rotated = program.succeed(&["key", "secret", "rotate", "password"], "");
        assert!(rotated.starts_with("the password key 6 takes over"), "{rotated}");
        assert_eq!(program.succeed(&["user", "reseal"], ""), "stored 0 password hashes anew\n");
    }
}
