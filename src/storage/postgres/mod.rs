//! Postgres: as many instances as wanted over one database, each without anything of its own.
//!
//! A row lock on the client makes the writes of one client follow each other, whichever instance
//! they came to; READ COMMITTED does for the rest. Where SQL allows it, a request is one round trip.
//! Connections never leave this room, and none goes back to the pool with an open transaction.

mod address;
mod bodies;
mod contents;
mod copying;
mod fault;
mod link;
mod pool;
mod prepare;
mod registry;
mod schema;
#[cfg(test)]
mod tests;
mod tls;
mod txn;
mod upkeep;

pub use address::Address;

use super::registry::Registry;
use super::{Client, ClientId, Error, Kind, Manner, Reader, Result, Storage, VersionId, Writer};
use crate::config::Postgres as Habits;
use fault::Fault;
use pool::{Lent, Pool};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tls::Connector;
use tokio_postgres::types::Type;
use txn::{Attempt, Proof, Txn, id, snapshot_of};

const READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const WRITE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// How often a transaction that failed for a cause that may pass is begun again.
const ATTEMPTS: u32 = 5;

/// The first pause between two attempts; each is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(10);

/// How long the outcome of a write is looked for where its answer was lost.
const SEARCH: Duration = Duration::from_secs(10);

/// An open database.
pub struct Postgres {
    /// `None` once it is dropped.
    pool: Option<Arc<Pool>>,
    habits: Habits,
}

impl Postgres {
    /// Gets ready to use a database that was prepared. Connections are made when they are needed.
    pub fn open(address: &Address, habits: Habits) -> Result<Postgres> {
        let connector = Connector::new(address).map_err(|why| Error::new(Kind::Unavailable, why))?;
        let pool = Pool::new(Arc::new(address.clone()), connector, habits);
        Ok(Postgres { pool: Some(Arc::new(pool)), habits })
    }

    /// Whether it holds a client or a version.
    pub fn holds_data(&self) -> Result<bool> {
        self.on_link(None, |txn| txn.holds_data())
    }

    fn pool(&self) -> Result<&Pool> {
        self.pool.as_deref().ok_or_else(|| Error::new(Kind::Other, "the pool of connections is closed"))
    }

    /// Begins again what failed for a cause that may pass, a few times.
    fn persistently<T>(&self, mut attempt: impl FnMut(&Pool) -> Attempt<T>) -> Result<T> {
        let (pool, began) = (self.pool()?, Instant::now());
        let mut pause = PAUSE;
        for left in (0..ATTEMPTS).rev() {
            match attempt(pool) {
                Ok(done) => return Ok(done),
                Err((error, may_pass)) => {
                    if !may_pass || left == 0 || began.elapsed() > self.habits.statement_timeout {
                        return Err(error);
                    }
                }
            }
            std::thread::sleep(jittered(pause));
            pause *= 2;
        }
        Err(Error::new(Kind::Busy, "the transaction was not tried"))
    }

    fn on_link<T>(
        &self,
        begin: Option<&'static str>,
        mut work: impl FnMut(&mut Txn) -> Result<T>,
    ) -> Result<T> {
        self.persistently(|pool| {
            let mut link = lend(pool)?;
            let open = Open::new(&mut link, begin);
            let mut txn = Txn::new(open.0, pool.database(), begin == Some(WRITE));
            let done = work(&mut txn);
            let (may_pass, proof) = (txn.may_pass, txn.proof);
            let done = done.map_err(|error| (error, may_pass))?;
            if begin.is_none() {
                return Ok(done);
            }
            match open.0.commit() {
                Ok(()) => Ok(done),
                Err(fault) if !fault.is_unknown() => {
                    Err((fault.explain("committing a transaction", pool.database()), fault.may_pass()))
                }
                // A reader's commit has nothing to lose.
                Err(_) if begin == Some(READ) => Ok(done),
                Err(fault) => {
                    drop(open);
                    drop(link);
                    self.find_out(pool, proof, &fault).map(|()| done).map_err(|error| (error, false))
                }
            }
        })
    }

    /// Looks whether a transaction was committed whose answer was lost. It is never sent again: what
    /// is under way may still arrive.
    fn find_out(&self, pool: &Pool, proof: Option<Proof>, fault: &Fault) -> Result<()> {
        let unknown = || {
            let error = fault.explain("committing a transaction", pool.database());
            Error::new(Kind::Unavailable, format!("{}; whether it was stored is not known", error.message))
        };
        let Some(proof) = proof else { return Err(unknown()) };
        let deadline = Instant::now() + SEARCH;
        let mut pause = PAUSE;
        while Instant::now() < deadline {
            if let Ok(mut link) = pool.get()
                && let Ok(found) = look_up(&mut link, proof)
            {
                return if found { Ok(()) } else { Err(unknown()) };
            }
            std::thread::sleep(jittered(pause));
            pause = (pause * 2).min(Duration::from_millis(500));
        }
        Err(unknown())
    }
}

/// Pools wait for their threads when they go, which must never be one of the network's.
impl Drop for Postgres {
    fn drop(&mut self) {
        let pool = self.pool.take();
        let _ = std::thread::Builder::new()
            .name("closing".to_owned())
            .spawn(move || drop(pool))
            .map(|thread| thread.join());
    }
}

fn lend(pool: &Pool) -> Attempt<Lent> {
    pool.get().map_err(|error| (error, false))
}

