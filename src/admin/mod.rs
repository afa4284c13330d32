//! What operators do: make clients, look at them, let them in or keep them out.
//!
//! A verb works on the database that the configuration names, whether the server runs or not, and
//! takes effect at once: the server reads what operators decided in the transaction of each
//! request. Knows neither the command line nor how a database works.

mod add;
mod audit;
mod backup;
mod cert;
mod change;
mod check;
mod columns;
mod copy;
mod desk;
mod devices;
pub mod doctor;
mod list;
mod migrate;
mod naming;
mod progress;
mod prune;
mod restore;
mod secret;
mod settings;
mod stats;
mod user;

use crate::config::{Config, Environment, place};
use crate::protocol::ClientId;
use crate::storage::location::Location;
use crate::storage::{Error, Kind};
pub use cert::Cert;
pub use copy::Route;
use desk::Desk;
use serde::Serialize;
use serde_json::json;
use std::io::Write;

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Verb {
    /// Make a client, and print what its devices need.
    AddClient(Addition),
    /// List all clients.
    ListClients { sort: Sort, reverse: bool },
    /// Show all that is known of one client.
    ShowClient { client: String },
    /// Give a client a label, or none.
    LabelClient { client: String, label: Option<String> },
    /// Refuse a client until it is resumed.
    SuspendClient { client: String },
    /// Let a suspended client in again.
    ResumeClient { client: String },
    /// Remove a client and everything that it holds.
    RemoveClient { client: String, yes: bool },
    /// Empty a client's history and keep the client.
    ResetClient { client: String, yes: bool },
    /// Give a device of a client a credential of its own.
    AddDevice { client: String, device: String, qr: bool },
    /// List the devices of a client.
    ListDevices { client: String },
    /// Lock out a device of a client.
    RemoveDevice { client: String, device: String, yes: bool },
    /// Write a backup to a file, or to standard output.
    Backup { file: String, yes: bool },
    /// Say whether a backup is whole, and what it holds.
    VerifyBackup { file: String },
    /// Put what a backup holds in the place of the database.
    Restore { file: String, yes: bool },
    /// Make one database the copy of another.
    Copy(Route),
    /// Look at the certificate, or get another one.
    Cert(Cert),
    /// Look whether everything that the database holds is whole.
    Check,
    /// Say how much there is, and how much room it takes.
    Stats,
    /// Bring the database's tables up to date, or print the SQL that does.
    Migrate { dry_run: bool },
    /// Remove old versions that a snapshot covers, or only say which.
    Prune { dry_run: bool },
    /// List what operators changed.
    Audit { client: Option<String>, limit: usize },
}

impl Verb {
    /// Whether it leaves something in the database.
    fn changes(&self) -> bool {
        match self {
            Verb::ListClients { .. }
            | Verb::ShowClient { .. }
            | Verb::ListDevices { .. }
            | Verb::VerifyBackup { .. }
            | Verb::Check
            | Verb::Stats
            | Verb::Audit { .. } => false,
            Verb::Prune { dry_run } | Verb::Migrate { dry_run } => !dry_run,
            _ => true,
        }
    }
}

/// A client to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Addition {
    /// Its ID; a random one otherwise.
    pub id: Option<ClientId>,
    /// What to call it.
    pub label: Option<String>,
    /// Whether it is fine if it exists.
    pub if_missing: bool,
    /// Whether to draw the settings as a QR code.
    pub qr: bool,
}

/// By what a list of clients is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// The label; clients without one come last.
    Label,
    /// The client ID.
    Id,
    /// The number of versions.
    Versions,
    /// What all versions and the snapshot hold.
    Bytes,
    /// When the snapshot was stored; none comes first.
    Snapshot,
    /// When it last synced; never comes first.
    LastSync,
    /// The number of devices with a credential of their own.
    Devices,
    /// Active before suspended.
    State,
}

impl Sort {
    /// Every order by its name.
    pub const ALL: [(&str, Sort); 8] = [
        ("label", Sort::Label),
        ("id", Sort::Id),
        ("versions", Sort::Versions),
        ("bytes", Sort::Bytes),
        ("snapshot", Sort::Snapshot),
        ("last-sync", Sort::LastSync),
        ("devices", Sort::Devices),
        ("state", Sort::State),
    ];
}

/// For whom the output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Tables and sentences.
    People,
    /// JSON with the documented keys.
    Programs,
}

/// Why a verb did not do what it was asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// What is wrong and what to do.
    pub message: String,
    /// One of this module's exit codes.
    pub exit_code: u8,
}

/// It was understood and did not work.
pub const FAILURE: u8 = 1;
/// What was asked is not how it is asked.
pub const USAGE: u8 = 64;
/// A file is no backup, or damaged.
pub const DAMAGED: u8 = 65;
/// No client, no single one, or no device answers to that name.
pub const NO_CLIENT: u8 = 67;
/// The client or its device exists, or the label is another's.
pub const TAKEN: u8 = 73;
/// Something else uses it just now: stop that, or wait for it.
pub const IN_USE: u8 = 75;
/// A newer program wrote it.
pub const NEWER: u8 = 76;
/// Another user may do this.
pub const NOT_PERMITTED: u8 = 77;
/// The configuration is wrong.
pub const CONFIGURATION: u8 = 78;

