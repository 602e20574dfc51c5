//! The gRPC port: accepts connections on TCP or a Unix socket, with or without
//! TLS, and serves HTTP/2 on them.
//!
//! It is an accept loop of our own because the ready-made one knows no caps on
//! connections, no limit on how long a handshake may take or a connection may
//! idle, and no renewed certificate. What calls mean is no business of this
//! room: it puts the peer's address into each request and hands it on.

use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{Instant, MissedTickBehavior, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{BoxError, Service};

use crate::{domain::Entropy, middleware::peer::Connection};

mod admission;
mod budget;
mod certificate;
mod client;
mod config;
mod connection;
#[cfg(test)]
mod tests;
mod threads;

use admission::{Admission, Admitted};
use certificate::{Certificate, Files};
pub use config::Config;
use config::UNIX;
use connection::Rules;
use threads::Threads;

#[doc(hidden)]
pub use budget::followed;

/// How long to wait when the machine has no file descriptor left: connections
/// must end before another can be accepted.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// At most one line in this time about connections that were turned away.
const TURNED_AWAY_EVERY: Duration = Duration::from_secs(1);

/// Why the port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Bind {
        /// As configured.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A file for TLS cannot be read.
    #[error("cannot read {}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file for TLS does not hold what it should.
    #[error("{} is no PEM file of the kind: {reason}", file.display())]
    Pem {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The system gives no more threads.
    #[error("cannot start the threads that serve connections")]
    Threads(#[source] io::Error),
    /// Certificate and key cannot be used.
    #[error("the TLS certificate and key cannot be used")]
    Tls(#[source] rustls::Error),
}

/// A port that is open.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: String,
    tls: Option<Certificate>,
    admission: Arc<Admission>,
    config: Config,
    http1: bool,
    entropy: Arc<dyn Entropy>,
    threads: Threads,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Speaks about connections that were turned away, but not about each.
#[derive(Debug, Default)]
struct TurnedAway {
    count: u64,
    said: Option<Instant>,
}

impl Listener {
    /// Opens the port. Connections wait from now on, and are served by
    /// [`serve`](Self::serve). `entropy` spreads the ages at which they end.
    ///
    /// # Errors
    ///
    /// The address cannot be listened on, or the TLS files cannot be used.
    pub async fn bind(config: &Config, entropy: Arc<dyn Entropy>) -> Result<Self, Error> {
        let tls = match (&config.tls_certificate_file, &config.tls_key_file) {
            (Some(chain), Some(key)) => Some(Certificate::load(Files {
                chain: chain.clone(),
                key: key.clone(),
                client_ca: config.tls_client_ca_file.clone(),
            })?),
            _ => None,
        };
        let failed = |source| Error::Bind {
            address: config.address.clone(),
            source,
        };
        let socket = Socket::bind(&config.address).await.map_err(failed)?;
        Ok(Self {
            address: socket.address().map_err(failed)?,
            socket,
            tls,
            admission: Admission::new(config.max_connections, config.max_connections_per_address),
            config: config.clone(),
            http1: false,
            entropy,
            threads: Threads::here(),
        })
    }

    /// Serves HTTP/1.1 too: without TLS browsers speak nothing else.
    pub fn and_http1(mut self) -> Self {
        self.http1 = true;
        if let Some(tls) = &mut self.tls {
            tls.and_http1();
        }
        self
    }

    /// Serves connections on threads of their own, as many as configured, and not
    /// on the runtime that accepts them.
    ///
    /// # Errors
    ///
    /// The system gives no more threads.
    pub fn on_threads(mut self) -> Result<Self, Error> {
        let count = match self.config.threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        self.threads = Threads::start(count).map_err(Error::Threads)?;
        Ok(self)
    }

    /// The address in the form of the configuration, with the port that was
    /// chosen if that was 0.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Accepts and serves until `shutdown`; then accepts no more and returns
    /// when the last connection has ended, or its grace is over.
    pub async fn serve<S, B>(self, service: S, shutdown: CancellationToken)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let rules = Rules::new(&self.config, self.http1);
        let connections = TaskTracker::new();
        let mut turned_away = TurnedAway::default();
        let mut refresh =
            tokio::time::interval(Duration::from_secs(self.config.tls_reload_seconds));
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = refresh.tick(), if self.tls.is_some() => {
                    if let Some(tls) = &self.tls {
                        tls.refresh();
                    }
                    continue;
                }
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, connection)) => match self.admission.admit(connection.address) {
                    Ok(admitted) => {
                        let shutdown = shutdown.child_token();
                        let (rules, service) = (rules.clone(), service.clone());
                        let connection =
                            self.converse(stream, connection, admitted, rules, service, shutdown);
                        self.threads.spawn(connection, &connections);
                    }
                    Err(full) => turned_away.note(full.label()),
                },
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    turned_away.note("exhausted");
                    tracing::debug!(%error, "accepting failed");
                    let _ = timeout(EXHAUSTED_PAUSE, shutdown.cancelled()).await;
                }
            }
        }
        // The socket is closed before the wait, so that clients go elsewhere.
        drop(self.socket);
        connections.close();
        connections.wait().await;
    }

    /// What becomes of one connection.
    fn converse<S, B>(
        &self,
        stream: Stream,
        connection: Connection,
        admitted: Admitted,
        rules: Rules,
        service: S,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<S, B>
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let now = Instant::now();
        let begin_by = now + Duration::from_millis(self.config.handshake_timeout_ms);
        let times = (begin_by, now + self.age());
        let tls = self.tls.as_ref().map(Certificate::acceptor);
        async move {
            let _admitted = admitted;
            let Ok(stream) = stream.here() else { return };
            match (stream, tls) {
                (Stream::Tcp(tcp), None) => {
                    rules.serve(tcp, connection, service, times, shutdown).await;
                }
                (Stream::Unix(unix), None) => {
                    rules
                        .serve(unix, connection, service, times, shutdown)
                        .await;
                }
                (Stream::Tcp(tcp), Some(tls)) => {
                    if let Some(stream) = handshake(&tls, tcp, begin_by, &shutdown).await {
                        let connection = with_certificate(connection, &stream);
                        rules
                            .serve(stream, connection, service, times, shutdown)
                            .await;
                    }
                }
                (Stream::Unix(unix), Some(tls)) => {
                    if let Some(stream) = handshake(&tls, unix, begin_by, &shutdown).await {
                        let connection = with_certificate(connection, &stream);
                        rules
                            .serve(stream, connection, service, times, shutdown)
                            .await;
                    }
                }
            }
        }
    }

    /// How old a connection may become: up to a tenth less than configured.
    fn age(&self) -> Duration {
        let longest = self.config.max_age_seconds.saturating_mul(1000);
        let random = u64::from_be_bytes(self.entropy.array());
        Duration::from_millis(longest - random % (longest / 10 + 1))
    }
}

