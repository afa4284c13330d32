//! Looking a database over, with the server running and stopped.

use crate::admin::{DATABASE, admin, done, golden, json, keys, place, refused, stderr, stdout, text};
use crate::util::{NIL, Replica, Server};
use rusqlite::{Connection, params};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::Path;

const ID: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";
const OTHER: &str = "99999999-0cf0-4eb8-9eca-6f7f220638c0";

/// A client with this many versions and a snapshot of the second last.
fn grow(server: &Server, client: &str, versions: usize) -> Vec<String> {
    let mut replica = Replica::new(server, client);
    let mut chain = vec![NIL.to_owned()];
    for n in 0..versions {
        let parent = chain[n].clone();
        chain.push(replica.add_version(&parent, &[7; 100]).version());
    }
    assert_eq!(replica.add_snapshot(&chain[versions - 1], &[7; 1000]).status, 200);
    chain.remove(0);
    chain
}

/// What `check` gives to programs where it finds something.
fn found(dir: &Path) -> Value {
    let output = admin(dir, &["check", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).expect("it is JSON")
}

fn flaws(report: &Value) -> Vec<(String, String)> {
    let findings = report["findings"].as_array().expect("a list");
    let flaw = |finding: &Value| (text(finding, "client_id").to_owned(), text(finding, "flaw").to_owned());
    findings.iter().map(flaw).collect()
}

fn execute(dir: &Path, sql: &str, parameters: impl rusqlite::Params) {
    let connection = Connection::open(dir.join(DATABASE)).expect("the database opens");
    connection.execute(sql, parameters).expect("the SQL is right");
}

#[test]
fn a_sound_database_is_found_well_with_the_server_running_and_stopped() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID, "--label", "alice"]);
    let server = Server::start_in(dir.path(), &[]);
    grow(&server, ID, 4);
    grow(&server, OTHER, 3);
    let look = || {
        golden("check", &done(dir.path(), &["check"]));
        let (report, stats) = (json(dir.path(), &["check"]), json(dir.path(), &["stats"]));
        let counts = ["clients", "versions", "bytes", "snapshots", "snapshot_bytes"];
        assert_eq!(counts.map(|key| &report[key]), [2, 7, 700, 2, 2000]);
        assert_eq!(counts.map(|key| &stats[key]), counts.map(|key| &report[key]));
        (report, stats)
    };
    look();
    server.stop();
    let (report, stats) = look();
    assert_eq!(
        keys(&report),
        [
            "bytes",
            "clients",
            "damage",
            "findings",
            "leaving_clients",
            "snapshot_bytes",
            "snapshots",
            "unfinished",
            "versions"
        ]
    );
    assert_eq!(
        keys(&stats),
        [
            "bytes",
            "clients",
            "database_bytes",
            "devices",
            "free_bytes",
            "last_sync",
            "schema_version",
            "snapshot_bytes",
            "snapshots",
            "suspended_clients",
            "unused_bytes",
            "versions",
            "wal_bytes"
        ]
    );
    let told = done(dir.path(), &["stats"]);
    assert!(told.contains("versions          7, 700 B\n"), "{told}");
}

#[test]
fn a_broken_chain_is_told_with_whose_it_is_and_what_to_do() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID, "--label", "alice"]);
    let server = Server::start_in(dir.path(), &[]);
    let (alices, others) = (grow(&server, ID, 5), grow(&server, OTHER, 5));
    execute(dir.path(), "DELETE FROM versions WHERE version_id = ?1", [&alices[2]]);
    execute(
        dir.path(),
        "UPDATE clients SET latest_version_id = ?1 WHERE client_id = ?2",
        params![NIL.replace('0', "7"), OTHER],
    );
    let report = found(dir.path());
    let of = |client: &str, flaw: &str| (client.to_owned(), flaw.to_owned());
    assert_eq!(
        flaws(&report),
        [of(ID, "parent_missing"), of(OTHER, "latest_missing"), of(OTHER, "snapshot_astray")]
    );
    let output = admin(dir.path(), &["check"]);
    assert_eq!(output.status.code(), Some(1));
    let told = stdout(&output);
    assert!(
        told.contains(&format!("client alice: version {} is missing from the chain", alices[2])),
        "{told}"
    );
    assert!(told.contains("client 99999999: its latest version"), "{told}");
    assert!(
        told.contains("`sync-server admin reset-client alice`") && told.contains("3 problems found"),
        "{told}"
    );
    assert!(!told.contains(OTHER), "{told}");
    // The advice works.
    done(dir.path(), &["reset-client", "alice", "--yes"]);
    done(dir.path(), &["reset-client", "9999", "--yes"]);
    done(dir.path(), &["check"]);
    assert_eq!(Replica::new(&server, OTHER).child_version(&others[0]).status, 404);
}

#[test]
fn what_is_left_of_a_client_that_was_deleted_by_hand_is_told_and_can_be_removed() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID, "--label", "alice"]);
    let server = Server::start_in(dir.path(), &[]);
    let chain = grow(&server, ID, 3);
    grow(&server, OTHER, 2);
    execute(dir.path(), "DELETE FROM clients WHERE client_id = ?1", [ID]);
    assert_eq!(flaws(&found(dir.path())), [(ID.to_owned(), "orphans".to_owned())]);
    let warned = refused(dir.path(), &["remove-client", ID], 64);
    assert!(warned.contains("711d5cf3 does not exist") && warned.contains("3 versions (300 B)"), "{warned}");
    assert_eq!(flaws(&found(dir.path())).len(), 1);
    assert!(done(dir.path(), &["remove-client", ID, "--yes"]).contains("3 versions (300 B)"));
    done(dir.path(), &["check"]);
    assert_eq!(Replica::new(&server, ID).add_version(NIL, b"anew").status, 200);
    assert_eq!(Replica::new(&server, ID).child_version(&chain[0]).status, 410);
    // The label is free again, and only the whole ID names what does not exist.
    done(dir.path(), &["label-client", OTHER, "alice"]);
    refused(dir.path(), &["remove-client", "88888888-0cf0-4eb8-9eca-6f7f220638c0", "--yes"], 67);
}

#[test]
fn damage_in_the_file_is_found() {
    let dir = place();
    let server = Server::start_in(dir.path(), &[]);
    let chain = grow(&server, ID, 200);
    server.stop();
    execute(
        dir.path(),
        "UPDATE versions SET parent_version_id = upper(version_id) WHERE version_id = ?1",
        [&chain[9]],
    );
    let report = found(dir.path());
    assert!(
        report["damage"][0].as_str().is_some_and(|flaw| flaw.contains("parent_version_id is no ID")),
        "{report}"
    );
    // A page that a disk lost.
    let connection = Connection::open(dir.path().join(DATABASE)).expect("the database opens");
    let sql = "SELECT (rootpage - 1) * page_size, page_size FROM sqlite_schema, pragma_page_size
               WHERE name = 'sync_server_child'";
    let (at, length): (i64, i64) =
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("a page");
    drop(connection);
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join(DATABASE)).expect("the file");
    file.write_all_at(&vec![0; length.unsigned_abs() as usize], at.unsigned_abs()).expect("a write");
    drop(file);
    let told = stdout(&admin(dir.path(), &["check"]));
    assert!(told.contains("damage: ") && told.contains("restore the latest backup"), "{told}");
    assert!(!found(dir.path())["damage"].as_array().expect("a list").is_empty());
}
