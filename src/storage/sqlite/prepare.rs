//! Makes a new database or brings an existing one up to date, before the server serves it.

use super::fault::Context;
use super::{BUSY_TIMEOUT, FILE_NAME, Sqlite, common_flags, copy};
use crate::config::Migration;
use crate::storage::schema::{ADOPTED, CURRENT, MIGRATIONS, PLAIN_INDEX, UNIQUE_INDEX};
use crate::storage::{Error, Kind, Result};
use rusqlite::{Connection, OpenFlags};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Virtual-machine steps between two signs of life of a long statement: some ten milliseconds.
const STEPS_PER_SIGN: i32 = 1_000_000;

/// Broken chains that one warning lists; the rest is counted.
const LISTED: usize = 20;

impl Sqlite {
    /// Makes, adopts or migrates the database in `directory`, closes it again, and returns what the
    /// operator should be warned of.
    ///
    /// Before a database that holds data is changed, a copy is kept as `migration` says. `progress`
    /// hears what takes long, and an empty text as a mere sign of life.
    pub fn prepare(directory: &Path, migration: &Migration, progress: fn(&str)) -> Result<Vec<String>> {
        let path = directory.join(FILE_NAME);
        let connection = open(&path)?;
        let found = schema_version(&connection).context("reading the schema's version", &path)?;
        if found.is_some_and(|found| found > CURRENT) {
            return Err(newer(&path, found.unwrap_or_default()));
        }
        let has_data = found.is_some() && holds_data(&connection).context("reading the database", &path)?;
        if has_data && found != Some(CURRENT) && migration.copy {
            let target = migration.copy_dir.as_deref().unwrap_or(directory);
            let kept = copy::keep(&connection, found.unwrap_or_default(), target, progress)?;
            progress(&format!("the database as it was is kept in {}", kept.display()));
        }
        connection
            .progress_handler(
                STEPS_PER_SIGN,
                Some(move || {
                    progress("");
                    false
                }),
            )
            .context("preparing the database", &path)?;
        migrate(&connection, found, progress).context("migrating the database", &path)?;
        carry_invariant(&connection).context("checking that chains have no branches", &path)
    }
}

fn open(path: &Path) -> Result<Connection> {
    // A new file is made here rather than by SQLite, so that nobody else can ever read it.
    if !path.exists() {
        let made = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        made.context("making the database", path)?;
    }
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | common_flags());
    let connection = connection.context("opening the database", path)?;
    let mode = set_up(&connection).context("opening the database", path)?;
    if mode != "wal" {
        let message = format!(
            "{}: the file system does not support SQLite's write-ahead log (journal mode {mode}): \
             keep the data on a local disk",
            path.display()
        );
        return Err(Error::new(Kind::Unavailable, message));
    }
    Ok(connection)
}

/// Returns the journal mode that came to be.
fn set_up(connection: &Connection) -> rusqlite::Result<String> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
}

/// `None` for an empty database, 0 for one that only the reference server has used.
fn schema_version(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    if exists(connection, "sync_server_schema")? {
        return connection
            .query_row("SELECT version FROM sync_server_schema", [], |row| row.get(0))
            .map(Some);
    }
    Ok(exists(connection, "clients")?.then_some(0))
}

fn exists(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection
        .query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1)", [name], |row| row.get(0))
}

fn holds_data(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM clients) OR EXISTS (SELECT 1 FROM versions)";
    connection.query_row(sql, [], |row| row.get(0))
}

/// Runs what is missing, each migration in a transaction of its own.
fn migrate(connection: &Connection, found: Option<i64>, progress: fn(&str)) -> rusqlite::Result<()> {
    if found.is_none() {
        in_transaction(connection, ADOPTED)?;
    }
    for (version, sql) in (1..).zip(MIGRATIONS) {
        if version > found.unwrap_or(0) {
            if found.is_some() {
                progress(&format!("migrating the database to schema {version} of {CURRENT}"));
            }
            in_transaction(connection, &format!("{sql} UPDATE sync_server_schema SET version = {version};"))?;
        }
    }
    Ok(())
}

fn in_transaction(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(sql)?;
    transaction.commit()
}

/// Sees to it that the schema itself refuses a branch; where adopted rows hold one already, that is
/// reported, the index is a plain one, and the transaction's own check must do until they are mended.
fn carry_invariant(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    if exists(connection, UNIQUE_INDEX)? {
        return Ok(Vec::new());
    }
    if !exists(connection, PLAIN_INDEX)? {
        let unique = format!("CREATE UNIQUE INDEX {UNIQUE_INDEX} ON versions (client_id, parent_version_id)");
        match connection.execute(&unique, []) {
            Err(error) if is_violation(&error) => {}
            done => return done.map(|_| Vec::new()),
        }
        connection
            .execute(&format!("CREATE INDEX {PLAIN_INDEX} ON versions (client_id, parent_version_id)"), [])?;
    }
    let broken = branches(connection)?;
    if broken.is_empty() {
        in_transaction(
            connection,
            &format!(
                "CREATE UNIQUE INDEX {UNIQUE_INDEX} ON versions (client_id, parent_version_id);
                 DROP INDEX {PLAIN_INDEX};"
            ),
        )?;
    }
    Ok(broken)
}

fn is_violation(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation)
}

fn branches(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(
        "SELECT substr(client_id, 1, 8), coalesce(parent_version_id, 'NULL'), group_concat(version_id, ', ')
         FROM versions GROUP BY client_id, parent_version_id HAVING count(*) > 1",
    )?;
    let rows = statement.query_map([], |row| {
        let (client, parent, children): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(format!(
            "client {client}: version {parent} has more than one child ({children}); the first is served, \
             nothing was changed. A replica that holds another one cannot sync any more"
        ))
    })?;
    let mut warnings = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    if warnings.len() > LISTED {
        let more = warnings.len() - LISTED;
        warnings.truncate(LISTED);
        warnings.push(format!("{more} more versions have more than one child"));
    }
    Ok(warnings)
}

fn newer(path: &Path, found: i64) -> Error {
    let message = format!(
        "{} has schema version {found}, made by a newer sync-server; this one knows versions up to {CURRENT}. \
         Install the newer program again, or restore the copy that it kept before its migration",
        path.display()
    );
    Error::new(Kind::Newer, message)
}
