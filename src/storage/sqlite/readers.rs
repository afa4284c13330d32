//! The connections that read. Each thread that reads often keeps one: to share them, threads would wait for
//! each other, and each would find in a connection what another processor has used last. The rest are lent.

use super::fault::{self, Context};
use super::{BUSY_TIMEOUT, common_flags, needs_new_handles};
use crate::storage::Result;
use r2d2::{ManageConnection, Pool, PooledConnection};
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, OpenFlags};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;
use thread_local::ThreadLocal;

/// Threads that may keep a connection beside one for each processor, on whose threads small bodies are read:
/// those that read large ones, or any while the disk is slow, and those that look after the database.
const MORE_KEEPERS: usize = 8;

/// Connections that are lent at once to all other threads.
const LENT: usize = 4;

/// How long a reader waits for a connection, which is there unless it cannot be opened: the reason
/// must come before whoever asks gives up.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// Memory for a reader's page cache, in SQLite's unit of minus one KiB: what is read again soon, the
/// latest versions, fits a few times over. Only what is used is taken.
const CACHE: i64 = -8 * 1024;

/// Read-only connections to one database.
pub(super) struct Readers {
    path: PathBuf,
    pool: RwLock<Pool<SqliteConnectionManager>>,
    /// Which pool this is; a connection of an earlier one is not used again.
    generation: AtomicU64,
    threads: AtomicUsize,
    most_keepers: usize,
    kept: ThreadLocal<RefCell<Place>>,
}

/// What one thread has.
struct Place {
    may_keep: bool,
    kept: Option<(u64, PooledConnection<SqliteConnectionManager>)>,
}

impl Readers {
    /// For the database at `path`, which must be there.
    pub(super) fn open(path: &Path) -> Result<Readers> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let most_keepers = processors + MORE_KEEPERS;
        Ok(Readers {
            path: path.to_owned(),
            pool: RwLock::new(pool(path, most_keepers + LENT)?),
            generation: AtomicU64::new(0),
            threads: AtomicUsize::new(0),
            most_keepers,
            kept: ThreadLocal::new(),
        })
    }

    /// Runs `work` on a connection that nobody else uses meanwhile.
    pub(super) fn with(&self, work: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
        let result = self.on_one(work);
        if result.as_ref().is_err_and(needs_new_handles) {
            self.reopen();
        }
        result
    }

    fn on_one(&self, work: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
        let place = self.kept.get_or(|| {
            let may_keep = self.threads.fetch_add(1, Relaxed) < self.most_keepers;
            RefCell::new(Place { may_keep, kept: None })
        });
        // It is taken where `work` itself reads once more.
        let Some(mut place) = place.try_borrow_mut().ok().filter(|place| place.may_keep) else {
            return work(&*self.lend()?);
        };
        let generation = self.generation.load(Relaxed);
        match &place.kept {
            Some((of, connection)) if *of == generation => work(connection),
            _ => {
                place.kept = None;
                let (_, connection) = place.kept.insert((generation, self.lend()?));
                work(connection)
            }
        }
    }

    fn lend(&self) -> Result<PooledConnection<SqliteConnectionManager>> {
        let pool = self.pool.read().unwrap_or_else(PoisonError::into_inner).clone();
        pool.get().map_err(|error| fault::of_pool(&error, &self.path))
    }

    /// After a failure that the file system or the file caused, open handles may point to what is
    /// no longer there, so the next transaction opens its own.
    fn reopen(&self) {
        if let Ok(pool) = pool(&self.path, self.most_keepers + LENT) {
            *self.pool.write().unwrap_or_else(PoisonError::into_inner) = pool;
            self.generation.fetch_add(1, Relaxed);
        }
    }
}

