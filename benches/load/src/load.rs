//! Load on a server, in two shapes.
//!
//! Closed: so many calls are always under way, and the next leaves when one has
//! ended. That finds out what a call costs. Open: calls leave by a fixed
//! schedule, however long others take, and a call's time counts from when it
//! was due; a closed load would wait with a slow server and not see how slow it
//! is.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::wire::{Event, Replies, Requests, acknowledge};

/// A server that says nothing for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(20);
const BUFFER: usize = 64 * 1024;

/// A method and the messages that its calls carry in turn.
#[derive(Debug, Clone)]
pub struct Calls {
    pub path: &'static str,
    pub messages: Vec<Vec<u8>>,
}

/// How a closed load ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    Calls(usize),
    Time(Duration),
}

/// Connections, and calls under way on each.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub connections: usize,
    pub each: usize,
}

/// What became of a closed load.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub answered: usize,
    pub refused: usize,
    pub took: Duration,
}

/// Calls a second, for so long, over so many connections in turn.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub per_second: u32,
    pub lasts: Duration,
    pub connections: usize,
}

/// What became of an open load; times in microseconds.
#[derive(Debug)]
pub struct Times {
    pub answered: Histogram<u64>,
    pub refused: Histogram<u64>,
    /// Answers that came before the schedule had ended.
    pub in_time: usize,
}

impl Calls {
    fn message(&self, number: usize) -> &[u8] {
        let messages = &self.messages;
        let message = messages.get(number % messages.len().max(1));
        message.map(Vec::as_slice).unwrap_or_default()
    }
}

impl Counts {
    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.took.as_secs_f64()
    }
}

/// Runs a closed load on this thread.
pub fn closed(address: &str, calls: &Calls, shape: Shape, until: Until) -> anyhow::Result<Counts> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let begun = Instant::now();
    let sent = AtomicUsize::new(0);
    let next = || {
        let number = sent.fetch_add(1, Relaxed);
        let more = match until {
            Until::Calls(most) => number < most,
            Until::Time(most) => begun.elapsed() < most,
        };
        more.then_some(number)
    };
    runtime.block_on(async {
        let connections =
            (0..shape.connections).map(|_| connection(address, calls, shape.each, &next));
        let mut counts = Counts::default();
        for of_one in join_all(connections).await {
            let of_one = of_one?;
            counts.answered += of_one.answered;
            counts.refused += of_one.refused;
        }
        counts.took = begun.elapsed();
        Ok(counts)
    })
}

/// Polls all futures on this task, as `JoinSet` would have them own what they
/// use.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut ready = true;
        for (future, output) in &mut futures {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => ready = false,
                }
            }
        }
        if ready {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    futures
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

async fn connection(
    address: &str,
    calls: &Calls,
    each: usize,
    next: &impl Fn() -> Option<usize>,
) -> anyhow::Result<Counts> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut out = Vec::with_capacity(BUFFER);
    let mut requests = Requests::new(address, calls.path, &mut out);
    let mut replies = Replies::default();
    let mut counts = Counts::default();
    let mut buffer = vec![0; BUFFER];
    let (mut live, mut waiting, mut over) = (0, None, false);
    loop {
        while live < each && !over {
            let Some(number) = waiting.take().or_else(next) else {
                over = true;
                break;
            };
            let message = calls.message(number);
            if !requests.fits(message) {
                waiting = Some(number);
                break;
            }
            requests.call(message, &mut out)?;
            live += 1;
        }
        stream.write_all(&out).await?;
        out.clear();
        if live == 0 && over {
            return Ok(counts);
        }
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
        let read = read.context("the server does not answer")??;
        ensure!(read > 0, "the server closed the connection");
        replies.read(buffer.get(..read).unwrap_or_default(), |event| {
            match event {
                Event::Ended { answered, .. } => {
                    live -= 1;
                    if answered {
                        counts.answered += 1;
                    } else {
                        counts.refused += 1;
                    }
                }
                Event::Allowed(more) => requests.window += more,
                Event::Settings | Event::Ping(_) => {}
            }
            acknowledge(event, &mut out);
        })?;
    }
}

/// A connection with one call after the other, of one method, each made of the
/// answer to the one before.
pub struct Dialogue {
    stream: tokio::net::TcpStream,
    requests: Requests,
    replies: Replies,
    out: Vec<u8>,
    buffer: Vec<u8>,
}

impl Dialogue {
    pub async fn begin(address: &str, path: &str) -> anyhow::Result<Self> {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut out = Vec::new();
        Ok(Self {
            stream,
            requests: Requests::new(address, path, &mut out),
            replies: Replies::default(),
            out,
            buffer: vec![0; BUFFER],
        })
    }

    /// The message that answers this one; none if the call failed.
    pub async fn ask(&mut self, message: &[u8]) -> anyhow::Result<Option<&[u8]>> {
        let mut outcome = None;
        let mut sent = false;
        while outcome.is_none() {
            if !sent && self.requests.fits(message) {
                self.requests.call(message, &mut self.out)?;
                sent = true;
            }
            self.stream.write_all(&self.out).await?;
            self.out.clear();
            let read = self.stream.read(&mut self.buffer);
            let read = tokio::time::timeout(PATIENCE, read).await;
            let read = read.context("the server does not answer")??;
            ensure!(read > 0, "the server closed the connection");
            let bytes = self.buffer.get(..read).unwrap_or_default();
            self.replies.read(bytes, |event| {
                match event {
                    Event::Ended { answered, .. } => outcome = Some(answered),
                    Event::Allowed(more) => self.requests.window += more,
                    Event::Settings | Event::Ping(_) => {}
                }
                acknowledge(event, &mut self.out);
            })?;
        }
        match outcome {
            Some(true) => self.replies.message().map(Some),
            _ => Ok(None),
        }
    }
}

