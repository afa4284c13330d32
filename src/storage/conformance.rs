//! What every backend must do, as one suite that each of them runs.
//!
//! A difference between backends is a parameter with a reason, never a skipped case.

pub mod contents;
pub mod copying;
mod devices;
mod upkeep;

use super::location::Database;
use super::registry::{Entry, Event, LastSync, Portion, Registry, Removal};
use super::{Body, Error, Kind, Noted, Storage};
use crate::protocol::{
    Client, ClientId, Outcome, Read, Refusal, Snapshot, SnapshotPolicy, State, VersionId, Write,
};
use crate::service::{self, Policy};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use uuid::Uuid;

const POLICY: Policy = Policy {
    create_clients: true,
    require_device: false,
    snapshot: SnapshotPolicy { days: 14, versions: 100 },
};
const NIL: VersionId = VersionId::NIL;
const MIB: usize = 1024 * 1024;

/// Runs every case, each in a place of its own where nothing was stored yet. `open` opens a place,
/// again after the storage that was open there is gone.
pub fn run<P>(place: impl Fn() -> P, open: impl Fn(&P) -> Arc<dyn Database>) {
    for (name, case) in CASES {
        println!("conformance: {name}");
        case(&*open(&place()));
    }
    for (name, case) in REGISTRY_CASES.iter().chain(devices::CASES) {
        println!("conformance: {name}");
        let here = place();
        let database = open(&here);
        case(&*database, &*database);
    }
    for (name, case) in upkeep::CASES {
        println!("conformance: {name}");
        let here = place();
        case(&*open(&here));
    }
    println!("conformance: what was committed is there after reopening");
    let place = place();
    let (client, chain) = with_chain(&*open(&place), 3);
    assert_eq!(latest(&*open(&place), client), chain[2]);
    println!("conformance: large bodies come back byte for byte, also after reopening");
    let (client, first, bytes) = store_large(&*open(&place));
    find_large(&*open(&place), client, first, bytes);
}

