//! Passwords that are known from breaches (NIST SP 800-63B-4, section 3.1.1.2),
//! asked of a list elsewhere: the range API of Have I Been Pwned, or a mirror.
//!
//! What leaves the process is the first five hexadecimal digits of the password's
//! SHA-1, which about a thousand known passwords share. The answer holds the rest
//! of each, and is padded, so that its length tells nothing. No digest, prefix or
//! address asked for is in a log or an error.
//!
//! Whoever asks holds nothing meanwhile: no connection of the database, no ticket
//! of a hash lane. A list that does not answer is left alone by a breaker; what
//! becomes of a new password then is a setting. Only new passwords are looked up,
//! never one that somebody logs in with.
//!
//! Each question has a connection of its own: new passwords are rare, and one
//! that is kept has to be found dead by somebody. Redirects are not followed, and
//! no proxy is used.

use std::{
    convert::Infallible,
    error::Error as StdError,
    fmt::{self, Write as _},
    future::pending,
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use metrics::{counter, histogram};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use thiserror::Error as ThisError;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::{
    breaker::{self, Breaker},
    domain::{Call, Password},
    error::{Error, Reason, Result, chain},
    roots,
};

#[cfg(test)]
mod tests;

/// The dependency in errors, metrics and logs.
const NAME: &str = "breach_list";

/// The most questions at once; others wait as long as for an answer.
const PLACES: usize = 16;

/// The largest answer. A padded one of the real list has some 60 KiB.
const ANSWER_BYTES: usize = 1024 * 1024;

/// Hexadecimal digits of a SHA-1, and how many of them are told.
const DIGITS: usize = 40;
const TOLD: usize = 5;

/// What is asked for to see whether the list is back: nobody's password.
const PROBE: &str = "00000";

/// How often an open breaker probes; the list is not ours to hurry.
const PROBE_INTERVAL_MS: u64 = 5_000;

/// Which list is asked, and how much it counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the prefix is appended to; empty for no list.
    pub url: String,
    /// PEM file of the roots that its certificate may come from; those of the
    /// system if unset.
    pub ca_file: Option<PathBuf>,
    /// The longest wait for an answer, and for its turn before that.
    pub timeout_ms: u64,
    /// A password is refused that was seen so often.
    pub least_count: u64,
    /// What becomes of a new password when the list does not answer.
    pub on_failure: OnFailure,
}

/// What becomes of a new password when the list does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It is taken.
    Accept,
    /// The call fails.
    Refuse,
}

/// A list that can be asked. Clones share its breaker and its places.
#[derive(Debug, Clone)]
pub struct BreachList(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    site: Site,
    breaker: Breaker,
    places: Semaphore,
    timeout: Duration,
    least_count: u64,
    on_failure: OnFailure,
}

/// Where the list is.
struct Site {
    host: String,
    port: u16,
    /// None for plain HTTP.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// `host` of a request.
    authority: String,
    /// Path of a request, but for the prefix.
    path: String,
}

