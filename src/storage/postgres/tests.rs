//! What every backend must do, on a real Postgres.

#[path = "../../../tests/postgres/cluster.rs"]
#[expect(dead_code, reason = "the integration tests use more of it")]
mod cluster;

use self::cluster::Cluster;
use super::*;
use crate::storage::conformance;
use std::cell::Cell;

const HABITS: Habits = Habits {
    connections: 12,
    connect_timeout: Duration::from_secs(20),
    statement_timeout: Duration::from_secs(60),
    idle_timeout: Duration::from_secs(60),
    prepare: true,
};

fn address(cluster: &Cluster, database: &str) -> Address {
    Address::parse(&cluster.local(database)).expect("a connection string")
}

/// Empty databases, one after the other.
fn places(cluster: &Cluster) -> impl Fn() -> Address {
    let count = Cell::new(0);
    move || {
        count.set(count.get() + 1);
        let name = format!("place_{}", count.get());
        cluster.sql("postgres", &format!("CREATE DATABASE {name}"));
        address(cluster, &name)
    }
}

fn open(address: &Address, habits: Habits) -> Arc<Postgres> {
    Postgres::prepare(address, habits, true, |_| ()).expect("the tables can be made");
    Arc::new(Postgres::open(address, habits).expect("the database opens"))
}

#[test]
fn postgres_conforms() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    conformance::run(places(&cluster), |address| open(address, HABITS));
}

#[test]
fn postgres_conforms_without_prepared_statements() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let habits = Habits { prepare: false, ..HABITS };
    conformance::run(places(&cluster), |address| open(address, habits));
}

#[test]
fn postgres_conforms_in_what_goes_in_and_out() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    conformance::contents::run(places(&cluster), |address| open(address, HABITS));
}

#[test]
fn postgres_conforms_as_a_copy_and_as_an_original() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    conformance::copying::run(places(&cluster), |address| open(address, HABITS));
}
