//! Who is at the other end: the address of the connection, or what a trusted
//! proxy says about it.
//!
//! `x-forwarded-for` is written by whoever likes to, so it is believed only as
//! far as it was written by proxies of our own: from the right, past addresses
//! that are trusted, to the first that is not. A service that logs people in is
//! such a proxy; its certificate says so where its address does not.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use countersign_verifier::Clock;
use http::HeaderMap;
use ipnet::IpNet;

use crate::domain::workload::{Certificate, SubjectName};

const FORWARDED_FOR: &str = "x-forwarded-for";

/// What the listener knows of a connection. It travels in the extensions of
/// each request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Connection {
    /// Where it comes from; none on a Unix socket.
    pub address: Option<IpAddr>,
    /// The certificate that the client showed, if it showed one; verified.
    pub certificate: Option<Arc<Certificate>>,
}

/// Whose `x-forwarded-for` is believed.
#[derive(Debug, Clone, Default)]
pub struct Trusted {
    /// By the networks that they are in.
    pub proxies: Vec<IpNet>,
    /// By a name in the certificate of the connection.
    pub workloads: Vec<SubjectName>,
}

impl Trusted {
    /// The client's address. IPv4 mapped into IPv6 counts as IPv4. Whoever calls over
    /// a Unix socket has none, but a workload may say for whom it calls.
    pub fn client(
        &self,
        connection: &Connection,
        headers: &HeaderMap,
        clock: &dyn Clock,
    ) -> Option<IpAddr> {
        let address = connection.address.map(|address| address.to_canonical());
        let is_proxy = address.is_some_and(|address| self.is_proxy(address));
        if !is_proxy && !self.is_workload(connection, clock) {
            return address;
        }
        let mut client = address;
        for value in headers.get_all(FORWARDED_FOR).iter().rev() {
            let Ok(value) = value.to_str() else {
                return address;
            };
            for hop in value.rsplit(',') {
                // A chain that is broken anywhere on the way says nothing.
                let Some(hop) = parse(hop.trim()) else {
                    return address;
                };
                client = Some(hop);
                if !self.is_proxy(hop) {
                    return client;
                }
            }
        }
        client
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|net| net.contains(&address))
    }

    /// A connection may outlive the certificate that it began with.
    fn is_workload(&self, connection: &Connection, clock: &dyn Clock) -> bool {
        connection.certificate.as_ref().is_some_and(|certificate| {
            let is_named = |name| certificate.names.contains(name);
            self.workloads.iter().any(is_named) && clock.now() < certificate.not_after
        })
    }
}

