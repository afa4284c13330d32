//! What a database is asked about its own health: a fourth narrow trait beside
//! [`Storage`](super::Storage).
//!
//! Each method looks at one consistent state, and lets go of it before the next, so that a look at
//! everything never holds up what the database does at its leisure. Knows what is there; knows
//! neither what is wrong with it nor what to do.

use super::Result;
use crate::protocol::{ClientId, State, VersionId};

/// A database that can be looked over while it is used. Nothing here changes it.
pub trait Upkeep: Send + Sync {
    /// How much room the database takes.
    fn measure(&self) -> Result<Measures>;

    /// Looks for damage by the database's own means, and for IDs that are none. `go_on` is asked a
    /// few times a second.
    fn examine(&self, go_on: &mut dyn FnMut() -> bool) -> Result<Examination>;

    /// Every client of which there is anything: those that exist, and those that only versions or an
    /// operator's decision name. Ordered by ID.
    fn holders(&self) -> Result<Vec<Holder>>;

    /// The versions of a client, in any order. None where there is nothing of it.
    fn chain(&self, client: ClientId) -> Result<Chain>;
}

/// How much room a database takes, in bytes; `None` where its kind has no such thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measures {
    /// The database itself.
    pub database: u64,
    /// What was written and is not yet part of it.
    pub wal: Option<u64>,
    /// What is free inside and will be used again.
    pub unused: Option<u64>,
    /// The schema's version.
    pub schema: i64,
    /// When this program took the database over, or made it; in seconds since 1970.
    pub adopted: i64,
}

/// What a look for damage found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examination {
    /// What is damaged, in the database's own words. Not all, where there is much.
    pub flaws: Vec<String>,
    /// Why the look ended before its end.
    pub unfinished: Option<String>,
}

/// A client of which there is something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its ID.
    pub client: ClientId,
    /// What the operator calls it.
    pub label: Option<String>,
    /// Whether it exists, and not only what belongs to it.
    pub exists: bool,
}

/// The versions of a client and what it says of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Whether the client exists.
    pub exists: bool,
    /// Whether it may use the server.
    pub state: State,
    /// The latest version, nil before the first.
    pub latest: VersionId,
    /// The version of the held snapshot.
    pub snapshot: Option<VersionId>,
    /// What that snapshot holds, in bytes.
    pub snapshot_bytes: u64,
    /// Every version of the client.
    pub links: Vec<Link>,
}

/// One version of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// Its ID.
    pub version: VersionId,
    /// The version that it follows.
    pub parent: VersionId,
    /// What its segment holds, in bytes.
    pub bytes: u64,
}

impl Chain {
    /// What there is of a client of which there is nothing.
    pub const NONE: Chain = Chain {
        exists: false,
        state: State::Active,
        latest: VersionId::NIL,
        snapshot: None,
        snapshot_bytes: 0,
        links: Vec::new(),
    };
}
