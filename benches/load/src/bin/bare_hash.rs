//! Passwords compared on the service's own hash lanes, and nothing else: no
//! socket, no database. A yardstick of the benchmark, and the only one that
//! needs the service's code.
//!
//! ```text
//! bare_hash LANES SECONDS
//! ```
//!
//! prints how many, and the seconds of CPU that they took.

#![expect(clippy::print_stdout, reason = "the benchmark reads it")]

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use countersign::{
    crypto::{Lanes, SystemEntropy, Verdict, lanes},
    domain::{Call, Password},
};
use mimalloc::MiMalloc;

/// The service's own, as the lanes are.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(count), Some(seconds)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: bare_hash LANES SECONDS");
    };
    let (count, lasts) = (count.parse()?, Duration::from_secs_f64(seconds.parse()?));
    let config = lanes::Config {
        lanes: count,
        ..lanes::Config::default()
    };
    let lanes = Lanes::start(&config, Arc::new(SystemEntropy))?;
    let call = Call::internal("bench");
    let password = Password::parse("correct horse battery staple").ok();
    let password = password.context("the password is no password")?;
    let stored = lanes.ticket(&call)?.hash(&password, &call).await?;
    let before = cpu()?;
    let begun = Instant::now();
    let mut hashes = 0_u64;
    // Two for each lane, so that none waits for this thread.
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..2 * count {
        let (lanes, call) = (lanes.clone(), call.clone());
        let (password, stored) = (password.clone(), stored.clone());
        clients.spawn(async move {
            let mut hashes = 0;
            while begun.elapsed() < lasts {
                let ticket = lanes.ticket(&call)?;
                let verdict = ticket.verify(&password, Some(&stored), &call).await?;
                anyhow::ensure!(matches!(verdict, Verdict::Match { .. }));
                hashes += 1;
            }
            Ok(hashes)
        });
    }
    for done in clients.join_all().await {
        hashes += done?;
    }
    println!("{hashes} {}", cpu()?.saturating_sub(before).as_secs_f64());
    Ok(())
}

/// Time on a CPU so far, of all threads.
fn cpu() -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for entry in fs::read_dir("/proc/self/task")? {
        let times = fs::read_to_string(entry?.path().join("schedstat"))?;
        let first = times.split_whitespace().next();
        nanoseconds += first.context("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}
