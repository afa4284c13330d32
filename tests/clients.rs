//! Real TaskChampion clients of every generation sync with the real program.

mod new_generation;
mod old_generation;
pub mod taskwarrior;

use crate::admin::{done, json, place, text};
use crate::prune::done_later;
use crate::util::{NIL, Random, Replica, Server, soak};
use new_generation::NewGeneration;
use old_generation::OldGeneration;
use std::collections::{BTreeMap, BTreeSet};
use taskwarrior::Taskwarrior;
use uuid::Uuid;

/// Low, so that a few syncs make a snapshot.
const SNAPSHOTS: &[&str] = &["--snapshot-versions", "5"];

/// A task's properties, all that a kind of client can show.
pub type Task = BTreeMap<String, String>;
pub type Tasks = BTreeMap<Uuid, Task>;

/// One device with a real client on it.
pub trait Device: Send {
    /// Makes a pending task.
    fn add(&mut self, description: &str) -> Uuid;
    fn set(&mut self, task: Uuid, property: &str, value: &str);
    /// Marks as completed.
    fn complete(&mut self, task: Uuid);
    /// Marks as deleted.
    fn delete(&mut self, task: Uuid);
    /// Removes the task without a trace.
    fn purge(&mut self, task: Uuid);
    fn tasks(&mut self) -> Tasks;
    /// Snapshots are left to others, unless they are urgent, where the kind of client can do that.
    fn sync(&mut self, avoid_snapshots: bool) -> Result<(), String>;
}

/// What a device's own tasks must look like at the end, whatever the others did.
#[derive(Default)]
struct Expected {
    descriptions: BTreeMap<Uuid, String>,
    purged: BTreeSet<Uuid>,
}

/// One history that several devices share.
#[derive(Clone)]
pub struct Account {
    pub url: String,
    pub client: Uuid,
    pub secret: String,
}

impl Account {
    fn new(server: &Server) -> Account {
        Account { url: server.url(), client: Uuid::new_v4(), secret: "correct horse".to_owned() }
    }
}

/// Two replicas share their tasks by a server, whatever stands in front of it.
pub fn two_devices_agree_at(url: &str) {
    let account = Account { url: url.to_owned(), client: Uuid::new_v4(), secret: "correct horse".to_owned() };
    two_devices_agree(&mut NewGeneration::new(&account), &mut NewGeneration::new(&account));
}

/// The same with these devices.
pub fn two_devices_agree(first: &mut dyn Device, second: &mut dyn Device) {
    for round in 0..3 {
        first.add(&format!("of the first, {round}"));
        second.add(&format!("of the second, {round}"));
        first.sync(false).expect("a sync succeeds");
        second.sync(false).expect("a sync succeeds");
    }
    first.sync(false).expect("a sync succeeds");
    assert_eq!(first.tasks(), second.tasks());
    assert_eq!(first.tasks().len(), 6);
}

#[test]
fn replicas_of_several_clients_agree_after_concurrent_edits() {
    let server = Server::start(SNAPSHOTS);
    let mut random = Random::new("new generation");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let account = Account::new(&server);
            let (server, mut random) = (&server, random.split());
            scope.spawn(move || {
                let device = || Box::new(NewGeneration::new(&account)) as Box<dyn Device>;
                let mut devices: Vec<_> = (0..3).map(|_| device()).collect();
                let tasks = live_and_agree(&mut devices, &mut random, soak(8, 60));
                leave_versions_after_the_snapshot(&mut devices[0], server, &account);
                let mut fresh = device();
                fresh.sync(true).expect("a fresh replica syncs");
                assert!(fresh.tasks().len() > tasks.len(), "the fresh replica misses tasks");
                assert_eq!(fresh.tasks(), devices[0].tasks());
            });
        }
    });
}

#[test]
fn a_client_without_snapshots_is_replayed_from_its_versions_alone() {
    let server = Server::start(&["--snapshot-versions", "1000000"]);
    let account = Account::new(&server);
    let mut first = NewGeneration::new(&account);
    for n in 0..30 {
        first.add(&format!("task {n}"));
        first.sync(true).expect("a sync succeeds");
    }
    let mut fresh = NewGeneration::new(&account);
    fresh.sync(false).expect("a fresh replica syncs");
    assert_eq!(fresh.tasks(), first.tasks());
    assert_eq!(fresh.tasks().len(), 30);
}

