//! The log as people, programs and full pipes see it.

use crate::util::{Connection, Log, NIL, PATIENCE, Replica, SEGMENT, SNAPSHOT, Server, program};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

/// A server whose log nobody reads once it serves.
struct Unread {
    child: Child,
    /// The end to read from, while there is one.
    pipe: Option<BufReader<ChildStderr>>,
    address: String,
    _dir: tempfile::TempDir,
}

impl Unread {
    fn start() -> Unread {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = program();
        command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut pipe = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut line = String::new();
        while !line.contains("listening on http://") {
            line.clear();
            assert_ne!(pipe.read_line(&mut line).expect("a line"), 0, "the program ended");
        }
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        let address = address.expect("an address").to_owned();
        Unread { child, pipe: Some(pipe), address, _dir: dir }
    }

    /// Makes so many requests, each of which is logged with some 300 bytes.
    fn ask(&self, count: usize) {
        let mut connection = Connection::open(&self.address);
        let path = format!("/{}", "x".repeat(200));
        for _ in 0..count / BATCH {
            for _ in 0..BATCH {
                connection.send_head("GET", &path, &[], 0);
            }
            for _ in 0..BATCH {
                assert_eq!(connection.response().status, 404);
            }
        }
    }

    fn stop(&mut self) -> Option<i32> {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        )
        .expect("it can be sent");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the server did not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Far more requests than the pipe, the queue and what the writer holds in its hand have room for.
const FLOOD: usize = 12_000;

/// Requests that are sent before the first answer is read.
const BATCH: usize = 100;

#[test]
fn a_log_that_nobody_reads_holds_up_no_request_and_says_later_what_was_lost() {
    let mut server = Unread::start();
    server.ask(FLOOD);
    let log = Log::follow(server.pipe.take().expect("it was not closed"));
    let report = log.wait_for("log lines were lost");
    let lost = report.split("logging: ").nth(1).and_then(|rest| rest.split(' ').next());
    let lost: usize = lost.and_then(|lost| lost.parse().ok()).expect("a number");
    let written = log.text().lines().filter(|line| line.contains("status=404")).count();
    assert_eq!(written + lost, FLOOD, "{written} were written, {lost} lost");
    assert!(lost > 0 && written > 0, "{written} were written, {lost} lost");
    Connection::open(&server.address).request("GET", "/after", &[], b"");
    log.wait_for("path=/after status=404");
    assert_eq!(server.stop(), Some(0));
    assert_eq!(log.text().matches("were lost").count(), 1);
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_stop() {
    let mut server = Unread::start();
    server.ask(FLOOD);
    let began = Instant::now();
    assert_eq!(server.stop(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_log_whose_reader_is_gone_is_no_reason_to_end() {
    let mut server = Unread::start();
    server.pipe = None;
    server.ask(BATCH);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn json_lines_are_objects_with_the_same_fields() {
    let server = Server::start(&["--log-format", "json"]);
    let client = uuid::Uuid::new_v4().to_string();
    assert_eq!(Replica::new(&server, &client).add_version(NIL, b"segment").status, 200);
    let path = "/%0Aforged%22?x=%0D";
    server.request("GET", path, &[], b"");
    server.log().wait_for("forged");
    for line in server.log().text().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["time", "level", "target", "message"] {
            assert!(line[key].is_string(), "{key}: {line}");
        }
    }
    let line: Value = serde_json::from_str(&server.log().wait_for("add-version")).expect("JSON");
    assert_eq!(line["target"], "request");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["method"], "POST");
    assert_eq!(line["path"], format!("/v1/client/add-version/{NIL}"));
    assert_eq!(line["status"], 200);
    assert_eq!(line["client"], client[..8]);
    assert_eq!(line["bytes"], 7);
    assert!(line["us"].is_u64(), "{line}");
    assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1")), "{line}");
    server.stop();
}

#[test]
fn a_log_for_programs_holds_why_the_server_did_not_start() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let start = |more: &[&str]| {
        let mut command = program();
        command.args(["--log-format", "json", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&file).args(more);
        let output = command.output().expect("the program runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("text")
    };
    let said = start(&[]);
    let lines: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let last = lines.last().expect("a line");
    assert_eq!(last["level"], "ERROR", "{said}");
    assert!(last["message"].as_str().is_some_and(|text| text.contains("is not a directory")), "{said}");
    assert_eq!(said.matches("is not a directory").count(), 1, "{said}");
    // A log that says nothing must not hide it.
    assert!(start(&["--log-level", "off"]).starts_with("error: the data directory"));
}

#[test]
fn directives_choose_modules_and_levels() {
    let start = |variables: &[(&str, &str)]| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = program();
        command
            .envs(variables.iter().copied())
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path());
        let server = Server::spawn(command, dir.path());
        assert_eq!(server.request("GET", "/healthz", &[], b"").status, 200);
        assert_eq!(server.request("GET", "/nowhere", &[], b"").status, 404);
        server.signal("HUP");
        server.log().wait_for("reloaded");
        let text = server.log().text();
        server.stop();
        text
    };
    let text = start(&[]);
    assert!(text.contains("/nowhere") && !text.contains("/healthz"), "{text}");
    let text = start(&[("RUST_LOG", "warn,sync_server::lifecycle=info")]);
    assert!(!text.contains("/nowhere"), "{text}");
    let text = start(&[("RUST_LOG", "info,sync_server::request=debug")]);
    assert!(text.contains("/nowhere") && text.contains("/healthz"), "{text}");
    // As users of the reference server have it in their unit files.
    let text = start(&[("RUST_LOG", "error,taskchampion_sync_server=debug")]);
    assert!(text.contains("/nowhere") && text.contains("/healthz"), "{text}");
}

#[test]
fn no_client_id_is_ever_logged_whole() {
    let allowed = uuid::Uuid::new_v4();
    let unknown = uuid::Uuid::new_v4();
    let dir = tempfile::tempdir().expect("a temporary directory");
    for args in [&[][..], &["--no-create-clients"], &["--allow-client-id", &allowed.to_string()]] {
        let server = Server::start_in(dir.path(), &[&["--log-level", "trace"], args].concat());
        for client in [allowed, unknown] {
            provoke(&server, client);
        }
        server.request("GET", "/the-end", &[], b"");
        server.log().wait_for("/the-end");
        let text = server.log().text().to_lowercase();
        assert!(text.contains(&allowed.to_string()[..8]), "the short form is there: {text}");
        for client in [allowed, unknown] {
            for form in [client.to_string(), client.simple().to_string()] {
                assert!(!text.contains(&form[8..]) && !text.contains(&form[..12]), "{form} in\n{text}");
            }
        }
        server.stop();
    }
}

/// Everything that a client can do right or wrong.
fn provoke(server: &Server, client: uuid::Uuid) {
    let forms = [client.to_string(), client.simple().to_string(), client.braced().to_string().to_uppercase()];
    for form in &forms {
        // On a connection each: after some refusals the server hangs up.
        let replica = || Replica::new(server, form);
        let added = replica().add_version(NIL, b"segment");
        let version = added.header("x-version-id").unwrap_or(NIL).to_owned();
        replica().add_version(NIL, b"in conflict");
        replica().add_version(NIL, b"");
        replica().child_version(NIL);
        replica().child_version(&uuid::Uuid::new_v4().to_string());
        replica().add_snapshot(&version, b"snapshot");
        replica().add_snapshot(&uuid::Uuid::new_v4().to_string(), b"dropped");
        replica().snapshot();
        let header = ("X-Client-Id", form.as_str());
        for (method, path, kind) in [
            ("POST", "/v1/client/add-version/nonsense", SEGMENT),
            ("POST", "/v1/client/snapshot", SNAPSHOT),
            ("POST", "/prefix/v1/client/snapshot", SNAPSHOT),
            ("GET", "/v1/client/snapshot", "text/plain"),
        ] {
            server.request(method, path, &[header, ("Content-Type", kind)], b"x");
        }
    }
    let broken = format!("{client}x");
    server.request("GET", "/v1/client/snapshot", &[("X-Client-Id", &broken)], b"");
}

#[test]
fn a_full_disk_under_the_log_is_no_reason_not_to_serve() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let listen = format!("unix:{}", dir.path().join("socket").display());
    let mut command = program();
    command.args(["--log-file", "/dev/full", "--listen", &listen, "--data-dir"]).arg(dir.path());
    let child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut server = Unread { child, pipe: None, address: String::new(), _dir: dir };
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..20 {
        while !program()
            .args(["--listen", &listen, "healthcheck"])
            .output()
            .expect("it runs")
            .status
            .success()
        {
            assert!(Instant::now() < deadline, "it does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert_eq!(server.stop(), Some(0));
}
