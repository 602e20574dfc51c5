//! The audit log is sealed and chained: whatever is done to its rows is found
//! and named, and what is done by right breaks nothing.

use std::time::Duration;

use countersign::{
    domain::{
        AuditEvent, Call, Entropy,
        audit::{Action, Checkpoint, Outcome},
        signing_key::Purpose,
    },
    service::{
        Core,
        audit::{chain::chain, report::Report, verify::verify},
    },
    store::audit,
};
use futures_util::future::join_all;
use serde_json::Value;
use tonic::Code;

use crate::{
    harness::{
        Kind, Person, World,
        binary::Program,
        calls,
        clock::Seeded,
        eventually,
        world::{PASSWORD, login},
    },
    on_both,
};

const WRONG: &str = "not the password at all";

fn call() -> Call {
    Call::internal("test")
}

pub async fn check(core: &Core, anchor: Option<&Checkpoint>) -> Report {
    let keys = core.keyring.keys().unwrap();
    let report = verify(core, &call(), &keys.audit, anchor, 0, |_| ()).await;
    report.unwrap()
}

/// Nothing is wrong and nothing waits; the anchor of it.
async fn whole(world: &World) -> Checkpoint {
    let core = world.node.running.core();
    let keys = core.keyring.keys().unwrap();
    eventually("all events are chained", async || {
        chain(core, &call(), &keys.audit, None).await.unwrap();
        count(world, "audit_events WHERE position IS NULL").await == 0
    })
    .await;
    let report = check(core, None).await;
    assert_eq!(
        (report.fault, report.unchained, report.unsealed),
        (None, 0, 0)
    );
    assert_eq!(report.records, count(world, "audit_events").await);
    assert_eq!(report.batches, count(world, "audit_checkpoints").await);
    report.newest.unwrap()
}

pub async fn count(world: &World, table: &str) -> i64 {
    let rows = world.query(&format!("SELECT count(*) FROM {table}")).await;
    rows[0].parse().unwrap()
}

/// What is wrong, where: the position of a record, the number of a checkpoint.
async fn found(world: &World, anchor: Option<&Checkpoint>) -> Option<(&'static str, Option<i64>)> {
    let report = check(world.node.running.core(), anchor).await;
    let fault = report.fault?;
    Some((fault.what.name(), fault.position.or(fault.batch)))
}

/// Somebody, and a log of some batches.
async fn log(world: &World) -> Person {
    // The node's own events, which have no origin, come first.
    world.clock.advance(Duration::from_secs(1));
    let ana = world.person().await;
    for _ in 0..5 {
        for _ in 0..4 {
            login(&world.anonymous(), &ana.email, WRONG)
                .await
                .unwrap_err();
            login(&world.anonymous(), "nobody@example.com", WRONG)
                .await
                .unwrap_err();
        }
        login(&world.anonymous(), &ana.email, PASSWORD)
            .await
            .unwrap();
        whole(world).await;
    }
    ana
}

const TABLES: [&str; 4] = [
    "audit_events",
    "audit_origins",
    "audit_checkpoints",
    "audit_retention",
];

pub async fn keep(world: &World) {
    for table in TABLES {
        world
            .execute(&format!(
                "CREATE TABLE kept_{table} AS SELECT * FROM {table}"
            ))
            .await;
    }
}

pub async fn put_back(world: &World) {
    let back = TABLES.map(|table| {
        format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table};")
    });
    let all = back.concat();
    world
        .execute(&format!("BEGIN; DELETE FROM audit_origins; {all} COMMIT;"))
        .await;
}

/// Something done to the rows, and what must be found.
struct Mutation {
    sql: String,
    what: &'static str,
    /// Position, or number of the checkpoint.
    place: i64,
}

/// How many things can be done to a row.
const KINDS: i64 = 34;

/// Any number below this one.
fn below(random: &dyn Entropy, n: i64) -> i64 {
    i64::try_from(u64::from_be_bytes(random.array()) >> 1).unwrap() % n
}