type Case = (&'static str, fn(&dyn Storage));

const CASES: &[Case] = &[
    ("an unknown client has nothing", unknown_client),
    ("a new client has no versions", new_client),
    ("versions form a chain", chain),
    ("clients do not see each other", separate_clients),
    ("a snapshot is held, counted from and replaced", snapshots),
    ("versions beside a large snapshot are counted exactly", beside_large_snapshot),
    ("bodies without room are measured, not read", no_room),
    ("a snapshot is poured in pieces, as far as it is wanted", pieces),
    ("empty and odd bytes are kept", odd_bytes),
    ("an error rolls everything back, and the storage is used again", error_rolls_back),
    ("a panic rolls everything back, and the storage is used again", panic_rolls_back),
    ("a read sees one state while a write commits", consistent_read),
    ("racing threads make one chain", racing_threads),
    ("a second child of one parent is refused by the schema itself", second_child),
    ("a group of changes becomes durable together", group),
];

type RegistryCase = (&'static str, fn(&dyn Storage, &dyn Registry));

const REGISTRY_CASES: &[RegistryCase] = &[
    ("operators see what clients hold", entries),
    ("sizes are right whoever added and removed, and however often they were kept", sizes),
    ("a label names one client", labels),
    ("clients are found by a beginning that looks like a number too", beginnings),
    ("a suspended client is refused everything until it is resumed", suspension),
    ("a removed client leaves nothing but what was recorded", removal),
    ("a reset client is as good as new, and keeps its label", resetting),
    ("the latest syncs of each client are kept", last_syncs),
    ("what is recorded is as durable as the change that it belongs to", recording),
];

fn client() -> ClientId {
    Uuid::new_v4().into()
}

fn version() -> VersionId {
    Uuid::now_v7().into()
}

fn add(storage: &dyn Storage, client: ClientId, parent: VersionId, segment: &[u8]) -> Outcome {
    let request = Write::AddVersion { client, parent, segment: segment.to_vec() };
    storage
        .writing(|writer| service::write(writer, &POLICY, &request, None, version(), 0))
        .expect("an add works")
}

fn added(outcome: &Outcome) -> VersionId {
    match outcome {
        Outcome::Added { version, .. } => *version,
        other => panic!("not added: {other:?}"),
    }
}

/// A new client with this many versions, and their IDs.
fn with_chain(storage: &dyn Storage, length: usize) -> (ClientId, Vec<VersionId>) {
    let client = client();
    let mut chain = Vec::new();
    for n in 0..length {
        let parent = chain.last().copied().unwrap_or(NIL);
        chain.push(added(&add(storage, client, parent, format!("segment {n}").as_bytes())));
    }
    (client, chain)
}

fn look(storage: &dyn Storage, client: ClientId) -> Option<Client> {
    storage.reading(|reader| reader.client(client)).expect("a read works")
}

fn latest(storage: &dyn Storage, client: ClientId) -> VersionId {
    look(storage, client).expect("the client exists").latest
}

fn child(
    storage: &dyn Storage,
    client: ClientId,
    parent: VersionId,
    room: usize,
) -> Option<(VersionId, Body)> {
    let found = storage.reading(|reader| reader.child(client, parent, room)).expect("a read works");
    let glanced = storage.glancing(|reader| reader.child(client, parent, room)).expect("a glance works");
    assert_eq!(found, glanced, "nobody writes meanwhile");
    found.expect("the client exists").child
}

/// The held snapshot of a client that exists.
fn snapshot(storage: &dyn Storage, client: ClientId, room: usize) -> Option<(VersionId, Body)> {
    let found = storage.reading(|reader| reader.snapshot(client, room)).expect("a read works");
    let glanced = storage.glancing(|reader| reader.snapshot(client, room)).expect("a glance works");
    assert_eq!(found, glanced, "nobody writes meanwhile");
    found.expect("the client exists").snapshot
}

fn set_snapshot(storage: &dyn Storage, client: ClientId, version: VersionId, now: i64, bytes: &[u8]) {
    storage.writing(|writer| writer.set_snapshot(client, version, now, bytes)).expect("a snapshot is stored");
}

fn unknown_client(storage: &dyn Storage) {
    let client = client();
    assert_eq!(look(storage, client), None);
    assert_eq!(storage.reading(|reader| reader.child(client, NIL, MIB)).expect("a read works"), None);
    assert_eq!(storage.reading(|reader| reader.parent(client, version())).expect("a read works"), None);
    assert_eq!(storage.reading(|reader| reader.snapshot(client, MIB)).expect("a read works"), None);
}

fn new_client(storage: &dyn Storage) {
    let client = client();
    storage.writing(|writer| writer.create_client(client, 7)).expect("a client is made");
    assert_eq!(
        look(storage, client),
        Some(Client { latest: NIL, snapshot: None, state: State::Active, has_devices: false })
    );
    assert_eq!(child(storage, client, NIL, MIB), None);
}

fn chain(storage: &dyn Storage) {
    let (client, chain) = with_chain(storage, 10);
    assert_eq!(latest(storage, client), chain[9]);
    let mut parent = NIL;
    for (n, id) in chain.iter().enumerate() {
        let segment = format!("segment {n}").into_bytes();
        assert_eq!(child(storage, client, parent, MIB), Some((*id, Body::Bytes(segment))));
        assert_eq!(storage.reading(|reader| reader.parent(client, *id)).expect("a read works"), Some(parent));
        parent = *id;
    }
    assert_eq!(child(storage, client, parent, MIB), None);
    assert_eq!(add(storage, client, chain[3], b"late"), Outcome::Conflict { latest: chain[9] });
}

fn separate_clients(storage: &dyn Storage) {
    let ((one, ours), (other, theirs)) = (with_chain(storage, 2), with_chain(storage, 2));
    assert_eq!(child(storage, one, theirs[0], MIB), None);
    assert_eq!(storage.reading(|reader| reader.parent(other, ours[1])).expect("a read works"), None);
    set_snapshot(storage, one, ours[1], 1, b"ours");
    assert_eq!(snapshot(storage, other, MIB), None);
}

fn snapshots(storage: &dyn Storage) {
    let (client, chain) = with_chain(storage, 2);
    set_snapshot(storage, client, chain[1], 1_700_000_000, b"first");
    let held = |versions_since| Snapshot { version: chain[1], timestamp: 1_700_000_000, versions_since };
    assert_eq!(look(storage, client).and_then(|client| client.snapshot), Some(held(0)));
    let third = added(&add(storage, client, chain[1], b"3"));
    assert_eq!(
        look(storage, client),
        Some(Client { latest: third, snapshot: Some(held(1)), state: State::Active, has_devices: false })
    );
    set_snapshot(storage, client, third, 1_800_000_000, b"second");
    let read = snapshot(storage, client, MIB);
    assert_eq!(read, Some((third, Body::Bytes(b"second".to_vec()))));
}

fn beside_large_snapshot(storage: &dyn Storage) {
    let (client, chain) = with_chain(storage, 1);
    let mut parent = chain[0];
    for round in 1..=2 {
        set_snapshot(storage, client, parent, round, &vec![7; 3 * MIB]);
        for count in 1..=3 {
            parent = added(&add(storage, client, parent, b"x"));
            let seen = look(storage, client).expect("the client exists");
            assert_eq!(seen.latest, parent);
            assert_eq!(seen.snapshot.map(|snapshot| snapshot.versions_since), Some(count));
        }
    }
    let read = snapshot(storage, client, 4 * MIB);
    assert_eq!(read.map(|(_, body)| body), Some(Body::Bytes(vec![7; 3 * MIB])));
}

fn no_room(storage: &dyn Storage) {
    let (client, chain) = with_chain(storage, 1);
    set_snapshot(storage, client, chain[0], 0, &[1; 100]);
    assert_eq!(child(storage, client, NIL, 8), Some((chain[0], Body::TooLarge(9))));
    assert_eq!(child(storage, client, NIL, 9), Some((chain[0], Body::Bytes(b"segment 0".to_vec()))));
    let read = |room| snapshot(storage, client, room);
    assert_eq!(read(99), Some((chain[0], Body::TooLarge(100))));
    assert_eq!(read(100), Some((chain[0], Body::Bytes(vec![1; 100]))));
}

fn pieces(storage: &dyn Storage) {
    let (client, chain) = with_chain(storage, 1);
    assert_eq!(poured(storage, client, 1, usize::MAX), Vec::<Vec<u8>>::new());
    let bytes: Vec<u8> = (0..MIB + 1).map(|n| (n / 251) as u8 ^ n as u8).collect();
    set_snapshot(storage, client, chain[0], 0, &bytes);
    let seen = poured(storage, client, MIB / 4, usize::MAX);
    assert!(seen.concat() == bytes, "the snapshot came back changed");
    assert!(seen.iter().all(|piece| !piece.is_empty() && piece.len() <= MIB / 4));
    assert!(poured(storage, client, 2 * MIB, usize::MAX).concat() == bytes);
    assert!(poured(storage, client, MIB / 4, 2) == seen[..2], "it goes on after it was told to stop");
    set_snapshot(storage, client, chain[0], 0, b"short");
    assert_eq!(poured(storage, client, 2, usize::MAX).concat(), b"short");
}

/// The first pieces of the held snapshot.
fn poured(storage: &dyn Storage, client: ClientId, piece: usize, most: usize) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut sink = |piece| {
        pieces.push(piece);
        pieces.len() < most
    };
    storage.reading(|reader| reader.pour_snapshot(client, piece, &mut sink)).expect("a read works");
    pieces
}

fn odd_bytes(storage: &dyn Storage) {
    let client = client();
    let all: Vec<u8> = (0..=255).collect();
    let first = added(&add(storage, client, NIL, &all));
    assert_eq!(child(storage, client, NIL, MIB), Some((first, Body::Bytes(all))));
    let second = added(&add(storage, client, first, b"\0"));
    assert_eq!(child(storage, client, first, MIB), Some((second, Body::Bytes(vec![0]))));
}

/// Makes a client and a version, then leaves the transaction without a commit.
fn leave(storage: &dyn Storage, client: ClientId, how: fn() -> super::Result<()>) -> super::Result<()> {
    storage.writing(|writer| {
        writer.create_client(client, 7)?;
        writer.append_version(client, version(), NIL, b"never")?;
        how()
    })
}

fn error_rolls_back(storage: &dyn Storage) {
    let gone = client();
    // Many times over, so that a pool of any size would run out of clean connections.
    for _ in 0..50 {
        let left = leave(storage, gone, || Err(Error::new(Kind::Other, "on purpose")));
        assert_eq!(left.map_err(|error| error.message), Err("on purpose".to_owned()));
    }
    assert_eq!(look(storage, gone), None);
    with_chain(storage, 2);
}

fn panic_rolls_back(storage: &dyn Storage) {
    let gone = client();
    for _ in 0..5 {
        let left = catch_unwind(AssertUnwindSafe(|| leave(storage, gone, || panic!("on purpose"))));
        assert!(left.is_err());
        let read = catch_unwind(AssertUnwindSafe(|| {
            storage.reading(|_| -> super::Result<()> { panic!("on purpose") })
        }));
        assert!(read.is_err());
    }
    assert_eq!(look(storage, gone), None);
    with_chain(storage, 2);
}

fn consistent_read(storage: &dyn Storage) {
    let (client, chain) = with_chain(storage, 1);
    storage
        .reading(|reader| {
            assert_eq!(reader.client(client)?.map(|client| client.latest), Some(chain[0]));
            let added = std::thread::scope(|scope| {
                scope
                    .spawn(|| added(&add(storage, client, chain[0], b"meanwhile")))
                    .join()
                    .expect("the add ends")
            });
            assert_ne!(added, chain[0]);
            assert_eq!(reader.client(client)?.map(|client| client.latest), Some(chain[0]));
            Ok(())
        })
        .expect("the read works");
    assert_ne!(latest(storage, client), chain[0]);
}

fn racing_threads(storage: &dyn Storage) {
    let client = client();
    for parent in [NIL, NIL, NIL] {
        let parent = look(storage, client).map_or(parent, |client| client.latest);
        let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
            let adds: Vec<_> =
                (0..8).map(|_| scope.spawn(|| add(storage, client, parent, b"race"))).collect();
            adds.into_iter().map(|add| add.join().expect("no add panics")).collect()
        });
        let winners: Vec<_> =
            outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Added { .. })).collect();
        assert_eq!(winners.len(), 1);
        let winner = added(winners[0]);
        let losers = outcomes.iter().filter(|outcome| **outcome == Outcome::Conflict { latest: winner });
        assert_eq!(losers.count(), 7);
    }
}

