//! `[listen]`: where the gRPC port is and what one connection may take.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::{Workloads, workload::Workload};

/// What a Unix socket's address starts with.
pub(super) const UNIX: &str = "unix:";

/// `[listen]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `ADDRESS:PORT`, or `unix:/path` for a socket that only this user may
    /// connect to.
    pub address: String,
    /// Certificate chain, PEM. With the key it switches TLS on. Both are read
    /// again when they change.
    pub tls_certificate_file: Option<PathBuf>,
    /// Private key, PEM.
    pub tls_key_file: Option<PathBuf>,
    /// Certificates of those who certify clients, PEM. With it clients may show a
    /// certificate; read again like the others.
    pub tls_client_ca_file: Option<PathBuf>,
    /// Workloads that a client's certificate may speak for: a name in the
    /// certificate, and after it the permissions.
    pub tls_workloads: Vec<String>,
    /// How often the files are looked at.
    pub tls_reload_seconds: u64,
    /// Something else encrypts what leaves the machine, so that plaintext on an
    /// address that others can reach is meant.
    pub plaintext_behind_mesh: bool,
    /// Threads that serve connections; 0 is one for each core.
    pub threads: usize,
    /// How long TLS and HTTP/2 may take to begin.
    pub handshake_timeout_ms: u64,
    /// A connection without a call for so long is closed.
    pub idle_seconds: u64,
    /// A connection is closed at about this age (up to a tenth less, so that
    /// not all go at once), and clients spread anew over the nodes.
    pub max_age_seconds: u64,
    /// How long calls may go on once their connection is being closed: idle,
    /// aged, or because the node stops.
    pub close_grace_seconds: u64,
    /// Connections in all.
    pub max_connections: usize,
    /// Connections of one address (IPv6: one /64).
    pub max_connections_per_address: usize,
    /// Calls at once on one connection, those still arriving included.
    pub max_concurrent_streams: u32,
    /// How often a connection is asked whether it is still there.
    pub keepalive_seconds: u64,
    /// How long it may take to answer.
    pub keepalive_timeout_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:50051".into(),
            tls_certificate_file: None,
            tls_key_file: None,
            tls_client_ca_file: None,
            tls_workloads: Vec::new(),
            tls_reload_seconds: 5,
            plaintext_behind_mesh: false,
            threads: 0,
            handshake_timeout_ms: 5_000,
            idle_seconds: 900,
            max_age_seconds: 3600,
            close_grace_seconds: 20,
            max_connections: 8192,
            max_connections_per_address: 1024,
            max_concurrent_streams: 128,
            keepalive_seconds: 30,
            keepalive_timeout_seconds: 10,
        }
    }
}

impl Config {
    /// Whether others than this machine could read along: plaintext on an
    /// address that is not loopback, and nothing said about a mesh.
    pub fn is_plaintext_exposed(&self) -> bool {
        let local = self.address.starts_with(UNIX)
            || self.address.starts_with("localhost:")
            || self
                .address
                .parse::<SocketAddr>()
                .is_ok_and(|address| address.ip().to_canonical().is_loopback());
        !local && !self.is_encrypted() && !self.plaintext_behind_mesh
    }

    /// Whether the port speaks TLS.
    pub fn is_encrypted(&self) -> bool {
        self.tls_certificate_file.is_some()
    }

    /// The workloads that may call.
    pub fn workloads(&self) -> Workloads {
        let list = self.tls_workloads.iter();
        Workloads::new(list.filter_map(|entry| entry.parse().ok()).collect())
    }

