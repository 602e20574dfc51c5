//! The service under measurement: the real program with its defaults, a folder
//! or cluster of its own, accounts, sessions, tokens.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use countersign_proto::{
    envoy::service::auth::v3::{
        AttributeContext, CheckRequest,
        attribute_context::{HttpRequest, Request as Attributes},
    },
    v1::{
        GetJwksRequest, Jwk, LoginRequest, RefreshRequest, RefreshResponse, RegisterRequest,
        TokenPair, ValidateTokenRequest, auth_service_client::AuthServiceClient, login_response,
        token_service_client::TokenServiceClient,
    },
};
use prost::Message as _;
use tonic::transport::{Channel, Endpoint};

use crate::{
    Bench,
    load::{Calls, Dialogue},
    process::{Running, Used},
};

pub const ISSUER: &str = "http://bench.example";
pub const AUDIENCE: &str = "countersign";
const PASSWORD: &str = "correct horse battery staple";
const PATIENCE: Duration = Duration::from_mins(1);
const REFRESH: &str = "/countersign.v1.AuthService/Refresh";
/// When so many calls have failed in a row, it is no busy server but a fault.
const MOST_FAILED: usize = 100;

/// A node that serves.
#[derive(Debug)]
pub struct Node {
    pub process: Running,
    pub address: String,
    http: String,
    /// Its working directory.
    pub home: PathBuf,
    database: Option<String>,
}

/// What refreshing has given.
#[derive(Debug, Default)]
pub struct Refreshed {
    /// Access tokens, one for each refresh.
    pub tokens: Vec<String>,
    /// Calls that the node could not serve in time.
    pub failed: usize,
}

/// A PostgreSQL cluster that is deleted when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    script: PathBuf,
    folder: PathBuf,
    pub url: String,
}

impl Node {
    /// Starts a node on the cores of servers, and waits until it is ready. Its
    /// data lie in a folder of this name: a new one, or one that it had before.
    pub fn start(bench: &Bench, name: &str, database: Option<&str>) -> anyhow::Result<Self> {
        let home = bench.folder.join(name);
        std::fs::create_dir_all(&home)?;
        let [grpc, http] = bench.ports()?;
        let mut node = Self {
            process: launch(bench, &home, database, [grpc, http])?,
            address: format!("127.0.0.1:{grpc}"),
            http: format!("127.0.0.1:{http}"),
            home,
            database: database.map(str::to_owned),
        };
        node.until_ready()?;
        Ok(node)
    }

    /// Starts a node that was stopped again, and does not wait.
    pub fn start_again(&self, bench: &Bench) -> anyhow::Result<Running> {
        let port = |address: &str| {
            let port = address.rsplit(':').next().unwrap_or_default();
            port.parse::<u16>()
        };
        let ports = [port(&self.address)?, port(&self.http)?];
        launch(bench, &self.home, self.database.as_deref(), ports)
    }

    /// Starts a node that was stopped again, and waits until it is ready.
    pub fn restart(&mut self, bench: &Bench) -> anyhow::Result<()> {
        self.process = self.start_again(bench)?;
        self.until_ready()
    }