/// What a verb has to say.
struct Output {
    /// For people: whole lines.
    text: String,
    /// For programs: one value.
    json: String,
    /// What the operator should know besides.
    warnings: Vec<String>,
    /// Whether all of this goes to standard error, for standard output has something else.
    aside: bool,
    /// 0, unless what was found is to be told from what should be.
    exit_code: u8,
}

impl Output {
    fn new(text: String, json: &impl Serialize) -> Output {
        let json = serde_json::to_string_pretty(json).expect("plain values are always JSON");
        Output { text, json: format!("{json}\n"), warnings: Vec::new(), aside: false, exit_code: 0 }
    }
}

/// Does what was asked and prints what came of it; returns the exit code.
///
/// Standard output gets the result. Standard error first gets a line that says which database is
/// used, then warnings and errors; with [`Format::Programs`] one JSON object with all of these.
pub fn run(verb: &Verb, config: &Config, environment: &Environment, format: Format) -> u8 {
    if let Verb::VerifyBackup { file } = verb {
        return tell(backup::verify(file, format), None, format);
    }
    let located = desk::locate(config, environment);
    if let Verb::Cert(cert) = verb {
        let kept = located.and_then(|_| {
            place::certificates(config, environment).map_err(|message| refusal(CONFIGURATION, message))
        });
        return tell(kept.and_then(|dir| cert::run(*cert, config, environment, &dir)), None, format);
    }
    if let Verb::Copy(route) = verb {
        return tell(copy::run(config, environment, route, format), None, format);
    }
    let database = located.as_ref().ok().map(Location::to_string);
    if let (Some(database), Format::People) = (&database, format) {
        eprintln!("database: {database}");
    }
    let makes = matches!(verb, Verb::AddClient(_));
    let outcome = located.and_then(|location| match verb {
        Verb::Restore { file, yes } => restore::run(environment, &location, file, *yes, format),
        Verb::Migrate { dry_run } => migrate::run(config, environment, &location, *dry_run, format),
        _ => act(&Desk::open(config, environment, location, format, makes)?, verb),
    });
    tell(outcome, database.as_deref(), format)
}

/// Prints what came of a verb; returns the exit code.
fn tell(outcome: Result<Output, Refusal>, database: Option<&str>, format: Format) -> u8 {
    match outcome {
        Ok(output) => {
            warn(&output.warnings, database, format);
            let text = if format == Format::People { &output.text } else { &output.json };
            if output.aside {
                eprint!("{text}")
            } else {
                print(text)
            }
            output.exit_code
        }
        Err(refusal) => {
            complain(&refusal.message, database, format);
            refusal.exit_code
        }
    }
}

/// Prints why a verb did not do what it was asked.
pub fn complain(message: &str, database: Option<&str>, format: Format) {
    match format {
        Format::People => eprintln!("error: {message}"),
        Format::Programs => eprintln!("{}", json!({ "database": database, "error": message })),
    }
}

fn warn(warnings: &[String], database: Option<&str>, format: Format) {
    match format {
        Format::People => warnings.iter().for_each(|warning| eprintln!("warning: {warning}")),
        Format::Programs => eprintln!("{}", json!({ "database": database, "warnings": warnings })),
    }
}

/// Prints, and does not mind a reader that has gone, as `head` does.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn act(desk: &Desk, verb: &Verb) -> Result<Output, Refusal> {
    desk.check_copy(verb.changes())?;
    match verb {
        Verb::AddClient(addition) => add::client(desk, addition),
        Verb::ListClients { sort, reverse } => list::all(desk, *sort, *reverse),
        Verb::ShowClient { client } => list::one(desk, client),
        Verb::LabelClient { client, label } => change::label(desk, client, label.as_deref()),
        Verb::SuspendClient { client } => change::suspend(desk, client),
        Verb::ResumeClient { client } => change::resume(desk, client),
        Verb::RemoveClient { client, yes } => change::remove(desk, client, *yes),
        Verb::ResetClient { client, yes } => change::reset(desk, client, *yes),
        Verb::AddDevice { client, device, qr } => devices::add(desk, client, device, *qr),
        Verb::ListDevices { client } => devices::list(desk, client),
        Verb::RemoveDevice { client, device, yes } => devices::remove(desk, client, device, *yes),
        Verb::Backup { file, yes } => backup::write(desk, file, *yes),
        // These want no open database.
        Verb::VerifyBackup { .. }
        | Verb::Restore { .. }
        | Verb::Migrate { .. }
        | Verb::Cert(_)
        | Verb::Copy(_) => unreachable!("it was done before"),
        Verb::Check => check::run(desk),
        Verb::Stats => stats::show(desk),
        Verb::Prune { dry_run } => prune::prune(desk, *dry_run),
        Verb::Audit { client, limit } => audit::list(desk, client.as_deref(), *limit),
    }
}

fn refusal(exit_code: u8, message: impl Into<String>) -> Refusal {
    Refusal { message: message.into(), exit_code }
}

/// A failure of the database. Here it is no surprise that another process holds it.
fn failed(error: Error) -> Refusal {
    match error.kind {
        Kind::Busy => refusal(
            IN_USE,
            "the server or another verb kept the database busy: nothing was changed, try again",
        ),
        _ => refusal(FAILURE, error.message),
    }
}
