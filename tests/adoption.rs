//! Databases of the reference server are served in place, and stay its own.

use crate::util::{NIL, Replica, Server};
use rusqlite::Connection;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use taskchampion::storage::inmemory::InMemoryStorage;
use taskchampion::{ServerConfig, Uuid};
use tempfile::TempDir;

const DATABASE: &str = "taskchampion-sync-server.sqlite3";

/// What a column is: name, type, whether it may be null, default, place in the primary key.
type Column = (String, String, bool, Option<String>, i64);

#[test]
fn a_cleanly_stopped_database_is_served_in_place() {
    serve_in_place("tss-sqlite");
}

#[test]
fn a_database_that_a_crash_left_behind_is_served_in_place() {
    serve_in_place("tss-sqlite-unclean");
}

fn serve_in_place(fixture: &str) {
    let dir = copy_of(fixture);
    // Looked at in a copy of its own, for closing a database tidies it up.
    let tables = tables(&copy_of(fixture));
    let server = Server::start_in(dir.path(), &[]);
    for client in clients(fixture) {
        check_client(&server, &client);
    }
    kept_copy(&server, &dir, versions_of(fixture));
    server.stop();
    for (table, columns) in tables {
        assert_eq!(columns_of(&open(&dir), &table), columns, "the columns of {table}");
    }
    // The second start adopts nothing any more, and still holds what the first one was given.
    let server = Server::start_in(dir.path(), &[]);
    for client in clients(fixture) {
        let mut replica = Replica::new(&server, text(&client["client_id"]));
        let chain = replica.walk(first_parent(&client));
        assert_eq!(chain.len(), versions(&client).len() + 1);
        assert_eq!(chain[chain.len() - 1].2, b"added after the adoption");
    }
    assert!(!server.log().text().contains("before-migration"), "{}", server.log().text());
}

/// Walks the client's chain, looks at its snapshot, syncs a real replica, and goes on from there.
pub fn check_client(server: &Server, client: &Value) {
    let mut replica = Replica::new(server, text(&client["client_id"]));
    let chain: Vec<_> = replica
        .walk(first_parent(client))
        .into_iter()
        .map(|(parent, id, segment)| (parent, id, sha256(&segment), segment.len()))
        .collect();
    assert_eq!(chain, versions(client));

    let snapshot = replica.snapshot();
    match client["snapshot"].as_object() {
        Some(expected) => {
            assert_eq!(snapshot.version(), text(&expected["version_id"]));
            assert_eq!(sha256(&snapshot.body), text(&expected["sha256"]));
        }
        None => assert_eq!(snapshot.status, 404),
    }
    if let Some(secret) = client["encryption_secret"].as_str() {
        assert_eq!(tasks(server, client, secret), expected_tasks(client));
    }
    let (_, latest, ..) = chain.last().expect("every client has versions");
    assert_eq!(replica.add_version(NIL, b"too late").header("x-parent-version-id"), Some(latest.as_str()));
    assert_eq!(replica.add_version(latest, b"added after the adoption").status, 200);
}

/// What a fresh replica of a real client ends up with.
fn tasks(server: &Server, client: &Value, secret: &str) -> BTreeMap<String, String> {
    let config = ServerConfig::Remote {
        url: server.url(),
        client_id: text(&client["client_id"]).parse().expect("a UUID"),
        encryption_secret: secret.as_bytes().to_vec(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut replica = taskchampion::Replica::new(InMemoryStorage::new());
        let mut server = config.into_server().await.expect("a valid configuration");
        replica.sync(&mut server, true).await.expect("a fresh replica syncs");
        let tasks = replica.all_tasks().await.expect("the tasks").into_iter();
        tasks.map(|(uuid, task)| (uuid.to_string(), task.get_description().to_owned())).collect()
    })
}

/// The copy that was made before the migration holds every version, and the log names it.
fn kept_copy(server: &Server, dir: &TempDir, versions: usize) {
    let entries = std::fs::read_dir(dir.path()).expect("the directory can be read");
    let files = entries.map(|entry| entry.expect("an entry").path());
    let names_copy = |path: &PathBuf| path.to_string_lossy().contains("before-migration");
    let copies: Vec<_> = files.filter(names_copy).collect();
    let [copy] = &copies[..] else { panic!("one copy is kept, not {copies:?}") };
    server.log().wait_for(&copy.display().to_string());
    // Opened as the only file of its name: it needs no WAL to be whole.
    let alone = tempfile::tempdir().expect("a temporary directory");
    let moved = alone.path().join(DATABASE);
    std::fs::copy(copy, &moved).expect("the copy can be copied");
    assert_eq!(rows(&Connection::open(moved).expect("the copy opens")), versions);
}

