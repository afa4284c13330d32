//! The log line of what was no request, and was answered without being read to its end.

use super::line::TARGET;
use crate::peer::Peer;
use std::time::Duration;

/// Writes the line, as far as there is something to say.
pub fn log(peer: Peer, status: u16, took: Duration) {
    log::info!(
        target: TARGET,
        method = "-",
        path = "-",
        status = status,
        client = "-",
        bytes = 0,
        us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        peer:% = peer;
        "request"
    );
}
