//! What every backend must do as the original of a copy, and as the copy.

use super::contents::{Case, fill, records, run_each};
use super::{NIL, add, added, client, set_snapshot, version, with_chain};
use crate::credential::Hash;
use crate::protocol::{ClientId, State, VersionId};
use crate::storage::contents::{Client, Record, Version};
use crate::storage::copying::{Carried, Holding, Note, Segment, With};
use crate::storage::location::Database;
use crate::storage::registry::{Event, Portion, Registry, Removal};
use crate::storage::{Noted, Storage};
use crate::transfer::{self, Copied, Copy, Obstacle};
use std::sync::Arc;
use uuid::Uuid;

/// Runs every case, each with two places where nothing was stored yet.
pub fn run<P>(place: impl Fn() -> P, open: impl Fn(&P) -> Arc<dyn Database>) {
    run_each(CASES, place, open);
}

const CASES: &[Case] = &[
    ("a copy holds all that the original holds", whole),
    ("the next run carries what came, what changed and what went", again),
    ("rows that break the chain are copied, and mended ones make it whole again", broken),
    ("what is being removed is not copied", leaving),
    ("many clients and versions are copied in pages", many),
    ("a run that another took the place of changes nothing", superseded),
    ("a database with data of its own is no target, nor is the copy of another", refused),
    ("bytes that differ under the same ID are found", damaged),
];

/// No more than what a holding says itself.
const EMPTY: With = With { versions: &[], snapshot: Carried::Other(None), is_new: false };

/// One run, as the verb makes it.
fn copy(source: &dyn Database, target: &dyn Database) -> Result<Copied, Obstacle> {
    let run = Uuid::now_v7();
    let note = transfer::note(source, target, run, "the original".to_owned()).expect("both can be read")?;
    record(source, run, None);
    target.begin_copy(&note, source.may_branch().expect("it is known")).expect("it begins");
    let copy = Copy { source, target, run, verifies_all: true };
    let copied = transfer::run(&copy, &mut |_| ()).expect("it is copied");
    assert_eq!(sorted(source), sorted(target));
    let adopted = |database: &dyn Database| database.measure().expect("it is known").adopted;
    assert_eq!(adopted(source), adopted(target));
    assert!(target.note().expect("it is read").is_some_and(|note| note.is_finished && note.run == run));
    Ok(copied)
}

fn sorted(database: &dyn Database) -> Vec<String> {
    let mut records = records(database);
    records.sort();
    records
}

fn record(database: &dyn Database, id: Uuid, client: Option<ClientId>) {
    let (user, action, detail) = ("root".to_owned(), "copy".to_owned(), "to you".to_owned());
    let event = Event { id, at: 11, client, user, action, detail };
    change(database, |writer| writer.record(&event));
}

fn change(
    database: &dyn Database,
    mut work: impl FnMut(&mut dyn crate::storage::registry::Writer) -> crate::storage::Result<()>,
) {
    let registry: &dyn Registry = database;
    registry.amending(|writer| work(writer)).expect("it is changed");
}

fn whole(one: &dyn Database, other: &dyn Database) {
    fill(one);
    let (client, chain) = with_chain(one, 3);
    change(one, |writer| {
        writer.set_label(client, Some("bob"))?;
        writer.add_device(client, "laptop", &Hash::of("x"), 7)?;
        writer.add_device(client, "phone", &Hash::of("y"), 8)
    });
    let copied = copy(one, other).expect("nothing hinders it");
    assert_eq!((copied.clients, copied.versions, copied.carried), (3, 11, 11));
    assert_eq!((copied.removed, copied.verified), (0, 12));
    let again = copy(one, other).expect("it is the same copy");
    // The second run itself was recorded.
    assert_eq!((again.changed, again.carried, again.bytes), (1, 0, 0));
    assert_eq!(other.census().expect("it is counted"), (3, 11));
    other.end_copy().expect("it is used");
    assert_eq!(other.note().expect("it is read"), None);
    // It can be used like any other.
    change(other, |writer| {
        writer.remove_device(client, "laptop")?;
        writer.remove_device(client, "phone")
    });
    added(&add(other, client, chain[2], b"x"));
    let registry: &dyn Registry = other;
    let entry = registry.consulting(|reader| reader.client(client)).expect("a read").expect("it exists");
    assert_eq!((entry.versions, entry.devices, entry.label.as_deref()), (4, 0, Some("bob")));
}

