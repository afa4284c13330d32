//! The wire contract, row by row, in raw bytes on the real program.

use crate::util::{Connection, NIL, Replica, Response, SEGMENT, SNAPSHOT, Server};
use flate2::Compression;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

const CLIENT: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";
const MIB: usize = 1024 * 1024;

/// The headers without `Date`, which is there, so that nothing unexpected goes unnoticed.
fn headers(response: &Response) -> BTreeMap<&str, &str> {
    let mut headers: BTreeMap<_, _> =
        response.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert!(headers.remove("date").is_some(), "{response:?}");
    headers
}

fn expect(response: &Response, status: u16, expected: &[(&str, &str)], body: &[u8]) {
    let length = body.len().to_string();
    let mut all = BTreeMap::from([("cache-control", "no-store, max-age=0"), ("content-length", &*length)]);
    all.extend(expected.iter().copied());
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(headers(response), all);
    assert_eq!(response.body, body);
}

/// A refusal says why in one line and never anything more.
fn expect_refusal(response: &Response, status: u16) {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(response.header("cache-control"), Some("no-store, max-age=0"));
    assert_eq!(response.text().lines().count(), 1, "{response:?}");
}

fn new_id() -> String {
    Uuid::new_v4().to_string()
}

/// Adds `count` versions to a chain that ends at `parent`; returns their IDs.
fn grow(replica: &mut Replica, parent: &str, count: usize) -> Vec<String> {
    let mut chain = Vec::new();
    let mut parent = parent.to_owned();
    for n in 0..count {
        let added = replica.add_version(&parent, format!("segment {n}").as_bytes());
        assert_eq!(added.status, 200);
        parent = added.version();
        chain.push(parent.clone());
    }
    chain
}

#[test]
fn the_life_of_a_client_in_exact_headers_and_bytes() {
    let server = Server::start(&[]);
    let mut replica = Replica::new(&server, CLIENT);
    expect(&replica.child_version(NIL), 404, &[], b"");
    expect(&replica.snapshot(), 404, &[], b"");

    let first = replica.add_version(NIL, b"first \0 segment");
    let v1 = first.version();
    assert_eq!(v1, Uuid::parse_str(&v1).expect("a UUID").hyphenated().to_string());
    expect(&first, 200, &[("x-version-id", &v1), ("x-snapshot-request", "urgency=high")], b"");
    expect(&replica.snapshot(), 404, &[], b"");
    expect(&replica.add_snapshot(&v1, b"snapshot \xff"), 200, &[], b"");

    let second = replica.add_version(&v1, b"second");
    let v2 = second.version();
    expect(&second, 200, &[("x-version-id", &v2)], b"");
    expect(&replica.add_version(&v1, b"late"), 409, &[("x-parent-version-id", &v2)], b"");
    expect(&replica.add_version(NIL, b"late"), 409, &[("x-parent-version-id", &v2)], b"");

    let child = [("content-type", SEGMENT), ("x-version-id", &v1), ("x-parent-version-id", NIL)];
    expect(&replica.child_version(NIL), 200, &child, b"first \0 segment");
    let child = [("content-type", SEGMENT), ("x-version-id", &v2), ("x-parent-version-id", &v1)];
    expect(&replica.child_version(&v1), 200, &child, b"second");
    expect(&replica.child_version(&v2), 404, &[], b"");
    expect(&replica.child_version(&new_id()), 410, &[], b"");
    let held = [("content-type", SNAPSHOT), ("x-version-id", &*v1)];
    expect(&replica.snapshot(), 200, &held, b"snapshot \xff");
}

#[test]
fn requests_of_unknown_clients_create_nothing_but_by_add_version() {
    let server = Server::start(&[]);
    let mut replica = Replica::new(&server, CLIENT);
    expect(&replica.child_version(&new_id()), 404, &[], b"");
    expect(&replica.add_snapshot(&new_id(), b"snapshot"), 404, &[], b"");
    expect(&replica.snapshot(), 404, &[], b"");
    let clients = || server.sql("SELECT count(*) FROM clients");
    assert_eq!(clients(), "0");
    assert_eq!(replica.add_version(NIL, b"segment").status, 200);
    assert_eq!(clients(), "1");
}

