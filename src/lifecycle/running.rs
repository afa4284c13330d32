//! The server while it runs: threads, runtimes, signals, and the way down.
//!
//! Two runtimes: one with many threads for the network, and one on the main thread that attends to
//! signals, so that a second signal is heard whatever the network does.

use super::caretaker::Caretaker;
use super::{Failure, Premises, declared, failure, greeting, notify};
use crate::backup::schedule::Schedule;
use crate::config::{Config, Environment};
use crate::control::Socket;
use crate::http::{App, Entrance, Look, SideDoor};
use crate::listen;
use crate::metrics::{Affairs, Backups, Certificate};
use crate::service::Policy;
use crate::storage::Storage;
use crate::storage::location::Location;
use crate::storage::lock::DirectoryLock;
use crate::tls::{Acceptor, Report};
use crate::workers::{Threads, Workers};
use crate::{control, logging};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long the network's tasks may take to notice that they were cancelled.
const CANCEL: Duration = Duration::from_secs(2);

/// The same signal once more within this time is the first one's echo: whoever signals a process
/// and then its whole group, as `timeout` does, means one.
const ECHO: Duration = Duration::from_millis(500);

/// What begins what operators ask about the certificate.
const CERTIFICATE: &str = "certificate ";

/// How long a second signal waits for its line to be written.
const LAST_WORD: Duration = Duration::from_millis(200);

/// Starts the threads, serves until a signal, and stops in order. `ready` is called once it serves.
pub fn run(
    config: &Config,
    environment: &Environment,
    premises: Premises,
    log: &logging::Handle,
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let Premises { location, lock, listeners, tls, mut warnings } = premises;
    let (tls, certificate) = tls.map(|(acceptor, report)| (Arc::new(acceptor), report)).unzip();
    let storage = location.open().map_err(|error| failure(error.message))?;
    declared::provide(&*storage, &config.clients).map_err(failure)?;
    warnings.extend(greeting::nobody(config, &*storage));
    let backups = Schedule::start(&config.backup, storage.clone()).map_err(cannot_start)?;
    let database = storage.clone();
    let storage: Arc<dyn Storage> = storage;
    let policy = Policy {
        create_clients: config.create_clients,
        require_device: config.require_device,
        snapshot: config.snapshot,
    };
    let (workers, threads) = Workers::start(storage.clone(), policy).map_err(cannot_start)?;
    let caretaker =
        Caretaker::start(database, config.retention_days, workers.asked()).map_err(cannot_start)?;
    let network = Builder::new_multi_thread().thread_name("network").enable_all().build();
    let network = network.map_err(cannot_start)?;
    let main = Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
    let mut signals = {
        let _context = main.enter();
        Signals::new().map_err(cannot_start)?
    };
    main.block_on(async {
        let at = |entrance| listeners.iter().filter(move |listener| listener.entrance() == entrance);
        let (main, side) = (at(Entrance::Main).collect::<Vec<_>>(), at(Entrance::Side));
        let monitors: Vec<_> = at(Entrance::Monitor).map(|listener| listener.url("/metrics")).collect();
        let urls: Vec<_> = main.iter().map(|listener| listener.url(&config.base_path)).collect();
        let asides: Vec<_> = side.map(|listener| listener.url("/")).collect();
        let port = main.iter().filter(|listener| listener.is_secure()).find_map(|listener| listener.port());
        let side = tls.clone().zip(port).map(|(tls, port)| SideDoor::new(config, port, tls));
        let status = format!("serving at {}", urls.join(" "));
        let app = Arc::new(App::new(config, workers.clone(), side, look(backups.as_ref(), tls.clone())));
        let (stop, stopped) = watch::channel(false);
        let mut serving = network.spawn(listen::run(listeners, tls.clone(), app, stopped));
        network.spawn(notify::watchdog(workers));
        let on_disk = OnDisk { log: log.clone(), tls, status };
        open_control_socket(&location, environment, lock.as_ref(), &on_disk);
        greeting::serving(config, environment, &location, &urls, &asides);
        greeting::watched(&monitors);
        if let Some(certificate) = certificate {
            certificate.log();
        }
        on_disk.watch();
        for warning in config.warnings.iter().chain(&warnings) {
            log::warn!("{warning}");
        }
        notify::ready(&on_disk.status);
        ready();
        let ended = attend(&mut signals, &mut serving, &on_disk).await;
        let first = ended.as_ref().ok().copied();
        notify::stopping();
        // The receiver is gone where serving has ended by itself.
        let _ = stop.send(true);
        // Pinned here, so that the second signal does not drop it: it holds a runtime.
        let floor = Floor { threads, backups, caretaker, storage };
        let mut down = pin!(go_down(serving, config.limits.shutdown_timeout, network, floor));
        tokio::select! {
            () = &mut down => ended.map(|_| ()),
            signal = signals.second(first) => exit_at_once(signal, log),
        }
    })
}

/// Looks at what happens beside the requests.
fn look(backups: Option<&Schedule>, tls: Option<Arc<Acceptor>>) -> Look {
    let standing = backups.map(Schedule::standing);
    let started = seconds(SystemTime::now());
    Box::new(move || Affairs {
        started,
        backups: standing.as_ref().map(|standing| {
            let facts = standing.facts();
            Backups { newest: facts.newest.map(|found| found.at), failure: facts.failure, next: facts.next }
        }),
        certificate: tls.as_ref().map(|tls| {
            let status = tls.status();
            Certificate {
                until: status.facts.as_ref().map(|facts| seconds(facts.until)),
                next: status.next_attempt.map(seconds),
                problem: status.problem(seconds(SystemTime::now())),
            }
        }),
    })
}

