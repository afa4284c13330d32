//! Start and stop as operators and service managers see them.

use crate::util::{Connection, NIL, PATIENCE, Replica, SEGMENT, Server, program};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Who owns nothing.
const NOBODY: u32 = 65534;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the program runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Waits until something is there.
fn eventually<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The first line of a file that holds `text`, waited for.
fn line_of(file: &Path, text: &str) -> String {
    eventually(&format!("{text:?} in {}", file.display()), || {
        let lines = std::fs::read_to_string(file).unwrap_or_default();
        lines.lines().find(|line| line.contains(text)).map(str::to_owned)
    })
}

fn port_of(log_file: &Path) -> String {
    let line = line_of(log_file, "listening on http://");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
    address.expect("an address").to_owned()
}

fn send_signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.expect("kill runs").success(), "cannot send {name} to {pid}");
}

/// An upload of which the server has only half.
fn half_upload(server: &Server, client: &str) -> Connection {
    let mut connection = server.connect();
    let headers = [("X-Client-Id", client), ("Content-Type", SEGMENT), ("Expect", "100-continue")];
    connection.send_head("POST", &format!("/v1/client/add-version/{NIL}"), &headers, 10);
    assert_eq!(connection.response_head().status, 100, "the server has the head and wants the body");
    connection.send(b"01234");
    connection
}

#[test]
fn a_stop_lets_the_upload_in_flight_have_its_answer() {
    for signal in ["TERM", "INT"] {
        let dir = directory();
        let client = uuid::Uuid::new_v4().to_string();
        let mut server = Server::start_in(dir.path(), &[]);
        let mut upload = half_upload(&server, &client);
        let mut idle = server.connect();
        assert_eq!(idle.request("GET", "/", &[], b"").status, 200);
        server.signal(signal);
        server.log().wait_for(&format!("stopping: SIG{signal}"));
        assert!(idle.is_closed(), "an idle connection holds nobody up");
        upload.send(b"56789");
        let added = upload.response();
        assert_eq!(added.status, 200, "{added:?}");
        assert_eq!(server.wait().code(), Some(0), "{}", server.log().text());
        let again = Server::start_in(dir.path(), &[]);
        let kept = Replica::new(&again, &client).child_version(NIL);
        assert_eq!((kept.version(), kept.body), (added.version(), b"0123456789".to_vec()));
    }
}

#[test]
fn a_stop_does_not_wait_longer_for_an_upload_than_it_was_told() {
    let mut server = Server::start(&["--shutdown-timeout", "1s"]);
    let _upload = half_upload(&server, NIL);
    let began = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log().text());
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    server.log().wait_for("cut off");
    server.log().wait_for("stopped");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(&["--shutdown-timeout", "1h"]);
    let _upload = half_upload(&server, NIL);
    server.signal("TERM");
    server.log().wait_for("stopping: SIGTERM");
    server.signal("HUP");
    std::thread::sleep(Duration::from_millis(200));
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(130), "{}", server.log().text());
    server.log().wait_for("second signal");
}

#[test]
fn the_same_signal_at_once_again_is_its_echo() {
    let mut server = Server::start(&["--shutdown-timeout", "1h"]);
    let mut upload = half_upload(&server, NIL);
    server.signal("TERM");
    server.log().wait_for("stopping: SIGTERM");
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(100));
    upload.send(b"56789");
    assert_eq!(upload.response().status, 200);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log().text());
}

#[test]
fn why_it_did_not_start_is_in_the_log_file_too() {
    let dir = directory();
    std::fs::write(dir.path().join("data"), "").expect("a file");
    let log = dir.path().join("log");
    let mut command = program();
    command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path().join("data"));
    let output = run(command.arg("--log-file").arg(&log));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is not a directory"), "{}", stderr(&output));
    line_of(&log, "[ERROR] lifecycle: the data directory");
}

/// The program with this many files that it may open at most, `-S` for what it may raise.
fn with_files(limit: &str, dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!(r#"ulimit {limit} && exec "$@""#), "sh"]).env_clear();
    command.arg(program().get_program()).args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir);
    command
}

