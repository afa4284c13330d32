//! Devices: whose credentials are kept, and which requests they let in.

use super::{
    MIB, NIL, POLICY, RegistryCase, Removal, client, entry, look, make, take_away, version, with_chain,
};
use crate::credential::{Credential, Hash};
use crate::protocol::{ClientId, Outcome, Read, Refusal, State, VersionId, Write};
use crate::service::{self, Policy};
use crate::storage::registry::{Device, Registry};
use crate::storage::{Noted, Storage};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub const CASES: &[RegistryCase] = &[
    ("devices are added, listed and removed", keeping),
    ("a client with devices needs the credential of one of them", needing),
    ("without a valid credential nobody finds out which clients exist, where all need one", hiding),
    ("devices go with their client, and stay when its history goes", staying),
    ("last syncs are noted by device, where the client has such a one", noting),
];

const CLOSED: Policy = Policy { create_clients: false, require_device: true, ..POLICY };

fn brought(name: &str, token: &str) -> Option<Credential> {
    let value = format!("Basic {}", STANDARD.encode(format!("{name}:{token}")));
    Some(Credential::parse(value.as_bytes()).expect("a credential"))
}

fn add_device(registry: &dyn Registry, client: ClientId, name: &str, token: &str, now: i64) {
    registry
        .amending(|writer| writer.add_device(client, name, &Hash::of(token), now))
        .expect("a device is added");
}

fn devices(registry: &dyn Registry, client: ClientId) -> Vec<Device> {
    registry.consulting(|reader| reader.devices(client)).expect("devices can be listed")
}

fn names(registry: &dyn Registry, client: ClientId) -> Vec<String> {
    devices(registry, client).into_iter().map(|device| device.name).collect()
}

/// What comes of each of the four transactions.
fn ask(
    storage: &dyn Storage,
    policy: &Policy,
    client: ClientId,
    latest: VersionId,
    brought: Option<&Credential>,
) -> Vec<Outcome> {
    let reads =
        [Read::GetChildVersion { client, parent: NIL, room: MIB }, Read::GetSnapshot { client, room: MIB }];
    let writes = [
        Write::AddVersion { client, parent: latest, segment: vec![1] },
        Write::AddSnapshot { client, version: latest, snapshot: vec![1] },
    ];
    let read =
        |read| storage.reading(|reader| service::read(reader, policy, read, brought)).expect("a read works");
    let write = |write| {
        storage
            .writing(|writer| service::write(writer, policy, write, brought, version(), 0))
            .expect("a write works")
    };
    reads.iter().map(read).chain(writes.iter().map(write)).collect()
}

fn refused(refusal: Refusal) -> Vec<Outcome> {
    vec![Outcome::Refused(refusal); 4]
}

fn keeping(storage: &dyn Storage, registry: &dyn Registry) {
    let (one, other) = (make(registry, None), make(registry, None));
    add_device(registry, one, "phone", "a", 8);
    add_device(registry, one, "laptop", "b", 9);
    add_device(registry, other, "phone", "c", 10);
    let device = |name: &str, created| Device { name: name.to_owned(), created, last_sync: None };
    assert_eq!(devices(registry, one), [device("laptop", 9), device("phone", 8)]);
    let hash = |client, name| {
        let found = storage.reading(|reader| reader.device(client, name)).expect("a read works");
        found.map(|hash| hash.bytes().to_vec())
    };
    assert_eq!(hash(one, "phone"), Some(Hash::of("a").bytes().to_vec()));
    assert_eq!(hash(other, "phone"), Some(Hash::of("c").bytes().to_vec()));
    assert_eq!((hash(other, "laptop"), hash(client(), "phone"), hash(one, "")), (None, None, None));
    let count = |client| entry(registry, client).map(|entry| entry.devices);
    assert_eq!((count(one), count(other)), (Some(2), Some(1)));
    assert!(look(storage, one).is_some_and(|client| client.has_devices));

    let again = registry.amending(|writer| writer.add_device(one, "phone", &Hash::of("d"), 11));
    assert!(again.is_err(), "a second device of one name");
    for name in ["phone", "nobody", "laptop"] {
        registry.amending(|writer| writer.remove_device(one, name)).expect("a device is removed");
    }
    assert_eq!((count(one), count(other)), (Some(0), Some(1)));
    assert!(look(storage, one).is_some_and(|client| !client.has_devices));
    assert_eq!(hash(one, "phone"), None);
    add_device(registry, one, "phone", "e", 12);
    assert_eq!(devices(registry, one), [device("phone", 12)]);
}

