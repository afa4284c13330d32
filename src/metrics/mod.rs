//! What the server counts: plain numbers that any thread adds to without waiting for another, and the
//! text in which Prometheus reads them.
//!
//! Pure. Knows neither who counts nor who asks.

mod histogram;
mod text;

pub use self::histogram::Histogram;
pub use self::text::text;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Transaction {
    /// AddVersion.
    AddVersion,
    /// GetChildVersion.
    ChildVersion,
    /// AddSnapshot.
    AddSnapshot,
    /// GetSnapshot.
    Snapshot,
    /// Probes, people, and what is no request of the protocol.
    Other,
}

/// Their names, in that order.
const TRANSACTIONS: [&str; 5] = ["add_version", "get_child_version", "add_snapshot", "get_snapshot", "other"];

/// The statuses that are counted by themselves; all others count as the last one.
const STATUSES: [u16; 20] =
    [200, 301, 308, 400, 401, 403, 404, 405, 408, 409, 410, 413, 414, 415, 429, 431, 500, 501, 503, 0];

/// Seconds that an answer may take.
const SECONDS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// Transactions of one commit.
const GROUPS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Everything that is counted.
pub struct Metrics {
    requests: [[AtomicU64; STATUSES.len()]; TRANSACTIONS.len()],
    latencies: [Histogram<15>; TRANSACTIONS.len()],
    received: AtomicU64,
    sent: AtomicU64,
    connections: AtomicU64,
    refused: AtomicU64,
    made_room: AtomicU64,
    /// How many writes were committed together.
    pub groups: Histogram<8>,
    /// How long a commit took, with all that belongs to it.
    pub commits: Histogram<15>,
    /// How long the database rested between two commits, for checkpoints above all.
    pub rests: Histogram<15>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            requests: Default::default(),
            latencies: std::array::from_fn(|_| Histogram::new(SECONDS)),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            made_room: AtomicU64::new(0),
            groups: Histogram::new(GROUPS),
            commits: Histogram::new(SECONDS),
            rests: Histogram::new(SECONDS),
        }
    }
}

impl Metrics {
    /// A request was answered, with so many bytes of bodies in and out.
    pub fn answered(
        &self,
        transaction: Transaction,
        status: u16,
        took: Duration,
        (received, sent): (usize, usize),
    ) {
        let at = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        self.requests[transaction as usize][at].fetch_add(1, Relaxed);
        self.latencies[transaction as usize].took(took);
        if received > 0 {
            self.received.fetch_add(received as u64, Relaxed);
        }
        if sent > 0 {
            self.sent.fetch_add(sent as u64, Relaxed);
        }
    }

    /// A connection was accepted.
    pub fn accepted(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// A connection was turned away, for its address has too many.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// So many connections were asked to make room.
    pub fn made_room(&self, connections: usize) {
        self.made_room.fetch_add(connections as u64, Relaxed);
    }
}

/// What is not counted but looked at when someone asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Connections that are open.
    pub connections: usize,
    /// How many jobs wait, by the name of their queue.
    pub queues: Vec<(&'static str, usize)>,
    /// What happens beside the requests.
    pub affairs: Affairs,
}

/// What happens beside the requests. Times in seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Affairs {
    /// When the server was started.
    pub started: i64,
    /// The scheduled backups, where there are any.
    pub backups: Option<Backups>,
    /// The certificate, where TLS is spoken.
    pub certificate: Option<Certificate>,
}

/// How it is about the certificate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Certificate {
    /// When it ends; `None` while the first one is being waited for.
    pub until: Option<i64>,
    /// When another one is asked for, where that happens by itself.
    pub next: Option<i64>,
    /// What somebody should do something about.
    pub problem: Option<String>,
}

/// How the scheduled backups are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backups {
    /// When the newest one was made.
    pub newest: Option<i64>,
    /// When the last attempt failed, and why, unless one succeeded since.
    pub failure: Option<(i64, String)>,
    /// When the next is due.
    pub next: Option<i64>,
}
