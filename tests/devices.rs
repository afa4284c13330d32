//! Devices with credentials of their own: whom they let in, whom they keep out, and what strangers
//! learn.

use crate::admin::{admin, done, golden, json, keys, place, refused, statuses, stderr, stdout, text};
use crate::util::{NIL, PATIENCE, Replica, SEGMENT, SNAPSHOT, Server, program, skip_fault};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ID: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";
const BARE: &str = "22222222-0cf0-4eb8-9eca-6f7f220638c0";
const UNKNOWN: &str = "33333333-0cf0-4eb8-9eca-6f7f220638c0";
/// A version that nobody has.
const VERSION: &str = "e5a4ab60-4f14-4f8e-9f3a-6d3ff6f4e9c1";
const CLOSED: &[&str] = &["--no-create-clients", "--require-device"];

fn basic(name: &str, token: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{token}")))
}

/// Adds a device and gives what it sends.
fn add_device(dir: &Path, client: &str, name: &str) -> String {
    basic(name, text(&json(dir, &["add-device", client, name]), "token"))
}

/// The four transactions, sent by hand: the whole answers, as bytes where they are to be compared.
struct Sender<'a> {
    server: &'a Server,
    client: &'a str,
    authorization: Option<&'a str>,
}

impl Sender<'_> {
    fn head(&self, method: &str, path: &str, kind: &str, length: Option<usize>) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nX-Client-Id: {}\r\n", self.client);
        head.push_str(&format!("Content-Type: {kind}\r\n"));
        if let Some(value) = self.authorization {
            head.push_str(&format!("Authorization: {value}\r\n"));
        }
        if let Some(length) = length {
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        head + "\r\n"
    }

    /// What comes back for each of the four transactions, byte for byte but for the date, and whether
    /// the connection stays open. A large body is only announced.
    fn raw(&self, body: usize) -> Vec<(String, bool)> {
        let read = format!("/v1/client/get-child-version/{NIL}");
        let (add, snapshot) =
            (format!("/v1/client/add-version/{NIL}"), format!("/v1/client/add-snapshot/{VERSION}"));
        let sent = vec![b'x'; if body <= 1 << 20 { body } else { 0 }];
        [
            self.exchange(&self.head("GET", &read, SEGMENT, None), b""),
            self.exchange(&self.head("GET", "/v1/client/snapshot", SNAPSHOT, None), b""),
            self.exchange(&self.head("POST", &add, SEGMENT, Some(body)), &sent),
            self.exchange(&self.head("POST", &snapshot, SNAPSHOT, Some(body)), &sent),
        ]
        .into()
    }

    fn exchange(&self, head: &str, body: &[u8]) -> (String, bool) {
        let mut connection = self.server.connect();
        connection.send(head.as_bytes());
        connection.send(body);
        let (mut raw, answer) = connection.raw_response();
        let date = answer.header("date").expect("an answer has a date");
        raw = raw.replace(date, "DATE");
        let is_kept = answer.header("connection") != Some("close");
        if is_kept {
            // It really is: another request is answered on it.
            assert_eq!(connection.request("GET", "/healthz", &[], b"").status, 200);
        } else {
            connection.stream.shutdown(std::net::Shutdown::Write).expect("the socket is open");
            assert!(connection.is_closed());
        }
        (raw, is_kept)
    }

    fn statuses(&self) -> [u16; 4] {
        let ask = |method, path: &str, kind, body: &[u8]| {
            let mut headers = vec![("X-Client-Id", self.client), ("Content-Type", kind)];
            headers.extend(self.authorization.map(|value| ("Authorization", value)));
            self.server.request(method, path, &headers, body).status
        };
        [
            ask("GET", &format!("/v1/client/get-child-version/{NIL}"), SEGMENT, b""),
            ask("GET", "/v1/client/snapshot", SNAPSHOT, b""),
            ask("POST", &format!("/v1/client/add-version/{VERSION}"), SEGMENT, b"x"),
            ask("POST", &format!("/v1/client/add-snapshot/{VERSION}"), SNAPSHOT, b"x"),
        ]
    }
}

