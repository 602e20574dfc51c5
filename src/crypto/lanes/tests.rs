use std::{
    future::Future,
    pin::pin,
    task::{Context, Waker},
};

use tokio::task::JoinHandle;

use super::*;
use crate::crypto::testing::Seeded;

/// Blocks that one hash under the parameters of [`lanes`] fills.
const HASH: u64 = 8;

fn lanes(lanes: usize, queue: usize) -> Lanes {
    let config = Config {
        lanes,
        queue,
        memory_kib: 8,
        iterations: 1,
        parallelism: 1,
    };
    Lanes::start(&config, Arc::new(Seeded::new(1))).unwrap()
}

fn call() -> Call {
    Call::internal("test")
}

fn call_within(left: Duration) -> Call {
    let deadline = Some(Instant::now() + left);
    Call { deadline, ..call() }
}

fn password(text: &str) -> Password {
    Password::parse(text).unwrap()
}

fn reason<T>(result: Result<T>) -> Option<Reason> {
    result.err().map(|error| error.reason())
}

/// A lane kept busy until it is released.
struct Busy {
    release: Sender<()>,
    task: JoinHandle<Result<()>>,
}

impl Busy {
    /// Returns once the lane is at it.
    async fn keep(lanes: &Lanes) -> Self {
        let ticket = lanes.ticket(&call()).unwrap();
        let (release, gate) = channel();
        let (entered, at_work) = oneshot::channel();
        let task = tokio::spawn(async move {
            let work = move |_: &mut Hasher| {
                let _ = entered.send(());
                let _ = gate.recv();
                Ok(())
            };
            ticket.run(&call(), work).await
        });
        at_work.await.unwrap();
        Self { release, task }
    }

    async fn release(self) {
        drop(self.release);
        self.task.await.unwrap().unwrap();
    }
}

/// Polls once, so that the job is sent.
fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    future
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_ready()
}

#[tokio::test]
async fn a_hash_verifies_and_another_password_does_not() {
    let (lanes, call) = (lanes(1, 4), call());
    let (right, wrong) = (password("right"), password("wrong"));
    let hash = lanes.ticket(&call).unwrap().hash(&right, &call);
    let hash = hash.await.unwrap();
    let verify = |password, hash| {
        let ticket = lanes.ticket(&call).unwrap();
        let call = call.clone();
        async move { ticket.verify(password, hash, &call).await.unwrap() }
    };
    assert!(matches!(
        verify(&right, Some(&hash)).await,
        Verdict::Match { upgraded: None }
    ));
    assert!(matches!(
        verify(&wrong, Some(&hash)).await,
        Verdict::Mismatch
    ));
    assert!(matches!(verify(&right, None).await, Verdict::Mismatch));
}

#[tokio::test]
async fn two_hashes_of_one_password_differ() {
    let (lanes, call) = (lanes(1, 4), call());
    let password = password("right");
    let first = lanes.ticket(&call).unwrap().hash(&password, &call).await;
    let second = lanes.ticket(&call).unwrap().hash(&password, &call).await;
    assert_ne!(first.unwrap(), second.unwrap());
}

#[tokio::test]
async fn an_unknown_account_costs_one_hash_like_a_known_one() {
    let (lanes, call) = (lanes(1, 4), call());
    let password = password("right");
    let hash = lanes.ticket(&call).unwrap().hash(&password, &call).await;
    let hash = hash.unwrap();
    assert_eq!(lanes.work(), HASH);
    for stored in [None, Some(&hash)] {
        let before = lanes.work();
        let ticket = lanes.ticket(&call).unwrap();
        ticket.verify(&password, stored, &call).await.unwrap();
        assert_eq!(lanes.work() - before, HASH);
    }
}

#[tokio::test]
async fn hashing_happens_on_a_lane_and_the_caller_only_waits() {
    let (lanes, call) = (lanes(1, 4), call());
    let busy = Busy::keep(&lanes).await;
    let password = password("right");
    let mut hash = pin!(lanes.ticket(&call).unwrap().hash(&password, &call));
    // The one lane is busy, so whatever would hash here is not a lane.
    assert!(!poll_once(hash.as_mut()));
    assert_eq!(lanes.work(), 0);
    busy.release().await;
    hash.await.unwrap();
    assert_eq!(lanes.work(), HASH);

    let name = |_: &mut Hasher| Ok(thread::current().name().map(str::to_owned));
    let name = lanes.ticket(&call).unwrap().run(&call, name).await;
    assert_eq!(name.unwrap().as_deref(), Some("hash-lane-0"));
}

