//! Backups of the real program: nothing is lost, nothing is half done, and real clients go on.

use crate::admin::{
    DATABASE, Device, STRANGER, admin, command, done, golden, is_root, json, place, refused, stderr, stdout,
};
use crate::faults::with_mounts;
use crate::util::{NIL, PATIENCE, Random, Replica, Server, program, soak};
use rusqlite::{Connection, params};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use sync_server::archive::{Head, Reader, Writer};
use sync_server::storage::contents::Record;
use tempfile::TempDir;
use uuid::Uuid;

/// The records of a backup as texts, in order, without the changes that operators made; and those,
/// sorted, since they stand by client in the database and a test's clients have random IDs.
fn contents(file: &Path) -> (Vec<String>, Vec<String>) {
    let file = fs::File::open(file).expect("a backup");
    let mut reader = Reader::new(std::io::BufReader::new(file)).expect("a backup");
    let (mut records, mut events) = (Vec::new(), Vec::new());
    while let Some(record) = reader.next_record().expect("it is whole") {
        match record {
            Record::Event(event) => events.push(event.action),
            other => records.push(format!("{other:?}")),
        }
    }
    events.sort();
    (records, events)
}

/// Everything below a directory, by name.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain text")
}

/// A data directory with a client that has so many versions of 1 KiB, and the last one's ID.
fn filled(versions: usize) -> (TempDir, Uuid, String) {
    let dir = place();
    let client = Uuid::new_v4();
    done(dir.path(), &["add-client", "--id", &client.to_string(), "--label", "filled"]);
    let mut database = Connection::open(dir.path().join(DATABASE)).expect("the database");
    let transaction = database.transaction().expect("a transaction");
    let mut parent = NIL.to_owned();
    for n in 0..versions {
        let id = Uuid::now_v7().to_string();
        let segment = vec![n as u8; 1024];
        let sql = "INSERT INTO versions (version_id, client_id, parent_version_id, history_segment)
                   VALUES (?1, ?2, ?3, ?4)";
        let mut insert = transaction.prepare_cached(sql).expect("SQL");
        insert.execute(params![id, client.to_string(), parent, segment]).expect("a row");
        parent = id;
    }
    let sql = "UPDATE clients SET latest_version_id = ?1";
    transaction.execute(sql, [&parent]).expect("a row");
    transaction.commit().expect("a commit");
    (dir, client, parent)
}

#[test]
fn a_restored_database_holds_what_the_old_one_held_byte_for_byte() {
    let (old, new, backups) = (place(), place(), place());
    fs::copy(
        concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/tss-sqlite/",
            "taskchampion-sync-server.sqlite3"
        ),
        old.path().join(DATABASE),
    )
    .expect("the fixture can be copied");
    done(old.path(), &["add-client", "--label", "alice"]);
    let [client, orphan, parent] = [(); 3].map(|()| Uuid::new_v4().to_string());
    done(old.path(), &["add-client", "--id", &client]);
    done(old.path(), &["suspend-client", &client]);
    let database = Connection::open(old.path().join(DATABASE)).expect("the database");
    database.execute_batch("DROP INDEX IF EXISTS sync_server_child").expect("the index goes");
    // A branch below a foreign parent, versions of nobody, a device, a sync.
    for (of, bytes) in [(&client, &b"one"[..]), (&client, b"other"), (&orphan, b""), (&orphan, &[7; 400_000])]
    {
        let sql = "INSERT INTO versions VALUES (?1, ?2, ?3, ?4)";
        database.execute(sql, params![Uuid::new_v4().to_string(), of, parent, bytes]).expect("a row");
    }
    let sql =
        "INSERT INTO sync_server_devices (client_id, name, token_hash, created) VALUES (?1, 'phone', ?2, 5)";
    database.execute(sql, params![client, [9_u8; 32]]).expect("a row");
    let sql = "INSERT INTO sync_server_syncs VALUES (?1, 'phone', 'task', 6)";
    database.execute(sql, [&client]).expect("a row");
    let sql = "UPDATE sync_server_clients SET devices = 1 WHERE client_id = ?1";
    database.execute(sql, [&client]).expect("a row");
    drop(database);

    let (first, second) = (backups.path().join("first"), backups.path().join("second"));
    let told = json(old.path(), &["backup", text(&first)]);
    assert_eq!(first.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    assert_eq!(names(backups.path()), ["first"]);
    let verified = json(old.path(), &["verify-backup", text(&first)]);
    assert_eq!(told, verified);
    done(new.path(), &["restore", text(&first)]);
    done(new.path(), &["backup", text(&second)]);
    let (before, events) = contents(&first);
    let (after, later) = contents(&second);
    assert_eq!(before, after);
    assert!(before.iter().any(|record| record.contains("phone")) && before.len() > 20, "{}", before.len());
    assert_eq!(events, ["add-client", "add-client", "suspend-client"].map(str::to_owned).to_vec());
    assert_eq!(later.len(), events.len() + 1);
    assert!(later.contains(&"restore".to_owned()));
    // What is computed anew is right too.
    let clients = |dir: &Path| json(dir, &["list-clients", "--sort", "id"]);
    assert_eq!(clients(old.path()), clients(new.path()));
    let said = done(old.path(), &["audit"]);
    assert!(said.contains("backup") && done(new.path(), &["audit"]).contains("restore"), "{said}");
}

