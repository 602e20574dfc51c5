//! What has expired is cleared away, and what is still needed is not.

use std::{sync::Arc, time::Duration};

use countersign::service::janitor::Janitor;
use countersign_proto::v1;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{
        Kind, World, calls,
        calls::{is_dead, validates},
        world::{PASSWORD, login},
    },
    on_both,
};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The longest life of any access token, the most leeway and a minute, twice.
const TRUST_KEPT: Duration = Duration::from_secs(2 * (3600 + 30 + 60));

/// One round on the first node; the oldest dead row that it has left, in
/// seconds, as its gauge says.
async fn sweep(world: &World) -> f64 {
    let core = Arc::clone(world.node.running.core());
    let handle = tokio::runtime::Handle::current();
    // The gauge of the process is set by other tests' janitors too.
    let swept = tokio::task::spawn_blocking(move || {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let janitor = Janitor::new(core, MINUTE);
            handle
                .block_on(janitor.sweep(&CancellationToken::new()))
                .expect("sweeps");
        });
        recorder.handle().render()
    });
    let metrics = swept.await.expect("no panic");
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("countersign_oldest_dead_row_seconds "));
    line.expect(&metrics).parse().expect("a number")
}

async fn count(world: &World, table: &str) -> usize {
    let rows = world.query(&format!("SELECT count(*) FROM {table}")).await;
    rows[0].parse().expect("a number")
}

fn registration(email: &str, n: u128) -> v1::RegisterRequest {
    v1::RegisterRequest {
        email: email.into(),
        password: PASSWORD.into(),
        request_id: uuid::Uuid::from_u128(n).to_string(),
        ..Default::default()
    }
}

