//! The registry's facts and changes as statements.

use super::fault::Outcome;
use super::txn::{Proof, Txn, id, snapshot_of, state, state_sql, value, version};
use crate::credential::Hash;
use crate::protocol::{ClientId, State, VersionId};
use crate::storage::Result;
use crate::storage::Writer as _;
use crate::storage::registry::{
    Device, Entry, Event, LastSync, Match, Portion, Reader, Removal, Removed, Writer,
};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

/// What is known of clients. How long a body is stands beside it, so that none is read for that.
macro_rules! entries {
    ($sizes:literal, $end:literal) => {
        concat!(
            "SELECT c.client_id, r.label, ",
            state_sql!(),
            ", r.created, coalesce(r.devices, 0), c.latest_version_id,
                    c.snapshot_version_id, c.snapshot_timestamp, c.versions_since_snapshot,
                    octet_length(c.snapshot),
                    (SELECT max(s.last_sync) FROM sync_server_syncs s WHERE s.client_id = c.client_id),
                    coalesce(v.versions, 0), coalesce(v.bytes, 0)
             FROM clients c
                  LEFT JOIN sync_server_clients r ON r.client_id = c.client_id
                  LEFT JOIN (SELECT client_id, count(*) AS versions,
                                    sum(octet_length(history_segment))::BIGINT AS bytes
                             FROM versions ",
            $sizes,
            " GROUP BY client_id) v ON v.client_id = c.client_id ",
            $end
        )
    };
}

impl Reader for Txn<'_> {
    fn clients(&mut self) -> Result<Vec<Entry>> {
        const DOING: &str = "listing the clients";
        let rows = self.ask(DOING, entries!("", "ORDER BY c.client_id"), &[])?;
        self.told(DOING, rows.iter().map(entry_of).collect())
    }

    fn client(&mut self, client: ClientId) -> Result<Option<Entry>> {
        const DOING: &str = "reading a client";
        let sql = entries!("WHERE client_id = $1", "WHERE c.client_id = $1");
        let rows = self.ask(DOING, sql, &[id(&client.uuid())])?;
        self.told(DOING, rows.first().map(entry_of).transpose())
    }

    fn search(&mut self, text: &str, limit: usize) -> Result<Vec<Match>> {
        const DOING: &str = "looking for a client";
        let rows = self.ask(
            DOING,
            "SELECT c.client_id, r.label
             FROM clients c LEFT JOIN sync_server_clients r ON r.client_id = c.client_id
             WHERE left(c.client_id::TEXT, length($1)) = $1 OR r.label = $2
             ORDER BY c.client_id LIMIT $3",
            &[
                (&text.to_ascii_lowercase(), Type::TEXT),
                (&text, Type::TEXT),
                (&i64::try_from(limit).unwrap_or(i64::MAX), Type::INT8),
            ],
        )?;
        let found = |row| Ok(Match { client: client(row, 0)?, label: value(row, 1)? });
        self.told(DOING, rows.iter().map(found).collect())
    }

    fn leaving(&mut self) -> Result<Vec<ClientId>> {
        const DOING: &str = "looking for clients that are being removed";
        let rows =
            self.ask(DOING, "SELECT client_id FROM sync_server_clients WHERE removal IS NOT NULL", &[])?;
        self.told(DOING, rows.iter().map(|row| client(row, 0)).collect())
    }

    fn devices(&mut self, client: ClientId) -> Result<Vec<Device>> {
        const DOING: &str = "listing a client's devices";
        // A sync of an earlier device of that name is not this one's.
        let rows = self.ask(
            DOING,
            "SELECT d.name, d.created,
                    (SELECT max(s.last_sync) FROM sync_server_syncs s
                     WHERE s.client_id = $1 AND s.device = d.name AND s.last_sync >= d.created)
             FROM sync_server_devices d WHERE d.client_id = $1 ORDER BY d.name COLLATE \"C\"",
            &[id(&client.uuid())],
        )?;
        let device =
            |row| Ok(Device { name: value(row, 0)?, created: value(row, 1)?, last_sync: value(row, 2)? });
        self.told(DOING, rows.iter().map(device).collect())
    }

    fn first_version(&mut self, client: ClientId) -> Result<Option<(VersionId, VersionId)>> {
        const DOING: &str = "reading a client's first version";
        let rows = self.ask(
            DOING,
            "SELECT v.version_id, v.parent_version_id FROM versions v
             WHERE v.client_id = $1 AND NOT EXISTS (
                 SELECT 1 FROM versions p WHERE p.client_id = $1 AND p.version_id = v.parent_version_id)
             LIMIT 1",
            &[id(&client.uuid())],
        )?;
        let Some(row) = rows.first() else { return Ok(None) };
        let found: Outcome<_> = (|| Ok((version(row, 0)?, version(row, 1)?)))();
        let (first, parent) = self.told(DOING, found)?;
        Ok(first.map(|first| (first, parent.unwrap_or(VersionId::NIL))))
    }

    fn syncs(&mut self, client: ClientId) -> Result<Vec<LastSync>> {
        const DOING: &str = "reading a client's last syncs";
        let rows = self.ask(
            DOING,
            "SELECT device, program, last_sync FROM sync_server_syncs
             WHERE client_id = $1 ORDER BY last_sync DESC, device COLLATE \"C\", program COLLATE \"C\"",
            &[id(&client.uuid())],
        )?;
        let sync = |row| {
            let device = value::<String>(row, 0)?;
            let device = (!device.is_empty()).then_some(device);
            Ok(LastSync { device, program: value(row, 1)?, at: value(row, 2)? })
        };
        self.told(DOING, rows.iter().map(sync).collect())
    }

    fn events(&mut self, client: Option<ClientId>, limit: usize) -> Result<Vec<Event>> {
        const DOING: &str = "reading what operators changed";
        let client = client.map(ClientId::uuid);
        let rows = self.ask(
            DOING,
            "SELECT event_id, at, client_id, local_user, action, detail FROM sync_server_audit
             WHERE $1 IS NULL OR client_id = $1 ORDER BY at DESC, event_id DESC LIMIT $2",
            &[(&client, Type::UUID), (&i64::try_from(limit).unwrap_or(i64::MAX), Type::INT8)],
        )?;
        self.told(DOING, rows.iter().rev().map(event_of).collect())
    }
}

