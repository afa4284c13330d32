//! Where the data is kept: the one place that knows which kinds of databases there are.

use super::contents::{Contents, Visit};
use super::registry::Registry;
use super::sqlite::{self, Sqlite};
use super::upkeep::Upkeep;
use super::{Result, Storage};
use crate::config::Migration;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open database, for everyone who has to do with it.
pub trait Database: Storage + Registry + Contents + Upkeep {}

impl<T: Storage + Registry + Contents + Upkeep> Database for T {}

/// A database that may not exist yet.
#[derive(Clone, Debug, PartialEq)]
pub enum Location {
    /// SQLite in this directory.
    Directory(PathBuf),
}

/// What there is of a database before it is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// None.
    Missing,
    /// One of the reference server, of an older release, or empty.
    Older,
    /// One that needs no migration.
    Current,
}

impl Location {
    /// The directory that is this server's alone, where there is one.
    pub fn directory(&self) -> Option<&Path> {
        let Location::Directory(directory) = self;
        Some(directory)
    }

    /// Makes, adopts or migrates the database, closes it again, and returns what the operator should
    /// be warned of.
    ///
    /// `progress` hears what takes long, and an empty text as a mere sign of life.
    pub fn prepare(&self, migration: &Migration, progress: fn(&str)) -> Result<Vec<String>> {
        let Location::Directory(directory) = self;
        Sqlite::prepare(directory, migration, progress)
    }

    /// Looks at the database, and changes nothing.
    ///
    /// # Errors
    /// [`Kind::Newer`](super::Kind::Newer) for one that a newer release wrote, and all that keeps it
    /// from being read.
    pub fn standing(&self) -> Result<Standing> {
        let Location::Directory(directory) = self;
        Sqlite::standing(directory)
    }

    /// Opens the database, which was prepared.
    pub fn open(&self) -> Result<Arc<dyn Database>> {
        let Location::Directory(directory) = self;
        Ok(Arc::new(Sqlite::open(directory)?))
    }

    /// Whether it holds a client or a version, as far as that can be told without opening it.
    pub fn holds_data(&self) -> Result<bool> {
        let Location::Directory(directory) = self;
        Sqlite::holds_data(directory)
    }

    /// Removes what an interrupted restore left; for whoever holds the directory's lock.
    pub fn tidy(&self) -> Result<()> {
        let Location::Directory(directory) = self;
        Sqlite::tidy(directory)
    }

    /// Puts all that `source` visits in the place of what is there, which nobody uses and which is kept
    /// under its name with `suffix` behind; returns where. After an error it is what it was before.
    pub fn replace(
        &self,
        suffix: &str,
        source: &mut dyn FnMut(&mut Visit<'_>) -> Result<()>,
    ) -> Result<Option<String>> {
        let Location::Directory(directory) = self;
        let kept = Sqlite::replace(directory, suffix, source)?;
        Ok(kept.map(|kept| kept.display().to_string()))
    }
}

/// As people are told it; without what is secret.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Location::Directory(directory) = self;
        write!(f, "{}", directory.join(sqlite::FILE_NAME).display())
    }
}
