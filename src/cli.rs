//! The command line: flags made of the table of options, and one function for each verb.

mod admin;
mod completions;
mod man;

use crate::admin::{self as operators, Format};
use crate::config::setting::{Setting, Shape};
use crate::config::{self, Config, Environment, Flags, Resolved, file, place, render, table};
use crate::{control, healthcheck, lifecycle, tls};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// What the program was asked in words that it does not know.
const USAGE: u8 = 64;
/// The configuration is wrong.
const CONFIGURATION: u8 = 78;
/// It was understood and did not work.
const FAILURE: u8 = 1;

/// Where systemd puts the service's credentials.
const CREDENTIALS: &str = "/run/credentials/sync-server.service";

/// Why a verb did not do what it was asked: lines for standard error, and the exit code.
struct Refusal {
    lines: Vec<String>,
    exit_code: u8,
}

/// Does what the arguments say, with these environment variables, and prints what came of it.
pub fn run(
    args: impl IntoIterator<Item = OsString>,
    vars: impl IntoIterator<Item = (OsString, OsString)>,
) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let matches = match command().try_get_matches_from(&args) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() && args.iter().any(|arg| arg == "--json") => {
            let message = error.to_string();
            operators::complain(message.trim_start_matches("error: ").trim_end(), None, Format::Programs);
            return ExitCode::from(USAGE);
        }
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    if let Some(("admin", matches)) = matches.subcommand() {
        return administer(matches, Environment::new(vars));
    }
    match act(&matches, &Environment::new(vars)) {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(refusal) => {
            for line in &refusal.lines {
                eprintln!("error: {line}");
            }
            ExitCode::from(refusal.exit_code)
        }
    }
}

