//! What the service manager is told, where there is one.
//!
//! The crate `sd_notify` finds the manager's socket in the process' own environment, and so does this
//! file for the one kind of socket that the crate does not know; there it is the same as in
//! [`Environment`](crate::config::Environment), and without it nothing is told.

use crate::workers::{Failure, Workers};
use sd_notify::NotifyState::{self, ExtendTimeoutUsec, Ready, Reloading, Status, Stopping, Watchdog};
use std::cell::Cell;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// What a sign of life during a long migration buys, in microseconds.
const EXTENSION: u32 = 60_000_000;

/// How often signs of life are passed on.
const SIGN: Duration = Duration::from_secs(1);

/// How soon a probe is tried again that found no room in the queues.
const RETRY: Duration = Duration::from_millis(20);

thread_local! {
    /// When a sign of life was last passed on. SQLite calls a plain function, which has no other memory.
    static LAST_SIGN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The server serves.
pub fn ready(status: &str) {
    tell(&[Ready, Status(status)]);
}

/// The server takes up changed files; [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[Reloading, now]),
        Err(_) => tell(&[Reloading]),
    }
}

/// The server is about to end.
pub fn stopping() {
    tell(&[Stopping, Status("finishing what is in flight")]);
}

/// Something takes long before the server is ready: a text for people, or empty as a mere sign of life.
pub fn progress(text: &str) {
    if !text.is_empty() {
        log::info!("{text}");
        tell(&[ExtendTimeoutUsec(EXTENSION), Status(text)]);
    } else if LAST_SIGN.get().is_none_or(|last| last.elapsed() >= SIGN) {
        LAST_SIGN.set(Some(Instant::now()));
        tell(&[ExtendTimeoutUsec(EXTENSION)]);
    }
}

/// Tells the watchdog, if there is one, that the workers answer. Never ends where there is one.
///
/// That the database is away is an answer, and no restart would bring it back; only a worker that
/// hangs gives none. One that waits for a database elsewhere gives up by itself.
pub async fn watchdog(workers: Workers) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        let mut probe = std::pin::pin!(workers.probe());
        let mut answer = tokio::time::timeout(limit / 2, &mut probe).await;
        let until = Instant::now() + workers.longest_wait();
        while answer.is_err() && Instant::now() < until {
            tell(&[Watchdog]);
            answer = tokio::time::timeout(limit / 2, &mut probe).await;
        }
        if answer.is_err() {
            answer = tokio::time::timeout(limit / 2, &mut probe).await;
        }
        match answer {
            Ok(Err(Failure::Busy)) => tokio::time::sleep(RETRY).await,
            Ok(Err(Failure::Stopped)) => return,
            Ok(Ok(()) | Err(Failure::Storage(_))) => {
                tell(&[Watchdog]);
                tokio::time::sleep(limit / 2).await;
            }
            Err(_) => {
                log::error!("the worker threads have not answered for {limit:?}: the watchdog is not told")
            }
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = send(states) {
        log::debug!("the service manager was not told {states:?}: {error}");
    }
}

/// The crate takes the name of an abstract socket, which some containers' managers listen on, for a path.
fn send(states: &[NotifyState<'_>]) -> io::Result<()> {
    let socket = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    let Some(name) = socket.as_bytes().strip_prefix(b"@") else { return sd_notify::notify(states) };
    let message: String = states.iter().map(|state| format!("{state}\n")).collect();
    let manager = SocketAddr::from_abstract_name(name)?;
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &manager).map(|_| ())
}
