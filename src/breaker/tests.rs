//! When it opens, what it ignores, and who may look whether it can close.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;

const FAST: Duration = Duration::from_millis(5);

fn breaker() -> Breaker {
    Breaker::new("database", &Config::default())
}

fn fail(breaker: &Breaker, times: u32) {
    for _ in 0..times {
        breaker.permit().unwrap().failure();
    }
}

async fn until(breaker: &Breaker, state: State) {
    while breaker.state() != state {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn failures_in_a_row_open_it() {
    let breaker = breaker();
    fail(&breaker, 4);
    breaker.permit().unwrap().success();
    fail(&breaker, 4);
    assert!(!breaker.is_open());
    fail(&breaker, 1);
    assert_eq!((breaker.state(), breaker.opened_count()), (State::Open, 1));
    let refused = breaker.permit().unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
}

#[test]
fn half_of_enough_calls_opens_it() {
    let breaker = breaker();
    for _ in 0..9 {
        breaker.permit().unwrap().success();
        breaker.permit().unwrap().failure();
    }
    breaker.permit().unwrap().success();
    // 9 of 19.
    assert!(!breaker.is_open());
    breaker.permit().unwrap().failure();
    assert!(breaker.is_open());
}

#[test]
fn less_than_half_does_not_open_it() {
    let breaker = breaker();
    for _ in 0..50 {
        breaker.permit().unwrap().success();
        breaker.permit().unwrap().success();
        breaker.permit().unwrap().failure();
    }
    assert!(!breaker.is_open());
}

#[test]
fn old_seconds_are_forgotten() {
    let mut window = Window {
        seconds: 10,
        fewest: 4,
        counts: VecDeque::new(),
    };
    assert!(!window.record(0, true));
    assert!(!window.record(0, true));
    assert!(!window.record(9, true));
    assert!(window.record(9, false), "3 of 4 within 10 seconds");
    assert!(!window.record(10, false), "1 of 3");
    assert!(window.record(10, true), "2 of 4");
    assert!(!window.record(100, true), "alone again");
}

#[test]
fn calls_that_say_nothing_count_for_nothing() {
    let breaker = breaker();
    for _ in 0..4 {
        fail(&breaker, 1);
        drop(breaker.permit().unwrap());
        breaker.permit().unwrap().neutral();
    }
    assert!(!breaker.is_open());
    fail(&breaker, 1);
    assert!(breaker.is_open(), "nor do they break a row");
}

#[tokio::test]
async fn permits_from_before_an_opening_are_ignored() {
    let breaker = breaker();
    let old: Vec<Permit> = (0..20).map(|_| breaker.permit().unwrap()).collect();
    let mut old = old.into_iter();
    fail(&breaker, 5);
    old.next().unwrap().success();
    assert_eq!(breaker.state(), State::Open);
    let shutdown = CancellationToken::new();
    let probe = breaker.clone().probe(async || true, FAST, shutdown.clone());
    let probe = tokio::spawn(probe);
    until(&breaker, State::Closed).await;
    old.for_each(Permit::failure);
    assert_eq!(
        (breaker.state(), breaker.opened_count()),
        (State::Closed, 1)
    );
    shutdown.cancel();
    probe.await.unwrap();
}

#[tokio::test]
async fn only_the_probe_finds_out_whether_it_may_close() {
    let breaker = breaker();
    let (good, checks) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let shutdown = CancellationToken::new();
    let probe = {
        let (watched, good, checks) = (breaker.clone(), Arc::clone(&good), Arc::clone(&checks));
        let check = async move || {
            assert_eq!(watched.state(), State::HalfOpen);
            assert!(watched.permit().is_err(), "no call of a user in half open");
            checks.fetch_add(1, SeqCst);
            good.load(SeqCst)
        };
        tokio::spawn(breaker.clone().probe(check, FAST, shutdown.clone()))
    };
    // Nothing to find out while it is closed.
    tokio::time::sleep(FAST * 4).await;
    assert_eq!(checks.load(SeqCst), 0);
    fail(&breaker, 5);
    while checks.load(SeqCst) < 3 {
        assert!(breaker.permit().is_err());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(
        breaker.opened_count(),
        1,
        "a failed probe is no new opening"
    );
    good.store(true, SeqCst);
    until(&breaker, State::Closed).await;
    breaker.permit().unwrap().success();
    // It starts from nothing, and works a second time.
    fail(&breaker, 4);
    assert!(!breaker.is_open());
    fail(&breaker, 1);
    assert_eq!(breaker.opened_count(), 2);
    until(&breaker, State::Closed).await;
    shutdown.cancel();
    probe.await.unwrap();
}

#[test]
fn zero_makes_no_sense() {
    assert_eq!(Config::default().validate(), Ok(()));
    let wrong = Config {
        window_calls: 0,
        probe_interval_ms: 0,
        ..Config::default()
    };
    assert_eq!(wrong.validate().unwrap_err().len(), 2);
}
