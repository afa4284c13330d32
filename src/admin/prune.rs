//! `prune`: removes old versions that a snapshot covers, or says which it would.

use super::columns::{size, table};
use super::desk::{Desk, now};
use super::progress::Progress;
use super::{CONFIGURATION, Output, Refusal, failed, refusal};
use crate::storage::registry::Event;
use crate::upkeep::prune::{Age, Pruned, Step, Total, run, survey};
use serde::Serialize;

#[derive(Serialize)]
struct Shown<'a> {
    dry_run: bool,
    retention_days: u32,
    versions: u64,
    bytes: u64,
    clients: Vec<ShownClient<'a>>,
}

#[derive(Serialize)]
struct ShownClient<'a> {
    client_id: String,
    label: Option<&'a str>,
    versions: u64,
    bytes: u64,
}

pub fn prune(desk: &Desk, dry_run: bool) -> Result<Output, Refusal> {
    let Some(days) = desk.config.retention_days else {
        let message = "nothing says how long versions are kept: set the option retention_days (RETENTION_DAYS), for this \
                       once with --retention-days, to the longest time in days that a device may be away. Nothing was \
                       removed";
        return Err(refusal(CONFIGURATION, message));
    };
    let adopted = desk.upkeep().measure().map_err(failed)?.adopted;
    let age = Age::of_days(days, now(), adopted);
    let label = if dry_run { "looking at the clients" } else { "removing old versions" };
    let mut progress = Progress::start(label, Some(0), desk.format);
    let mut watch = |step| {
        match step {
            Step::Client { of, .. } => progress.advance_of(1, of),
            Step::Transaction => progress.advance(0),
        }
        true
    };
    let pruned = if dry_run {
        survey(desk.database(), age, &mut watch)
    } else {
        let event = desk.event("prune");
        let record = |total: Total| Event { detail: total.told(days), ..event.clone() };
        run(desk.database(), age, desk.pace(), &record, &mut watch)
    };
    progress.finish();
    let pruned = pruned.map_err(failed)?;
    let total = Total::of(&pruned);
    if !dry_run && total.versions > 0 {
        desk.tell("prune", &total.told(days));
    }
    Ok(Output::new(text(&pruned, dry_run, days), &shown(&pruned, dry_run, days)))
}

fn text(pruned: &[Pruned], dry_run: bool, days: u32) -> String {
    let total = Total::of(pruned);
    if total.versions == 0 {
        return format!(
            "No version is older than {days} days and covered by a snapshot: nothing is to be removed.\n"
        );
    }
    let heading = ["CLIENT", "LABEL", "VERSIONS", "SIZE"].map(str::to_owned).to_vec();
    let line = |pruned: &Pruned| {
        let label = pruned.label.clone().unwrap_or_default();
        vec![pruned.client.short(), label, pruned.versions.to_string(), size(pruned.bytes)]
    };
    let lines: Vec<Vec<String>> = std::iter::once(heading).chain(pruned.iter().map(line)).collect();
    let verb = if dry_run { "Would remove" } else { "Removed" };
    format!("{}\n{verb} {}, and covered by a snapshot.\n{AWAY}", table(&lines, &[2, 3]), total.told(days))
}

const AWAY: &str = "\
A device that last synced before these is refused with 410 from then on: on it, keep what only it has
with `task export > tasks.json`, move the file taskchampion.sqlite3 in Taskwarrior's data directory
away, and run `task sync`; `task import` brings in what is missing.
";

fn shown(pruned: &[Pruned], dry_run: bool, days: u32) -> Shown<'_> {
    let client = |pruned: &'_ Pruned| (pruned.client.uuid().to_string(), pruned.versions, pruned.bytes);
    let clients = pruned.iter().map(|pruned| {
        let (client_id, versions, bytes) = client(pruned);
        ShownClient { client_id, label: pruned.label.as_deref(), versions, bytes }
    });
    let Total { versions, bytes, .. } = Total::of(pruned);
    Shown { dry_run, retention_days: days, versions, bytes, clients: clients.collect() }
}
