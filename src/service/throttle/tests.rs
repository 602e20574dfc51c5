//! Turns on one node, and the settings.

use std::time::{Duration, Instant};

use futures_util::poll;

use super::*;

const ANA: ThrottleKey = ThrottleKey([1; 32]);
const BEN: ThrottleKey = ThrottleKey([2; 32]);

fn throttle() -> Throttle {
    Throttle::new(Config::default().limits(), 3)
}

#[tokio::test]
async fn under_one_name_one_has_its_turn_and_nobody_is_kept_in_mind() {
    let (throttle, call) = (throttle(), Call::internal("test"));
    let first = throttle.turn(&call, ANA).await.unwrap();
    let mut second = Box::pin(throttle.turn(&call, ANA));
    let mut third = Box::pin(throttle.turn(&call, ANA));
    assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
    let fourth = throttle.turn(&call, ANA).await.unwrap_err();
    assert_eq!(fourth.reason(), Reason::Overloaded);
    let other = throttle.turn(&call, BEN).await.unwrap();
    assert_eq!(throttle.names(), 2);
    drop(other);
    assert_eq!(throttle.names(), 1);
    drop(first);
    let second = second.await.unwrap();
    assert!(poll!(&mut third).is_pending());
    // One that leaves the line keeps it for nobody, and its place for no one.
    drop(third);
    assert_eq!(throttle.names(), 1);
    drop(second);
    assert_eq!(throttle.names(), 0);
}

#[tokio::test]
async fn nobody_waits_for_longer_than_its_deadline_or_for_a_caller_who_has_left() {
    let throttle = throttle();
    let mut call = Call::internal("test");
    let first = throttle.turn(&call, ANA).await.unwrap();
    call.deadline = Some(Instant::now() + Duration::from_millis(20));
    let late = throttle.turn(&call, ANA).await.unwrap_err();
    assert_eq!(late.reason(), Reason::DeadlineExceeded);
    drop(first);
    let gone = Call::internal("test");
    gone.presence.end();
    let gone = throttle.turn(&gone, ANA).await.unwrap_err();
    assert_eq!(gone.reason(), Reason::Cancelled);
    assert_eq!(throttle.names(), 0);
}

type Change = fn(&mut Config);

#[test]
fn settings_that_make_no_sense_are_refused() {
    assert_eq!(Config::default().validate(), Ok(()));
    let wrong: [(Change, &str); 7] = [
        (|c| c.failures_before_delay = 0, "failures_before_delay"),
        (|c| c.failures_before_delay = 100, "failures_before_delay"),
        (|c| c.failures_before_reset = 101, "at most 100"),
        (|c| c.first_delay_seconds = 0, "first_delay_seconds"),
        (|c| c.first_delay_seconds = 3601, "first_delay_seconds"),
        (|c| c.longest_delay_seconds = 86_401, "at most 86400"),
        (|c| c.forget_after_days = 0, "forget_after_days"),
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
