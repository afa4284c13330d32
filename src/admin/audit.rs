//! `audit`: what operators changed.

use super::columns::{moment, table};
use super::desk::Desk;
use super::{NO_CLIENT, Output, Refusal, failed, naming};
use crate::protocol::ClientId;
use crate::storage::registry::Event;
use serde::Serialize;

/// An event as programs get it.
#[derive(Serialize)]
struct Shown<'a> {
    at: String,
    client_id: Option<String>,
    user: &'a str,
    action: &'a str,
    detail: &'a str,
}

pub fn list(desk: &Desk, name: Option<&str>, limit: usize) -> Result<Output, Refusal> {
    let client = name.map(|name| subject(desk, name)).transpose()?;
    let events = desk.registry().consulting(|reader| reader.events(client, limit)).map_err(failed)?;
    let heading = ["WHEN", "WHO", "WHAT", "CLIENT", "DETAIL"].map(str::to_owned).to_vec();
    let lines: Vec<Vec<String>> = std::iter::once(heading).chain(events.iter().map(line)).collect();
    let text = match events.len() {
        0 => "Nothing was changed yet.\n".to_owned(),
        _ => table(&lines, &[]),
    };
    Ok(Output::new(text, &events.iter().map(shown).collect::<Vec<_>>()))
}

/// A client that was removed is known by its whole ID only.
fn subject(desk: &Desk, name: &str) -> Result<ClientId, Refusal> {
    match naming::find(desk.registry(), name) {
        Ok(found) => Ok(found.client),
        Err(refusal) if refusal.exit_code == NO_CLIENT => ClientId::parse(name).ok_or(refusal),
        Err(refusal) => Err(refusal),
    }
}

fn line(event: &Event) -> Vec<String> {
    let client = event.client.map_or("-".to_owned(), ClientId::short);
    vec![moment(event.at), event.user.clone(), event.action.clone(), client, event.detail.clone()]
}

fn shown(event: &Event) -> Shown<'_> {
    Shown {
        at: moment(event.at),
        client_id: event.client.map(|client| client.uuid().to_string()),
        user: &event.user,
        action: &event.action,
        detail: &event.detail,
    }
}
