//! Versions that nobody needs any more: old ones that a snapshot covers.

use super::{Pace, STEP, chain};
use crate::protocol::{ClientId, State, VersionId};
use crate::storage::Result;
use crate::storage::location::Database;
use crate::storage::registry::{Event, Registry};
use crate::storage::upkeep::{Chain, Link};
use std::collections::HashMap;
use std::time::{Duration, Instant};

const SECONDS_PER_DAY: i64 = 86_400;

/// A chain that takes longer to read is followed by a pause.
const LONG_READ: Duration = Duration::from_millis(5);

/// How old versions must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age {
    /// Versions from this moment and before are old; in seconds since 1970.
    pub cutoff: i64,
    /// When this program took the database over: since then versions count of whose age nobody knows.
    pub adopted: i64,
}

impl Age {
    /// Versions of more than so many days, at `now` seconds since 1970.
    pub fn of_days(days: u32, now: i64, adopted: i64) -> Age {
        Age { cutoff: now.saturating_sub(i64::from(days) * SECONDS_PER_DAY), adopted }
    }
}

/// What goes of a client, or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// The client.
    pub client: ClientId,
    /// What the operator calls it.
    pub label: Option<String>,
    /// How many versions.
    pub versions: u64,
    /// What their segments hold together.
    pub bytes: u64,
}

/// What goes of all clients, or went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// How many clients have fewer versions now.
    pub clients: u64,
    /// How many versions.
    pub versions: u64,
    /// What their segments hold together.
    pub bytes: u64,
}

impl Total {
    /// All of these together.
    pub fn of(pruned: &[Pruned]) -> Total {
        Total {
            clients: pruned.len() as u64,
            versions: pruned.iter().map(|pruned| pruned.versions).sum(),
            bytes: pruned.iter().map(|pruned| pruned.bytes).sum(),
        }
    }

    /// What is recorded and logged of it.
    pub fn told(self, days: u32) -> String {
        let plural = |count: u64, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
        format!(
            "{} of {}, {}, older than {days} days",
            plural(self.versions, "version"),
            plural(self.clients, "client"),
            plural(self.bytes, "byte")
        )
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many of so many clients are done.
    Client { done: u64, of: u64 },
    /// One transaction is.
    Transaction,
}

/// Hears how far it is, and says whether to go on.
pub type Watch<'w> = dyn FnMut(Step) -> bool + 'w;

/// What [`run`] would remove.
pub fn survey(database: &dyn Database, age: Age, watch: &mut Watch<'_>) -> Result<Vec<Pruned>> {
    each(database, age, Pace::Alone, watch, &mut |pruned, of, _| {
        pruned.versions = of.len() as u64;
        pruned.bytes = of.iter().map(|link| link.bytes).sum();
        Ok(())
    })
}

/// Removes what is old and covered, from the start of each chain on and in small transactions, each of
/// which records what went until then. Wherever it ends, every chain is sound.
pub fn run(
    database: &dyn Database,
    age: Age,
    pace: Pace,
    record: &dyn Fn(Total) -> Event,
    watch: &mut Watch<'_>,
) -> Result<Vec<Pruned>> {
    let registry: &dyn Registry = database;
    let mut total = Total::default();
    each(database, age, pace, watch, &mut |pruned, links, go_on| {
        for portion in portions(links) {
            let begun = Instant::now();
            let ids: Vec<VersionId> = portion.iter().map(|link| link.version).collect();
            let bytes: u64 = portion.iter().map(|link| link.bytes).sum();
            let next = Total {
                clients: total.clients + u64::from(pruned.versions == 0),
                versions: total.versions + ids.len() as u64,
                bytes: total.bytes + bytes,
            };
            let is_done = registry.amending(|writer| {
                let is_done = writer.prune(pruned.client, &ids)?;
                if is_done {
                    writer.record(&record(next))?;
                }
                Ok(is_done)
            })?;
            database.rest()?;
            if !is_done {
                // It changed meanwhile: the next time is early enough.
                return Ok(());
            }
            total = next;
            pruned.versions += ids.len() as u64;
            pruned.bytes += bytes;
            if !go_on(Step::Transaction) {
                return Ok(());
            }
            pace.pause(begun.elapsed());
        }
        Ok(())
    })
}

type Work<'w> = dyn FnMut(&mut Pruned, &[Link], &mut Watch<'_>) -> Result<()> + 'w;

