//! From SQLite to Postgres and back, while the source is in use, killed half way, and for good.

use super::cluster::Cluster;
use super::instances::{under_load, verify};
use super::serve_at;
use crate::admin::{DATABASE, place, stderr, stdout};
use crate::util::{NIL, PATIENCE, Replica, Server, program};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A database of either kind.
enum Place<'c> {
    Directory(TempDir),
    Postgres(&'c Cluster, &'static str),
}

impl<'c> Place<'c> {
    fn new(cluster: &'c Cluster, name: &'static str) -> Place<'c> {
        cluster.sql("postgres", &format!("CREATE DATABASE {name}"));
        Place::Postgres(cluster, name)
    }

    /// As `--from` and `--to` take it.
    fn word(&self) -> String {
        match self {
            Place::Directory(dir) => dir.path().display().to_string(),
            Place::Postgres(cluster, name) => cluster.uri(name),
        }
    }

    fn serve(&self) -> Server {
        match self {
            Place::Directory(dir) => Server::start_in(dir.path(), &[]),
            Place::Postgres(..) => serve_at(&self.word(), &[]),
        }
    }

    fn admin(&self, args: &[&str]) -> Output {
        let mut command = program();
        match self {
            Place::Directory(dir) => command.env("DATA_DIR", dir.path()),
            Place::Postgres(..) => command.env("CONNECTION", self.word()),
        };
        command.arg("admin").args(args).output().expect("the program runs")
    }

    /// Whether it is a copy that was brought to its end.
    fn is_whole_copy(&self) -> bool {
        let sql = "SELECT finished FROM sync_server_copy";
        match self {
            // Read only, which leaves the WAL of who was killed to the next run.
            Place::Directory(dir) => {
                Connection::open_with_flags(dir.path().join(DATABASE), OpenFlags::SQLITE_OPEN_READ_ONLY)
                    .and_then(|database| database.query_row(sql, [], |row| row.get(0)))
                    .unwrap_or(false)
            }
            Place::Postgres(cluster, name) => {
                !cluster.sql(name, "SELECT to_regclass('sync_server_copy')").is_empty()
                    && cluster.sql(name, sql) == "t"
            }
        }
    }

    fn done(&self, args: &[&str]) -> String {
        let output = self.admin(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        stdout(&output)
    }
}

fn command(from: &Place, to: &Place, args: &[&str]) -> Command {
    let mut command = program();
    command.args(["admin", "copy", "--from", &from.word(), "--to", &to.word()]).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn copy(from: &Place, to: &Place) -> Value {
    let output = command(from, to, &["--json"]).output().expect("the program runs");
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).expect("it is JSON")
}

fn refused(from: &Place, to: &Place, exit_code: i32) -> String {
    let output = command(from, to, &[]).output().expect("the program runs");
    assert_eq!(output.status.code(), Some(exit_code), "{}", stderr(&output));
    stderr(&output)
}

/// Clients of every kind, by a server that runs; returns one with a history and all that it must have.
fn fill(place: &Place, server: &Server) -> (String, Vec<(String, String, Vec<u8>)>) {
    place.done(&["add-client", "--label", "alice"]);
    place.done(&["add-client", "--label", "bob"]);
    place.done(&["suspend-client", "bob"]);
    place.done(&["add-device", "alice", "laptop"]);
    let mut replica = Replica::of_new_client(server);
    let mut parent = NIL.to_owned();
    for n in 0..5_u8 {
        parent = replica.add_version(&parent, &vec![n; 1 + (usize::from(n) << 18)]).version();
    }
    assert_eq!(replica.add_snapshot(&parent, &vec![9; 3 << 20]).status, 200);
    (replica.client.clone(), replica.walk(NIL))
}

/// What operators see of the clients, without what another server changes by being used.
fn clients(place: &Place) -> Value {
    serde_json::from_str(&place.done(&["list-clients", "--sort", "id", "--json"])).expect("it is JSON")
}

