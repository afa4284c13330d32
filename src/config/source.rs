//! What a configuration is made of, and where each value came from.

use super::Environment;
use super::file::File;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The values of the flags that were given, by the key of their option.
pub type Flags = BTreeMap<&'static str, Vec<String>>;

/// Everything that a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The flags.
    pub flags: Flags,
    /// The environment.
    pub environment: Environment,
    /// The configuration file.
    pub file: Option<File>,
    /// Files that hold one secret each.
    pub secrets: Vec<Secret>,
    /// The directory from which relative paths are meant.
    pub cwd: PathBuf,
}

/// A file that holds one secret.
#[derive(Clone, Debug)]
pub struct Secret {
    /// The key of its option.
    pub key: &'static str,
    /// Who named the file.
    pub origin: Origin,
    /// The file, and whether everyone on the machine may read it.
    pub file: File,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag, with its dashes.
    Flag(String),
    /// An environment variable.
    Environment(String),
    /// A file that an environment variable names.
    SecretFile(String, PathBuf),
    /// A file in $CREDENTIALS_DIRECTORY.
    Credential(PathBuf),
    /// A line of the configuration file, counted from 1.
    File(PathBuf, usize),
    /// Nobody gave one.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => write!(f, "flag {flag}"),
            Origin::Environment(variable) => write!(f, "environment {variable}"),
            Origin::SecretFile(variable, path) => {
                write!(f, "environment {variable}, file {}", path.display())
            }
            Origin::Credential(path) => write!(f, "credential {}", path.display()),
            Origin::File(path, line) => write!(f, "{} line {line}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}
