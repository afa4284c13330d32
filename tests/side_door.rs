//! Plain HTTP beside HTTPS, on the real program.

use crate::tls::{Authority, ask, is_served, secure, shake_hands};
use crate::util::{Connection, NIL, SEGMENT, Server, program};
use std::io;
use std::sync::Arc;

const CLIENT: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";

/// A server with a certificate, and the address of its side door.
fn start(authority: &Authority, more: &[&str]) -> (Server, String) {
    authority.write_pair("cert.pem", "key.pem");
    let server = authority.start(&[&["--http-listen", "127.0.0.1:0"], more].concat());
    let line = server.log().wait_for("plain HTTP at http://");
    let side = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address");
    let side = side.to_owned();
    (server, side)
}

#[test]
fn people_are_sent_to_https_and_probes_answered() {
    let authority = Authority::new();
    let (server, side) = start(&authority, &["--base-path", "/tasks/"]);
    let port = server.address.rsplit(':').next().expect("a port");
    for (path, location) in [("/", "/"), ("/tasks/?a=b", "/tasks/?a=b"), ("/x//y", "/x//y")] {
        let answer = Connection::open(&side).request("GET", path, &[], b"");
        assert_eq!(answer.status, 301);
        let expected = format!("https://test:{port}{location}");
        assert_eq!(answer.header("location"), Some(expected.as_str()));
    }
    // One connection serves several, as everywhere.
    let mut connection = Connection::open(&side);
    for path in ["/healthz", "/readyz", "/tasks/readyz"] {
        let answer = connection.request("GET", path, &[], b"");
        assert_eq!((answer.status, answer.text()), (200, "ok\n".to_owned()));
    }
    assert_eq!(connection.request("HEAD", "/", &[], b"").status, 301);
    let challenge = connection.request("GET", "/.well-known/acme-challenge/x", &[], b"");
    assert_eq!(challenge.status, 404);

    let public = start(&authority, &["--public-url", "https://tasks.example.com/t"]);
    let answer = Connection::open(&public.1).request("GET", "/x", &[], b"");
    assert_eq!(answer.header("location"), Some("https://tasks.example.com/x"));
}

#[test]
fn the_protocol_is_refused_and_never_redirected() {
    let authority = Authority::new();
    let (server, side) = start(&authority, &["--public-url", "https://tasks.example.com/"]);
    let client = [("X-Client-Id", CLIENT), ("Content-Type", SEGMENT)];
    for (method, path, body) in [
        ("POST", format!("/v1/client/add-version/{NIL}"), vec![1; 100_000]),
        ("POST", format!("/tasks/v1/client/add-snapshot/{NIL}"), vec![1; 10]),
        ("GET", format!("/v1/client/get-child-version/{NIL}"), vec![]),
        ("GET", "/any/where/v1/client/snapshot".to_owned(), vec![]),
        ("GET", "/%76%31/client/snapshot".to_owned(), vec![]),
        ("POST", "/".to_owned(), vec![1]),
        ("DELETE", "/x".to_owned(), vec![]),
    ] {
        let answer = Connection::open(&side).request(method, &path, &client, &body);
        assert_eq!(answer.status, 400, "{method} {path}");
        assert_eq!(answer.header("location"), None);
        assert!(answer.text().contains("https://tasks.example.com/"), "{}", answer.text());
    }
    let line = server.log().wait_for("over plain HTTP");
    assert!(line.contains("task config sync.server.url https://tasks.example.com/"), "{line}");
    assert!(line.contains("127.0.0.1:"), "{line}");
    assert_eq!(server.log().text().matches("over plain HTTP, which").count(), 1, "said once a minute");
    assert!(!server.log().text().contains(CLIENT));

    // What was refused is not stored, and the door beside it serves.
    let mut stream = secure(&server, authority.client());
    let header = format!("X-Client-Id: {CLIENT}\r\n");
    let fetched = ask(&mut stream, &format!("GET /v1/client/get-child-version/{NIL}"), &header, "");
    assert_eq!(fetched.expect("an answer").0, 404);
    server.stop();
}

#[test]
fn tls_at_the_side_door_is_closed_cleanly_and_told() {
    let authority = Authority::new();
    let (server, side) = start(&authority, &[]);
    let port = server.address.rsplit(':').next().expect("a port").to_owned();
    let wrong = format!("127.0.0.1:{}", side.rsplit(':').next().expect("a port"));
    for _ in 0..2 {
        let error = shake_hands(&wrong, &Arc::new(authority.client())).map(drop).expect_err("no TLS");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    }
    let line = server.log().wait_for("speaks TLS");
    assert!(line.contains("http_listen") && line.contains(&format!(":{port}/")), "{line}");
    assert_eq!(server.log().text().matches("speaks TLS").count(), 1);
    assert!(is_served(&mut secure(&server, authority.client())));
}

#[test]
fn it_is_refused_where_there_is_no_tls_or_no_port_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let refused = |args: &[&str]| {
        let mut command = program();
        command.args(["--data-dir"]).arg(dir.path().join("data")).args(args);
        let output = command.output().expect("the program runs");
        (String::from_utf8(output.stderr).expect("text"), output.status.code())
    };
    let (said, code) = refused(&["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("http_listen (flag --http-listen): of no use without HTTPS"), "{said}");

    let authority = Authority::new();
    let (server, _) = start(&authority, &[]);
    let [cert, key] = authority.flags();
    let both = ["--listen", "127.0.0.1:0", "--http-listen", &server.address, &cert, &key];
    let (said, code) = refused(&both);
    assert!(said.contains("address in use") && code == Some(1), "{said}");
    let (said, code) = refused(&["--listen", "127.0.0.1:0", "--http-listen", "unix:/x", &cert, &key]);
    assert!(said.contains("http_listen") && code == Some(78), "{said}");
}

#[test]
fn a_health_check_that_has_no_certificate_to_show_asks_the_side_door() {
    let authority = Authority::new();
    authority.write_pair("client-ca.pem", "unused.pem");
    let client_ca = format!("--tls-client-ca={}", authority.path("client-ca.pem").display());
    let (server, side) = start(&authority, &[&client_ca]);
    let [cert, key] = authority.flags();
    let check = program()
        .args(["healthcheck", "--listen", &server.address, &cert, &key, &client_ca, "--http-listen", &side])
        .output()
        .expect("the program runs");
    assert!(check.status.success(), "{check:?}");
}
