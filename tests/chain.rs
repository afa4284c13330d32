//! The chain as a property: whatever clients ask in whatever order, the answers are those of a
//! small model, across restarts and crashes.

use crate::util::{NIL, Random, Replica, Response, Server, soak};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use uuid::Uuid;

const CLIENTS: usize = 3;

/// How far apart the versions are after which a snapshot is wanted: low at 4, high at 6.
const SNAPSHOT_VERSIONS: usize = 4;
const OPTIONS: &[&str] = &["--snapshot-versions", "4", "--snapshot-days", "1000"];

/// A version as somebody might name it in a request.
#[derive(Clone, Debug)]
enum Name {
    /// The latest, or so many before it.
    Back(usize),
    Nil,
    /// One that no server ever made; a few, so that they come again.
    Foreign(u128),
    /// The latest of another client.
    Neighbours,
}

#[derive(Clone, Debug)]
enum Step {
    AddVersion(usize, Name, Vec<u8>),
    ChildVersion(usize, Name),
    AddSnapshot(usize, Name, Vec<u8>),
    Snapshot(usize),
    Restart,
    Crash,
}

#[test]
fn any_interleaving_of_requests_is_answered_as_the_model_answers() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = RefCell::new(Some(Server::start_in(dir.path(), OPTIONS)));
    let cases = soak(60, 200) as u32;
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let steps = prop::collection::vec(step(), 1..80);
    let property = |steps: Vec<Step>| {
        run(&mut server.borrow_mut(), dir.path(), &steps);
        Ok(())
    };
    runner.run(&steps, property).expect("the server answers as the model does");
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    let bytes = || prop::collection::vec(any::<u8>(), 1..200);
    prop_oneof![
        24 => (client.clone(), name(), bytes()).prop_map(|(client, name, segment)| Step::AddVersion(client, name, segment)),
        12 => (client.clone(), name()).prop_map(|(client, name)| Step::ChildVersion(client, name)),
        8 => (client.clone(), name(), bytes()).prop_map(|(client, name, snapshot)| Step::AddSnapshot(client, name, snapshot)),
        4 => client.prop_map(Step::Snapshot),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![
        10 => Just(Name::Back(0)),
        5 => (1..8_usize).prop_map(Name::Back),
        2 => Just(Name::Nil),
        2 => (1..3_u128).prop_map(Name::Foreign),
        1 => Just(Name::Neighbours),
    ]
}

fn run(slot: &mut Option<Server>, dir: &Path, steps: &[Step]) {
    let ids: Vec<String> = (0..CLIENTS).map(|_| Uuid::new_v4().to_string()).collect();
    let mut models: Vec<Model> = (0..CLIENTS).map(|_| Model::default()).collect();
    let server = slot.get_or_insert_with(|| Server::start_in(dir, OPTIONS));
    let mut replicas: Vec<_> = ids.iter().map(|id| Replica::new(server, id)).collect();
    for step in steps {
        match step {
            Step::AddVersion(client, name, segment) => {
                let parent = resolve(&models, *client, name);
                let response = replicas[*client].add_version(&parent, segment);
                models[*client].add_version(&parent, segment, &response);
            }
            Step::ChildVersion(client, name) => {
                let parent = resolve(&models, *client, name);
                let response = replicas[*client].child_version(&parent);
                models[*client].child_version(&parent, &response);
            }
            Step::AddSnapshot(client, name, snapshot) => {
                let version = resolve(&models, *client, name);
                let response = replicas[*client].add_snapshot(&version, snapshot);
                models[*client].add_snapshot(&version, snapshot, &response);
            }
            Step::Snapshot(client) => models[*client].snapshot(&replicas[*client].snapshot()),
            Step::Restart | Step::Crash => {
                let mut old = slot.take().expect("a server runs");
                match step {
                    Step::Crash => old.kill(),
                    _ => old.stop(),
                }
                let server = slot.insert(Server::start_in(dir, OPTIONS));
                replicas = ids.iter().map(|id| Replica::new(server, id)).collect();
            }
        }
    }
    for (model, replica) in models.iter().zip(&mut replicas) {
        let chain: Vec<Version> = replica.walk(model.first_parent()).into_iter().map(Version::from).collect();
        assert_eq!(chain, model.chain);
        model.snapshot(&replica.snapshot());
    }
}