#[test]
fn the_limit_of_open_files_is_raised_as_far_as_connections_need_it() {
    let dir = directory();
    let server = Server::spawn(with_files("-S -n 200", dir.path()), dir.path());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).expect("its limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    assert_eq!(files.split_whitespace().nth(3), Some("1124"), "{files}");
    server.stop();
}

#[test]
fn idle_connections_take_no_files_that_the_database_needs() {
    let dir = directory();
    let server = Server::spawn(with_files("-n 180", dir.path()), dir.path());
    let warning = server.log().wait_for("[WARN]");
    assert!(warning.contains("only 80 connections") && warning.contains("LimitNOFILE"), "{warning}");
    let mut connections: Vec<_> = (0..150).map(|_| server.connect()).collect();
    server.log().wait_for("all 80 connections are in use");
    // Those that have been silent for long make room for the others.
    let answers = connections.iter_mut().filter_map(|it| it.try_request("GET", "/readyz", &[], b"").ok());
    let statuses: Vec<u16> = answers.map(|answer| answer.status).collect();
    assert!(statuses.len() >= 70 && statuses.iter().all(|status| *status == 200), "{statuses:?}");
    server.stop();
}

#[test]
fn the_start_tells_what_runs_where_and_what_taskwarrior_needs() {
    let dir = directory();
    let server = Server::start_in(&dir.path().join("new/data"), &["--base-path", "/tasks/"]);
    server.log().wait_for(concat!("sync-server ", env!("CARGO_PKG_VERSION")));
    server.log().wait_for(&format!("data directory {}/new/data: as configured", dir.path().display()));
    server.log().wait_for("clients that are not known yet are created");
    server.log().wait_for(&format!("task config sync.server.url http://{}/tasks/", server.address));
    server.log().wait_for("task config sync.server.client_id");
    server.log().wait_for("task config sync.encryption_secret");
    let mode = dir.path().join("new/data").metadata().expect("a directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    server.stop();

    let mut command = program();
    command
        .args(["--listen", "0.0.0.0:0", "--public-url", "https://tasks.example/", "--data-dir"])
        .arg(dir.path());
    let server = Server::spawn(command, dir.path());
    server.log().wait_for("task config sync.server.url https://tasks.example/");
    let warning = server.log().wait_for("[WARN]");
    assert!(warning.contains("CLIENT_ID") && warning.contains("CREATE_CLIENTS"), "{warning}");
    assert!(!server.log().text().contains("plain http://"), "there is TLS in front");
    server.stop();

    let mut command = program();
    command.args(["--listen", "0.0.0.0:0", "--data-dir"]).arg(dir.path());
    let server = Server::spawn(command, dir.path());
    server.log().wait_for("task config sync.server.url http://NAME-OF-THIS-MACHINE:");
    server.log().wait_for("plain http:// shows client IDs");
    server.stop();
}

#[test]
fn a_hangup_opens_the_log_file_anew() {
    let dir = directory();
    let log = dir.path().join("log");
    let mut server = Quiet::start(&log, dir.path());
    let old = dir.path().join("log.1");
    std::fs::rename(&log, &old).expect("a rotation");
    send_signal(server.0.id(), "HUP");
    line_of(&log, "reloaded");
    Connection::open(&port_of(&old)).request("GET", "/after", &[], b"");
    line_of(&log, "path=/after");
    assert!(!std::fs::read_to_string(&old).expect("a log").contains("/after"));
    let mode = log.metadata().expect("a log").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    server.stop();
    line_of(&log, "stopped");
}

#[test]
fn reload_has_the_result_as_its_exit_code() {
    let dir = directory();
    let log_dir = dir.path().join("logs");
    std::fs::create_dir(&log_dir).expect("a directory");
    let data = dir.path().join("data");
    let reload = || run(program().arg("--data-dir").arg(&data).arg("reload"));

    let output = reload();
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("no server is running") && message.contains("data/control.sock"), "{message}");

    let log = log_dir.join("log");
    let mut server = Quiet::start(&log, &data);
    std::fs::rename(&log, log_dir.join("old")).expect("a rotation");
    let output = reload();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    line_of(&log, "reloaded");

    std::fs::rename(&log_dir, dir.path().join("elsewhere")).expect("a rename");
    let output = reload();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains(&format!("cannot open the log file {}", log.display())),
        "{}",
        stderr(&output)
    );
    server.stop();
    line_of(&dir.path().join("elsewhere/log"), "stopped");

    assert!(!data.join("control.sock").exists(), "the socket goes with the server");
    assert_eq!(reload().status.code(), Some(1));
}

