#![no_main]

use countersign_fuzz::{run, targets::trust_snapshot};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(trust_snapshot, data));