/// Why the list gave no answer. Nothing here says what it was asked.
#[derive(Debug, ThisError)]
enum Failure {
    #[error("the breach list cannot be reached")]
    Unreachable(#[from] io::Error),
    #[error("the breach list broke off")]
    Http(#[from] hyper::Error),
    #[error("the breach list's answer cannot be read")]
    Body(#[source] Box<dyn StdError + Send + Sync>),
    #[error("the breach list answered with status {0}")]
    Status(StatusCode),
    #[error("the breach list's answer is no list of digests")]
    Malformed,
    #[error("the breach list did not answer in time")]
    Late,
    #[error("too many questions wait for the breach list already")]
    Busy,
}

/// The SHA-1 of a password, in upper-case hexadecimal digits.
struct Digest(Zeroizing<String>);

/// What the list knows of a prefix: the rest of a digest, a colon and how often
/// it was seen, on each line. Padding was seen 0 times.
struct Range(String);

impl Default for Config {
    fn default() -> Self {
        Self {
            url: String::new(),
            ca_file: None,
            timeout_ms: 2_000,
            least_count: 1,
            on_failure: OnFailure::Accept,
        }
    }
}

impl Config {
    /// Names every setting that makes no sense, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        if !self.url.is_empty() && self.target().is_none() {
            wrong.push(
                "breached_passwords.url must be an https URL without user, query and fragment, \
                 such as https://api.pwnedpasswords.com/range"
                    .to_owned(),
            );
        }
        if self.url.is_empty() && self.ca_file.is_some() {
            wrong.push("breached_passwords.ca_file needs breached_passwords.url".to_owned());
        }
        if !(10..=30_000).contains(&self.timeout_ms) {
            wrong.push("breached_passwords.timeout_ms must be 10 to 30000".to_owned());
        }
        if self.least_count == 0 {
            wrong.push("breached_passwords.least_count must be at least 1".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// Whether the list is asked in plaintext, and could be answered for.
    pub fn is_plaintext(&self) -> bool {
        self.target().is_some_and(|url| url.scheme() == "http")
    }

    fn target(&self) -> Option<Url> {
        let url: Url = self.url.parse().ok()?;
        let legal = matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        legal.then_some(url)
    }
}

impl BreachList {
    /// The list that is set, if one is.
    pub fn new(config: &Config) -> Result<Option<Self>, String> {
        let Some(url) = config.target() else {
            return Ok(None);
        };
        let breaker = breaker::Config {
            probe_interval_ms: PROBE_INTERVAL_MS,
            ..breaker::Config::default()
        };
        Ok(Some(Self(Arc::new(Inner {
            site: Site::new(&url, config)?,
            breaker: Breaker::new(NAME, &breaker),
            places: Semaphore::new(PLACES),
            timeout: Duration::from_millis(config.timeout_ms),
            least_count: config.least_count,
            on_failure: config.on_failure,
        }))))
    }

    /// Whether the password is on the list often enough to be refused. If the
    /// list does not answer, that is no, or an error, as is set.
    pub async fn contains(&self, password: &Password, call: &Call) -> Result<bool> {
        let list = &*self.0;
        let (outcome, answer) = match list.count(password, call).await {
            Ok(count) if count >= list.least_count => ("breached", Ok(true)),
            Ok(_) => ("clear", Ok(false)),
            Err(error)
                if error.reason() == Reason::DependencyUnavailable
                    && list.on_failure == OnFailure::Accept =>
            {
                let cause = error.source().map(chain);
                let cause = cause.unwrap_or_else(|| "the breaker is open".to_owned());
                tracing::warn!(cause, "a new password was not looked up");
                ("accepted", Ok(false))
            }
            Err(error) => ("refused", Err(error)),
        };
        counter!("countersign_breach_list_checks_total", "outcome" => outcome).increment(1);
        answer
    }

    /// Runs until shutdown: while the breaker is open, looks whether the list is
    /// back.
    pub async fn run(self, shutdown: CancellationToken) {
        let (breaker, list) = (self.0.breaker.clone(), self.0);
        let every = breaker.retry_after();
        let check = async move || {
            let answer = timeout(list.timeout, list.site.range(PROBE)).await;
            matches!(answer, Ok(Ok(_)))
        };
        breaker.probe(check, every, shutdown).await;
    }
}

impl Inner {
    /// How often the password was seen.
    async fn count(&self, password: &Password, call: &Call) -> Result<u64> {
        let failed = |failure: Failure| {
            if call.is_late() {
                return Error::new(Reason::DeadlineExceeded);
            }
            Error::unavailable(NAME, self.breaker.retry_after()).because(failure)
        };
        let left = call.remaining();
        let patience = left.map_or(self.timeout, |left| left.min(self.timeout));
        let until = Instant::now() + patience;
        let Ok(place) = timeout_at(until, self.places.acquire()).await else {
            return Err(failed(Failure::Busy));
        };
        let _place = place.map_err(Error::internal)?;
        let permit = self.breaker.permit()?;
        let digest = Digest::of(password);
        let begun = Instant::now();
        let answer = timeout_at(until, self.site.range(digest.told())).await;
        histogram!("countersign_breach_list_seconds").record(begun.elapsed());
        match answer.unwrap_or(Err(Failure::Late)) {
            Ok(range) => {
                permit.success();
                Ok(range.count(digest.rest()))
            }
            Err(failure) => {
                // A caller in a hurry says nothing about the list.
                if call.is_late() {
                    permit.neutral();
                } else {
                    permit.failure();
                }
                Err(failed(failure))
            }
        }
    }
}

impl Site {
    fn new(url: &Url, config: &Config) -> Result<Self, String> {
        let host = match url.host() {
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(Host::Domain(name)) => name.to_owned(),
            None => String::new(),
        };
        let tls = if url.scheme() == "https" {
            let client = roots::client("breached_passwords.ca_file", config.ca_file.as_deref())?;
            let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
            Some((TlsConnector::from(Arc::new(client)), name))
        } else {
            None
        };
        let authority = url.host_str().unwrap_or_default();
        Ok(Self {
            host,
            port: url.port_or_known_default().unwrap_or_default(),
            tls,
            authority: match url.port() {
                Some(port) => format!("{authority}:{port}"),
                None => authority.to_owned(),
            },
            path: format!("{}/", url.path().trim_end_matches('/')),
        })
    }

    /// The answer about a prefix.
    async fn range(&self, prefix: &str) -> Result<Range, Failure> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match &self.tls {
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), stream).await?;
                self.exchange(stream, prefix).await
            }
            None => self.exchange(stream, prefix).await,
        }
    }