/// Since 1970.
fn seconds(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

/// Follows signals until one asks for the end, and returns that.
async fn attend(
    signals: &mut Signals,
    serving: &mut JoinHandle<()>,
    on_disk: &OnDisk,
) -> Result<SignalKind, Failure> {
    loop {
        tokio::select! {
            signal = signals.next() => {
                if signal != SignalKind::hangup() {
                    log::info!("stopping: {} was received", name(signal));
                    return Ok(signal);
                }
                // The outcome is in the log: a signal has nobody else to tell it.
                let _ = on_disk.reload();
            }
            ended = &mut *serving => {
                log::error!("stopping: the listeners ended by themselves ({ended:?})");
                return Err(failure("the listeners ended by themselves; the log says why".to_owned()));
            }
        }
    }
}

/// What may change on the disk while the server runs.
#[derive(Clone)]
struct OnDisk {
    log: logging::Handle,
    tls: Option<Arc<Acceptor>>,
    /// What the service manager shows afterwards.
    status: String,
}

impl OnDisk {
    /// Takes up what changed.
    fn reload(&self) -> Result<String, String> {
        notify::reloading();
        let mut failures = Vec::new();
        match self.log.reopen() {
            Ok(true) => log::info!("the log file is open anew"),
            Ok(false) => {}
            Err(error) => failures.push(format!("the old log file stays in use: {error}")),
        }
        match self.tls.as_ref().map(|tls| tls.reload()) {
            Some(Ok(report)) => report.iter().for_each(Report::log),
            Some(Err(error)) => failures.push(format!("the old certificate stays in use: {error}")),
            None => {}
        }
        for failure in &failures {
            log::error!("not reloaded, {failure}");
        }
        notify::ready(&self.status);
        if !failures.is_empty() {
            return Err(failures.join("; "));
        }
        log::info!("reloaded");
        Ok("reloaded".to_owned())
    }

    /// Has a certificate got.
    fn certificate(&self, words: &str) -> Result<String, String> {
        let none = "this server speaks plain HTTP: acme.domain makes it get a certificate";
        self.tls.as_ref().ok_or_else(|| none.to_owned())?.answer(words)
    }

    /// Takes up what changes unasked, certificates that are got above all.
    fn watch(&self) {
        if let Some(Err(error)) = self.tls.as_ref().map(|tls| tls.start()) {
            log::warn!("certificates are not taken up or renewed by themselves: {error}");
        }
    }
}

/// Without the socket the server serves as well as with it, and some file systems have no sockets:
/// no reason to refuse the start.
fn open_control_socket(
    location: &Location,
    environment: &Environment,
    lock: Option<&DirectoryLock>,
    on_disk: &OnDisk,
) {
    let path = control::path(location.directory(), environment);
    if location.directory().is_none() && !path.parent().is_some_and(Path::is_dir) {
        log::debug!("`sync-server reload` needs $RUNTIME_DIRECTORY; the signal HUP does without");
        return;
    }
    match Socket::bind(&path) {
        Ok(socket) => {
            lock.iter().for_each(|lock| lock.write_control_socket(&path));
            let on_disk = on_disk.clone();
            tokio::spawn(socket.serve(Arc::new(move |verb| match verb {
                "reload" => on_disk.reload(),
                _ if verb.starts_with(CERTIFICATE) => on_disk.certificate(&verb[CERTIFICATE.len()..]),
                _ => match verb.strip_prefix(control::NOTE) {
                    Some(line) => {
                        log::info!("{line}");
                        Ok(String::new())
                    }
                    None => Err(format!("this server knows no {verb:?}")),
                },
            })));
        }
        Err(error) => log::warn!("`sync-server reload` will not work, the signal HUP will: {error}"),
    }
}

/// What is below the network.
struct Floor {
    threads: Threads,
    backups: Option<Schedule>,
    caretaker: Caretaker,
    storage: Arc<dyn Storage>,
}

/// Lets requests in flight finish, then ends the threads, and closes the storage last.
async fn go_down(serving: JoinHandle<()>, drain: Duration, network: Runtime, floor: Floor) {
    if !serving.is_finished() {
        let _ = tokio::time::timeout(drain + CANCEL, serving).await;
    }
    let down = tokio::task::spawn_blocking(move || {
        // With its tasks go the last senders of jobs, without which the threads end.
        network.shutdown_timeout(CANCEL);
        floor.threads.join();
        floor.caretaker.stop();
        if let Some(backups) = floor.backups {
            backups.stop();
        }
        drop(floor.storage);
    });
    match down.await {
        Ok(()) => log::info!("stopped"),
        Err(error) => log::error!("stopped, but not in order: {error}"),
    }
}

fn exit_at_once(signal: SignalKind, log: &logging::Handle) -> ! {
    log::warn!("stopped at once by a second signal, {}", name(signal));
    log.finish(LAST_WORD);
    std::process::exit(128 + signal.as_raw_value());
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }

    /// The next that asks for the end, where `first` did just now.
    async fn second(&mut self, first: Option<SignalKind>) -> SignalKind {
        let began = Instant::now();
        loop {
            let signal = self.next().await;
            let is_echo = first == Some(signal) && began.elapsed() < ECHO;
            if signal != SignalKind::hangup() && !is_echo {
                return signal;
            }
        }
    }
}

fn name(signal: SignalKind) -> &'static str {
    if signal == SignalKind::interrupt() { "SIGINT" } else { "SIGTERM" }
}

fn cannot_start(error: std::io::Error) -> Failure {
    failure(format!("cannot start: {error}"))
}