    fn validate_clients(&self, problems: &mut Vec<String>) {
        if self.tls_client_ca_file.is_some() && !self.is_encrypted() {
            problems.push(
                "listen.tls_client_ca_file needs TLS; set listen.tls_certificate_file and \
                 listen.tls_key_file too"
                    .into(),
            );
        }
        if self.tls_client_ca_file.is_none() && !self.tls_workloads.is_empty() {
            problems.push(
                "listen.tls_workloads needs listen.tls_client_ca_file: without it clients show no \
                 certificate"
                    .into(),
            );
        }
        let mut names = Vec::new();
        for entry in &self.tls_workloads {
            match entry.parse::<Workload>() {
                Ok(workload) if names.contains(workload.name()) => {
                    problems.push(format!(
                        "listen.tls_workloads names {} twice",
                        workload.name()
                    ));
                }
                Ok(workload) => names.push(workload.name().clone()),
                Err(why) => problems.push(format!("listen.tls_workloads: {entry:?} {why}")),
            }
        }
    }

    /// Checks the values.
    ///
    /// # Errors
    ///
    /// What is wrong with each key, and how to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        let path = self.address.strip_prefix(UNIX);
        let port = |text: &str| text.strip_prefix("localhost:")?.parse::<u16>().ok();
        if let Some(path) = path {
            if !path.starts_with('/') {
                problems.push("listen.address needs an absolute path after \"unix:\"".into());
            }
        } else if self.address.parse::<SocketAddr>().is_err() && port(&self.address).is_none() {
            problems.push(format!(
                "listen.address is \"{}\"; write it as \"127.0.0.1:50051\", \"[::]:50051\" or \
                 \"unix:/path\"",
                self.address
            ));
        }
        if self.tls_certificate_file.is_some() != self.tls_key_file.is_some() {
            problems.push(
                "listen.tls_certificate_file and listen.tls_key_file go together; set both or \
                 neither"
                    .into(),
            );
        }
        self.validate_clients(&mut problems);
        for (key, value) in [
            ("tls_reload_seconds", self.tls_reload_seconds),
            ("handshake_timeout_ms", self.handshake_timeout_ms),
            ("idle_seconds", self.idle_seconds),
            ("max_age_seconds", self.max_age_seconds),
            ("close_grace_seconds", self.close_grace_seconds),
            ("max_connections", self.max_connections as u64),
            (
                "max_connections_per_address",
                self.max_connections_per_address as u64,
            ),
            ("max_concurrent_streams", self.max_concurrent_streams.into()),
            ("keepalive_seconds", self.keepalive_seconds),
            ("keepalive_timeout_seconds", self.keepalive_timeout_seconds),
        ] {
            // A year of seconds keeps every sum of instants in range.
            if !(1..=31_536_000).contains(&value) {
                problems.push(format!("listen.{key} is {value}; set it to 1 to 31536000"));
            }
        }
        if self.threads > 256 {
            problems.push("listen.threads must be at most 256; 0 is one for each core".into());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_is_exposed_where_others_can_reach_it() {
        for (address, exposed) in [
            ("127.0.0.1:1", false),
            ("127.8.9.1:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("localhost:1", false),
            ("unix:/run/x", false),
            ("0.0.0.0:1", true),
            ("[::]:1", true),
            ("192.168.1.1:1", true),
        ] {
            let mut config = Config {
                address: address.into(),
                ..Config::default()
            };
            assert_eq!(config.is_plaintext_exposed(), exposed, "{address}");
            assert_eq!(config.validate(), Ok(()));
            config.plaintext_behind_mesh = true;
            assert!(!config.is_plaintext_exposed());
            config.plaintext_behind_mesh = false;
            config.tls_certificate_file = Some("c.pem".into());
            assert!(!config.is_plaintext_exposed());
        }
    }

    #[test]
    fn what_cannot_work_is_named() {
        let config = Config {
            address: "nowhere".into(),
            tls_key_file: Some("k.pem".into()),
            max_connections: 0,
            ..Config::default()
        };
        let problems = config.validate().unwrap_err();
        for (problem, key) in problems.iter().zip([
            "listen.address",
            "listen.tls_certificate_file",
            "listen.max_connections",
        ]) {
            assert!(problem.starts_with(key), "{problem}");
        }
        assert_eq!(problems.len(), 3);
    }
}