/// The status of each of the four transactions with this credential.
fn with(server: &Server, client: &str, authorization: Option<&str>) -> [u16; 4] {
    Sender { server, client, authorization }.statuses()
}

/// A client with one version.
fn client_with_version(server: &Server, client: &str) -> String {
    Replica::new(server, client).add_version(NIL, b"one").version()
}

#[test]
fn what_people_see() {
    let dir = place();
    let url = ["--public-url", "https://tasks.example.org"];
    done(dir.path(), &["add-client", "--id", ID, "--label", "alice"]);
    golden("list-devices-none", &done(dir.path(), &["list-devices", "alice"]));
    golden("add-device", &done(dir.path(), &[&["add-device", "alice", "laptop"][..], &url].concat()));
    let drawn = done(dir.path(), &["add-device", "alice", "phone", "--qr"]);
    assert!(drawn.contains("▄▄▄▄▄") && drawn.contains("phone:"), "{drawn}");
    golden("list-devices", &done(dir.path(), &["list-devices", "alice"]));
    golden("show-client-devices", &done(dir.path(), &["show-client", "alice"]));
    golden("remove-device", &done(dir.path(), &["remove-device", "alice", "phone"]));
    let last = refused(dir.path(), &["remove-device", "alice", "laptop"], 64);
    assert!(last.contains("is the last device") && last.contains("--yes"), "{last}");
    golden("remove-device-last", &done(dir.path(), &["remove-device", "alice", "laptop", "--yes"]));
    let listed: Value = json(dir.path(), &["audit", "alice"]);
    let done_to: Vec<_> = listed.as_array().expect("a list").iter().skip(1).collect();
    let words: Vec<_> = done_to.iter().map(|event| (text(event, "action"), text(event, "detail"))).collect();
    let expected = [
        ("add-device", "laptop"),
        ("add-device", "phone"),
        ("remove-device", "phone"),
        ("remove-device", "laptop"),
    ];
    assert_eq!(words, expected);
}

#[test]
fn programs_get_the_documented_keys() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    let url = ["--public-url", "https://tasks.example.org/t"];
    let added = json(dir.path(), &[&["add-device", ID, "laptop"][..], &url].concat());
    assert_eq!(keys(&added), ["name", "server_url", "token"]);
    let token = text(&added, "token");
    assert_eq!(added["server_url"], format!("https://laptop:{token}@tasks.example.org/t/"));
    let listed = json(dir.path(), &["list-devices", ID]);
    assert_eq!(keys(&listed[0]), ["created", "last_sync", "name"]);
    assert_eq!(json(dir.path(), &["list-clients"])[0]["devices"], 1);
    assert_eq!(json(dir.path(), &["remove-device", ID, "laptop", "--yes"])["name"], "laptop");
    assert_eq!(json(dir.path(), &["list-devices", ID]), Value::Array(Vec::new()));
    for file in std::fs::read_dir(dir.path()).expect("a directory") {
        let path = file.expect("an entry").path();
        let stored = std::fs::read(&path).unwrap_or_default();
        let holds = stored.windows(token.len()).any(|window| window == token.as_bytes());
        assert!(!holds, "{} keeps the token", path.display());
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_nothing_is_changed() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    done(dir.path(), &["add-device", ID, "laptop"]);
    for name in ["", "two words", "l\u{e4}ptop", "a/b", "a@b", "a:b", "a%20b", &"x".repeat(65)] {
        let told = refused(dir.path(), &["add-device", ID, name], 64);
        assert!(told.contains("letters, digits"), "{told}");
    }
    let told = refused(dir.path(), &["add-device", ID, "laptop"], 73);
    assert!(told.contains("has a device \"laptop\"") && told.contains("remove-device"), "{told}");
    refused(dir.path(), &["add-device", UNKNOWN, "laptop"], 67);
    refused(dir.path(), &["list-devices", UNKNOWN], 67);
    let told = refused(dir.path(), &["remove-device", ID, "phone"], 67);
    assert!(told.contains("but: laptop"), "{told}");
    refused(dir.path(), &["add-device", ID], 64);
    assert_eq!(json(dir.path(), &["list-devices", ID]).as_array().map(Vec::len), Some(1));
    assert_eq!(json(dir.path(), &["audit"]).as_array().map(Vec::len), Some(2));
}

