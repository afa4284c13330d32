//! What was no request, and was answered without being read to its end.

use super::App;
use super::line::TARGET;
use crate::metrics::Transaction;
use crate::peer::Peer;
use std::time::Duration;

impl App {
    /// Counts it, and writes its line as far as there is something to say.
    pub fn tell_unread(&self, peer: Peer, status: u16, took: Duration) {
        self.metrics.answered(Transaction::Other, status, took, (0, 0));
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
}
