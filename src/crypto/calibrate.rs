//! What a hash takes on this machine, for whoever chooses the parameters.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use countersign_argon2id::Kernel;

use super::{
    argon2id::{Hasher, MOST_ITERATIONS, MOST_MEMORY_KIB, SALT, parameters},
    lanes::{self, LEAST},
};
use crate::{
    domain::Password,
    error::{Error, Result},
};

/// Hashes that each lane makes for one figure, after one that takes its memory.
const ROUNDS: usize = 5;

/// Parameters, and the median time of a hash with them while all lanes hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory of one hash in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub iterations: u32,
    /// What one takes.
    pub time: Duration,
}

/// The instructions that this machine hashes by.
pub fn instructions() -> Kernel {
    Kernel::best()
}

/// What these settings cost on so many lanes at once.
pub fn measure(config: &lanes::Config, lanes: u32) -> Result<Cost> {
    let params = parameters(config.memory_kib, config.iterations, config.parallelism);
    let params = params.ok_or_else(|| Error::internal("parameters that Argon2id does not have"))?;
    let times = |_| -> Result<Vec<Duration>> {
        let mut hasher = Hasher::new(params, Arc::default())?;
        let password = Password::parse("correct horse battery staple").map_err(Error::internal)?;
        hasher.hash(&password, [0; SALT])?;
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            hasher.hash(&password, [0; SALT])?;
            times.push(begun.elapsed());
        }
        Ok(times)
    };
    let times: Vec<Result<_>> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|n| scope.spawn(move || times(n))).collect();
        let joined = lanes.into_iter().map(thread::ScopedJoinHandle::join);
        joined
            .map(|times| times.unwrap_or_else(|_| Err(Error::internal("a lane panicked"))))
            .collect()
    });
    let mut all = Vec::new();
    for times in times {
        all.extend(times?);
    }
    all.sort_unstable();
    Ok(Cost {
        memory_kib: config.memory_kib,
        iterations: config.iterations,
        time: all.get(all.len() / 2).copied().unwrap_or_default(),
    })
}

/// For each of some amounts of memory the fewest passes that a service should
/// run with, and as many more as stay within the wished time. `cost` tells what
/// parameters take.
pub fn candidates<E>(
    wished: Duration,
    mut cost: impl FnMut(u32, u32) -> Result<Cost, E>,
) -> Result<Vec<Cost>, E> {
    let [(large, _), (usual, _), ..] = LEAST;
    let mut found = Vec::new();
    for memory_kib in [usual, large, MOST_MEMORY_KIB] {
        let enough = LEAST.iter().filter(|(memory, _)| *memory <= memory_kib);
        // A single pass is for those who know why they want it.
        let least = enough.map(|(_, passes)| *passes).min().unwrap_or(2).max(2);
        let cheapest = cost(memory_kib, least)?;
        found.push(cheapest);
        let pass = cheapest.time / least;
        let passes = wished.as_micros() / pass.as_micros().max(1);
        let passes = u32::try_from(passes)
            .unwrap_or(u32::MAX)
            .min(MOST_ITERATIONS);
        if passes > least {
            found.push(cost(memory_kib, passes)?);
        }
    }
    Ok(found)
}

/// The one to take: the most memory that fits, as memory is what costs an
/// attacker (RFC 9106, section 4). None if nothing fits.
pub fn proposed(candidates: &[Cost], wished: Duration) -> Option<Cost> {
    // A tenth more is noise.
    let fits = |cost: &&Cost| cost.time <= wished + wished / 10;
    let fitting = candidates.iter().filter(fits);
    fitting
        .max_by_key(|cost| (cost.memory_kib, cost.iterations))
        .copied()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A machine on which a pass over 1 MiB takes so long.
    fn machine(per_mib: Duration) -> impl FnMut(u32, u32) -> Result<Cost, Infallible> {
        move |memory_kib, iterations| {
            Ok(Cost {
                memory_kib,
                iterations,
                time: per_mib * (memory_kib / 1024) * iterations,
            })
        }
    }

    fn pairs(costs: &[Cost]) -> Vec<(u32, u32)> {
        costs.iter().map(|c| (c.memory_kib, c.iterations)).collect()
    }

    #[test]
    fn the_most_memory_that_fits_is_proposed_with_as_many_passes_as_fit() {
        let wished = Duration::from_millis(50);
        let propose = |per_mib| {
            let Ok(found) = candidates(wished, machine(per_mib));
            let proposed = proposed(&found, wished).map(|c| (c.memory_kib, c.iterations));
            (pairs(&found), proposed)
        };
        let fast = propose(Duration::from_micros(100));
        assert_eq!(
            fast.0,
            [
                (19456, 2),
                (19456, 10),
                (47104, 2),
                (47104, 10),
                (65536, 2),
                (65536, 7)
            ]
        );
        assert_eq!(fast.1, Some((65536, 7)));
        let usual = propose(Duration::from_micros(500));
        let found = [(19456, 2), (19456, 5), (47104, 2), (65536, 2)];
        assert_eq!(usual, (found.to_vec(), Some((47104, 2))));
        let slow = propose(Duration::from_micros(1_200));
        let found = [(19456, 2), (47104, 2), (65536, 2)];
        assert_eq!(slow, (found.to_vec(), Some((19456, 2))));
        assert_eq!(propose(Duration::from_millis(2)).1, None);
    }

    #[test]
    fn whatever_is_proposed_may_be_configured() {
        for micros in [1, 10, 100, 1_000] {
            let wished = Duration::from_millis(40);
            let Ok(found) = candidates(wished, machine(Duration::from_micros(micros)));
            for cost in found {
                let config = lanes::Config {
                    memory_kib: cost.memory_kib,
                    iterations: cost.iterations,
                    ..lanes::Config::default()
                };
                assert_eq!(config.validate(), Ok(()));
            }
        }
    }

    #[test]
    fn a_hash_takes_time() {
        let config = lanes::Config {
            memory_kib: 64,
            ..lanes::Config::default()
        };
        let cost = measure(&config, 2).unwrap();
        assert!(cost.time > Duration::ZERO);
    }
}
