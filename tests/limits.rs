//! Deadlines, the memory of bodies in flight, and what slow and greedy peers can do to others.

use crate::util::{Connection, NIL, PATIENCE, Replica, Response, SEGMENT, Server};
use std::io::{ErrorKind, Read, Write};
use std::thread::sleep;
use std::time::{Duration, Instant};

const CLIENT: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";
const MIB: usize = 1024 * 1024;

/// An answer that came within this time was not held up by anything.
const PROMPT: Duration = Duration::from_secs(3);

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Announces a body of `length` bytes of a new client.
fn announce(server: &Server, length: usize) -> Connection {
    let mut connection = server.connect();
    let headers = [("X-Client-Id", &*new_id()), ("Content-Type", SEGMENT)];
    connection.send_head("POST", &format!("/v1/client/add-version/{NIL}"), &headers, length);
    connection
}

fn begin_chunked(server: &Server) -> Connection {
    let mut connection = server.connect();
    let head = format!(
        "POST /v1/client/add-version/{NIL} HTTP/1.1\r\nHost: test\r\nX-Client-Id: {}\r\n\
         Content-Type: {SEGMENT}\r\nTransfer-Encoding: chunked\r\n\r\n",
        new_id()
    );
    connection.send(head.as_bytes());
    connection
}

fn send_chunk(connection: &mut Connection, bytes: &[u8]) {
    connection.send(format!("{:x}\r\n", bytes.len()).as_bytes());
    connection.send(bytes);
    connection.send(b"\r\n");
}

/// Asks for the first version of a client and leaves the answer unread.
fn ask(server: &Server, client: &str) -> Connection {
    let mut connection = server.connect();
    let path = format!("/v1/client/get-child-version/{NIL}");
    connection.send_head("GET", &path, &[("X-Client-Id", client)], 0);
    connection
}

fn timed(work: impl FnOnce() -> Response) -> (u16, Duration) {
    let start = Instant::now();
    let response = work();
    (response.status, start.elapsed())
}

#[test]
fn tricklers_and_slow_readers_hold_up_nobody_else() {
    let server = Server::start(&[]);
    let mut owner = Replica::new(&server, CLIENT);
    assert_eq!(owner.add_version(NIL, &vec![1; 60 * MIB]).status, 200);
    let mut senders: Vec<_> = (0..3).map(|_| announce(&server, 100 * MIB)).collect();
    let mut readers: Vec<_> = (0..3).map(|_| ask(&server, CLIENT)).collect();
    let mut other = Replica::of_new_client(&server);
    let mut parent = NIL.to_owned();
    for round in 0..30 {
        for sender in &mut senders {
            // Those that wait for memory are refused some day; nobody minds here.
            let _ = sender.stream.write_all(&[round]);
        }
        for reader in &mut readers {
            reader.stream.set_nonblocking(true).expect("an option can be set");
            let _ = reader.stream.read(&mut [0; 1024]);
        }
        let (status, took) = timed(|| {
            let added = other.add_version(&parent, b"segment");
            parent = added.version();
            added
        });
        assert!(status == 200 && took < PROMPT, "add: {status} after {took:?}");
        let (status, took) = timed(|| other.child_version(&parent));
        assert!(status == 404 && took < PROMPT, "poll: {status} after {took:?}");
        sleep(Duration::from_millis(20));
    }
}

const TIGHT: [&str; 4] = ["--body-limit", "10MiB", "--body-memory", "16MiB"];

#[test]
fn without_memory_a_request_waits_and_is_then_refused_before_its_body_is_read() {
    let server = Server::start(&[&TIGHT[..], &["--body-wait", "1s"]].concat());
    let mut first = announce(&server, 10 * MIB);
    first.send(&[0; MIB]);
    sleep(Duration::from_millis(300));
    let start = Instant::now();
    let mut second = announce(&server, 10 * MIB);
    let refused = second.response();
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    // A small body has a share of its own.
    let (status, took) = timed(|| Replica::of_new_client(&server).add_version(NIL, &vec![0; MIB]));
    assert!(status == 200 && took < PROMPT, "{status} after {took:?}");
    first.send(&vec![0; 9 * MIB]);
    assert_eq!(first.response().status, 200);
    assert_eq!(Replica::of_new_client(&server).add_version(NIL, &vec![0; 10 * MIB]).status, 200);
    server.log().wait_for("body.memory");
}