#[tokio::test]
async fn a_full_queue_sheds_at_once_and_says_when_to_come_back() {
    let (lanes, call) = (lanes(1, 2), call());
    lanes.0.mean.add(Duration::from_millis(400));
    let busy = Busy::keep(&lanes).await;
    let _waiting = [lanes.ticket(&call).unwrap(), lanes.ticket(&call).unwrap()];
    assert_eq!(reason(lanes.ticket(&call)), Some(Reason::Overloaded));
    assert_eq!(lanes.0.retry_after(3), Duration::from_millis(1200));
    busy.release().await;
}

#[tokio::test]
async fn a_place_comes_back_however_its_ticket_ends() {
    let (lanes, call) = (lanes(1, 1), call());
    let right = password("right");
    let free = || lanes.0.places.available_permits();
    assert_eq!(free(), 2);
    drop(lanes.ticket(&call).unwrap());
    assert_eq!(free(), 2);

    let ticket = lanes.ticket(&call).unwrap();
    assert_eq!(free(), 1);
    ticket.hash(&right, &call).await.unwrap();
    assert_eq!(free(), 2);

    for memory in ["4294967295", "65537"] {
        let unusable = PasswordHash::from_phc(format!(
            "$argon2id$v=19$m={memory},t=2,p=1$AAECAwQFBgcICQoLDA0ODw$LfR+3mNY7Repl21PztuJehADbUMqSs7xfSY7/Ji9IKw"
        ));
        let ticket = lanes.ticket(&call).unwrap();
        let before = lanes.work();
        let refused = ticket.verify(&right, Some(&unusable), &call).await;
        assert_eq!(reason(refused), Some(Reason::Internal));
        assert_eq!((free(), lanes.work()), (2, before));
    }
}

#[tokio::test]
async fn a_panic_ends_its_job_and_not_the_lane() {
    let (lanes, call) = (lanes(1, 1), call());
    for _ in 0..3 {
        let ticket = lanes.ticket(&call).unwrap();
        let outcome = ticket.run::<()>(&call, |_| panic!("a test's panic")).await;
        assert_eq!(reason(outcome), Some(Reason::Internal));
    }
    let ticket = lanes.ticket(&call).unwrap();
    ticket.hash(&password("right"), &call).await.unwrap();
    assert_eq!(lanes.0.places.available_permits(), 2);
}

#[tokio::test]
async fn work_whose_caller_has_left_is_not_begun() {
    let (lanes, call) = (lanes(1, 4), call());
    let busy = Busy::keep(&lanes).await;
    let password = password("right");
    {
        let mut left = pin!(lanes.ticket(&call).unwrap().hash(&password, &call));
        assert!(!poll_once(left.as_mut()));
    }
    busy.release().await;
    // Behind it in the queue: once this is done, the other was passed over.
    let ticket = lanes.ticket(&call).unwrap();
    ticket.hash(&password, &call).await.unwrap();
    assert_eq!(lanes.work(), HASH);
    assert_eq!(lanes.0.places.available_permits(), 5);
}

#[tokio::test]
async fn work_that_outlives_its_caller_is_not_begun_either() {
    let (lanes, call) = (lanes(1, 4), call());
    let busy = Busy::keep(&lanes).await;
    let password = password("right");
    let mut detached = pin!(lanes.ticket(&call).unwrap().hash(&password, &call));
    assert!(!poll_once(detached.as_mut()));
    call.presence.end();
    busy.release().await;
    assert_eq!(reason(detached.await), Some(Reason::Cancelled));
    assert_eq!(lanes.work(), 0);
    assert_eq!(lanes.0.places.available_permits(), 5);
}

#[tokio::test]
async fn work_that_is_late_is_not_begun() {
    let lanes = lanes(1, 4);
    let busy = Busy::keep(&lanes).await;
    let call = call_within(Duration::from_millis(20));
    let password = password("right");
    let mut late = pin!(lanes.ticket(&call).unwrap().hash(&password, &call));
    assert!(!poll_once(late.as_mut()));
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(reason(lanes.ticket(&call)), Some(Reason::DeadlineExceeded));
    busy.release().await;
    assert_eq!(reason(late.await), Some(Reason::DeadlineExceeded));
    assert_eq!(lanes.work(), 0);
}

