//! What is counted, and when it is too much.

use rand_chacha::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng},
};

use super::*;

const LIMITS: Limits = Limits {
    window: Duration::from_mins(10),
    failed_names: 20,
    success_percent: 20,
    pause: Duration::from_secs(10),
};

const WORDS: usize = 8;

const START: Duration = Duration::from_secs(5);

/// Hashes of names, of which no two set the same bit.
fn names(range: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
    range.map(|n| n + 512 * 7)
}

fn watch() -> Watch {
    Watch::new(WORDS, START)
}

/// Fails under each; how often an episode began.
fn fail(watch: &mut Watch, range: std::ops::Range<u64>, now: Duration) -> usize {
    let began = names(range).filter(|name| watch.count(*name, None, &LIMITS, now));
    began.count()
}

#[test]
fn a_tally_is_near_the_truth() {
    let mut random = ChaCha20Rng::seed_from_u64(1);
    for (words, failed, succeeded, both) in [
        (8, 1, 0, 0),
        (8, 20, 0, 0),
        (8, 20, 3, 10),
        (8, 200, 50, 0),
        (8, 20, 500, 100),
        (8, 1_000, 0, 0),
        (1_024, 500, 100, 50),
        (1_024, 20_000, 60_000, 10_000),
        (1_024, 150_000, 0, 0),
    ] {
        let mut sums = [0.0, 0.0];
        for _ in 0..20 {
            let mut watch = Watch::new(words, START);
            for n in 0..failed + succeeded {
                let name = random.next_u64();
                if n < failed || n - failed < both {
                    watch.failed.insert(name);
                }
                if n >= failed {
                    watch.succeeded.insert(name);
                    watch.accounts.insert(random.next_u64());
                }
            }
            sums[0] += f64::from(watch.tally().failed) / 20.0;
            sums[1] += f64::from(watch.tally().accounts) / 20.0;
        }
        for (estimate, truth) in sums.into_iter().zip([failed, succeeded]) {
            let (truth, most) = (f64::from(truth), f64::from(truth) * 0.1 + 1.0);
            assert!(
                (estimate - truth).abs() <= most,
                "{sums:?}: {failed} {succeeded}"
            );
        }
    }
}

#[test]
fn whatever_comes_it_is_a_number() {
    let mut full = watch();
    for bit in 0..512 {
        full.failed.insert(bit);
    }
    assert!((1_000..10_000).contains(&full.tally().failed));
    for bit in 0..512 {
        full.succeeded.insert(bit);
        full.accounts.insert(bit);
    }
    let Tally { failed, accounts } = full.tally();
    assert_eq!(failed, 0);
    assert!((1_000..10_000).contains(&accounts));
}

#[test]
fn names_count_and_not_tries() {
    let mut watch = watch();
    for _ in 0..1_000 {
        assert_eq!(fail(&mut watch, 0..19, START), 0);
    }
    assert_eq!(fail(&mut watch, 19..20, START), 1);
    assert!(watch.is_slowed(START));
    // It has begun, and begins no second time.
    assert_eq!(fail(&mut watch, 20..100, START), 0);
}

#[test]
fn people_who_mistype_and_get_in_are_none() {
    let mut watch = watch();
    for name in names(0..200) {
        assert!(!watch.count(name, None, &LIMITS, START));
        assert!(!watch.count(name, Some(name), &LIMITS, START));
    }
    assert_eq!(watch.tally().failed, 0);
}

#[test]
fn a_place_where_people_log_in_is_none() {
    let mut watch = watch();
    // Who gets in again and again is one of them.
    for _ in 0..50 {
        for name in names(100..105) {
            watch.count(name, Some(name), &LIMITS, START);
        }
    }
    // Nineteen bits are taken for twenty names, as two names may share one. Five of
    // twenty-five are a fifth of them, and of twenty-six less.
    assert_eq!(fail(&mut watch, 0..19, START), 0);
    assert_eq!(fail(&mut watch, 19..20, START), 1);
}

#[test]
fn one_account_under_many_names_is_one() {
    let mut watch = watch();
    for name in names(100..150) {
        watch.count(name, Some(7), &LIMITS, START);
    }
    assert_eq!(fail(&mut watch, 0..25, START), 1);
    assert_eq!(watch.tally().accounts, 1);
    // Under none of these somebody failed.
    assert_eq!(fail(&mut watch, 100..150, START), 0);
    assert!((20..35).contains(&watch.tally().failed));
}

#[test]
fn a_window_forgets_the_one_before() {
    let mut watch = watch();
    for window in 0..5 {
        let now = START + LIMITS.window * window;
        assert_eq!(fail(&mut watch, 0..19, now), 0);
    }
    let last = (START + LIMITS.window * 5).saturating_sub(Duration::from_nanos(1));
    assert!(!watch.is_idle(&LIMITS, last));
    assert!(watch.is_idle(&LIMITS, START + LIMITS.window * 5));
    assert_eq!(fail(&mut watch, 19..20, last), 1);
}

#[test]
fn in_an_episode_one_login_passes_in_each_pause() {
    let mut watch = watch();
    for _ in 0..100 {
        assert_eq!(watch.admit(&LIMITS, START), Ok(()));
    }
    fail(&mut watch, 0..20, START);
    let after = |seconds| START + Duration::from_secs(seconds);
    let wait = |seconds| Err(Duration::from_secs(seconds));
    assert_eq!(watch.admit(&LIMITS, after(0)), wait(10));
    assert_eq!(watch.admit(&LIMITS, after(9)), wait(1));
    assert_eq!(watch.admit(&LIMITS, after(10)), Ok(()));
    assert_eq!(watch.admit(&LIMITS, after(10)), wait(10));
    // Nothing is saved up.
    assert_eq!(watch.admit(&LIMITS, after(100)), Ok(()));
    assert_eq!(watch.admit(&LIMITS, after(100)), wait(10));
    assert_eq!(watch.admit(&LIMITS, after(599)), Ok(()));
    for _ in 0..100 {
        assert_eq!(watch.admit(&LIMITS, after(600)), Ok(()));
    }
}

#[test]
fn an_episode_ends_when_nothing_speaks_for_it() {
    let mut watch = watch();
    assert!(!watch.is_slowed(START));
    fail(&mut watch, 0..20, START);
    // Names that fail in it put off its end, in the same window and in the next.
    let middle = START + LIMITS.window / 2;
    fail(&mut watch, 20..21, middle);
    let next = START + LIMITS.window;
    assert!(watch.is_slowed(next) && !watch.is_idle(&LIMITS, next));
    assert_eq!(fail(&mut watch, 0..20, next), 0);
    let over = next + LIMITS.window;
    assert!(watch.is_slowed(over.saturating_sub(Duration::from_nanos(1))));
    // In the next window fewer fail than it takes.
    assert_eq!(fail(&mut watch, 0..19, over), 0);
    assert!(!watch.is_slowed(over) && !watch.is_idle(&LIMITS, over));
    assert!(watch.is_idle(&LIMITS, over + LIMITS.window));
}
