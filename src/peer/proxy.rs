//! The header of the PROXY protocol, versions 1 and 2, with which a connection may begin.
//!
//! See <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>. Never guesses: whoever calls this
//! knows that there must be one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a header of version 2 begins with.
pub const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What a header of version 1 begins with.
pub const WORD: &[u8; 6] = b"PROXY ";

/// A header of version 2 that names nobody: whoever sends it asks for itself.
pub const LOCAL: &[u8; 16] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// The longest header of version 1, with its end of line.
const LONGEST_LINE: usize = 107;

/// The shortest: `PROXY UNKNOWN` and an end of line.
const SHORTEST_LINE: usize = 15;

/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;

/// Bytes that may follow them, addresses and all that proxies add; a certificate fits in.
const LARGEST: usize = 16 * 1024;

/// How far a header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// At least this many bytes of it are missing.
    More(usize),
    /// It is whole: whom it names, if anybody.
    Whole(Option<SocketAddr>),
}

/// These bytes are not, and begin, no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads what has come so far, which must be no more than earlier calls asked for.
pub fn read(bytes: &[u8]) -> Result<Step, Malformed> {
    if begins(bytes, WORD) {
        line(bytes)
    } else if begins(bytes, SIGNATURE) {
        binary(bytes)
    } else {
        Err(Malformed)
    }
}

/// Whether a stranger tries to be taken for a proxy.
pub fn is_begun(bytes: &[u8]) -> bool {
    bytes.starts_with(WORD) || bytes.starts_with(SIGNATURE)
}

/// Whether the bytes begin as they must, as far as there are any.
fn begins(bytes: &[u8], beginning: &[u8]) -> bool {
    let length = bytes.len().min(beginning.len());
    bytes[..length] == beginning[..length]
}

fn line(bytes: &[u8]) -> Result<Step, Malformed> {
    if let Some(line) = bytes.strip_suffix(b"\r\n") {
        let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
        return named(line).map(Step::Whole);
    }
    if bytes.contains(&b'\n') || bytes.len() >= LONGEST_LINE {
        return Err(Malformed);
    }
    // Not one byte too many: what follows belongs to someone else.
    let end = if bytes.last() == Some(&b'\r') { 1 } else { 2 };
    Ok(Step::More(SHORTEST_LINE.saturating_sub(bytes.len()).max(end)))
}

fn named(line: &str) -> Result<Option<SocketAddr>, Malformed> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", "TCP4", from, to, from_port, to_port] => {
            let from: Ipv4Addr = from.parse().map_err(|_| Malformed)?;
            let _: Ipv4Addr = to.parse().map_err(|_| Malformed)?;
            both(from.into(), from_port, to_port)
        }
        ["PROXY", "TCP6", from, to, from_port, to_port] => {
            let from: Ipv6Addr = from.parse().map_err(|_| Malformed)?;
            let _: Ipv6Addr = to.parse().map_err(|_| Malformed)?;
            both(from.into(), from_port, to_port)
        }
        _ => Err(Malformed),
    }
}

fn both(from: IpAddr, from_port: &str, to_port: &str) -> Result<Option<SocketAddr>, Malformed> {
    port(to_port)?;
    Ok(Some(SocketAddr::new(from.to_canonical(), port(from_port)?)))
}

fn port(text: &str) -> Result<u16, Malformed> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain).ok_or(Malformed)
}

fn binary(bytes: &[u8]) -> Result<Step, Malformed> {
    if bytes.len() < FIXED {
        return Ok(Step::More(FIXED - bytes.len()));
    }
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if length > LARGEST {
        return Err(Malformed);
    }
    let is_proxied = match bytes[12] {
        0x20 => false,
        0x21 => true,
        _ => return Err(Malformed),
    };
    if bytes.len() < FIXED + length {
        return Ok(Step::More(FIXED + length - bytes.len()));
    }
    let addresses = &bytes[FIXED..];
    match bytes[13] {
        _ if !is_proxied => Ok(Step::Whole(None)),
        0x11 => {
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *first(addresses)?;
            Ok(Step::Whole(Some(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low]))))))
        }
        0x21 => {
            let addresses: &[u8; 36] = first(addresses)?;
            let from = Ipv6Addr::from(*first::<16>(addresses)?);
            let port = u16::from_be_bytes([addresses[32], addresses[33]]);
            Ok(Step::Whole(Some(SocketAddr::new(IpAddr::from(from).to_canonical(), port))))
        }
        // Unknown, datagrams, and unix sockets: nobody who could be counted.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => Ok(Step::Whole(None)),
        _ => Err(Malformed),
    }
}

