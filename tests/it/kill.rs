//! Processes killed under writes: what was acknowledged is there afterwards,
//! what was refused is not, and what nobody can know is settled by a retry.
//!
//! Callers keep a ledger of what they were told. The node is the built
//! program. `COUNTERSIGN_TEST_KILL_ROUNDS` says how often something is killed,
//! over all three tests together: a fifth of it is PostgreSQL, which takes
//! longest to come back. `scripts/kill-rounds` runs many.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use countersign_proto::v1;
use diesel::{Connection as _, QueryableByName, RunQueryDsl as _, SqliteConnection};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::harness::{Client, Cluster, Failure, Kind, binary::Program, eventually, world};

/// Callers at once.
const CALLERS: usize = 4;

/// How long anything may take to be settled.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a caller was told of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It failed, and for a reason that says that it had no effect.
    Refused,
    /// Nobody can know.
    Unknown,
}

/// A call that was not acknowledged: the last of its account in the round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Register,
    Login,
    Refresh,
    Logout,
    ChangePassword,
}

/// What the ledger knows of one account.
#[derive(Debug)]
struct Account {
    email: String,
    request_id: Uuid,
    user_id: String,
    password: String,
    next_password: String,
    /// The newest tokens of a session that lives.
    live: Option<v1::TokenPair>,
    /// How often that session was refreshed since its login.
    refreshes: i64,
    /// Tokens of a session to be logged out.
    leaving: Option<v1::TokenPair>,
    /// Tokens that must be refused for ever.
    dead: Vec<v1::TokenPair>,
    /// Passwords that must be refused for ever.
    old_passwords: Vec<String>,
    stuck: Option<(Step, Told)>,
}

/// How many calls were told what.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: u32,
    refused: u32,
    unknown: u32,
    /// Of those that nobody knew.
    happened: u32,
}

/// Which of two things is killed, and brought back.
enum Victim {
    Node,
    Cluster(Cluster),
}

impl Tally {
    fn add(&mut self, more: &Self) {
        self.acknowledged += more.acknowledged;
        self.refused += more.refused;
        self.unknown += more.unknown;
        self.happened += more.happened;
    }
}

/// What a status says of the call's effect.
#[track_caller]
fn told(status: &Status) -> Told {
    let failure = Failure::from(status);
    assert_ne!(failure.code, Code::Internal, "{status:?}");
    match failure.reason.as_str() {
        // From the client's own side of the line.
        "" | "OUTCOME_UNKNOWN" | "DEADLINE_EXCEEDED" | "CANCELLED" => Told::Unknown,
        _ => Told::Refused,
    }
}

async fn register(client: &Client, account: &Account) -> Result<String, Status> {
    let request = v1::RegisterRequest {
        email: account.email.clone(),
        password: account.password.clone(),
        request_id: account.request_id.to_string(),
        ..Default::default()
    };
    let reply = client.clone().auth.register(request).await?;
    Ok(reply.into_inner().user.expect("a user").user_id)
}

async fn refresh(client: &Client, token: &str) -> Result<v1::TokenPair, Status> {
    let request = v1::RefreshRequest {
        refresh_token: token.to_owned(),
        audiences: Vec::new(),
    };
    let reply = client.clone().auth.refresh(request).await?;
    Ok(reply.into_inner().tokens.expect("tokens"))
}

async fn logout(client: &Client, tokens: &v1::TokenPair) -> Result<(), Status> {
    let request = v1::LogoutRequest {
        refresh_token: tokens.refresh_token.clone(),
    };
    client.clone().auth.logout(request).await.map(drop)
}

async fn change_password(
    client: &Client,
    tokens: &v1::TokenPair,
    current: &str,
    new: &str,
) -> Result<v1::TokenPair, Status> {
    let mut client = client.with_token(&tokens.access_token);
    let request = v1::ChangePasswordRequest {
        current_password: current.to_owned(),
        new_password: new.to_owned(),
    };
    let reply = client.auth.change_password(request).await?;
    Ok(reply.into_inner().tokens.expect("tokens"))
}