fn resolve(models: &[Model], client: usize, name: &Name) -> String {
    match name {
        Name::Back(back) => models[client].back(*back),
        Name::Nil => NIL.to_owned(),
        Name::Foreign(number) => Uuid::from_u128(*number).to_string(),
        Name::Neighbours => models[(client + 1) % CLIENTS].back(0),
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Version {
    parent: String,
    id: String,
    segment: Vec<u8>,
}

impl From<(String, String, Vec<u8>)> for Version {
    fn from((parent, id, segment): (String, String, Vec<u8>)) -> Version {
        Version { parent, id, segment }
    }
}

/// One client as it should be. The chain's IDs are what the server said they were.
#[derive(Default)]
struct Model {
    chain: Vec<Version>,
    /// The number of versions up to and with that of the snapshot, its version and bytes, and how
    /// many versions were added since it was stored.
    held: Option<(usize, String, Vec<u8>, usize)>,
}

impl Model {
    fn first_parent(&self) -> &str {
        self.chain.first().map_or(NIL, |version| &version.parent)
    }

    /// The latest version, or so many before it; before the first its parent.
    fn back(&self, back: usize) -> String {
        match self.chain.len().checked_sub(back + 1) {
            Some(at) => self.chain[at].id.clone(),
            None => self.first_parent().to_owned(),
        }
    }

    fn accepts(&self, parent: &str) -> bool {
        self.chain.last().is_none_or(|latest| latest.id == parent)
    }

    fn add_version(&mut self, parent: &str, segment: &[u8], response: &Response) {
        if !self.accepts(parent) {
            assert_eq!(response.status, 409, "{parent}: {response:?}");
            assert_eq!(response.header("x-parent-version-id"), Some(self.back(0).as_str()));
            return;
        }
        assert_eq!(response.status, 200, "{parent}: {response:?}");
        assert_eq!(response.header("x-snapshot-request"), self.urgency());
        assert!(response.body.is_empty());
        let id = response.version();
        assert!(id != NIL && self.chain.iter().all(|version| version.id != id && version.parent != id));
        self.chain.push(Version { parent: parent.to_owned(), id, segment: segment.to_vec() });
        if let Some((.., since)) = &mut self.held {
            *since += 1;
        }
    }

    fn urgency(&self) -> Option<&'static str> {
        match self.held {
            Some((.., since)) if since < SNAPSHOT_VERSIONS => None,
            Some((.., since)) if since < SNAPSHOT_VERSIONS * 3 / 2 => Some("urgency=low"),
            _ => Some("urgency=high"),
        }
    }

    fn child_version(&self, parent: &str, response: &Response) {
        let Some(child) = self.chain.iter().find(|version| version.parent == parent) else {
            assert_eq!(response.status, if self.accepts(parent) { 404 } else { 410 }, "{parent}");
            return;
        };
        assert_eq!(response.status, 200, "{parent}: {response:?}");
        assert_eq!(response.version(), child.id);
        assert_eq!(response.header("x-parent-version-id"), Some(parent));
        assert_eq!(response.body, child.segment);
    }

    /// One of the last five IDs, not nil, and later than the held snapshot's; else nothing changes.
    fn add_snapshot(&mut self, version: &str, snapshot: &[u8], response: &Response) {
        if self.chain.is_empty() {
            assert_eq!(response.status, 404, "{version}: {response:?}");
            return;
        }
        assert_eq!(response.status, 200, "{version}: {response:?}");
        let place = (0..5.min(self.chain.len() + 1)).find(|back| self.back(*back) == version);
        let Some(place) = place.map(|back| self.chain.len() - back) else { return };
        if version != NIL && self.held.as_ref().is_none_or(|(held, ..)| *held < place) {
            self.held = Some((place, version.to_owned(), snapshot.to_vec(), 0));
        }
    }

    fn snapshot(&self, response: &Response) {
        let Some((_, version, snapshot, _)) = &self.held else {
            assert_eq!(response.status, 404, "{response:?}");
            return;
        };
        assert_eq!(response.status, 200);
        assert_eq!((&response.version(), &response.body), (version, snapshot));
    }
}

/// What one of several threads of one client was told.
enum Told {
    Added(Version),
    Conflict { parent: String, latest: String },
    Child(Version),
    UpToDate(String),
    Gone(String),
}

/// Where requests race, the order is the server's choice, but one order must explain all answers.
#[test]
fn racing_replicas_are_told_one_and_the_same_history() {
    let server = Server::start(&["--snapshot-versions", "1000000"]);
    let mut random = Random::new("racing replicas");
    let (client, steps) = (Uuid::new_v4().to_string(), soak(300, 2000));
    let told: Vec<Vec<Told>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let (mut replica, mut random) = (Replica::new(&server, &client), random.split());
                scope.spawn(move || race(&mut replica, &mut random, steps))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("the replica's thread succeeds")).collect()
    });
    let chain: Vec<Version> =
        Replica::new(&server, &client).walk(NIL).into_iter().map(Version::from).collect();
    let added = told.iter().flatten().filter(|told| matches!(told, Told::Added(_))).count();
    assert_eq!(chain.len(), added, "every accepted version is in the chain, and no other");
    assert!(told.iter().flatten().any(|told| matches!(told, Told::Conflict { .. })), "nobody raced");
    for told in told {
        explain(&chain, told);
    }
}