on_both! {
    async fn dead_sessions_go_a_day_later_and_live_ones_stay(world: World) {
        let ana = world.person().await;
        let ended = ana.again().await;
        calls::revoke_session(&ana.client, &ended.tokens.session_id).await.unwrap();
        assert_eq!((sweep(&world).await, count(&world, "sessions").await), (0.0, 2));
        world.clock.advance(DAY - Duration::from_secs(1));
        sweep(&world).await;
        assert_eq!(count(&world, "sessions").await, 2, "kept, so that theft is seen for what it is");
        world.clock.advance(Duration::from_secs(1));
        assert_eq!((sweep(&world).await, count(&world, "sessions").await), (0.0, 1));
        assert!(calls::refresh(&world.anonymous(), &ended.tokens.refresh_token).await.is_err());

        // One that expires, beside one that is used.
        let mut pair = login(&world.anonymous(), &ana.email, PASSWORD).await.unwrap();
        for _ in 0..8 {
            world.clock.advance(DAY);
            pair = calls::refresh(&world.anonymous(), &pair.refresh_token).await.unwrap();
        }
        sweep(&world).await;
        assert_eq!(world.query("SELECT device_name FROM sessions").await.len(), 1);
        assert!(calls::refresh(&world.anonymous(), &pair.refresh_token).await.is_ok());
        assert!(calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.is_err());
    }

    async fn many_go_in_batches(world: World) {
        let ana = world.person().await;
        // 1,700 sessions that expired one after another, more than three batches.
        let (id, expiry, series) = match world.database.kind {
            Kind::Sqlite => ("randomblob(16)", "expires_at - n", "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 1700)"),
            Kind::Postgres => ("gen_random_uuid()", "expires_at - n * interval '1 microsecond'", "WITH s(n) AS (SELECT * FROM generate_series(1, 1700))"),
        };
        let columns = "user_id, epoch, generation, key_id, binding, device_name, user_agent, address, client_id, \
                       created_at, rotated_at, absolute_expires_at, revoked_at";
        world.execute(&format!(
            "{series} INSERT INTO sessions (id, expires_at, {columns}) SELECT {id}, {expiry}, {columns} FROM s, sessions"
        )).await;
        world.clock.advance(6 * DAY);
        calls::refresh(&world.anonymous(), &ana.tokens.refresh_token).await.unwrap();
        world.clock.advance(2 * DAY);
        assert_eq!(count(&world, "sessions").await, 1_701);
        // Told to stop, it begins no batch.
        let stopped = CancellationToken::new();
        stopped.cancel();
        let janitor = Janitor::new(Arc::clone(world.node.running.core()), MINUTE);
        janitor.sweep(&stopped).await.unwrap();
        assert_eq!(count(&world, "sessions").await, 1_701);
        assert_eq!(sweep(&world).await, 0.0);
        assert_eq!(count(&world, "sessions").await, 1);
    }

    async fn the_gauge_tells_how_far_behind_it_is(world: World) {
        world.person().await;
        assert_eq!(sweep(&world).await, 0.0);
        // Dead for three hours, and to be kept for the rest of a day.
        world.clock.advance(7 * DAY + 180 * MINUTE);
        assert_eq!(sweep(&world).await, 3.0 * 3600.0);
        world.clock.advance(DAY);
        assert_eq!(sweep(&world).await, 0.0);
    }

    async fn replies_go_when_nobody_may_repeat_the_request_any_more(world: World) {
        let first = calls::register(&world.anonymous(), registration("ana@example.com", 1)).await.unwrap();
        world.clock.advance(DAY / 2);
        let second = calls::register(&world.anonymous(), registration("ben@example.com", 2)).await.unwrap();
        world.clock.advance(DAY / 2 - Duration::from_secs(1));
        sweep(&world).await;
        let again = calls::register(&world.anonymous(), registration("ana@example.com", 1)).await.unwrap();
        assert_eq!(again, first);
        world.clock.advance(Duration::from_secs(1));
        sweep(&world).await;
        assert_eq!(count(&world, "idempotency").await, 1);
        let again = calls::register(&world.anonymous(), registration("ben@example.com", 2)).await.unwrap();
        assert_eq!(again, second);
    }

    async fn entries_of_the_trust_log_go_when_no_token_they_speak_of_lives(world: World) {
        let (ana, ben) = (world.person().await, world.person().await);
        let entries = "trust_log WHERE kind = 'session_revoked'";
        calls::revoke_session(&ana.client, &ana.tokens.session_id).await.unwrap();
        world.clock.advance(10 * MINUTE);
        calls::revoke_session(&ben.client, &ben.tokens.session_id).await.unwrap();
        world.clock.advance(TRUST_KEPT - 10 * MINUTE);
        sweep(&world).await;
        assert_eq!(count(&world, entries).await, 2);
        world.clock.advance(Duration::from_micros(1));
        sweep(&world).await;
        assert_eq!(count(&world, entries).await, 1);
        world.clock.advance(10 * MINUTE);
        sweep(&world).await;
        assert_eq!(count(&world, "trust_log").await, 0, "the keys' entries too");
        // A log that is empty is no reason to be deaf: here, and for a node that starts.
        let cat = world.person().await;
        calls::revoke_session(&cat.client, &cat.tokens.session_id).await.unwrap();
        assert!(is_dead(&world.anonymous(), &cat.tokens).await);
        let world = world.restarted(|_| {}).await;
        assert!(!validates(&world.anonymous(), &cat.tokens.access_token).await);
        let dan = world.person().await;
        assert!(validates(&world.anonymous(), &dan.tokens.access_token).await);
    }

    async fn what_cannot_be_cleared_away_keeps_nothing_else(world: World) {
        calls::register(&world.anonymous(), registration("ana@example.com", 1)).await.unwrap();
        let ben = world.person().await;
        calls::revoke_session(&ben.client, &ben.tokens.session_id).await.unwrap();
        world.clock.advance(2 * DAY);
        world.execute("ALTER TABLE sessions RENAME TO hidden").await;
        let janitor = Janitor::new(Arc::clone(world.node.running.core()), MINUTE);
        janitor.sweep(&CancellationToken::new()).await.unwrap_err();
        for table in ["idempotency", "trust_log"] {
            assert_eq!(count(&world, table).await, 0, "{table}");
        }
        world.execute("ALTER TABLE hidden RENAME TO sessions").await;
        sweep(&world).await;
        assert_eq!(count(&world, "sessions").await, 0);
    }

    async fn a_revocation_survives_a_restart(world: World) {
        let admin = world.admin().await;
        let (out, disabled, live) = (world.person().await, world.person().await, world.person().await);
        calls::create_role(&admin.client, "buyer", &["orders.read"]).await.unwrap();
        out.client.clone().auth.logout(v1::LogoutRequest::default()).await.unwrap();
        calls::disable(&admin.client, &disabled.user_id).await.unwrap();
        // As late as may be: the tokens would live for seconds more.
        world.clock.advance(14 * MINUTE);
        sweep(&world).await;
        let world = world.restarted(|_| {}).await;
        for dead in [&out, &disabled] {
            assert!(!validates(&world.anonymous(), &dead.tokens.access_token).await);
        }
        assert!(validates(&world.anonymous(), &live.tokens.access_token).await, "by its time they would be good");
        // An account that is enabled again does not bring them back.
        let pair = login(&world.anonymous(), &admin.email, PASSWORD).await.unwrap();
        let admin = world.anonymous().with_token(&pair.access_token);
        calls::enable(&admin, &disabled.user_id).await.unwrap();
        assert!(!validates(&world.anonymous(), &disabled.tokens.access_token).await);
        assert!(is_dead(&world.anonymous(), &disabled.tokens).await);
    }
}