impl Writer for Txn<'_> {
    fn create(&mut self, client: ClientId, label: Option<&str>, now: i64) -> Result<()> {
        self.forget(client)?;
        self.create_client(client, now)?;
        self.set_label(client, label)
    }

    fn set_label(&mut self, client: ClientId, label: Option<&str>) -> Result<()> {
        self.ask(
            "labelling a client",
            "INSERT INTO sync_server_clients (client_id, label) VALUES ($1, $2)
             ON CONFLICT (client_id) DO UPDATE SET label = excluded.label",
            &[id(&client.uuid()), (&label, Type::TEXT)],
        )
        .map(|_| ())
    }

    fn set_state(&mut self, client: ClientId, state: State) -> Result<()> {
        self.ask(
            "changing a client's state",
            "INSERT INTO sync_server_clients (client_id, suspended) VALUES ($1, $2)
             ON CONFLICT (client_id) DO UPDATE SET suspended = excluded.suspended",
            &[id(&client.uuid()), (&(state == State::Suspended), Type::BOOL)],
        )
        .map(|_| ())
    }

    fn add_device(&mut self, client: ClientId, name: &str, hash: &Hash, now: i64) -> Result<()> {
        const DOING: &str = "adding a device";
        self.ask(
            DOING,
            "INSERT INTO sync_server_devices (client_id, name, token_hash, created) VALUES ($1, $2, $3, $4)",
            &[id(&client.uuid()), (&name, Type::TEXT), (&hash.bytes(), Type::BYTEA), (&now, Type::INT8)],
        )?;
        self.count_devices(DOING, client)
    }

    fn remove_device(&mut self, client: ClientId, name: &str) -> Result<()> {
        const DOING: &str = "removing a device";
        self.ask(
            DOING,
            "DELETE FROM sync_server_devices WHERE client_id = $1 AND name = $2",
            &[id(&client.uuid()), (&name, Type::TEXT)],
        )?;
        self.count_devices(DOING, client)
    }

    fn begin_removal(&mut self, client: ClientId, removal: Removal) -> Result<()> {
        const DOING: &str = "beginning to remove a client";
        // First, so that nobody adds to it meanwhile.
        self.lock(DOING, client)?;
        // One that removes all is not made less by one that removes the history.
        self.ask(
            DOING,
            "INSERT INTO sync_server_clients (client_id, removal) VALUES ($1, $2)
             ON CONFLICT (client_id) DO UPDATE SET
                 removal = least(coalesce(sync_server_clients.removal, 2), excluded.removal)",
            &[id(&client.uuid()), (&number_of(removal), Type::INT4)],
        )?;
        self.ask(
            DOING,
            "UPDATE clients SET latest_version_id = $2, snapshot_version_id = NULL,
                 versions_since_snapshot = NULL, snapshot_timestamp = NULL, snapshot = NULL
             WHERE client_id = $1",
            &[id(&client.uuid()), id(&Uuid::nil())],
        )
        .map(|_| ())
    }

    fn remove_some(&mut self, client: ClientId, most: Portion) -> Result<Removed> {
        const DOING: &str = "removing a client's versions";
        self.lock(DOING, client)?;
        let sql = "SELECT removal FROM sync_server_clients WHERE client_id = $1 FOR UPDATE";
        let rows = self.ask(DOING, sql, &[id(&client.uuid())])?;
        let mark = rows.first().map(|row| value::<Option<i32>>(row, 0)).transpose();
        let Some(mark) = self.told(DOING, mark)?.flatten() else {
            return Ok(Removed { versions: 0, is_done: true });
        };
        let versions = self.remove_versions(DOING, client, most)?;
        let sql = "SELECT 1 FROM versions WHERE client_id = $1 LIMIT 1";
        let is_done = self.ask(DOING, sql, &[id(&client.uuid())])?.is_empty();
        if is_done && mark == number_of(Removal::Client) {
            self.forget(client)?;
            self.ask(DOING, "DELETE FROM clients WHERE client_id = $1", &[id(&client.uuid())])?;
        } else if is_done {
            let sql = "UPDATE sync_server_clients SET removal = NULL WHERE client_id = $1";
            self.ask(DOING, sql, &[id(&client.uuid())])?;
        }
        Ok(Removed { versions, is_done })
    }

    fn prune(&mut self, client: ClientId, versions: &[VersionId]) -> Result<bool> {
        const DOING: &str = "removing old versions";
        self.lock(DOING, client)?;
        let rows = self.ask(
            DOING,
            "SELECT c.latest_version_id FROM clients c
             WHERE c.client_id = $1 AND c.snapshot_version_id IS NOT NULL AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r WHERE r.client_id = $1 AND r.removal IS NOT NULL)",
            &[id(&client.uuid())],
        )?;
        let latest = rows.first().map(|row| version(row, 0)).transpose();
        let latest = self.told(DOING, latest)?.flatten();
        if latest.is_none_or(|latest| versions.contains(&latest)) {
            return Ok(false);
        }
        let ids: Vec<Uuid> = versions.iter().map(|version| version.uuid()).collect();
        let known = self.ask(
            DOING,
            "SELECT 1 FROM versions WHERE client_id = $1 AND version_id = ANY($2)",
            &[id(&client.uuid()), (&ids, Type::UUID_ARRAY)],
        )?;
        if known.len() < ids.len() {
            return Ok(false);
        }
        self.delete_versions(DOING, client, &ids)?;
        Ok(true)
    }

    fn record(&mut self, event: &Event) -> Result<()> {
        let client = event.client.map_or(Uuid::nil(), ClientId::uuid);
        self.proof = Some(Proof::Event(client, event.id));
        self.ask(
            "recording a change",
            "INSERT INTO sync_server_audit (client_id, event_id, at, local_user, action, detail)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (client_id, event_id) DO UPDATE SET
                 at = excluded.at, action = excluded.action, detail = excluded.detail",
            &[
                id(&client),
                id(&event.id),
                (&event.at, Type::INT8),
                (&event.user, Type::TEXT),
                (&event.action, Type::TEXT),
                (&event.detail, Type::TEXT),
            ],
        )
        .map(|_| ())
    }
}

