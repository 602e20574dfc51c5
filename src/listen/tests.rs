//! Over real sockets, in real time: what is tested are limits in time.

use http_body_util::Empty;
use hyper::{
    body::Bytes,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
    time::sleep,
};
use tokio_rustls::TlsConnector;

use super::*;

/// Preface and an empty SETTINGS frame: a client that begins, and says no more.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[derive(Debug)]
struct Zeros;

impl Entropy for Zeros {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

/// A listener that serves, and answers with the peer's address after as many
/// milliseconds as the path says.
struct Server {
    address: String,
    shutdown: CancellationToken,
    done: JoinHandle<()>,
}

impl Server {
    async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            address: "127.0.0.1:0".into(),
            ..Config::default()
        };
        change(&mut config);
        let listener = Listener::bind(&config, Arc::new(Zeros)).await.unwrap();
        let address = listener.address().to_owned();
        let service = tower::service_fn(|request: Request<Incoming>| async move {
            let wait = request.uri().path()[1..].parse().unwrap();
            sleep(Duration::from_millis(wait)).await;
            let peer = request.extensions().get::<Connection>().unwrap().address;
            let response = Response::builder().header("peer", format!("{peer:?}"));
            Ok(response.body(Empty::<Bytes>::new()).unwrap())
        });
        let shutdown = CancellationToken::new();
        let done = tokio::spawn(listener.serve(service, shutdown.clone()));
        Self {
            address,
            shutdown,
            done,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    async fn client(&self) -> Client {
        Client::over(self.connect().await).await
    }
}

struct Client {
    sender: SendRequest<Empty<Bytes>>,
    /// Ends with the connection.
    connection: JoinHandle<()>,
}

impl Client {
    async fn over<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: I) -> Self {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        Self { sender, connection }
    }

    /// A call that takes so many milliseconds, and who the server thinks called.
    async fn call(&self, takes: u64) -> Result<String, hyper::Error> {
        let request = Request::get(format!("http://x/{takes}"))
            .body(Empty::new())
            .unwrap();
        let response = self.sender.clone().send_request(request).await?;
        Ok(response.headers()["peer"].to_str().unwrap().to_owned())
    }

    async fn ends_within(self, time: Duration) -> Duration {
        let started = Instant::now();
        timeout(time, self.connection)
            .await
            .expect("the connection is closed")
            .unwrap();
        started.elapsed()
    }
}

