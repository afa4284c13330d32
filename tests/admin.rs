//! The operator's verbs, with the server running and stopped, and what they do to real clients.

use crate::util::{NIL, Replica, SEGMENT, SNAPSHOT, Server, program_on, say_skipped};
use serde_json::Value;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use taskchampion::storage::inmemory::InMemoryStorage;
use taskchampion::{Operations, ServerConfig, Status};
use tempfile::TempDir;

pub const DATABASE: &str = "taskchampion-sync-server.sqlite3";
const ID: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";

/// A user that owns nothing on a test machine.
pub const STRANGER: u32 = 4711;

pub fn admin(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().expect("the program runs")
}

pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = program_on(dir);
    command.arg("admin").args(args).arg("--data-dir").arg(dir);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a verb that works prints.
pub fn done(dir: &Path, args: &[&str]) -> String {
    let output = admin(dir, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

/// What a verb that works gives to programs.
pub fn json(dir: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&done(dir, &[args, &["--json"]].concat())).expect("it is JSON")
}

pub fn refused(dir: &Path, args: &[&str], exit_code: i32) -> String {
    let output = admin(dir, args);
    assert_eq!(output.status.code(), Some(exit_code), "{args:?}: {}", stderr(&output));
    assert_eq!(stdout(&output), "", "{args:?}");
    stderr(&output)
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn place() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key}: {value}"))
}

pub fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// Compares with tests/golden/NAME.txt; with `SYNC_SERVER_TEST_WRITE_GOLDEN` that file is written.
pub fn golden(name: &str, printed: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    let printed = normal(printed);
    if std::env::var_os("SYNC_SERVER_TEST_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &printed).expect("the file can be written");
    }
    assert_eq!(printed, std::fs::read_to_string(&path).expect("a text"), "{}", path.display());
}

/// IDs, secrets and times replaced by what they are.
fn normal(text: &str) -> String {
    let word = |word: &str| {
        let letters = |word: &str| word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let hex = |word: &str| word.chars().all(|c| c.is_ascii_hexdigit());
        match word {
            word if uuid::Uuid::parse_str(word).is_ok() => "UUID".to_owned(),
            word if word.len() == 32 && letters(word) => "SECRET".to_owned(),
            word if word.contains("://laptop:") => {
                let (start, rest) = word.split_once("laptop:").expect("as was seen");
                let (token, host) = rest.split_once('@').expect("a host");
                assert_eq!(token.len(), 43, "{word}");
                format!("{start}laptop:TOKEN@{host}")
            }
            word if word.len() == 8 && hex(word) => "SHORTID!".to_owned(),
            word if word.len() == 20 && word.ends_with('Z') && word.contains('T') => {
                "YYYY-MM-DDTHH:MM:SSZ".to_owned()
            }
            word => word.to_owned(),
        }
    };
    text.split_inclusive([' ', '\n', ',', '"'])
        .map(|part| {
            let end = part.len() - part.trim_end_matches([' ', '\n', ',', '"']).len();
            let (inner, rest) = part.split_at(part.len() - end);
            format!("{}{rest}", word(inner))
        })
        .collect()
}

pub fn get(server: &Server, client: &str) -> u16 {
    Replica::new(server, client).child_version(NIL).status
}

/// The status of each of the four transactions.
pub fn statuses(server: &Server, client: &str) -> [u16; 4] {
    let ask = |method, path: &str, kind: &str, body: &[u8]| {
        server.request(method, path, &[("X-Client-Id", client), ("Content-Type", kind)], body).status
    };
    [
        ask("GET", &format!("/v1/client/get-child-version/{NIL}"), SEGMENT, b""),
        ask("GET", "/v1/client/snapshot", SNAPSHOT, b""),
        ask("POST", &format!("/v1/client/add-version/{ID}"), SEGMENT, b"x"),
        ask("POST", &format!("/v1/client/add-snapshot/{ID}"), SNAPSHOT, b"x"),
    ]
}

/// A real client in memory.
pub struct Device {
    runtime: tokio::runtime::Runtime,
    replica: taskchampion::Replica<InMemoryStorage>,
}

impl Device {
    pub fn new() -> Device {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let replica = taskchampion::Replica::new(InMemoryStorage::new());
        Device { runtime: runtime.expect("a runtime"), replica }
    }

