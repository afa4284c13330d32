//! `stats`: how much there is, and how much room it takes.

use super::columns::{moment, size, table};
use super::desk::Desk;
use super::{Output, Refusal, failed};
use crate::protocol::State;
use crate::storage::registry::Entry;
use rustix::fs::statvfs;
use serde::Serialize;

#[derive(Serialize)]
struct Shown {
    clients: u64,
    suspended_clients: u64,
    devices: u64,
    last_sync: Option<String>,
    versions: u64,
    bytes: u64,
    snapshots: u64,
    snapshot_bytes: u64,
    schema_version: i64,
    database_bytes: u64,
    unused_bytes: Option<u64>,
    wal_bytes: Option<u64>,
    free_bytes: Option<u64>,
}

pub fn show(desk: &Desk) -> Result<Output, Refusal> {
    let clients = desk.registry().consulting(|reader| reader.clients()).map_err(failed)?;
    let measures = desk.upkeep().measure().map_err(failed)?;
    let sum = |of: fn(&Entry) -> u64| clients.iter().map(of).sum::<u64>();
    let shown = Shown {
        clients: clients.len() as u64,
        suspended_clients: sum(|client| u64::from(client.state == State::Suspended)),
        devices: sum(|client| u64::from(client.devices)),
        last_sync: clients.iter().filter_map(|client| client.last_sync).max().map(moment),
        versions: sum(|client| client.versions),
        bytes: sum(|client| client.bytes),
        snapshots: sum(|client| u64::from(client.snapshot.is_some())),
        snapshot_bytes: sum(|client| client.snapshot_bytes),
        schema_version: measures.schema,
        database_bytes: measures.database,
        unused_bytes: measures.unused,
        wal_bytes: measures.wal,
        free_bytes: statvfs(desk.data_dir()).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
    };
    Ok(Output::new(text(&shown), &shown))
}

fn text(shown: &Shown) -> String {
    let with = |count: u64, bytes| format!("{count}, {}", size(bytes));
    let mut lines = vec![
        ("clients", shown.clients.to_string()),
        ("  suspended", shown.suspended_clients.to_string()),
        ("devices", shown.devices.to_string()),
        ("last sync", shown.last_sync.clone().unwrap_or_else(|| "not noted".to_owned())),
        ("versions", with(shown.versions, shown.bytes)),
        ("snapshots", with(shown.snapshots, shown.snapshot_bytes)),
        ("schema version", shown.schema_version.to_string()),
        ("database", size(shown.database_bytes)),
    ];
    let optional = [
        ("  of that unused", shown.unused_bytes),
        ("write-ahead log", shown.wal_bytes),
        ("free on the disk", shown.free_bytes),
    ];
    lines.extend(optional.into_iter().filter_map(|(name, bytes)| Some((name, size(bytes?)))));
    let cells: Vec<Vec<String>> =
        lines.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    table(&cells, &[])
}
