//! A database of this kind as the original of a copy, and as the copy.

use super::fault::Context;
use super::prepare::{carry_invariant, exists};
use super::registry::{client_at, event_of};
use super::txn::{INLINE_READ, Text, Txn, state_at, version_at};
use super::upkeep::ID;
use super::{FILE_NAME, Open, Sqlite, open_writer, sizes};
use crate::protocol::{ClientId, Snapshot, VersionId};
use crate::storage::contents::{self, Decision, LastUse};
use crate::storage::copying::{Carried, Copying, Device, Holding, Note, Row, SUPERSEDED, Segment};
use crate::storage::schema::{PLAIN_INDEX, UNIQUE_INDEX};
use crate::storage::{Body, Error, Kind, Result, Storage};
use rusqlite::{MAIN_DB, OptionalExtension, params};
use std::collections::BTreeMap;
use std::path::Path;
use uuid::Uuid;

const READING: &str = "reading what is copied";
const WRITING: &str = "writing the copy";
const NOTING: &str = "noting that the database is a copy";
const ENDING: &str = "taking the note away that the database is a copy";

/// Only there as long as the database is a copy.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS sync_server_copy (
    origin TEXT NOT NULL,
    run TEXT NOT NULL,
    finished INTEGER NOT NULL,
    original TEXT NOT NULL)";

impl Copying for Sqlite {
    fn note(&self) -> Result<Option<Note>> {
        self.reading(NOTING, |txn| txn.copy_note())
    }

    fn census(&self) -> Result<(u64, u64)> {
        let (counts, strays) = self.reading(READING, |txn| {
            let sql = "SELECT (SELECT count(*) FROM clients), (SELECT count(*) FROM versions)";
            let counts = txn.connection.query_row(sql, [], |row| Ok((number(row, 0)?, number(row, 1)?)))?;
            Ok((counts, txn.strays()?))
        })?;
        if strays > 0 {
            let message = format!(
                "{}: {strays} rows are kept under what is no ID: `sync-server admin check` names them",
                self.path.display()
            );
            return Err(Error::new(Kind::Corrupt, message));
        }
        Ok(counts)
    }

    fn may_branch(&self) -> Result<bool> {
        self.reading(READING, |txn| Ok(!exists(txn.connection, UNIQUE_INDEX)?))
    }

    fn has_event(&self, event: Uuid) -> Result<bool> {
        self.reading(READING, |txn| {
            let sql =
                "SELECT EXISTS (SELECT 1 FROM sync_server_audit WHERE client_id = ?1 AND event_id = ?2)";
            let ids = [Text::of(Uuid::nil()), Text::of(event)];
            txn.connection.query_row(sql, ids, |row| row.get(0))
        })
    }