impl Txn<'_> {
    /// Keeps the number where every request finds it without a statement of its own.
    fn count_devices(&mut self, doing: &str, client: ClientId) -> Result<()> {
        self.ask(
            doing,
            "INSERT INTO sync_server_clients (client_id, devices)
             SELECT $1, count(*) FROM sync_server_devices WHERE client_id = $1
             ON CONFLICT (client_id) DO UPDATE SET devices = excluded.devices",
            &[id(&client.uuid())],
        )
        .map(|_| ())
    }

    /// Removes the first versions that there are, and returns how many.
    fn remove_versions(&mut self, doing: &str, client: ClientId, most: Portion) -> Result<u64> {
        let rows = self.ask(
            doing,
            "SELECT version_id, octet_length(history_segment) FROM versions WHERE client_id = $1 LIMIT $2",
            &[id(&client.uuid()), (&i64::from(most.rows.max(1)), Type::INT8)],
        )?;
        let (mut bytes, mut chosen) = (0, Vec::<Uuid>::new());
        for row in &rows {
            if !chosen.is_empty() && bytes >= most.bytes {
                break;
            }
            let found: Outcome<(Uuid, Option<i32>)> = (|| Ok((value(row, 0)?, value(row, 1)?)))();
            let (version, length) = self.told(doing, found)?;
            chosen.push(version);
            bytes += length.map_or(0, |length| u64::from(length.unsigned_abs()));
        }
        self.delete_versions(doing, client, &chosen)?;
        Ok(chosen.len() as u64)
    }

    pub(super) fn delete_versions(&mut self, doing: &str, client: ClientId, versions: &[Uuid]) -> Result<()> {
        self.ask(
            doing,
            "DELETE FROM versions WHERE client_id = $1 AND version_id = ANY($2)",
            &[id(&client.uuid()), (&versions, Type::UUID_ARRAY)],
        )
        .map(|_| ())
    }

    /// Removes everything that the operator decided and the server noted about a client.
    pub(super) fn forget(&mut self, client: ClientId) -> Result<()> {
        const DOING: &str = "removing what is known of a client";
        self.ask(
            DOING,
            "WITH decided AS (DELETE FROM sync_server_clients WHERE client_id = $1),
                  devices AS (DELETE FROM sync_server_devices WHERE client_id = $1)
             DELETE FROM sync_server_syncs WHERE client_id = $1",
            &[id(&client.uuid())],
        )
        .map(|_| ())
    }
}

