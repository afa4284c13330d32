//! The facts and changes of one transaction: one statement for each, prepared once for each connection.

use super::fault::{Fault, Outcome};
use super::link::{Link, Value};
use crate::credential::Hash;
use crate::protocol::{Client, ClientId, Snapshot, State, VersionId};
use crate::storage::{Error, Held, Lookup, Noted, Reader, Result, Sink, Writer};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};
use uuid::Uuid;

/// Last syncs of each client's device that are kept.
const SYNCS_KEPT: i64 = 20;

/// What tells whether a transaction was committed, where its answer was lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Proof {
    Version(ClientId, VersionId),
    Snapshot(ClientId, VersionId),
    Event(Uuid, Uuid),
}

/// A transaction, or a look at facts one by one.
pub(super) struct Txn<'l> {
    pub(super) link: &'l mut Link,
    pub(super) database: &'l str,
    /// Whether a client that is looked at is locked: what is decided then is still true at the commit.
    locks: bool,
    /// Whether the last fault may pass.
    pub(super) may_pass: bool,
    pub(super) proof: Option<Proof>,
}

/// What the operator decided about a client, of which there need not be a row, as a number: 0 it may use the
/// server, 1 it may not, 2 it is being removed.
macro_rules! state_sql {
    () => {
        "CASE WHEN r.removal IS NOT NULL THEN 2 WHEN r.suspended THEN 1 ELSE 0 END"
    };
}
pub(super) use state_sql;

impl<'l> Txn<'l> {
    pub(super) fn new(link: &'l mut Link, database: &'l str, locks: bool) -> Txn<'l> {
        Txn { link, database, locks, may_pass: false, proof: None }
    }

    /// One statement; `doing` says what it is for.
    pub(super) fn ask(&mut self, doing: &str, sql: &'static str, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let answer = self.link.query(sql, values);
        self.told(doing, answer)
    }

    /// A fault in words.
    pub(super) fn told<T>(&mut self, doing: &str, answer: Outcome<T>) -> Result<T> {
        answer.map_err(|fault| {
            self.may_pass = fault.may_pass();
            fault.explain(doing, self.database)
        })
    }
}

impl Reader for Txn<'_> {
    fn client(&mut self, client: ClientId) -> Result<Option<Client>> {
        const DOING: &str = "reading a client";
        if self.locks {
            // By itself: what is read with the lock may be older than what was waited for.
            self.lock(DOING, client)?;
        }
        let rows = self.ask(
            DOING,
            concat!(
                "SELECT c.latest_version_id, c.snapshot_version_id, c.snapshot_timestamp, c.versions_since_snapshot, ",
                state_sql!(),
                ", r.devices
                 FROM clients c LEFT JOIN sync_server_clients r ON r.client_id = $1
                 WHERE c.client_id = $1"
            ),
            &[id(&client.uuid())],
        )?;
        let found = rows.first().map(|row| client_of(row, 0)).transpose();
        self.told(DOING, found)
    }

    fn child(&mut self, client: ClientId, parent: VersionId, room: usize) -> Result<Option<Lookup>> {
        const DOING: &str = "reading a version";
        // One child for each parent is the rule; where adopted rows break it, it is always the same one.
        let rows = self.ask(
            DOING,
            concat!(
                "SELECT c.latest_version_id, ",
                state_sql!(),
                ", r.devices, v.version_id, octet_length(v.history_segment),
                    CASE WHEN octet_length(v.history_segment) <= $3 THEN v.history_segment END
             FROM clients c
                  LEFT JOIN sync_server_clients r ON r.client_id = $1
                  LEFT JOIN versions v ON v.client_id = $1 AND v.parent_version_id = $2
             WHERE c.client_id = $1
             ORDER BY v.version_id LIMIT 1"
            ),
            &[id(&client.uuid()), id(&parent.uuid()), (&inline(room), Type::INT4)],
        )?;
        let Some(row) = rows.first() else { return Ok(None) };
        let found: Outcome<_> = (|| {
            let latest = version(row, 0)?.unwrap_or(VersionId::NIL);
            Ok((latest, state(row, 1)?, has_devices(row, 2)?, version(row, 3)?))
        })();
        let (latest, state, has_devices, child) = self.told(DOING, found)?;
        let child = match child {
            Some(id) => Some((id, self.segment(client, id, row, room)?)),
            None => None,
        };
        Ok(Some(Lookup { latest, state, has_devices, child }))
    }

    fn parent(&mut self, client: ClientId, of: VersionId) -> Result<Option<VersionId>> {
        const DOING: &str = "reading a version";
        let rows = self.ask(
            DOING,
            "SELECT parent_version_id FROM versions WHERE client_id = $1 AND version_id = $2",
            &[id(&client.uuid()), id(&of.uuid())],
        )?;
        let parent = rows.first().map(|row| version(row, 0)).transpose();
        Ok(self.told(DOING, parent)?.flatten())
    }

    fn device(&mut self, client: ClientId, name: &str) -> Result<Option<Hash>> {
        const DOING: &str = "reading a device";
        let rows = self.ask(
            DOING,
            "SELECT token_hash FROM sync_server_devices WHERE client_id = $1 AND name = $2",
            &[id(&client.uuid()), (&name, Type::TEXT)],
        )?;
        let hash = rows.first().map(|row| {
            let hash = Hash::from_bytes(value(row, 0)?);
            hash.ok_or_else(|| Fault::Odd("a hash of another length".to_owned()))
        });
        self.told(DOING, hash.transpose())
    }

    fn snapshot(&mut self, client: ClientId, room: usize) -> Result<Option<Held>> {
        const DOING: &str = "reading a snapshot";
        let rows = self.ask(
            DOING,
            concat!(
                "SELECT ",
                state_sql!(),
                ", r.devices, c.snapshot_version_id, octet_length(c.snapshot),
                    CASE WHEN octet_length(c.snapshot) <= $2 THEN c.snapshot END
             FROM clients c LEFT JOIN sync_server_clients r ON r.client_id = $1
             WHERE c.client_id = $1"
            ),
            &[id(&client.uuid()), (&inline(room), Type::INT4)],
        )?;
        let Some(row) = rows.first() else { return Ok(None) };
        let found: Outcome<_> = (|| {
            let held = (version(row, 2)?, value::<Option<i32>>(row, 3)?);
            Ok((state(row, 0)?, has_devices(row, 1)?, held))
        })();
        let (state, has_devices, held) = self.told(DOING, found)?;
        let snapshot = match held {
            (Some(id), Some(_)) => Some((id, self.snapshot_bytes(client, id, row, room)?)),
            _ => None,
        };
        Ok(Some(Held { state, has_devices, snapshot }))
    }

    fn pour_snapshot(&mut self, client: ClientId, piece: usize, sink: &mut Sink<'_>) -> Result<()> {
        self.pour(client, piece, sink)
    }
}