    fn holdings(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<Holding>> {
        self.reading(READING, |txn| {
            let ids = txn.ids_behind(after, limit)?;
            let (Some(first), Some(last)) = (ids.first(), ids.last()) else { return Ok(Vec::new()) };
            let mut holdings = txn.holdings_between(*first, *last)?;
            // What is being removed and left no record is no holding, and a page of such is not the end.
            for id in ids {
                holdings.entry(id).or_insert_with(|| Holding::none(id));
            }
            Ok(holdings.into_values().map(Holding::settled).collect())
        })
    }

    fn holding(&self, of: Uuid) -> Result<Holding> {
        self.reading(READING, |txn| {
            let found = txn.holdings_between(of, of)?.remove(&of);
            Ok(found.unwrap_or_else(|| Holding::none(of)).settled())
        })
    }

    fn segments(&self, client: ClientId, versions: &[VersionId]) -> Result<Vec<Segment>> {
        self.reading(READING, |txn| {
            let found = versions.iter().map(|version| txn.segment(client, *version));
            found.filter_map(rusqlite::Result::transpose).collect()
        })
    }

    fn begin_copy(&self, note: &Note, may_branch: bool) -> Result<()> {
        self.writing(NOTING, |txn| {
            txn.connection.execute_batch(&format!("{TABLE}; DELETE FROM sync_server_copy;"))?;
            let sql =
                "INSERT INTO sync_server_copy (origin, run, finished, original) VALUES (?1, ?2, ?3, ?4)";
            let (origin, run) = (Text::of(note.origin), Text::of(note.run));
            txn.connection.execute(sql, params![origin, run, note.is_finished, note.original])?;
            if may_branch && exists(txn.connection, UNIQUE_INDEX)? {
                txn.connection.execute_batch(&format!(
                    "DROP INDEX {UNIQUE_INDEX};
                     CREATE INDEX {PLAIN_INDEX} ON versions (client_id, parent_version_id);"
                ))?;
            }
            Ok(())
        })
    }

    fn put_versions(&self, run: Uuid, client: ClientId, versions: &[Segment]) -> Result<()> {
        self.running(run, |txn| {
            versions.iter().try_for_each(|version| {
                let Segment { id, parent, bytes } = version;
                txn.put_version(&contents::Version { client, id: *id, parent: *parent, segment: bytes })
            })
        })?;
        self.rest()
    }

    fn remove_versions(&self, run: Uuid, client: ClientId, versions: &[VersionId]) -> Result<()> {
        self.running(run, |txn| {
            // Without what is kept of their size everything of the client is counted anew.
            txn.forget_figures(client)?;
            let mut statement =
                txn.statement("DELETE FROM versions WHERE version_id = ?1 AND client_id = ?2")?;
            for version in versions {
                statement.execute([Text::of(version.uuid()), Text::of(client.uuid())])?;
            }
            sizes::after_removal(txn.connection)
        })?;
        self.rest()
    }

    fn put_holding(&self, run: Uuid, holding: &Holding, snapshot: Carried<'_>) -> Result<()> {
        self.on_writer(|txn| {
            txn.still_runs(run)?;
            let count = txn.put_holding(holding, snapshot).context(WRITING, txn.path)?;
            if count == holding.versions {
                return Ok(());
            }
            let message = format!(
                "{WRITING}: {}: it has {count} versions of a client that has {}",
                txn.path.display(),
                holding.versions
            );
            Err(Error::new(Kind::Other, message))
        })?;
        self.rest()
    }

    fn finish_copy(&self, run: Uuid, adopted: i64) -> Result<()> {
        self.running(run, |txn| {
            // Branches are told at every start: here they are no news.
            txn.connection.execute_batch(&format!("DROP INDEX IF EXISTS {PLAIN_INDEX}"))?;
            carry_invariant(txn.connection)?;
            sizes::keep(txn.connection)?;
            txn.connection.execute("UPDATE sync_server_schema SET adopted = ?1", [adopted])?;
            txn.connection.execute("UPDATE sync_server_copy SET finished = 1", []).map(|_| ())
        })?;
        self.rest()
    }

    fn end_copy(&self) -> Result<()> {
        self.writing(ENDING, |txn| txn.connection.execute_batch("DROP TABLE IF EXISTS sync_server_copy"))
    }
}

impl Sqlite {
    /// Takes the note away from a whole copy; returns that of one that is not.
    pub fn take_over(directory: &Path) -> Result<Option<Note>> {
        let path = directory.join(FILE_NAME);
        let Open { connection, .. } = open_writer(&path)?;
        let note = Txn::new(&connection, &path).copy_note().context(NOTING, &path)?;
        if note.as_ref().is_some_and(|note| note.is_finished) {
            connection.execute_batch("DROP TABLE IF EXISTS sync_server_copy").context(ENDING, &path)?;
            return Ok(None);
        }
        Ok(note)
    }

    fn reading<T>(&self, doing: &str, work: impl FnOnce(&mut Txn) -> rusqlite::Result<T>) -> Result<T> {
        let mut found = None;
        self.on_reader(|txn| {
            found = Some(work(txn).context(doing, txn.path)?);
            Ok(())
        })?;
        found.ok_or_else(crate::storage::not_run)
    }

