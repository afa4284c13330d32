//! All that the database holds, taken out in the order in which it lies there, and put in again.

use super::fault::Context;
use super::prepare::{carry_invariant, holds_data};
use super::registry::{client_at, event_of};
use super::txn::{INLINE_READ, INLINE_WRITE, Text, Txn, state_at, version_at, zeros};
use super::{Sqlite, sizes};
use crate::protocol::{Snapshot, VersionId};
use crate::storage::contents::{Client, Contents, Decision, Device, LastUse, Record, Version, Visit};
use crate::storage::schema::{PLAIN_INDEX, UNIQUE_INDEX};
use crate::storage::{Body, Error, Kind, Result};
use rusqlite::{Row, params};

const WRITING: &str = "putting what a backup or another database holds into the database";

/// Those clients that are not being removed.
const STAYING: &str = "WHERE client_id NOT IN (SELECT client_id FROM sync_server_clients WHERE removal = 1)";

impl Contents for Sqlite {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn extent(&self) -> Result<u64> {
        let mut bytes = 0;
        self.on_reader(|txn| {
            let sql = "SELECT (page_count - freelist_count) * page_size
                       FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
            let found = txn.connection.query_row(sql, [], |row| row.get::<_, i64>(0));
            bytes = found.context("measuring the database", txn.path)?.unsigned_abs();
            Ok(())
        })?;
        Ok(bytes)
    }

    fn export(&self, visit: &mut Visit<'_>) -> Result<()> {
        self.on_reader(|txn| {
            txn.visit_clients(visit)?;
            txn.visit_versions(visit)?;
            txn.visit_decisions(visit)?;
            txn.visit_devices(visit)?;
            txn.visit_syncs(visit)?;
            txn.visit_events(visit)
        })
    }

