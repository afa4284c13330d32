//! One database made the copy of another: what is missing there is carried, what is too much goes.
//!
//! Both are gone through side by side, in the order of IDs, and only what differs is looked at. No
//! transaction is longer than a few megabytes or one body, so that the original may be in use meanwhile;
//! what changes there behind our back comes with the next run. Knows neither which databases these are
//! nor who asks.

use crate::protocol::{ClientId, VersionId};
use crate::storage::contents::in_order;
use crate::storage::copying::{Carried, Copying, Holding, Note, Row, Segment, With};
use crate::storage::location::Database;
use crate::storage::upkeep::{Chain, Link};
use crate::storage::{Body, Error, Kind, Result, Storage};
use ring::digest::{Context, Digest, SHA256};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use uuid::Uuid;

/// IDs that are looked at together.
const PAGE: usize = 500;

/// Versions that are carried together, and about how many bytes of them.
const ROWS: usize = 256;
const BYTES: u64 = 4 * 1024 * 1024;

/// Bytes of a snapshot that are read at once to be compared.
const PIECE: usize = 1024 * 1024;

/// How often a client is begun again that changes while it is carried, and the first pause between.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(5);

/// A copy to be made.
pub struct Copy<'d> {
    /// What is copied.
    pub source: &'d dyn Database,
    /// What becomes the copy.
    pub target: &'d dyn Database,
    /// Whose this run is.
    pub run: Uuid,
    /// Whether everything is compared byte by byte, not only what this run carries.
    pub verifies_all: bool,
}

/// Why a database cannot become the copy of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It holds something, and is no copy.
    HoldsData,
    /// It is the copy of this one, of which the source is none.
    OfAnother(String),
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Clients and versions that the copy has now.
    pub clients: u64,
    pub versions: u64,
    /// IDs under which something was different.
    pub changed: u64,
    /// Versions that were carried, and their bytes with those of the snapshots.
    pub carried: u64,
    pub bytes: u64,
    /// Versions that were removed, for they are gone from the source.
    pub removed: u64,
    /// Versions and snapshots that were read in both databases, and had the same bytes.
    pub verified: u64,
}

/// How far it is: so many clients and versions more, of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub more: u64,
    pub of: u64,
}

/// Looks whether `target` may be made a copy of `source`; returns the note that it gets. `run` is the
/// recorded change that this run begins with.
pub fn note(
    source: &dyn Copying,
    target: &dyn Copying,
    run: Uuid,
    original: String,
) -> Result<std::result::Result<Note, Obstacle>> {
    let origin = match target.note()? {
        Some(note) if source.has_event(note.origin)? => note.origin,
        Some(note) => return Ok(Err(Obstacle::OfAnother(note.original))),
        None if target.holdings(None, 1)?.is_empty() => run,
        None => return Ok(Err(Obstacle::HoldsData)),
    };
    Ok(Ok(Note { origin, run, is_finished: false, original }))
}

/// Makes `target`, which has the note, hold what `source` holds.
pub fn run(copy: &Copy, watch: &mut dyn FnMut(Step)) -> Result<Copied> {
    let (clients, versions) = copy.source.census()?;
    let of = clients + versions;
    let mut copied = Copied::default();
    let (mut there, mut here) = (Pages::of(copy.source), Pages::of(copy.target));
    while let Some(id) = there.next_id()?.into_iter().chain(here.next_id()?).min() {
        let (there, here) = (there.take(id), here.take(id));
        let is_same = there == here;
        if !is_same {
            copied.changed += 1;
        }
        let (clients, versions) =
            if !is_same || copy.verifies_all { copy.settle(here, &mut copied)? } else { extent_of(&there) };
        copied.clients += clients;
        copied.versions += versions;
        watch(Step { more: clients + versions, of });
    }
    let found = copy.target.census()?;
    if found != (copied.clients, copied.versions) {
        let message = format!(
            "the copy has {} clients with {} versions, and there should be {} with {}: run it again",
            found.0, found.1, copied.clients, copied.versions
        );
        return Err(Error::new(Kind::Other, message));
    }
    copy.target.finish_copy(copy.run, copy.source.measure()?.adopted)?;
    Ok(copied)
}

/// What tells one held snapshot from another; `None` without a client.
fn snapshot_facts(holding: &Holding) -> Option<Option<(VersionId, i64, u64)>> {
    let facts = |row: Row| row.snapshot.map(|(held, bytes)| (held.version, held.timestamp, bytes));
    holding.client.map(facts)
}

