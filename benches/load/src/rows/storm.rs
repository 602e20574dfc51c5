//! Logins without pause: what validations feel of them, what becomes of the
//! logins themselves in an overload, and what memory it takes.

use std::{thread::sleep, time::Duration};

use anyhow::ensure;
use hdrhistogram::Histogram;

use super::login::{ACCOUNTS, lanes, steady};
use crate::{
    Bench,
    findings::{Bar, Findings},
    load::{Calls, Pace, Until, closed, open},
    node::{Node, logins, validations},
    process::Running,
    series::{Series, short},
};

const CLIENTS: usize = 32;
const VALIDATIONS: u32 = 2_000;
const CONNECTIONS: usize = 8;
/// How many times what it can do is asked of it.
const OVERLOAD: f64 = 10.0;

#[derive(Debug, Default)]
struct Seen {
    calm: [Series; 3],
    stormy: [Series; 3],
    capacity: Series,
    goodput: Series,
    refusals: Series,
    slowest: Series,
}

pub fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let lasts = Duration::from_secs(bench.pick(5, 2));
    let node = Node::start(bench, "storm", None)?;
    sleep(Duration::from_secs(bench.pick(3, 1)));
    let idle = node.process.resident()?;
    bench.say("preparing accounts");
    let sessions = bench.runtime.block_on(async {
        node.register(ACCOUNTS + CONNECTIONS).await?;
        // Of accounts that stay out of the storm: an account has so many sessions
        // at most, and each more ends its oldest.
        node.log_in(ACCOUNTS..ACCOUNTS + CONNECTIONS).await
    })?;
    let calls = validations(sessions.iter().map(|session| &session.access_token));

    let mut seen = Seen::default();
    // Not measured: connections and memory that come with the first calls.
    validate(&node, &calls, Duration::from_secs(1))?;
    for round in 0..bench.rounds {
        bench.round("storm", round);
        let calm = validate(&node, &calls, lasts)?;
        let stormy = storm(&node, &calls, lasts)?;
        for (series, times) in [(&mut seen.calm, calm), (&mut seen.stormy, stormy)] {
            for (series, quantile) in series.iter_mut().zip([0.5, 0.99, 0.999]) {
                series.extend([times.value_at_quantile(quantile) as f64 / 1e3]);
            }
        }
        overload(bench, &node, lasts, &mut seen)?;
    }
    let peak = node.process.peak()?;
    let codes = node.codes("AuthService/Login")?;
    ensure!(
        codes.contains_key("RESOURCE_EXHAUSTED"),
        "no login was refused: {codes:?}"
    );
    let mut found = findings(bench, &seen, idle, peak);
    let codes: Vec<String> = codes
        .iter()
        .map(|(code, count)| format!("{} {code}", short(*count)))
        .collect();
    found.note(format!(
        "Logins of this group, by how they ended: {}. Anything but OK and RESOURCE_EXHAUSTED is a \
         fault, of the service or of a machine that was too busy.",
        codes.join(", ")
    ));
    Ok(found)
}

/// Validations at a steady pace; all must be answered.
fn validate(node: &Node, calls: &Calls, lasts: Duration) -> anyhow::Result<Histogram<u64>> {
    let pace = Pace {
        per_second: VALIDATIONS,
        lasts,
        connections: CONNECTIONS,
    };
    let times = open(&node.address, calls, pace)?;
    let refused = times.refused.len();
    ensure!(refused == 0, "{refused} validations failed");
    Ok(times.answered)
}

fn storm(node: &Node, calls: &Calls, lasts: Duration) -> anyhow::Result<Histogram<u64>> {
    // It is to be there before and until after the validations.
    let seconds = (lasts + Duration::from_secs(1)).as_secs_f64().to_string();
    let (accounts, connections) = (ACCOUNTS.to_string(), CLIENTS.to_string());
    // Below the clients whose time is taken: they share cores.
    let mut command = std::process::Command::new("nice");
    command
        .args(["-n", "10"])
        .arg(std::env::current_exe()?)
        .args(["yardstick", "storm", "--address", &node.address])
        .args(["--accounts", &accounts, "--connections", &connections])
        .args(["--seconds", &seconds]);
    let clients = Running::start(command)?;
    sleep(Duration::from_millis(500));
    let times = validate(node, calls, lasts)?;
    clients.wait()?;
    Ok(times)
}

fn overload(bench: &Bench, node: &Node, lasts: Duration, seen: &mut Seen) -> anyhow::Result<()> {
    let calls = logins(0..ACCOUNTS);
    let counts = closed(&node.address, &calls, steady(bench), Until::Time(lasts))?;
    ensure!(counts.refused == 0, "{} logins failed", counts.refused);
    let capacity = counts.rate();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate of some hundreds"
    )]
    let pace = Pace {
        per_second: (capacity * OVERLOAD) as u32,
        lasts,
        connections: CLIENTS,
    };
    let times = open(&node.address, &calls, pace)?;
    seen.capacity.extend([capacity]);
    seen.goodput
        .extend([times.in_time as f64 / lasts.as_secs_f64()]);
    let refused = &times.refused;
    seen.refusals
        .extend([refused.value_at_quantile(0.99) as f64 / 1e3]);
    seen.slowest.extend([refused.max() as f64 / 1e3]);
    Ok(())
}

fn findings(bench: &Bench, seen: &Seen, idle: f64, peak: f64) -> Findings {
    let lanes = lanes(bench);
    let [_, calm, _] = &seen.calm;
    let [_, stormy, _] = &seen.stormy;
    let mut found = Findings::default();
    found.row(
        "validation p99 during a storm of 32 connections ÷ without",
        Bar::AtMost(3.0),
        Some(1.5),
        "×",
        stormy.per(calm),
    );
    found.row(
        "goodput of logins in a 10-fold overload ÷ capacity",
        Bar::AtLeast(0.9),
        Some(0.97),
        "×",
        seen.goodput.per(&seen.capacity),
    );
    found.row(
        "refused logins in that overload answered, p99",
        Bar::AtMost(50.0),
        None,
        "ms",
        seen.refusals.clone(),
    );
    found.row(
        "peak memory in storm and overload",
        Bar::AtMost(idle + lanes as f64 * 20.0 + 32.0),
        None,
        "MiB",
        Series(vec![peak]),
    );
    for (name, series) in [("calm", &seen.calm), ("in a storm", &seen.stormy)] {
        for (quantile, series) in ["p50", "p99", "p99.9"].into_iter().zip(series) {
            found.figure(format!("validation {name}, {quantile}"), "ms", series);
        }
    }
    found.figure("logins, capacity", "/s", &seen.capacity);
    found.figure("logins answered in overload", "/s", &seen.goodput);
    found.figure("refused logins in overload, slowest", "ms", &seen.slowest);
    found.note(format!(
        "Validations: open load of {VALIDATIONS}/s over {CONNECTIONS} connections, times from when \
         a call was due. Storm: {CLIENTS} connections, each logging in again at once whatever the \
         answer; its clients run at nice 10, as they share \
         cores with those whose times are taken. The bar for memory is the idle {} MiB, 20 MiB for \
         each of {lanes} lane(s), and 32 MiB.",
        short(idle),
    ));
    found
}
