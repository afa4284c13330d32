//! Where a Postgres is and how it is spoken to, from a connection string as libpq takes it.
//!
//! The driver knows only three of libpq's ways to use TLS, and none of its files, so those words are
//! taken out of the string here.

use std::fmt;
use std::path::PathBuf;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Config, config::TargetSessionAttrs};

/// Where Debian's server has its socket, for strings that name no host.
const SOCKETS: &str = "/var/run/postgresql";

/// What the server's certificate must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Anything.
    Nothing,
    /// Signed by an authority.
    Authority,
    /// Signed by an authority, and made for the host.
    Host,
}

/// How TLS is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub mode: SslMode,
    pub check: Check,
    /// A PEM file of authorities; the public ones where there is none.
    pub root: Option<PathBuf>,
    /// PEM files with a certificate of our own and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// A connection string, taken apart.
#[derive(Clone)]
pub struct Address {
    /// The same once for each host, so that one that hangs does not keep us from the next.
    pub hosts: Vec<Config>,
    pub tls: Tls,
    shown: String,
}

/// Without the password.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Address) -> bool {
        (&self.hosts, &self.tls) == (&other.hosts, &other.tls)
    }
}

impl Address {
    /// Takes a URI or a string of keys and values.
    ///
    /// # Errors
    /// What is wrong with it, without any part of it that may be secret.
    pub fn parse(text: &str) -> Result<Address, String> {
        let (rest, words) = if is_uri(text) { split_uri(text)? } else { split_pairs(text)? };
        let tls = tls_of(&words)?;
        let mut all: Config = rest.parse().map_err(|error: tokio_postgres::Error| {
            let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!(
                "is no connection string of Postgres ({})",
                if why.is_empty() { "it cannot be read".to_owned() } else { why }
            )
        })?;
        if all.get_hosts().is_empty() && all.get_hostaddrs().is_empty() {
            all.host_path(SOCKETS);
        }
        all.ssl_mode(tls.mode);
        if all.get_application_name().is_none() {
            all.application_name("sync-server");
        }
        let hosts = one_by_one(&all)?;
        let shown = shown(&all);
        Ok(Address { hosts, tls, shown })
    }
}

fn is_uri(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// The words that the driver does not know, with their values.
type Words = Vec<(String, String)>;

fn is_ours(word: &str) -> bool {
    matches!(word, "sslmode" | "sslrootcert" | "sslcert" | "sslkey")
}

fn split_uri(text: &str) -> Result<(String, Words), String> {
    let Some((front, query)) = text.split_once('?') else { return Ok((text.to_owned(), Words::new())) };
    let mut words = Words::new();
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (word, value) = pair.split_once('=').ok_or("has a parameter without a value")?;
        if is_ours(word) {
            let value = percent_encoding::percent_decode_str(value).decode_utf8();
            words.push((word.to_owned(), value.map_err(|_| "has a value that is not UTF-8")?.into_owned()));
        } else {
            rest.push(pair);
        }
    }
    let rest = if rest.is_empty() { front.to_owned() } else { format!("{front}?{}", rest.join("&")) };
    Ok((rest, words))
}

/// Takes `key = 'value'` apart, where a backslash makes the next character an ordinary one.
fn split_pairs(text: &str) -> Result<(String, Words), String> {
    let mut words = Words::new();
    let mut rest = String::new();
    let mut left = text.trim_start();
    while !left.is_empty() {
        let (word, behind) = left.split_once('=').ok_or("is neither a URI nor made of keys and values")?;
        let behind = behind.trim_start();
        let (value, length) = value_of(behind)?;
        let word = word.trim();
        if is_ours(word) {
            words.push((word.to_owned(), value));
        } else {
            rest.push_str(&format!("{word}={} ", &behind[..length]));
        }
        left = behind[length..].trim_start();
    }
    Ok((rest, words))
}

/// A value and how many bytes of the text it takes.
fn value_of(text: &str) -> Result<(String, usize), String> {
    let is_quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(is_quoted));
    while let Some((at, char)) = chars.next() {
        match char {
            '\'' if is_quoted => return Ok((value, at + 1)),
            char if !is_quoted && char.is_whitespace() => return Ok((value, at)),
            '\\' => value.extend(chars.next().map(|(_, char)| char)),
            char => value.push(char),
        }
    }
    if is_quoted { Err("has a quote that does not end".to_owned()) } else { Ok((value, text.len())) }
}

fn tls_of(words: &Words) -> Result<Tls, String> {
    let value =
        |name: &str| words.iter().rev().find(|(word, _)| word == name).map(|(_, value)| value.as_str());
    let root = value("sslrootcert").filter(|root| *root != "system").map(PathBuf::from);
    let (mode, check) = match value("sslmode").unwrap_or("prefer") {
        "disable" => (SslMode::Disable, Check::Nothing),
        "allow" | "prefer" => (SslMode::Prefer, Check::Nothing),
        // As libpq has it: whoever names the authorities wants them asked.
        "require" if root.is_some() => (SslMode::Require, Check::Authority),
        "require" => (SslMode::Require, Check::Nothing),
        "verify-ca" => (SslMode::Require, Check::Authority),
        "verify-full" => (SslMode::Require, Check::Host),
        _ => {
            return Err(
                "has another sslmode than disable, prefer, require, verify-ca or verify-full".to_owned()
            );
        }
    };
    let own = match (value("sslcert"), value("sslkey")) {
        (Some(cert), Some(key)) => Some((cert.into(), key.into())),
        (None, None) => None,
        _ => return Err("has sslcert or sslkey, and not both".to_owned()),
    };
    Ok(Tls { mode, check, root, own })
}

