//! A line to a server, mostly PostgreSQL, that counts what passes, and that can be made bad in
//! ways in which no server can be asked to be.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::AbortHandle,
};

/// What is wrong with the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Connections are accepted, and nothing passes in either direction.
    Silent,
    /// Answers are late.
    Slow(Duration),
    /// COMMIT arrives late.
    HoldsCommit(Duration),
    /// COMMIT does not arrive, and its connection is silent from then on.
    LosesCommit,
    /// COMMIT arrives, and its connection is silent from then on.
    LosesAnswer,
}

/// A listener that passes on to a server; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    line: Arc<Line>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Line {
    fault: Mutex<Fault>,
    connections: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    held: AtomicU64,
}

impl Proxy {
    /// Before the server of this URL.
    pub async fn before(url: &str) -> Self {
        let url = url::Url::parse(url).expect("a URL");
        let host = url.host_str().expect("a host").parse().expect("an address");
        let server = SocketAddr::new(host, url.port().expect("a port"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let line = Arc::new(Line {
            fault: Mutex::new(Fault::None),
            connections: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            held: AtomicU64::new(0),
        });
        let task = tokio::spawn(accept(listener, server, Arc::clone(&line))).abort_handle();
        Self { port, line, task }
    }

    /// The URL by which the server is reached over this line.
    pub fn url(&self, direct: &str) -> String {
        let mut url = url::Url::parse(direct).expect("a URL");
        url.set_port(Some(self.port)).expect("a port");
        url.to_string()
    }

    pub fn make(&self, fault: Fault) {
        *self.line.fault.lock().unwrap() = fault;
    }

    /// Connections, and bytes towards the server, so far.
    pub fn traffic(&self) -> (u64, u64) {
        let line = &self.line;
        (line.connections.load(SeqCst), line.bytes.load(SeqCst))
    }

    /// Transactions whose end was held back so far.
    pub fn held(&self) -> u64 {
        self.line.held.load(SeqCst)
    }

    /// Transactions whose end was lost so far.
    pub fn lost(&self) -> u64 {
        self.line.lost.load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, line: Arc<Line>) {
    while let Ok((client, _)) = listener.accept().await {
        line.connections.fetch_add(1, SeqCst);
        let line = Arc::clone(&line);
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(server).await else {
                return;
            };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let silent = Arc::new(Mutex::new(false));
            // Whichever side ends first, the other hears of it.
            tokio::select! {
                () = line.up(from_client, to_server, &silent) => {}
                () = line.down(from_server, to_client, &silent) => {}
            }
        });
    }
}

impl Line {
    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap()
    }

    async fn up(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, silent: &Mutex<bool>) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            self.bytes.fetch_add(length as u64, SeqCst);
            let chunk = &buffer[..length];
            let fault = self.fault();
            let ends = chunk.windows(7).any(|window| window == b"COMMIT\0");
            if ends && let Fault::HoldsCommit(time) = fault {
                self.held.fetch_add(1, SeqCst);
                tokio::time::sleep(time).await;
            }
            if ends && matches!(fault, Fault::LosesCommit | Fault::LosesAnswer) {
                self.lost.fetch_add(1, SeqCst);
                *silent.lock().unwrap() = true;
                if fault == Fault::LosesCommit {
                    continue;
                }
            } else if fault == Fault::Silent || *silent.lock().unwrap() {
                *silent.lock().unwrap() = true;
                continue;
            }
            if to.write_all(chunk).await.is_err() {
                return;
            }
        }
    }

    async fn down(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, silent: &Mutex<bool>) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            match self.fault() {
                Fault::Slow(delay) => tokio::time::sleep(delay).await,
                // No line loses a part and goes on with the rest.
                Fault::Silent => *silent.lock().unwrap() = true,
                _ => {}
            }
            if *silent.lock().unwrap() {
                continue;
            }
            if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }
}