/// One of them, to any row.
#[expect(clippy::too_many_lines, reason = "a line or two for each")]
fn mutation(kind: Kind, which: i64, random: &dyn Entropy, records: i64, batches: i64) -> Mutation {
    let bytes = |hex: &str| match kind {
        Kind::Sqlite => format!("x'{hex}'"),
        Kind::Postgres => format!("'\\x{hex}'::bytea"),
    };
    let uuid = match kind {
        Kind::Sqlite => "x'00000000000070008000000000000099'",
        Kind::Postgres => "'00000000-0000-7000-8000-000000000099'::uuid",
    };
    let later = |column: &str| match kind {
        Kind::Sqlite => format!("{column} + 1"),
        Kind::Postgres => format!("{column} + interval '1 microsecond'"),
    };
    let digest = bytes(&"ab".repeat(32));
    // Not at the ends, where some of it is something else.
    let place = 3 + below(random, records - 4);
    let event = format!("WHERE position = {place}");
    let origin = format!("WHERE event_id = (SELECT id FROM audit_events {event})");
    let set =
        |column: &str, value: &str| format!("UPDATE audit_events SET {column} = {value} {event}");
    let batch = 2 + below(random, batches - 2);
    let checkpoint = format!("WHERE batch = {batch}");
    let sign = |column: &str, value: &str| {
        format!("UPDATE audit_checkpoints SET {column} = {value} {checkpoint}")
    };
    // Whoever owns the database is kept from nothing by its constraints.
    let free = match kind {
        Kind::Sqlite => "PRAGMA foreign_keys = OFF;",
        Kind::Postgres => "SET session_replication_role = replica;",
    };
    let altered = |sql: String| (sql, "record_altered", place);
    let origin_altered = |sql: String| (sql, "origin_altered", place);
    let bad_checkpoint = |sql: String| (sql, "checkpoint_altered", batch);
    let (sql, what, place) = match which {
        0 => altered(set("action", "'session.logout'")),
        1 => altered(set(
            "outcome",
            "CASE outcome WHEN 'success' THEN 'failure' ELSE 'success' END",
        )),
        2 => altered(set("actor", uuid)),
        3 => altered(set("subject", uuid)),
        4 => altered(set("session_id", uuid)),
        5 => altered(set("role_id", uuid)),
        6 => altered(set("api_key_id", uuid)),
        7 => altered(set("kid", "'k'")),
        8 => altered(set("workload", "'w'")),
        9 => altered(set("correlation_id", "'c'")),
        10 => altered(set("at", &later("at"))),
        11 => altered(set("origin_digest", &digest)),
        12 => altered(set("origin_digest", "NULL")),
        13 => altered(set("key_id", "key_id + 1")),
        14 => altered(set("mac", &digest)),
        15 => altered(set("mac", "NULL")),
        16 => altered(format!(
            "{free} UPDATE audit_origins SET event_id = {uuid} {origin}; {}",
            set("id", uuid)
        )),
        17 => (set("link", &digest), "record_moved", place),
        18 => (set("link", "NULL"), "record_moved", place),
        19 => (set("position", "NULL"), "record_missing", place),
        20 => (set("position", "-5"), "record_missing", place),
        21 => (
            format!("DELETE FROM audit_origins {origin}; DELETE FROM audit_events {event}"),
            "record_missing",
            place,
        ),
        // The gap closed, the numbers made good.
        22 => (
            format!(
                "DELETE FROM audit_origins {origin}; DELETE FROM audit_events {event}; \
                 UPDATE audit_events SET position = -position WHERE position > {place}; \
                 UPDATE audit_events SET position = -position - 1 WHERE position < -{place}"
            ),
            "record_moved",
            place,
        ),
        // Two change places, links and all.
        23 => (
            format!(
                "UPDATE audit_events SET position = -1 {event}; \
                 UPDATE audit_events SET position = {place} WHERE position = {place} - 1; \
                 UPDATE audit_events SET position = {place} - 1 WHERE position = -1"
            ),
            "record_moved",
            place - 1,
        ),
        24 => origin_altered(format!(
            "UPDATE audit_origins SET address = '192.0.2.99' {origin}"
        )),
        25 => origin_altered(format!(
            "UPDATE audit_origins SET user_agent = 'other' {origin}"
        )),
        26 => origin_altered(format!("UPDATE audit_origins SET salt = {digest} {origin}")),
        27 => origin_altered(format!(
            "UPDATE audit_origins SET user_id = {uuid} {origin}"
        )),
        28 => (
            format!("DELETE FROM audit_origins {origin}"),
            "origin_missing",
            place,
        ),
        29 => bad_checkpoint(sign("position", "position + 100000")),
        30 => bad_checkpoint(sign("root", &digest)),
        31 => bad_checkpoint(sign(
            ["created_at", "key_id", "signature"][usize::try_from(place % 3).unwrap()],
            &[
                later("created_at"),
                "key_id + 1".to_owned(),
                bytes(&"cd".repeat(64)),
            ][usize::try_from(place % 3).unwrap()],
        )),
        32 => (sign("batch", "batch + 1000"), "checkpoint_missing", batch),
        _ => (
            format!("DELETE FROM audit_checkpoints {checkpoint}"),
            "checkpoint_missing",
            batch,
        ),
    };
    Mutation { sql, what, place }
}

