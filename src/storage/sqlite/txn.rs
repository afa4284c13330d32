//! The facts and changes of one transaction, as statements that are prepared once for each connection.

use super::fault::{Context, damaged};
use crate::credential::Hash;
use crate::protocol::{Client, ClientId, Snapshot, State, VersionId};
use crate::storage::{Body, Held, Lookup, Noted, Reader, Result, Sink, Writer};
use rusqlite::Error::FromSqlConversionFailure;
use rusqlite::types::Type;
use rusqlite::{CachedStatement, Connection, MAIN_DB, OptionalExtension, Row, params};
use std::path::Path;
use uuid::Uuid;

/// Larger bodies are read by incremental I/O: as a value, SQLite would copy them once more.
pub(super) const INLINE_READ: usize = 256 * 1024;

/// Larger bodies are written by incremental I/O, which does without the two more copies that SQLite holds of a
/// bound value.
pub(super) const INLINE_WRITE: usize = 512 * 1024;

/// Memory for the writer's page cache once a large body went through it, in SQLite's unit of minus one KiB: the
/// next one like it is written into pages that are there.
const LARGE_CACHE: i64 = -16 * 1024;

/// Where the held snapshot is larger than this many bytes, the client's row is changed in place:
/// an UPDATE would read and write the whole snapshot beside it.
const IN_PLACE: i64 = 16 * 1024;

/// Last syncs of each client's device that are kept.
const SYNCS_KEPT: i64 = 20;

/// Bytes that one step of incremental I/O moves.
const STEP: usize = 1024 * 1024;

pub(super) struct Txn<'c> {
    pub(super) connection: &'c Connection,
    pub(super) path: &'c Path,
    /// The row of the client that was looked at last: an appended version changes the same one.
    place: Option<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    client: ClientId,
    rowid: i64,
    snapshot_len: i64,
}

