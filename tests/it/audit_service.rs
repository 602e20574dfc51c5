//! The audit log as it is read by RPC.

use std::time::Duration;

use countersign::{
    domain::{Call, audit::Checkpoint},
    service::audit::chain::chain,
};
use countersign_proto::v1;
use prost_types::Timestamp;
use tonic::{Code, Streaming};

use crate::{
    harness::{
        Failure, Kind, Person, World, calls, eventually, refused,
        world::{PASSWORD, login},
    },
    on_both,
};

const WRONG: &str = "not the password at all";

/// A world where reading leaves no record, for those who count.
async fn unseen(world: World) -> World {
    world
        .restarted(|config| config.audit.reads_recorded_every_seconds = 0)
        .await
}

pub async fn auditor(world: &World) -> Person {
    world
        .person_who_may(&["countersign.audit.read", "countersign.audit.verify"])
        .await
}

async fn page(
    auditor: &Person,
    filter: v1::AuditFilter,
    page_size: i32,
    page_token: &str,
) -> v1::ListEventsResponse {
    let request = v1::ListEventsRequest {
        filter: Some(filter),
        page_size,
        page_token: page_token.to_owned(),
    };
    let reply = auditor.client.clone().audit.list_events(request).await;
    reply.unwrap().into_inner()
}

/// All events of a filter, those of one moment in the order of their names, and
/// how many pages they took.
pub async fn list(
    auditor: &Person,
    filter: &v1::AuditFilter,
    size: i32,
) -> (Vec<v1::AuditEvent>, u32) {
    let (mut events, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = page(auditor, filter.clone(), size, &token).await;
        events.extend(page.events);
        token = page.next_page_token;
        pages += 1;
        if token.is_empty() {
            events.sort_by_key(|event| {
                let at = event.event_time.unwrap();
                (
                    std::cmp::Reverse((at.seconds, at.nanos)),
                    event.action.clone(),
                )
            });
            return (events, pages);
        }
    }
}

fn actions(events: &[v1::AuditEvent]) -> Vec<&str> {
    events.iter().map(|event| event.action.as_str()).collect()
}

fn about(person: &Person) -> v1::AuditFilter {
    v1::AuditFilter {
        subject_id: person.user_id.clone(),
        ..Default::default()
    }
}

/// Has all events chained, and returns the last position.
pub async fn chained(world: &World) -> i64 {
    let core = world.node.running.core();
    let keys = core.keyring.keys().unwrap();
    let waiting = "SELECT count(*) FROM audit_events WHERE position IS NULL";
    eventually("all events are chained", async || {
        let call = Call::internal("test");
        chain(core, &call, &keys.audit, None).await.unwrap();
        world.query(waiting).await == ["0"]
    })
    .await;
    let last = world.query("SELECT max(position) FROM audit_events").await;
    last[0].parse().unwrap()
}

pub async fn watch(auditor: &Person, after: Option<i64>) -> Streaming<v1::WatchEventsResponse> {
    let request = v1::WatchEventsRequest {
        after_position: after,
    };
    let reply = auditor.client.clone().audit.watch_events(request).await;
    reply.unwrap().into_inner()
}

async fn verify(auditor: &Person, after_batch: i64, anchor: &str) -> v1::VerifyLogResponse {
    let request = v1::VerifyLogRequest {
        after_batch,
        anchor: anchor.to_owned(),
    };
    let reply = auditor.client.clone().audit.verify_log(request).await;
    reply.unwrap().into_inner()
}

