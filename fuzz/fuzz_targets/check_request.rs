#![no_main]

use countersign_fuzz::{run, targets::check_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(check_request, data));