/// One configuration for each host, which the driver cannot be asked for.
fn one_by_one(all: &Config) -> Result<Vec<Config>, String> {
    let (hosts, addresses, ports) = (all.get_hosts(), all.get_hostaddrs(), all.get_ports());
    let count = hosts.len().max(addresses.len());
    let fits = |length: usize| length == 0 || length == count;
    if !fits(hosts.len()) || !fits(addresses.len()) || !(fits(ports.len()) || ports.len() == 1) {
        return Err("has not as many hosts, addresses and ports".to_owned());
    }
    Ok((0..count)
        .map(|at| {
            let mut one = like(all);
            match hosts.get(at) {
                Some(Host::Tcp(host)) => drop(one.host(host)),
                Some(Host::Unix(path)) => drop(one.host_path(path)),
                None => {}
            }
            if let Some(address) = addresses.get(at) {
                one.hostaddr(*address);
            }
            if let Some(port) = ports.get(at).or(ports.first()) {
                one.port(*port);
            }
            one
        })
        .collect())
}

/// All but the hosts.
fn like(all: &Config) -> Config {
    let mut one = Config::new();
    if let Some(user) = all.get_user() {
        one.user(user);
    }
    if let Some(password) = all.get_password() {
        one.password(password);
    }
    if let Some(name) = all.get_dbname() {
        one.dbname(name);
    }
    if let Some(options) = all.get_options() {
        one.options(options);
    }
    if let Some(name) = all.get_application_name() {
        one.application_name(name);
    }
    if let Some(timeout) = all.get_connect_timeout() {
        one.connect_timeout(*timeout);
    }
    if let Some(timeout) = all.get_tcp_user_timeout() {
        one.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = all.get_keepalives_interval() {
        one.keepalives_interval(interval);
    }
    if let Some(retries) = all.get_keepalives_retries() {
        one.keepalives_retries(retries);
    }
    one.ssl_mode(all.get_ssl_mode())
        .ssl_negotiation(all.get_ssl_negotiation())
        .keepalives(all.get_keepalives())
        .keepalives_idle(all.get_keepalives_idle())
        .channel_binding(all.get_channel_binding())
        // A standby takes no writes, and the reads must see what was acknowledged.
        .target_session_attrs(
            match (all.get_target_session_attrs(), all.get_hosts().len().max(all.get_hostaddrs().len())) {
                (TargetSessionAttrs::Any, 2..) => TargetSessionAttrs::ReadWrite,
                (asked, _) => asked,
            },
        );
    one
}

fn shown(config: &Config) -> String {
    let port = |at: usize| config.get_ports().get(at).or(config.get_ports().first()).copied().unwrap_or(5432);
    let hosts: Vec<String> = match config.get_hosts() {
        [] => config
            .get_hostaddrs()
            .iter()
            .enumerate()
            .map(|(at, host)| format!("{host}:{}", port(at)))
            .collect(),
        hosts => hosts
            .iter()
            .enumerate()
            .map(|(at, host)| match host {
                Host::Tcp(host) => format!("{host}:{}", port(at)),
                Host::Unix(path) => format!("{}:{}", path.display(), port(at)),
            })
            .collect(),
    };
    let name = config.get_dbname().or(config.get_user()).unwrap_or("the user's own");
    format!("Postgres database {name} at {}", hosts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Address {
        Address::parse(text).unwrap_or_else(|why| panic!("{text} {why}"))
    }

    #[test]
    fn uris_and_pairs_mean_the_same_and_show_no_password() {
        let uri = parse(
            "postgresql://me:s%27ecret@db.example:6432/tasks?sslmode=verify-full&sslrootcert=%2Fca.pem",
        );
        let pairs = parse(
            r"host=db.example port = 6432 user=me password='s\'ecret' dbname=tasks sslmode=verify-full sslrootcert=/ca.pem",
        );
        assert!(uri == pairs, "{:?} {:?}", uri.hosts, pairs.hosts);
        assert_eq!((uri.tls.check, uri.tls.mode), (Check::Host, SslMode::Require));
        assert_eq!(uri.tls.root, Some("/ca.pem".into()));
        for shown in [format!("{uri}"), format!("{uri:?}")] {
            assert_eq!(shown, "Postgres database tasks at db.example:6432");
        }
    }

    #[test]
    fn every_host_is_tried_by_itself_and_one_of_many_must_take_writes() {
        let address = parse("postgres://u@a,b:7/x");
        assert!(
            Address::parse("postgres://u@a:1,b:2,c:3/x?port=9").is_ok_and(|address| address.hosts.len() == 3)
                || address.hosts.len() == 2
        );
        let address = parse("host=a,b port=1,2 user=u");
        assert_eq!(address.hosts.iter().map(|host| host.get_ports()[0]).collect::<Vec<_>>(), [1, 2]);
        assert!(
            address.hosts.iter().all(|host| host.get_target_session_attrs() == TargetSessionAttrs::ReadWrite)
        );
        assert_eq!(parse("host=a user=u").hosts[0].get_target_session_attrs(), TargetSessionAttrs::Any);
    }

    #[test]
    fn without_a_host_it_is_the_local_socket() {
        assert_eq!(
            parse("dbname=tasks user=u").to_string(),
            "Postgres database tasks at /var/run/postgresql:5432"
        );
    }

    #[test]
    fn what_is_wrong_is_told_without_what_is_secret() {
        for text in [
            "nonsense",
            "postgres://u:hunter2@h/x?sslmode=maybe",
            "postgres://u:hunter2@h/x?hunter",
            "host=h password='hunter2",
            "host=h password=hunter2 sslcert=/c",
            "host=h password=hunter2 port=many",
            "host=a,b,c port=1,2 password=hunter2",
        ] {
            let why = Address::parse(text).expect_err(text);
            assert!(!why.contains("hunter") && !why.is_empty(), "{text}: {why}");
        }
    }
}
