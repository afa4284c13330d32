//! `list-clients` and `show-client`.

use super::columns::{age, moment, size, table};
use super::desk::{Desk, now};
use super::{Output, Refusal, Sort, failed, naming};
use crate::protocol::{State, VersionId};
use crate::storage::registry::{Device, Entry, LastSync};
use serde::Serialize;
use std::cmp::Ordering;

/// A client as programs get it.
#[derive(Serialize)]
pub struct Shown {
    client_id: String,
    label: Option<String>,
    state: &'static str,
    created: Option<String>,
    versions: u64,
    bytes: u64,
    latest_version_id: Option<String>,
    snapshot_version_id: Option<String>,
    snapshot_timestamp: Option<String>,
    snapshot_bytes: u64,
    versions_since_snapshot: Option<u32>,
    last_sync: Option<String>,
    devices: u32,
}

impl Shown {
    pub fn of(entry: &Entry) -> Shown {
        let latest = (entry.latest != VersionId::NIL).then(|| entry.latest.to_string());
        Shown {
            client_id: entry.client.uuid().to_string(),
            label: entry.label.clone(),
            state: word(entry.state),
            created: entry.created.map(moment),
            versions: entry.versions,
            bytes: entry.bytes,
            latest_version_id: latest,
            snapshot_version_id: entry.snapshot.map(|snapshot| snapshot.version.to_string()),
            snapshot_timestamp: entry.snapshot.map(|snapshot| moment(snapshot.timestamp)),
            snapshot_bytes: entry.snapshot_bytes,
            versions_since_snapshot: entry.snapshot.map(|snapshot| snapshot.versions_since),
            last_sync: entry.last_sync.map(moment),
            devices: entry.devices,
        }
    }
}

/// One client with all that is known of it, as programs get it.
#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    client: Shown,
    first_version_id: Option<String>,
    first_parent_version_id: Option<String>,
    syncs: Vec<ShownSync>,
}

#[derive(Serialize)]
struct ShownSync {
    device: Option<String>,
    program: String,
    last_sync: String,
}

/// The state in one word.
pub fn word(state: State) -> &'static str {
    match state {
        State::Active => "active",
        State::Suspended => "suspended",
        State::Leaving => "leaving",
    }
}

pub fn all(desk: &Desk, sort: Sort, reverse: bool) -> Result<Output, Refusal> {
    let mut clients = desk.registry().consulting(|reader| reader.clients()).map_err(failed)?;
    clients.sort_by(|one, other| compare(sort, one, other).then(one.client.cmp(&other.client)));
    if reverse {
        clients.reverse();
    }
    let heading = ["CLIENT", "LABEL", "STATE", "VERSIONS", "SIZE", "SNAPSHOT", "LAST SYNC", "DEVICES"]
        .map(str::to_owned);
    let now = now();
    let lines: Vec<Vec<String>> =
        std::iter::once(heading.to_vec()).chain(clients.iter().map(|entry| line(entry, now))).collect();
    let text = match clients.len() {
        0 => "There are no clients yet: `sync-server admin add-client` makes one.\n".to_owned(),
        _ => table(&lines, &[3, 4, 7]),
    };
    Ok(Output::new(text, &clients.iter().map(Shown::of).collect::<Vec<_>>()))
}

fn compare(sort: Sort, one: &Entry, other: &Entry) -> Ordering {
    let last = |entry: &Entry| (entry.label.is_none(), entry.label.clone());
    match sort {
        Sort::Label => last(one).cmp(&last(other)),
        Sort::Id => Ordering::Equal,
        Sort::Versions => one.versions.cmp(&other.versions),
        Sort::Bytes => total(one).cmp(&total(other)),
        Sort::Snapshot => stored(one).cmp(&stored(other)),
        Sort::LastSync => one.last_sync.cmp(&other.last_sync),
        Sort::Devices => one.devices.cmp(&other.devices),
        Sort::State => word(one.state).cmp(word(other.state)),
    }
}

