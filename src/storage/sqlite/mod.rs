//! SQLite: one writer, pooled readers that take no write lock.
//!
//! The file is the reference server's, under its name and with its tables, so that either program
//! can take over from the other. WAL with `synchronous=FULL`: a commit returns when it is on the
//! disk, and readers see the last commit while the next one is being written.

mod contents;
mod copy;
mod copying;
mod fault;
mod files;
mod prepare;
mod readers;
mod registry;
mod replace;
mod sizes;
mod standing;
mod txn;
mod upkeep;

use super::registry::Registry;
use super::{Error, Kind, Manner, Reader, Result, Storage, Writer};
use fault::Context;
use files::Files;
use readers::Readers;
use rusqlite::{Connection, OpenFlags};
use standing::Standing;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The database's name in the data directory: the reference server's own.
pub use crate::config::place::DATABASE as FILE_NAME;

/// How long to wait for another process, an operator's command say, that is writing.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a transaction waits before it tries again.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// Threads that read what the page cache does not have, or what is large.
const READERS: usize = 2;

/// Requests that one transaction may answer. Beyond this a group's own work outweighs its saved sync.
const GROUP: usize = 128;

/// As long as a writer that is slow may take for those before.
const PATIENCE: Duration = Duration::MAX;

/// Memory for the writer's page cache, in SQLite's unit of minus one KiB: SQLite's own figure.
const WRITER_CACHE: i64 = -2000;

/// How long the writer's page cache is ready for another large body.
const LARGE_PATIENCE: Duration = Duration::from_secs(1);

/// Bytes in the WAL that are worth a checkpoint: four times SQLite's own figure makes them fewer
/// and, as pages are written more than once between two of them, smaller altogether.
const CHECKPOINT_BYTES: i64 = 16 * 1024 * 1024;

/// The WAL file is cut back to this many bytes once a large snapshot has made it grow.
const WAL_LIMIT: i64 = 64 * 1024 * 1024;

/// An open database.
pub struct Sqlite {
    path: PathBuf,
    // Before the writer, so that the writer's is the last connection to close: only a connection
    // that may write can leave the database without a WAL.
    readers: Readers,
    writer: Mutex<Option<Open>>,
    checkpoint_pages: i64,
}

/// The writer's connection and which files it has open.
struct Open {
    // Before the writer's own connection, which is the last to close.
    standing: Option<Standing>,
    connection: Connection,
    files: Files,
}

impl Sqlite {
    /// Opens the database in `directory`, which [`Sqlite::prepare`] has made or migrated.
    pub fn open(directory: &Path) -> Result<Sqlite> {
        let path = directory.join(FILE_NAME);
        let writer = open_writer(&path)?;
        let readers = Readers::open(&path)?;
        let page_size: i64 = writer
            .connection
            .pragma_query_value(None, "page_size", |row| row.get(0))
            .context("opening the database", &path)?;
        let checkpoint_pages = CHECKPOINT_BYTES / page_size;
        Ok(Sqlite { path, readers, writer: Mutex::new(Some(writer)), checkpoint_pages })
    }

    /// The writer's connection, opened anew where a failure made the last one doubtful.
    fn writer(&self) -> Result<MutexGuard<'_, Option<Open>>> {
        // A panic inside a transaction was rolled back before it got here: nothing is half done.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.is_none() {
            *writer = Some(open_writer(&self.path)?);
        }
        Ok(writer)
    }
}

impl Sqlite {
    fn on_reader(&self, work: impl FnOnce(&mut txn::Txn) -> Result<()>) -> Result<()> {
        self.readers.with(|connection| in_transaction(connection, "BEGIN", &self.path, work))
    }