/// What a verb printed, without what differs from run to run: paths, times, IDs and sizes.
fn steady(printed: &str, places: [(&Path, &str); 3]) -> String {
    let mut steady = printed.to_owned();
    for (path, name) in places {
        steady = steady.replace(text(path), name);
    }
    let mut words: Vec<String> = steady.split_inclusive([' ', '\n']).map(str::to_owned).collect();
    for at in 0..words.len() {
        let core = words[at].trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
        let is_time = core.len() == 20 && core.ends_with('Z') && core.contains('T');
        if is_time || core.len() == 8 && core.chars().all(|c| c.is_ascii_hexdigit()) {
            words[at] = words[at].replace(&core, if is_time { "TIME" } else { "SHORTID!" });
        }
        if let Some((file, rest)) = words[at].split_once(".before-restore-") {
            words[at] = format!("{file}.before-restore-TIME{}", &rest[rest.find('Z').unwrap_or(0) + 1..]);
        }
        let unit = words[at].split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default().to_owned();
        let is_size = at > 0 && ["B", "KiB", "MiB", "GiB", "TiB"].contains(&unit.as_str());
        if is_size && words[at - 1].trim_end().parse::<f64>().is_ok() {
            words[at - 1] = String::new();
            words[at].replace_range(..unit.len(), "SIZE");
        }
    }
    words.concat()
}

#[test]
fn what_backup_verify_restore_and_stats_print_is_held() {
    let (old, new, backups) = (place(), place(), place());
    let id = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";
    done(old.path(), &["add-client", "--id", id, "--label", "alice"]);
    let server = Server::start_in(old.path(), &[]);
    let mut replica = Replica::new(&server, id);
    let first = replica.add_version(NIL, &[7; 100]).version();
    let file = backups.path().join("one");
    let places = [(old.path(), "OLD"), (new.path(), "NEW"), (backups.path(), "BACKUPS")];
    let held = |name: &str, dir: &Path, args: &[&str]| golden(name, &steady(&done(dir, args), places));
    held("backup", old.path(), &["backup", text(&file)]);
    held("verify-backup", old.path(), &["verify-backup", text(&file)]);
    held("stats", old.path(), &["stats"]);
    replica.add_version(&first, &[7; 100]);
    server.stop();
    // What was restored is told in the order of the IDs.
    let later = "9a3f0c11-64f5-4bd1-9d3c-0f6d0c1d7a55";
    done(old.path(), &["add-client", "--id", later, "--label", "bob"]);
    done(old.path(), &["label-client", "alice", "alice-at-work"]);
    held("restore", old.path(), &["restore", text(&file), "--yes"]);
    held("restore-elsewhere", new.path(), &["restore", text(&file)]);
}

