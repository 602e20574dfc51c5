#![no_main]

use countersign_fuzz::{run, targets::access_token};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(access_token, data));
