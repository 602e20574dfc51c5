//! The arithmetic of waits, against a model that is too simple to be wrong.

use jiff::{SignedDuration, Timestamp};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng},
};

use super::*;

/// A year, in seconds.
const YEAR: i64 = 365 * 24 * 3600;

const LIMITS: Limits = Limits {
    before_delay: 5,
    first_delay: SignedDuration::from_secs(30),
    longest_delay: SignedDuration::from_secs(3600),
    before_reset: 100,
    kept: SignedDuration::from_hours(24),
};

/// Failures in a row, the time of the last one, and nothing else.
#[derive(Debug, Default)]
struct Model {
    failures: u32,
    failed_at: i64,
}

impl Model {
    fn wait(&self, limits: &Limits, now: i64) -> i64 {
        (self.failed_at + delay(limits, self.failures) - now).max(0)
    }
}

/// The wait after so many failures, counted up from the first.
fn delay(limits: &Limits, failures: u32) -> i64 {
    let mut delay = 0;
    for n in 1..=failures {
        delay = if n >= limits.before_reset {
            YEAR
        } else if n == limits.before_delay {
            limits.first_delay.as_secs()
        } else {
            (delay * 2).min(limits.longest_delay.as_secs())
        };
    }
    delay
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn below(random: &mut ChaCha20Rng, end: u32) -> u32 {
    random.next_u32() % end
}

#[test]
fn the_defaults_wait_half_a_minute_up_to_an_hour() {
    let waits = (1..=13).map(|n| LIMITS.delay(n).as_secs());
    let expected = [0, 0, 0, 0, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600];
    assert!(waits.eq(expected));
    assert_eq!(LIMITS.delay(99).as_secs(), 3600);
    for failures in [100, 101, u32::MAX] {
        assert_eq!(LIMITS.delay(failures).as_secs(), YEAR);
    }
    // Whoever tries to have somebody's password locked is at it for days.
    let days: i64 = (1..100).map(|n| LIMITS.delay(n).as_secs()).sum::<i64>() / 86_400;
    assert_eq!(days, 3);
}

#[test]
fn it_does_what_the_model_does() {
    for seed in 0..300 {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let first = 1 + i64::from(below(&mut random, 60));
        let before_delay = 1 + below(&mut random, 8);
        let limits = Limits {
            before_delay,
            first_delay: SignedDuration::from_secs(first),
            longest_delay: SignedDuration::from_secs(first + i64::from(below(&mut random, 7200))),
            before_reset: before_delay + 1 + below(&mut random, 40),
            kept: LIMITS.kept,
        };
        let (mut now, mut model, mut counter) = (1_000_000_000, Model::default(), None);
        for step in 0..300 {
            let wait = model.wait(&limits, now);
            now += match below(&mut random, 6) {
                0 => 0,
                1 => i64::from(below(&mut random, 10)),
                2 => wait,
                3 => (wait - 1).max(0),
                _ => i64::from(below(&mut random, 4000)),
            };
            let wait = model.wait(&limits, now);
            let found = counter.as_ref().and_then(|c| limits.wait(c, at(now)));
            let found = found.map_or(0, |wait| wait.as_secs());
            assert_eq!(
                found, wait,
                "seed {seed}, step {step}: {model:?} {limits:?}"
            );
            if wait > 0 {
                let seen = counter.as_ref().unwrap();
                let noted = limits.refused(seen, SignedDuration::from_secs(wait), at(now));
                assert_eq!((noted.not_before, noted.recorded), (seen.not_before, true));
                counter = Some(noted);
            } else if below(&mut random, 20) == 0 {
                (model, counter) = (Model::default(), None);
            } else {
                model = Model {
                    failures: model.failures + 1,
                    failed_at: now,
                };
                let next = limits.failed(counter.as_ref(), at(now));
                assert_eq!((next.failures, next.recorded), (model.failures, false));
                assert_eq!(next.expires_at, next.not_before + limits.kept);
                counter = Some(next);
            }
        }
    }
}

#[test]
fn a_clock_that_was_set_back_makes_no_wait_longer() {
    let mut counter = None;
    for n in 0..7 {
        counter = Some(LIMITS.failed(counter.as_ref(), at(1_000_000 + n)));
    }
    let counter = counter.unwrap();
    let before = at(1_000_006 - 86_400);
    let wait = LIMITS.wait(&counter, before);
    assert_eq!(wait, Some(LIMITS.delay(7)));
    // Noted, it passes by the clock as it is now.
    let noted = LIMITS.refused(&counter, wait.unwrap(), before);
    assert!(noted.not_before < counter.not_before);
    let almost = before + LIMITS.delay(7) - SignedDuration::from_secs(1);
    assert_eq!(
        LIMITS.wait(&noted, almost),
        Some(SignedDuration::from_secs(1))
    );
    assert_eq!(LIMITS.wait(&noted, before + LIMITS.delay(7)), None);
}

#[test]
fn of_two_counters_the_failures_of_one_and_the_wait_of_the_other_may_count() {
    let often = (0..4).fold(None, |seen, n| Some(LIMITS.failed(seen.as_ref(), at(n))));
    let strict = Limits {
        before_delay: 1,
        ..LIMITS
    };
    let (often, lately) = (often.unwrap(), strict.failed(None, at(100)));
    let both = often.stricter(lately);
    assert_eq!(both, lately.stricter(often));
    assert_eq!((both.failures, both.not_before), (4, lately.not_before));
    assert_eq!(both.expires_at, lately.expires_at);
    assert_eq!(both.stricter(often), both);
}

#[test]
fn limits_that_were_made_gentler_hold_at_once() {
    let strict = Limits {
        first_delay: SignedDuration::from_secs(3600),
        before_delay: 1,
        ..LIMITS
    };
    let counter = strict.failed(None, at(1_000_000));
    assert!(strict.wait(&counter, at(1_000_000)).is_some());
    assert_eq!(LIMITS.wait(&counter, at(1_000_000)), None);
}