#[test]
fn a_large_snapshot_and_all_versions_are_served_from_a_new_place() {
    let (backups, new) = (place(), place());
    let file = backups.path().join("b");
    let server = Server::start(&[]);
    let mut random = Random::new("a restored place");
    let mut replica = Replica::of_new_client(&server);
    let (mut latest, mut chain) = (NIL.to_owned(), Vec::new());
    for _ in 0..20 {
        let segment = random.bytes(2000);
        let version = replica.add_version(&latest, &segment).version();
        chain.push((latest, version.clone(), segment));
        latest = version;
    }
    let snapshot = random.bytes(20 << 20);
    assert_eq!(replica.add_snapshot(&latest, &snapshot).status, 200);
    done(server.data_dir(), &["backup", text(&file)]);
    done(new.path(), &["restore", text(&file)]);
    let restored = Server::start_in(new.path(), &[]);
    let mut replica = Replica::new(&restored, &replica.client);
    assert_eq!(replica.walk(NIL), chain);
    let held = replica.snapshot();
    assert_eq!(held.version(), latest);
    assert!(held.body == snapshot, "the snapshot changed");
    assert_eq!(replica.add_version(&latest, b"next").status, 200);
}

#[test]
fn under_full_load_nothing_is_lost_that_was_acknowledged_before_the_backup_began() {
    const WRITERS: usize = 8;
    let server = Server::start(&[]);
    let backups = place();
    let (stop, begin) = (AtomicBool::new(false), AtomicBool::new(false));
    let clients: Vec<String> = (0..WRITERS).map(|_| Uuid::new_v4().to_string()).collect();
    let acknowledged: Vec<Vec<String>> = std::thread::scope(|scope| {
        let write = |client: &String| {
            let mut replica = Replica::new(&server, client);
            let (stop, begin) = (&stop, &begin);
            scope.spawn(move || {
                let (mut latest, mut before) = (NIL.to_owned(), Vec::new());
                while !stop.load(Ordering::SeqCst) {
                    latest = replica.add_version(&latest, &[1; 1000]).version();
                    if !begin.load(Ordering::SeqCst) {
                        before.push(latest.clone());
                    }
                }
                before
            })
        };
        let writers: Vec<_> = clients.iter().map(write).collect();
        std::thread::sleep(Duration::from_millis(700));
        for n in 0..3 {
            begin.store(true, Ordering::SeqCst);
            done(server.data_dir(), &["backup", text(&backups.path().join(n.to_string()))]);
        }
        stop.store(true, Ordering::SeqCst);
        writers.into_iter().map(|writer| writer.join().expect("a writer succeeds")).collect()
    });
    assert!(acknowledged.iter().all(|before| before.len() > 5), "too few were added to tell anything");
    for n in 0..3 {
        check_consistent(&backups.path().join(n.to_string()), &clients, &acknowledged);
    }
}

/// Every client's chain is whole up to its latest version, and holds what was acknowledged.
fn check_consistent(file: &Path, clients: &[String], acknowledged: &[Vec<String>]) {
    let mut reader = Reader::new(fs::File::open(file).expect("a backup")).expect("a backup");
    let mut latest = BTreeMap::new();
    let mut parents = BTreeMap::new();
    while let Some(record) = reader.next_record().expect("it is whole") {
        match record {
            Record::Client(client) => {
                latest.insert(client.client.uuid().to_string(), client.latest.to_string());
            }
            Record::Version(version) => {
                parents.insert(version.id.to_string(), version.parent.to_string());
            }
            _ => {}
        }
    }
    let mut reached = 0;
    for (client, before) in clients.iter().zip(acknowledged) {
        let mut chain = BTreeSet::new();
        let mut at = latest[client].clone();
        while at != NIL {
            let parent = parents.get(&at).unwrap_or_else(|| panic!("version {at} is missing")).clone();
            chain.insert(std::mem::replace(&mut at, parent));
        }
        reached += chain.len();
        assert!(before.iter().all(|version| chain.contains(version)), "an acknowledged version is missing");
    }
    assert_eq!(reached, parents.len(), "there are versions beyond the latest");
}

#[test]
fn kill_9_in_the_middle_of_a_backup_leaves_nothing_half_done() {
    let (dir, _, _) = filled(30_000);
    let backups = place();
    let mut random = Random::new("kill -9 of a backup");
    let file = backups.path().join("b");
    let mut killed = 0;
    for _ in 0..soak(6, 60) {
        let mut child =
            command(dir.path(), &["backup", text(&file), "--yes"]).spawn().expect("the program runs");
        std::thread::sleep(Duration::from_millis(random.below(400) as u64));
        let _ = child.kill();
        killed += usize::from(!child.wait().expect("it ends").success());
        if file.exists() {
            done(dir.path(), &["verify-backup", text(&file)]);
        }
        assert!(names(backups.path()).iter().all(|name| name == "b" || name == ".b.part"));
    }
    assert!(killed > 0, "none was killed in its middle");
    done(dir.path(), &["backup", text(&file), "--yes"]);
    assert_eq!(names(backups.path()), ["b"]);
    done(dir.path(), &["verify-backup", text(&file)]);
}