fn second_child(storage: &dyn Storage) {
    let (client, chain) = with_chain(storage, 2);
    let branch = storage.writing(|writer| writer.append_version(client, version(), chain[0], b"branch"));
    assert!(branch.is_err());
    assert_eq!(latest(storage, client), chain[1]);
}

fn group(storage: &dyn Storage) {
    let clients: Vec<ClientId> = (0..20).map(|_| client()).collect();
    let requests: Vec<Write> = (clients.iter().cycle().take(40))
        .map(|client| Write::AddVersion { client: *client, parent: NIL, segment: vec![1] })
        .collect();
    let outcomes = storage.writing(|writer| {
        requests
            .iter()
            .map(|write| service::write(writer, &POLICY, write, None, version(), 0))
            .collect::<super::Result<Vec<_>>>()
    });
    let outcomes = outcomes.expect("the group commits");
    for (n, client) in clients.iter().enumerate() {
        let winner = added(&outcomes[n]);
        assert_eq!(outcomes[n + 20], Outcome::Conflict { latest: winner });
        assert_eq!(latest(storage, *client), winner);
    }
}

fn make(registry: &dyn Registry, label: Option<&str>) -> ClientId {
    let client = client();
    registry.amending(|writer| writer.create(client, label, 7)).expect("a client is made");
    client
}

