//! A crash at any moment loses nothing that was acknowledged.

use crate::util::{NIL, PATIENCE, Random, Replica, Server, program, skip, soak};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

const CLIENTS: usize = 5;

/// Versions that one client adds at most between two crashes, so that the final walk stays short.
const PER_ROUND: usize = 400;

/// What one client was told, and what it had asked when the server died.
struct Account {
    client: String,
    /// IDs and segments, in order.
    acknowledged: Vec<(String, Vec<u8>)>,
    in_flight: Option<Vec<u8>>,
    /// The version and the bytes of the last snapshot that was acknowledged, and of one in flight.
    snapshot: Option<(String, Vec<u8>)>,
    snapshot_in_flight: Option<(String, Vec<u8>)>,
}

#[test]
fn kill_9_under_load_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut random = Random::new("kill -9");
    let new = |_| Account {
        client: Uuid::new_v4().to_string(),
        acknowledged: Vec::new(),
        in_flight: None,
        snapshot: None,
        snapshot_in_flight: None,
    };
    let mut accounts: Vec<Account> = (0..CLIENTS).map(new).collect();
    let mut interrupted = 0;
    for _ in 0..soak(10, 60) {
        let mut server = Server::start_in(dir.path(), &[]);
        load_and_kill(&mut server, &mut accounts, &mut random);
        let in_flight = accounts.iter().filter(|account| account.in_flight.is_some()).count();
        interrupted += in_flight;
        let server = Server::start_in(dir.path(), &[]);
        for account in &mut accounts {
            verify(&server, account);
        }
        // This one is stopped in every second round and killed at rest in the others.
        if random.below(2) == 0 {
            server.stop();
        }
    }
    assert!(interrupted > 0, "no request was ever in flight when the server died");
    assert!(accounts.iter().all(|account| account.snapshot.is_some()), "no snapshot was ever stored");
}

fn load_and_kill(server: &mut Server, accounts: &mut [Account], random: &mut Random) {
    let delay = Duration::from_millis(20 + random.below(300) as u64);
    let added = AtomicUsize::new(0);
    let mut replicas: Vec<_> = accounts.iter().map(|account| Replica::new(server, &account.client)).collect();
    std::thread::scope(|scope| {
        for (account, replica) in accounts.iter_mut().zip(&mut replicas) {
            let (mut random, added) = (random.split(), &added);
            scope.spawn(move || add_until_it_dies(replica, account, &mut random, added));
        }
        let begun = Instant::now();
        while begun.elapsed() < delay || added.load(Ordering::Relaxed) == 0 {
            assert!(begun.elapsed() < PATIENCE, "no version was added; the log:\n{}", server.log().text());
            std::thread::sleep(Duration::from_millis(1));
        }
        server.kill();
    });
}

fn add_until_it_dies(replica: &mut Replica, account: &mut Account, random: &mut Random, added: &AtomicUsize) {
    for n in 0..PER_ROUND {
        let parent = account.acknowledged.last().map_or(NIL, |(id, _)| id).to_owned();
        let length = if random.below(50) == 0 { 600_000 } else { 1 + random.below(3000) };
        let segment = random.bytes(length);
        account.in_flight = Some(segment.clone());
        let Ok(response) = replica.try_add_version(&parent, &segment) else { return };
        assert_eq!(response.status, 200, "{response:?}");
        let version = response.version();
        account.in_flight = None;
        account.acknowledged.push((version.clone(), segment));
        added.fetch_add(1, Ordering::Relaxed);
        if n % 20 == 1 {
            let snapshot = random.bytes(5000);
            account.snapshot_in_flight = Some((version.clone(), snapshot.clone()));
            let Ok(response) = replica.try_add_snapshot(&version, &snapshot) else { return };
            assert_eq!(response.status, 200, "{response:?}");
            account.snapshot = account.snapshot_in_flight.take();
        }
    }
}

/// Compares the whole chain, and takes over what was in flight if it is there.
fn verify(server: &Server, account: &mut Account) {
    let mut replica = Replica::new(server, &account.client);
    let chain = replica.walk(NIL);
    let acknowledged = account.acknowledged.len();
    assert!(chain.len() >= acknowledged, "{} versions of {acknowledged} are left", chain.len());
    for ((_, id, segment), (expected_id, expected)) in chain.iter().zip(&account.acknowledged) {
        assert_eq!(id, expected_id);
        assert!(segment == expected, "the bytes of version {id} changed");
    }
    let in_flight = account.in_flight.take();
    for (_, id, segment) in &chain[acknowledged..] {
        assert!(account.acknowledged.len() == acknowledged, "there are versions that nobody added");
        assert!(in_flight.as_ref() == Some(segment), "version {id} was never added");
        account.acknowledged.push((id.clone(), segment.clone()));
    }
    verify_snapshot(&mut replica, account);
}

fn verify_snapshot(replica: &mut Replica, account: &mut Account) {
    let response = replica.snapshot();
    let held = (response.status == 200).then(|| (response.version(), response.body));
    let in_flight = account.snapshot_in_flight.take();
    assert!(held == account.snapshot || held == in_flight, "the snapshot is neither the last nor the next");
    account.snapshot = held;
}

#[test]
fn sequential_adds_cost_at_least_one_sync_to_disk_each() {
    const ADDS: usize = 60;
    if !Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success()) {
        return skip("strace counts the system calls; as root: apt-get install strace");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let calls = dir.path().join("calls");
    let mut command = Command::new("strace");
    // The tracer is the grandchild, so that the program itself gets our signals.
    command.args(["-D", "-f", "-e", "trace=fsync,fdatasync", "-o"]).arg(&calls);
    command.arg(program().get_program()).env_clear();
    command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path().join("data"));
    let server = Server::spawn(command, &dir.path().join("data"));
    let mut replica = Replica::of_new_client(&server);
    let before = syncs(&calls);
    let mut parent = NIL.to_owned();
    for n in 0..ADDS {
        parent = replica.add_version(&parent, format!("segment {n}").as_bytes()).version();
    }
    let after = syncs(&calls);
    assert!(after - before >= ADDS, "{ADDS} adds made only {} syncs", after - before);
    server.stop();
}

/// Calls traced so far; the tracer writes each at once.
fn syncs(calls: &Path) -> usize {
    let text = std::fs::read_to_string(calls).unwrap_or_default();
    text.lines().filter(|line| line.contains("fsync(") || line.contains("fdatasync(")).count()
}
