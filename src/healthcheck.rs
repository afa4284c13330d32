//! Asks a running server whether it is well, for container engines and the like: one request, one
//! exit code, no other program needed.
//!
//! Knows HTTP only as far as a status line goes, and TLS not at all: [`client`] does.

use crate::config::{Config, Endpoint};
use crate::peer::{Peer, Trust as Believed, proxy};
use crate::tls::client::{self, Trust};
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

/// How long everything together may take, the name's resolution included.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long one of several addresses of a name may take to connect.
const CONNECT: Duration = Duration::from_secs(2);

/// The longest status line that is read, in bytes.
const STATUS_LINE: u64 = 1024;

/// Asks `url`, or else the first configured listener's `readyz` under the base path.
///
/// `Ok` means that the answer was 200, in at most 5 seconds; the error says what was asked and what came.
pub fn run(url: Option<&str>, config: &Config) -> Result<(), String> {
    let question = match url {
        Some(url) => Question::of_url(url, config.tls.cert.clone())?,
        None => Question::of_config(config)?,
    };
    let (sender, answer) = mpsc::channel();
    let asked = question.clone();
    // A thread, because a name's resolution knows no deadline.
    let believed = Believed::new(config);
    std::thread::spawn(move || sender.send(asked.ask(&believed)));
    let came = answer.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(format!("nothing within {PATIENCE:?}")));
    match came {
        Ok(200) => Ok(()),
        Ok(status) => Err(format!("asked {question}, got status {status}")),
        Err(error) => Err(format!("asked {question}, got {error}")),
    }
}

/// A request to be made.
#[derive(Clone, Debug, PartialEq)]
struct Question {
    whom: Whom,
    path: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Whom {
    /// A host and a port.
    Tcp(String),
    /// The same, who must be believed first.
    Tls(String, Trust),
    /// A socket's path.
    Unix(PathBuf),
}

impl Question {
    fn of_config(config: &Config) -> Result<Question, String> {
        // Where clients must show a certificate, there is none to show.
        let can_ask =
            |endpoint: &&Endpoint| config.tls.client_ca.is_none() || matches!(endpoint, Endpoint::Unix(_));
        let main = config.listen.iter().find(can_ask);
        // A server that still waits for its first certificate is well.
        let aside = config.http_listen.first().filter(|_| main.is_none() || config.acme.is_on());
        let whom = match (aside.or(main), config.is_secure() && aside.is_none()) {
            (Some(Endpoint::Tcp(address)), true) => Whom::Tls(address.clone(), Trust::Anyone),
            (Some(Endpoint::Tcp(address)), false) => Whom::Tcp(address.clone()),
            (Some(Endpoint::Unix(path)), _) => Whom::Unix(path.clone()),
            (None, _) => {
                return Err(
                    "every listener asks for a client certificate (tls.client_ca), and a health check \
                            has none: add a unix socket to listen, unix:/run/sync-server/socket for example"
                        .to_owned(),
                );
            }
        };
        Ok(Question { whom, path: format!("{}readyz", config.base_path) })
    }

