#![no_main]

use countersign_fuzz::{run, targets::audit_anchor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(audit_anchor, data));
