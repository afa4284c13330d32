//! All that a database holds, as records: a third narrow trait beside [`Storage`](super::Storage),
//! for backups and for moving from one kind of database to another.
//!
//! IDs and bytes are carried verbatim, rows that break the chain too. What can be computed anew,
//! such as sizes and indexes, is left out. Knows neither files nor formats.

use super::Result;
use super::registry::Event;
use crate::protocol::{ClientId, Snapshot, State, VersionId};
use std::collections::{HashMap, HashSet};

/// What is done with each record. Records may borrow from the database or from a reader's buffer.
pub type Visit<'v> = dyn FnMut(Record<'_>) -> Result<()> + 'v;

/// A database that can be taken out whole, and put into an empty one.
pub trait Contents: Send + Sync {
    /// What kind of database it is, in one word.
    fn kind(&self) -> &'static str;

    /// How many bytes [`Contents::export`] will visit, roughly.
    fn extent(&self) -> Result<u64>;

    /// Visits every record of one consistent state, without hindering writers: clients, then
    /// versions in the order in which they were added, then the rest in the order of [`Record`].
    fn export(&self, visit: &mut Visit<'_>) -> Result<()>;

    /// Puts all records that `source` visits into a database that holds no clients and no versions
    /// yet, in one transaction: after `Err` nothing of it remains. Records come in the order of
    /// [`Contents::export`], so that one database can be the other's source.
    fn import(&self, source: &mut dyn FnMut(&mut Visit<'_>) -> Result<()>) -> Result<()>;
}

/// One thing that a database holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Record<'r> {
    /// A client.
    Client(Client<'r>),
    /// A version, be its client there or not.
    Version(Version<'r>),
    /// What an operator decided about a client, be that there or not.
    Decision(Decision),
    /// A device with a credential of its own.
    Device(Device<'r>),
    /// When a client was last used.
    Sync(LastUse),
    /// A change that an operator made.
    Event(Event),
}

/// A client and the snapshot that it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Client<'r> {
    /// Its ID.
    pub client: ClientId,
    /// Its latest version, nil before the first.
    pub latest: VersionId,
    /// The held snapshot with its bytes.
    pub snapshot: Option<(Snapshot, &'r [u8])>,
}

/// A version of a client's history.
#[derive(Clone, Debug, PartialEq)]
pub struct Version<'r> {
    /// Whose it is.
    pub client: ClientId,
    /// Its ID.
    pub id: VersionId,
    /// The version that it follows.
    pub parent: VersionId,
    /// Its history segment.
    pub segment: &'r [u8],
}

/// What an operator decided about a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The client.
    pub client: ClientId,
    /// What the operator calls it.
    pub label: Option<String>,
    /// Whether it may use the server.
    pub state: State,
    /// When it was made, in seconds since 1970.
    pub created: Option<i64>,
}

/// A device with a credential of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Device<'r> {
    /// The client that it may use.
    pub client: ClientId,
    /// Its name.
    pub name: String,
    /// The hash of its token.
    pub token_hash: &'r [u8],
    /// When it was added, in seconds since 1970.
    pub created: i64,
}

/// When a client was last used from one device by one program.
#[derive(Clone, Debug, PartialEq)]
pub struct LastUse {
    /// The client.
    pub client: ClientId,
    /// The device's name, empty where none is known.
    pub device: String,
    /// What the program calls itself.
    pub program: String,
    /// In seconds since 1970.
    pub at: i64,
}

impl Record<'_> {
    /// Roughly how many bytes it takes, wherever it is kept.
    pub fn extent(&self) -> u64 {
        // Three IDs as text and what a database keeps beside them.
        const ROW: u64 = 150;
        let bytes = match self {
            Record::Client(client) => client.snapshot.map_or(0, |(_, bytes)| bytes.len()),
            Record::Version(version) => version.segment.len(),
            Record::Decision(_) | Record::Device(_) | Record::Sync(_) | Record::Event(_) => 0,
        };
        ROW + bytes as u64
    }
}

/// Each version behind the one that it follows: chains from their starts, in the given order where
/// nothing else tells. `ids` gives a version's own and its parent's.
pub fn in_order<L: Copy>(links: Vec<L>, ids: impl Fn(&L) -> (VersionId, VersionId)) -> Vec<L> {
    let all: HashSet<VersionId> = links.iter().map(|link| ids(link).0).collect();
    let mut children: HashMap<VersionId, Vec<L>> = HashMap::new();
    for link in links.iter().rev() {
        children.entry(ids(link).1).or_default().push(*link);
    }
    let mut order = Vec::with_capacity(links.len());
    let mut done = HashSet::with_capacity(links.len());
    // Those that follow nothing that is here come first; what is left is a ring.
    let starts = links.iter().filter(|link| !all.contains(&ids(link).1));
    for start in starts.chain(&links) {
        let mut next = vec![*start];
        while let Some(link) = next.pop() {
            let (id, _) = ids(&link);
            if done.insert(id) {
                order.push(link);
                next.extend(children.get(&id).into_iter().flatten().copied());
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn order(links: &[(u128, u128)]) -> Vec<u128> {
        let id = |n| VersionId::from(Uuid::from_u128(n));
        let mut stored: Vec<_> = links.iter().map(|(new, parent)| (id(*new), id(*parent))).collect();
        stored.sort();
        in_order(stored, |link| *link).iter().map(|(new, _)| new.uuid().as_u128()).collect()
    }

    #[test]
    fn versions_come_in_the_order_of_their_chain_whatever_their_ids() {
        assert_eq!(order(&[(9, 100), (3, 9), (7, 3), (1, 7)]), [9, 3, 7, 1]);
    }

    #[test]
    fn branches_and_rings_come_once_each() {
        assert_eq!(order(&[(1, 0), (2, 1), (3, 1), (5, 6), (6, 5), (4, 2)]), [1, 2, 4, 3, 5, 6]);
    }
}
