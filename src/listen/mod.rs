//! Accepts connections, on TCP and unix sockets, its own and those that the service manager hands over.
//!
//! Sockets are bound before anything else is started, so that whatever is wrong with them is seen
//! at once. Knows nothing of HTTP and TLS: what is accepted goes to [`App::serve`], or where there is
//! a certificate and it came by TCP, to [`Acceptor::shake_hands`] first.

mod bind;
mod doors;
mod group;
mod handed;
mod welcome;

pub use self::bind::{Listener, Way, bind};
use self::doors::Doors;
pub use self::handed::handed_over;
use self::welcome::House;
use crate::http::App;
use crate::tls::Acceptor;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How long to wait after a failure to accept, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Accepts connections until `stop` becomes true, then waits until those that are open have
/// answered what they were asked, but no longer than the shutdown timeout.
///
/// Where as many connections are open as may be, no more are accepted: they wait in the kernel.
/// With `tls` those listeners speak TLS that are not plain.
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
        () = accept_all(listeners, &house, &app, limit, &permits) => {}
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

async fn accept_all(
    listeners: Vec<Listener>,
    house: &House,
    app: &Arc<App>,
    limit: usize,
    permits: &Arc<Semaphore>,
) {
    let mut doors = Doors::open(listeners);
    let mut back_off = None;
    let mut inside = Inside { app: app.clone(), limit, said: None };
    loop {
        let Some(permit) = inside.place(permits, &doors).await else { return };
        match doors.accept().await {
            Ok((guest, way)) => {
                back_off = None;
                let house = house.clone();
                let presence = app.crowd().enter();
                app.metrics().accepted();
                tokio::spawn(async move {
                    house.welcome(guest, way, presence.progress().clone()).await;
                    drop((permit, presence));
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
                // Each connection is an open file.
                inside.make_room();
                let pause = back_off.unwrap_or(BACK_OFF.0);
                tokio::time::sleep(pause).await;
                back_off = Some((pause * 2).min(BACK_OFF.1));
            }
        }
    }
}

/// How long nothing more is said of connections that wait, once something was.
const SAID: Duration = Duration::from_secs(60);

/// How often those who are inside are looked through while others wait.
const LOOK: Duration = Duration::from_millis(100);

/// One in so many makes room at a time.
const PART: usize = 16;

/// Those who were let in.
struct Inside {
    app: Arc<App>,
    limit: usize,
    said: Option<Instant>,
}

impl Inside {
    /// A place for one more. Where there is none and someone waits, those make room who are silent or
    /// idle, or do not get on with what they are at.
    async fn place(&mut self, permits: &Arc<Semaphore>, doors: &Doors) -> Option<OwnedSemaphorePermit> {
        loop {
            let wait = tokio::time::timeout(LOOK, permits.clone().acquire_owned());
            match wait.await {
                Ok(permit) => return permit.ok(),
                Err(_) if doors.has_someone_waiting() => {
                    self.tell();
                    self.make_room();
                }
                Err(_) => {}
            }
        }
    }

    fn make_room(&self) {
        let count = self.app.crowd().make_room(self.limit / PART + 1, Instant::now());
        self.app.metrics().made_room(count);
    }

    fn tell(&mut self) {
        if self.said.is_none_or(|said| said.elapsed() >= SAID) {
            self.said = Some(Instant::now());
            log::warn!(
                "all {} connections are in use, and further ones wait until one of them ends or makes room: if this \
                 happens often, raise the option connections.limit or lower idle.timeout",
                self.limit
            );
        }
    }
}

fn is_the_peers(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}
