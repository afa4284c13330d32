//! The operator's verbs on Postgres.

use super::cluster::Cluster;
use super::{DATABASE, admin, done, serve};
use crate::util::{NIL, Replica, Server};
use serde_json::Value;

fn json(cluster: &Cluster, args: &[&str]) -> Value {
    serde_json::from_str(&done(cluster, &[args, &["--json"]].concat())).expect("it is JSON")
}

#[test]
fn every_verb_does_on_postgres_what_it_does_on_sqlite() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let missing = admin(&cluster, &["list-clients"]);
    assert!(!missing.status.success(), "there is no database yet");
    let added = json(&cluster, &["add-client", "--label", "alice"]);
    let client = added["client_id"].as_str().expect("an ID").to_owned();
    let server = serve(&cluster, &["--no-create-clients"]);
    let mut replica = Replica::new(&server, &client);
    let first = replica.add_version(NIL, b"one").version();
    assert_eq!(replica.add_snapshot(&first, &vec![9; 2 << 20]).status, 200);
    assert_eq!(Replica::of_new_client(&server).add_version(NIL, b"x").status, 403);

    let list = json(&cluster, &["list-clients"]);
    assert_eq!((&list[0]["label"], &list[0]["versions"]), (&Value::from("alice"), &Value::from(1)));
    done(&cluster, &["label-client", "alice", "bob"]);
    done(&cluster, &["suspend-client", "bob"]);
    assert_eq!(replica.child_version(NIL).status, 403);
    done(&cluster, &["resume-client", "bob"]);
    assert_eq!(replica.child_version(NIL).status, 200);
    done(&cluster, &["add-device", "bob", "laptop"]);
    assert_eq!(replica.child_version(NIL).status, 401);
    assert_eq!(replica.add_version(&first, b"two").status, 401);
    done(&cluster, &["remove-device", "bob", "laptop", "--yes"]);
    assert_eq!(replica.add_version(&first, b"two").status, 200);
    assert!(done(&cluster, &["show-client", "bob"]).contains(&client));
    assert_eq!(json(&cluster, &["list-devices", "bob"]), Value::Array(Vec::new()));
    assert!(done(&cluster, &["check"]).contains("whole") || admin(&cluster, &["check"]).status.success());
    assert_eq!(json(&cluster, &["stats"])["versions"], 2);
    let audit = json(&cluster, &["audit"]);
    let actions: Vec<_> = audit.as_array().expect("a list").iter().map(|event| &event["action"]).collect();
    assert_eq!(
        actions,
        ["add-client", "label-client", "suspend-client", "resume-client", "add-device", "remove-device"]
    );
    let told = admin(&cluster, &["doctor", "--listen", &server.address]);
    assert!(String::from_utf8_lossy(&told.stdout).contains("a server answers there"), "{told:?}");
    done(&cluster, &["reset-client", "bob", "--yes"]);
    assert_eq!(replica.child_version(NIL).status, 404);
    done(&cluster, &["remove-client", "bob", "--yes"]);
    assert_eq!(replica.child_version(NIL).status, 403);
    server.stop();
}

#[test]
fn a_backup_of_one_kind_of_database_is_restored_into_the_other() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let server = serve(&cluster, &[]);
    let mut replica = Replica::of_new_client(&server);
    let first = replica.add_version(NIL, b"one").version();
    let second = replica.add_version(&first, &vec![3; 5 << 20]).version();
    assert_eq!(replica.add_snapshot(&second, &vec![9; 20 << 20]).status, 200);
    let (chain, client) = (replica.walk(NIL), replica.client.clone());
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("a.backup");
    let file = file.to_str().expect("a path");
    done(&cluster, &["backup", file]);
    server.stop();

    let refused = admin(&cluster, &["restore", file, "--yes"]);
    assert_eq!(refused.status.code(), Some(64), "{}", crate::admin::stderr(&refused));
    let check = |server: &Server| {
        let mut replica = Replica::new(server, &client);
        assert!(replica.walk(NIL) == chain, "the chain came back changed");
        assert!(replica.snapshot().body == vec![9; 20 << 20], "the snapshot came back changed");
        assert_eq!(replica.add_version(&second, b"three").status, 200);
    };
    let place = tempfile::tempdir().expect("a directory");
    crate::admin::done(place.path(), &["restore", file]);
    check(&Server::start_in(place.path(), &[]));

    let other = Cluster::start(&[]).expect("it was there before");
    done(&other, &["restore", file]);
    check(&serve(&other, &[]));
    assert_eq!(other.sql(DATABASE, "SELECT count(*) FROM sync_server_parts"), "0");
}