async fn validates(client: &Client, token: &str) -> Result<(), Status> {
    let request = v1::ValidateTokenRequest {
        token: token.to_owned(),
        audience: String::new(),
    };
    client
        .clone()
        .tokens
        .validate_token(request)
        .await
        .map(drop)
}

impl Account {
    fn new(number: u64) -> Self {
        Self {
            email: format!("account{number}@example.com"),
            request_id: Uuid::from_u128(u128::from(number) + 1),
            user_id: String::new(),
            password: world::PASSWORD.to_owned(),
            next_password: "another horse entirely, thanks".to_owned(),
            live: None,
            refreshes: 0,
            leaving: None,
            dead: Vec::new(),
            old_passwords: Vec::new(),
            stuck: None,
        }
    }

    /// Lives a life of acknowledged calls, counting them; ends at the first
    /// that is not.
    async fn live(&mut self, client: &Client, count: &AtomicU32) -> Result<(), (Step, Status)> {
        let at = |step| move |status| (step, status);
        let acknowledged = || count.fetch_add(1, SeqCst);
        let user_id = register(client, self).await;
        self.user_id = user_id.map_err(at(Step::Register))?;
        acknowledged();
        for session in [&mut self.live, &mut self.leaving] {
            let tokens = world::login(client, &self.email, &self.password).await;
            *session = Some(tokens.map_err(at(Step::Login))?);
            acknowledged();
        }
        let mut tokens = self.live.clone().expect("logged in");
        for _ in 0..3 {
            let next = refresh(client, &tokens.refresh_token).await;
            tokens = next.map_err(at(Step::Refresh))?;
            self.live = Some(tokens.clone());
            self.refreshes += 1;
            acknowledged();
        }
        let leaving = self.leaving.clone().expect("logged in");
        let left = logout(client, &leaving).await;
        left.map_err(at(Step::Logout))?;
        self.dead.extend(self.leaving.take());
        acknowledged();
        let fresh = change_password(client, &tokens, &self.password, &self.next_password).await;
        self.changed(Some(fresh.map_err(at(Step::ChangePassword))?));
        acknowledged();
        Ok(())
    }

    /// The password has changed; the fresh tokens may have been lost.
    fn changed(&mut self, fresh: Option<v1::TokenPair>) {
        let old = std::mem::replace(&mut self.password, self.next_password.clone());
        self.old_passwords.push(old);
        self.dead.extend(self.live.take());
        self.dead.extend(self.leaving.take());
        self.live = fresh;
        // Renewing is a generation too.
        self.refreshes += 1;
    }

    /// Compares with what the service has, and settles what nobody knew.
    /// Returns whether that had happened.
    async fn settle(&mut self, client: &Client, url: &str) -> bool {
        let mut happened = false;
        match self.stuck.take() {
            None | Some((Step::Login, _)) => {}
            Some((Step::Register, Told::Refused)) => {
                self.must_not_enter(client, &self.password).await;
                return false;
            }
            Some((Step::Register, Told::Unknown)) => {
                happened = self.enters(client, &self.password).await;
                let user_id = certain(async || register(client, self).await).await;
                self.user_id = user_id.expect("the same request again");
                let again = certain(async || register(client, self).await).await;
                assert_eq!(again.unwrap(), self.user_id, "a second account");
            }
            Some((Step::Refresh, told)) => {
                let tokens = self.live.clone().expect("a session");
                let generation = generation(url, &tokens.session_id).await;
                happened = generation != self.refreshes;
                if told == Told::Refused {
                    assert!(!happened, "a refresh was refused and took place: {self:?}");
                }
                assert!(generation <= self.refreshes + 1, "{self:?}");
                self.refresh(client).await;
            }
            Some((Step::Logout, told)) => {
                let leaving = self.leaving.take().expect("a session");
                let token = &leaving.access_token;
                happened = certain(async || validates(client, token).await)
                    .await
                    .is_err();
                if told == Told::Refused {
                    assert!(!happened, "a logout was refused and took place: {self:?}");
                }
                certain(async || logout(client, &leaving).await)
                    .await
                    .unwrap();
                self.dead.push(leaving);
            }
            Some((Step::ChangePassword, told)) => {
                happened = self.enters(client, &self.next_password).await;
                if told == Told::Refused {
                    assert!(!happened, "a refused change took place: {self:?}");
                }
                if happened {
                    self.changed(None);
                }
            }
        }
        self.check(client).await;
        self.refresh(client).await;
        happened
    }

