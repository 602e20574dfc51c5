//! What a login costs beyond its hash, and what a hash costs.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::{
    Bench, beside,
    findings::{Bar, Findings},
    load::{Shape, Until, closed},
    node::{Node, logins},
    process::Running,
    series::Series,
};

/// So many that an account's sessions stay below their most.
pub const ACCOUNTS: usize = 64;

/// Threads that hash, as the service counts them by default.
pub fn lanes(bench: &Bench) -> usize {
    (bench.servers.count() / 2).max(1)
}

/// A load that keeps all lanes busy and gets no call refused.
pub fn steady(bench: &Bench) -> Shape {
    Shape {
        connections: 2 * lanes(bench) + 2,
        each: 1,
    }
}

pub fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let seconds = bench.pick(3.0, 1.0);
    let lanes = lanes(bench);
    let node = Node::start(bench, "login", None)?;
    bench.say("preparing accounts");
    bench.runtime.block_on(node.register(ACCOUNTS))?;
    let calls = logins(0..ACCOUNTS);
    let load = |seconds: f64| {
        let until = Until::Time(Duration::from_secs_f64(seconds));
        closed(&node.address, &calls, steady(bench), until)
    };
    load(0.5)?;

    let [mut ours, mut bare, mut usual] = [const { Series(Vec::new()) }; 3];
    let [mut hashing, mut serving, mut working] = [const { Series(Vec::new()) }; 3];
    for round in 0..bench.rounds {
        bench.round("login", round);
        let before = node.process.used()?;
        let counts = load(seconds)?;
        let spent = node.process.used()?.since(&before);
        ensure!(counts.refused == 0, "{} logins failed", counts.refused);
        let answered = counts.answered as f64;
        ensure!(
            spent.by("hash-lane") > 0.0,
            "no thread of the service is called hash-lane"
        );
        ours.extend([answered / spent.total()]);
        for (series, name) in [
            (&mut hashing, "hash-lane"),
            (&mut serving, "serve"),
            (&mut working, "work"),
        ] {
            series.extend([spent.by(name) * 1e3 / answered]);
        }

        let mut command = bench.servers.command(beside("bare_hash")?);
        command.args([lanes.to_string(), seconds.to_string()]);
        bare.extend([hashes(Running::serving(command)?)?]);
        let mut command = bench.yardstick()?;
        let (lanes, seconds) = (lanes.to_string(), seconds.to_string());
        command.args(["argon2", "--threads", &lanes, "--seconds", &seconds]);
        usual.extend([hashes(Running::serving(command)?)?]);
    }

    let mut found = Findings::default();
    found.row(
        "logins per CPU-second ÷ bare hashes on the same lanes",
        Bar::AtLeast(0.95),
        Some(0.98),
        "×",
        ours.per(&bare),
    );
    found.row(
        "bare hashes per CPU-second ÷ the argon2 crate called as usual",
        Bar::AtLeast(1.6),
        Some(2.5),
        "×",
        bare.per(&usual),
    );
    found.figure("logins per CPU-second", "/s", &ours);
    found.figure("bare hashes per CPU-second", "/s", &bare);
    found.figure("argon2 crate as usual, hashes per CPU-second", "/s", &usual);
    found.figure("login: CPU of the lanes", "ms", &hashing);
    found.figure("login: CPU of the serving threads", "ms", &serving);
    found.figure(
        "login: CPU of the threads that use the database",
        "ms",
        &working,
    );
    found.note(format!(
        "Argon2id with m=19456, t=2, p=1 everywhere. Logins of {ACCOUNTS} accounts in turn on \
         SQLite, {} under way; {lanes} lane(s).",
        steady(bench).connections
    ));
    Ok(found)
}

/// Of a program that says how many, and in how many seconds of CPU.
fn hashes((process, line): (Running, String)) -> anyhow::Result<f64> {
    process.wait()?;
    let (hashes, seconds) = line.split_once(' ').context("not what it should say")?;
    Ok(hashes.parse::<f64>()? / seconds.parse::<f64>()?)
}
