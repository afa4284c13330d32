//! The command line.

use clap::{Arg, ArgAction, ArgMatches, Command};
use std::time::Duration;

/// What to measure, and on which servers.
pub struct Options {
    /// The servers in the order of their columns.
    pub subjects: Vec<Subject>,
    /// Beginnings of the names of the measurements to run; empty: all.
    pub only: Vec<String>,
    /// How long a load lasts, its warm-up apart.
    pub length: Duration,
    /// How often each measurement is made; the median counts.
    pub rounds: usize,
    /// Versions in the database of the measurement with a large one.
    pub versions: usize,
    /// Clients in the database of the measurement of first syncs.
    pub clients: usize,
    /// Whether servers keep their data in a Postgres, which is started for this run.
    pub postgres: bool,
    /// Whether to say only which measurements there are.
    pub list: bool,
}

/// A server to measure.
pub struct Subject {
    pub name: String,
    pub how: How,
}

/// How a server comes to run.
pub enum How {
    /// This package's own program, built for this run.
    Own,
    /// A command with `{port}` and `{dir}` in it, split at spaces.
    Command(String),
    /// It runs already, at this URL.
    Runs(String),
}

impl Options {
    /// Reads the command line; ends the process where it cannot be understood.
    pub fn parse() -> Options {
        let matches = command().get_matches();
        let subjects = subjects(&matches);
        if subjects.is_empty() {
            command().error(clap::error::ErrorKind::MissingRequiredArgument, "no server to measure").exit();
        }
        let number = |name: &str| *matches.get_one::<usize>(name).expect("it has a default");
        Options {
            subjects,
            only: texts(&matches, "only"),
            length: Duration::from_secs_f64(*matches.get_one::<f64>("seconds").expect("it has a default")),
            rounds: number("rounds").max(1),
            versions: number("versions"),
            clients: number("clients"),
            postgres: matches.get_flag("postgres"),
            list: matches.get_flag("list"),
        }
    }
}

fn command() -> Command {
    let size = || clap::value_parser!(usize);
    Command::new("speed")
        .about("Measures servers that speak the sync protocol, side by side")
        .arg(many("compare", "NAME=COMMAND", "Measure another server too; {port} and {dir} are filled in"))
        .arg(many("address", "[NAME=]URL", "Measure a server that runs already"))
        .arg(flag("without-own", "Leave out this package's own program"))
        .arg(many("only", "NAMES", "Measure only what begins with one of these").value_delimiter(','))
        .arg(one("seconds", "5", "Length of each load").value_parser(length))
        .arg(
            one("rounds", "1", "Measure so often, the servers in turns, and take medians")
                .value_parser(size()),
        )
        .arg(one("versions", "500000", "Versions in a large database").value_parser(size()))
        .arg(one("clients", "100000", "Clients in a large database").value_parser(size()))
        .arg(flag(
            "postgres",
            "Start a Postgres, and a database in it for each server: {connection} for --compare",
        ))
        .arg(flag("list", "List the measurements"))
        .arg(flag("bench", "Given by cargo").hide(true))
}

fn many(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help).action(ArgAction::Append)
}

fn one(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("N").default_value(default).help(help)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

/// A tenth of a second to ten minutes.
fn length(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=600.0).contains(&seconds) { Ok(seconds) } else { Err("not within 0.1 and 600".to_owned()) }
}

fn subjects(matches: &ArgMatches) -> Vec<Subject> {
    let own = Subject { name: "sync-server".to_owned(), how: How::Own };
    let mut subjects = if matches.get_flag("without-own") { Vec::new() } else { vec![own] };
    for text in texts(matches, "compare") {
        let Some((name, line)) = text.split_once('=') else {
            command().error(clap::error::ErrorKind::InvalidValue, "--compare takes NAME=COMMAND").exit();
        };
        subjects.push(Subject { name: name.to_owned(), how: How::Command(line.to_owned()) });
    }
    for text in texts(matches, "address") {
        let (name, url) = text.split_once('=').unwrap_or(("address", &text));
        subjects.push(Subject { name: name.to_owned(), how: How::Runs(url.to_owned()) });
    }
    subjects
}

fn texts(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).unwrap_or_default().cloned().collect()
}