#[test]
fn the_control_socket_survives_a_kill_and_strangers() {
    let dir = directory();
    let runtime = dir.path().join("run");
    std::fs::create_dir(&runtime).expect("a directory");
    let start = || {
        let mut command = program();
        command.env("RUNTIME_DIRECTORY", format!("{}:/elsewhere", runtime.display()));
        command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path());
        Server::spawn(command, dir.path())
    };
    start().kill();
    let socket = runtime.join("control.sock");
    assert!(socket.exists(), "a killed server removes nothing");
    let server = start();
    assert_eq!(socket.metadata().expect("a socket").permissions().mode() & 0o777, 0o600);

    let say = |line: &[u8]| {
        let mut stream = UnixStream::connect(&socket).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.write_all(line).expect("the server reads");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("the server answers");
        answer
    };
    assert_eq!(say(b"reload\n"), "ok reloaded\n");
    assert!(say(b"dance\n").starts_with("error "), "an unknown verb");
    assert!(say(&[b'x'; 4096]).starts_with("error "), "no end of line");
    // The verb finds the socket by the lock file, without the service manager's environment.
    assert_eq!(run(program().arg("--data-dir").arg(dir.path()).arg("reload")).status.code(), Some(0));

    if is_root() {
        std::fs::set_permissions(&runtime, PermissionsExt::from_mode(0o755)).expect("it is ours");
        std::fs::set_permissions(dir.path().join("sync-server.lock"), PermissionsExt::from_mode(0o644))
            .expect("it is ours");
        // Even where the file lets everyone in, the server asks who it is.
        for (mode, expected) in
            [(0o600, "own user may control it"), (0o666, "uid 65534 may not control this server")]
        {
            std::fs::set_permissions(&socket, PermissionsExt::from_mode(mode)).expect("it is ours");
            let output = run(as_nobody(dir.path()).arg("--data-dir").arg(dir.path()).arg("reload"));
            assert_eq!(output.status.code(), Some(1));
            assert!(stderr(&output).contains(expected), "{}", stderr(&output));
        }
    } else {
        println!("not run as root: whether strangers are refused was not tried");
    }
    server.stop();
}

#[test]
fn a_control_socket_that_cannot_be_is_no_reason_not_to_serve() {
    let dir = directory();
    let deep = dir.path().join("d".repeat(100));
    let server = Server::start_in(&deep, &[]);
    let warning = server.log().wait_for("[WARN]");
    assert!(warning.contains("control.sock") && warning.contains("107"), "{warning}");
    let output = run(program().arg("--data-dir").arg(&deep).arg("reload"));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("RUNTIME_DIRECTORY"), "{}", stderr(&output));
    server.stop();
}

#[test]
fn a_second_server_is_refused_with_the_first_ones_process_id() {
    let dir = directory();
    let server = Server::start_in(dir.path(), &[]);
    let output = run(program().args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path()));
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains(&format!("the process with ID {}", server.pid())), "{message}");
    assert!(message.contains(&dir.path().display().to_string()), "{message}");
    server.stop();
}

/// The service manager's end of the conversation.
pub struct Manager {
    socket: UnixDatagram,
    pub path: PathBuf,
}

impl Manager {
    pub fn listen(dir: &Path) -> Manager {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Manager { socket, path }
    }

    /// On a socket without a file, as the managers of some containers have it.
    fn listen_in_the_abstract() -> Manager {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("sync-server-test-{}", uuid::Uuid::new_v4());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("an address");
        let socket = UnixDatagram::bind_addr(&address).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Manager { socket, path: format!("@{name}").into() }
    }