/// All of what is to be removed in one step.
const ALL: Portion = Portion { rows: u32::MAX, bytes: u64::MAX };

fn take_away(registry: &dyn Registry, client: ClientId, removal: Removal) {
    let done = registry.amending(|writer| {
        writer.begin_removal(client, removal)?;
        writer.remove_some(client, ALL)
    });
    assert!(done.expect("a removal").is_done);
}

fn entry(registry: &dyn Registry, client: ClientId) -> Option<Entry> {
    let one = registry.consulting(|reader| reader.client(client)).expect("a client can be read");
    let all = registry.consulting(|reader| reader.clients()).expect("the clients can be listed");
    assert!(all.is_sorted_by_key(|entry| entry.client));
    assert_eq!(all.into_iter().find(|entry| entry.client == client), one);
    one
}

fn entries(storage: &dyn Storage, registry: &dyn Registry) {
    assert_eq!(registry.consulting(|reader| reader.clients()).expect("a list"), []);
    let new = make(registry, Some("phone and laptop"));
    let blank = Entry {
        client: new,
        label: Some("phone and laptop".to_owned()),
        state: State::Active,
        created: Some(7),
        versions: 0,
        bytes: 0,
        latest: NIL,
        snapshot: None,
        snapshot_bytes: 0,
        last_sync: None,
        devices: 0,
    };
    assert_eq!(entry(registry, new), Some(blank.clone()));
    assert_eq!(
        look(storage, new),
        Some(Client { latest: NIL, snapshot: None, state: State::Active, has_devices: false })
    );

    let (grown, chain) = with_chain(storage, 3);
    set_snapshot(storage, grown, chain[1], 9, &[1; 50]);
    let snapshot = Some(Snapshot { version: chain[1], timestamp: 9, versions_since: 0 });
    let expected = Entry {
        client: grown,
        label: None,
        created: Some(0),
        versions: 3,
        bytes: 27,
        latest: chain[2],
        snapshot,
        snapshot_bytes: 50,
        ..blank
    };
    assert_eq!(entry(registry, grown), Some(expected));
    let first = |client| registry.consulting(|reader| reader.first_version(client)).expect("a read works");
    assert_eq!((first(grown), first(new)), (Some((chain[0], NIL)), None));
    assert_eq!(entry(registry, client()), None);
}