fn change_over(from: &Place, to: &Place) {
    let server = from.serve();
    let (client, chain) = fill(from, &server);
    let mut runs = Vec::new();
    let loads = under_load(&[&server], || {
        runs.push(copy(from, to));
        from.done(&["label-client", "alice", "carol"]);
        runs.push(copy(from, to));
    });
    assert!(runs.iter().all(|run| run["carried_versions"].as_u64() > Some(0)), "{runs:?}");
    assert_eq!((&runs[0]["verified_all"], &runs[1]["verified_all"]), (&true.into(), &false.into()));
    server.stop();
    let last = copy(from, to);
    // The large bodies were carried once.
    assert!(last["carried_bytes"].as_u64() < Some(3 << 20), "{last} {runs:?}");
    assert_eq!(clients(from), clients(to));
    assert_eq!(from.done(&["audit", "--json"]), to.done(&["audit", "--json"]));
    let check = to.admin(&["check"]);
    assert!(check.status.success(), "{}", stdout(&check));

    let server = to.serve();
    verify(&server, &loads);
    let mut replica = Replica::new(&server, &client);
    assert!(replica.walk(NIL) == chain, "the chain was changed");
    assert!(replica.snapshot().body == vec![9; 3 << 20], "the snapshot was changed");
    let (_, latest, _) = chain.last().expect("it has versions");
    assert_eq!(replica.add_version(latest, b"more").status, 200);
    let carol = clients(to).as_array().expect("a list").iter().find(|one| one["label"] == "carol").cloned();
    let carol = carol.expect("she is there")["client_id"].as_str().expect("an ID").to_owned();
    assert_eq!(Replica::new(&server, &carol).child_version(NIL).status, 401, "her laptop has a token");
    // From now on it is no copy, and nothing can overwrite it.
    let told = refused(from, to, 75);
    assert!(told.contains("stop it first"), "{told}");
    server.stop();
    let told = refused(from, to, 64);
    assert!(told.contains("holds data of its own"), "{told}");
    verify(&to.serve(), &loads);
}

#[test]
fn a_server_changes_over_from_sqlite_to_postgres_under_writes_and_loses_nothing() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    change_over(&Place::Directory(place()), &Place::new(&cluster, "target"));
}

#[test]
fn a_server_changes_over_from_postgres_to_sqlite_under_writes_and_loses_nothing() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    change_over(&Place::new(&cluster, "source"), &Place::Directory(place()));
}

#[test]
fn a_copy_that_is_killed_again_and_again_goes_on_and_is_whole_in_the_end() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    for (from, to) in [
        (Place::Directory(place()), Place::new(&cluster, "target")),
        (Place::new(&cluster, "source"), Place::Directory(place())),
    ] {
        let server = from.serve();
        let (client, chain) = fill(&from, &server);
        for _ in 0..60 {
            let mut replica = Replica::of_new_client(&server);
            let first = replica.add_version(NIL, b"one").version();
            let second = replica.add_version(&first, &vec![5; 100 << 10]).version();
            assert_eq!(replica.add_snapshot(&second, &vec![7; 1500 << 10]).status, 200);
        }
        server.stop();
        // Ever later, so that it dies everywhere, whatever the speed of the machine.
        let (mut kills, mut life, mut was_whole) = (0, Duration::from_millis(20), false);
        let output = loop {
            let mut child = command(&from, &to, &["--json"]).spawn().expect("the program starts");
            std::thread::sleep(life);
            life += life / 4;
            child.kill().expect("it can be killed");
            let output = child.wait_with_output().expect("it ends");
            if output.status.success() {
                break output;
            }
            kills += 1;
            assert_eq!(output.status.code(), None, "{}", stderr(&output));
            was_whole = to.is_whole_copy();
        };
        assert!(kills > 2, "it was done before it could be killed");
        let run: Value = serde_json::from_str(&stdout(&output)).expect("it is JSON");
        assert_eq!((&run["clients"], &run["versions"]), (&63.into(), &125.into()));
        // Killed when all was done, the run before has compared everything already.
        assert_eq!(run["verified_all"], !was_whole);
        assert_eq!(clients(&from), clients(&to));
        let server = to.serve();
        assert!(Replica::new(&server, &client).walk(NIL) == chain, "the chain was changed");
    }
}

#[test]
fn half_a_copy_is_neither_served_nor_used_by_verbs() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let (from, to) = (Place::Directory(place()), Place::new(&cluster, "target"));
    let server = from.serve();
    fill(&from, &server);
    copy(&from, &to);
    // A whole one may be looked at.
    assert!(to.done(&["list-clients"]).contains("alice"));
    let refused = to.admin(&["label-client", "alice", "x"]);
    assert!(!refused.status.success() && stderr(&refused).contains("change the original"));
    cluster.sql("target", "UPDATE sync_server_copy SET finished = false");
    let refused = to.admin(&["list-clients"]);
    assert!(!refused.status.success() && stderr(&refused).contains("not whole"), "{}", stderr(&refused));
    let mut served = program();
    served.env("CONNECTION", to.word()).args(["--listen", "127.0.0.1:0"]).stderr(Stdio::piped());
    let output = served.output().expect("it ends by itself");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is not whole: run `sync-server admin copy`"), "{}", stderr(&output));
    copy(&from, &to);
    to.serve().stop();
    assert_eq!(cluster.sql("target", "SELECT to_regclass('sync_server_copy')"), "");
}

