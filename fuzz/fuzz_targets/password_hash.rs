#![no_main]

use countersign_fuzz::{run, targets::password_hash};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(password_hash, data));
