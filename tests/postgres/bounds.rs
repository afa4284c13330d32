//! What a server on Postgres takes at most, and for how long it is waited for.

use super::cluster::{Cluster, signal_all};
use super::instances::wait_for_service;
use super::{DATABASE, done, serve, with_connection};
use crate::attacks::memory;
use crate::lifecycle::Manager;
use crate::util::{NIL, Replica, Server};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const MIB: usize = 1024 * 1024;

/// The memory that a server has besides bodies: its program, its threads, what a connection buffers.
const BESIDES: usize = 64 * MIB;

#[test]
fn large_snapshots_go_up_and_down_within_the_memory_for_bodies() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let server = serve(&cluster, &["--body-memory", "160MiB", "--body-wait", "5m"]);
    let large: Vec<u8> = (0..100 * MIB).map(|n| (n / 4099) as u8).collect();
    let clients: Vec<String> = std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut replica = Replica::of_new_client(&server);
                    let version = replica.add_version(NIL, b"x").version();
                    assert_eq!(replica.add_snapshot(&version, &large).status, 200);
                    replica.client
                })
            })
            .collect();
        uploads.into_iter().map(|upload| upload.join().expect("it is stored")).collect()
    });
    let after_uploads = memory(&server);
    assert!(after_uploads < 160 * MIB + BESIDES, "{} MiB of memory", after_uploads / MIB);
    std::thread::scope(|scope| {
        for client in &clients {
            let (server, large) = (&server, &large);
            scope.spawn(move || {
                let found = Replica::new(server, client).snapshot();
                assert!(found.status == 200 && found.body == *large, "it came back changed");
            });
        }
    });
    let after_all = memory(&server);
    eprintln!("{} MiB after the uploads, {} MiB after all", after_uploads / MIB, after_all / MIB);
    assert!(after_all < 160 * MIB + BESIDES, "{} MiB of memory", after_all / MIB);
    server.stop();
}

#[test]
fn the_watchdog_is_told_while_the_database_hangs_and_threads_do_not_pile_up() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let manager = Manager::listen(dir.path());
    let mut command = Command::new("/bin/sh");
    // The variable holds the process' own ID, which exec keeps.
    command.env_clear().args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""]);
    command.arg(with_connection("").get_program()).env("CONNECTION", cluster.local(DATABASE));
    command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "400000").stdout(Stdio::null());
    command.args(["--listen", "127.0.0.1:0", "--postgres-statement-timeout", "5s"]);
    let server = Server::spawn(command, Path::new("/nonexistent"));
    manager.wait_for("WATCHDOG=1");
    let mut replica = Replica::of_new_client(&server);
    let first = replica.add_version(NIL, b"x").version();
    let before = threads(&server);

    signal_all(cluster.pid(), "STOP");
    std::thread::scope(|scope| {
        for _ in 0..100 {
            let mut replica = Replica::new(&server, &replica.client);
            let first = &first;
            scope.spawn(move || {
                assert_eq!(replica.child_version(NIL).status, 503);
                assert_eq!(replica.add_version(first, b"y").status, 503);
            });
        }
        manager.forget();
        assert!(manager.signs(Duration::from_secs(4)) >= 5, "a sign each half of 400 ms");
        assert!(threads(&server) <= before + 4, "{} threads, and {before} before", threads(&server));
    });
    assert_eq!(server.request("GET", "/readyz", &[], b"").status, 503);
    signal_all(cluster.pid(), "CONT");
    wait_for_service(&server);
    manager.forget();
    manager.wait_for("WATCHDOG=1");
    assert!(!server.log().text().contains("the watchdog is not told"), "{}", server.log().text());
    server.stop();
}

fn threads(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("it runs").count()
}

/// What whoever spreads clients over machines builds on: a request of a client asks for rows of that
/// client alone.
#[test]
fn no_statement_of_a_request_crosses_clients() {
    let Some(cluster) = Cluster::start(&["log_statement=all", "log_line_prefix=#%a#"]) else { return };
    let server = serve(&cluster, &["--snapshot-versions", "1"]);
    let others: Vec<Replica> = (0..3).map(|_| Replica::of_new_client(&server)).collect();
    for mut other in others {
        assert_eq!(other.add_version(NIL, b"x").status, 200);
    }
    let mut replica = Replica::of_new_client(&server);
    let before = statements(&cluster).len();
    let mut parent = NIL.to_owned();
    for n in 0..4_u8 {
        parent = replica.add_version(&parent, &vec![n; 1 + (usize::from(n) << 19)]).version();
        assert_eq!(replica.add_version(NIL, b"stale").status, 409);
    }
    assert_eq!(replica.add_snapshot(&parent, &vec![7; 2 * MIB]).status, 200);
    assert_eq!((replica.walk(NIL).len(), replica.snapshot().status), (4, 200));
    done(&cluster, &["add-device", &replica.client, "laptop"]);
    assert_eq!(replica.child_version(NIL).status, 401);
    let (client, tables) = (replica.client.clone(), ["clients", "versions", "sync_server_"]);
    // Who synced last is written at the stop.
    server.stop();
    let mut asked = 0;
    for statement in &statements(&cluster)[before..] {
        if !tables.iter().any(|table| statement.contains(table))
            || ["sync_server_schema", "pg_catalog"].iter().any(|other| statement.contains(other))
        {
            continue;
        }
        asked += 1;
        let is_ours = statement.contains(&format!("$1 = '{client}'"));
        // Other clients' last syncs are noted one by one, too.
        let is_noting = statement.contains("sync_server_syncs") && statement.contains("$1 = '");
        // Once a minute somebody looks whether a removal was interrupted.
        let is_upkeep = statement.contains("removal IS NOT NULL") && !statement.contains("$1");
        assert!(is_ours || is_noting || is_upkeep, "{statement}");
    }
    assert!(asked > 20, "{asked} statements");
}

/// What the servers' connections sent, each with its values.
fn statements(cluster: &Cluster) -> Vec<String> {
    let log = cluster.log();
    let entries = log.split("\n#").filter(|entry| entry.trim_start_matches('#').starts_with("sync-server#"));
    let mut statements: Vec<String> = Vec::new();
    for entry in entries {
        match entry.contains("#DETAIL:") {
            true => statements.last_mut().expect("it belongs to one").push_str(entry),
            false => statements.push(entry.to_owned()),
        }
    }
    statements
}

/// So that tables can be spread over machines by client: every key of what clients hold begins with it.
#[test]
fn every_key_begins_with_the_client() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    serve(&cluster, &[]).stop();
    let keys = cluster.sql(
        DATABASE,
        "SELECT t.relname, i.relname, a.attname
         FROM pg_index x
              JOIN pg_class i ON i.oid = x.indexrelid
              JOIN pg_class t ON t.oid = x.indrelid
              JOIN pg_namespace n ON n.oid = t.relnamespace AND n.nspname = 'public'
              LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = x.indkey[0]
         ORDER BY 1, 2",
    );
    let others: Vec<&str> = keys.lines().filter(|line| !line.ends_with("|client_id")).collect();
    // One row says which version the schema has. Labels are looked for by operators alone.
    let known = [
        "sync_server_clients|sync_server_label|label",
        "sync_server_schema|sync_server_schema_pkey|only_row",
    ];
    assert_eq!(others, known);
    assert_eq!(keys.lines().count(), 11, "{keys}");
    let without = cluster.sql(
        DATABASE,
        "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
         WHERE relkind = 'r' AND NOT EXISTS (
             SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'client_id')",
    );
    assert_eq!(without, "sync_server_schema");
}
