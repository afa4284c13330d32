//! Several instances over one database, and many clients at once.

use super::cluster::{Cluster, signal_all};
use super::{DATABASE, serve};
use crate::util::{NIL, PATIENCE, Replica, Response, Server};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use taskchampion::storage::inmemory::InMemoryStorage;
use taskchampion::{Operations, ServerConfig, Status};

/// The reference server leaves nine of ten connections aborted after this.
#[test]
fn sixteen_new_clients_that_add_at_once_are_all_served_and_leave_nothing_behind() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let server = serve(&cluster, &["--postgres-connections", "10"]);
    for _ in 0..5 {
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let mut replica = Replica::of_new_client(&server);
                    let mut parent = NIL.to_owned();
                    for n in 0..5 {
                        parent = replica.add_version(&parent, &[n]).version();
                        assert_eq!(replica.child_version(&parent).status, 404);
                    }
                    assert_eq!(replica.walk(NIL).len(), 5);
                });
            }
        });
        assert_eq!(cluster.idle_in_transaction(), "");
    }
    server.stop();
}

#[test]
fn what_one_instance_acknowledged_every_other_serves_at_once() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let servers = [serve(&cluster, &[]), serve(&cluster, &[]), serve(&cluster, &[])];
    let mut replica = Replica::of_new_client(&servers[0]);
    let mut others: Vec<Replica> =
        servers.iter().map(|server| Replica::new(server, &replica.client)).collect();
    let mut parent = NIL.to_owned();
    for n in 0..100_u8 {
        let at = usize::from(n) % 3;
        let new = others[at].add_version(&parent, &[n]).version();
        for other in &mut others {
            assert_eq!(other.child_version(&parent).version(), new);
            assert_eq!(other.child_version(&new).status, 404);
            let conflict = other.add_version(&parent, b"stale");
            assert_eq!((conflict.status, conflict.header("x-parent-version-id")), (409, Some(&*new)));
        }
        if n % 10 == 0 {
            assert_eq!(others[at].add_snapshot(&new, &[n; 100]).status, 200);
            assert!(others.iter_mut().all(|other| other.snapshot().body == [n; 100]));
        }
        parent = new;
    }
    assert_eq!(replica.walk(NIL).len(), 100);
    servers.into_iter().for_each(Server::stop);
}

/// Adds by eight replicas of one client on three instances: one chain, and every conflict names a version
/// that is the latest then, so that nobody meets the same parent twice.
#[test]
fn replicas_that_race_on_three_instances_make_one_chain() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let servers = [serve(&cluster, &[]), serve(&cluster, &[]), serve(&cluster, &[])];
    let client = uuid::Uuid::new_v4().to_string();
    let added: Vec<BTreeSet<String>> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|n| {
                let mut replica = Replica::new(&servers[n % 3], &client);
                scope.spawn(move || race(&mut replica, 25))
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().expect("it ends")).collect()
    });
    let chain = Replica::new(&servers[0], &client).walk(NIL);
    let ids: BTreeSet<String> = chain.into_iter().map(|(_, id, _)| id).collect();
    let all: BTreeSet<String> = added.iter().flatten().cloned().collect();
    assert_eq!((all.len(), ids), (8 * 25, all));
    servers.into_iter().for_each(Server::stop);
}

pub fn race(replica: &mut Replica, count: usize) -> BTreeSet<String> {
    let mut added = BTreeSet::new();
    let mut parent = NIL.to_owned();
    while added.len() < count {
        let response = replica.add_version(&parent, b"race");
        let next = match response.status {
            200 => {
                let version = response.version();
                added.insert(version.clone());
                version
            }
            409 => response.header("x-parent-version-id").expect("the latest").to_owned(),
            _ => panic!("{response:?}"),
        };
        assert_ne!(next, parent, "the same parent twice");
        parent = next;
    }
    added
}

