//! The log of this process, captured, for tests that read it.

use std::{
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

use tracing_subscriber::fmt::writer::BoxMakeWriter;

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Capture;

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where the log goes.
pub fn writer() -> BoxMakeWriter {
    BoxMakeWriter::new(|| Capture)
}

/// All lines so far, of all tests in this process.
pub fn lines() -> Vec<String> {
    let bytes = LINES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    String::from_utf8_lossy(&bytes)
        .lines()
        .map(str::to_owned)
        .collect()
}
