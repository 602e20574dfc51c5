//! What logins and refreshes cost beyond the hash as data grow: a database with
//! ten thousand users beside one with ten million, each user with a session.
//!
//! The rows are made by the database itself, copies of one account with names and
//! ids of their own, so that anybody of them can log in. Who does is drawn at
//! random: the pages that are needed lie anywhere.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use anyhow::ensure;
use diesel::{Connection as _, SqliteConnection, connection::SimpleConnection as _};

use super::login::steady;
use crate::{
    Bench,
    findings::{Bar, Findings},
    load::{Until, closed},
    node::{Cluster, Node, logins},
    process::Used,
    series::Series,
};

/// Sessions that are refreshed at the same time.
const CLIENTS: usize = 16;

/// A node on a database of some size.
struct Side<'a> {
    node: Node,
    users: u32,
    /// The server of the database, if that is a process of its own.
    cluster: Option<&'a Cluster>,
    /// Where the drawing of users stands.
    drawn: u64,
    seconds: f64,
}

/// CPU in milliseconds, of the node and its database.
struct Cost {
    login: f64,
    refresh: f64,
}

pub fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let mut found = Findings::default();
    on_sqlite(bench, &mut found)?;
    on_postgres(bench, &mut found)?;
    found.note(format!(
        "Each user has one session more than those that logins open. The CPU is that of the node \
         without its hash lanes, and of PostgreSQL where that is the database. Users log in at \
         random; {CLIENTS} of the sessions opened so are refreshed at a time."
    ));
    Ok(found)
}

/// Users of the small database and of the large one.
fn sizes(bench: &Bench) -> [u32; 2] {
    [10_000, bench.pick(10_000_000, 200_000)]
}

fn on_sqlite(bench: &Bench, found: &mut Findings) -> anyhow::Result<()> {
    let side = |users| {
        let name = format!("growth-sqlite-{users}");
        let mut node = Node::start(bench, &name, None)?;
        bench.runtime.block_on(node.register(1))?;
        node.process.stop()?;
        bench.say(&format!("SQLite: making {users} users"));
        let mut connection = SqliteConnection::establish(&node.database_file().to_string_lossy())?;
        connection.batch_execute(&sqlite_rows(users))?;
        drop(connection);
        // What was written without waiting for the disk, before a COMMIT waits for it.
        File::open(node.database_file())?.sync_all()?;
        node.restart(bench)?;
        anyhow::Ok(Side::new(bench, node, users, None))
    };
    let [small, large] = sizes(bench);
    compare(bench, "SQLite", [side(small)?, side(large)?], found)?;
    for users in sizes(bench) {
        // Room for the next.
        std::fs::remove_dir_all(bench.folder.join(format!("growth-sqlite-{users}")))?;
    }
    Ok(())
}

fn on_postgres(bench: &Bench, found: &mut Findings) -> anyhow::Result<()> {
    let cluster = Cluster::start(bench)?;
    let side = |users| {
        let name = format!("growth_{users}");
        let url = cluster.database(bench, &name)?;
        let mut node = Node::start(bench, &name, Some(&url))?;
        bench.runtime.block_on(node.register(1))?;
        node.process.stop()?;
        bench.say(&format!("PostgreSQL: making {users} users"));
        Cluster::run(bench, &url, &postgres_rows(users))?;
        node.restart(bench)?;
        anyhow::Ok(Side::new(bench, node, users, Some(&cluster)))
    };
    let [small, large] = sizes(bench);
    compare(bench, "PostgreSQL", [side(small)?, side(large)?], found)
}

