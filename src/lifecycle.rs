//! The order of start and stop.
//!
//! What can fail visibly comes first: certificate, directory, lock, listeners, database. Then the process goes
//! into the background, if asked to; only then do threads begin. Knows every other room by its
//! front door, and nothing of requests.

mod caretaker;
mod declared;
mod directory;
mod files;
mod greeting;
mod notify;
mod running;

use crate::config::{Config, Environment, LogFormat, place};
use crate::http::Entrance;
use crate::listen::{self, Listener, Way};
use crate::storage::location::Location;
use crate::storage::lock::DirectoryLock;
use crate::tls::{self, Acceptor};
use crate::{daemon, logging};
use rustix::fs::Mode;
use std::io::IsTerminal;
use std::time::Duration;

/// How long the end waits for a log that takes no lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Twice this much freed memory stays with the process, to be used again.
const KEPT_HEAP: usize = 2 * 1024 * 1024;

/// Why the server did not start, or did not end well.
#[derive(Debug)]
pub struct Failure {
    /// What failed, on what, and what helps, one line each: for the terminal.
    pub message: String,
    /// 1 for a failure, 64 for wrong usage, 78 for a wrong configuration.
    pub exit_code: u8,
    /// Whether standard error holds it already, as lines of a log for programs.
    pub is_told: bool,
}

/// The sockets of the service manager, or what is wrong with them.
type Handed = Result<Vec<Listener>, Vec<String>>;

/// What the server needs before any thread exists.
struct Premises {
    location: Location,
    /// Of the data directory, where there is one.
    lock: Option<DirectoryLock>,
    listeners: Vec<Listener>,
    /// The certificate, and what was found in its files.
    tls: Option<(Acceptor, tls::Report)>,
    /// What the operator should know about the database.
    warnings: Vec<String>,
}

/// Runs the server until a signal stops it.
///
/// With `config.daemonize` the calling process ends as soon as the one in the background serves.
/// `environment` is where the service manager's directories are found.
pub fn serve(mut config: Config, environment: &Environment) -> Result<(), Failure> {
    // Client IDs are credentials: what this process makes is nobody else's to read.
    rustix::process::umask(Mode::from_raw_mode(0o027));
    keep_heap();
    let held = logging::install(&config.log).map_err(failure)?;
    let handed = listen::handed_over(environment, config.is_secure());
    if let Ok(listeners) = &handed {
        adopt(&mut config, listeners);
    }
    config.warnings.extend(files::provide(&mut config.limits.connections));
    if config.daemonize {
        in_background(&config, environment, handed, held)
    } else {
        in_foreground(&config, environment, handed, held)
    }
}

/// Teaches glibc's allocator, which learns from what is freed, to keep a few MiB instead of 128 KiB. Else
/// every body of 100 KiB is given back to the kernel at once, and the next one's pages are faulted in
/// anew, which takes longer than to read it. The block itself is never touched.
fn keep_heap() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT_HEAP)));
}

/// What clients reach are the sockets that the service manager has handed over, whatever was configured.
fn adopt(config: &mut Config, handed: &[Listener]) {
    let main = handed.iter().filter(|listener| listener.entrance() == Entrance::Main);
    let listen: Vec<_> = main.map(Listener::endpoint).collect();
    if listen.is_empty() {
        return;
    }
    let before = config.strangers();
    config.warnings.retain(|warning| Some(warning) != before.as_ref());
    config.listen = listen;
    config.warnings.extend(config.strangers());
}

fn in_foreground(
    config: &Config,
    environment: &Environment,
    handed: Handed,
    held: logging::Held,
) -> Result<(), Failure> {
    let log = held.write().map_err(failure)?;
    let mut served = prepare(config, environment, handed)
        .and_then(|premises| running::run(config, environment, premises, &log, || ()));
    record(&mut served, config);
    log.finish(LAST_LINES);
    served
}