impl<'c> Txn<'c> {
    pub(super) fn new(connection: &'c Connection, path: &'c Path) -> Txn<'c> {
        Txn { connection, path, place: None }
    }

    pub(super) fn statement(&self, sql: &str) -> rusqlite::Result<CachedStatement<'c>> {
        self.connection.prepare_cached(sql)
    }

    fn find_client(&mut self, client: ClientId) -> rusqlite::Result<Option<Client>> {
        let mut statement = self.statement(
            "SELECT c.rowid, c.latest_version_id, c.snapshot_version_id, c.snapshot_timestamp,
                    c.versions_since_snapshot + coalesce(n.versions, 0), length(c.snapshot),
                    iif(r.removal IS NULL, r.suspended, 2), r.devices
             FROM clients c
                  LEFT JOIN sync_server_counts n
                  ON n.client_id = ?1 AND n.snapshot_version_id = c.snapshot_version_id
                  LEFT JOIN sync_server_clients r ON r.client_id = ?1
             WHERE c.client_id = ?1",
        )?;
        let found = statement
            .query_row([Text::of(client.uuid())], |row| {
                let snapshot_len = row.get::<_, Option<i64>>(5)?.unwrap_or(0);
                Ok((Place { client, rowid: row.get(0)?, snapshot_len }, client_of(row)?))
            })
            .optional()?;
        self.place = found.map(|(place, _)| place);
        Ok(found.map(|(_, client)| client))
    }

    fn find_child(
        &self,
        client: ClientId,
        parent: VersionId,
        room: usize,
    ) -> rusqlite::Result<Option<Lookup>> {
        // One child for each parent is the rule; where adopted rows break it, the first is served.
        let mut statement = self.statement(
            "SELECT c.latest_version_id, v.version_id, length(v.history_segment), v.rowid,
                    CASE WHEN length(v.history_segment) <= ?3 THEN v.history_segment END,
                    iif(r.removal IS NULL, r.suspended, 2), r.devices
             FROM clients c
                  LEFT JOIN versions v ON v.client_id = ?1 AND v.parent_version_id = ?2
                  LEFT JOIN sync_server_clients r ON r.client_id = ?1
             WHERE c.client_id = ?1
             LIMIT 1",
        )?;
        let inline = i64::try_from(room.min(INLINE_READ)).unwrap_or(i64::MAX);
        let parameters = params![Text::of(client.uuid()), Text::of(parent.uuid()), inline];
        let mut rows = statement.query(parameters)?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let child = match version_at(row, 1)? {
            Some(id) => Some((id, self.body(row, 2, "versions", "history_segment", room)?)),
            None => None,
        };
        let latest = version_at(row, 0)?.unwrap_or(VersionId::NIL);
        Ok(Some(Lookup { latest, state: state_at(row, 5)?, has_devices: has_devices_at(row, 6)?, child }))
    }

    fn find_snapshot(&self, client: ClientId, room: usize) -> rusqlite::Result<Option<Held>> {
        let mut statement = self.statement(
            "SELECT c.snapshot_version_id, length(c.snapshot), c.rowid,
                    CASE WHEN length(c.snapshot) <= ?2 THEN c.snapshot END,
                    iif(r.removal IS NULL, r.suspended, 2), r.devices
             FROM clients c LEFT JOIN sync_server_clients r ON r.client_id = ?1
             WHERE c.client_id = ?1",
        )?;
        let inline = i64::try_from(room.min(INLINE_READ)).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![Text::of(client.uuid()), inline])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let snapshot = match (version_at(row, 0)?, row.get::<_, Option<i64>>(1)?) {
            (Some(version), Some(_)) => Some((version, self.body(row, 1, "clients", "snapshot", room)?)),
            _ => None,
        };
        Ok(Some(Held { state: state_at(row, 4)?, has_devices: has_devices_at(row, 5)?, snapshot }))
    }

    fn read_snapshot(&self, client: ClientId, piece: usize, sink: &mut Sink<'_>) -> rusqlite::Result<()> {
        let mut statement = self.statement(
            "SELECT rowid FROM clients
             WHERE client_id = ?1 AND snapshot IS NOT NULL AND snapshot_version_id IS NOT NULL",
        )?;
        let found = statement.query_row([Text::of(client.uuid())], |row| row.get(0)).optional()?;
        let Some(rowid) = found else { return Ok(()) };
        let blob = self.connection.blob_open(MAIN_DB, "clients", "snapshot", rowid, true)?;
        for start in (0..blob.len()).step_by(piece) {
            let mut bytes = vec![0; piece.min(blob.len() - start)];
            blob.read_at_exact(&mut bytes, start)?;
            if !sink(bytes) {
                break;
            }
        }
        Ok(())
    }

    fn find_device(&self, client: ClientId, name: &str) -> rusqlite::Result<Option<Hash>> {
        let mut statement =
            self.statement("SELECT token_hash FROM sync_server_devices WHERE client_id = ?1 AND name = ?2")?;
        let mut rows = statement.query(params![Text::of(client.uuid()), name])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let hash = Hash::from_bytes(row.get_ref(0)?.as_blob()?);
        let wrong = || FromSqlConversionFailure(0, Type::Blob, "a hash of another length".into());
        hash.map(Some).ok_or_else(wrong)
    }

    /// The body of a row whose columns from `first` on are its length, rowid, and bytes where few.
    pub(super) fn body(
        &self,
        row: &Row,
        first: usize,
        table: &str,
        column: &str,
        room: usize,
    ) -> rusqlite::Result<Body> {
        let len = usize::try_from(row.get::<_, Option<i64>>(first)?.unwrap_or(0)).unwrap_or(usize::MAX);
        if len > room {
            return Ok(Body::TooLarge(len));
        }
        if len <= INLINE_READ {
            let bytes = row.get_ref(first + 2)?.as_bytes_or_null()?.unwrap_or_default();
            return Ok(Body::Bytes(bytes.to_vec()));
        }
        let blob = self.connection.blob_open(MAIN_DB, table, column, row.get(first + 1)?, true)?;
        let mut bytes = vec![0; len];
        blob.read_at_exact(&mut bytes, 0)?;
        Ok(Body::Bytes(bytes))
    }

    pub(super) fn insert_client(&self, client: ClientId, now: i64) -> rusqlite::Result<()> {
        let client = Text::of(client.uuid());
        self.statement("INSERT INTO clients (client_id, latest_version_id) VALUES (?1, ?2)")?
            .execute([&client, &Text::of(VersionId::NIL.uuid())])?;
        // What the operator decided about a client outlives the client's row, which others may delete.
        self.statement("INSERT OR IGNORE INTO sync_server_clients (client_id, created) VALUES (?1, ?2)")?
            .execute(params![client, now])
            .map(|_| ())
    }

    fn insert_version(
        &self,
        client: ClientId,
        id: VersionId,
        parent: VersionId,
        segment: &[u8],
    ) -> rusqlite::Result<()> {
        let (client, id, parent) = (Text::of(client.uuid()), Text::of(id.uuid()), Text::of(parent.uuid()));
        let sql = "INSERT INTO versions (version_id, client_id, parent_version_id, history_segment)
                   VALUES (?1, ?2, ?3, ?4)";
        let mut statement = self.statement(sql)?;
        if segment.len() <= INLINE_WRITE {
            return statement.execute(params![id, client, parent, segment]).map(|_| ());
        }
        self.keep_pages()?;
        statement.execute(params![id, client, parent, zeros(segment)])?;
        self.fill("versions", "history_segment", self.connection.last_insert_rowid(), segment)
    }

    fn move_latest(&mut self, client: ClientId, id: VersionId) -> rusqlite::Result<()> {
        let place = match self.place {
            Some(place) if place.client == client => place,
            _ => {
                self.find_client(client)?;
                self.place.ok_or(rusqlite::Error::QueryReturnedNoRows)?
            }
        };
        if place.snapshot_len > IN_PLACE && self.overwrite_latest(place, id)? {
            return self.count_beside(client);
        }
        let mut statement = self.statement(
            "UPDATE clients
             SET latest_version_id = ?1, versions_since_snapshot = versions_since_snapshot + 1
             WHERE rowid = ?2",
        )?;
        statement.execute(params![Text::of(id.uuid()), place.rowid]).map(|_| ())
    }

    /// Overwrites the latest version's ID where it stands; `false` where none of that length stands there.
    fn overwrite_latest(&self, place: Place, id: VersionId) -> rusqlite::Result<bool> {
        let text = Text::of(id.uuid());
        let column = self.connection.blob_open(MAIN_DB, "clients", "latest_version_id", place.rowid, false);
        let Ok(mut column) = column else { return Ok(false) };
        if column.len() != text.0.len() {
            return Ok(false);
        }
        column.write_at(&text.0, 0)?;
        column.close()?;
        Ok(true)
    }

    /// Counts a version since the snapshot beside the client's row, whose numbers cannot be changed in
    /// place. Bytes that were left without a version ID are no snapshot, and nothing counts from them.
    fn count_beside(&self, client: ClientId) -> rusqlite::Result<()> {
        let mut statement = self.statement(
            "INSERT INTO sync_server_counts (client_id, snapshot_version_id, versions)
             SELECT client_id, snapshot_version_id, 1 FROM clients
             WHERE client_id = ?1 AND snapshot_version_id IS NOT NULL
             ON CONFLICT (client_id) DO UPDATE SET
                 versions = CASE WHEN snapshot_version_id = excluded.snapshot_version_id
                                 THEN versions + 1 ELSE 1 END,
                 snapshot_version_id = excluded.snapshot_version_id",
        )?;
        statement.execute([Text::of(client.uuid())]).map(|_| ())
    }

    fn replace_snapshot(
        &mut self,
        client: ClientId,
        version: VersionId,
        now: i64,
        snapshot: &[u8],
    ) -> rusqlite::Result<()> {
        let (client, version) = (Text::of(client.uuid()), Text::of(version.uuid()));
        self.place = None;
        self.statement("DELETE FROM sync_server_counts WHERE client_id = ?1")?.execute([&client])?;
        let mut statement = self.statement(
            "UPDATE clients
             SET snapshot_version_id = ?2, snapshot_timestamp = ?3, versions_since_snapshot = 0, snapshot = ?4
             WHERE client_id = ?1
             RETURNING rowid",
        )?;
        if snapshot.len() <= INLINE_WRITE {
            return statement.query_row(params![client, version, now, snapshot], |_| Ok(()));
        }
        self.keep_pages()?;
        let rowid = statement.query_row(params![client, version, now, zeros(snapshot)], |row| row.get(0))?;
        self.fill("clients", "snapshot", rowid, snapshot)
    }

    fn insert_sync(&self, noted: &Noted) -> rusqlite::Result<()> {
        let mut statement = self.statement(
            "INSERT INTO sync_server_syncs (client_id, device, program, last_sync)
             SELECT c.client_id, coalesce(d.name, ''), ?3, ?4
             FROM clients c LEFT JOIN sync_server_devices d ON d.client_id = ?1 AND d.name = ?2
             WHERE c.client_id = ?1
             ON CONFLICT (client_id, device, program) DO UPDATE SET
                 last_sync = max(last_sync, excluded.last_sync)",
        )?;
        let client = Text::of(noted.client.uuid());
        statement.execute(params![client, noted.device, noted.program, noted.at])?;
        let mut devices = noted.device.as_deref().into_iter().chain([""]);
        devices.try_for_each(|device| self.forget_syncs(&client, device))
    }

    /// Whatever programs call themselves, they do not fill the table.
    fn forget_syncs(&self, client: &Text, device: &str) -> rusqlite::Result<()> {
        let mut statement = self.statement(
            "DELETE FROM sync_server_syncs WHERE client_id = ?1 AND device = ?2 AND last_sync < (
                 SELECT last_sync FROM sync_server_syncs WHERE client_id = ?1 AND device = ?2
                 ORDER BY last_sync DESC LIMIT 1 OFFSET ?3)",
        )?;
        statement.execute(params![client, device, SYNCS_KEPT - 1]).map(|_| ())
    }

    /// Lets a large body be written to the WAL once, at the commit, instead of as zeros first and again
    /// when it has been filled in. The memory that this takes goes back when the writer is idle, most of it at
    /// once.
    fn keep_pages(&self) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "cache_spill", false)?;
        self.connection.pragma_update(None, "cache_size", LARGE_CACHE)
    }

    pub(super) fn fill(&self, table: &str, column: &str, rowid: i64, bytes: &[u8]) -> rusqlite::Result<()> {
        let mut blob = self.connection.blob_open(MAIN_DB, table, column, rowid, false)?;
        for (step, bytes) in bytes.chunks(STEP).enumerate() {
            blob.write_at(bytes, step * STEP)?;
        }
        blob.close()
    }
}