/// One connection of an open load: who sends and who reads share it.
struct Line {
    stream: TcpStream,
    /// Held to write: an acknowledgement must not fall into a call.
    writer: Mutex<()>,
    window: AtomicI64,
}

/// Runs an open load: this thread sends, one for each connection reads.
pub fn open(address: &str, calls: &Calls, pace: Pace) -> anyhow::Result<Times> {
    let every = Duration::from_secs(1) / pace.per_second;
    let total = (pace.lasts.as_nanos() / every.as_nanos()).try_into()?;
    let (mut lines, mut requests) = (Vec::new(), Vec::new());
    for _ in 0..pace.connections {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut out = Vec::new();
        requests.push(Requests::new(address, calls.path, &mut out));
        (&stream).write_all(&out)?;
        lines.push(Line {
            stream,
            writer: Mutex::new(()),
            window: AtomicI64::new(0),
        });
    }
    // Late enough for all threads to be there.
    let begin = Instant::now() + Duration::from_millis(20);
    let schedule = Schedule {
        begin,
        every,
        connections: pace.connections,
        end: begin + pace.lasts,
        total,
    };
    thread::scope(|scope| {
        let readers: Vec<_> = lines
            .iter()
            .enumerate()
            .map(|(index, line)| scope.spawn(move || read(line, index, schedule)))
            .collect();
        for number in 0..total {
            let due = schedule.due(number);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let index = number % pace.connections;
            let (Some(line), Some(requests)) = (lines.get(index), requests.get_mut(index)) else {
                continue;
            };
            send(line, requests, calls.message(number))?;
        }
        let mut times = Times::new()?;
        for reader in readers {
            let of_one = reader.join().ok().context("a reader panicked")??;
            times.answered.add(of_one.answered)?;
            times.refused.add(of_one.refused)?;
            times.in_time += of_one.in_time;
        }
        Ok(times)
    })
}

/// When which call is due.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    begin: Instant,
    every: Duration,
    connections: usize,
    end: Instant,
    total: usize,
}

impl Schedule {
    fn due(&self, number: usize) -> Instant {
        self.begin + self.every * u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// A connection's streams are 1, 3, 5 … in the order of its calls.
    fn due_of(&self, connection: usize, stream: u32) -> Instant {
        let turn = usize::try_from(stream / 2).unwrap_or_default();
        self.due(turn * self.connections + connection)
    }

    fn calls_of(&self, connection: usize) -> usize {
        (self.total + self.connections - 1 - connection) / self.connections
    }
}

fn send(line: &Line, requests: &mut Requests, message: &[u8]) -> anyhow::Result<()> {
    requests.window += line.window.swap(0, Relaxed);
    let asked = Instant::now();
    while !requests.fits(message) {
        ensure!(asked.elapsed() < PATIENCE, "the server reads no more");
        thread::sleep(Duration::from_micros(100));
        requests.window += line.window.swap(0, Relaxed);
    }
    let mut out = Vec::with_capacity(message.len() + 256);
    requests.call(message, &mut out)?;
    let _writing = line.writer.lock().unwrap_or_else(PoisonError::into_inner);
    (&line.stream).write_all(&out)?;
    Ok(())
}

fn read(line: &Line, index: usize, schedule: Schedule) -> anyhow::Result<Times> {
    let mut times = Times::new()?;
    let mut replies = Replies::default();
    let mut buffer = vec![0; BUFFER];
    let mut left = schedule.calls_of(index);
    while left > 0 {
        let read = (&line.stream).read(&mut buffer);
        let read = read.context("the server does not answer")?;
        ensure!(read > 0, "the server closed the connection");
        let now = Instant::now();
        let mut out = Vec::new();
        replies.read(buffer.get(..read).unwrap_or_default(), |event| {
            match event {
                Event::Ended { stream, answered } => {
                    left -= 1;
                    let took = now.saturating_duration_since(schedule.due_of(index, stream));
                    times.record(took, answered);
                    times.in_time += usize::from(answered && now <= schedule.end);
                }
                Event::Allowed(more) => {
                    line.window.fetch_add(more, Relaxed);
                }
                Event::Settings | Event::Ping(_) => {}
            }
            acknowledge(event, &mut out);
        })?;
        if !out.is_empty() {
            let _writing = line.writer.lock().unwrap_or_else(PoisonError::into_inner);
            (&line.stream).write_all(&out)?;
        }
    }
    Ok(times)
}

impl Times {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            answered: Histogram::new(3)?,
            refused: Histogram::new(3)?,
            in_time: 0,
        })
    }

    fn record(&mut self, took: Duration, answered: bool) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let times = if answered {
            &mut self.answered
        } else {
            &mut self.refused
        };
        // A histogram that grows takes every value.
        times.record(micros).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_one_time_at_which_it_is_due() {
        let begin = Instant::now();
        let schedule = Schedule {
            begin,
            every: Duration::from_micros(500),
            connections: 3,
            end: begin + Duration::from_millis(5),
            total: 10,
        };
        let calls: Vec<usize> = (0..3).map(|index| schedule.calls_of(index)).collect();
        assert_eq!(calls, [4, 3, 3]);
        let mut due: Vec<Instant> = (0..3)
            .flat_map(|index| (0..calls[index]).map(move |turn| (index, turn)))
            .map(|(index, turn)| schedule.due_of(index, u32::try_from(2 * turn + 1).unwrap()))
            .collect();
        due.sort_unstable();
        let planned: Vec<Instant> = (0..10).map(|number| schedule.due(number)).collect();
        assert_eq!(due, planned);
    }
}