fn again(one: &dyn Database, other: &dyn Database) {
    let (grown, grown_chain) = with_chain(one, 3);
    set_snapshot(one, grown, grown_chain[2], 50, &vec![1; 2 << 20]);
    let (pruned, pruned_chain) = with_chain(one, 5);
    set_snapshot(one, pruned, pruned_chain[3], 60, b"small");
    let (removed, _) = with_chain(one, 2);
    let (reset, _) = with_chain(one, 2);
    let (still, _) = with_chain(one, 2);
    change(one, |writer| {
        writer.set_label(grown, Some("a"))?;
        writer.set_label(pruned, Some("b"))?;
        writer.set_state(still, State::Suspended)?;
        writer.add_device(still, "laptop", &Hash::of("x"), 7)
    });
    copy(one, other).expect("nothing hinders it");

    let latest = added(&add(one, grown, grown_chain[2], b"more"));
    let latest = added(&add(one, grown, latest, &vec![9; 3 << 20]));
    set_snapshot(one, pruned, pruned_chain[4], 61, b"other");
    let note = Noted { client: pruned, device: None, program: "task".to_owned(), at: 99 };
    let storage: &dyn Storage = one;
    storage.writing(|writer| writer.note_syncs(std::slice::from_ref(&note))).expect("it is noted");
    let (new, _) = with_chain(one, 4);
    change(one, |writer| {
        assert!(writer.prune(pruned, &pruned_chain[..2])?);
        writer.begin_removal(removed, Removal::Client)?;
        writer.remove_some(removed, Portion { rows: 100, bytes: 1 << 20 })?;
        writer.begin_removal(reset, Removal::History)?;
        writer.remove_some(reset, Portion { rows: 100, bytes: 1 << 20 })?;
        // Each gets the other's label.
        writer.set_label(grown, None)?;
        writer.set_label(pruned, Some("a"))?;
        writer.set_label(grown, Some("b"))?;
        writer.set_state(still, State::Active)?;
        // Another device of the same name, added in the same second.
        writer.remove_device(still, "laptop")?;
        writer.add_device(still, "laptop", &Hash::of("z"), 7)
    });
    record(one, Uuid::now_v7(), Some(removed));
    let copied = copy(one, other).expect("it is the same copy");
    assert_eq!((copied.carried, copied.removed), (2 + 4, 2 + 2 + 2));
    // Beside what changed, the run itself was recorded.
    assert_eq!(copied.changed, 7);
    for id in [grown, new] {
        let registry: &dyn Registry = other;
        let entry = registry.consulting(|reader| reader.client(id)).expect("a read").expect("it exists");
        assert_eq!(entry.versions, if id == grown { 5 } else { 4 });
    }
    // The snapshot stayed where it was, and what is counted from it is right.
    let storage: &dyn Storage = other;
    let found = storage.reading(|reader| reader.client(grown)).expect("a read").expect("it exists");
    assert_eq!((found.latest, found.snapshot.map(|held| held.versions_since)), (latest, Some(2)));
    let latest = added(&add(one, grown, latest, b"and more"));
    copy(one, other).expect("it is the same copy");
    let found = storage.reading(|reader| reader.client(grown)).expect("a read").expect("it exists");
    assert_eq!((found.latest, found.snapshot.map(|held| held.versions_since)), (latest, Some(3)));
}

fn broken(one: &dyn Database, other: &dyn Database) {
    let (known, unknown, foreign) = (client(), client(), version());
    let branch = version();
    let filled = one.import(&mut |put| {
        put(Record::Client(Client { client: known, latest: NIL, snapshot: None }))?;
        for (client, id, segment) in
            [(known, version(), &b"one"[..]), (known, branch, b"other"), (unknown, version(), b"")]
        {
            put(Record::Version(Version { client, id, parent: foreign, segment }))?;
        }
        Ok(())
    });
    filled.expect("they are taken in");
    assert!(one.may_branch().expect("it is known"));
    let copied = copy(one, other).expect("nothing hinders it");
    assert_eq!((copied.clients, copied.versions), (1, 3));
    assert!(other.may_branch().expect("it is known"));
    // As if somebody had mended the original by hand.
    let run = Uuid::now_v7();
    let note = Note { origin: run, run, is_finished: false, original: String::new() };
    one.begin_copy(&note, true).expect("it begins");
    one.remove_versions(run, known, &[branch]).expect("it is removed");
    one.finish_copy(run, 5).expect("it is finished");
    assert!(!one.may_branch().expect("it is known"));
    one.end_copy().expect("it is used");
    copy(one, other).expect("it is the same copy");
    assert!(!other.may_branch().expect("it is known"));
}

fn leaving(one: &dyn Database, other: &dyn Database) {
    let (gone, _) = with_chain(one, 5);
    let (emptied, _) = with_chain(one, 5);
    let (stays, _) = with_chain(one, 1);
    change(one, |writer| {
        writer.set_label(emptied, Some("emptied"))?;
        writer.begin_removal(gone, Removal::Client)?;
        writer.begin_removal(emptied, Removal::History)?;
        writer.remove_some(emptied, Portion { rows: 1, bytes: 1 }).map(|_| ())
    });
    let copied = copy(one, other).expect("nothing hinders it");
    assert_eq!((copied.clients, copied.versions), (2, 1));
    let registry: &dyn Registry = other;
    let clients = registry.consulting(|reader| reader.clients()).expect("a list");
    let mut found: Vec<_> = clients.iter().map(|entry| (entry.client, entry.versions)).collect();
    found.sort();
    let mut expected = vec![(emptied, 0), (stays, 1)];
    expected.sort();
    assert_eq!(found, expected);
    assert!(clients.iter().all(|entry| entry.state == State::Active));
}

