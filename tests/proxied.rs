//! Who is at the other end where a proxy stands between: whom it names, and whether it is believed.

use crate::tls::{Authority, ask, shake_hands, shake_hands_on};
use crate::util::{Connection, NIL, Server, program};
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

const CLIENT: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";

/// The peer in the request line of this path.
fn peer_of(server: &Server, path: &str) -> String {
    let line = server.log().wait_for(&format!("path={path} "));
    line.split("peer=").nth(1).expect("a peer").split(' ').next().expect("a word").to_owned()
}

/// Asks for a path that nothing else asks for, and returns the peer that is logged for it.
fn seen(server: &Server, connection: &mut Connection, headers: &[(&str, &str)]) -> String {
    let path = format!("/{}", uuid::Uuid::new_v4());
    assert_eq!(connection.request("GET", &path, headers, b"").status, 404);
    peer_of(server, &path)
}

#[test]
fn a_trusted_proxys_header_names_the_peer_and_nobody_elses_does() {
    let server = Server::start(&["--trusted-proxies", "127.0.0.1,10.0.0.0/8"]);
    let mut connection = server.connect();
    let mut seen = |headers: &[(&str, &str)]| seen(&server, &mut connection, headers);
    assert_eq!(seen(&[("X-Forwarded-For", "203.0.113.7")]), "203.0.113.7");
    assert_eq!(seen(&[("X-Forwarded-For", "6.6.6.6, 2001:db8::7, 10.1.1.1")]), "2001:db8::7");
    assert_eq!(
        seen(&[("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "203.0.113.8:99")]),
        "203.0.113.8:99"
    );
    // Each request is by itself: a proxy serves many on one connection.
    assert!(seen(&[]).starts_with("127.0.0.1:"));
    assert!(
        seen(&[("Forwarded", "for=203.0.113.7")]).starts_with("127.0.0.1:"),
        "only one header is believed"
    );
    assert!(seen(&[("X-Forwarded-For", "nonsense\" peer=1.2.3.4")]).starts_with("127.0.0.1:"));
    server.log().wait_for("names no address");

    let server = Server::start(&["--trusted-proxies", "127.0.0.1", "--real-address", "forwarded"]);
    let mut connection = server.connect();
    let header = [("Forwarded", "for=\"[2001:db8::7]:81\";proto=https"), ("X-Forwarded-For", "203.0.113.7")];
    assert_eq!(super::proxied::seen(&server, &mut connection, &header), "[2001:db8::7]:81");
}

#[test]
fn an_undeclared_proxy_is_told_once_with_the_option_that_declares_it() {
    let server = Server::start(&["--trusted-proxies", "192.0.2.1"]);
    let mut connection = server.connect();
    for header in ["X-Forwarded-For", "Forwarded"] {
        assert!(seen(&server, &mut connection, &[(header, "for=203.0.113.7")]).starts_with("127.0.0.1:"));
    }
    let line = server.log().wait_for("trusted_proxies");
    assert!(line.contains("[WARN]") && line.contains("127.0.0.1:"), "{line}");
    assert_eq!(server.log().text().matches("trusted_proxies").count(), 1);
}

#[test]
fn the_proxy_protocol_is_read_from_trusted_peers_in_both_versions() {
    let server = Server::start(&["--trusted-proxies", "127.0.0.1", "--real-address", "proxy-protocol"]);
    let binary =
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[203, 0, 113, 9, 192, 0, 2, 1, 0xdc, 0x04, 1, 0xbb]]
            .concat();
    for (header, expected) in [
        (&b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n"[..], "203.0.113.7:56324"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", "[2001:db8::7]:56324"),
        (&binary, "203.0.113.9:56324"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1:"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "127.0.0.1:"),
    ] {
        let mut connection = server.connect();
        // In two pieces, the second of which has the request's beginning behind it.
        connection.send(&header[..7]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        connection.send(&header[7..]);
        let forged = [("X-Forwarded-For", "6.6.6.6"), ("Forwarded", "for=6.6.6.6")];
        for _ in 0..2 {
            let seen = seen(&server, &mut connection, &forged);
            assert!(seen.starts_with(expected), "{seen}");
        }
    }
}

#[test]
fn the_proxy_protocol_comes_before_tls() {
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let server = authority.start(&["--trusted-proxies", "127.0.0.1", "--real-address", "proxy-protocol"]);
    let client = Arc::new(authority.client());
    let binary = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f"[..],
        &[203, 0, 113, 9, 192, 0, 2, 1, 0xdc, 0x04, 1, 0xbb],
        // An extension that nobody asked for.
        &[0x04, 0, 0],
    ]
    .concat();
    for (header, expected) in [
        (&b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n"[..], "203.0.113.7:56324"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", "[2001:db8::7]:56324"),
        (&binary, "203.0.113.9:56324"),
    ] {
        let mut socket = TcpStream::connect(&server.address).expect("a connection");
        socket.write_all(header).expect("it is taken");
        let mut stream = shake_hands_on(socket, &client).expect("a handshake");
        let path = format!("/{}", uuid::Uuid::new_v4());
        assert_eq!(ask(&mut stream, &format!("GET {path}"), "", "").expect("an answer").0, 404);
        assert_eq!(peer_of(&server, &path), expected);
    }
    // Within TLS it is no header any more, and without it there is no handshake.
    let mut socket = TcpStream::connect(&server.address).expect("a connection");
    socket.write_all(b"PROXY UNKNOWN\r\n").expect("it is taken");
    let mut stream = shake_hands_on(socket, &client).expect("a handshake");
    let (status, _) = ask(&mut stream, "PROXY TCP4 6.6.6.6 6.6.6.6 1 1\r\nGET /", "", "").expect("an answer");
    assert_eq!(status, 400);
    shake_hands(&server.address, &client).map(drop).expect_err("the header is missing");
    let line = server.log().wait_for("does not begin with a header of the PROXY protocol");
    assert!(line.contains("127.0.0.1:"), "{line}");
    assert!(!server.log().text().contains("6.6.6.6"));
}

#[test]
fn a_trusted_proxy_without_its_header_is_closed_and_told() {
    let server = Server::start(&["--trusted-proxies", "127.0.0.1", "--real-address", "proxy-protocol"]);
    let mut connection = server.connect();
    connection.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(connection.is_closed());
    let line = server.log().wait_for("PROXY protocol");
    assert!(line.contains("real_address") && line.contains("127.0.0.1:"), "{line}");
    // The server's own health check introduces itself.
    let check = |args: &[&str]| {
        let mut command: Command = program();
        command.args(["healthcheck", "--listen", &server.address]).args(args);
        command.status().expect("the program runs").success()
    };
    assert!(check(&["--trusted-proxies", "127.0.0.1", "--real-address", "proxy-protocol"]));
    assert!(!check(&[]));
}

#[test]
fn a_stranger_who_speaks_the_proxy_protocol_is_refused_and_told() {
    let server = Server::start(&["--trusted-proxies", "192.0.2.1", "--real-address", "proxy-protocol"]);
    let mut connection = server.connect();
    connection.send(b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(connection.response().status, 400);
    let line = server.log().wait_for("PROXY protocol");
    assert!(line.contains("trusted_proxies") && line.contains("127.0.0.1:"), "{line}");
    assert!(!server.log().text().contains("203.0.113.7"));
}

/// Ten wrong tokens of a client that needs one; the statuses.
fn guess(server: &Server, forwarded: &str, count: usize) -> Vec<u16> {
    let mut connection = server.connect();
    let path = format!("/v1/client/get-child-version/{NIL}");
    let headers = [("X-Client-Id", CLIENT), ("X-Forwarded-For", forwarded)];
    (0..count).map(|_| connection.request("GET", &path, &headers, b"").status).collect()
}

#[test]
fn wrong_tokens_are_counted_by_the_address_that_the_proxy_names() {
    let server =
        Server::start(&["--require-device", "--no-create-clients", "--trusted-proxies", "127.0.0.1"]);
    let start = std::time::Instant::now();
    assert_eq!(guess(&server, "203.0.113.7", 8), [401; 8]);
    // A quarter, half and a whole second were waited.
    assert!(start.elapsed() >= std::time::Duration::from_millis(1700), "{:?}", start.elapsed());
    let line = server.log().wait_for("was refused at");
    assert!(line.contains("refused at 203.0.113.7"), "{line}");
    // Whoever comes by the same proxy from elsewhere does not wait: forty would take minutes.
    let start = std::time::Instant::now();
    for n in 0..8 {
        assert_eq!(guess(&server, &format!("203.0.113.{}", 20 + n), 5), [401; 5]);
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(30), "{:?}", start.elapsed());
}
