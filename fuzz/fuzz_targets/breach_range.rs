#![no_main]

use countersign_fuzz::{run, targets::breach_range};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(breach_range, data));
