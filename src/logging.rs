//! The log: lines for people or for programs, written behind the caller's back.
//!
//! A line is formatted by the thread that logs it and handed to one writer thread through a
//! bounded queue: a log that nobody reads can lose lines, never hold up a request. The
//! logger is the one global of this program, because the crate `log` knows no other way. Knows of
//! the configuration only [`config::Log`].

mod line;
mod queue;

use crate::config::{self, LogFormat};
use line::{Json, Sink, Text};
use log::{Log, Metadata, Record};
use queue::{Output, Queue};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a panic of the main thread waits for its line to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The reference server's name in directives that users already have.
const REFERENCE_SERVER: &str = "taskchampion_sync_server";

/// A log that keeps its lines, because its thread does not run yet.
pub struct Held {
    handle: Handle,
    output: Output,
}

/// The running log.
#[derive(Clone)]
pub struct Handle {
    queue: Arc<Queue>,
    file: Option<PathBuf>,
    format: LogFormat,
}

/// Installs the global logger and starts its thread; once in a process.
///
/// Fails where the directives cannot be understood, or the log file cannot be opened.
pub fn start(log: &config::Log) -> Result<Handle, String> {
    install(log)?.write()
}

/// Installs the global logger without any thread, for a process that is yet to fork. Lines are
/// kept, up to the queue's bound, until [`Held::write`].
pub fn install(log: &config::Log) -> Result<Held, String> {
    let filter = filter(&log.level)?;
    let output: Output = match &log.file {
        Some(path) => Box::new(open(path)?),
        None => Box::new(std::io::stderr()),
    };
    let queue = Arc::new(Queue::default());
    let sink = queue.clone();
    let lines = Lines::new(log.format, Box::new(move |line| sink.push(line)));
    log::set_max_level(filter.filter());
    log::set_boxed_logger(Box::new(Logger { filter, lines }))
        .map_err(|_| "the log was started twice".to_owned())?;
    log_panics(queue.clone());
    Ok(Held { handle: Handle { queue, file: log.file.clone(), format: log.format }, output })
}

impl Held {
    /// Starts the thread that writes, in the process that logs: threads do not survive a fork.
    pub fn write(self) -> Result<Handle, String> {
        let Held { handle, output } = self;
        let (queue, format) = (handle.queue.clone(), handle.format);
        let thread = std::thread::Builder::new().name("log".to_owned());
        let spawned =
            thread.spawn(move || queue.drain(output, |lost, cause| lost_lines(format, lost, cause)));
        spawned.map_err(|error| format!("cannot start the log's thread: {error}"))?;
        Ok(handle)
    }
}

impl Handle {
    /// Opens the log file anew, after a rotation moved the old one away. What was logged before
    /// goes to the old file, which stays in use where this fails. Without a log file there is
    /// nothing to do, which `false` says.
    pub fn reopen(&self) -> Result<bool, String> {
        let Some(path) = &self.file else { return Ok(false) };
        self.queue.redirect(Box::new(open(path)?));
        Ok(true)
    }

    /// Writes what is queued and ends the log, but waits no longer than `patience` for an output
    /// that takes no lines.
    pub fn finish(&self, patience: Duration) {
        self.queue.finish(patience);
    }
}

/// Whether these are directives that [`start`] understands, as `info,sync_server::http=debug`.
pub fn check_level(directives: &str) -> Result<(), String> {
    filter(directives).map(|_| ())
}

/// The main thread's end is the process', which would take with it the line that says why.
fn log_panics(queue: Arc<Queue>) {
    std::panic::set_hook(Box::new(move |panic| {
        log::error!("a defect in this program: {panic}");
        if std::thread::current().name() == Some("main") {
            queue.finish(LAST_WORDS);
        }
    }));
}

struct Logger {
    filter: env_filter::Filter,
    lines: Lines,
}

enum Lines {
    Text(Text),
    Json(Json),
}

impl Lines {
    fn new(format: LogFormat, sink: Sink) -> Lines {
        match format {
            LogFormat::Text => Lines::Text(Text::new(sink)),
            LogFormat::Json => Lines::Json(Json::new(sink)),
        }
    }

    fn log(&self, record: &Record<'_>) {
        match self {
            Lines::Text(text) => text.log(record),
            Lines::Json(json) => json.log(record),
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.matches(record) {
            self.lines.log(record);
        }
    }

    fn flush(&self) {}
}

fn filter(directives: &str) -> Result<env_filter::Filter, String> {
    let directives = directives.replace(REFERENCE_SERVER, "sync_server");
    let mut builder = env_filter::Builder::new();
    let parsed = builder.try_parse(&directives).map(|builder| builder.build());
    parsed.map_err(|error| format!("cannot understand the log level {directives:?}: {error}"))
}

/// Readable by the group, so that an operator need not be root to read it.
fn open(path: &Path) -> Result<File, String> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640);
    // A pipe that nobody reads is an error: to wait for its reader would hold up the start, or a reload.
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    options.open(path).map_err(|error| {
        let advice = match error.kind() {
            ErrorKind::ReadOnlyFilesystem => format!(
                "the file system is mounted read-only: name another with log.file, or under systemd add \
                 ReadWritePaths={} to the unit",
                path.parent().unwrap_or(path).display()
            ),
            _ => format!(
                "uid {} must be able to write it: correct that, or name another with log.file",
                rustix::process::geteuid().as_raw()
            ),
        };
        format!("cannot open the log file {}: {error}; {advice}", path.display())
    })
}

/// The line that takes the place of lines that were lost.
fn lost_lines(format: LogFormat, lost: u64, cause: &str) -> Vec<u8> {
    let (sender, lines) = std::sync::mpsc::channel();
    let format = Lines::new(format, Box::new(move |line| drop(sender.send(line.to_vec()))));
    let mut record = Record::builder();
    record.level(log::Level::Warn).target(module_path!());
    format.log(&record.args(format_args!("{lost} log lines were lost: {cause}")).build());
    lines.try_iter().flatten().collect()
}
