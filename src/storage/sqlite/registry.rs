//! The registry's facts and changes as statements.

use super::fault::{Context, damaged};
use super::sizes;
use super::txn::{Text, Txn, state_at, version_at};
use crate::credential::Hash;
use crate::protocol::{ClientId, Snapshot, State, VersionId};
use crate::storage::Result;
use crate::storage::registry::{Device, Entry, Event, LastSync, Match, Reader, Writer};
use rusqlite::{Row, params};
use uuid::Uuid;

/// What is known of clients, their versions apart.
const ENTRIES: &str = "
    SELECT c.client_id, r.label, r.suspended, r.created, coalesce(r.devices, 0), c.latest_version_id,
           c.snapshot_version_id, c.snapshot_timestamp,
           c.versions_since_snapshot + coalesce(n.versions, 0), length(c.snapshot),
           (SELECT max(s.last_sync) FROM sync_server_syncs s WHERE s.client_id = c.client_id)
    FROM clients c
         LEFT JOIN sync_server_clients r ON r.client_id = c.client_id
         LEFT JOIN sync_server_counts n
         ON n.client_id = c.client_id AND n.snapshot_version_id = c.snapshot_version_id";

impl Txn<'_> {
    fn entries(&self) -> rusqlite::Result<Vec<Entry>> {
        let sizes = sizes::of_all(self.connection)?;
        let mut statement = self.statement(&format!("{ENTRIES} ORDER BY c.client_id"))?;
        let rows = statement.query_map([], entry_of)?;
        rows.map(|entry| {
            let entry = entry?;
            let (versions, bytes) = sizes.get(&entry.client).copied().unwrap_or_default();
            Ok(Entry { versions, bytes, ..entry })
        })
        .collect()
    }

    fn entry(&self, client: ClientId) -> rusqlite::Result<Option<Entry>> {
        let id = Text::of(client.uuid());
        let mut statement = self.statement(&format!("{ENTRIES} WHERE c.client_id = ?1"))?;
        let mut rows = statement.query([&id])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let (versions, bytes) = sizes::of(self.connection, &id)?;
        Ok(Some(Entry { versions, bytes, ..entry_of(row)? }))
    }

    fn matches(&self, text: &str, limit: usize) -> rusqlite::Result<Vec<Match>> {
        // The ID's column would take a beginning of digits for a number: its substring does not.
        let mut statement = self.statement(
            "SELECT c.client_id, r.label
             FROM clients c LEFT JOIN sync_server_clients r ON r.client_id = c.client_id
             WHERE substr(c.client_id, 1, length(?1)) = ?1 OR r.label = ?2
             ORDER BY c.client_id LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![text.to_ascii_lowercase(), text, limit], |row| {
            Ok(Match { client: client_at(row, 0)?, label: row.get(1)? })
        })?;
        rows.collect()
    }

    fn chain_start(&self, client: ClientId) -> rusqlite::Result<Option<(VersionId, VersionId)>> {
        let mut statement = self.statement(
            "SELECT v.version_id, v.parent_version_id FROM versions v
             WHERE v.client_id = ?1 AND NOT EXISTS (
                 SELECT 1 FROM versions p
                 WHERE p.version_id = v.parent_version_id AND p.client_id = v.client_id)
             LIMIT 1",
        )?;
        let mut rows = statement.query([Text::of(client.uuid())])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let parent = version_at(row, 1)?.unwrap_or(VersionId::NIL);
        Ok(version_at(row, 0)?.map(|first| (first, parent)))
    }

    fn devices_of(&self, client: ClientId) -> rusqlite::Result<Vec<Device>> {
        // A sync of an earlier device of that name is not this one's.
        let mut statement = self.statement(
            "SELECT d.name, d.created,
                    (SELECT max(s.last_sync) FROM sync_server_syncs s
                     WHERE s.client_id = ?1 AND s.device = d.name AND s.last_sync >= d.created)
             FROM sync_server_devices d WHERE d.client_id = ?1 ORDER BY d.name",
        )?;
        let rows = statement.query_map([Text::of(client.uuid())], |row| {
            Ok(Device { name: row.get(0)?, created: row.get(1)?, last_sync: row.get(2)? })
        })?;
        rows.collect()
    }

    fn noted_syncs(&self, client: ClientId) -> rusqlite::Result<Vec<LastSync>> {
        let mut statement = self.statement(
            "SELECT device, program, last_sync FROM sync_server_syncs
             WHERE client_id = ?1 ORDER BY last_sync DESC, device, program",
        )?;
        let rows = statement.query_map([Text::of(client.uuid())], |row| {
            let device = row.get::<_, String>(0)?;
            let device = (!device.is_empty()).then_some(device);
            Ok(LastSync { device, program: row.get(1)?, at: row.get(2)? })
        })?;
        rows.collect()
    }

    fn latest_events(&self, client: Option<ClientId>, limit: usize) -> rusqlite::Result<Vec<Event>> {
        let mut statement = self.statement(
            "SELECT event_id, at, client_id, local_user, action, detail FROM sync_server_audit
             WHERE ?1 IS NULL OR client_id = ?1 ORDER BY at DESC, event_id DESC LIMIT ?2",
        )?;
        let client = client.map(|client| Text::of(client.uuid()));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![client, limit], event_of)?;
        let mut events = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        events.reverse();
        Ok(events)
    }

    fn make_client(&mut self, client: ClientId, label: Option<&str>, now: i64) -> rusqlite::Result<()> {
        self.forget(client)?;
        self.insert_client(client, now)?;
        self.change(client, "label", label)
    }

    /// Changes one column of what the operator decided about a client.
    fn change(&self, client: ClientId, column: &str, value: impl rusqlite::ToSql) -> rusqlite::Result<()> {
        let sql = format!(
            "INSERT INTO sync_server_clients (client_id, {column}) VALUES (?1, ?2)
             ON CONFLICT (client_id) DO UPDATE SET {column} = excluded.{column}"
        );
        self.statement(&sql)?.execute(params![Text::of(client.uuid()), value]).map(|_| ())
    }

    fn insert_device(&self, client: ClientId, name: &str, hash: &Hash, now: i64) -> rusqlite::Result<()> {
        let mut statement = self.statement(
            "INSERT INTO sync_server_devices (client_id, name, token_hash, created) VALUES (?1, ?2, ?3, ?4)",
        )?;
        statement.execute(params![Text::of(client.uuid()), name, hash.bytes(), now])?;
        self.count_devices(client)
    }

    fn delete_device(&self, client: ClientId, name: &str) -> rusqlite::Result<()> {
        let sql = "DELETE FROM sync_server_devices WHERE client_id = ?1 AND name = ?2";
        self.statement(sql)?.execute(params![Text::of(client.uuid()), name])?;
        self.count_devices(client)
    }

    /// Keeps the number where every request finds it without a statement of its own.
    fn count_devices(&self, client: ClientId) -> rusqlite::Result<()> {
        let sql = "SELECT count(*) FROM sync_server_devices WHERE client_id = ?1";
        let count: i64 = self.statement(sql)?.query_row([Text::of(client.uuid())], |row| row.get(0))?;
        self.change(client, "devices", count)
    }

    /// Removes everything that the operator decided and the server noted about a client.
    fn forget(&self, client: ClientId) -> rusqlite::Result<()> {
        for table in ["sync_server_clients", "sync_server_devices", "sync_server_syncs"] {
            let sql = format!("DELETE FROM {table} WHERE client_id = ?1");
            self.connection.execute(&sql, [Text::of(client.uuid())])?;
        }
        Ok(())
    }

    fn remove_history(&self, client: ClientId) -> rusqlite::Result<()> {
        for table in ["versions", "sync_server_counts", "sync_server_sizes"] {
            let sql = format!("DELETE FROM {table} WHERE client_id = ?1");
            self.connection.execute(&sql, [Text::of(client.uuid())])?;
        }
        sizes::after_removal(self.connection)
    }

    fn remove_all(&self, client: ClientId) -> rusqlite::Result<()> {
        self.remove_history(client)?;
        self.forget(client)?;
        self.connection
            .execute("DELETE FROM clients WHERE client_id = ?1", [Text::of(client.uuid())])
            .map(|_| ())
    }

    fn empty(&self, client: ClientId) -> rusqlite::Result<()> {
        self.remove_history(client)?;
        let sql = "UPDATE clients SET latest_version_id = ?2, snapshot_version_id = NULL,
                       versions_since_snapshot = NULL, snapshot_timestamp = NULL, snapshot = NULL
                   WHERE client_id = ?1";
        let parameters = [Text::of(client.uuid()), Text::of(VersionId::NIL.uuid())];
        self.connection.execute(sql, parameters).map(|_| ())
    }

    pub(super) fn insert_event(&self, event: &Event) -> rusqlite::Result<()> {
        let client = event.client.map_or(Uuid::nil(), ClientId::uuid);
        let mut statement = self.statement(
            "INSERT INTO sync_server_audit (client_id, event_id, at, local_user, action, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let (client, id) = (Text::of(client), Text::of(event.id));
        statement.execute(params![client, id, event.at, event.user, event.action, event.detail]).map(|_| ())
    }
}

