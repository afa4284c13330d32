//! Whether the server can listen where it should, and who else does.

use super::Finding;
use crate::config::{Config, Endpoint};
use crate::healthcheck;
use std::fs::{read_dir, read_link, read_to_string};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixStream;

const TOPIC: &str = "listeners";

/// Whether a server runs on the data directory, and how it is called.
pub enum Serving {
    /// Nobody.
    Nobody,
    /// This process, such as "the process with ID 123".
    Holder(String),
}

/// Where the server listens, or could.
pub fn ports(config: &Config, serving: &Serving) -> Vec<Finding> {
    match serving {
        Serving::Holder(holder) => vec![match healthcheck::run(None, config) {
            Ok(()) => Finding::well(TOPIC, format!("{holder} serves, and is ready")),
            Err(why) => Finding::wrong(
                TOPIC,
                format!("{holder} uses the data directory, and is not ready: {why}"),
                "its log says more; where it was started with another configuration, ask with that one, or restart it",
            ),
        }],
        // Servers on a database elsewhere hold nothing by which they are known on their machine.
        Serving::Nobody if config.connection.is_some() && healthcheck::run(None, config).is_ok() => {
            vec![Finding::well(TOPIC, "a server answers there, and is ready")]
        }
        Serving::Nobody => config.listen.iter().chain(&config.http_listen).flat_map(free).collect(),
    }
}

fn free(endpoint: &Endpoint) -> Vec<Finding> {
    match endpoint {
        Endpoint::Unix(path) if UnixStream::connect(path).is_ok() => vec![Finding::wrong(
            TOPIC,
            format!("another program answers at the socket {}", path.display()),
            "stop it, or name another path in listen",
        )],
        Endpoint::Unix(path) => vec![Finding::well(TOPIC, format!("the socket {} is free", path.display()))],
        Endpoint::Tcp(name) => match addresses(name) {
            Ok(addresses) => addresses.into_iter().map(|address| free_address(name, address)).collect(),
            Err(error) => vec![Finding::wrong(
                TOPIC,
                format!("{name} is no address: {error}"),
                "name a host name or address of this machine in listen",
            )],
        },
    }
}

fn addresses(name: &str) -> std::io::Result<Vec<SocketAddr>> {
    let known = Endpoint::spelled_out(name);
    if known.is_empty() { Ok(name.to_socket_addrs()?.collect()) } else { Ok(known) }
}

fn free_address(name: &str, address: SocketAddr) -> Finding {
    // Closed again at once, before anybody comes.
    match TcpListener::bind(address) {
        Ok(_) => Finding::well(TOPIC, format!("{address} is free for the server, which is not running")),
        Err(error) if error.kind() == ErrorKind::AddrInUse => match holder(address) {
            Some(holder) if holder.starts_with("systemd (") => {
                Finding::well(TOPIC, format!("systemd listens at {address}, and hands it to the server"))
            }
            holder => Finding::wrong(
                TOPIC,
                format!("{address} is taken by {}", holder.as_deref().unwrap_or("another process")),
                format!("stop it, or name another port in listen, which is {name} now"),
            ),
        },
        // As where a machine has no IPv6: the other addresses of the name are enough.
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            Finding::note(TOPIC, format!("this machine has no address {}", address.ip()))
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Finding::note(
            TOPIC,
            format!("{address} may be for root only: ask as root, or as the server's user ({error})"),
        ),
        Err(error) => {
            Finding::wrong(TOPIC, format!("nobody can listen at {address}: {error}"), "name another one")
        }
    }
}

/// Who listens there, as far as this process may see.
fn holder(address: SocketAddr) -> Option<String> {
    let inodes: Vec<String> =
        ["/proc/net/tcp", "/proc/net/tcp6"].iter().flat_map(|file| listening(file, address.port())).collect();
    for process in read_dir("/proc").ok()?.flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        // Others are this process under another name, or none.
        if name.parse::<u32>().is_err() {
            continue;
        }
        let Ok(files) = read_dir(process.path().join("fd")) else { continue };
        let links = files.flatten().filter_map(|file| read_link(file.path()).ok());
        let mut sockets = links.map(|link| link.to_string_lossy().into_owned());
        if sockets.any(|socket| inodes.iter().any(|inode| socket == format!("socket:[{inode}]"))) {
            let command = read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {name})", command.trim()));
        }
    }
    None
}

/// The inodes of the sockets that listen at a port.
fn listening(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let rows = read_to_string(table).unwrap_or_default();
    let inode = |row: &str| {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let (local, state, inode) = (columns.get(1)?, columns.get(3)?, columns.get(9)?);
        let at = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (*state == LISTEN && at == port).then(|| (*inode).to_owned())
    };
    rows.lines().skip(1).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;

    fn at(address: &str) -> Vec<Finding> {
        let config = Config { listen: vec![Endpoint::Tcp(address.to_owned())], ..Config::default() };
        ports(&config, &Serving::Nobody)
    }

    #[test]
    fn a_port_is_free_or_somebody_has_it_who_is_named() {
        assert_eq!(at("127.0.0.1:0")[0].grade, Grade::Well);
        let ours = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = ours.local_addr().expect("an address").to_string();
        let found = at(&address);
        assert_eq!(found[0].grade, Grade::Wrong);
        assert!(found[0].seen.contains(&format!("(process {})", std::process::id())), "{found:?}");
        drop(ours);
        assert_eq!(at(&address)[0].grade, Grade::Well);
    }

    #[test]
    fn a_name_that_is_none_is_told() {
        assert_eq!(at("no.such.host.invalid:80")[0].grade, Grade::Wrong);
        let listen = vec![Endpoint::Unix("/nowhere/socket".into())];
        let found = ports(&Config { listen, ..Config::default() }, &Serving::Nobody);
        assert_eq!(found[0].grade, Grade::Well);
    }
}