/// The same with a fork in the middle, before which nothing has a thread or an open database.
fn in_background(
    config: &Config,
    environment: &Environment,
    handed: Handed,
    held: logging::Held,
) -> Result<(), Failure> {
    let premises = match prepare(config, environment, handed) {
        Ok(premises) => premises,
        Err(failure) => {
            // What was done until then is worth knowing, a copy of the database above all.
            let mut failed = Err(failure);
            record(&mut failed, config);
            let _ = held.write().map(|log| log.finish(LAST_LINES));
            return failed.map(|_: Premises| ());
        }
    };
    let mut background = daemon::detach(config.pid_file.as_deref()).map_err(failure)?;
    premises.lock.iter().for_each(DirectoryLock::write_pid);
    let served = held.write().map_err(failure).and_then(|log| {
        let mut served = running::run(config, environment, premises, &log, || background.ready());
        record(&mut served, config);
        log.finish(LAST_LINES);
        served
    });
    if let Err(failure) = &served {
        background.failed(&failure.message);
    }
    served
}

/// Does everything that can fail for a reason outside of this program.
fn prepare(config: &Config, environment: &Environment, handed: Handed) -> Result<Premises, Failure> {
    greeting::begin();
    let wrong = |message| Failure { exit_code: 78, ..failure(message) };
    let handed = handed.map_err(|failures| wrong(failures.join("\n")))?;
    let location = locate(config, environment).map_err(wrong)?;
    let certificates = place::certificates(config, environment).map_err(wrong)?;
    let tls = Acceptor::load(config, &certificates).map_err(failure)?;
    let lock = match location.directory() {
        Some(directory) => {
            directory::make(directory).map_err(failure)?;
            Some(DirectoryLock::take(directory).map_err(failure)?)
        }
        None if config.acme.is_on() => {
            directory::make(&certificates).map_err(failure)?;
            None
        }
        None => None,
    };
    let listeners = listeners(config, handed).map_err(|failures| failure(failures.join("\n")))?;
    location.tidy().map_err(|error| failure(error.message))?;
    let prepared = location.prepare(config.migrate, &config.migration, notify::progress);
    let warnings = prepared.map_err(|error| failure(error.message))?;
    location.take_over().map_err(|error| failure(error.message))?;
    Ok(Premises { location, lock, listeners, tls, warnings })
}

/// The sockets that were handed over, and others where none of that kind was.
fn listeners(config: &Config, mut handed: Vec<Listener>) -> Result<Vec<Listener>, Vec<String>> {
    let plain = |entrance| Way { entrance, is_plain: true };
    let mut doors = vec![
        (Way { entrance: Entrance::Main, is_plain: !config.is_secure() }, &config.listen[..]),
        (plain(Entrance::Side), &config.http_listen),
        (plain(Entrance::Monitor), &config.metrics_listen),
    ];
    doors.retain(|(way, _)| !handed.iter().any(|listener| listener.entrance() == way.entrance));
    greeting::handed(&handed);
    handed.extend(listen::bind(&doors, &config.unix)?);
    Ok(handed)
}

/// Where the configuration says that the data is.
fn locate(config: &Config, environment: &Environment) -> Result<Location, String> {
    match Location::elsewhere(config)? {
        Some(location) => Ok(location),
        None => place::data_dir(config, environment).map(Location::Directory),
    }
}

/// The terminal or the service manager is told the failure anyway; a log in a file would end without it.
/// Where standard error is a log for programs, and nobody's terminal, it is told in that log's own lines.
fn record<T>(outcome: &mut Result<T, Failure>, config: &Config) {
    let Err(failure) = outcome else { return };
    let is_for_programs = config.log.file.is_none()
        && config.log.format == LogFormat::Json
        && !std::io::stderr().is_terminal()
        && log::log_enabled!(log::Level::Error);
    if is_for_programs || config.log.file.is_some() {
        failure.message.lines().for_each(|line| log::error!("{line}"));
    }
    failure.is_told = is_for_programs;
}

fn failure(message: String) -> Failure {
    Failure { message, exit_code: 1, is_told: false }
}