impl Reader for Txn<'_> {
    fn clients(&mut self) -> Result<Vec<Entry>> {
        self.entries().context("listing the clients", self.path)
    }

    fn client(&mut self, client: ClientId) -> Result<Option<Entry>> {
        self.entry(client).context("reading a client", self.path)
    }

    fn search(&mut self, text: &str, limit: usize) -> Result<Vec<Match>> {
        self.matches(text, limit).context("looking for a client", self.path)
    }

    fn devices(&mut self, client: ClientId) -> Result<Vec<Device>> {
        self.devices_of(client).context("listing a client's devices", self.path)
    }

    fn first_version(&mut self, client: ClientId) -> Result<Option<(VersionId, VersionId)>> {
        self.chain_start(client).context("reading a client's first version", self.path)
    }

    fn syncs(&mut self, client: ClientId) -> Result<Vec<LastSync>> {
        self.noted_syncs(client).context("reading a client's last syncs", self.path)
    }

    fn events(&mut self, client: Option<ClientId>, limit: usize) -> Result<Vec<Event>> {
        self.latest_events(client, limit).context("reading what operators changed", self.path)
    }
}

impl Writer for Txn<'_> {
    fn create(&mut self, client: ClientId, label: Option<&str>, now: i64) -> Result<()> {
        self.make_client(client, label, now).context("making a client", self.path)
    }

    fn set_label(&mut self, client: ClientId, label: Option<&str>) -> Result<()> {
        self.change(client, "label", label).context("labelling a client", self.path)
    }

    fn set_state(&mut self, client: ClientId, state: State) -> Result<()> {
        let suspended = state == State::Suspended;
        self.change(client, "suspended", suspended).context("changing a client's state", self.path)
    }

    fn add_device(&mut self, client: ClientId, name: &str, hash: &Hash, now: i64) -> Result<()> {
        self.insert_device(client, name, hash, now).context("adding a device", self.path)
    }

    fn remove_device(&mut self, client: ClientId, name: &str) -> Result<()> {
        self.delete_device(client, name).context("removing a device", self.path)
    }

    fn remove(&mut self, client: ClientId) -> Result<()> {
        self.remove_all(client).context("removing a client", self.path)
    }

    fn reset(&mut self, client: ClientId) -> Result<()> {
        self.empty(client).context("emptying a client's history", self.path)
    }

    fn record(&mut self, event: &Event) -> Result<()> {
        self.insert_event(event).context("recording a change", self.path)
    }
}

