//! Many names tried from one network: how soon it is slowed, whom that meets, and
//! that nobody learns from it who has an account.

use std::time::Duration;

use countersign::{config::Config, service::stuffing::Lookout};
use countersign_proto::v1;
use prost_types::FieldMask;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::{
    harness::{
        Failure, Kind, World, calls,
        calls::{access_line, named},
        database, eventually, logs,
        proxy::{Fault, Proxy},
        world::PASSWORD,
    },
    on_both,
};

const WRONG: &str = "not the password at all";

const WINDOW: Duration = Duration::from_secs(600);

/// From one login to the next where they are slowed.
const PAUSE: Duration = Duration::from_secs(10);

/// The world, where logins are watched, and come from where they say.
async fn watched(world: World) -> World {
    world.restarted(watch).await
}

fn watch(config: &mut Config) {
    config.limits.rate_limits_enabled = true;
    config.limits.login_per_minute = 100_000;
    config.limits.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
}

/// Why a login was refused, and when to come again.
type Refused = (String, Option<Duration>);

fn told(status: &Status) -> Refused {
    let retry = status.get_error_details().retry_info().cloned();
    let retry = retry.and_then(|retry| retry.retry_delay);
    (Failure::from(status).reason, retry)
}

fn failed() -> Refused {
    ("LOGIN_FAILED".to_owned(), None)
}

fn slowed(wait: Duration) -> Refused {
    ("RATE_LIMITED".to_owned(), Some(wait))
}

/// A login from an address, with the token of a device or an empty one. Gives
/// the device's token and the queries that it cost.
async fn try_login(
    world: &World,
    address: &str,
    name: &str,
    password: &str,
    device_token: &str,
) -> Result<(String, u64), Status> {
    let request = v1::LoginRequest {
        identifier: name.to_owned(),
        password: password.to_owned(),
        device_token: device_token.to_owned(),
        ..Default::default()
    };
    let id = calls::unique_id();
    let mut request = named(&id, request);
    let address = address.parse().expect("a header");
    request.metadata_mut().insert("x-forwarded-for", address);
    let reply = world.anonymous().auth.login(request).await?.into_inner();
    let queries = access_line(&id)["queries"].as_u64().expect("queries");
    Ok((reply.device_token, queries))
}

async fn login(world: &World, address: &str, name: &str, password: &str) -> Result<(), Refused> {
    let reply = try_login(world, address, name, password, "").await;
    reply.map(drop).map_err(|status| told(&status))
}

/// Tries names that nobody has, from all addresses of a network, until it is
/// slowed or there were so many. Returns how many were looked at.
async fn spray(world: &World, network: &str, most: usize) -> usize {
    for n in 0..most {
        let (address, name) = (
            format!("{network}.{n}"),
            format!("nobody{n}@{network}.test"),
        );
        let refused = login(world, &address, &name, WRONG).await.unwrap_err();
        if refused != failed() {
            assert_eq!(refused, slowed(PAUSE));
            return n;
        }
    }
    most
}

/// What the audit log says of it, with the address.
async fn recorded(world: &World) -> Vec<String> {
    Lookout::new(world.node.running.core().clone())
        .tell()
        .await
        .unwrap();
    let events = "SELECT e.action || ' ' || e.outcome || ' ' || coalesce(o.address, '') \
                  FROM audit_events e LEFT JOIN audit_origins o ON o.event_id = e.id \
                  WHERE e.action LIKE 'session.stuffing%' ORDER BY e.at, e.action";
    world.query(events).await
}