    pub fn add(&mut self, description: &str) {
        self.runtime.block_on(async {
            let mut operations = Operations::new();
            let id = taskchampion::Uuid::new_v4();
            let mut task = self.replica.create_task(id, &mut operations).await.expect("a task");
            task.set_description(description.to_owned(), &mut operations).expect("a description");
            task.set_status(Status::Pending, &mut operations).expect("a status");
            self.replica.commit_operations(operations).await.expect("a commit");
        });
    }

    pub fn sync(&mut self, url: &str, client: &str, secret: &str) -> Result<(), String> {
        let config = ServerConfig::Remote {
            url: url.to_owned(),
            client_id: client.parse().expect("a UUID"),
            encryption_secret: secret.as_bytes().to_vec(),
        };
        self.runtime.block_on(async {
            let mut server = config.into_server().await.expect("a valid configuration");
            self.replica.sync(&mut server, false).await.map_err(|error| format!("{error:#}"))
        })
    }

    pub fn tasks(&mut self) -> Vec<String> {
        let tasks = self.runtime.block_on(self.replica.all_tasks()).expect("the tasks");
        let mut tasks: Vec<_> = tasks.values().map(|task| task.get_description().to_owned()).collect();
        tasks.sort();
        tasks
    }
}

#[test]
fn what_people_see() {
    let dir = place();
    let added = admin(dir.path(), &["add-client", "--label", "alice"]);
    golden("add-client", &stdout(&added));
    let first = format!("database: {}\n", dir.path().join(DATABASE).display());
    assert!(stderr(&added).starts_with(&first), "{}", stderr(&added));
    done(dir.path(), &["add-client", "--id", ID]);
    let again = ["add-client", "--id", ID, "--if-missing", "--public-url", "https://tasks.example.org"];
    golden("add-client-again", &done(dir.path(), &again));

    let server = Server::start_in(dir.path(), &["--no-create-clients"]);
    let mut replica = Replica::new(&server, ID);
    let version = replica.add_version(NIL, &[1; 1500]).version();
    assert_eq!(replica.add_snapshot(&version, &[1; 3000]).status, 200);
    replica.add_version(&version, &[1; 100]);
    for (name, args) in [
        ("list-clients", &["list-clients"][..]),
        ("show-client", &["show-client", "711d"]),
        ("label-client", &["label-client", ID, "bob"]),
        ("suspend-client", &["suspend-client", "bob"]),
        ("resume-client", &["resume-client", "bob"]),
        ("reset-client", &["reset-client", "bob", "--yes"]),
        ("remove-client", &["remove-client", "bob", "--yes"]),
        ("audit", &["audit"]),
    ] {
        let user = Command::new("id").arg("-un").output().expect("a user");
        let printed = done(dir.path(), args);
        // How wide the column of users is depends on who runs the test.
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n";
        let printed = if name == "audit" {
            printed.lines().map(words).collect::<String>().replace(stdout(&user).trim(), "USER")
        } else {
            printed
        };
        golden(name, &printed);
    }
}

#[test]
fn programs_get_the_documented_keys() {
    let dir = place();
    let added =
        json(dir.path(), &["add-client", "--label", "alice", "--public-url", "https://tasks.example.org"]);
    assert_eq!(keys(&added), ["client_id", "encryption_secret", "existed", "label", "server_url"]);
    assert_eq!(added["server_url"], "https://tasks.example.org/");
    let again = json(dir.path(), &["add-client", "--label", "alice", "--if-missing"]);
    assert_eq!((&again["client_id"], &again["existed"]), (&added["client_id"], &Value::Bool(true)));
    assert_eq!(again["encryption_secret"], Value::Null);

    let client = [
        "bytes",
        "client_id",
        "created",
        "devices",
        "label",
        "last_sync",
        "latest_version_id",
        "snapshot_bytes",
        "snapshot_timestamp",
        "snapshot_version_id",
        "state",
        "versions",
        "versions_since_snapshot",
    ];
    let listed = json(dir.path(), &["list-clients"]);
    assert_eq!(keys(&listed[0]), client);
    for args in [&["suspend-client", "alice"][..], &["resume-client", "alice"], &["label-client", "alice"]] {
        assert_eq!(keys(&json(dir.path(), args)), client, "{args:?}");
    }
    let id = text(&added, "client_id");
    let mut whole = client.to_vec();
    whole.extend(["first_parent_version_id", "first_version_id", "syncs"]);
    whole.sort_unstable();
    assert_eq!(keys(&json(dir.path(), &["show-client", id])), whole);
    assert_eq!(keys(&json(dir.path(), &["audit"])[0]), ["action", "at", "client_id", "detail", "user"]);
    assert_eq!(json(dir.path(), &["remove-client", id, "--yes"])["client_id"], added["client_id"]);
    assert_eq!(json(dir.path(), &["list-clients"]), Value::Array(Vec::new()));
    assert_eq!(json(dir.path(), &["audit", id]).as_array().map(Vec::len), Some(5));

    for (args, code) in [(&["show-client", "nobody", "--json"][..], 67), (&["show-client", "--json"], 64)] {
        let error: Value = serde_json::from_str(&refused(dir.path(), args, code)).expect("it is JSON");
        assert_eq!(keys(&error), ["database", "error"]);
    }
}

