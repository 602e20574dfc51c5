//! How soon a node answers on a database that is there, and what memory it takes
//! while nothing happens.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::login::ACCOUNTS;
use crate::{
    Bench,
    findings::{Bar, Findings},
    load::{Shape, Until, closed},
    node::{Node, validations},
    series::Series,
};

const PATIENCE: Duration = Duration::from_secs(30);

pub fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let mut node = Node::start(bench, "start", None)?;
    bench.say("preparing accounts");
    let sessions = bench.runtime.block_on(async {
        node.register(ACCOUNTS).await?;
        node.log_in(0..1).await
    })?;
    let calls = validations(sessions.iter().map(|session| &session.access_token));
    let once = Shape {
        connections: 1,
        each: 1,
    };
    let [mut first, mut idle] = [const { Series(Vec::new()) }; 2];
    for round in 0..bench.rounds {
        bench.round("start", round);
        node.process.stop()?;
        let begun = Instant::now();
        node.process = node.start_again(bench)?;
        // Refused while it listens and knows no keys yet.
        while !closed(&node.address, &calls, once, Until::Calls(1))
            .is_ok_and(|counts| counts.answered == 1)
        {
            ensure!(begun.elapsed() < PATIENCE, "the node does not answer");
            sleep(Duration::from_micros(500));
        }
        first.extend([begun.elapsed().as_secs_f64() * 1e3]);
        sleep(Duration::from_secs(bench.pick(3, 1)));
        idle.extend([node.process.resident()?]);
    }
    let mut found = Findings::default();
    found.row("idle memory", Bar::AtMost(30.0), Some(15.0), "MiB", idle);
    found.row(
        "start to first answer on an existing database",
        Bar::AtMost(150.0),
        Some(50.0),
        "ms",
        first,
    );
    found.note(format!(
        "Start: from the start of the process to an answered validation, on SQLite with {ACCOUNTS} \
         accounts, after an orderly stop; asked every half millisecond. Idle memory is resident \
         (VmRSS), some seconds after that."
    ));
    Ok(found)
}