/// As the database has it.
fn number_of(removal: Removal) -> i32 {
    match removal {
        Removal::Client => 1,
        Removal::History => 2,
    }
}

fn entry_of(row: &Row) -> Outcome<Entry> {
    let number = |column| value::<i64>(row, column).map(i64::unsigned_abs);
    Ok(Entry {
        client: client(row, 0)?,
        label: value(row, 1)?,
        state: state(row, 2)?,
        created: value(row, 3)?,
        devices: u32::try_from(value::<i64>(row, 4)?).unwrap_or(u32::MAX),
        latest: version(row, 5)?.unwrap_or(VersionId::NIL),
        snapshot: snapshot_of(row, 6)?,
        snapshot_bytes: value::<Option<i32>>(row, 9)?.map_or(0, |length| u64::from(length.unsigned_abs())),
        last_sync: value(row, 10)?,
        versions: number(11)?,
        bytes: number(12)?,
    })
}

pub(super) fn event_of(row: &Row) -> Outcome<Event> {
    let client: Uuid = value(row, 2)?;
    Ok(Event {
        id: value(row, 0)?,
        at: value(row, 1)?,
        client: (!client.is_nil()).then(|| client.into()),
        user: value(row, 3)?,
        action: value(row, 4)?,
        detail: value(row, 5)?,
    })
}

pub(super) fn client(row: &Row, column: usize) -> Outcome<ClientId> {
    Ok(value::<Uuid>(row, column)?.into())
}