#[test]
fn real_replicas_use_what_add_client_prints() {
    let dir = place();
    let added = json(dir.path(), &["add-client"]);
    let server = Server::start_in(dir.path(), &["--no-create-clients"]);
    let later = json(dir.path(), &["add-client"]);
    for client in [added, later] {
        let (id, secret) = (text(&client, "client_id"), text(&client, "encryption_secret"));
        let (mut one, mut other) = (Device::new(), Device::new());
        one.add("made on one device");
        one.sync(&server.url(), id, secret).expect("a sync succeeds");
        other.sync(&server.url(), id, secret).expect("a sync succeeds");
        assert_eq!(other.tasks(), ["made on one device"]);
    }
}

#[test]
fn who_synced_last_is_noted_with_the_next_write_and_at_the_end() {
    let dir = place();
    let server = Server::start_in(dir.path(), &[]);
    let (mut device, id, secret) = (Device::new(), ID, "secret");
    let last = || json(dir.path(), &["show-client", ID]);
    device.add("a task");
    device.sync(&server.url(), id, secret).expect("a sync succeeds");
    server.stop();
    let (noted, sync) = (last(), &last()["syncs"][0]);
    assert_eq!((&noted["last_sync"], &sync["device"]), (&sync["last_sync"], &Value::Null));
    assert!(text(sync, "program").starts_with("taskchampion/"), "{sync}");
    assert!(done(dir.path(), &["list-clients"]).contains("under a minute"));

    // A poll alone writes nothing, and the next write takes it along.
    let server = Server::start_in(dir.path(), &[]);
    let other = "99999999-0cf0-4eb8-9eca-6f7f220638c0";
    let path = format!("/v1/client/get-child-version/{NIL}");
    server.request("GET", &path, &[("X-Client-Id", ID), ("User-Agent", "poller/1.0")], b"");
    assert_eq!(last()["syncs"].as_array().map(Vec::len), Some(1));
    Replica::new(&server, other).add_version(NIL, b"one");
    let knows_poller = |client: Value| {
        client["syncs"].as_array().expect("a list").iter().any(|sync| sync["program"] == "poller/1.0")
    };
    assert!(knows_poller(last()));
}

#[test]
fn the_printed_lines_are_the_settings() {
    let dir = place();
    let printed =
        done(dir.path(), &["add-client", "--id", ID, "--public-url", "https://tasks.example.org/t"]);
    let lines: Vec<&str> = printed.lines().filter(|line| line.starts_with("task config ")).collect();
    assert_eq!(lines[0], "task config sync.server.url https://tasks.example.org/t/");
    assert_eq!(lines[1], format!("task config sync.server.client_id {ID}"));
    let secret = lines[2].strip_prefix("task config sync.encryption_secret ").expect("a secret");
    assert_eq!((lines.len(), secret.len()), (3, 32));
    let stored = std::fs::read(dir.path().join(DATABASE)).expect("the database can be read");
    assert!(!stored.windows(32).any(|window| window == secret.as_bytes()), "the server keeps the secret");
    assert!(done(dir.path(), &["add-client", "--qr"]).contains("▄▄▄▄▄"));
}

#[test]
fn a_suspended_client_is_refused_at_once_and_resumed_at_once() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID]);
    let server = Server::start_in(dir.path(), &[]);
    let connection = &mut Replica::new(&server, ID);
    let version = connection.add_version(NIL, b"one").version();
    done(dir.path(), &["suspend-client", ID]);
    assert_eq!(connection.child_version(NIL).status, 403);
    assert_eq!(statuses(&server, ID), [403; 4]);
    server.log().wait_for("it is suspended");
    server.log().wait_for(": suspend-client of client 711d5cf3");
    done(dir.path(), &["resume-client", ID]);
    assert_eq!(connection.child_version(NIL).version(), version);
    server.stop();
    done(dir.path(), &["suspend-client", ID]);
    assert_eq!(statuses(&Server::start_in(dir.path(), &[]), ID), [403; 4]);
}

