//! The operator's verbs on the command line.

use crate::admin::{Addition, Cert, Format, Route, Sort, Verb};
use crate::protocol::ClientId;
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

/// The verb that has something to say of a configuration that is wrong, too.
pub const DOCTOR: &str = "doctor";

/// `admin` and its verbs.
pub fn command() -> Command {
    let json = Arg::new("json")
        .long("json")
        .global(true)
        .action(ArgAction::SetTrue)
        .help("Print JSON for programs, errors too");
    Command::new("admin")
        .about("Look after clients, whether the server runs or not")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(json)
        .subcommands(adding())
        .subcommands(looking())
        .subcommands(changing())
        .subcommands(devices())
        .subcommands(keeping())
        .subcommands(overseeing())
        .subcommand(certificate())
}

fn adding() -> [Command; 1] {
    let id = Arg::new("id").long("id").value_name("UUID").value_parser(value_parser!(ClientId));
    let label = Arg::new("label").long("label").value_name("TEXT");
    [Command::new("add-client")
        .about("Make a client and print the settings for its devices")
        .arg(id.help("Its ID, instead of a random one"))
        .arg(label.help("What to call it"))
        .arg(flag("if-missing", "It is fine if the client exists already"))
        .arg(flag("qr", "Draw the settings as a QR code too"))]
}

fn looking() -> [Command; 3] {
    let sort = Arg::new("sort").long("sort").value_name("COLUMN").default_value("label");
    let sort = sort.value_parser(PossibleValuesParser::new(Sort::ALL.map(|(name, _)| name)));
    let limit = Arg::new("limit").long("limit").value_name("NUMBER").default_value("100");
    let limit = limit.value_parser(value_parser!(u32).range(1..));
    [
        Command::new("list-clients")
            .about("List all clients")
            .arg(sort.help("What to order them by"))
            .arg(flag("reverse", "The other way round")),
        Command::new("show-client").about("Show all that is known of one client").arg(client()),
        Command::new("audit")
            .about("List what operators changed, the latest last")
            .arg(client().required(false))
            .arg(limit.help("How many changes at most")),
    ]
}

fn changing() -> [Command; 5] {
    let label = Arg::new("LABEL").help("What to call it; without one the label goes");
    [
        Command::new("label-client").about("Give a client a label, or none").arg(client()).arg(label),
        Command::new("suspend-client").about("Refuse a client until it is resumed").arg(client()),
        Command::new("resume-client").about("Let a suspended client in again").arg(client()),
        Command::new("remove-client")
            .about("Remove a client and everything that it holds")
            .arg(client())
            .arg(flag("yes", "Really do it")),
        Command::new("reset-client")
            .about("Empty a client's history and keep the client: the way out of a diverged history")
            .arg(client())
            .arg(flag("yes", "Really do it")),
    ]
}

fn devices() -> [Command; 3] {
    let name = || Arg::new("NAME").required(true).help("The device's name, such as laptop");
    [
        Command::new("add-device")
            .about("Give a device of a client a name and token of its own")
            .arg(client())
            .arg(name())
            .arg(flag("qr", "Draw the setting as a QR code too")),
        Command::new("list-devices").about("List the devices of a client").arg(client()),
        Command::new("remove-device")
            .about("Lock out a device of a client")
            .arg(client())
            .arg(name())
            .arg(flag("yes", "Really remove the last one")),
    ]
}

fn keeping() -> [Command; 5] {
    let file = |help: &'static str| Arg::new("FILE").required(true).help(help);
    let place =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("DATABASE").help(help);
    [
        Command::new("backup")
            .about("Write a backup of everything, while the server runs or not")
            .arg(file("Where to; - is standard output"))
            .arg(flag("yes", "Replace the file if it exists")),
        Command::new("verify-backup")
            .about("Say whether a backup is whole, and what it holds")
            .arg(file("The backup; - is standard input")),
        Command::new("restore")
            .about("Put what a backup holds in the place of the database, while no server runs")
            .arg(file("The backup; - is standard input"))
            .arg(flag("yes", "Replace a database that holds data; it is kept aside")),
        Command::new("copy")
            .about("Make one database the copy of another of whatever kind, while that is in use or not")
            .arg(place(
                "from",
                "What is copied: a data directory, a connection string, or @FILE with one in it",
            ))
            .arg(place("to", "Where to, named the same way; what is not named is the configured database"))
            .arg(flag("verify", "Compare everything again, not only what is carried"))
            .arg(flag("yes", "Do it though servers seem to be connected to the target")),
        Command::new("migrate")
            .about("Bring the database's tables up to date, as the server does when it starts")
            .arg(flag("dry-run", "Print the SQL that would be run, and change nothing")),
    ]
}

