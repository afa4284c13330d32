//! The four transactions: read facts, let [`protocol`] decide, apply the decision.
//!
//! Runs inside a storage transaction that someone else began and will commit. Knows no clock and
//! no randomness: the time and the ID of a new version are arguments.

use crate::credential::{self, Credential};
use crate::protocol::{
    self, Client, ClientId, Outcome, Read, Refusal, SNAPSHOT_REACH, SnapshotPolicy, State, VersionId, Write,
};
use crate::storage::{Body, Held, Lookup, Reader, Result, Storage, Writer};

/// What the operator decided about clients and snapshots.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Whether the first AddVersion of an unknown client creates it.
    pub create_clients: bool,
    /// Whether every request needs the credential of a device, so that nobody learns without one which
    /// clients exist.
    pub require_device: bool,
    /// When a new snapshot is asked for.
    pub snapshot: SnapshotPolicy,
}

/// Answers a transaction that changes nothing.
pub fn read(
    reader: &mut dyn Reader,
    policy: &Policy,
    request: &Read,
    brought: Option<&Credential>,
) -> Result<Outcome> {
    let client = request.client();
    // Before anything else is looked at: whichever it is, the same way is taken.
    if policy.require_device && !is_device(reader, client, brought)? {
        return Ok(Outcome::Refused(Refusal::NoCredential));
    }
    match *request {
        Read::GetChildVersion { parent, room, .. } => {
            let Some(found) = reader.child(client, parent, room)? else { return Ok(unknown(policy)) };
            let access = Access { client, has_devices: found.has_devices, state: found.state };
            Ok(match refusal(reader, policy, access, brought)? {
                Some(refusal) => Outcome::Refused(refusal),
                None => child_version(found, parent),
            })
        }
        Read::GetSnapshot { room, .. } => {
            let Some(found) = reader.snapshot(client, room)? else { return Ok(unknown(policy)) };
            let access = Access { client, has_devices: found.has_devices, state: found.state };
            Ok(match refusal(reader, policy, access, brought)? {
                Some(refusal) => Outcome::Refused(refusal),
                None => snapshot(found),
            })
        }
    }
}

/// Answers a transaction that may change something; `new` is the ID that an added version gets and
/// `now` the time in seconds since 1970.
pub fn write(
    writer: &mut dyn Writer,
    policy: &Policy,
    request: &Write,
    brought: Option<&Credential>,
    new: VersionId,
    now: i64,
) -> Result<Outcome> {
    let client = request.client();
    if policy.require_device && !is_device(writer, client, brought)? {
        return Ok(Outcome::Refused(Refusal::NoCredential));
    }
    let held = match writer.client(client)? {
        None if policy.create_clients && matches!(request, Write::AddVersion { .. }) => {
            writer.create_client(client, now)?;
            // What the operator decided holds for it, too, where it is back after its row was deleted.
            writer.client(client)?
        }
        held => held,
    };
    let Some(held) = held else { return Ok(unknown(policy)) };
    let access = Access { client, has_devices: held.has_devices, state: held.state };
    if let Some(refusal) = refusal(writer, policy, access, brought)? {
        return Ok(Outcome::Refused(refusal));
    }
    match request {
        Write::AddVersion { parent, segment, .. } => {
            let conflict = append(writer, client, held.latest, *parent, segment, new)?;
            let urgency = protocol::urgency(policy.snapshot, held.snapshot, now);
            Ok(conflict.unwrap_or(Outcome::Added { version: new, urgency }))
        }
        Write::AddSnapshot { version, snapshot, .. } => {
            add_snapshot(writer, client, held, *version, snapshot, now)
        }
    }
}

/// Answers what takes no decision in one step, where the storage can: the next version of a client that
/// may use the server. `None` where nothing was done, and [`write()`] has to find out why.
pub fn write_at_once(
    storage: &dyn Storage,
    policy: &Policy,
    request: &Write,
    new: VersionId,
    now: i64,
) -> Result<Option<Outcome>> {
    let Write::AddVersion { client, parent, segment } = request else { return Ok(None) };
    if policy.require_device {
        return Ok(None);
    }
    let held = storage.append_at_once(*client, new, *parent, segment)?;
    Ok(held.map(|held| Outcome::Added {
        version: new,
        urgency: protocol::urgency(policy.snapshot, held.snapshot, now),
    }))
}

/// What decides whether a client that exists may use the server.
struct Access {
    client: ClientId,
    has_devices: bool,
    state: State,
}

/// Why a request is refused; `None`: it is not. Only a device learns that its client is suspended.
fn refusal<R: Reader + ?Sized>(
    reader: &mut R,
    policy: &Policy,
    access: Access,
    brought: Option<&Credential>,
) -> Result<Option<Refusal>> {
    let is_checked = policy.require_device || !access.has_devices;
    if !is_checked && !is_device(reader, access.client, brought)? {
        return Ok(Some(Refusal::NoCredential));
    }
    Ok(access.state.refusal())
}

/// Whether the request comes from a device of the client. Looks and compares whatever it brings.
fn is_device<R: Reader + ?Sized>(
    reader: &mut R,
    client: ClientId,
    brought: Option<&Credential>,
) -> Result<bool> {
    let stored = reader.device(client, brought.map_or("", Credential::name))?;
    Ok(credential::is_valid(stored.as_ref(), brought))
}

fn child_version(found: Lookup, parent: VersionId) -> Outcome {
    match found.child {
        Some((version, Body::Bytes(segment))) => Outcome::Child { version, parent, segment },
        Some((version, Body::TooLarge(len))) => Outcome::NeedsRoom { version, len },
        None => protocol::without_child(found.latest, parent),
    }
}

fn snapshot(found: Held) -> Outcome {
    match found.snapshot {
        Some((version, Body::Bytes(snapshot))) => Outcome::Snapshot { version, snapshot },
        Some((version, Body::TooLarge(len))) => Outcome::NeedsRoom { version, len },
        None => Outcome::NoSnapshot,
    }
}

/// Appends the version, or says with what it conflicts.
fn append(
    writer: &mut dyn Writer,
    client: ClientId,
    latest: VersionId,
    parent: VersionId,
    segment: &[u8],
    new: VersionId,
) -> Result<Option<Outcome>> {
    if !protocol::may_append(latest, parent) {
        return Ok(Some(Outcome::Conflict { latest }));
    }
    if let Some(child) = left_behind(writer, client, latest, parent)? {
        return Ok(Some(Outcome::Conflict { latest: child }));
    }
    writer.append_version(client, new, parent, segment)?;
    Ok(None)
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
    client: ClientId,
    held: Client,
    version: VersionId,
    snapshot: &[u8],
    now: i64,
) -> Result<Outcome> {
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
