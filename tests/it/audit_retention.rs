//! What is old goes by age, and nothing else passes for that.

use std::{sync::Arc, time::Duration};

use countersign::{
    domain::{Call, audit::Checkpoint, signing_key::Purpose},
    service::{
        audit::{
            chain::chain,
            report::Report,
            retention,
            verify::{verify, verify_part},
        },
        janitor::Janitor,
    },
};
use countersign_proto::v1;
use jiff::SignedDuration;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{
    audit_chain::{check, count, keep, put_back},
    audit_service::{auditor, chained, list, watch},
    harness::{
        Failure, Kind, Person, World,
        world::{PASSWORD, login},
    },
    on_both,
};

const WRONG: &str = "not the password at all";
const DAY: Duration = Duration::from_secs(24 * 3600);
const EXPIRED: &str = "audit_events WHERE action = 'audit.expired'";

fn call() -> Call {
    Call::internal("test")
}

/// A world that keeps its log for 30 days, and somebody in it.
async fn keeping(world: World) -> (World, Person) {
    let world = world
        .restarted(|config| config.audit.retention_days = 30)
        .await;
    let ana = world.person().await;
    (world, ana)
}

/// Some records each ten days, and the checkpoints that they end with.
async fn aged(world: &World, person: &Person, times: usize) -> Vec<Checkpoint> {
    let mut anchors = Vec::new();
    for _ in 0..times {
        for _ in 0..3 {
            login(&world.anonymous(), &person.email, WRONG)
                .await
                .unwrap_err();
        }
        chained(world).await;
        let report = check(world.node.running.core(), None).await;
        assert_eq!(report.fault, None);
        anchors.push(report.newest.unwrap());
        world.clock.advance(10 * DAY);
    }
    anchors
}

/// A round of the janitor.
async fn sweep(world: &World) -> countersign::error::Result<()> {
    let janitor = Janitor::new(Arc::clone(world.node.running.core()), DAY);
    janitor.sweep(&CancellationToken::new()).await?;
    chained(world).await;
    Ok(())
}

fn what(report: &Report) -> Option<(&'static str, Option<i64>)> {
    let fault = report.fault.as_ref()?;
    Some((fault.what.name(), fault.position.or(fault.batch)))
}

async fn found(world: &World, anchor: Option<&Checkpoint>) -> Option<(&'static str, Option<i64>)> {
    what(&check(world.node.running.core(), anchor).await)
}

/// Up to which position records went.
async fn expired(world: &World) -> i64 {
    let report = check(world.node.running.core(), None).await;
    report.expired.map_or(0, |mark| mark.position)
}

async fn set_mark(world: &World, mark: &str) {
    world
        .execute(&format!("UPDATE audit_retention SET mark = '{mark}'"))
        .await;
}