/// The whole command line.
pub fn command() -> Command {
    let verbs = [
        Command::new("serve").about("Run the server (as without a command)"),
        Command::new("config")
            .about("Check or show the configuration")
            .subcommand_required(true)
            .arg_required_else_help(true)
            .subcommand(Command::new("check").about("Say everything that is wrong with the configuration"))
            .subcommand(Command::new("show").about("Show what holds for every option, and who said so"))
            .subcommand(Command::new("example").about("Print a configuration file with every option")),
        Command::new("healthcheck")
            .about("Ask the running server whether it is ready; exits with 0 or 1")
            .arg(Arg::new("URL").help("What to ask instead of the configured listener's /readyz")),
        Command::new("reload").about("Make the running server take up a new log file and certificate"),
        admin::command(),
        completions::command(),
        man::command(),
    ];
    Command::new("sync-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .args(table::TABLE.iter().map(arg))
        .subcommands(verbs)
}

/// The flag of one option.
fn arg(setting: &Setting) -> Arg {
    let arg = Arg::new(setting.key)
        .long(setting.flag())
        .short(setting.names.short)
        .global(true)
        .help_heading(setting.section)
        .value_name(setting.kind.name)
        .value_parser(value_parser!(String))
        .help(render::help(setting))
        .long_help(render::long_help(setting));
    let hint = if setting.kind.names_file { ValueHint::AnyPath } else { ValueHint::Other };
    match setting.kind.shape {
        // A number below zero is no flag: what is wrong with it is for the option to say.
        Shape::One => arg.action(ArgAction::Set).allow_negative_numbers(true).value_hint(hint),
        Shape::List => arg.action(ArgAction::Append).allow_negative_numbers(true).value_hint(hint),
        Shape::Switch => {
            arg.action(ArgAction::Set).num_args(0..=1).require_equals(true).default_missing_value("true")
        }
        Shape::Off => arg.action(ArgAction::Set).num_args(0).default_missing_value("false"),
    }
}

/// Does what was asked and gives the text to print.
fn act(matches: &ArgMatches, environment: &Environment) -> Result<String, Refusal> {
    match matches.subcommand() {
        None => serve(matches, environment),
        Some(("serve", matches)) => serve(matches, environment),
        Some(("reload", matches)) => reload(matches, environment),
        Some(("healthcheck", matches)) => check_health(matches, environment),
        Some(("config", matches)) => match matches.subcommand() {
            Some(("check", matches)) => check(matches, environment),
            Some(("show", matches)) => show(matches, environment),
            _ => Ok(render::example()),
        },
        Some(("completions", matches)) => completions::print(matches, command()),
        Some(("man", matches)) => man::print(matches, &command()),
        Some((verb, _)) => unreachable!("clap knows no verb {verb}"),
    }
}

/// Does what an operator asked; the verb prints what came of it.
fn administer(matches: &ArgMatches, environment: Environment) -> ExitCode {
    let Some((name, matches)) = matches.subcommand() else { unreachable!("clap wants a verb") };
    let format = admin::format(matches);
    let environment = with_credentials(environment);
    match resolve(matches, &environment) {
        resolved if name == admin::DOCTOR => {
            let config = match &resolved {
                Ok(resolved) => Ok(&resolved.config),
                Err(refusal) => Err(&refusal.lines[..]),
            };
            ExitCode::from(operators::doctor::run(config, &environment, format))
        }
        Ok(resolved) => {
            let verb = admin::verb(name, matches);
            ExitCode::from(operators::run(&verb, &resolved.config, &environment, format))
        }
        Err(refusal) => {
            operators::complain(&refusal.lines.join("\n"), None, format);
            ExitCode::from(refusal.exit_code)
        }
    }
}

/// Root's shell is not started by the service manager, but may read what that gives to the service.
fn with_credentials(environment: Environment) -> Environment {
    let is_root = rustix::process::geteuid().is_root();
    if is_root && Path::new(CREDENTIALS).is_dir() {
        environment.or("CREDENTIALS_DIRECTORY", CREDENTIALS)
    } else {
        environment
    }
}

fn serve(matches: &ArgMatches, environment: &Environment) -> Result<String, Refusal> {
    let config = resolve(matches, environment)?.config;
    if config.daemonize && environment.var("NOTIFY_SOCKET").is_some() {
        let line = "daemonize: a service manager (NOTIFY_SOCKET is set) wants the program in the foreground; leave \
                    --daemonize out";
        return Err(Refusal { lines: vec![line.to_owned()], exit_code: USAGE });
    }
    keep_log(&config)?;
    match lifecycle::serve(config, environment) {
        Ok(()) => Ok(String::new()),
        Err(failure) if failure.is_told => Err(Refusal { lines: Vec::new(), exit_code: failure.exit_code }),
        Err(failure) => {
            let lines = failure.message.lines().map(str::to_owned).collect();
            Err(Refusal { lines, exit_code: failure.exit_code })
        }
    }
}

/// Refuses what would lose the log: a process in the background has no terminal.
fn keep_log(config: &Config) -> Result<(), Refusal> {
    if config.daemonize && config.log.file.is_none() {
        let line = "daemonize: standard error is closed in the background; give log.file (LOG_FILE) as well";
        return Err(Refusal { lines: vec![line.to_owned()], exit_code: CONFIGURATION });
    }
    Ok(())
}

fn reload(matches: &ArgMatches, environment: &Environment) -> Result<String, Refusal> {
    let config = resolve(matches, environment)?.config;
    control::ask(&config, environment, "reload").map(line).map_err(failure)
}

fn check_health(matches: &ArgMatches, environment: &Environment) -> Result<String, Refusal> {
    let config = resolve(matches, environment)?.config;
    let url = matches.get_one::<String>("URL").map(String::as_str);
    healthcheck::run(url, &config).map(|()| String::new()).map_err(failure)
}

fn check(matches: &ArgMatches, environment: &Environment) -> Result<String, Refusal> {
    let config = resolve(matches, environment)?.config;
    keep_log(&config)?;
    let data_dir = place::data_dir(&config, environment)
        .map_err(|problem| Refusal { lines: vec![problem], exit_code: CONFIGURATION })?;
    let certificate = tls::Acceptor::load(&config, &data_dir)
        .map_err(|problem| Refusal { lines: vec![problem], exit_code: CONFIGURATION })?;
    let doubts = certificate.into_iter().flat_map(|(_, report)| report.warnings);
    let doubts: String = doubts.map(|doubt| format!("warning: {doubt}\n")).collect();
    Ok(format!("{}{doubts}ok\n", warnings(&config)))
}

fn show(matches: &ArgMatches, environment: &Environment) -> Result<String, Refusal> {
    let resolved = resolve(matches, environment)?;
    let data_dir = match place::data_dir(&resolved.config, environment) {
        Ok(dir) => format!("# data directory used: {}\n", dir.display()),
        Err(problem) => format!("# error: {problem}\n"),
    };
    Ok(format!("{}{data_dir}", render::effective(&resolved)))
}

fn warnings(config: &Config) -> String {
    config.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect()
}

/// The configuration of all sources.
fn resolve(matches: &ArgMatches, environment: &Environment) -> Result<Resolved, Refusal> {
    let cwd = std::env::current_dir().map_err(|error| {
        failure(format!("cannot tell the working directory: {error}; start in another one"))
    })?;
    let sources = file::gather(flags(matches), environment.clone(), cwd, Path::new(table::DEFAULT_FILE));
    config::resolve(&sources).map_err(|lines| Refusal { lines, exit_code: CONFIGURATION })
}

/// What was typed, by option.
fn flags(matches: &ArgMatches) -> Flags {
    let typed = |setting: &&Setting| matches.value_source(setting.key) == Some(ValueSource::CommandLine);
    let values = |setting: &Setting| matches.get_many(setting.key).into_iter().flatten().cloned().collect();
    table::TABLE.iter().filter(typed).map(|setting| (setting.key, values(setting))).collect()
}

fn failure(line: String) -> Refusal {
    Refusal { lines: vec![line], exit_code: FAILURE }
}

fn line(text: String) -> String {
    if text.is_empty() { text } else { format!("{text}\n") }
}

/// Prints, and does not mind a reader that has gone, as `head` does.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
