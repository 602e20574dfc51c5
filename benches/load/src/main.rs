//! The whole service, measured against yardsticks. `scripts/bench` builds what
//! is needed and runs this.
//!
//! The real program serves on a throwaway database, as a process of its own; its
//! yardsticks are processes of their own too, and both are driven over real
//! sockets from this one. They take turns, round by round: on a machine that has
//! other things to do a ratio of neighbours in time means something where two
//! figures do not. CPU comes from the kernel's account of the server's threads,
//! so that what the load costs is not in it.

#![expect(
    clippy::cast_precision_loss,
    reason = "counts and times of a run are far below 2^52"
)]
#![expect(unreachable_pub, reason = "a program has no outside")]

mod findings;
mod instructions;
mod load;
mod machine;
mod node;
mod process;
mod report;
mod rows;
mod series;
mod wire;
mod yardstick;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;

use crate::{
    findings::Findings,
    machine::{Account, Machine},
    process::Cores,
    report::Part,
    rows::Group,
};

/// Where the tables go, beside `scripts`.
const PAGE: &str = "docs/performance.md";

/// Measures Countersign against yardsticks, in turns, and prints ratios.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    own: Option<Own>,

    /// What to measure; all if nothing is named.
    groups: Vec<Group>,

    /// Shorter and noisier: 3 rounds of less.
    #[arg(long)]
    quick: bool,

    /// Rounds, each with all that is compared.
    #[arg(long)]
    rounds: Option<usize>,

    /// Writes the table into docs/performance.md and its plot beside it. For all
    /// groups of the table together, or for growth alone.
    #[arg(long)]
    write: bool,

    /// The program that serves.
    #[arg(long)]
    binary: Option<PathBuf>,

    /// An empty folder for the data of databases.
    #[arg(long)]
    folder: Option<PathBuf>,

    /// Cores of the service and of its yardsticks, as taskset writes them.
    #[arg(long)]
    server_cores: Option<String>,
}

/// Programs that the benchmark starts itself.
#[derive(Debug, Subcommand)]
enum Own {
    #[command(subcommand, hide = true)]
    Yardstick(yardstick::Yardstick),
    #[command(hide = true)]
    Verify(instructions::Verifications),
    /// Counts instructions; scripts/instructions runs it.
    #[command(hide = true)]
    Instructions(instructions::Options),
}

/// What all groups work with.
#[derive(Debug)]
struct Bench {
    binary: PathBuf,
    scripts: PathBuf,
    /// For data; `scripts/bench` deletes it.
    folder: PathBuf,
    servers: Cores,
    rounds: usize,
    quick: bool,
    runtime: Runtime,
    begun: Instant,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    match cli.own {
        Some(Own::Yardstick(yardstick)) => yardstick.run()?,
        Some(Own::Verify(verifications)) => verifications.run()?,
        Some(Own::Instructions(options)) => return instructions::measure(options),
        None => return measure(cli),
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "a table for people is what it makes")]
fn measure(cli: Cli) -> anyhow::Result<ExitCode> {
    let bench = Bench {
        servers: Cores(cli.server_cores),
        rounds: cli.rounds.unwrap_or(if cli.quick { 3 } else { 7 }),
        quick: cli.quick,
        ..Bench::new(cli.binary, cli.folder)?
    };
    let root = root();
    ensure!(bench.rounds > 0, "there must be a round");
    let machine = Machine::look(&bench)?;
    let part = Part::of(&cli.groups);
    ensure!(
        part.is_some() || !cli.write,
        "--write is for the whole table or for growth alone"
    );
    let groups = if cli.groups.is_empty() {
        Group::ALL.to_vec()
    } else {
        cli.groups
    };
    let mut found = Findings::default();
    let mut others = Vec::new();
    for group in groups {
        let before = Account::now()?;
        found.append(group.measure(&bench).with_context(|| group.to_string())?);
        others.push((group, Account::now()?.others_since(&before)));
    }
    let table = report::markdown(&bench, &machine, &found, &others);
    println!("{table}");
    if let Some(part) = part.filter(|_| cli.write) {
        let page = root.join(PAGE);
        let text = fs::read_to_string(&page)?;
        fs::write(&page, report::replace(&text, part, &table)?)?;
        fs::write(root.join(part.plot()), report::svg(&found))?;
        bench.say(&format!("wrote {PAGE} and {}", part.plot()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A program that was built with this one.
fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let path = env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} is not built", path.display());
    Ok(path)
}

/// The checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Bench {
    /// One round, on whatever cores there are.
    fn new(binary: Option<PathBuf>, folder: Option<PathBuf>) -> anyhow::Result<Self> {
        Ok(Self {
            binary: match binary {
                Some(binary) => binary.canonicalize()?,
                None => beside("countersign")?,
            },
            scripts: root().join("scripts").canonicalize()?,
            folder: folder.context("--folder is missing; run the script that starts this")?,
            servers: Cores::default(),
            rounds: 1,
            quick: false,
            // With a thread of its own, so that connections end when they are dropped.
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            begun: Instant::now(),
        })
    }

    /// A value for a whole run, or for a quick one.
    fn pick<T>(&self, whole: T, quick: T) -> T {
        if self.quick { quick } else { whole }
    }

    /// A yardstick, to be started where the service runs.
    fn yardstick(&self) -> anyhow::Result<Command> {
        let mut command = self.servers.command(env::current_exe()?);
        command.arg("yardstick");
        Ok(command)
    }

    fn ports(&self) -> anyhow::Result<[u16; 2]> {
        let out = Command::new(self.scripts.join("free-port"))
            .arg("2")
            .output()?;
        let text = String::from_utf8(out.stdout)?;
        let ports: Vec<u16> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
        ports.try_into().ok().context("there are no free ports")
    }

    /// A line about how it goes.
    #[expect(clippy::print_stderr, reason = "progress is for whoever waits")]
    fn say(&self, what: &str) {
        eprintln!("{:>5.0} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    fn round(&self, group: &str, round: usize) {
        self.say(&format!("{group}: round {} of {}", round + 1, self.rounds));
    }
}
