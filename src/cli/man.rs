//! The manual: pages made of the table of options and of the command line.

use super::{Refusal, admin, failure};
use crate::admin as operators;
use crate::config::{render, table};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, ValueHint, value_parser};
use roff::{Inline, Roff, bold, roman};
use std::path::{Path, PathBuf};

/// One page of the manual.
struct Page {
    name: &'static str,
    section: &'static str,
    /// What it is about, in one line.
    about: &'static str,
    write: fn(&mut Roff, &Command),
}

const PAGES: [Page; 3] = [
    Page { name: "sync-server", section: "1", about: env!("CARGO_PKG_DESCRIPTION"), write: program },
    Page {
        name: "sync-server-admin",
        section: "8",
        about: "Look after the clients of a sync-server",
        write: verbs,
    },
    Page {
        name: "sync-server.toml",
        section: "5",
        about: "The configuration file of sync-server",
        write: file,
    },
];

/// `man`.
pub fn command() -> Command {
    let page = Arg::new("PAGE").default_value(PAGES[0].name).help("The page to print");
    let out = Arg::new("out").long("out").value_name("DIR").value_parser(value_parser!(PathBuf));
    Command::new("man")
        .about("Print a page of the manual, or write all pages into a directory")
        .arg(page.value_parser(PossibleValuesParser::new(PAGES.map(|page| page.name))))
        .arg(
            out.value_hint(ValueHint::DirPath)
                .help("Write every page into this directory, in files such as sync-server.1, and print none"),
        )
}

/// The page that was asked for; nothing where all are written.
pub fn print(matches: &ArgMatches, command: &Command) -> Result<String, Refusal> {
    if let Some(directory) = matches.get_one::<PathBuf>("out") {
        return write(directory, command).map(|()| String::new());
    }
    let name = matches.get_one::<String>("PAGE").map_or("", String::as_str);
    let Some(page) = PAGES.iter().find(|page| page.name == name) else {
        unreachable!("clap knows no page {name}")
    };
    Ok(text(page, command))
}

fn write(directory: &Path, command: &Command) -> Result<(), Refusal> {
    std::fs::create_dir_all(directory).map_err(|error| {
        failure(format!("cannot make the directory {}: {error}; name another one", directory.display()))
    })?;
    for page in &PAGES {
        let path = directory.join(format!("{}.{}", page.name, page.section));
        std::fs::write(&path, text(page, command))
            .map_err(|error| failure(format!("cannot write {}: {error}", path.display())))?;
    }
    Ok(())
}

fn text(page: &Page, command: &Command) -> String {
    let mut roff = Roff::new();
    let version = format!("sync-server {}", env!("CARGO_PKG_VERSION"));
    // Without a date: the same program always prints the same page.
    roff.control("TH", [page.name, page.section, "\"\"", &version, "sync-server"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{} - {}", page.name, page.about))]);
    (page.write)(&mut roff, command);
    see_also(&mut roff, page.name);
    roff.render()
}

fn program(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold("sync-server"), roman(" [OPTION]... [COMMAND]")]);
    roff.control("SH", ["DESCRIPTION"]);
    prose(
        roff,
        "Keeps the task histories of Taskwarrior 3 and of every other program made with TaskChampion, so that \
         they sync between devices. What it keeps is encrypted on the devices. Without a command it serves.",
    );
    paragraph(
        roff,
        "Every option is a flag, an environment variable, and a key of the configuration file: a flag counts \
         before the environment, the environment before the file, the file before the default. An empty variable \
         is an unset one. Lists are separated by commas.",
    );
    roff.control("SH", ["COMMANDS"]);
    each_verb(roff, "", command);
    roff.control("SH", ["OPTIONS"]);
    for section in table::sections() {
        roff.control("SS", [section]);
        for setting in table::TABLE.iter().filter(|setting| setting.section == section) {
            entry(roff, &render::flag(setting));
            explain(roff, &render::sentence(setting), setting.long, &[&render::names(setting)]);
        }
    }
    files(roff);
    roff.control("SH", ["SIGNALS"]);
    for (signals, meaning) in [
        (
            "SIGTERM, SIGINT",
            "Finish the requests in flight, for at most the time of shutdown.timeout, and exit; a second one \
             exits at once.",
        ),
        ("SIGHUP", "Open the log file anew and take up a new certificate, as `sync-server reload` does."),
    ] {
        entry(roff, signals);
        prose(roff, meaning);
    }
    exits(
        roff,
        &[
            (0, "It was done; the server was told to stop, and did."),
            (
                super::FAILURE,
                "It was understood and did not work: the message says what failed and what helps.",
            ),
            (super::USAGE, "The command line is wrong."),
            (super::CONFIGURATION, "The configuration is wrong; all that is wrong with it is told at once."),
        ],
    );
}

