//! The rules of the sync protocol as values and total functions.
//!
//! Everything here is pure: no clock, no randomness, no I/O. The rules are those of TaskChampion's
//! "Server-Replica Protocol"; where it is vague, the reference server decides.

use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// How many versions back from the latest a snapshot may be for, the latest included.
pub const SNAPSHOT_REACH: usize = 5;

const SECONDS_PER_DAY: i64 = 86_400;

/// Names one task history, shared by all replicas that use it. A credential: never log it whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(Uuid);

impl ClientId {
    /// Takes any form that [`Uuid::parse_str`] takes.
    pub fn parse(text: &str) -> Option<ClientId> {
        Uuid::parse_str(text).ok().map(ClientId)
    }

    /// The whole ID, lower case with dashes, as the databases store it.
    pub fn uuid(self) -> Uuid {
        self.0
    }

    /// The first 8 characters: all of the ID that a log may show.
    pub fn short(self) -> String {
        self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer())[..8].to_owned()
    }
}

impl From<Uuid> for ClientId {
    fn from(uuid: Uuid) -> ClientId {
        ClientId(uuid)
    }
}

impl FromStr for ClientId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<ClientId, uuid::Error> {
        Uuid::parse_str(text).map(ClientId)
    }
}

/// There is no `Display`, so that a whole ID cannot slip into a message by accident.
impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// Names one version of a client's history, or, as [`VersionId::NIL`], the point before the first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct VersionId(Uuid);

impl VersionId {
    /// The parent of a history's first version: "no version".
    pub const NIL: VersionId = VersionId(Uuid::nil());

    /// Takes any form that [`Uuid::parse_str`] takes.
    pub fn parse(text: &str) -> Option<VersionId> {
        Uuid::parse_str(text).ok().map(VersionId)
    }

    /// The ID as a UUID.
    pub fn uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for VersionId {
    fn from(uuid: Uuid) -> VersionId {
        VersionId(uuid)
    }
}

/// Lower case with dashes, as the wire and the databases have it.
impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the four transactions that a replica may ask for.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// A transaction that changes nothing.
    Read(Read),
    /// A transaction that may append to the history or replace the snapshot.
    Write(Write),
}

/// The transactions that change nothing.
///
/// `room` is the largest body in bytes that the asker has memory for; for a larger one the answer
/// is [`Outcome::NeedsRoom`].
#[derive(Clone, Debug, PartialEq)]
pub enum Read {
    /// The version whose parent is `parent`.
    GetChildVersion { client: ClientId, parent: VersionId, room: usize },
    /// The held snapshot.
    GetSnapshot { client: ClientId, room: usize },
}

impl Read {
    /// The client that asks.
    pub fn client(&self) -> ClientId {
        match self {
            Read::GetChildVersion { client, .. } | Read::GetSnapshot { client, .. } => *client,
        }
    }
}

/// The transactions that change something.
#[derive(Clone, PartialEq)]
pub enum Write {
    /// Append a version to the history.
    AddVersion { client: ClientId, parent: VersionId, segment: Vec<u8> },
    /// Replace the held snapshot.
    AddSnapshot { client: ClientId, version: VersionId, snapshot: Vec<u8> },
}

impl Write {
    /// The client that asks.
    pub fn client(&self) -> ClientId {
        match self {
            Write::AddVersion { client, .. } | Write::AddSnapshot { client, .. } => *client,
        }
    }

    /// The length in bytes of the body that this transaction stores.
    pub fn len(&self) -> usize {
        match self {
            Write::AddVersion { segment, .. } => segment.len(),
            Write::AddSnapshot { snapshot, .. } => snapshot.len(),
        }
    }

    /// Whether the body is empty, which the wire refuses.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Write::AddVersion { client, parent, segment } => {
                write!(f, "AddVersion({client:?}, parent {parent}, {} bytes)", segment.len())
            }
            Write::AddSnapshot { client, version, snapshot } => {
                write!(f, "AddSnapshot({client:?}, version {version}, {} bytes)", snapshot.len())
            }
        }
    }
}

/// What came of a [`Request`]. An ordinary refusal is a value; an error means that something is broken.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The version was appended under this ID.
    Added { version: VersionId, urgency: Urgency },
    /// The version's parent is not the latest version.
    Conflict { latest: VersionId },
    /// The version that was asked for.
    Child { version: VersionId, parent: VersionId, segment: Vec<u8> },
    /// There is no such child, and a version with that parent would be accepted.
    UpToDate,
    /// There is no such child and never will be.
    Gone,
    /// The snapshot is now the held one.
    SnapshotStored,
    /// The snapshot is for the version of the held one, which stays.
    SnapshotHeld,
    /// The snapshot was not kept.
    SnapshotDropped(Dropped),
    /// The held snapshot.
    Snapshot { version: VersionId, snapshot: Vec<u8> },
    /// The client has no snapshot.
    NoSnapshot,
    /// The client does not exist, and its first AddVersion would create it.
    NoSuchClient,
    /// The client may not use this server.
    Refused(Refusal),
    /// The body of this version or snapshot has so many bytes: ask again with as much room.
    NeedsRoom { version: VersionId, len: usize },
}