#[test]
fn the_operator_is_warned_of_what_the_token_would_meet() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    let plain = admin(
        dir.path(),
        &["add-device", ID, "one", "--public-url", "http://t.example.org", "-l", "[::]:80"],
    );
    assert!(stderr(&plain).contains("shows the token"), "{}", stderr(&plain));
    let listed = admin(dir.path(), &["add-device", ID, "two", "--allow-client-id", BARE]);
    assert!(stderr(&listed).contains("will still refuse this client"), "{}", stderr(&listed));
    let added = admin(dir.path(), &["add-client", "--require-device", "--no-create-clients"]);
    assert!(stderr(&added).contains("until it has a device"), "{}", stderr(&added));
    // Only the first device changes anything for the others.
    assert!(stdout(&plain).contains("are refused"), "{}", stdout(&plain));
    assert!(!stdout(&listed).contains("are refused"), "{}", stdout(&listed));
}

#[test]
fn a_client_with_devices_needs_one_and_a_client_without_ignores_what_is_brought() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    done(dir.path(), &["add-client", "--id", BARE]);
    let server = Server::start_in(dir.path(), &[]);
    let stranger = basic("laptop", "wrong");
    let open = statuses(&server, ID);
    assert!(!open.contains(&401), "{open:?}");
    assert_eq!(with(&server, BARE, Some(&stranger)), [404, 404, 200, 200]);

    let laptop = add_device(dir.path(), ID, "laptop");
    let phone = add_device(dir.path(), ID, "phone");
    for authorization in [None, Some(&*stranger), Some("Bearer x"), Some("Basic !")] {
        assert_eq!(with(&server, ID, authorization), [401; 4], "{authorization:?}");
    }
    for authorization in [&laptop, &phone] {
        let statuses = with(&server, ID, Some(authorization));
        assert!(statuses[0] < 400 || statuses[0] == 404 || statuses[0] == 410, "{statuses:?}");
        assert!(!statuses.contains(&401), "{statuses:?}");
    }
    assert!(!with(&server, BARE, Some(&laptop)).contains(&401), "a proxy may bring anything");

    done(dir.path(), &["remove-device", ID, "phone"]);
    assert_eq!(with(&server, ID, Some(&phone)), [401; 4]);
    assert!(!with(&server, ID, Some(&laptop)).contains(&401));
    done(dir.path(), &["suspend-client", ID]);
    assert_eq!(with(&server, ID, Some(&laptop)), [403; 4]);
    assert_eq!(with(&server, ID, None), [401; 4]);
    done(dir.path(), &["resume-client", ID]);
    done(dir.path(), &["remove-device", ID, "laptop", "--yes"]);
    assert!(!with(&server, ID, None).contains(&401));
}

#[test]
fn a_kept_connection_is_refused_as_soon_as_its_device_is_removed() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    let server = Server::start_in(dir.path(), &[]);
    let version = client_with_version(&server, ID);
    let laptop = add_device(dir.path(), ID, "laptop");
    let path = format!("/v1/client/get-child-version/{NIL}");
    let headers = [("X-Client-Id", ID), ("Authorization", laptop.as_str())];
    let connection = &mut server.connect();
    assert_eq!(connection.request("GET", &path, &headers, b"").version(), version);
    add_device(dir.path(), ID, "phone");
    assert_eq!(connection.request("GET", &path, &headers, b"").status, 200);
    done(dir.path(), &["remove-device", ID, "laptop"]);
    let refused = connection.request("GET", &path, &headers, b"");
    assert_eq!(refused.status, 401);
    let challenge = refused.header("www-authenticate").expect("a challenge");
    assert!(challenge.starts_with("Basic realm=\""), "{challenge}");
    assert_eq!(refused.header("x-version-id"), None);
    assert_eq!(connection.request("HEAD", &path, &headers, b"").status, 401);
}

