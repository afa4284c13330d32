//! A database of this kind as the original of a copy, and as the copy.

use super::fault::Outcome;
use super::registry::{client, event_of};
use super::txn::{Txn, id, snapshot_of, state, value, version};
use super::{Address, Habits, Postgres, READ, WRITE, bodies, prepare, schema};
use crate::protocol::{ClientId, Snapshot, VersionId};
use crate::storage::contents::{self, Decision, LastUse};
use crate::storage::copying::{Carried, Copying, Device, Holding, Note, Row, SUPERSEDED, Segment};
use crate::storage::registry::Writer as _;
use crate::storage::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::Row as Found;
use tokio_postgres::types::Type;
use uuid::Uuid;

const READING: &str = "reading what is copied";
const WRITING: &str = "writing the copy";
const NOTING: &str = "noting that the database is a copy";

/// How long a look at many rows may take.
const LONGEST: Duration = Duration::from_secs(600);

/// Only there as long as the database is a copy.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS sync_server_copy (
    only_row BOOLEAN PRIMARY KEY,
    origin UUID NOT NULL,
    run UUID NOT NULL,
    finished BOOLEAN NOT NULL,
    original TEXT NOT NULL)";

impl Copying for Postgres {
    fn note(&self) -> Result<Option<Note>> {
        self.on_link(None, |txn| txn.copy_note())
    }

    fn census(&self) -> Result<(u64, u64)> {
        self.on_link(Some(READ), |txn| {
            txn.unhurried(READING)?;
            let sql = "SELECT (SELECT count(*) FROM clients), (SELECT count(*) FROM versions)";
            let rows = txn.ask_patiently(READING, sql, &[])?;
            let counts = rows.first().map(|row| Ok((value::<i64>(row, 0)?, value::<i64>(row, 1)?)));
            let (clients, versions) = txn.told(READING, counts.transpose())?.unwrap_or_default();
            Ok((clients.unsigned_abs(), versions.unsigned_abs()))
        })
    }

    fn may_branch(&self) -> Result<bool> {
        self.on_link(None, |txn| Ok(!txn.exists("sync_server_child")?))
    }

    fn has_event(&self, event: Uuid) -> Result<bool> {
        self.on_link(None, |txn| {
            let sql = "SELECT 1 FROM sync_server_audit WHERE client_id = $1 AND event_id = $2";
            Ok(!txn.ask(READING, sql, &[id(&Uuid::nil()), id(&event)])?.is_empty())
        })
    }