#[test]
fn kill_9_in_the_middle_of_a_restore_leaves_the_old_database_or_the_new() {
    let (source, client, latest) = filled(30_000);
    let backups = place();
    let file = backups.path().join("b");
    done(source.path(), &["backup", text(&file)]);
    let (dir, other, other_latest) = filled(100);
    let mut random = Random::new("kill -9 of a restore");
    let (mut old, mut new) = (0, 0);
    for _ in 0..soak(6, 60) {
        let mut child =
            command(dir.path(), &["restore", text(&file), "--yes"]).spawn().expect("the program runs");
        std::thread::sleep(Duration::from_millis(random.below(1500) as u64));
        let _ = child.kill();
        let _ = child.wait();
        let server = Server::start_in(dir.path(), &["--no-create-clients"]);
        let found = |client: Uuid, latest: &str| {
            let answer = Replica::new(&server, &client.to_string()).child_version(latest);
            (answer.status == 404, answer.status)
        };
        match (found(other, &other_latest), found(client, &latest)) {
            ((true, _), (false, 403)) => old += 1,
            ((false, 403), (true, _)) => {
                new += 1;
                server.stop();
                restore_old(dir.path());
            }
            neither => panic!("neither the old database nor the new: {neither:?}"),
        }
    }
    assert!(old > 0, "none was killed in time ({new} were not)");
    done(dir.path(), &["restore", text(&file), "--yes"]);
    assert!(!dir.path().join("restore.part").exists());
    assert_eq!(json(dir.path(), &["list-clients"])[0]["versions"], 30_000);
}

/// Puts the database that was kept aside in its place again, as an operator would.
fn restore_old(dir: &Path) {
    let kept: Vec<String> = names(dir).into_iter().filter(|name| name.contains("before-restore")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    fs::rename(dir.join(&kept[0]), dir.join(DATABASE)).expect("it goes back");
}

#[test]
fn what_is_no_whole_backup_is_told_and_touches_nothing() {
    let (dir, client, latest) = filled(2_000);
    let backups = place();
    let file = backups.path().join("whole");
    done(dir.path(), &["backup", text(&file)]);
    let whole = fs::read(&file).expect("a file");
    let newer_schema = {
        let head =
            Head { created: 0, schema: 99, program: "9.9.9".to_owned(), database: "sqlite".to_owned() };
        Writer::new(Vec::new(), &head).and_then(Writer::finish).expect("memory takes everything").0
    };
    let altered = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, i32, &str)> = vec![
        ("empty", Vec::new(), 65, "no backup"),
        ("sqlite", fs::read(dir.path().join(DATABASE)).expect("a file"), 65, "no backup"),
        ("cut", whole[..whole.len() / 2].to_vec(), 65, "cut off"),
        ("without-its-end", whole[..whole.len() - 1].to_vec(), 65, "cut off"),
        ("altered", altered(whole.len() / 2), 65, "byte "),
        ("altered-at-its-end", altered(whole.len() - 3), 65, "checksum of the whole"),
        ("longer", [&whole[..], b"x"].concat(), 65, "follows its end"),
        ("newer-format", [b"sync-server backup 2\n", &whole[21..]].concat(), 76, "format 2"),
        ("newer-schema", newer_schema, 76, "schema version 99, made by sync-server 9.9.9"),
    ];
    for (name, bytes, code, expected) in cases {
        let bad = backups.path().join(name);
        fs::write(&bad, bytes).expect("a file");
        let told = refused(dir.path(), &["verify-backup", text(&bad)], code);
        assert!(told.contains(expected) && told.contains(text(&bad)), "{name}: {told}");
        let before = names(dir.path());
        let told = refused(dir.path(), &["restore", text(&bad), "--yes"], code);
        assert!(told.contains(expected), "{name}: {told}");
        assert_eq!(names(dir.path()), before, "{name}");
    }
    let missing = refused(dir.path(), &["verify-backup", text(&backups.path().join("missing"))], 1);
    assert!(missing.contains("missing") && missing.contains("No such file"), "{missing}");
    let broken: Value = serde_json::from_str(&refused(
        dir.path(),
        &["verify-backup", text(&backups.path().join("cut")), "--json"],
        65,
    ))
    .expect("it is JSON");
    assert!(broken["error"].as_str().expect("an error").contains("cut off"), "{broken}");
    let server = Server::start_in(dir.path(), &[]);
    assert_eq!(Replica::new(&server, &client.to_string()).child_version(&latest).status, 404);
}