/// Why a snapshot was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The held snapshot is for a later version.
    OlderThanHeld,
    /// The version is not among the last [`SNAPSHOT_REACH`] of the chain.
    NotRecent,
}

/// Why a client may not use this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The client is not in the list of allowed ones.
    NotAllowed,
    /// The client does not exist, and the server creates none.
    UnknownClient,
    /// The operator suspended the client.
    Suspended,
    /// The client, or its history, is being removed just now.
    Leaving,
    /// The request needs the credential of a device of the client, and brings none that is valid.
    NoCredential,
}

/// Whether the operator lets a client use the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum State {
    /// It may.
    #[default]
    Active,
    /// It is refused until it is resumed; nothing of its history is lost.
    Suspended,
    /// It is refused, for it or its history is being removed.
    Leaving,
}

impl State {
    /// Why a client in this state is refused; `None`: it is not.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            State::Active => None,
            State::Suspended => Some(Refusal::Suspended),
            State::Leaving => Some(Refusal::Leaving),
        }
    }
}

/// What the server knows of a client, the bodies apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The latest version, [`VersionId::NIL`] before the first.
    pub latest: VersionId,
    /// The held snapshot.
    pub snapshot: Option<Snapshot>,
    /// Whether it may use the server.
    pub state: State,
    /// Whether devices of it have credentials, one of which every request needs.
    pub has_devices: bool,
}

/// What the server knows of a held snapshot, its bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The version that it is a snapshot of.
    pub version: VersionId,
    /// When it was stored, in seconds since 1970.
    pub timestamp: i64,
    /// How many versions were added since.
    pub versions_since: u32,
}

/// How much the server wants a new snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Not now.
    None,
    /// It would be good.
    Low,
    /// It is needed.
    High,
}

/// When a new snapshot is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// Wanted when the held one is this many days old; urgently at one and a half times that.
    pub days: u32,
    /// Wanted when this many versions came after it; urgently at one and a half times that.
    pub versions: u32,
}

/// May a version with this parent be appended to a history that ends at `latest`?
///
/// A history without versions takes any parent, so that a replica may bring a chain that began elsewhere.
pub fn may_append(latest: VersionId, parent: VersionId) -> bool {
    latest == VersionId::NIL || latest == parent
}

/// What to answer when no version has this parent: [`Outcome::UpToDate`] or [`Outcome::Gone`].
pub fn without_child(latest: VersionId, parent: VersionId) -> Outcome {
    if may_append(latest, parent) { Outcome::UpToDate } else { Outcome::Gone }
}

/// May a snapshot for `version` replace the held one? `None` means yes.
///
/// `recent` is the end of the chain, latest first: at most [`SNAPSHOT_REACH`] IDs, of which the
/// last may be the foreign parent at which the chain starts.
pub fn snapshot_answer(version: VersionId, held: Option<VersionId>, recent: &[VersionId]) -> Option<Outcome> {
    if held == Some(version) {
        return Some(Outcome::SnapshotHeld);
    }
    for id in recent.iter().take(SNAPSHOT_REACH) {
        if *id == VersionId::NIL {
            break;
        }
        if *id == version {
            return None;
        }
        if held == Some(*id) {
            return Some(Outcome::SnapshotDropped(Dropped::OlderThanHeld));
        }
    }
    Some(Outcome::SnapshotDropped(Dropped::NotRecent))
}

/// How much a new snapshot is wanted, at `now` seconds since 1970.
///
/// `snapshot` is the held one as it was **before** the version that is being added.
pub fn urgency(policy: SnapshotPolicy, snapshot: Option<Snapshot>, now: i64) -> Urgency {
    let Some(snapshot) = snapshot else {
        return Urgency::High;
    };
    let days = now.saturating_sub(snapshot.timestamp) / SECONDS_PER_DAY;
    let by_age = grade(days, i64::from(policy.days));
    by_age.max(grade(i64::from(snapshot.versions_since), i64::from(policy.versions)))
}

