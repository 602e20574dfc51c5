#![no_main]

use countersign_fuzz::{run, targets::claims};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(claims, data));
