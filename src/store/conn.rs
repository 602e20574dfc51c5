//! One connection in the hands of one call, and the macro that runs a query on
//! whichever database it belongs to.
//!
//! Every query is bounded, counted and judged here. A connection on which a
//! query or a transaction is open when its holder goes away is closed instead
//! of given back: otherwise the next holder would wait for the old query, or on
//! SQLite every writer for a transaction that nobody will end.

use std::{
    fmt, mem,
    sync::Arc,
    time::{Duration, Instant},
};

use diesel::{
    QueryResult,
    result::{DatabaseErrorKind as Kind, Error as Diesel},
};
use diesel_async::SimpleAsyncConnection as _;
use futures_util::future::try_join;
use jiff::Timestamp;

use super::{
    failure::Failure,
    group::{End, Group, Line},
    health::Health,
    pool::{Link, Pg},
};
use crate::{
    breaker::Permit,
    domain::{Cost, trust::TrustChange},
    error::{Error, Reason, Result},
};

/// A connection on loan to one call.
pub struct Conn {
    pub(super) link: Link,
    pub(super) gauge: Gauge,
    changes: Vec<TrustChange>,
    /// Where others wait for it.
    line: Option<Arc<Line>>,
    /// Those whose work is in the open transaction.
    group: Option<Arc<Group>>,
}

/// Bounds, counts and judges the queries of one connection.
pub(super) struct Gauge {
    health: Arc<Health>,
    cost: Arc<Cost>,
    permit: Option<Permit>,
    limit: Duration,
    /// What acquiring took. The first query has so much less; if a BEGIN goes before
    /// it, that has.
    waited: Duration,
    work: Work,
    transaction: Transaction,
    /// What begins the transaction, while it goes unsent.
    pub(super) begins: Option<&'static str>,
    answered: bool,
}

/// Whether a query is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Idle,
    Running,
    /// The connection is of no use any more.
    Lost,
}

/// Whether a transaction is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    None,
    Open,
    /// A statement failed in it: PostgreSQL would turn COMMIT into ROLLBACK
    /// without a word.
    Failed,
}

/// Runs one query on whichever database the connection belongs to:
/// `on!(conn, |c| users::table.find(id).first(c))`. The query is written
/// without `.await`; the macro awaits it under the connection's gauge. Where one
/// database needs what the other lacks, there is a query for each:
/// `on!(conn, sqlite |c| …, postgres |c| …)`.
macro_rules! on {
    ($conn:expr, |$c:ident| $query:expr) => {
        $crate::store::conn::on!($conn, sqlite | $c | $query, postgres | $c | $query)
    };
    ($conn:expr, sqlite |$lite:ident| $on_sqlite:expr, postgres |$pg:ident| $on_postgres:expr) => {{
        let $crate::store::conn::Conn { link, gauge, .. } = &mut *$conn;
        match gauge.ready() {
            Err(lost) => Err(lost),
            Ok(()) => match link {
                $crate::store::pool::Link::Sqlite(object) => {
                    let $lite: &mut $crate::store::pool::Lite = object;
                    gauge.run($on_sqlite).await
                }
                $crate::store::pool::Link::Postgres(object) => {
                    // Shared, so that BEGIN and the query can be on their way at once.
                    let shared: &$crate::store::pool::Pg = object;
                    let begin = gauge.begin(shared);
                    let $pg = &mut &*shared;
                    gauge
                        .run($crate::store::conn::pipelined(begin, $on_postgres))
                        .await
                }
                $crate::store::pool::Link::Closed => Err($crate::store::failure::Failure::closed()),
            },
        }
    }};
}
pub(super) use on;

impl Conn {
    pub(super) fn new(
        link: Link,
        health: Arc<Health>,
        cost: Arc<Cost>,
        permit: Option<Permit>,
        limit: Duration,
        waited: Duration,
        line: Option<Arc<Line>>,
    ) -> Self {
        let made_at = link.made_at();
        let group = line.as_ref().zip(made_at);
        Self {
            group: group.and_then(|(line, made_at)| line.take(made_at)),
            line,
            link,
            gauge: Gauge {
                health,
                cost,
                permit,
                limit,
                waited,
                work: Work::Idle,
                transaction: Transaction::None,
                begins: None,
                answered: false,
            },
            changes: Vec::new(),
        }
    }

    /// Notes what validators must hear. It enters the trust log with the
    /// transaction's COMMIT, and is forgotten with its ROLLBACK.
    pub fn announce(&mut self, change: TrustChange) {
        self.changes.push(change);
    }