#[test]
fn real_replicas_on_three_instances_agree() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let servers = [serve(&cluster, &[]), serve(&cluster, &[]), serve(&cluster, &[])];
    let client = uuid::Uuid::new_v4();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut devices = Vec::new();
        for server in &servers {
            let config = ServerConfig::Remote {
                url: server.url(),
                client_id: client.to_string().parse().expect("a UUID"),
                encryption_secret: b"secret".to_vec(),
            };
            let server = config.into_server().await.expect("a valid configuration");
            devices.push((taskchampion::Replica::new(InMemoryStorage::new()), server));
        }
        for round in 0..10 {
            for (n, (replica, server)) in devices.iter_mut().enumerate() {
                let mut operations = Operations::new();
                let mut task = replica.create_task(uuid_of(round, n), &mut operations).await.expect("a task");
                task.set_description(format!("{round} {n}"), &mut operations).expect("a description");
                task.set_status(Status::Pending, &mut operations).expect("a status");
                replica.commit_operations(operations).await.expect("a commit");
                if round % 2 == 0 {
                    replica.sync(server, false).await.expect("a sync");
                }
            }
        }
        for _ in 0..2 {
            for (replica, server) in &mut devices {
                replica.sync(server, false).await.expect("a sync");
            }
        }
        for (replica, _) in &mut devices {
            assert_eq!(replica.all_tasks().await.expect("the tasks").len(), 30);
        }
    });
    servers.into_iter().for_each(Server::stop);
}

fn uuid_of(round: usize, n: usize) -> taskchampion::Uuid {
    taskchampion::Uuid::from_u128((round * 10 + n + 1) as u128)
}