    fn next(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("the server tells something in time");
        String::from_utf8(message[..length].to_vec()).expect("text")
    }

    pub fn wait_for(&self, line: &str) -> String {
        loop {
            let message = self.next();
            if message.lines().any(|told| told == line) {
                return message;
            }
        }
    }

    /// Takes what was told until now.
    pub fn forget(&self) {
        self.socket.set_nonblocking(true).expect("an option can be set");
        while self.socket.recv(&mut [0; 4096]).is_ok() {}
        self.socket.set_nonblocking(false).expect("an option can be set");
    }

    /// The watchdog's signs within a time.
    pub fn signs(&self, within: Duration) -> usize {
        let end = Instant::now() + within;
        let mut count = 0;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left)).expect("a timeout can be set");
            let mut message = [0; 4096];
            if self.socket.recv(&mut message).is_ok_and(|length| message[..length].starts_with(b"WATCHDOG=1"))
            {
                count += 1;
            }
        }
        self.socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        count
    }
}

#[test]
fn the_service_manager_is_told_of_start_reload_and_stop() {
    let dir = directory();
    let manager = Manager::listen(dir.path());
    let mut command = program();
    command
        .env("NOTIFY_SOCKET", &manager.path)
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path());
    let mut server = Server::spawn(command, dir.path());
    let ready = manager.wait_for("READY=1");
    assert!(ready.contains(&format!("STATUS=serving at http://{}/", server.address)), "{ready}");
    server.signal("HUP");
    let reloading = manager.wait_for("RELOADING=1");
    assert!(reloading.lines().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading}");
    manager.wait_for("READY=1");
    assert_eq!(run(program().arg("--data-dir").arg(dir.path()).arg("reload")).status.code(), Some(0));
    manager.wait_for("RELOADING=1");
    manager.wait_for("READY=1");
    server.signal("TERM");
    manager.wait_for("STOPPING=1");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_service_manager_on_an_abstract_socket_is_told_too() {
    let dir = directory();
    let manager = Manager::listen_in_the_abstract();
    let mut command = program();
    command
        .env("NOTIFY_SOCKET", &manager.path)
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path());
    let server = Server::spawn(command, dir.path());
    let ready = manager.wait_for("READY=1");
    assert!(ready.contains(&format!("STATUS=serving at http://{}/\n", server.address)), "{ready}");
    server.signal("TERM");
    manager.wait_for("STOPPING=1");
}

#[test]
fn a_migration_extends_the_time_that_the_start_may_take() {
    let dir = directory();
    let manager = Manager::listen(dir.path());
    let name = "taskchampion-sync-server.sqlite3";
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tss-sqlite").join(name);
    std::fs::copy(fixture, dir.path().join(name)).expect("a copy");
    let mut command = program();
    command
        .env("NOTIFY_SOCKET", &manager.path)
        .args(["--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path());
    let server = Server::spawn(command, dir.path());
    let first = manager.next();
    assert!(first.starts_with("EXTEND_TIMEOUT_USEC="), "{first}");
    manager.wait_for("READY=1");
    server.log().wait_for("is kept in");
    server.stop();
}

#[test]
fn the_watchdog_is_told_while_the_workers_answer_and_only_then() {
    let dir = directory();
    let manager = Manager::listen(dir.path());
    let mut command = Command::new("/bin/sh");
    // The variable holds the process' own ID, which exec keeps.
    command.env_clear().args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_sync-server")]);
    command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "400000");
    command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path());
    let server = Server::spawn(command, dir.path());
    manager.wait_for("WATCHDOG=1");
    assert!(manager.signs(Duration::from_secs(3)) >= 5, "a sign each half of 400 ms");

    let other =
        rusqlite::Connection::open(dir.path().join("taskchampion-sync-server.sqlite3")).expect("a database");
    other.execute_batch("BEGIN IMMEDIATE").expect("a lock");
    let mut replica = Replica::of_new_client(&server);
    let upload = std::thread::spawn(move || replica.add_version(NIL, b"segment").status);
    // The writer waits for the lock, which is as good as a writer that hangs.
    server.log().wait_for("the worker threads have not answered");
    manager.forget();
    assert_eq!(manager.signs(Duration::from_secs(1)), 0);
    other.execute_batch("ROLLBACK").expect("no lock");
    manager.wait_for("WATCHDOG=1");
    assert_eq!(upload.join().expect("an answer"), 200);
    server.stop();
}