fn verbs(roff: &mut Roff, _: &Command) {
    let command = admin::command();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold("sync-server admin"), roman(" VERB [OPTION]... [ARGUMENT]...")]);
    roff.control("SH", ["DESCRIPTION"]);
    prose(
        roff,
        "The verbs work on the database that flags, environment and configuration file name, as they do for the \
         server, whether that runs or not; a running server obeys at once. Run them as root or as the server's \
         user: root takes the place of the data directory's owner before it touches a file. Which database is \
         used is said on standard error.",
    );
    paragraph(
        roff,
        "CLIENT is a client ID, an unambiguous beginning of one, or a label. Every change is recorded with \
         the local user who made it; `sync-server admin audit` lists them.",
    );
    roff.control("SH", ["VERBS"]);
    each_verb(roff, "", &command);
    roff.control("SH", ["OPTIONS"]);
    for arg in own(&command) {
        argument(roff, arg);
    }
    paragraph(roff, "The options of sync-server(1) are options of every verb too.");
    exits(
        roff,
        &[
            (0, "It was done."),
            (
                operators::FAILURE,
                "It was understood and did not work, or what was looked at is not as it should be.",
            ),
            (operators::USAGE, "The command line is wrong, or what destroys was asked for without --yes."),
            (operators::DAMAGED, "The file is no whole backup."),
            (operators::NO_CLIENT, "No client, or several, answer to that name."),
            (operators::TAKEN, "What was to be made exists: the client, or another one with that label."),
            (
                operators::IN_USE,
                "Something else is going on just now: a server runs, a restore, or another verb.",
            ),
            (operators::NEWER, "A newer version wrote the backup."),
            (operators::NOT_PERMITTED, "Another user may do this."),
            (operators::CONFIGURATION, "The configuration is wrong."),
        ],
    );
}

fn file(roff: &mut Roff, _: &Command) {
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold(table::DEFAULT_FILE)]);
    roff.control("SH", ["DESCRIPTION"]);
    prose(
        roff,
        "A TOML file, read where it exists; `--config` or CONFIG names another one. Keys may be written with dots \
         or in tables: `snapshot.days = 5` is the same as `days = 5` below `[snapshot]`. A key that is unknown, a \
         value that cannot be used and a file that cannot be read are errors; nothing is skipped.",
    );
    paragraph(
        roff,
        "Flags and environment variables count before this file. `sync-server config check` says everything that \
         is wrong with it, `sync-server config show` what holds and who said so, and `sync-server config example` \
         prints one with every option.",
    );
    roff.control("SH", ["OPTIONS"]);
    for section in table::sections() {
        let settings = table::TABLE.iter().filter(|setting| setting.section == section && setting.in_file);
        for (n, setting) in settings.enumerate() {
            if n == 0 {
                roff.control("SS", [section]);
            }
            entry(roff, setting.key);
            let facts = format!("Type: {}; {}", render::type_of(setting), setting.otherwise());
            explain(roff, setting.doc, setting.long, &[&facts, &render::elsewhere(setting)]);
        }
    }
    roff.control("SH", ["CLIENTS"]);
    prose(roff, render::DECLARED);
    roff.control("PP", []);
    roff.control("EX", []);
    for line in render::DECLARED_EXAMPLE.lines() {
        roff.text([roman(line)]);
    }
    roff.control("EE", []);
    files(roff);
}