on_both! {
    async fn events_are_listed_newest_first_by_what_is_asked(world: World) {
        let world = unseen(world).await;
        let auditor = auditor(&world).await;
        world.clock.advance(Duration::from_secs(10));
        let ana = world.person().await;
        world.clock.advance(Duration::from_secs(10));
        login(&world.anonymous(), &ana.email, WRONG).await.unwrap_err();
        world.clock.advance(Duration::from_secs(10));
        let pair = login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        let all = ["session.login", "session.login", "session.login", "user.registered"];
        for size in [1, 2, 3, 4, 50] {
            assert_eq!(actions(&list(&auditor, &about(&ana), size).await.0), all, "{size}");
        }
        let first = page(&auditor, about(&ana), 1, "").await;
        assert_eq!(first.events[0].session_id, pair.session_id, "the newest");
        let newest = &list(&auditor, &about(&ana), 50).await.0[0];
        assert_eq!((&newest.actor_id, &newest.subject_id), (&ana.user_id, &ana.user_id));
        assert_eq!((newest.session_id.as_str(), newest.outcome()), (pair.session_id.as_str(), v1::AuditOutcome::Success));
        assert_eq!(newest.address, "127.0.0.1");
        assert!(newest.authentic);
        assert!(newest.user_agent.starts_with("tonic/"), "{newest:?}");
        assert!(!newest.correlation_id.is_empty());
        let at = newest.event_time.unwrap();
        let before = |seconds| Some(Timestamp { seconds: at.seconds - seconds, ..at });
        let ask = async |filter: v1::AuditFilter| actions(&list(&auditor, &filter, 50).await.0).len();
        assert_eq!(ask(v1::AuditFilter { action: "session.login".into(), ..about(&ana) }).await, 3);
        assert_eq!(ask(v1::AuditFilter { outcome: v1::AuditOutcome::Failure.into(), ..about(&ana) }).await, 1);
        assert_eq!(ask(v1::AuditFilter { outcome: v1::AuditOutcome::Success.into(), ..about(&ana) }).await, 3);
        assert_eq!(ask(v1::AuditFilter { actor_id: ana.user_id.clone(), ..Default::default() }).await, 3);
        assert_eq!(ask(v1::AuditFilter { actor_id: auditor.user_id.clone(), ..about(&ana) }).await, 0);
        assert_eq!(ask(v1::AuditFilter { session_id: pair.session_id, ..Default::default() }).await, 1);
        assert_eq!(ask(v1::AuditFilter { event_from: before(0), ..about(&ana) }).await, 1);
        assert_eq!(ask(v1::AuditFilter { event_before: before(0), ..about(&ana) }).await, 3);
        assert_eq!(ask(v1::AuditFilter { event_from: before(10), event_before: before(0), ..about(&ana) }).await, 1);
        // A part of a second apart, which ids do not tell.
        world.clock.advance(Duration::from_micros(1));
        login(&world.anonymous(), &ana.email, WRONG).await.unwrap_err();
        assert_eq!(ask(v1::AuditFilter { event_from: before(0), ..about(&ana) }).await, 2);
        let between = Some(Timestamp { nanos: at.nanos + 1_000, ..at });
        assert_eq!(ask(v1::AuditFilter { event_from: between, ..about(&ana) }).await, 1);
        assert_eq!(ask(v1::AuditFilter { event_before: between, ..about(&ana) }).await, 4);

        // A page token goes on with its own list only.
        let token = page(&auditor, about(&ana), 1, "").await.next_page_token;
        let other = v1::ListEventsRequest { filter: Some(about(&auditor)), page_size: 1, page_token: token };
        refused(auditor.client.clone().audit.list_events(other).await, Code::InvalidArgument, "PAGE_TOKEN_INVALID");
        let unknown = v1::AuditFilter { action: "session.nothing".into(), ..Default::default() };
        let unknown = v1::ListEventsRequest { filter: Some(unknown), ..Default::default() };
        refused(auditor.client.clone().audit.list_events(unknown).await, Code::InvalidArgument, "INVALID_REQUEST");

        // Who is erased has no address any more, and the events stay.
        let admin = world.admin().await;
        calls::delete(&admin.client, &ana.user_id).await.unwrap();
        let left = list(&auditor, &v1::AuditFilter { action: "session.login".into(), ..about(&ana) }, 50).await.0;
        assert_eq!(left.len(), 4);
        assert!(left.iter().all(|event| event.address.is_empty() && event.user_agent.is_empty()));
        assert!(left.iter().all(|event| event.authentic));
        world.execute(&format!("UPDATE audit_events SET outcome = 'failure' WHERE action = '{}'", "user.registered")).await;
        let all = list(&auditor, &about(&ana), 50).await.0;
        assert!(all.iter().all(|event| event.authentic != (event.action == "user.registered")));
    }

    async fn whoever_follows_is_told_that_something_is_missing(world: World) {
        let world = unseen(world).await;
        let auditor = auditor(&world).await;
        login(&world.anonymous(), &auditor.email, WRONG).await.unwrap_err();
        let end = chained(&world).await;
        let ends = async |after| {
            let mut stream = watch(&auditor, Some(after)).await;
            let ended = stream.message().await.expect_err("the log does not go on from there");
            let Failure { code, reason, .. } = Failure::from(&ended);
            (code, reason)
        };
        let broken = (Code::FailedPrecondition, "AUDIT_LOG_BROKEN".to_owned());
        assert_eq!(ends(end + 1).await, broken, "beyond the end");
        world.execute("UPDATE audit_events SET position = NULL WHERE position = 2").await;
        assert_eq!(ends(0).await, broken, "a gap");
        assert_eq!(ends(1).await, broken, "a gap at once");
        assert!(watch(&auditor, Some(2)).await.message().await.is_ok());
    }

    async fn what_is_rare_is_found_in_steps_of_bounded_work(world: World) {
        let world = unseen(world).await;
        let auditor = auditor(&world).await;
        let ana = world.person().await;
        // Some 25,000 newer ones, of before the chain.
        let (id, series) = match world.database.kind {
            Kind::Sqlite => (
                "CAST(x'7f' || randomblob(15) AS BLOB)",
                "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 25000)",
            ),
            Kind::Postgres => (
                "('7f' || substr(gen_random_uuid()::text, 3))::uuid",
                "WITH s(n) AS (SELECT * FROM generate_series(1, 25000))",
            ),
        };
        world.execute(&format!(
            "{series} INSERT INTO audit_events (id, at, action, outcome, correlation_id, position) \
             SELECT {id}, e.at, 'session.login', 'failure', 'c', -n FROM s, (SELECT max(at) AS at FROM audit_events) e"
        )).await;
        let (found, pages) = list(&auditor, &about(&ana), 50).await;
        assert_eq!((actions(&found), pages), (vec!["session.login", "user.registered"], 3));
    }

    async fn whoever_follows_misses_nothing_and_can_go_on(world: World) {
        let world = unseen(world).await;
        let auditor = auditor(&world).await;
        let ana = world.person().await;
        let end = chained(&world).await;
        let mut all = watch(&auditor, Some(0)).await;
        let mut seen = Vec::new();
        while i64::try_from(seen.len()).unwrap() < end {
            let message = all.message().await.unwrap().unwrap();
            assert_eq!(message.events.last().map(|event| event.position), Some(message.position));
            seen.extend(message.events);
        }
        assert!(seen.iter().map(|event| event.position).eq(1..=end));
        assert!(actions(&seen).contains(&"key.created"));
        // From now on: at once nothing, and then what comes.
        let mut new = watch(&auditor, None).await;
        let first = new.message().await.unwrap().unwrap();
        assert_eq!((first.events.len(), first.position), (0, end));
        for stream in 0..3 {
            login(&world.anonymous(), &ana.email, WRONG).await.unwrap_err();
            let message = new.message().await.unwrap().unwrap();
            assert_eq!((actions(&message.events), message.position), (vec!["session.login"], end + 1 + stream));
        }
        let mut again = watch(&auditor, Some(end + 1)).await;
        let message = again.message().await.unwrap().unwrap();
        assert_eq!((message.events.len(), message.position), (2, end + 3));
        // A credential that is good no more is told nothing more.
        calls::revoke_session(&auditor.client, &auditor.tokens.session_id).await.unwrap();
        let ended = loop {
            match again.message().await {
                Ok(message) => assert!(message.unwrap().events.iter().all(|event| event.action == "session.revoked")),
                Err(status) => break status,
            }
        };
        let Failure { code, reason, .. } = Failure::from(&ended);
        assert_eq!((code, reason.as_str()), (Code::Unauthenticated, "TOKEN_INVALID"));
        let wrong = v1::WatchEventsRequest { after_position: Some(-1) };
        let auditor = auditor.again().await;
        refused(auditor.client.clone().audit.watch_events(wrong).await, Code::InvalidArgument, "INVALID_REQUEST");
    }

    async fn a_part_of_the_log_is_checked_from_any_checkpoint_on(world: World) {
        let auditor = auditor(&world).await;
        for _ in 0..3 {
            login(&world.anonymous(), &auditor.email, WRONG).await.unwrap_err();
            chained(&world).await;
        }
        let end = chained(&world).await;
        let whole = verify(&auditor, 0, "").await;
        assert_eq!((whole.fault.clone(), whole.position, whole.complete), (None, end, true));
        assert!(whole.batch > 2 && whole.anchor.starts_with("csa_") && whole.public_key.len() == 32);
        for after in 0..=whole.batch {
            assert_eq!(verify(&auditor, after, &whole.anchor).await, whole, "{after}");
        }
        let kind = |reply: &v1::VerifyLogResponse| reply.fault.clone().unwrap().kind;
        assert_eq!((whole.unchained, whole.unsealed), (0, 0));
        // An anchor counts wherever the part begins.
        let core = world.node.running.core();
        let anchor: Checkpoint = whole.anchor.parse().unwrap();
        let other = Checkpoint { position: 1, batch: 1, ..anchor };
        let other = core.keyring.keys().unwrap().audit.sign(other).unwrap().anchor();
        for after in 0..=whole.batch {
            assert_eq!(kind(&verify(&auditor, after, &other).await), "anchor_differs", "{after}");
        }
        let beyond = verify(&auditor, whole.batch + 1, "").await;
        assert_eq!(kind(&beyond), "checkpoint_missing");
        world.execute(&format!("UPDATE audit_events SET action = 'session.logout' WHERE position = {end}")).await;
        let broken = verify(&auditor, whole.batch - 1, "").await;
        let fault = broken.fault.clone().unwrap();
        assert_eq!((fault.kind.as_str(), fault.batch, fault.position), ("record_altered", whole.batch, end));
        assert!(!broken.complete && broken.position < end);
        assert_eq!(verify(&auditor, whole.batch, "").await.fault, None, "before this part");
        world.execute(&format!("UPDATE audit_checkpoints SET position = position + 1 WHERE batch = {}", whole.batch)).await;
        assert_eq!(kind(&verify(&auditor, whole.batch, "").await), "checkpoint_altered");
        let request = v1::VerifyLogRequest { after_batch: 0, anchor: "csa_x".into() };
        refused(auditor.client.clone().audit.verify_log(request).await, Code::InvalidArgument, "INVALID_REQUEST");
        let request = v1::VerifyLogRequest { after_batch: -1, ..Default::default() };
        refused(auditor.client.clone().audit.verify_log(request).await, Code::InvalidArgument, "INVALID_REQUEST");
    }

    async fn what_is_outside_of_the_chain_is_looked_at_with_its_end(world: World) {
        let auditor = auditor(&world).await;
        chained(&world).await;
        login(&world.anonymous(), &auditor.email, WRONG).await.unwrap_err();
        let last = verify(&auditor, 0, "").await.batch;
        let (id, now) = match world.database.kind {
            Kind::Sqlite => ("x'019a0000000070008000000000000099'", "0"),
            Kind::Postgres => ("'019a0000-0000-7000-8000-000000000099'::uuid", "now()"),
        };
        world.execute(&format!(
            "INSERT INTO audit_events (id, at, action, outcome, correlation_id) \
             VALUES ({id}, {now}, 'role.granted', 'success', 'c')"
        )).await;
        let reply = verify(&auditor, last, "").await;
        assert_eq!((reply.fault, reply.complete, reply.unsealed), (None, true, 1));
        let kind = async || verify(&auditor, 0, "").await.fault.map(|fault| (fault.kind, fault.event_id));
        let forged = "019a0000-0000-7000-8000-000000000099".to_owned();
        world.execute(&format!("UPDATE audit_events SET position = -3 WHERE id = {id}")).await;
        assert_eq!(kind().await, Some(("record_moved".to_owned(), forged.clone())));
        // Somebody has no key and makes up a MAC.
        let mac = match world.database.kind {
            Kind::Sqlite => "zeroblob(32)",
            Kind::Postgres => "decode(repeat('00', 32), 'hex')",
        };
        world.execute(&format!("UPDATE audit_events SET position = NULL, key_id = 1, mac = {mac} WHERE id = {id}")).await;
        assert_eq!(kind().await, Some(("record_altered".to_owned(), forged)));
    }
}