    fn writing(&self, doing: &str, work: impl FnOnce(&mut Txn) -> rusqlite::Result<()>) -> Result<()> {
        self.on_writer(|txn| work(txn).context(doing, txn.path))
    }

    /// The same for a run that nothing took the place of.
    fn running(&self, run: Uuid, work: impl FnOnce(&mut Txn) -> rusqlite::Result<()>) -> Result<()> {
        self.on_writer(|txn| {
            txn.still_runs(run)?;
            work(txn).context(WRITING, txn.path)
        })
    }
}

impl Txn<'_> {
    fn copy_note(&self) -> rusqlite::Result<Option<Note>> {
        if !exists(self.connection, "sync_server_copy")? {
            return Ok(None);
        }
        let sql = "SELECT origin, run, finished, original FROM sync_server_copy";
        let note = self.connection.query_row(sql, [], |row| {
            let (origin, run) = (client_at(row, 0)?.uuid(), client_at(row, 1)?.uuid());
            Ok(Note { origin, run, is_finished: row.get(2)?, original: row.get(3)? })
        });
        note.optional()
    }

    fn still_runs(&self, run: Uuid) -> Result<()> {
        let note = self.copy_note().context(NOTING, self.path)?;
        if note.is_some_and(|note| note.run == run && !note.is_finished) {
            return Ok(());
        }
        Err(Error::new(Kind::Other, format!("{WRITING}: {}: {SUPERSEDED}", self.path.display())))
    }

    /// Rows that no look at an ID would find.
    fn strays(&self) -> rusqlite::Result<u64> {
        let count = |table: &str, column: &str| {
            let sql = format!("SELECT count(*) FROM {table} WHERE ({column} GLOB '{ID}') IS NOT TRUE");
            self.connection.query_row(&sql, [], |row| number(row, 0))
        };
        Ok(count("clients", "client_id")?
            + count("versions", "client_id")?
            + count("versions", "version_id")?)
    }

