//! What the server keeps, behind one narrow trait that every database backend implements.
//!
//! A transaction is a closure: commit, rollback and clean-up are written once per backend, and a
//! transaction that is forgotten half way cannot be written. Knows the protocol's values; knows
//! neither its decisions nor any network.

#[cfg(test)]
mod conformance;
pub mod contents;
pub mod copying;
pub mod location;
pub mod lock;
pub mod owner;
pub mod postgres;
pub mod registry;
pub mod schema;
pub mod sqlite;
pub mod upkeep;

use crate::credential::Hash;
use crate::protocol::{Client, ClientId, State, VersionId};
use std::fmt;
use std::time::Duration;

/// The result of everything that touches a database.
pub type Result<T> = std::result::Result<T, Error>;

/// A place where clients, versions and snapshots are kept.
///
/// Blocking; called from the worker threads only. Both methods run `work` at least once, and once
/// more where the backend retries, so `work` must be repeatable.
pub trait Storage: Send + Sync {
    /// Runs `work` on one consistent state of the database, without hindering writers.
    fn read(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()>;

    /// The same for work that asks for one fact, or for facts each of which may be of a state of its own.
    fn glance(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()> {
        self.read(work)
    }

    /// Runs `work` in a transaction that is committed, durably, if `work` returns `Ok`; after
    /// `Err` or a panic nothing of it remains.
    fn transact(&self, work: &mut dyn FnMut(&mut dyn Writer) -> Result<()>) -> Result<()>;

    /// Appends a version durably, in one step, where that takes no decision: the client exists, may use
    /// the server and needs no credential, and `parent` is its latest version. Returns the client as it
    /// was before; `None` where nothing was done and a transaction has to find out why.
    fn append_at_once(
        &self,
        _client: ClientId,
        _id: VersionId,
        _parent: VersionId,
        _segment: &[u8],
    ) -> Result<Option<Client>> {
        Ok(None)
    }

    /// How it wants to be asked.
    fn manner(&self) -> Manner;

    /// Does what the database wants done between transactions, such as a checkpoint. Called by the
    /// writer when nobody waits for the transaction before.
    fn rest(&self) -> Result<()>;

    /// Does what pays off while nothing is written. Called by the writer of a storage that is not remote when it
    /// has had no work for `idle`: soon after the last, and every now and then from then on.
    fn linger(&self, _idle: Duration) -> Result<()> {
        Ok(())
    }
}

/// How a storage wants to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Whether every answer is waited for, as that of a program elsewhere: no thread that has other
    /// things to do may ask.
    pub is_remote: bool,
    /// Threads that may read at once.
    pub readers: usize,
    /// Threads that may write at once.
    pub writers: usize,
    /// Requests that one transaction may answer.
    pub group: usize,
    /// How long a request may wait for its turn.
    pub patience: Duration,
}

/// The facts that a transaction may ask for. One round trip to the database each.
pub trait Reader {
    /// The client, `None` where it does not exist.
    fn client(&mut self, client: ClientId) -> Result<Option<Client>>;

    /// The client's latest version and the version that follows `parent`; `None` where the client
    /// does not exist. A segment of more than `room` bytes is not read.
    fn child(&mut self, client: ClientId, parent: VersionId, room: usize) -> Result<Option<Lookup>>;

    /// The version that `version` follows; `None` where the client has no such version.
    fn parent(&mut self, client: ClientId, version: VersionId) -> Result<Option<VersionId>>;

    /// The hash of a device's token; `None` where the client has no device of that name, or does not
    /// exist. Takes the same way whichever it is.
    fn device(&mut self, client: ClientId, name: &str) -> Result<Option<Hash>>;

    /// The held snapshot. Its bytes are not read where they are more than `room`.
    ///
    /// `None` where the client does not exist.
    fn snapshot(&mut self, client: ClientId, room: usize) -> Result<Option<Held>>;

