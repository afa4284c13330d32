//! Clients that the configuration file declares.

use crate::util::{NIL, Replica, Server, program};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const ALICE: &str = "711d5cf3-0cf0-4eb8-9eca-6f7f220638c0";
const BOB: &str = "8ff00bf4-2e6b-4e1b-b1a5-bd7bf1b4b2d4";

/// The program with a configuration file that holds this text.
fn with_file(dir: &Path, text: &str) -> Command {
    let path = dir.join("config.toml");
    std::fs::write(&path, text).expect("a file can be written");
    let mut command = program();
    command.args(["--listen", "127.0.0.1:0", "--no-create-clients", "--data-dir"]).arg(dir.join("data"));
    command.arg("--config").arg(path);
    command
}

fn start(dir: &Path, text: &str) -> Server {
    Server::spawn(with_file(dir, text), &dir.join("data"))
}

fn entry(id: &str, label: &str) -> String {
    format!("[[clients]]\nid = '{id}'\nlabel = '{label}'\n")
}

fn admin(dir: &Path, text: &str, args: &[&str]) -> Output {
    with_file(dir, text).arg("admin").args(args).output().expect("the program runs")
}

fn json(dir: &Path, args: &[&str]) -> Value {
    let output = admin(dir, "", &[args, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).expect("it is JSON")
}

/// Every client: the beginning of its ID, and its label.
fn clients(dir: &Path) -> Vec<(String, String)> {
    let listed = json(dir, &["list-clients"]);
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let of = |client: &Value| (text(&client["client_id"])[..8].to_owned(), text(&client["label"]));
    listed.as_array().expect("a list").iter().map(of).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(id, label)| (id[..8].to_owned(), (*label).to_owned())).collect()
}

#[test]
fn declared_clients_are_made_labelled_recorded_and_never_removed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = start(dir.path(), &format!("{}[[clients]]\nid = '{BOB}'\n", entry(ALICE, "alice")));
    let line = server.log().wait_for("add-client of client 711d5cf3");
    assert!(line.contains("configuration: ") && line.contains("(alice)"), "{line}");
    assert_eq!(Replica::new(&server, ALICE).add_version(NIL, b"x").status, 200);
    assert_eq!(Replica::new(&server, BOB).child_version(NIL).status, 404);
    assert!(!server.log().text().contains("0cf0-4eb8"), "{}", server.log().text());
    server.stop();
    assert_eq!(clients(dir.path()), pairs(&[(ALICE, "alice"), (BOB, "-")]));

    // Labels that change places, and then a start without any entry.
    start(dir.path(), &(entry(ALICE, "bob") + &entry(BOB, "alice"))).stop();
    assert_eq!(clients(dir.path()), pairs(&[(BOB, "alice"), (ALICE, "bob")]));
    start(dir.path(), &(entry(ALICE, "alice") + &entry(BOB, "bob"))).stop();
    let server = start(dir.path(), "");
    assert_eq!(Replica::new(&server, ALICE).walk(NIL).len(), 1);
    server.stop();
    assert_eq!(clients(dir.path()), pairs(&[(ALICE, "alice"), (BOB, "bob")]));
    let audit = json(dir.path(), &["audit"]);
    let events = audit.as_array().expect("a list");
    let told: Vec<_> = events
        .iter()
        .map(|event| ["user", "action", "detail"].map(|key| event[key].as_str().unwrap_or("-").to_owned()))
        .collect();
    let told: Vec<_> = told.iter().map(|event| event.join(" ")).collect();
    assert_eq!(
        told,
        [
            "configuration add-client alice",
            "configuration add-client ",
            "configuration label-client bob",
            "configuration label-client alice",
            "configuration label-client alice",
            "configuration label-client bob",
        ]
    );
}

#[test]
fn a_server_that_nobody_can_use_says_so_with_the_command_that_makes_a_client() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = start(dir.path(), "");
    let line = server.log().wait_for("no client exists yet");
    let command = format!("`sync-server admin add-client --data-dir {}`", dir.path().join("data").display());
    assert!(line.contains("[WARN]") && line.contains(&command), "{line}");
    server.stop();
    let server = start(dir.path(), &entry(ALICE, "alice"));
    server.log().wait_for("task config sync.encryption_secret");
    server.stop();
    let server = start(dir.path(), "");
    let log = server.log().clone();
    server.stop();
    log.wait_for("stopped");
    assert!(!log.text().contains("no client exists yet"), "{}", log.text());
}

#[test]
fn a_label_of_another_client_keeps_the_server_from_starting_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    assert!(admin(dir.path(), "", &["add-client", "--id", BOB, "--label", "alice"]).status.success());
    let output = with_file(dir.path(), &(entry(ALICE, "alice"))).output().expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("error: clients (line 1 of the configuration file): the label \"alice\" is that of client 8ff00bf4"),
        "{told}"
    );
    assert!(told.contains("label-client"), "{told}");
    assert_eq!(clients(dir.path()), pairs(&[(BOB, "alice")]));
}

#[test]
fn the_verbs_warn_where_the_configuration_will_undo_what_they_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let text = entry(ALICE, "alice");
    start(dir.path(), &text).stop();
    let warned = |args: &[&str]| {
        let output = admin(dir.path(), &text, args);
        assert!(output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let told = warned(&["label-client", ALICE, "carol"]);
    assert!(told.contains("calls this client \"alice\"") && told.contains("line 1"), "{told}");
    assert!(!warned(&["label-client", ALICE, "alice"]).contains("warning: the configuration"));
    let told = warned(&["remove-client", ALICE, "--yes"]);
    assert!(told.contains("makes it anew at its next start"), "{told}");
    start(dir.path(), &text).stop();
    assert_eq!(clients(dir.path()), pairs(&[(ALICE, "alice")]));
}