    fn segment(&self, client: ClientId, version: VersionId) -> rusqlite::Result<Option<Segment>> {
        let mut statement = self.statement(
            "SELECT parent_version_id, length(history_segment), rowid,
                    CASE WHEN length(history_segment) <= ?3 THEN history_segment END
             FROM versions WHERE version_id = ?1 AND client_id = ?2",
        )?;
        let inline = i64::try_from(INLINE_READ).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![Text::of(version.uuid()), Text::of(client.uuid()), inline])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let parent = version_at(row, 0)?.unwrap_or(VersionId::NIL);
        let bytes = match self.body(row, 1, "versions", "history_segment", usize::MAX)? {
            Body::Bytes(bytes) => bytes,
            Body::TooLarge(_) => unreachable!("there is room for every body"),
        };
        Ok(Some(Segment { id: version, parent, bytes }))
    }

    fn ids_behind(&self, after: Option<Uuid>, limit: usize) -> rusqlite::Result<Vec<Uuid>> {
        let tables =
            ["clients", "versions", "sync_server_clients", "sync_server_devices", "sync_server_syncs"];
        // Each by itself, so that none is read beyond the first few.
        let parts = tables.into_iter().chain(["sync_server_audit"]).map(|table| {
            format!(
                "SELECT * FROM (SELECT DISTINCT client_id FROM {table} WHERE client_id > ?1
                                ORDER BY client_id LIMIT ?2)"
            )
        });
        let parts = parts.collect::<Vec<_>>().join(" UNION ");
        let mut statement = self.statement(&format!("{parts} ORDER BY 1 LIMIT ?2"))?;
        // Every ID is behind the empty text.
        let after = after.map_or(String::new(), |after| after.hyphenated().to_string());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![after, limit], |row| Ok(client_at(row, 0)?.uuid()))?;
        rows.collect()
    }

    fn holdings_between(&self, first: Uuid, last: Uuid) -> rusqlite::Result<BTreeMap<Uuid, Holding>> {
        let (mut all, range) = (BTreeMap::new(), (first, last));
        self.each(
            "SELECT c.client_id, c.latest_version_id, c.snapshot_version_id, c.snapshot_timestamp,
                    c.versions_since_snapshot + coalesce(n.versions, 0), length(c.snapshot)
             FROM clients c
                  LEFT JOIN sync_server_counts n
                  ON n.client_id = c.client_id AND n.snapshot_version_id = c.snapshot_version_id
             WHERE c.client_id BETWEEN ?1 AND ?2 AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r WHERE r.client_id = c.client_id AND r.removal = 1)",
            range,
            &mut all,
            |row, holding| {
                let latest = version_at(row, 1)?.unwrap_or(VersionId::NIL);
                holding.client = Some(Row { latest, snapshot: snapshot_of(row)? });
                Ok(())
            },
        )?;
        self.each(
            "SELECT v.client_id, count(*) FROM versions v
             WHERE v.client_id BETWEEN ?1 AND ?2 AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r WHERE r.client_id = v.client_id AND r.removal IS NOT NULL)
             GROUP BY v.client_id",
            range,
            &mut all,
            |row, holding| {
                holding.versions = number(row, 1)?;
                Ok(())
            },
        )?;
        self.holdings_beside(range, &mut all)?;
        Ok(all)
    }

    fn holdings_beside(
        &self,
        range: (Uuid, Uuid),
        all: &mut BTreeMap<Uuid, Holding>,
    ) -> rusqlite::Result<()> {
        self.each(
            "SELECT client_id, label, suspended, created FROM sync_server_clients
             WHERE client_id BETWEEN ?1 AND ?2 AND (removal IS NULL OR removal <> 1)",
            range,
            all,
            |row, holding| {
                let (client, label, state) = (client_at(row, 0)?, row.get(1)?, state_at(row, 2)?);
                holding.decision = Some(Decision { client, label, state, created: row.get(3)? });
                Ok(())
            },
        )?;
        self.each(
            "SELECT d.client_id, d.name, d.token_hash, d.created FROM sync_server_devices d
             WHERE d.client_id BETWEEN ?1 AND ?2 AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r WHERE r.client_id = d.client_id AND r.removal = 1)",
            range,
            all,
            |row, holding| {
                let (name, token_hash) = (row.get(1)?, row.get(2)?);
                holding.devices.push(Device { name, token_hash, created: row.get(3)? });
                Ok(())
            },
        )?;
        self.each(
            "SELECT s.client_id, s.device, s.program, s.last_sync FROM sync_server_syncs s
             WHERE s.client_id BETWEEN ?1 AND ?2 AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r WHERE r.client_id = s.client_id AND r.removal = 1)",
            range,
            all,
            |row, holding| {
                let (client, device) = (client_at(row, 0)?, row.get(1)?);
                holding.syncs.push(LastUse { client, device, program: row.get(2)?, at: row.get(3)? });
                Ok(())
            },
        )?;
        let mut statement = self.statement(
            "SELECT event_id, at, client_id, local_user, action, detail FROM sync_server_audit
             WHERE client_id BETWEEN ?1 AND ?2",
        )?;
        let mut rows = statement.query([Text::of(range.0), Text::of(range.1)])?;
        while let Some(row) = rows.next()? {
            let id = client_at(row, 2)?.uuid();
            all.entry(id).or_insert_with(|| Holding::none(id)).events.push(event_of(row)?);
        }
        Ok(())
    }

    /// Takes rows to the holdings whose IDs are in their first columns.
    fn each(
        &self,
        sql: &str,
        (first, last): (Uuid, Uuid),
        all: &mut BTreeMap<Uuid, Holding>,
        take: impl Fn(&rusqlite::Row, &mut Holding) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut statement = self.statement(sql)?;
        let mut rows = statement.query([Text::of(first), Text::of(last)])?;
        while let Some(row) = rows.next()? {
            let id = client_at(row, 0)?.uuid();
            take(row, all.entry(id).or_insert_with(|| Holding::none(id)))?;
        }
        Ok(())
    }

    /// Returns how many versions there are.
    fn put_holding(&self, holding: &Holding, snapshot: Carried<'_>) -> rusqlite::Result<u64> {
        let (client, id) = (ClientId::from(holding.id), Text::of(holding.id));
        match (&holding.client, snapshot) {
            (Some(row), Carried::Same) => self.move_row(&id, row)?,
            (row, snapshot) => {
                self.statement("DELETE FROM clients WHERE client_id = ?1")?.execute([&id])?;
                self.statement("DELETE FROM sync_server_counts WHERE client_id = ?1")?.execute([&id])?;
                if let (Some(row), Carried::Other(bytes)) = (row, snapshot) {
                    let snapshot = row.snapshot.map(|(snapshot, _)| snapshot).zip(bytes);
                    self.put_client(&contents::Client { client, latest: row.latest, snapshot })?;
                }
            }
        }
        self.forget(client)?;
        self.statement("DELETE FROM sync_server_audit WHERE client_id = ?1")?.execute([&id])?;
        if let Some(decision) = &holding.decision {
            // Another client that had it before has another one by now, which comes in its turn.
            let sql = "UPDATE sync_server_clients SET label = NULL WHERE label = ?1";
            self.statement(sql)?.execute([&decision.label])?;
            self.put_decision(decision)?;
        }
        for device in &holding.devices {
            let (name, token_hash) = (device.name.clone(), &device.token_hash[..]);
            self.put_device(&contents::Device { client, name, token_hash, created: device.created })?;
        }
        holding.syncs.iter().try_for_each(|sync| self.put_sync(sync))?;
        holding.events.iter().try_for_each(|event| self.insert_event(event))?;
        let sql = "SELECT count(*) FROM versions WHERE client_id = ?1";
        self.statement(sql)?.query_row([&id], |row| number(row, 0))
    }

    /// Changes a client's row, and leaves the snapshot as it is: large ones would be written again with
    /// their row.
    fn move_row(&self, id: &Text, row: &Row) -> rusqlite::Result<()> {
        let sql = "SELECT rowid, coalesce(versions_since_snapshot, 0) FROM clients WHERE client_id = ?1";
        let (rowid, counted) =
            self.statement(sql)?.query_row([id], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        let latest = row.latest.uuid().hyphenated().to_string();
        let mut column = self.connection.blob_open(MAIN_DB, "clients", "latest_version_id", rowid, false)?;
        column.write_at(latest.as_bytes(), 0)?;
        column.close()?;
        let Some((snapshot, _)) = row.snapshot else { return Ok(()) };
        let more = i64::from(snapshot.versions_since) - counted;
        let mut statement = self.statement(
            "INSERT INTO sync_server_counts (client_id, snapshot_version_id, versions) VALUES (?1, ?2, ?3)
             ON CONFLICT (client_id) DO UPDATE SET
                 snapshot_version_id = excluded.snapshot_version_id, versions = excluded.versions",
        )?;
        statement.execute(params![id, Text::of(snapshot.version.uuid()), more]).map(|_| ())
    }
}

fn snapshot_of(row: &rusqlite::Row) -> rusqlite::Result<Option<(Snapshot, u64)>> {
    let (Some(version), Some(length)) = (version_at(row, 2)?, row.get::<_, Option<i64>>(5)?) else {
        return Ok(None);
    };
    let since = row.get::<_, Option<i64>>(4)?.unwrap_or(0);
    let snapshot = Snapshot {
        version,
        timestamp: row.get::<_, Option<i64>>(3)?.unwrap_or(0),
        versions_since: u32::try_from(since).unwrap_or(u32::MAX),
    };
    Ok(Some((snapshot, length.unsigned_abs())))
}

fn number(row: &rusqlite::Row, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::unsigned_abs)
}
