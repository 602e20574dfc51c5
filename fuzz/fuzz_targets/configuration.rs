#![no_main]

use std::time::Duration;

use countersign_fuzz::{run_within, targets::configuration};
use libfuzzer_sys::fuzz_target;

// Each input is read twice, with all the defaults, which are a file of their own; and
// it comes from the operator.
const LONGEST: Duration = Duration::from_secs(1);

fuzz_target!(|data: &[u8]| run_within(LONGEST, configuration, data));
