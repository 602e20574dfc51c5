//! Password hashing on threads of its own, behind a bounded queue.
//!
//! A hash takes tens of milliseconds of one core and 19 MiB. A few plain
//! threads do nothing else, each with memory taken once, so that a storm of
//! logins costs other calls nothing and the process no more than was set out.
//!
//! Whoever wants a hash takes a [`Ticket`] first, before any other work of the
//! call: a full queue, or one too long for the call's deadline, refuses there
//! and then. Work whose caller has left, or is late, is not begun.
//!
//! They run at a lower CPU priority than the threads that serve, which never wait
//! for one of them where cores are few.
//!
//! There is no priority and no fairness between callers: the queue is short,
//! and limits per caller are set in front of it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use metrics::{counter, gauge, histogram};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::Span;

use countersign_argon2id::Params;

use super::argon2id::{
    self, Hasher, MOST_ITERATIONS, MOST_MEMORY_KIB, MOST_PARALLELISM, Stored, parameters,
};
use crate::{
    domain::{Call, Entropy, Password, PasswordHash},
    error::{Error, Reason, Result},
};

const DEPTH: &str = "countersign_hash_queue_depth";
const SHED: &str = "countersign_hash_shed_total";
const HASH_SECONDS: &str = "countersign_hash_seconds";
const WAIT_SECONDS: &str = "countersign_hash_wait_seconds";

/// Memory in KiB and passes that cost an attacker about the same (OWASP
/// Password Storage Cheat Sheet); the least that a service should run with.
pub(super) const LEAST: [(u32, u32); 5] =
    [(47104, 1), (19456, 2), (12288, 3), (9216, 4), (7168, 5)];

/// How much nicer than the rest of the process a lane is, in steps of setpriority(2).
#[cfg(target_os = "linux")]
const NICER: i32 = 10;

/// A client that comes back sooner than this finds the same queue.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);

/// How hashing is set up, and what a hash costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Threads; 0 is half the cores, at least 1.
    pub lanes: usize,
    /// Places for calls that wait; 0 is 16 for each lane.
    pub queue: usize,
    /// Memory of one hash in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub iterations: u32,
    /// Argon2's own lanes. More than 1 saves nothing here: one thread computes
    /// them in turn.
    pub parallelism: u32,
}

/// The threads that hash. Clones share them; they end with the last clone and
/// the last ticket.
#[derive(Debug, Clone)]
pub struct Lanes(Arc<Queue>);

/// A place in the queue. Given back when it is dropped unused.
#[derive(Debug)]
pub struct Ticket {
    queue: Arc<Queue>,
    place: Place,
}

/// What a comparison says.
#[derive(Debug)]
pub enum Verdict {
    /// The password is wrong, or there was none to compare with.
    Mismatch,
    /// The password is right.
    Match {
        /// The password hashed anew, if the stored hash was made under
        /// parameters other than those in force.
        upgraded: Option<PasswordHash>,
    },
}

/// What a lane does, and the call that it does it for.
struct Job {
    work: Box<dyn FnOnce(&mut Hasher) + Send>,
    span: Span,
}

#[derive(Debug)]
struct Queue {
    jobs: Sender<Job>,
    /// One place for each job that waits or runs, and each ticket held.
    places: Arc<Semaphore>,
    capacity: usize,
    lanes: usize,
    mean: Arc<Mean>,
    work: Arc<AtomicU64>,
    entropy: Arc<dyn Entropy>,
}

/// The time that a job takes, in microseconds: a mean that forgets.
#[derive(Debug, Default)]
struct Mean(AtomicU64);