/// The meaning of one option, below its name, and facts about it on lines of their own.
fn explain(roff: &mut Roff, sentence: &str, long: &str, facts: &[&str]) {
    prose(roff, format!("{sentence}. {long}").trim_end());
    for fact in facts {
        roff.control("br", []);
        prose(roff, fact);
    }
}

/// The verbs below a command, each with what is said of it and its own arguments.
fn each_verb(roff: &mut Roff, before: &str, command: &Command) {
    for verb in command.get_subcommands() {
        let name = format!("{before}{}", verb.get_name());
        // It has a page of its own.
        let is_elsewhere = name == "admin";
        if verb.has_subcommands() && !is_elsewhere {
            each_verb(roff, &format!("{name} "), verb);
            continue;
        }
        let usage = own(verb).map(usage).fold(name, |usage, arg| format!("{usage} {arg}"));
        entry(roff, if is_elsewhere { "admin VERB" } else { &usage });
        prose(roff, &format!("{}.", verb.get_about().map(ToString::to_string).unwrap_or_default()));
        if is_elsewhere {
            prose(roff, "See sync-server-admin(8).");
            continue;
        }
        if own(verb).next().is_some() {
            roff.control("RS", []);
            own(verb).for_each(|arg| argument(roff, arg));
            roff.control("RE", []);
        }
    }
}

/// The arguments that are a command's own, in the order of their declaration.
fn own(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| table::find(arg.get_id().as_str()).is_none())
}

fn argument(roff: &mut Roff, arg: &Arg) {
    entry(roff, &given(arg));
    let choices: Vec<String> =
        arg.get_possible_values().iter().map(|choice| choice.get_name().to_owned()).collect();
    let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let mut text = format!("{}.", arg.get_help().map(ToString::to_string).unwrap_or_default());
    if arg.get_action().takes_values() && !choices.is_empty() {
        text.push_str(&format!(" One of {}.", choices.join(", ")));
    }
    if arg.get_action().takes_values() && !default.is_empty() {
        text.push_str(&format!(" Default: {}.", default.join(", ")));
    }
    prose(roff, &text);
}

fn usage(arg: &Arg) -> String {
    if arg.is_required_set() { given(arg) } else { format!("[{}]", given(arg)) }
}

/// How an argument is typed.
fn given(arg: &Arg) -> String {
    let Some(long) = arg.get_long() else { return arg.get_id().to_string() };
    match arg.get_value_names() {
        Some([name, ..]) => format!("--{long} {name}"),
        _ => format!("--{long}"),
    }
}

fn files(roff: &mut Roff) {
    roff.control("SH", ["FILES"]);
    for (path, meaning) in [
        (table::DEFAULT_FILE, "The configuration, sync-server.toml(5)."),
        (
            "/var/lib/sync-server",
            "The data directory: the database with its -wal and -shm, sync-server.lock, and the control socket. \
             One server at a time may use it.",
        ),
    ] {
        entry(roff, path);
        prose(roff, meaning);
    }
}

fn exits(roff: &mut Roff, codes: &[(u8, &str)]) {
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in codes {
        entry(roff, &code.to_string());
        prose(roff, meaning);
    }
}

fn see_also(roff: &mut Roff, name: &str) {
    roff.control("SH", ["SEE ALSO"]);
    let others = PAGES.iter().filter(|page| page.name != name);
    let others: Vec<String> = others.map(|page| format!("{}({})", page.name, page.section)).collect();
    prose(roff, &others.join(", "));
}

/// What the next text explains.
fn entry(roff: &mut Roff, name: &str) {
    roff.control("TP", []);
    roff.text([bold(name)]);
}

fn paragraph(roff: &mut Roff, text: &str) {
    roff.control("PP", []);
    prose(roff, text);
}

/// A text in which `backquotes` mark what is typed.
fn prose(roff: &mut Roff, text: &str) {
    let part = |(n, part): (usize, &str)| if n % 2 == 0 { roman(part) } else { bold(part) };
    let parts: Vec<Inline> = text.split('`').enumerate().map(part).collect();
    roff.text(parts);
}
