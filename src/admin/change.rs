//! The verbs that change or remove a client that exists.

use super::columns::{plural, size};
use super::desk::Desk;
use super::list::{Shown, word};
use super::progress::Progress;
use super::{NO_CLIENT, Output, Refusal, USAGE, failed, naming, refusal};
use crate::config::Declared;
use crate::protocol::{ClientId, State};
use crate::storage;
use crate::storage::registry::{Entry, Removal, Writer};
use crate::upkeep::removal;
use serde_json::json;

pub fn label(desk: &Desk, name: &str, label: Option<&str>) -> Result<Output, Refusal> {
    if let Some(label) = label {
        naming::check_label(label)?;
    }
    let client = naming::find_staying(desk.registry(), name)?.client;
    let obstacle = desk.change("label-client", client, label.unwrap_or_default(), |writer| {
        if naming::by_id(writer, client)?.is_none() {
            return Ok(Some(naming::gone(name)));
        }
        if let Some(label) = label
            && let Some(holder) = naming::holder(writer, label)?.filter(|holder| holder.client != client)
        {
            return Ok(Some(naming::taken(&holder)));
        }
        writer.set_label(client, label)?;
        Ok(None)
    })?;
    if let Some(refusal) = obstacle {
        return Err(refusal);
    }
    let said = match label {
        Some(label) => format!("Client {client:?} is called {label}.\n"),
        None => format!("Client {client:?} has no label.\n"),
    };
    let mut output = Output::new(said, &Shown::of(&entry(desk, client, name)?));
    let is_other = |declared: &&Declared| {
        declared.client == client && declared.label.as_deref().is_some_and(|of| Some(of) != label)
    };
    if let Some(declared) = desk.config.clients.iter().find(is_other) {
        output.warnings.push(format!(
            "the configuration file calls this client {:?}, and so will the server from its next start on: change the \
             entry on line {} there",
            declared.label.as_deref().unwrap_or_default(),
            declared.line
        ));
    }
    Ok(output)
}

pub fn suspend(desk: &Desk, name: &str) -> Result<Output, Refusal> {
    let words = "every request is refused with 403 from now on, and nothing of its history is lost. \
                 `sync-server admin resume-client` lets it in again";
    set_state(desk, name, "suspend-client", State::Suspended, words)
}

pub fn resume(desk: &Desk, name: &str) -> Result<Output, Refusal> {
    set_state(desk, name, "resume-client", State::Active, "its devices can sync again")
}

fn set_state(desk: &Desk, name: &str, action: &str, state: State, words: &str) -> Result<Output, Refusal> {
    let client = naming::find_staying(desk.registry(), name)?.client;
    amend(desk, name, action, client, "", |writer| writer.set_state(client, state))?;
    let text = format!("Client {client:?} is {}: {words}.\n", word(state));
    Ok(Output::new(text, &Shown::of(&entry(desk, client, name)?)))
}

pub fn remove(desk: &Desk, name: &str, yes: bool) -> Result<Output, Refusal> {
    if let Some(client) = leftover(desk, name)? {
        return remove_leftover(desk, client, yes);
    }
    let words = "the client, with its label and its devices";
    let entry = destroy(desk, name, yes, words, Removal::Client)?;
    let text = format!("Client {:?} is removed, and {} with it.\n", entry.client, holdings(&entry));
    let mut output = Output::new(text, &Shown::of(&entry));
    if desk.config.clients.iter().any(|declared| declared.client == entry.client) {
        output.warnings.push(
            "the configuration file declares this client, so the server makes it anew at its next start: remove its \
             entry there"
                .to_owned(),
        );
    }
    if desk.config.create_clients {
        output.warnings.push(
            "the server creates clients that it does not know, so this one returns, empty, at its next sync: change \
             its devices' settings, or set create_clients to false"
                .to_owned(),
        );
    }
    Ok(output)
}

/// The client whose whole ID this is, where it does not exist but something of it does.
fn leftover(desk: &Desk, name: &str) -> Result<Option<ClientId>, Refusal> {
    let Some(client) = ClientId::parse(name) else { return Ok(None) };
    if desk.registry().consulting(|reader| naming::by_id(reader, client)).map_err(failed)?.is_some() {
        return Ok(None);
    }
    let holders = desk.upkeep().holders().map_err(failed)?;
    Ok(holders.iter().any(|holder| holder.client == client).then_some(client))
}

