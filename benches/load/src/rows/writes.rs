//! Refreshes on both databases, beside the UPDATE that they are about.

use std::time::{Duration, Instant};

use anyhow::ensure;
use countersign_proto::v1::TokenPair;

use crate::{
    Bench,
    findings::{Bar, Findings},
    node::{Cluster, Node},
    process::Running,
    series::Series,
};

const CLIENTS: usize = 32;

/// A node with sessions to refresh, and others that only the yardstick updates.
struct Side {
    node: Node,
    database: String,
    sessions: Vec<TokenPair>,
    bare_sessions: Vec<String>,
    seconds: f64,
    done: usize,
    failed: usize,
}

/// How fast refreshes were, and the microseconds of the node's CPU for each: of
/// all threads, and of those that use the database.
struct Refreshes {
    rate: f64,
    cpu: f64,
    of_work: f64,
}

pub fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let cluster = Cluster::start(bench)?;
    let lite = Node::start(bench, "writes-sqlite", None)?;
    let file = lite.database_file().display().to_string();
    let mut lite = Side::new(bench, lite, file)?;
    let pg = Node::start(bench, "writes-postgres", Some(&cluster.url))?;
    let mut pg = Side::new(bench, pg, cluster.url.clone())?;

    let [mut many, mut one, mut bare, mut bare_one] = [const { Series(Vec::new()) }; 4];
    let [mut pg_many, mut pg_bare] = [const { Series(Vec::new()) }; 2];
    let [mut cost, mut of_work] = [const { Series(Vec::new()) }; 2];
    let [mut pg_cost, mut pg_of_work] = [const { Series(Vec::new()) }; 2];
    for round in 0..bench.rounds {
        bench.round("writes", round);
        let seen = lite.refreshes(bench, CLIENTS)?;
        many.extend([seen.rate]);
        cost.extend([seen.cpu]);
        of_work.extend([seen.of_work]);
        bare.extend([lite.updates(bench, CLIENTS)?]);
        one.extend([lite.refreshes(bench, 1)?.rate]);
        bare_one.extend([lite.updates(bench, 1)?]);
        let seen = pg.refreshes(bench, CLIENTS)?;
        pg_many.extend([seen.rate]);
        pg_cost.extend([seen.cpu]);
        pg_of_work.extend([seen.of_work]);
        pg_bare.extend([pg.updates(bench, CLIENTS)?]);
    }
    // One writer may be faster than 32 that stand in each other's way.
    let best = bare.with(&bare_one, f64::max);

    let mut found = Findings::default();
    let update = (Bar::AtLeast(0.7), Some(0.9), "×");
    found.row(
        "SQLite: refreshes/s with 32 clients ÷ bare guarded UPDATE",
        update.0,
        update.1,
        update.2,
        many.per(&best),
    );
    found.row(
        "PostgreSQL: refreshes/s with 32 clients ÷ bare guarded UPDATE",
        update.0,
        update.1,
        update.2,
        pg_many.per(&pg_bare),
    );
    found.row(
        "SQLite: refreshes/s with 32 clients ÷ with 1",
        Bar::AtLeast(4.0),
        Some(10.0),
        "×",
        many.per(&one),
    );
    found.figure("SQLite, refreshes with 32 clients", "/s", &many);
    found.figure("SQLite, refreshes with 1 client", "/s", &one);
    found.figure("SQLite, bare UPDATEs over 32 connections", "/s", &bare);
    found.figure("SQLite, bare UPDATEs over 1 connection", "/s", &bare_one);
    found.figure("PostgreSQL, refreshes with 32 clients", "/s", &pg_many);
    found.figure(
        "PostgreSQL, bare UPDATEs over 32 connections",
        "/s",
        &pg_bare,
    );
    for (name, cost, of_work) in [
        ("SQLite", &cost, &of_work),
        ("PostgreSQL", &pg_cost, &pg_of_work),
    ] {
        found.figure(format!("{name}, refresh: server CPU"), "µs", cost);
        let of_work_threads = format!("{name}, refresh: CPU of the threads that use the database");
        found.figure(of_work_threads, "µs", of_work);
    }
    for (name, side) in [("SQLite", &lite), ("PostgreSQL", &pg)] {
        found.note(format!(
            "{name}: {} refreshes were answered, and {} failed and were tried again.",
            side.done, side.failed
        ));
    }
    found.note(
        "Refreshes: each client on a connection of its own, refreshing a session of its own, as \
         fast as it is answered. The bare UPDATE changes the same columns of the same table under \
         the same guard, in BEGIN and COMMIT, by prepared statements, each connection on a session \
         of its own, from a process on the service's cores; on SQLite the yardstick is the faster \
         of 32 connections and 1. Both databases sync at every commit. The node's pool to \
         PostgreSQL has its default of 8 connections; PostgreSQL runs on the driver's cores.",
    );
    Ok(found)
}

impl Side {
    fn new(bench: &Bench, node: Node, database: String) -> anyhow::Result<Self> {
        bench.say("preparing accounts and sessions");
        let (sessions, bare) = bench.runtime.block_on(async {
            node.register(CLIENTS).await?;
            let sessions = node.log_in(0..CLIENTS).await?;
            anyhow::Ok((sessions, node.log_in(0..CLIENTS).await?))
        })?;
        Ok(Self {
            node,
            database,
            sessions,
            bare_sessions: bare.into_iter().map(|session| session.session_id).collect(),
            seconds: bench.pick(3.0, 1.0),
            done: 0,
            failed: 0,
        })
    }

    fn refreshes(&mut self, bench: &Bench, clients: usize) -> anyhow::Result<Refreshes> {
        let lasts = Duration::from_secs_f64(self.seconds);
        let sessions = self.sessions.get_mut(..clients).unwrap_or_default();
        let before = self.node.process.used()?;
        let begun = Instant::now();
        let refresh = self
            .node
            .refresh(sessions, move |_| begun.elapsed() >= lasts);
        let refreshed = bench.runtime.block_on(refresh)?;
        let done = refreshed.tokens.len() as f64;
        self.done += refreshed.tokens.len();
        self.failed += refreshed.failed;
        let took = begun.elapsed().as_secs_f64();
        let spent = self.node.process.used()?.since(&before);
        ensure!(done > 0.0, "nothing was refreshed");
        Ok(Refreshes {
            rate: done / took,
            cpu: spent.total() * 1e6 / done,
            of_work: spent.by("work") * 1e6 / done,
        })
    }

    /// Bare UPDATEs a second.
    fn updates(&self, bench: &Bench, clients: usize) -> anyhow::Result<f64> {
        let mut command = bench.yardstick()?;
        let seconds = self.seconds.to_string();
        let ids = self.bare_sessions.iter().take(clients);
        command
            .args([
                "update",
                "--database",
                &self.database,
                "--seconds",
                &seconds,
            ])
            .args(ids);
        let (process, line) = Running::serving(command)?;
        process.wait()?;
        Ok(line.parse()?)
    }
}
