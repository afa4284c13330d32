//! What can be wrong with one client's chain, and what to do about it. Pure.

use crate::protocol::{State, VersionId};
use crate::storage::upkeep::{Chain, Link};
use std::collections::{HashMap, HashSet};

/// Something that is wrong with a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Versions of a client that does not exist.
    Orphans { versions: u64, bytes: u64 },
    /// What an operator decided about a client that does not exist, and that has no versions.
    Ghost,
    /// The latest version is none that there is.
    NoLatest(VersionId),
    /// There are versions, but the client has no latest one.
    LeftBehind { versions: u64 },
    /// Several versions follow the same one.
    Fork { parent: VersionId, children: Vec<VersionId> },
    /// The chain comes back to where it was.
    Loop(VersionId),
    /// The version before the chain's first is missing, though there are more that do not belong to it.
    Gap { missing: VersionId, apart: u64 },
    /// Versions that do not lead to the latest one.
    Apart { versions: u64 },
    /// The snapshot's version is none of the chain.
    SnapshotAstray(VersionId),
}

impl Flaw {
    /// In one word, for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Flaw::Orphans { .. } => "orphans",
            Flaw::Ghost => "leftover",
            Flaw::NoLatest(_) => "latest_missing",
            Flaw::LeftBehind { .. } => "left_behind",
            Flaw::Fork { .. } => "fork",
            Flaw::Loop(_) => "loop",
            Flaw::Gap { .. } => "parent_missing",
            Flaw::Apart { .. } => "apart",
            Flaw::SnapshotAstray(_) => "snapshot_astray",
        }
    }

    /// What is wrong.
    pub fn problem(&self) -> String {
        match self {
            Flaw::Orphans { versions, bytes } => {
                format!("does not exist, but {} of it ({bytes} bytes) are there", count(*versions))
            }
            Flaw::Ghost => "does not exist, but its label or devices are kept".to_owned(),
            Flaw::NoLatest(latest) => format!("its latest version, {latest}, is missing"),
            Flaw::LeftBehind { versions } => {
                format!("it has {}, but no latest one", count(*versions))
            }
            Flaw::Fork { parent, children } => {
                let children: Vec<String> = children.iter().map(VersionId::to_string).collect();
                format!("the chain forks: {} all follow {parent}", children.join(" and "))
            }
            Flaw::Loop(version) => format!("the chain never ends: it comes back to version {version}"),
            Flaw::Gap { missing, apart } => format!(
                "version {missing} is missing from the chain, and {} before it lead nowhere",
                count(*apart)
            ),
            Flaw::Apart { versions } => {
                format!("{} do not lead to the latest one", count(*versions))
            }
            Flaw::SnapshotAstray(version) => {
                format!("its snapshot is of version {version}, which is not in the chain")
            }
        }
    }

    /// What to do about it. `client` is how the operator names it.
    pub fn advice(&self, client: &str) -> String {
        let reset = format!("`sync-server admin reset-client {client}` begins a new history and says how");
        match self {
            Flaw::Orphans { .. } => "it comes back with its history when it syncs again or is made with \
                                     `sync-server admin add-client --id`; `sync-server admin remove-client` with \
                                     the whole ID, which --json tells, removes what is left of it"
                .to_owned(),
            Flaw::Ghost => "they hold for it again once it is back; `sync-server admin remove-client` with the \
                            whole ID, which --json tells, removes them"
                .to_owned(),
            Flaw::NoLatest(_) => format!(
                "no device can add anything: restore a backup that has the version, or make sure that one device \
                 has all tasks; {reset}"
            ),
            Flaw::LeftBehind { .. } => {
                "sync one of its devices: the next version that it adds mends this".to_owned()
            }
            Flaw::Fork { .. } => format!(
                "the first is served, and a device that has another one cannot sync any more. Make sure that one \
                 device has all tasks; {reset}"
            ),
            Flaw::Loop(_) => format!("no new device can sync: make sure that one device has all tasks; {reset}"),
            Flaw::Gap { .. } => format!(
                "a device that last synced before it cannot sync any more, others can: set it up anew, or restore \
                 a backup that has the version. Where there is no snapshot, no new device can sync: {reset}"
            ),
            Flaw::Apart { .. } => format!(
                "a device that has one of them cannot sync any more, others can. Make sure that one device has all \
                 tasks; {reset}"
            ),
            Flaw::SnapshotAstray(_) => format!(
                "a new device cannot sync until another one uploads a snapshot, which the server asks for in \
                 time; at once: {reset}"
            ),
        }
    }
}

fn count(versions: u64) -> String {
    format!("{versions} version{}", if versions == 1 { "" } else { "s" })
}