#[test]
fn a_client_is_named_by_its_id_by_a_beginning_or_by_its_label() {
    let dir = place();
    let near = "711d5cf3-0cf0-4eb8-9eca-000000000000";
    done(dir.path(), &["add-client", "--id", ID, "--label", "phone"]);
    done(dir.path(), &["add-client", "--id", near, "--label", "work"]);
    for name in [ID, &ID.to_uppercase(), &ID.replace('-', ""), "711d5cf3-0cf0-4eb8-9eca-6", "phone"] {
        assert_eq!(text(&json(dir.path(), &["show-client", name]), "client_id"), ID, "{name}");
    }
    let told = refused(dir.path(), &["show-client", "711d"], 67);
    for shown in ["711d5cf3-0cf0-4eb8-9eca-6 (phone)", "711d5cf3-0cf0-4eb8-9eca-0 (work)"] {
        assert!(told.contains(shown), "{told}");
    }
    for name in ["8", "Phone", "phon", "%", ""] {
        refused(dir.path(), &["show-client", name], 67);
    }
}

#[test]
fn what_exists_is_not_made_again() {
    let dir = place();
    done(dir.path(), &["add-client", "--id", ID, "--label", "phone"]);
    let before = json(dir.path(), &["list-clients"]);
    for args in [
        &["add-client", "--id", ID][..],
        &["add-client", "--label", "phone"],
        &["add-client", "--id", ID, "--label", "other", "--if-missing"],
        &["add-client", "--id", "99999999-0cf0-4eb8-9eca-6f7f220638c0", "--label", "phone", "--if-missing"],
    ] {
        assert!(refused(dir.path(), args, 73).contains("nothing was changed") || args.len() > 5, "{args:?}");
    }
    for args in
        [&["add-client", "--label", ""][..], &["add-client", "--label", ID], &["label-client", ID, "a\nb"]]
    {
        refused(dir.path(), args, 64);
    }
    for args in
        [&["add-client", "--id", ID, "--if-missing"][..], &["add-client", "--label", "phone", "--if-missing"]]
    {
        assert!(done(dir.path(), args).contains(ID));
    }
    assert_eq!(json(dir.path(), &["list-clients"]), before);
    done(dir.path(), &["add-client", "--label", "laptop"]);
    refused(dir.path(), &["label-client", "laptop", "phone"], 73);
    assert_eq!(json(dir.path(), &["audit"]).as_array().map(Vec::len), Some(2));
}

#[test]
fn verbs_at_the_same_time_do_not_disturb_each_other() {
    let dir = place();
    let data = dir.path().join("not/made/yet");
    let start = |label| command(&data, &["add-client", "--label", label]).spawn().expect("it starts");
    let same: Vec<_> = (0..4).map(|_| start("same")).collect();
    let others: Vec<_> = ["a", "b", "c", "d"].map(start).into();
    let codes = |children: Vec<std::process::Child>| {
        let wait = |child: std::process::Child| child.wait_with_output().expect("it ends").status.code();
        let mut codes: Vec<_> = children.into_iter().map(wait).collect();
        codes.sort_unstable();
        codes
    };
    assert_eq!(codes(same), [Some(0), Some(73), Some(73), Some(73)]);
    assert_eq!(codes(others), [Some(0); 4]);
    assert_eq!(json(&data, &["list-clients"]).as_array().map(Vec::len), Some(5));
}

#[test]
fn what_cannot_be_undone_wants_to_be_confirmed() {
    let dir = place();
    let server = Server::start_in(dir.path(), &[]);
    Replica::new(&server, ID).add_version(NIL, b"one");
    for verb in ["remove-client", "reset-client"] {
        let told = refused(dir.path(), &[verb, ID], 64);
        assert!(told.contains("1 version (3 B)") && told.contains("--yes"), "{told}");
    }
    assert_eq!(get(&server, ID), 200);
    let removed = admin(dir.path(), &["remove-client", ID, "--yes"]);
    assert!(stderr(&removed).contains("returns"), "{}", stderr(&removed));
    assert_eq!(get(&server, ID), 404);
    assert_eq!(Replica::new(&server, ID).add_version(NIL, b"anew").status, 200);
}

