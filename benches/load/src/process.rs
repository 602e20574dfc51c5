//! Processes under measurement: started on cores of their own, and asked by the
//! kernel's account what they have used.
//!
//! Linux only: `/proc/PID/task/*/schedstat` counts a thread's time on a CPU in
//! nanoseconds, whatever else the machine does meanwhile.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

const PATIENCE: Duration = Duration::from_secs(30);

/// Which cores processes run on, as `taskset` writes them; wherever the kernel
/// likes if there is none.
#[derive(Debug, Clone, Default)]
pub struct Cores(pub Option<String>);

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    out: Option<BufReader<ChildStdout>>,
}

/// What the threads of a process have used so far.
#[derive(Debug, Clone, Default)]
pub struct Used(BTreeMap<u32, (String, Duration)>);

/// Time on a CPU between two looks, by the threads' names without their
/// numbers.
#[derive(Debug, Clone, Default)]
pub struct Spent(BTreeMap<String, Duration>);

impl Cores {
    /// A command that runs there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.0 {
            Some(cores) => {
                let mut command = Command::new("taskset");
                command.args(["-c", cores]).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        let all = || thread::available_parallelism().map_or(1, usize::from);
        self.0.as_deref().map_or_else(all, |cores| {
            let ranges = cores.split(',').map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let number = |text: &str| text.parse::<usize>().unwrap_or_default();
                number(last).saturating_sub(number(first)) + 1
            });
            ranges.sum()
        })
    }
}

impl Running {
    /// Starts a command. Its standard output is read by [`Running::line`] if it
    /// is not sent elsewhere before.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("{command:?} cannot be started"))?;
        let out = child.stdout.take().map(BufReader::new);
        Ok(Self { child, out })
    }

    /// Starts a program of ours that says in a first line where it serves.
    pub fn serving(mut command: Command) -> anyhow::Result<(Self, String)> {
        let mut running = Self::start({
            command.stdout(Stdio::piped());
            command
        })?;
        let address = running.line()?;
        Ok((running, address))
    }

    /// The next line of its standard output.
    pub fn line(&mut self) -> anyhow::Result<String> {
        let out = self.out.as_mut().context("its output is not read")?;
        let mut line = String::new();
        ensure!(out.read_line(&mut line)? > 0, "it ended and said nothing");
        Ok(line.trim_end().to_owned())
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("it ended: {status}"),
            None => Ok(()),
        }
    }

    /// Waits for its end.
    pub fn wait(mut self) -> anyhow::Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "it failed: {status}");
        Ok(())
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let pid = self.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(begun.elapsed() < PATIENCE, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What its threads have used so far.
    pub fn used(&self) -> anyhow::Result<Used> {
        Used::of(&self.child.id().to_string())
    }

    /// Resident memory in MiB, now.
    pub fn resident(&self) -> anyhow::Result<f64> {
        self.memory("VmRSS:")
    }

    /// The most resident memory that it ever had, in MiB.
    pub fn peak(&self) -> anyhow::Result<f64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, key: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|rest| rest.split_whitespace().next());
        let kib: f64 = kib.context("no memory in /proc")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Used {
    /// Of a process, by its number or `self`.
    pub fn of(pid: &str) -> anyhow::Result<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let folder = entry?.path();
            let number = folder.file_name().and_then(OsStr::to_str);
            let number = number.context("a thread without a number")?.parse()?;
            let read = |name: &str| fs::read_to_string(folder.join(name));
            // A thread may end meanwhile.
            let (Ok(name), Ok(times)) = (read("comm"), read("schedstat")) else {
                continue;
            };
            threads.insert(number, (kind(&name), on_cpu(&times)?));
        }
        Ok(Self(threads))
    }

    /// What was used since an earlier look.
    pub fn since(&self, earlier: &Self) -> Spent {
        let mut spent = BTreeMap::<String, Duration>::new();
        for (number, (name, time)) in &self.0 {
            let before = earlier
                .0
                .get(number)
                .map_or(Duration::ZERO, |(_, time)| *time);
            *spent.entry(name.clone()).or_default() += time.saturating_sub(before);
        }
        Spent(spent)
    }
}

impl Spent {
    /// By all threads, in seconds.
    pub fn total(&self) -> f64 {
        self.0.values().sum::<Duration>().as_secs_f64()
    }

    /// By the threads of this name, in seconds.
    pub fn by(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default().as_secs_f64()
    }
}

/// What this thread has used so far. A thread that has ended is in no account.
pub fn of_this_thread() -> anyhow::Result<Duration> {
    on_cpu(&fs::read_to_string("/proc/thread-self/schedstat")?)
}

fn on_cpu(schedstat: &str) -> anyhow::Result<Duration> {
    let nanoseconds = schedstat.split_whitespace().next();
    let nanoseconds = nanoseconds.context("schedstat is empty")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

/// `hash-lane-0` is one of `hash-lane`.
fn kind(comm: &str) -> String {
    let numbered = |c: char| c.is_ascii_digit() || c == '-';
    comm.trim_end().trim_end_matches(numbered).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_counted_as_taskset_writes_them() {
        for (text, count) in [("1", 1), ("1-3", 3), ("0,2-3", 3)] {
            assert_eq!(Cores(Some(text.to_owned())).count(), count, "{text}");
        }
    }

    #[test]
    fn what_a_thread_uses_is_seen_by_its_name() {
        let before = Used::of("self").unwrap();
        let worker = thread::Builder::new().name("busy-7".to_owned());
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let worker = worker.spawn(move || {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
            ready.send(()).unwrap();
            wait.recv().ok();
        });
        is_ready.recv().unwrap();
        let spent = Used::of("self").unwrap().since(&before);
        drop(done);
        worker.unwrap().join().unwrap();
        assert!(spent.by("busy") > 0.0 && spent.total() >= spent.by("busy"));
    }
}