/// All that is wrong with a client. One that is being removed is not looked at.
pub fn flaws(chain: &Chain) -> Vec<Flaw> {
    let versions = chain.links.len() as u64;
    if chain.state == State::Leaving {
        return Vec::new();
    }
    if !chain.exists {
        let bytes = chain.links.iter().map(|link| link.bytes).sum();
        return if versions > 0 { vec![Flaw::Orphans { versions, bytes }] } else { Vec::new() };
    }
    let mut flaws = forks(&chain.links);
    let links: HashMap<VersionId, &Link> = chain.links.iter().map(|link| (link.version, link)).collect();
    if chain.latest == VersionId::NIL {
        if versions > 0 {
            flaws.push(Flaw::LeftBehind { versions });
        }
    } else if !links.contains_key(&chain.latest) {
        flaws.push(Flaw::NoLatest(chain.latest));
    }
    let Walk { reached, start, came_back } = walk(&links, chain.latest);
    flaws.extend(came_back.map(Flaw::Loop));
    if !reached.is_empty() {
        let apart = versions - reached.len() as u64;
        match start {
            _ if apart == 0 => {}
            Some(missing) if missing != VersionId::NIL => flaws.push(Flaw::Gap { missing, apart }),
            _ => flaws.push(Flaw::Apart { versions: apart }),
        }
    }
    if let Some(snapshot) = chain.snapshot
        && !reached.contains(&snapshot)
        && start != Some(snapshot)
    {
        flaws.push(Flaw::SnapshotAstray(snapshot));
    }
    flaws
}

/// The way back from the latest version.
struct Walk {
    reached: HashSet<VersionId>,
    /// What the first version of the chain follows, which the server need not have.
    start: Option<VersionId>,
    /// The version that was met twice.
    came_back: Option<VersionId>,
}

fn walk(links: &HashMap<VersionId, &Link>, latest: VersionId) -> Walk {
    let mut walk = Walk { reached: HashSet::new(), start: None, came_back: None };
    let mut at = latest;
    while let Some(link) = links.get(&at) {
        if !walk.reached.insert(at) {
            walk.came_back = Some(at);
            return walk;
        }
        at = link.parent;
        walk.start = Some(at);
    }
    walk
}

fn forks(links: &[Link]) -> Vec<Flaw> {
    let mut children: HashMap<VersionId, Vec<VersionId>> = HashMap::with_capacity(links.len());
    for link in links {
        children.entry(link.parent).or_default().push(link.version);
    }
    let mut forks: Vec<_> = children.into_iter().filter(|(_, children)| children.len() > 1).collect();
    forks.sort_unstable_by_key(|(parent, _)| *parent);
    let fork = |(parent, mut children): (VersionId, Vec<VersionId>)| {
        children.sort_unstable();
        Flaw::Fork { parent, children }
    };
    forks.into_iter().map(fork).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn id(n: u128) -> VersionId {
        Uuid::from_u128(n).into()
    }

    /// A client whose versions follow each other as these pairs of version and parent say.
    fn chain(links: &[(u128, u128)], latest: u128, snapshot: Option<u128>) -> Chain {
        let link =
            |(version, parent): &(u128, u128)| Link { version: id(*version), parent: id(*parent), bytes: 5 };
        Chain {
            exists: true,
            latest: id(latest),
            snapshot: snapshot.map(id),
            links: links.iter().map(link).collect(),
            ..Chain::NONE
        }
    }

    #[test]
    fn sound_chains_have_no_flaw() {
        for sound in [
            chain(&[], 0, None),
            chain(&[(1, 0)], 1, None),
            chain(&[(2, 1), (1, 0), (3, 2)], 3, Some(2)),
            // Begun elsewhere or pruned, and with a snapshot of the version before the first.
            chain(&[(8, 7), (9, 8)], 9, Some(7)),
            Chain::NONE,
        ] {
            assert_eq!(flaws(&sound), []);
        }
    }

    #[test]
    fn each_flaw_is_found() {
        let fork = Flaw::Fork { parent: id(1), children: vec![id(2), id(5)] };
        for (chain, found) in [
            (chain(&[(1, 0), (2, 1)], 9, None), vec![Flaw::NoLatest(id(9))]),
            (chain(&[(1, 0), (2, 1)], 0, None), vec![Flaw::LeftBehind { versions: 2 }]),
            (chain(&[(1, 0), (2, 1), (5, 1), (3, 2)], 3, None), vec![fork, Flaw::Apart { versions: 1 }]),
            (chain(&[(2, 3), (3, 2)], 3, None), vec![Flaw::Loop(id(3))]),
            (chain(&[(1, 0), (2, 1), (4, 3)], 4, None), vec![Flaw::Gap { missing: id(3), apart: 2 }]),
            (chain(&[(1, 0), (2, 1)], 1, None), vec![Flaw::Apart { versions: 1 }]),
            (chain(&[(1, 0)], 1, Some(7)), vec![Flaw::SnapshotAstray(id(7))]),
            (chain(&[(1, 0)], 1, Some(0)), vec![]),
            (
                Chain { exists: false, ..chain(&[(1, 0), (2, 1)], 0, None) },
                vec![Flaw::Orphans { versions: 2, bytes: 10 }],
            ),
        ] {
            assert_eq!(flaws(&chain), found);
        }
    }

    #[test]
    fn every_flaw_says_what_to_do() {
        for flaw in [
            Flaw::Orphans { versions: 1, bytes: 1 },
            Flaw::Ghost,
            Flaw::NoLatest(id(1)),
            Flaw::LeftBehind { versions: 1 },
            Flaw::Fork { parent: id(1), children: vec![id(2), id(3)] },
            Flaw::Loop(id(1)),
            Flaw::Gap { missing: id(1), apart: 2 },
            Flaw::Apart { versions: 2 },
            Flaw::SnapshotAstray(id(1)),
        ] {
            let (problem, advice) = (flaw.problem(), flaw.advice("alice"));
            assert!(!problem.is_empty() && !problem.ends_with('.'), "{problem}");
            assert!(advice.contains("`sync-server admin") || advice.starts_with("sync one"), "{advice}");
        }
    }
}