#[test]
fn without_a_watchdog_for_this_process_it_is_told_nothing() {
    let dir = directory();
    let manager = Manager::listen(dir.path());
    let mut command = program();
    command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "100000").env("WATCHDOG_PID", "1");
    command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path());
    let server = Server::spawn(command, dir.path());
    manager.wait_for("READY=1");
    assert_eq!(manager.signs(Duration::from_millis(500)), 0);
    server.stop();
}

/// A server whose log is in a file of its directory.
struct Quiet(std::process::Child);

impl Quiet {
    fn start(log: &Path, data: &Path) -> Quiet {
        let mut command = program();
        command.args(["--listen", "127.0.0.1:0", "--log-file"]).arg(log).arg("--data-dir").arg(data);
        let quiet = Quiet(command.spawn().expect("the program starts"));
        line_of(log, "listening on");
        quiet
    }

    fn stop(&mut self) {
        send_signal(self.0.id(), "TERM");
        let status = eventually("the end", || self.0.try_wait().expect("it can be waited for"));
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `sync-server --daemonize` in a directory, with relative paths into it.
fn daemonize(dir: &Path, args: &[&str]) -> Command {
    let mut command = program();
    command
        .current_dir(dir)
        .args(["--daemonize", "--listen", "127.0.0.1:0", "--data-dir", "data"])
        .args(args);
    command
}

/// Ends the process in the background even where a test fails.
struct InBackground(u32);

impl InBackground {
    fn of(pid_file: &Path) -> InBackground {
        let text = std::fs::read_to_string(pid_file).expect("a pid file");
        InBackground(text.trim().parse().expect("a process ID"))
    }

    fn is_there(&self) -> bool {
        Path::new(&format!("/proc/{}", self.0)).exists()
    }
}

impl Drop for InBackground {
    fn drop(&mut self) {
        if self.is_there() {
            send_signal(self.0, "KILL");
        }
    }
}

#[test]
fn in_the_background_it_serves_by_the_time_the_command_returns() {
    let dir = directory();
    let output = run(&mut daemonize(dir.path(), &["--log-file", "log", "--pid-file", "pid"]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let pid_file = dir.path().join("pid");
    let server = InBackground::of(&pid_file);
    line_of(&dir.path().join("log"), "listening on http://");
    let log = std::fs::read_to_string(dir.path().join("log")).expect("a log");
    assert_eq!(log.matches("sync-server 0").count(), 1, "each line once: {log}");
    let mut connection = Connection::open(&port_of(&dir.path().join("log")));
    assert_eq!(connection.request("GET", "/readyz", &[], b"").status, 200);
    let lock = std::fs::read_to_string(dir.path().join("data/sync-server.lock")).expect("a lock");
    assert_eq!(lock.lines().next(), Some(server.0.to_string().as_str()));

    let second = run(&mut daemonize(dir.path(), &["--log-file", "log2", "--pid-file", "pid2"]));
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains(&format!("the process with ID {}", server.0)), "{}", stderr(&second));

    let reload = run(program().arg("--data-dir").arg(dir.path().join("data")).arg("reload"));
    assert_eq!(reload.status.code(), Some(0), "{}", stderr(&reload));
    send_signal(server.0, "TERM");
    eventually("the end", || (!server.is_there()).then_some(()));
    line_of(&dir.path().join("log"), "stopped");
    assert!(!pid_file.exists(), "the file goes with the process");
}

#[test]
fn what_goes_wrong_on_the_way_to_the_background_is_seen_on_the_terminal() {
    let dir = directory();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    assert!(Command::new("mkfifo").arg(dir.path().join("pipe")).status().expect("mkfifo runs").success());
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--log-file", "log", "--listen", &address], 1, "address in use"),
        (&["--log-file", "missing/log"], 1, "cannot open the log file"),
        (&["--log-file", "pipe"], 1, "cannot open the log file"),
        (&["--log-file", "log", "--pid-file", "missing/pid"], 1, "missing/pid"),
        (&[], 78, "log.file"),
    ];
    for (args, code, expected) in cases {
        let output = run(&mut daemonize(dir.path(), args));
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {message}");
        assert_eq!(message.matches(expected).count(), 1, "{args:?}: {message}");
    }
    let output = run(daemonize(dir.path(), &["--log-file", "log"]).env("NOTIFY_SOCKET", "/run/notify"));
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
}

#[test]
fn the_health_check_asks_the_running_server() {
    let dir = directory();
    let check = |args: &[&str]| run(program().args(args));
    let socket = dir.path().join("socket");
    let unix = format!("unix:{}", socket.display());
    let data = dir.path().join("data");
    let mut command = program();
    command
        .args(["--listen", "127.0.0.1:0", "--listen", &unix, "--base-path", "/tasks/", "--data-dir"])
        .arg(&data);
    let server = Server::spawn(command, &data);
    let address = server.address.clone();
    let port = address.rsplit(':').next().expect("a port").to_owned();
    let well: &[&[&str]] = &[
        &["--listen", &address, "--base-path", "/tasks/", "healthcheck"],
        &["--listen", &format!("0.0.0.0:{port}"), "--base-path", "/tasks/", "healthcheck"],
        &["--listen", &format!("localhost:{port}"), "--base-path", "/tasks/", "healthcheck"],
        &["--listen", &unix, "--base-path", "/tasks/", "healthcheck"],
        &["healthcheck", &format!("http://{}/tasks/readyz", address)],
    ];
    for args in well {
        let output = check(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    }
    let nowhere = format!("http://{}/nowhere", address);
    let output = check(&["healthcheck", &nowhere]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("asked {nowhere}, got status 404")), "{}", stderr(&output));
    server.stop();
    for args in well {
        let output = check(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).contains("no connection"), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn the_health_check_has_a_deadline() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let began = Instant::now();
    let url = format!("http://{}/", silent.local_addr().expect("an address"));
    let output = run(program().args(["healthcheck", &url]));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("nothing within 5s"), "{}", stderr(&output));
    assert!(began.elapsed() < Duration::from_secs(30));
}

/// The program as a user who owns nothing, copied to where that user may run it.
fn as_nobody(dir: &Path) -> Command {
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).expect("it is ours");
    let copy = dir.join("program");
    if !copy.exists() {
        // By another process: what this one has open for writing, a child of another test may have
        // inherited, and then the copy is "busy".
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_sync-server")).arg(&copy).status();
        assert!(copied.expect("cp runs").success());
    }
    let mut command = Command::new(copy);
    command.env_clear().stdin(Stdio::null()).uid(NOBODY).gid(NOBODY);
    command
}

#[test]
fn a_data_directory_of_somebody_else_is_refused_with_the_command_that_helps() {
    if !is_root() {
        println!("not run as root: another user's directory was not tried");
        return;
    }
    let dir = directory();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).expect("a directory");
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o755)).expect("it is ours");
    let start = |data: &Path| {
        let output = run(as_nobody(dir.path()).args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(data));
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    };
    let chown = format!("sudo chown -R {NOBODY}:{NOBODY} {}", data.display());
    let us = format!("this process runs as uid {NOBODY}");

    let message = start(&data);
    let whose = format!("{} belongs to uid 0 with mode 0755", data.display());
    assert!([&whose, &us, &chown].iter().all(|part| message.contains(*part)), "{message}");

    // Hidden: the directory can be seen, but not what is in it.
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o700)).expect("it is ours");
    let message = start(&data);
    assert!([&us, &chown].iter().all(|part| message.contains(*part)), "{message}");

    let missing = data.join("below");
    let message = start(&missing);
    let enter = format!("sudo chmod a+x {}", data.display());
    assert!([&us, &enter].iter().all(|part| message.contains(*part)), "{message}");
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o755)).expect("it is ours");
    let message = start(&missing);
    let install = format!("sudo install -d -m 700 -o {NOBODY} -g {NOBODY} {}", missing.display());
    assert!([&us, &install].iter().all(|part| message.contains(*part)), "{message}");

    // Root ran the server here once, then the directory was given away but not what is in it.
    Server::start_in(&data, &[]).stop();
    std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY)).expect("root may");
    for file in ["sync-server.lock", "taskchampion-sync-server.sqlite3"] {
        let message = start(&data);
        assert!([file, &us, &chown].iter().all(|part| message.contains(*part)), "{file}: {message}");
        std::os::unix::fs::chown(data.join(file), Some(NOBODY), Some(NOBODY)).expect("root may");
    }
    let mut command = as_nobody(dir.path());
    command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
    Server::spawn(command, &data).stop();
}

