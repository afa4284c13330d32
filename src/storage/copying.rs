//! One database made the copy of another of whatever kind: a fifth narrow trait beside
//! [`Storage`](super::Storage).
//!
//! Everything is looked at and changed under one ID at a time, so that neither side is ever held up and
//! a copy that was interrupted goes on where it was. A note in the database says that it is a copy, and
//! of what. Knows what is kept under an ID; knows neither what differs nor what is to be done about it.

use super::Result;
use super::contents::{Decision, LastUse};
use super::registry::Event;
use crate::protocol::{ClientId, Snapshot, State, VersionId};
use uuid::Uuid;

/// A database that can be copied from, and be made a copy.
pub trait Copying: Send + Sync {
    /// The note that it is a copy, where it is one that nobody has begun to use.
    fn note(&self) -> Result<Option<Note>>;

    /// How many clients and versions there are.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](super::Kind::Corrupt) where there are rows under what is no ID.
    fn census(&self) -> Result<(u64, u64)>;

    /// Whether versions may have more than one child each, as adopted rows may.
    fn may_branch(&self) -> Result<bool>;

    /// Whether an operator's change of this ID that was about no client is recorded.
    fn has_event(&self, event: Uuid) -> Result<bool>;

    /// What is kept under the first `limit` IDs behind `after`, ordered by ID. What is being removed
    /// counts as gone.
    fn holdings(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<Holding>>;

    /// What is kept under one ID.
    fn holding(&self, of: Uuid) -> Result<Holding>;

    /// Those of these versions that are there, in this order.
    fn segments(&self, client: ClientId, versions: &[VersionId]) -> Result<Vec<Segment>>;

    /// Notes that this database is being made a copy by the run that the note names. With `may_branch`
    /// versions may have more than one child each until [`Copying::finish_copy`].
    fn begin_copy(&self, note: &Note, may_branch: bool) -> Result<()>;

    /// Puts versions in, whose client may come later.
    fn put_versions(&self, run: Uuid, client: ClientId, versions: &[Segment]) -> Result<()>;

    /// Removes versions.
    fn remove_versions(&self, run: Uuid, client: ClientId, versions: &[VersionId]) -> Result<()>;

    /// Puts everything else that is kept under an ID in the place of what is there. With the versions that
    /// are given there must be as many as it says, or nothing is done.
    fn put_holding(&self, run: Uuid, holding: &Holding, with: With<'_>) -> Result<()>;

    /// Notes that the copy is whole, and when the original was taken over, in seconds since 1970.
    fn finish_copy(&self, run: Uuid, adopted: i64) -> Result<()>;

    /// Takes the note away: from now on this database is what it is, and no copy.
    fn end_copy(&self) -> Result<()>;
}

/// What a copy says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The recorded change that tells the original from every other database.
    pub origin: Uuid,
    /// The run that makes the copy, or made it last. No other may change it.
    pub run: Uuid,
    /// Whether that run came to its end.
    pub is_finished: bool,
    /// The original, for people.
    pub original: String,
}

/// Everything that is kept under an ID, apart from bodies. Under the nil ID there are changes that
/// were about no client.
#[derive(Clone, Debug, PartialEq)]
pub struct Holding {
    /// The ID.
    pub id: Uuid,
    /// The client, where it exists.
    pub client: Option<Row>,
    /// How many versions there are.
    pub versions: u64,
    /// What the operator decided; `None` where that is what holds for every client.
    pub decision: Option<Decision>,
    /// The devices, ordered by name.
    pub devices: Vec<Device>,
    /// The last syncs, ordered by device and program.
    pub syncs: Vec<LastUse>,
    /// What was recorded, ordered by ID.
    pub events: Vec<Event>,
}

/// A client's own row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// The latest version, nil before the first.
    pub latest: VersionId,
    /// The held snapshot, and how many bytes it has.
    pub snapshot: Option<(Snapshot, u64)>,
}

/// A device with a credential of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The hash of its token.
    pub token_hash: Vec<u8>,
    /// When it was added, in seconds since 1970.
    pub created: i64,
}

/// A version, with its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Its ID.
    pub id: VersionId,
    /// The version that it follows.
    pub parent: VersionId,
    /// Its history segment.
    pub bytes: Vec<u8>,
}

/// What comes along with what is kept under an ID.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct With<'b> {
    /// The last versions that are missing.
    pub versions: &'b [Segment],
    /// What becomes of the snapshot.
    pub snapshot: Carried<'b>,
    /// Whether nothing is there that must go first.
    pub is_new: bool,
}

/// What becomes of the snapshot that a copy holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Carried<'b> {
    /// It stays: the bytes are those of the original.
    Same,
    /// It becomes this one, or none.
    Other(Option<&'b [u8]>),
}

impl Holding {
    /// Of an ID under which there is nothing.
    pub fn none(id: Uuid) -> Holding {
        Holding {
            id,
            client: None,
            versions: 0,
            decision: None,
            devices: Vec::new(),
            syncs: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Brings everything into the one order, and leaves out what says nothing.
    pub(super) fn settled(mut self) -> Holding {
        self.decision = self.decision.filter(|decision| {
            decision.label.is_some() || decision.state != State::Active || decision.created.is_some()
        });
        self.devices.sort_by(|one, other| one.name.cmp(&other.name));
        self.syncs.sort_by(|one, other| (&one.device, &one.program).cmp(&(&other.device, &other.program)));
        self.events.sort_by_key(|event| event.id);
        self
    }
}

/// What a run must be told that another took the place of.
pub(super) const SUPERSEDED: &str =
    "another run of `sync-server admin copy` has begun since, or a server was started on it";