#[test]
fn nothing_is_copied_over_other_data_or_under_a_server_or_onto_itself() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let (from, other) = (Place::Directory(place()), Place::Directory(place()));
    let (to, small) = (Place::new(&cluster, "target"), Place::new(&cluster, "small"));
    let server = from.serve();
    fill(&from, &server);
    let itself = refused(&from, &from, 64);
    assert!(itself.contains("onto itself"), "{itself}");
    other.done(&["add-client"]);
    let full = refused(&from, &other, 64);
    assert!(full.contains("holds data of its own"), "{full}");
    copy(&other, &small);
    let foreign = refused(&from, &small, 64);
    assert!(foreign.contains("is a copy of another database"), "{foreign}");
    assert_eq!(clients(&small), clients(&other));
    // Servers on empty targets.
    let empty = Place::Directory(place());
    for target in [&to, &empty] {
        let busy = target.serve();
        let told = refused(&from, target, 75);
        assert!(told.contains("stop it first"), "{told}");
        assert_eq!(clients(target), Value::Array(Vec::new()));
        busy.stop();
        copy(&from, target);
    }
    let missing = Place::Directory(place());
    let told = refused(&missing, &to, 1);
    assert!(told.contains("there is no database"), "{told}");
}

#[test]
fn a_password_comes_from_a_file_or_the_environment_and_is_never_told() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let from = Place::Directory(place());
    from.done(&["add-client", "--label", "alice"]);
    let secret = "hunter2";
    let uri = cluster.uri("postgres").replace("postgres@", &format!("postgres:{secret}@"));
    let file = from.word() + "/connection";
    std::fs::write(&file, format!("{uri}\n")).expect("a file");
    let mut told = String::new();
    let mut run = |args: &[&str], connection: Option<&str>| {
        let mut command = program();
        command.args(["admin", "copy", "--from", &from.word()]).args(args);
        connection.map(|connection| command.env("CONNECTION", connection));
        let output = command.output().expect("the program runs");
        told.push_str(&format!("{}{}", stdout(&output), stderr(&output)));
        output.status.code()
    };
    assert_eq!(run(&["--to", &format!("@{file}")], None), Some(0));
    assert_eq!(run(&[], Some(&uri)), Some(0));
    assert_eq!(run(&["--to", &uri], None), Some(0));
    std::fs::write(&file, format!("{uri}?sslmode=hunter2")).expect("a file");
    assert_eq!(run(&["--to", &format!("@{file}")], None), Some(64));
    assert_eq!(run(&["--to", &format!("{uri}?sslmode=hunter2")], None), Some(64));
    assert_eq!(run(&["--to", "@/nonexistent"], None), Some(1));
    told.push_str(&from.done(&["audit", "--json"]));
    assert!(!told.contains(secret), "{told}");
    assert!(told.contains("to Postgres database postgres at 127.0.0.1:"), "{told}");
}

#[test]
fn large_snapshots_are_copied_in_bounded_memory() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let (first, second) = (Place::Directory(place()), Place::new(&cluster, "target"));
    let third = Place::Directory(place());
    let server = first.serve();
    let large: Vec<u8> = (0..100_u32 << 20).map(|n| (n / 4099) as u8).collect();
    let mut all = Vec::new();
    for _ in 0..2 {
        let mut replica = Replica::of_new_client(&server);
        let version = replica.add_version(NIL, &large[..30 << 20]).version();
        assert_eq!(replica.add_snapshot(&version, &large).status, 200);
        all.push(replica.client.clone());
    }
    server.stop();
    for (from, to) in [(&first, &second), (&second, &third)] {
        let peak = peak_of(command(from, to, &["--json"]));
        // One body, the pages of SQLite on its way, and the program itself.
        assert!(peak < 300 << 20, "{} MiB of memory", peak >> 20);
    }
    let server = third.serve();
    for client in all {
        let mut replica = Replica::new(&server, &client);
        assert!(replica.snapshot().body == large, "the snapshot was changed");
        assert!(replica.child_version(NIL).body == large[..30 << 20], "the version was changed");
    }
}

/// The most memory that a program that works had.
fn peak_of(mut command: Command) -> usize {
    let mut child = command.spawn().expect("the program starts");
    let (mut peak, deadline) = (0, Instant::now() + PATIENCE * 5);
    while child.try_wait().expect("it can be waited for").is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
        let size: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
        peak = peak.max(size << 10);
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("it ended");
    assert!(output.status.success(), "{}", stderr(&output));
    eprintln!("{} MiB of memory at most", peak >> 20);
    peak
}
