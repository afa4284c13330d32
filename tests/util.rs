//! Starts the real program on a free port in a directory of its own, and talks to it in raw bytes.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Long enough for a busy machine: a test that waits for this has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const SEGMENT: &str = "application/vnd.taskchampion.history-segment";
pub const SNAPSHOT: &str = "application/vnd.taskchampion.snapshot";
pub const NIL: &str = "00000000-0000-0000-0000-000000000000";

/// The program under test, without the environment of whoever runs the tests.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sync-server"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// The same on what stands for this data directory, with SYNC_SERVER_TEST_POSTGRES a Postgres of its own.
pub fn program_on(data_dir: &Path) -> Command {
    let mut command = program();
    if instances() > 0 {
        command.env("CONNECTION", crate::postgres::connection_for(data_dir));
    }
    command
}

/// How many instances share a Postgres; 0: the tests run on SQLite.
fn instances() -> usize {
    let given = std::env::var("SYNC_SERVER_TEST_POSTGRES").unwrap_or_else(|_| "0".to_owned());
    given.parse().expect("SYNC_SERVER_TEST_POSTGRES is a number of instances")
}

/// An address from which each connection is passed on to the next of these.
fn spread(addresses: Vec<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    std::thread::spawn(move || {
        for (stream, to) in listener.incoming().map_while(Result::ok).zip(addresses.iter().cycle()) {
            // One that is gone refuses, as it would without anything in between.
            let Ok(server) = TcpStream::connect(to) else { continue };
            for stream in [&stream, &server] {
                stream.set_nodelay(true).expect("an option can be set");
            }
            let other = (stream.try_clone(), server.try_clone());
            std::thread::spawn(move || pass_on(stream, server));
            if let (Ok(stream), Ok(server)) = other {
                std::thread::spawn(move || pass_on(server, stream));
            }
        }
    });
    address
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// A running server. Killed when dropped.
pub struct Server {
    child: Child,
    /// Instances beside it, where a test runs on several. Their logs are not looked at.
    peers: Vec<Server>,
    log: Log,
    /// `host:port` of the first listener.
    pub address: String,
    /// Removed with the server, unless it belongs to someone else.
    dir: Option<tempfile::TempDir>,
    data_dir: PathBuf,
}

impl Server {
    /// Starts with these arguments in an empty data directory, on a free port of 127.0.0.1.
    pub fn start(args: &[&str]) -> Server {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut server = Server::start_in(dir.path(), args);
        server.dir = Some(dir);
        server
    }

    /// Starts in a data directory that outlives the server.
    ///
    /// With SYNC_SERVER_TEST_POSTGRES=N the data goes into a Postgres instead, one for each directory, and
    /// N instances share it, to which connections go in turn.
    pub fn start_in(data_dir: &Path, args: &[&str]) -> Server {
        let instance = || {
            let mut command = program_on(data_dir);
            command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir).args(args);
            Server::spawn(command, data_dir)
        };
        let mut first = instance();
        let others: Vec<Server> = (1..instances()).map(|_| instance()).collect();
        if !others.is_empty() {
            let all = std::iter::once(&first).chain(&others).map(|one| one.address.clone()).collect();
            first.address = spread(all);
            first.peers = others;
        }
        first
    }

    /// Starts a prepared command, which must listen on TCP, and waits until it serves.
    pub fn spawn(mut command: Command, data_dir: &Path) -> Server {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let log = Log::follow(child.stderr.take().expect("standard error is piped"));
        let line = log.wait_for("listening on http");
        let address = line.split("://").nth(1).expect("an address");
        let address = address.split(['/', ' ', '"']).next().expect("an address").to_owned();
        Server { child, peers: Vec::new(), log, address, dir: None, data_dir: data_dir.to_owned() }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What a statement that both kinds of databases know gives; the server is running.
    pub fn sql(&self, sql: &str) -> String {
        if instances() > 0 {
            return crate::postgres::sql_for(&self.data_dir, sql);
        }
        let database = self.data_dir.join("taskchampion-sync-server.sqlite3");
        let database = rusqlite::Connection::open(database).expect("the database opens");
        if sql.starts_with("SELECT") {
            return database.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number").to_string();
        }
        database.execute(sql, []).expect("it is done");
        String::new()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything logged so far.
    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn connect(&self) -> Connection {
        Connection::open(&self.address)
    }

    /// One request on a connection of its own.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.connect().request(method, path, headers, body)
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(status.expect("kill runs").success(), "cannot send {name}");
    }

    /// Waits for the program to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not stop; its log:\n{}", self.log.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to stop and expects that it does so cleanly.
    pub fn stop(mut self) {
        self.peers.drain(..).for_each(Server::stop);
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "{status}; its log:\n{}", self.log.text());
    }

    /// Kills it as a power loss would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.peers.clear();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a program writes to a pipe, collected while it runs.
#[derive(Clone)]
pub struct Log(Arc<(Mutex<(String, bool)>, Condvar)>);

impl Log {
    pub fn follow(pipe: impl Read + Send + 'static) -> Log {
        let log = Log(Arc::default());
        let shared = log.0.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let mut state = shared.0.lock().expect("no test panics while it holds the log");
                state.0.push_str(&line);
                state.0.push('\n');
                shared.1.notify_all();
            }
            shared.0.lock().expect("no test panics while it holds the log").1 = true;
            shared.1.notify_all();
        });
        log
    }

    pub fn text(&self) -> String {
        self.0.0.lock().expect("no test panics while it holds the log").0.clone()
    }

    /// The first line that holds `text`, waited for.
    pub fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.0.0.lock().expect("no test panics while it holds the log");
        loop {
            if let Some(line) = state.0.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let why = if state.1 { "the program ended" } else { "time ran out" };
            assert!(!state.1 && !left.is_zero(), "{why} before {text:?} was logged; the log:\n{}", state.0);
            state = self.0.1.wait_timeout(state, left).expect("the lock is never poisoned").0;
        }
    }
}

