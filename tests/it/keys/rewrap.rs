//! Changing the master key: added to every node, rewrapped, the old one removed.

use std::collections::BTreeMap;

use countersign::{
    config::Secret,
    crypto::MasterKeys,
    domain::{Call, MasterKeyId},
    service::{
        Core,
        rewrap::{self, Outcome, Standing},
    },
};

use super::*;
use crate::harness::world::MASTER_KEY;

pub(super) const NEW: &str = "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf";

pub(super) fn ring(keys: &[&str]) -> MasterKeys {
    keys.join("\n").parse().unwrap()
}

fn id(key: &str) -> MasterKeyId {
    ring(&[key]).first.id()
}

/// Nodes that have these master keys, in this order.
pub(super) fn with(keys: &[&str]) -> impl FnOnce(&mut countersign::config::Config) + use<> {
    let text = keys.join(",");
    |config| config.master_key = Some(Secret::new(text))
}

/// A busy machine is no fault of a rotation.
pub(super) fn patient(config: &mut countersign::config::Config) {
    config.database.acquire_timeout_ms = 10_000;
    config.database.query_timeout_ms = 12_000;
}

async fn rewrap(core: &Core) -> Outcome {
    rewrap::rewrap(core, &Call::internal("test")).await.unwrap()
}

/// How many keys it had to seal anew.
pub(super) async fn rewrapped(core: &Core, to: &str) -> usize {
    match rewrap(core).await {
        Outcome::Rewrapped { to: done, keys } => {
            assert_eq!(done, id(to));
            keys
        }
        Outcome::Lacking(standing) => panic!("{standing:?}"),
    }
}

async fn standing(core: &Core) -> Standing {
    rewrap::standing(core, &Call::internal("test"))
        .await
        .unwrap()
}

/// The sealed texts.
async fn sealed(world: &World) -> Vec<String> {
    let hex = match world.database.kind {
        Kind::Sqlite => "hex(sealed)",
        Kind::Postgres => "encode(sealed, 'hex')",
    };
    let query = format!(
        "SELECT {hex} FROM signing_keys UNION ALL SELECT {hex} FROM secret_keys ORDER BY 1"
    );
    world.query(&query).await
}

/// Waits until so many nodes have told that they have this master key, and none
/// that they have not.
pub(super) async fn told(world: &World, nodes: usize, key: &str) {
    let has = format!("'%{}%'", id(key));
    let query = format!("SELECT count(*) FROM nodes WHERE master_keys LIKE {has}");
    let told = async || {
        let all = world.query("SELECT count(*) FROM nodes").await;
        all == [nodes.to_string()] && world.query(&query).await == all
    };
    eventually("all nodes have told of themselves", told).await;
}

fn bytes(kind: Kind, hexadecimal: &str) -> String {
    match kind {
        Kind::Sqlite => format!("x'{hexadecimal}'"),
        Kind::Postgres => format!("'\\x{hexadecimal}'"),
    }
}