    fn holdings(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<Holding>> {
        self.on_link(Some(READ), |txn| {
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
        self.on_link(Some(READ), |txn| {
            let found = txn.holdings_between(of, of)?.remove(&of);
            Ok(found.unwrap_or_else(|| Holding::none(of)).settled())
        })
    }

    fn segments(&self, client: ClientId, versions: &[VersionId]) -> Result<Vec<Segment>> {
        self.on_link(Some(READ), |txn| {
            let mut segments = Vec::with_capacity(versions.len());
            txn.visit_batch(client, versions, &mut |record| {
                if let contents::Record::Version(found) = record {
                    let bytes = found.segment.to_vec();
                    segments.push(Segment { id: found.id, parent: found.parent, bytes });
                }
                Ok(())
            })?;
            Ok(segments)
        })
    }

    fn begin_copy(&self, note: &Note, may_branch: bool) -> Result<()> {
        self.on_link(Some(WRITE), |txn| {
            // Whoever else begins a copy or brings the tables up to date comes before or after.
            txn.ask(NOTING, "SELECT version FROM sync_server_schema FOR UPDATE", &[])?;
            txn.unhurried(NOTING)?;
            let made = txn.link.batch(TABLE);
            txn.told(NOTING, made)?;
            txn.ask(
                NOTING,
                "INSERT INTO sync_server_copy (only_row, origin, run, finished, original)
                 VALUES (true, $1, $2, $3, $4)
                 ON CONFLICT (only_row) DO UPDATE SET
                     origin = excluded.origin, run = excluded.run, finished = excluded.finished,
                     original = excluded.original",
                &[
                    id(&note.origin),
                    id(&note.run),
                    (&note.is_finished, Type::BOOL),
                    (&note.original, Type::TEXT),
                ],
            )?;
            if may_branch && txn.exists("sync_server_child")? {
                let sql = format!("DROP INDEX sync_server_child; {}", schema::PLAIN_INDEX);
                let made = txn.link.batch_patiently(&sql, &|| ());
                txn.told(NOTING, made)?;
            }
            Ok(())
        })
    }

    fn put_versions(&self, run: Uuid, client: ClientId, versions: &[Segment]) -> Result<()> {
        self.on_link(Some(WRITE), |txn| {
            txn.still_runs(run)?;
            let (large, small): (Vec<_>, Vec<_>) =
                versions.iter().partition(|version| version.bytes.len() > bodies::INLINE);
            let ids: Vec<Uuid> = small.iter().map(|version| version.id.uuid()).collect();
            let parents: Vec<Uuid> = small.iter().map(|version| version.parent.uuid()).collect();
            let segments: Vec<&[u8]> = small.iter().map(|version| &version.bytes[..]).collect();
            txn.ask(
                WRITING,
                "INSERT INTO versions (client_id, version_id, parent_version_id, history_segment)
                 SELECT $1, v.version_id, v.parent_version_id, v.history_segment
                 FROM unnest($2, $3, $4) v (version_id, parent_version_id, history_segment)",
                &[
                    id(&client.uuid()),
                    (&ids, Type::UUID_ARRAY),
                    (&parents, Type::UUID_ARRAY),
                    (&segments, Type::BYTEA_ARRAY),
                ],
            )?;
            for version in large {
                txn.insert_in_parts(WRITING, client, version.id, version.parent, &version.bytes)?;
                txn.forget_parts(WRITING, client)?;
            }
            Ok(())
        })
    }

    fn remove_versions(&self, run: Uuid, client: ClientId, versions: &[VersionId]) -> Result<()> {
        let ids: Vec<Uuid> = versions.iter().map(|version| version.uuid()).collect();
        self.on_link(Some(WRITE), |txn| {
            txn.still_runs(run)?;
            txn.delete_versions(WRITING, client, &ids)
        })
    }

    fn put_holding(&self, run: Uuid, holding: &Holding, snapshot: Carried<'_>) -> Result<()> {
        self.on_link(Some(WRITE), |txn| {
            txn.still_runs(run)?;
            txn.put_row(holding, snapshot)?;
            txn.put_beside(holding)?;
            let sql = "SELECT count(*) FROM versions WHERE client_id = $1";
            let rows = txn.ask(WRITING, sql, &[id(&holding.id)])?;
            let count = rows.first().map(|row| value::<i64>(row, 0)).transpose();
            match txn.told(WRITING, count)?.unwrap_or(0).unsigned_abs() {
                count if count == holding.versions => Ok(()),
                count => Err(Error::new(
                    Kind::Other,
                    format!(
                        "{WRITING}: {}: it has {count} versions of a client that has {}",
                        txn.database, holding.versions
                    ),
                )),
            }
        })
    }

    fn finish_copy(&self, run: Uuid, adopted: i64) -> Result<()> {
        self.on_link(Some(WRITE), |txn| {
            txn.still_runs(run)?;
            txn.unhurried(NOTING)?;
            if txn.exists("sync_server_children")? && txn.branches(1)?.is_empty() {
                let sql = format!("DROP INDEX sync_server_children; {}", schema::UNIQUE_INDEX);
                let made = txn.link.batch_patiently(&sql, &|| ());
                txn.told(NOTING, made)?;
            }
            let sql = "UPDATE sync_server_schema SET adopted = $1";
            txn.ask(NOTING, sql, &[(&adopted, Type::INT8)])?;
            txn.ask(NOTING, "UPDATE sync_server_copy SET finished = true", &[]).map(|_| ())
        })
    }

    fn end_copy(&self) -> Result<()> {
        self.on_link(None, |txn| txn.end_copy())
    }
}

impl Postgres {
    /// Takes the note away from a whole copy; returns that of one that is not.
    pub fn take_over(address: &Address, habits: Habits) -> Result<Option<Note>> {
        let name = address.to_string();
        let mut link = prepare::open(address, habits)?;
        let mut txn = Txn::new(&mut link, &name, false);
        let note = txn.copy_note()?;
        if note.as_ref().is_some_and(|note| note.is_finished) {
            txn.end_copy()?;
            return Ok(None);
        }
        Ok(note)
    }
}

impl Txn<'_> {
    fn end_copy(&mut self) -> Result<()> {
        let gone = self.link.batch("DROP TABLE IF EXISTS sync_server_copy");
        self.told("taking the note away that the database is a copy", gone)
    }

    fn copy_note(&mut self) -> Result<Option<Note>> {
        if !self.exists("sync_server_copy")? {
            return Ok(None);
        }
        let rows = self.ask(NOTING, "SELECT origin, run, finished, original FROM sync_server_copy", &[])?;
        let note = rows.first().map(|row| {
            let (origin, run) = (value(row, 0)?, value(row, 1)?);
            Ok(Note { origin, run, is_finished: value(row, 2)?, original: value(row, 3)? })
        });
        self.told(NOTING, note.transpose())
    }

    fn exists(&mut self, name: &str) -> Result<bool> {
        let sql = "SELECT 1 FROM pg_catalog.pg_class c
                   WHERE c.relname = $1 AND pg_catalog.pg_table_is_visible(c.oid)";
        Ok(!self.ask(READING, sql, &[(&name, Type::TEXT)])?.is_empty())
    }

    /// For what may take as long as there is much.
    fn unhurried(&mut self, doing: &str) -> Result<()> {
        self.ask(doing, "SET LOCAL statement_timeout = 0", &[]).map(|_| ())
    }

    fn ask_patiently(
        &mut self,
        doing: &str,
        sql: &'static str,
        values: &[super::link::Value<'_>],
    ) -> Result<Vec<Found>> {
        let rows = self.link.query_within(LONGEST, sql, values);
        self.told(doing, rows)
    }

    /// Keeps every other run and every server that starts away until the commit.
    fn still_runs(&mut self, run: Uuid) -> Result<()> {
        let sql = "SELECT 1 FROM sync_server_copy WHERE run = $1 AND NOT finished FOR UPDATE";
        if self.ask(WRITING, sql, &[id(&run)])?.is_empty() {
            return Err(Error::new(Kind::Other, format!("{WRITING}: {}: {SUPERSEDED}", self.database)));
        }
        Ok(())
    }

    fn ids_behind(&mut self, after: Option<Uuid>, limit: usize) -> Result<Vec<Uuid>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.ask_patiently(
            READING,
            "SELECT a.id FROM (
                 (SELECT client_id AS id FROM clients
                  WHERE $1 IS NULL OR client_id > $1 ORDER BY 1 LIMIT $2)
                 UNION (SELECT DISTINCT client_id FROM versions
                  WHERE $1 IS NULL OR client_id > $1 ORDER BY 1 LIMIT $2)
                 UNION (SELECT client_id FROM sync_server_clients
                  WHERE $1 IS NULL OR client_id > $1 ORDER BY 1 LIMIT $2)
                 UNION (SELECT DISTINCT client_id FROM sync_server_devices
                  WHERE $1 IS NULL OR client_id > $1 ORDER BY 1 LIMIT $2)
                 UNION (SELECT DISTINCT client_id FROM sync_server_syncs
                  WHERE $1 IS NULL OR client_id > $1 ORDER BY 1 LIMIT $2)
                 UNION (SELECT DISTINCT client_id FROM sync_server_audit
                  WHERE $1 IS NULL OR client_id > $1 ORDER BY 1 LIMIT $2)
             ) a ORDER BY a.id LIMIT $2",
            &[(&after, Type::UUID), (&limit, Type::INT8)],
        )?;
        self.told(READING, rows.iter().map(|row| value(row, 0)).collect())
    }

    fn holdings_between(&mut self, first: Uuid, last: Uuid) -> Result<BTreeMap<Uuid, Holding>> {
        let mut all = BTreeMap::new();
        let rows = self.between(
            "SELECT c.client_id, c.latest_version_id, c.snapshot_version_id, coalesce(c.snapshot_timestamp, 0),
                    coalesce(c.versions_since_snapshot, 0), octet_length(c.snapshot)
             FROM clients c WHERE c.client_id BETWEEN $1 AND $2 AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r WHERE r.client_id = c.client_id AND r.removal = 1)",
            (first, last),
        )?;
        self.each(&rows, &mut all, |row, holding| {
            let length: Option<i32> = value(row, 5)?;
            let snapshot: Option<Snapshot> = snapshot_of(row, 2)?;
            let snapshot = snapshot.zip(length.map(|length| u64::from(length.unsigned_abs())));
            let latest = version(row, 1)?.unwrap_or(VersionId::NIL);
            holding.client = Some(Row { latest, snapshot });
            Ok(())
        })?;
        let rows = self.between(
            "SELECT v.client_id, count(*) FROM versions v
             WHERE v.client_id BETWEEN $1 AND $2 AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r WHERE r.client_id = v.client_id AND r.removal IS NOT NULL)
             GROUP BY v.client_id",
            (first, last),
        )?;
        self.each(&rows, &mut all, |row, holding| {
            holding.versions = value::<i64>(row, 1)?.unsigned_abs();
            Ok(())
        })?;
        self.holdings_beside((first, last), &mut all)?;
        Ok(all)
    }

    fn holdings_beside(&mut self, range: (Uuid, Uuid), all: &mut BTreeMap<Uuid, Holding>) -> Result<()> {
        let rows = self.between(
            "SELECT client_id, label, CASE WHEN suspended THEN 1 ELSE 0 END, created FROM sync_server_clients
             WHERE client_id BETWEEN $1 AND $2 AND (removal IS NULL OR removal <> 1)",
            range,
        )?;
        self.each(&rows, all, |row, holding| {
            let (client, label, state) = (client(row, 0)?, value(row, 1)?, state(row, 2)?);
            holding.decision = Some(Decision { client, label, state, created: value(row, 3)? });
            Ok(())
        })?;
        let rows = self.between(
            "SELECT d.client_id, d.name, d.token_hash, d.created FROM sync_server_devices d
             WHERE d.client_id BETWEEN $1 AND $2 AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r WHERE r.client_id = d.client_id AND r.removal = 1)",
            range,
        )?;
        self.each(&rows, all, |row, holding| {
            let (name, token_hash) = (value(row, 1)?, value(row, 2)?);
            holding.devices.push(Device { name, token_hash, created: value(row, 3)? });
            Ok(())
        })?;
        let rows = self.between(
            "SELECT s.client_id, s.device, s.program, s.last_sync FROM sync_server_syncs s
             WHERE s.client_id BETWEEN $1 AND $2 AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r WHERE r.client_id = s.client_id AND r.removal = 1)",
            range,
        )?;
        self.each(&rows, all, |row, holding| {
            let (client, device) = (client(row, 0)?, value(row, 1)?);
            holding.syncs.push(LastUse { client, device, program: value(row, 2)?, at: value(row, 3)? });
            Ok(())
        })?;
        let rows = self.between(
            "SELECT event_id, at, client_id, local_user, action, detail FROM sync_server_audit
             WHERE client_id BETWEEN $1 AND $2",
            range,
        )?;
        for row in &rows {
            let found: Outcome<_> = (|| Ok((value::<Uuid>(row, 2)?, event_of(row)?)))();
            let (of, event) = self.told(READING, found)?;
            all.entry(of).or_insert_with(|| Holding::none(of)).events.push(event);
        }
        Ok(())
    }

    fn between(&mut self, sql: &'static str, range: (Uuid, Uuid)) -> Result<Vec<Found>> {
        self.ask_patiently(READING, sql, &[id(&range.0), id(&range.1)])
    }

    /// Takes rows to the holdings whose IDs are in their first columns.
    fn each(
        &mut self,
        rows: &[Found],
        all: &mut BTreeMap<Uuid, Holding>,
        take: impl Fn(&Found, &mut Holding) -> Outcome<()>,
    ) -> Result<()> {
        for row in rows {
            let taken = value(row, 0)
                .and_then(|id: Uuid| take(row, all.entry(id).or_insert_with(|| Holding::none(id))));
            self.told(READING, taken)?;
        }
        Ok(())
    }

    fn put_row(&mut self, holding: &Holding, snapshot: Carried<'_>) -> Result<()> {
        let Some(row) = &holding.client else {
            return self
                .ask(WRITING, "DELETE FROM clients WHERE client_id = $1", &[id(&holding.id)])
                .map(|_| ());
        };
        match snapshot {
            Carried::Same => {
                let since = row.snapshot.map(|(snapshot, _)| snapshot.versions_since);
                let since = since.map(|since| i32::try_from(since).unwrap_or(i32::MAX));
                let moved = self.ask(
                    WRITING,
                    "UPDATE clients SET latest_version_id = $2, versions_since_snapshot = $3
                     WHERE client_id = $1 RETURNING 1",
                    &[id(&holding.id), id(&row.latest.uuid()), (&since, Type::INT4)],
                )?;
                self.one_row(WRITING, &moved)
            }
            Carried::Other(bytes) => {
                self.ask(WRITING, "DELETE FROM clients WHERE client_id = $1", &[id(&holding.id)])?;
                let snapshot = row.snapshot.map(|(snapshot, _)| snapshot).zip(bytes);
                let (client, latest) = (holding.id.into(), row.latest);
                self.put_client(&contents::Client { client, latest, snapshot })
            }
        }
    }

    fn put_beside(&mut self, holding: &Holding) -> Result<()> {
        let client = ClientId::from(holding.id);
        self.forget(client)?;
        self.ask(WRITING, "DELETE FROM sync_server_audit WHERE client_id = $1", &[id(&holding.id)])?;
        if let Some(decision) = &holding.decision {
            // Another client that had it before has another one by now, which comes in its turn.
            self.ask(
                WRITING,
                "UPDATE sync_server_clients SET label = NULL WHERE label = $1",
                &[(&decision.label, Type::TEXT)],
            )?;
            self.put_decision(decision)?;
        }
        for device in &holding.devices {
            let (name, token_hash) = (device.name.clone(), &device.token_hash[..]);
            self.put_device(&contents::Device { client, name, token_hash, created: device.created })?;
        }
        holding.syncs.iter().try_for_each(|sync| self.put_sync(sync))?;
        holding.events.iter().try_for_each(|event| self.record(event))
    }
}
