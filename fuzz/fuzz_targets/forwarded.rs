//! Whatever stands in a forwarding header names an address that is written there, or nobody; and
//! whatever a stranger writes in front of what a proxy appends changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::{IpAddr, Ipv4Addr};
use sync_server::config::RealAddress;
use sync_server::peer::forwarded;

const SENDER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

fn is_proxy(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(ip) if ip.octets()[0] == 10)
}

fuzz_target!(|bytes: &[u8]| {
    for (header, appended) in
        [(RealAddress::XForwardedFor, "203.0.113.7, 10.0.0.1"), (RealAddress::Forwarded, "for=203.0.113.7, for=10.0.0.1")]
    {
        let _ = forwarded::real(header, bytes.split(|byte| *byte == b'\n'), is_proxy);
        // As a proxy does that adds a line of its own.
        let lines = [bytes, appended.as_bytes()];
        let real = forwarded::real(header, lines.into_iter(), is_proxy).expect("what the proxy wrote is sound");
        assert_eq!(real.map(|address| address.ip()), Some(SENDER));
        // As a proxy does that lengthens the line.
        let line = [bytes, b", ", appended.as_bytes()].concat();
        let real = forwarded::real(header, [&line[..]].into_iter(), is_proxy).expect("it is still sound");
        assert_eq!(real.map(|address| address.ip()), Some(SENDER));
    }
});