    /// The time, for what a caller cannot know to pass in.
    pub(super) fn now(&self) -> Timestamp {
        self.gauge.health.clock.now()
    }

    pub(super) fn take_changes(&mut self) -> Vec<TrustChange> {
        mem::take(&mut self.changes)
    }

    /// Whether this is PostgreSQL, for the few queries that differ.
    pub(super) fn is_postgres(&self) -> bool {
        matches!(self.link, Link::Postgres(_))
    }

    pub(super) async fn begin(&mut self) -> Result<()> {
        // Before it is sent: a BEGIN that nobody waited for may have happened.
        self.gauge.transaction = Transaction::Open;
        let sql = if let Some(group) = &self.group {
            group.join();
            "SAVEPOINT member"
        } else if self.is_postgres() {
            // Goes with the first query. Outside of it the session is read-only,
            // so that where BEGIN is refused the query changes nothing.
            self.gauge.begins = Some("BEGIN READ WRITE");
            return Ok(());
        } else {
            // Takes the write lock at once; a transaction that reads first and
            // is then refused the lock could not be retried.
            "BEGIN IMMEDIATE"
        };
        Ok(self.batch(sql).await?)
    }

    /// Those whose transaction this one is part of.
    pub(super) fn group(&self) -> Option<&Arc<Group>> {
        self.group.as_ref()
    }

    /// If others are in line, a group whose transaction this one is from now on.
    /// Giving the connection back leaves it open for them, and somebody must
    /// stand in line to end it.
    pub(super) fn lead(&mut self) -> Option<Arc<Group>> {
        let somebody_waits = self.line.as_ref().is_some_and(|line| line.length() > 0);
        if !somebody_waits || self.gauge.transaction != Transaction::Open {
            return None;
        }
        let group = Arc::new(Group::new(self.link.made_at()?));
        self.group = Some(Arc::clone(&group));
        self.gauge.transaction = Transaction::None;
        Some(group)
    }

    /// Whether no answer came to a query.
    pub(super) fn is_lost(&self) -> bool {
        self.gauge.work == Work::Lost
    }

    /// Ends this part of the group's transaction: it stays, or is taken back.
    /// If that fails, dropping the connection takes all of it back.
    pub(super) async fn leave(&mut self, stays: bool) -> Result<()> {
        self.changes.clear();
        // As where it is alone, COMMIT is refused then.
        let failed = self.gauge.ready().err().filter(|_| stays);
        self.gauge.transaction = Transaction::Open;
        let sql = if stays && failed.is_none() {
            "RELEASE member"
        } else {
            "ROLLBACK TO member; RELEASE member"
        };
        self.batch(sql).await?;
        self.gauge.transaction = Transaction::None;
        failed.map_or(Ok(()), |failed| Err(failed.into()))
    }

    /// Ends the group's transaction, and tells all whose work is in it.
    pub(super) async fn commit_group(&mut self) {
        let Some(group) = self.group.take() else {
            return;
        };
        self.gauge.transaction = Transaction::Open;
        // What it waited in line is not the COMMIT's.
        self.gauge.waited = Duration::ZERO;
        group.ended(match self.commit().await {
            Ok(()) => End::Committed,
            Err(error) if error.reason() == Reason::OutcomeUnknown => End::Unknown,
            Err(error) => {
                tracing::error!(%error, "a shared transaction is taken back");
                match error.reason() {
                    Reason::DependencyUnavailable => End::TakenBack,
                    _ => End::Refused,
                }
            }
        });
    }

    pub(super) async fn commit(&mut self) -> Result<()> {
        if self.gauge.never_began() {
            return Ok(());
        }
        match self.batch("COMMIT").await {
            Ok(()) => {
                self.gauge.transaction = Transaction::None;
                Ok(())
            }
            Err(Failure::Lost(cause)) => Err(Error::new(Reason::OutcomeUnknown).because(cause)),
            Err(failure) => {
                self.rollback().await;
                Err(failure.into())
            }
        }
    }

    /// Ends the transaction without effect. If that fails, dropping the
    /// connection does it.
    pub(super) async fn rollback(&mut self) {
        self.changes.clear();
        if self.gauge.never_began() {
            return;
        }
        self.gauge.transaction = Transaction::Open;
        if self.batch("ROLLBACK").await.is_ok() {
            self.gauge.transaction = Transaction::None;
        }
    }