fn first<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], Malformed> {
    bytes.first_chunk().ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as a connection does: no more than is asked for. Whom the header names, and its length.
    fn taken(bytes: &[u8]) -> Result<(Option<String>, usize), Malformed> {
        let mut at = 0;
        loop {
            match read(&bytes[..at])? {
                Step::Whole(named) => return Ok((named.map(|named| named.to_string()), at)),
                Step::More(more) if at + more <= bytes.len() => at += more,
                Step::More(_) => return Err(Malformed),
            }
        }
    }

    fn header(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).expect("a short one").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, addresses].concat()
    }

    #[test]
    fn a_line_names_an_address_and_nothing_behind_it_is_taken() {
        let line = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n";
        let all = [&line[..], b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(taken(&all), Ok((Some("203.0.113.7:56324".to_owned()), line.len())));
        let line = b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n";
        assert_eq!(taken(line), Ok((Some("[2001:db8::1]:1".to_owned()), line.len())));
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LONGEST_LINE - 16));
        assert_eq!((longest.len(), taken(longest.as_bytes())), (107, Ok((None, 107))));
        assert_eq!(taken(b"PROXY UNKNOWN\r\n\x16\x03"), Ok((None, 15)));
    }

    #[test]
    fn a_line_that_is_not_exact_is_refused() {
        for line in [
            "GET / HTTP/1.1\r\n\r\n",
            "proxy TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +5 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 05 1\r\n",
            "PROXY TCP4 ::1 ::1 1 1\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY TCP5 1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 1\nX",
        ] {
            assert_eq!(taken(line.as_bytes()), Err(Malformed), "{line:?}");
        }
        let long = format!("PROXY UNKNOWN {}", "f".repeat(200));
        assert_eq!(taken(long.as_bytes()), Err(Malformed));
    }

    #[test]
    fn a_binary_header_names_an_address_and_may_bring_more() {
        let v4 = [203, 0, 113, 7, 192, 0, 2, 1, 0xdc, 0x04, 1, 0xbb];
        let all = [&header(0x21, 0x11, &v4)[..], b"GET"].concat();
        assert_eq!(taken(&all), Ok((Some("203.0.113.7:56324".to_owned()), 28)));
        let with_more = header(0x21, 0x11, &[&v4[..], &[0x04, 0, 1, 9]].concat());
        assert_eq!(taken(&with_more), Ok((Some("203.0.113.7:56324".to_owned()), 32)));
        let from: Ipv6Addr = "2001:db8::7".parse().expect("an address");
        let v6 = [&from.octets()[..], &[0; 16], &[0, 80, 1, 0xbb]].concat();
        assert_eq!(taken(&header(0x21, 0x21, &v6)), Ok((Some("[2001:db8::7]:80".to_owned()), 52)));
    }

    #[test]
    fn a_binary_header_may_name_nobody() {
        assert_eq!(taken(LOCAL), Ok((None, 16)));
        assert_eq!(taken(&header(0x20, 0x11, &[0; 12])), Ok((None, 28)), "LOCAL, whatever it says");
        assert_eq!(taken(&header(0x21, 0x00, b"")), Ok((None, 16)));
        assert_eq!(taken(&header(0x21, 0x31, &[0; 216])), Ok((None, 232)));
    }

    #[test]
    fn a_binary_header_that_is_not_exact_is_refused() {
        for (command, family, addresses) in
            [(0x11, 0x11, 12), (0x22, 0x11, 12), (0x21, 0x41, 12), (0x21, 0x11, 11), (0x21, 0x21, 35)]
        {
            let header = header(command, family, &vec![0; addresses]);
            assert_eq!(taken(&header), Err(Malformed), "{command:x} {family:x} {addresses}");
        }
        assert_eq!(taken(&header(0x21, 0x11, &vec![0; LARGEST + 1])), Err(Malformed));
        assert_eq!(taken(b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\0"), Err(Malformed));
    }
}
