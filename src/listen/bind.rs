//! Binds sockets, and says what is wrong where one cannot be bound.

use super::group;
use crate::config::{self, Endpoint};
use crate::http::Entrance;
use rustix::net::sockopt;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connections that the kernel keeps for us while we are busy; it may have a lower limit itself.
const BACKLOG: i32 = 1024;

/// How often a name's addresses are tried with another free port.
const PORT_ATTEMPTS: usize = 16;

/// A socket that listens.
pub struct Listener {
    pub(super) socket: Socket,
    pub(super) way: Way,
}

/// What is behind a socket.
#[derive(Clone, Copy)]
pub struct Way {
    /// Where it leads.
    pub entrance: Entrance,
    /// Whether no TLS is spoken there.
    pub is_plain: bool,
}

pub(super) enum Socket {
    Tcp(TcpListener),
    /// With its file, where that is ours.
    Unix(UnixListener, Option<SocketFile>),
}

/// The file of a unix socket; removed with the listener unless someone else has put theirs there.
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Where it leads.
    pub fn entrance(&self) -> Entrance {
        self.way.entrance
    }

    /// Whether TLS is spoken there.
    pub fn is_secure(&self) -> bool {
        !self.way.is_plain
    }

    /// The port that clients reach it at; none of a unix socket.
    pub fn port(&self) -> Option<u16> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            Socket::Unix(..) => None,
        }
    }

    /// Where clients reach it, with the real port: `http://127.0.0.1:8080/`.
    /// A unix socket has no URL that clients take: `unix:/run/sync-server.sock`.
    pub fn url(&self, base_path: &str) -> String {
        let scheme = if self.is_secure() { "https" } else { "http" };
        match self.endpoint() {
            Endpoint::Tcp(address) => format!("{scheme}://{address}{base_path}"),
            Endpoint::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// What an operator would have written for it.
    pub fn endpoint(&self) -> Endpoint {
        let unknown = |error: io::Error| format!("? ({error})");
        match &self.socket {
            Socket::Tcp(listener) => {
                Endpoint::Tcp(listener.local_addr().map_or_else(unknown, |address| address.to_string()))
            }
            Socket::Unix(listener, _) => {
                Endpoint::Unix(listener.local_addr().map_or_else(|error| unknown(error).into(), path))
            }
        }
    }
}

/// The path of a unix socket; one without a file is written as everywhere, with `@`.
fn path(address: unix::SocketAddr) -> PathBuf {
    let name = || address.as_abstract_name().map(|name| format!("@{}", name.escape_ascii()).into());
    address.as_pathname().map(Path::to_owned).or_else(name).unwrap_or_default()
}

/// Listens everywhere it is told to, at each kind of door. A host name counts as all
/// its addresses; where a family of addresses is not available on this machine, the others are enough.
/// `unix` says who may connect to unix sockets. All failures come at once.
pub fn bind(doors: &[(Way, &[Endpoint])], unix: &config::Unix) -> Result<Vec<Listener>, Vec<String>> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut failures = Vec::new();
    let named = |(way, endpoints): &(Way, &[Endpoint])| {
        endpoints.iter().map(|endpoint| (*way, endpoint.clone())).collect::<Vec<_>>()
    };
    let (ways, all): (Vec<_>, Vec<_>) = doors.iter().flat_map(named).unzip();
    for (mut way, endpoint) in ways.into_iter().zip(&all) {
        way.is_plain |= matches!(endpoint, Endpoint::Unix(_));
        let bound = match endpoint {
            Endpoint::Tcp(name) => bind_tcp(name, &all, &listeners),
            Endpoint::Unix(path) => bind_unix(path, unix).map(|socket| vec![socket]),
        };
        match bound {
            Ok(bound) => listeners.extend(bound.into_iter().map(|socket| Listener { socket, way })),
            Err(failure) => failures.push(failure),
        }
    }
    if failures.is_empty() { Ok(listeners) } else { Err(failures) }
}

/// `before` are the listeners of the endpoints that stand before this one.
fn bind_tcp(name: &str, all: &[Endpoint], before: &[Listener]) -> Result<Vec<Socket>, String> {
    let addresses: Vec<SocketAddr> = match addresses(name) {
        Ok(addresses) => addresses,
        Err(error) => {
            return Err(format!(
                "cannot listen on {name}: {error}; it must be a host name or address of this machine and a port"
            ));
        }
    };
    let mut result = Err(String::new());
    for _ in 0..PORT_ATTEMPTS {
        result = bind_addresses(name, &addresses, all, before);
        // Port 0 is any free port, but one that is free for all addresses of the name.
        if result.is_ok() || addresses.iter().all(|address| address.port() != 0) {
            break;
        }
    }
    result
}

