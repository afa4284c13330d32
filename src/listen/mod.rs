//! Accepts connections, on TCP and unix sockets.
//!
//! Sockets are bound before anything else is started, so that whatever is wrong with them is seen
//! at once. Knows nothing of HTTP and TLS: what is accepted goes to [`App::serve`], or where there is
//! a certificate and it came by TCP, to [`Acceptor::serve`] first.

mod bind;
mod doors;
mod welcome;

pub use self::bind::{Listener, bind};
use self::doors::Doors;
use self::welcome::House;
use crate::http::App;
use crate::tls::Acceptor;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// How long to wait after a failure to accept, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Accepts connections until `stop` becomes true, then waits until those that are open have
/// answered what they were asked, but no longer than the shutdown timeout.
///
/// Where as many connections are open as may be, no more are accepted: they wait in the kernel.
/// With `tls` all TCP listeners speak TLS, but for those at the side door.
pub async fn run(
    listeners: Vec<Listener>,
    tls: Option<Arc<Acceptor>>,
    app: Arc<App>,
    mut stop: watch::Receiver<bool>,
) {
    let limit = app.connections().min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
    let permits = Arc::new(Semaphore::new(limit));
    let house = House::new(app.clone(), tls, stop.clone());
    tokio::select! {
        () = accept_all(listeners, &house, app.connections(), &permits) => {}
        // An error means that nobody is left who could say it.
        _ = stop.wait_for(|stop| *stop) => {}
    }
    app.hurry();
    // The sockets are closed by now: who comes too late is refused and can try elsewhere.
    let all = permits.acquire_many(limit as u32);
    if tokio::time::timeout(app.shutdown_timeout(), all).await.is_err() {
        log::warn!(
            "{} connections were cut off: their requests took longer than the option shutdown.timeout, {} s",
            limit - permits.available_permits(),
            app.shutdown_timeout().as_secs()
        );
    }
}

async fn accept_all(listeners: Vec<Listener>, house: &House, limit: usize, permits: &Arc<Semaphore>) {
    let mut doors = Doors::open(listeners);
    let mut back_off = None;
    let mut crowd = Crowd::default();
    loop {
        if permits.available_permits() == 0 {
            crowd.tell(limit);
        }
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match doors.accept().await {
            Ok((guest, entrance)) => {
                back_off = None;
                let house = house.clone();
                tokio::spawn(async move {
                    house.welcome(guest, entrance).await;
                    drop(permit);
                });
            }
            // The peer was gone before we came to it.
            Err(error) if is_the_peers(&error) => {}
            Err(error) => {
                if back_off.is_none() {
                    log::error!(
                        "cannot accept connections: {error}; will go on trying. If too many files are \
                         open, raise the process' limit of open files or lower the option connections.limit"
                    );
                }
                let pause = back_off.unwrap_or(BACK_OFF.0);
                tokio::time::sleep(pause).await;
                back_off = Some((pause * 2).min(BACK_OFF.1));
            }
        }
    }
}

/// How long nothing more is said of connections that wait, once something was.
const SAID: Duration = Duration::from_secs(60);

/// Says that nobody else is let in just now, but not for each who waits.
#[derive(Default)]
struct Crowd {
    said: Option<Instant>,
}

impl Crowd {
    fn tell(&mut self, limit: usize) {
        if self.said.is_none_or(|said| said.elapsed() >= SAID) {
            self.said = Some(Instant::now());
            log::warn!(
                "all {limit} connections are in use, and further ones wait until one of them ends: if this happens \
                 often, raise the option connections.limit or lower idle.timeout"
            );
        }
    }
}

fn is_the_peers(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}