on_both! {
    async fn old_batches_go_and_the_rest_is_whole_still(world: World) {
        let (world, ana) = keeping(world).await;
        let anchors = aged(&world, &ana, 6).await;
        // Made 60, 50, 40, 30, 20 and 10 days ago; what is of 30 days ago is not older.
        let (gone, all) = (anchors[2].position, anchors[5].position);
        let (core, begun) = (world.node.running.core(), count(&world, "audit_events").await);
        sweep(&world).await.unwrap();
        assert_eq!(count(&world, &format!("audit_events WHERE position <= {gone}")).await, 0);
        assert_eq!(count(&world, "audit_events").await, begun - gone + 1, "and a record of it");
        let origins = count(&world, "audit_events WHERE origin_digest IS NOT NULL").await;
        assert_eq!(count(&world, "audit_origins").await, origins, "personal data goes with them");
        assert_eq!(world.query(&format!("SELECT represents FROM {EXPIRED}")).await, [gone.to_string()]);
        let report = check(core, None).await;
        assert_eq!((what(&report), report.records), (None, all + 1));
        let text = countersign::cli::audit::text(&report, 0);
        assert!(text.contains(&format!("\nrecords up to position {gone}, the end of batch {}, went by age", anchors[2].batch)), "{text}");
        assert_eq!(report.expired.unwrap().position, gone);

        // Anchors of what went count as the others, and any batch is a beginning.
        let keys = core.keyring.keys().unwrap();
        for anchor in &anchors {
            assert_eq!(found(&world, Some(anchor)).await, None, "{anchor:?}");
            let behind = verify(core, &call(), &keys.audit, Some(&anchors[1]), anchor.batch, |_| ()).await;
            assert_eq!(what(&behind.unwrap()), None, "{anchor:?}");
            let part = verify_part(core, &call(), &keys.audit, None, anchor.batch - 1, 1).await.unwrap();
            assert_eq!((what(&part), part.batches), (None, anchor.batch));
            let other = Checkpoint { root: [7; 32], ..anchor.clone() };
            let other = keys.audit.sign(other).unwrap();
            assert_eq!(found(&world, Some(&other)).await, Some(("anchor_differs", Some(anchor.batch))));
        }
        // Who knew the log by a checkpoint of then goes on with it.
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        chain(core, &call(), &keys.audit, Some(&anchors[0])).await.unwrap();
        chained(&world).await;

        // Nothing goes before its time, and no record is made for nothing.
        for _ in 0..2 {
            sweep(&world).await.unwrap();
            assert_eq!((expired(&world).await, count(&world, EXPIRED).await), (gone, 1));
        }
        world.clock.advance(DAY);
        sweep(&world).await.unwrap();
        assert_eq!(expired(&world).await, gone, "within a day");
        world.clock.advance(Duration::from_micros(1));
        sweep(&world).await.unwrap();
        assert_eq!((expired(&world).await, count(&world, EXPIRED).await), (anchors[3].position, 2));
        let all = world.query(&format!("SELECT sum(represents) FROM {EXPIRED}")).await;
        assert_eq!(all, [anchors[3].position.to_string()], "each says what went with it");
        assert_eq!(found(&world, Some(&anchors[0])).await, None);
    }

    async fn readers_are_shown_what_is_kept(world: World) {
        let (world, ana) = keeping(world).await;
        let anchors = aged(&world, &ana, 6).await;
        sweep(&world).await.unwrap();
        let auditor = auditor(&world).await;
        let gone = anchors[2].position;
        // From the beginning means from the first that is kept.
        let message = watch(&auditor, Some(0)).await.message().await.unwrap().unwrap();
        assert_eq!(message.events[0].position, gone + 1);
        let expired = v1::AuditFilter { action: "audit.expired".into(), ..Default::default() };
        let (events, _) = list(&auditor, &expired, 50).await;
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].represents, events[0].authentic), (gone, true));
        assert_eq!((events[0].actor_id.as_str(), events[0].address.as_str()), ("", ""));
        // Who has not come for so long has missed something, and is told.
        let mut late = watch(&auditor, Some(gone - 1)).await;
        let Failure { code, reason, .. } = Failure::from(&late.message().await.unwrap_err());
        assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "AUDIT_LOG_BROKEN"));
        assert!(watch(&auditor, Some(gone)).await.message().await.is_ok());
        let request = v1::VerifyLogRequest::default();
        let reply = auditor.client.clone().audit.verify_log(request).await.unwrap().into_inner();
        assert_eq!((reply.fault, reply.expired_position), (None, gone));
        // Nor is anybody shown a log that somebody else has shortened.
        set_mark(&world, &anchors[3].anchor()).await;
        watch(&auditor, Some(0)).await.message().await.unwrap_err();
    }

    async fn nobody_else_makes_a_deletion_look_like_that(world: World) {
        let (world, ana) = keeping(world).await;
        let mut anchors = aged(&world, &ana, 5).await;
        sweep(&world).await.unwrap();
        let first = world.query("SELECT mark FROM audit_retention").await.remove(0);
        assert_eq!(expired(&world).await, anchors[1].position);
        anchors.extend(aged(&world, &ana, 1).await);
        sweep(&world).await.unwrap();
        let (mark, gone) = (&anchors[2], anchors[2].position);
        assert_eq!(expired(&world).await, gone);
        keep(&world).await;

        let next = &anchors[3];
        let delete = format!("DELETE FROM audit_events WHERE position <= {}", next.position);
        let core = world.node.running.core();
        let keys = core.keyring.keys().unwrap();
        // Signed, but not as that; signed as that, but by who knows where.
        let elsewhere = keys.audit.sign_mark(Checkpoint { root: [7; 32], ..mark.clone() }).unwrap();
        let later = Checkpoint { batch: next.batch, position: next.position, ..first.parse().unwrap() };
        world.execute(&delete).await;
        assert_eq!(found(&world, None).await, Some(("record_missing", Some(gone + 1))));
        for forged in [next.anchor(), later.anchor(), "csa_x".to_owned(), String::new()] {
            set_mark(&world, &forged).await;
            assert_eq!(found(&world, None).await, Some(("retention_altered", None)), "{forged}");
            // The janitor takes no such word for it either.
            assert!(retention::step(core, &call()).await.is_err());
        }
        put_back(&world).await;
        set_mark(&world, &elsewhere.anchor()).await;
        assert_eq!(found(&world, None).await, Some(("retention_altered", Some(mark.batch))));
        let behind = verify(core, &call(), &keys.audit, None, mark.batch, |_| ()).await.unwrap();
        assert_eq!(what(&behind), Some(("retention_altered", Some(mark.batch))));
        // An older mark covers what it covered.
        set_mark(&world, &first).await;
        assert_eq!(found(&world, None).await, Some(("record_missing", Some(anchors[1].position + 1))));
        world.execute("DELETE FROM audit_retention").await;
        assert_eq!(found(&world, None).await, Some(("record_missing", Some(1))));
        put_back(&world).await;
        world.execute("DELETE FROM audit_checkpoints WHERE batch = 1").await;
        assert_eq!(found(&world, None).await, Some(("checkpoint_missing", Some(1))));
        put_back(&world).await;
        // The mark is an anchor of its own.
        world.execute(&format!(
            "DELETE FROM audit_events; DELETE FROM audit_checkpoints WHERE batch >= {}", mark.batch
        )).await;
        assert_eq!(found(&world, None).await, Some(("checkpoint_missing", Some(mark.batch))));
        put_back(&world).await;
        assert_eq!(found(&world, None).await, None);
    }

    async fn a_key_that_was_succeeded_marks_nothing_of_after_it(world: World) {
        let (world, ana) = keeping(world).await;
        aged(&world, &ana, 5).await;
        sweep(&world).await.unwrap();
        let core = world.node.running.core();
        let now = countersign_verifier::Clock::now(&*world.clock);
        let older = core.keyring.keys().unwrap().audit.maker_id(now);
        countersign::service::secret_keys::rotate(core, &call(), Purpose::Audit).await.unwrap();
        world.clock.advance(Duration::from_mins(10));
        let newest = aged(&world, &ana, 2).await.remove(1);
        let keys = core.keyring.keys().unwrap();
        assert!(newest.key_id > older);
        set_mark(&world, &keys.audit.sign_mark(Checkpoint { key_id: older, ..newest.clone() }).unwrap().anchor()).await;
        assert_eq!(found(&world, None).await, Some(("retention_altered", Some(newest.batch))));
    }

    async fn what_is_not_whole_is_not_covered_up(world: World) {
        let (world, ana) = keeping(world).await;
        let anchors = aged(&world, &ana, 5).await;
        keep(&world).await;
        let old = anchors[0].position;
        let young = anchors[3].batch;
        let long_ago = match world.database.kind {
            Kind::Sqlite => "0",
            Kind::Postgres => "'2000-01-01'",
        };
        for (sql, place) in [
            (format!("UPDATE audit_events SET action = 'session.logout' WHERE position = {old}"), "record_altered"),
            (format!("DELETE FROM audit_events WHERE position = {old}"), "record_missing"),
            ("UPDATE audit_checkpoints SET position = position + 1000 WHERE batch = 2".to_owned(), "checkpoint_altered"),
            ("DELETE FROM audit_checkpoints WHERE batch = 2".to_owned(), "checkpoint_missing"),
        ] {
            world.execute(&sql).await;
            let events = count(&world, "audit_events").await;
            let refused = sweep(&world).await.unwrap_err();
            assert!(countersign::error::chain(&refused).contains("not whole where it is old"), "{sql}: {refused:?}");
            assert_eq!((count(&world, "audit_events").await, count(&world, "audit_retention").await), (events, 0), "{sql}");
            assert_eq!(found(&world, None).await.map(|(what, _)| what), Some(place), "{sql}");
            put_back(&world).await;
        }
        // A batch is not made older than it is.
        world.execute(&format!("UPDATE audit_checkpoints SET created_at = {long_ago} WHERE batch = {young}")).await;
        sweep(&world).await.unwrap();
        let mark = world.query("SELECT mark FROM audit_retention").await.remove(0);
        assert_eq!(mark.parse::<Checkpoint>().unwrap().position, anchors[1].position);
    }

    async fn even_the_whole_log_may_be_old(world: World) {
        let (world, ana) = keeping(world).await;
        let last = aged(&world, &ana, 1).await.remove(0);
        world.clock.advance(100 * DAY);
        sweep(&world).await.unwrap();
        assert_eq!(count(&world, "audit_events").await, 1, "that it went");
        assert_eq!(found(&world, Some(&last)).await, None);
        login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        chained(&world).await;
        assert_eq!(found(&world, Some(&last)).await, None);
    }

    async fn nothing_goes_where_all_is_kept(world: World) {
        let world = world.restarted(|config| config.audit.retention_days = 0).await;
        let ana = world.person().await;
        aged(&world, &ana, 1).await;
        world.clock.advance(10_000 * DAY);
        let events = count(&world, "audit_events").await;
        sweep(&world).await.unwrap();
        // That a key was rotated meanwhile may be a record more.
        assert!(count(&world, "audit_events").await >= events);
        assert_eq!(count(&world, "audit_retention").await, 0);
    }

    async fn much_goes_in_pieces_and_who_checks_meanwhile_finds_nothing_wrong(world: World) {
        let (world, ana) = keeping(world).await;
        for _ in 0..26 {
            let logins = (0..40).map(async |_| login(&world.anonymous(), &ana.email, WRONG).await.unwrap_err());
            futures_util::future::join_all(logins).await;
            chained(&world).await;
        }
        let all = count(&world, "audit_events").await;
        assert!(all > 1_000);
        world.clock.advance(40 * DAY);
        let core = world.node.running.core();
        // Told to stop, it begins nothing.
        let stopped = CancellationToken::new();
        stopped.cancel();
        Janitor::new(Arc::clone(core), DAY).sweep(&stopped).await.unwrap();
        assert_eq!(expired(&world).await, 0);
        let left = async || count(&world, &format!("audit_events WHERE position <= {all}")).await;
        let keys = core.keyring.keys().unwrap();
        let runtime = tokio::runtime::Handle::current();
        let mut steps = Vec::new();
        // All of it goes behind the back of one who has read the first page.
        let report = verify(core, &call(), &keys.audit, None, 0, |_| {
            if steps.is_empty() {
                tokio::task::block_in_place(|| runtime.block_on(async {
                    while retention::step(core, &call()).await.unwrap() {
                        steps.push(left().await);
                    }
                }));
            }
        }).await.unwrap();
        assert_eq!(steps, [all, all - 500, all - 1_000, 0], "first the mark, then piece by piece");
        assert_eq!(what(&report), None);
        assert_eq!(report.expired.unwrap().position, all);
    }
}

/// PostgreSQL only: SQLite has no other clock.
mod nothing_goes_by_a_clock_that_was_right_a_moment_ago {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        let world = World::at_the_real_time(Kind::Postgres, |config| {
            config.tokens.max_clock_skew_seconds = 30;
            config.audit.retention_days = 30;
        })
        .await;
        let ana = world.person().await;
        login(&world.anonymous(), &ana.email, WRONG)
            .await
            .unwrap_err();
        chained(&world).await;
        let core = world.node.running.core();
        assert!(!core.skew.is_off());
        world.clock.step(SignedDuration::from_hours(40 * 24));
        assert!(!retention::step(core, &call()).await.unwrap());
        assert!(core.skew.is_off(), "it was asked again");
        assert_eq!(count(&world, "audit_retention").await, 0);
    }
}
