//! `[sidecar]`: whom a sidecar follows, and where it keeps what it knows.

use std::{fs, path::PathBuf};

use anyhow::Context;
use countersign_verifier::client::{self, Bearer};
use serde::{Deserialize, Serialize};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::config::Secret;

/// The settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// URLs of the nodes.
    pub nodes: Vec<String>,
    /// An API key that may watch the feed.
    pub credential: Option<Secret>,
    /// File that holds it; read again for each connection.
    pub credential_file: Option<PathBuf>,
    /// PEM file with the authorities of the nodes' certificates.
    pub ca_file: Option<PathBuf>,
    /// PEM file with our client certificate.
    pub certificate_file: Option<PathBuf>,
    /// PEM file with its key.
    pub key_file: Option<PathBuf>,
    /// Names this sidecar to operators.
    pub instance: String,
    /// Where the last known state is kept.
    pub snapshot_file: Option<PathBuf>,
    /// File with the key that seals it.
    pub snapshot_key_file: Option<PathBuf>,
}

impl Config {
    /// What is wrong with the settings of a process that is a sidecar, and how
    /// to mend it.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        if self.nodes.is_empty() {
            problems.push(
                "sidecar.nodes is empty; name the nodes to follow, such as \
                 https://auth-1.example.com:50051"
                    .to_owned(),
            );
        }
        for node in &self.nodes {
            let legal = node.parse::<url::Url>().is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.username().is_empty()
                    && url.password().is_none()
                    && matches!(url.path(), "" | "/")
                    && url.query().is_none()
            });
            if !legal {
                problems.push(format!(
                    "sidecar.nodes: {node:?} must be an http or https URL of host and port only"
                ));
            }
        }
        if self.credential.is_some() && self.credential_file.is_some() {
            problems.push(
                "sidecar.credential and sidecar.credential_file are both set; keep one".to_owned(),
            );
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            problems.push(
                "sidecar.certificate_file and sidecar.key_file belong together; set both"
                    .to_owned(),
            );
        }
        let has_credential = self.credential.is_some() || self.credential_file.is_some();
        if !has_credential && self.certificate_file.is_none() {
            problems.push(
                "sidecar.credential_file is not set; it names a file with an API key that has the \
                 permission countersign.trust.watch (or use a client certificate)"
                    .to_owned(),
            );
        }
        if self.snapshot_file.is_some() && !has_credential && self.snapshot_key_file.is_none() {
            problems.push(
                "sidecar.snapshot_key_file is required to keep a snapshot without an API key"
                    .to_owned(),
            );
        }
        if self.instance.len() > 64 {
            problems.push("sidecar.instance must be at most 64 bytes".to_owned());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// Whether a node is reached in plaintext on another host.
    pub fn may_send_plaintext(&self) -> bool {
        self.nodes.iter().any(|node| {
            let url = node.parse::<url::Url>().ok();
            url.is_some_and(|url| {
                let local = url.host().is_some_and(|host| match host {
                    url::Host::Domain(name) => name == "localhost",
                    url::Host::Ipv4(address) => address.is_loopback(),
                    url::Host::Ipv6(address) => address.is_loopback(),
                });
                url.scheme() == "http" && !local
            })
        })
    }

    /// What to follow.
    pub(super) fn feed(&self, issuer: &str) -> anyhow::Result<client::Config> {
        let bearer = match (&self.credential, &self.credential_file) {
            (Some(text), _) => Bearer::Text(text.expose().to_owned()),
            (None, Some(path)) => Bearer::File(path.clone()),
            (None, None) => Bearer::None,
        };
        let nodes = self.nodes.iter().map(|node| self.endpoint(node));
        Ok(client::Config {
            endpoints: nodes.collect::<anyhow::Result<_>>()?,
            bearer,
            instance: self.instance.clone(),
            issuer: Some(issuer.to_owned()),
        })
    }

    fn endpoint(&self, node: &str) -> anyhow::Result<Endpoint> {
        let endpoint = Endpoint::from_shared(node.to_owned())?;
        if !node.starts_with("https://") {
            return Ok(endpoint);
        }
        let read = |path: &PathBuf| {
            fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
        };
        let mut tls = ClientTlsConfig::new();
        tls = match &self.ca_file {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
            None => tls.with_native_roots(),
        };
        if let (Some(certificate), Some(key)) = (&self.certificate_file, &self.key_file) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(endpoint.tls_config(tls)?)
    }
}
