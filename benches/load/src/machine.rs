//! What it ran on, and what else the machine did meanwhile.

use std::{fs, process::Command, str::FromStr};

use anyhow::Context;

use crate::Bench;

/// What a reader of the table must know of the machine.
#[derive(Debug)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    /// Of the service, PostgreSQL and the compiler.
    pub versions: Vec<String>,
    /// The load average when it began.
    pub load: String,
    /// The cores that this process may use.
    pub ours: String,
    /// Its priority, and that of what it starts.
    pub nice: i32,
}

/// Ticks of the machine's CPUs so far.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    all: u64,
    busy: u64,
    /// Of this process and of all its children that have ended.
    ours: u64,
}

impl Machine {
    pub fn look(bench: &Bench) -> anyhow::Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let models = cpuinfo.lines().filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "model name").then(|| value.trim().to_owned())
        });
        let status = fs::read_to_string("/proc/self/status")?;
        let ours = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .context("no list of cores in /proc")?;
        let postgres = first_line(Command::new(bench.scripts.join("postgres")).arg("bin"))
            .and_then(|bin| first_line(Command::new(bin + "/postgres").arg("--version")));
        let versions = [
            first_line(Command::new(&bench.binary).arg("--version")),
            postgres,
            first_line(Command::new("rustc").arg("--version")),
        ];
        let load = fs::read_to_string("/proc/loadavg")?;
        let models: Vec<String> = models.collect();
        Ok(Self {
            cores: models.len(),
            cpu: models.into_iter().next().unwrap_or_default(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            versions: versions.into_iter().flatten().collect(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            ours: ours.trim().to_owned(),
            nice: own_stat(16, 1)?.into_iter().next().unwrap_or_default(),
        })
    }
}

fn first_line(command: &mut Command) -> Option<String> {
    let out = command.output().ok().filter(|out| out.status.success())?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

/// So many fields of `/proc/self/stat`, counted from the one after the name.
fn own_stat<T>(from: usize, count: usize) -> anyhow::Result<Vec<T>>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name stands in brackets and may have spaces.
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc")?;
    let fields = fields.split_whitespace().skip(from).take(count);
    Ok(fields.map(str::parse).collect::<Result<_, _>>()?)
}

impl Account {
    pub fn now() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are in
        // user already.
        let ticks: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .take(8)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let all = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        // utime, stime, cutime and cstime.
        let ours = own_stat::<u64>(11, 4)?;
        Ok(Self {
            all,
            busy: all - idle,
            ours: ours.iter().sum(),
        })
    }

    /// The share of the machine's CPU that went to others since then.
    pub fn others_since(&self, earlier: &Self) -> f64 {
        let busy = self.busy.saturating_sub(earlier.busy);
        let others = busy.saturating_sub(self.ours.saturating_sub(earlier.ours));
        others as f64 / self.all.saturating_sub(earlier.all).max(1) as f64
    }
}