#[test]
fn the_root_and_the_probes() {
    let server = Server::start(&[]);
    let mut connection = server.connect();
    let root = connection.request("GET", "/", &[], b"");
    assert_eq!(root.status, 200);
    assert!(root.text().starts_with("TaskChampion sync server v"), "{root:?}");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(connection.request("GET", path, &[], b"").status, 200, "{path}");
    }
    let head = connection.request("HEAD", "/", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.headers.get("content-length"), root.headers.get("content-length"));
    expect_refusal(&connection.request("GET", "/elsewhere", &[], b""), 404);
    expect_refusal(&connection.request("GET", "/v1/client/elsewhere", &[], b""), 404);
}

#[test]
fn head_is_get_without_its_body() {
    let server = Server::start(&[]);
    let mut replica = Replica::new(&server, CLIENT);
    let version = replica.add_version(NIL, b"segment").version();
    replica.add_snapshot(&version, b"the snapshot");
    for path in [format!("/v1/client/get-child-version/{NIL}"), "/v1/client/snapshot".to_owned()] {
        let get = replica.connection.request("GET", &path, &[("X-Client-Id", CLIENT)], b"");
        let head = replica.connection.request("HEAD", &path, &[("X-Client-Id", CLIENT)], b"");
        assert_eq!((head.status, get.status), (200, 200));
        assert_eq!(headers(&head), headers(&get));
    }
    let missing = format!("/v1/client/get-child-version/{version}");
    assert_eq!(replica.connection.request("HEAD", &missing, &[("X-Client-Id", CLIENT)], b"").status, 404);
}

#[test]
fn wrong_methods_are_told_the_right_ones() {
    let server = Server::start(&[]);
    let mut connection = server.connect();
    let client = [("X-Client-Id", CLIENT)];
    for (method, path, allow) in [
        ("GET", format!("/v1/client/add-version/{NIL}"), "POST"),
        ("PUT", format!("/v1/client/add-snapshot/{NIL}"), "POST"),
        ("DELETE", "/v1/client/snapshot".to_owned(), "GET, HEAD"),
        ("OPTIONS", format!("/v1/client/get-child-version/{NIL}"), "GET, HEAD"),
        ("PATCH", "/healthz".to_owned(), "GET, HEAD"),
    ] {
        let response = connection.request(method, &path, &client, b"");
        expect_refusal(&response, 405);
        assert_eq!(response.header("allow"), Some(allow), "{method} {path}");
    }
}

#[test]
fn a_bad_uuid_anywhere_is_a_bad_request() {
    let server = Server::start(&[]);
    let post = |path: &str, client: &str, body_type: &str| {
        server.request("POST", path, &[("X-Client-Id", client), ("Content-Type", body_type)], b"body")
    };
    let get = |path: &str, client: &str| server.request("GET", path, &[("X-Client-Id", client)], b"");
    for bad in ["", "x", "711d5cf3-0cf0-4eb8-9eca", "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0-", "%20"] {
        expect_refusal(&post(&format!("/v1/client/add-version/{bad}"), CLIENT, SEGMENT), 400);
        expect_refusal(&post(&format!("/v1/client/add-snapshot/{bad}"), CLIENT, SNAPSHOT), 400);
        expect_refusal(&get(&format!("/v1/client/get-child-version/{bad}"), CLIENT), 400);
        expect_refusal(&post(&format!("/v1/client/add-version/{NIL}"), bad, SEGMENT), 400);
        expect_refusal(&post(&format!("/v1/client/add-snapshot/{NIL}"), bad, SNAPSHOT), 400);
        expect_refusal(&get(&format!("/v1/client/get-child-version/{NIL}"), bad), 400);
        expect_refusal(&get("/v1/client/snapshot", bad), 400);
    }
    expect_refusal(&server.request("GET", "/v1/client/snapshot", &[], b""), 400);
    let twice = [("X-Client-Id", CLIENT), ("X-Client-Id", CLIENT)];
    expect_refusal(&server.request("GET", "/v1/client/snapshot", &twice, b""), 400);
}