fn needing(storage: &dyn Storage, registry: &dyn Registry) {
    let (one, chain) = with_chain(storage, 2);
    let (other, _) = with_chain(storage, 1);
    // A client without devices does not look at what a request brings.
    let ignored = ask(storage, &POLICY, one, chain[1], brought("laptop", "x").as_ref());
    assert!(matches!(ignored[0], Outcome::Child { .. }) && matches!(ignored[2], Outcome::Added { .. }));
    add_device(registry, one, "laptop", "right", 1);
    add_device(registry, one, "phone", "phone's", 1);
    add_device(registry, other, "tablet", "right", 1);
    let latest = look(storage, one).expect("the client exists").latest;
    let wrong = [
        None,
        brought("laptop", "wrong"),
        brought("laptop", "phone's"),
        brought("tablet", "right"),
        brought("Laptop", "right"),
        brought("laptop", ""),
    ];
    let seen = look(storage, one);
    for brought in &wrong {
        assert_eq!(
            ask(storage, &POLICY, one, latest, brought.as_ref()),
            refused(Refusal::NoCredential),
            "{brought:?}"
        );
    }
    assert_eq!(look(storage, one), seen);
    let right = brought("laptop", "right");
    let answers = ask(storage, &POLICY, one, latest, right.as_ref());
    assert!(matches!(answers[0], Outcome::Child { .. }) && matches!(answers[2], Outcome::Added { .. }));

    // Only a device learns that its client is suspended.
    registry.amending(|writer| writer.set_state(one, State::Suspended)).expect("a change");
    for brought in &wrong {
        assert_eq!(
            ask(storage, &POLICY, one, latest, brought.as_ref()),
            refused(Refusal::NoCredential),
            "{brought:?}"
        );
    }
    assert_eq!(ask(storage, &POLICY, one, latest, right.as_ref()), refused(Refusal::Suspended));
    registry.amending(|writer| writer.set_state(one, State::Active)).expect("a change");
    registry.amending(|writer| writer.remove_device(one, "laptop")).expect("a device is removed");
    let lost = ask(storage, &POLICY, one, latest, right.as_ref());
    assert_eq!(lost, refused(Refusal::NoCredential));
    let phone = brought("phone", "phone's");
    let goes_on = ask(storage, &POLICY, one, latest, phone.as_ref());
    assert!(matches!(goes_on[0], Outcome::Child { .. }));
}

fn hiding(storage: &dyn Storage, registry: &dyn Registry) {
    let (bare, _) = with_chain(storage, 2);
    let (one, chain) = with_chain(storage, 2);
    let unknown = client();
    add_device(registry, one, "laptop", "right", 1);
    for client in [bare, one, unknown] {
        for brought in [None, brought("laptop", "wrong"), brought("phone", "right")] {
            let answers = ask(storage, &CLOSED, client, chain[1], brought.as_ref());
            assert_eq!(answers, refused(Refusal::NoCredential), "{brought:?}");
        }
    }
    let right = brought("laptop", "right");
    assert_eq!(ask(storage, &CLOSED, bare, chain[1], right.as_ref()), refused(Refusal::NoCredential));
    assert_eq!(ask(storage, &CLOSED, unknown, chain[1], right.as_ref()), refused(Refusal::NoCredential));
    assert_eq!(look(storage, unknown), None);
    let answers = ask(storage, &CLOSED, one, chain[1], right.as_ref());
    assert!(matches!(answers[0], Outcome::Child { .. }) && matches!(answers[2], Outcome::Added { .. }));
    registry.amending(|writer| writer.set_state(one, State::Suspended)).expect("a change");
    assert_eq!(ask(storage, &CLOSED, one, chain[1], None), refused(Refusal::NoCredential));
    assert_eq!(ask(storage, &CLOSED, one, chain[1], right.as_ref()), refused(Refusal::Suspended));
}

fn staying(storage: &dyn Storage, registry: &dyn Registry) {
    let (one, _) = with_chain(storage, 2);
    add_device(registry, one, "laptop", "right", 1);
    take_away(registry, one, Removal::History);
    assert_eq!(names(registry, one), ["laptop"]);
    assert!(look(storage, one).is_some_and(|client| client.has_devices));
    take_away(registry, one, Removal::Client);
    assert_eq!(names(registry, one), [""; 0]);
    registry.amending(|writer| writer.create(one, None, 7)).expect("a client is made");
    assert!(look(storage, one).is_some_and(|client| !client.has_devices));
    assert_eq!(entry(registry, one).map(|entry| entry.devices), Some(0));
}

fn noting(storage: &dyn Storage, registry: &dyn Registry) {
    let one = make(registry, None);
    add_device(registry, one, "laptop", "a", 10);
    add_device(registry, one, "phone", "b", 10);
    let note = |device: Option<&str>, program: &str, at| {
        let device = device.map(str::to_owned);
        let noted = [Noted { client: one, device, program: program.to_owned(), at }];
        storage.writing(|writer| writer.note_syncs(&noted)).expect("it is noted");
    };
    note(Some("laptop"), "a", 20);
    note(Some("laptop"), "b", 30);
    note(Some("phone"), "a", 15);
    // What a proxy brings, or a device that was removed meanwhile.
    note(Some("proxy"), "a", 40);
    note(None, "a", 35);
    let read = || registry.consulting(|reader| reader.syncs(one)).expect("a read works");
    let shown: Vec<_> = read().into_iter().map(|sync| (sync.device, sync.program, sync.at)).collect();
    let sync = |device: Option<&str>, program: &str, at| (device.map(str::to_owned), program.to_owned(), at);
    let expected = [
        sync(None, "a", 40),
        sync(Some("laptop"), "b", 30),
        sync(Some("laptop"), "a", 20),
        sync(Some("phone"), "a", 15),
    ];
    assert_eq!(shown, expected);
    let last = || devices(registry, one).into_iter().map(|device| device.last_sync).collect::<Vec<_>>();
    assert_eq!(last(), [Some(30), Some(15)]);

    // One device's programs do not push out what is known of another.
    (100..200).for_each(|n| note(Some("laptop"), &format!("program {n}"), n));
    assert_eq!(last(), [Some(199), Some(15)]);
    assert_eq!(read().len(), 20 + 1 + 1);

    // A new device of an old name has not synced yet.
    registry.amending(|writer| writer.remove_device(one, "phone")).expect("a device is removed");
    add_device(registry, one, "phone", "c", 300);
    assert_eq!(last(), [Some(199), None]);
}
