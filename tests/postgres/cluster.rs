//! Starts real Postgres servers, each in a directory of its own and gone with its test.
//!
//! Used by the library's own tests too, so it stands by itself.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server. Killed when dropped.
pub struct Cluster {
    dir: tempfile::TempDir,
    child: Option<Child>,
    pub port: u16,
    settings: Vec<String>,
}

/// Debian's server, in its newest version.
pub fn binaries() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let bins = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    bins.filter(|bin| bin.join("initdb").exists()).max()
}

/// Says why a test cannot run here. Where everything must run, as under `tests/run`, that is a failure.
fn missing() {
    let reason = "Postgres is not at /usr/lib/postgresql; `tests/run` installs it";
    assert!(std::env::var_os("SYNC_SERVER_TEST_REQUIRE_TOOLS").is_none(), "{reason}");
    eprintln!("skipped: {reason}");
}

/// A command that does not run as root, which Postgres refuses.
pub fn command(program: &Path) -> Command {
    if !is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        return command;
    }
    let mut command = Command::new("setpriv");
    // Whatever becomes of the test, the server ends with it.
    command.args(["--pdeathsig", "KILL"]);
    let id = user().0.to_string();
    command.args(["--reuid", &id, "--regid", &user().1.to_string(), "--clear-groups", "--"]).arg(program);
    command
}

fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|data| data.uid() == 0)
}

/// Debian's user for it, else nobody.
fn user() -> (u32, u32) {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = accounts.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    found.unwrap_or((65534, 65534))
}

/// A directory that the server's user may use.
pub fn directory() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").expect("a directory");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
    if is_root() {
        chown(dir.path(), Some(user().0), Some(user().1)).expect("root may");
    }
    dir
}

/// Gives a file to the server's user.
pub fn give(file: &Path) {
    if is_root() {
        chown(file, Some(user().0), Some(user().1)).expect("root may");
    }
}

pub fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Cluster {
    /// An empty server with these settings; `None`, after a word about it, where there is no Postgres.
    pub fn start(settings: &[&str]) -> Option<Cluster> {
        let Some(bin) = binaries() else {
            missing();
            return None;
        };
        let dir = directory();
        let data = dir.path().join("data");
        run(command(&bin.join("initdb")).arg("-D").arg(&data).args([
            "--auth=trust",
            "--username=postgres",
            "--no-sync",
            "--no-instructions",
            "--encoding=UTF8",
            "--locale=C",
        ]));
        Some(Cluster::start_in(dir, settings))
    }

    /// Starts on a directory that holds a database already, in `data`.
    pub fn start_in(dir: tempfile::TempDir, settings: &[&str]) -> Cluster {
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut cluster = Cluster { dir, child: None, port: 0, settings };
        cluster.resume();
        cluster
    }

    /// Starts it again where it was stopped or killed, at the same port.
    pub fn resume(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.port == 0 {
                self.port = free_port();
            }
            if self.try_start(deadline) {
                return;
            }
            // Somebody else took the port between two calls.
            self.port = 0;
            assert!(Instant::now() < deadline, "Postgres does not start: {}", self.log());
        }
    }

    fn try_start(&mut self, deadline: Instant) -> bool {
        let bin = binaries().expect("it was there before");
        let mut postgres = command(&bin.join("postgres"));
        postgres.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-k"]).arg(self.dir.path());
        let fast =
            ["listen_addresses=127.0.0.1", "fsync=off", "max_connections=100", "logging_collector=off"];
        for setting in fast.into_iter().chain(self.settings.iter().map(String::as_str)) {
            postgres.args(["-c", setting]);
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log"));
        let mut child =
            postgres.stdin(Stdio::null()).stderr(log.expect("a log")).spawn().expect("the program starts");
        while Instant::now() < deadline {
            if child.try_wait().expect("the child can be waited for").is_some() {
                return false;
            }
            if self.is_ready() {
                self.child = Some(child);
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }

    fn is_ready(&self) -> bool {
        let bin = binaries().expect("it was there before");
        let mut asks = Command::new(bin.join("pg_isready"));
        asks.args(["-q", "-t", "1", "-p", &self.port.to_string(), "-h"]).arg(self.dir.path());
        asks.status().is_ok_and(|status| status.success())
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn log(&self) -> String {
        let mut text = String::new();
        let opened = std::fs::File::open(self.dir.path().join("log"));
        let _ = opened.and_then(|mut file| file.read_to_string(&mut text));
        text
    }

    /// The process' ID.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// A connection string for a database, by its unix socket.
    pub fn local(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.dir.path().display(), self.port)
    }

    /// The same by TCP, as a URI.
    pub fn uri(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs SQL in a database and gives its rows, one a line, columns divided by `|`.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = Command::new(binaries().expect("it was there before").join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.local(database), "-c", sql]);
        let output = psql.stdin(Stdio::null()).output().expect("psql runs");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Runs a file of SQL in a database.
    pub fn load(&self, database: &str, file: &Path) {
        let mut psql = Command::new(binaries().expect("it was there before").join("psql"));
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.local(database), "-f"]).arg(file);
        run(&mut psql);
    }

    /// Connections that hold a transaction open and do nothing in it. One that is between two statements
    /// just now looks the same, so they are looked at for a while.
    pub fn idle_in_transaction(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let idle = self.sql(
                "postgres",
                "SELECT pid, query FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'",
            );
            if idle.is_empty() || Instant::now() > deadline {
                return idle;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills all of it as a power loss would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal_all(child.id(), "KILL");
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.child.is_some() && self.is_ready() {
            let idle = self.idle_in_transaction();
            self.kill();
            assert_eq!(idle, "", "transactions were left open");
        }
        self.kill();
    }
}

/// Sends a signal to a server and all of its processes.
pub fn signal_all(pid: u32, signal: &str) {
    let send = |to: Vec<String>| {
        let _ = Command::new("kill").arg(format!("-{signal}")).args(to).stderr(Stdio::null()).status();
    };
    // Those that are made from now on would be missed; one that is killed first leaves none behind.
    if signal == "STOP" {
        send(vec![pid.to_string()]);
    }
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    send(children.split_whitespace().map(str::to_owned).chain([pid.to_string()]).collect());
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}
