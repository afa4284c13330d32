//! The four transactions: read facts, let [`protocol`] decide, apply the decision.
//!
//! Runs inside a storage transaction that someone else began and will commit. Knows no clock and
//! no randomness: the time and the ID of a new version are arguments.

use crate::protocol::{
    self, Client, ClientId, Outcome, Read, Refusal, SNAPSHOT_REACH, SnapshotPolicy, State, VersionId, Write,
};
use crate::storage::{Body, Reader, Result, Writer};

/// What the operator decided about clients and snapshots.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Whether the first AddVersion of an unknown client creates it.
    pub create_clients: bool,
    /// When a new snapshot is asked for.
    pub snapshot: SnapshotPolicy,
}

/// Answers a transaction that changes nothing.
pub fn read(reader: &mut dyn Reader, policy: &Policy, request: &Read) -> Result<Outcome> {
    match *request {
        Read::GetChildVersion { client, parent, room } => child_version(reader, policy, client, parent, room),
        Read::GetSnapshot { client, room } => snapshot(reader, policy, client, room),
    }
}

/// Answers a transaction that may change something; `new` is the ID that an added version gets and
/// `now` the time in seconds since 1970.
pub fn write(
    writer: &mut dyn Writer,
    policy: &Policy,
    request: &Write,
    new: VersionId,
    now: i64,
) -> Result<Outcome> {
    match request {
        Write::AddVersion { client, parent, segment } => {
            add_version(writer, policy, *client, *parent, segment, new, now)
        }
        Write::AddSnapshot { client, version, snapshot } => {
            add_snapshot(writer, policy, *client, *version, snapshot, now)
        }
    }
}

fn child_version(
    reader: &mut dyn Reader,
    policy: &Policy,
    client: ClientId,
    parent: VersionId,
    room: usize,
) -> Result<Outcome> {
    let Some(found) = reader.child(client, parent, room)? else {
        return Ok(unknown(policy));
    };
    if let Some(refusal) = found.state.refusal() {
        return Ok(Outcome::Refused(refusal));
    }
    Ok(match found.child {
        Some((version, Body::Bytes(segment))) => Outcome::Child { version, parent, segment },
        Some((_, Body::TooLarge(len))) => Outcome::NeedsRoom(len),
        None => protocol::without_child(found.latest, parent),
    })
}

fn snapshot(reader: &mut dyn Reader, policy: &Policy, client: ClientId, room: usize) -> Result<Outcome> {
    let Some(found) = reader.snapshot(client, room)? else {
        return Ok(unknown(policy));
    };
    if let Some(refusal) = found.state.refusal() {
        return Ok(Outcome::Refused(refusal));
    }
    Ok(match found.snapshot {
        Some((version, Body::Bytes(snapshot))) => Outcome::Snapshot { version, snapshot },
        Some((_, Body::TooLarge(len))) => Outcome::NeedsRoom(len),
        None => Outcome::NoSnapshot,
    })
}

fn add_version(
    writer: &mut dyn Writer,
    policy: &Policy,
    client: ClientId,
    parent: VersionId,
    segment: &[u8],
    new: VersionId,
    now: i64,
) -> Result<Outcome> {
    let held = match writer.client(client)? {
        Some(held) => held,
        None if !policy.create_clients => return Ok(unknown(policy)),
        None => {
            writer.create_client(client, now)?;
            Client { latest: VersionId::NIL, snapshot: None, state: State::Active }
        }
    };
    if let Some(refusal) = held.state.refusal() {
        return Ok(Outcome::Refused(refusal));
    }
    if !protocol::may_append(held.latest, parent) {
        return Ok(Outcome::Conflict { latest: held.latest });
    }
    if let Some(child) = left_behind(writer, client, held.latest, parent)? {
        return Ok(Outcome::Conflict { latest: child });
    }
    writer.append_version(client, new, parent, segment)?;
    Ok(Outcome::Added { version: new, urgency: protocol::urgency(policy.snapshot, held.snapshot, now) })
}

/// The child that this parent has although the client has no latest version: whoever deletes a
/// client by hand, or inserts it anew, may leave its versions where they are. A second child would
/// branch the chain. The conflict makes the replica fetch what is there, to the end, and there its
/// version is accepted.
fn left_behind(
    writer: &mut dyn Writer,
    client: ClientId,
    latest: VersionId,
    parent: VersionId,
) -> Result<Option<VersionId>> {
    if latest != VersionId::NIL {
        return Ok(None);
    }
    let found = writer.child(client, parent, 0)?;
    Ok(found.and_then(|found| found.child).map(|(child, _)| child))
}

fn add_snapshot(
    writer: &mut dyn Writer,
    policy: &Policy,
    client: ClientId,
    version: VersionId,
    snapshot: &[u8],
    now: i64,
) -> Result<Outcome> {
    let Some(held) = writer.client(client)? else {
        return Ok(unknown(policy));
    };
    if let Some(refusal) = held.state.refusal() {
        return Ok(Outcome::Refused(refusal));
    }
    let recent = recent_versions(writer, client, held.latest)?;
    if let Some(answer) = protocol::snapshot_answer(version, held.snapshot.map(|held| held.version), &recent)
    {
        return Ok(answer);
    }
    writer.set_snapshot(client, version, now, snapshot)?;
    Ok(Outcome::SnapshotStored)
}

/// The end of the chain, latest first, up to the parent at which it starts.
fn recent_versions(writer: &mut dyn Writer, client: ClientId, latest: VersionId) -> Result<Vec<VersionId>> {
    let mut recent = vec![latest];
    let mut version = latest;
    while recent.len() < SNAPSHOT_REACH {
        let Some(parent) = writer.parent(client, version)? else { break };
        recent.push(parent);
        version = parent;
    }
    Ok(recent)
}

/// An unknown client is refused where its first version would not create it: "not found" would
/// read as "up to date", and its user would never learn.
fn unknown(policy: &Policy) -> Outcome {
    if policy.create_clients { Outcome::NoSuchClient } else { Outcome::Refused(Refusal::UnknownClient) }
}
