//! Sockets that the service manager hands over, on the real program.

use crate::acme::pebble::free_port;
use crate::tls::{Authority, is_served, shake_hands};
use crate::util::{Connection, NIL, PATIENCE, Replica, Server, skip};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The program with these sockets as descriptors 3 and 4, and what the service manager says of them.
fn handing(sockets: [Option<OwnedFd>; 2], names: &str, args: &[&str]) -> Command {
    let count = sockets.iter().flatten().count();
    let words = format!(
        "exec 3<&0 4<&1 0</dev/null 1>/dev/null; LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names} exec \"$0\" \"$@\""
    );
    let mut command = Command::new("/bin/sh");
    command.env_clear().args(["-c", &words, env!("CARGO_BIN_EXE_sync-server")]).args(args);
    let [first, second] = sockets.map(|socket| socket.map_or_else(Stdio::null, Stdio::from));
    command.stdin(first).stdout(second);
    command
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

fn copy(listener: &TcpListener) -> Option<OwnedFd> {
    Some(listener.try_clone().expect("a copy").into())
}

/// Waits until someone listens there.
fn connect(address: &str) -> Connection {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nobody listens at {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Connection::open(address)
}

#[test]
fn sockets_of_the_service_manager_are_what_their_names_say() {
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        return skip("systemd-socket-activate is not installed; `tests/run` installs it");
    }
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let path = authority.path("socket");
    let at = [(); 5].map(|()| format!("127.0.0.1:{}", free_port()));
    let mut command = Command::new("systemd-socket-activate");
    for address in at.iter().map(String::as_str).chain([path.to_str().expect("a path")]) {
        command.args(["--listen", address]);
    }
    let names = "https:http:redirect:metrics:sync-server.socket:http";
    command.args([&format!("--fdname={names}"), env!("CARGO_BIN_EXE_sync-server")]);
    let dir = authority.path("data");
    command.args(["--listen", "127.0.0.1:1", "--http-listen", "127.0.0.1:2", "--metrics-listen"]);
    command.arg("127.0.0.1:3").args(authority.flags()).arg("--data-dir").arg(&dir);
    // Who comes first starts the server, and is answered.
    let first = at[1].clone();
    let first = std::thread::spawn(move || connect(&first).request("GET", "/readyz", &[], b"").status);
    let server = Server::spawn(command, &dir);
    assert_eq!(first.join().expect("an answer"), 200);

    for option in ["listen", "http_listen", "metrics.listen"] {
        server
            .log()
            .wait_for(&format!("is a socket of the service manager: the option {option} is not used"));
    }
    for (address, is_secure) in [(&at[0], true), (&at[1], false), (&at[4], true)] {
        let scheme = if is_secure { "https" } else { "http" };
        server.log().wait_for(&format!("listening on {scheme}://{address}/"));
        let mut secure = shake_hands(address, &Arc::new(authority.client()));
        assert_eq!(secure.as_mut().is_ok_and(is_served), is_secure, "{address}");
    }
    let uuid = uuid::Uuid::new_v4().to_string();
    let child = format!("/v1/client/get-child-version/{NIL}");
    let ask =
        |address: &str, path| Connection::open(address).request("GET", path, &[("X-Client-Id", &uuid)], b"");
    assert_eq!(ask(&at[1], &child).status, 404, "the protocol");
    assert_eq!(ask(&at[2], &child).status, 400);
    let port = at[0].rsplit(':').next().expect("a port");
    let moved = ask(&at[2], "/");
    assert_eq!((moved.status, moved.header("location")), (301, Some(&*format!("https://test:{port}/"))));
    assert!(ask(&at[3], "/metrics").text().contains("sync_server_"));
    server.log().wait_for(&format!("listening on unix:{}", path.display()));
    let mut unix = UnixStream::connect(&path).expect("a connection");
    unix.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it is taken");
    let mut answer = String::new();
    unix.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    // No program that the server starts would get them.
    for descriptor in 3..9 {
        let info =
            fs::read_to_string(format!("/proc/{}/fdinfo/{descriptor}", server.pid())).expect("it is open");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
        let flags = u32::from_str_radix(flags.trim(), 8).expect("a number");
        assert_ne!(flags & 0o2_000_000, 0, "close-on-exec: {info}");
    }
    server.stop();
    assert!(path.exists(), "the file is the service manager's");
}

#[test]
fn restarts_lose_no_connection() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let (plain, plain_address) = listener();
    let (tls, tls_address) = listener();
    let data = authority.path("data");
    let [cert, key] = authority.flags();
    let data_dir = format!("--data-dir={}", data.display());
    let start = || {
        let command = handing([copy(&plain), copy(&tls)], "http:https", &[&cert, &key, &data_dir]);
        Server::spawn(command, &data)
    };
    let is_over = AtomicBool::new(false);
    let mut server = start();
    let client = Arc::new(authority.client());
    let [plainly, securely] = std::thread::scope(|scope| {
        let (is_over, client) = (&is_over, &client);
        let plainly = scope.spawn(|| {
            let (client, mut parent) = (uuid::Uuid::new_v4().to_string(), NIL.to_owned());
            let mut replica = Replica { connection: Connection::open(&plain_address), client };
            let mut count = 0;
            while !is_over.load(Relaxed) {
                let answer = replica.add_version(&parent, b"segment");
                assert_eq!(answer.status, 200);
                parent = answer.version();
                count += 1;
                // A kept connection ends with an answer that says so, never between two requests of a sync.
                if answer.header("connection") == Some("close") || count % 20 == 0 {
                    replica.connection = Connection::open(&plain_address);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            count
        });
        let securely = scope.spawn(|| {
            let mut count = 0;
            while !is_over.load(Relaxed) {
                let mut stream = shake_hands(&tls_address, client).expect("a handshake");
                assert!(is_served(&mut stream), "after {count}");
                count += 1;
            }
            count
        });
        for _ in 0..6 {
            std::thread::sleep(Duration::from_millis(300));
            server.signal("TERM");
            assert!(server.wait().success(), "{}", server.log().text());
            server = start();
        }
        is_over.store(true, Relaxed);
        [plainly.join().expect("every one is answered"), securely.join().expect("every one is answered")]
    });
    assert!(plainly > 10 && securely > 10, "{plainly} and {securely}");
    server.stop();
}

#[test]
fn a_socket_that_is_open_to_all_is_warned_of_and_named() {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let dir = tempfile::tempdir().expect("a directory");
    let data_dir = format!("--data-dir={}", dir.path().display());
    let server = Server::spawn(handing([copy(&listener), None], "", &[&data_dir]), dir.path());
    let warning = server.log().wait_for("others than this machine can reach the server");
    assert!(warning.contains(&format!("listen (0.0.0.0:{port})")), "{warning}");
    server.log().wait_for(&format!("task config sync.server.url http://NAME-OF-THIS-MACHINE:{port}/"));
    assert_eq!(server.request("GET", "/readyz", &[], b"").status, 200);
    server.stop();
}

#[test]
fn they_go_into_the_background_with_the_server() {
    let (socket, address) = listener();
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name| dir.path().join(name).display().to_string();
    let (log, pid, data) = (at("log"), at("pid"), at("data"));
    let args = ["--daemonize", "--log-file", &log, "--pid-file", &pid, "--data-dir", &data];
    let status = handing([copy(&socket), None], "http", &args).status().expect("it runs");
    assert!(status.success());
    drop(socket);
    let answer = Connection::open(&address).request("GET", "/readyz", &[], b"");
    let pid = fs::read_to_string(pid).expect("a pid file");
    assert!(Command::new("kill").arg(pid.trim()).status().expect("kill runs").success());
    assert_eq!(answer.status, 200);
}

#[test]
fn what_is_wrong_with_a_socket_is_said_with_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let data_dir = format!("--data-dir={}", dir.path().join("data").display());
    let refused = |sockets: [Option<OwnedFd>; 2], names: &str| -> String {
        let Output { status, stderr, .. } =
            handing(sockets, names, &[&data_dir]).stderr(Stdio::piped()).output().expect("it runs");
        let said = String::from_utf8(stderr).expect("text");
        assert_eq!(status.code(), Some(78), "{said}");
        said
    };
    let (socket, address) = listener();
    let said = refused([copy(&socket), copy(&socket)], "htttp:https");
    assert!(said.contains("\"htttp\" (descriptor 3)") && said.contains("FileDescriptorName="), "{said}");
    assert!(said.contains("\"https\" (descriptor 4)") && said.contains("acme.domain"), "{said}");
    assert!(refused([copy(&socket), copy(&socket)], "http").contains("2 sockets (LISTEN_FDS) and 1 names"));
    assert!(refused([copy(&socket), None], "redirect").contains("no certificate for HTTPS"));
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a port");
    assert!(refused([Some(datagrams.into()), None], "http").contains("use ListenStream="));
    let connection = TcpStream::connect(&address).expect("a connection");
    assert!(refused([Some(connection.into()), None], "http").contains("set Accept=no"));
    let file = fs::File::open("/dev/null").expect("it is there");
    assert!(refused([Some(file.into()), None], "http").contains("neither a TCP socket nor"));
    assert!(!Path::new(&data_dir["--data-dir=".len()..]).exists());
}
