//! How the database is reached. Which database it is follows from the URL's
//! scheme, which must be written out: a typo must not create an empty file.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tokio_postgres::config::{Host, SslMode};

use crate::breaker;

/// How the database is reached.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `sqlite://path` or `postgres://user:password@host/database`. May hold a
    /// password: show [`Config::redacted_url`] to people.
    pub url: String,
    /// The most connections; on SQLite those that read, beside one that
    /// writes.
    pub max_connections: usize,
    /// The longest wait for a connection.
    pub acquire_timeout_ms: u64,
    /// The longest time for a query; for the first one on a connection the
    /// wait for that is included.
    pub query_timeout_ms: u64,
    /// PEM file of the roots that PostgreSQL's certificate may come from;
    /// those of the system if unset.
    pub ca_file: Option<PathBuf>,
    /// How often the trust log is looked at.
    pub trust_poll_ms: u64,
    /// When the database counts as down.
    pub breaker: breaker::Config,
}

/// Which database a URL names.
#[derive(Clone)]
pub(super) enum Target {
    Sqlite(PathBuf),
    Postgres(Box<tokio_postgres::Config>),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: String::new(),
            max_connections: 8,
            acquire_timeout_ms: 500,
            query_timeout_ms: 800,
            ca_file: None,
            trust_poll_ms: 500,
            breaker: breaker::Config::default(),
        }
    }
}

impl Config {
    /// Names every setting that makes no sense, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        match self.target() {
            Err(why) => wrong.push(why),
            Ok(Target::Sqlite(_)) if self.ca_file.is_some() => wrong.push(
                "database.ca_file is for PostgreSQL; remove it or set database.url".to_owned(),
            ),
            Ok(_) => {}
        }
        if !(1..=1_000).contains(&self.max_connections) {
            wrong.push("database.max_connections must be 1 to 1000".to_owned());
        }
        for (key, value) in [
            ("acquire_timeout_ms", self.acquire_timeout_ms),
            ("query_timeout_ms", self.query_timeout_ms),
            ("trust_poll_ms", self.trust_poll_ms),
        ] {
            if !(10..=600_000).contains(&value) {
                wrong.push(format!("database.{key} must be 10 to 600000"));
            }
        }
        if self.acquire_timeout_ms >= self.query_timeout_ms {
            wrong.push(
                "database.acquire_timeout_ms must be less than database.query_timeout_ms, \
                 which includes it"
                    .to_owned(),
            );
        }
        if let Err(more) = self.breaker.validate() {
            wrong.extend(more.into_iter().map(|text| format!("database.{text}")));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// The URL without its password and without parameters.
    pub fn redacted_url(&self) -> String {
        match self.target() {
            Ok(Target::Sqlite(path)) => format!("sqlite://{}", path.display()),
            Ok(Target::Postgres(config)) => {
                let hosts: Vec<String> = config
                    .get_hosts()
                    .iter()
                    .enumerate()
                    .map(|(at, host)| {
                        let ports = config.get_ports();
                        let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
                        match host {
                            Host::Tcp(name) => format!("{name}:{port}"),
                            Host::Unix(path) => format!("{}:{port}", path.display()),
                        }
                    })
                    .collect();
                format!(
                    "postgres://{}{}/{}",
                    config
                        .get_user()
                        .map_or(String::new(), |user| format!("{user}@")),
                    hosts.join(","),
                    config.get_dbname().unwrap_or_default()
                )
            }
            Err(_) if self.url.is_empty() => String::new(),
            Err(_) => "(not a database URL)".to_owned(),
        }
    }

    /// Whether what is sent to the database could be read on the way: it is on
    /// another host, and the URL does not insist on TLS.
    pub fn may_send_plaintext(&self) -> bool {
        match self.target() {
            Ok(Target::Postgres(config)) => {
                let near = |host: &Host| match host {
                    Host::Unix(_) => true,
                    Host::Tcp(name) => {
                        name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
                    }
                };
                config.get_ssl_mode() != SslMode::Require
                    && !(config.get_hosts().iter().all(near)
                        && config.get_hostaddrs().iter().all(IpAddr::is_loopback))
            }
            _ => false,
        }
    }

    pub(super) fn acquire_timeout(&self) -> Duration {
        Duration::from_millis(self.acquire_timeout_ms)
    }

    pub(super) fn query_timeout(&self) -> Duration {
        Duration::from_millis(self.query_timeout_ms)
    }

    /// Which database the URL names, or what is wrong with it. The message
    /// never repeats the URL.
    pub(super) fn target(&self) -> Result<Target, String> {
        const HOW: &str = "write sqlite://path/to/file or postgres://user:password@host/database";
        if let Some(path) = self.url.strip_prefix("sqlite://") {
            if path.is_empty() {
                return Err(format!("database.url names no file: {HOW}"));
            }
            if path.starts_with(":memory:") || path.starts_with("file:") || path.contains('?') {
                return Err(
                    "database.url must name a plain file after sqlite://: no :memory: (each \
                     connection would get a database of its own), no file: and no parameters"
                        .to_owned(),
                );
            }
            return Ok(Target::Sqlite(path.into()));
        }
        if self.url.starts_with("postgres://") || self.url.starts_with("postgresql://") {
            let config: tokio_postgres::Config = self.url.parse().map_err(|error| {
                // The parser names the parameter, never a value.
                let why = crate::error::chain(&error);
                format!("database.url is not legal ({why}); sslmode is disable, prefer or require, and require always verifies the certificate")
            })?;
            if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
                return Err(format!("database.url names no host: {HOW}"));
            }
            return Ok(Target::Postgres(Box::new(config)));
        }
        Err(format!(
            "database.url names no database that can be used: {HOW}"
        ))
    }
}

/// The password in the URL stays out of it.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &self.redacted_url())
            .field("max_connections", &self.max_connections)
            .field("acquire_timeout_ms", &self.acquire_timeout_ms)
            .field("query_timeout_ms", &self.query_timeout_ms)
            .field("ca_file", &self.ca_file)
            .field("trust_poll_ms", &self.trust_poll_ms)
            .field("breaker", &self.breaker)
            .finish()
    }
}
