//! A real Envoy in front of a server that remembers what reaches it, with the
//! configuration files that we ship.

use std::{
    convert::Infallible,
    fs,
    future::ready,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use super::binary::get;

const PATIENCE: Duration = Duration::from_secs(30);

/// An Envoy that runs; killed when dropped.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    folder: tempfile::TempDir,
    admin: SocketAddr,
    pub address: SocketAddr,
    pub upstream: Upstream,
}

/// The service behind Envoy. It answers 200 to everything, and to gRPC calls
/// that it knows no such method.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: AbortHandle,
}

/// A request that reached the service behind.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub headers: HeaderMap,
}

/// An answer that Envoy gave.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Envoy {
    /// Before a fresh upstream, with a file of `deploy/envoy` in which only
    /// addresses are others, and what `edits` say: each must be found there.
    pub async fn start(
        file: &str,
        grpc: SocketAddr,
        http: SocketAddr,
        edits: &[(&str, &str)],
    ) -> Self {
        let upstream = Upstream::start().await;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/envoy");
        let mut config = fs::read_to_string(path.join(file)).expect("a configuration");
        for (found, put) in edits {
            assert!(config.contains(found), "{file} has no {found:?}");
            config = config.replace(found, put);
        }
        let at = |name: &str, port: u16| format!("{{address: {name}, port_value: {port}}}");
        for (name, port, address) in [
            ("0.0.0.0", 8080, "127.0.0.1:0".parse().unwrap()),
            ("127.0.0.1", 9901, "127.0.0.1:0".parse().unwrap()),
            ("countersign", 50051, grpc),
            ("countersign", 8081, http),
            ("orders", 9000, upstream.address),
        ] {
            let here = at(&address.ip().to_string(), address.port());
            config = config.replace(&at(name, port), &here);
        }
        // A busy machine is no fault of a node.
        config = config.replace("timeout: 0.5s", "timeout: 20s");
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("envoy.yaml"), config).expect("a file");
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let child = Command::new(binary())
            .args(["-c", "envoy.yaml", "--admin-address-path", "admin"])
            .args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "warning",
            ])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Envoy starts");
        let nowhere = ([127, 0, 0, 1], 0).into();
        let mut envoy = Self {
            child,
            folder,
            admin: nowhere,
            address: nowhere,
            upstream,
        };
        envoy.get_ready().await;
        envoy
    }

    async fn get_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready().await {
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "ended: {}", self.log());
            assert!(Instant::now() < deadline, "not ready: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn is_ready(&mut self) -> bool {
        let admin = fs::read_to_string(self.folder.path().join("admin"));
        let Some(admin) = admin.ok().and_then(|text| text.trim().parse().ok()) else {
            return false;
        };
        self.admin = admin;
        if get(admin, "/ready").await.0 != 200 {
            return false;
        }
        // Lines such as `ingress::127.0.0.1:34567`.
        let (_, listeners) = get(admin, "/listeners").await;
        let address = listeners
            .lines()
            .find_map(|line| line.strip_prefix("ingress::"));
        let Some(address) = address.and_then(|address| address.trim().parse().ok()) else {
            return false;
        };
        self.address = address;
        true
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Sends a request of exactly these headers.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &[u8])]) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: orders\r\n").into_bytes();
        for (name, value) in headers {
            request.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        request.extend(b"connection: close\r\n\r\n");
        let mut stream = TcpStream::connect(self.address)
            .await
            .expect("Envoy listens");
        // It may answer before it has read all.
        let (mut from, mut to) = stream.split();
        let mut answer = Vec::new();
        let (_, read) = tokio::join!(to.write_all(&request), from.read_to_end(&mut answer));
        read.ok();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        Answer {
            status: status.unwrap_or_else(|| panic!("no answer: {answer:?} {}", self.log())),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    /// Sends a GET with a token, if there is one.
    pub async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        let value = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = value
            .as_ref()
            .map(|value| ("authorization", value.as_bytes()))
            .into_iter()
            .collect();
        self.send("GET", path, &headers).await
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn binary() -> PathBuf {
    std::env::var_os("COUNTERSIGN_TEST_ENVOY")
        .expect("COUNTERSIGN_TEST_ENVOY is not set: run the tests by scripts/test")
        .into()
}

impl Answer {
    /// A header; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }
}

impl Seen {
    /// The one value of a header; empty if it is not there.
    #[track_caller]
    pub fn one(&self, name: &str) -> &str {
        let values: Vec<_> = self.headers.get_all(name).iter().collect();
        assert!(values.len() < 2, "{name}: {values:?}");
        values.first().map_or("", |value| value.to_str().unwrap())
    }

    /// All that is said of the caller, by the last part of each header's name.
    pub fn identity(&self) -> Vec<&str> {
        let names = self.headers.keys().map(http::HeaderName::as_str);
        let mut found: Vec<_> = names
            .filter_map(|name| name.strip_prefix("x-countersign-"))
            .collect();
        found.sort_unstable();
        found
    }
}

impl Upstream {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let remembered = Arc::clone(&seen);
        let serve = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&remembered);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        ready(Ok::<_, Infallible>(answer(&request, &seen)))
                    });
                    let mut http = auto::Builder::new(TokioExecutor::new());
                    http.http1().max_buf_size(4 * 1024 * 1024).max_headers(4000);
                    http.http2().max_header_list_size(1024 * 1024);
                    http.serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        };
        let task = tokio::spawn(serve).abort_handle();
        Self {
            address,
            seen,
            task,
        }
    }

    /// Takes what has reached it since the last time.
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// Takes the one request that has reached it.
    #[track_caller]
    pub fn take_one(&self) -> Seen {
        let mut seen = self.take();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(request: &Request<Incoming>, seen: &Mutex<Vec<Seen>>) -> Response<Full<Bytes>> {
    let headers = request.headers().clone();
    let is_grpc = headers
        .get("content-type")
        .is_some_and(|kind| kind == "application/grpc");
    let path = request.uri().to_string();
    seen.lock().unwrap().push(Seen { path, headers });
    let response = if is_grpc {
        let response = Response::builder().header("content-type", "application/grpc");
        response.header("grpc-status", "12").body(Full::default())
    } else {
        Response::builder().body(Full::from("the service behind"))
    };
    response.unwrap()
}
