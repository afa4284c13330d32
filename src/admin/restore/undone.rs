//! What operators had decided since a backup was made, and a restore took back.

use super::{Clients, Known};
use crate::protocol::{ClientId, State};
use serde::Serialize;

/// Lines that people are shown.
const LISTED: usize = 40;

/// One such thing.
#[derive(Debug, PartialEq, Serialize)]
pub struct Undone {
    client_id: String,
    label: Option<String>,
    what: What,
    /// The device that it is about.
    device: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum What {
    /// It had been made since.
    ClientGone,
    /// It had been removed since.
    ClientBack,
    /// It had been resumed since.
    SuspendedAgain,
    /// It had been suspended since.
    ActiveAgain,
    /// It had been given another label since, or its first.
    LabelBack,
    /// It had been added since, and its token is worth nothing now.
    DeviceGone,
    /// It had been removed since, and its token is worth something again.
    DeviceBack,
}

/// What differs between the clients as they were and as they were restored.
pub fn between(before: &Clients, after: &Clients) -> Vec<Undone> {
    let mut undone = Vec::new();
    for (client, was) in before {
        match after.get(client) {
            None => undone.push(of(*client, was, What::ClientGone, None)),
            Some(is) => compare(*client, was, is, &mut undone),
        }
    }
    let back = after.iter().filter(|(client, _)| !before.contains_key(client));
    undone.extend(back.map(|(client, is)| of(*client, is, What::ClientBack, None)));
    undone
}

fn compare(client: ClientId, was: &Known, is: &Known, undone: &mut Vec<Undone>) {
    let is_suspended = |known: &Known| known.state == State::Suspended;
    match (is_suspended(was), is_suspended(is)) {
        (true, false) => undone.push(of(client, is, What::ActiveAgain, None)),
        (false, true) => undone.push(of(client, is, What::SuspendedAgain, None)),
        _ => {}
    }
    if was.label != is.label {
        undone.push(of(client, is, What::LabelBack, None));
    }
    let missing = |from: &Known, other: &Known| {
        let names = from.devices.iter().filter(|(name, added)| other.devices.get(*name) != Some(*added));
        names.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    undone.extend(missing(is, was).into_iter().map(|name| of(client, is, What::DeviceBack, Some(name))));
    undone.extend(missing(was, is).into_iter().map(|name| of(client, is, What::DeviceGone, Some(name))));
}

fn of(client: ClientId, known: &Known, what: What, device: Option<String>) -> Undone {
    Undone { client_id: client.uuid().to_string(), label: known.label.clone(), what, device }
}

/// The same for people.
pub fn told(undone: &[Undone]) -> String {
    if undone.is_empty() {
        return String::new();
    }
    let mut text = "\nWhat had been changed since is as it was before:\n\n".to_owned();
    for one in undone.iter().take(LISTED) {
        text.push_str(&format!("- {}\n", line(one)));
    }
    if let Some(more) = undone.len().checked_sub(LISTED).filter(|more| *more > 0) {
        text.push_str(&format!("and {more} more; --json lists all\n"));
    }
    text
}

fn line(one: &Undone) -> String {
    let id = &one.client_id[..8];
    let client = one.label.as_ref().map_or(id.to_owned(), |label| format!("{label} ({id})"));
    let device = one.device.as_deref().unwrap_or_default();
    match one.what {
        What::ClientGone => format!("{client} is not there any more"),
        What::ClientBack => format!("{client} is there again"),
        What::SuspendedAgain => format!("{client} is suspended again"),
        What::ActiveAgain => format!("{client} is not suspended any more"),
        What::LabelBack if one.label.is_some() => format!("{client} is called that again"),
        What::LabelBack => format!("{client} has no label again"),
        What::DeviceGone => format!("{device} of {client} is refused: add it again, it needs a new token"),
        What::DeviceBack => {
            format!(
                "{device} of {client} may sync again with the token that it had: remove-device locks it out"
            )
        }
    }
}