#[test]
fn a_removed_client_does_not_return_where_none_are_created() {
    let server = Server::start(&["--no-create-clients"]);
    let args = |verb| [verb, ID, "--no-create-clients"];
    done(server.data_dir(), &["add-client", "--id", ID]);
    assert_eq!(Replica::new(&server, ID).add_version(NIL, b"one").status, 200);
    let removed = admin(server.data_dir(), &[&args("remove-client")[..], &["--yes"]].concat());
    assert!(!stderr(&removed).contains("returns"), "{}", stderr(&removed));
    assert_eq!(statuses(&server, ID), [403; 4]);
}

#[test]
fn a_reset_history_begins_anew_from_the_device_that_is_right() {
    let server = Server::start(&[]);
    let (url, client, secret) = (server.url(), ID, "secret");
    let (mut right, mut other) = (Device::new(), Device::new());
    right.add("first");
    right.sync(&url, client, secret).expect("a sync succeeds");
    other.sync(&url, client, secret).expect("a sync succeeds");
    right.add("second");
    right.sync(&url, client, secret).expect("a sync succeeds");
    done(server.data_dir(), &["reset-client", ID, "--yes"]);

    // What reset-client prints, step by step.
    right.add("any change");
    right.sync(&url, client, secret).expect("the first device syncs");
    let mut fresh = Device::new();
    fresh.sync(&url, client, secret).expect("an emptied device syncs");
    assert_eq!(fresh.tasks(), ["any change", "first", "second"]);
    fresh.add("and on");
    fresh.sync(&url, client, secret).expect("a sync succeeds");
    right.sync(&url, client, secret).expect("a sync succeeds");
    assert_eq!(right.tasks().len(), 4);
    other.sync(&url, client, secret).expect_err("its history is gone");
}

#[test]
fn lists_are_ordered_as_asked() {
    let server = Server::start(&[]);
    let client = |n| format!("0000000{n}-0cf0-4eb8-9eca-6f7f220638c0");
    for (n, label, versions) in [(1, "b", 1), (2, "c", 3), (3, "a", 2)] {
        done(server.data_dir(), &["add-client", "--id", &client(n), "--label", label]);
        let mut replica = Replica::new(&server, &client(n));
        let mut parent = NIL.to_owned();
        for _ in 0..versions {
            parent = replica.add_version(&parent, &vec![0; 1000 / versions]).version();
        }
    }
    let order = |args: &[&str]| {
        let listed = json(server.data_dir(), &[&["list-clients"], args].concat());
        let labels = listed.as_array().expect("a list").iter().map(|client| text(client, "label").to_owned());
        labels.collect::<String>()
    };
    assert_eq!(order(&[]), "abc");
    assert_eq!(order(&["--reverse"]), "cba");
    assert_eq!(order(&["--sort", "id"]), "bca");
    assert_eq!(order(&["--sort", "versions"]), "bac");
    assert_eq!(order(&["--sort", "bytes"]), "cba");
    refused(server.data_dir(), &["list-clients", "--sort", "size"], 64);
}

#[test]
fn no_verb_but_add_client_makes_a_database() {
    let dir = place();
    let missing = dir.path().join("missing");
    for place in [dir.path(), &missing] {
        for args in [&["list-clients"][..], &["audit"], &["show-client", ID], &["suspend-client", ID]] {
            assert!(refused(place, args, 1).contains("there is no database"), "{args:?}");
        }
    }
    assert!(!missing.exists());
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0);
}

#[test]
fn a_wrong_configuration_and_an_unreadable_one_are_errors() {
    let dir = place();
    for (args, code) in [
        (&["list-clients", "--config", "/nowhere/config.toml"][..], 78),
        (&["list-clients", "--listen", "nowhere"], 78),
        (&["no-such-verb"], 64),
        (&["add-client", "--id", "no-id"], 64),
    ] {
        refused(dir.path(), args, code);
    }
    let broken = dir.path().join(DATABASE);
    std::fs::write(&broken, "this is no database, and long enough to be looked at as one".repeat(20))
        .expect("a file");
    assert!(refused(dir.path(), &["list-clients"], 1).contains("damaged or no SQLite database"));
}

#[test]
fn a_list_of_allowed_clients_that_lacks_the_new_one_is_warned_of() {
    let dir = place();
    let added = admin(dir.path(), &["add-client", "--allow-client-id", ID]);
    assert!(stderr(&added).contains("will still refuse this client"), "{}", stderr(&added));
    let added = admin(dir.path(), &["add-client", "--id", ID, "--allow-client-id", ID]);
    assert!(!stderr(&added).contains("will still refuse"), "{}", stderr(&added));
}