    fn on_writer(&self, work: impl FnOnce(&mut txn::Txn) -> Result<()>) -> Result<()> {
        let mut writer = self.writer()?;
        let Some(Open { standing, connection, files }) = writer.as_mut() else {
            return Err(Error::new(Kind::Other, "the writer's connection is missing"));
        };
        // As long as it stands, the WAL cannot begin anew. One that cannot be ended ends with its connection.
        if standing.as_ref().is_some_and(|standing| standing.end().is_err()) {
            *standing = None;
        }
        if let Some(displaced) = files.displaced() {
            if displaced.is_missing && !displaced.is_database {
                // What the nameless file holds gets into the database, as far as no reader hinders that:
                // the next stop does the rest.
                let _ = checkpoint(connection, "PASSIVE");
            }
            return Err(fault::displaced(&displaced, &self.path));
        }
        let result = in_transaction(connection, "BEGIN IMMEDIATE", &self.path, |txn| {
            // Once more inside, where nobody replaces the file who asks for the lock before.
            match files.displaced() {
                Some(displaced) => Err(fault::displaced(&displaced, &self.path)),
                None => work(txn),
            }
        });
        if result.as_ref().is_err_and(needs_new_handles) {
            *writer = None;
        }
        result
    }
}

impl Storage for Sqlite {
    fn read(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        self.on_reader(|txn| work(txn))
    }

    /// Each fact is one statement, which is a transaction of its own: to begin and end one around it would
    /// be two more statements.
    fn glance(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        self.readers.with(|connection| work(&mut txn::Txn::new(connection, &self.path)))
    }

    fn transact(&self, work: &mut dyn FnMut(&mut dyn Writer) -> Result<()>) -> Result<()> {
        self.on_writer(|txn| work(txn))
    }

    fn manner(&self) -> Manner {
        Manner { is_remote: false, readers: READERS, writers: 1, group: GROUP, patience: PATIENCE }
    }

    fn rest(&self) -> Result<()> {
        let writer = self.writer()?;
        let Some(Open { connection, .. }) = writer.as_ref() else { return Ok(()) };
        spill_again(connection).context("giving memory back", &self.path)?;
        // Passive: moves what no reader needs any more, and waits for nobody.
        let waiting = checkpoint(connection, "NOOP").context("looking at the WAL", &self.path)?;
        if waiting < self.checkpoint_pages {
            return Ok(());
        }
        let left = checkpoint(connection, "PASSIVE").context("checkpointing the WAL", &self.path)?;
        drop(writer);
        // As often as that, a few milliseconds for the versions of so few pages do not matter.
        if left < self.checkpoint_pages { self.keep_sizes() } else { Ok(()) }
    }

    fn linger(&self, idle: Duration) -> Result<()> {
        let mut writer = self.writer()?;
        let Some(Open { standing, connection, files }) = writer.as_mut() else { return Ok(()) };
        if idle >= LARGE_PATIENCE && keeps_pages(connection).context("looking at the cache", &self.path)? {
            // What it holds lies behind the pages, whose memory would stay with the process.
            *standing = None;
            give_back_pages(connection).context("giving memory back", &self.path)?;
        }
        if files.displaced().is_some() {
            // The next that writes says so.
            *standing = None;
            return Ok(());
        }
        let stands = match standing.take() {
            Some(standing) => standing.renew(),
            None => Standing::new(&self.path),
        };
        *standing = Some(stands.context("holding a state of the database", &self.path)?);
        Ok(())
    }
}

impl Registry for Sqlite {
    fn consult(&self, work: &mut dyn FnMut(&mut dyn super::registry::Reader) -> Result<()>) -> Result<()> {
        self.on_reader(|txn| work(txn))
    }

    fn amend(&self, work: &mut dyn FnMut(&mut dyn super::registry::Writer) -> Result<()>) -> Result<()> {
        self.on_writer(|txn| work(txn))
    }
}

impl Sqlite {
    fn keep_sizes(&self) -> Result<()> {
        self.on_writer(|txn| sizes::keep(txn.connection).context("keeping the clients' sizes", &self.path))
    }
}