#[test]
fn a_sync_fails_visibly_where_no_server_listens_and_nothing_is_lost() {
    let mut server = Server::start(&[]);
    let account = Account::new(&server);
    let mut device = NewGeneration::new(&account);
    device.add("made while the server was up");
    device.sync(false).expect("a sync succeeds");
    server.kill();
    device.add("made while the server was down");
    device.sync(false).expect_err("there is no server");
    assert_eq!(device.tasks().len(), 2);
}

#[test]
fn replicas_of_the_old_generation_agree_after_concurrent_edits() {
    let Some(python) = old_generation::python() else { return };
    let server = Server::start(SNAPSHOTS);
    let mut random = Random::new("old generation");
    let account = Account::new(&server);
    let device = || Box::new(OldGeneration::new(&python, &account)) as Box<dyn Device>;
    let mut devices: Vec<_> = (0..3).map(|_| device()).collect();
    let tasks = live_and_agree(&mut devices, &mut random, soak(8, 50));
    leave_versions_after_the_snapshot(&mut devices[0], &server, &account);
    let mut fresh = device();
    fresh.sync(true).expect("a fresh replica syncs");
    assert!(fresh.tasks().len() > tasks.len(), "the fresh replica misses tasks");
    assert_eq!(fresh.tasks(), devices[0].tasks());
}

#[test]
fn taskwarrior_on_three_devices_resolves_a_conflict_and_ends_up_equal() {
    let Some(program) = taskwarrior::program() else { return };
    let server = Server::start(SNAPSHOTS);
    let account = Account::new(&server);
    let mut laptop = Taskwarrior::new(&program, &account);
    let mut phone = Taskwarrior::new(&program, &account);
    let task = laptop.add("buy milk");
    laptop.sync(false).expect("a sync succeeds");
    phone.sync(false).expect("a sync succeeds");
    assert_eq!(phone.tasks()[&task]["description"], "buy milk");

    // Both change the same task, and each has news of its own, before either syncs.
    laptop.set(task, "project", "home");
    phone.set(task, "project", "shop");
    phone.set(task, "description", "buy oat milk");
    let from_phone = phone.add("made on the phone");
    let from_laptop = laptop.add("made on the laptop");
    laptop.sync(false).expect("a sync succeeds");
    phone.sync(false).expect("a sync with conflicts succeeds");
    laptop.sync(false).expect("a sync succeeds");
    let tasks = laptop.tasks();
    assert_eq!(tasks, phone.tasks());
    assert_eq!(tasks[&task]["description"], "buy oat milk");
    assert_eq!(tasks[&task]["project"], "shop", "the later change wins");
    assert!(tasks.contains_key(&from_phone) && tasks.contains_key(&from_laptop));

    let mut fresh = Taskwarrior::new(&program, &account);
    fresh.sync(false).expect("a fresh device syncs");
    assert_eq!(fresh.tasks(), tasks);
}

#[test]
fn taskwarrior_devices_agree_after_concurrent_edits() {
    let Some(program) = taskwarrior::program() else { return };
    let server = Server::start(SNAPSHOTS);
    let mut random = Random::new("Taskwarrior");
    let account = Account::new(&server);
    let device = || Box::new(Taskwarrior::new(&program, &account)) as Box<dyn Device>;
    let mut devices = vec![device(), device()];
    live_and_agree(&mut devices, &mut random, soak(6, 30));
    assert_eq!(Replica::new(&server, &account.client.to_string()).snapshot().status, 200);
    let mut fresh = device();
    fresh.sync(false).expect("a fresh device syncs");
    assert_eq!(fresh.tasks(), devices[0].tasks());
}