fn many(one: &dyn Database, other: &dyn Database) {
    let storage: &dyn Storage = one;
    let clients: Vec<ClientId> = (0..1203).map(|_| client()).collect();
    storage
        .writing(|writer| {
            for client in &clients {
                writer.create_client(*client, 5)?;
                writer.append_version(*client, version(), NIL, b"x")?;
            }
            let mut parent = NIL;
            let long = client();
            writer.create_client(long, 5)?;
            for number in 0..700_u32 {
                let next = version();
                writer.append_version(long, next, parent, &number.to_le_bytes())?;
                parent = next;
            }
            Ok(())
        })
        .expect("they are made");
    let mut steps = 0;
    let run = Uuid::now_v7();
    let note =
        transfer::note(one, other, run, String::new()).expect("both can be read").expect("it is empty");
    record(one, run, None);
    other.begin_copy(&note, false).expect("it begins");
    let copy_all = Copy { source: one, target: other, run, verifies_all: false };
    let copied = transfer::run(&copy_all, &mut |step| {
        assert_eq!(step.of, 1204 + 1903);
        steps += step.more;
    });
    let copied = copied.expect("it is copied");
    assert_eq!((copied.clients, copied.versions, steps), (1204, 1903, 1204 + 1903));
    assert_eq!(sorted(one), sorted(other));
}

fn superseded(one: &dyn Database, other: &dyn Database) {
    let (client, chain) = with_chain(one, 1);
    copy(one, other).expect("nothing hinders it");
    let before = sorted(other);
    let finished = other.note().expect("it is read").expect("there is one").run;
    let segment = Segment { id: version(), parent: chain[0], bytes: b"x".to_vec() };
    let holding = Holding::none(client.uuid());
    let refuses = |run: Uuid| {
        let told = |done: crate::storage::Result<()>| {
            let message = done.expect_err("it is not its turn").message;
            assert!(message.contains("another run"), "{message}");
        };
        told(other.put_versions(run, client, std::slice::from_ref(&segment)));
        told(other.remove_versions(run, client, &chain));
        told(other.put_holding(run, &holding, EMPTY));
        told(other.finish_copy(run, 1));
    };
    refuses(finished);
    let mut note = other.note().expect("it is read").expect("there is one");
    (note.run, note.is_finished) = (Uuid::now_v7(), false);
    other.begin_copy(&note, false).expect("it begins");
    refuses(finished);
    refuses(Uuid::now_v7());
    let wrong = Holding { versions: 7, ..holding.clone() };
    other.put_holding(note.run, &wrong, EMPTY).expect_err("there are not as many");
    assert_eq!(sorted(other), before);
}

fn refused(one: &dyn Database, other: &dyn Database) {
    with_chain(one, 1);
    let (client, _) = with_chain(other, 1);
    let before = sorted(other);
    assert_eq!(copy(one, other), Err(Obstacle::HoldsData));
    assert_eq!(sorted(other), before);
    change(other, |writer| {
        writer.begin_removal(client, Removal::Client)?;
        writer.remove_some(client, Portion { rows: 9, bytes: 9 }).map(|_| ())
    });
    copy(one, other).expect("it is empty");
    // A third database, which never began a copy.
    let mut note = other.note().expect("it is read").expect("there is one");
    note.origin = Uuid::now_v7();
    other.begin_copy(&note, false).expect("it begins");
    assert_eq!(copy(one, other), Err(Obstacle::OfAnother("the original".to_owned())));
    other.end_copy().expect("it is used");
    assert_eq!(copy(one, other), Err(Obstacle::HoldsData));
}

fn damaged(one: &dyn Database, other: &dyn Database) {
    let (client, chain) = with_chain(one, 2);
    copy(one, other).expect("nothing hinders it");
    let segments = one.segments(client, &[chain[1], version()]).expect("they are read");
    assert_eq!(segments.len(), 1);
    let mut note = other.note().expect("it is read").expect("there is one");
    (note.run, note.is_finished) = (Uuid::now_v7(), false);
    other.begin_copy(&note, false).expect("it begins");
    let mut wrong = segments;
    wrong[0].bytes[0] ^= 1;
    let ids: Vec<VersionId> = wrong.iter().map(|segment| segment.id).collect();
    other.remove_versions(note.run, client, &ids).expect("it is removed");
    other.put_versions(note.run, client, &wrong).expect("it is put");
    let run = |verifies_all| {
        let copy = Copy { source: one, target: other, run: note.run, verifies_all };
        transfer::run(&copy, &mut |_| ())
    };
    assert!(run(true).expect_err("it differs").message.contains("not what the source has"));
}
