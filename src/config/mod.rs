//! What the operator decided, as one value.

use crate::protocol::{ClientId, SnapshotPolicy};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that the program was told, checked and complete.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen, at least one.
    pub listen: Vec<Endpoint>,
    /// The path under which the protocol is served; begins and ends with `/`.
    pub base_path: String,
    /// The URL that clients use, where the operator named it; ends with `/`.
    pub public_url: Option<String>,
    /// The data directory, where the operator named it; absolute.
    pub data_dir: Option<PathBuf>,
    /// The clients that may use the server; `None`: all.
    pub client_id: Option<BTreeSet<ClientId>>,
    /// Whether the first AddVersion of an unknown client creates it.
    pub create_clients: bool,
    /// When a new snapshot is asked for.
    pub snapshot: SnapshotPolicy,
    /// Limits of requests and connections.
    pub limits: Limits,
    /// The log.
    pub log: Log,
    /// Whether a copy is kept before a migration changes a database that holds data.
    pub migration: Migration,
    /// Whether to go into the background.
    pub daemonize: bool,
    /// The file that holds the background process' ID.
    pub pid_file: Option<PathBuf>,
}

/// One place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host name or address and a port, as `localhost:8080` or `[::1]:8080`.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

/// Limits of requests and connections. Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest body, decoded.
    pub body: usize,
    /// What all bodies in flight may hold together.
    pub memory: usize,
    /// How long a request waits for its share of that memory.
    pub memory_wait: Duration,
    /// Connections that may be open at once.
    pub connections: usize,
    /// From the first byte of a request's head to its last.
    pub header_timeout: Duration,
    /// How long a body, sent or received, may make no progress.
    pub body_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// How long requests in flight may take to finish once the server is told to stop.
    pub shutdown_timeout: Duration,
}

/// The log.
#[derive(Clone, Debug)]
pub struct Log {
    /// Directives as RUST_LOG has them: `info,sync_server::http=debug`.
    pub level: String,
    /// Text or JSON lines.
    pub format: LogFormat,
    /// Where to, instead of standard error.
    pub file: Option<PathBuf>,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The copy that is kept before a migration.
#[derive(Clone, Debug)]
pub struct Migration {
    /// Whether one is kept.
    pub copy: bool,
    /// Where, instead of the data directory.
    pub copy_dir: Option<PathBuf>,
}
