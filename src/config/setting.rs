//! What an option is: its names, what its values look like, what it means.

use super::Config;
use std::path::Path;

/// One option. Its names are derived from its key: `snapshot.days` is SNAPSHOT_DAYS and
/// `--snapshot-days`.
pub struct Setting {
    /// The name in the configuration file.
    pub key: &'static str,
    /// The heading under which it is explained.
    pub section: &'static str,
    /// What a value of it looks like.
    pub kind: &'static Kind,
    /// The value where nobody gives one.
    pub default: Option<&'static str>,
    /// What holds where nobody gives a value and there is no default.
    pub unset: &'static str,
    /// A value for the example file where there is no default.
    pub example: &'static str,
    /// Whether the value is a secret: it is never shown, and it may be given in a file of its own.
    pub secret: bool,
    /// Whether the configuration file may hold it.
    pub in_file: bool,
    /// Names that the rule does not give.
    pub names: Names,
    /// One sentence.
    pub doc: &'static str,
    /// What else there is to know, in whole sentences.
    pub long: &'static str,
    /// Puts one value into the configuration and gives its canonical text; relative paths are
    /// meant from the given directory. Called once for each value of a list.
    pub set: fn(&mut Config, &str, &Path) -> Result<String, String>,
}

/// Names that the rule does not give, most of them the reference server's.
#[derive(Clone, Copy)]
pub struct Names {
    /// The flag's letter.
    pub short: Option<char>,
    /// The flag's name, instead of the derived one.
    pub long: Option<&'static str>,
    /// The environment variable, instead of the derived one.
    pub variable: Option<&'static str>,
    /// A second environment variable, which counts where the first is unset.
    pub alias: Option<&'static str>,
}

/// What a value looks like.
pub struct Kind {
    /// The placeholder behind the flag.
    pub name: &'static str,
    /// What to give, for people: "a size such as 100MiB".
    pub expects: &'static str,
    /// How many values there are and how the flag is given.
    pub shape: Shape,
    /// Whether the file has it without quotes.
    pub bare: bool,
    /// Whether it is the path of a file or a directory.
    pub names_file: bool,
}

/// How many values an option has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Exactly one.
    One,
    /// One or more, separated by commas or given several times.
    List,
    /// True or false; the flag alone means true.
    Switch,
    /// True or false; the flag alone means false, and takes no value.
    Off,
}

impl Setting {
    /// The flag without its dashes.
    pub fn flag(&self) -> String {
        self.names.long.map_or_else(|| self.key.replace(['.', '_'], "-"), str::to_owned)
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        self.names.variable.map_or_else(|| self.key.replace('.', "_").to_ascii_uppercase(), str::to_owned)
    }

    /// The environment variable that names a file with the value; only secrets have one.
    pub fn file_variable(&self) -> Option<String> {
        self.secret.then(|| format!("{}_FILE", self.variable()))
    }

    /// The name of the file in $CREDENTIALS_DIRECTORY that holds the value; only secrets have one.
    pub fn credential(&self) -> Option<String> {
        self.secret.then(|| self.variable().to_ascii_lowercase())
    }

    /// What holds where nobody gives a value, for people.
    pub fn otherwise(&self) -> String {
        format!("default: {}", self.default.unwrap_or(self.unset))
    }
}
