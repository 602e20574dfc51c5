#![no_main]

use countersign_fuzz::{run, targets::frames};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(frames, data));