/// How long until the other side closes; none if it does not in so long.
async fn closed_after(stream: &mut TcpStream, longest: Duration) -> Option<Duration> {
    let started = Instant::now();
    let mut rest = Vec::new();
    // A reset is a close too.
    let read = timeout(longest, stream.read_to_end(&mut rest)).await;
    read.ok().map(|_| started.elapsed())
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_call_knows_its_peer() {
    let server = Server::start(|_| ()).await;
    assert_eq!(
        server.client().await.call(0).await.unwrap(),
        "Some(127.0.0.1)"
    );
}

#[tokio::test]
async fn a_unix_socket_is_for_this_user_and_a_stale_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let address = format!("unix:{}", path.display());
    // Left behind by a process that is no more.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = Server::start(|config| config.address = address.clone()).await;
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let client = Client::over(UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(client.call(0).await.unwrap(), "None");

    // One that is in use is not, nor is a file of another kind.
    let bind = |address: String| async move {
        let config = Config {
            address,
            ..Config::default()
        };
        Listener::bind(&config, Arc::new(Zeros)).await
    };
    bind(address).await.unwrap_err();
    client.call(0).await.unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "mine").unwrap();
    bind(format!("unix:{}", file.display())).await.unwrap_err();
    assert_eq!(fs::read(&file).unwrap(), b"mine");

    server.shutdown.cancel();
    server.done.await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn connections_over_a_cap_are_closed_at_once() {
    for cap in ["total", "address"] {
        let server = Server::start(|config| match cap {
            "total" => config.max_connections = 2,
            _ => config.max_connections_per_address = 2,
        })
        .await;
        let (first, second) = (server.client().await, server.client().await);
        first.call(0).await.unwrap();
        second.call(0).await.unwrap();
        let mut third = server.connect().await;
        assert!(closed_after(&mut third, SECOND).await.is_some(), "{cap}");
        // Those who are in are served, and one who leaves makes room.
        first.call(0).await.unwrap();
        drop(second);
        sleep(Duration::from_millis(100)).await;
        server.client().await.call(0).await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_must_begin_in_time() {
    let server = Server::start(|config| config.handshake_timeout_ms = 300).await;
    let mut silent = server.connect().await;
    let mut slow = server.connect().await;
    slow.write_all(&HELLO[..20]).await.unwrap();
    let mut begun = server.connect().await;
    begun.write_all(HELLO).await.unwrap();
    let took = closed_after(&mut silent, SECOND)
        .await
        .expect("silence is cut");
    assert!(took >= Duration::from_millis(250), "{took:?}");
    assert!(closed_after(&mut slow, SECOND).await.is_some());
    assert_eq!(closed_after(&mut begun, SECOND / 2).await, None);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let server = Server::start(|config| {
        config.idle_seconds = 1;
        config.handshake_timeout_ms = 100;
    })
    .await;
    let (idle, busy) = (server.client().await, server.client().await);
    let started = Instant::now();
    let call = async { busy.call(2200).await.unwrap() };
    let (_, took) = tokio::join!(call, idle.ends_within(SECOND * 2));
    assert!(took >= SECOND, "{took:?}");
    assert!(started.elapsed() >= SECOND * 2);
    // Quiet from now on, so its time has begun.
    let took = busy.ends_within(SECOND * 2).await;
    assert!(took >= SECOND * 3 / 4, "{took:?}");
}

#[tokio::test]
async fn an_old_connection_ends_its_calls_and_is_closed() {
    let server = Server::start(|config| {
        config.max_age_seconds = 1;
        config.close_grace_seconds = 1;
        config.handshake_timeout_ms = 100;
    })
    .await;
    let client = server.client().await;
    // Runs when the age is reached, and ends in the grace.
    client.call(1500).await.unwrap();
    client.ends_within(SECOND).await;
    // Runs longer than age and grace together: cut.
    let client = server.client().await;
    let started = Instant::now();
    client.call(60_000).await.unwrap_err();
    let took = started.elapsed();
    assert!(took >= SECOND * 7 / 4 && took < SECOND * 4, "{took:?}");
}

#[tokio::test]
async fn a_drain_ends_what_runs_and_takes_nothing_new() {
    let server = Server::start(|_| ()).await;
    let client = server.client().await;
    client.call(0).await.unwrap();
    let mut beginner = server.connect().await;
    let running = async { client.call(700).await };
    let drain = async {
        sleep(Duration::from_millis(100)).await;
        server.shutdown.cancel();
        sleep(Duration::from_millis(100)).await;
        TcpStream::connect(&server.address).await.unwrap_err();
        assert!(!server.done.is_finished());
    };
    let (answer, ()) = tokio::join!(running, drain);
    answer.expect("what runs is ended");
    timeout(SECOND, server.done)
        .await
        .expect("the drain ends")
        .unwrap();
    assert!(closed_after(&mut beginner, SECOND).await.is_some());
}

#[tokio::test]
async fn a_drain_is_bounded() {
    let server = Server::start(|config| config.close_grace_seconds = 1).await;
    let client = server.client().await;
    let running = tokio::spawn(async move { client.call(60_000).await });
    sleep(Duration::from_millis(100)).await;
    server.shutdown.cancel();
    timeout(SECOND * 3, server.done)
        .await
        .expect("the drain ends")
        .unwrap();
    running.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let files = [folder.path().join("c.pem"), folder.path().join("k.pem")];
    let renew = || {
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        fs::write(&files[0], pair.cert.pem()).unwrap();
        fs::write(&files[1], pair.signing_key.serialize_pem()).unwrap();
        pair.cert.der().clone()
    };
    let first = renew();
    let server = Server::start(|config| {
        config.tls_certificate_file = Some(files[0].clone());
        config.tls_key_file = Some(files[1].clone());
        config.tls_reload_seconds = 1;
        config.handshake_timeout_ms = 300;
    })
    .await;
    let connect = async |trusted: &rustls::pki_types::CertificateDer<'static>| {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        let stream = server.connect().await;
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    };
    let stream = connect(&first).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let old = Client::over(stream).await;
    old.call(0).await.unwrap();

    let second = renew();
    sleep(Duration::from_millis(1300)).await;
    connect(&first).await.unwrap_err();
    Client::over(connect(&second).await.unwrap())
        .await
        .call(0)
        .await
        .unwrap();
    old.call(0).await.expect("what is connected stays so");

    // Who says nothing does not hold a handshake open.
    let mut silent = server.connect().await;
    assert!(closed_after(&mut silent, SECOND).await.is_some());
}