#[tokio::test]
async fn a_queue_too_long_for_the_deadline_refuses() {
    let lanes = lanes(2, 8);
    lanes.0.mean.add(Duration::from_secs(10));
    let soon = call_within(Duration::from_secs(15));
    let later = call_within(Duration::from_secs(25));
    // Nobody is ahead: the estimate does not refuse, however bad it is.
    let hasty = call_within(Duration::from_secs(5));
    let _first = lanes.ticket(&hasty).unwrap();
    assert_eq!(reason(lanes.ticket(&hasty)), Some(Reason::Overloaded));
    // One lane is still free: 10 s.
    let _second = lanes.ticket(&soon).unwrap();
    // None is: 20 s.
    assert_eq!(reason(lanes.ticket(&soon)), Some(Reason::Overloaded));
    let _third = lanes.ticket(&later).unwrap();
    assert!(lanes.ticket(&call()).is_ok());
    // What was refused holds no place.
    assert_eq!(lanes.0.taken(), 3);
}

#[tokio::test]
async fn lanes_work_at_the_same_time() {
    let lanes = lanes(2, 4);
    let first = Busy::keep(&lanes).await;
    let second = Busy::keep(&lanes).await;
    second.release().await;
    first.release().await;
}

#[tokio::test]
async fn the_cost_is_booked_to_the_call() {
    let (lanes, call) = (lanes(1, 4), call());
    let busy = Busy::keep(&lanes).await;
    let password = password("right");
    let mut hash = pin!(lanes.ticket(&call).unwrap().hash(&password, &call));
    assert!(!poll_once(hash.as_mut()));
    tokio::time::sleep(Duration::from_millis(5)).await;
    busy.release().await;
    hash.await.unwrap();
    assert!(call.cost.hash_wait_micros() >= 5000);
    assert!(call.cost.hash_micros() > 0);
}

#[tokio::test]
async fn the_threads_end_with_the_last_handle() {
    let lanes = lanes(2, 4);
    let busy = Busy::keep(&lanes).await;
    let work = Arc::downgrade(&lanes.0.work);
    drop(lanes);
    busy.release().await;
    // Each hasher holds the counter, and goes with its thread.
    while work.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn lanes_stand_back_behind_the_threads_that_serve() {
    let ours = rustix::process::nice(0).unwrap();
    let lanes = lanes(1, 1);
    let call = call();
    let ticket = lanes.ticket(&call).unwrap();
    let theirs = ticket.run(&call, |_| rustix::process::nice(0).map_err(Error::internal));
    // 19 is the nicest that there is.
    assert_eq!(theirs.await.unwrap(), (ours + NICER).min(19));
    assert_eq!(rustix::process::nice(0).unwrap(), ours);
}

#[test]
fn parameters_that_do_not_exist_do_not_start() {
    let start = |memory_kib, iterations, parallelism| {
        let config = Config {
            lanes: 1,
            queue: 1,
            memory_kib,
            iterations,
            parallelism,
        };
        Lanes::start(&config, Arc::new(Seeded::new(1))).is_ok()
    };
    assert!(start(8, 1, 1));
    assert!(!start(7, 1, 1));
    assert!(!start(15, 1, 2));
    assert!(!start(8, 0, 1));
    assert!(!start(8, 1, 0));
    assert!(!start(8, 11, 1));
    assert!(!start(65_537, 1, 1));
}

#[test]
fn the_configuration_refuses_what_is_cheap_or_absurd() {
    assert_eq!(Config::default().validate(), Ok(()));
    let faults = |memory_kib, iterations, parallelism| {
        let config = Config {
            memory_kib,
            iterations,
            parallelism,
            ..Config::default()
        };
        config.validate().err().map_or(0, |faults| faults.len())
    };
    assert_eq!(faults(47_104, 1, 1), 0);
    assert_eq!(faults(7_168, 5, 1), 0);
    assert_eq!(faults(19_456, 1, 1), 1);
    assert_eq!(faults(19_455, 2, 1), 1);
    assert_eq!(faults(65_537, 2, 1), 1);
    assert_eq!(faults(19_456, 11, 1), 1);
    assert_eq!(faults(19_456, 2, 5), 1);
    assert_eq!(faults(8, 0, 1), 2);
    let many = Config {
        lanes: 257,
        queue: 65_537,
        ..Config::default()
    };
    assert_eq!(many.validate().unwrap_err().len(), 2);
    let unknown = serde_json::from_str::<Config>(r#"{"lane": 1}"#);
    assert!(unknown.is_err());
}