/// The last batch, as if it had never been.
async fn cut_off(world: &World) {
    world
        .execute(
            "DELETE FROM audit_origins WHERE event_id IN (SELECT id FROM audit_events WHERE position > \
             (SELECT max(position) FROM audit_checkpoints WHERE batch < (SELECT max(batch) FROM audit_checkpoints))); \
             DELETE FROM audit_events WHERE position > \
             (SELECT max(position) FROM audit_checkpoints WHERE batch < (SELECT max(batch) FROM audit_checkpoints)); \
             DELETE FROM audit_checkpoints WHERE batch = (SELECT max(batch) FROM audit_checkpoints)",
        )
        .await;
}

on_both! {
    async fn a_hundred_random_mutations_are_found_and_named(world: World) {
        log(&world).await;
        let anchor = whole(&world).await;
        keep(&world).await;
        let random = Seeded::new(7);
        for n in 0..100 {
            // Each of them, and then whichever.
            let which = if n < KINDS { n } else { below(&random, KINDS) };
            let Mutation { sql, what, place } =
                mutation(world.database.kind, which, &random, anchor.position, anchor.batch);
            world.execute(&sql).await;
            assert_eq!(found(&world, Some(&anchor)).await, Some((what, Some(place))), "{n}: {sql}");
            put_back(&world).await;
        }
        assert_eq!(found(&world, Some(&anchor)).await, None);
    }

    async fn a_record_that_was_slipped_in_is_found(world: World) {
        log(&world).await;
        keep(&world).await;
        let columns = "at, action, outcome, actor, subject, session_id, role_id, kid, correlation_id, \
                       api_key_id, workload, key_id, mac";
        let uuid = match world.database.kind {
            Kind::Sqlite => "x'00000000000070008000000000000099'",
            Kind::Postgres => "'00000000-0000-7000-8000-000000000099'",
        };
        // One that waits for its place, and one beside another.
        for (position, what, place) in [("NULL", "record_altered", None), ("5", "record_altered", Some(5))] {
            world.execute(&format!(
                "DROP INDEX audit_events_by_position; \
                 INSERT INTO audit_events (id, position, link, {columns}) \
                 SELECT {uuid}, {position}, link, {columns} FROM audit_events WHERE position = 5; "
            )).await;
            assert_eq!(found(&world, None).await, Some((what, place)), "{position}");
            put_back(&world).await;
            world.execute("CREATE UNIQUE INDEX audit_events_by_position ON audit_events (position) WHERE position IS NOT NULL").await;
        }
        assert_eq!(found(&world, None).await, None);
    }

    async fn an_anchor_shows_that_the_end_was_cut_off_or_replaced(world: World) {
        let ana = log(&world).await;
        let older = whole(&world).await;
        keep(&world).await;
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        let anchor = whole(&world).await;
        assert_eq!(anchor.batch, older.batch + 1);

        // With its checkpoint, nothing in the database shows it: that is what anchors are for.
        cut_off(&world).await;
        assert_eq!(found(&world, None).await, None);
        assert_eq!(found(&world, Some(&older)).await, None);
        assert_eq!(found(&world, Some(&anchor)).await, Some(("anchor_missing", Some(anchor.batch))));
        // Nor does it when the log has gone on from there.
        login(&world.anonymous(), &ana.email, WRONG).await.unwrap_err();
        whole(&world).await;
        assert_eq!(found(&world, Some(&older)).await, None);
        assert_eq!(found(&world, Some(&anchor)).await, Some(("anchor_differs", Some(anchor.batch))));
        // An older copy of the tables is the same.
        put_back(&world).await;
        assert_eq!(found(&world, None).await, None);
        assert_eq!(found(&world, Some(&anchor)).await, Some(("anchor_missing", Some(anchor.batch))));
        // An empty log too.
        world.execute("DELETE FROM audit_origins; DELETE FROM audit_events; DELETE FROM audit_checkpoints").await;
        assert_eq!(found(&world, Some(&anchor)).await, Some(("anchor_missing", Some(anchor.batch))));

        // And nobody makes an anchor that fits.
        let forged = Checkpoint { position: anchor.position - 1, ..anchor.clone() };
        assert_eq!(found(&world, Some(&forged)).await, Some(("anchor_forged", Some(anchor.batch))));
        let unknown = Checkpoint { key_id: 99, ..anchor };
        assert!(found(&world, Some(&unknown)).await.is_some_and(|(what, _)| what == "anchor_forged"));
    }

    async fn without_its_last_checkpoint_the_chain_is_not_whole(world: World) {
        log(&world).await;
        let last = whole(&world).await;
        world.execute("DELETE FROM audit_checkpoints WHERE batch = (SELECT max(batch) FROM audit_checkpoints)").await;
        assert_eq!(found(&world, None).await, Some(("checkpoint_missing", Some(last.batch))));
    }

    async fn a_log_that_was_rewritten_is_not_signed(world: World) {
        let ana = log(&world).await;
        let known = whole(&world).await;
        let core = world.node.running.core();
        let keys = core.keyring.keys().unwrap();
        let step = async || chain(core, &call(), &keys.audit, Some(&known)).await;
        assert_eq!(step().await.unwrap().0.unwrap(), known);
        keep(&world).await;
        // The node's own task looks each second.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        // A record taken out, and what is behind it to be chained anew.
        let rewritten = "DELETE FROM audit_origins WHERE event_id = (SELECT id FROM audit_events WHERE position = 9); \
             DELETE FROM audit_events WHERE position = 9; \
             UPDATE audit_events SET position = NULL, link = NULL WHERE position > \
             (SELECT coalesce(max(position), 0) FROM audit_checkpoints WHERE position < 9); \
             DELETE FROM audit_checkpoints WHERE position >= 9";
        let other = match world.database.kind {
            Kind::Sqlite => "UPDATE audit_checkpoints SET signature = zeroblob(64) WHERE batch = (SELECT max(batch) FROM audit_checkpoints)",
            Kind::Postgres => "UPDATE audit_checkpoints SET signature = decode(repeat('00', 64), 'hex') WHERE batch = (SELECT max(batch) FROM audit_checkpoints)",
        };
        for (sql, says) in [(rewritten, "does not go on from its checkpoint"), (other, "is not signed by this service")] {
            world.execute(sql).await;
            login(&world.anonymous(), &ana.email, WRONG).await.unwrap_err();
            let refused = step().await.unwrap_err();
            assert!(countersign::error::chain(&refused).contains(says), "{refused:?}");
            // By itself the node does it neither.
            let unchained = count(&world, "audit_events WHERE position IS NULL").await;
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            assert_eq!(count(&world, "audit_events WHERE position IS NULL").await, unchained);
            if sql == rewritten {
                // A node that has just started knows no better. The others do not follow it.
                let mut newest = 0;
                while newest <= known.batch {
                    login(&world.anonymous(), &ana.email, WRONG).await.unwrap_err();
                    newest = whole(&world).await.batch;
                }
                let refused = step().await.unwrap_err();
                assert!(countersign::error::chain(&refused).contains(says), "{refused:?}");
            }
            put_back(&world).await;
        }
        // As another node goes on with it, so does this one.
        login(&world.anonymous(), &ana.email, WRONG).await.unwrap_err();
        whole(&world).await;
        assert!(step().await.unwrap().0.unwrap().batch > known.batch);
    }

    async fn what_has_no_mac_is_counted_and_breaks_nothing(world: World) {
        log(&world).await;
        let (uuid, now) = match world.database.kind {
            Kind::Sqlite => ("x'019a0000000070008000000000000099'", "0"),
            Kind::Postgres => ("'019a0000-0000-7000-8000-000000000099'::uuid", "now()"),
        };
        world.execute(&format!(
            "INSERT INTO audit_events (id, at, action, outcome, correlation_id) \
             VALUES ({uuid}, {now}, 'role.granted', 'success', 'c')"
        )).await;
        let core = world.node.running.core();
        let keys = core.keyring.keys().unwrap();
        let (newest, made) = chain(core, &call(), &keys.audit, None).await.unwrap();
        assert!(!made, "it is not chained");
        let report = check(core, newest.as_ref()).await;
        assert_eq!((report.fault, report.unsealed), (None, 1));
        assert_eq!(report.last_unsealed.unwrap().as_millisecond(), 0x019a_0000_0000);
        // Nor is a place that nobody gives a way out of the chain.
        world.execute(&format!("UPDATE audit_events SET position = -3 WHERE id = {uuid}")).await;
        assert_eq!(found(&world, None).await, Some(("record_moved", None)));
    }

    async fn a_row_that_cannot_be_read_is_named(world: World) {
        log(&world).await;
        let end = whole(&world).await;
        keep(&world).await;
        let (at, no_uuid) = match world.database.kind {
            Kind::Sqlite => ("9000000000000000000", Some("x'010203'")),
            Kind::Postgres => ("'infinity'", None::<&str>),
        };
        let mut all = vec![
            (format!("UPDATE audit_events SET at = {at} WHERE position = 1"), "record_altered", 1),
            (format!("UPDATE audit_events SET at = {at} WHERE position = 7"), "record_altered", 7),
            (format!("UPDATE audit_events SET at = {at} WHERE position = {}", end.position), "record_altered", end.position),
            (format!("UPDATE audit_checkpoints SET created_at = {at} WHERE batch = 3"), "checkpoint_altered", 3),
        ];
        all.extend(no_uuid.map(|id| (
            format!("UPDATE audit_events SET actor = {id} WHERE position = {}", end.position),
            "record_altered",
            end.position,
        )));
        for (sql, what, place) in all {
            world.execute(&sql).await;
            assert_eq!(found(&world, None).await, Some((what, Some(place))), "{sql}");
            if place == end.position {
                // What is last in its batch does not stand in the way of what is behind it.
                let core = world.node.running.core();
                let keys = core.keyring.keys().unwrap();
                let report = verify(core, &call(), &keys.audit, None, end.batch, |_| ()).await;
                assert_eq!(report.unwrap().fault, None);
            }
            put_back(&world).await;
        }
    }

    async fn after_a_rotation_older_keys_sign_nothing(world: World) {
        let admin = world.admin().await;
        let core = world.node.running.core();
        log(&world).await;
        let older = core.keyring.keys().unwrap().audit.maker_id(countersign_verifier::Clock::now(&*world.clock));
        let new = countersign::service::secret_keys::rotate(core, &call(), Purpose::Audit).await.unwrap();
        world.clock.advance(Duration::from_mins(10));
        for _ in 0..2 {
            login(&world.anonymous(), &admin.email, WRONG).await.unwrap_err();
            whole(&world).await;
        }
        let end = whole(&world).await;
        assert_eq!(end.key_id, new.id);
        // Whoever has the older key signs the last batch by it.
        let keys = core.keyring.keys().unwrap();
        let forged = keys.audit.sign(Checkpoint { key_id: older, ..end.clone() }).unwrap();
        let signature: String = forged.signature.iter().map(|byte| format!("{byte:02x}")).collect();
        let signature = match world.database.kind {
            Kind::Sqlite => format!("x'{signature}'"),
            Kind::Postgres => format!("'\\x{signature}'::bytea"),
        };
        world.execute(&format!(
            "UPDATE audit_checkpoints SET key_id = {older}, signature = {signature} WHERE batch = {}", end.batch
        )).await;
        assert_eq!(found(&world, None).await, Some(("checkpoint_key_older", Some(end.batch))));
    }

    async fn erasing_a_person_breaks_nothing(world: World) {
        let admin = world.admin().await;
        let ana = log(&world).await;
        let before = whole(&world).await;
        let origins = count(&world, "audit_origins").await;
        calls::delete(&admin.client, &ana.user_id).await.unwrap();
        assert!(count(&world, "audit_origins").await < origins - 20);
        let after = whole(&world).await;
        assert_eq!(found(&world, Some(&before)).await, None);
        // Another's address does not go in its shadow.
        world.execute(
            "DELETE FROM audit_origins WHERE event_id = \
             (SELECT event_id FROM audit_origins WHERE user_id IS NOT NULL LIMIT 1)",
        ).await;
        assert!(found(&world, Some(&after)).await.is_some_and(|(what, _)| what == "origin_missing"));
    }

    async fn several_chain_at_once_without_doubles_and_gaps(world: World) {
        let other = world.another_node().await;
        let nodes: Vec<_> = [Some(&world.node), other.as_ref()].into_iter().flatten().collect();
        let email = world.person().await.email;
        let begun = whole(&world).await.position;
        let writing = join_all((0..120).map(async |n| {
            let node = nodes[n % nodes.len()];
            let refused = login(&node.client(), &email, WRONG).await.unwrap_err();
            // A busy database has recorded nothing, and says so.
            i64::from(refused.code() == Code::Unauthenticated)
        }));
        let chaining = join_all((0..8).map(async |n| {
            let core = nodes[n % nodes.len()].running.core();
            let keys = core.keyring.keys().unwrap();
            for _ in 0..20 {
                chain(core, &call(), &keys.audit, None).await.expect("nobody is in the way");
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }));
        let (refused, _) = tokio::join!(writing, chaining);
        let end = whole(&world).await;
        assert!(end.position >= begun + refused.iter().sum::<i64>());
        println!("{} batches of {} records", end.batch, end.position);
        assert_eq!(found(&world, Some(&end)).await, None);
    }

    async fn the_chain_follows_by_itself(world: World) {
        world.person().await;
        eventually("all events are chained", async || {
            count(&world, "audit_events WHERE position IS NULL").await == 0
        }).await;
        let batches = count(&world, "audit_checkpoints").await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(count(&world, "audit_checkpoints").await, batches, "nothing has happened");
    }

    /// A whole life by the command line: anchors in the node's log, the check,
    /// its exit code and its forms.
    async fn the_command_line_tells_whether_the_log_is_whole(program: Program) {
        let verify = |arguments: &[&str]| {
            let all = [&["audit", "verify", "--format", "json"], arguments].concat();
            let output = program.run(&all);
            let report: Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|_| panic!("{output:?}"));
            assert_eq!(output.status.success(), report["fault"].is_null(), "{report}");
            report
        };
        let create = ["user", "create", "--email", "ana@example.com", "--password-stdin"];
        program.succeed(&create, PASSWORD);
        let report = verify(&[]);
        assert_eq!((&report["records"], &report["unchained"]), (&0.into(), &2.into()), "{report}");
        let mut server = program.serve("server").await;
        login(&server.client(), "ana@example.com", PASSWORD).await.unwrap();
        server.signal("TERM");
        assert!(server.end().await.success());
        let report = verify(&[]);
        assert_eq!((&report["records"], &report["unchained"]), (&3.into(), &0.into()), "{report}");
        // What was last is said at the end.
        let said = server.lines().into_iter().rfind(|line| line["message"] == "the audit log is chained");
        let anchor = said.unwrap()["anchor"].as_str().unwrap().to_owned();
        assert_eq!(report["anchor"], anchor.as_str());
        assert_eq!(verify(&["--anchor", &anchor])["whole"], true);
        let text = program.succeed(&["audit", "verify", "--anchor", &anchor], "");
        assert!(text.starts_with("the audit log is whole\n3 records in ") && text.contains(&anchor), "{text}");

        crate::harness::database::execute_on(&program.database, "UPDATE audit_events SET action = 'session.logout' WHERE position = 3").await;
        let report = verify(&["--anchor", &anchor]);
        assert_eq!((&report["fault"]["what"], &report["fault"]["position"]), (&"record_altered".into(), &3.into()));
        let behind = verify(&["--after-batch", &report["fault"]["batch"].to_string()]);
        assert_eq!((&behind["whole"], &behind["fault"]), (&false.into(), &Value::Null));
        let output = program.run(&["audit", "verify"]);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("NOT WHOLE: batch ") && text.contains("position 3, record "), "{text}");
        let wrong = program.run(&["audit", "verify", "--anchor", "csa_x"]);
        assert_eq!(wrong.status.code(), Some(2));

        // Records of a time without a chain are counted, and nothing is said about them.
        // Three came since.
        program.succeed(&["migrate", "down", "--yes", "--steps", "4"], "");
        let output = program.run(&["audit", "verify"]);
        assert!(String::from_utf8(output.stderr).unwrap().contains("countersign migrate up"));
        program.succeed(&["migrate", "up"], "");
        let server = program.serve("again").await;
        login(&server.client(), "ana@example.com", PASSWORD).await.unwrap();
        eventually("the login is chained", async || verify(&[])["records"] == 1).await;
        assert_eq!(verify(&[])["unsealed"], 3);
        assert!(verify(&[])["last_unsealed"].as_str().is_some_and(|at| at.ends_with('Z')));
        assert_eq!(verify(&["--anchor", &anchor])["fault"]["what"], "anchor_forged", "of another key");
    }
}