fn sizes(storage: &dyn Storage, registry: &dyn Registry) {
    let size = |client| entry(registry, client).map(|entry| (entry.versions, entry.bytes));
    let (one, mut chain) = with_chain(storage, 40);
    let (other, _) = with_chain(storage, 2);
    for round in 1..=3 {
        // Enough for the storage to do what it does at its leisure.
        for _ in 0..20 {
            let parent = *chain.last().expect("a chain");
            chain.push(added(&add(storage, one, parent, &vec![0; 1_000_000])));
            storage.rest().expect("there is time for a rest");
        }
        assert_eq!(size(one), Some((40 + 20 * round, 390 + 20_000_000 * round)));
    }
    take_away(registry, one, Removal::Client);
    assert_eq!((size(one), size(other)), (None, Some((2, 18))));
    let (third, _) = with_chain(storage, 60);
    storage.rest().expect("there is time for a rest");
    assert_eq!((size(third), size(other)), (Some((60, 590)), Some((2, 18))));
}

fn labels(_: &dyn Storage, registry: &dyn Registry) {
    let (alice, bob) = (make(registry, Some("alice")), make(registry, Some("bob")));
    let label = |client| entry(registry, client).and_then(|entry| entry.label);
    let set = |client, label| registry.amending(|writer| writer.set_label(client, label));
    assert!(set(bob, Some("alice")).is_err());
    assert!(registry.amending(|writer| writer.create(client(), Some("bob"), 7)).is_err());
    assert_eq!(label(bob).as_deref(), Some("bob"));
    for client in [alice, bob] {
        set(client, None).expect("a label can go");
    }
    set(alice, Some("bob")).expect("nobody has it any more");
    assert_eq!((label(alice).as_deref(), label(bob)), (Some("bob"), None));
}