#[test]
fn who_waits_for_memory_gets_it_when_it_becomes_free() {
    let server = Server::start(&TIGHT);
    let mut first = announce(&server, 10 * MIB);
    first.send(&[0; MIB]);
    sleep(Duration::from_millis(300));
    let second = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Replica::of_new_client(&server).add_version(NIL, &vec![0; 10 * MIB]));
        sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        first.send(&vec![0; 9 * MIB]);
        assert_eq!(first.response().status, 200);
        waiting.join().expect("the upload ends well")
    });
    assert_eq!(second.status, 200);
}

#[test]
fn a_lost_connection_gives_its_memory_back() {
    let server = Server::start(&TIGHT);
    for _ in 0..5 {
        let mut lost = announce(&server, 10 * MIB);
        lost.send(&[0; MIB]);
    }
    let (status, took) = timed(|| Replica::of_new_client(&server).add_version(NIL, &vec![0; 10 * MIB]));
    assert!(status == 200 && took < Duration::from_secs(10), "{status} after {took:?}");
}

#[test]
fn answers_wait_for_memory_too_and_hold_it_until_they_are_read() {
    let server = Server::start(&[&TIGHT[..], &["--body-wait", "1s"]].concat());
    let mut owner = Replica::new(&server, CLIENT);
    assert_eq!(owner.add_version(NIL, &vec![7; 10 * MIB]).status, 200);
    // The kernel takes some megabytes off the server's hands, not all ten.
    let mut unread = ask(&server, CLIENT);
    sleep(Duration::from_millis(500));
    let refused = owner.child_version(NIL);
    assert_eq!(refused.status, 503, "{:?}", refused.headers);
    assert!(unread.response().body == vec![7; 10 * MIB]);
    assert!(owner.child_version(NIL).body == vec![7; 10 * MIB]);
}

#[test]
fn chunked_bodies_grow_side_by_side_and_all_get_there() {
    let server = Server::start(&TIGHT);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut connection = begin_chunked(&server);
                for _ in 0..9 {
                    send_chunk(&mut connection, &[3; MIB]);
                    sleep(Duration::from_millis(20));
                }
                connection.send(b"0\r\n\r\n");
                assert_eq!(connection.response().status, 200);
            });
        }
    });
}

#[test]
fn connections_beyond_the_limit_wait_until_one_ends() {
    let server = Server::start(&["--connections-limit", "2"]);
    let get = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    let mut open = [server.connect(), server.connect()];
    for connection in &mut open {
        connection.send(get);
        assert_eq!(connection.response().status, 200);
    }
    let mut waiting = server.connect();
    waiting.send(get);
    waiting.stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout can be set");
    let error = waiting.stream.read(&mut [0]).expect_err("nobody answers yet");
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    drop(open);
    waiting.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    assert_eq!(waiting.response().status, 200);
}

#[test]
fn a_connection_that_idles_for_some_seconds_is_kept() {
    let server = Server::start(&["--header-timeout", "1s", "--body-timeout", "1s"]);
    let mut replica = Replica::of_new_client(&server);
    let version = replica.add_version(NIL, b"segment").version();
    sleep(Duration::from_secs(7));
    assert_eq!(replica.child_version(&version).status, 404);
}

#[test]
fn an_idle_connection_ends_in_silence_at_its_deadline() {
    let server = Server::start(&["--idle-timeout", "1s"]);
    let mut fresh = server.connect();
    let mut used = server.connect();
    used.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    used.response();
    let start = Instant::now();
    assert!(fresh.is_closed() && used.is_closed());
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
}