/// On SQLite nobody else commits while a transaction is open.
mod an_event_committed_late_is_in_a_later_batch {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        let world = World::new(Kind::Postgres).await;
        let core = world.node.running.core();
        let keys = core.keyring.keys().unwrap();
        let now = countersign_verifier::Clock::now(&*world.clock);
        let late = AuditEvent {
            id: countersign::domain::id::uuid_v7(now, &Seeded::new(99)),
            at: now,
            action: Action::Logout,
            outcome: Outcome::Success,
            actor: None,
            workload: None,
            subject: None,
            session_id: None,
            role_id: None,
            api_key_id: None,
            kid: None,
            correlation_id: "late".to_owned(),
            address: None,
            user_agent: String::new(),
            represents: 1,
        };
        let (inserted, go_on) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
        let call = call();
        let write = core.store.write(&call, async |tx| {
            audit::insert(tx, keys.audit.seal(&late, [0; 16])).await?;
            inserted.notify_one();
            go_on.notified().await;
            Ok(())
        });
        let meanwhile = async {
            inserted.notified().await;
            world.clock.advance(Duration::from_secs(5));
            world.person().await;
            let before = whole(&world).await;
            go_on.notify_one();
            before
        };
        let (written, before) = tokio::join!(write, meanwhile);
        written.unwrap();
        let after = whole(&world).await;
        assert_eq!(
            (after.batch, after.position),
            (before.batch + 1, before.position + 1)
        );
        let last = "SELECT correlation_id FROM audit_events ORDER BY position DESC LIMIT 1";
        assert_eq!(world.query(last).await, ["late"]);
    }
}
