//! Where the connection string comes from, and that it stays secret.

use super::cluster::Cluster;
use super::{DATABASE, serve, with_connection};
use crate::util::{NIL, Replica, Server, program};
use std::path::Path;

const PASSWORD: &str = "hunter2-secret";

/// A cluster that asks for a password, and a connection string that has it.
fn guarded() -> Option<(Cluster, String)> {
    let cluster = Cluster::start(&[])?;
    cluster.sql(DATABASE, &format!("CREATE ROLE worker LOGIN SUPERUSER PASSWORD '{PASSWORD}'"));
    let rules = cluster.data().join("pg_hba.conf");
    std::fs::write(rules, "local all postgres trust\nhost all all all scram-sha-256\n").expect("rules");
    cluster.sql(DATABASE, "SELECT pg_reload_conf()");
    let connection = cluster.uri(DATABASE).replace("postgres@", &format!("worker:{PASSWORD}@"));
    Some((cluster, connection))
}

#[test]
fn the_connection_comes_from_wherever_secrets_come_from_and_is_shown_nowhere() {
    let Some((_cluster, connection)) = guarded() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("connection");
    std::fs::write(&file, format!("{connection}\n")).expect("a file");
    let mut by_file = program();
    by_file.env("CONNECTION_FILE", &file);
    let mut by_credential = program();
    by_credential.env("CREDENTIALS_DIRECTORY", dir.path());
    let mut by_flag = program();
    by_flag.arg("-c").arg(&connection);
    // The reference server's image sets both.
    let mut by_variable = with_connection(&connection);
    by_variable.stdout(std::process::Stdio::null()).env("DATA_DIR", dir.path().join("data"));
    for mut command in [by_file, by_credential, by_flag, by_variable] {
        command.args(["--listen", "127.0.0.1:0", "--log-level", "trace"]);
        let server = Server::spawn(command, Path::new("/nonexistent"));
        let mut replica = Replica::of_new_client(&server);
        assert_eq!(replica.add_version(NIL, b"x").status, 200);
        assert_eq!(replica.child_version(NIL).status, 200);
        let (log, client) = (server.log().text(), replica.client.clone());
        server.stop();
        assert!(!log.contains(PASSWORD) && !log.contains(&client), "{log}");
    }
    assert!(!dir.path().join("data").exists(), "the data directory was used");
    let shown = with_connection(&connection).args(["config", "show"]).output().expect("the program runs");
    assert!(!crate::admin::stdout(&shown).contains(PASSWORD) && shown.status.success());
}

#[test]
fn what_is_wrong_with_a_connection_is_told_without_its_password() {
    let Some((cluster, connection)) = guarded() else { return };
    let wrong = [
        (connection.replace(PASSWORD, "hunter2-wrong"), 1, "password authentication failed"),
        (connection.replace("/postgres", "/nowhere"), 1, "createdb"),
        (format!("{connection}?sslmode=require"), 1, "server does not support TLS"),
        (format!("{connection}?sslmode=maybe"), 78, "sslmode"),
        (format!("{connection}?hunter2=x"), 78, "connection"),
        ("hunter2".to_owned(), 78, "neither a URI"),
        (format!("{connection}?sslmode=verify-full&sslrootcert=/nowhere.pem"), 1, "/nowhere.pem"),
    ];
    for (connection, exit_code, expected) in wrong {
        let output = with_connection(&connection).output().expect("the program runs");
        let told = crate::admin::stderr(&output);
        assert_eq!(output.status.code(), Some(exit_code), "{told}");
        assert!(told.contains(expected), "{expected} is not in: {told}");
        assert!(!told.contains("hunter2-"), "{told}");
    }
    serve(&cluster, &[]).stop();
}