/// Keeps the gauge in step with the semaphore.
#[derive(Debug)]
struct Place(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Default for Config {
    fn default() -> Self {
        Self {
            lanes: 0,
            queue: 0,
            memory_kib: 19456,
            iterations: 2,
            parallelism: 1,
        }
    }
}

impl Config {
    /// Checks what a service should run with. [`Lanes::start`] takes cheaper
    /// parameters, for tests.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut faults = Vec::new();
        if self.lanes > 256 {
            faults.push("hashing.lanes must be at most 256; 0 is half the cores".to_owned());
        }
        if self.queue > 65_536 {
            faults.push("hashing.queue must be at most 65536; 0 is 16 for each lane".to_owned());
        }
        if self.params().is_none() {
            faults.push(format!(
                "hashing.memory_kib must be 8 to {MOST_MEMORY_KIB} and at least 8 for each of \
                 hashing.parallelism, hashing.iterations 1 to {MOST_ITERATIONS}, \
                 hashing.parallelism 1 to {MOST_PARALLELISM}"
            ));
        }
        let enough =
            |&(memory, passes): &(u32, u32)| self.memory_kib >= memory && self.iterations >= passes;
        if !LEAST.iter().any(enough) {
            let pairs = LEAST.map(|(memory, passes)| format!("{memory} with {passes}"));
            faults.push(format!(
                "hashing.memory_kib with hashing.iterations is too cheap; use at least one of {}",
                pairs.join(", ")
            ));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
    }

    /// How many threads hash.
    pub fn threads(&self) -> usize {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        match self.lanes {
            0 => (cores / 2).max(1),
            lanes => lanes,
        }
    }

    fn params(&self) -> Option<Params> {
        parameters(self.memory_kib, self.iterations, self.parallelism)
    }
}

impl Lanes {
    /// Starts the threads with their memory. Fails if the parameters are not
    /// legal, there is not that much memory, or this machine hashes wrong.
    pub fn start(config: &Config, entropy: Arc<dyn Entropy>) -> Result<Self> {
        let params = config
            .params()
            .ok_or_else(|| Error::internal("parameters that Argon2id does not have"))?;
        let kernel = argon2id::instructions()?;
        let lanes = config.threads();
        tracing::debug!(%kernel, lanes, "the hash lanes begin");
        let queue = match config.queue {
            0 => 16 * lanes,
            queue => queue,
        };
        let capacity = lanes + queue;
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let work = Arc::default();
        let mean = Arc::default();
        for number in 0..lanes {
            let hasher = Hasher::new(params, Arc::clone(&work))?;
            let jobs = Arc::clone(&receiver);
            thread::Builder::new()
                .name(format!("hash-lane-{number}"))
                .spawn(move || run(&jobs, hasher))
                .map_err(Error::internal)?;
        }
        Ok(Self(Arc::new(Queue {
            jobs: sender,
            places: Arc::new(Semaphore::new(capacity)),
            capacity,
            lanes,
            mean,
            work,
            entropy,
        })))
    }

    /// Takes a place in the queue, or refuses with `OVERLOADED` and the time
    /// after which there should be one. A queue that is too long for the
    /// call's deadline refuses likewise: it is the load that is in the way,
    /// and coming back later helps. With nobody ahead no estimate refuses, so
    /// that one bad measurement cannot shut everyone out for good.
    pub fn ticket(&self, call: &Call) -> Result<Ticket> {
        let queue = &self.0;
        if call.is_late() {
            return Err(Error::new(Reason::DeadlineExceeded));
        }
        let place = Arc::clone(&queue.places).try_acquire_owned();
        let Ok(place) = place.map(Place::taken) else {
            counter!(SHED, "cause" => "full").increment(1);
            return Err(Error::overloaded(queue.retry_after(queue.capacity)));
        };
        let ahead = queue.taken().saturating_sub(1);
        let finished = queue.wait(ahead) + queue.mean.get();
        if ahead > 0 && call.remaining().is_some_and(|left| finished > left) {
            counter!(SHED, "cause" => "deadline").increment(1);
            return Err(Error::overloaded(queue.retry_after(ahead)));
        }
        Ok(Ticket {
            queue: Arc::clone(queue),
            place,
        })
    }

    /// How many tickets there are.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Blocks of 1 KiB that all hashes so far have filled: what hashing has
    /// cost, without a clock.
    pub fn work(&self) -> u64 {
        self.0.work.load(Relaxed)
    }
}

impl Queue {
    /// Places that are taken: tickets held, jobs waiting, jobs running.
    fn taken(&self) -> usize {
        self.capacity
            .saturating_sub(self.places.available_permits())
    }

    /// How long it takes until a lane is free, with so many ahead.
    fn wait(&self, ahead: usize) -> Duration {
        let rounds = u32::try_from(ahead / self.lanes).unwrap_or(u32::MAX);
        self.mean.get().saturating_mul(rounds)
    }

    fn retry_after(&self, ahead: usize) -> Duration {
        self.wait(ahead).max(SHORTEST_RETRY)
    }
}

impl Ticket {
    /// Hashes a new password under the parameters in force.
    pub async fn hash(self, password: &Password, call: &Call) -> Result<PasswordHash> {
        let password = password.clone();
        let salt = self.queue.entropy.array();
        self.run(call, move |hasher| hasher.hash(&password, salt))
            .await
    }

    /// Compares a password with a stored hash. `None` costs what a hash under
    /// the parameters in force costs and is a mismatch; pass it for an
    /// identifier that nobody has and for an account that may not log in, so
    /// that neither shows in the time. A stored hash that asks for more than
    /// the caps is an error before any work.
    pub async fn verify(
        self,
        password: &Password,
        stored: Option<&PasswordHash>,
        call: &Call,
    ) -> Result<Verdict> {
        let stored = stored.map(Stored::parse).transpose()?;
        let password = password.clone();
        let salt: [u8; argon2id::SALT] = self.queue.entropy.array();
        self.run(call, move |hasher| {
            hasher.verify(&password, stored.as_ref(), salt)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        self,
        call: &Call,
        work: impl FnOnce(&mut Hasher) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Self { queue, place } = self;
        let (reply, answer) = oneshot::channel();
        let (deadline, cost) = (call.deadline, Arc::clone(&call.cost));
        let presence = call.presence.clone();
        let mean = Arc::clone(&queue.mean);
        let queued = Instant::now();
        let work = Box::new(move |hasher: &mut Hasher| {
            // Given back when the job ends, also when it panics.
            let place = place;
            let begun = Instant::now();
            let wait = begun - queued;
            histogram!(WAIT_SECONDS).record(wait);
            tracing::trace!("a lane begins");
            let outcome = if reply.is_closed() {
                return;
            } else if presence.has_ended() {
                cost.add_hash(wait, Duration::ZERO);
                Err(Error::new(Reason::Cancelled))
            } else if deadline.is_some_and(|deadline| deadline <= begun) {
                cost.add_hash(wait, Duration::ZERO);
                Err(Error::new(Reason::DeadlineExceeded))
            } else {
                let outcome = work(hasher);
                let time = begun.elapsed();
                histogram!(HASH_SECONDS).record(time);
                mean.add(time);
                cost.add_hash(wait, time);
                outcome
            };
            drop(place);
            // A caller that has left meanwhile is no fault.
            let _ = reply.send(outcome);
        });
        let span = Span::current();
        queue
            .jobs
            .send(Job { work, span })
            .map_err(|_| Error::internal("the hash lanes have ended"))?;
        answer
            .await
            .unwrap_or_else(|_| Err(Error::internal("a password hash panicked")))
    }
}

/// What a lane does all its life: until nobody can send any more.
fn run(jobs: &Mutex<Receiver<Job>>, mut hasher: Hasher) {
    // Of this thread alone, on Linux. Where it is refused hashing goes on as before.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICER) {
        tracing::debug!(%error, "a hash lane keeps the priority of the process");
    }
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { work, span }) = job else { return };
        // What is logged here belongs to the call, a panic included.
        let _in_call = span.entered();
        // The memory is overwritten by the next hash, whatever state it is in.
        if catch_unwind(AssertUnwindSafe(|| work(&mut hasher))).is_err() {
            tracing::error!("a password hash panicked; the lane goes on");
        }
    }
}

impl Mean {
    fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Relaxed))
    }

    /// Each measurement counts an eighth. Two at once may lose one.
    fn add(&self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mean = match self.0.load(Relaxed) {
            0 => time,
            mean => mean - mean / 8 + time / 8,
        };
        self.0.store(mean, Relaxed);
    }
}

impl Place {
    fn taken(permit: OwnedSemaphorePermit) -> Self {
        gauge!(DEPTH).increment(1);
        Self(permit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        gauge!(DEPTH).decrement(1);
    }
}

#[cfg(test)]
mod tests;
