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
