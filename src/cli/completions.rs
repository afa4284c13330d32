//! Completions for shells, made of the command line itself.

use super::{Refusal, failure};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;

const SHELLS: [(&str, Shell); 3] = [("bash", Shell::Bash), ("fish", Shell::Fish), ("zsh", Shell::Zsh)];

/// `completions`.
pub fn command() -> Command {
    let shell = Arg::new("SHELL").required(true).help("The shell that is to complete");
    Command::new("completions")
        .about("Print the completions for a shell")
        .arg(shell.value_parser(PossibleValuesParser::new(SHELLS.map(|(name, _)| name))))
}

/// The completions for the shell that was asked for.
pub fn print(matches: &ArgMatches, mut command: Command) -> Result<String, Refusal> {
    let name = matches.get_one::<String>("SHELL").map_or("", String::as_str);
    let shell = SHELLS.iter().find(|(known, _)| *known == name).map(|(_, shell)| *shell);
    let Some(shell) = shell else { unreachable!("clap knows no shell {name}") };
    let program = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, program, &mut script);
    let script = String::from_utf8(script);
    let script = script.map_err(|error| failure(format!("the completions are no text: {error}")))?;
    // For bash, clap_complete up to 4.6.11 does not write a program's name with a hyphen alike everywhere,
    // and completes nothing behind a verb (clap-rs/clap#6421).
    Ok(script.replace("sync__subcmd__server", "sync__server"))
}