/// What counts as one peer: an IPv4 address, or the /64 that one IPv6 host has
/// to itself (RFC 6177).
pub fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// An address alone, or as some proxies write it, with a port.
fn parse(hop: &str) -> Option<IpAddr> {
    hop.parse::<IpAddr>()
        .or_else(|_| hop.parse::<SocketAddr>().map(|socket| socket.ip()))
        .ok()
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use countersign_verifier::SystemClock;
    use jiff::{SignedDuration, Timestamp};

    use super::*;

    fn client_of(connection: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, value.parse().unwrap());
        }
        let trusted = Trusted {
            proxies: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            workloads: Vec::new(),
        };
        let connection = Connection {
            address: Some(connection.parse().unwrap()),
            ..Connection::default()
        };
        let client = trusted.client(&connection, &headers, &SystemClock);
        client.unwrap().to_string()
    }

    #[test]
    fn a_forwarded_address_counts_as_far_as_it_was_written_by_trusted_proxies() {
        for (connection, forwarded, expected) in [
            // Nobody between.
            ("203.0.113.7", &[][..], "203.0.113.7"),
            ("::ffff:203.0.113.7", &[], "203.0.113.7"),
            ("10.0.0.1", &[], "10.0.0.1"),
            // A stranger writes what he likes.
            ("203.0.113.7", &["198.51.100.1"], "203.0.113.7"),
            // One proxy, two proxies, on one line or two.
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("fd00::1", &["2001:db8::5"], "2001:db8::5"),
            ("10.0.0.1", &["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["198.51.100.1", "10.0.0.2"], "198.51.100.1"),
            // What the client wrote itself stands to the left of its address.
            ("10.0.0.1", &["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
            (
                "10.0.0.1",
                &["1.1.1.1", "198.51.100.1,10.0.0.2"],
                "198.51.100.1",
            ),
            ("10.0.0.1", &["nonsense, 198.51.100.1"], "198.51.100.1"),
            // Only proxies: the farthest.
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // Ports and mapped addresses.
            ("10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.0.0.1", &["[2001:db8::5]:4711"], "2001:db8::5"),
            ("10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            // Malformed: what is known for certain.
            ("10.0.0.1", &["unknown"], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, , 10.0.0.2"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["010.0.0.5"], "10.0.0.1"),
        ] {
            assert_eq!(
                client_of(connection, forwarded),
                expected,
                "{connection} {forwarded:?}"
            );
        }
    }

    #[test]
    fn a_workload_on_the_list_says_for_whom_it_calls_until_its_certificate_ends() {
        let web = "spiffe://example.org/web";
        let trusted = Trusted {
            proxies: vec!["10.0.0.0/8".parse().unwrap()],
            workloads: vec![web.parse().unwrap()],
        };
        let client_of = |address: Option<&str>, name: Option<&str>, forwarded: &str, hours: i64| {
            let now = SystemClock.now();
            let certificate = name.map(|name| Certificate {
                names: vec![name.parse().unwrap()],
                not_before: Timestamp::UNIX_EPOCH,
                not_after: now + SignedDuration::from_hours(hours),
            });
            let connection = Connection {
                address: address.map(|address| address.parse().unwrap()),
                certificate: certificate.map(Arc::new),
            };
            let mut headers = HeaderMap::new();
            headers.append(FORWARDED_FOR, forwarded.parse().unwrap());
            let client = trusted.client(&connection, &headers, &SystemClock);
            client.map(|client| client.to_string())
        };
        let client = |name, forwarded, hours| {
            client_of(Some("203.0.113.7"), name, forwarded, hours).unwrap()
        };
        assert_eq!(client(Some(web), "198.51.100.1", 1), "198.51.100.1");
        // What it was told itself counts as far as proxies wrote it.
        assert_eq!(
            client(Some(web), "1.1.1.1, 198.51.100.1", 1),
            "198.51.100.1"
        );
        assert_eq!(
            client(Some(web), "198.51.100.1, 10.0.0.1", 1),
            "198.51.100.1"
        );
        for (name, hours) in [
            (None, 1),
            (Some("spiffe://example.org/other"), 1),
            (Some(web), -1),
        ] {
            assert_eq!(
                client(name, "198.51.100.1", hours),
                "203.0.113.7",
                "{name:?}"
            );
            // A Unix socket has no address to fall back on.
            assert_eq!(
                client_of(None, name, "198.51.100.1", hours),
                None,
                "{name:?}"
            );
        }
        let over_a_socket = |forwarded| client_of(None, Some(web), forwarded, 1);
        let person = Some("198.51.100.1".to_owned());
        assert_eq!(over_a_socket("1.1.1.1, 198.51.100.1, 10.0.0.1"), person);
        assert_eq!(over_a_socket("198.51.100.1, unknown"), None);
    }

    #[test]
    fn a_unix_socket_has_no_address_whatever_is_forwarded() {
        let mut headers = HeaderMap::new();
        headers.append(FORWARDED_FOR, "198.51.100.1".parse().unwrap());
        let everyone = Trusted {
            proxies: vec!["0.0.0.0/0".parse().unwrap()],
            workloads: Vec::new(),
        };
        let client = everyone.client(&Connection::default(), &headers, &SystemClock);
        assert_eq!(client, None);
    }

    #[test]
    fn a_peer_is_an_ipv4_address_or_an_ipv6_network() {
        let host = |address: &str| super::host(address.parse().unwrap()).to_string();
        assert_eq!(host("198.51.100.1"), "198.51.100.1");
        assert_eq!(host("::ffff:198.51.100.1"), "198.51.100.1");
        assert_eq!(host("2001:db8:0:1:2:3:4:5"), "2001:db8:0:1::");
        assert_eq!(host("2001:db8:0:1::"), host("2001:db8:0:1:ffff::1"));
    }
}