    fn until_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self
            .get("/readyz")
            .is_ok_and(|reply| reply.contains(" 200 "))
        {
            let log = || std::fs::read_to_string(self.home.join("log")).unwrap_or_default();
            self.process.check().with_context(log)?;
            ensure!(begun.elapsed() < PATIENCE, "the node does not get ready");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The SQLite file.
    pub fn database_file(&self) -> PathBuf {
        self.home.join("data/countersign.db")
    }

    /// How the calls of one method have ended so far, by code.
    pub fn codes(&self, method: &str) -> anyhow::Result<BTreeMap<String, f64>> {
        let metrics = self.get("/metrics")?;
        let name = "countersign_requests_total{rpc=\"countersign.v1.";
        let counts = metrics.lines().filter_map(|line| {
            let labels = line.strip_prefix(name)?.strip_prefix(method)?;
            let (code, count) = labels.strip_prefix("\",code=\"")?.split_once("\"} ")?;
            Some((code.to_owned(), count.parse().ok()?))
        });
        Ok(counts.collect())
    }

    fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(&self.http)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n"
        )?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    }

    fn channel(&self) -> anyhow::Result<Channel> {
        Ok(Endpoint::from_shared(format!("http://{}", self.address))?.connect_lazy())
    }

    /// The public part of the key that signs.
    pub async fn signing_key(&self) -> anyhow::Result<Jwk> {
        let mut client = TokenServiceClient::new(self.channel()?);
        let jwks = client.get_jwks(GetJwksRequest {}).await?.into_inner();
        jwks.keys.into_iter().next().context("no signing key")
    }

    /// Makes so many accounts.
    pub async fn register(&self, count: usize) -> anyhow::Result<()> {
        let mut client = AuthServiceClient::new(self.channel()?);
        for number in 0..count {
            let request = RegisterRequest {
                email: email(number),
                password: PASSWORD.to_owned(),
                ..RegisterRequest::default()
            };
            client.register(request).await?;
        }
        Ok(())
    }

    /// Opens a session of each of these accounts.
    pub async fn log_in(
        &self,
        accounts: impl IntoIterator<Item = usize>,
    ) -> anyhow::Result<Vec<TokenPair>> {
        let mut client = AuthServiceClient::new(self.channel()?);
        let mut sessions = Vec::new();
        for number in accounts {
            let reply = client.login(login(number)).await?.into_inner();
            let Some(login_response::Result::Tokens(tokens)) = reply.result else {
                bail!("a login gave no tokens");
            };
            sessions.push(tokens);
        }
        Ok(sessions)
    }

    /// Refreshes the sessions, each on a connection of its own and as fast as
    /// the node answers, until `enough` says so of the number of refreshes so
    /// far.
    pub async fn refresh(
        &self,
        sessions: &mut [TokenPair],
        enough: impl Fn(usize) -> bool + Copy + Send + 'static,
    ) -> anyhow::Result<Refreshed> {
        let done = Arc::new(AtomicUsize::new(0));
        let mut clients = Vec::new();
        for session in sessions.iter() {
            let mut session = session.clone();
            let (done, address) = (Arc::clone(&done), self.address.clone());
            clients.push(tokio::spawn(async move {
                let mut line = Dialogue::begin(&address, REFRESH).await?;
                let mut refreshed = Refreshed::default();
                let mut in_a_row = 0;
                while !enough(done.load(Relaxed)) {
                    let request = RefreshRequest {
                        refresh_token: session.refresh_token.clone(),
                        ..RefreshRequest::default()
                    };
                    // One that failed is tried again: the token stays good.
                    let Some(reply) = line.ask(&request.encode_to_vec()).await? else {
                        refreshed.failed += 1;
                        in_a_row += 1;
                        ensure!(in_a_row < MOST_FAILED, "refreshing fails");
                        continue;
                    };
                    in_a_row = 0;
                    session = RefreshResponse::decode(reply)?
                        .tokens
                        .context("no tokens")?;
                    refreshed.tokens.push(session.access_token.clone());
                    done.fetch_add(1, Relaxed);
                }
                anyhow::Ok((refreshed, session))
            }));
        }
        let mut all = Refreshed::default();
        for (client, session) in clients.into_iter().zip(sessions) {
            let (mut refreshed, last) = client.await??;
            all.tokens.append(&mut refreshed.tokens);
            all.failed += refreshed.failed;
            *session = last;
        }
        Ok(all)
    }
}

/// Validations of these tokens.
pub fn validations<'a>(tokens: impl IntoIterator<Item = &'a String>) -> Calls {
    let message = |token: &String| ValidateTokenRequest {
        token: token.clone(),
        audience: String::new(),
    };
    Calls {
        path: "/countersign.v1.TokenService/ValidateToken",
        messages: messages(tokens.into_iter().map(message)),
    }
}

/// The same, as Envoy asks: the head of a request that a browser might send.
pub fn checks<'a>(tokens: impl IntoIterator<Item = &'a String>) -> Calls {
    let message = |token: &String| {
        let headers = [
            (":authority", "shop.example.com"),
            (":method", "GET"),
            (":path", "/orders/4711"),
            (":scheme", "https"),
            ("accept", "application/json"),
            ("authorization", &format!("Bearer {token}")),
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0)"),
            ("x-forwarded-proto", "https"),
            ("x-request-id", "7ff0a4c0-84ac-4e3b-b0d2-9d8d4d9f5a7e"),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        CheckRequest {
            attributes: Some(AttributeContext {
                request: Some(Attributes {
                    http: Some(HttpRequest {
                        method: "GET".to_owned(),
                        headers: headers.into_iter().collect(),
                        ..HttpRequest::default()
                    }),
                }),
                ..AttributeContext::default()
            }),
        }
    };
    Calls {
        path: "/envoy.service.auth.v3.Authorization/Check",
        messages: messages(tokens.into_iter().map(message)),
    }
}

