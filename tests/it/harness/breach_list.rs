//! A list of breached passwords with the range API, that notes what it is asked
//! and can be made to answer badly.

use std::{
    convert::Infallible,
    fmt::Write as _,
    future::pending,
    path::Path,
    sync::{Arc, Mutex},
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use http::{Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;

/// How the list answers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// As it should.
    Range,
    /// With something else.
    Text(String),
    /// With another status than it should, and the address of another place.
    Status(u16),
    /// Not at all.
    Silence,
}

/// A list on a port of its own; ends when dropped.
#[derive(Debug)]
pub struct BreachList {
    pub url: String,
    state: Arc<State>,
    task: AbortHandle,
}

#[derive(Debug)]
struct State {
    known: Mutex<Vec<(String, u64)>>,
    answer: Mutex<Answer>,
    asked: Mutex<Vec<String>>,
}

/// The SHA-1 of a password, as the list writes it.
pub fn sha1(password: &str) -> String {
    let bytes = digest(&SHA1_FOR_LEGACY_USE_ONLY, password.as_bytes());
    bytes.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02X}").expect("a text");
        text
    })
}

impl BreachList {
    /// One that knows these passwords, each seen so often.
    pub async fn start(known: &[(&str, u64)]) -> Self {
        Self::serve(known, None).await
    }

    /// The same over TLS; its certificate is the file.
    pub async fn start_with_tls(known: &[(&str, u64)], certificate: &Path) -> Self {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
        std::fs::write(certificate, pair.cert.pem()).expect("a file");
        let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key)
            .expect("a certificate");
        Self::serve(known, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(known: &[(&str, u64)], tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let known = known
            .iter()
            .map(|(text, count)| ((*text).to_owned(), *count));
        let state = Arc::new(State {
            known: Mutex::new(known.collect()),
            answer: Mutex::new(Answer::Range),
            asked: Mutex::default(),
        });
        let url = match tls {
            Some(_) => format!("https://localhost:{port}/range"),
            None => format!("http://127.0.0.1:{port}/range"),
        };
        let task = tokio::spawn(accept(listener, tls, Arc::clone(&state))).abort_handle();
        Self { url, state, task }
    }

    /// Answers so from now on.
    pub fn answer(&self, answer: Answer) {
        *self.state.answer.lock().unwrap() = answer;
    }

    /// All requests so far but for probes, each with all that it told.
    pub fn asked(&self) -> Vec<String> {
        let mut asked = self.state.asked.lock().unwrap().clone();
        asked.retain(|request| !request.starts_with("GET /range/00000 "));
        asked
    }

    /// A request about this password as it should be, whole.
    pub fn question(&self, password: &str) -> String {
        let authority = self.url.split('/').nth(2).expect("an authority");
        format!(
            "GET /range/{} HTTP/1.1\nadd-padding: true\nhost: {authority}\nuser-agent: countersign\n",
            &sha1(password)[..5]
        )
    }
}

impl Drop for BreachList {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            match tls {
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        converse(stream, state).await;
                    }
                }
                None => converse(stream, state).await,
            }
        });
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    let service = service_fn(|request| answer(&state, request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Whoever leaves in the middle has its reasons.
    connection.await.ok();
}

async fn answer(state: &State, request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let (head, body) = request.into_parts();
    let mut headers: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().expect("a text")))
        .collect();
    headers.sort_unstable();
    let body = body.collect().await.expect("a body").to_bytes();
    state.asked.lock().unwrap().push(format!(
        "{} {} {:?}\n{}{}",
        head.method,
        head.uri,
        head.version,
        headers.concat(),
        String::from_utf8_lossy(&body)
    ));
    let answer = state.answer.lock().unwrap().clone();
    let respond = |status: u16, text: String| {
        Response::builder()
            .status(status)
            .header(header::LOCATION, "/range/FFFFF")
            .body(text)
            .expect("a response")
    };
    Ok(match answer {
        Answer::Range => respond(200, range(state, head.uri.path())),
        Answer::Text(text) => respond(200, text),
        Answer::Status(status) => respond(status, range(state, head.uri.path())),
        Answer::Silence => pending().await,
    })
}

/// What is known of a prefix, among others and padding.
fn range(state: &State, path: &str) -> String {
    let prefix = path.strip_prefix("/range/").expect("a prefix");
    let mut lines = vec![
        "0018A45C4D1DEF81644B54AB7F969B88D65:21".to_owned(),
        "FFF983A91443AE72BD98E59ADAB93B31974:0".to_owned(),
    ];
    for (password, count) in state.known.lock().unwrap().iter() {
        if let Some(rest) = sha1(password).strip_prefix(prefix) {
            lines.push(format!("{rest}:{count}"));
        }
    }
    lines.sort_unstable();
    lines.join("\r\n")
}