fn certificate() -> Command {
    Command::new("cert")
        .about("Look at the certificate, or have the running server get another one")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("status").about("Show until when it is valid, and what the last attempt led to"),
        )
        .subcommand(Command::new("renew").about("Get a new one now, whatever the back-off says"))
        .subcommand(
            Command::new("test")
                .about("Get one for trial, from the staging half of the authority if there is one"),
        )
}

fn overseeing() -> [Command; 4] {
    [
        Command::new("check")
            .about("Look whether the database and every client's history are whole; exits with 0 or 1"),
        Command::new("prune")
            .about("Remove versions that are older than retention_days and covered by a snapshot")
            .arg(flag("dry-run", "Only say what would be removed")),
        Command::new(DOCTOR).about(
            "Look at all that a helpful colleague would: configuration, disk, ports, clock, certificate, database, \
             backups; exits with 0 or 1",
        ),
        Command::new("stats").about("Say how much there is, and how much room it takes"),
    ]
}

fn client() -> Arg {
    Arg::new("CLIENT").required(true).help("An ID, an unambiguous beginning of one, or a label")
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// For whom the output is.
pub fn format(matches: &ArgMatches) -> Format {
    if matches.get_flag("json") { Format::Programs } else { Format::People }
}

/// What was asked for.
pub fn verb(name: &str, matches: &ArgMatches) -> Verb {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    // Only where clap made sure that it is there.
    let client = || text("CLIENT").unwrap_or_default();
    let device = || text("NAME").unwrap_or_default();
    let file = || text("FILE").unwrap_or_default();
    match name {
        "add-client" => Verb::AddClient(Addition {
            id: matches.get_one("id").copied(),
            label: text("label"),
            if_missing: matches.get_flag("if-missing"),
            qr: matches.get_flag("qr"),
        }),
        "list-clients" => Verb::ListClients {
            sort: sort(&text("sort").unwrap_or_default()),
            reverse: matches.get_flag("reverse"),
        },
        "show-client" => Verb::ShowClient { client: client() },
        "label-client" => Verb::LabelClient { client: client(), label: text("LABEL") },
        "suspend-client" => Verb::SuspendClient { client: client() },
        "resume-client" => Verb::ResumeClient { client: client() },
        "remove-client" => Verb::RemoveClient { client: client(), yes: matches.get_flag("yes") },
        "reset-client" => Verb::ResetClient { client: client(), yes: matches.get_flag("yes") },
        "add-device" => Verb::AddDevice { client: client(), device: device(), qr: matches.get_flag("qr") },
        "list-devices" => Verb::ListDevices { client: client() },
        "remove-device" => {
            Verb::RemoveDevice { client: client(), device: device(), yes: matches.get_flag("yes") }
        }
        "backup" => Verb::Backup { file: file(), yes: matches.get_flag("yes") },
        "verify-backup" => Verb::VerifyBackup { file: file() },
        "copy" => Verb::Copy(Route {
            from: text("from"),
            to: text("to"),
            verify: matches.get_flag("verify"),
            yes: matches.get_flag("yes"),
        }),
        "migrate" => Verb::Migrate { dry_run: matches.get_flag("dry-run") },
        "restore" => Verb::Restore { file: file(), yes: matches.get_flag("yes") },
        "cert" => Verb::Cert(match matches.subcommand_name() {
            Some("renew") => Cert::Renew,
            Some("test") => Cert::Test,
            _ => Cert::Status,
        }),
        "check" => Verb::Check,
        "prune" => Verb::Prune { dry_run: matches.get_flag("dry-run") },
        "stats" => Verb::Stats,
        "audit" => {
            let limit = matches.get_one::<u32>("limit").copied().unwrap_or(u32::MAX);
            Verb::Audit { client: text("CLIENT"), limit: limit as usize }
        }
        verb => unreachable!("clap knows no verb {verb}"),
    }
}

fn sort(name: &str) -> Sort {
    Sort::ALL.iter().find(|(known, _)| *known == name).map_or(Sort::Label, |(_, sort)| *sort)
}