/// All that a name stands for.
fn addresses(name: &str) -> io::Result<Vec<SocketAddr>> {
    let known = Endpoint::spelled_out(name);
    if known.is_empty() { Ok(name.to_socket_addrs()?.collect()) } else { Ok(known) }
}

fn bind_addresses(
    name: &str,
    addresses: &[SocketAddr],
    all: &[Endpoint],
    before: &[Listener],
) -> Result<Vec<Socket>, String> {
    let mut listeners = Vec::new();
    let mut unavailable = None;
    let mut port = None;
    for address in addresses {
        let mut address = *address;
        address.set_port(port.unwrap_or(address.port()));
        match bind_address(address, all) {
            Ok(listener) => {
                port = listener.local_addr().ok().map(|bound| bound.port());
                listeners.push(Socket::Tcp(listener));
            }
            Err(error) if is_unavailable(&error) => unavailable = Some((address, error)),
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_taken_by(before, address.port()) => {
                return Err(format!(
                    "cannot listen on {}: an address before it in the option listen (or http_listen, or metrics.listen) has that port \
                     already; keep one of them",
                    named(name, address)
                ));
            }
            Err(error) => return Err(failure(name, address, &error)),
        }
    }
    match unavailable {
        Some((address, error)) if listeners.is_empty() => Err(failure(name, address, &error)),
        _ => Ok(listeners),
    }
}

fn bind_address(address: SocketAddr, all: &[Endpoint]) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The port may still be waiting for the last packets of a server that just stopped.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !serves_both_families(address, all))?;
    }
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// `[::]` serves IPv4 as well, as everywhere on Linux, unless the same port is asked for there by itself.
fn serves_both_families(address: SocketAddr, all: &[Endpoint]) -> bool {
    let port = address.port();
    let is_ipv4_of_same_port = |endpoint: &Endpoint| match endpoint {
        Endpoint::Tcp(name) => {
            Endpoint::spelled_out(name).iter().any(|other| other.is_ipv4() && other.port() == port)
        }
        Endpoint::Unix(_) => false,
    };
    address.ip().is_unspecified() && !all.iter().any(is_ipv4_of_same_port)
}

fn is_taken_by(listeners: &[Listener], port: u16) -> bool {
    listeners.iter().any(|listener| match &listener.socket {
        Socket::Tcp(listener) => listener.local_addr().is_ok_and(|address| address.port() == port),
        Socket::Unix(..) => false,
    })
}

fn is_unavailable(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

/// What the operator wrote, and what it stands for where that is something else.
fn named(name: &str, address: SocketAddr) -> String {
    if name == address.to_string() { name.to_owned() } else { format!("{name} ({address})") }
}

fn failure(name: &str, address: SocketAddr, error: &io::Error) -> String {
    let shown = named(name, address);
    let port = address.port();
    match error.kind() {
        ErrorKind::AddrInUse => format!(
            "cannot listen on {shown}: address in use; another server may be running: `ss -ltnp 'sport = :{port}'` \
             shows which, or choose another port"
        ),
        ErrorKind::PermissionDenied => format!(
            "cannot listen on {shown}: permission denied; a port below 1024 needs the capability \
             CAP_NET_BIND_SERVICE, or choose a higher port"
        ),
        ErrorKind::AddrNotAvailable => {
            format!(
                "cannot listen on {shown}: this machine does not have that address; `ip address` shows those it has"
            )
        }
        _ => format!("cannot listen on {shown}: {error}"),
    }
}

/// The longest path that the system takes for a socket, in bytes.
const LONGEST_PATH: usize = 107;

fn bind_unix(path: &Path, unix: &config::Unix) -> Result<Socket, String> {
    let shown = format!("unix:{}", path.display());
    let length = path.as_os_str().len();
    if length > LONGEST_PATH {
        return Err(format!(
            "cannot listen on {shown}: the path has {length} bytes, and the system takes {LONGEST_PATH} for a socket; \
             choose a shorter one"
        ));
    }
    remove_stale(path)?;
    let bound = || -> io::Result<(OwnedFd, SocketFile)> {
        let address = net::SocketAddrUnix::new(path)?;
        let socket: OwnedFd =
            net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        net::bind(&socket, &address)?;
        let file = SocketFile { path: path.to_owned(), inode: fs::symlink_metadata(path)?.ino() };
        fs::set_permissions(path, fs::Permissions::from_mode(unix.mode))?;
        Ok((socket, file))
    };
    let told = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => {
            format!("cannot listen on {shown}: its directory does not exist; make it or name another")
        }
        ErrorKind::PermissionDenied => {
            format!(
                "cannot listen on {shown}: permission denied; uid {} must be able to write to its directory",
                rustix::process::geteuid().as_raw()
            )
        }
        _ => format!("cannot listen on {shown}: {error}"),
    };
    let (socket, file) = bound().map_err(told)?;
    if let Some(group) = &unix.group {
        group::give(path, group).map_err(|why| format!("cannot listen on {shown}: {why}"))?;
    }
    // Nobody can connect before it listens, so nobody gets in before mode and group are right.
    net::listen(&socket, BACKLOG).map_err(|error| told(error.into()))?;
    Ok(Socket::Unix(UnixListener::from(socket), Some(file)))
}