#[test]
fn wrong_types_and_empty_bodies_are_bad_requests_and_store_nothing() {
    let server = Server::start(&[]);
    let post = |path: &str, headers: &[(&str, &str)], body: &[u8]| {
        let mut all = vec![("X-Client-Id", CLIENT)];
        all.extend(headers);
        server.request("POST", &format!("/v1/client/{path}/{NIL}"), &all, body)
    };
    expect_refusal(&post("add-version", &[], b"body"), 400);
    expect_refusal(&post("add-version", &[("Content-Type", SNAPSHOT)], b"body"), 400);
    expect_refusal(&post("add-version", &[("Content-Type", "application/octet-stream")], b"body"), 400);
    expect_refusal(&post("add-snapshot", &[("Content-Type", SEGMENT)], b"body"), 400);
    expect_refusal(&post("add-version", &[("Content-Type", SEGMENT)], b""), 400);
    expect_refusal(&post("add-snapshot", &[("Content-Type", SNAPSHOT)], b""), 400);
    let mut replica = Replica::new(&server, CLIENT);
    expect(&replica.child_version(NIL), 404, &[], b"");
}

#[test]
fn parameters_queries_and_capitals_are_ignored() {
    let server = Server::start(&[]);
    let mut connection = server.connect();
    let typed = format!("{SEGMENT}; charset=utf-8");
    let capitals = CLIENT.to_uppercase();
    let path = format!("/v1/client/add-version/{}?x=y", NIL.to_uppercase());
    let headers = [("x-client-id", &*capitals), ("content-type", &*typed)];
    let version = connection.request("POST", &path, &headers, b"segment").version();
    let path = format!("/v1/client/get-child-version/{}?", NIL);
    let child = connection.request("GET", &path, &[("X-CLIENT-ID", CLIENT)], b"");
    assert_eq!((child.status, child.version()), (200, version.clone()));
    let braced = format!("/v1/client/get-child-version/{}", version.to_uppercase().replace('-', ""));
    assert_eq!(connection.request("GET", &braced, &[("X-Client-Id", CLIENT)], b"").status, 404);
}

#[test]
fn answers_are_never_encoded() {
    let server = Server::start(&[]);
    let mut replica = Replica::new(&server, CLIENT);
    let segment = vec![b' '; 100_000];
    replica.add_version(NIL, &segment);
    let headers = [("X-Client-Id", CLIENT), ("Accept-Encoding", "gzip, deflate, br, zstd")];
    let path = format!("/v1/client/get-child-version/{NIL}");
    let child = replica.connection.request("GET", &path, &headers, b"");
    assert_eq!(child.header("content-encoding"), None);
    assert_eq!(child.body, segment);
}

