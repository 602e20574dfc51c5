//! Failures that strangers cause by the thousand cost the audit log a bounded
//! number of records, and all of them are accounted for.

use std::time::{Duration, Instant};

use countersign_proto::v1;

use crate::{
    audit_chain::{check, count},
    audit_service::{auditor, chained, list},
    harness::{
        Person, World, binary, calls, eventually,
        world::{PASSWORD, login},
    },
    on_both,
};

const WRONG: &str = "not the password at all";

const FAILED: &str = "audit_events WHERE action = 'session.login' AND outcome = 'failure'";

/// How many events the records of this kind stand for.
async fn sum(world: &World, of: &str) -> i64 {
    let rows = world
        .query(&format!("SELECT coalesce(sum(represents), 0) FROM {of}"))
        .await;
    rows[0].parse().unwrap()
}

async fn fail(world: &World, person: &Person, times: usize) {
    for _ in 0..times {
        login(&world.anonymous(), &person.email, WRONG)
            .await
            .unwrap_err();
    }
}

async fn left_out(world: &World, action: &str) -> f64 {
    let (_, text) = binary::get(world.node.http, "/metrics").await;
    let series = format!("countersign_audit_left_out_total{{action=\"{action}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&series));
    line.map_or(0.0, |number| number.parse().unwrap())
}

on_both! {
    async fn beyond_the_budget_of_a_minute_one_record_a_second_stands_for_the_rest(world: World) {
        let world = world.restarted(|config| config.audit.failures_per_minute = 5).await;
        let auditor = auditor(&world).await;
        let ana = world.person().await;
        let (begun, before) = (Instant::now(), left_out(&world, "session.login").await);
        fail(&world, &ana, 60).await;
        assert!(left_out(&world, "session.login").await >= before + 55.0);
        for _ in 0..20 {
            login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        }
        eventually("all are accounted for", async || sum(&world, FAILED).await == 60).await;
        let rows = count(&world, FAILED).await;
        let rounds = i64::try_from(begun.elapsed().as_secs()).unwrap() + 1;
        assert!(rows <= 5 + rounds, "{rows} records in {rounds} rounds");
        let own = format!("{FAILED} AND represents = 1");
        assert!((5..60).contains(&count(&world, &own).await));
        let succeeded = "audit_events WHERE action = 'session.login' AND outcome = 'success'";
        let logins = format!("{succeeded} AND subject = (SELECT id FROM users WHERE email = '{}')", ana.email);
        assert_eq!((count(&world, &logins).await, sum(&world, &logins).await), (21, 21));

        // It is seen by whoever reads; what stands for others is one of them.
        chained(&world).await;
        let failures = v1::AuditFilter {
            action: "session.login".into(),
            outcome: v1::AuditOutcome::Failure.into(),
            ..Default::default()
        };
        let (listed, _) = list(&auditor, &failures, 50).await;
        assert_eq!(listed.iter().map(|event| event.represents).sum::<i64>(), 60);
        let theirs = |event: &v1::AuditEvent| {
            event.authentic && event.subject_id == ana.user_id && event.address == "127.0.0.1"
        };
        assert!(listed.iter().all(theirs), "{listed:?}");

        // A minute later the budget is whole again.
        world.clock.advance(Duration::from_secs(60));
        fail(&world, &ana, 5).await;
        assert_eq!((sum(&world, FAILED).await, count(&world, FAILED).await), (65, rows + 5));

        chained(&world).await;
        assert_eq!(check(world.node.running.core(), None).await.fault, None);
        world.execute("UPDATE audit_events SET represents = represents - 1 WHERE represents > 1").await;
        let fault = check(world.node.running.core(), None).await.fault.unwrap();
        assert_eq!(fault.what.name(), "record_altered");
    }

    async fn what_cannot_be_recorded_yet_is_counted_on(world: World) {
        let world = world.restarted(|config| config.audit.failures_per_minute = 1).await;
        let ana = world.person().await;
        fail(&world, &ana, 1).await;
        world.execute("ALTER TABLE audit_events RENAME TO gone").await;
        fail(&world, &ana, 3).await;
        // Some rounds that fail.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        fail(&world, &ana, 4).await;
        world.execute("ALTER TABLE gone RENAME TO audit_events").await;
        eventually("all are accounted for", async || sum(&world, FAILED).await == 8).await;
    }

    async fn what_is_left_at_the_end_is_recorded_by_a_node_that_stops(world: World) {
        let world = world.restarted(|config| config.audit.failures_per_minute = 1).await;
        let ana = world.person().await;
        fail(&world, &ana, 9).await;
        world.node.running.stop().await;
        assert_eq!(sum(&world, FAILED).await, 9);
        assert_eq!(count(&world, "audit_events WHERE position IS NULL").await, 0);
    }

    async fn thefts_and_what_succeeds_are_never_left_out(world: World) {
        let world = world.restarted(|config| {
            config.audit.failures_per_minute = 0;
            config.login_throttle.failures_before_delay = 2;
        }).await;
        let ana = world.person().await;
        let ben = world.person().await;
        let change = v1::ChangePasswordRequest { current_password: WRONG.into(), new_password: "another horse entirely".into() };
        ben.client.clone().auth.change_password(change).await.unwrap_err();
        // Two that fail, and two that are refused within one wait.
        fail(&world, &ana, 4).await;
        for (action, events) in [("session.login", 2), ("session.login_throttled", 1), ("password.changed", 1)] {
            let of = format!("audit_events WHERE outcome = 'failure' AND action = '{action}'");
            eventually(action, async || sum(&world, &of).await == events).await;
            assert!(left_out(&world, action).await > 0.0, "{action}");
        }
        let pair = &ben.tokens;
        calls::refresh(&world.anonymous(), &pair.refresh_token).await.unwrap();
        calls::refresh(&world.anonymous(), &pair.refresh_token).await.unwrap();
        world.clock.advance(Duration::from_secs(31));
        calls::refresh(&world.anonymous(), &pair.refresh_token).await.unwrap_err();
        for action in ["session.refresh_replayed", "session.refresh_stolen"] {
            assert_eq!(count(&world, &format!("audit_events WHERE action = '{action}'")).await, 1, "{action}");
            assert!(left_out(&world, action).await < 1.0, "{action}");
        }
    }
}