fn total(entry: &Entry) -> u64 {
    entry.bytes + entry.snapshot_bytes
}

fn stored(entry: &Entry) -> Option<i64> {
    entry.snapshot.map(|snapshot| snapshot.timestamp)
}

fn line(entry: &Entry, now: i64) -> Vec<String> {
    vec![
        entry.client.short(),
        entry.label.clone().unwrap_or_default(),
        word(entry.state).to_owned(),
        entry.versions.to_string(),
        size(total(entry)),
        stored(entry).map_or("none".to_owned(), |at| age(at, now)),
        entry.last_sync.map_or("-".to_owned(), |at| age(at, now)),
        entry.devices.to_string(),
    ]
}

pub fn one(desk: &Desk, name: &str) -> Result<Output, Refusal> {
    let client = naming::find(desk.registry(), name)?.client;
    let found = desk.registry().consulting(|reader| {
        let Some(entry) = reader.client(client)? else { return Ok(None) };
        Ok(Some((entry, reader.first_version(client)?, reader.devices(client)?, reader.syncs(client)?)))
    });
    let Some((entry, first, devices, syncs)) = found.map_err(failed)? else { return Err(naming::gone(name)) };
    let whole = Whole {
        client: Shown::of(&entry),
        first_version_id: first.map(|(first, _)| first.to_string()),
        first_parent_version_id: first.map(|(_, parent)| parent.to_string()),
        syncs: syncs.iter().map(shown_sync).collect(),
    };
    let text = format!("{}{}", facts(&entry, first, &devices), sync_lines(&syncs));
    Ok(Output::new(text, &whole))
}

fn shown_sync(sync: &LastSync) -> ShownSync {
    ShownSync { device: sync.device.clone(), program: sync.program.clone(), last_sync: moment(sync.at) }
}

fn facts(entry: &Entry, first: Option<(VersionId, VersionId)>, devices: &[Device]) -> String {
    let now = now();
    let since = |at: i64| format!("{} ({} ago)", moment(at), age(at, now));
    let mut lines = vec![
        ("client ID", entry.client.uuid().to_string()),
        ("label", entry.label.clone().unwrap_or_else(|| "none".to_owned())),
        ("state", word(entry.state).to_owned()),
        ("created", entry.created.map_or("unknown".to_owned(), since)),
        ("last sync", entry.last_sync.map_or("not noted".to_owned(), since)),
        ("versions", format!("{}, {}", entry.versions, size(entry.bytes))),
    ];
    if let Some((first, parent)) = first {
        lines.push(("first version", first.to_string()));
        if parent != VersionId::NIL {
            lines.push(("follows", format!("{parent}, which this server does not have")));
        }
        lines.push(("latest version", entry.latest.to_string()));
    }
    match entry.snapshot {
        Some(snapshot) => {
            lines
                .push(("snapshot", format!("{}, {}", since(snapshot.timestamp), size(entry.snapshot_bytes))));
            lines.push(("  of version", snapshot.version.to_string()));
            lines.push(("  versions since", snapshot.versions_since.to_string()));
        }
        None => lines.push(("snapshot", "none".to_owned())),
    }
    let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
    lines.push(("devices", if names.is_empty() { "none".to_owned() } else { names.join(", ") }));
    let cells: Vec<Vec<String>> =
        lines.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    table(&cells, &[])
}

fn sync_lines(syncs: &[LastSync]) -> String {
    if syncs.is_empty() {
        return String::new();
    }
    let heading = ["DEVICE", "PROGRAM", "LAST SYNC"].map(str::to_owned).to_vec();
    let line = |sync: &LastSync| {
        let program = if sync.program.is_empty() { "-" } else { &sync.program };
        let device = sync.device.as_deref().unwrap_or("-");
        vec![device.to_owned(), program.to_owned(), moment(sync.at)]
    };
    let lines: Vec<Vec<String>> = std::iter::once(heading).chain(syncs.iter().map(line)).collect();
    format!("\n{}", table(&lines, &[]))
}