#[test]
fn taskwarrior_fails_visibly_under_a_wrong_url() {
    let Some(program) = taskwarrior::program() else { return };
    let server = Server::start(&[]);
    let mut account = Account::new(&server);
    account.url = format!("{}tasks/", server.url());
    let mut device = Taskwarrior::new(&program, &account);
    device.add("never sent");
    let error = device.sync(false).expect_err("the server serves no such prefix");
    assert!(!error.trim().is_empty(), "the failure says nothing");
    assert_eq!(device.tasks().len(), 1);
    server.log().wait_for("/tasks");
}

#[test]
fn all_generations_share_one_history_and_agree() {
    let (Some(python), Some(program)) = (old_generation::python(), taskwarrior::program()) else { return };
    let server = Server::start(SNAPSHOTS);
    let mut random = Random::new("all generations");
    let account = Account::new(&server);
    let kinds: [&dyn Fn() -> Box<dyn Device>; 3] = [
        &|| Box::new(NewGeneration::new(&account)),
        &|| Box::new(OldGeneration::new(&python, &account)),
        &|| Box::new(Taskwarrior::new(&program, &account)),
    ];
    let mut devices: Vec<_> = kinds.iter().map(|kind| kind()).collect();
    let tasks = live_and_agree(&mut devices, &mut random, soak(6, 30));
    assert_eq!(Replica::new(&server, &account.client.to_string()).snapshot().status, 200);
    for kind in kinds {
        let mut fresh = kind();
        fresh.sync(true).expect("a fresh device syncs");
        assert_eq!(essence(fresh.tasks()), tasks);
    }
}