    /// All that was acknowledged.
    async fn check(&self, client: &Client) {
        assert!(self.enters(client, &self.password).await, "lost: {self:?}");
        for old in &self.old_passwords {
            self.must_not_enter(client, old).await;
        }
        for tokens in &self.dead {
            let token = &tokens.access_token;
            let validated = certain(async || validates(client, token).await).await;
            assert!(validated.is_err(), "an ended session validates: {self:?}");
            let token = &tokens.refresh_token;
            let refreshed = certain(async || refresh(client, token).await).await;
            assert!(refreshed.is_err(), "an ended session refreshes: {self:?}");
        }
    }

    /// Goes on with the session that lives.
    async fn refresh(&mut self, client: &Client) {
        if let Some(tokens) = &self.live {
            let token = &tokens.refresh_token;
            let next = certain(async || refresh(client, token).await).await;
            self.live = Some(next.unwrap_or_else(|failure| panic!("{failure:?}: {self:?}")));
        }
    }

    async fn enters(&self, client: &Client, password: &str) -> bool {
        let entered = certain(async || world::login(client, &self.email, password).await).await;
        match entered {
            Ok(_) => true,
            Err(failure) if failure.reason == "LOGIN_FAILED" => false,
            Err(failure) => panic!("{failure:?}: {self:?}"),
        }
    }

    async fn must_not_enter(&self, client: &Client, password: &str) {
        assert!(
            !self.enters(client, password).await,
            "it is there: {self:?}"
        );
    }
}