#[test]
fn a_stream_is_a_backup_too_and_restores_only_when_its_end_was_seen() {
    let (dir, _, latest) = filled(500);
    let output = admin(dir.path(), &["backup", "-"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("standard output"), "{}", stderr(&output));
    let verified = with_input(dir.path(), &["verify-backup", "-"], &output.stdout);
    assert!(verified.status.success(), "{}", stderr(&verified));
    assert!(stdout(&verified).starts_with("standard input is whole"), "{}", stdout(&verified));
    let new = place();
    let cut = with_input(new.path(), &["restore", "-"], &output.stdout[..output.stdout.len() - 40]);
    assert_eq!(cut.status.code(), Some(65), "{}", stderr(&cut));
    assert!(!new.path().join(DATABASE).exists() && !new.path().join("restore.part").exists());
    let restored = with_input(new.path(), &["restore", "-"], &output.stdout);
    assert!(restored.status.success(), "{}", stderr(&restored));
    assert!(done(new.path(), &["show-client", "filled"]).contains(&latest));
    // Whoever reads has gone.
    let mut child = command(dir.path(), &["backup", "-"]).spawn().expect("the program runs");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
}

fn with_input(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut child = command(dir, args).stdin(Stdio::piped()).spawn().expect("the program runs");
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input));
    let output = child.wait_with_output().expect("it ends");
    let _ = writer.join().expect("no panic");
    output
}

#[test]
fn a_file_and_a_database_that_are_there_are_kept_unless_told() {
    let (dir, _, latest) = filled(10);
    let backups = place();
    let file = backups.path().join("b");
    fs::write(&file, "something else").expect("a file");
    assert!(refused(dir.path(), &["backup", text(&file)], 64).contains("--yes"));
    assert_eq!(fs::read(&file).expect("a file"), b"something else");
    done(dir.path(), &["backup", text(&file), "--yes"]);
    assert!(refused(dir.path(), &["restore", text(&file)], 64).contains("holds data"));
    let told = refused(dir.path(), &["backup", text(backups.path())], 64);
    assert!(told.contains("is a directory"), "{told}");
    let told = refused(dir.path(), &["remove-client", "filled"], 64);
    assert!(told.contains("sync-server admin backup FILE"), "{told}");
    // An empty database, as a server that was just started leaves it, is an empty place.
    let new = place();
    Server::start_in(new.path(), &[]).stop();
    done(new.path(), &["restore", text(&file)]);
    assert!(done(new.path(), &["show-client", "filled"]).contains(&latest));
}

#[test]
fn a_restore_tells_what_operators_had_decided_since_and_is_taken_back() {
    let dir = place();
    let backups = place();
    let file = backups.path().join("b");
    let verb = |args: &[&str]| done(dir.path(), args);
    for label in ["al", "bob", "dave"] {
        verb(&["add-client", "--label", label]);
    }
    verb(&["add-device", "al", "laptop"]);
    verb(&["add-device", "al", "phone"]);
    verb(&["suspend-client", "bob"]);
    verb(&["backup", text(&file)]);
    let restore = ["restore", text(&file), "--yes"];
    assert_eq!(json(dir.path(), &restore)["undone"], serde_json::json!([]));
    assert!(verb(&restore).contains("No client had changed since"));
    // Each keeps what was there before, however soon it follows the last.
    verb(&restore);
    assert_eq!(names(dir.path()).iter().filter(|name| name.contains("before-restore")).count(), 3);

    verb(&["remove-device", "al", "laptop"]);
    verb(&["add-device", "al", "tablet"]);
    verb(&["suspend-client", "al"]);
    verb(&["resume-client", "bob"]);
    verb(&["remove-client", "dave", "--yes"]);
    verb(&["add-client", "--label", "carol"]);
    let said = json(dir.path(), &restore);
    let undone = said["undone"].as_array().expect("a list");
    let told: BTreeSet<_> = undone
        .iter()
        .map(|one| {
            ["label", "what", "device"].map(|key| one[key].as_str().unwrap_or("-").to_owned()).join(" ")
        })
        .collect();
    let expected = [
        "al active_again -",
        "al device_back laptop",
        "al device_gone tablet",
        "bob suspended_again -",
        "carol client_gone -",
        "dave client_back -",
    ];
    assert_eq!(told, expected.map(str::to_owned).into());
    verb(&["remove-device", "al", "laptop"]);
    let said = verb(&restore);
    assert!(said.contains("- laptop of al (") && said.contains("remove-device locks it out"), "{said}");
}