#[test]
fn what_root_makes_in_a_service_users_directory_locks_that_user_out_of_nothing() {
    if !is_root() {
        println!("not run as root: it was not tried");
        return;
    }
    let dir = directory();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).expect("a directory");
    std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY)).expect("root may");
    let mut first = as_nobody(dir.path());
    first.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
    Server::spawn(first, &data).stop();
    std::fs::remove_file(data.join("sync-server.lock")).expect("root may");
    // Killed, so that it leaves everything behind.
    Server::start_in(&data, &[]).kill();
    let mut again = as_nobody(dir.path());
    again.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
    Server::spawn(again, &data).stop();
}

#[test]
fn a_file_in_the_place_of_the_data_directory_is_refused() {
    let dir = directory();
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let output = run(program().args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(&file));
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains(&format!("{} is not a directory", file.display())),
        "{}",
        stderr(&output)
    );
}

#[test]
fn unix_sockets_have_the_mode_and_the_group_that_they_are_given() {
    let dir = directory();
    let path = dir.path().join("socket");
    let socket = format!("--listen=unix:{}", path.display());
    let facts = || {
        let data = path.metadata().expect("a socket");
        (data.permissions().mode() & 0o7777, data.gid())
    };
    let (own, data) = (rustix::process::getegid().as_raw(), dir.path().join("data"));
    let server = Server::start_in(&data, &[&socket]);
    assert_eq!(facts(), (0o660, own));
    server.stop();
    if !is_root() {
        println!("not run as root: other groups were not tried");
        return;
    }
    let (daemon, monitor) = (1, dir.path().join("monitor"));
    let metrics = format!("--metrics-listen=unix:{}", monitor.display());
    let server = Server::start_in(&data, &[&socket, &metrics, "--unix-mode=0606", "--unix-group=daemon"]);
    assert_eq!(facts(), (0o606, daemon));
    assert_eq!(monitor.metadata().expect("a socket").gid(), daemon);
    // Who is not in the group and may write all the same.
    let check = as_nobody(dir.path()).arg("healthcheck").arg(&socket).output().expect("it runs");
    assert!(check.status.success(), "{}", stderr(&check));
    server.stop();
    let server = Server::start_in(&data, &[&socket, &format!("--unix-group={NOBODY}")]);
    assert_eq!(facts(), (0o660, NOBODY));
    assert!(as_nobody(dir.path()).arg("healthcheck").arg(&socket).status().expect("it runs").success());
    server.stop();

    let unknown = run(program().args([&socket, "--unix-group=strangers", "--data-dir"]).arg(&data));
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("`groupadd --system strangers`"), "{}", stderr(&unknown));
    // Who is no member of a group cannot give it anything, and leaves no socket there.
    let own = dir.path().join("own");
    std::fs::create_dir(&own).expect("a directory");
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).expect("root may do that");
    let socket = format!("--listen=unix:{}", own.join("socket").display());
    let mut command = as_nobody(dir.path());
    let refused = run(command.args([&socket, "--unix-group=daemon", "--data-dir"]).arg(own.join("data")));
    let said = stderr(&refused);
    assert!(said.contains("SupplementaryGroups=daemon") && said.contains(&format!("uid {NOBODY}")), "{said}");
    assert!(!own.join("socket").exists());
}