fn beginnings(_: &dyn Storage, registry: &dyn Registry) {
    let search = |text| registry.consulting(|reader| reader.search(text, 2)).expect("a search works");
    let ids = ["12345678-0000-4000-8000-000000000000", "12345679-0000-4000-8000-000000000000"]
        .map(|id| ClientId::parse(id).expect("an ID"));
    for (client, label) in ids.into_iter().chain([client()]).zip([None, Some("12345678"), Some("1e5")]) {
        registry.amending(|writer| writer.create(client, label, 7)).expect("a client is made");
    }
    let found = |text| search(text).into_iter().map(|found| found.label).collect::<Vec<_>>();
    assert_eq!(found("12345678"), [None, Some("12345678".to_owned())]);
    assert_eq!(found("12345678-"), [None]);
    assert_eq!(found("12345679"), [Some("12345678".to_owned())]);
    assert_eq!(found("123456").len(), 2);
    assert!(found("1e5").contains(&Some("1e5".to_owned())));
    assert_eq!((found("nobody"), found("%"), found("*")), (vec![], vec![], vec![]));
}

/// The answers to the four transactions.
fn ask_all(storage: &dyn Storage, client: ClientId, latest: VersionId) -> Vec<Outcome> {
    let reads =
        [Read::GetChildVersion { client, parent: NIL, room: MIB }, Read::GetSnapshot { client, room: MIB }];
    let writes = [
        Write::AddVersion { client, parent: latest, segment: vec![1] },
        Write::AddSnapshot { client, version: latest, snapshot: vec![1] },
    ];
    let read = |read| storage.reading(|reader| service::read(reader, &POLICY, read, None)).expect("a read");
    let write = |write| {
        storage.writing(|writer| service::write(writer, &POLICY, write, None, version(), 0)).expect("a write")
    };
    reads.iter().map(read).chain(writes.iter().map(write)).collect()
}

fn suspension(storage: &dyn Storage, registry: &dyn Registry) {
    let (client, chain) = with_chain(storage, 2);
    set_snapshot(storage, client, chain[1], 0, b"snapshot");
    let ask = || ask_all(storage, client, chain[1]);
    let set = |state| registry.amending(|writer| writer.set_state(client, state)).expect("a change");
    set(State::Suspended);
    assert_eq!(entry(registry, client).map(|entry| entry.state), Some(State::Suspended));
    assert_eq!(ask(), vec![Outcome::Refused(Refusal::Suspended); 4]);
    assert_eq!(latest(storage, client), chain[1]);
    set(State::Active);
    assert!(!ask().contains(&Outcome::Refused(Refusal::Suspended)));
    assert_ne!(latest(storage, client), chain[1]);
}

fn event(client: ClientId) -> Event {
    Event {
        id: Uuid::now_v7(),
        at: 5,
        client: Some(client),
        user: "alice".to_owned(),
        action: "label-client".to_owned(),
        detail: "bob".to_owned(),
    }
}

fn removal(storage: &dyn Storage, registry: &dyn Registry) {
    let (gone, chain) = with_chain(storage, 3);
    let (stays, _) = with_chain(storage, 2);
    set_snapshot(storage, gone, chain[2], 0, &vec![1; 3 * MIB]);
    added(&add(storage, gone, chain[2], b"counted beside the snapshot"));
    let event = event(gone);
    registry
        .amending(|writer| {
            writer.set_label(gone, Some("alice"))?;
            writer.set_state(gone, State::Suspended)?;
            writer.record(&event)?;
            writer.begin_removal(gone, Removal::Client)?;
            writer.remove_some(gone, ALL)
        })
        .expect("a client is removed");
    assert_eq!((look(storage, gone), entry(registry, gone)), (None, None));
    assert_eq!(entry(registry, stays).map(|entry| entry.versions), Some(2));
    let events = registry.consulting(|reader| reader.events(Some(gone), 9)).expect("a read works");
    assert_eq!(events, [event]);
    // The same ID again is a new client, and the label is free.
    added(&add(storage, gone, NIL, b"first"));
    assert_eq!(entry(registry, gone).map(|entry| (entry.versions, entry.label)), Some((1, None)));
    make(registry, Some("alice"));
}