/// Adds to a client of its own until told to stop; returns what was acknowledged, in order.
fn add_while(server: &Server, go_on: &AtomicBool, count: &AtomicUsize) -> (String, Vec<String>) {
    let client = uuid::Uuid::new_v4().to_string();
    let mut added: Vec<String> = Vec::new();
    let mut replica = Replica::new(server, &client);
    while go_on.load(Ordering::Relaxed) {
        let parent = added.last().map_or(NIL, String::as_str).to_owned();
        match replica.try_add_version(&parent, b"under load") {
            Ok(Response { status: 200, headers, .. }) => {
                added.push(headers["x-version-id"].clone());
                count.fetch_add(1, Ordering::Relaxed);
            }
            // Its answer was lost, or its outcome was not known: it is there after all.
            Ok(response) if response.status == 409 => {
                added.push(response.header("x-parent-version-id").expect("the latest").to_owned());
            }
            Ok(response) => {
                assert_eq!(response.status, 503, "{response:?}; the log:\n{}", server.log().text());
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(_) => break,
        }
    }
    (client, added)
}

/// Runs adds by six clients on these servers, disturbs them, and gives what was acknowledged.
pub fn under_load(servers: &[&Server], disturb: impl FnOnce()) -> Vec<(String, Vec<String>)> {
    let (go_on, count) = (AtomicBool::new(true), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (go_on, count) = (&go_on, &count);
        let loads: Vec<_> = (0..6)
            .map(|n| {
                let server = servers[n % servers.len()];
                scope.spawn(move || add_while(server, go_on, count))
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        while count.load(Ordering::Relaxed) < 60 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        disturb();
        go_on.store(false, Ordering::Relaxed);
        loads.into_iter().map(|load| load.join().expect("it ends")).collect()
    })
}

/// Everything that was acknowledged is there, in its order, and one version more at most.
pub fn verify(server: &Server, loads: &[(String, Vec<String>)]) {
    assert!(loads.iter().any(|(_, added)| !added.is_empty()), "nothing was added");
    for (client, added) in loads {
        let chain: Vec<String> =
            Replica::new(server, client).walk(NIL).into_iter().map(|(_, id, _)| id).collect();
        assert!(chain.starts_with(added), "{chain:?} does not begin with {added:?}");
        assert!(chain.len() <= added.len() + 1, "{chain:?} is more than {added:?}");
    }
}

/// Waits until adds are answered again.
pub fn wait_for_service(server: &Server) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut replica = Replica::of_new_client(server);
        if replica.try_add_version(NIL, b"x").is_ok_and(|response| response.status == 200) {
            return;
        }
        assert!(Instant::now() < deadline, "no service; the log:\n{}", server.log().text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn kill_9_of_an_instance_under_load_loses_nothing_that_was_acknowledged() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let stays = serve(&cluster, &[]);
    for _ in 0..3 {
        let dies = serve(&cluster, &[]);
        let loads = under_load(&[&stays, &dies], || dies.signal("KILL"));
        verify(&stays, &loads);
    }
    stays.stop();
}

#[test]
fn kill_9_of_the_database_under_load_loses_nothing_that_was_acknowledged() {
    // With fsync, as in life.
    let Some(mut cluster) = Cluster::start(&["fsync=on"]) else { return };
    let server = serve(&cluster, &[]);
    for _ in 0..3 {
        let loads = under_load(&[&server], || {
            cluster.kill();
            std::thread::sleep(Duration::from_millis(200));
            cluster.resume();
            wait_for_service(&server);
        });
        verify(&server, &loads);
    }
    server.stop();
}

#[test]
fn while_the_database_is_away_requests_are_refused_soon_and_it_says_so() {
    let Some(mut cluster) = Cluster::start(&[]) else { return };
    let server = serve(&cluster, &["--postgres-connect-timeout", "1s"]);
    let mut replica = Replica::of_new_client(&server);
    let first = replica.add_version(NIL, b"x").version();
    assert_eq!(server.request("GET", "/readyz", &[], b"").status, 200);
    cluster.kill();
    for _ in 0..3 {
        let asked = Instant::now();
        assert_eq!(Replica::new(&server, &replica.client).child_version(NIL).status, 503);
        assert_eq!(replica.add_version(&first, b"y").status, 503);
        assert!(asked.elapsed() < Duration::from_secs(30), "it took {:?}", asked.elapsed());
    }
    assert_eq!(server.request("GET", "/readyz", &[], b"").status, 503);
    assert_eq!(server.request("GET", "/healthz", &[], b"").status, 200);
    cluster.resume();
    wait_for_service(&server);
    assert_eq!(replica.add_version(&first, b"y").status, 200);
    assert_eq!(server.request("GET", "/readyz", &[], b"").status, 200);
    server.stop();
}

#[test]
fn a_database_that_hangs_is_given_up_on_in_bounded_time() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let limits = ["--postgres-connect-timeout", "1s", "--postgres-statement-timeout", "1s"];
    let server = serve(&cluster, &[&limits[..], &["--postgres-connections", "3"]].concat());
    let mut replica = Replica::of_new_client(&server);
    let first = replica.add_version(NIL, b"x").version();
    signal_all(cluster.pid(), "STOP");
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..30)
            .map(|n| {
                let (server, first, client) = (&server, &first, &replica.client);
                scope.spawn(move || {
                    let mut replica = Replica::new(server, client);
                    let response = if n % 2 == 0 {
                        replica.child_version(NIL)
                    } else {
                        replica.add_version(first, b"y")
                    };
                    response.status
                })
            })
            .collect();
        asking.into_iter().map(|asking| asking.join().expect("it is answered")).collect()
    });
    assert_eq!(statuses, [503; 30]);
    assert_eq!(server.request("GET", "/readyz", &[], b"").status, 503);
    signal_all(cluster.pid(), "CONT");
    wait_for_service(&server);
    // What was on its way when the database stopped may have arrived: the history tells.
    let chain = replica.walk(NIL);
    assert!(chain.len() <= 2, "{chain:?}");
    let latest = chain.last().expect("the first version").1.clone();
    assert_eq!(replica.add_version(&latest, b"z").status, 200);
    assert_eq!(cluster.sql(DATABASE, "SELECT count(*) FROM sync_server_parts"), "0");
    server.stop();
}
