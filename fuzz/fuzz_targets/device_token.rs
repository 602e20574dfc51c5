#![no_main]

use countersign_fuzz::{run, targets::device_token};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(device_token, data));
