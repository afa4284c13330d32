//! `add-client`: makes a client and prints what its devices need.

use super::desk::{Desk, now};
use super::{Addition, Output, Refusal, TAKEN, naming, refusal, secret, settings};
use crate::config::Config;
use crate::protocol::ClientId;
use crate::storage::registry::Match;
use serde::Serialize;
use uuid::Uuid;

/// Random bits of an encryption secret.
const SECRET: usize = 160;

/// What programs get.
#[derive(Serialize)]
struct Shown<'a> {
    client_id: String,
    label: Option<&'a str>,
    server_url: &'a str,
    /// Null where the client existed: nobody but its devices knows its secret.
    encryption_secret: Option<&'a str>,
    existed: bool,
}

/// What stands in the way of a new client.
enum Obstacle {
    /// The client itself.
    Exists(Match),
    /// The client, which is on its way out, or what is left of it.
    Leaving,
    /// Another client with that label.
    LabelTaken(Match),
}

pub fn client(desk: &Desk, addition: &Addition) -> Result<Output, Refusal> {
    let label = addition.label.as_deref();
    if let Some(label) = label {
        naming::check_label(label)?;
    }
    let client = addition.id.unwrap_or_else(|| Uuid::new_v4().into());
    let secret = secret::fresh(SECRET)?;
    let existing = match make(desk, client, label)? {
        None => None,
        Some(Obstacle::Exists(found)) if addition.if_missing && fits(&found, label) => Some(found),
        Some(Obstacle::LabelTaken(holder)) if addition.if_missing && addition.id.is_none() => Some(holder),
        Some(Obstacle::Leaving) => return Err(naming::leaving_now(client)),
        Some(obstacle) => return Err(taken(&obstacle, addition)),
    };
    let (client, label, secret) = match &existing {
        Some(found) => (found.client, found.label.as_deref(), None),
        None => (client, label, Some(secret.as_str())),
    };
    show(desk.config, client, label, secret, addition.qr)
}

/// Makes the client and records it, unless something stands in the way.
fn make(desk: &Desk, client: ClientId, label: Option<&str>) -> Result<Option<Obstacle>, Refusal> {
    desk.change("add-client", client, label.unwrap_or_default(), |writer| {
        if writer.leaving()?.contains(&client) {
            return Ok(Some(Obstacle::Leaving));
        }
        if let Some(found) = naming::by_id(writer, client)? {
            return Ok(Some(Obstacle::Exists(found)));
        }
        if let Some(label) = label
            && let Some(holder) = naming::holder(writer, label)?
        {
            return Ok(Some(Obstacle::LabelTaken(holder)));
        }
        writer.create(client, label, now())?;
        Ok(None)
    })
}

/// Whether an existing client is the one that was asked for.
fn fits(found: &Match, label: Option<&str>) -> bool {
    label.is_none() || label == found.label.as_deref()
}

fn taken(obstacle: &Obstacle, addition: &Addition) -> Refusal {
    let message = match obstacle {
        Obstacle::Exists(found) if addition.if_missing => format!(
            "client {:?} exists with {}, not with the label that was given; `sync-server admin label-client` \
             changes it. Nothing was changed",
            found.client,
            found.label.as_ref().map_or("no label".to_owned(), |label| format!("the label {label:?}")),
        ),
        Obstacle::Exists(found) => format!(
            "client {:?} exists: nothing was changed. --if-missing says that this is fine",
            found.client
        ),
        Obstacle::LabelTaken(holder) => return naming::taken(holder),
        Obstacle::Leaving => unreachable!("it was told before"),
    };
    refusal(TAKEN, message)
}

fn show(
    config: &Config,
    client: ClientId,
    label: Option<&str>,
    secret: Option<&str>,
    qr: bool,
) -> Result<Output, Refusal> {
    let (url, guess) = settings::server_url(config);
    let commands = settings::commands(&url, client, secret);
    let drawn = if qr { format!("\n{}", settings::qr(&commands)?) } else { String::new() };
    let shown = Shown {
        client_id: client.uuid().to_string(),
        label,
        server_url: &url,
        encryption_secret: secret,
        existed: secret.is_none(),
    };
    let words = if secret.is_some() { NEW } else { EXISTING };
    let mut output =
        Output::new(format!("On every device, the same lines:\n\n{commands}{drawn}\n{words}"), &shown);
    output.warnings.extend(guess);
    output.warnings.extend(not_listed(config, client));
    if config.require_device && secret.is_some() {
        output.warnings.push(
            "the server refuses this client until it has a device, for the option require_device is true: \
             `sync-server admin add-device` makes one, and prints the URL that it uses instead of the one above"
                .to_owned(),
        );
    }
    Ok(output)
}

const NEW: &str = "\
Then `task sync`. The client ID names the task history: with the same ID every device has the same
tasks. Whoever has it can use this place on the server, so keep it like a password. The secret
encrypts the tasks on the devices. This server does not keep it and cannot recover it: write it down
now, for without it what is stored here is lost.
";

const EXISTING: &str = "\
The client existed and was not changed. Its encryption secret is the one that its devices have: this
server never knew it.
";

/// A warning where the list of allowed clients would still refuse this one.
pub fn not_listed(config: &Config, client: ClientId) -> Option<String> {
    let allowed = config.client_id.as_ref()?;
    (!allowed.contains(&client)).then(|| {
        "the server will still refuse this client, for the option client_id (CLIENT_ID) lists others only: add \
         the ID there and restart the server, or leave the option out and set create_clients to false"
            .to_owned()
    })
}
