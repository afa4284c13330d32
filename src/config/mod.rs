//! What the operator decided, as one value.
//!
//! [`table`] declares every option once; [`resolve()`] makes one [`Config`] of flags, environment,
//! file and defaults, or says everything that is wrong with them. Knows nothing of sockets,
//! databases and threads.

mod acme;
mod declared;
pub mod file;
mod networks;
pub mod place;
pub mod render;
mod resolve;
pub mod setting;
mod source;
pub mod table;
mod value;
mod warning;

pub use acme::{Acme, Challenge};
pub use declared::Declared;
pub use networks::{Networks, Proxies};
pub use resolve::{Effective, Resolved, resolve};
pub use source::{Flags, Origin, Secret, Sources};
pub use value::label;

use crate::protocol::{ClientId, SnapshotPolicy};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that the program was told, checked and complete.
///
/// The default is what holds where nobody tells it anything.
#[derive(Clone, Debug)]
pub struct Config {
    /// The configuration file that was read; absolute.
    pub file: Option<PathBuf>,
    /// Where to listen, at least one.
    pub listen: Vec<Endpoint>,
    /// Where plain HTTP is spoken beside HTTPS, without the protocol.
    pub http_listen: Vec<Endpoint>,
    /// Where to tell whoever watches over the server.
    pub metrics_listen: Vec<Endpoint>,
    /// Who may connect to unix sockets.
    pub unix: Unix,
    /// The path under which the protocol is served; begins and ends with `/`.
    pub base_path: String,
    /// The URL that clients use, where the operator named it; ends with `/`.
    pub public_url: Option<String>,
    /// The origins of web pages whose programs may use the server; `*` is every one.
    pub cors_origins: Vec<String>,
    /// The proxies that are believed.
    pub trusted_proxies: Proxies,
    /// How they tell who is behind them.
    pub real_address: RealAddress,
    /// The operator's own certificate.
    pub tls: Tls,
    /// Certificates that the server gets by itself, instead.
    pub acme: Acme,
    /// The Postgres database that is used instead of SQLite.
    pub connection: Option<Connection>,
    /// How it is used.
    pub postgres: Postgres,
    /// Whether the program brings a database's tables up to date by itself.
    pub migrate: bool,
    /// The data directory, where the operator named it; absolute.
    pub data_dir: Option<PathBuf>,
    /// The clients that may use the server; `None`: all.
    pub client_id: Option<BTreeSet<ClientId>>,
    /// The clients that there are to be.
    pub clients: Vec<Declared>,
    /// Whether the first AddVersion of an unknown client creates it.
    pub create_clients: bool,
    /// Whether every request needs the credential of a device.
    pub require_device: bool,
    /// When a new snapshot is asked for.
    pub snapshot: SnapshotPolicy,
    /// Limits of requests and connections.
    pub limits: Limits,
    /// Addresses that no limit by address holds for.
    pub address_exempt: Networks,
    /// The log.
    pub log: Log,
    /// Whether a copy is kept before a migration changes a database that holds data.
    pub migration: Migration,
    /// Backups that are made by themselves.
    pub backup: Backup,
    /// After how many days versions that a snapshot covers are removed; `None`: never.
    pub retention_days: Option<u32>,
    /// Whether to go into the background.
    pub daemonize: bool,
    /// The file that holds the background process' ID.
    pub pid_file: Option<PathBuf>,
    /// What is allowed but probably not meant, one line each, for the log of the start.
    pub warnings: Vec<String>,
}

impl Config {
    /// Whether clients reach this server by HTTPS without any proxy.
    pub fn is_secure(&self) -> bool {
        self.tls.cert.is_some() || self.acme.is_on()
    }
}

impl Default for Config {
    fn default() -> Config {
        match resolve(&Sources::default()) {
            Ok(resolved) => resolved.config,
            Err(problems) => unreachable!("the defaults are valid: {problems:?}"),
        }
    }
}

/// A connection string, which may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection(pub String);

/// Without what is secret.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection(…)")
    }
}

/// How connections to Postgres are made and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Postgres {
    /// Connections that may be open at once.
    pub connections: usize,
    /// How long one may take to be made.
    pub connect_timeout: Duration,
    /// How long a statement may take.
    pub statement_timeout: Duration,
    /// After how long one that is not used is closed.
    pub idle_timeout: Duration,
    /// Whether statements are prepared once for each connection.
    pub prepare: bool,
}

