//! All that the database holds, taken out client by client, and put in again.

use super::fault::Outcome;
use super::registry::{client, event_of};
use super::txn::{Txn, id, snapshot_of, state, value, version};
use super::{Postgres, READ, WRITE, schema};
use crate::protocol::{ClientId, Snapshot, State, VersionId};
use crate::storage::contents::{
    Client, Contents, Decision, Device, LastUse, Record, Version, Visit, in_order,
};
use crate::storage::registry::Writer as _;
use crate::storage::{Body, Error, Kind, Result};
use std::collections::HashMap;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

const READING: &str = "reading all that the database holds";
const WRITING: &str = "putting what a backup or another database holds into the database";

/// Versions that are fetched at a time.
const BATCH: usize = 64;

impl Contents for Postgres {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn extent(&self) -> Result<u64> {
        self.on_link(None, |txn| {
            let sql =
                "SELECT (pg_total_relation_size('clients') + pg_total_relation_size('versions'))::BIGINT";
            let rows = txn.ask("measuring the database", sql, &[])?;
            let size = rows.first().map(|row| value::<i64>(row, 0)).transpose();
            Ok(txn.told("measuring the database", size)?.unwrap_or(0).unsigned_abs())
        })
    }

    fn export(&self, visit: &mut Visit<'_>) -> Result<()> {
        let mut begun = false;
        self.on_link(Some(READ), |txn| {
            if std::mem::replace(&mut begun, true) {
                // What was visited cannot be taken back.
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("{READING}: it was interrupted; try again"),
                ));
            }
            let holders = txn.holders()?;
            // Of those that are being removed there is nothing, or nothing but what stays.
            for (id, _) in holders.iter().filter(|(_, removal)| *removal != Some(1)) {
                txn.visit_client(*id, visit)?;
            }
            for (id, _) in holders.iter().filter(|(_, removal)| removal.is_none()) {
                txn.visit_versions(*id, visit)?;
            }
            txn.visit_rest(visit)
        })
    }

    fn import(&self, source: &mut dyn FnMut(&mut Visit<'_>) -> Result<()>) -> Result<()> {
        let mut begun = false;
        self.on_link(Some(WRITE), |txn| {
            if std::mem::replace(&mut begun, true) {
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("{WRITING}: it was interrupted; try again"),
                ));
            }
            txn.import(source)
        })
    }
}