    pub(super) async fn batch(&mut self, sql: &str) -> Result<(), Failure> {
        on!(self, |c| c.batch_execute(sql))
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let gauge = &mut self.gauge;
        // Of work in a group only its COMMIT says how the database does.
        if let Some(permit) = gauge.permit.take()
            && gauge.answered
            && self.group.is_none()
        {
            permit.success();
        }
        let link = mem::replace(&mut self.link, Link::Closed);
        let group = self.group.take();
        if gauge.work != Work::Idle || gauge.transaction != Transaction::None {
            link.discard(gauge.work == Work::Lost);
        } else if let (Some(line), Some(group)) = (&self.line, group) {
            // Before somebody else has the connection.
            line.leave(group);
        }
    }
}

/// A query and what goes before it, without a wait in between.
pub(super) async fn pipelined<T>(
    before: impl Future<Output = QueryResult<()>>,
    query: impl Future<Output = QueryResult<T>>,
) -> QueryResult<T> {
    // Polled, and so sent, in this order.
    let ((), value) = try_join(before, query).await?;
    Ok(value)
}

impl Gauge {
    /// Whether a query may be sent.
    pub(super) fn ready(&self) -> Result<(), Failure> {
        if self.work != Work::Idle {
            return Err(Failure::closed());
        }
        if self.transaction == Transaction::Failed {
            return Err(Failure::Refused(Error::internal(
                "a statement or COMMIT after a statement that failed in the same transaction",
            )));
        }
        Ok(())
    }

    /// Sends what begins the transaction, if it was not sent. The wait for the
    /// connection is part of its time; the query behind it has time of its own, as
    /// it may wait for a lock.
    pub(super) fn begin<'a>(
        &mut self,
        mut connection: &'a Pg,
    ) -> impl Future<Output = QueryResult<()>> + use<'a> {
        let begins = self.begins.take();
        let mut limit = self.limit;
        if begins.is_some() {
            limit = limit.saturating_sub(mem::take(&mut self.waited));
            // A query as any other; its time is that of the one behind it.
            self.cost.add_query(Duration::ZERO);
        }
        async move {
            let Some(sql) = begins else { return Ok(()) };
            let begun = tokio::time::timeout(limit, connection.batch_execute(sql)).await;
            begun.unwrap_or_else(|_| {
                let what = format!("{sql} had no answer in {} ms", limit.as_millis());
                Err(Diesel::DatabaseError(
                    Kind::UnableToSendCommand,
                    Box::new(what),
                ))
            })
        }
    }

    /// Whether the transaction had no query, and so was never begun. It is over
    /// then.
    fn never_began(&mut self) -> bool {
        let never = self.begins.take().is_some();
        if never {
            self.transaction = Transaction::None;
        }
        never
    }

    /// Waits for a query, for so long and no longer.
    pub(super) async fn run<T>(
        &mut self,
        query: impl Future<Output = QueryResult<T>>,
    ) -> Result<T, Failure> {
        let limit = self.limit.saturating_sub(mem::take(&mut self.waited));
        let begun = Instant::now();
        self.work = Work::Running;
        let outcome = tokio::time::timeout(limit, query).await;
        let took = begun.elapsed();
        self.cost.add_query(took);
        metrics::histogram!("countersign_database_query_seconds").record(took);
        let failure = match outcome {
            Ok(Ok(value)) => {
                self.answer();
                return Ok(value);
            }
            Ok(Err(error)) => Failure::of(error, &self.health),
            Err(_) => Failure::Lost(
                self.health
                    .unavailable()
                    .because(format!("a query had no answer in {} ms", limit.as_millis())),
            ),
        };
        if let Failure::Lost(_) = failure {
            self.lose();
        } else {
            self.answer();
            // A row that is not there is an answer, not a failed statement.
            if !matches!(failure, Failure::NotFound) && self.transaction == Transaction::Open {
                self.transaction = Transaction::Failed;
            }
        }
        Err(failure)
    }

    /// The database has answered, whatever it said.
    fn answer(&mut self) {
        self.work = Work::Idle;
        self.answered = true;
        self.health.answered();
    }

    pub(super) fn lose(&mut self) {
        self.work = Work::Lost;
        self.health.lost();
        if let Some(permit) = self.permit.take() {
            permit.failure();
        }
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("postgres", &self.is_postgres())
            .field("work", &self.gauge.work)
            .field("transaction", &self.gauge.transaction)
            .finish_non_exhaustive()
    }
}
