#![no_main]

use countersign_fuzz::{run, targets::api_key};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(api_key, data));
