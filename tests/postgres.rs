//! The server on Postgres: one instance and several, whatever happens to them and to the database.

mod adoption;
mod bounds;
pub mod cluster;
mod config;
mod copy;
mod instances;
mod operators;
mod spread;
mod troubles;

use crate::util::{Server, program};
use cluster::Cluster;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{LazyLock, Mutex};

const DATABASE: &str = "postgres";

/// The program with a connection to this database.
fn with_connection(connection: &str) -> Command {
    let mut command = program();
    command.env("CONNECTION", connection).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts an instance on this cluster's database.
fn serve(cluster: &Cluster, args: &[&str]) -> Server {
    serve_at(&cluster.local(DATABASE), args)
}

fn serve_at(connection: &str, args: &[&str]) -> Server {
    let mut command = with_connection(connection);
    command.stdout(Stdio::null()).args(["--listen", "127.0.0.1:0"]).args(args);
    Server::spawn(command, Path::new("/nonexistent"))
}

fn admin(cluster: &Cluster, args: &[&str]) -> Output {
    let mut command = with_connection(&cluster.local(DATABASE));
    command.arg("admin").args(args).output().expect("the program runs")
}

/// What a verb that works prints.
fn done(cluster: &Cluster, args: &[&str]) -> String {
    let output = admin(cluster, args);
    assert!(output.status.success(), "{args:?}: {}", crate::admin::stderr(&output));
    crate::admin::stdout(&output)
}

/// The databases of tests that were written for directories.
static CLUSTERS: LazyLock<Mutex<HashMap<PathBuf, Cluster>>> = LazyLock::new(Mutex::default);

/// A database that stands for a data directory.
pub fn connection_for(data_dir: &Path) -> String {
    on_cluster_for(data_dir, |cluster| {
        assert_eq!(cluster.idle_in_transaction(), "", "transactions were left open");
        cluster.local(DATABASE)
    })
}

/// What SQL gives in that database.
pub fn sql_for(data_dir: &Path, sql: &str) -> String {
    on_cluster_for(data_dir, |cluster| cluster.sql(DATABASE, sql))
}

fn on_cluster_for<T>(data_dir: &Path, work: impl FnOnce(&Cluster) -> T) -> T {
    let mut clusters = CLUSTERS.lock().expect("no test panics while it holds the clusters");
    let cluster = clusters.entry(data_dir.to_owned()).or_insert_with(|| {
        let cluster = Cluster::start(&[]);
        let cluster = cluster.expect("SYNC_SERVER_TEST_POSTGRES is set, so there must be a Postgres");
        remove_afterwards(&cluster.data());
        cluster
    });
    work(cluster)
}

/// What is static is never dropped: somebody else waits for the end of this process.
fn remove_afterwards(data: &Path) {
    let dir = data.parent().expect("the cluster's directory");
    let mut command = Command::new("sh");
    command.args(["-c", "cat; sleep 1; rm -rf \"$0\""]).arg(dir);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("there is a shell");
    std::mem::forget(child.stdin.take());
    std::thread::spawn(move || child.wait());
}