/// Every device edits and syncs in a thread of its own for some rounds. At the end all hold the
/// same tasks: all that were made and not purged, as those who made them described them.
fn live_and_agree(devices: &mut [Box<dyn Device>], random: &mut Random, rounds: usize) -> Tasks {
    let expected: Vec<Expected> = std::thread::scope(|scope| {
        let threads: Vec<_> = devices
            .iter_mut()
            .map(|device| {
                let mut random = random.split();
                scope.spawn(move || live(device.as_mut(), &mut random, rounds))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("the device's thread succeeds")).collect()
    });
    // The first pass brings all edits to the server, the second brings them to everyone.
    for _ in 0..2 {
        for device in devices.iter_mut() {
            device.sync(true).expect("a sync succeeds");
        }
    }
    let tasks = essence(devices[0].tasks());
    for device in &mut devices[1..] {
        assert_eq!(essence(device.tasks()), tasks);
    }
    check(&tasks, &expected);
    tasks
}

/// Random edits of one device, with a sync after each few.
fn live(device: &mut dyn Device, random: &mut Random, rounds: usize) -> Expected {
    let mut expected = Expected::default();
    for round in 0..rounds {
        for _ in 0..=random.below(3) {
            edit(device, random, round, &mut expected);
        }
        device.sync(random.below(2) == 0).expect("a sync succeeds");
    }
    expected
}

fn edit(device: &mut dyn Device, random: &mut Random, round: usize, expected: &mut Expected) {
    let known: Vec<Uuid> = device.tasks().into_keys().collect();
    if known.is_empty() || random.below(3) == 0 {
        let description = format!("task of round {round}");
        expected.descriptions.insert(device.add(&description), description);
        return;
    }
    let task = known[random.below(known.len())];
    let own = expected.descriptions.contains_key(&task);
    match random.below(12) {
        0..4 if own => {
            let description = format!("described in round {round}");
            device.set(task, "description", &description);
            expected.descriptions.insert(task, description);
        }
        0..8 => device.set(task, "project", &format!("project{}", random.below(1000))),
        8..10 => device.complete(task),
        10 => device.delete(task),
        _ => {
            device.purge(task);
            expected.purged.insert(task);
        }
    }
}

/// No task is lost, none comes back, and nobody's description was overwritten.
fn check(tasks: &Tasks, expected: &[Expected]) {
    let mut descriptions: BTreeMap<Uuid, &str> = BTreeMap::new();
    for (task, description) in expected.iter().flat_map(|device| &device.descriptions) {
        descriptions.insert(*task, description);
    }
    for task in expected.iter().flat_map(|device| &device.purged) {
        descriptions.remove(task);
    }
    let held: BTreeMap<Uuid, &str> =
        tasks.iter().map(|(task, properties)| (*task, properties["description"].as_str())).collect();
    assert_eq!(held, descriptions);
}

/// What every kind of client shows in the same form.
fn essence(mut tasks: Tasks) -> Tasks {
    for task in tasks.values_mut() {
        task.retain(|property, _| ["description", "status", "project"].contains(&property.as_str()));
    }
    tasks
}

/// Brings the client to a state with a snapshot, not the first, that is not of the latest version.
fn leave_versions_after_the_snapshot(device: &mut Box<dyn Device>, server: &Server, account: &Account) {
    let mut raw = Replica::new(server, &account.client.to_string());
    for n in 0..10 {
        device.add(&format!("after the snapshot {n}"));
        device.sync(true).expect("a sync succeeds");
        let snapshot = raw.snapshot().version();
        if raw.child_version(&snapshot).status == 200 {
            assert_ne!(snapshot, raw.child_version(NIL).version(), "no second snapshot was stored");
            return;
        }
    }
    panic!("every version made a snapshot");
}

/// Every generation with a device that was in a drawer for longer than versions are kept.
#[test]
fn a_device_that_was_away_for_too_long_is_refused_and_the_others_go_on() {
    let (Some(python), Some(program)) = (old_generation::python(), taskwarrior::program()) else { return };
    let dir = place();
    let server = Server::start_in(dir.path(), SNAPSHOTS);
    let account = Account::new(&server);
    let kinds: [&dyn Fn() -> Box<dyn Device>; 3] = [
        &|| Box::new(NewGeneration::new(&account)),
        &|| Box::new(OldGeneration::new(&python, &account)),
        &|| Box::new(Taskwarrior::new(&program, &account)),
    ];
    let all = || kinds.iter().map(|kind| kind()).collect::<Vec<_>>();
    let (mut away, mut here) = (all(), all());
    here[0].add("made at the beginning");
    for device in here.iter_mut().chain(&mut away) {
        device.sync(true).expect("a sync succeeds");
    }
    for n in 0..8 {
        let device = &mut here[n % 3];
        device.sync(true).expect("a sync succeeds");
        device.add(&format!("made later, {n}"));
        device.sync(false).expect("a sync succeeds");
    }
    let mut raw = Replica::new(&server, &account.client.to_string());
    assert_eq!(raw.snapshot().status, 200);
    let Some(pruned) = done_later(dir.path(), 40, &["prune", "--retention-days", "30"]) else { return };
    assert!(pruned.contains("Removed "), "{pruned}");
    assert_eq!(raw.child_version(NIL).status, 410);

    for device in &mut away {
        device.add("made in the drawer");
        device.sync(false).expect_err("it is too old");
        assert_eq!(device.tasks().len(), 2, "what it has stays");
    }
    here[1].add("made after the pruning");
    for _ in 0..2 {
        for device in &mut here {
            device.sync(true).expect("it was not away");
        }
    }
    let tasks = essence(here[0].tasks());
    assert_eq!(tasks.len(), 10);
    for device in here.iter_mut().chain(&mut all()) {
        device.sync(true).expect("a device that is set up anew begins with the snapshot");
        assert_eq!(essence(device.tasks()), tasks);
    }
}

/// Every generation through what the operator prints, and what happens to a device that was lost.
#[test]
fn a_lost_device_is_locked_out_and_the_others_go_on() {
    let (Some(python), Some(program)) = (old_generation::python(), taskwarrior::program()) else { return };
    let dir = place();
    let added = json(dir.path(), &["add-client", "--label", "family"]);
    let server = Server::start_in(dir.path(), &["--no-create-clients", "--snapshot-versions", "2"]);
    let client = text(&added, "client_id").parse().expect("a UUID");
    let secret = text(&added, "encryption_secret").to_owned();
    let account = |name| {
        let device = json(dir.path(), &["add-device", "family", name, "--public-url", &server.url()]);
        Account { url: text(&device, "server_url").to_owned(), client, secret: secret.clone() }
    };
    let mut laptop = Taskwarrior::new(&program, &account("laptop"));
    let mut phone = OldGeneration::new(&python, &account("phone"));
    let mut tablet = NewGeneration::new(&account("tablet"));
    let without = Account { url: server.url(), client, secret: secret.clone() };
    let mut stranger = Taskwarrior::new(&program, &without);
    let task = laptop.add("made on the laptop");
    laptop.sync(false).expect("the laptop syncs");
    phone.sync(false).expect("the phone syncs");
    tablet.sync(false).expect("the tablet syncs");
    assert_eq!(phone.tasks()[&task]["description"], "made on the laptop");
    assert_eq!(tablet.tasks()[&task]["description"], "made on the laptop");
    let error = stranger.sync(false).expect_err("it has no token");
    assert!(error.contains("401"), "{error}");
    assert!(stranger.tasks().is_empty());

    done(dir.path(), &["remove-device", "family", "phone"]);
    phone.add("made on the lost phone");
    phone.sync(false).expect_err("the phone is locked out");
    for n in 0..3 {
        tablet.add(&format!("made on the tablet, {n}"));
        tablet.sync(false).expect("the tablet goes on");
        laptop.sync(false).expect("the laptop goes on");
    }
    assert_eq!((laptop.tasks().len(), tablet.tasks().len(), phone.tasks().len()), (4, 4, 2));

    // It is found again, and gets a new token.
    let mut found = OldGeneration::new(&python, &account("phone"));
    found.sync(false).expect("the phone syncs again");
    assert_eq!(found.tasks().len(), 4);
    server.stop();
    let devices = json(dir.path(), &["list-devices", "family"]);
    let devices = devices.as_array().expect("a list");
    let names: Vec<_> = devices.iter().map(|device| text(device, "name")).collect();
    assert_eq!(names, ["laptop", "phone", "tablet"]);
    assert!(devices.iter().all(|device| device["last_sync"].is_string()), "{devices:?}");
}

/// Every generation through what operators do to a client.
#[test]
fn a_client_is_suspended_resumed_restored_and_reset_under_all_generations() {
    let (Some(python), Some(program)) = (old_generation::python(), taskwarrior::program()) else { return };
    let dir = place();
    let server = Server::start_in(dir.path(), &[]);
    let (account, address) = (Account::new(&server), server.url().replace(['/'], "").replace("http:", ""));
    let all = || -> Vec<Box<dyn Device>> {
        vec![
            Box::new(OldGeneration::new(&python, &account)),
            Box::new(NewGeneration::new(&account)),
            Box::new(Taskwarrior::new(&program, &account)),
        ]
    };
    let mut devices = all();
    devices[0].add("made at the beginning");
    devices.iter_mut().for_each(|device| device.sync(false).expect("a sync succeeds"));
    let client = account.client.to_string();
    done(dir.path(), &["suspend-client", &client]);
    devices.iter_mut().for_each(|device| drop(device.sync(false).expect_err("it is suspended")));
    done(dir.path(), &["resume-client", &client]);
    devices.iter_mut().for_each(|device| device.sync(false).expect("it is resumed"));

    let file = dir.path().join("backup");
    done(dir.path(), &["backup", &file.to_string_lossy()]);
    for device in &mut devices {
        device.add("made after the backup");
        device.sync(false).expect("a sync succeeds");
    }
    server.stop();
    done(dir.path(), &["restore", &file.to_string_lossy(), "--yes"]);
    let mut command = program_at(&address);
    command.arg("--data-dir").arg(dir.path());
    let _server = Server::spawn(command, dir.path());
    devices.iter_mut().for_each(|device| drop(device.sync(false).expect_err("it is ahead")));
    done(dir.path(), &["reset-client", &client, "--yes"]);
    let mut right = devices.pop().expect("the one that synced last has everything");
    right.add("made after the reset");
    right.sync(false).expect("a new history begins");
    for mut device in all() {
        device.sync(false).expect("a device that is set up anew gets all");
        assert_eq!(essence(device.tasks()), essence(right.tasks()));
        assert_eq!(device.tasks().len(), 5);
    }
}

fn program_at(address: &str) -> std::process::Command {
    let mut command = crate::util::program();
    command.args(["--listen", address]);
    command
}
