//! Databases that hold a lot already, written directly into the reference server's two tables:
//! through the protocol they would take many minutes.

use crate::Result;
use crate::replica::body;
use crate::wire::{Id, NIL};
use rusqlite::{Connection, params};
use std::fs::File;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The database's name in a data directory.
pub const NAME: &str = "taskchampion-sync-server.sqlite3";

const TABLES: &str = "
    PRAGMA journal_mode=OFF;
    PRAGMA synchronous=OFF;
    CREATE TABLE clients (
        client_id STRING PRIMARY KEY, latest_version_id STRING, snapshot_version_id STRING,
        versions_since_snapshot INTEGER, snapshot_timestamp INTEGER, snapshot BLOB);
    CREATE TABLE versions (
        version_id STRING PRIMARY KEY, client_id STRING, parent_version_id STRING, history_segment BLOB);
    CREATE INDEX versions_by_parent ON versions (parent_version_id);
    BEGIN";

/// A database file to copy from.
pub struct Prefilled {
    path: PathBuf,
    pub clients: Vec<Known>,
}

/// A client in it.
#[derive(Clone)]
pub struct Known {
    pub client: String,
    pub first: Id,
    pub latest: Id,
}

impl Prefilled {
    /// So many clients with a chain of so many versions of 1 KiB each.
    pub fn new(dir: &Path, clients: usize, versions_each: usize) -> Result<Prefilled> {
        let path = dir.join(format!("{clients}-clients-with-{versions_each}.sqlite3"));
        let clients = fill(&path, clients, versions_each);
        Ok(Prefilled { clients: clients.map_err(|error| format!("{}: {error}", path.display()))?, path })
    }

    /// Copies the database to where a server looks for it; on disk when this returns.
    pub fn copy_into(&self, dir: &Path) -> Result<()> {
        let copy = || File::options().write(true).open(dir.join(NAME))?.sync_all();
        let copied = std::fs::copy(&self.path, dir.join(NAME)).and_then(|_| copy());
        copied.map_err(|error| format!("{}: {error}", dir.display()))
    }
}

fn fill(path: &Path, clients: usize, versions_each: usize) -> rusqlite::Result<Vec<Known>> {
    let database = Connection::open(path)?;
    database.execute_batch(TABLES)?;
    let new_client = |_| Known { client: Uuid::new_v4().to_string(), first: NIL, latest: NIL };
    let mut clients: Vec<_> = (0..clients).map(new_client).collect();
    let segment = body(1024);
    // By turns, as clients would come.
    for _ in 0..versions_each {
        clients.iter_mut().try_for_each(|known| append(&database, known, &segment))?;
    }
    for known in &clients {
        let mut insert =
            database.prepare_cached("INSERT INTO clients (client_id, latest_version_id) VALUES (?1, ?2)")?;
        insert.execute(params![known.client, text(&known.latest)])?;
    }
    database.execute_batch("COMMIT; PRAGMA journal_mode=WAL")?;
    database.close().map_err(|(_, error)| error)?;
    Ok(clients)
}

fn append(database: &Connection, known: &mut Known, segment: &[u8]) -> rusqlite::Result<()> {
    let mut version = NIL;
    Uuid::now_v7().hyphenated().encode_lower(&mut version);
    let mut insert = database.prepare_cached("INSERT INTO versions VALUES (?1, ?2, ?3, ?4)")?;
    insert.execute(params![text(&version), known.client, text(&known.latest), segment])?;
    if known.first == NIL {
        known.first = version;
    }
    known.latest = version;
    Ok(())
}

fn text(id: &Id) -> &str {
    str::from_utf8(id).expect("IDs are ASCII")
}