/// One keep-alive HTTP/1.1 connection that hides nothing.
pub struct Connection {
    pub stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(address: &str) -> Connection {
        let stream = TcpStream::connect(address).expect("the server accepts connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("an option can be set");
        let reader = BufReader::new(stream.try_clone().expect("a socket can be cloned"));
        Connection { stream, reader }
    }

    /// Sends a whole request with `Host` and, where there is a body, its length; reads the answer.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.send_head(method, path, headers, body.len());
        self.send(body);
        if method == "HEAD" { self.response_head() } else { self.response() }
    }

    pub fn send_head(&mut self, method: &str, path: &str, headers: &[(&str, &str)], length: usize) {
        self.send(head(method, path, headers, length).as_bytes());
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes what it is sent");
    }

    /// Reads one answer with its body, by `Content-Length` or chunks.
    pub fn response(&mut self) -> Response {
        self.try_response().expect("a whole answer arrives")
    }

    pub fn response_head(&mut self) -> Response {
        self.try_response_head().expect("an answer arrives")
    }

    /// One answer with `Content-Length`, and the very bytes of it.
    pub fn raw_response(&mut self) -> (String, Response) {
        let mut raw = String::new();
        while !raw.ends_with("\r\n\r\n") {
            let line = self.reader.read_line(&mut raw).expect("an answer arrives");
            assert!(line > 0, "the connection ended after {raw:?}");
        }
        let mut head = read_head(&mut raw.as_bytes()).expect("a head");
        let length = head.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        head.body = vec![0; length];
        self.reader.read_exact(&mut head.body).expect("the body arrives");
        raw.push_str(&head.text());
        (raw, head)
    }

    /// A request to a server that may die meanwhile.
    pub fn try_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        self.stream.write_all(head(method, path, headers, body.len()).as_bytes())?;
        self.stream.write_all(body)?;
        self.try_response()
    }

    fn try_response(&mut self) -> io::Result<Response> {
        let mut response = self.try_response_head()?;
        if response.status == 100 || response.status == 204 {
            return Ok(response);
        }
        if response.header("transfer-encoding") == Some("chunked") {
            response.body = self.chunks()?;
        } else if let Some(length) = response.header("content-length") {
            response.body = vec![0; length.parse().expect("a length")];
            self.reader.read_exact(&mut response.body)?;
        }
        Ok(response)
    }

    fn try_response_head(&mut self) -> io::Result<Response> {
        read_head(&mut self.reader)
    }

    /// Whether the server has closed the connection, waited for.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.reader.fill_buf(), Ok([]) | Err(_))
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&read_line(&mut self.reader)?, 16).expect("a chunk size");
            let mut chunk = vec![0; size];
            self.reader.read_exact(&mut chunk)?;
            assert_eq!(read_line(&mut self.reader)?, "");
            if size == 0 {
                return Ok(body);
            }
            body.extend(chunk);
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Response> {
    let status_line = read_line(reader)?;
    let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status line: {status_line:?}"));
    let mut headers = BTreeMap::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok(Response { status, headers, body: Vec::new() });
        }
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no header: {line:?}"));
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
}

/// One line without its end; the end of the connection is an error.
fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if length > 0 || method == "POST" {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    head
}

/// An answer, header names in lower case.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The ID in `X-Version-Id`.
    pub fn version(&self) -> String {
        self.header("x-version-id").unwrap_or_else(|| panic!("no X-Version-Id: {self:?}")).to_owned()
    }
}

