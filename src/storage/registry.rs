//! What operators need of the storage: a second narrow trait beside [`Storage`](super::Storage),
//! for the same databases.
//!
//! Transactions are closures here too. Knows what operators decided and what clients hold; knows
//! neither who may decide nor how it is shown.

use super::Result;
use crate::credential::Hash;
use crate::protocol::{ClientId, Snapshot, State, VersionId};
use uuid::Uuid;

/// A place where operators look after clients.
pub trait Registry: Send + Sync {
    /// Runs `work` on one consistent state of the database, without hindering writers.
    fn consult(&self, work: &mut dyn FnMut(&mut dyn Reader) -> Result<()>) -> Result<()>;

    /// Runs `work` in a transaction that is committed, durably, if `work` returns `Ok`; after
    /// `Err` or a panic nothing of it remains.
    fn amend(&self, work: &mut dyn FnMut(&mut dyn Writer) -> Result<()>) -> Result<()>;
}

/// The facts that operators ask for.
pub trait Reader {
    /// Every client, ordered by ID.
    fn clients(&mut self) -> Result<Vec<Entry>>;

    /// One client, `None` where it does not exist.
    fn client(&mut self, client: ClientId) -> Result<Option<Entry>>;

    /// The clients whose ID, in lower case with dashes, begins with `text`, or whose label it is;
    /// ordered by ID, at most `limit`.
    fn search(&mut self, text: &str, limit: usize) -> Result<Vec<Match>>;

    /// The clients that are [`State::Leaving`], be there anything left of them or not.
    fn leaving(&mut self) -> Result<Vec<ClientId>>;

    /// The devices of a client that have a credential of their own, ordered by name.
    fn devices(&mut self, client: ClientId) -> Result<Vec<Device>>;

    /// The first version of a client's chain and the parent that it follows.
    fn first_version(&mut self, client: ClientId) -> Result<Option<(VersionId, VersionId)>>;

    /// What was noted of a client's syncs, latest first.
    fn syncs(&mut self, client: ClientId) -> Result<Vec<LastSync>>;

    /// The latest `limit` changes, of all clients or of one, oldest first.
    fn events(&mut self, client: Option<ClientId>, limit: usize) -> Result<Vec<Event>>;
}

/// The changes that operators may make.
pub trait Writer: Reader {
    /// Makes a client without versions, at `now` seconds since 1970. It does not exist yet; what an
    /// earlier one of the same ID left behind is forgotten.
    fn create(&mut self, client: ClientId, label: Option<&str>, now: i64) -> Result<()>;

    /// Gives a client a label that no other has, or none. The client exists.
    fn set_label(&mut self, client: ClientId, label: Option<&str>) -> Result<()>;

    /// Lets a client use the server, or not. The client exists.
    fn set_state(&mut self, client: ClientId, state: State) -> Result<()>;

    /// Gives a device a credential, at `now` seconds since 1970. The client exists and has no device
    /// of that name.
    fn add_device(&mut self, client: ClientId, name: &str, hash: &Hash, now: i64) -> Result<()>;

    /// Takes a device's credential away. When it last synced stays known.
    fn remove_device(&mut self, client: ClientId, name: &str) -> Result<()>;

    /// Begins to remove a client, or its history alone. From now on it is [`State::Leaving`], its
    /// snapshot is gone, and its versions go with [`Writer::remove_some`]. One that does not exist may
    /// have left something behind that goes, too. What was recorded of it stays.
    fn begin_removal(&mut self, client: ClientId, removal: Removal) -> Result<()>;

    /// Removes some of what is to go, at least one version where there is one. After the last the client
    /// is gone, or as if it were new, with its label and its devices. Does nothing where no removal
    /// was begun.
    fn remove_some(&mut self, client: ClientId, most: Portion) -> Result<Removed>;

    /// Removes versions from the start of a client's chain, whose snapshot covers them. Does nothing
    /// and returns `false` where that cannot be: the client has no snapshot any more, or is
    /// [`State::Leaving`], or one of them is its latest version, or is not there.
    fn prune(&mut self, client: ClientId, versions: &[VersionId]) -> Result<bool>;

    /// Records a change, in the transaction that makes it. A later record of the same ID takes the
    /// place of the earlier one.
    fn record(&mut self, event: &Event) -> Result<()>;
}

/// What is removed of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The client and all that is its.
    Client,
    /// Its versions and its snapshot.
    History,
}

/// What one transaction does at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    /// Versions.
    pub rows: u32,
    /// Bytes of their segments together.
    pub bytes: u64,
}

/// What one step of a removal did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// How many versions are gone.
    pub versions: u64,
    /// Whether nothing is left to do.
    pub is_done: bool,
}

/// What an operator sees of a client. Sizes in bytes, times in seconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its ID.
    pub client: ClientId,
    /// What the operator calls it.
    pub label: Option<String>,
    /// Whether it may use the server.
    pub state: State,
    /// When it was made; unknown for those that another program made.
    pub created: Option<i64>,
    /// How many versions its chain has.
    pub versions: u64,
    /// How much their segments hold together.
    pub bytes: u64,
    /// The latest version, nil before the first.
    pub latest: VersionId,
    /// The held snapshot.
    pub snapshot: Option<Snapshot>,
    /// How much that snapshot holds.
    pub snapshot_bytes: u64,
    /// When it last used the server, as far as that was noted.
    pub last_sync: Option<i64>,
    /// How many devices have a credential of their own.
    pub devices: u32,
}

/// A client that answers to a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// Its ID.
    pub client: ClientId,
    /// Its label.
    pub label: Option<String>,
}

/// A device that has a credential of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// When it got the credential, in seconds since 1970.
    pub created: i64,
    /// When it last used the server since then, as far as that was noted.
    pub last_sync: Option<i64>,
}

/// When a client was last used from one device by one program.
#[derive(Clone, Debug, PartialEq)]
pub struct LastSync {
    /// The device's name, where it has a credential of its own.
    pub device: Option<String>,
    /// What the program calls itself.
    pub program: String,
    /// In seconds since 1970.
    pub at: i64,
}

/// A change that an operator made.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Names the event, and orders those of one second: a UUIDv7.
    pub id: Uuid,
    /// In seconds since 1970.
    pub at: i64,
    /// The client that it changed; `None` where it was not one alone.
    pub client: Option<ClientId>,
    /// Who made it.
    pub user: String,
    /// What was done.
    pub action: String,
    /// What else there is to know, or empty.
    pub detail: String,
}

impl dyn Registry + '_ {
    /// [`Registry::consult`] with a result of the closure's own.
    pub fn consulting<T>(&self, mut work: impl FnMut(&mut dyn Reader) -> Result<T>) -> Result<T> {
        let mut result = None;
        self.consult(&mut |reader| {
            result = Some(work(reader)?);
            Ok(())
        })?;
        result.ok_or_else(super::not_run)
    }

    /// [`Registry::amend`] with a result of the closure's own.
    pub fn amending<T>(&self, mut work: impl FnMut(&mut dyn Writer) -> Result<T>) -> Result<T> {
        let mut result = None;
        self.amend(&mut |writer| {
            result = Some(work(writer)?);
            Ok(())
        })?;
        result.ok_or_else(super::not_run)
    }
}
