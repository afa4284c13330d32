//! Addresses and networks that an operator names.

use ipnet::IpNet;
use std::net::IpAddr;

/// Addresses and networks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Adds `10.0.0.0/8` or `192.0.2.7`, and gives it in canonical form.
    pub fn add(&mut self, text: &str) -> Result<String, String> {
        let network = match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
            (Ok(address), _) => IpNet::from(address.to_canonical()),
            (_, Ok(network)) => network.trunc(),
            _ => return Err("is neither an address nor a network".to_owned()),
        };
        self.0.push(network);
        let is_one = network.prefix_len() == network.max_prefix_len();
        Ok(if is_one { network.addr().to_string() } else { network.to_string() })
    }

    /// Whether this is one of them.
    pub fn have(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether everybody is in there.
    pub fn have_all(&self) -> bool {
        self.0.iter().any(|network| network.prefix_len() == 0)
    }
}

/// The proxies that are believed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proxies {
    networks: Networks,
    /// Whether whoever comes by a unix socket is one.
    pub unix: bool,
}

impl Proxies {
    /// The same, and the word `unix` for whoever comes by a unix socket.
    pub fn add(&mut self, text: &str) -> Result<String, String> {
        if text == "unix" {
            self.unix = true;
            return Ok(text.to_owned());
        }
        self.networks.add(text)
    }

    /// Whether this is the address of one.
    pub fn have(&self, address: IpAddr) -> bool {
        self.networks.have(address)
    }

    /// Whether everybody counts as one.
    pub fn have_all(&self) -> bool {
        self.networks.have_all()
    }

    /// Whether there is none.
    pub fn are_none(&self) -> bool {
        self.networks.0.is_empty() && !self.unix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_told_in_one_form() {
        let mut networks = Networks::default();
        for (text, shown) in [
            ("192.0.2.7", "192.0.2.7"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::ffff:198.51.100.1", "198.51.100.1"),
            ("2001:DB8::/32", "2001:db8::/32"),
        ] {
            assert_eq!(networks.add(text).as_deref(), Ok(shown));
        }
        let have = |address: &str| networks.have(address.parse().expect("an address"));
        assert!(have("192.0.2.7") && have("10.9.9.9") && have("::ffff:10.9.9.9") && have("2001:db8:ff::1"));
        assert!(!have("192.0.2.8") && !have("11.0.0.1") && !have("2001:db9::1"));
        for text in ["localhost", "10.0.0.0/33", "10.0.0", "unix", "*", "10.0.0.1:80"] {
            assert!(networks.add(text).is_err(), "{text}");
        }
    }

    #[test]
    fn everybody_is_a_network_too() {
        for (text, expected) in [("0.0.0.0/0", true), ("::/0", true), ("10.0.0.0/8", false)] {
            let mut proxies = Proxies::default();
            proxies.add(text).expect("a network");
            assert_eq!(proxies.have_all(), expected, "{text}");
        }
    }
}
