//! Places, and the settings. What logins feel of it is in tests/it/stuffing.rs.

use countersign_verifier::SystemClock;

use super::*;
use crate::domain::Peer;

fn stuffing() -> Stuffing {
    Stuffing::new(&Config::default(), true, Arc::new(SystemClock))
}

fn from(address: impl Into<std::net::IpAddr>) -> Call {
    Call {
        peer: Peer {
            address: Some(address.into()),
        },
        ..Call::internal("test")
    }
}

fn network(n: u32) -> Call {
    from(std::net::Ipv4Addr::from_bits(n << 8))
}

/// Fails under so many names.
fn fail(stuffing: &Stuffing, call: &Call, names: u32) {
    for n in 0..names {
        let name = format!("name{n}@example.com").parse().unwrap();
        stuffing.count(call, &name, None);
    }
}

fn is_slowed(stuffing: &Stuffing, call: &Call) -> bool {
    let network = network::of(call.peer.address.unwrap());
    let places = stuffing.places();
    let place = places.networks.get(&network);
    place.is_some_and(|place| place.watch.is_slowed(stuffing.clock.monotonic()))
}

#[test]
fn an_episode_meets_the_network_that_earned_it_and_no_other() {
    let stuffing = stuffing();
    for n in 0..100 {
        fail(&stuffing, &network(n), 30);
        stuffing.admit(&network(n)).unwrap_err();
    }
    for n in 100..100_000 {
        stuffing.admit(&network(n)).unwrap();
    }
}

#[test]
fn a_flood_of_networks_takes_no_more_than_the_places_and_leaves_room_for_others() {
    let stuffing = stuffing();
    fail(&stuffing, &network(0), 30);
    for n in 1..40_000 {
        fail(&stuffing, &network(n), 1);
    }
    assert_eq!(stuffing.places().networks.len(), PLACES);
    assert_eq!(stuffing.turns().len(), 1, "of the first");
    assert_eq!(stuffing.places().networks.len(), 1);
    assert!(is_slowed(&stuffing, &network(0)));
    fail(&stuffing, &network(50_000), 30);
    assert!(is_slowed(&stuffing, &network(50_000)));
}

#[test]
fn one_who_mistypes_slows_nobody_however_wary_the_node_is() {
    let config = Config {
        failed_names: 5,
        failed_names_of_node: 5,
        ..Config::default()
    };
    let stuffing = Stuffing::new(&config, true, Arc::new(SystemClock));
    fail(&stuffing, &Call::internal("test"), 20);
    assert!(stuffing.turns()[0].network.is_none());
    for (names, slowed) in [(2, false), (4, true)] {
        fail(&stuffing, &network(names), names);
        assert_eq!(stuffing.admit(&network(names)).is_err(), slowed, "{names}");
    }
}

#[test]
fn who_has_no_address_is_counted_on_the_node_and_never_slowed() {
    let stuffing = stuffing();
    let call = Call::internal("test");
    for n in 0..1_000 {
        let name = format!("name{n}@example.com").parse().unwrap();
        stuffing.count(&call, &name, None);
        stuffing.admit(&call).unwrap();
    }
    let turns = stuffing.turns();
    assert_eq!(turns.len(), 1);
    assert!(turns[0].began && turns[0].network.is_none());
    assert!(stuffing.places().networks.is_empty());
    assert!(stuffing.turns().is_empty(), "told once");
}

type Change = fn(&mut Config);

#[test]
fn settings_that_make_no_sense_are_refused() {
    assert_eq!(Config::default().validate(), Ok(()));
    let wrong: [(Change, &str); 7] = [
        (
            |c| c.window_seconds = 59,
            "window_seconds is 59; set it to 60",
        ),
        (|c| c.failed_names = 4, "failed_names is 4"),
        (|c| c.failed_names = 1_001, "failed_names is 1001"),
        (|c| c.failed_names_of_node = 19, "set it to 20 to 100000"),
        (|c| c.success_percent = 0, "success_percent"),
        (|c| c.success_percent = 101, "success_percent"),
        (|c| c.logins_per_minute = 0, "logins_per_minute"),
    ];
    for (change, says) in wrong {
        let mut config = Config::default();
        change(&mut config);
        let problems = config.validate().unwrap_err();
        assert!(
            problems.iter().any(|problem| problem.contains(says)),
            "{problems:?}"
        );
    }
}