/// Does something about each client of which something may go, until `watch` has enough.
fn each(
    database: &dyn Database,
    age: Age,
    pace: Pace,
    watch: &mut Watch<'_>,
    work: &mut Work<'_>,
) -> Result<Vec<Pruned>> {
    let holders = database.holders()?;
    let of = holders.len() as u64;
    let (mut all, mut is_enough) = (Vec::new(), false);
    for (done, holder) in (1..).zip(holders) {
        let begun = Instant::now();
        let links = prunable(&database.chain(holder.client)?, age);
        if begun.elapsed() > LONG_READ {
            pace.pause(begun.elapsed());
        }
        let mut pruned = Pruned { client: holder.client, label: holder.label, versions: 0, bytes: 0 };
        if !links.is_empty() {
            work(&mut pruned, &links, &mut |step| {
                is_enough |= !watch(step);
                !is_enough
            })?;
        }
        if pruned.versions > 0 {
            all.push(pruned);
        }
        if is_enough || !watch(Step::Client { done, of }) {
            break;
        }
    }
    Ok(all)
}

/// The versions that are old and covered by the snapshot, first to last, from the start of the chain
/// on. Without them it is a chain that begins later.
///
/// The snapshot's own version may go too, since the one after it still names it, unless it is the
/// latest. A client with a flaw keeps everything: nobody knows what its snapshot covers.
pub fn prunable(chain: &Chain, age: Age) -> Vec<Link> {
    let Some(snapshot) = chain.snapshot else { return Vec::new() };
    if !chain.exists || chain.state == State::Leaving || !chain::flaws(chain).is_empty() {
        return Vec::new();
    }
    let links: HashMap<VersionId, &Link> = chain.links.iter().map(|link| (link.version, link)).collect();
    let mut covered = Vec::new();
    let mut at = snapshot;
    while let Some(link) = links.get(&at) {
        if at != chain.latest {
            covered.push(**link);
        }
        at = link.parent;
    }
    let mut youngest = i64::MIN;
    let is_old = |link: &Link| {
        // A version is no older than the one that it follows.
        youngest = youngest.max(born(link.version, age.adopted));
        youngest <= age.cutoff
    };
    covered.into_iter().rev().take_while(is_old).collect()
}

/// When a version was made, in seconds since 1970: this program's IDs tell.
fn born(version: VersionId, adopted: i64) -> i64 {
    let is_ours = version.uuid().get_version_num() == 7;
    let time = version.uuid().get_timestamp().filter(|_| is_ours);
    time.map_or(adopted, |time| i64::try_from(time.to_unix().0).unwrap_or(i64::MAX))
}

