//! Old versions and large clients go in small steps, while the server runs and while it does not, and
//! whatever dies meanwhile.

use crate::admin::{DATABASE, command, done, golden, json, keys, place, refused, statuses, stdout, text};
use crate::util::{NIL, PATIENCE, Replica, Server, program, skip};
use rusqlite::{Connection, params};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use uuid::{NoContext, Timestamp, Uuid};

const ID: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";
const OTHER: &str = "99999999-0cf0-4eb8-9eca-6f7f220638c0";
const DAY: u64 = 86_400;

/// What makes a program believe that it is so many days later; `None`, after a word about it, where
/// that cannot be done.
fn later(days: u32) -> Option<Vec<(String, String)>> {
    let output =
        Command::new("faketime").args(["-f", &format!("+{days}d"), "env"]).stdin(Stdio::null()).output();
    let Ok(output) = output else {
        skip("there is no faketime, of Debian's package of that name");
        return None;
    };
    let told = stdout(&output);
    let variables = told.lines().filter_map(|line| line.split_once('='));
    let wanted = variables.filter(|(name, _)| ["LD_PRELOAD", "FAKETIME"].contains(name));
    let mut wanted: Vec<_> = wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(wanted.len(), 2, "{told}");
    wanted.push(("FAKETIME_DONT_FAKE_MONOTONIC".to_owned(), "1".to_owned()));
    Some(wanted)
}

/// What a verb prints that believes to run in that future.
pub fn done_later(dir: &Path, days: u32, args: &[&str]) -> Option<String> {
    let output = command(dir, args).envs(later(days)?).output().expect("the program runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(stdout(&output))
}

fn json_later(dir: &Path, days: u32, args: &[&str]) -> Option<Value> {
    let printed = done_later(dir, days, &[args, &["--json"]].concat())?;
    Some(serde_json::from_str(&printed).expect("it is JSON"))
}

fn open(dir: &Path) -> Connection {
    let connection = Connection::open(dir.join(DATABASE)).expect("the database opens");
    connection.busy_timeout(PATIENCE).expect("a timeout");
    connection
}

/// Puts a chain into the database that was made so many days ago, with a snapshot of its last but one
/// version; returns its versions.
fn fill(dir: &Path, client: &str, versions: usize, days: u64) -> Vec<String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs();
    let made = |n: usize| Timestamp::from_unix(NoContext, now - days * DAY + n as u64 / 1000, 0);
    let ids: Vec<String> = (0..versions).map(|n| Uuid::new_v7(made(n)).to_string()).collect();
    let mut connection = open(dir);
    let transaction = connection.transaction().expect("a transaction");
    let mut parent = NIL.to_owned();
    for id in &ids {
        let mut statement = transaction
            .prepare_cached("INSERT INTO versions VALUES (?1, ?2, ?3, ?4)")
            .expect("the SQL is right");
        statement.execute(params![id, client, parent, [7_u8; 100]]).expect("a row");
        parent.clone_from(id);
    }
    transaction
        .execute(
            "INSERT OR REPLACE INTO clients VALUES (?1, ?2, ?3, 1, 0, ?4)",
            params![client, ids[versions - 1], ids[versions - 2], [7_u8; 100]],
        )
        .expect("a row");
    transaction.commit().expect("a commit");
    ids
}

fn versions(dir: &Path, client: &str) -> usize {
    let sql = "SELECT count(*) FROM versions WHERE client_id = ?1";
    let count: i64 = open(dir).query_row(sql, [client], |row| row.get(0)).expect("a count");
    count.unsigned_abs() as usize
}