fn compare(
    bench: &Bench,
    database: &'static str,
    mut sides: [Side<'_>; 2],
    found: &mut Findings,
) -> anyhow::Result<()> {
    let [mut logins, mut refreshes] = [const { [const { Series(Vec::new()) }; 2] }; 2];
    // The first is for the caches.
    for round in 0..=bench.rounds {
        if round > 0 {
            bench.round(database, round - 1);
        }
        for ((side, logins), refreshes) in sides.iter_mut().zip(&mut logins).zip(&mut refreshes) {
            let cost = side.cost(bench)?;
            if round > 0 {
                logins.extend([cost.login]);
                refreshes.extend([cost.refresh]);
            }
        }
    }
    let whats = match database {
        "SQLite" => [
            "SQLite: CPU of a login beyond its hash, large ÷ small",
            "SQLite: CPU of a refresh, large ÷ small",
        ],
        _ => [
            "PostgreSQL: CPU of a login beyond its hash, large ÷ small",
            "PostgreSQL: CPU of a refresh, large ÷ small",
        ],
    };
    for (what, series) in whats.into_iter().zip([&logins, &refreshes]) {
        let [small, large] = series;
        found.row(what, Bar::AtMost(1.3), Some(1.1), "×", large.per(small));
    }
    for (call, series) in [("login beyond its hash", &logins), ("refresh", &refreshes)] {
        for (side, series) in sides.iter().zip(series) {
            let what = format!("{database}, {} users: CPU of a {call}", side.users);
            found.figure(what, "ms", series);
        }
    }
    Ok(())
}

impl<'a> Side<'a> {
    fn new(bench: &Bench, node: Node, users: u32, cluster: Option<&'a Cluster>) -> Self {
        Self {
            node,
            users,
            cluster,
            drawn: 1,
            seconds: bench.pick(5.0, 1.0),
        }
    }

    /// So many users, drawn at random.
    fn draw(&mut self, count: usize) -> Vec<usize> {
        let mut draw = || {
            // Knuth's MMIX generator; its upper half is random enough.
            self.drawn = self.drawn.wrapping_mul(6_364_136_223_846_793_005);
            self.drawn = self.drawn.wrapping_add(1_442_695_040_888_963_407);
            (self.drawn >> 33) as usize % self.users as usize
        };
        (0..count).map(|_| draw()).collect()
    }

    fn cost(&mut self, bench: &Bench) -> anyhow::Result<Cost> {
        let calls = logins(self.draw(4096));
        let until = Until::Time(Duration::from_secs_f64(self.seconds));
        let before = self.used()?;
        let counts = closed(&self.node.address, &calls, steady(bench), until)?;
        let login = self.used()? - before;
        ensure!(counts.refused == 0, "{} logins failed", counts.refused);

        let people = self.draw(CLIENTS);
        let mut sessions = bench.runtime.block_on(self.node.log_in(people))?;
        let before = self.used()?;
        let (begun, lasts) = (Instant::now(), Duration::from_secs_f64(self.seconds));
        let refresh = self
            .node
            .refresh(&mut sessions, move |_| begun.elapsed() >= lasts);
        let refreshed = bench.runtime.block_on(refresh)?;
        let refresh = self.used()? - before;
        Ok(Cost {
            login: login * 1e3 / counts.answered as f64,
            refresh: refresh * 1e3 / refreshed.tokens.len() as f64,
        })
    }

    /// Seconds of CPU so far, without those of hashing.
    fn used(&self) -> anyhow::Result<f64> {
        let spent = self.node.process.used()?.since(&Used::default());
        let database = match self.cluster {
            Some(cluster) => cluster.used()?,
            None => 0.0,
        };
        Ok(spent.total() - spent.by("hash-lane") + database)
    }
}

/// The node's process, for its drop.
impl Drop for Side<'_> {
    fn drop(&mut self) {
        self.node.process.stop().ok();
    }
}

/// Users and sessions like the first of each. Ids are ordered by time, as the
/// service makes them.
fn sqlite_rows(users: u32) -> String {
    let id = "unhex(printf('%012x7%03x8', 1700000000000 + i, i % 4096) || substr(hex(randomblob(8)), 2))";
    format!(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000;
         BEGIN;
         WITH RECURSIVE numbers (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < {users})
         INSERT INTO users (id, email, email_verified, display_name, password, status, metadata,
             epoch, min_session_epoch, created_at, updated_at)
         SELECT {id}, 'bench-' || i || '@example.com', email_verified, display_name, password, status,
             metadata, epoch, min_session_epoch, created_at + i, updated_at + i
         FROM numbers CROSS JOIN (SELECT * FROM users LIMIT 1);
         INSERT INTO sessions (id, user_id, epoch, generation, key_id, binding, device_name, user_agent,
             client_id, created_at, rotated_at, expires_at, absolute_expires_at)
         SELECT unhex(substr(hex(id), 1, 17) || substr(hex(randomblob(8)), 2)), id, epoch, 0, 1,
             randomblob(16), '', 'grpc-go/1.70.0', '', created_at, created_at,
             created_at + 1000000 * (86400 + abs(random()) % 2592000), created_at + 7776000000000
         FROM users;
         COMMIT;
         ANALYZE; PRAGMA journal_mode = WAL;"
    )
}

fn postgres_rows(users: u32) -> String {
    let id = "(lpad(to_hex(1700000000000 + i), 12, '0') || '7' || lpad(to_hex(i % 4096), 3, '0') \
              || '8' || substr(md5(random()::text), 1, 15))::uuid";
    format!(
        "SET session_replication_role = replica; SET synchronous_commit = off;
         INSERT INTO users (id, email, email_verified, display_name, password, status, metadata,
             epoch, min_session_epoch, created_at, updated_at)
         SELECT {id}, 'bench-' || i || '@example.com', email_verified, display_name, password, status,
             metadata, epoch, min_session_epoch, created_at + i * interval '1 microsecond', updated_at
         FROM generate_series(1::bigint, {users} - 1) AS i CROSS JOIN (SELECT * FROM users LIMIT 1) AS one;
         INSERT INTO sessions (id, user_id, epoch, generation, key_id, binding, device_name, user_agent,
             client_id, created_at, rotated_at, expires_at, absolute_expires_at)
         SELECT (substr(replace(id::text, '-', ''), 1, 17) || substr(md5(random()::text), 1, 15))::uuid, id, epoch, 0, 1,
             decode(md5(random()::text), 'hex'), '', 'grpc-go/1.70.0', '', created_at, created_at,
             created_at + interval '1 day' + random() * interval '30 days', created_at + interval '90 days'
         FROM users;
         ANALYZE; CHECKPOINT;"
    )
}