/// Adds to and asks about the newest version that it knows, and now and then one that it forgot.
fn race(replica: &mut Replica, random: &mut Random, steps: usize) -> Vec<Told> {
    let (mut latest, mut told) = (NIL.to_owned(), Vec::new());
    for _ in 0..steps {
        let parent = match random.below(20) {
            0 => NIL.to_owned(),
            1 if latest != NIL => Uuid::new_v4().to_string(),
            _ => latest.clone(),
        };
        let length = 1 + random.below(100);
        let answer = if random.below(2) == 0 {
            added(replica, &parent, random.bytes(length))
        } else {
            asked(replica, &parent)
        };
        match &answer {
            Told::Added(version) => latest.clone_from(&version.id),
            Told::Conflict { latest: newer, .. } => latest.clone_from(newer),
            Told::Child(version) if version.parent == latest => latest.clone_from(&version.id),
            Told::Child(_) | Told::UpToDate(_) | Told::Gone(_) => {}
        }
        told.push(answer);
    }
    told
}

fn added(replica: &mut Replica, parent: &str, segment: Vec<u8>) -> Told {
    let response = replica.add_version(parent, &segment);
    let parent = parent.to_owned();
    match response.status {
        200 => Told::Added(Version { parent, id: response.version(), segment }),
        409 => {
            let latest = response.header("x-parent-version-id").expect("a conflict names the latest");
            Told::Conflict { parent, latest: latest.to_owned() }
        }
        _ => panic!("{response:?}"),
    }
}

fn asked(replica: &mut Replica, parent: &str) -> Told {
    let response = replica.child_version(parent);
    let parent = parent.to_owned();
    match response.status {
        200 => Told::Child(Version { parent, id: response.version(), segment: response.body }),
        404 => Told::UpToDate(parent),
        410 => Told::Gone(parent),
        _ => panic!("{response:?}"),
    }
}

/// Every answer fits the final chain, and no replica's view ever goes back.
fn explain(chain: &[Version], told: Vec<Told>) {
    let mut places: BTreeMap<&str, usize> =
        chain.iter().zip(1..).map(|(version, place)| (version.id.as_str(), place)).collect();
    places.insert(NIL, 0);
    let place = |id: &str| places.get(id).copied();
    // How long the chain is known to be by now.
    let mut known = 0;
    for told in told {
        match told {
            Told::Added(version) | Told::Child(version) => {
                let at = place(&version.id).expect("an answered version is in the chain");
                assert_eq!(chain[at - 1], version);
                known = known.max(at);
            }
            Told::Conflict { parent, latest } => {
                let at = place(&latest).expect("the latest version is in the chain");
                assert_ne!(parent, latest, "the latest version is no conflict");
                assert!(at >= known, "the chain was {known} long and is {at} now");
                known = at;
            }
            // The parent was the latest version at that moment, so nothing later was known before.
            Told::UpToDate(parent) => {
                let at = place(&parent).expect("only the latest version has no child yet");
                assert!(at >= known, "version {at} had a child that was already known");
                known = at;
            }
            Told::Gone(parent) => assert_eq!(place(&parent), None, "a version of the chain is not gone"),
        }
    }
}
