//! Databases of the reference server are served in place, and stay its own.

use super::cluster::Cluster;
use super::{DATABASE, done, serve, with_connection};
use crate::adoption::{check_client, clients, path_of, text};
use crate::util::{NIL, Replica, Server};
use std::path::Path;
use std::process::Stdio;

const FIXTURE: &str = "tss-postgres";

const COLUMNS: &str = "SELECT table_name, column_name, data_type, is_nullable, column_default
                       FROM information_schema.columns
                       WHERE table_name IN ('clients', 'versions', 'notes') ORDER BY table_name, ordinal_position";

fn adopted() -> Option<Cluster> {
    let cluster = Cluster::start(&[])?;
    cluster.load(DATABASE, &path_of(FIXTURE).join("dump.sql"));
    Some(cluster)
}

#[test]
fn a_database_of_the_reference_server_is_served_in_place_and_stays_its_own() {
    let Some(cluster) = adopted() else { return };
    // As users were told that they may.
    cluster.sql(
        DATABASE,
        "ALTER TABLE clients ADD COLUMN owner TEXT; UPDATE clients SET owner = 'somebody';
         CREATE TABLE notes (note TEXT); INSERT INTO notes VALUES ('keep me');
         INSERT INTO clients (client_id) VALUES ('0c0c0c0c-0000-4000-8000-000000000000')",
    );
    let columns = cluster.sql(DATABASE, COLUMNS);
    for _ in 0..2 {
        let server = serve(&cluster, &[]);
        server.log().wait_for("Postgres database postgres at");
        server.stop();
    }
    let server = serve(&cluster, &["--no-create-clients"]);
    for client in clients(FIXTURE) {
        check_client(&server, &client);
    }
    let mut by_hand = Replica::new(&server, "0c0c0c0c-0000-4000-8000-000000000000");
    assert_eq!(by_hand.child_version(NIL).status, 404);
    assert_eq!(by_hand.add_version(NIL, b"the first").status, 200);
    assert_eq!(cluster.sql(DATABASE, COLUMNS), columns);
    assert_eq!(cluster.sql(DATABASE, "SELECT note FROM notes"), "keep me");
    assert_eq!(cluster.sql(DATABASE, "SELECT count(*) FROM clients WHERE owner = 'somebody'"), "4");
    server.stop();
}

#[test]
fn what_the_reference_server_writes_meanwhile_is_served_at_once() {
    let Some(cluster) = adopted() else { return };
    let server = serve(&cluster, &[]);
    let client = text(&clients(FIXTURE)[0]["client_id"]).to_owned();
    let mut replica = Replica::new(&server, &client);
    let latest = replica.walk(NIL).pop().expect("a version").1;
    let new = uuid::Uuid::new_v4();
    // The statements of the reference server.
    cluster.sql(
        DATABASE,
        &format!(
            "BEGIN;
             INSERT INTO versions (version_id, client_id, parent_version_id, history_segment)
                 VALUES ('{new}', '{client}', '{latest}', '\\x010203');
             UPDATE clients SET latest_version_id = '{new}', versions_since_snapshot = versions_since_snapshot + 1
                 WHERE client_id = '{client}' AND latest_version_id = '{latest}';
             COMMIT"
        ),
    );
    assert_eq!(replica.child_version(&latest).version(), new.to_string());
    assert_eq!(replica.add_version(&latest, b"stale").header("x-parent-version-id"), Some(&*new.to_string()));
    assert_eq!(replica.add_version(&new.to_string(), b"goes on").status, 200);
    // Deleting a client by hand takes its versions along, as it did.
    cluster.sql(DATABASE, &format!("DELETE FROM clients WHERE client_id = '{client}'"));
    assert_eq!(replica.child_version(NIL).status, 404);
    assert_eq!(replica.add_version(NIL, b"anew").status, 200);
}

