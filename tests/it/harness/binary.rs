//! The built program, as people and orchestrators meet it: its own process,
//! its own folder, its log in a file.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tonic::transport::Endpoint;

use super::{
    client::Client,
    database::{Database, Kind},
};

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program with its settings, that has not been started.
#[derive(Debug)]
pub struct Program {
    pub database: Database,
    settings: Vec<(String, String)>,
}

/// A `serve` that runs; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
    pub address: String,
    pub http: SocketAddr,
}

impl Program {
    /// On a fresh database, with cheap hashing, no limits per peer, and free
    /// ports.
    pub async fn new(kind: Kind) -> Self {
        let database = Database::create(kind).await;
        Self::bare(database)
            .set("COUNTERSIGN_PROFILE", "testing")
            .set("COUNTERSIGN_HASHING__MEMORY_KIB", "8")
            .set("COUNTERSIGN_HASHING__ITERATIONS", "1")
            .set("COUNTERSIGN_LIMITS__RATE_LIMITS_ENABLED", "false")
            .set("COUNTERSIGN_SESSIONS__MAX_PER_USER", "100000")
            // A busy machine is no fault of the program.
            .set("COUNTERSIGN_DATABASE__ACQUIRE_TIMEOUT_MS", "10000")
            .set("COUNTERSIGN_DATABASE__QUERY_TIMEOUT_MS", "12000")
            .on_its_database()
    }

    /// With no settings but free ports.
    pub fn bare(database: Database) -> Self {
        Self {
            database,
            settings: Vec::new(),
        }
        .set("COUNTERSIGN_LISTEN", "127.0.0.1:0")
        .set("COUNTERSIGN_HTTP_LISTEN", "127.0.0.1:0")
    }

    /// Sets a variable of its environment.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the URL of the database.
    pub fn on_its_database(self) -> Self {
        let url = self.database.url.clone();
        self.set("COUNTERSIGN_DATABASE_URL", &url)
    }

    /// The folder that it runs in.
    pub fn folder(&self) -> &Path {
        self.database.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        // Nothing of the shell's own settings reaches it.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("COUNTERSIGN_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, "")
    }

    /// Runs a command to its end, with this on its standard input.
    pub fn run_with(&self, arguments: &[&str], input: impl AsRef<[u8]>) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // A program that does not read has its reasons.
        stdin.write_all(input.as_ref()).ok();
        drop(stdin);
        child.wait_with_output().expect("the program ends")
    }

    /// Runs a command that must do well, and returns its standard output.
    #[track_caller]
    pub fn succeed(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run_with(arguments, input);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a command that must fail, and returns its standard error.
    #[track_caller]
    pub fn fail(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run_with(arguments, input);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    /// Serves, and waits until it is ready.
    pub async fn serve(&self, name: &str) -> Server {
        let log = self.folder().join(format!("{name}.log"));
        let file = fs::File::create(&log).expect("a log");
        let child = self
            .command(&["serve"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("the program starts");
        let mut server = Server {
            child,
            log,
            address: String::new(),
            http: ([127, 0, 0, 1], 0).into(),
        };
        server
            .until("it serves", |server| server.serving_line().is_some())
            .await;
        let line = server.serving_line().expect("it serves");
        line["grpc"]
            .as_str()
            .expect("an address")
            .clone_into(&mut server.address);
        server.http = line["http"].as_str().unwrap().parse().expect("an address");
        let deadline = Instant::now() + PATIENCE;
        while server.get("/readyz").await.0 != 200 {
            assert!(Instant::now() < deadline, "not ready: {}", server.log_end());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }
}

impl Server {
    /// Its number among the processes.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    /// The end of its log, to show why a test failed.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let start = log.len().saturating_sub(3_000);
        String::from_utf8_lossy(&log.as_bytes()[start..]).into_owned()
    }

    /// The lines of its log that are JSON.
    pub fn lines(&self) -> Vec<Value> {
        let log = self.log();
        let lines = log.lines().filter(|line| line.starts_with('{'));
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
            .collect()
    }

    fn serving_line(&self) -> Option<Value> {
        let log = self.log();
        // The last line may not be whole yet.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut lines = whole.lines().filter_map(|l| serde_json::from_str(l).ok());
        lines.find(|line: &Value| line["message"] == "serving")
    }

    /// Waits until something holds.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let ended = self.child.try_wait().expect("a child");
            assert!(
                ended.is_none() || holds(self),
                "ended before {what}: {}",
                self.log_end()
            );
            assert!(Instant::now() < deadline, "not {what}: {}", self.log_end());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A client that is nobody, on a connection of its own.
    pub fn client(&self) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address));
        Client::new(endpoint.expect("a URI").connect_lazy(), None)
    }

    /// The status and the body of a page of the side port; status 0 if there
    /// is nobody.
    pub async fn get(&self, path: &str) -> (u16, String) {
        get(self.http, path).await
    }

    /// Sends signals one right after another, by their names.
    pub fn signal(&self, names: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("sh")
            .args([
                "-c",
                "for name in $0; do kill -s $name $1; done",
                names,
                &pid,
            ])
            .status();
        assert!(kill.expect("sh").success());
    }

    /// Waits for its end.
    pub async fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                assert_ne!(status.signal(), Some(6), "aborted: {}", self.log_end());
                return status;
            }
            assert!(Instant::now() < deadline, "no end: {}", self.log_end());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The status and the body of an HTTP/1.1 answer; status 0 if there is nobody.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let fetched = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = fetched.await.unwrap_or_default();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    (status.unwrap_or(0), body.to_owned())
}