#[test]
fn a_verb_during_a_restore_is_refused_rather_than_lost() {
    let (dir, new) = (place(), place());
    done(dir.path(), &["add-client", "--label", "al"]);
    let output = admin(dir.path(), &["backup", "-"]);
    let mut child = command(new.path(), &["restore", "-"]).stdin(Stdio::piped()).spawn().expect("it runs");
    let mut stdin = child.stdin.take().expect("it is piped");
    let (first, rest) = output.stdout.split_at(output.stdout.len() / 2);
    std::io::Write::write_all(&mut stdin, first).expect("the pipe takes it");
    let begun = Instant::now();
    let lock = new.path().join("sync-server.lock");
    while !fs::read_to_string(&lock).is_ok_and(|text| text.contains("restore")) {
        assert!(begun.elapsed() < PATIENCE, "the restore does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = refused(new.path(), &["add-client", "--label", "bob"], 75);
    assert!(said.contains("restores a backup") && said.contains(&child.id().to_string()), "{said}");
    std::io::Write::write_all(&mut stdin, rest).expect("the pipe takes it");
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
    done(new.path(), &["add-client", "--label", "bob"]);
    assert!(done(new.path(), &["list-clients"]).contains("al"));
}

#[test]
fn what_a_killed_restore_left_is_removed_by_the_next_start() {
    let dir = place();
    done(dir.path(), &["add-client", "--label", "al"]);
    let left = dir.path().join("restore.part");
    fs::create_dir(&left).expect("a directory");
    fs::write(left.join(DATABASE), "half of one").expect("a file");
    let server = Server::start_in(dir.path(), &[]);
    assert!(!left.exists());
    server.stop();
}

#[test]
fn two_backups_at_once_are_one_backup() {
    let (dir, _, _) = filled(20_000);
    let backups = place();
    let file = backups.path().join("b");
    let spawn = || command(dir.path(), &["backup", text(&file)]).spawn().expect("the program runs");
    let outputs = [spawn(), spawn()].map(|child| child.wait_with_output().expect("it ends"));
    let codes = outputs.each_ref().map(|output| output.status.code());
    assert!(codes.contains(&Some(0)), "{codes:?}");
    let other = outputs.iter().find(|output| !output.status.success()).expect("the name is there once");
    let told = stderr(other);
    assert!(told.contains("another backup") || told.contains("exists"), "{told}");
    done(dir.path(), &["verify-backup", text(&file)]);
    assert_eq!(names(backups.path()), ["b"]);
}

#[test]
fn a_restore_under_a_running_server_is_refused_and_names_it() {
    let (dir, _, _) = filled(10);
    let file = dir.path().join("b");
    done(dir.path(), &["backup", text(&file)]);
    let server = Server::start_in(dir.path(), &[]);
    let told = refused(dir.path(), &["restore", text(&file), "--yes"], 75);
    assert!(told.contains(&format!("ID {}", server.pid())) && told.contains("stop it first"), "{told}");
    server.stop();
    let told = done(dir.path(), &["restore", text(&file), "--yes"]);
    assert!(told.contains("before-restore-") && told.contains("No client had changed since"), "{told}");
}

#[test]
fn root_backs_up_and_restores_as_the_data_directorys_owner() {
    if !is_root() {
        return;
    }
    let (dir, client, latest) = filled(10);
    let own = |path: &Path| chown(path, Some(STRANGER), Some(STRANGER)).expect("root may");
    own(dir.path());
    names(dir.path()).iter().for_each(|name| own(&dir.path().join(name)));
    let (roots, theirs) = (place(), place());
    own(theirs.path());
    let told = refused(dir.path(), &["backup", text(&roots.path().join("b"))], 77);
    let command = format!("sudo install -d -m 700 -o {STRANGER} -g {STRANGER} {}", roots.path().display());
    assert!(told.contains(&format!("uid {STRANGER}")) && told.contains(&command), "{told}");
    assert!(names(roots.path()).is_empty());
    let file = theirs.path().join("b");
    done(dir.path(), &["backup", text(&file)]);
    assert_eq!(file.metadata().expect("a file").uid(), STRANGER);
    // One that root alone may read.
    let secret = roots.path().join("b");
    fs::copy(&file, &secret).expect("root may");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("root may");
    let new = place();
    own(new.path());
    done(new.path(), &["restore", text(&secret)]);
    let database = new.path().join(DATABASE);
    assert_eq!(database.metadata().expect("a file").uid(), STRANGER);
    // The service finds what it needs, although root was here first.
    let place = tempfile::tempdir().expect("a directory");
    let copy = place.path().join("sync-server");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    fs::copy(program().get_program(), &copy).expect("the program can be copied");
    let mut service = std::process::Command::new(copy);
    service.env_clear().stdin(Stdio::null()).uid(STRANGER).gid(STRANGER);
    service.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(new.path());
    let server = Server::spawn(service, new.path());
    let mut replica = Replica::new(&server, &client.to_string());
    assert_eq!(replica.add_version(&latest, b"next").status, 200);
}

#[test]
fn a_disk_that_fills_is_told_and_nothing_of_the_backup_stays() {
    let (dir, _, _) = filled(10_000);
    let backups = place();
    let script = r#"mount -t tmpfs -o size=4m tmpfs "$1""#;
    let Some(mut command) = with_mounts(script, backups.path()) else { return };
    // What is left is looked at where the mount is.
    let (program, args): (_, Vec<_>) =
        (command.get_program().to_owned(), command.get_args().map(|arg| arg.to_owned()).collect());
    let mut shell = std::process::Command::new(program);
    shell.args(&args[..args.len() - 1]).args(["sh", "-c", r#""$0" "$@"; code=$?; ls -A "$DIR"; exit $code"#]);
    shell.arg(args.last().expect("the program")).env("DIR", backups.path()).env("PATH", "/usr/bin:/bin");
    command = shell;
    command.args(["admin", "backup"]).arg(backups.path().join("b")).arg("--data-dir").arg(dir.path());
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("no space is left") && stderr(&output).contains("df -h"),
        "{}",
        stderr(&output)
    );
    assert_eq!(stdout(&output), "", "something was left behind");
}

#[test]
fn scheduled_backups_are_made_pruned_and_not_multiplied() {
    let (dir, backups) = (place(), place());
    let target = backups.path().join("made");
    let args = |interval: &'static str| {
        ["--backup-dir", text(&target), "--backup-interval", interval, "--backup-keep", "2"]
            .map(str::to_owned)
    };
    let start = |interval| {
        let args = args(interval);
        Server::start_in(dir.path(), &args.each_ref().map(String::as_str))
    };
    let server = start("1s");
    Replica::of_new_client(&server).add_version(NIL, b"x");
    server.log().wait_for("1 older backups are removed, 2 are kept");
    fs::write(target.join("notes"), "mine").expect("a file");
    server.log().wait_for("1 clients, 1 versions");
    server.stop();
    let made: Vec<String> = names(&target).into_iter().filter(|name| name.ends_with(".backup")).collect();
    assert_eq!(made.len(), 2, "{made:?}");
    assert_eq!(names(&target).len(), 3);
    let newest = target.join(&made[1]);
    done(dir.path(), &["verify-backup", text(&newest)]);
    assert_eq!(target.metadata().expect("a directory").permissions().mode() & 0o777, 0o700);
    // The newest is young enough.
    let server = start("24h");
    std::thread::sleep(Duration::from_millis(300));
    server.stop();
    assert_eq!(names(&target).len(), 3);
    // It is old now, and an interrupted one lies around.
    fs::rename(&newest, target.join("sync-server-20200101T000000Z.backup")).expect("it is renamed");
    fs::remove_file(target.join(&made[0])).expect("it goes");
    fs::write(target.join(".sync-server-20200102T000000Z.backup.part"), "half").expect("a file");
    let server = start("24h");
    server.log().wait_for("versions, ");
    server.stop();
    let left = names(&target);
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.contains(&"sync-server-20200101T000000Z.backup".to_owned()), "{left:?}");
}

#[test]
fn a_scheduled_backup_that_fails_is_an_error_that_says_what_to_do_and_the_server_goes_on() {
    let backups = place();
    let target = backups.path().join("file");
    fs::write(&target, "").expect("a file");
    let server = Server::start(&["--backup-dir", text(&target), "--backup-interval", "1h"]);
    let line = server.log().wait_for("the scheduled backup failed");
    assert!(
        line.contains("ERROR") && line.contains("backup.dir") && line.contains("sudo install -d"),
        "{line}"
    );
    assert_eq!(Replica::of_new_client(&server).add_version(NIL, b"x").status, 200);
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < PATIENCE / 4, "the stop waited for the schedule");
}