#[test]
fn chunked_pipelined_and_old_requests() {
    let server = Server::start(&[]);
    let mut connection = server.connect();
    let head = format!(
        "POST /v1/client/add-version/{NIL} HTTP/1.1\r\nHost: test\r\nX-Client-Id: {CLIENT}\r\n\
         Content-Type: {SEGMENT}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let get = format!(
        "GET /v1/client/get-child-version/{NIL} HTTP/1.1\r\nHost: test\r\nX-Client-Id: {CLIENT}\r\n\r\n"
    );
    // A chunked upload, two reads of what it stored and the root, all in one piece.
    let chunks = "3;extension=1\r\nabc\r\n1\r\nd\r\n0\r\nTrailer: ignored\r\n\r\n";
    let root = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    connection.send(format!("{head}{chunks}{get}{get}{root}").as_bytes());
    assert_eq!(connection.response().status, 200);
    assert_eq!(connection.response().body, b"abcd");
    assert_eq!(connection.response().body, b"abcd");
    assert!(connection.response().text().starts_with("TaskChampion"));
    // The same connection in single bytes.
    for byte in get.as_bytes() {
        connection.send(&[*byte]);
    }
    assert_eq!(connection.response().body, b"abcd");

    let mut old = server.connect();
    old.send(get.replace("HTTP/1.1", "HTTP/1.0").as_bytes());
    assert_eq!(old.response().body, b"abcd");
    assert!(old.is_closed());
    let mut closing = server.connect();
    closing.send(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    assert_eq!(closing.response().header("connection"), Some("close"));
    assert!(closing.is_closed());
}

#[test]
fn broken_chunks_are_refused() {
    let server = Server::start(&[]);
    let mut connection = server.connect();
    connection.send(
        format!(
            "POST /v1/client/add-version/{NIL} HTTP/1.1\r\nHost: test\r\nX-Client-Id: {CLIENT}\r\n\
             Content-Type: {SEGMENT}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n"
        )
        .as_bytes(),
    );
    expect_refusal(&connection.response(), 400);
    assert!(connection.is_closed());
    assert_eq!(Replica::new(&server, CLIENT).child_version(NIL).status, 404);
}

/// What a front-end might read as two requests and this server as one, or the other way round.
#[test]
fn smuggling_shapes_are_refused_or_end_the_connection() {
    let server = Server::start(&[]);
    let head = format!(
        "POST /v1/client/add-version/{NIL} HTTP/1.1\r\nHost: test\r\nX-Client-Id: {CLIENT}\r\n\
         Content-Type: {SEGMENT}\r\n"
    );
    let smuggled = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    for lengths in [
        "Content-Length: 5\r\nContent-Length: 33\r\n",
        "Content-Length: 5, 33\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: 5\r\n Transfer-Encoding: chunked\r\n",
    ] {
        let mut connection = server.connect();
        connection.send(format!("{head}{lengths}\r\nhello{smuggled}").as_bytes());
        assert_eq!(connection.response().status, 400, "{lengths}");
        assert!(connection.is_closed(), "{lengths}");
    }
    let mut old = server.connect();
    let chunked = head.replace("HTTP/1.1", "HTTP/1.0");
    old.send(
        format!("{chunked}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{smuggled}").as_bytes(),
    );
    assert_eq!(old.response().status, 400);
    assert!(old.is_closed());
    assert_eq!(Replica::new(&server, CLIENT).child_version(NIL).status, 404, "nothing of it was stored");
    // Both: the chunks count, and what follows is never taken for a request.
    for lengths in
        ["Content-Length: 3\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 3"]
    {
        let mut connection = server.connect();
        let client = new_id();
        let head = head.replace(CLIENT, &client);
        connection.send(format!("{head}{lengths}\r\n\r\n5\r\nhello\r\n0\r\n\r\n{smuggled}").as_bytes());
        assert_eq!(connection.response().status, 200, "{lengths}");
        assert!(connection.is_closed(), "{lengths}");
        assert_eq!(Replica::new(&server, &client).child_version(NIL).body, b"hello");
    }
    // The same length twice is one length, for everyone.
    let mut connection = server.connect();
    let twice = "Content-Length: 5\r\nContent-Length: 5\r\n";
    connection.send(format!("{head}{twice}\r\nhello{smuggled}").as_bytes());
    assert_eq!((connection.response().status, connection.response().status), (200, 200));
}

#[test]
fn heads_are_bounded() {
    let server = Server::start(&[]);
    let long = "x".repeat(20_000);
    assert_eq!(server.request("GET", "/", &[("X-Long", &long)], b"").status, 431);
    let many: Vec<_> = (0..200).map(|_| ("X-Many", "x")).collect();
    assert_eq!(server.request("GET", "/", &many, b"").status, 431);
    let mut connection = server.connect();
    connection.send(b"\x00 this is no HTTP\r\n\r\n");
    assert_eq!(connection.response().status, 400);
    assert!(connection.is_closed());
}

#[test]
fn who_expects_to_be_asked_for_a_body_is_asked_only_where_it_is_wanted() {
    let server = Server::start(&[]);
    let path = format!("/v1/client/add-version/{NIL}");
    let mut connection = server.connect();
    let headers = [("X-Client-Id", CLIENT), ("Content-Type", SEGMENT), ("Expect", "100-continue")];
    connection.send_head("POST", &path, &headers, 7);
    assert_eq!(connection.response().status, 100);
    connection.send(b"segment");
    assert_eq!(connection.response().status, 200);
    // The connection goes on as if nothing had been.
    connection.send_head("POST", &path, &headers, 7);
    assert_eq!(connection.response().status, 100);
    connection.send(b"segment");
    assert_eq!(connection.response().status, 409);

    connection.send_head("POST", &path, &headers, 100 * MIB + 1);
    expect_refusal(&connection.response(), 413);
    assert!(connection.is_closed());
    let mut connection = server.connect();
    connection.send_head("POST", &path, &headers[1..], 7);
    expect_refusal(&connection.response(), 400);
    assert!(connection.is_closed());
}

#[test]
fn a_hundred_mebibytes_are_taken_and_one_byte_more_is_not() {
    let server = Server::start(&[]);
    let mut replica = Replica::new(&server, CLIENT);
    let mut body = vec![0xa5; 100 * MIB];
    body[..4].copy_from_slice(b"head");
    let added = replica.add_version(NIL, &body);
    assert_eq!(added.status, 200);
    let version = added.version();
    assert!(replica.child_version(NIL).body == body);
    assert_eq!(replica.add_snapshot(&version, &body).status, 200);
    assert!(replica.snapshot().body == body);
    body.push(0);
    // A client that sends everything before it reads gets its answer all the same.
    let refused = replica.add_version(&version, &body);
    expect_refusal(&refused, 413);
    assert_eq!(refused.header("connection"), Some("close"));
    assert!(replica.connection.is_closed());
    let mut replica = Replica::new(&server, CLIENT);
    expect_refusal(&send_chunked(&mut replica.connection, &version, &[], &body), 413);
    assert_eq!(Replica::new(&server, CLIENT).child_version(&version).status, 404);
}

/// Sends a chunked AddVersion as [`CLIENT`]; stops where the server hangs up.
fn send_chunked(
    connection: &mut Connection,
    parent: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut head = format!(
        "POST /v1/client/add-version/{parent} HTTP/1.1\r\nHost: test\r\nX-Client-Id: {CLIENT}\r\n\
         Content-Type: {SEGMENT}\r\nTransfer-Encoding: chunked\r\n"
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    connection.send(format!("{head}\r\n").as_bytes());
    for chunk in body.chunks(50_000) {
        connection.send(format!("{:x}\r\n", chunk.len()).as_bytes());
        connection.send(chunk);
        connection.send(b"\r\n");
    }
    connection.send(b"0\r\n\r\n");
    connection.response()
}

#[test]
fn chunked_bodies_of_every_size_arrive_whole() {
    let server = Server::start(&[]);
    let mut connection = server.connect();
    let mut parent = NIL.to_owned();
    for size in [1, 65_536, MIB - 1, MIB, MIB + 1, 5 * MIB] {
        let body: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let version = send_chunked(&mut connection, &parent, &[], &body).version();
        let path = format!("/v1/client/get-child-version/{parent}");
        let child = connection.request("GET", &path, &[("X-Client-Id", CLIENT)], b"");
        assert!(child.body == body, "{size} bytes");
        parent = version;
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// A thousand spaces in brotli.
const BROTLI_SPACES: &[u8] = &[0x1b, 0xe7, 0x03, 0xf8, 0x25, 0x40, 0xa2, 0xb1, 0x40, 0x20, 0x34];

#[test]
fn encoded_bodies_are_stored_decoded() {
    let server = Server::start(&[]);
    let mut replica = Replica::new(&server, CLIENT);
    let mut parent = NIL.to_owned();
    let spaces = vec![b' '; 1000];
    let large: Vec<u8> = (0..3 * MIB).map(|n| (n * n % 253) as u8).collect();
    for (coding, encoded, plain) in [
        ("gzip", gzip(&spaces), &spaces),
        ("x-gzip", gzip(&large), &large),
        ("deflate", zlib(&large), &large),
        ("br", BROTLI_SPACES.to_vec(), &spaces),
        ("zstd", zstd::encode_all(&large[..], 1).expect("zstd encodes"), &large),
        ("identity", large.clone(), &large),
    ] {
        for chunked in [false, true] {
            let added = if chunked {
                send_chunked(&mut replica.connection, &parent, &[("Content-Encoding", coding)], &encoded)
            } else {
                let headers =
                    [("X-Client-Id", CLIENT), ("Content-Type", SEGMENT), ("Content-Encoding", coding)];
                let path = format!("/v1/client/add-version/{parent}");
                replica.connection.request("POST", &path, &headers, &encoded)
            };
            assert_eq!(added.status, 200, "{coding}: {}", added.text());
            assert!(replica.child_version(&parent).body == *plain, "{coding}");
            parent = added.version();
        }
    }
}

#[test]
fn broken_unknown_and_exploding_encodings_are_refused() {
    let server = Server::start(&["--body-limit", "2MiB", "--body-memory", "16MiB"]);
    let send = |coding: &str, body: &[u8]| {
        let headers = [("X-Client-Id", CLIENT), ("Content-Type", SEGMENT), ("Content-Encoding", coding)];
        server.request("POST", &format!("/v1/client/add-version/{NIL}"), &headers, body)
    };
    for coding in ["compress", "gzip, zstd", "gzip, gzip", "aes128gcm"] {
        let refused = send(coding, &gzip(b"segment"));
        expect_refusal(&refused, 415);
        assert_eq!(refused.header("accept-encoding"), Some("gzip, deflate, br, zstd"));
    }
    for coding in ["gzip", "deflate", "br", "zstd"] {
        expect_refusal(&send(coding, b"this is plain"), 400);
    }
    expect_refusal(&send("gzip", &gzip(b"segment")[..20]), 400);
    expect_refusal(&send("gzip", &gzip(b"")), 400);
    let (exact, bomb) = (vec![0; 2 * MIB], vec![0; 2 * MIB + 1]);
    expect_refusal(&send("gzip", &gzip(&bomb)), 413);
    expect_refusal(&send("gzip", &gzip(&vec![0; 300 * MIB])), 413);
    expect_refusal(&send("deflate", &zlib(&bomb)), 413);
    assert_eq!(Replica::new(&server, CLIENT).child_version(NIL).status, 404);
    assert_eq!(send("gzip", &gzip(&exact)).status, 200);
    assert!(Replica::new(&server, CLIENT).child_version(NIL).body == exact);
}

/// Their chunks hold something else than the body, and it must not be stored in its place.
#[test]
fn transfer_codings_other_than_chunked_are_refused_and_nothing_is_stored() {
    let server = Server::start(&[]);
    for codings in ["gzip, chunked", "deflate, chunked", "chunked\r\nTransfer-Encoding: chunked"] {
        let mut connection = server.connect();
        let head = format!(
            "POST /v1/client/add-version/{NIL} HTTP/1.1\r\nHost: test\r\nX-Client-Id: {CLIENT}\r\n\
             Content-Type: {SEGMENT}\r\nTransfer-Encoding: {codings}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        );
        connection.send(head.as_bytes());
        expect_refusal(&connection.response(), 501);
    }
    assert_eq!(Replica::new(&server, CLIENT).child_version(NIL).status, 404);
}

/// One winner, fifteen conflicts that all name it.
fn race(server: &Server, client: &str, parent: &str) {
    let barrier = std::sync::Barrier::new(16);
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..16)
            .map(|n| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut replica = Replica::new(server, client);
                    barrier.wait();
                    replica.add_version(parent, format!("racer {n}").as_bytes())
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().expect("a racer ends well")).collect()
    });
    let winners: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
    assert_eq!(winners.len(), 1, "{answers:?}");
    let winner = winners[0].version();
    for loser in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!((loser.status, loser.header("x-parent-version-id")), (409, Some(&*winner)));
    }
    assert_eq!(Replica::new(server, client).child_version(parent).version(), winner);
}

#[test]
fn of_sixteen_that_add_at_once_one_wins() {
    let server = Server::start(&[]);
    for _ in 0..5 {
        let client = new_id();
        race(&server, &client, NIL);
        let latest = Replica::new(&server, &client).child_version(NIL).version();
        race(&server, &client, &latest);
        race(&server, &new_id(), &new_id());
    }
}

#[test]
fn urgency_grows_with_versions_since_the_snapshot() {
    let server = Server::start(&[]);
    let mut replica = Replica::new(&server, CLIENT);
    let first = replica.add_version(NIL, b"first");
    assert_eq!(first.header("x-snapshot-request"), Some("urgency=high"));
    let mut parent = first.version();
    assert_eq!(replica.add_snapshot(&parent, b"snapshot").status, 200);
    for n in 1..=152 {
        let added = replica.add_version(&parent, b"next");
        let expected = match n {
            ..=100 => None,
            101..=150 => Some("urgency=low"),
            _ => Some("urgency=high"),
        };
        assert_eq!(added.header("x-snapshot-request"), expected, "version {n} after the snapshot");
        parent = added.version();
    }
    // A new snapshot, and it starts again.
    assert_eq!(replica.add_snapshot(&parent, b"snapshot").status, 200);
    assert_eq!(replica.add_version(&parent, b"next").header("x-snapshot-request"), None);
}

#[test]
fn urgency_grows_with_the_age_of_the_snapshot() {
    let server = Server::start(&["--snapshot-days", "10"]);
    let mut replica = Replica::new(&server, CLIENT);
    let mut parent = replica.add_version(NIL, b"first").version();
    assert_eq!(replica.add_snapshot(&parent, b"snapshot").status, 200);
    let day = 86_400;
    for (age, expected) in [
        (9 * day, None),
        (10 * day + 5, Some("urgency=low")),
        (14 * day, Some("urgency=low")),
        (15 * day + 5, Some("urgency=high")),
    ] {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs();
        server.sql(&format!("UPDATE clients SET snapshot_timestamp = {}", now - age));
        let added = replica.add_version(&parent, b"next");
        assert_eq!(added.header("x-snapshot-request"), expected, "{age} seconds old");
        parent = added.version();
    }
}

fn held(replica: &mut Replica) -> Option<(String, Vec<u8>)> {
    let response = replica.snapshot();
    (response.status == 200).then(|| (response.version(), response.body.clone()))
}

#[test]
fn snapshots_are_kept_for_the_last_five_versions_and_never_go_back() {
    let server = Server::start(&[]);
    let mut replica = Replica::new(&server, CLIENT);
    let chain = grow(&mut replica, NIL, 7);
    let mut offer = |version: &str, bytes: &[u8]| {
        expect(&replica.add_snapshot(version, bytes), 200, &[], b"");
        held(&mut replica)
    };
    assert_eq!(offer(NIL, b"nil"), None);
    assert_eq!(offer(&new_id(), b"unknown"), None);
    assert_eq!(offer(&chain[1], b"sixth from the end"), None);
    let third = Some((chain[2].clone(), b"fifth from the end".to_vec()));
    assert_eq!(offer(&chain[2], b"fifth from the end"), third);
    assert_eq!(offer(&chain[2], b"the same again"), third);
    let fifth = Some((chain[4].clone(), b"newer".to_vec()));
    assert_eq!(offer(&chain[4], b"newer"), fifth);
    assert_eq!(offer(&chain[3], b"older than the held one"), fifth);
    assert_eq!(offer(&chain[6], b"latest"), Some((chain[6].clone(), b"latest".to_vec())));
    let line = server.log().wait_for("was dropped");
    assert!(line.contains("711d5cf3") && !line.contains(CLIENT), "{line}");
}

#[test]
fn a_foreign_first_parent_counts_as_one_of_the_five() {
    let server = Server::start(&[]);
    let foreign = new_id();
    let mut replica = Replica::of_new_client(&server);
    let chain = grow(&mut replica, &foreign, 4);
    assert_eq!(replica.child_version(&foreign).version(), chain[0]);
    assert_eq!(replica.add_snapshot(&foreign, b"at the start").status, 200);
    assert_eq!(held(&mut replica), Some((foreign.clone(), b"at the start".to_vec())));
    let mut replica = Replica::of_new_client(&server);
    grow(&mut replica, &foreign, 5);
    assert_eq!(replica.add_snapshot(&foreign, b"too far back").status, 200);
    assert_eq!(held(&mut replica), None);
}

#[test]
fn a_base_path_moves_everything_and_leaves_probes_at_the_root() {
    let server = Server::start(&["--base-path", "/tasks/"]);
    let mut connection = server.connect();
    let headers = [("X-Client-Id", CLIENT), ("Content-Type", SEGMENT)];
    let path = format!("/tasks/v1/client/add-version/{NIL}");
    assert_eq!(connection.request("POST", &path, &headers, b"segment").status, 200);
    let path = format!("/tasks/v1/client/get-child-version/{NIL}");
    assert_eq!(connection.request("GET", &path, &headers, b"").body, b"segment");
    for path in ["/tasks/", "/tasks", "/", "/tasks/healthz", "/tasks/readyz", "/healthz", "/readyz"] {
        assert_eq!(connection.request("GET", path, &[], b"").status, 200, "{path}");
    }
    // What an old replica asks whose URL lacks the last slash.
    expect_refusal(&connection.request("GET", "/v1/client/snapshot", &headers, b""), 400);
    let line = server.log().wait_for("base_path");
    assert!(line.contains("under /,") && line.contains("serves /tasks/"), "{line}");
}

#[test]
fn a_prefix_that_is_not_served_is_a_bad_request_that_the_log_explains() {
    let server = Server::start(&[]);
    for path in [
        "/tasks/v1/client/snapshot".to_owned(),
        "//v1/client/snapshot".to_owned(),
        format!("/a/b/v1/client/get-child-version/{NIL}"),
    ] {
        expect_refusal(&server.request("GET", &path, &[("X-Client-Id", CLIENT)], b""), 400);
    }
    let headers = [("X-Client-Id", CLIENT), ("Content-Type", SEGMENT)];
    let path = format!("/tasks/v1/client/add-version/{NIL}");
    expect_refusal(&server.request("POST", &path, &headers, b"segment"), 400);
    let line = server.log().wait_for("under /tasks/");
    assert!(line.contains("base_path") && line.contains("WARN"), "{line}");
    server.log().wait_for("under /a/b/");
}

#[test]
fn clients_outside_the_list_are_refused_before_their_body_is_read() {
    let other = new_id();
    let server = Server::start(&["--allow-client-id", CLIENT]);
    let mut allowed = Replica::new(&server, CLIENT);
    assert_eq!(allowed.add_version(NIL, b"segment").status, 200);
    expect_refusal(&Replica::new(&server, &other).child_version(NIL), 403);
    expect_refusal(&Replica::new(&server, &other).snapshot(), 403);
    expect_refusal(&Replica::new(&server, &other).add_snapshot(NIL, b"snapshot"), 403);
    expect_refusal(&Replica::new(&server, &other).add_version(NIL, &vec![0; 5 * MIB]), 403);
    let mut connection = server.connect();
    let headers = [("X-Client-Id", &*other), ("Content-Type", SEGMENT), ("Expect", "100-continue")];
    connection.send_head("POST", &format!("/v1/client/add-version/{NIL}"), &headers, 7);
    expect_refusal(&connection.response(), 403);
    let line = server.log().wait_for("list of allowed");
    assert!(line.contains(&other[..8]) && !line.contains(&other), "{line}");
}

#[test]
fn with_creation_off_unknown_clients_are_refused_everywhere_and_known_ones_served() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut before = Server::start_in(dir.path(), &[]);
    assert_eq!(Replica::new(&before, CLIENT).add_version(NIL, b"segment").status, 200);
    before.signal("TERM");
    before.wait();
    let server = Server::start_in(dir.path(), &["--no-create-clients"]);
    assert_eq!(Replica::new(&server, CLIENT).child_version(NIL).status, 200);
    let other = new_id();
    let mut unknown = Replica::new(&server, &other);
    expect_refusal(&unknown.child_version(NIL), 403);
    expect_refusal(&unknown.snapshot(), 403);
    expect_refusal(&unknown.add_version(NIL, b"segment"), 403);
    expect_refusal(&unknown.add_snapshot(NIL, b"snapshot"), 403);
    // A large body is refused before it comes: nobody unknown can make the server hold it.
    let mut connection = server.connect();
    let headers = [("X-Client-Id", &*other), ("Content-Type", SEGMENT)];
    connection.send_head("POST", &format!("/v1/client/add-version/{NIL}"), &headers, 100 * 1024 * 1024);
    expect_refusal(&connection.response(), 403);
    let line = server.log().wait_for("create_clients to true");
    assert!(line.contains(&other[..8]) && !line.contains(&other), "{line}");
}