    /// Over TLS the public authorities are believed, and the holder of the certificate in `cert`.
    fn of_url(url: &str, cert: Option<PathBuf>) -> Result<Question, String> {
        let (rest, is_tls) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (rest, false),
            (_, Some(rest)) => (rest, true),
            _ => return Err(format!("not an http:// or https:// URL: {url}")),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.is_empty() || authority.contains('@') {
            return Err(format!("not a URL of the form http://host:port/path: {url}"));
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let address = if has_port {
            authority.to_owned()
        } else {
            format!("{authority}:{}", if is_tls { 443 } else { 80 })
        };
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let whom = if is_tls { Whom::Tls(address, Trust::Public(cert)) } else { Whom::Tcp(address) };
        Ok(Question { whom, path })
    }

    /// The status of the answer, or what came instead.
    fn ask(&self, believed: &Believed) -> Result<u16, String> {
        match &self.whom {
            Whom::Tcp(address) => self.ask_over(introduced(connect(address)?, believed)?, address),
            Whom::Tls(address, trust) => {
                let host = address.rsplit_once(':').map_or(&**address, |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                self.ask_over(
                    client::connect(introduced(connect(address)?, believed)?, host, trust)?,
                    address,
                )
            }
            Whom::Unix(path) => {
                let mut stream =
                    UnixStream::connect(path).map_err(|error| format!("no connection: {error}"))?;
                introduce(&mut stream, Peer::Unix, believed)?;
                self.ask_over(stream, "localhost")
            }
        }
    }

    fn ask_over(&self, mut stream: impl Read + Write, host: &str) -> Result<u16, String> {
        let head = format!("GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", self.path);
        stream.write_all(head.as_bytes()).map_err(|error| format!("a failure while asking: {error}"))?;
        let mut line = String::new();
        let read = BufReader::new(stream.take(STATUS_LINE)).read_line(&mut line);
        read.map_err(|error| format!("a failure instead of an answer: {error}"))?;
        let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
        let status = status.and_then(|status| status.trim_end().parse().ok());
        status.ok_or_else(|| format!("no HTTP: {:?}", line.trim_end()))
    }
}

impl Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.whom {
            Whom::Tcp(address) => write!(f, "http://{address}{}", self.path),
            Whom::Tls(address, _) => write!(f, "https://{address}{}", self.path),
            Whom::Unix(path) => write!(f, "{} at the socket {}", self.path, path.display()),
        }
    }
}

fn introduced(mut stream: TcpStream, believed: &Believed) -> Result<TcpStream, String> {
    // It is the server's peer under this address.
    let address = stream.local_addr().map_err(|error| format!("no connection: {error}"))?;
    introduce(&mut stream, Peer::Tcp(address), believed)?;
    Ok(stream)
}

/// Where the server takes us for a proxy, it wants to hear first whom we ask for: nobody else.
fn introduce(stream: &mut impl Write, us: Peer, believed: &Believed) -> Result<(), String> {
    if !believed.expects_proxy_header(us) {
        return Ok(());
    }
    stream.write_all(proxy::LOCAL).map_err(|error| format!("a failure while asking: {error}"))
}

/// Connects to the first address of the name that answers.
fn connect(address: &str) -> Result<TcpStream, String> {
    let address = address.strip_prefix("*:").map_or(address.to_owned(), |port| format!("localhost:{port}"));
    let resolved = address.to_socket_addrs().map_err(|error| format!("no address: {error}"))?;
    let mut failure = "no address".to_owned();
    for address in resolved.map(reachable) {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = format!("no connection to {address}: {error}"),
        }
    }
    Err(failure)
}

/// A server that listens on all addresses is asked on its own machine's.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn question(url: &str) -> (Whom, String) {
        let question = Question::of_url(url, None).expect("a URL");
        (question.whom, question.path)
    }

    /// Answers one connection with these bytes, and returns the URL to ask.
    fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a whole head");
                head.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).expect("someone reads");
        });
        format!("http://{address}/readyz")
    }

    fn ask(url: &str) -> Result<u16, String> {
        Question::of_url(url, None).expect("a URL").ask(&Believed::new(&Config::default()))
    }

    #[test]
    fn urls_are_taken_apart() {
        assert_eq!(question("http://host:8080/a?b#c"), (Whom::Tcp("host:8080".into()), "/a?b".into()));
        assert_eq!(question("http://host"), (Whom::Tcp("host:80".into()), "/".into()));
        let public = Trust::Public(None);
        assert_eq!(question("https://host"), (Whom::Tls("host:443".into(), public), "/".into()));
        assert_eq!(question("http://[::1]/x"), (Whom::Tcp("[::1]:80".into()), "/x".into()));
        assert_eq!(question("http://[::1]:8080?x"), (Whom::Tcp("[::1]:8080".into()), "/?x".into()));
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_the_reason() {
        for url in ["ftp://host/", "host:8080", "http://", "http:///path", "http://user:secret@host/"] {
            assert!(Question::of_url(url, None).is_err(), "{url}");
        }
    }

    #[test]
    fn the_status_is_what_counts() {
        assert_eq!(ask(&server("HTTP/1.1 200 OK\r\n\r\n")), Ok(200));
        assert_eq!(ask(&server("HTTP/1.1 503 Service Unavailable\r\n\r\n")), Ok(503));
        assert!(ask(&server("SSH-2.0\r\n")).expect_err("no HTTP").contains("SSH-2.0"));
        assert!(ask(&server("")).is_err());
    }

    #[test]
    fn all_addresses_mean_this_machine() {
        assert_eq!(reachable("0.0.0.0:80".parse().expect("an address")).to_string(), "127.0.0.1:80");
        assert_eq!(reachable("[::]:80".parse().expect("an address")).to_string(), "[::1]:80");
        assert_eq!(reachable("192.0.2.1:80".parse().expect("an address")).to_string(), "192.0.2.1:80");
    }
}
