//! Who is at the other end of a connection: whoever opened it, or whom a trusted proxy names.
//!
//! Pure. Knows addresses, the PROXY protocol and forwarding headers as bytes; neither sockets nor what
//! is asked for.

pub mod forwarded;
pub mod proxy;

use crate::config::{Config, Networks, Proxies, RealAddress};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Whoever opened the connection from this address.
    Tcp(SocketAddr),
    /// Someone on this machine.
    Unix,
    /// Whoever a trusted proxy says it is; port 0 where it did not tell the port.
    Told(SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Told(address) if address.port() == 0 => address.ip().to_canonical().fmt(f),
            Peer::Tcp(address) | Peer::Told(address) => {
                SocketAddr::new(address.ip().to_canonical(), address.port()).fmt(f)
            }
            Peer::Unix => f.write_str("unix"),
        }
    }
}

/// An address as peers are counted: IPv6 by the network of 64 bits, all of which is one household's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Source {
        match address {
            IpAddr::V4(_) => Source(address),
            IpAddr::V6(address) => Source(Ipv6Addr::from(u128::from(address) >> 64 << 64).into()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(address) => write!(f, "{address}/64"),
        }
    }
}

/// Whom the operator believes, and how they tell who is behind them.
#[derive(Clone, Debug)]
pub struct Trust {
    proxies: Proxies,
    real_address: RealAddress,
    exempt: Networks,
}

impl Trust {
    /// As the configuration says.
    pub fn new(config: &Config) -> Trust {
        Trust {
            proxies: config.trusted_proxies.clone(),
            real_address: config.real_address,
            exempt: config.address_exempt.clone(),
        }
    }

    /// Whether this is a proxy that is believed.
    pub fn believes(&self, peer: Peer) -> bool {
        match peer {
            Peer::Tcp(address) => self.proxies.have(address.ip()),
            Peer::Unix => self.proxies.unix,
            Peer::Told(_) => false,
        }
    }

    /// Whether this connection begins with a header of the PROXY protocol.
    pub fn expects_proxy_header(&self, peer: Peer) -> bool {
        self.real_address == RealAddress::ProxyProtocol && self.believes(peer)
    }

    /// The header that names whoever is behind this peer, if it is a proxy that is believed.
    pub fn header(&self, peer: Peer) -> Option<RealAddress> {
        (self.real_address != RealAddress::ProxyProtocol && self.believes(peer)).then_some(self.real_address)
    }

    /// Whether this is one of the proxies' own addresses.
    pub fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies.have(address)
    }

    /// The address that counts for this peer. `None` for this machine and the networks around it, where
    /// a proxy may be behind which all have one address, for proxies that named nobody, and for whom the
    /// operator exempts.
    pub fn source(&self, peer: Peer) -> Option<Source> {
        let address = match peer {
            Peer::Unix => return None,
            Peer::Tcp(address) => Some(address.ip().to_canonical()).filter(|address| !is_near(*address)),
            Peer::Told(address) => Some(address.ip().to_canonical()).filter(|address| !address.is_loopback()),
        };
        let counts = |address: &IpAddr| !self.is_proxy(*address) && !self.exempt.have(*address);
        address.filter(counts).map(Source::from)
    }
}

fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            // What carriers and virtual private networks hand out.
            let is_shared = matches!(ip.octets(), [100, 64..128, ..]);
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || is_shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(proxies: &str, real_address: RealAddress) -> Trust {
        let mut trusted = Proxies::default();
        proxies.split(' ').filter(|text| !text.is_empty()).for_each(|text| {
            trusted.add(text).expect("an address");
        });
        Trust { proxies: trusted, real_address, exempt: Networks::default() }
    }

    fn tcp(address: &str) -> Peer {
        Peer::Tcp(format!("{address}:1").parse().expect("an address"))
    }

    fn told(address: &str) -> Peer {
        Peer::Told(format!("{address}:0").parse().expect("an address"))
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_a_mapped_one_is_ipv4() {
        let trust = trust("", RealAddress::XForwardedFor);
        let source = |address| trust.source(tcp(address));
        assert_eq!(source("[2001:db8:1:2::1]"), source("[2001:db8:1:2:ffff::9]"));
        assert_ne!(source("[2001:db8:1:2::1]"), source("[2001:db8:1:3::1]"));
        assert_eq!(source("[::ffff:192.0.2.7]"), source("192.0.2.7"));
        assert_eq!(source("[2001:db8:1:2::1]").expect("far").to_string(), "2001:db8:1:2::/64");
    }

    #[test]
    fn who_is_near_is_not_counted_unless_a_proxy_named_them() {
        let trust = trust("10.0.0.1 8.8.4.4", RealAddress::XForwardedFor);
        let near = ["127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.0.9", "169.254.1.1", "100.100.1.1"];
        let near_v6 = ["[::1]", "[fd00::1]", "[fe80::1]", "[::ffff:10.0.0.1]"];
        for address in near.into_iter().chain(near_v6) {
            assert_eq!(trust.source(tcp(address)), None, "{address}");
        }
        assert_eq!(trust.source(Peer::Unix), None);
        for far in ["100.128.0.1", "172.32.0.1", "8.8.8.8", "[2001:db8::1]", "[::ffff:8.8.8.8]"] {
            assert!(trust.source(tcp(far)).is_some(), "{far}");
            assert!(trust.source(told(far)).is_some(), "{far}");
        }
        assert!(trust.source(told("10.1.2.3")).is_some(), "a device of the house, behind its proxy");
        // A proxy that names nobody stands for many, wherever it is.
        for proxy in [tcp("8.8.4.4"), told("10.0.0.1"), told("127.0.0.1")] {
            assert_eq!(trust.source(proxy), None, "{proxy}");
        }
    }

    #[test]
    fn who_is_exempt_is_not_counted() {
        let mut trust = trust("", RealAddress::XForwardedFor);
        trust.exempt.add("203.0.113.0/24").expect("a network");
        assert_eq!(trust.source(tcp("203.0.113.7")), None);
        assert_eq!(trust.source(told("203.0.113.7")), None);
        assert!(trust.source(tcp("203.0.114.7")).is_some());
    }

    #[test]
    fn nobody_is_believed_unless_named() {
        let nobody = trust("", RealAddress::XForwardedFor);
        for peer in [tcp("127.0.0.1"), Peer::Unix, told("127.0.0.1")] {
            assert!(!nobody.believes(peer) && nobody.header(peer).is_none(), "{peer}");
        }
        let some = trust("10.0.0.0/8 unix 2001:db8::/32", RealAddress::Forwarded);
        for peer in [tcp("10.1.2.3"), tcp("[::ffff:10.1.2.3]"), tcp("[2001:db8::9]"), Peer::Unix] {
            assert_eq!(some.header(peer), Some(RealAddress::Forwarded), "{peer}");
            assert!(!some.expects_proxy_header(peer));
        }
        for peer in [tcp("11.1.2.3"), tcp("[2001:db9::9]"), told("10.1.2.3")] {
            assert!(!some.believes(peer), "{peer}");
        }
        let binary = trust("10.0.0.1", RealAddress::ProxyProtocol);
        assert!(binary.expects_proxy_header(tcp("10.0.0.1")) && binary.header(tcp("10.0.0.1")).is_none());
        assert!(!binary.expects_proxy_header(tcp("10.0.0.2")));
    }

    #[test]
    fn a_peer_is_shown_with_what_is_known_of_it() {
        assert_eq!(tcp("[::ffff:192.0.2.7]").to_string(), "192.0.2.7:1");
        assert_eq!(told("[2001:db8::1]").to_string(), "2001:db8::1");
        assert_eq!(Peer::Told("192.0.2.7:99".parse().expect("an address")).to_string(), "192.0.2.7:99");
        assert_eq!(Peer::Unix.to_string(), "unix");
    }
}