#[test]
fn strangers_learn_nothing_where_every_request_needs_a_device() {
    let dir = place();
    for client in [ID, BARE] {
        done(dir.path(), &["add-client", "--id", client]);
    }
    let open = Server::start_in(dir.path(), &[]);
    client_with_version(&open, ID);
    client_with_version(&open, BARE);
    open.stop();
    let laptop = add_device(dir.path(), ID, "laptop");
    add_device(dir.path(), ID, "phone");
    let (wrong, nobody) = (basic("laptop", "wrong"), basic("nobody", "wrong"));
    // A device of another client, and one that was removed.
    let suspended = "44444444-0cf0-4eb8-9eca-6f7f220638c0";
    done(dir.path(), &["add-client", "--id", suspended]);
    let elsewhere = add_device(dir.path(), suspended, "laptop");
    done(dir.path(), &["suspend-client", suspended]);
    let server = Server::start_in(dir.path(), CLOSED);
    server.log().wait_for("every request needs the name and token of a device");
    for body in [1, 1 << 20, 50 << 20] {
        let mut all = Vec::new();
        for client in [ID, BARE, UNKNOWN, suspended] {
            for authorization in [None, Some(&*wrong), Some(&nobody), Some("Bearer x")] {
                all.push((
                    client,
                    authorization,
                    Sender { server: &server, client, authorization }.raw(body),
                ));
            }
        }
        for client in [ID, BARE, UNKNOWN] {
            let authorization = Some(&*elsewhere);
            all.push((client, authorization, Sender { server: &server, client, authorization }.raw(body)));
        }
        let expected = all[0].2.clone();
        assert!(expected.iter().all(|(answer, _)| answer.starts_with("HTTP/1.1 401 ")), "{expected:?}");
        for (client, authorization, answers) in &all {
            assert_eq!(*answers, expected, "{client} {authorization:?} with bodies of {body}");
        }
        let answers = &expected;
        assert_eq!(answers[0].0, answers[1].0, "both reads");
        assert_eq!(answers[2], answers[3], "both uploads");
    }
    let device = with(&server, ID, Some(&laptop));
    assert_eq!((device[0], device[1]), (200, 404));
    assert_eq!(with(&server, suspended, Some(&elsewhere)), [403; 4]);
    assert_eq!(server.request("GET", "/readyz", &[], b"").status, 200);
    assert_eq!(server.request("GET", "/", &[], b"").status, 200);
}

#[test]
fn the_list_of_allowed_clients_cannot_be_guessed_either() {
    let dir = place();
    for client in [ID, BARE] {
        done(dir.path(), &["add-client", "--id", client]);
    }
    let (listed, unlisted) = (add_device(dir.path(), ID, "laptop"), add_device(dir.path(), BARE, "laptop"));
    let server = Server::start_in(dir.path(), &[CLOSED, &["--allow-client-id", ID]].concat());
    let raw = |client, authorization| Sender { server: &server, client, authorization }.raw(1);
    let refused = raw(ID, None);
    assert!(refused[0].0.starts_with("HTTP/1.1 401 "));
    assert_eq!(raw(BARE, None), refused);
    assert_eq!(raw(BARE, Some(&unlisted)), refused);
    assert!(!with(&server, ID, Some(&listed)).contains(&401));
    server.stop();
    // The operator is told why.
    let server = Server::start_in(dir.path(), &[CLOSED, &["--allow-client-id", ID]].concat());
    assert_eq!(with(&server, BARE, Some(&unlisted)), [401; 4]);
    server.log().wait_for("client 22222222 was refused at 127.0.0.1");
    assert!(server.log().text().contains("the option client_id"), "{}", server.log().text());
}

#[test]
fn clients_that_create_themselves_cannot_need_a_device() {
    let dir = place();
    let output = program().args(["--require-device", "--data-dir"]).arg(dir.path()).output();
    let output = output.expect("the program runs");
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("create_clients to false"), "{}", stderr(&output));
}

