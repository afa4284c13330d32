//! Makes a new database or brings an existing one up to date, before the server serves it.

use super::fault::Context;
use super::{BUSY_TIMEOUT, FILE_NAME, Sqlite, common_flags, copy, sizes};
use crate::config::Migration;
use crate::storage::location::Standing;
use crate::storage::schema::{ADOPTED, CURRENT, MIGRATIONS, PLAIN_INDEX, UNIQUE_INDEX};
use crate::storage::{Error, Kind, Result};
use rusqlite::{Connection, OpenFlags};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Virtual-machine steps between two signs of life of a long statement: some ten milliseconds.
const STEPS_PER_SIGN: i32 = 1_000_000;

/// The page size of new databases in bytes. Twice SQLite's own: a body of 100 KiB is read in half as
/// many pieces, for a third less of the processor, and small writes cost as much as before.
const PAGE_SIZE: i64 = 8192;

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
            progress(&format!(
                "the database as it was is kept in {}; delete it once you need no way back",
                kept.display()
            ));
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
        keep_sizes(&connection, progress).context("counting what clients hold", &path)?;
        carry_invariant(&connection).context("checking that chains have no branches", &path)
    }
}

impl Sqlite {
    /// Looks at the database in `directory`, and changes nothing.
    ///
    /// # Errors
    /// [`Kind::Newer`] for a database that a newer release wrote, and all that keeps it from being read.
    pub fn standing(directory: &Path) -> Result<Standing> {
        let path = directory.join(FILE_NAME);
        if !path.try_exists().context("looking for the database", &path)? {
            return Ok(Standing::Missing);
        }
        let super::Open { connection, .. } = super::open_writer(&path)?;
        match schema_version(&connection).context("reading the schema's version", &path)? {
            Some(found) if found > CURRENT => Err(newer(&path, found)),
            Some(CURRENT) => Ok(Standing::Current),
            _ => Ok(Standing::Older),
        }
    }
}

impl Sqlite {
    /// The SQL that brings the database in `directory` up to date; empty where it is.
    pub fn pending(directory: &Path) -> Result<String> {
        let path = directory.join(FILE_NAME);
        let found = match Sqlite::standing(directory)? {
            Standing::Current => return Ok(String::new()),
            Standing::Missing => None,
            Standing::Older => {
                let super::Open { connection, .. } = super::open_writer(&path)?;
                schema_version(&connection).context("reading the schema's version", &path)?
            }
        };
        let adopted = if found.is_none() { ADOPTED } else { "" };
        let newer = (1..).zip(MIGRATIONS).filter(|(version, _)| *version > found.unwrap_or(0));
        let newer: String = newer.map(|(_, sql)| *sql).collect();
        Ok(format!(
            "{adopted}{newer}    UPDATE sync_server_schema SET version = {CURRENT};
    CREATE UNIQUE INDEX {UNIQUE_INDEX} ON versions (client_id, parent_version_id);\n"
        ))
    }
}

