//! What a request says of whoever sent it. Pure.

use super::wire;
use crate::credential::Credential;
use hyper::header::{self, HeaderMap};

/// Bytes of a program's name that are worth remembering.
const LONGEST_PROGRAM: usize = 64;

/// What a request says of itself, its transaction apart.
pub struct Sender<'a> {
    /// The path without query.
    pub path: &'a str,
    /// What the program calls itself; empty where it does not say so in a few printable characters.
    pub program: &'a str,
    /// What it brings to show that it comes from a device. Proxies bring such things too: it counts only
    /// where one is needed.
    pub credential: Option<Credential>,
}

impl<'a> Sender<'a> {
    /// Reads a request's head.
    pub fn new(path: &'a str, headers: &'a HeaderMap) -> Sender<'a> {
        let name = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
        let program = name.filter(|name| name.len() <= LONGEST_PROGRAM && !name.contains('\t'));
        Sender { path, program: program.unwrap_or_default(), credential: wire::credential(headers) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn programs_are_known_by_short_printable_names() {
        let program = |name: &[u8]| {
            let value = HeaderValue::from_bytes(name).expect("a header");
            Sender::new("/", &HeaderMap::from_iter([(header::USER_AGENT, value)])).program.to_owned()
        };
        assert_eq!(program(b"taskchampion/3.1.0"), "taskchampion/3.1.0");
        for name in [&b"a\tb"[..], b"\xff", &[b'x'; 65]] {
            assert_eq!(program(name), "");
        }
        assert_eq!(Sender::new("/", &HeaderMap::new()).program, "");
    }
}