/// Waits for something that happens sooner or later.
fn wait_until(what: &str, mut happens: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happens() {
        assert!(Instant::now() < deadline, "time ran out before {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Begins a verb that takes many steps, and kills it in the middle; returns how many versions are left.
/// One that was done sooner than it was killed is no use, and begun again by the caller.
fn kill_in_the_middle(dir: &Path, client: &str, args: &[&str]) -> usize {
    let all = versions(dir, client);
    let mut verb = command(dir, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    wait_until("anything was removed", || versions(dir, client) < all);
    verb.kill().expect("it can be killed");
    verb.wait().expect("it is gone");
    versions(dir, client)
}

#[test]
fn what_is_pruned_is_said_before_and_after() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID, "--label", "alice"]);
    assert!(refused(dir.path(), &["prune"], 78).contains("RETENTION_DAYS"));
    refused(dir.path(), &["prune", "--retention-days", "29"], 78);
    let prune = ["prune", "--retention-days", "30"];
    golden("prune-nothing", &done(dir.path(), &prune));
    let chain = fill(dir.path(), ID, 10, 40);
    fill(dir.path(), OTHER, 4, 20);
    let dry = [&prune[..], &["--dry-run"]].concat();
    golden("prune-dry-run", &done(dir.path(), &dry));
    let planned = json(dir.path(), &dry);
    assert_eq!(keys(&planned), ["bytes", "clients", "dry_run", "retention_days", "versions"]);
    assert_eq!(keys(&planned["clients"][0]), ["bytes", "client_id", "label", "versions"]);
    assert_eq!((&planned["versions"], versions(dir.path(), ID)), (&Value::from(9), 10));

    let server = Server::start_in(dir.path(), &[]);
    golden("prune", &done(dir.path(), &prune));
    server.log().wait_for("prune (9 versions of 1 client, 900 bytes, older than 30 days)");
    let audited = json(dir.path(), &["audit"]);
    let last = audited.as_array().and_then(|events| events.last()).expect("an event");
    assert_eq!((text(last, "action"), &last["client_id"]), ("prune", &Value::Null));
    assert!(text(last, "detail").starts_with("9 versions of 1 client"), "{last}");

    // Who was away is told, who was not goes on, and a new device begins with the snapshot.
    let mut replica = Replica::new(&server, ID);
    for gone in [NIL, &chain[0], &chain[7]] {
        assert_eq!(replica.child_version(gone).status, 410, "{gone}");
    }
    assert_eq!(replica.snapshot().version(), chain[8]);
    assert_eq!(replica.child_version(&chain[8]).version(), chain[9]);
    assert_eq!(replica.child_version(&chain[9]).status, 404);
    let next = replica.add_version(&chain[9], b"after it").version();
    assert_eq!(replica.add_snapshot(&next, b"anew").status, 200);
    assert_eq!(Replica::new(&server, OTHER).walk(NIL).len(), 4);
    done(dir.path(), &["check"]);
    let listed = json(dir.path(), &["show-client", "alice"]);
    assert_eq!((&listed["versions"], &listed["bytes"]), (&Value::from(2), &Value::from(108)));
    assert_eq!(listed["first_parent_version_id"], chain[8]);
    assert_eq!(json(dir.path(), &prune)["versions"], 1);
}

#[test]
fn versions_of_the_reference_server_count_from_the_adoption() {
    let dir = place();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tss-sqlite").join(DATABASE);
    let Ok(_) = std::fs::copy(&path, dir.path().join(DATABASE)) else {
        panic!("{} is missing", path.display());
    };
    // All of them are years old, as far as anybody knows, and have been here for no day yet.
    let prune = ["prune", "--retention-days", "30"];
    assert_eq!(json(dir.path(), &prune)["versions"], 0);
    let Some(early) = json_later(dir.path(), 29, &prune) else { return };
    assert_eq!(early["versions"], 0);
    let late = json_later(dir.path(), 31, &prune).expect("it could be done before");
    assert!(late["versions"].as_u64().is_some_and(|versions| versions > 0), "{late}");
    done(dir.path(), &["check"]);
}

#[test]
fn the_server_prunes_by_itself_at_a_quiet_time() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    let chain = fill(dir.path(), ID, 2000, 40);
    let server = Server::start_in(dir.path(), &["--retention-days", "30"]);
    let line = server.log().wait_for("old versions are removed");
    assert!(line.contains("1999 versions of 1 client"), "{line}");
    assert_eq!(versions(dir.path(), ID), 1);
    assert_eq!(Replica::new(&server, ID).child_version(&chain[1998]).version(), chain[1999]);
    let audited = json(dir.path(), &["audit"]);
    let events = audited.as_array().expect("a list");
    assert_eq!((events.len(), text(&events[1], "user")), (2, "sync-server"));
    server.stop();
    // Without the option nothing goes.
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    fill(dir.path(), ID, 4, 4000);
    let server = Server::start_in(dir.path(), &[]);
    std::thread::sleep(Duration::from_secs(7));
    server.stop();
    assert_eq!(versions(dir.path(), ID), 4);
}

#[test]
fn a_prune_that_is_killed_leaves_sound_chains_and_an_honest_record() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    let prune = ["prune", "--retention-days", "30"];
    let mut interrupted = 0;
    for round in 0..10 {
        let chain = fill(dir.path(), ID, 20_000, 40);
        let server = (round % 2 == 0).then(|| Server::start_in(dir.path(), &[]));
        let left = kill_in_the_middle(dir.path(), ID, &prune);
        let gone = 20_000 - left;
        interrupted += usize::from(left > 1);
        done(dir.path(), &["check"]);
        let audited = json(dir.path(), &["audit", "--limit", "1"]);
        let detail = text(&audited[0], "detail").to_owned();
        assert!(detail.starts_with(&format!("{gone} versions of 1 client")), "{gone} are gone: {detail}");
        let listed = json(dir.path(), &["show-client", ID]);
        assert_eq!((&listed["versions"], &listed["bytes"]), (&Value::from(left), &Value::from(100 * left)));
        let rest = json(dir.path(), &prune);
        assert_eq!((rest["versions"].as_u64(), versions(dir.path(), ID)), (Some(left as u64 - 1), 1));
        let server = server.unwrap_or_else(|| Server::start_in(dir.path(), &[]));
        assert_eq!(Replica::new(&server, ID).child_version(&chain[19_998]).version(), chain[19_999]);
        server.stop();
        if interrupted == 2 {
            return;
        }
        done(dir.path(), &["reset-client", ID, "--yes"]);
    }
    panic!("every prune was done before it was killed");
}

