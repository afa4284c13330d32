//! Where the data is kept: the one place that knows which kinds of databases there are.

use super::contents::{Contents, Visit};
use super::copying::{Copying, Note};
use super::postgres::{Address, Postgres};
use super::registry::Registry;
use super::sqlite::{self, Sqlite};
use super::upkeep::Upkeep;
use super::{Error, Kind, Result, Storage};
use crate::config::{self, Config, Migration};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open database, for everyone who has to do with it.
pub trait Database: Storage + Registry + Contents + Upkeep + Copying {}

impl<T: Storage + Registry + Contents + Upkeep + Copying> Database for T {}

/// A database that may not exist yet.
#[derive(Clone, Debug, PartialEq)]
pub enum Location {
    /// SQLite in this directory.
    Directory(PathBuf),
    /// A Postgres somewhere, and how it is used.
    Postgres(Box<Address>, config::Postgres),
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
    /// The Postgres that the configuration names, if it does.
    ///
    /// # Errors
    /// What is wrong with the connection string.
    pub fn elsewhere(config: &Config) -> std::result::Result<Option<Location>, String> {
        let Some(connection) = &config.connection else { return Ok(None) };
        let address = Address::parse(&connection.0)
            .map_err(|why| format!("connection: the value (not shown) {why}"))?;
        Ok(Some(Location::Postgres(Box::new(address), config.postgres)))
    }

    /// The Postgres of a connection string, or the directory of that name.
    ///
    /// # Errors
    /// What is wrong with the connection string, without what may be secret in it.
    pub fn parse(text: &str, habits: config::Postgres) -> std::result::Result<Location, String> {
        let is_connection = text.starts_with("postgres://")
            || text.starts_with("postgresql://")
            || text
                .split_once('=')
                .is_some_and(|(word, _)| word.trim().bytes().all(|byte| byte.is_ascii_lowercase()));
        if !is_connection {
            return Ok(Location::Directory(PathBuf::from(text)));
        }
        let address = Address::parse(text)?;
        Ok(Location::Postgres(Box::new(address), habits))
    }

    /// What says that this database is a copy which nobody has begun to use.
    pub fn copied(&self) -> Result<Option<Note>> {
        if self.standing()? == Standing::Missing {
            return Ok(None);
        }
        self.open()?.note()
    }

    /// For a server that begins: a copy becomes a database of its own, unless it is not whole.
    pub fn take_over(&self) -> Result<()> {
        // Without a pool, whose threads a fork would lose.
        let unfinished = match self {
            Location::Directory(directory) => Sqlite::take_over(directory)?,
            Location::Postgres(address, habits) => Postgres::take_over(address, *habits)?,
        };
        match unfinished {
            None => Ok(()),
            Some(note) => Err(Error::new(
                Kind::Unavailable,
                format!(
                    "{self} is a copy of {} that is not whole: run `sync-server admin copy` to its end before it is used",
                    note.original
                ),
            )),
        }
    }

    /// Who else uses a database elsewhere just now: how many connections servers of this program have.
    pub fn users(&self) -> Result<u64> {
        match self {
            Location::Directory(_) => Ok(0),
            Location::Postgres(address, habits) => Postgres::users(address, *habits),
        }
    }

    /// The directory that is this server's alone, where there is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Location::Directory(directory) => Some(directory),
            Location::Postgres(..) => None,
        }
    }

    /// Makes, adopts or migrates the database, closes it again, and returns what the operator should
    /// be warned of. With `migrates` off, one that would have to be changed is an error.
    ///
    /// `progress` hears what takes long, and an empty text as a mere sign of life.
    pub fn prepare(&self, migrates: bool, migration: &Migration, progress: fn(&str)) -> Result<Vec<String>> {
        match self {
            Location::Directory(directory) => {
                if !migrates && self.standing()? != Standing::Current {
                    return Err(Error::new(
                        Kind::Unavailable,
                        format!(
                            "{self} is missing or that of another release, and migrate is off: run `sync-server admin \
                             migrate`"
                        ),
                    ));
                }
                Sqlite::prepare(directory, migration, progress)
            }
            Location::Postgres(address, habits) => Postgres::prepare(address, *habits, migrates, progress),
        }
    }

    /// Looks at the database, and changes nothing.
    ///
    /// # Errors
    /// [`Kind::Newer`] for one that a newer release wrote, and all that keeps it from being read.
    pub fn standing(&self) -> Result<Standing> {
        match self {
            Location::Directory(directory) => Sqlite::standing(directory),
            Location::Postgres(address, habits) => Postgres::standing(address, *habits),
        }
    }

    /// The SQL that [`Location::prepare`] would run; empty where there is none.
    pub fn pending(&self) -> Result<String> {
        match self {
            Location::Directory(directory) => Sqlite::pending(directory),
            Location::Postgres(address, habits) => Postgres::pending(address, *habits),
        }
    }

    /// Opens the database, which was prepared.
    pub fn open(&self) -> Result<Arc<dyn Database>> {
        Ok(match self {
            Location::Directory(directory) => Arc::new(Sqlite::open(directory)?),
            Location::Postgres(address, habits) => Arc::new(Postgres::open(address, *habits)?),
        })
    }

    /// Whether it holds a client or a version.
    pub fn holds_data(&self) -> Result<bool> {
        match self {
            Location::Directory(directory) => Sqlite::holds_data(directory),
            Location::Postgres(address, habits) => match self.standing()? {
                Standing::Missing => Ok(false),
                _ => Postgres::open(address, *habits)?.holds_data(),
            },
        }
    }

    /// Removes what an interrupted restore left; for whoever holds the directory's lock.
    pub fn tidy(&self) -> Result<()> {
        match self {
            Location::Directory(directory) => Sqlite::tidy(directory),
            // There it was one transaction.
            Location::Postgres(..) => Ok(()),
        }
    }

    /// Puts all that `source` visits in the place of what is there, which nobody uses and which is kept
    /// under its name with `suffix` behind; returns where. After an error it is what it was before.
    ///
    /// In Postgres nothing can be put aside: there must be no clients and no versions.
    pub fn replace(
        &self,
        suffix: &str,
        source: &mut dyn FnMut(&mut Visit<'_>) -> Result<()>,
    ) -> Result<Option<String>> {
        match self {
            Location::Directory(directory) => {
                let kept = Sqlite::replace(directory, suffix, source)?;
                Ok(kept.map(|kept| kept.display().to_string()))
            }
            Location::Postgres(address, habits) => {
                Postgres::prepare(address, *habits, true, |_| ())?;
                Postgres::open(address, *habits)?.import(source).map(|()| None)
            }
        }
    }
}

/// As people are told it; without what is secret.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(directory) => write!(f, "{}", directory.join(sqlite::FILE_NAME).display()),
            Location::Postgres(address, _) => write!(f, "{address}"),
        }
    }
}