/// Logins of these accounts.
pub fn logins(accounts: impl IntoIterator<Item = usize>) -> Calls {
    Calls {
        path: "/countersign.v1.AuthService/Login",
        messages: messages(accounts.into_iter().map(login)),
    }
}

/// Calls that carry nothing, for the yardstick.
pub fn nothing() -> Calls {
    Calls {
        path: "/countersign.v1.TokenService/GetJwks",
        messages: vec![Vec::new()],
    }
}

fn messages<M: prost::Message>(messages: impl Iterator<Item = M>) -> Vec<Vec<u8>> {
    messages.map(|message| message.encode_to_vec()).collect()
}

fn email(number: usize) -> String {
    format!("bench-{number}@example.com")
}

fn login(number: usize) -> LoginRequest {
    LoginRequest {
        identifier: email(number),
        password: PASSWORD.to_owned(),
        ..LoginRequest::default()
    }
}

fn launch(
    bench: &Bench,
    home: &Path,
    database: Option<&str>,
    [grpc, http]: [u16; 2],
) -> anyhow::Result<Running> {
    let mut command = bench.servers.command(&bench.binary);
    // Nothing of the shell's own settings.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("COUNTERSIGN_") {
            command.env_remove(name);
        }
    }
    let log = File::create(home.join("log"))?;
    command
        .arg("serve")
        .current_dir(home)
        .env("COUNTERSIGN_LISTEN", format!("127.0.0.1:{grpc}"))
        .env("COUNTERSIGN_HTTP_LISTEN", format!("127.0.0.1:{http}"))
        .env("COUNTERSIGN_ISSUER", ISSUER)
        .env("COUNTERSIGN_LIMITS__RATE_LIMITS_ENABLED", "false")
        .env("COUNTERSIGN_TOKENS__ACCESS_SECONDS", "3600")
        .stdout(log.try_clone()?)
        .stderr(log);
    if let Some(url) = database {
        command.env("COUNTERSIGN_DATABASE_URL", url);
    }
    Running::start(command)
}

impl Cluster {
    /// Starts a new cluster, on whatever cores this process has.
    pub fn start(bench: &Bench) -> anyhow::Result<Self> {
        let script = bench.scripts.join("postgres");
        let folder = bench.folder.join("postgres");
        let out = Command::new(&script).arg("start").arg(&folder).output()?;
        let error = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "PostgreSQL does not start: {error}");
        Ok(Self {
            script,
            folder,
            url: String::from_utf8(out.stdout)?.trim_end().to_owned(),
        })
    }

    /// Makes a database, and returns its URL.
    pub fn database(&self, bench: &Bench, name: &str) -> anyhow::Result<String> {
        Self::run(bench, &self.url, &format!("CREATE DATABASE {name}"))?;
        let (server, _) = self.url.rsplit_once('/').context("not a URL")?;
        Ok(format!("{server}/{name}"))
    }

    /// Runs statements on a database.
    pub fn run(bench: &Bench, url: &str, statements: &str) -> anyhow::Result<()> {
        bench.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
            let connection = tokio::spawn(connection);
            client.batch_execute(statements).await?;
            drop(client);
            Ok(connection.await??)
        })
    }

    /// Seconds of CPU that its processes have used so far.
    pub fn used(&self) -> anyhow::Result<f64> {
        let file = self.folder.join("data/postmaster.pid");
        let file = std::fs::read_to_string(file).context("the server of the cluster")?;
        let server = file.lines().next().context("an empty postmaster.pid")?;
        let mut seconds = 0.0;
        for entry in std::fs::read_dir("/proc")? {
            let pid = entry?.file_name();
            let Some(pid) = pid.to_str().filter(|pid| pid.parse::<u32>().is_ok()) else {
                continue;
            };
            // A process may end meanwhile.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(1));
            if pid == server || parent == Some(server) {
                let used = Used::of(pid).unwrap_or_default();
                seconds += used.since(&Used::default()).total();
            }
        }
        Ok(seconds)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut command = Command::new(&self.script);
        command.arg("remove").arg(&self.folder).status().ok();
    }
}