#[test]
fn the_request_line_tells_what_happened_and_cannot_be_forged() {
    let server = Server::start(&["--log-level", "info"]);
    let mut replica = Replica::new(&server, CLIENT);
    let parent = replica.add_version(NIL, b"segment").version();
    let line = server.log().wait_for("method=POST");
    for part in ["add-version", "status=200", "client=711d5cf3", "bytes=7", "us=", "peer=127.0.0.1:"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    replica.child_version(NIL);
    let line = server.log().wait_for("method=GET");
    assert!(line.contains("bytes=7"), "{line}");
    let mut connection = server.connect();
    connection.request("GET", "/healthz", &[], b"");
    connection.request("GET", "/x%0a%22forged\u{e9}", &[], b"");
    let line = server.log().wait_for("forged");
    assert!(line.contains("path=/x%0a%22forged%C3%A9 "), "{line}");
    let text = server.log().text();
    assert!(!text.contains(CLIENT) && !text.contains("healthz"), "{text}");
    assert!(text.contains(&parent) || !text.contains("get-child-version/01"));
}

#[test]
fn a_unix_socket_serves_like_tcp() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("socket");
    let server = Server::start_in(dir.path(), &["--listen", &format!("unix:{}", socket.display())]);
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("the socket accepts");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("the server takes what it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer arrives");
    assert!(answer.contains("TaskChampion sync server v"), "{answer}");
    server.log().wait_for("peer=unix");
    server.stop();
    assert!(!socket.exists());
}
