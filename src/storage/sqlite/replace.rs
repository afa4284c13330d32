//! Another database in the place of this one: made aside, whole and on the disk before it gets the
//! name, so that half of one is never taken for a database.

use super::fault::Context;
use super::prepare::holds_data;
use super::txn::Txn;
use super::{BUSY_TIMEOUT, FILE_NAME, Sqlite, common_flags, execute};
use crate::config::Migration;
use crate::storage::contents::Visit;
use crate::storage::{Error, Kind, Result};
use rusqlite::{Connection, OpenFlags};
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where the new database grows, in the data directory: a rename must bring it to its place.
const ASIDE: &str = "restore.part";

/// How long to wait before trying again to lock everybody out.
const RETRY: Duration = Duration::from_millis(20);

/// Memory for the pages of the new database, in SQLite's unit of minus one KiB.
const CACHE: i64 = -64 * 1024;

impl Sqlite {
    /// Whether the database in `directory` holds a client or a version. One that is not there holds
    /// none, and of one that cannot be read nobody knows.
    pub fn holds_data(directory: &Path) -> Result<bool> {
        let path = directory.join(FILE_NAME);
        if !path.try_exists().context("looking for the database", &path)? {
            return Ok(false);
        }
        let connection =
            Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | common_flags());
        let connection = connection.context("opening the database", &path)?;
        connection.busy_timeout(BUSY_TIMEOUT).context("opening the database", &path)?;
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name IN ('clients', 'versions')";
        let tables: i64 =
            connection.query_row(sql, [], |row| row.get(0)).context("reading the database", &path)?;
        // Tables of others, or half of ours, are something, whatever it is.
        if tables == 2 {
            holds_data(&connection).context("reading the database", &path)
        } else {
            Ok(tables > 0)
        }
    }

    /// Removes what an interrupted restore left in `directory`, which nobody else uses.
    pub fn tidy(directory: &Path) -> Result<()> {
        let aside = directory.join(ASIDE);
        remove(&aside).context("removing what an interrupted restore left", &aside)
    }

    /// Makes a database of all that `source` visits and puts it in the place of the one in
    /// `directory`, which nobody uses. That is kept under its name with `suffix` behind; returns where.
    ///
    /// After an error, or when the process dies meanwhile, the database is the one that it was.
    pub fn replace(
        directory: &Path,
        suffix: &str,
        source: &mut dyn FnMut(&mut Visit<'_>) -> Result<()>,
    ) -> Result<Option<PathBuf>> {
        let aside = directory.join(ASIDE);
        remove(&aside).context("removing what an interrupted restore left", &aside)?;
        DirBuilder::new().mode(0o700).create(&aside).context("making a place for the database", &aside)?;
        let replaced = build(&aside, source).and_then(|new| put_in_place(&new, directory, suffix));
        let removed = remove(&aside).context("removing what is needed no more", &aside);
        let kept = replaced?;
        removed.map(|()| kept)
    }
}

fn remove(aside: &Path) -> std::io::Result<()> {
    if aside.symlink_metadata().is_err() {
        return Ok(());
    }
    std::fs::remove_dir_all(aside)
}

/// Makes the database and returns its path. Nothing of it needs a journal: half of it is thrown away.
fn build(aside: &Path, source: &mut dyn FnMut(&mut Visit<'_>) -> Result<()>) -> Result<PathBuf> {
    Sqlite::prepare(aside, &Migration { copy: false, copy_dir: None }, |_| {})?;
    let path = aside.join(FILE_NAME);
    let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | common_flags());
    let connection = connection.context("opening the new database", &path)?;
    set_up(&connection).context("opening the new database", &path)?;
    super::in_transaction(&connection, "BEGIN IMMEDIATE", &path, |txn: &mut Txn| txn.import(source))?;
    mode(&connection, "WAL").context("closing the new database", &path)?;
    connection.close().map_err(|(_, error)| error).context("closing the new database", &path)?;
    File::open(&path).and_then(|file| file.sync_all()).context("making the new database durable", &path)?;
    Ok(path)
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    mode(connection, "OFF")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "cache_size", CACHE)
}

/// Asks for a journal mode and returns the one that came to be.
fn mode(connection: &Connection, wanted: &str) -> rusqlite::Result<String> {
    connection.pragma_update_and_check(None, "journal_mode", wanted, |row| row.get(0))
}