on_both! {
    async fn a_network_from_which_many_names_fail_is_slowed(world: World) {
        let (ana, ben) = (world.person().await, world.person().await.email);
        let admin = world.admin().await;
        calls::disable(&admin.client, &world.person().await.user_id).await.unwrap();
        let world = watched(world).await;
        // The databases' tests share one log.
        let network = match world.database.kind {
            Kind::Sqlite => "203.0.113",
            Kind::Postgres => "198.51.100",
        };
        let office = format!("{network}.7");
        let office = office.as_str();
        let elsewhere = "192.0.2.7";
        let (device, usual) = try_login(&world, office, &ana.email, PASSWORD, "").await.unwrap();
        assert_eq!(usual, 9, "as many as without");
        // One name, however often, is for its own counter.
        for _ in 0..100 {
            assert_eq!(login(&world, office, "nobody@example.com", WRONG).await, Err(failed()));
        }
        let looked_at = spray(&world, network, 60).await;
        assert!((17..=25).contains(&looked_at), "{looked_at} names before it was slowed");

        // The same for everybody, right or wrong, and nothing is looked at.
        let before = world.node.running.core().lanes.work();
        for (name, password) in [
            (&*ana.email, PASSWORD),
            (&*ana.email, WRONG),
            (&*ben, PASSWORD),
            ("person3@example.com", PASSWORD),
            ("nobody@example.com", WRONG),
            ("another-nobody@example.com", WRONG),
        ] {
            let refused = login(&world, &format!("{network}.200"), name, password).await;
            assert_eq!(refused, Err(slowed(PAUSE)), "{name}");
        }
        assert_eq!(world.node.running.core().lanes.work(), before);
        // But for who has a device that is known, and only as its owner.
        for _ in 0..5 {
            let (same, queries) = try_login(&world, office, &ana.email, PASSWORD, &device).await.unwrap();
            assert_eq!((&same, queries), (&device, usual));
        }
        let bens = try_login(&world, office, &ben, PASSWORD, &device).await.unwrap_err();
        assert_eq!(told(&bens), slowed(PAUSE));
        // And for everybody elsewhere.
        login(&world, elsewhere, &ben, PASSWORD).await.unwrap();

        // In each pause one is looked at.
        world.clock.advance(PAUSE);
        login(&world, office, &ben, PASSWORD).await.unwrap();
        assert_eq!(login(&world, office, &ana.email, PASSWORD).await, Err(slowed(PAUSE)));
        world.clock.advance(PAUSE / 2);
        assert_eq!(login(&world, office, &ana.email, PASSWORD).await, Err(slowed(PAUSE / 2)));
        world.clock.advance(PAUSE / 2);
        assert_eq!(login(&world, office, &ana.email, WRONG).await, Err(failed()));

        // It ends, and people are told of both, once.
        let event = |what: &str| format!("session.stuffing_{what} {network}.0");
        let mut events = vec![event("began failure")];
        eventually("the beginning is recorded", async || recorded(&world).await == events).await;
        world.clock.advance(WINDOW);
        for _ in 0..5 {
            login(&world, office, &ana.email, PASSWORD).await.unwrap();
        }
        events.push(event("ended success"));
        eventually("its end is recorded", async || recorded(&world).await == events).await;
        let lines = logs::lines().into_iter();
        let told = lines.filter(|line| line.contains(&format!("\"{network}.0/24\"")));
        let levels: Vec<bool> = told.map(|line| line.contains("\"WARN\"")).collect();
        assert_eq!(levels, [true, false]);
    }

    async fn people_who_mistype_are_no_attack_nor_is_a_place_where_they_log_in(world: World) {
        let mut people = Vec::new();
        for _ in 0..12 {
            people.push(world.person().await.email);
        }
        let world = world.restarted(|config| config.credential_stuffing.failed_names = 5).await;
        let world = watched(world).await;
        for name in &people {
            assert_eq!(login(&world, "100.64.7.9", name, WRONG).await, Err(failed()));
            login(&world, "100.64.7.9", name, PASSWORD).await.unwrap();
        }
        // Of sixty names a fifth got in: twelve. So it takes as many to be one.
        assert_eq!(spray(&world, "100.64.7", 40).await, 40);
        let more = spray(&world, "100.64.7", 80).await;
        assert!((41..=65).contains(&more), "{more}");
    }

    async fn an_attack_from_everywhere_makes_the_node_wary_and_slows_nobody_else(world: World) {
        let ana = world.person().await.email;
        let world = world.restarted(|config| config.credential_stuffing.failed_names_of_node = 30).await;
        let world = watched(world).await;
        for n in 0..50 {
            let (address, name) = (format!("198.18.{n}.1"), format!("nobody{n}@example.com"));
            assert_eq!(login(&world, &address, &name, WRONG).await, Err(failed()));
        }
        let began = "session.stuffing_began failure ";
        eventually("it is recorded", async || recorded(&world).await == [began]).await;
        // Where nobody tries much there is nothing to feel.
        for _ in 0..5 {
            assert_eq!(login(&world, "203.0.113.7", &ana, WRONG).await, Err(failed()));
            login(&world, "203.0.113.7", &ana, PASSWORD).await.unwrap();
        }
        // Elsewhere it takes a quarter.
        let looked_at = spray(&world, "192.0.2", 60).await;
        assert!((4..=8).contains(&looked_at), "{looked_at}");
        world.clock.advance(WINDOW);
        let over = spray(&world, "198.51.100", 15).await;
        assert_eq!(over, 15);
    }

    async fn who_gets_in_again_and_again_under_other_names_hides_nothing(world: World) {
        let ana = world.person().await;
        let world = watched(world).await;
        let client = world.anonymous().with_token(&ana.tokens.access_token);
        for n in 0..15 {
            let username = format!("ana.{n}");
            let renamed = v1::User { user_id: ana.user_id.clone(), username: username.clone(), ..Default::default() };
            let mask = FieldMask { paths: vec!["username".to_owned()] };
            let request = v1::UpdateUserRequest { user: Some(renamed), update_mask: Some(mask) };
            client.clone().users.update_user(request).await.unwrap();
            login(&world, "100.64.9.1", &username, PASSWORD).await.unwrap();
        }
        let looked_at = spray(&world, "100.64.9", 60).await;
        assert!((17..=25).contains(&looked_at), "{looked_at}");
    }

    async fn a_flood_of_episodes_costs_a_bounded_number_of_records_and_lines(world: World) {
        let world = watched(world).await;
        let world = world.restarted(|config| {
            config.credential_stuffing.failed_names = 5;
            config.audit.failures_per_minute = 3;
        }).await;
        // The databases' tests share one log.
        let networks = match world.database.kind {
            Kind::Sqlite => "100.65",
            Kind::Postgres => "100.66",
        };
        for n in 0..8 {
            assert!(spray(&world, &format!("{networks}.{n}"), 20).await < 20);
        }
        let begun = "audit_events WHERE action = 'session.stuffing_began'";
        let sum = async || world.query(&format!("SELECT coalesce(sum(represents), 0) FROM {begun}")).await;
        eventually("all are accounted for", async || sum().await == ["8"]).await;
        let lines = logs::lines().into_iter();
        let lines = lines.filter(|line| line.contains("logins look like credential stuffing"));
        let lines = lines.filter(|line| line.contains(&format!("\"{networks}.")));
        assert_eq!(lines.count(), 3);
        let alone = world.query(&format!("SELECT count(*) FROM {begun} AND represents = 1")).await;
        assert!(alone[0].parse::<u32>().unwrap() >= 3, "{alone:?}");
    }

    async fn an_end_that_was_not_told_yet_is_recorded_by_a_node_that_stops(world: World) {
        let world = watched(world).await;
        assert!(spray(&world, "100.64.3", 60).await < 60);
        eventually("it is recorded", async || recorded(&world).await.len() == 1).await;
        world.clock.advance(WINDOW);
        world.node.running.stop().await;
        let ended = "SELECT count(*) FROM audit_events WHERE action = 'session.stuffing_ended'";
        assert_eq!(world.query(ended).await, ["1"]);
    }

    async fn it_is_switched_off_with_the_limits_per_address(world: World) {
        let names = (0..60).map(|n| format!("nobody{n}@example.com"));
        for name in names {
            assert_eq!(login(&world, "127.0.0.1", &name, WRONG).await, Err(failed()));
        }
        assert!(recorded(&world).await.is_empty());
    }
}

