#![no_main]

use countersign_fuzz::{run, targets::page_token};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(page_token, data));
