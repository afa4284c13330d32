//! `restore`: what a backup holds in the place of the database, and what that means for devices.

mod undone;

use self::undone::Undone;
use super::backup::{Shown, Steps, holds, open, unusable};
use super::columns::{moment, table};
use super::desk::{enter, event, now};
use super::{Format, IN_USE, Output, Refusal, USAGE, failed, refusal};
use crate::archive::{Head, Summary};
use crate::backup::{self, directory::stamp};
use crate::config::Environment;
use crate::protocol::{ClientId, State, VersionId};
use crate::storage::contents::Record;
use crate::storage::location::{Location, Standing};
use crate::storage::lock::{self, DirectoryLock};
use crate::storage::registry::Registry;
use crate::storage::{Error, Kind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Seek;
use std::path::Path;

/// Clients that are listed to people.
const LISTED: usize = 20;

/// What is known of each client: its label and its latest version.
type Clients = BTreeMap<ClientId, Known>;

#[derive(Clone, Debug, Default)]
struct Known {
    label: Option<String>,
    latest: Option<VersionId>,
    state: State,
    /// When each of its devices was added: another of the same name has another token.
    devices: BTreeMap<String, i64>,
}

/// A client whose devices may be ahead of what was restored.
#[derive(Serialize)]
struct Ahead {
    client_id: String,
    label: Option<String>,
    /// The latest version that it has now; null: none.
    latest_version_id: Option<String>,
    /// The one that it had before; null where nobody knows.
    previous_latest_version_id: Option<String>,
    /// Whether it is in the backup at all.
    restored: bool,
}

#[derive(Serialize)]
struct Restored<'a> {
    #[serde(flatten)]
    backup: Shown<'a>,
    /// Where the database is that was there before.
    previous_database: Option<String>,
    possibly_ahead: Vec<Ahead>,
    undone: Vec<Undone>,
}

pub fn run(
    environment: &Environment,
    data_dir: &Path,
    file: &str,
    yes: bool,
    format: Format,
) -> Result<Output, Refusal> {
    // Before the process becomes the data directory's owner, who may not be allowed to read it.
    let (mut input, length) = open(file)?;
    let user = enter(environment, data_dir)?;
    let location = Location::Directory(data_dir.to_owned());
    let lock = alone(data_dir)?;
    lock.write_restore();
    if !yes {
        refuse_to_replace(&location)?;
    }
    if length.is_some() {
        verify(file, &mut input, length, format)?;
    }
    let before = clients_of(&location);
    let mut after = Clients::new();
    let (head, summary, kept) = replace(&location, file, &user, (&input, length), format, &mut after)?;
    let ahead = ahead(before.as_ref(), &after);
    let undone = before.as_ref().map_or(Vec::new(), |before| undone::between(before, &after));
    let mut text = format!("Restored {}, as of {}.\n", holds(&summary), moment(head.created));
    if let Some(kept) = &kept {
        text.push_str(&format!(
            "The database that was there before is kept as {kept}; delete it once nobody needs it.\n"
        ));
    }
    text.push_str(&undone::told(&undone));
    if !undone.is_empty() || !ahead.is_empty() || before.is_none() {
        text.push_str(&consequences(&head, before.is_some(), &ahead, !after.is_empty()));
    } else if !after.is_empty() {
        text.push_str("No client had changed since, so every device goes on as if nothing had happened.\n");
    }
    let shown = Restored {
        backup: Shown::of(file, &head, &summary),
        previous_database: kept,
        possibly_ahead: ahead,
        undone,
    };
    Ok(Output::new(text, &shown))
}

/// Keeps every server away while this goes on.
fn alone(data_dir: &Path) -> Result<DirectoryLock, Refusal> {
    DirectoryLock::take(data_dir).map_err(|why| match why.contains("is in use by") {
        true => refusal(
            IN_USE,
            format!(
                "{} uses {}, and a restore under a running server would lose what it writes: stop it first. Nothing \
                 was changed",
                lock::holder(data_dir),
                data_dir.display()
            ),
        ),
        false => refusal(super::FAILURE, why),
    })
}

fn refuse_to_replace(location: &Location) -> Result<(), Refusal> {
    let what = match location.holds_data() {
        Ok(false) => return Ok(()),
        Ok(true) => "holds data".to_owned(),
        Err(error) => format!("may hold data ({error})"),
    };
    let message = format!(
        "{location} {what}. Nothing was changed: say --yes to restore in its place, it is kept under another name; or \
         name an empty data directory"
    );
    Err(refusal(USAGE, message))
}

/// Reads all of it before anything is touched.
fn verify(file: &str, input: &mut File, length: Option<u64>, format: Format) -> Result<(), Refusal> {
    let mut progress = Steps::new("verifying the backup", length, format);
    let verified = backup::verify(&mut *input, &mut |step| progress.take(step));
    drop(progress);
    verified.map_err(|problem| unusable(file, problem))?;
    let rewound = input.rewind();
    rewound
        .map_err(|error| refusal(super::FAILURE, format!("cannot read {file} from its beginning: {error}")))
}