/// What people do all day.
#[derive(Clone, Default)]
pub(super) struct Load {
    pub(super) over: CancellationToken,
    done: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Load {
    pub(super) async fn go_on(self, minter: Client, validator: Client, person: Person) {
        let mut refresh_token = person.tokens.refresh_token.clone();
        while !self.over.is_cancelled() {
            let fresh = world::login(&minter, &person.email, PASSWORD).await;
            let fresh = self.note("login", fresh);
            let refreshed = self.note("refresh", calls::refresh(&minter, &refresh_token).await);
            if let Some(pair) = &refreshed {
                refresh_token.clone_from(&pair.refresh_token);
            }
            for token in [fresh, refreshed].into_iter().flatten() {
                let token = &token.access_token;
                self.note("validate", calls::caller(&validator, token).await);
                let mut own = validator.with_token(token);
                let request = v1::ListSessionsRequest {
                    page_size: 1,
                    ..Default::default()
                };
                let Some(first) = self.note("list", own.sessions.list_sessions(request).await)
                else {
                    continue;
                };
                // The token of the next page is made by the other node.
                let mut own = minter.with_token(token);
                let request = v1::ListSessionsRequest {
                    page_size: 1,
                    page_token: first.into_inner().next_page_token,
                    ..Default::default()
                };
                self.note("next page", own.sessions.list_sessions(request).await);
            }
        }
    }

    /// How many calls there were of each kind, and what failed.
    pub(super) fn ended(&self) -> (BTreeMap<&'static str, usize>, Vec<String>) {
        let done = self.done.lock().unwrap().clone();
        (done, self.failures.lock().unwrap().clone())
    }

    fn note<T>(&self, what: &'static str, outcome: Result<T, Status>) -> Option<T> {
        *self.done.lock().unwrap().entry(what).or_default() += 1;
        let failed = |status: &Status| {
            let failure = format!("{what}: {status:?}");
            self.failures.lock().unwrap().push(failure);
        };
        outcome.inspect_err(failed).ok()
    }
}

on_both! {
    /// On PostgreSQL with two nodes.
    async fn the_master_key_is_changed_while_calls_go_on(world: World) {
        let people = [world.person().await, world.person().await];
        let world = world.restarted(|config| {
            with(&[NEW, MASTER_KEY])(config);
            patient(config);
        }).await;
        let admin = world.admin().await;
        let other = world.another_node().await;
        let nodes = if other.is_some() { 2 } else { 1 };
        told(&world, nodes, NEW).await;
        let load = Load::default();
        let mut tasks = tokio::task::JoinSet::new();
        for (turn, person) in people.into_iter().enumerate() {
            let there = other.as_ref().unwrap_or(&world.node);
            let (one, two) = if turn == 0 { (&world.node, there) } else { (there, &world.node) };
            let (one, two) = (one.new_connection(), two.new_connection());
            tasks.spawn(load.clone().go_on(one, two, person));
        }
        let to_new = world.command_line().await;
        let to_old = world.command_line_with(&ring(&[MASTER_KEY, NEW])).await;
        for round in 0..10 {
            let keys = sealed(&world).await.len();
            assert_eq!(rewrapped(&to_new, NEW).await, keys);
            assert_eq!(standing(&to_new).await.in_use, BTreeMap::from([(id(NEW), keys)]));
            assert_eq!(rewrapped(&to_new, NEW).await, 0, "it is done");
            // What is made meanwhile is under the same master key.
            let next = stage(&admin.client).await.unwrap();
            let force = v1::ActivateKeyRequest { force: true, ..activation(&next.kid) };
            activate_as(&admin.client, force).await.unwrap();
            assert_eq!(standing(&to_new).await.in_use, BTreeMap::from([(id(NEW), keys + 1)]));
            tokio::time::sleep(Duration::from_millis(200)).await;
            if round < 9 {
                assert_eq!(rewrapped(&to_old, MASTER_KEY).await, keys + 1);
            }
        }
        load.over.cancel();
        tasks.join_all().await;
        let (done, failures) = load.ended();
        assert_eq!(failures, Vec::<String>::new());
        println!("calls: {done:?}");
        assert!(done.len() == 5 && done.values().all(|calls| *calls > 0), "{done:?}");
        assert_eq!(recorded(&world, "key.rewrapped").await, 19);

        // The old one can go.
        drop(other);
        let world = world.restarted(with(&[NEW])).await;
        assert!(validates(&world.anonymous(), &admin.tokens.access_token).await);
        let admin = calls::refresh(&world.anonymous(), &admin.tokens.refresh_token).await.unwrap();
        assert!(validates(&world.anonymous(), &admin.access_token).await);
    }

    async fn nothing_is_rewrapped_while_a_node_lacks_the_new_key(world: World) {
        told(&world, 1, MASTER_KEY).await;
        let before = sealed(&world).await;
        let core = world.command_line_with(&ring(&[NEW, MASTER_KEY])).await;
        let refuses = async |lacking: usize| {
            let Outcome::Lacking(standing) = rewrap(&core).await else { panic!("rewrapped") };
            assert_eq!((standing.to, standing.lacking(id(NEW)).count()), (id(NEW), lacking));
            assert_eq!(standing.master_keys(), [id(NEW), id(MASTER_KEY)]);
            standing
        };
        let standing = refuses(1).await;
        assert_eq!(standing.nodes[0].id, world.node.running.core().node_id);
        assert_eq!(sealed(&world).await, before);

        // A new one in front of the ring seals nothing yet, as others may not have it.
        let world = world.restarted(with(&[NEW, MASTER_KEY])).await;
        told(&world, 1, NEW).await;
        let admin = world.admin().await;
        stage(&admin.client).await.unwrap();
        let before = sealed(&world).await;
        let standing = self::standing(&core).await;
        assert_eq!(standing.in_use, BTreeMap::from([(id(MASTER_KEY), before.len())]));

        // One of two is not enough; this one is of a version that has one key and does not say
        // which.
        let other = match world.database.kind {
            Kind::Sqlite => "x'00000000000000000000000000000001'",
            Kind::Postgres => "'00000000-0000-0000-0000-000000000001'",
        };
        let other = format!("INSERT INTO nodes (id, started_at, seen_at, applied_seq, validators, clock_skew_us) \
             SELECT {other}, started_at, seen_at, applied_seq, 0, 0 FROM nodes");
        world.execute(&other).await;
        let standing = refuses(1).await;
        assert_eq!(standing.nodes.len(), 2);
        assert_eq!(sealed(&world).await, before);
        assert_eq!(recorded(&world, "key.rewrapped").await, 0);

        // One that is silent does not count.
        world.clock.advance(Duration::from_secs(16));
        let fresh = "SELECT count(*) FROM nodes WHERE seen_at > started_at";
        eventually("the node has told again", async || world.query(fresh).await == ["1"]).await;
        assert_eq!(rewrapped(&core, NEW).await, before.len());
    }

    /// It is whole or not at all, and can be repeated.
    async fn a_rewrap_that_is_cut_short_has_changed_nothing(world: World) {
        let world = world.restarted(with(&[NEW, MASTER_KEY])).await;
        told(&world, 1, NEW).await;
        let before = sealed(&world).await;
        let core = world.command_line().await;
        let change = |id: i32| format!("UPDATE secret_keys SET id = {id} WHERE purpose = 'request'");
        let [request] = &world.query("SELECT id FROM secret_keys WHERE purpose = 'request'").await[..] else {
            panic!("one key")
        };
        // Its last step fails: this one does not open in another's place.
        world.execute(&change(77)).await;
        let error = rewrap::rewrap(&core, &Call::internal("test")).await.unwrap_err();
        let chain = countersign::error::chain(&error);
        assert!(chain.contains("the request key 77 does not open"), "{chain}");
        assert_eq!(sealed(&world).await, before);
        assert_eq!(recorded(&world, "key.rewrapped").await, 0);
        world.execute(&change(request.parse().unwrap())).await;
        assert_eq!(rewrapped(&core, NEW).await, before.len());
        let after = sealed(&world).await;
        assert_eq!(rewrapped(&core, NEW).await, 0);
        assert_eq!(sealed(&world).await, after);
    }

    /// Keys as earlier versions have sealed them, under the master key of every test.
    async fn keys_without_a_master_key_id_go_on(world: World) {
        let kind = world.database.kind;
        let bytes = |hexadecimal: &str| bytes(kind, &hexadecimal.replace(char::is_whitespace, ""));
        let (public, sealed) = (bytes(PUBLIC), bytes(SIGNING));
        for statement in [
            format!("UPDATE signing_keys SET kid = '{KID}', public_key = {public}, sealed = {sealed}"),
            format!("UPDATE secret_keys SET id = 1, sealed = {} WHERE purpose = 'refresh'", bytes(REFRESH)),
            format!("UPDATE secret_keys SET id = 2, sealed = {} WHERE purpose = 'request'", bytes(REQUEST)),
        ] {
            world.execute(&statement).await;
        }
        let world = world.restarted(with(&[NEW, MASTER_KEY])).await;
        told(&world, 1, NEW).await;
        let ana = world.person().await;
        assert_eq!(signer(&ana.tokens.access_token), KID);
        let core = world.command_line().await;
        assert_eq!(standing(&core).await.in_use, BTreeMap::from([(id(MASTER_KEY), 5)]));
        // Also where the master key stays, they get the id.
        let same = world.command_line_with(&ring(&[MASTER_KEY, NEW])).await;
        assert_eq!(rewrapped(&same, MASTER_KEY).await, 3);
        assert_eq!(rewrapped(&same, MASTER_KEY).await, 0);
        assert_eq!(rewrapped(&core, NEW).await, 5);
        let world = world.restarted(with(&[NEW])).await;
        assert!(validates(&world.anonymous(), &ana.tokens.access_token).await);
        calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
    }

    async fn the_command_line_changes_the_master_key(program: Program) {
        let new_first = format!("{NEW},{MASTER_KEY}");
        let program = program.set("COUNTERSIGN_MASTER_KEY", MASTER_KEY);
        let create = ["user", "create", "--email", "ana@example.com", "--password-stdin"];
        program.succeed(&create, PASSWORD);
        let mut server = program.serve("old").await;
        let pair = world::login(&server.client(), "ana@example.com", PASSWORD).await.unwrap();

        // Where one node has not got it, nothing happens.
        let program = program.set("COUNTERSIGN_MASTER_KEY", &new_first);
        let check = ["key", "rewrap", "--check"];
        let row = |id: MasterKeyId, here: &str, keys: u32, nodes: &str| format!(
            "{id}  {here:12}  {keys:<13}  {nodes}\n",
        );
        let checked = async |rows: &[String]| {
            let rows = rows.concat();
            eventually(&rows, async || program.succeed(&check, "").ends_with(&rows)).await;
        };
        checked(&[row(id(NEW), "first", 0, "0 of 1"), row(id(MASTER_KEY), "yes", 5, "1 of 1")]).await;
        let refused = program.fail(&["key", "rewrap"], "");
        assert!(refused.contains(&format!("the master key {} yet", id(NEW))), "{refused}");
        server.signal("TERM");
        server.end().await;

        let mut server = program.serve("both").await;
        checked(&[row(id(NEW), "first", 0, "1 of 1"), row(id(MASTER_KEY), "yes", 5, "1 of 1")]).await;
        let done = program.succeed(&["key", "rewrap"], "");
        assert_eq!(done, format!("sealed 5 keys under the master key {}\n", id(NEW)));
        let done = program.succeed(&["key", "rewrap"], "");
        assert_eq!(done, format!("all keys are sealed under the master key {} already\n", id(NEW)));
        checked(&[row(id(NEW), "first", 5, "1 of 1"), row(id(MASTER_KEY), "yes", 0, "1 of 1")]).await;
        let listed = program.succeed(&["key", "list"], "");
        assert!(listed.lines().nth(1).unwrap().ends_with(&id(NEW).to_string()), "{listed}");
        server.signal("TERM");
        server.end().await;

        // The wrong one of the two was taken out.
        let program = program.set("COUNTERSIGN_MASTER_KEY", MASTER_KEY);
        let refused = program.fail(&["serve"], "");
        let last = refused.lines().last().unwrap();
        let says = format!("is sealed under the master key {}, which is not in this ring", id(NEW));
        assert!(last.starts_with("countersign: ") && last.contains(&says), "{last}");
        let shown = program.succeed(&check, "");
        assert!(shown.ends_with(&row(id(NEW), "no", 5, "0 of 0")), "{shown}");
        let program = program.set("COUNTERSIGN_MASTER_KEY", NEW);
        let server = program.serve("new").await;
        assert!(validates(&server.client(), &pair.access_token).await);
        calls::refresh(&server.client(), &pair.refresh_token).await.unwrap();
    }
}

/// Made by another implementation, as version 1 has it.
const KID: &str = "1IG2tMH7J2wbJZnOf8LJzQitKf7LMvoAElsuDMVM54Y";
const PUBLIC: &str = "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8";
const SIGNING: &str = "0101010101010101010101010147ede73468b56d60d77f02681c4556f8cb6f8dd8958610dbfbd20de79104f0\
     3ebcc7705cf2834c24403bedc42eb8906f557f0b0f8c290e3c4e3ec5c8c6724722";
const REFRESH: &str = "010202020202020202020202029b291bb8bddc375cc38ca8f33f74d41c0cf8bd7f80416ee65a47cb186b7657\
     ddc72737339b9c30b4b908875d2b46556a";
const REQUEST: &str = "01030303030303030303030303ce6a1ef52fb77431f6742c55e1877a282a67c4c3eecd0a86ba847c26381f97\
     6d5324129640a921deef9fb8b28fe1b796";
