//! Workloads: programs that prove who they are by a client certificate. Which
//! names are workloads, and what they may do, is a list in the configuration.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use countersign_verifier::{Caller, Credential, Subject};
use jiff::Timestamp;

use super::{Invalid, PermissionName};

/// A name as a certificate has it (RFC 5280, section 4.2.1.6). The two kinds are
/// never taken for each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SubjectName {
    /// The name of a host, in lower case.
    Dns(String),
    /// A URI, such as a SPIFFE id; compared exactly.
    Uri(String),
}

/// What is known of a client's certificate once it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its subject alternative names.
    pub names: Vec<SubjectName>,
    /// From when on it is good.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
}

/// A workload on the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    name: SubjectName,
    permissions: BTreeSet<PermissionName>,
}

/// The list.
#[derive(Debug, Clone, Default)]
pub struct Workloads(Arc<[Workload]>);

impl SubjectName {
    /// The longest, in bytes.
    const MOST: usize = 512;

    /// The name of a host.
    pub fn dns(name: &str) -> Self {
        Self::Dns(name.to_ascii_lowercase())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) | Self::Uri(name) => name,
        }
    }
}

impl Workloads {
    /// The list of these.
    pub fn new(list: Vec<Workload>) -> Self {
        Self(list.into())
    }

    /// The caller that a certificate speaks for, if one of its names is on the
    /// list; the first on the list, if several are.
    pub fn caller(&self, certificate: &Certificate) -> Option<Caller> {
        let is_named = |workload: &&Workload| certificate.names.contains(&workload.name);
        let workload = self.0.iter().find(is_named)?;
        let name = workload.name.as_str();
        let scopes = workload.permissions.iter();
        Some(Caller {
            subject: Subject::Workload(name.into()),
            credential: Credential::Certificate,
            client_id: name.to_owned(),
            roles: Vec::new(),
            scopes: scopes.map(ToString::to_string).collect(),
            audience: Vec::new(),
            issued_at: certificate.not_before,
            expires_at: Some(certificate.not_after),
        })
    }
}

impl Workload {
    /// Its name.
    pub fn name(&self) -> &SubjectName {
        &self.name
    }
}

impl FromStr for SubjectName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = (1..=Self::MOST).contains(&text.len());
        let host = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if fits && text.contains("://") && text.chars().all(|c| c.is_ascii_graphic()) {
            Ok(Self::Uri(text.to_owned()))
        } else if fits && text.chars().all(host) {
            Ok(Self::dns(text))
        } else {
            Err(Invalid::new(
                "must be a DNS name without wildcards, or a URI such as spiffe://example.org/orders",
            ))
        }
    }
}

/// The name, and after it the permissions, with blanks between.
impl FromStr for Workload {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let mut words = text.split_ascii_whitespace();
        let name = words.next().unwrap_or_default().parse()?;
        let permissions = words.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { name, permissions })
    }
}

impl fmt::Display for SubjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(list: &[&str], names: Vec<SubjectName>) -> Option<(String, String)> {
        let list = list.iter().map(|entry| entry.parse().unwrap()).collect();
        let certificate = Certificate {
            names,
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::MAX,
        };
        let caller = Workloads::new(list).caller(&certificate)?;
        Some((caller.subject.to_string(), caller.scopes.join(" ")))
    }

    fn uri(text: &str) -> SubjectName {
        SubjectName::Uri(text.to_owned())
    }

    #[test]
    fn a_certificate_speaks_for_whom_the_list_names() {
        let list = [
            "spiffe://example.org/orders orders.read countersign.users.read",
            "Gateway.internal",
        ];
        let orders = "spiffe://example.org/orders";
        let found = caller(&list, vec![uri(orders)]).unwrap();
        assert_eq!(
            found,
            (orders.into(), "countersign.users.read orders.read".into())
        );
        let gateway = Some(("gateway.internal".to_owned(), String::new()));
        assert_eq!(
            caller(&list, vec![SubjectName::dns("GATEWAY.internal")]),
            gateway
        );
        // Of two, the first on the list, wherever they stand in the certificate.
        let both = vec![SubjectName::dns("gateway.internal"), uri(orders)];
        assert_eq!(caller(&list, both).unwrap().0, orders);
        // One kind of name is not the other, and nothing is like enough.
        for name in [
            SubjectName::dns(orders),
            uri("gateway.internal"),
            uri("spiffe://example.org/Orders"),
            uri("spiffe://example.org/orders/"),
            uri("spiffe://example.org"),
            SubjectName::dns("a.gateway.internal"),
            SubjectName::dns("*.internal"),
            SubjectName::dns("gateway.internal."),
        ] {
            assert_eq!(caller(&list, vec![name.clone()]), None, "{name}");
        }
        assert_eq!(caller(&list, Vec::new()), None);
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        for entry in [
            "",
            " ",
            "*.internal",
            "a/b",
            "a b!",
            "a countersign.everything",
            "ä.internal",
        ] {
            assert!(entry.parse::<Workload>().is_err(), "{entry:?}");
        }
    }
}