/// Runs `work` in a transaction; whatever does not reach the commit is rolled back, a panic included.
fn in_transaction(
    connection: &Connection,
    begin: &str,
    path: &Path,
    work: impl FnOnce(&mut txn::Txn) -> Result<()>,
) -> Result<()> {
    execute(connection, begin).context("beginning a transaction", path)?;
    let _rollback = Rollback(connection);
    work(&mut txn::Txn::new(connection, path))?;
    execute(connection, "COMMIT").context("committing a transaction", path)
}

/// Ends a transaction that is still open when it goes.
struct Rollback<'c>(&'c Connection);

impl Drop for Rollback<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit() {
            // Where even this fails, SQLite has rolled back by itself or the connection is replaced.
            let _ = self.0.execute_batch("ROLLBACK");
        }
    }
}

fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(|_| ())
}

/// Lets the cache spill again after a large body.
fn spill_again(connection: &Connection) -> rusqlite::Result<()> {
    if pragma(connection, "PRAGMA cache_spill")? == 0 {
        connection.execute_batch("PRAGMA cache_spill = ON")?;
    }
    Ok(())
}

/// Whether the cache may keep pages for another large body.
fn keeps_pages(connection: &Connection) -> rusqlite::Result<bool> {
    Ok(pragma(connection, "PRAGMA cache_size")? != WRITER_CACHE)
}

fn give_back_pages(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "cache_size", WRITER_CACHE)?;
    connection.execute_batch("PRAGMA shrink_memory")
}

fn pragma(connection: &Connection, sql: &str) -> rusqlite::Result<i64> {
    connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

/// Runs a checkpoint in this mode and returns how many pages still wait for one.
fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
    statement.query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))
}

fn needs_new_handles(error: &Error) -> bool {
    matches!(error.kind, Kind::Unavailable | Kind::Corrupt | Kind::Other)
}

/// Opens the existing database for writing. Never makes one: an empty database in place of one
/// that is gone would fork every client's history.
fn open_writer(path: &Path) -> Result<Open> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | common_flags())
        .context("opening the database", path)?;
    set_up_writer(&connection).context("opening the database", path)?;
    // The first look at the content opens the WAL, or makes it.
    connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        .context("opening the database", path)?;
    let files = Files::of(path).context("opening the database", path)?;
    Ok(Open { standing: None, connection, files })
}

fn set_up_writer(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_handler(Some(wait_for_others))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The writer checkpoints between transactions, when nobody waits for a reply.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", WAL_LIMIT)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// SQLite's own way to wait sleeps longer each time, and so misses the moments between the transactions
/// of a server under load.
fn wait_for_others(attempt: i32) -> bool {
    std::thread::sleep(BUSY_PAUSE);
    u32::try_from(attempt).is_ok_and(|attempt| BUSY_PAUSE * attempt < BUSY_TIMEOUT)
}

fn common_flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_NO_MUTEX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Migration;
    use crate::storage::conformance;
    use std::sync::Arc;
    use tempfile::TempDir;

    #[test]
    fn sqlite_conforms() {
        conformance::run(
            || TempDir::new().expect("a directory"),
            |place| {
                let migration = Migration { copy: true, copy_dir: None };
                Sqlite::prepare(place.path(), &migration, |_| {}).expect("the database can be made");
                Arc::new(Sqlite::open(place.path()).expect("the database opens"))
            },
        );
    }

    #[test]
    fn sqlite_conforms_in_what_goes_in_and_out() {
        conformance::contents::run(
            || TempDir::new().expect("a directory"),
            |place| {
                Sqlite::prepare(place.path(), &Migration { copy: true, copy_dir: None }, |_| {})
                    .expect("the database can be made");
                Arc::new(Sqlite::open(place.path()).expect("the database opens"))
            },
        );
    }

    #[test]
    fn sqlite_conforms_as_a_copy_and_as_an_original() {
        conformance::copying::run(
            || TempDir::new().expect("a directory"),
            |place| {
                Sqlite::prepare(place.path(), &Migration { copy: true, copy_dir: None }, |_| {})
                    .expect("the database can be made");
                Arc::new(Sqlite::open(place.path()).expect("the database opens"))
            },
        );
    }
}