impl Reader for Txn<'_> {
    fn client(&mut self, client: ClientId) -> Result<Option<Client>> {
        self.find_client(client).context("reading a client", self.path)
    }

    fn child(&mut self, client: ClientId, parent: VersionId, room: usize) -> Result<Option<Lookup>> {
        self.find_child(client, parent, room).context("reading a version", self.path)
    }

    fn parent(&mut self, client: ClientId, version: VersionId) -> Result<Option<VersionId>> {
        let find = || -> rusqlite::Result<_> {
            let mut statement = self.statement(
                "SELECT parent_version_id FROM versions WHERE version_id = ?1 AND client_id = ?2",
            )?;
            let parameters = [Text::of(version.uuid()), Text::of(client.uuid())];
            let parent = statement.query_row(parameters, |row| version_at(row, 0)).optional()?;
            Ok(parent.flatten())
        };
        find().context("reading a version", self.path)
    }

    fn device(&mut self, client: ClientId, name: &str) -> Result<Option<Hash>> {
        self.find_device(client, name).context("reading a device", self.path)
    }

    fn snapshot(&mut self, client: ClientId, room: usize) -> Result<Option<Held>> {
        self.find_snapshot(client, room).context("reading a snapshot", self.path)
    }

    fn pour_snapshot(&mut self, client: ClientId, piece: usize, sink: &mut Sink<'_>) -> Result<()> {
        self.read_snapshot(client, piece, sink).context("reading a snapshot", self.path)
    }
}