/// Backups that are made by themselves: where there is an interval, there is a directory.
#[derive(Clone, Debug, Default)]
pub struct Backup {
    /// Where they are kept; absolute.
    pub dir: Option<PathBuf>,
    /// How long after one the next is made; `None`: never.
    pub interval: Option<Duration>,
    /// How many are kept, at least one.
    pub keep: usize,
}

/// One place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host name or address and a port, as `localhost:8080` or `[::1]:8080`; `*:80` is every address.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// The addresses that a text holds, without any look-up; `*` is every address of both families.
    pub fn spelled_out(name: &str) -> Vec<SocketAddr> {
        let texts = match name.strip_prefix("*:") {
            Some(port) => vec![format!("[::]:{port}"), format!("0.0.0.0:{port}")],
            None => vec![name.to_owned()],
        };
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Whether only this machine can reach it, as far as its text tells.
    pub fn is_local(&self) -> bool {
        let Endpoint::Tcp(address) = self else { return true };
        match address.parse::<SocketAddr>() {
            Ok(address) => address.ip().to_canonical().is_loopback(),
            Err(_) => {
                address.rsplit_once(':').is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost"))
            }
        }
    }
}

/// Who may connect to unix sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unix {
    /// The mode of their files.
    pub mode: u32,
    /// The name or number of their group, where it is not the server's own.
    pub group: Option<String>,
}

/// How a proxy tells who is behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RealAddress {
    /// By the header X-Forwarded-For.
    #[default]
    XForwardedFor,
    /// By the header Forwarded of RFC 7239.
    Forwarded,
    /// By a header of the PROXY protocol, with which each connection begins.
    ProxyProtocol,
}

/// The operator's own certificate: PEM files, absolute. With the first two every TCP listener speaks
/// HTTPS; there are both or neither.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The certificate and its chain.
    pub cert: Option<PathBuf>,
    /// The private key.
    pub key: Option<PathBuf>,
    /// The authorities of the certificates that clients must show.
    pub client_ca: Option<PathBuf>,
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
    /// Connections that one address may have open; 0: no limit of its own.
    pub address_connections: u32,
    /// Requests a minute that one address may send; 0: no limit.
    pub address_requests: u32,
    /// From the first byte of a request's head to its last.
    pub header_timeout: Duration,
    /// How long a body, sent or received, may make no progress.
    pub body_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// How long requests in flight may take to finish once the server is told to stop.
    pub shutdown_timeout: Duration,
}

impl Limits {
    /// The part of [`Limits::memory`] that only small bodies may use, so that large ones block nobody.
    pub fn small_memory(&self) -> usize {
        self.memory / 4
    }

    /// The part of [`Limits::memory`] for all other bodies; holds at least one of [`Limits::body`].
    pub fn large_memory(&self) -> usize {
        self.memory - self.small_memory()
    }
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

/// The environment variables. An empty one is the same as none.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// Takes variables as the system gives them.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Environment {
        let named = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        Environment(variables.into_iter().filter_map(named).filter(|(_, value)| !value.is_empty()).collect())
    }

    /// The value of a variable that is set, not empty, and UTF-8.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str()
    }

    /// The same, with this value for a variable that is not set.
    pub fn or(mut self, name: &str, value: &str) -> Environment {
        self.0.entry(name.to_owned()).or_insert_with(|| value.into());
        self
    }

    /// Whether a variable is set to something that is not UTF-8.
    pub fn is_garbled(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value.to_str().is_none())
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Environment {
        Environment::new(variables.map(|(name, value)| (name.into(), value.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_local_where_its_text_says_so() {
        for local in ["localhost:8080", "LOCALHOST:1", "127.0.0.1:80", "127.9.9.9:80", "[::1]:80"] {
            assert!(Endpoint::Tcp(local.to_owned()).is_local(), "{local}");
        }
        assert!(Endpoint::Unix("/run/s.sock".into()).is_local());
        for open in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80", "tasks.example.org:80"] {
            assert!(!Endpoint::Tcp(open.to_owned()).is_local(), "{open}");
        }
    }

    #[test]
    fn an_empty_variable_is_unset() {
        let environment = Environment::from([("EMPTY", ""), ("FULL", "x")]);
        assert_eq!(environment.var("EMPTY"), None);
        assert_eq!(environment.var("FULL"), Some("x"));
    }

    #[test]
    fn the_memory_has_room_for_the_largest_body_unless_told_otherwise() {
        let Config { limits, .. } = Config::default();
        assert!(limits.large_memory() >= limits.body);
        assert_eq!(limits.small_memory() + limits.large_memory(), limits.memory);
    }
}