impl Writer for Txn<'_> {
    fn create_client(&mut self, client: ClientId, now: i64) -> Result<()> {
        // Another instance may make the same client now: this waits for it, and the next look finds it.
        // What the operator decided about a client outlives the client's row, which others may delete.
        self.ask(
            "creating a client",
            "WITH made AS (INSERT INTO clients (client_id, latest_version_id) VALUES ($1, $2) ON CONFLICT DO NOTHING)
             INSERT INTO sync_server_clients (client_id, created) VALUES ($1, $3) ON CONFLICT DO NOTHING",
            &[id(&client.uuid()), id(&Uuid::nil()), (&now, Type::INT8)],
        )
        .map(|_| ())
    }

    fn append_version(
        &mut self,
        client: ClientId,
        new: VersionId,
        parent: VersionId,
        segment: &[u8],
    ) -> Result<()> {
        const DOING: &str = "adding a version";
        self.proof = Some(Proof::Version(client, new));
        if self.is_large(segment) {
            return self.append_in_parts(client, new, parent, segment);
        }
        let moved = self.ask(
            DOING,
            "WITH added AS (INSERT INTO versions (client_id, version_id, parent_version_id, history_segment)
                            VALUES ($1, $2, $3, $4))
             UPDATE clients
             SET latest_version_id = $2, versions_since_snapshot = versions_since_snapshot + 1
             WHERE client_id = $1 RETURNING 1",
            &[id(&client.uuid()), id(&new.uuid()), id(&parent.uuid()), (&segment, Type::BYTEA)],
        )?;
        self.one_row(DOING, &moved)
    }

    fn note_syncs(&mut self, noted: &[Noted]) -> Result<()> {
        // In one order everywhere, so that instances that note the same do not wait for each other in a ring.
        let mut noted: Vec<&Noted> = noted.iter().collect();
        noted.sort_by_key(|noted| (noted.client, &noted.device, &noted.program));
        noted.into_iter().try_for_each(|noted| self.note(noted))
    }

    fn set_snapshot(&mut self, client: ClientId, of: VersionId, now: i64, snapshot: &[u8]) -> Result<()> {
        const DOING: &str = "storing a snapshot";
        self.proof = Some(Proof::Snapshot(client, of));
        if self.is_large(snapshot) {
            return self.set_in_parts(client, of, now, snapshot);
        }
        let set = self.ask(
            DOING,
            "UPDATE clients
             SET snapshot_version_id = $2, snapshot_timestamp = $3, versions_since_snapshot = 0, snapshot = $4
             WHERE client_id = $1 RETURNING 1",
            &[id(&client.uuid()), id(&of.uuid()), (&now, Type::INT8), (&snapshot, Type::BYTEA)],
        )?;
        self.one_row(DOING, &set)
    }
}

