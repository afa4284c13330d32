//! Everything at once that strangers may try, bounded in number and time, while real replicas sync and must
//! not notice.

use crate::clients::taskwarrior::{self, Taskwarrior};
use crate::clients::{Account, two_devices_agree, two_devices_agree_at};
use crate::tls::{Authority, ask, hello, secure, shake_hands, write};
use crate::util::{Connection, NIL, Replica, SEGMENT, Server};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

const MIB: usize = 1024 * 1024;

/// What the server may hold: its bodies (256 MiB by default, 16 here), its connections, and itself.
const BOUND: usize = 128 * MIB;

/// Ends the attacks, also where the one who syncs has failed.
struct Peace<'a>(&'a AtomicBool);

impl Drop for Peace<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Sends this on a new connection, and reads whatever comes within a moment.
fn say(address: &str, words: &[u8]) -> Vec<u8> {
    let mut heard = Vec::new();
    let Ok(mut stream) = TcpStream::connect(address) else { return heard };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let _ = stream.set_write_timeout(Some(Duration::from_secs(2)));
    let _ = stream.write_all(words);
    let _ = stream.take(64 * 1024).read_to_end(&mut heard);
    heard
}

/// The most that a server had so far.
pub fn memory(server: &Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

#[test]
fn whatever_strangers_try_replicas_do_not_notice() {
    let server =
        Server::start(&["--connections-limit", "40", "--body-limit", "10MiB", "--body-memory", "16MiB"]);
    let (address, is_over) = (&*server.address, &AtomicBool::new(false));
    let head = |name: &str| {
        format!("POST /v1/client/add-version/{NIL} HTTP/1.1\r\nHost: x\r\nX-Client-Id: {name}\r\n")
    };
    let id = || uuid::Uuid::new_v4().to_string();
    let typed = format!("Content-Type: {SEGMENT}\r\n");
    let upload = |length: usize| format!("{}{typed}Content-Length: {length}\r\n\r\n", head(&id()));
    let owner = store(&server, 8 * MIB);
    let read = &*format!(
        "GET /v1/client/get-child-version/{NIL} HTTP/1.1\r\nHost: x\r\nX-Client-Id: {owner}\r\n\r\n"
    );
    let read = read.as_bytes();
    let often = |work: &(dyn Fn() + Sync)| {
        while !is_over.load(Relaxed) {
            work();
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    std::thread::scope(|scope| {
        let _peace = Peace(is_over);
        // Half-open: they say nothing at all.
        scope.spawn(move || {
            while !is_over.load(Relaxed) {
                let silent: Vec<_> = (0..60).filter_map(|_| TcpStream::connect(address).ok()).collect();
                std::thread::sleep(Duration::from_millis(500));
                drop(silent);
            }
        });
        // Slow writers of heads and of large bodies.
        scope.spawn(move || {
            let mut slow: Vec<TcpStream> = Vec::new();
            for n in 0.. {
                if is_over.load(Relaxed) {
                    break;
                }
                if n % 10 == 0 {
                    slow.truncate(20);
                    for beginning in [upload(10 * MIB), "GET / HT".to_owned()] {
                        let Ok(mut stream) = TcpStream::connect(address) else { continue };
                        let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
                        let _ = stream.write_all(beginning.as_bytes());
                        slow.insert(0, stream);
                    }
                }
                slow.iter_mut().for_each(|stream| drop(stream.write_all(b"x")));
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        // Slow readers of a large body.
        scope.spawn(move || {
            while !is_over.load(Relaxed) {
                let readers = (0..10).filter_map(|_| TcpStream::connect(address).ok());
                let deaf: Vec<_> =
                    readers.filter_map(|mut s| s.write_all(read).is_ok().then_some(s)).collect();
                std::thread::sleep(Duration::from_secs(1));
                drop(deaf);
            }
        });
        // Floods of headers, oversized and malformed requests, and those that two readers read differently.
        let shapes: Vec<Vec<u8>> = vec![
            [b"GET / HTTP/1.1\r\nHost: x\r\n".to_vec(), b"X: y\r\n".repeat(5000), b"\r\n".to_vec()].concat(),
            [b"GET /".to_vec(), vec![b'a'; 100_000], b" HTTP/1.1\r\n\r\n".to_vec()].concat(),
            format!("{}{typed}Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", head(&id()))
                .into_bytes(),
            format!("{}{typed}Content-Length: -1\r\n\r\nx", head(&id())).into_bytes(),
            format!("{}{typed}Content-Length: 99999999999\r\n\r\nx", head(&id())).into_bytes(),
            format!("{}{typed}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", head(&id()))
                .into_bytes(),
            format!("{}{typed}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", head(&id())).into_bytes(),
            b"GET / HTTP/1.1\nHost: x\n X: folded\n\n\0\0\0".to_vec(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            b"PROXY TCP4 6.6.6.6 6.6.6.6 1 1\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            b"GET /%0d%0a2026-01-01T00:00:00.000Z%20[ERROR]%20forged HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            b"GET /\"%20forged=\"\xff HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1\" forged=\"2\r\n\r\n"
                .to_vec(),
        ];
        scope.spawn(move || often(&|| shapes.iter().for_each(|shape| drop(say(address, shape)))));
        for _ in 0..2 {
            two_devices_agree_at(&server.url());
        }
    });
    assert_unharmed(&server);
    assert_eq!(Connection::open(address).request("GET", "/readyz", &[], b"").status, 200);
}

/// A client whose first version has so many bytes.
fn store(server: &Server, length: usize) -> String {
    let mut owner = Replica::of_new_client(server);
    assert_eq!(owner.add_version(NIL, &vec![7; length]).status, 200);
    owner.client
}

/// Nothing but the server's own words is in its log, and its memory stayed within bounds.
fn assert_unharmed(server: &Server) {
    let held = memory(server);
    assert!(held < BOUND, "the server held {} MiB", held / MIB);
    for line in server.log().text().lines() {
        let (time, rest) = line.split_once(' ').unwrap_or_else(|| panic!("no line of the server: {line:?}"));
        assert!(time.ends_with('Z') && !time.starts_with("2026-01-01"), "{line:?}");
        assert!(["[INFO]", "[WARN]"].iter().any(|level| rest.starts_with(level)), "{line:?}");
        assert!(!rest.contains(" forged=") && line.is_ascii(), "{line:?}");
    }
}

#[test]
fn whatever_strangers_try_at_the_secure_door_taskwarrior_does_not_notice() {
    let Some(task) = taskwarrior::program() else { return };
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    write(&authority.path("root.pem"), &authority.issuer.pem(), 0o644);
    let limits = ["--connections-limit", "40", "--body-limit", "10MiB", "--body-memory", "16MiB"];
    let server = authority.start(&limits);
    let (address, is_over, client) =
        (&*server.address, &AtomicBool::new(false), &Arc::new(authority.client()));
    let owner = uuid::Uuid::new_v4();
    let large = "x".repeat(8 * MIB);
    let headers = format!("X-Client-Id: {owner}\r\nContent-Type: {SEGMENT}\r\n");
    let stored = ask(
        &mut secure(&server, authority.client()),
        &format!("POST /v1/client/add-version/{NIL}"),
        &headers,
        &large,
    );
    assert_eq!(stored.expect("an answer").0, 200);
    // So many at once, again and again, each of which goes so far and no farther.
    let crowd = |count: usize, go: &(dyn Fn() -> Option<Stopped> + Sync)| {
        while !is_over.load(Relaxed) {
            let held: Vec<_> = (0..count).filter_map(|_| go()).collect();
            std::thread::sleep(Duration::from_millis(500));
            drop(held);
        }
    };
    let half = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.write_all(bytes).ok().map(|()| Box::new(stream) as Stopped)
    };
    let whole = |words: &[u8]| {
        let mut stream = shake_hands(address, client).ok()?;
        stream.write_all(words).ok().map(|()| Box::new(stream) as Stopped)
    };
    let read =
        format!("GET /v1/client/get-child-version/{NIL} HTTP/1.1\r\nHost: x\r\nX-Client-Id: {owner}\r\n\r\n");
    let upload = format!(
        "POST /v1/client/add-version/{NIL} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n{}",
        10 * MIB,
        "x".repeat(100_000)
    );
    let (crowd, half, whole, read, upload) = (&crowd, &half, &whole, &read, &upload);
    let shapes: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        [&b"\x16\x03\x01\xff\xff"[..], &[1; 70_000]].concat(),
        [&b"\x16\x03\x01\x00\x04\x01\xff\xff\xff"[..], &[0; 5000]].concat(),
        b"\x15\x03\x03\x00\x02\x01\x00".repeat(5000),
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10".to_vec(),
        [hello(3), b"\x17\x03\x03\x00\x10forged\n[ERROR] xxxx".to_vec()].concat(),
        hello(1),
    ];
    std::thread::scope(|scope| {
        let _peace = Peace(is_over);
        scope.spawn(move || crowd(60, &|| half(&[])));
        scope.spawn(move || crowd(20, &|| half(&hello(3)[..20])));
        scope.spawn(move || crowd(10, &|| whole(b"")));
        scope.spawn(move || crowd(10, &|| whole(b"GET /\n[ERROR] forged")));
        scope.spawn(move || crowd(10, &|| whole(read.as_bytes())));
        scope.spawn(move || crowd(5, &|| whole(upload.as_bytes())));
        scope.spawn(move || {
            while !is_over.load(Relaxed) {
                shapes.iter().for_each(|shape| drop(say(address, shape)));
            }
        });
        let port = address.rsplit(':').next().expect("a port");
        let url = format!("https://localhost:{port}/");
        let account = Account { url, client: uuid::Uuid::new_v4(), secret: "correct horse".to_owned() };
        let device = || Taskwarrior::new(&task, &account).trusting(&authority.path("root.pem"));
        two_devices_agree(&mut device(), &mut device());
    });
    assert_unharmed(&server);
    let answer = ask(&mut secure(&server, authority.client()), "GET /readyz", "", "");
    assert_eq!(answer.expect("an answer").0, 200);
}

/// A connection on which nothing more is said.
type Stopped = Box<dyn Read>;

#[test]
fn lengths_that_two_readers_read_differently_are_refused() {
    let server = Server::start(&[]);
    let client = uuid::Uuid::new_v4().to_string();
    let head = format!(
        "POST /v1/client/add-version/{NIL} HTTP/1.1\r\nHost: x\r\nX-Client-Id: {client}\r\nContent-Type: {SEGMENT}\r\n"
    );
    for lengths in ["Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5, 6", "Content-Length: +5"] {
        let answer = say(&server.address, format!("{head}{lengths}\r\n\r\nabcdef").as_bytes());
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{lengths}: {}", String::from_utf8_lossy(&answer));
    }
    let path = format!("/v1/client/get-child-version/{NIL}");
    let answer = server.request("GET", &path, &[("X-Client-Id", &client)], b"");
    assert_eq!(answer.status, 404, "nothing was stored");
}
