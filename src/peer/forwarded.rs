//! The headers in which proxies name whom they ask for: `X-Forwarded-For`, and `Forwarded` of RFC 7239.
//!
//! Each proxy appends the address that it was asked from. So they are read from their end: the first
//! address that is no trusted proxy's was written by one, and whatever stands before it by a stranger.

use crate::config::RealAddress;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What stands where an address should, as far as it is to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

/// Whom the headers name, in the order in which they came; `None` where they name nobody. Port 0 is one
/// that is not told. `is_proxy` says which addresses are those of trusted proxies.
pub fn real<'a>(
    header: RealAddress,
    values: impl DoubleEndedIterator<Item = &'a [u8]>,
    is_proxy: impl Fn(IpAddr) -> bool,
) -> Result<Option<SocketAddr>, Garbled> {
    let mut outermost = None;
    for value in values.rev() {
        let entries: &mut dyn Iterator<Item = Option<SocketAddr>> = match header {
            RealAddress::Forwarded => &mut from_the_end(value, b',').filter_map(element),
            _ => &mut value.rsplit(|byte| *byte == b',').filter_map(plain),
        };
        for entry in entries {
            let address = entry.ok_or(Garbled)?;
            if !is_proxy(address.ip()) {
                return Ok(Some(address));
            }
            outermost = Some(address);
        }
    }
    // A proxy that asks for itself.
    Ok(outermost)
}

/// One entry of `X-Forwarded-For`: `None` for one that is empty, `Some(None)` for one that cannot be read.
fn plain(entry: &[u8]) -> Option<Option<SocketAddr>> {
    let entry = entry.trim_ascii();
    (!entry.is_empty()).then(|| node(entry))
}

/// Whom an element of `Forwarded` names; as above.
fn element(element: &[u8]) -> Option<Option<SocketAddr>> {
    let is_empty = element.trim_ascii().is_empty();
    (!is_empty).then(|| from_the_end(element, b';').find_map(named).and_then(|name| node(&name)))
}

/// The value of a pair whose name is `for`, without its quotes.
fn named(pair: &[u8]) -> Option<Vec<u8>> {
    let at = pair.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
    if !name.eq_ignore_ascii_case(b"for") {
        return None;
    }
    match value {
        [b'"', inner @ .., b'"'] => Some(unescaped(inner)),
        _ => Some(value.to_vec()),
    }
}

fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = text.iter();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(if *byte == b'\\' { bytes.next().copied().unwrap_or(*byte) } else { *byte });
    }
    plain
}

/// The parts between separators that stand in no quotes, the last one first. Read from their end too, so
/// that a quote which a stranger left open swallows nothing of what a proxy appended.
fn from_the_end(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let mut is_quoted = false;
        for at in (0..text.len()).rev() {
            if text[at] == b'"' && !is_escaped(text, at) {
                is_quoted = !is_quoted;
            } else if text[at] == separator && !is_quoted {
                rest = Some(&text[..at]);
                return Some(&text[at + 1..]);
            }
        }
        Some(text)
    })
}

/// Whether an odd number of backslashes stands before this place.
fn is_escaped(text: &[u8], at: usize) -> bool {
    text[..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// An address with or without a port; IPv6 in brackets where there is a port.
fn node(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip.to_canonical(), 0));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(SocketAddr::new(address.ip().to_canonical(), address.port()));
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse::<Ipv6Addr>().ok().map(|ip| SocketAddr::new(IpAddr::from(ip).to_canonical(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whom these headers name where everything in 10.0.0.0/8 is a trusted proxy.
    fn named_by(header: RealAddress, values: &[&str]) -> Result<Option<String>, Garbled> {
        let is_proxy = |ip: IpAddr| matches!(ip, IpAddr::V4(ip) if ip.octets()[0] == 10);
        let real = real(header, values.iter().map(|value| value.as_bytes()), is_proxy)?;
        Ok(real.map(|address| address.to_string()))
    }

    fn plain(values: &[&str]) -> Result<Option<String>, Garbled> {
        named_by(RealAddress::XForwardedFor, values)
    }

    fn standard(values: &[&str]) -> Result<Option<String>, Garbled> {
        named_by(RealAddress::Forwarded, values)
    }

    fn some(address: &str) -> Result<Option<String>, Garbled> {
        Ok(Some(address.to_owned()))
    }

    #[test]
    fn the_last_address_that_is_no_proxys_counts() {
        assert_eq!(plain(&["203.0.113.7"]), some("203.0.113.7:0"));
        assert_eq!(plain(&["1.1.1.1, 203.0.113.7, 10.0.0.2"]), some("203.0.113.7:0"));
        assert_eq!(plain(&["6.6.6.6", "203.0.113.7", "10.0.0.2 ,10.0.0.3"]), some("203.0.113.7:0"));
        assert_eq!(plain(&["10.9.9.9,10.0.0.2"]), some("10.9.9.9:0"), "a proxy that asks for itself");
        assert_eq!(plain(&["2001:db8::1"]), some("[2001:db8::1]:0"));
        assert_eq!(plain(&["[2001:db8::1]:4711"]), some("[2001:db8::1]:4711"));
        assert_eq!(plain(&["203.0.113.7:4711"]), some("203.0.113.7:4711"));
        assert_eq!(plain(&["::ffff:203.0.113.7"]), some("203.0.113.7:0"));
    }

    #[test]
    fn what_a_stranger_wrote_is_not_even_read() {
        assert_eq!(plain(&["\"<script>, 203.0.113.7"]), some("203.0.113.7:0"));
        assert_eq!(standard(&["for=\"_x y;by=z, for=1.2.3.4", "for=203.0.113.7"]), some("203.0.113.7:0"));
        let open = "for=6.6.6.6;x=\", for=\"[2001:db8::1]:99\"";
        assert_eq!(standard(&[open]), some("[2001:db8::1]:99"), "a quote left open");
    }

    #[test]
    fn nothing_is_nobody_and_nonsense_is_told() {
        assert_eq!(plain(&[]), Ok(None));
        assert_eq!(plain(&["", " , "]), Ok(None));
        for nonsense in ["unknown", "1.2.3", "1.2.3.4:99999", "[::1", "1.2.3.4, x, 10.0.0.1"] {
            assert_eq!(plain(&[nonsense]), Err(Garbled), "{nonsense}");
        }
        for hidden in ["for=unknown", "for=_hidden", "proto=https", "for", "for=\"1.2.3.4"] {
            assert_eq!(standard(&[hidden]), Err(Garbled), "{hidden}");
        }
    }

    #[test]
    fn the_standard_header_is_read_with_its_quotes_and_pairs() {
        assert_eq!(standard(&["for=192.0.2.60;proto=http;by=203.0.113.43"]), some("192.0.2.60:0"));
        assert_eq!(standard(&["For=\"[2001:db8:cafe::17]:4711\""]), some("[2001:db8:cafe::17]:4711"));
        assert_eq!(standard(&["for=\"[2001:db8::17]\""]), some("[2001:db8::17]:0"));
        assert_eq!(
            standard(&["for=1.1.1.1, proto=https;for=192.0.2.43, for=10.0.0.1"]),
            some("192.0.2.43:0")
        );
        assert_eq!(standard(&["host=\"a,b;for=6.6.6.6\";for=\"192.0.2.4\\3\""]), some("192.0.2.43:0"));
        assert_eq!(standard(&[""]), Ok(None));
    }
}