/// The TLS handshake; none if it fails or takes too long.
async fn handshake<I: AsyncRead + AsyncWrite + Unpin>(
    tls: &TlsAcceptor,
    io: I,
    begin_by: Instant,
    shutdown: &CancellationToken,
) -> Option<tokio_rustls::server::TlsStream<I>> {
    let handshake = timeout_at(begin_by, tls.accept(io));
    let failure = match shutdown.run_until_cancelled(handshake).await? {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(_)) => "refused",
        Err(_) => "timeout",
    };
    metrics::counter!("countersign_tls_handshake_failures_total", "cause" => failure).increment(1);
    None
}

impl Socket {
    async fn bind(address: &str) -> io::Result<Self> {
        let Some(path) = address.strip_prefix(UNIX) else {
            return TcpListener::bind(address).await.map(Self::Tcp);
        };
        let path = PathBuf::from(path);
        remove_stale(&path).await?;
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self::Unix(listener, path))
    }

    fn address(&self) -> io::Result<String> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(|address| address.to_string()),
            Self::Unix(_, path) => Ok(format!("{UNIX}{}", path.display())),
        }
    }

    async fn accept(&self) -> io::Result<(Stream, Connection)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Answers are small and must not wait for more to send.
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), connection_from(peer)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), Connection::default()))
            }
        }
    }
}

impl Stream {
    /// Has the runtime that this is called on wait for it, and no longer the one
    /// on which it was accepted.
    fn here(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.into_std()?)?),
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Whoever comes next removes it otherwise.
            let _ = fs::remove_file(path);
        }
    }
}

fn connection_from(peer: SocketAddr) -> Connection {
    Connection {
        address: Some(peer.ip().to_canonical()),
        certificate: None,
    }
}

/// The connection, with what the client's certificate says if it showed one.
fn with_certificate<I>(
    connection: Connection,
    stream: &tokio_rustls::server::TlsStream<I>,
) -> Connection {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    Connection {
        certificate: chain.first().and_then(client::read).map(Arc::new),
        ..connection
    }
}

/// Removes a socket that nobody listens on any more, and nothing else.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(data) if data.file_type().is_socket() => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            _ => Err(io::ErrorKind::AddrInUse.into()),
        },
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether an error of `accept` says something about one connection only, so
/// that the next may be better.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::Interrupted
    )
}

impl TurnedAway {
    fn note(&mut self, cause: &'static str) {
        metrics::counter!("countersign_connections_refused_total", "cause" => cause).increment(1);
        self.count += 1;
        if self
            .said
            .is_none_or(|said| said.elapsed() >= TURNED_AWAY_EVERY)
        {
            tracing::warn!(cause, count = self.count, "connections were turned away");
            *self = Self {
                count: 0,
                said: Some(Instant::now()),
            };
        }
    }
}

impl Error {
    fn pem(file: &Path, reason: &dyn std::fmt::Display) -> Self {
        Self::Pem {
            file: file.to_owned(),
            reason: reason.to_string(),
        }
    }
}
