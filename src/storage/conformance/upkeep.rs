//! What every backend tells of its own health.

use super::{
    NIL, add, added, ask_all, client, entry, look, make, set_snapshot, take_away, version, with_chain,
};
use crate::protocol::{Client, ClientId, Outcome, Refusal, State, VersionId};
use crate::storage::contents::Record;
use crate::storage::location::Database;
use crate::storage::registry::{Portion, Registry, Removal, Removed};
use crate::storage::upkeep::{Chain, Holder, Link};

pub type Case = (&'static str, fn(&dyn Database));

pub const CASES: &[Case] = &[
    ("every version of a chain is told with what it follows", whole_chain),
    ("clients that exist and what is left of others are told apart", holders),
    ("a database grows with what it holds", growth),
    ("a removal in steps is refused everything until it is done", removal),
    ("what is being removed is in no backup", left_out),
    ("a chain is pruned from its start on, and figures stay right", pruning),
    ("a sound database has no flaw, and a look at it can be given up", soundness),
];

fn chain(database: &dyn Database, client: ClientId) -> Chain {
    let mut chain = database.chain(client).expect("a chain can be read");
    chain.links.sort_by_key(|link| link.version);
    chain
}

fn whole_chain(database: &dyn Database) {
    assert_eq!(chain(database, client()), Chain::NONE);
    let (grown, ids) = with_chain(database, 3);
    with_chain(database, 2);
    set_snapshot(database, grown, ids[1], 9, &[1; 50]);
    (database as &dyn Registry)
        .amending(|writer| writer.set_state(grown, State::Suspended))
        .expect("a change");
    let parents = [NIL, ids[0], ids[1]];
    let link = |(version, parent): (&VersionId, VersionId)| Link { version: *version, parent, bytes: 9 };
    let mut links: Vec<Link> = ids.iter().zip(parents).map(link).collect();
    links.sort_by_key(|link| link.version);
    let expected = Chain {
        exists: true,
        state: State::Suspended,
        latest: ids[2],
        snapshot: Some(ids[1]),
        snapshot_bytes: 50,
        links,
    };
    assert_eq!(chain(database, grown), expected);
}

fn holders(database: &dyn Database) {
    let labelled = make(database, Some("alice"));
    let (grown, _) = with_chain(database, 1);
    let holder =
        |client, label: Option<&str>| Holder { client, label: label.map(str::to_owned), exists: true };
    let mut expected = [holder(labelled, Some("alice")), holder(grown, None)];
    expected.sort_by_key(|holder| holder.client);
    assert_eq!(database.holders().expect("a list"), expected);
    take_away(database, grown, Removal::Client);
    assert_eq!(database.holders().expect("a list"), [holder(labelled, Some("alice"))]);
}

fn growth(database: &dyn Database) {
    let room = || {
        let measures = database.measure().expect("it can be measured");
        assert_eq!(measures.schema, crate::storage::schema::CURRENT);
        measures.database
    };
    let before = room();
    let (client, ids) = with_chain(database, 1);
    // Bytes that no database can make fewer.
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    added(&add(database, client, ids[0], &bytes));
    assert!(room() >= before + 2_900_000, "{} after {before}", room());
}

fn soundness(database: &dyn Database) {
    with_chain(database, 20);
    let found = database.examine(&mut || true).expect("a look");
    assert_eq!((found.flaws, found.unfinished), (vec![], None));
    // So little is looked at before anybody is asked, or not at all.
    let given_up = database.examine(&mut || false).expect("a look");
    assert_eq!(given_up.flaws, Vec::<String>::new());
}

fn removal(database: &dyn Database) {
    let registry: &dyn Registry = database;
    let begin = |client, removal| {
        registry.amending(|writer| writer.begin_removal(client, removal)).expect("a removal begins");
    };
    let some = |client, rows, bytes| {
        let most = Portion { rows, bytes };
        registry.amending(|writer| writer.remove_some(client, most)).expect("some of it goes")
    };
    let leaving = || registry.consulting(|reader| reader.leaving()).expect("a read works");
    let ((gone, chain), (stays, _)) = (with_chain(database, 10), with_chain(database, 2));
    set_snapshot(database, gone, chain[9], 0, &[1; 50]);
    assert_eq!(some(gone, 3, 1_000), Removed { versions: 0, is_done: true }, "nobody asked for it");
    begin(gone, Removal::Client);
    // Less is no way out of more.
    begin(gone, Removal::History);
    for left in [10, 7, 5, 4] {
        assert_eq!(leaving(), [gone]);
        assert_eq!(ask_all(database, gone, chain[9]), vec![Outcome::Refused(Refusal::Leaving); 4]);
        let seen = entry(registry, gone).expect("it is still there");
        assert_eq!((seen.state, seen.versions, seen.snapshot), (State::Leaving, left, None));
        match left {
            10 => assert_eq!(some(gone, 3, 1_000), Removed { versions: 3, is_done: false }),
            // Each has nine bytes, and the one with which it is enough goes too.
            7 => assert_eq!(some(gone, 100, 10), Removed { versions: 2, is_done: false }),
            5 => assert!(!some(gone, 0, 0).is_done),
            _ => assert!(some(gone, 100, 1_000).is_done),
        }
    }
    assert_eq!((look(database, gone), entry(registry, gone), leaving()), (None, None, vec![]));
    assert_eq!(entry(registry, stays).map(|entry| (entry.versions, entry.bytes)), Some((2, 18)));

    let (emptied, chain) = with_chain(database, 4);
    registry.amending(|writer| writer.set_label(emptied, Some("alice"))).expect("a label");
    begin(emptied, Removal::History);
    assert!(!some(emptied, 2, 1_000).is_done);
    assert_eq!(ask_all(database, emptied, chain[3]), vec![Outcome::Refused(Refusal::Leaving); 4]);
    assert!(some(emptied, 9, 1_000).is_done);
    let new = Client { latest: NIL, snapshot: None, state: State::Active, has_devices: false };
    assert_eq!(look(database, emptied), Some(new));
    added(&add(database, emptied, version(), b"anew"));
    let seen = entry(registry, emptied).map(|entry| (entry.versions, entry.label));
    assert_eq!(seen, Some((1, Some("alice".to_owned()))));
}

fn left_out(database: &dyn Database) {
    let registry: &dyn Registry = database;
    let ((gone, _), (emptied, _), (stays, _)) =
        (with_chain(database, 3), with_chain(database, 3), with_chain(database, 3));
    registry.amending(|writer| writer.set_label(gone, Some("alice"))).expect("a label");
    for (client, removal) in [(gone, Removal::Client), (emptied, Removal::History)] {
        registry.amending(|writer| writer.begin_removal(client, removal)).expect("a removal begins");
    }
    let (mut clients, mut versions) = (Vec::new(), Vec::new());
    database
        .export(&mut |record| {
            match record {
                Record::Client(client) => clients.push(client.client),
                Record::Version(version) => versions.push(version.client),
                Record::Decision(decision) => assert_ne!(decision.client, gone),
                _ => {}
            }
            Ok(())
        })
        .expect("all is visited");
    clients.sort();
    let mut expected = vec![emptied, stays];
    expected.sort();
    assert_eq!((clients, versions), (expected, vec![stays; 3]));
}

fn pruning(database: &dyn Database) {
    let registry: &dyn Registry = database;
    let prune = |client, versions: &[VersionId]| {
        registry.amending(|writer| writer.prune(client, versions)).expect("versions can be pruned")
    };
    let size = |client| entry(registry, client).map(|entry| (entry.versions, entry.bytes));
    let ((one, ids), (other, others)) = (with_chain(database, 6), with_chain(database, 2));
    assert!(!prune(one, &ids[..1]), "no snapshot covers it");
    set_snapshot(database, one, ids[3], 9, b"snapshot");
    set_snapshot(database, other, others[1], 9, b"snapshot");
    assert!(!prune(one, &ids), "the latest version stays");
    assert!(!prune(other, &ids[..1]), "it is another's");
    assert!(prune(one, &ids[..2]) && prune(one, &ids[2..4]));
    assert!(!prune(one, &ids[3..4]), "it is gone already");
    assert_eq!((size(one), size(other)), (Some((2, 18)), Some((2, 18))));
    let room = 1_000;
    assert_eq!(super::child(database, one, NIL, room), None);
    assert_eq!(super::child(database, one, ids[3], room).map(|(child, _)| child), Some(ids[4]));
    assert_eq!(super::snapshot(database, one, room).map(|(version, _)| version), Some(ids[3]));
    let first = registry.consulting(|reader| reader.first_version(one)).expect("a read works");
    assert_eq!(first, Some((ids[4], ids[3])));
    added(&add(database, one, ids[5], b"after it"));
    // Sizes that are kept are made less, and rows that are numbered again are counted.
    let mut parent = others[1];
    for _ in 0..20 {
        parent = added(&add(database, other, parent, &vec![0; 1_000_000]));
        database.rest().expect("there is time for a rest");
    }
    assert_eq!((size(one), size(other)), (Some((3, 26)), Some((22, 20_000_018))));
    assert!(prune(other, &others));
    assert_eq!((size(one), size(other)), (Some((3, 26)), Some((20, 20_000_000))));
    begin_and_keep(registry, one);
    assert!(!prune(one, &ids[4..5]), "it is leaving");
}

fn begin_and_keep(registry: &dyn Registry, client: ClientId) {
    let begun = registry.amending(|writer| writer.begin_removal(client, Removal::History));
    begun.expect("a removal begins");
}