fn extent_of(holding: &Holding) -> (u64, u64) {
    (u64::from(holding.client.is_some()), holding.versions)
}

/// The holdings of one side, one after the other.
struct Pages<'d> {
    database: &'d dyn Database,
    page: VecDeque<Holding>,
    after: Option<Uuid>,
    /// What is written behind the end meanwhile is not looked at.
    is_over: bool,
}

impl<'d> Pages<'d> {
    fn of(database: &'d dyn Database) -> Pages<'d> {
        Pages { database, page: VecDeque::new(), after: None, is_over: false }
    }

    fn next_id(&mut self) -> Result<Option<Uuid>> {
        if self.page.is_empty() && !self.is_over {
            self.page = self.database.holdings(self.after, PAGE)?.into();
            self.is_over = self.page.is_empty();
            self.after = self.page.back().map_or(self.after, |holding| Some(holding.id));
        }
        Ok(self.page.front().map(|holding| holding.id))
    }

    /// What is kept under this ID, which is the next or comes before it.
    fn take(&mut self, id: Uuid) -> Holding {
        match self.page.pop_front_if(|holding| holding.id == id) {
            Some(holding) => holding,
            None => Holding::none(id),
        }
    }
}

/// One state of what the source keeps under an ID, its versions in their order.
struct State {
    holding: Holding,
    links: Vec<Link>,
}

/// What one attempt at an ID came to.
enum Attempt {
    /// It is the same now, and so many clients and versions.
    Done((u64, u64)),
    /// The source changed meanwhile.
    Changed,
}

impl Copy<'_> {
    /// Makes what is under an ID the same, begun again while the source changes. `here` is what the copy
    /// has there.
    fn settle(&self, here: Holding, copied: &mut Copied) -> Result<(u64, u64)> {
        let (id, mut here, mut pause) = (here.id, Some(here), PAUSE);
        for _ in 0..ATTEMPTS {
            let known = here.take().map_or_else(|| self.target.holding(id), Ok)?;
            if let Attempt::Done(extent) = self.attempt(&known, copied)? {
                return Ok(extent);
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
        let client = ClientId::from(id);
        let message = format!(
            "client {client:?} changed every time that it was about to be copied: run this again at a quieter time"
        );
        Err(Error::new(Kind::Other, message))
    }

    fn attempt(&self, here: &Holding, copied: &mut Copied) -> Result<Attempt> {
        let Some(state) = State::of(self.source, here.id)? else { return Ok(Attempt::Changed) };
        let client = ClientId::from(here.id);
        let mut missing: HashSet<VersionId> = HashSet::new();
        let mut with_snapshot = self.verifies_all;
        if *here != state.holding {
            let known: HashSet<Link> = match here.versions {
                0 => HashSet::new(),
                _ => self.target.chain(client)?.links.into_iter().collect(),
            };
            missing =
                state.links.iter().filter(|link| !known.contains(link)).map(|link| link.version).collect();
            copied.removed += self.remove(client, &state.links, &known)?;
            let Some(last) = self.carry(client, &state.links, &missing, copied)? else {
                return Ok(Attempt::Changed);
            };
            match self.put_rest(here, &state.holding, last, copied)? {
                Some(carried) => with_snapshot |= carried,
                None => return Ok(Attempt::Changed),
            }
        }
        let verifies = |link: &&Link| self.verifies_all || missing.contains(&link.version);
        let links: Vec<Link> = state.links.iter().filter(verifies).copied().collect();
        match self.verify(&state.holding, &links, with_snapshot)? {
            Some(verified) => copied.verified += verified,
            None => return Ok(Attempt::Changed),
        }
        Ok(Attempt::Done(extent_of(&state.holding)))
    }

    /// Removes from the copy what the source does not have.
    fn remove(&self, client: ClientId, links: &[Link], known: &HashSet<Link>) -> Result<u64> {
        let wanted: HashSet<&Link> = links.iter().collect();
        let surplus: Vec<VersionId> =
            known.iter().filter(|link| !wanted.contains(link)).map(|link| link.version).collect();
        for versions in surplus.chunks(ROWS) {
            self.target.remove_versions(self.run, client, versions)?;
        }
        Ok(surplus.len() as u64)
    }

    /// Carries versions in their order, up to the last few, which it returns; `None` where one of them has
    /// gone from the source.
    fn carry(
        &self,
        client: ClientId,
        links: &[Link],
        missing: &HashSet<VersionId>,
        copied: &mut Copied,
    ) -> Result<Option<Vec<Segment>>> {
        let links: Vec<Link> = links.iter().filter(|link| missing.contains(&link.version)).copied().collect();
        let mut last = Vec::new();
        for batch in batches(&links) {
            if !last.is_empty() {
                self.target.put_versions(self.run, client, &last)?;
                // One batch is in memory at a time.
                last.clear();
            }
            last = match segments(self.source, client, batch)? {
                Some(segments) => segments,
                None => return Ok(None),
            };
            copied.carried += last.len() as u64;
            copied.bytes += last.iter().map(|segment| segment.bytes.len() as u64).sum::<u64>();
        }
        Ok(Some(last))
    }

    /// Puts everything else in its place, with the last versions; returns whether the snapshot was among
    /// it, `None` where the source has another by now.
    fn put_rest(
        &self,
        here: &Holding,
        holding: &Holding,
        mut last: Vec<Segment>,
        copied: &mut Copied,
    ) -> Result<Option<bool>> {
        let is_new = *here == Holding::none(here.id);
        let put = |versions: &[Segment], snapshot| {
            self.target.put_holding(self.run, holding, With { versions, snapshot, is_new })
        };
        if !is_new && snapshot_facts(here) == snapshot_facts(holding) {
            return put(&last, Carried::Same).map(|()| Some(false));
        }
        // Never two large bodies at once.
        let held_bytes = holding.client.and_then(|row| row.snapshot).map_or(0, |(_, bytes)| bytes);
        if held_bytes > BYTES && !last.is_empty() {
            self.target.put_versions(self.run, holding.id.into(), &last)?;
            last.clear();
        }
        let Some(held) = snapshot_of(self.source, holding)? else { return Ok(None) };
        copied.bytes += held.as_ref().map_or(0, |held| held.len() as u64);
        put(&last, Carried::Other(held.as_deref()))?;
        Ok(Some(held.is_some()))
    }

    /// Compares bytes in both databases; `None` where the source has something else by now.
    fn verify(&self, holding: &Holding, links: &[Link], with_snapshot: bool) -> Result<Option<u64>> {
        let client = ClientId::from(holding.id);
        for batch in batches(links) {
            let Some(there) = segments(self.source, client, batch)? else { return Ok(None) };
            let there = digest_of(&there);
            let here = segments(self.target, client, batch)?;
            if here.is_none_or(|here| digest_of(&here).as_ref() != there.as_ref()) {
                return Err(differs(client, "versions"));
            }
        }
        let Some((snapshot, _)) = holding.client.and_then(|row| row.snapshot).filter(|_| with_snapshot)
        else {
            return Ok(Some(links.len() as u64));
        };
        let (there, here) =
            (digest_of_snapshot(self.source, client)?, digest_of_snapshot(self.target, client)?);
        match (there, here) {
            (Some((version, _)), _) if version != snapshot.version => Ok(None),
            (None, _) => Ok(None),
            (Some((_, there)), Some((_, here))) if there.as_ref() == here.as_ref() => {
                Ok(Some(links.len() as u64 + 1))
            }
            _ => Err(differs(client, "the snapshot")),
        }
    }
}

fn differs(client: ClientId, what: &str) -> Error {
    let message = format!(
        "client {client:?}: {what} read from the copy are not what the source has, though they have the same IDs: the copy \
         is of no use. Make another one in an empty database, and look at both with `sync-server admin check`"
    );
    Error::new(Kind::Corrupt, message)
}

impl State {
    /// `None` where it changed while it was being read.
    fn of(source: &dyn Database, id: Uuid) -> Result<Option<State>> {
        let holding = source.holding(id)?;
        if holding.versions == 0 {
            return Ok(Some(State { holding, links: Vec::new() }));
        }
        let chain = source.chain(id.into())?;
        let latest = holding.client.map(|row| row.latest);
        let links = as_of(chain, latest).filter(|links| links.len() as u64 == holding.versions);
        Ok(links.map(|links| State { holding, links }))
    }
}

/// The versions of a chain in their order, without those that were added behind `latest`.
fn as_of(chain: Chain, latest: Option<VersionId>) -> Option<Vec<Link>> {
    let links = in_order(chain.links, |link| (link.version, link.parent));
    if latest.is_none_or(|latest| latest == chain.latest) {
        return Some(links);
    }
    let parents: HashMap<VersionId, VersionId> =
        links.iter().map(|link| (link.version, link.parent)).collect();
    let mut later = HashSet::new();
    let mut at = chain.latest;
    while Some(at) != latest {
        later.insert(at);
        at = *parents.get(&at)?;
    }
    Some(links.into_iter().filter(|link| !later.contains(&link.version)).collect())
}

/// As many as are handled together.
fn batches(links: &[Link]) -> impl Iterator<Item = &[Link]> {
    let mut rest = links;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |link: &&Link| {
            bytes += link.bytes;
            bytes <= BYTES
        };
        let length = rest.iter().take(ROWS).take_while(fits).count().max(1).min(rest.len());
        let (batch, others) = rest.split_at(length);
        rest = others;
        (!batch.is_empty()).then_some(batch)
    })
}

