//! What the running server does by itself and at its leisure: removals that were interrupted, and old
//! versions.

use crate::storage::location::Database;
use crate::storage::registry::{Event, Registry};
use crate::storage::{Error, Result};
use crate::upkeep::Pace;
use crate::upkeep::prune::{self, Age, Total};
use crate::upkeep::removal;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Who the records say made the changes.
const USER: &str = "sync-server";

/// How often it is seen whether the time is quiet.
const LOOK: Duration = Duration::from_secs(5);

/// So many requests between two looks are a quiet time.
const QUIET: u64 = 10;

/// Looks between two at the clients that are being removed: a minute.
const LOOKS_PER_REMOVAL: u32 = 12;

/// How long after one removal of old versions the next is due.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The thread, to be stopped before the storage closes.
pub struct Caretaker {
    thread: JoinHandle<()>,
    stopping: Arc<AtomicBool>,
    // The thread wakes up when this goes.
    stop: Sender<()>,
}

/// What the thread needs.
struct Duties {
    database: Arc<dyn Database>,
    retention_days: Option<u32>,
    /// How many requests there were.
    asked: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
}

impl Caretaker {
    /// Starts the thread. `asked` counts requests.
    pub fn start(
        database: Arc<dyn Database>,
        retention_days: Option<u32>,
        asked: Arc<AtomicU64>,
    ) -> std::io::Result<Caretaker> {
        let (stop, stopped) = bounded(0);
        let stopping = Arc::<AtomicBool>::default();
        let duties = Duties { database, retention_days, asked, stopping: stopping.clone() };
        let thread = std::thread::Builder::new()
            .name("caretaker".to_owned())
            .spawn(move || duties.attend(&stopped))?;
        Ok(Caretaker { thread, stopping, stop })
    }

    /// Ends the thread, after the step that it is at.
    pub fn stop(self) {
        self.stopping.store(true, Relaxed);
        drop(self.stop);
        // A panic was reported where it happened.
        let _ = self.thread.join();
    }
}

impl Duties {
    fn attend(&self, stopped: &Receiver<()>) {
        let mut looks = 0;
        let mut due = Instant::now();
        let mut asked = self.asked.load(Relaxed);
        loop {
            if looks % LOOKS_PER_REMOVAL == 0 {
                tell("a removal is not carried on", self.carry_on());
            }
            looks += 1;
            if stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            let before = std::mem::replace(&mut asked, self.asked.load(Relaxed));
            let is_quiet = asked.wrapping_sub(before) <= QUIET;
            let now = Instant::now();
            // Where no time is quiet, a day later has to do.
            if let Some(days) = self.retention_days
                && now >= due
                && (is_quiet || now >= due + DAY)
            {
                tell("old versions are not removed", self.prune(days));
                due = now + DAY;
            }
        }
    }

    /// Goes on with what a verb or a server that died has begun.
    fn carry_on(&self) -> Result<()> {
        let registry: &dyn Registry = &*self.database;
        for client in registry.consulting(|reader| reader.leaving())? {
            let go_on = &mut |_| self.goes_on();
            if removal::carry_on(&*self.database, client, Pace::Leisurely, go_on)? {
                log::info!("the removal of client {client:?}, or of its history, is carried on to its end");
            }
        }
        Ok(())
    }

    fn prune(&self, days: u32) -> Result<()> {
        let age = Age::of_days(days, now(), self.database.measure()?.adopted);
        let event = Event {
            id: Uuid::now_v7(),
            at: now(),
            client: None,
            user: USER.to_owned(),
            action: "prune".to_owned(),
            detail: String::new(),
        };
        let record = |total: Total| Event { detail: total.told(days), ..event.clone() };
        let pruned = prune::run(&*self.database, age, Pace::Leisurely, &record, &mut |_| self.goes_on())?;
        let total = Total::of(&pruned);
        if total.versions > 0 {
            log::info!("old versions are removed: {}", total.told(days));
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        !self.stopping.load(Relaxed)
    }
}

fn tell(what: &str, done: Result<()>) {
    if let Err(Error { message, .. }) = done {
        log::warn!("{what}: {message}");
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