#[test]
fn the_log_never_shows_a_token_and_warns_once_a_minute() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    let server = Server::start_in(dir.path(), &["--log-level", "trace"]);
    let added = json(dir.path(), &["add-device", ID, "laptop"]);
    let token = text(&added, "token");
    for authorization in [basic("laptop", token), basic("laptop", "wrong-token"), basic(token, "wrong-token")]
    {
        with(&server, ID, Some(&authorization));
    }
    with(&server, ID, None);
    let told = server.log().wait_for("client 711d5cf3 was refused at 127.0.0.1");
    assert!(told.contains("name or token is wrong") && told.contains("once a minute"), "{told}");
    let log = server.log().clone();
    server.stop();
    let log = log.text();
    let encoded = basic("laptop", token);
    let encoded = encoded.trim_start_matches("Basic ");
    for secret in [token, encoded, "wrong-token", &ID[9..]] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
    assert_eq!(log.matches("was refused at").count(), 1, "{log}");
    assert!(log.contains("status=401"), "{log}");
}

#[test]
fn last_syncs_are_noted_with_the_device() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    done(dir.path(), &["add-client", "--id", BARE]);
    let server = Server::start_in(dir.path(), &[]);
    let laptop = add_device(dir.path(), ID, "laptop");
    add_device(dir.path(), ID, "phone");
    let wrong = basic("phone", "wrong");
    for (client, authorization) in [(ID, &laptop), (ID, &wrong), (BARE, &laptop)] {
        let path = format!("/v1/client/get-child-version/{NIL}");
        let headers =
            [("X-Client-Id", client), ("Authorization", authorization.as_str()), ("User-Agent", "tester/1")];
        server.request("GET", &path, &headers, b"");
    }
    server.stop();
    let shown = json(dir.path(), &["show-client", ID]);
    let syncs = shown["syncs"].as_array().expect("a list");
    assert_eq!((syncs.len(), &syncs[0]["device"]), (1, &Value::from("laptop")));
    assert_eq!(syncs[0]["program"], "tester/1");
    let devices = json(dir.path(), &["list-devices", ID]);
    assert_eq!(devices[0]["last_sync"], syncs[0]["last_sync"]);
    assert_eq!(devices[1]["last_sync"], Value::Null);
    assert_eq!(json(dir.path(), &["show-client", BARE])["syncs"][0]["device"], Value::Null);
}

#[test]
fn devices_stay_with_a_reset_and_go_with_their_client() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    let server = Server::start_in(dir.path(), &["--no-create-clients"]);
    client_with_version(&server, ID);
    let laptop = add_device(dir.path(), ID, "laptop");
    done(dir.path(), &["reset-client", ID, "--yes"]);
    assert_eq!(with(&server, ID, None), [401; 4]);
    assert_eq!(with(&server, ID, Some(&laptop))[0], 404);
    done(dir.path(), &["remove-client", ID, "--yes"]);
    assert_eq!(with(&server, ID, None), [403; 4]);
    done(dir.path(), &["add-client", "--id", ID]);
    assert_eq!(with(&server, ID, None)[0], 404);
}

/// The first upload after that was let in: it made the client as if nobody had decided anything.
#[test]
fn what_was_decided_holds_after_others_deleted_the_clients_row() {
    let dir = place();
    for client in [ID, BARE] {
        done(dir.path(), &["add-client", "--id", client]);
    }
    let laptop = add_device(dir.path(), ID, "laptop");
    done(dir.path(), &["suspend-client", BARE]);
    let database = rusqlite::Connection::open(dir.path().join("taskchampion-sync-server.sqlite3"));
    database.expect("a database").execute("DELETE FROM clients", []).expect("the rows can be deleted");
    let server = Server::start_in(dir.path(), &[]);
    assert_eq!(Replica::new(&server, ID).add_version(NIL, b"one").status, 401);
    assert_eq!(Replica::new(&server, BARE).add_version(NIL, b"one").status, 403);
    let headers = [("X-Client-Id", ID), ("Content-Type", SEGMENT), ("Authorization", laptop.as_str())];
    let path = format!("/v1/client/add-version/{NIL}");
    assert_eq!(server.request("POST", &path, &headers, b"one").status, 200);
}

#[test]
fn a_large_upload_without_a_device_is_refused_before_it_is_read() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    let laptop = add_device(dir.path(), ID, "laptop");
    let server = Server::start_in(dir.path(), &[]);
    let path = format!("/v1/client/add-version/{NIL}");
    let mut connection = server.connect();
    let headers = [("X-Client-Id", ID), ("Content-Type", SEGMENT)];
    connection.send_head("POST", &path, &headers, 50 << 20);
    assert_eq!(connection.response().status, 401);
    let headers = [&headers[..], &[("Authorization", laptop.as_str())]].concat();
    assert_eq!(server.request("POST", &path, &headers, &vec![1; 5 << 20]).status, 200);
}