/// A replica's view of one client: the four transactions with the headers that real clients send.
pub struct Replica {
    pub connection: Connection,
    pub client: String,
}

impl Replica {
    pub fn new(server: &Server, client: &str) -> Replica {
        Replica { connection: server.connect(), client: client.to_owned() }
    }

    /// Of a client that nobody used before.
    pub fn of_new_client(server: &Server) -> Replica {
        Replica::new(server, &uuid::Uuid::new_v4().to_string())
    }

    pub fn add_version(&mut self, parent: &str, segment: &[u8]) -> Response {
        self.try_add_version(parent, segment).expect("the version is answered")
    }

    pub fn try_add_version(&mut self, parent: &str, segment: &[u8]) -> io::Result<Response> {
        let path = format!("/v1/client/add-version/{parent}");
        let headers = [("X-Client-Id", self.client.as_str()), ("Content-Type", SEGMENT)];
        self.connection.try_request("POST", &path, &headers, segment)
    }

    pub fn child_version(&mut self, parent: &str) -> Response {
        let path = format!("/v1/client/get-child-version/{parent}");
        let client = self.client.clone();
        self.connection.request("GET", &path, &[("X-Client-Id", &client)], b"")
    }

    pub fn add_snapshot(&mut self, version: &str, snapshot: &[u8]) -> Response {
        self.try_add_snapshot(version, snapshot).expect("the snapshot is answered")
    }

    pub fn try_add_snapshot(&mut self, version: &str, snapshot: &[u8]) -> io::Result<Response> {
        let path = format!("/v1/client/add-snapshot/{version}");
        let headers = [("X-Client-Id", self.client.as_str()), ("Content-Type", SNAPSHOT)];
        self.connection.try_request("POST", &path, &headers, snapshot)
    }

    /// Every version that follows `parent`: parent, ID and segment, in order.
    pub fn walk(&mut self, parent: &str) -> Vec<(String, String, Vec<u8>)> {
        let mut chain: Vec<(String, String, Vec<u8>)> = Vec::new();
        loop {
            let parent = chain.last().map_or(parent, |(_, id, _)| id).to_owned();
            let response = self.child_version(&parent);
            if response.status != 200 {
                assert_eq!(response.status, 404, "the chain's end: {response:?}");
                return chain;
            }
            assert_eq!(response.header("x-parent-version-id"), Some(parent.as_str()));
            chain.push((parent, response.version(), response.body));
        }
    }

    pub fn snapshot(&mut self) -> Response {
        let client = self.client.clone();
        self.connection.request("GET", "/v1/client/snapshot", &[("X-Client-Id", &client)], b"")
    }
}

/// Reproducible chance. The seed is printed; `SYNC_SERVER_TEST_SEED` sets it.
pub struct Random(u64);

impl Random {
    pub fn new(purpose: &str) -> Random {
        let given = std::env::var("SYNC_SERVER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        eprintln!("{purpose}: SYNC_SERVER_TEST_SEED={seed}");
        Random(seed)
    }

    /// For a thread, so that its numbers do not depend on how fast the others run.
    pub fn split(&mut self) -> Random {
        Random(self.next())
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// The generator "splitmix64".
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// `rounds` in an ordinary run, `many` in a soak.
pub fn soak(rounds: usize, many: usize) -> usize {
    if std::env::var_os("SYNC_SERVER_TEST_SOAK").is_some() { many } else { rounds }
}

/// What `tests/run` put under the build directory for the tests; `None`, after a word about it,
/// where it is missing.
pub fn tool(name: &str, path: &str) -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-tools");
    let tool = tools.join(path);
    if tool.exists() {
        return Some(tool);
    }
    skip(&format!("{name} is not at {}; `tests/run` puts it there", tool.display()));
    None
}

/// Says why a test cannot run here. Where everything must run, as under `tests/run`, that is a failure.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("SYNC_SERVER_TEST_REQUIRE_TOOLS").is_none(), "{reason}");
    say_skipped(reason);
}

/// Says which fault cannot be made on this machine. `tests/run` finds out before whether any can.
pub fn skip_fault(reason: &str) {
    assert!(std::env::var_os("SYNC_SERVER_TEST_REQUIRE_FAULTS").is_none(), "{reason}");
    say_skipped(reason);
}

/// Says why something is not tested. Runners keep what a test that passes has printed to themselves, so
/// `tests/run` names a file for it too.
pub fn say_skipped(reason: &str) {
    eprintln!("skipped: {reason}");
    let Some(path) = std::env::var_os("SYNC_SERVER_TEST_SKIPPED") else { return };
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(format!("{reason}\n").as_bytes())).expect("it can be written");
}