/// Waits for whoever still has the client's row, so that what was under way is there or never will
/// be; and has the database keep that as safe as any commit.
fn look_up(link: &mut link::Link, proof: Proof) -> fault::Outcome<bool> {
    let open = Open::new(link, Some(WRITE));
    let link = &mut *open.0;
    let lock = |client: &uuid::Uuid, link: &mut link::Link| {
        link.query("SELECT 1 FROM clients WHERE client_id = $1 FOR UPDATE", &[id(client)])
    };
    let rows = match proof {
        Proof::Version(client, version) => {
            lock(&client.uuid(), link)?;
            link.query(
                "SELECT 1 FROM versions WHERE client_id = $1 AND version_id = $2",
                &[id(&client.uuid()), id(&version.uuid())],
            )?
        }
        Proof::Snapshot(client, version) => {
            lock(&client.uuid(), link)?;
            link.query(
                "SELECT 1 FROM clients WHERE client_id = $1 AND snapshot_version_id = $2",
                &[id(&client.uuid()), id(&version.uuid())],
            )?
        }
        Proof::Event(client, event) => {
            lock(&client, link)?;
            link.query(
                "SELECT 1 FROM sync_server_audit WHERE client_id = $1 AND event_id = $2 FOR UPDATE",
                &[id(&client), id(&event)],
            )?
        }
    };
    link.commit()?;
    Ok(!rows.is_empty())
}

/// A connection in a transaction, which ends with it.
struct Open<'l>(&'l mut link::Link);

impl<'l> Open<'l> {
    fn new(link: &'l mut link::Link, begin: Option<&'static str>) -> Open<'l> {
        if let Some(begin) = begin {
            link.begin(begin);
        }
        Open(link)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.roll_back();
    }
}

/// Between half of it and all of it, so that those who met do not meet again.
fn jittered(pause: Duration) -> Duration {
    let chance = RandomState::new().hash_one(pause) % 1000;
    pause / 2 + pause / 2 * u32::try_from(chance).unwrap_or(0) / 1000
}

impl Storage for Postgres {
    fn read(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        self.on_link(Some(READ), |txn| work(txn))
    }

    fn glance(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        self.on_link(None, |txn| work(txn))
    }

    fn transact(&self, work: &mut dyn FnMut(&mut dyn Writer) -> Result<()>) -> Result<()> {
        self.on_link(Some(WRITE), |txn| work(txn))
    }

    fn append_at_once(
        &self,
        client: ClientId,
        new: VersionId,
        parent: VersionId,
        segment: &[u8],
    ) -> Result<Option<Client>> {
        // Without a latest version there may be others that somebody left behind.
        if parent == VersionId::NIL || segment.len() > bodies::INLINE {
            return Ok(None);
        }
        self.persistently(|pool| {
            let mut link = lend(pool)?;
            match append(&mut link, client, new, parent, segment) {
                Ok(done) => Ok(done),
                // A child that is there already: a transaction finds out which.
                Err(fault) if fault.code().is_some_and(|code| code.code() == "23505") => Ok(None),
                Err(fault) if !fault.is_unknown() => {
                    Err((fault.explain("adding a version", pool.database()), fault.may_pass()))
                }
                Err(fault) => {
                    drop(link);
                    self.find_out(pool, Some(Proof::Version(client, new)), &fault)
                        .and_then(|()| self.as_before(client))
                        .map_err(|error| (error, false))
                }
            }
        })
    }

    fn rest(&self) -> Result<()> {
        Ok(())
    }

    fn manner(&self) -> Manner {
        // Reads are shorter than writes, which wait for the disk.
        let readers = (self.habits.connections / 3).max(1);
        Manner {
            is_remote: true,
            readers,
            writers: self.habits.connections.saturating_sub(readers).max(1),
            group: 1,
            patience: self.habits.statement_timeout,
        }
    }
}

impl Postgres {
    /// The client as it was before the version that was added last.
    fn as_before(&self, client: ClientId) -> Result<Option<Client>> {
        let found = self.on_link(None, |txn| txn.client(client))?;
        Ok(found.map(|mut found| {
            if let Some(snapshot) = &mut found.snapshot {
                snapshot.versions_since = snapshot.versions_since.saturating_sub(1);
            }
            found
        }))
    }
}

/// The row is locked by its change, and the condition looked at again once the lock is there.
fn append(
    link: &mut link::Link,
    client: ClientId,
    new: VersionId,
    parent: VersionId,
    segment: &[u8],
) -> fault::Outcome<Option<Client>> {
    let rows = link.query(
        "WITH moved AS (
             UPDATE clients c
             SET latest_version_id = $2, versions_since_snapshot = c.versions_since_snapshot + 1
             WHERE c.client_id = $1 AND c.latest_version_id = $3 AND NOT EXISTS (
                 SELECT 1 FROM sync_server_clients r
                 WHERE r.client_id = $1 AND (r.suspended OR r.devices > 0 OR r.removal IS NOT NULL))
             RETURNING c.snapshot_version_id, c.snapshot_timestamp, c.versions_since_snapshot - 1 AS since
         ), added AS (
             INSERT INTO versions (client_id, version_id, parent_version_id, history_segment)
             SELECT $1, $2, $3, $4 FROM moved)
         SELECT snapshot_version_id, snapshot_timestamp, since FROM moved",
        &[id(&client.uuid()), id(&new.uuid()), id(&parent.uuid()), (&segment, Type::BYTEA)],
    )?;
    let Some(row) = rows.first() else { return Ok(None) };
    let snapshot = snapshot_of(row, 0)?;
    Ok(Some(Client { latest: parent, snapshot, state: crate::protocol::State::Active, has_devices: false }))
}

impl Registry for Postgres {
    fn consult(&self, work: &mut dyn FnMut(&mut dyn super::registry::Reader) -> Result<()>) -> Result<()> {
        self.on_link(Some(READ), |txn| work(txn))
    }

    fn amend(&self, work: &mut dyn FnMut(&mut dyn super::registry::Writer) -> Result<()>) -> Result<()> {
        self.on_link(Some(WRITE), |txn| work(txn))
    }
}