#[test]
fn databases_of_the_reference_server_are_adopted_by_the_first_verb() {
    let dir = place();
    let fixture = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tss-sqlite"));
    std::fs::copy(fixture.join(DATABASE), dir.path().join(DATABASE)).expect("a copy");
    let listed = admin(dir.path(), &["list-clients", "--json", "--sort", "versions"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("it is JSON");
    let versions: Vec<_> =
        listed.as_array().expect("a list").iter().map(|client| &client["versions"]).collect();
    assert_eq!(versions, [1, 3, 12, 130]);
    assert!(dir.path().join(format!("{DATABASE}.before-migration")).exists());
}

#[test]
fn a_database_that_someone_else_serves_is_not_migrated() {
    let dir = place();
    let fixture = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tss-sqlite"));
    std::fs::copy(fixture.join(DATABASE), dir.path().join(DATABASE)).expect("a copy");
    let _lock = sync_server::storage::lock::DirectoryLock::take(dir.path()).expect("the lock is free");
    let told = refused(dir.path(), &["list-clients"], 1);
    assert!(told.contains(&format!("the process with ID {}", std::process::id())), "{told}");
}

/// Whether this test can become another user; says so where not.
pub fn is_root() -> bool {
    let root = std::fs::metadata("/proc/self").expect("it exists").uid() == 0;
    if !root {
        say_skipped("only root can become another user");
    }
    root
}

/// A directory that others can reach and one below it that belongs to somebody else.
fn strangers_place() -> (TempDir, std::path::PathBuf) {
    let dir = place();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("root may");
    let data = dir.path().join("data");
    std::fs::create_dir(&data).expect("a directory");
    chown(&data, Some(STRANGER), Some(STRANGER)).expect("root may");
    (dir, data)
}

/// The program where everybody may run it: the build directory may be closed to others.
fn program_for_all(dir: &TempDir) -> Command {
    let copy = dir.path().join("sync-server");
    if !copy.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_sync-server"), &copy).expect("a copy of the program");
    }
    let mut command = Command::new(copy);
    command.env_clear().current_dir("/").stdin(Stdio::null());
    command
}

#[test]
fn root_works_as_the_owner_of_the_data_also_before_the_first_start() {
    if !is_root() {
        return;
    }
    let (dir, data) = strangers_place();
    let inner = data.join("not/made/yet");
    for place in [&inner, &data] {
        done(place, &["add-client", "--id", ID]);
        for file in std::fs::read_dir(place).expect("it was made").map(|file| file.expect("an entry").path())
        {
            let owner = file.metadata().expect("it exists");
            assert_eq!((owner.uid(), owner.gid()), (STRANGER, STRANGER), "{}", file.display());
        }
    }
    assert_eq!(inner.metadata().expect("it exists").mode() & 0o777, 0o700);

    let mut service = program_for_all(&dir);
    service.args(["--no-create-clients", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
    service.uid(STRANGER).gid(STRANGER);
    let server = Server::spawn(service, &data);
    assert_eq!(Replica::new(&server, ID).add_version(NIL, b"one").status, 200);
    done(&data, &["suspend-client", ID]);
    assert_eq!(get(&server, ID), 403);
    server.log().wait_for("suspend-client");
    server.stop();
    done(&data, &["resume-client", ID]);
    let mut service = program_for_all(&dir);
    service.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(&data).uid(STRANGER).gid(STRANGER);
    assert_eq!(get(&Server::spawn(service, &data), ID), 200);
    assert_eq!(text(&json(&data, &["audit"])[0], "user"), "root");
}

#[test]
fn another_user_than_the_owner_is_told_what_to_do_and_makes_nothing() {
    if !is_root() {
        return;
    }
    let (dir, data) = strangers_place();
    done(&data, &["add-client", "--id", ID]);
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o777)).expect("root may");
    let before = std::fs::read_dir(&data).expect("a directory").count();
    let mut other = program_for_all(&dir);
    other.args(["admin", "list-clients", "--data-dir"]).arg(&data).uid(STRANGER + 1).gid(STRANGER + 1);
    let output = other.output().expect("the program runs");
    assert_eq!(output.status.code(), Some(77), "{}", stderr(&output));
    assert!(stderr(&output).contains("sudo -u '#4711'"), "{}", stderr(&output));
    let mut other = program_for_all(&dir);
    other.args(["admin", "doctor", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
    let told = stdout(&other.uid(STRANGER + 1).gid(STRANGER + 1).output().expect("the program runs"));
    assert!(told.contains("sudo -u '#4711'") && !told.contains("chown"), "{told}");
    assert_eq!(std::fs::read_dir(&data).expect("a directory").count(), before);
}