    fn import(&self, source: &mut dyn FnMut(&mut Visit<'_>) -> Result<()>) -> Result<()> {
        self.on_writer(|txn| txn.import(source))
    }
}

impl Txn<'_> {
    /// Takes in all that `source` visits. Indexes are made once everything is there, which is
    /// faster, and adopted rows may not allow for the one that a new database has.
    pub(super) fn import(&self, source: &mut dyn FnMut(&mut Visit<'_>) -> Result<()>) -> Result<()> {
        if holds_data(self.connection).context("reading the database", self.path)? {
            let message = format!("{} holds clients or versions already", self.path.display());
            return Err(Error::new(Kind::Other, message));
        }
        let sql = format!("DROP INDEX IF EXISTS {UNIQUE_INDEX}; DROP INDEX IF EXISTS {PLAIN_INDEX};");
        self.connection.execute_batch(&sql).context(WRITING, self.path)?;
        source(&mut |record| self.put(&record).context(WRITING, self.path))?;
        // Branches are told at every start: here they are no news.
        let finished = carry_invariant(self.connection).and_then(|_| sizes::keep(self.connection));
        finished.context(WRITING, self.path)
    }

    fn scan(&self, sql: &str, mut each: impl FnMut(&Row) -> Result<()>) -> Result<()> {
        const READING: &str = "reading all that the database holds";
        let mut statement = self.connection.prepare(sql).context(READING, self.path)?;
        let mut rows = statement.query([]).context(READING, self.path)?;
        while let Some(row) = rows.next().context(READING, self.path)? {
            each(row)?;
        }
        Ok(())
    }

    /// Says which row it is that cannot be read.
    fn of_row<T>(&self, table: &str, rowid: usize, row: &Row, value: rusqlite::Result<T>) -> Result<T> {
        value.or_else(|error| {
            let rowid: i64 = row.get(rowid).unwrap_or_default();
            Err(error).context(&format!("reading row {rowid} of {table}"), self.path)
        })
    }

    fn visit_clients(&self, visit: &mut Visit<'_>) -> Result<()> {
        let sql = format!(
            "SELECT c.client_id, c.latest_version_id, c.snapshot_version_id, c.snapshot_timestamp,
                    c.versions_since_snapshot + coalesce(n.versions, 0), length(c.snapshot), c.rowid,
                    CASE WHEN length(c.snapshot) <= {INLINE_READ} THEN c.snapshot END
             FROM clients c
                  LEFT JOIN sync_server_counts n
                  ON n.client_id = c.client_id AND n.snapshot_version_id = c.snapshot_version_id
             WHERE c.client_id NOT IN (SELECT client_id FROM sync_server_clients WHERE removal = 1)
             ORDER BY c.rowid"
        );
        self.scan(&sql, |row| {
            let read = || {
                let latest = version_at(row, 1)?.unwrap_or(VersionId::NIL);
                Ok((client_at(row, 0)?, latest, self.snapshot_at(row)?))
            };
            let (client, latest, snapshot) = self.of_row("clients", 6, row, read())?;
            let snapshot = snapshot.as_ref().map(|(snapshot, bytes)| (*snapshot, &bytes[..]));
            visit(Record::Client(Client { client, latest, snapshot }))
        })
    }

    fn snapshot_at(&self, row: &Row) -> rusqlite::Result<Option<(Snapshot, Vec<u8>)>> {
        let (Some(version), Some(_)) = (version_at(row, 2)?, row.get::<_, Option<i64>>(5)?) else {
            return Ok(None);
        };
        let since = row.get::<_, Option<i64>>(4)?.unwrap_or(0);
        let snapshot = Snapshot {
            version,
            timestamp: row.get::<_, Option<i64>>(3)?.unwrap_or(0),
            versions_since: u32::try_from(since).unwrap_or(u32::MAX),
        };
        Ok(Some((snapshot, bytes(self.body(row, 5, "clients", "snapshot", usize::MAX)?))))
    }

    fn visit_versions(&self, visit: &mut Visit<'_>) -> Result<()> {
        let sql = format!(
            "SELECT client_id, version_id, parent_version_id, length(history_segment), rowid,
                    CASE WHEN length(history_segment) <= {INLINE_READ} THEN history_segment END
             FROM versions
             WHERE client_id IS NULL
                   OR client_id NOT IN (SELECT client_id FROM sync_server_clients WHERE removal IS NOT NULL)
             ORDER BY rowid"
        );
        self.scan(&sql, |row| {
            let read = || {
                let missing =
                    || rusqlite::Error::InvalidColumnType(1, "ID".into(), rusqlite::types::Type::Null);
                let id = version_at(row, 1)?.ok_or_else(missing)?;
                let parent = version_at(row, 2)?.ok_or_else(missing)?;
                let segment = self.body(row, 3, "versions", "history_segment", usize::MAX)?;
                Ok((client_at(row, 0)?, id, parent, bytes(segment)))
            };
            let (client, id, parent, segment) = self.of_row("versions", 4, row, read())?;
            visit(Record::Version(Version { client, id, parent, segment: &segment }))
        })
    }

    fn visit_decisions(&self, visit: &mut Visit<'_>) -> Result<()> {
        let sql = "SELECT client_id, label, suspended, created FROM sync_server_clients
                   WHERE removal IS NULL OR removal <> 1";
        self.scan(sql, |row| {
            visit(Record::Decision(decision_of(row).context("reading labels and states", self.path)?))
        })
    }

    fn visit_devices(&self, visit: &mut Visit<'_>) -> Result<()> {
        let sql = format!("SELECT client_id, name, token_hash, created FROM sync_server_devices {STAYING}");
        self.scan(&sql, |row| {
            visit(Record::Device(device_of(row).context("reading the devices", self.path)?))
        })
    }

    fn visit_syncs(&self, visit: &mut Visit<'_>) -> Result<()> {
        let sql = format!("SELECT client_id, device, program, last_sync FROM sync_server_syncs {STAYING}");
        self.scan(&sql, |row| visit(Record::Sync(use_of(row).context("reading the last syncs", self.path)?)))
    }

    fn visit_events(&self, visit: &mut Visit<'_>) -> Result<()> {
        let sql = "SELECT event_id, at, client_id, local_user, action, detail FROM sync_server_audit";
        self.scan(sql, |row| {
            let event = event_of(row).context("reading what operators changed", self.path)?;
            visit(Record::Event(event))
        })
    }

    fn put(&self, record: &Record) -> rusqlite::Result<()> {
        match record {
            Record::Client(client) => self.put_client(client),
            Record::Version(version) => self.put_version(version),
            Record::Decision(decision) => self.put_decision(decision),
            Record::Device(device) => self.put_device(device),
            Record::Sync(sync) => self.put_sync(sync),
            Record::Event(event) => self.insert_event(event),
        }
    }

    pub(super) fn put_client(&self, client: &Client) -> rusqlite::Result<()> {
        let mut statement = self.statement(
            "INSERT INTO clients (client_id, latest_version_id, snapshot_version_id, versions_since_snapshot,
                                  snapshot_timestamp, snapshot)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let (id, latest) = (Text::of(client.client.uuid()), Text::of(client.latest.uuid()));
        let facts = client.snapshot.map(|(snapshot, _)| snapshot);
        let (version, since, at) = (
            facts.map(|snapshot| Text::of(snapshot.version.uuid())),
            facts.map(|snapshot| snapshot.versions_since),
            facts.map(|snapshot| snapshot.timestamp),
        );
        match client.snapshot {
            Some((_, bytes)) if bytes.len() > INLINE_WRITE => {
                statement.execute(params![id, latest, version, since, at, zeros(bytes)])?;
                self.fill("clients", "snapshot", self.connection.last_insert_rowid(), bytes)
            }
            held => {
                let bytes = held.map(|(_, bytes)| bytes);
                statement.execute(params![id, latest, version, since, at, bytes]).map(|_| ())
            }
        }
    }

    pub(super) fn put_version(&self, version: &Version) -> rusqlite::Result<()> {
        let sql = "INSERT INTO versions (version_id, client_id, parent_version_id, history_segment)
                   VALUES (?1, ?2, ?3, ?4)";
        let mut statement = self.statement(sql)?;
        let (id, client) = (Text::of(version.id.uuid()), Text::of(version.client.uuid()));
        let (parent, segment) = (Text::of(version.parent.uuid()), version.segment);
        if segment.len() <= INLINE_WRITE {
            return statement.execute(params![id, client, parent, segment]).map(|_| ());
        }
        statement.execute(params![id, client, parent, zeros(segment)])?;
        self.fill("versions", "history_segment", self.connection.last_insert_rowid(), segment)
    }

    pub(super) fn put_decision(&self, decision: &Decision) -> rusqlite::Result<()> {
        let mut statement = self.statement(
            "INSERT INTO sync_server_clients (client_id, label, suspended, created) VALUES (?1, ?2, ?3, ?4)",
        )?;
        let suspended = decision.state == crate::protocol::State::Suspended;
        let id = Text::of(decision.client.uuid());
        statement.execute(params![id, decision.label, suspended, decision.created]).map(|_| ())
    }

    pub(super) fn put_device(&self, device: &Device) -> rusqlite::Result<()> {
        let id = Text::of(device.client.uuid());
        let mut statement = self.statement(
            "INSERT INTO sync_server_devices (client_id, name, token_hash, created) VALUES (?1, ?2, ?3, ?4)",
        )?;
        statement.execute(params![id, device.name, device.token_hash, device.created])?;
        let mut statement = self.statement(
            "INSERT INTO sync_server_clients (client_id, devices) VALUES (?1, 1)
             ON CONFLICT (client_id) DO UPDATE SET devices = devices + 1",
        )?;
        statement.execute([id]).map(|_| ())
    }

    pub(super) fn put_sync(&self, sync: &LastUse) -> rusqlite::Result<()> {
        let mut statement = self.statement(
            "INSERT INTO sync_server_syncs (client_id, device, program, last_sync) VALUES (?1, ?2, ?3, ?4)",
        )?;
        statement
            .execute(params![Text::of(sync.client.uuid()), sync.device, sync.program, sync.at])
            .map(|_| ())
    }
}

fn decision_of(row: &Row) -> rusqlite::Result<Decision> {
    let (client, state) = (client_at(row, 0)?, state_at(row, 2)?);
    Ok(Decision { client, label: row.get(1)?, state, created: row.get(3)? })
}

fn device_of<'r>(row: &'r Row) -> rusqlite::Result<Device<'r>> {
    let (client, token_hash) = (client_at(row, 0)?, row.get_ref(2)?.as_blob()?);
    Ok(Device { client, name: row.get(1)?, token_hash, created: row.get(3)? })
}

fn use_of(row: &Row) -> rusqlite::Result<LastUse> {
    Ok(LastUse { client: client_at(row, 0)?, device: row.get(1)?, program: row.get(2)?, at: row.get(3)? })
}

fn bytes(body: Body) -> Vec<u8> {
    match body {
        Body::Bytes(bytes) => bytes,
        Body::TooLarge(_) => unreachable!("there is room for every body"),
    }
}