fn pool(path: &Path, most: usize) -> Result<Pool<SqliteConnectionManager>> {
    let manager = SqliteConnectionManager::file(path)
        .with_flags(OpenFlags::SQLITE_OPEN_READ_ONLY | common_flags())
        .with_init(|connection| {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "cache_size", CACHE)
        });
    // The pool goes on trying for its whole timeout, and meanwhile every request would wait that is
    // better answered at once.
    manager.connect().context("opening the database for reading", path)?;
    Pool::builder()
        .max_size(u32::try_from(most).unwrap_or(u32::MAX))
        .min_idle(Some(0))
        .idle_timeout(None)
        .max_lifetime(None)
        // The manager's check costs a statement for every read and finds nothing in a file.
        .test_on_check_out(false)
        .connection_timeout(OPEN_TIMEOUT)
        // Whoever waits is told the error, with what helps.
        .error_handler(Box::new(r2d2::NopErrorHandler))
        .build(manager)
        .map_err(|error| fault::of_pool(&error, path))
}

#[cfg(test)]
mod tests {
    use super::super::{FILE_NAME, Sqlite};
    use super::*;
    use crate::config::Migration;
    use crate::storage::{Error, Kind};
    use std::sync::Barrier;
    use std::time::Instant;
    use tempfile::TempDir;

    fn readers() -> (TempDir, Readers) {
        let dir = TempDir::new().expect("a directory");
        let migration = Migration { copy: true, copy_dir: None };
        Sqlite::prepare(dir.path(), &migration, |_| {}).expect("the database can be made");
        let readers = Readers::open(&dir.path().join(FILE_NAME)).expect("the database opens");
        (dir, readers)
    }

    /// The place of the connection that this thread reads from.
    fn place(readers: &Readers) -> usize {
        let mut place = 0;
        let look = |connection: &Connection| {
            place = std::ptr::from_ref(connection).addr();
            Ok(())
        };
        readers.with(look).expect("there is a connection");
        place
    }

    #[test]
    fn a_thread_keeps_its_connection_and_reads_within_a_read_from_another() {
        let (_dir, readers) = readers();
        let mine = place(&readers);
        let nested = |_: &Connection| {
            assert_ne!(place(&readers), mine);
            Ok(())
        };
        readers.with(nested).expect("there is a connection");
        let others = std::thread::scope(|scope| scope.spawn(|| place(&readers)).join().expect("no panic"));
        assert_ne!(others, mine);
        assert_eq!(place(&readers), mine);
    }

    #[test]
    fn any_number_of_threads_read_at_once() {
        let (_dir, readers) = readers();
        let threads = readers.most_keepers + 5 * LENT;
        let all_came = Barrier::new(threads);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    place(&readers);
                    all_came.wait();
                    (0..50).for_each(|_| _ = place(&readers));
                });
            }
        });
    }

    #[test]
    fn after_a_failure_of_the_file_every_thread_opens_its_own_anew() {
        let (_dir, readers) = readers();
        let is_marked = || {
            let mut is_marked = false;
            let look = |connection: &Connection| {
                is_marked = connection.prepare("SELECT n FROM temp.marked").is_ok();
                Ok(())
            };
            readers.with(look).expect("there is a connection");
            is_marked
        };
        let marking = |connection: &Connection| {
            connection.execute_batch("CREATE TEMP TABLE marked (n)").expect("it is not the database's");
            Ok(())
        };
        readers.with(marking).expect("there is a connection");
        assert!(is_marked());
        let refused = readers.with(|_| Err(Error::new(Kind::Busy, "of no importance")));
        assert!(refused.is_err() && is_marked(), "the handles are good");
        let failed = std::thread::scope(|scope| {
            let fail = || readers.with(|_| Err(Error::new(Kind::Corrupt, "another thread finds it")));
            scope.spawn(fail).join().expect("no panic")
        });
        assert!(failed.is_err() && !is_marked());
    }

    #[test]
    fn a_database_that_is_away_is_refused_without_waiting() {
        let dir = TempDir::new().expect("a directory");
        let begun = Instant::now();
        let error = Readers::open(&dir.path().join(FILE_NAME)).map(|_| ()).expect_err("there is no database");
        assert_eq!(error.kind, Kind::Unavailable);
        assert!(begun.elapsed() < BUSY_TIMEOUT, "it waited for {:?}", begun.elapsed());
    }
}