    async fn exchange<S>(&self, stream: S, prefix: &str) -> Result<Range, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(format!("{}{prefix}", self.path))
            .header(header::HOST, &self.authority)
            .header(header::USER_AGENT, "countersign")
            .header("add-padding", "true")
            .body(String::new())
            .map_err(|error| Failure::Body(error.into()))?;
        let answer = async {
            let response = sender.send_request(request).await?;
            if response.status() != StatusCode::OK {
                return Err(Failure::Status(response.status()));
            }
            let body = Limited::new(response.into_body(), ANSWER_BYTES);
            let body = body.collect().await.map_err(Failure::Body)?.to_bytes();
            let text = String::from_utf8(body.into()).map_err(|_| Failure::Malformed)?;
            Range::parse(text)
        };
        // The connection may end before all that it brought was read; how it
        // ended the answer shows.
        let driven = async {
            connection.await.ok();
            pending::<Infallible>().await
        };
        tokio::select! {
            answer = answer => answer,
            never = driven => match never {},
        }
    }
}

impl Digest {
    fn of(password: &Password) -> Self {
        let bytes = digest(&SHA1_FOR_LEGACY_USE_ONLY, password.expose().as_bytes());
        // Reserved at once: growing would leave copies behind in memory.
        let mut text = Zeroizing::new(String::with_capacity(DIGITS));
        for byte in bytes.as_ref() {
            // Writing to a text does not fail.
            let _ = write!(text, "{byte:02X}");
        }
        Self(text)
    }

    /// What the list is told.
    fn told(&self) -> &str {
        self.0.split_at(TOLD).0
    }

    /// What is looked for in the answer.
    fn rest(&self) -> &str {
        self.0.split_at(TOLD).1
    }
}

impl Range {
    fn parse(text: String) -> Result<Self, Failure> {
        let is_entry = |line: &str| {
            line.split_once(':').is_some_and(|(digits, count)| {
                digits.len() == DIGITS - TOLD
                    && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
                    && count.parse::<u64>().is_ok()
            })
        };
        // The real list has something to say of every prefix.
        let legal = !text.is_empty() && text.lines().all(is_entry);
        legal.then_some(Self(text)).ok_or(Failure::Malformed)
    }

    /// How often the password was seen of whose digest this is the rest.
    fn count(&self, rest: &str) -> u64 {
        let entries = self.0.lines().filter_map(|line| line.split_once(':'));
        let counts = entries.filter(|(digits, _)| digits.eq_ignore_ascii_case(rest));
        let counts = counts.filter_map(|(_, count)| count.parse().ok());
        counts.max().unwrap_or(0)
    }
}

/// How often a digest was seen, by this answer to its first digits and the rest of it;
/// none if it is no answer: the way in for the fuzz target `breach_range`.
#[doc(hidden)]
pub fn count_in(answer: &str, rest: &str) -> Option<u64> {
    let range = Range::parse(answer.to_owned()).ok()?;
    Some(range.count(rest))
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Site({})", self.authority)
    }
}
