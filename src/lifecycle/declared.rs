//! The clients that the configuration declares, made where they are missing.

use crate::config::Declared;
use crate::storage::registry::{Event, Match, Registry, Writer};
use crate::storage::{self, Error};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Who the records say made the changes.
const USER: &str = "configuration";

/// What is to be done about a declared client.
#[derive(Clone, Debug, PartialEq)]
enum Step<'a> {
    /// It does not exist.
    Make(&'a Declared),
    /// Its label goes, so that another declared client can have it.
    Unlabel(&'a Declared),
    /// It gets this label.
    Label(&'a Declared, &'a str),
}

/// Makes the declared clients that do not exist, gives all of them their labels, and records and
/// logs what was done. All of it happens or nothing.
///
/// # Errors
/// What to do, where the database fails or a label is that of a client that is not declared.
pub fn provide(registry: &dyn Registry, clients: &[Declared]) -> Result<(), String> {
    if clients.is_empty() {
        return Ok(());
    }
    let told = registry.amending(|writer| {
        // Every ID begins with nothing.
        let known = writer.search("", usize::MAX)?;
        let steps = match plan(&known, clients) {
            Ok(steps) => steps,
            Err(obstacle) => return Ok(Err(obstacle)),
        };
        let done: storage::Result<Vec<_>> = steps.iter().map(|step| carry_out(writer, step)).collect();
        done.map(Ok)
    });
    for line in told.map_err(|error: Error| error.message)??.into_iter().flatten() {
        log::info!("{line}");
    }
    Ok(())
}

/// What makes the registry hold what is declared; what is wrong comes before anything is changed.
fn plan<'a>(known: &[Match], clients: &'a [Declared]) -> Result<Vec<Step<'a>>, String> {
    let (mut first, mut then) = (Vec::new(), Vec::new());
    for declared in clients {
        let existing = known.iter().find(|known| known.client == declared.client);
        let held = existing.and_then(|existing| existing.label.as_deref());
        match (&declared.label, existing) {
            (_, None) => then.push(Step::Make(declared)),
            (Some(label), Some(_)) if held != Some(label) => {
                if held.is_some() {
                    first.push(Step::Unlabel(declared));
                }
                then.push(Step::Label(declared, label));
            }
            _ => {}
        }
        let keeps = |other: &&Match| {
            other.client != declared.client
                && other.label.is_some()
                && other.label == declared.label
                && !clients.iter().any(|one| one.client == other.client && one.label.is_some())
        };
        if let (Some(label), Some(holder)) = (&declared.label, known.iter().find(keeps)) {
            return Err(format!(
                "clients (line {} of the configuration file): the label {label:?} is that of client {:?}; choose another label there, or give \
                 that client another one with `sync-server admin label-client`",
                declared.line, holder.client
            ));
        }
    }
    first.append(&mut then);
    Ok(first)
}

/// Does one thing and returns what the log says of it.
fn carry_out(writer: &mut dyn Writer, step: &Step) -> storage::Result<Option<String>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let (declared, action, detail) = match step {
        Step::Make(declared) => {
            writer.create(declared.client, declared.label.as_deref(), now)?;
            (declared, "add-client", declared.label.as_deref().unwrap_or_default())
        }
        Step::Unlabel(declared) => return writer.set_label(declared.client, None).map(|()| None),
        Step::Label(declared, label) => {
            writer.set_label(declared.client, Some(label))?;
            (declared, "label-client", *label)
        }
    };
    writer.record(&Event {
        id: Uuid::now_v7(),
        at: now,
        client: Some(declared.client),
        user: USER.to_owned(),
        action: action.to_owned(),
        detail: detail.to_owned(),
    })?;
    let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    Ok(Some(format!("{USER}: {action} of client {:?}{detail}", declared.client)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(n: u128, label: Option<&str>) -> Declared {
        Declared { client: Uuid::from_u128(n).into(), label: label.map(str::to_owned), line: n as usize }
    }

    fn known(n: u128, label: Option<&str>) -> Match {
        Match { client: Uuid::from_u128(n).into(), label: label.map(str::to_owned) }
    }

    #[test]
    fn what_is_as_declared_needs_nothing() {
        let clients = [declared(1, Some("a")), declared(2, None)];
        assert_eq!(plan(&[known(1, Some("a")), known(2, Some("b"))], &clients), Ok(vec![]));
    }

    #[test]
    fn labels_that_change_places_are_taken_away_first() {
        let clients = [declared(1, Some("b")), declared(2, Some("a")), declared(3, Some("c"))];
        let [one, two, three] = &clients;
        assert_eq!(
            plan(&[known(1, Some("a")), known(2, Some("b"))], &clients),
            Ok(vec![
                Step::Unlabel(one),
                Step::Unlabel(two),
                Step::Label(one, "b"),
                Step::Label(two, "a"),
                Step::Make(three)
            ])
        );
    }

    #[test]
    fn a_label_of_a_client_that_keeps_it_is_an_obstacle() {
        for clients in [vec![declared(1, Some("a"))], vec![declared(1, Some("a")), declared(2, None)]] {
            let told = plan(&[known(2, Some("a"))], &clients).expect_err("it is taken");
            assert!(told.contains("clients (line 1 of") && told.contains("00000000"), "{told}");
        }
    }
}