fn put_in_place(new: &Path, directory: &Path, suffix: &str) -> Result<Option<PathBuf>> {
    let path = directory.join(FILE_NAME);
    if path.symlink_metadata().is_err() {
        keep_strays(&path, suffix).context("moving away what belongs to a missing database", &path)?;
        settle(new, &path, directory).context("putting the new database in its place", &path)?;
        return Ok(None);
    }
    let held = hold(&path)?;
    let kept = link_beside(&path, suffix).context("keeping the old database", &path)?;
    sync(directory).context("keeping the old database", &kept)?;
    let settled = settle(new, &path, directory).context("putting the new database in its place", &path);
    if settled.is_err() {
        let _ = std::fs::remove_file(&kept);
    }
    // Until here nobody could write to the old one, whom nobody would find there any more.
    drop(held);
    settled.map(|()| Some(kept))
}

/// Gives a file a second name, the first of those with `suffix` that nothing has yet.
fn link_beside(path: &Path, suffix: &str) -> std::io::Result<PathBuf> {
    let numbered = (2..100).map(|number| format!("{suffix}-{number}"));
    let mut suffixes = std::iter::once(suffix.to_owned()).chain(numbered);
    loop {
        let Some(suffix) = suffixes.next() else { return Err(ErrorKind::AlreadyExists.into()) };
        let name = beside(path, &suffix);
        match std::fs::hard_link(path, &name) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            linked => return linked.map(|()| name),
        }
    }
}

/// Locks everybody out of the old database, which then is one file: a write-ahead log that stayed
/// behind would be taken for the new one's. Nobody else can use it while the connection is there.
fn hold(path: &Path) -> Result<Option<Connection>> {
    match lock_out_patiently(path) {
        Ok(held) => Ok(Some(held)),
        Err(error) if error.kind == Kind::Busy => Err(Error::new(
            Kind::Busy,
            format!(
                "another program has {} open: end it first, `fuser -v` on the file names it. Nothing was changed",
                path.display()
            ),
        )),
        Err(error) => {
            match journals(path).find(|journal| journal.metadata().is_ok_and(|data| data.len() > 0)) {
                None => Ok(None),
                Some(journal) => Err(Error::new(
                    error.kind,
                    format!(
                        "{}. What {} holds belongs to it: move both to another directory, then restore into the empty \
                     place. Nothing was changed",
                        error.message,
                        journal.display()
                    ),
                )),
            }
        }
    }
}

/// Whoever looked at the database a moment ago may be about to close it, this process included.
fn lock_out_patiently(path: &Path) -> Result<Connection> {
    let begun = Instant::now();
    loop {
        match lock_out(path) {
            Err(error) if error.kind == Kind::Busy && begun.elapsed() < BUSY_TIMEOUT => sleep(RETRY),
            locked => return locked,
        }
    }
}

fn lock_out(path: &Path) -> Result<Connection> {
    const DOING: &str = "locking the old database";
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | common_flags());
    let connection = connection.context(DOING, path)?;
    connection.busy_timeout(BUSY_TIMEOUT).context(DOING, path)?;
    let mode = mode(&connection, "DELETE").context(DOING, path)?;
    if mode != "delete" {
        return Err(Error::new(Kind::Busy, format!("{DOING}: the journal mode is {mode}")));
    }
    execute(&connection, "BEGIN EXCLUSIVE").context(DOING, path)?;
    Ok(connection)
}

/// Gives the new database its name, in one step, and makes that durable.
fn settle(new: &Path, path: &Path, directory: &Path) -> std::io::Result<()> {
    std::fs::rename(new, path)?;
    sync(directory)
}

fn sync(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Logs whose database is gone would be taken for the new one's.
fn keep_strays(path: &Path, suffix: &str) -> std::io::Result<()> {
    for journal in journals(path).filter(|journal| journal.symlink_metadata().is_ok()) {
        std::fs::rename(&journal, beside(&journal, suffix))?;
    }
    Ok(())
}

fn journals(path: &Path) -> impl Iterator<Item = PathBuf> {
    ["-wal", "-shm", "-journal"].into_iter().map(|end| PathBuf::from(format!("{}{end}", path.display())))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}.{suffix}", path.display()))
}
