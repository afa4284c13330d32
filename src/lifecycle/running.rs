//! The server while it runs: threads, runtimes, signals, and the way down.
//!
//! Two runtimes: one with many threads for the network, and one on the main thread that attends to
//! signals, so that a second signal is heard whatever the network does.

use super::{Failure, Premises, failure, greeting, notify};
use crate::config::{Config, Environment};
use crate::control::Socket;
use crate::http::App;
use crate::service::Policy;
use crate::storage::Storage;
use crate::storage::lock::DirectoryLock;
use crate::storage::sqlite::Sqlite;
use crate::workers::{Threads, Workers};
use crate::{control, listen, logging};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long the network's tasks may take to notice that they were cancelled.
const CANCEL: Duration = Duration::from_secs(2);

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
    let Premises { data_dir, lock, listeners, warnings } = premises;
    let storage = Sqlite::open(&data_dir).map_err(|error| failure(error.message))?;
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let policy = Policy { create_clients: config.create_clients, snapshot: config.snapshot };
    let (workers, threads) = Workers::start(storage.clone(), policy).map_err(cannot_start)?;
    let network = Builder::new_multi_thread().thread_name("network").enable_all().build();
    let network = network.map_err(cannot_start)?;
    let main = Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
    let mut signals = {
        let _context = main.enter();
        Signals::new().map_err(cannot_start)?
    };
    main.block_on(async {
        let urls: Vec<_> = listeners.iter().map(|listener| listener.url(&config.base_path)).collect();
        let status = format!("serving at {}", urls.join(" "));
        let app = Arc::new(App::new(config, workers.clone()));
        let (stop, stopped) = watch::channel(false);
        let mut serving = network.spawn(listen::run(listeners, app, stopped));
        network.spawn(notify::watchdog(workers));
        open_control_socket(&data_dir, environment, &lock, log, &status);
        greeting::serving(config, environment, &data_dir, &urls);
        for warning in config.warnings.iter().chain(&warnings) {
            log::warn!("{warning}");
        }
        notify::ready(&status);
        ready();
        let ended = attend(&mut signals, &mut serving, log, &status).await;
        notify::stopping();
        // The receiver is gone where serving has ended by itself.
        let _ = stop.send(true);
        // Pinned here, so that the second signal does not drop it: it holds a runtime.
        let mut down = pin!(go_down(serving, config.limits.shutdown_timeout, network, threads, storage));
        tokio::select! {
            () = &mut down => ended,
            signal = signals.stop() => exit_at_once(signal, log),
        }
    })
}

/// Follows signals until one asks for the end.
async fn attend(
    signals: &mut Signals,
    serving: &mut JoinHandle<()>,
    log: &logging::Handle,
    status: &str,
) -> Result<(), Failure> {
    loop {
        tokio::select! {
            signal = signals.next() => {
                if signal != SignalKind::hangup() {
                    log::info!("stopping: {} was received", name(signal));
                    return Ok(());
                }
                // The outcome is in the log: a signal has nobody else to tell it.
                let _ = reload(log, status);
            }
            ended = &mut *serving => {
                log::error!("stopping: the listeners ended by themselves ({ended:?})");
                return Err(failure("the listeners ended by themselves; the log says why".to_owned()));
            }
        }
    }
}

/// Takes up what changed on the disk.
fn reload(log: &logging::Handle, status: &str) -> Result<String, String> {
    notify::reloading();
    let reopened = log.reopen();
    match &reopened {
        Ok(()) => log::info!("reloaded: the log file is open anew"),
        Err(error) => log::error!("not reloaded, the old log file stays in use: {error}"),
    }
    notify::ready(status);
    reopened.map(|()| "reloaded".to_owned())
}

/// Without the socket the server serves as well as with it, and some file systems have no sockets:
/// no reason to refuse the start.
fn open_control_socket(
    data_dir: &Path,
    environment: &Environment,
    lock: &DirectoryLock,
    log: &logging::Handle,
    status: &str,
) {
    let path = control::path(data_dir, environment);
    match Socket::bind(&path) {
        Ok(socket) => {
            lock.write_control_socket(&path);
            let (log, status) = (log.clone(), status.to_owned());
            tokio::spawn(socket.serve(Arc::new(move |verb| match verb {
                "reload" => reload(&log, &status),
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

/// Lets requests in flight finish, then ends the threads, and closes the storage last.
async fn go_down(
    serving: JoinHandle<()>,
    drain: Duration,
    network: Runtime,
    threads: Threads,
    storage: Arc<dyn Storage>,
) {
    if !serving.is_finished() {
        let _ = tokio::time::timeout(drain + CANCEL, serving).await;
    }
    let down = tokio::task::spawn_blocking(move || {
        // With its tasks go the last senders of jobs, without which the threads end.
        network.shutdown_timeout(CANCEL);
        threads.join();
        drop(storage);
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

    /// The next that asks for the end.
    async fn stop(&mut self) -> SignalKind {
        loop {
            let signal = self.next().await;
            if signal != SignalKind::hangup() {
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
