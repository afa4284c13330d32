//! The registry's facts and changes as statements.

use super::fault::{Context, damaged};
use super::sizes;
use super::txn::{Text, Txn, state_at, version_at};
use crate::credential::Hash;
use crate::protocol::{ClientId, Snapshot, State, VersionId};
use crate::storage::Result;
use crate::storage::registry::{
    Device, Entry, Event, LastSync, Match, Portion, Reader, Removal, Removed, Writer,
};
use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

/// What is known of clients, their versions apart.
const ENTRIES: &str = "
    SELECT c.client_id, r.label, iif(r.removal IS NULL, r.suspended, 2), r.created,
           coalesce(r.devices, 0), c.latest_version_id,
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
    pub(super) fn forget(&self, client: ClientId) -> rusqlite::Result<()> {
        for table in ["sync_server_clients", "sync_server_devices", "sync_server_syncs"] {
            let sql = format!("DELETE FROM {table} WHERE client_id = ?1");
            self.connection.execute(&sql, [Text::of(client.uuid())])?;
        }
        Ok(())
    }

    fn mark(&self, client: ClientId, removal: Removal) -> rusqlite::Result<()> {
        let mut statement = self.statement(
            // One that removes all is not made less by one that removes the history.
            "INSERT INTO sync_server_clients (client_id, removal) VALUES (?1, ?2)
             ON CONFLICT (client_id) DO UPDATE SET removal = min(coalesce(removal, 2), excluded.removal)",
        )?;
        statement.execute(params![Text::of(client.uuid()), number_of(removal)])?;
        self.empty(client)
    }

    fn empty(&self, client: ClientId) -> rusqlite::Result<()> {
        self.forget_figures(client)?;
        let sql = "UPDATE clients SET latest_version_id = ?2, snapshot_version_id = NULL,
                       versions_since_snapshot = NULL, snapshot_timestamp = NULL, snapshot = NULL
                   WHERE client_id = ?1";
        let parameters = [Text::of(client.uuid()), Text::of(VersionId::NIL.uuid())];
        self.connection.execute(sql, parameters).map(|_| ())
    }

    /// What is counted of a client's history; without it everything is counted anew.
    pub(super) fn forget_figures(&self, client: ClientId) -> rusqlite::Result<()> {
        for table in ["sync_server_counts", "sync_server_sizes"] {
            let sql = format!("DELETE FROM {table} WHERE client_id = ?1");
            self.connection.execute(&sql, [Text::of(client.uuid())])?;
        }
        Ok(())
    }

    fn remove_step(&mut self, client: ClientId, most: Portion) -> rusqlite::Result<Removed> {
        let id = Text::of(client.uuid());
        let sql = "SELECT removal FROM sync_server_clients WHERE client_id = ?1";
        let mark = self.statement(sql)?.query_row([&id], |row| row.get::<_, Option<i64>>(0)).optional()?;
        let Some(mark) = mark.flatten() else { return Ok(Removed { versions: 0, is_done: true }) };
        let versions = self.remove_versions(&id, most)?;
        let is_done = !self
            .statement("SELECT EXISTS (SELECT 1 FROM versions WHERE client_id = ?1)")?
            .query_row([&id], |row| row.get::<_, bool>(0))?;
        if is_done {
            self.forget_figures(client)?;
            if mark == number_of(Removal::Client) {
                self.forget(client)?;
                self.statement("DELETE FROM clients WHERE client_id = ?1")?.execute([&id])?;
            } else {
                self.change(client, "removal", None::<i64>)?;
            }
        }
        Ok(Removed { versions, is_done })
    }

    /// Removes the first versions that there are, and returns how many.
    fn remove_versions(&self, client: &Text, most: Portion) -> rusqlite::Result<u64> {
        let mut statement = self
            .statement("SELECT rowid, length(history_segment) FROM versions WHERE client_id = ?1 LIMIT ?2")?;
        let mut rows = statement.query(params![client, most.rows.max(1)])?;
        let (mut bytes, mut chosen) = (0, Vec::new());
        while let Some(row) = rows.next()?
            && (chosen.is_empty() || bytes < most.bytes)
        {
            chosen.push(row.get::<_, i64>(0)?);
            bytes += row.get::<_, Option<i64>>(1)?.map_or(0, i64::unsigned_abs);
        }
        drop(rows);
        let mut statement = self.statement("DELETE FROM versions WHERE rowid = ?1")?;
        for rowid in &chosen {
            statement.execute([rowid])?;
        }
        sizes::after_removal(self.connection)?;
        Ok(chosen.len() as u64)
    }

    fn prune_start(&self, client: ClientId, versions: &[VersionId]) -> rusqlite::Result<bool> {
        let id = Text::of(client.uuid());
        let mut statement = self.statement(
            "SELECT c.latest_version_id FROM clients c
             WHERE c.client_id = ?1 AND c.snapshot_version_id IS NOT NULL AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r WHERE r.client_id = ?1 AND r.removal IS NOT NULL)",
        )?;
        let latest = statement.query_row([&id], |row| version_at(row, 0)).optional()?.flatten();
        if latest.is_none_or(|latest| versions.contains(&latest)) {
            return Ok(false);
        }
        let mut statement = self.statement(
            "SELECT rowid, length(history_segment) FROM versions WHERE version_id = ?1 AND client_id = ?2",
        )?;
        let find = |version: &VersionId| {
            let found = statement.query_row(params![Text::of(version.uuid()), &id], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?.unwrap_or(0)))
            });
            found.optional()
        };
        let found: Vec<_> = versions.iter().map(find).collect::<rusqlite::Result<_>>()?;
        let Some(found) = found.into_iter().collect::<Option<Vec<_>>>() else { return Ok(false) };
        let mut statement = self.statement("DELETE FROM versions WHERE rowid = ?1")?;
        for (rowid, _) in &found {
            statement.execute([rowid])?;
        }
        sizes::subtract(self.connection, &id, &found)?;
        sizes::after_removal(self.connection)?;
        Ok(true)
    }

    fn leavers(&self) -> rusqlite::Result<Vec<ClientId>> {
        let mut statement =
            self.statement("SELECT client_id FROM sync_server_clients WHERE removal IS NOT NULL")?;
        let rows = statement.query_map([], |row| client_at(row, 0))?;
        rows.collect()
    }

    pub(super) fn insert_event(&self, event: &Event) -> rusqlite::Result<()> {
        let client = event.client.map_or(Uuid::nil(), ClientId::uuid);
        let mut statement = self.statement(
            "INSERT INTO sync_server_audit (client_id, event_id, at, local_user, action, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (client_id, event_id) DO UPDATE SET
                 at = excluded.at, action = excluded.action, detail = excluded.detail",
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

    fn leaving(&mut self) -> Result<Vec<ClientId>> {
        self.leavers().context("looking for clients that are being removed", self.path)
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

    fn begin_removal(&mut self, client: ClientId, removal: Removal) -> Result<()> {
        self.mark(client, removal).context("beginning to remove a client", self.path)
    }

    fn remove_some(&mut self, client: ClientId, most: Portion) -> Result<Removed> {
        self.remove_step(client, most).context("removing a client's versions", self.path)
    }

    fn prune(&mut self, client: ClientId, versions: &[VersionId]) -> Result<bool> {
        self.prune_start(client, versions).context("removing old versions", self.path)
    }

    fn record(&mut self, event: &Event) -> Result<()> {
        self.insert_event(event).context("recording a change", self.path)
    }
}

/// As the database has it.
fn number_of(removal: Removal) -> i64 {
    match removal {
        Removal::Client => 1,
        Removal::History => 2,
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