/// As many at a time as one transaction removes.
fn portions(mut links: &[Link]) -> Vec<&[Link]> {
    let mut portions = Vec::new();
    while !links.is_empty() {
        let mut bytes = 0;
        let fits = |link: &&Link| {
            bytes += link.bytes;
            bytes <= STEP.bytes
        };
        let count = links.iter().take(STEP.rows as usize).take_while(fits).count().max(1);
        let (portion, rest) = links.split_at(count);
        portions.push(portion);
        links = rest;
    }
    portions
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::{NoContext, Timestamp, Uuid};

    const AGE: Age = Age { cutoff: 1_000, adopted: 500 };

    /// A version that this program made at that time, in seconds since 1970.
    fn made(at: u64) -> VersionId {
        Uuid::new_v7(Timestamp::from_unix(NoContext, at, 0)).into()
    }

    fn adopted() -> VersionId {
        Uuid::new_v4().into()
    }

    fn chain(versions: &[VersionId], snapshot: Option<usize>) -> Chain {
        let parents = [VersionId::NIL].into_iter().chain(versions.iter().copied());
        let link = |(version, parent): (&VersionId, VersionId)| Link { version: *version, parent, bytes: 5 };
        Chain {
            exists: true,
            latest: versions.last().copied().unwrap_or(VersionId::NIL),
            snapshot: snapshot.map(|n| versions[n]),
            links: versions.iter().zip(parents).map(link).collect(),
            ..Chain::NONE
        }
    }

    fn pruned(versions: &[VersionId], snapshot: Option<usize>, age: Age) -> usize {
        let found: Vec<VersionId> =
            prunable(&chain(versions, snapshot), age).iter().map(|link| link.version).collect();
        assert_eq!(found, versions[..found.len()]);
        found.len()
    }

    #[test]
    fn what_is_old_and_covered_may_go_from_the_start_on() {
        let old: Vec<VersionId> = (0..5).map(|n| made(900 + n)).collect();
        assert_eq!(pruned(&old, None, AGE), 0);
        assert_eq!(pruned(&old, Some(0), AGE), 1);
        assert_eq!(pruned(&old, Some(3), AGE), 4);
        // The latest version stays whatever covers it.
        assert_eq!(pruned(&old, Some(4), AGE), 4);
        assert_eq!(pruned(&old, Some(4), Age { cutoff: 901, ..AGE }), 2);
        assert_eq!(pruned(&old, Some(4), Age { cutoff: 899, ..AGE }), 0);
    }

    #[test]
    fn versions_without_a_time_count_from_the_adoption_or_from_what_they_follow() {
        let versions = [adopted(), adopted(), made(900), adopted(), made(1_100)];
        assert_eq!(pruned(&versions, Some(4), AGE), 4);
        assert_eq!(pruned(&versions, Some(4), Age { cutoff: 899, ..AGE }), 2);
        assert_eq!(pruned(&versions, Some(4), Age { cutoff: 499, ..AGE }), 0);
        assert_eq!(pruned(&versions, Some(4), Age { cutoff: 1_100, adopted: 1_101 }), 0);
    }

    #[test]
    fn a_clock_that_was_wrong_for_a_while_makes_nothing_go_early() {
        let versions = [made(900), made(5_000), made(901), made(902)];
        assert_eq!(pruned(&versions, Some(3), AGE), 1);
    }

    #[test]
    fn a_client_with_a_flaw_or_on_its_way_out_keeps_everything() {
        let old: Vec<VersionId> = (0..5).map(|n| made(900 + n)).collect();
        let mut gap = chain(&old, Some(3));
        gap.links.remove(3);
        let astray = Chain { snapshot: Some(made(1)), ..chain(&old, None) };
        let leaving = Chain { state: State::Leaving, ..chain(&old, Some(3)) };
        for chain in [gap, astray, leaving, Chain { exists: false, ..chain(&old, Some(3)) }] {
            assert_eq!(prunable(&chain, AGE), []);
        }
    }

    #[test]
    fn a_pruned_chain_is_sound_and_pruned_further_later() {
        let versions: Vec<VersionId> = (0..5).map(|n| made(900 + n)).collect();
        let mut left = chain(&versions, Some(2));
        let gone = prunable(&left, AGE);
        assert_eq!(gone.len(), 3);
        left.links.retain(|link| !gone.contains(link));
        assert_eq!((chain::flaws(&left), prunable(&left, AGE)), (vec![], vec![]));
        left.snapshot = Some(versions[3]);
        assert_eq!(prunable(&left, AGE).len(), 1);
    }

    #[test]
    fn portions_are_bounded_in_number_and_bytes() {
        let link = |bytes| Link { version: made(1), parent: VersionId::NIL, bytes };
        let sizes = |links: &[Link]| portions(links).iter().map(|portion| portion.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&vec![link(1); 150]), [64, 64, 22]);
        assert_eq!(sizes(&[link(STEP.bytes * 9), link(1), link(STEP.bytes - 1), link(1)]), [1, 2, 1]);
    }

    #[test]
    fn days_are_counted_back_from_now() {
        assert_eq!(Age::of_days(30, 10_000_000, 7), Age { cutoff: 10_000_000 - 30 * 86_400, adopted: 7 });
    }
}
