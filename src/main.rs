//! The binary: arguments, runtimes, exit code. All else is in the library.
//!
//! Runtimes, so that none holds up another: the one of this thread accepts
//! connections and has the side port and health; the listener's threads, each
//! with its own, validate tokens and run the layers; the work one runs everything
//! that touches the database. Password hashing has threads of its own and is on
//! none of them.

use std::{panic::PanicHookInfo, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use countersign::cli::{self, Cli};
use mimalloc::MiMalloc;
use tokio::runtime::{Builder, Runtime};

/// Gives the hash lanes huge pages where the kernel has them, and keeps no freed
/// memory as the system's does.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// How long work may go on after the commands are done; what must not be cut
/// short was waited for by then.
const LEFT_BEHIND: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(note));
    let cli = Cli::parse();
    start(cli).unwrap_or_else(|error| {
        cli::remark(&format!("countersign: {error:#}\n"));
        ExitCode::FAILURE
    })
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    // Fails only if a provider was chosen before, and nobody else does.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
    let serving = runtime(Builder::new_current_thread(), "serve")?;
    let work = runtime(Builder::new_multi_thread(), "work")?;
    let result = serving.block_on(cli::run(cli, work.handle().clone()));
    work.shutdown_timeout(LEFT_BEHIND);
    serving.shutdown_timeout(LEFT_BEHIND);
    result
}

fn runtime(mut kind: Builder, name: &str) -> anyhow::Result<Runtime> {
    kind.thread_name(name)
        .enable_all()
        .build()
        .with_context(|| format!("the runtime `{name}` cannot be started"))
}

/// One line for a panic, until `serve` has a log to write it to.
fn note(panic: &PanicHookInfo<'_>) {
    let place = panic
        .location()
        .map(ToString::to_string)
        .unwrap_or_default();
    let message = panic.payload_as_str().unwrap_or("no message");
    cli::remark(&format!("countersign: panic at {place}: {message}\n"));
}