fn remove_leftover(desk: &Desk, client: ClientId, yes: bool) -> Result<Output, Refusal> {
    let left = desk.upkeep().chain(client).map_err(failed)?;
    let bytes = left.links.iter().map(|link| link.bytes).sum();
    let holds = format!("{} ({})", plural(left.links.len() as u64, "version"), size(bytes));
    if !yes {
        let message = format!(
            "client {client:?} does not exist, and remove-client removes what is left of it: {holds}. Nothing was \
             changed: if this may be needed again, `sync-server admin backup FILE` keeps it; then say --yes"
        );
        return Err(refusal(USAGE, message));
    }
    let mut is_done = false;
    let obstacle = desk.change("remove-client", client, &holds, |writer| {
        if naming::by_id(writer, client)?.is_some() {
            let message = format!("client {client:?} is back: nothing was changed");
            return Ok(Some(refusal(NO_CLIENT, message)));
        }
        is_done = removal::begin(writer, client, Removal::Client)?;
        Ok(None)
    })?;
    match obstacle {
        Some(refusal) => return Err(refusal),
        None if !is_done => carry_on(desk, client, left.links.len() as u64)?,
        None => {}
    }
    let text = format!("What was left of client {client:?} is removed: {holds}.\n");
    Ok(Output::new(text, &json!({ "client_id": client.uuid().to_string(), "bytes": bytes })))
}

pub fn reset(desk: &Desk, name: &str, yes: bool) -> Result<Output, Refusal> {
    let words = "its history; the client stays";
    let entry = destroy(desk, name, yes, words, Removal::History)?;
    let text = format!(
        "The history of client {:?} is empty: {} are gone.\n\n{AFTER_RESET}",
        entry.client,
        holdings(&entry)
    );
    Ok(Output::new(text, &Shown::of(&self::entry(desk, entry.client, name)?)))
}

const AFTER_RESET: &str = "\
What to do on the devices:

1. On the device whose tasks are right, change any task and run `task sync`. It uploads all its
   tasks as a snapshot, with which the new history begins.
   Do this before any other device syncs: until then the first one that changes a task begins the new
   history with that alone.
2. On every other device, keep what only it has with `task export > tasks.json`, move the file
   taskchampion.sqlite3 in Taskwarrior's data directory away, and run `task sync`: it gets all tasks
   anew. `task import` brings in what is missing.
";

/// Removes what cannot be brought back, if `yes`, and returns the client as it was.
fn destroy(desk: &Desk, name: &str, yes: bool, what: &str, removal: Removal) -> Result<Entry, Refusal> {
    let client = naming::find(desk.registry(), name)?.client;
    let entry = entry(desk, client, name)?;
    if !yes {
        let message = format!(
            "{} removes {what}. Client {client:?}{} holds {}. Nothing was changed: if this may be needed \
             again, `sync-server admin backup FILE` keeps it; then say --yes",
            action(removal),
            entry.label.as_ref().map_or(String::new(), |label| format!(" ({label})")),
            holdings(&entry)
        );
        return Err(refusal(USAGE, message));
    }
    let mut is_done = false;
    let obstacle = desk.change(action(removal), client, &holdings(&entry), |writer| {
        if naming::by_id(writer, client)?.is_none() {
            return Ok(Some(naming::gone(name)));
        }
        is_done = removal::begin(writer, client, removal)?;
        Ok(None)
    })?;
    match obstacle {
        Some(refusal) => return Err(refusal),
        None if !is_done => carry_on(desk, client, entry.versions)?,
        None => {}
    }
    Ok(entry)
}

fn action(removal: Removal) -> &'static str {
    match removal {
        Removal::Client => "remove-client",
        Removal::History => "reset-client",
    }
}

/// Does the rest of a removal, of some versions more or less.
fn carry_on(desk: &Desk, client: ClientId, versions: u64) -> Result<(), Refusal> {
    let mut progress = Progress::start("removing versions", Some(versions), desk.format);
    let done = removal::carry_on(desk.database(), client, desk.pace(), &mut |more| {
        progress.advance(more);
        true
    });
    progress.finish();
    done.map(|_| ()).map_err(|error| {
        let error = failed(error);
        let message = format!(
            "{}. Not all of client {client:?} is removed, and it is refused meanwhile: the running server goes on with it, \
             and so does the same command",
            error.message
        );
        Refusal { message, ..error }
    })
}

/// Changes a client that is still there.
fn amend(
    desk: &Desk,
    name: &str,
    action: &str,
    client: ClientId,
    detail: &str,
    work: impl Fn(&mut dyn Writer) -> storage::Result<()>,
) -> Result<(), Refusal> {
    let obstacle = desk.change(action, client, detail, |writer| {
        if naming::by_id(writer, client)?.is_none() {
            return Ok(Some(naming::gone(name)));
        }
        work(writer).map(|()| None)
    })?;
    obstacle.map_or(Ok(()), Err)
}

fn holdings(entry: &Entry) -> String {
    let snapshot = match entry.snapshot {
        Some(_) => format!("a snapshot ({})", size(entry.snapshot_bytes)),
        None => "no snapshot".to_owned(),
    };
    format!("{} ({}) and {snapshot}", plural(entry.versions, "version"), size(entry.bytes))
}

fn entry(desk: &Desk, client: ClientId, name: &str) -> Result<Entry, Refusal> {
    let found = desk.registry().consulting(|reader| reader.client(client)).map_err(failed)?;
    found.ok_or_else(|| naming::gone(name))
}