#[test]
fn what_another_program_writes_into_the_adopted_tables_is_served() {
    let dir = copy_of("tss-sqlite");
    Server::start_in(dir.path(), &[]).stop();
    let clients = clients("tss-sqlite");
    let client = text(&clients[0]["client_id"]);
    let (_, latest, ..) = versions(&clients[0]).pop().expect("the client has versions");
    let (new, other) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    let database = open(&dir);
    add_row(&database, client, &latest, &new);
    let by_hand = "INSERT INTO clients (client_id, latest_version_id) VALUES (?1, ?2)";
    database.execute(by_hand, [&other, NIL]).expect("a client can be inserted by hand");
    drop(database);

    let server = Server::start_in(dir.path(), &["--no-create-clients"]);
    let mut replica = Replica::new(&server, client);
    assert_eq!(replica.child_version(&latest).version(), new);
    assert_eq!(replica.add_version(&new, b"goes on").status, 200);
    let mut replica = Replica::new(&server, &other);
    assert_eq!(replica.child_version(NIL).status, 404);
    assert_eq!(replica.add_version(NIL, b"the first").status, 200);
}

/// Whoever deletes a client's row by hand, or puts a new one in its place, leaves its versions.
#[test]
fn a_client_deleted_by_hand_finds_its_way_along_the_versions_that_were_left() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start_in(dir.path(), &[]);
    for by_hand in [None, Some("INSERT INTO clients (client_id, latest_version_id) VALUES (?1, ?2)")] {
        let client = Uuid::new_v4().to_string();
        let mut replica = Replica::new(&server, &client);
        let first = replica.add_version(NIL, b"1").version();
        let last = replica.add_version(&first, b"2").version();
        let database = open(&dir);
        database.execute("DELETE FROM clients WHERE client_id = ?1", [&client]).expect("a client is deleted");
        if let Some(by_hand) = by_hand {
            database.execute(by_hand, [&client, NIL]).expect("a client is inserted");
        }
        // A second first version would be a branch; as after any conflict, the replica catches up.
        let conflict = replica.add_version(NIL, b"fresh");
        assert_eq!((conflict.status, conflict.header("x-parent-version-id")), (409, Some(&first[..])));
        assert_eq!(replica.add_version(&first, b"stale").status, 409);
        assert_eq!(replica.walk(NIL).pop().expect("versions").1, last);
        assert_eq!(replica.add_version(&last, b"3").status, 200);
        assert_eq!(replica.walk(NIL).len(), 3);
    }
}

#[test]
fn a_large_snapshot_disowned_by_hand_does_not_stop_its_client() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start_in(dir.path(), &[]);
    let mut replica = Replica::of_new_client(&server);
    let first = replica.add_version(NIL, b"1").version();
    assert_eq!(replica.add_snapshot(&first, &[7; 100_000]).status, 200);
    open(&dir).execute("UPDATE clients SET snapshot_version_id = NULL", []).expect("one may try");
    assert_eq!(replica.snapshot().status, 404);
    let second = replica.add_version(&first, b"2");
    assert_eq!((second.status, second.header("x-snapshot-request")), (200, Some("urgency=high")));
    assert_eq!(replica.add_snapshot(&second.version(), &[8; 100_000]).status, 200);
    assert_eq!(replica.snapshot().body, [8; 100_000]);
    assert_eq!(replica.add_version(&second.version(), b"3").header("x-snapshot-request"), None);
}