/// All of these versions, or `None`.
fn segments(database: &dyn Database, client: ClientId, links: &[Link]) -> Result<Option<Vec<Segment>>> {
    let ids: Vec<VersionId> = links.iter().map(|link| link.version).collect();
    let segments = database.segments(client, &ids)?;
    Ok((segments.len() == ids.len()).then_some(segments))
}

/// The bytes of the snapshot that the holding tells of, `None` among them; or `None` where there is
/// another by now.
fn snapshot_of(source: &dyn Database, holding: &Holding) -> Result<Option<Option<Vec<u8>>>> {
    let Some((wanted, _)) = holding.client.and_then(|row| row.snapshot) else { return Ok(Some(None)) };
    let storage: &dyn Storage = source;
    let held = storage.reading(|reader| reader.snapshot(holding.id.into(), usize::MAX))?;
    Ok(match held.and_then(|held| held.snapshot) {
        Some((version, Body::Bytes(bytes))) if version == wanted.version => Some(Some(bytes)),
        _ => None,
    })
}

fn digest_of(segments: &[Segment]) -> Digest {
    let mut digest = Context::new(&SHA256);
    for segment in segments {
        for id in [segment.id, segment.parent] {
            digest.update(id.uuid().as_bytes());
        }
        digest.update(&(segment.bytes.len() as u64).to_le_bytes());
        digest.update(&segment.bytes);
    }
    digest.finish()
}

