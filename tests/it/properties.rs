//! Rules that must hold whatever happens in whatever order, on sequences that
//! nobody has thought of: each is told once more as a model that fits on a page, and
//! the service must answer as the model does. What fails is cut down to the shortest
//! sequence that fails still.
//!
//! The sequences are the same in every run; `PROPTEST_RNG_SEED=…` and
//! `PROPTEST_CASES=…` try others, and more.

mod keys;
mod refresh;
mod throttle;

use std::fmt::Debug;

use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngSeed, TestCaseError, TestRunner},
};
use tokio::{runtime::Handle, task::block_in_place};

/// What a case comes to.
type Verdict = Result<(), TestCaseError>;

/// How many cases are tried in an ordinary run.
const CASES: u32 = 16;

/// Tries cases, one after another.
fn try_cases<S>(cases: &S, holds: impl AsyncFn(S::Value) -> Verdict)
where
    S: Strategy<Value: Debug>,
{
    let asked = Config::default();
    let config = Config {
        cases: match std::env::var_os("PROPTEST_CASES") {
            Some(_) => asked.cases,
            None => CASES,
        },
        rng_seed: match asked.rng_seed {
            RngSeed::Random => RngSeed::Fixed(1),
            seed @ RngSeed::Fixed(_) => seed,
        },
        failure_persistence: None,
        ..asked
    };
    let runtime = Handle::current();
    let outcome =
        block_in_place(|| TestRunner::new(config).run(cases, |case| runtime.block_on(holds(case))));
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