/// PostgreSQL only: SQLite is a file in this process, and loses no COMMIT.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_commit_had_no_answer_holds_up_no_other() {
    for fault in [Fault::LosesCommit, Fault::LosesAnswer] {
        let proxy = Proxy::before(&database::cluster_url()).await;
        let world = World::with(Kind::Postgres, |config| {
            config.database.url = proxy.url(&config.database.url);
            watch(config);
        })
        .await;
        let core = world.node.running.core();
        let lookout = Lookout::new(core.clone());
        assert!(spray(&world, "100.64.5", 60).await < 60);
        let count = async |what: &str| {
            let begun = "SELECT count(*) FROM audit_events WHERE action = 'session.stuffing_";
            world.query(&format!("{begun}{what}'")).await[0].clone()
        };
        eventually("it is recorded", async || count("began").await == "1").await;

        proxy.make(fault);
        world.clock.advance(WINDOW);
        lookout.tell().await.unwrap_err();
        proxy.make(Fault::None);
        let closed = async || !core.store.breaker().is_open();
        eventually("the breaker is closed", closed).await;
        // If it was committed it is there twice, which is better than never.
        let most = if fault == Fault::LosesAnswer {
            "2"
        } else {
            "1"
        };
        eventually("its end is recorded", async || count("ended").await == most).await;
        assert!(spray(&world, "100.64.5", 60).await < 60);
        lookout.tell().await.unwrap();
        eventually("the next is recorded", async || count("began").await == "2").await;
    }
}
