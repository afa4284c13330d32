//! Sockets that the service manager listens on and hands over, as systemd does it: a number of them from
//! descriptor 3 on, and a name for each. They are the manager's own and stay with it, so that whoever comes
//! while the server restarts waits and is served afterwards.

use super::bind::{Listener, Socket, Way};
use crate::config::Environment;
use crate::http::Entrance;
use listenfd::ListenFd;
use rustix::net::sockopt;
use std::io;
use std::os::fd::AsFd;

/// The first descriptor that is handed over.
const FIRST: usize = 3;

/// What `systemd-socket-activate` calls a socket that nobody gave a name.
const NAMELESS: &str = "unknown";

/// What systemd's own names end in.
const UNIT: &str = ".socket";

/// Takes the sockets that were handed over to this process; none where none were. `is_secure` is said where
/// there is a certificate. All failures come at once.
///
/// The variables that tell of them are gone afterwards, so it is to be called once, before any thread
/// exists, and no program that this one starts gets the sockets.
pub fn handed_over(environment: &Environment, is_secure: bool) -> Result<Vec<Listener>, Vec<String>> {
    // What is meant for another process, a parent for example, is not ours to take.
    if environment.var("LISTEN_PID") != Some(&std::process::id().to_string()) {
        return Ok(Vec::new());
    }
    let mut handed = ListenFd::from_env();
    let count = handed.len();
    let names: Vec<&str> = match environment.var("LISTEN_FDNAMES") {
        Some(names) => names.split(':').collect(),
        None => vec![NAMELESS; count],
    };
    if names.len() != count {
        return Err(vec![format!(
            "the service manager hands over {count} sockets (LISTEN_FDS) and {} names (LISTEN_FDNAMES); there must \
             be as many of each",
            names.len()
        )]);
    }
    let taken = names.iter().enumerate().map(|(n, name)| {
        let refused = |why: String| {
            format!("the socket {name:?} (descriptor {}) from the service manager: {why}", FIRST + n)
        };
        let socket = take(&mut handed, n).map_err(refused)?;
        let way = way(name, matches!(socket, Socket::Unix(..)), is_secure).map_err(refused)?;
        Ok(Listener { socket, way })
    });
    let (listeners, failures): (Vec<_>, Vec<_>) = taken.partition(Result::is_ok);
    if failures.is_empty() {
        Ok(listeners.into_iter().flatten().collect())
    } else {
        Err(failures.into_iter().filter_map(Result::err).collect())
    }
}

fn take(handed: &mut ListenFd, n: usize) -> Result<Socket, String> {
    let unix = |handed: &mut ListenFd| Some(Socket::Unix(handed.take_unix_listener(n).ok()??, None));
    let tcp = |handed: &mut ListenFd| Some(Socket::Tcp(handed.take_tcp_listener(n).ok()??));
    let socket = unix(handed)
        .or_else(|| tcp(handed))
        .ok_or("it is neither a TCP socket nor a unix stream socket; use ListenStream= in the socket unit")?;
    match listens(&socket) {
        Ok(true) => Ok(socket),
        Ok(false) => {
            Err("it is a connection and does not listen; set Accept=no in the socket unit".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

fn listens(socket: &Socket) -> io::Result<bool> {
    let socket = match socket {
        Socket::Tcp(listener) => listener.as_fd(),
        Socket::Unix(listener, _) => listener.as_fd(),
    };
    Ok(sockopt::socket_acceptconn(socket)?)
}

/// What the name of a socket says. One without a name is what an address in the option listen is.
fn way(name: &str, is_unix: bool, is_secure: bool) -> Result<Way, String> {
    let (entrance, is_plain) = match name {
        "https" if is_unix => {
            return Err(
                "TLS is spoken on TCP only; set FileDescriptorName=http in the socket unit".to_owned()
            );
        }
        "https" | "redirect" if !is_secure => {
            return Err(
                "there is no certificate for HTTPS; give acme.domain, or tls.cert and tls.key, or set \
                        FileDescriptorName=http in the socket unit"
                    .to_owned(),
            );
        }
        "https" => (Entrance::Main, false),
        "http" => (Entrance::Main, true),
        "redirect" => (Entrance::Side, true),
        "metrics" => (Entrance::Monitor, true),
        name if name == NAMELESS || name.ends_with(UNIT) => (Entrance::Main, is_unix || !is_secure),
        _ => {
            return Err(
                "nothing is called so; set FileDescriptorName= in the socket unit to https, http, redirect \
                        or metrics, or leave it out"
                    .to_owned(),
            );
        }
    };
    Ok(Way { entrance, is_plain })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_is_spoken() {
        let told = |name, is_unix, is_secure| {
            way(name, is_unix, is_secure).map(|way| (way.entrance, way.is_plain)).map_err(drop)
        };
        assert_eq!(told("https", false, true), Ok((Entrance::Main, false)));
        assert_eq!(told("http", false, true), Ok((Entrance::Main, true)));
        assert_eq!(told("http", true, false), Ok((Entrance::Main, true)));
        assert_eq!(told("redirect", false, true), Ok((Entrance::Side, true)));
        assert_eq!(told("metrics", true, true), Ok((Entrance::Monitor, true)));
        for name in ["sync-server.socket", "unknown"] {
            assert_eq!(told(name, false, true), Ok((Entrance::Main, false)));
            assert_eq!(told(name, false, false), Ok((Entrance::Main, true)));
            assert_eq!(told(name, true, true), Ok((Entrance::Main, true)));
        }
        for (name, is_unix, is_secure) in
            [("https", false, false), ("redirect", false, false), ("https", true, true), ("htp", false, true)]
        {
            assert_eq!(told(name, is_unix, is_secure), Err(()), "{name}");
        }
    }

    #[test]
    fn what_is_meant_for_another_process_is_left_alone() {
        for variables in [
            vec![("LISTEN_FDS", "1")],
            vec![("LISTEN_FDS", "1"), ("LISTEN_PID", "1")],
            vec![("LISTEN_FDS", "1"), ("LISTEN_PID", "")],
        ] {
            let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
            assert!(handed_over(&Environment::new(variables), false).is_ok_and(|handed| handed.is_empty()));
        }
    }
}
