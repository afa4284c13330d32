//! The control socket: what an operator's command asks of the running server.
//!
//! One line with a verb in, one line with `ok` or `error` and a text out. Only root and the
//! server's own user may ask. Knows sockets and lines, not what the verbs do.

use crate::config::{Config, Environment, place};
use crate::storage::lock;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// The socket's name in its directory.
const FILE_NAME: &str = "control.sock";

/// The longest line that is read, in bytes.
const LINE: u64 = 4096;

/// What a line for the server's log begins with.
pub const NOTE: &str = "note ";

/// How long a command may take to say what it wants.
const ASK: Duration = Duration::from_secs(5);

/// How long a command waits for the server's answer.
const ANSWER: Duration = Duration::from_secs(30);

/// The longest path that the system takes for a socket, in bytes.
const LONGEST_PATH: usize = 107;

/// What the running server does with a verb: a text for whoever asked, or why it failed.
pub type Answer = Arc<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// The bound socket; its file goes with it.
pub struct Socket {
    listener: net::UnixListener,
    path: PathBuf,
}

/// Where the socket of a server with this data directory is: in the first of `$RUNTIME_DIRECTORY`,
/// else in the data directory.
pub fn path(data_dir: &Path, environment: &Environment) -> PathBuf {
    let runtime = environment.var("RUNTIME_DIRECTORY").and_then(|dirs| dirs.split(':').next());
    runtime.map_or(data_dir, Path::new).join(FILE_NAME)
}

impl Socket {
    /// Binds the socket, in place of one that a killed server left behind.
    pub fn bind(path: &Path) -> Result<Socket, String> {
        let failed = |why: String| format!("cannot make the control socket {}: {why}", path.display());
        check_length(path).map_err(failed)?;
        make_way(path).map_err(failed)?;
        let listener = net::UnixListener::bind(path).map_err(|error| failed(error.to_string()))?;
        let socket = Socket { listener, path: path.to_owned() };
        let private = std::fs::set_permissions(path, Permissions::from_mode(0o600));
        private
            .and_then(|()| socket.listener.set_nonblocking(true))
            .map_err(|error| failed(error.to_string()))?;
        Ok(socket)
    }

    /// Answers until it is dropped. Runs in a tokio runtime.
    pub async fn serve(self, answer: Answer) -> std::io::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(converse(stream, answer.clone()))),
                Err(error) => {
                    log::debug!("control socket: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Asks the running server, and returns what it answers.
///
/// Blocks for at most half a minute. Fails where no server runs on the data directory, which the
/// message names, and where the server says that it could not do it.
pub fn ask(config: &Config, environment: &Environment, verb: &str) -> Result<String, String> {
    let data_dir = place::data_dir(config, environment)?;
    let path = lock::control_socket(&data_dir).unwrap_or_else(|| path(&data_dir, environment));
    check_length(&path).map_err(|why| format!("cannot ask at {}: {why}", path.display()))?;
    let stream = net::UnixStream::connect(&path).map_err(|error| no_server(&error, &path, &data_dir))?;
    let answer = stream
        .set_read_timeout(Some(ANSWER))
        .and_then(|()| exchange(stream, verb))
        .map_err(|error| format!("the server at {} did not answer: {error}", path.display()))?;
    match answer.trim_end().split_once(' ') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some(("error", why)) => Err(why.to_owned()),
        _ => Err(format!("the server at {} answered {answer:?}", path.display())),
    }
}

/// Has the running server put a line into its log. Without one, or where it does not answer soon,
/// nothing happens: the line is no more than a copy.
pub fn note(data_dir: &Path, environment: &Environment, line: &str) {
    let path = lock::control_socket(data_dir).unwrap_or_else(|| path(data_dir, environment));
    if check_length(&path).is_err() {
        return;
    }
    let told = net::UnixStream::connect(&path).and_then(|stream| {
        stream.set_read_timeout(Some(ASK))?;
        exchange(stream, &format!("{NOTE}{}", line.replace('\n', " ")))
    });
    if let Err(error) = told {
        log::debug!("nobody was told at {}: {error}", path.display());
    }
}

/// Whether a server runs on the data directory, as far as its control socket tells.
pub fn is_there(data_dir: &Path, environment: &Environment) -> bool {
    let path = lock::control_socket(data_dir).unwrap_or_else(|| path(data_dir, environment));
    check_length(&path).is_ok() && net::UnixStream::connect(&path).is_ok()
}

async fn converse(mut stream: UnixStream, answer: Answer) {
    let line = match tokio::time::timeout(ASK, question(&mut stream)).await {
        Ok(Ok(verb)) => match answer(verb.trim_end()) {
            Ok(text) => format!("ok {}\n", text.replace('\n', " ")),
            Err(why) => format!("error {}\n", why.replace('\n', " ")),
        },
        Ok(Err(why)) => format!("error {why}\n"),
        Err(_) => return,
    };
    // Whoever asked may have gone.
    let _ = tokio::time::timeout(ASK, stream.write_all(line.as_bytes())).await;
}

/// The verb, or why this one gets no answer. It is read in any case: whoever is still writing when
/// the server hangs up never sees its answer.
async fn question(stream: &mut UnixStream) -> Result<String, String> {
    let peer = stream.peer_cred().map_err(|error| error.to_string())?.uid();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(stream.take(LINE));
    reader.read_line(&mut line).await.map_err(|error| error.to_string())?;
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(format!("uid {peer} may not control this server: root and its own user may"));
    }
    if line.ends_with('\n') { Ok(line) } else { Err("this is no line".to_owned()) }
}

fn exchange(mut stream: net::UnixStream, verb: &str) -> std::io::Result<String> {
    stream.set_write_timeout(Some(ASK))?;
    stream.write_all(format!("{verb}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE)).read_line(&mut answer)?;
    if answer.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

/// We hold the data directory's lock, so a socket there is a dead server's. In a runtime directory
/// that two data directories share it may be a living one's.
fn make_way(path: &Path) -> Result<(), String> {
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(data) if !data.file_type().is_socket() => Err("a file of another kind is in its place".to_owned()),
        Ok(_) if net::UnixStream::connect(path).is_ok() => Err("another server answers there".to_owned()),
        Ok(_) => std::fs::remove_file(path).map_err(|error| error.to_string()),
    }
}

fn check_length(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().len();
    if length <= LONGEST_PATH {
        return Ok(());
    }
    Err(format!(
        "the path has {length} bytes, and the system takes {LONGEST_PATH} for a socket: \
         set RUNTIME_DIRECTORY to a shorter directory"
    ))
}

fn no_server(error: &std::io::Error, path: &Path, data_dir: &Path) -> String {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
            "no server is running with the data directory {} (nobody answers at {})",
            data_dir.display(),
            path.display()
        ),
        ErrorKind::PermissionDenied => {
            format!("{}: {error}: root and the server's own user may control it", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    }
}
