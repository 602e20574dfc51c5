#![no_main]

use countersign_fuzz::{run, targets::refresh_token};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(refresh_token, data));