/// What the README and the verb itself say about devices, tried with real ones.
#[test]
fn devices_that_are_not_ahead_go_on_and_those_that_are_fail_until_somebody_decides() {
    let (backups, new) = (place(), place());
    let file = backups.path().join("b");
    let client = Uuid::new_v4().to_string();
    let server = Server::start(&[]);
    let (mut laptop, mut phone) = (Device::new(), Device::new());
    let secret = "secret";
    laptop.add("before the backup");
    laptop.sync(&server.url(), &client, secret).expect("a sync succeeds");
    phone.sync(&server.url(), &client, secret).expect("a sync succeeds");
    done(server.data_dir(), &["backup", text(&file)]);
    laptop.add("after the backup");
    laptop.sync(&server.url(), &client, secret).expect("a sync succeeds");
    server.stop();

    let told = done(new.path(), &["restore", text(&file)]);
    assert!(told.contains(&client[..8]) && told.contains("reset-client") && told.contains("410"), "{told}");
    let server = Server::start_in(new.path(), &["--no-create-clients"]);
    phone.add("on the phone");
    phone.sync(&server.url(), &client, secret).expect("it is not ahead");
    let error = laptop.sync(&server.url(), &client, secret).expect_err("it is ahead");
    assert!(error.contains("410"), "{error}");
    assert_eq!(laptop.tasks(), ["after the backup", "before the backup"], "nothing is lost");
    // The laptop is right: its history begins anew.
    done(new.path(), &["reset-client", &client, "--yes"]);
    laptop.add("to have a change");
    laptop.sync(&server.url(), &client, secret).expect("a reset takes any parent");
    let mut fresh = Device::new();
    fresh.sync(&server.url(), &client, secret).expect("a fresh device syncs");
    assert_eq!(fresh.tasks(), laptop.tasks());
    phone.sync(&server.url(), &client, secret).expect_err("what it had is not on the server any more");
}