/// A socket that nobody answers on is what a killed server leaves behind. Anything else is someone's.
fn remove_stale(path: &Path) -> Result<(), String> {
    let shown = format!("unix:{}", path.display());
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(format!(
            "cannot listen on {shown}: a file that is no socket is in its place; move it away"
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| {
                format!("cannot listen on {shown}: cannot remove the socket left there: {error}")
            })
        }
        Err(error) => Err(format!("cannot listen on {shown}: a socket is in its place: {error}")),
        Ok(_) => Err(format!("cannot listen on {shown}: address in use; another server answers there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(endpoints: &[Endpoint]) -> Result<Vec<Listener>, Vec<String>> {
        let way = Way { entrance: Entrance::Main, is_plain: true };
        super::bind(&[(way, endpoints)], &config::Unix { mode: 0o660, group: None })
    }

    fn tcp(name: &str) -> Endpoint {
        Endpoint::Tcp(name.to_owned())
    }

    #[test]
    fn a_free_port_is_chosen_and_told() {
        let listeners = bind(&[tcp("127.0.0.1:0")]).unwrap();
        let url = listeners[0].url("/tasks/");
        let port = url.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.strip_suffix("/tasks/"));
        assert!(port.unwrap().parse::<u16>().unwrap() > 0, "{url}");
    }

    #[test]
    fn all_addresses_of_a_name_get_the_same_port() {
        let listeners = bind(&[tcp("localhost:0")]).unwrap();
        let port = |listener: &Listener| match &listener.socket {
            Socket::Tcp(listener) => listener.local_addr().unwrap().port(),
            Socket::Unix(..) => panic!("not TCP"),
        };
        assert!(listeners.iter().all(|listener| port(listener) == port(&listeners[0])));
    }

    #[test]
    fn both_wildcards_may_be_asked_for_on_one_port() {
        let free = bind(&[tcp("127.0.0.1:0")]).unwrap();
        let port = free[0].url("").rsplit(':').next().unwrap().to_owned();
        drop(free);
        let both = bind(&[tcp(&format!("0.0.0.0:{port}")), tcp(&format!("[::]:{port}"))]);
        match both {
            Ok(listeners) => assert_eq!(listeners.len(), 2),
            Err(failures) => assert!(!failures[0].contains("in use"), "{failures:?}"),
        }
    }

    #[test]
    fn a_star_is_every_address_of_both_families() {
        let listeners = bind(&[tcp("*:0")]).unwrap();
        let urls: Vec<String> = listeners.iter().map(|listener| listener.url("")).collect();
        assert!(urls.iter().any(|url| url.starts_with("http://0.0.0.0:")), "{urls:?}");
        assert!(listeners.iter().all(|listener| listener.port() == listeners[0].port()));
    }

    #[test]
    fn every_failure_is_told_at_once_with_what_to_do() {
        let taken = bind(&[tcp("127.0.0.1:0")]).unwrap();
        let port = taken[0].url("").rsplit(':').next().unwrap().to_owned();
        let endpoints = [tcp(&format!("127.0.0.1:{port}")), tcp("192.0.2.1:0"), tcp("no port")];
        let failures = bind(&endpoints).err().unwrap();
        assert!(failures[0].contains("address in use"), "{failures:?}");
        assert!(failures[1].contains("does not have that address"), "{failures:?}");
        assert!(failures[2].contains("no port"), "{failures:?}");
    }

    #[test]
    fn an_address_that_is_asked_for_twice_is_not_said_to_be_someone_elses() {
        let free = bind(&[tcp("127.0.0.1:0")]).unwrap();
        let port = free[0].url("").rsplit(':').next().unwrap().to_owned();
        drop(free);
        for first in ["127.0.0.1", "0.0.0.0"] {
            let twice = [tcp(&format!("{first}:{port}")), tcp(&format!("127.0.0.1:{port}"))];
            let failures = bind(&twice).err().unwrap();
            assert!(failures[0].contains("before it in the option listen"), "{failures:?}");
        }
    }

    #[test]
    fn a_unix_socket_replaces_only_one_that_nobody_answers_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let endpoints = [Endpoint::Unix(path.clone())];
        let listeners = bind(&endpoints).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(listeners[0].url("/"), format!("unix:{}", path.display()));
        assert!(bind(&endpoints).err().unwrap()[0].contains("another server answers there"));
        drop(listeners);
        assert!(!path.exists());
        fs::write(&path, "a file").unwrap();
        assert!(bind(&endpoints).err().unwrap()[0].contains("no socket"));
        assert!(path.exists());
    }
}