fn digest_of_snapshot(database: &dyn Database, client: ClientId) -> Result<Option<(VersionId, Digest)>> {
    let storage: &dyn Storage = database;
    storage.reading(|reader| {
        let held = reader.snapshot(client, 0)?.and_then(|held| held.snapshot);
        let Some((version, _)) = held else { return Ok(None) };
        let mut digest = Context::new(&SHA256);
        reader.pour_snapshot(client, PIECE, &mut |piece| {
            digest.update(&piece);
            true
        })?;
        Ok(Some((version, digest.finish())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(version: u128, parent: u128, bytes: u64) -> Link {
        let id = |n| Uuid::from_u128(n).into();
        Link { version: id(version), parent: id(parent), bytes }
    }

    fn chain(links: &[Link], latest: u128) -> Chain {
        Chain { latest: Uuid::from_u128(latest).into(), links: links.to_vec(), ..Chain::NONE }
    }

    #[test]
    fn a_chain_is_as_it_was_at_its_earlier_end() {
        let links = [link(3, 9, 1), link(9, 100, 1), link(1, 3, 1), link(7, 1, 1)];
        let ids = |latest: u128, wanted: Option<u128>| {
            let links = as_of(chain(&links, latest), wanted.map(|id| Uuid::from_u128(id).into()))?;
            Some(links.iter().map(|link| link.version.uuid().as_u128()).collect::<Vec<_>>())
        };
        assert_eq!(ids(7, Some(7)), Some(vec![9, 3, 1, 7]));
        assert_eq!(ids(7, Some(3)), Some(vec![9, 3]));
        assert_eq!(ids(7, None), Some(vec![9, 3, 1, 7]));
        assert_eq!(ids(7, Some(42)), None);
    }

    #[test]
    fn batches_are_all_of_it_and_none_is_too_large() {
        let mut links: Vec<Link> = (0..600).map(|n| link(n, n + 1, 10)).collect();
        links[300].bytes = BYTES * 3;
        links[301].bytes = BYTES;
        let lengths: Vec<usize> = batches(&links).map(<[Link]>::len).collect();
        assert_eq!(lengths, [256, 44, 1, 1, 256, 42]);
        assert_eq!(batches(&[]).count(), 0);
    }
}
