//! `add-device`, `list-devices` and `remove-device`: who may speak for a client.

use super::columns::{age, moment, table};
use super::desk::{Desk, now};
use super::{NO_CLIENT, Output, Refusal, TAKEN, USAGE, add, failed, naming, refusal, secret, settings};
use crate::credential::{self, Hash};
use crate::protocol::ClientId;
use crate::storage::registry::Device;
use serde::Serialize;

/// A new device as programs get it.
#[derive(Serialize)]
struct Added<'a> {
    name: &'a str,
    token: &'a str,
    server_url: &'a str,
}

/// A device as programs get it.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    created: String,
    last_sync: Option<String>,
}

/// What stands in the way.
enum Obstacle {
    /// The client went away.
    ClientGone,
    /// There is such a device already, or none.
    Device,
    /// The device is the last one, without which its client needs no credential.
    Last,
}

pub fn add(desk: &Desk, name: &str, device: &str, qr: bool) -> Result<Output, Refusal> {
    check_name(device)?;
    let client = naming::find_staying(desk.registry(), name)?.client;
    let token = secret::token()?;
    let hash = Hash::of(&token);
    let mut is_first = false;
    let obstacle = desk.change("add-device", client, device, |writer| {
        if naming::by_id(writer, client)?.is_none() {
            return Ok(Some(Obstacle::ClientGone));
        }
        let devices = writer.devices(client)?;
        if devices.iter().any(|known| known.name == device) {
            return Ok(Some(Obstacle::Device));
        }
        is_first = devices.is_empty();
        writer.add_device(client, device, &hash, now())?;
        Ok(None)
    })?;
    match obstacle {
        None => show(desk, client, device, &token, is_first, qr),
        Some(Obstacle::Device) => {
            let message = format!(
                "client {client:?} has a device {device:?}, whose token is known to it alone: nothing was changed. \
                 Choose another name, or remove that one first with `sync-server admin remove-device`"
            );
            Err(refusal(TAKEN, message))
        }
        Some(_) => Err(naming::gone(name)),
    }
}

fn show(
    desk: &Desk,
    client: ClientId,
    device: &str,
    token: &str,
    is_first: bool,
    qr: bool,
) -> Result<Output, Refusal> {
    let (url, guess) = settings::server_url(desk.config);
    let server_url = settings::with_device(&url, device, token);
    let others = match is_first && !desk.config.require_device {
        true => format!(
            "\nIt is the first device of client {client:?}: from now on its other devices are refused until each has a\n\
             name and a token of its own, made the same way.\n"
        ),
        false => String::new(),
    };
    let command = settings::url_command(&server_url);
    let drawn = if qr { format!("\n{}", settings::qr(&command)?) } else { String::new() };
    let text =
        format!("On {device} alone, beside the client's other settings:\n\n{command}{drawn}\n{ONCE}{others}");
    let mut output = Output::new(text, &Added { name: device, token, server_url: &server_url });
    output.warnings.extend(guess);
    if server_url.starts_with("http://") && !settings::is_local(desk.config) {
        let plain = "the URL is plain http://, which shows the token to whoever is on the way: put TLS in front and set \
                     public_url";
        output.warnings.push(plain.to_owned());
    }
    output.warnings.extend(add::not_listed(desk.config, client));
    Ok(output)
}

const ONCE: &str = "\
The token in it is shown this once: the server keeps only a hash of it. Whoever has the URL can pass
for this device until `sync-server admin remove-device` locks it out.
";

pub fn list(desk: &Desk, name: &str) -> Result<Output, Refusal> {
    let client = naming::find(desk.registry(), name)?.client;
    let devices = desk.registry().consulting(|reader| reader.devices(client)).map_err(failed)?;
    let heading = ["DEVICE", "CREATED", "LAST SYNC"].map(str::to_owned).to_vec();
    let now = now();
    let line = |device: &Device| {
        let last_sync = device.last_sync.map_or("-".to_owned(), |at| age(at, now));
        vec![device.name.clone(), moment(device.created), last_sync]
    };
    let lines: Vec<Vec<String>> = std::iter::once(heading).chain(devices.iter().map(line)).collect();
    let text = match (devices.len(), desk.config.require_device) {
        (0, false) => format!("Client {client:?} has no devices of its own, and needs no credential.\n"),
        (0, true) => format!("Client {client:?} has no devices, and is refused until it has one.\n"),
        _ => table(&lines, &[]),
    };
    Ok(Output::new(text, &devices.iter().map(shown).collect::<Vec<_>>()))
}

pub fn remove(desk: &Desk, name: &str, device: &str, yes: bool) -> Result<Output, Refusal> {
    let client = naming::find_staying(desk.registry(), name)?.client;
    let opens = !desk.config.require_device;
    let mut left = Vec::new();
    let mut removed = None;
    let obstacle = desk.change("remove-device", client, device, |writer| {
        if naming::by_id(writer, client)?.is_none() {
            return Ok(Some(Obstacle::ClientGone));
        }
        let (named, others): (Vec<_>, Vec<_>) =
            writer.devices(client)?.into_iter().partition(|known| known.name == device);
        (removed, left) = (named.into_iter().next(), others);
        if removed.is_none() {
            return Ok(Some(Obstacle::Device));
        }
        if left.is_empty() && opens && !yes {
            return Ok(Some(Obstacle::Last));
        }
        writer.remove_device(client, device)?;
        Ok(None)
    })?;
    match (obstacle, removed) {
        (None, Some(removed)) => Ok(told(client, &removed, &left, opens)),
        (Some(Obstacle::Device), _) => {
            let names: Vec<&str> = left.iter().map(|known| known.name.as_str()).collect();
            let others = if names.is_empty() { "it has none".to_owned() } else { names.join(", ") };
            let message =
                format!("client {client:?} has no device {device:?}, but: {others}. Nothing was changed");
            Err(refusal(NO_CLIENT, message))
        }
        (Some(Obstacle::Last), _) => {
            let message = format!(
                "{device} is the last device of client {client:?}. Without devices the client needs no credential, and \
                 whoever knows its ID is let in, {device} too. Nothing was changed: add its other devices first, or \
                 suspend the client, or set require_device to true; if this is what you want, say --yes"
            );
            Err(refusal(USAGE, message))
        }
        _ => Err(naming::gone(name)),
    }
}

fn told(client: ClientId, removed: &Device, left: &[Device], opens: bool) -> Output {
    let name = &removed.name;
    let text = match (left.is_empty(), opens) {
        (false, _) => {
            format!("Device {name} of client {client:?} is locked out; its other devices go on as before.\n")
        }
        (true, true) => format!(
            "Device {name} of client {client:?} is removed, and the client has no devices of its own any more: it \
             needs no credential.\n"
        ),
        (true, false) => {
            format!(
                "Device {name} of client {client:?} is locked out, and the client has no device any more.\n"
            )
        }
    };
    Output::new(text, &shown(removed))
}

fn shown(device: &Device) -> Shown<'_> {
    Shown { name: &device.name, created: moment(device.created), last_sync: device.last_sync.map(moment) }
}

fn check_name(device: &str) -> Result<(), Refusal> {
    if credential::is_name(device) {
        return Ok(());
    }
    let message = format!(
        "a device's name has 1 to {} letters, digits, dots, dashes and underscores, so that it can stand in a URL as it \
         is: {device:?} does not",
        credential::LONGEST_NAME
    );
    Err(refusal(USAGE, message))
}