impl Txn<'_> {
    fn note(&mut self, noted: &Noted) -> Result<()> {
        const DOING: &str = "noting last syncs";
        let client = noted.client.uuid();
        let device = noted.device.as_deref();
        self.ask(
            DOING,
            "INSERT INTO sync_server_syncs (client_id, device, program, last_sync)
             SELECT c.client_id, coalesce(d.name, ''), $3, $4
             FROM clients c LEFT JOIN sync_server_devices d ON d.client_id = $1 AND d.name = $2
             WHERE c.client_id = $1
             ON CONFLICT (client_id, device, program) DO UPDATE SET
                 last_sync = greatest(sync_server_syncs.last_sync, excluded.last_sync)",
            &[id(&client), (&device, Type::TEXT), (&noted.program, Type::TEXT), (&noted.at, Type::INT8)],
        )?;
        // Whatever programs call themselves, they do not fill the table.
        self.ask(
            DOING,
            "DELETE FROM sync_server_syncs s
             WHERE s.client_id = $1 AND s.device IN (coalesce($2, ''), '') AND s.last_sync < (
                 SELECT o.last_sync FROM sync_server_syncs o
                 WHERE o.client_id = $1 AND o.device = s.device
                 ORDER BY o.last_sync DESC LIMIT 1 OFFSET $3)",
            &[id(&client), (&device, Type::TEXT), (&(SYNCS_KEPT - 1), Type::INT8)],
        )
        .map(|_| ())
    }

    /// Waits for whoever else changes the client.
    pub(super) fn lock(&mut self, doing: &str, client: ClientId) -> Result<()> {
        let sql = "SELECT 1 FROM clients WHERE client_id = $1 FOR UPDATE";
        self.ask(doing, sql, &[id(&client.uuid())]).map(|_| ())
    }

    /// A client that is gone in the middle of its transaction is a defect, not a refusal.
    pub(super) fn one_row(&mut self, doing: &str, rows: &[Row]) -> Result<()> {
        if rows.is_empty() {
            let gone = Err(Fault::Odd("the client's row is not there".to_owned()));
            return self.told(doing, gone);
        }
        Ok(())
    }
}

/// Whether this is an error of the closure's own, or of the database, and may pass.
pub(super) type Attempt<T> = std::result::Result<T, (Error, bool)>;

pub(super) fn id(uuid: &Uuid) -> Value<'_> {
    (uuid, Type::UUID)
}

pub(super) fn value<'r, T: FromSql<'r>>(row: &'r Row, column: usize) -> Outcome<T> {
    row.try_get(column).map_err(Fault::from)
}

pub(super) fn version(row: &Row, column: usize) -> Outcome<Option<VersionId>> {
    Ok(value::<Option<Uuid>>(row, column)?.map(VersionId::from))
}

/// The state that `state_sql` gives.
pub(super) fn state(row: &Row, column: usize) -> Outcome<State> {
    Ok(match value::<i32>(row, column)? {
        0 => State::Active,
        1 => State::Suspended,
        _ => State::Leaving,
    })
}

fn has_devices(row: &Row, column: usize) -> Outcome<bool> {
    Ok(value::<Option<i64>>(row, column)?.unwrap_or(0) > 0)
}

/// The snapshot whose version, time and count are in the columns from `first` on.
pub(super) fn snapshot_of(row: &Row, first: usize) -> Outcome<Option<Snapshot>> {
    let facts =
        (version(row, first)?, value::<Option<i64>>(row, first + 1)?, value::<Option<i32>>(row, first + 2)?);
    Ok(match facts {
        (Some(version), Some(timestamp), Some(since)) => {
            Some(Snapshot { version, timestamp, versions_since: u32::try_from(since).unwrap_or(0) })
        }
        _ => None,
    })
}

/// A client whose facts are in the columns from `first` on.
pub(super) fn client_of(row: &Row, first: usize) -> Outcome<Client> {
    // A row that an operator inserted by hand may name no version at all.
    Ok(Client {
        latest: version(row, first)?.unwrap_or(VersionId::NIL),
        snapshot: snapshot_of(row, first + 1)?,
        state: state(row, first + 4)?,
        has_devices: has_devices(row, first + 5)?,
    })
}

/// As many bytes as come with the row itself.
fn inline(room: usize) -> i32 {
    i32::try_from(room.min(super::bodies::INLINE)).unwrap_or(i32::MAX)
}