impl Writer for Txn<'_> {
    fn create_client(&mut self, client: ClientId, now: i64) -> Result<()> {
        self.insert_client(client, now).context("creating a client", self.path)
    }

    fn append_version(
        &mut self,
        client: ClientId,
        id: VersionId,
        parent: VersionId,
        segment: &[u8],
    ) -> Result<()> {
        self.insert_version(client, id, parent, segment)
            .and_then(|()| self.move_latest(client, id))
            .context("adding a version", self.path)
    }

    fn note_syncs(&mut self, noted: &[Noted]) -> Result<()> {
        noted.iter().try_for_each(|noted| self.insert_sync(noted)).context("noting last syncs", self.path)
    }

    fn set_snapshot(
        &mut self,
        client: ClientId,
        version: VersionId,
        now: i64,
        snapshot: &[u8],
    ) -> Result<()> {
        self.replace_snapshot(client, version, now, snapshot).context("storing a snapshot", self.path)
    }
}

/// A UUID as the database has it, lower case with dashes, without an allocation.
pub(super) struct Text([u8; 36]);

impl Text {
    pub(super) fn of(uuid: Uuid) -> Text {
        let mut text = [0; 36];
        uuid.hyphenated().encode_lower(&mut text);
        Text(text)
    }
}

impl rusqlite::ToSql for Text {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(rusqlite::types::ValueRef::Text(&self.0)))
    }
}

