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

#[test]
fn a_flood_of_networks_takes_no_more_than_the_places() {
    let stuffing = stuffing();
    for n in 0..120_000_u32 {
        let call = from(std::net::Ipv4Addr::from_bits(n << 8));
        let name = format!("name{n}@example.com").parse().unwrap();
        stuffing.count(&call, &name, None);
    }
    let watched = stuffing.places().networks.len();
    assert!((30_000..=1 << 15).contains(&watched), "{watched}");
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