#[test]
fn what_was_restored_can_be_what_is_wanted_and_known_changes_are_named() {
    let dir = place();
    let file = dir.path().join("b");
    let (client, other) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    let secret = "secret";
    let server = Server::start_in(dir.path(), &[]);
    let (mut laptop, mut still) = (Device::new(), Device::new());
    laptop.add("before the backup");
    laptop.sync(&server.url(), &client, secret).expect("a sync succeeds");
    still.add("other");
    still.sync(&server.url(), &other, secret).expect("a sync succeeds");
    done(dir.path(), &["backup", text(&file)]);
    laptop.add("after the backup");
    laptop.sync(&server.url(), &client, secret).expect("a sync succeeds");
    server.stop();
    let told = json(dir.path(), &["restore", text(&file), "--yes"]);
    let ahead = told["possibly_ahead"].as_array().expect("a list");
    assert_eq!(ahead.len(), 1, "{told}");
    assert_eq!(ahead[0]["client_id"], client);
    assert_ne!(ahead[0]["latest_version_id"], ahead[0]["previous_latest_version_id"]);
    assert!(PathBuf::from(told["previous_database"].as_str().expect("a path")).exists());
    let server = Server::start_in(dir.path(), &[]);
    still.sync(&server.url(), &other, secret).expect("it is not ahead");
    laptop.sync(&server.url(), &client, secret).expect_err("it is ahead");
    // The device begins anew, as the text says: its file is moved away.
    let mut laptop = Device::new();
    laptop.sync(&server.url(), &client, secret).expect("a fresh device syncs");
    assert_eq!(laptop.tasks(), ["before the backup"]);
}