#[test]
fn two_children_of_one_parent_are_reported_and_served_but_not_repaired() {
    let Some(cluster) = adopted() else { return };
    let client = &clients(FIXTURE)[1];
    let id = text(&client["client_id"]);
    let parent = text(&client["versions"][5]["parent_version_id"]);
    let branch = uuid::Uuid::new_v4();
    cluster.sql(DATABASE, &format!("INSERT INTO versions VALUES ('{id}', '{branch}', '{parent}', '\\x00')"));
    for _ in 0..2 {
        let server = serve(&cluster, &[]);
        let warning = server.log().wait_for("more than one child");
        assert!(warning.contains(&id[..8]) && warning.contains(parent), "{warning}");
        assert!(!server.log().text().contains(id), "the log shows a whole client ID");
        assert_eq!(Replica::new(&server, id).child_version(parent).status, 200);
        server.stop();
    }
    cluster.sql(DATABASE, &format!("DELETE FROM versions WHERE version_id = '{branch}'"));
    // Mended: the next migration makes the index that keeps it so.
    cluster.sql(DATABASE, "DROP INDEX sync_server_children");
    assert!(done(&cluster, &["migrate"]).contains("up to date"));
    let server = serve(&cluster, &[]);
    assert!(!server.log().text().contains("more than one child"));
    server.stop();
}

#[test]
fn ten_instances_may_start_at_once_on_an_empty_or_an_adopted_database() {
    for cluster in [Cluster::start(&[]), adopted()] {
        let Some(cluster) = cluster else { return };
        let start = || {
            let mut command = with_connection(&cluster.local(DATABASE));
            command.stdout(Stdio::null()).args(["--listen", "127.0.0.1:0", "--postgres-connections", "4"]);
            Server::spawn(command, Path::new("/nonexistent"))
        };
        let servers: Vec<Server> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..10).map(|_| scope.spawn(start)).collect();
            starting.into_iter().map(|server| server.join().expect("it starts")).collect()
        });
        for server in &servers {
            assert_eq!(Replica::of_new_client(server).add_version(NIL, b"x").status, 200);
        }
        servers.into_iter().for_each(Server::stop);
    }
}

#[test]
fn a_role_that_may_not_make_tables_gets_the_sql_and_works_once_it_was_run() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    cluster.sql(DATABASE, "CREATE ROLE worker LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    let connection = cluster.local(DATABASE).replace("user=postgres", "user=worker");
    let output = with_connection(&connection).output().expect("the program runs");
    let told = crate::admin::stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let sql = told.split_once("tables:\n").expect("the SQL").1.replace("error: ", "");
    assert!(sql.contains("CREATE TABLE clients") && sql.contains("sync_server_child"), "{told}");
    cluster.sql(
        DATABASE,
        &format!("{sql}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO worker"),
    );
    let server = super::serve_at(&connection, &[]);
    let mut replica = Replica::of_new_client(&server);
    let first = replica.add_version(NIL, b"x").version();
    assert_eq!(replica.add_version(&first, &vec![7; 3 << 20]).status, 200);
    assert_eq!(replica.add_snapshot(&first, &vec![7; 3 << 20]).status, 200);
    assert_eq!(replica.walk(NIL).len(), 2);
    server.stop();
}

#[test]
fn tables_are_left_alone_where_told_so_and_made_by_hand() {
    let Some(cluster) = adopted() else { return };
    let output = with_connection(&cluster.local(DATABASE)).arg("--no-migrate").output();
    let told = crate::admin::stderr(&output.expect("the program runs"));
    assert!(told.contains("migrate is off") && told.contains("CREATE TABLE sync_server_clients"), "{told}");
    let sql = done(&cluster, &["migrate", "--dry-run"]);
    assert!(
        !sql.contains("CREATE TABLE clients") && sql.contains("CREATE TABLE sync_server_clients"),
        "{sql}"
    );
    assert_eq!(cluster.sql(DATABASE, "SELECT to_regclass('sync_server_clients')"), "");
    cluster.sql(DATABASE, &sql);
    let server = serve(&cluster, &["--no-migrate"]);
    check_client(&server, &clients(FIXTURE)[0]);
    server.stop();
    assert!(done(&cluster, &["migrate", "--dry-run"]).contains("nothing to do"));
}
