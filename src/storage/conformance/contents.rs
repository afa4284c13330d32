//! What every backend must do with all that it holds.

use super::{NIL, add, added, client, set_snapshot, version, with_chain};
use crate::protocol::{Outcome, State};
use crate::storage::contents::{Client, Contents, Decision, Device, LastUse, Record, Version};
use crate::storage::location::Database;
use crate::storage::registry::{Event, Registry};
use crate::storage::{Error, Kind, Noted, Result, Storage};
use std::sync::Arc;
use uuid::Uuid;

/// Runs every case, each with two places where nothing was stored yet.
pub fn run<P>(place: impl Fn() -> P, open: impl Fn(&P) -> Arc<dyn Database>) {
    run_each(CASES, place, open);
}

/// Runs these cases, each with two such places.
pub fn run_each<P>(cases: &[Case], place: impl Fn() -> P, open: impl Fn(&P) -> Arc<dyn Database>) {
    for (name, case) in cases {
        println!("conformance: {name}");
        let (one, other) = (place(), place());
        case(&*open(&one), &*open(&other));
    }
}

/// What it shows, and how.
pub type Case = (&'static str, fn(&dyn Database, &dyn Database));

const CASES: &[Case] = &[
    ("all that one database holds is in another, in the same order", round_trip),
    ("rows that break the chain are carried as they are", broken_chains),
    ("what is put in can be used at once", used_at_once),
    ("a source that fails leaves nothing", failed_import),
    ("a database that holds something takes nothing in", full),
    ("an export sees one state while others write", consistent_export),
];

/// Every record as text.
pub fn records(contents: &dyn Contents) -> Vec<String> {
    let mut records = Vec::new();
    let exported = contents.export(&mut |record| {
        records.push(format!("{record:?}"));
        Ok(())
    });
    exported.expect("an export works");
    records
}

fn copy(from: &dyn Database, to: &dyn Database) -> Result<()> {
    to.import(&mut |put| from.export(put))
}

pub fn fill(database: &dyn Database) {
    let (client, chain) = with_chain(database, 5);
    set_snapshot(database, client, chain[3], 1_700_000_000, &vec![7; 20 << 20]);
    added(&add(database, client, chain[4], &vec![8; 300 << 10]));
    let noted = Noted { client, device: None, program: "task".to_owned(), at: 9 };
    let storage: &dyn Storage = database;
    storage.writing(|writer| writer.note_syncs(std::slice::from_ref(&noted))).expect("it is noted");
    let event = Event {
        id: Uuid::now_v7(),
        at: 10,
        client: Some(client),
        user: "root".to_owned(),
        action: "label-client".to_owned(),
        detail: "ä".to_owned(),
    };
    let registry: &dyn Registry = database;
    registry
        .amending(|writer| {
            writer.set_label(client, Some("label"))?;
            writer.set_state(client, State::Suspended)?;
            writer.record(&event)
        })
        .expect("it is changed");
    with_chain(database, 0);
    with_chain(database, 2);
}

fn round_trip(one: &dyn Database, other: &dyn Database) {
    fill(one);
    copy(one, other).expect("it is taken in");
    let records = records(one);
    assert_eq!(records, self::records(other));
    let kinds = ["Client", "Version", "Decision", "Sync", "Event"];
    assert!(
        kinds.iter().all(|kind| records.iter().any(|record| record.starts_with(kind))),
        "{records:.100?}"
    );
    let registry: (&dyn Registry, &dyn Registry) = (one, other);
    let clients = |registry: &dyn Registry| registry.consulting(|reader| reader.clients()).expect("a list");
    assert_eq!(clients(registry.0), clients(registry.1));
    assert!(one.extent().expect("a size") > 20 << 20);
}

fn broken_chains(one: &dyn Database, other: &dyn Database) {
    let (known, unknown, foreign) = (client(), client(), version());
    let put = |database: &dyn Database| {
        database.import(&mut |put| {
            put(Record::Client(Client { client: known, latest: NIL, snapshot: None }))?;
            for (client, segment) in [(known, &b"one"[..]), (known, b"other"), (unknown, b"")] {
                put(Record::Version(Version { client, id: version(), parent: foreign, segment }))?;
            }
            let label = Some("of nobody".to_owned());
            let (state, created) = (State::Suspended, None);
            put(Record::Decision(Decision { client: unknown, label, state, created }))?;
            let name = "phone".to_owned();
            put(Record::Device(Device { client: known, name, token_hash: &[1; 32], created: 3 }))?;
            let (device, program) = ("phone".to_owned(), "task".to_owned());
            put(Record::Sync(LastUse { client: known, device, program, at: 4 }))
        })
    };
    put(one).expect("they are taken in");
    let records = records(one);
    // The device makes a decision of its client, where the number of them is kept.
    assert_eq!(records.len(), 8, "{records:?}");
    copy(one, other).expect("they are taken in");
    assert_eq!(records, self::records(other));
    let registry: &dyn Registry = other;
    let entry = registry.consulting(|reader| reader.client(known)).expect("a read works").expect("it exists");
    assert_eq!((entry.devices, entry.versions), (1, 2));
}

fn used_at_once(one: &dyn Database, other: &dyn Database) {
    let (client, chain) = with_chain(one, 3);
    copy(one, other).expect("it is taken in");
    assert!(matches!(add(other, client, chain[0], b"x"), Outcome::Conflict { latest } if latest == chain[2]));
    added(&add(other, client, chain[2], b"x"));
}

fn failed_import(one: &dyn Database, other: &dyn Database) {
    fill(one);
    let mut left = 4;
    let failed = other.import(&mut |put| {
        one.export(&mut |record| {
            if left == 0 {
                return Err(Error::new(Kind::Other, "no more"));
            }
            left -= 1;
            put(record)
        })
    });
    assert_eq!(failed.expect_err("the source failed").message, "no more");
    assert_eq!(records(other), Vec::<String>::new());
    copy(one, other).expect("it is as empty as before");
}

fn full(one: &dyn Database, other: &dyn Database) {
    with_chain(one, 1);
    with_chain(other, 1);
    let before = records(other);
    copy(one, other).expect_err("it holds something");
    assert_eq!(records(other), before);
}

fn consistent_export(one: &dyn Database, _other: &dyn Database) {
    let (client, chain) = with_chain(one, 3);
    let mut latest = chain[2];
    let mut versions = 0;
    let exported = one.export(&mut |record| {
        match record {
            Record::Client(found) => assert_eq!(found.latest, chain[2]),
            Record::Version(_) => versions += 1,
            _ => {}
        }
        latest = added(&add(one, client, latest, b"meanwhile"));
        Ok(())
    });
    exported.expect("an export works");
    assert_eq!(versions, 3, "it saw what was added meanwhile");
}
