//! Backups that are made by themselves, on a thread of their own.

use super::directory::{self, Found};
use super::{Problem, Reason, Step, head, to_file};
use crate::config::Backup;
use crate::storage::contents::Contents;
use crate::storage::owner;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long after a failure the next attempt is made, unless the interval is shorter.
const RETRY: i64 = 15 * 60;

/// How often the clock is looked at, which may be set, and stands still in a machine that sleeps.
const LOOK: Duration = Duration::from_secs(30);

/// How the scheduled backups are. Cheap to clone; all clones tell the same.
#[derive(Clone, Default)]
pub struct Standing(Arc<Mutex<Facts>>);

/// What is known of the scheduled backups. Times in seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The newest backup in the directory.
    pub newest: Option<Found>,
    /// When the last attempt failed, and why, unless one succeeded since.
    pub failure: Option<(i64, String)>,
    /// When the next is due.
    pub next: Option<i64>,
}

impl Standing {
    /// What is known now.
    pub fn facts(&self) -> Facts {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that makes backups, to be stopped before the storage closes.
pub struct Schedule {
    thread: JoinHandle<()>,
    stopping: Arc<AtomicBool>,
    // The thread wakes up when this goes.
    stop: Sender<()>,
    standing: Standing,
}

/// What the thread needs.
struct Plan {
    directory: PathBuf,
    interval: i64,
    keep: usize,
    contents: Arc<dyn Contents>,
    stopping: Arc<AtomicBool>,
    standing: Standing,
}

impl Schedule {
    /// Starts the thread, if backups are wanted.
    pub fn start(config: &Backup, contents: Arc<dyn Contents>) -> std::io::Result<Option<Schedule>> {
        let (Some(directory), Some(interval)) = (&config.dir, config.interval) else { return Ok(None) };
        let (stop, stopped) = bounded(0);
        let (stopping, standing) = (Arc::<AtomicBool>::default(), Standing::default());
        let plan = Plan {
            directory: directory.clone(),
            interval: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
            keep: config.keep,
            contents,
            stopping: stopping.clone(),
            standing: standing.clone(),
        };
        let thread =
            std::thread::Builder::new().name("backup".to_owned()).spawn(move || plan.follow(&stopped))?;
        Ok(Some(Schedule { thread, stopping, stop, standing }))
    }

    /// How the backups are.
    pub fn standing(&self) -> Standing {
        self.standing.clone()
    }

    /// Ends the thread; a backup that is being written is given up.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        drop(self.stop);
        // A panic was reported where it happened.
        let _ = self.thread.join();
    }
}

impl Plan {
    fn follow(&self, stopped: &Receiver<()>) {
        loop {
            let due = self.next();
            self.standing.lock().next = Some(due);
            while now() < due {
                let left = Duration::from_secs(due.saturating_sub(now()).unsigned_abs());
                if stopped.recv_timeout(left.min(LOOK)) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
            self.make();
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// When the next backup is due: an interval after the newest, or soon after a failure. A newest
    /// one from the future, made before the clock was set, counts as made now.
    fn next(&self) -> i64 {
        let now = now();
        let newest = directory::list(&self.directory).ok().and_then(|mut found| found.pop());
        let mut facts = self.standing.lock();
        facts.newest = newest;
        let failed = facts.failure.as_ref().map(|(at, _)| at + RETRY.min(self.interval));
        failed
            .unwrap_or_else(|| facts.newest.as_ref().map_or(now, |newest| newest.at.min(now) + self.interval))
    }

    fn make(&self) {
        let at = now();
        match self.attempt(at) {
            Ok(()) => self.standing.lock().failure = None,
            Err(problem) if problem.reason == Reason::Stopped => {
                log::info!("the scheduled backup was given up, for the server stops");
            }
            Err(problem) => {
                log::error!("the scheduled backup failed: {problem}");
                self.standing.lock().failure = Some((at, problem.message));
            }
        }
    }

    fn attempt(&self, at: i64) -> Result<(), Problem> {
        make_directory(&self.directory)?;
        if let Err(error) = directory::clear(&self.directory) {
            log::warn!("{}: what interrupted backups left stays there: {error}", self.directory.display());
        }
        let target = self.directory.join(directory::name(at));
        let go_on = &mut |_: Step| !self.stopping.load(Ordering::Relaxed);
        let summary = to_file(&*self.contents, &head(&*self.contents, at), &target, false, go_on)?;
        log::info!(
            "backup {}: {} clients, {} versions, {} bytes, verified",
            target.display(),
            summary.counts.clients,
            summary.counts.versions,
            summary.bytes
        );
        match directory::prune(&self.directory, self.keep) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => log::info!("{} older backups are removed, {} are kept", gone.len(), self.keep),
            Err(error) => {
                log::warn!("{}: older backups were not removed: {error}", self.directory.display())
            }
        }
        Ok(())
    }
}

fn make_directory(directory: &Path) -> Result<(), Problem> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        let message = format!(
            "cannot make the directory backup.dir, {}: {error}; this makes it: {}",
            directory.display(),
            owner::make(directory)
        );
        Problem::new(Reason::Failed, message)
    })
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
