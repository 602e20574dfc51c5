//! `calibrate`: what hashing costs here, and what to set.

use std::time::Duration;

use clap::Args;

use super::{remark, table::table};
use crate::crypto::{
    calibrate::{self, Cost},
    lanes,
};

/// Arguments of `calibrate`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Run it on a machine that has nothing else to do, and is like the ones that serve. It takes some
seconds, and changes nothing. What is stored under other parameters is hashed anew at the next
login.

Example:
  countersign calibrate --time 100")]
pub struct Arguments {
    /// Wished time of one hash, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub time: u64,
}

/// Does it, and returns what to print.
pub fn run(arguments: &Arguments, config: &lanes::Config) -> anyhow::Result<String> {
    let wished = Duration::from_millis(arguments.time);
    let lanes = u32::try_from(config.threads())?;
    let cost = |memory_kib: u32, iterations: u32| {
        remark(&format!(
            "measuring {memory_kib} KiB, {iterations} passes\n"
        ));
        let config = lanes::Config {
            memory_kib,
            iterations,
            ..config.clone()
        };
        calibrate::measure(&config, lanes)
    };
    let now = cost(config.memory_kib, config.iterations)?;
    let found = calibrate::candidates(wished, cost)?;
    Ok(report(&now, &found, wished, lanes))
}

fn report(now: &Cost, found: &[Cost], wished: Duration, lanes: u32) -> String {
    let proposed = calibrate::proposed(found, wished);
    let row = |remark: &str, cost: &Cost| {
        let seconds = cost.time.as_secs_f64().max(1e-6);
        [
            remark.to_owned(),
            cost.memory_kib.to_string(),
            cost.iterations.to_string(),
            format!("{:.1}", seconds * 1e3),
            format!("{:.0}", f64::from(lanes) / seconds),
            (lanes * (cost.memory_kib / 1024)).to_string(),
        ]
    };
    let mut rows = vec![row("now", now)];
    rows.extend(found.iter().map(|cost| {
        let is_proposed = proposed.as_ref() == Some(cost);
        row(if is_proposed { "proposed" } else { "" }, cost)
    }));
    let heading = [
        "",
        "memory_kib",
        "iterations",
        "ms",
        "logins/s",
        "lanes' MiB",
    ];
    let advice = match proposed {
        Some(cost) => format!(
            "[hashing]\nmemory_kib = {}\niterations = {}",
            cost.memory_kib, cost.iterations
        ),
        None => format!(
            "Nothing that a service should run with takes as little as {} ms here: wish for more, or \
             keep what is set.",
            wished.as_millis()
        ),
    };
    let table = table(heading, &rows);
    let instructions = calibrate::instructions();
    format!("{lanes} lane(s), all hashing at once, by {instructions}\n\n{table}\n{advice}\n")
}
