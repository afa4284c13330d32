//! What a helpful colleague would say.

use crate::admin::{DATABASE, STRANGER, admin, done, is_root, keys, place, stderr, stdout, text};
use crate::util::{Server, program};
use serde_json::Value;
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::Path;

/// What is found with this exit code, and each topic with its grade.
fn found(dir: &Path, args: &[&str], exit_code: i32) -> (String, Vec<(String, String)>) {
    let output = admin(dir, &[&["doctor", "--json"], args].concat());
    assert_eq!(output.status.code(), Some(exit_code), "{}{}", stdout(&output), stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).expect("it is JSON");
    assert_eq!((keys(&report), &report["well"]), (vec!["findings", "well"], &Value::Bool(exit_code == 0)));
    let findings = report["findings"].as_array().expect("a list");
    let graded = findings.iter().map(|finding| {
        assert_eq!(keys(finding), ["advice", "grade", "seen", "topic"]);
        (text(finding, "topic").to_owned(), text(finding, "grade").to_owned())
    });
    (report.to_string(), graded.collect())
}

fn has(graded: &[(String, String)], topic: &str, grade: &str) -> bool {
    graded.iter().any(|(of, is)| of == topic && is == grade)
}

#[test]
fn a_healthy_server_needs_nothing_running_or_stopped() {
    let dir = place();
    let free = ["--listen", "127.0.0.1:0"];
    let (_, before) = found(dir.path(), &free, 0);
    assert!(has(&before, "database", "note") && has(&before, "listeners", "ok"), "{before:?}");
    assert!(!dir.path().join(DATABASE).exists(), "it made a database");
    done(dir.path(), &["add-client", "--label", "alice"]);
    let server = Server::start_in(dir.path(), &[]);
    let running = ["--listen", &server.address];
    let (report, graded) = found(dir.path(), &running, 0);
    assert!(report.contains(&format!("the process with ID {} serves", server.pid())), "{report}");
    for topic in
        ["configuration", "data directory", "disk", "listeners", "schema", "database", "clients", "clock"]
    {
        assert!(has(&graded, topic, "ok"), "{topic}: {graded:?}");
    }
    assert!(has(&graded, "backups", "note"), "{graded:?}");
    let file = dir.path().join("b.backup");
    done(dir.path(), &["backup", file.to_str().expect("a path")]);
    server.stop();
    let (_, graded) = found(dir.path(), &free, 0);
    assert!(has(&graded, "backups", "ok"), "{graded:?}");
    let told = done(dir.path(), &[&["doctor"], &free[..]].concat());
    assert!(told.ends_with("\nNothing needs doing.\n"), "{told}");
}

#[test]
fn each_thing_that_needs_doing_is_told_with_what_to_do() {
    let dir = place();
    done(dir.path(), &["add-client"]);
    let taken = TcpListener::bind("0.0.0.0:0").expect("a port");
    let address = format!("0.0.0.0:{}", taken.local_addr().expect("an address").port());
    let backups = dir.path().join("backups");
    std::fs::create_dir(&backups).expect("a directory");
    let backups = backups.to_str().expect("a path");
    let args = [
        "--listen",
        &address,
        "--backup-dir",
        backups,
        "--backup-interval",
        "1h",
        "--tls-cert",
        "/c",
        "--tls-key",
        "/k",
    ];
    let (report, graded) = found(dir.path(), &args, 1);
    for topic in ["configuration", "listeners", "certificate", "backups"] {
        assert!(has(&graded, topic, "problem"), "{topic}: {graded:?}");
    }
    assert!(report.contains("CREATE_CLIENTS=false"), "{report}");
    assert!(report.contains(&format!("(process {})", std::process::id())), "{report}");
    let output = admin(dir.path(), &[&["doctor"], &args[..]].concat());
    let told = stdout(&output);
    assert!(
        told.contains("PROBLEM") && told.contains("what to do: ") && told.contains(" problems."),
        "{told}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_wrong_configuration_is_what_there_is_to_say() {
    let output = program().args(["admin", "doctor", "--listen", "nowhere", "--retention-days", "3"]).output();
    let output = output.expect("the program runs");
    let told = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{told}{}", stderr(&output));
    assert!(told.contains("listen (flag --listen)") && told.contains("retention_days"), "{told}");
    assert!(told.ends_with("\n2 problems.\n"), "{told}");
}

#[test]
fn a_damaged_database_and_nobody_who_can_sync_are_told() {
    let dir = place();
    let closed = ["--no-create-clients", "--listen", "127.0.0.1:0"];
    Server::start_in(dir.path(), &[]).stop();
    let (_, graded) = found(dir.path(), &closed, 1);
    assert!(has(&graded, "clients", "problem") && has(&graded, "database", "ok"), "{graded:?}");
    done(dir.path(), &["add-client"]);
    found(dir.path(), &closed, 0);
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join(DATABASE)).expect("the file");
    // The first page says what the others are: those behind it go.
    let length = file.metadata().expect("a size").len();
    file.write_all_at(&vec![0xff; 8192], length - 8192).expect("a write");
    let (report, graded) = found(dir.path(), &closed, 1);
    assert!(has(&graded, "database", "problem"), "{report}");
}

#[test]
fn files_of_others_are_told_with_the_line_that_gives_them_back() {
    if !is_root() {
        return;
    }
    let dir = place();
    chown(dir.path(), Some(STRANGER), Some(STRANGER)).expect("it can be given away");
    done(dir.path(), &["add-client"]);
    let free = ["--listen", "127.0.0.1:0"];
    found(dir.path(), &free, 0);
    let file = dir.path().join("made-by-root");
    std::fs::write(&file, "").expect("a file");
    let (report, graded) = found(dir.path(), &free, 1);
    assert!(has(&graded, "data directory", "problem"), "{graded:?}");
    let line = format!("sudo chown -R {STRANGER}:{STRANGER} {}", dir.path().display());
    assert!(report.contains(&line) && report.contains("made-by-root"), "{report}");
    std::fs::remove_file(file).expect("it can go");
    for entry in dir.path().read_dir().expect("a directory") {
        let data = entry.expect("an entry").metadata().expect("a file");
        assert_eq!(data.uid(), STRANGER, "the doctor left something behind");
    }
}
