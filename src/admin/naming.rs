//! Clients by their names: an ID, an unambiguous beginning of one, or a label.

use super::{IN_USE, NO_CLIENT, Refusal, TAKEN, USAGE, failed, refusal};
use crate::config;
use crate::protocol::ClientId;
use crate::storage;
use crate::storage::registry::{Match, Reader, Registry};
use std::collections::BTreeSet;

/// Clients that the answer to an ambiguous name lists.
const LISTED: usize = 5;

/// The client that answers to a name.
pub fn find(registry: &dyn Registry, name: &str) -> Result<Match, Refusal> {
    // A variable that a script forgot to set begins every ID.
    if name.is_empty() {
        return Err(refusal(NO_CLIENT, "the name of the client is empty"));
    }
    registry
        .consulting(|reader| Ok(choose(reader.search(&canonical(name), LISTED + 1)?, name)))
        .map_err(failed)?
}

/// The client that answers to a name and is not on its way out.
pub fn find_staying(registry: &dyn Registry, name: &str) -> Result<Match, Refusal> {
    let found = find(registry, name)?;
    let leaving = registry.consulting(|reader| reader.leaving()).map_err(failed)?;
    if leaving.contains(&found.client) { Err(leaving_now(found.client)) } else { Ok(found) }
}

/// A client that, or whose history, is being removed.
pub fn leaving_now(client: ClientId) -> Refusal {
    let message = format!(
        "client {client:?} is being removed just now, or its history is: nothing was changed. Wait for the end; where \
         that was interrupted and no server runs, `sync-server admin remove-client` or `reset-client` goes on with it"
    );
    refusal(IN_USE, message)
}

/// Who has this label.
pub fn holder(reader: &mut dyn Reader, label: &str) -> storage::Result<Option<Match>> {
    // A label may look like the beginning of many IDs.
    let found = reader.search(label, usize::MAX)?;
    Ok(found.into_iter().find(|found| found.label.as_deref() == Some(label)))
}

/// The client with this ID.
pub fn by_id(reader: &mut dyn Reader, client: ClientId) -> storage::Result<Option<Match>> {
    Ok(reader.search(&client.uuid().to_string(), 1)?.pop())
}

/// A label that is another client's.
pub fn taken(holder: &Match) -> Refusal {
    let message =
        format!("client {:?} has that label: nothing was changed. Choose another one", holder.client);
    refusal(TAKEN, message)
}

/// A client that went away while it was being looked at.
pub fn gone(name: &str) -> Refusal {
    refusal(NO_CLIENT, format!("client {name:?} was removed just now: nothing was changed"))
}

/// Whether a label can be told from other names, and printed.
pub fn check_label(label: &str) -> Result<(), Refusal> {
    match config::label(label) {
        Ok(_) => Ok(()),
        Err(why) => Err(refusal(USAGE, format!("{why}: choose another one"))),
    }
}

/// Whole IDs are taken in any form that clients may use.
fn canonical(name: &str) -> String {
    ClientId::parse(name).map_or_else(|| name.to_owned(), |client| client.uuid().to_string())
}

fn choose(mut found: Vec<Match>, name: &str) -> Result<Match, Refusal> {
    if found.len() == 1 {
        return Ok(found.remove(0));
    }
    if found.is_empty() {
        let message = format!(
            "no client has the ID {name:?}, an ID that begins so, or that label: `sync-server admin \
             list-clients` lists them all"
        );
        return Err(refusal(NO_CLIENT, message));
    }
    let more = if found.len() > LISTED { " and more" } else { "" };
    let enough = enough(&found);
    let listed: Vec<String> = found.iter().take(LISTED).map(|one| describe(one, enough)).collect();
    let message = format!("{name:?} names several clients: {}{more}; give more of the ID", listed.join(", "));
    Err(refusal(NO_CLIENT, message))
}

/// How many characters of their IDs tell these clients from each other.
fn enough(found: &[Match]) -> usize {
    let distinct = |len: &usize| {
        let ids = found.iter().map(|one| one.client.uuid().to_string()[..*len].to_owned());
        ids.collect::<BTreeSet<_>>().len() == found.len()
    };
    (13..36).find(distinct).unwrap_or(36)
}

/// A client as people know it.
fn describe(found: &Match, len: usize) -> String {
    let id = &found.client.uuid().to_string()[..len];
    match &found.label {
        Some(label) => format!("{id} ({label})"),
        None => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_words() {
        for label in ["alice", "Alice's phone", "ä", "deadbeef", &"x".repeat(64)] {
            check_label(label).expect(label);
        }
        let id = "711d5cf30cf04eb89eca6f7f220638c0";
        for label in ["", " ", "a ", "a\nb", "\u{1b}[31m", &"x".repeat(65), id] {
            check_label(label).expect_err(label);
        }
    }
}
