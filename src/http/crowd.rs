//! All connections that are open, and which of them make room where there are too many.

use super::progress::{Progress, Rank};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// All connections that are open.
#[derive(Default)]
pub struct Crowd(Mutex<Present>);

#[derive(Default)]
struct Present {
    next: u64,
    all: HashMap<u64, Arc<Progress>>,
}

/// A connection that is open until this is dropped.
pub struct Presence {
    crowd: Arc<Crowd>,
    key: u64,
    progress: Arc<Progress>,
}

impl Presence {
    /// How far the connection is.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.crowd.present().all.remove(&self.key);
    }
}

impl Crowd {
    /// Another connection, from now on.
    pub fn enter(self: &Arc<Crowd>) -> Presence {
        let progress = Arc::new(Progress::default());
        let mut present = self.present();
        present.next += 1;
        let key = present.next;
        present.all.insert(key, progress.clone());
        Presence { crowd: self.clone(), key, progress }
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        self.present().all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks up to so many connections to end: those first that lose least by it, and of these the ones
    /// that have been so for longest. One whose peer waits for an answer is never among them.
    pub fn make_room(&self, count: usize, now: Instant) -> usize {
        let present = self.present();
        let mut spare: Vec<(Rank, Duration, &Progress)> = Vec::new();
        spare.extend(present.all.values().filter_map(|progress| {
            let (rank, age) = progress.spare(now)?;
            Some((rank, age, &**progress))
        }));
        spare.sort_unstable_by_key(|(rank, age, _)| (*rank, std::cmp::Reverse(*age)));
        spare.truncate(count);
        spare.iter().for_each(|(_, _, progress)| progress.send_away());
        spare.len()
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