#[test]
fn a_removal_that_is_killed_is_carried_on_and_meanwhile_nobody_gets_in() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", OTHER]);
    fill(dir.path(), OTHER, 5, 1);
    let mut interrupted = 0;
    for round in 0..10 {
        done(dir.path(), &["add-client", "--id", ID, "--label", "alice"]);
        fill(dir.path(), ID, 8_000, 1);
        let verb = if round % 2 == 0 { "remove-client" } else { "reset-client" };
        if kill_in_the_middle(dir.path(), ID, &[verb, "alice", "--yes"]) == 0 {
            // It was done: the client is gone or empty.
            if round % 2 == 1 {
                done(dir.path(), &["remove-client", "alice", "--yes"]);
            }
            continue;
        }
        interrupted += 1;
        assert_eq!(json(dir.path(), &["show-client", "alice"])["state"], "leaving");
        for args in [
            &["label-client", "alice", "bob"][..],
            &["add-device", "alice", "x"],
            &["resume-client", "alice"],
        ] {
            refused(dir.path(), args, 75);
        }
        assert!(done(dir.path(), &["check"]).contains("1 client being removed"));
        // The server goes on with it, and creates nothing beside it until the end.
        let server = Server::start_in(dir.path(), &[]);
        let first = statuses(&server, ID);
        assert!(first == [403; 4] || versions(dir.path(), ID) <= 1, "{first:?}");
        let mut replica = Replica::new(&server, ID);
        wait_until("the client could begin anew", || replica.add_version(NIL, b"anew").status != 403);
        assert_eq!(versions(dir.path(), ID), 1);
        let label = json(dir.path(), &["show-client", ID])["label"].clone();
        assert_eq!(label, if round % 2 == 0 { Value::Null } else { Value::from("alice") });
        assert_eq!(Replica::new(&server, OTHER).walk(NIL).len(), 5);
        done(dir.path(), &["check"]);
        server.stop();
        done(dir.path(), &["remove-client", ID, "--yes"]);
        if interrupted == 2 {
            return;
        }
    }
    panic!("fewer than two removals were killed in the middle");
}

#[test]
fn a_removal_that_is_killed_is_carried_on_by_the_same_command_too() {
    let dir = place();
    for _ in 0..10 {
        done(dir.path(), &["add-client", "--id", ID, "--label", "alice"]);
        fill(dir.path(), ID, 20_000, 1);
        let left = kill_in_the_middle(dir.path(), ID, &["remove-client", "alice", "--yes"]);
        if left > 0 {
            refused(dir.path(), &["add-client", "--id", ID], 75);
            let said = done(dir.path(), &["remove-client", "alice", "--yes"]);
            assert!(said.contains(&format!("{left} versions")), "{said}");
            assert_eq!(versions(dir.path(), ID), 0);
            refused(dir.path(), &["show-client", ID], 67);
            done(dir.path(), &["check"]);
            return;
        }
    }
    panic!("every removal was done before it was killed");
}

#[test]
fn the_server_goes_on_while_a_large_client_is_removed() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    fill(dir.path(), ID, 20_000, 1);
    let server = Server::start_in(dir.path(), &[]);
    let mut replica = Replica::of_new_client(&server);
    let mut verb = command(dir.path(), &["remove-client", ID, "--yes"]).spawn().expect("it starts");
    let (mut parent, mut added) = (NIL.to_owned(), 0);
    let status = loop {
        parent = replica.add_version(&parent, b"meanwhile").version();
        added += 1;
        if let Some(status) = verb.try_wait().expect("the child can be waited for") {
            break status;
        }
    };
    assert!(status.success());
    assert_eq!(replica.walk(NIL).len(), added);
    assert_eq!(get_status(&server), 404);
}

fn get_status(server: &Server) -> u16 {
    Replica::new(server, ID).child_version(NIL).status
}

#[test]
fn the_option_is_none_unless_it_is_set() {
    let show = |args: &[&str]| {
        let output = program().args(["config", "show"]).args(args).output().expect("the program runs");
        stdout(&output)
    };
    assert!(!show(&[]).lines().any(|line| line.starts_with("retention_days =")), "{}", show(&[]));
    assert!(show(&["--retention-days", "45"]).contains("retention_days = 45"));
}
