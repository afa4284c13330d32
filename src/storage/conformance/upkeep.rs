//! What every backend tells of its own health.

use super::{NIL, add, added, client, make, set_snapshot, with_chain};
use crate::protocol::{State, VersionId};
use crate::storage::location::Database;
use crate::storage::registry::Registry;
use crate::storage::upkeep::{Chain, Holder, Link};

pub type Case = (&'static str, fn(&dyn Database));

pub const CASES: &[Case] = &[
    ("every version of a chain is told with what it follows", whole_chain),
    ("clients that exist and what is left of others are told apart", holders),
    ("a database grows with what it holds", growth),
    ("a sound database has no flaw, and a look at it can be given up", soundness),
];

fn chain(database: &dyn Database, client: crate::protocol::ClientId) -> Chain {
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
    (database as &dyn Registry).amending(|writer| writer.remove(grown)).expect("a client is removed");
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