fn open(path: &Path) -> Result<Connection> {
    // A new file is made here rather than by SQLite, so that nobody else can ever read it.
    if !path.exists() {
        // Not at the end of a link: what is missing there is somewhere else just now.
        let made = OpenOptions::new().create_new(true).append(true).mode(0o600).open(path);
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
    // Counts for a database that is still empty; an existing one keeps its own.
    connection.pragma_update(None, "page_size", PAGE_SIZE)?;
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

pub(super) fn exists(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection
        .query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = ?1)", [name], |row| row.get(0))
}

pub(super) fn holds_data(connection: &Connection) -> rusqlite::Result<bool> {
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

/// Brings the kept sizes up to date: all versions at the first time, else those of the last days.
fn keep_sizes(connection: &Connection, progress: fn(&str)) -> rusqlite::Result<()> {
    if !sizes::is_behind(connection)? {
        return Ok(());
    }
    progress("");
    let transaction = connection.unchecked_transaction()?;
    sizes::distrust(&transaction)?;
    sizes::keep(&transaction)?;
    transaction.commit()
}

fn in_transaction(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(sql)?;
    transaction.commit()
}

/// Sees to it that the schema itself refuses a branch; where adopted rows hold one already, that is
/// reported, the index is a plain one, and the transaction's own check must do until they are mended.
pub(super) fn carry_invariant(connection: &Connection) -> rusqlite::Result<Vec<String>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    const KEEP: Migration = Migration { copy: true, copy_dir: None };

    /// A directory with a database of the reference server that this SQL has filled.
    fn adopted(sql: &str) -> TempDir {
        let directory = TempDir::new().expect("a directory");
        let connection = Connection::open(directory.path().join(FILE_NAME)).expect("a database");
        connection.execute_batch(&format!("{ADOPTED} {sql}")).expect("the SQL is right");
        directory
    }

    fn copies(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).expect("a directory");
        let names = names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        names.filter(|name| name.contains("before-migration")).collect()
    }

    fn version(directory: &Path) -> i64 {
        let connection = Connection::open(directory.join(FILE_NAME)).expect("a database");
        schema_version(&connection).expect("a readable schema").expect("a schema")
    }

    const ONE_VERSION: &str = "
        INSERT INTO clients (client_id, latest_version_id) VALUES ('11111111-aaaa-4aaa-8aaa-aaaaaaaaaaaa', 'b');
        INSERT INTO versions VALUES ('b', '11111111-aaaa-4aaa-8aaa-aaaaaaaaaaaa', 'a', x'00');";

    #[test]
    fn a_new_database_needs_no_copy_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = TempDir::new().expect("a directory");
        assert_eq!(
            Sqlite::prepare(directory.path(), &KEEP, |_| {}).expect("it is made"),
            Vec::<String>::new()
        );
        assert_eq!(version(directory.path()), CURRENT);
        assert_eq!(copies(directory.path()), Vec::<String>::new());
        let mode = fs::metadata(directory.path().join(FILE_NAME)).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_copy_of_an_adopted_database_is_kept_whole_and_only_once() {
        let directory = adopted(ONE_VERSION);
        for _ in 0..2 {
            Sqlite::prepare(directory.path(), &KEEP, |_| {}).expect("it is adopted");
            assert_eq!(version(directory.path()), CURRENT);
            assert_eq!(copies(directory.path()), [format!("{FILE_NAME}.before-migration")]);
        }
        let copy =
            Connection::open(directory.path().join(copies(directory.path()).remove(0))).expect("the copy");
        assert_eq!(schema_version(&copy).expect("a schema"), Some(0));
        let rows: i64 = copy.query_row("SELECT count(*) FROM versions", [], |row| row.get(0)).expect("rows");
        assert_eq!(rows, 1);
    }

    #[test]
    fn every_released_schema_becomes_the_current_one_and_leaves_a_copy() {
        for released in 1..CURRENT {
            let migrations = MIGRATIONS[..released as usize].concat();
            let set = format!("UPDATE sync_server_schema SET version = {released};");
            let directory = adopted(&format!("{ONE_VERSION} {migrations} {set}"));
            assert_eq!(version(directory.path()), released);
            Sqlite::prepare(directory.path(), &KEEP, |_| {}).expect("it is migrated");
            assert_eq!(version(directory.path()), CURRENT);
            let copy = directory.path().join(copies(directory.path()).remove(0));
            let copy = Connection::open(copy).expect("the copy");
            assert_eq!(schema_version(&copy).expect("a schema"), Some(released));
        }
    }

    #[test]
    fn an_empty_adopted_database_and_one_told_so_get_no_copy() {
        let empty = adopted("");
        Sqlite::prepare(empty.path(), &KEEP, |_| {}).expect("it is adopted");
        assert_eq!(copies(empty.path()), Vec::<String>::new());
        let told = adopted(ONE_VERSION);
        Sqlite::prepare(told.path(), &Migration { copy: false, copy_dir: None }, |_| {})
            .expect("it is adopted");
        assert_eq!(copies(told.path()), Vec::<String>::new());
    }

    #[test]
    fn a_copy_can_go_elsewhere_and_a_failed_one_leaves_the_database_alone() {
        let (directory, elsewhere) = (adopted(ONE_VERSION), TempDir::new().expect("a directory"));
        let missing = Migration { copy: true, copy_dir: Some(elsewhere.path().join("missing")) };
        let error =
            Sqlite::prepare(directory.path(), &missing, |_| {}).expect_err("there is no such directory");
        assert!(error.message.contains("missing"), "{error}");
        assert_eq!(version(directory.path()), 0);
        let there = Migration { copy: true, copy_dir: Some(elsewhere.path().to_owned()) };
        Sqlite::prepare(directory.path(), &there, |_| {}).expect("it is adopted");
        assert_eq!((copies(directory.path()).len(), copies(elsewhere.path()).len()), (0, 1));
    }

    #[test]
    fn a_newer_database_is_refused_with_both_versions_and_left_alone() {
        let directory =
            adopted("CREATE TABLE sync_server_schema (version); INSERT INTO sync_server_schema VALUES (7);");
        let error = Sqlite::prepare(directory.path(), &KEEP, |_| {}).expect_err("it is newer");
        assert_eq!(error.kind, Kind::Newer);
        assert!(
            error.message.contains("version 7") && error.message.contains(&format!("up to {CURRENT}")),
            "{error}"
        );
        assert_eq!(version(directory.path()), 7);
    }

    #[test]
    fn a_branch_is_reported_and_the_invariant_carried_once_it_is_mended() {
        let directory = adopted(&format!(
            "{ONE_VERSION} INSERT INTO versions VALUES ('c', '11111111-aaaa-4aaa-8aaa-aaaaaaaaaaaa', 'a', x'01');"
        ));
        for _ in 0..2 {
            let warnings = Sqlite::prepare(directory.path(), &KEEP, |_| {}).expect("it is served");
            assert_eq!(warnings.len(), 1);
            assert!(
                warnings[0].contains("client 11111111: version a has more than one child (b, c)"),
                "{warnings:?}"
            );
            assert!(!warnings[0].contains("11111111-aaaa"), "{warnings:?}");
        }
        let connection = Connection::open(directory.path().join(FILE_NAME)).expect("a database");
        connection.execute("DELETE FROM versions WHERE version_id = 'c'", []).expect("it is mended");
        assert_eq!(Sqlite::prepare(directory.path(), &KEEP, |_| {}).expect("it opens"), Vec::<String>::new());
        assert!(
            exists(&connection, UNIQUE_INDEX).expect("a schema")
                && !exists(&connection, PLAIN_INDEX).expect("a schema")
        );
    }
}