/// Puts the backup in the place of the database; a stream is verified in the course of it, and the
/// database that is made of it is used only when its end was seen.
fn replace(
    location: &Location,
    file: &str,
    user: &str,
    (input, length): (&File, Option<u64>),
    format: Format,
    clients: &mut Clients,
) -> Result<(Head, Summary, Option<String>), Refusal> {
    let mut progress = Steps::new("restoring", length, format);
    let mut found = None;
    let mut problem = None;
    let suffix = format!("before-restore-{}", stamp(now()));
    let replaced = location.replace(&suffix, &mut |put| {
        let read = backup::read(input, &mut |step| progress.take(step), &mut |record| {
            note(clients, &record);
            put(record)
        });
        match read {
            Ok((head, summary)) => {
                let detail = format!("{}, as of {}", holds(&summary), moment(head.created));
                put(Record::Event(event(user, "restore", None, &detail)))?;
                found = Some((head, summary));
                Ok(())
            }
            Err(why) => {
                problem = Some(why);
                Err(Error::new(Kind::Other, "the backup cannot be used"))
            }
        }
    });
    drop(progress);
    if let Some(problem) = problem {
        return Err(unusable(file, problem));
    }
    let kept = replaced.map_err(|error| match error.kind {
        Kind::Busy => refusal(IN_USE, error.message),
        _ => failed(error),
    })?;
    let (head, summary) = found.ok_or_else(|| refusal(super::FAILURE, "the backup was not read"))?;
    Ok((head, summary, kept))
}

fn note(clients: &mut Clients, record: &Record) {
    match record {
        Record::Client(client) => clients.entry(client.client).or_default().latest = Some(client.latest),
        Record::Decision(decision) => {
            // It may be of a client that is no more.
            if let Some(known) = clients.get_mut(&decision.client) {
                known.label.clone_from(&decision.label);
                known.state = decision.state;
            }
        }
        Record::Device(device) => {
            if let Some(known) = clients.get_mut(&device.client) {
                known.devices.insert(device.name.clone(), device.created);
            }
        }
        _ => {}
    }
}

/// The clients of the database as it is, where that can be read without changing it.
fn clients_of(location: &Location) -> Option<Clients> {
    if location.standing().ok()? != Standing::Current {
        return None;
    }
    let storage = location.open().ok()?;
    let registry: &dyn Registry = &*storage;
    let read = registry.consulting(|reader| {
        let mut clients = Clients::new();
        for entry in reader.clients()? {
            let devices = if entry.devices > 0 { reader.devices(entry.client)? } else { Vec::new() };
            let devices = devices.into_iter().map(|device| (device.name, device.created)).collect();
            let known = Known { label: entry.label, latest: Some(entry.latest), state: entry.state, devices };
            clients.insert(entry.client, known);
        }
        Ok(clients)
    });
    read.ok()
}

/// The clients whose devices may be ahead: those that changed since, or all where nobody knows.
fn ahead(before: Option<&Clients>, after: &Clients) -> Vec<Ahead> {
    let text = |latest: Option<VersionId>| {
        latest.filter(|latest| *latest != VersionId::NIL).map(|latest| latest.to_string())
    };
    let entry = |client: &ClientId, was: Option<&Known>, is: Option<&Known>| Ahead {
        client_id: client.uuid().to_string(),
        label: is.or(was).and_then(|known| known.label.clone()),
        latest_version_id: text(is.and_then(|known| known.latest)),
        previous_latest_version_id: text(was.and_then(|known| known.latest)),
        restored: is.is_some(),
    };
    let Some(before) = before else {
        return after.iter().map(|(client, is)| entry(client, None, Some(is))).collect();
    };
    let moved = |(client, was): (&ClientId, &Known)| {
        let is = after.get(client);
        let has_moved = was.latest != Some(VersionId::NIL) && is.and_then(|is| is.latest) != was.latest;
        has_moved.then(|| entry(client, Some(was), is))
    };
    before.iter().filter_map(moved).collect()
}

fn consequences(head: &Head, known: bool, ahead: &[Ahead], any: bool) -> String {
    if !any && ahead.is_empty() {
        return String::new();
    }
    if known && ahead.is_empty() {
        return "\nNo client has synced since, so no device is ahead of this server.\n".to_owned();
    }
    let made = moment(head.created);
    let which = if known {
        format!(
            "Ahead of this server are the devices of these clients that synced after {made}:\n\n{}",
            lines(ahead)
        )
    } else {
        format!(
            "Ahead of this server is every device that synced after {made}. The clients are:\n\n{}",
            lines(ahead)
        )
    };
    format!("\n{which}\n{WHAT_TO_DO}")
}

fn lines(ahead: &[Ahead]) -> String {
    let heading = ["CLIENT", "LABEL", "LATEST VERSION NOW", "BEFORE"].map(str::to_owned).to_vec();
    let line = |one: &Ahead| {
        let now = if one.restored {
            one.latest_version_id.as_deref().unwrap_or("none")
        } else {
            "not in the backup"
        };
        vec![
            one.client_id[..8].to_owned(),
            one.label.clone().unwrap_or_default(),
            now.to_owned(),
            one.previous_latest_version_id.clone().unwrap_or_else(|| "unknown".to_owned()),
        ]
    };
    let lines: Vec<_> = std::iter::once(heading).chain(ahead.iter().take(LISTED).map(line)).collect();
    let more = ahead.len().saturating_sub(LISTED);
    let more = if more > 0 { format!("and {more} more; --json lists all\n") } else { String::new() };
    format!("{}{more}", table(&lines, &[]))
}

const WHAT_TO_DO: &str = "\
A device that is not ahead goes on as if nothing had happened. One that is ahead fails every sync
(the server answers 410), loses nothing, and stays so until you decide, for each client:

- The device's tasks are what you want: `sync-server admin reset-client CLIENT --yes`, and do what
  that prints.
- What was restored is what you want: on each device that fails, keep what only it has with
  `task export > tasks.json`, move the file taskchampion.sqlite3 in Taskwarrior's data directory
  away, and run `task sync`: it gets all tasks anew. `task import` brings in what is missing.

A client that is not in the backup is unknown to the server now, and one that had no versions yet
starts anew: its devices' syncs may look fine, and the first that changes a task begins a history
without all that was there. Add it again with its ID (`sync-server admin add-client --id`) where the
server makes none by itself, and proceed as after a reset before its devices sync.
";