/// The outcome of a call that may be made again until it has one.
async fn certain<T, F>(call: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Status>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = match call().await {
            Ok(value) => return Ok(value),
            Err(status) => status,
        };
        let failure = Failure::from(&status);
        let again = failure.retry || told(&status) == Told::Unknown;
        if !again {
            return Err(failure);
        }
        assert!(Instant::now() < deadline, "never settled: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The generation of a session, as its row has it.
async fn generation(url: &str, session_id: &str) -> i64 {
    let id: Uuid = session_id.parse().expect("a UUID");
    let Some(path) = url.strip_prefix("sqlite://") else {
        let connected = tokio_postgres::connect(url, tokio_postgres::NoTls).await;
        let (client, connection) = connected.expect("PostgreSQL answers");
        tokio::spawn(connection);
        let sql = format!("SELECT generation FROM sessions WHERE id = '{id}'");
        return client.query_one(&sql, &[]).await.expect("a row").get(0);
    };
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        generation: i64,
    }
    let mut connection = SqliteConnection::establish(path).expect("opens");
    let id = id.simple();
    let sql = format!("SELECT generation FROM sessions WHERE id = x'{id}'");
    let row: Row = diesel::sql_query(sql)
        .get_result(&mut connection)
        .expect("a row");
    row.generation
}

/// How many fifths of all rounds are a test's.
fn rounds(fifths: u32) -> u32 {
    let total = std::env::var("COUNTERSIGN_TEST_KILL_ROUNDS");
    let total: u32 = total.map_or(55, |text| text.parse().expect("a number"));
    u32::div_ceil(total * fifths, 5)
}

/// Kills a process of a service in use, over and over.
async fn kill(kind: Kind, victim: Victim) {
    let mut program = Program::new(kind)
        .await
        .set("COUNTERSIGN_DATABASE__BREAKER__PROBE_INTERVAL_MS", "100")
        .set("COUNTERSIGN_DATABASE__TRUST_POLL_MS", "100")
        .set("COUNTERSIGN_SESSIONS__GRACE_SECONDS", "300");
    let mut url = program.database.url.clone();
    if let Victim::Cluster(cluster) = &victim {
        url.clone_from(&cluster.url);
        program = program.set("COUNTERSIGN_DATABASE_URL", &url);
    }
    let rounds = rounds(match victim {
        Victim::Node => 2,
        Victim::Cluster(_) => 1,
    });
    let mut random = ChaCha20Rng::seed_from_u64(9);
    let (mut tally, mut ledger) = (Tally::default(), Vec::new());
    let mut number = 0_u64;
    let mut server = program.serve("node").await;
    for round in 0..rounds {
        let (count, over) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
        let callers = (0..CALLERS).map(|_| {
            number += 1_000;
            let count = Arc::clone(&count);
            tokio::spawn(call(server.client(), number, count, over.clone()))
        });
        let callers: Vec<_> = callers.collect();
        // Somewhere in the life of the accounts, however fast the machine is.
        let enough = random.next_u32() % 48;
        let reached = async || count.load(SeqCst) >= enough;
        eventually("enough is acknowledged", reached).await;
        let delay = random.next_u64() % 20_000;
        tokio::time::sleep(Duration::from_micros(delay)).await;
        match &victim {
            Victim::Node => {
                server.signal("KILL");
                server.end().await;
                server = program.serve(&format!("node{round}")).await;
            }
            Victim::Cluster(cluster) => {
                cluster.kill().await;
                cluster.restart().await;
            }
        }
        over.cancel();
        let mut settling = Vec::new();
        for caller in callers {
            let accounts = caller.await.unwrap();
            let (client, url) = (server.client(), url.clone());
            settling.push(tokio::spawn(settle(client, url, accounts)));
        }
        for settled in settling {
            let (accounts, more) = settled.await.unwrap();
            ledger.extend(accounts);
            tally.add(&more);
        }
        tally.acknowledged += count.load(SeqCst);
    }
    // And after all rounds, everything of all of them.
    let client = server.client();
    for account in &ledger {
        account.check(&client).await;
    }
    println!("{rounds} rounds, {} accounts: {tally:?}", ledger.len());
    assert!(tally.unknown + tally.refused > 0, "nothing was cut short");
    assert!(tally.acknowledged > rounds, "nothing was done");
}

/// Lives the lives of accounts until a call is not acknowledged, or the round
/// is over: a call may wait the whole of it, and then do well.
async fn call(
    client: Client,
    from: u64,
    count: Arc<AtomicU32>,
    over: CancellationToken,
) -> Vec<Account> {
    let mut accounts = Vec::new();
    for number in from.. {
        let mut account = Account::new(number);
        let lived = account.live(&client, &count).await;
        account.stuck = lived.err().map(|(step, status)| (step, told(&status)));
        let last = account.stuck.is_some() || over.is_cancelled();
        accounts.push(account);
        if last {
            break;
        }
    }
    accounts
}

/// Settles the accounts of one caller; returns those that there are.
async fn settle(client: Client, url: String, accounts: Vec<Account>) -> (Vec<Account>, Tally) {
    let (mut kept, mut tally) = (Vec::new(), Tally::default());
    for mut account in accounts {
        let stuck = account.stuck;
        let happened = account.settle(&client, &url).await;
        tally.add(&Tally {
            acknowledged: 0,
            refused: u32::from(stuck.is_some_and(|(_, told)| told == Told::Refused)),
            unknown: u32::from(stuck.is_some_and(|(_, told)| told == Told::Unknown)),
            happened: u32::from(happened),
        });
        // An account that was refused is none.
        if stuck != Some((Step::Register, Told::Refused)) {
            kept.push(account);
        }
    }
    (kept, tally)
}

mod the_node {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sqlite() {
        kill(Kind::Sqlite, Victim::Node).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        kill(Kind::Postgres, Victim::Node).await;
    }
}

/// PostgreSQL only: SQLite has no process of its own.
mod the_database {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        let cluster = Cluster::start().await;
        kill(Kind::Postgres, Victim::Cluster(cluster)).await;
    }
}
