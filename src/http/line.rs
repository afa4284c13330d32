//! The one log line of each request.

use crate::protocol::ClientId;
use hyper::Method;
use std::borrow::Cow;
use std::fmt::{self, Write as _};
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
    pub peer: Cow<'a, str>,
    /// Whether it is one of the many that monitoring sends.
    pub is_probe: bool,
}

impl Line<'_> {
    /// Writes the line. Probes are logged at the debug level: they would bury the rest.
    pub fn log(&self) {
        let level = if self.is_probe { log::Level::Debug } else { log::Level::Info };
        // Strings, since what only has a `Display` takes several times as long.
        let client = self.client.map_or_else(|| "-".to_owned(), ClientId::short);
        log::log!(
            target: TARGET,
            level,
            method = &*Shown(self.method.as_str()).text(),
            path = &*Shown(self.path).text(),
            status = self.status,
            client = client.as_str(),
            bytes = self.bytes,
            us = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX),
            peer = &*self.peer;
            "request"
        );
    }
}

/// Text from the network as a log may show it: one line of printable ASCII without quotes, at most
/// [`LONGEST_PATH`] characters. What is percent-encoded stays so.
pub struct Shown<'a>(pub &'a str);

impl<'a> Shown<'a> {
    /// What the log shows, which most often is the text itself.
    pub fn text(&self) -> Cow<'a, str> {
        let Shown(text) = *self;
        // Looks at each byte even after one that is not plain, which lets the compiler look at many at once.
        if text.len() <= LONGEST_PATH && text.bytes().fold(true, |plain, byte| plain & is_plain(byte)) {
            return Cow::Borrowed(text);
        }
        let mut shown = String::new();
        for byte in text.bytes().take(LONGEST_PATH) {
            match byte {
                byte if is_plain(byte) => shown.push(char::from(byte)),
                // Writing to a string cannot fail.
                byte => drop(write!(shown, "%{byte:02X}")),
            }
        }
        if text.len() > LONGEST_PATH {
            shown.push_str("...");
        }
        Cow::Owned(shown)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') & !matches!(byte, b'"' | b'\\')
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
