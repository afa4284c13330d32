//! Starts servers, and looks at them from outside.

use crate::Result;
use crate::options::{How, Subject};
use crate::prefill;
use crate::tls::Certificate;
use crate::wire::Place;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a server may take to start; one that adopts a large database rewrites a part of it first.
const PATIENCE: Duration = Duration::from_secs(900);

const OWN: &str = concat!(env!("CARGO_BIN_EXE_sync-server"), " --listen 127.0.0.1:0 --data-dir {dir}");

const OWN_ON_POSTGRES: &str =
    concat!(env!("CARGO_BIN_EXE_sync-server"), " --listen 127.0.0.1:0 --connection {connection}");

const LISTENS: &str = "listening on ";

/// A server to load. Killed when dropped, and its directory removed, unless it ran already.
pub struct Server {
    pub place: Place,
    process: Option<Process>,
}

impl Server {
    /// Starts in a directory of its own below `root`, once `prepare` has put there what it is to find; or on
    /// this database.
    pub fn start(
        subject: &Subject,
        root: &Path,
        connection: Option<&str>,
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Server> {
        let line = match &subject.how {
            How::Runs(url) => return Ok(Server { place: Place::parse(url)?, process: None }),
            How::Own if connection.is_some() => OWN_ON_POSTGRES,
            How::Own => OWN,
            How::Command(line) => line,
        };
        let line = &line.replace("{connection}", connection.unwrap_or_default());
        let port = free_port()?;
        let mut process = Process::start(line, port, root, prepare)?;
        let place = match subject.how {
            How::Own => Place::parse(&process.wait_for(Process::url_in_log)?)?,
            _ => process
                .wait_for(|_| TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(place(port)))?,
        };
        Ok(Server { place, process: Some(process) })
    }

    /// Starts this package's own program, with a certificate and these flags.
    pub fn start_secure(
        subject: &Subject,
        root: &Path,
        certificate: &Certificate,
        flags: &[&str],
    ) -> Result<Server> {
        let How::Own = subject.how else { return Err("it cannot be given a certificate".to_owned()) };
        let files =
            format!("--tls-cert {} --tls-key {}", certificate.cert.display(), certificate.key.display());
        let line = format!("{OWN} {files} {}", flags.join(" "));
        let mut process = Process::start(&line, 0, root, |_| Ok(()))?;
        let place = Place::parse(&process.wait_for(Process::url_in_log)?)?;
        Ok(Server { place: place.trusting(certificate.client.clone()), process: Some(process) })
    }

    /// The process' ID, where this program started it.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    /// The database, where this program started it.
    pub fn data_file(&self) -> Result<PathBuf> {
        let process = self.process.as_ref().ok_or("its data is not known")?;
        Ok(process.dir.path().join("data").join(prefill::NAME))
    }

    /// The end of its log, where this program started it.
    pub fn log_end(&self) -> String {
        self.process.as_ref().map(Process::log_end).unwrap_or_default()
    }
}

fn place(port: u16) -> Place {
    Place::at(([127, 0, 0, 1], port).into())
}

/// A figure of a process' memory in MiB: `VmRSS`, what is resident now, or `VmHWM`, what was at most.
pub fn memory(pid: u32, name: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).ok_or(format!("{path} has no {name}"))
}

/// What a process and its children take in MiB, where what they share counts once.
pub fn shared_memory(pid: u32) -> Result<f64> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let all = children.split_whitespace().map(str::to_owned).chain([pid.to_string()]);
    let mut sum = 0.0;
    for pid in all {
        // A child may end meanwhile.
        let Ok(rollup) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
        sum += kib.ok_or("smaps_rollup has no Pss")? / 1024.0;
    }
    Ok(sum)
}

/// Free now; nobody else is expected to take it at once.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|error| format!("no free port: {error}"))
}

struct Process {
    child: Child,
    dir: TempDir,
}

impl Process {
    fn start(
        line: &str,
        port: u16,
        root: &Path,
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Process> {
        let fail = |error: std::io::Error| format!("{line}: {error}");
        let dir = TempDir::new_in(root).map_err(fail)?;
        let data = dir.path().join("data");
        std::fs::create_dir(&data).map_err(fail)?;
        prepare(&data)?;
        let fill =
            |word: &str| word.replace("{port}", &port.to_string()).replace("{dir}", &data.to_string_lossy());
        let mut words = line.split_whitespace().map(fill);
        let mut command = Command::new(words.next().ok_or("an empty command")?);
        // Without the environment of whoever measures, of which a server might take something for an option.
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let log = File::create(dir.path().join("log")).map_err(fail)?;
        let output = log.try_clone().map_err(fail)?;
        let child = command.stdin(Stdio::null()).stdout(output).stderr(log).spawn().map_err(fail)?;
        Ok(Process { child, dir })
    }

    fn wait_for<T>(&mut self, ready: impl Fn(&Process) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(ready) = ready(self) {
                return Ok(ready);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("the server ended with {status}; its log:\n{}", self.log_end()));
            }
            sleep(Duration::from_millis(10));
        }
        Err(format!("the server did not start; its log:\n{}", self.log_end()))
    }

    fn url_in_log(&self) -> Option<String> {
        let log = std::fs::read_to_string(self.log()).ok()?;
        let line = log.lines().find(|line| line.contains(LISTENS) && log.ends_with('\n'))?;
        let rest = line.split(LISTENS).nth(1)?;
        rest.split([' ', '"']).next().map(str::to_owned)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn log_end(&self) -> String {
        let bytes = std::fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counts the system calls of a process that make files durable. Needs `strace`.
pub struct Trace {
    strace: Child,
    output: PathBuf,
}

impl Trace {
    /// Counts from when this returns. `None` where there is no `strace`.
    pub fn start(pid: u32, dir: &Path) -> Result<Option<Trace>> {
        let output = dir.join("strace");
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=fsync,fdatasync,sync_file_range,msync", "-o"]).arg(&output);
        command
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let strace = match command.spawn() {
            Ok(strace) => strace,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("strace: {error}")),
        };
        let mut trace = Trace { strace, output };
        trace.wait_until_attached(pid)?;
        Ok(Some(trace))
    }

    fn wait_until_attached(&mut self, pid: u32) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if is_traced(pid) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.strace.try_wait() {
                return Err(format!("strace ended with {status}: it may need to run as root"));
            }
            sleep(Duration::from_millis(10));
        }
        Err("strace did not attach".to_owned())
    }

    /// The calls so far.
    pub fn finish(mut self) -> Result<usize> {
        // It writes the rest of its output when asked to end.
        let pid = rustix::process::Pid::from_child(&self.strace);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|error| format!("strace: {error}"))?;
        self.strace.wait().map_err(|error| format!("strace: {error}"))?;
        let text = std::fs::read_to_string(&self.output).map_err(|error| format!("strace: {error}"))?;
        Ok(text.lines().filter(|line| line.contains("sync") && !line.contains("resumed>")).count())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
        let _ = std::fs::remove_file(&self.output);
    }
}

/// Whether every thread has a tracer.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let status = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("status"));
    let traced = |status: String| !status.contains("TracerPid:\t0\n");
    threads.flatten().all(|thread| status(thread).is_ok_and(traced))
}