fn grade(value: i64, wanted_at: i64) -> Urgency {
    if value >= wanted_at * 3 / 2 {
        Urgency::High
    } else if value >= wanted_at {
        Urgency::Low
    } else {
        Urgency::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: SnapshotPolicy = SnapshotPolicy { days: 14, versions: 100 };

    fn id(n: u128) -> VersionId {
        VersionId::from(Uuid::from_u128(n))
    }

    fn held(age_days: i64, versions_since: u32) -> Option<Snapshot> {
        Some(Snapshot { version: id(1), timestamp: -age_days * SECONDS_PER_DAY, versions_since })
    }

    #[test]
    fn an_empty_history_takes_any_parent_and_a_grown_one_only_its_latest() {
        assert!(may_append(VersionId::NIL, VersionId::NIL));
        assert!(may_append(VersionId::NIL, id(7)));
        assert!(may_append(id(7), id(7)));
        assert!(!may_append(id(7), VersionId::NIL));
        assert!(!may_append(id(7), id(8)));
    }

    #[test]
    fn a_missing_child_is_not_found_exactly_where_it_could_be_added() {
        assert_eq!(without_child(id(7), id(7)), Outcome::UpToDate);
        assert_eq!(without_child(VersionId::NIL, id(7)), Outcome::UpToDate);
        assert_eq!(without_child(id(7), id(6)), Outcome::Gone);
    }

    #[test]
    fn urgency_by_versions_counts_those_before_the_one_being_added() {
        assert_eq!(urgency(POLICY, held(0, 99), 0), Urgency::None);
        assert_eq!(urgency(POLICY, held(0, 100), 0), Urgency::Low);
        assert_eq!(urgency(POLICY, held(0, 149), 0), Urgency::Low);
        assert_eq!(urgency(POLICY, held(0, 150), 0), Urgency::High);
    }

    #[test]
    fn urgency_by_age_and_the_higher_of_both() {
        assert_eq!(urgency(POLICY, held(13, 0), 0), Urgency::None);
        assert_eq!(urgency(POLICY, held(14, 0), 0), Urgency::Low);
        assert_eq!(urgency(POLICY, held(21, 0), 0), Urgency::High);
        assert_eq!(urgency(POLICY, held(14, 150), 0), Urgency::High);
        assert_eq!(urgency(POLICY, None, 0), Urgency::High);
    }

    #[test]
    fn urgency_with_odd_and_zero_thresholds_uses_integer_arithmetic() {
        let odd = SnapshotPolicy { days: 1000, versions: 5 };
        assert_eq!(urgency(odd, held(0, 6), 0), Urgency::Low);
        assert_eq!(urgency(odd, held(0, 7), 0), Urgency::High);
        let always = SnapshotPolicy { days: 0, versions: 0 };
        assert_eq!(urgency(always, held(0, 0), 0), Urgency::High);
    }

    #[test]
    fn a_snapshot_from_the_future_and_the_largest_numbers_do_not_overflow() {
        let huge = SnapshotPolicy { days: u32::MAX, versions: u32::MAX };
        assert_eq!(urgency(huge, held(400, u32::MAX), 0), Urgency::Low);
        assert_eq!(urgency(huge, held(0, 0), i64::MAX), Urgency::High);
        let future = Some(Snapshot { version: id(1), timestamp: i64::MAX, versions_since: 0 });
        assert_eq!(urgency(POLICY, future, i64::MIN), Urgency::None);
    }

    #[test]
    fn snapshots_are_taken_for_the_last_five_versions_only() {
        let recent: Vec<_> = (1..=6).rev().map(id).collect();
        for version in 2..=6 {
            assert_eq!(snapshot_answer(id(version), None, &recent), None);
        }
        let dropped = Some(Outcome::SnapshotDropped(Dropped::NotRecent));
        assert_eq!(snapshot_answer(id(1), None, &recent), dropped);
        assert_eq!(snapshot_answer(id(99), None, &recent), dropped);
        assert_eq!(snapshot_answer(id(99), None, &[]), dropped);
    }

    #[test]
    fn the_nil_version_is_never_a_snapshots_version() {
        let dropped = Some(Outcome::SnapshotDropped(Dropped::NotRecent));
        assert_eq!(snapshot_answer(VersionId::NIL, None, &[id(1), VersionId::NIL]), dropped);
    }

    #[test]
    fn a_snapshot_replaces_the_held_one_only_for_a_later_version() {
        let recent: Vec<_> = (1..=5).rev().map(id).collect();
        assert_eq!(snapshot_answer(id(4), Some(id(3)), &recent), None);
        assert_eq!(snapshot_answer(id(3), Some(id(3)), &recent), Some(Outcome::SnapshotHeld));
        let older = Some(Outcome::SnapshotDropped(Dropped::OlderThanHeld));
        assert_eq!(snapshot_answer(id(2), Some(id(3)), &recent), older);
    }

    #[test]
    fn a_client_id_shows_only_its_first_eight_characters() {
        let client = ClientId::parse("711D5CF3-0CF0-4eb8-9eca-6f7f220638c0").expect("a UUID");
        assert_eq!(client.short(), "711d5cf3");
        assert_eq!(format!("{client:?}"), "711d5cf3");
    }
}