/// An entry whose sizes are still to be filled in.
fn entry_of(row: &Row) -> rusqlite::Result<Entry> {
    let (timestamp, since) = (row.get::<_, Option<i64>>(7)?, row.get::<_, Option<i64>>(8)?);
    let snapshot = version_at(row, 6)?.map(|version| Snapshot {
        version,
        timestamp: timestamp.unwrap_or(0),
        versions_since: u32::try_from(since.unwrap_or(0)).unwrap_or(u32::MAX),
    });
    Ok(Entry {
        client: client_at(row, 0)?,
        label: row.get(1)?,
        state: state_at(row, 2)?,
        created: row.get(3)?,
        devices: row.get(4)?,
        latest: version_at(row, 5)?.unwrap_or(VersionId::NIL),
        snapshot,
        snapshot_bytes: row.get::<_, Option<i64>>(9)?.map_or(0, i64::unsigned_abs),
        last_sync: row.get(10)?,
        versions: 0,
        bytes: 0,
    })
}

pub(super) fn event_of(row: &Row) -> rusqlite::Result<Event> {
    let client = client_at(row, 2)?;
    Ok(Event {
        id: client_at(row, 0)?.uuid(),
        at: row.get(1)?,
        client: (!client.uuid().is_nil()).then_some(client),
        user: row.get(3)?,
        action: row.get(4)?,
        detail: row.get(5)?,
    })
}

pub(super) fn client_at(row: &Row, column: usize) -> rusqlite::Result<ClientId> {
    let text = row.get_ref(column)?.as_str()?;
    ClientId::parse(text).ok_or_else(|| damaged(column, text))
}
