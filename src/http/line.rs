//! The one log line of each request.

use crate::peer::Peer;
use crate::protocol::ClientId;
use hyper::Method;
use std::fmt;
use std::time::Duration;

/// The log target of request lines, so that they can be filtered by themselves.
pub const TARGET: &str = "sync_server::request";

/// Characters of a path that a line shows at most.
const LONGEST_PATH: usize = 200;

/// What a request's line says.
pub struct Line<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path without query.
    pub path: &'a str,
    /// The answer's status.
    pub status: u16,
    /// The client that asked.
    pub client: Option<ClientId>,
    /// Bytes of the request's body if it brought one, else of the answer's.
    pub bytes: usize,
    /// From the parsed head to the finished answer.
    pub took: Duration,
    /// Who is at the other end.
    pub peer: Peer,
    /// Whether it is one of the many that monitoring sends.
    pub is_probe: bool,
}

impl Line<'_> {
    /// Writes the line. Probes are logged at the debug level: they would bury the rest.
    pub fn log(&self) {
        let level = if self.is_probe { log::Level::Debug } else { log::Level::Info };
        log::log!(
            target: TARGET,
            level,
            method:% = Shown(self.method.as_str()),
            path:% = Shown(self.path),
            status = self.status,
            client:% = Short(self.client),
            bytes = self.bytes,
            us = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX),
            peer:% = self.peer;
            "request"
        );
    }
}

/// Text from the network as a log may show it: one line of printable ASCII without quotes, at most
/// [`LONGEST_PATH`] characters. What is percent-encoded stays so.
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0.as_bytes()[..self.0.len().min(LONGEST_PATH)];
        for run in shown.chunk_by(|one, next| is_plain(*one) && is_plain(*next)) {
            match str::from_utf8(run) {
                Ok(plain) if is_plain(run[0]) => f.write_str(plain)?,
                _ => run.iter().try_for_each(|byte| write!(f, "%{byte:02X}"))?,
            }
        }
        if self.0.len() > LONGEST_PATH { f.write_str("...") } else { Ok(()) }
    }
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'\\')
}

struct Short(Option<ClientId>);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(client) => write!(f, "{client:?}"),
            None => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_forge_a_line() {
        let forged = "/\r\nWARN all is lost\" \\\u{7f}\u{e9}%0A";
        assert_eq!(Shown(forged).to_string(), "/%0D%0AWARN%20all%20is%20lost%22%20%5C%7F%C3%A9%0A");
    }

    #[test]
    fn a_long_path_is_cut() {
        let shown = Shown(&"/x".repeat(5000)).to_string();
        assert_eq!(shown.len(), LONGEST_PATH + 3);
        assert!(shown.ends_with("..."));
    }
}