fn resetting(storage: &dyn Storage, registry: &dyn Registry) {
    let (client, chain) = with_chain(storage, 3);
    set_snapshot(storage, client, chain[2], 0, &vec![1; 3 * MIB]);
    added(&add(storage, client, chain[2], b"counted beside the snapshot"));
    registry.amending(|writer| writer.set_label(client, Some("alice"))).expect("a label");
    take_away(registry, client, Removal::History);
    assert_eq!(
        look(storage, client),
        Some(Client { latest: NIL, snapshot: None, state: State::Active, has_devices: false })
    );
    assert_eq!(child(storage, client, NIL, MIB), None);
    assert_eq!(snapshot(storage, client, MIB), None);
    let first = added(&add(storage, client, version(), b"a chain that began elsewhere"));
    let entry = entry(registry, client).expect("the client is still there");
    assert_eq!((entry.versions, entry.latest, entry.label.as_deref()), (1, first, Some("alice")));
}

fn last_syncs(storage: &dyn Storage, registry: &dyn Registry) {
    let (one, other) = (make(registry, None), make(registry, None));
    let noted = |client, program: &str, at| Noted { client, device: None, program: program.to_owned(), at };
    let note = |noted: &[Noted]| storage.writing(|writer| writer.note_syncs(noted)).expect("it is noted");
    note(&[noted(one, "a", 5), noted(one, "b", 7), noted(client(), "a", 9)]);
    note(&[noted(one, "a", 8), noted(one, "b", 6)]);
    let read = |client| registry.consulting(|reader| reader.syncs(client)).expect("a read works");
    let sync = |program: &str, at| LastSync { device: None, program: program.to_owned(), at };
    assert_eq!(read(one), [sync("a", 8), sync("b", 7)]);
    assert_eq!(read(other), []);
    let last = |client| entry(registry, client).and_then(|entry| entry.last_sync);
    assert_eq!((last(one), last(other)), (Some(8), None));
    (10..100).for_each(|n| note(&[noted(one, &format!("program {n}"), n)]));
    assert_eq!((read(one).len(), last(one)), (20, Some(99)));
}

fn recording(_: &dyn Storage, registry: &dyn Registry) {
    let (one, other) = (make(registry, None), make(registry, None));
    let events: Vec<Event> = [one, other, one].map(event).into();
    for event in &events {
        registry.amending(|writer| writer.record(event)).expect("an event is recorded");
    }
    let lost: super::Result<()> = registry.amending(|writer| {
        writer.record(&event(one))?;
        writer.set_label(one, Some("never"))?;
        Err(Error::new(Kind::Other, "on purpose"))
    });
    assert!(lost.is_err());
    let read = |client, limit| {
        registry.consulting(|reader| reader.events(client, limit)).expect("events can be read")
    };
    assert_eq!(read(None, 9), events);
    assert_eq!(read(None, 2), events[1..]);
    assert_eq!(read(Some(one), 9), [events[0].clone(), events[2].clone()]);
    assert_eq!(entry(registry, one).and_then(|entry| entry.label), None);
    let again = Event { detail: "carol".to_owned(), ..events[2].clone() };
    registry.amending(|writer| writer.record(&again)).expect("an event is recorded once more");
    assert_eq!(read(None, 9), [events[0].clone(), events[1].clone(), again]);
}

/// 100 MiB, so that every backend takes its path for what it cannot hold twice.
fn store_large(storage: &dyn Storage) -> (ClientId, VersionId, Vec<u8>) {
    let bytes: Vec<u8> = (0..100 * MIB).map(|n| (n / 251) as u8 ^ n as u8).collect();
    let client = client();
    let first = added(&add(storage, client, NIL, &bytes));
    set_snapshot(storage, client, first, 1, &bytes);
    added(&add(storage, client, first, b"after it"));
    (client, first, bytes)
}

fn find_large(storage: &dyn Storage, client: ClientId, first: VersionId, bytes: Vec<u8>) {
    let (id, body) = child(storage, client, NIL, usize::MAX).expect("the version is there");
    assert!(id == first && body == Body::Bytes(bytes.clone()), "the segment came back changed");
    let read = snapshot(storage, client, usize::MAX);
    assert!(poured(storage, client, MIB, usize::MAX).concat() == bytes, "it was poured changed");
    assert!(read == Some((first, Body::Bytes(bytes))), "the snapshot came back changed");
    let (second, body) = child(storage, client, first, MIB).expect("the version after it is there");
    assert!(body == Body::Bytes(b"after it".to_vec()) && latest(storage, client) == second);
}
