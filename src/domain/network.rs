//! Networks: what one operator is likely to hold as a whole. Whoever rents a few
//! addresses gets them from one, so what an address may not do a network may not
//! do for long either.

use std::net::IpAddr;

use ipnet::IpNet;

/// The network of an address: the /24 of an IPv4 address, the /48 that a site has
/// in IPv6 (RFC 6177).
pub fn of(address: IpAddr) -> IpNet {
    let address = address.to_canonical();
    let length = if address.is_ipv4() { 24 } else { 48 };
    // No length that is too long ever gets here.
    let network = IpNet::new(address, length).unwrap_or_else(|_| address.into());
    network.trunc()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_network_is_a_24_or_a_48() {
        let of = |address: &str| super::of(address.parse().unwrap()).to_string();
        assert_eq!(of("198.51.100.7"), "198.51.100.0/24");
        assert_eq!(of("::ffff:198.51.100.7"), "198.51.100.0/24");
        assert_eq!(of("2001:db8:7:1:2:3:4:5"), "2001:db8:7::/48");
        assert_ne!(of("2001:db8:7::"), of("2001:db8:8::"));
    }
}