impl Txn<'_> {
    fn import(&mut self, source: &mut dyn FnMut(&mut Visit<'_>) -> Result<()>) -> Result<()> {
        // Nobody else begins to use it meanwhile.
        let locked = self.ask(WRITING, "SELECT version FROM sync_server_schema FOR UPDATE", &[]).map(|_| ());
        locked?;
        if self.holds_data()? {
            let message = format!("{} holds clients or versions already", self.database);
            return Err(Error::new(Kind::Other, message));
        }
        for sql in ["DROP INDEX IF EXISTS sync_server_child", "DROP INDEX IF EXISTS sync_server_children"] {
            self.ask(WRITING, sql, &[])?;
        }
        source(&mut |record| self.put(&record))?;
        let unlimited = self.link.batch("SET LOCAL statement_timeout = 0");
        self.told(WRITING, unlimited)?;
        // Branches are told at every start: here they are no news.
        let branches = self.branches(1)?;
        let index = if branches.is_empty() { schema::UNIQUE_INDEX } else { schema::PLAIN_INDEX };
        let made = self.link.batch_patiently(index, &|| ());
        self.told(WRITING, made)
    }

    pub(super) fn holds_data(&mut self) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM clients) OR EXISTS (SELECT 1 FROM versions)";
        let rows = self.ask("reading the database", sql, &[])?;
        let holds = rows.first().map(|row| value(row, 0)).transpose();
        Ok(self.told("reading the database", holds)?.unwrap_or(false))
    }

    /// Whoever has a row of its own or versions, and what of it is being removed.
    fn holders(&mut self) -> Result<Vec<(ClientId, Option<i32>)>> {
        let sql = "SELECT h.client_id, (SELECT r.removal FROM sync_server_clients r WHERE r.client_id = h.client_id)
                   FROM (SELECT client_id FROM clients UNION SELECT client_id FROM versions) h
                   ORDER BY h.client_id";
        let rows = self.ask(READING, sql, &[])?;
        self.told(READING, rows.iter().map(|row| Ok((client(row, 0)?, value(row, 1)?))).collect())
    }

    fn visit_client(&mut self, of: ClientId, visit: &mut Visit<'_>) -> Result<()> {
        let rows = self.ask(
            READING,
            "SELECT latest_version_id, snapshot_version_id, coalesce(snapshot_timestamp, 0),
                    coalesce(versions_since_snapshot, 0), octet_length(snapshot),
                    CASE WHEN octet_length(snapshot) <= 1048576 THEN snapshot END
             FROM clients WHERE client_id = $1",
            &[id(&of.uuid())],
        )?;
        let Some(row) = rows.first() else { return Ok(()) };
        let facts: Outcome<(Option<VersionId>, Option<Snapshot>, Option<i32>)> =
            (|| Ok((version(row, 0)?, snapshot_of(row, 1)?, value(row, 4)?)))();
        let (latest, snapshot, length) = self.told(READING, facts)?;
        let held = match (snapshot, length) {
            (Some(snapshot), Some(_)) => {
                let body = self.snapshot_at(of, snapshot.version, row)?;
                Some((snapshot, body))
            }
            _ => None,
        };
        let snapshot = held.as_ref().map(|(snapshot, bytes)| (*snapshot, &bytes[..]));
        visit(Record::Client(Client { client: of, latest: latest.unwrap_or(VersionId::NIL), snapshot }))
    }

    fn snapshot_at(&mut self, of: ClientId, version: VersionId, row: &Row) -> Result<Vec<u8>> {
        const SQL: &str = "SELECT substring(snapshot FROM $3 FOR $4) FROM clients
                           WHERE client_id = $1 AND snapshot_version_id = $2";
        self.body(READING, SQL, of, version, (row, 4), usize::MAX).map(bytes)
    }

    /// In the order of the chain, which is the order in which they were added.
    fn visit_versions(&mut self, of: ClientId, visit: &mut Visit<'_>) -> Result<()> {
        let rows = self.ask(
            READING,
            "SELECT version_id, parent_version_id FROM versions WHERE client_id = $1 ORDER BY version_id",
            &[id(&of.uuid())],
        )?;
        let links: Outcome<Vec<_>> = rows
            .iter()
            .map(|row| {
                Ok((VersionId::from(value::<Uuid>(row, 0)?), version(row, 1)?.unwrap_or(VersionId::NIL)))
            })
            .collect();
        let order = in_order(self.told(READING, links)?, |link| *link);
        let order: Vec<VersionId> = order.into_iter().map(|(version, _)| version).collect();
        for batch in order.chunks(BATCH) {
            self.visit_batch(of, batch, visit)?;
        }
        Ok(())
    }

    pub(super) fn visit_batch(
        &mut self,
        of: ClientId,
        batch: &[VersionId],
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        const SQL: &str = "SELECT substring(history_segment FROM $3 FOR $4) FROM versions
                           WHERE client_id = $1 AND version_id = $2";
        let ids: Vec<Uuid> = batch.iter().map(|id| id.uuid()).collect();
        // Only short ones come together: the memory for those that do is bounded.
        let rows = self.ask(
            READING,
            "SELECT version_id, parent_version_id, octet_length(history_segment),
                    CASE WHEN octet_length(history_segment) <= 65536 THEN history_segment END
             FROM versions WHERE client_id = $1 AND version_id = ANY($2)",
            &[id(&of.uuid()), (&ids, Type::UUID_ARRAY)],
        )?;
        let by_id: Outcome<HashMap<Uuid, &Row>> = rows.iter().map(|row| Ok((value(row, 0)?, row))).collect();
        let by_id = self.told(READING, by_id)?;
        for version_id in batch {
            let Some(row) = by_id.get(&version_id.uuid()) else { continue };
            let (parent, length) = (version(row, 1), value::<Option<i32>>(row, 2));
            let parent = self.told(READING, parent)?.unwrap_or(VersionId::NIL);
            let length = usize::try_from(self.told(READING, length)?.unwrap_or(0)).unwrap_or(0);
            let short = value::<Option<&[u8]>>(row, 3);
            let long;
            let segment = match self.told(READING, short)? {
                Some(segment) => segment,
                None => {
                    long = self.parts(READING, SQL, of, *version_id, length)?;
                    &long[..]
                }
            };
            visit(Record::Version(Version { client: of, id: *version_id, parent, segment }))?;
        }
        Ok(())
    }

    fn visit_rest(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        let decisions =
            "SELECT client_id, label, CASE WHEN suspended THEN 1 ELSE 0 END, created FROM sync_server_clients
             WHERE removal IS NULL OR removal <> 1 ORDER BY client_id";
        for row in self.ask(READING, decisions, &[])? {
            let record: Outcome<_> = (|| {
                let (client, state) = (client(&row, 0)?, state(&row, 2)?);
                Ok(Decision { client, label: value(&row, 1)?, state, created: value(&row, 3)? })
            })();
            visit(Record::Decision(self.told(READING, record)?))?;
        }
        let devices = "SELECT client_id, name, token_hash, created FROM sync_server_devices
                       WHERE client_id NOT IN (SELECT client_id FROM sync_server_clients WHERE removal = 1)
                       ORDER BY client_id, name COLLATE \"C\"";
        for row in self.ask(READING, devices, &[])? {
            let record: Outcome<_> = (|| {
                let (client, token_hash) = (client(&row, 0)?, value::<&[u8]>(&row, 2)?);
                Ok(Device { client, name: value(&row, 1)?, token_hash, created: value(&row, 3)? })
            })();
            visit(Record::Device(self.told(READING, record)?))?;
        }
        let syncs = "SELECT client_id, device, program, last_sync FROM sync_server_syncs
                     WHERE client_id NOT IN (SELECT client_id FROM sync_server_clients WHERE removal = 1)
                     ORDER BY client_id, device COLLATE \"C\", program COLLATE \"C\"";
        for row in self.ask(READING, syncs, &[])? {
            let record: Outcome<_> = (|| {
                let (client, device) = (client(&row, 0)?, value(&row, 1)?);
                Ok(LastUse { client, device, program: value(&row, 2)?, at: value(&row, 3)? })
            })();
            visit(Record::Sync(self.told(READING, record)?))?;
        }
        let events = "SELECT event_id, at, client_id, local_user, action, detail FROM sync_server_audit
                      ORDER BY client_id, event_id";
        for row in self.ask(READING, events, &[])? {
            let event = event_of(&row);
            visit(Record::Event(self.told(READING, event)?))?;
        }
        Ok(())
    }

    fn put(&mut self, record: &Record) -> Result<()> {
        match record {
            Record::Client(client) => self.put_client(client),
            Record::Version(version) => self.put_version(version),
            Record::Decision(decision) => self.put_decision(decision),
            Record::Device(device) => self.put_device(device),
            Record::Sync(sync) => self.put_sync(sync),
            Record::Event(event) => self.record(event),
        }
    }

    pub(super) fn put_client(&mut self, client: &Client) -> Result<()> {
        let facts = client.snapshot.map(|(snapshot, _)| snapshot);
        let version = facts.map(|snapshot| snapshot.version.uuid());
        let since = facts.map(|snapshot| i32::try_from(snapshot.versions_since).unwrap_or(i32::MAX));
        let at = facts.map(|snapshot| snapshot.timestamp);
        let bytes = client.snapshot.map(|(_, bytes)| bytes);
        let large = bytes.filter(|bytes| self.is_large(bytes));
        let inline = if large.is_some() { None } else { bytes };
        self.ask(
            WRITING,
            "INSERT INTO clients (client_id, latest_version_id, snapshot_version_id, versions_since_snapshot,
                                  snapshot_timestamp, snapshot)
             VALUES ($1, $2, $3, $4, $5, $6)",
            &[
                id(&client.client.uuid()),
                id(&client.latest.uuid()),
                (&version, Type::UUID),
                (&since, Type::INT4),
                (&at, Type::INT8),
                (&inline, Type::BYTEA),
            ],
        )?;
        let Some(large) = large else { return Ok(()) };
        self.send(WRITING, client.client, large)?;
        self.put_together(
            WRITING,
            "UPDATE clients
             SET snapshot = (SELECT string_agg(bytes, ''::BYTEA ORDER BY part) FROM sync_server_parts
                             WHERE client_id = $1)
             WHERE client_id = $1",
            &[id(&client.client.uuid())],
            large.len(),
        )?;
        self.forget_parts(WRITING, client.client)
    }

    fn put_version(&mut self, version: &Version) -> Result<()> {
        let (of, new, parent) = (version.client.uuid(), version.id.uuid(), version.parent.uuid());
        if !self.is_large(version.segment) {
            return self
                .ask(
                    WRITING,
                    "INSERT INTO versions (client_id, version_id, parent_version_id, history_segment)
                     VALUES ($1, $2, $3, $4)",
                    &[id(&of), id(&new), id(&parent), (&version.segment, Type::BYTEA)],
                )
                .map(|_| ());
        }
        self.insert_in_parts(WRITING, version.client, version.id, version.parent, version.segment)?;
        self.forget_parts(WRITING, version.client)
    }

    pub(super) fn put_decision(&mut self, decision: &Decision) -> Result<()> {
        let is_suspended = decision.state == State::Suspended;
        self.ask(
            WRITING,
            "INSERT INTO sync_server_clients (client_id, label, suspended, created) VALUES ($1, $2, $3, $4)",
            &[
                id(&decision.client.uuid()),
                (&decision.label, Type::TEXT),
                (&is_suspended, Type::BOOL),
                (&decision.created, Type::INT8),
            ],
        )
        .map(|_| ())
    }

    pub(super) fn put_device(&mut self, device: &Device) -> Result<()> {
        self.ask(
            WRITING,
            "WITH put AS (INSERT INTO sync_server_devices (client_id, name, token_hash, created)
                          VALUES ($1, $2, $3, $4))
             INSERT INTO sync_server_clients (client_id, devices) VALUES ($1, 1)
             ON CONFLICT (client_id) DO UPDATE SET devices = sync_server_clients.devices + 1",
            &[
                id(&device.client.uuid()),
                (&device.name, Type::TEXT),
                (&device.token_hash, Type::BYTEA),
                (&device.created, Type::INT8),
            ],
        )
        .map(|_| ())
    }

    pub(super) fn put_sync(&mut self, sync: &LastUse) -> Result<()> {
        self.ask(
            WRITING,
            "INSERT INTO sync_server_syncs (client_id, device, program, last_sync) VALUES ($1, $2, $3, $4)",
            &[
                id(&sync.client.uuid()),
                (&sync.device, Type::TEXT),
                (&sync.program, Type::TEXT),
                (&sync.at, Type::INT8),
            ],
        )
        .map(|_| ())
    }
}

fn bytes(body: Body) -> Vec<u8> {
    match body {
        Body::Bytes(bytes) => bytes,
        Body::TooLarge(_) => unreachable!("there is room for every body"),
    }
}