    /// Hands the held snapshot's bytes to `sink` in their order, in pieces of at most `piece` bytes,
    /// until it wants no more and says `false`. Without a snapshot there are no pieces.
    fn pour_snapshot(&mut self, client: ClientId, piece: usize, sink: &mut Sink<'_>) -> Result<()>;
}

/// What takes the pieces of a body, and says whether it wants more.
pub type Sink<'a> = dyn FnMut(Vec<u8>) -> bool + 'a;

/// The changes that a transaction may make.
pub trait Writer: Reader {
    /// Makes a client without versions, at `now` seconds since 1970.
    fn create_client(&mut self, client: ClientId, now: i64) -> Result<()>;

    /// Appends a version and makes it the latest. The client exists.
    fn append_version(
        &mut self,
        client: ClientId,
        id: VersionId,
        parent: VersionId,
        segment: &[u8],
    ) -> Result<()>;

    /// Notes when clients were last used. What is older than what is known changes nothing, and of
    /// each device only the latest few are kept. Clients that do not exist are left out, and a device
    /// that the client does not have is as good as none.
    fn note_syncs(&mut self, noted: &[Noted]) -> Result<()>;

    /// Replaces the held snapshot, stored at `now` seconds since 1970. The client exists.
    fn set_snapshot(&mut self, client: ClientId, version: VersionId, now: i64, snapshot: &[u8])
    -> Result<()>;
}

/// When a program last used a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Noted {
    /// The client.
    pub client: ClientId,
    /// The device, as the request named it.
    pub device: Option<String>,
    /// What the program calls itself.
    pub program: String,
    /// In seconds since 1970.
    pub at: i64,
}

/// What a look for a child version found.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup {
    /// The client's latest version.
    pub latest: VersionId,
    /// Whether the client may use the server.
    pub state: State,
    /// Whether devices of it have credentials.
    pub has_devices: bool,
    /// The version that follows the given parent.
    pub child: Option<(VersionId, Body)>,
}

/// What a look for a snapshot found.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Whether the client may use the server.
    pub state: State,
    /// Whether devices of it have credentials.
    pub has_devices: bool,
    /// The held snapshot and its version.
    pub snapshot: Option<(VersionId, Body)>,
}

/// Stored bytes, read only where there was room for them.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// The bytes.
    Bytes(Vec<u8>),
    /// Not read: their number.
    TooLarge(usize),
}

/// A database that did not do what was asked.
#[derive(Clone, Debug)]
pub struct Error {
    /// What the failure means for the one who asked.
    pub kind: Kind,
    /// What failed, on what, and what to do: for the operator, never for a client.
    pub message: String,
}

/// What a failure means for the one who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No space is left: reads work, writes will once there is space.
    Full,
    /// Another process holds the database; trying again may work.
    Busy,
    /// The database cannot be reached or written, for a cause outside of it: a directory that is
    /// gone, a file system that became read-only.
    Unavailable,
    /// The database's content is damaged.
    Corrupt,
    /// The database was written by a newer version of this program.
    Newer,
    /// Anything else.
    Other,
}

impl Error {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl dyn Storage + '_ {
    /// [`Storage::read`] with a result of the closure's own.
    pub fn reading<T>(&self, mut work: impl FnMut(&mut dyn Reader) -> Result<T>) -> Result<T> {
        let mut result = None;
        self.read(&mut |reader| {
            result = Some(work(reader)?);
            Ok(())
        })?;
        result.ok_or_else(not_run)
    }

    /// [`Storage::glance`] with a result of the closure's own.
    pub fn glancing<T>(&self, mut work: impl FnMut(&mut dyn Reader) -> Result<T>) -> Result<T> {
        let mut result = None;
        self.glance(&mut |reader| {
            result = Some(work(reader)?);
            Ok(())
        })?;
        result.ok_or_else(not_run)
    }

    /// [`Storage::transact`] with a result of the closure's own.
    pub fn writing<T>(&self, mut work: impl FnMut(&mut dyn Writer) -> Result<T>) -> Result<T> {
        let mut result = None;
        self.transact(&mut |writer| {
            result = Some(work(writer)?);
            Ok(())
        })?;
        result.ok_or_else(not_run)
    }
}

fn not_run() -> Error {
    Error::new(Kind::Other, "the storage did not run the transaction that it was given")
}