#[test]
fn a_head_that_is_not_complete_in_time_is_answered_408() {
    let server = Server::start(&["--header-timeout", "1s"]);
    let start = Instant::now();
    let mut fresh = server.connect();
    fresh.send(b"GET / HTTP/1.1\r\nHost:");
    let mut used = server.connect();
    used.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(used.response().status, 200);
    // A trickle does not help.
    for byte in b"GET / HT" {
        used.send(&[*byte]);
        sleep(Duration::from_millis(50));
    }
    for connection in [&mut fresh, &mut used] {
        let answer = connection.response();
        assert_eq!(answer.status, 408);
        assert_eq!(answer.header("cache-control"), Some("no-store, max-age=0"));
        assert!(connection.is_closed());
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_body_that_stalls_or_trickles_is_answered_408() {
    let server = Server::start(&["--body-timeout", "1s"]);
    let mut stalled = announce(&server, MIB);
    stalled.send(&[0; 10_000]);
    let mut trickling = begin_chunked(&server);
    let start = Instant::now();
    let mut answer = [0; 1];
    trickling.stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
    // As long as there is no answer, a byte now and then.
    while trickling.stream.peek(&mut answer).is_err() {
        send_chunk(&mut trickling, b"x");
        assert!(start.elapsed() < PATIENCE, "a trickle is never cut off");
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    for connection in [&mut stalled, &mut trickling] {
        let answer = connection.response();
        assert_eq!(answer.status, 408, "{answer:?}");
        assert_eq!(answer.header("connection"), Some("close"));
    }
}

#[test]
fn a_slow_body_that_keeps_moving_is_taken() {
    let server = Server::start(&["--body-timeout", "1s"]);
    let mut slow = announce(&server, 30_000);
    for _ in 0..15 {
        slow.send(&[5; 2000]);
        sleep(Duration::from_millis(200));
    }
    assert_eq!(slow.response().status, 200);
}

#[test]
fn a_reader_that_takes_nothing_is_cut_off_and_a_slow_one_is_not() {
    let server = Server::start(&["--body-timeout", "1s"]);
    let mut owner = Replica::new(&server, CLIENT);
    assert_eq!(owner.add_version(NIL, &vec![7; 40 * MIB]).status, 200);
    let mut stuck = ask(&server, CLIENT);
    let mut slow = ask(&server, CLIENT);
    let mut received = 0;
    let mut buffer = vec![0; 2 * MIB];
    // Twenty breaks, none of them as long as the deadline.
    for _ in 0..20 {
        slow.stream.read_exact(&mut buffer).expect("more arrives");
        received += buffer.len();
        sleep(Duration::from_millis(200));
    }
    let rest = slow.stream.set_read_timeout(Some(Duration::from_secs(2)));
    rest.expect("a timeout can be set");
    while let Ok(bytes @ 1..) = slow.stream.read(&mut buffer) {
        received += bytes;
    }
    assert!(received > 40 * MIB, "the slow reader got {received} bytes");
    let mut taken = 0;
    while let Ok(bytes @ 1..) = stuck.stream.read(&mut buffer) {
        taken += bytes;
    }
    assert!(taken < 40 * MIB, "the stuck reader got everything");
}

#[test]
fn an_upload_in_flight_at_a_stop_is_answered_and_idle_connections_end_at_once() {
    let mut server = Server::start(&[]);
    let mut idle = server.connect();
    idle.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(idle.response().status, 200);
    let mut fresh = server.connect();
    let mut upload = announce(&server, 2 * MIB);
    upload.send(&[1; MIB]);
    sleep(Duration::from_millis(300));
    server.signal("TERM");
    let start = Instant::now();
    assert!(idle.is_closed() && fresh.is_closed());
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    upload.send(&[1; MIB]);
    let answer = upload.response();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(upload.is_closed());
    assert!(server.wait().success());
}

/// Long enough for a test that would fail if the server waited for it.
const NEVER: &str = "10m";

#[test]
fn silent_connections_make_room_for_those_who_ask() {
    let server =
        Server::start(&["--connections-limit", "20", "--idle-timeout", NEVER, "--header-timeout", NEVER]);
    let silent: Vec<_> = (0..60).map(|_| server.connect()).collect();
    let mut replica = Replica::of_new_client(&server);
    assert_eq!(replica.add_version(NIL, b"segment").status, 200);
    server.log().wait_for("all 20 connections are in use");
    drop(silent);

    // Nor do those who begin a head and leave it at that, or were answered and ask nothing more.
    let mut begun: Vec<_> = (0..30).map(|_| server.connect()).collect();
    begun.iter_mut().for_each(|begun| begun.send(b"GET / HT"));
    assert_eq!(Replica::of_new_client(&server).add_version(NIL, b"segment").status, 200);
    drop(begun);
    let idle: Vec<_> = (0..30)
        .map(|_| {
            let mut idle = server.connect();
            idle.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
            assert_eq!(idle.response().status, 200);
            idle
        })
        .collect();
    assert_eq!(Replica::of_new_client(&server).add_version(NIL, b"segment").status, 200);
    drop(idle);
}

#[test]
fn bodies_that_hardly_move_make_room_too() {
    let server = Server::start(&["--connections-limit", "4"]);
    let mut slow: Vec<_> = (0..4).map(|_| announce(&server, MIB)).collect();
    let mut waiting = server.connect();
    waiting.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    waiting.stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout can be set");
    let deadline = Instant::now() + PATIENCE;
    while waiting.stream.peek(&mut [0]).is_err() {
        // Twice as much as is always enough.
        slow.iter_mut().for_each(|slow| drop(slow.stream.write_all(&[0; 1024])));
        assert!(Instant::now() < deadline, "they keep everyone else out");
    }
    assert_eq!(waiting.response().status, 200);
    server.log().wait_for("status=408");
}

#[test]
fn who_has_asked_and_closed_that_direction_is_answered() {
    let server = Server::start(&[]);
    let mut replica = Replica::of_new_client(&server);
    let body = vec![7; 5 * MIB];
    let path = format!("/v1/client/add-version/{NIL}");
    let headers = [("X-Client-Id", &*replica.client), ("Content-Type", SEGMENT)];
    let half_close = |connection: &mut Connection| {
        connection.stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    };
    replica.connection.send_head("POST", &path, &headers, body.len());
    replica.connection.send(&body);
    half_close(&mut replica.connection);
    assert_eq!(replica.connection.response().status, 200);
    assert!(replica.connection.is_closed());
    let mut reader = ask(&server, &replica.client);
    half_close(&mut reader);
    assert!(reader.response().body == body);
    assert!(reader.is_closed());
}

#[test]
fn two_who_trickle_do_not_hold_the_memory_while_someone_waits_for_it() {
    let server = Server::start(&TIGHT);
    let mut slow = announce(&server, 10 * MIB);
    let start = Instant::now();
    let upload = std::thread::scope(|scope| {
        let mut upload = None;
        // Ten times what is always enough, and after a minute still far from the end.
        while upload.as_ref().is_none_or(|upload: &std::thread::ScopedJoinHandle<_>| !upload.is_finished()) {
            let _ = slow.stream.write_all(&[0; 1024]);
            sleep(Duration::from_millis(100));
            if upload.is_none() && start.elapsed() > Duration::from_secs(3) {
                let add = || Replica::of_new_client(&server).add_version(NIL, &vec![0; 10 * MIB]).status;
                upload = Some(scope.spawn(add));
            }
            assert!(start.elapsed() < PATIENCE, "one who trickles holds the memory");
        }
        upload.expect("it was begun").join().expect("it ends well")
    });
    assert_eq!(upload, 200);
    assert_eq!(slow.response().status, 408);
}

/// A server behind a proxy, which is us.
fn behind_us(args: &[&str]) -> Server {
    Server::start(&[&["--trusted-proxies", "127.0.0.1"], args].concat())
}

fn root_for(connection: &mut Connection, address: &str) -> Response {
    connection.request("GET", "/", &[("X-Forwarded-For", address)], b"")
}

#[test]
fn one_address_asks_no_more_than_its_share_and_others_do_not_notice() {
    // One each ten seconds.
    let server = behind_us(&["--address-requests", "6", "--address-exempt", "198.51.100.0/24"]);
    let (mut first, mut second) = (server.connect(), server.connect());
    let start = Instant::now();
    for _ in 0..6 {
        assert_eq!(root_for(&mut first, "203.0.113.7").status, 200);
    }
    first.send_head("GET", "/", &[("X-Forwarded-For", "203.0.113.7")], 0);
    let line = server.log().wait_for("more than 6 requests a minute");
    assert!(line.contains("203.0.113.7 ") && line.contains("address.requests"), "{line}");
    let refused = root_for(&mut second, "203.0.113.7");
    assert_eq!(refused.status, 429);
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    for n in 0..20 {
        assert_eq!(root_for(&mut second, &format!("203.0.113.{}", 20 + n)).status, 200);
        assert_eq!(root_for(&mut second, "198.51.100.9").status, 200);
        assert_eq!(second.request("GET", "/", &[], b"").status, 200, "the proxy itself");
    }
    assert_eq!(first.response().status, 200, "who waits gets its turn");
    assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn one_address_has_no_more_connections_than_its_share() {
    let server = behind_us(&["--address-connections", "2", "--real-address", "proxy-protocol"]);
    let connect = |address: &str| {
        let mut connection = server.connect();
        connection.send(format!("PROXY TCP4 {address} 192.0.2.1 1 1\r\n").as_bytes());
        connection
    };
    let mut open: Vec<_> = (0..2).map(|_| connect("203.0.113.7")).collect();
    for connection in &mut open {
        assert_eq!(connection.request("GET", "/", &[], b"").status, 200);
    }
    let mut third = connect("203.0.113.7");
    let refused = third.response();
    assert_eq!(refused.status, 429);
    assert!(refused.header("retry-after").is_some() && refused.text().contains("connections"), "{refused:?}");
    assert!(third.is_closed());
    let line = server.log().wait_for("has 2 connections open");
    assert!(line.contains("203.0.113.7 ") && line.contains("address.connections"), "{line}");
    for n in 0..9 {
        assert_eq!(connect(&format!("203.0.113.{}", 20 + n)).request("GET", "/", &[], b"").status, 200);
    }
    drop(open);
    let deadline = Instant::now() + PATIENCE;
    while connect("203.0.113.7").try_request("GET", "/", &[], b"").is_ok_and(|answer| answer.status == 429) {
        assert!(Instant::now() < deadline, "those who left still count");
    }
}

#[test]
fn what_was_no_request_has_a_line_too() {
    let server = Server::start(&["--header-timeout", "1s"]);
    for (bytes, status) in [
        (&b"nonsense\r\n\r\n"[..], 400),
        (&[&b"GET / HTTP/1.1\r\nHost: x\r\nX: "[..], &[b'x'; 20_000][..], b"\r\n\r\n"].concat(), 431),
        (b"GET / HTTP/1.1\r\nHost:", 408),
    ] {
        let mut connection = server.connect();
        let _ = connection.stream.write_all(bytes);
        assert_eq!(connection.response().status, status);
        let line = server.log().wait_for(&format!("method=- path=- status={status} "));
        assert!(line.contains("peer=127.0.0.1:"), "{line}");
    }
}

#[test]
fn without_files_for_connections_the_server_goes_on() {
    let server = Server::start(&["--idle-timeout", NEVER]);
    let pid = server.pid().to_string();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").count();
    let limit = format!("--nofile={0}:{0}", open + 20);
    let set = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    assert!(set.expect("prlimit runs").success());
    let mut silent: Vec<_> = (0..60).map(|_| server.connect()).collect();
    server.log().wait_for("cannot accept connections");
    let mut replica = Replica::of_new_client(&server);
    let mut parent = NIL.to_owned();
    for _ in 0..5 {
        let added = replica.add_version(&parent, b"segment");
        assert_eq!(added.status, 200);
        parent = added.version();
        silent.push(server.connect());
    }
}