fn client_of(row: &Row) -> rusqlite::Result<Client> {
    let (timestamp, versions_since) = (row.get::<_, Option<i64>>(3)?, row.get::<_, Option<i64>>(4)?);
    let snapshot = match (version_at(row, 2)?, timestamp, versions_since) {
        (Some(version), Some(timestamp), Some(since)) => {
            Some(Snapshot { version, timestamp, versions_since: u32::try_from(since).unwrap_or(u32::MAX) })
        }
        _ => None,
    };
    // A row that an operator inserted by hand may name no version at all.
    Ok(Client {
        latest: version_at(row, 1)?.unwrap_or(VersionId::NIL),
        snapshot,
        state: state_at(row, 6)?,
        has_devices: has_devices_at(row, 7)?,
    })
}

/// What statements give for the state of a client that is being removed, beside what they have of
/// suspended ones.
const LEAVING: i64 = 2;

/// A client of which the operator never said anything is active.
pub(super) fn state_at(row: &Row, column: usize) -> rusqlite::Result<State> {
    Ok(match row.get::<_, Option<i64>>(column)? {
        None | Some(0) => State::Active,
        Some(LEAVING) => State::Leaving,
        Some(_) => State::Suspended,
    })
}

fn has_devices_at(row: &Row, column: usize) -> rusqlite::Result<bool> {
    Ok(row.get::<_, Option<i64>>(column)?.unwrap_or(0) > 0)
}

pub(super) fn version_at(row: &Row, column: usize) -> rusqlite::Result<Option<VersionId>> {
    let Some(text) = row.get_ref(column)?.as_str_or_null()? else { return Ok(None) };
    VersionId::parse(text).map(Some).ok_or_else(|| damaged(column, text))
}

pub(super) fn zeros(bytes: &[u8]) -> rusqlite::blob::ZeroBlob {
    rusqlite::blob::ZeroBlob(i32::try_from(bytes.len()).unwrap_or(i32::MAX))
}