/// The program in a network of its own, where it has a public address and may be tried from another.
fn with_public_address() -> Option<Command> {
    let network =
        "ip link set lo up && ip addr add 198.51.100.1/32 dev lo && ip addr add 198.51.100.2/32 dev lo";
    let start = |last: &std::ffi::OsStr| {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", &format!(r#"{network} && exec "$@""#), "sh"]).arg(last);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        command
    };
    let tried = start("true".as_ref()).output();
    if tried.as_ref().is_ok_and(|output| output.status.success()) {
        return Some(start(program().get_program()));
    }
    skip_fault(&format!("no network of its own can be made here: {tried:?}"));
    None
}

#[test]
fn guessing_from_one_address_becomes_slow_and_devices_do_not_notice() {
    let Some(mut command) = with_public_address() else { return };
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    let laptop = add_device(dir.path(), ID, "laptop");
    let wrong = basic("laptop", "wrong");
    command.args(["--listen", "198.51.100.1:8080", "--data-dir"]).arg(dir.path());
    let server = Server::spawn(command, dir.path());
    // This thread, and those that it starts, join the server's network.
    let network = File::open(format!("/proc/{}/ns/net", server.pid())).expect("the network can be opened");
    rustix::thread::move_into_link_name_space(network.as_fd(), None).expect("the network can be joined");
    let ask = |authorization: &str| {
        let path = format!("/v1/client/get-child-version/{NIL}");
        let began = Instant::now();
        let headers = [("X-Client-Id", ID), ("Authorization", authorization)];
        let answer = server.request("GET", &path, &headers, b"");
        (answer, began.elapsed())
    };
    for _ in 0..5 {
        let (answer, took) = ask(&wrong);
        assert_eq!(answer.status, 401);
        assert!(took < Duration::from_millis(200), "one of the first took {took:?}");
    }
    for pause in [250, 500, 1000].map(Duration::from_millis) {
        let (answer, took) = ask(&wrong);
        assert_eq!(answer.status, 401);
        assert!(took >= pause && took < pause + Duration::from_secs(5), "{took:?} instead of {pause:?}");
    }
    let path = format!("/v1/client/get-child-version/{NIL}");
    let guess = |count: usize| {
        let mut guesses: Vec<_> = (0..count).map(|_| server.connect()).collect();
        for guess in &mut guesses {
            guess.send_head("GET", &path, &[("X-Client-Id", ID), ("Authorization", &wrong)], 0);
        }
        guesses
    };
    // Who hangs up makes room for others.
    let turn_away = |count: usize| {
        let deadline = Instant::now() + PATIENCE;
        while server.log().text().matches("status=429").count() < count {
            assert!(Instant::now() < deadline, "not so many are turned away:\n{}", server.log().text());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    drop(guess(32));
    turn_away(32);
    let mut guesses = guess(60);
    turn_away(32 + 20);
    // From the same address at the same time.
    let (answer, took) = ask(&laptop);
    assert_eq!(answer.status, 404);
    assert!(took < Duration::from_secs(1), "a device waited for {took:?}");
    // Those who wait do not hold up the stop, and get their answer.
    server.signal("TERM");
    let began = Instant::now();
    let answers: Vec<_> = guesses.iter_mut().map(|guess| guess.response()).collect();
    assert!(began.elapsed() < Duration::from_secs(4), "the stop took {:?}", began.elapsed());
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    // On a slow machine the first of them had waited long enough before the last came.
    assert!((32..36).contains(&count(401)) && count(401) + count(429) == 60, "{}", count(401));
    let turned_away = answers.iter().find(|answer| answer.status == 429).expect("one of them");
    assert!(turned_away.header("retry-after").is_some());
    let log = server.log().wait_for("stopped");
    assert!(!log.contains("cut off"));
    assert_eq!(server.log().text().matches("was refused at 198.51.100.1").count(), 1);
}