#[test]
fn two_children_of_one_parent_are_reported_and_served_but_not_repaired() {
    let dir = copy_of("tss-sqlite");
    let clients = clients("tss-sqlite");
    let client = text(&clients[1]["client_id"]);
    let chain = versions(&clients[1]);
    let (parent, sibling, ..) = &chain[5];
    let branch = Uuid::new_v4().to_string();
    let database = open(&dir);
    let insert = "INSERT INTO versions (version_id, client_id, parent_version_id, history_segment) \
                  VALUES (?1, ?2, ?3, x'00')";
    database.execute(insert, [&branch, client, parent]).expect("the branch can be inserted");
    let before = rows(&database);
    drop(database);

    for _ in 0..2 {
        let server = Server::start_in(dir.path(), &[]);
        let warning = server.log().wait_for(&branch);
        for part in [&client[..8], parent, sibling] {
            assert!(warning.contains(part), "{part} is not in: {warning}");
        }
        assert!(!server.log().text().contains(client), "the log shows a whole client ID");
        let mut replica = Replica::new(&server, client);
        assert_eq!(replica.child_version(parent).status, 200);
        // Beyond the branch the chain is whole, and so are those of the other clients.
        let last = replica.walk(sibling).pop().expect("the chain goes on").1;
        assert_eq!(replica.add_version(&last, b"goes on").status, 200);
        assert_eq!(replica.add_version(parent, b"one more branch").status, 409);
        let other = &clients[2];
        let mut replica = Replica::new(&server, text(&other["client_id"]));
        assert_eq!(replica.walk(first_parent(other)).len(), versions(other).len());
        server.stop();
    }
    assert_eq!(rows(&open(&dir)), before + 2, "nothing was removed");
}

fn copy_of(fixture: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in std::fs::read_dir(path_of(fixture)).expect("the fixture is there") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
    }
    std::fs::remove_file(dir.path().join("expected.json")).expect("only the database is left");
    dir
}

pub fn path_of(fixture: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture)
}

pub fn clients(fixture: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(path_of(fixture).join("expected.json")).expect("expectations");
    let expected: Value = serde_json::from_str(&text).expect("JSON");
    expected["clients"].as_array().expect("a list of clients").clone()
}

/// Parent, ID, SHA-256 and length of each version, in order.
fn versions(client: &Value) -> Vec<(String, String, String, usize)> {
    let versions = client["versions"].as_array().expect("a list of versions").iter();
    let fields = |version: &Value| {
        let [parent, id, hash] =
            ["parent_version_id", "version_id", "sha256"].map(|field| text(&version[field]).to_owned());
        (parent, id, hash, version["bytes"].as_u64().expect("a length") as usize)
    };
    versions.map(fields).collect()
}

fn versions_of(fixture: &str) -> usize {
    clients(fixture).iter().map(|client| versions(client).len()).sum()
}

fn first_parent(client: &Value) -> &str {
    text(&client["versions"][0]["parent_version_id"])
}

fn expected_tasks(client: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(client["tasks"].clone()).expect("a map of tasks")
}

pub fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn open(dir: &TempDir) -> Connection {
    Connection::open(dir.path().join(DATABASE)).expect("the database opens")
}

fn rows(database: &Connection) -> usize {
    let count = database.query_row("SELECT count(*) FROM versions", [], |row| row.get::<_, u32>(0));
    count.expect("a count") as usize
}

/// Adds a version in the reference server's way.
fn add_row(database: &Connection, client: &str, parent: &str, version: &str) {
    let insert = "INSERT INTO versions (version_id, client_id, parent_version_id, history_segment) \
                  VALUES (?1, ?2, ?3, x'010203')";
    database.execute(insert, [version, client, parent]).expect("a version can be inserted");
    let update = "UPDATE clients SET latest_version_id = ?1, \
                  versions_since_snapshot = versions_since_snapshot + 1 WHERE client_id = ?2";
    assert_eq!(database.execute(update, [version, client]).expect("the client can be updated"), 1);
}

fn tables(dir: &TempDir) -> BTreeMap<String, Vec<Column>> {
    let database = open(dir);
    ["clients", "versions"].map(|table| (table.to_owned(), columns_of(&database, table))).into()
}

fn columns_of(database: &Connection, table: &str) -> Vec<Column> {
    let mut statement = database.prepare(&format!("PRAGMA table_info({table})")).expect("a statement");
    let column = |row: &rusqlite::Row| Ok((row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?));
    let columns = statement.query_map([], column).expect("columns").collect::<Result<Vec<_>, _>>();
    let columns = columns.expect("columns");
    assert!(!columns.is_empty(), "there is no table {table}");
    columns
}
