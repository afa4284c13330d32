//! What lies between the server and its database, and what else may be in the way: TLS, poolers, standbys,
//! connections that are cut, locks, and other people's connections.

use super::cluster::{self, Cluster};
use super::instances::{race, under_load, verify, wait_for_service};
use super::{DATABASE, serve_at, with_connection};
use crate::util::{NIL, PATIENCE, Replica, Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A cluster with a certificate for localhost, and a directory with its authority and that of another.
fn with_tls() -> Option<(Cluster, tempfile::TempDir)> {
    cluster::binaries()?;
    let dir = cluster::directory();
    let authority = || {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"));
        issuer.expect("a certificate")
    };
    let (ours, other) = (authority(), authority());
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let server = params.signed_by(&key, &ours).expect("a certificate");
    let write = |name: &str, text: &str, mode| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("it is ours");
        cluster::give(&path);
    };
    write("ca.pem", &ours.pem(), 0o644);
    write("other.pem", &other.pem(), 0o644);
    write("cert.pem", &server.pem(), 0o644);
    write("key.pem", &key.serialize_pem(), 0o600);
    let client = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new([]).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, "worker");
    let certificate = params.signed_by(&client, &ours).expect("a certificate");
    write("client.pem", &certificate.pem(), 0o644);
    write("client.key", &client.serialize_pem(), 0o600);
    let file = |name: &str| dir.path().join(name).display().to_string();
    let cluster = Cluster::start(&[
        "ssl=on",
        &format!("ssl_cert_file={}", file("cert.pem")),
        &format!("ssl_key_file={}", file("key.pem")),
        &format!("ssl_ca_file={}", file("ca.pem")),
    ])?;
    Some((cluster, dir))
}

#[test]
fn tls_to_the_database_is_what_the_connection_string_asks_for() {
    let Some((cluster, dir)) = with_tls() else { return };
    cluster.sql(DATABASE, "CREATE ROLE worker LOGIN SUPERUSER");
    let rules = "local all all trust\nhostssl all worker all cert\nhostssl all all all trust\n";
    std::fs::write(cluster.data().join("pg_hba.conf"), rules).expect("rules");
    cluster.sql(DATABASE, "SELECT pg_reload_conf()");
    let uri = |host: &str, words: &str| {
        let words = words.replace("DIR", &dir.path().display().to_string());
        format!("postgresql://postgres@{host}:{}/postgres?{words}", cluster.port)
    };
    for (host, words) in [
        ("127.0.0.1", "sslmode=prefer"),
        ("127.0.0.1", "sslmode=require"),
        ("127.0.0.1", "sslmode=verify-ca&sslrootcert=DIR/ca.pem"),
        ("localhost", "sslmode=verify-full&sslrootcert=DIR/ca.pem"),
    ] {
        let server = serve_at(&uri(host, words), &[]);
        assert_eq!(Replica::of_new_client(&server).add_version(NIL, b"x").status, 200);
        let used = cluster.sql(
            DATABASE,
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
             WHERE application_name = 'sync-server'",
        );
        assert_eq!(used, "t", "{words}");
        server.stop();
    }
    let own = "sslmode=verify-full&sslrootcert=DIR/ca.pem&sslcert=DIR/client.pem&sslkey=DIR/client.key";
    let server = serve_at(&uri("localhost", own).replace("postgres@", "worker@"), &[]);
    assert_eq!(Replica::of_new_client(&server).add_version(NIL, b"x").status, 200);
    server.stop();
    for (host, words, expected) in [
        ("127.0.0.1", "sslmode=verify-full&sslrootcert=DIR/ca.pem", "not valid for name"),
        ("localhost", "sslmode=verify-full&sslrootcert=DIR/other.pem", "certificate"),
        ("localhost", "sslmode=verify-ca&sslrootcert=DIR/other.pem", "certificate"),
        ("localhost", "sslmode=verify-full", "UnknownIssuer"),
        ("127.0.0.1", "sslmode=disable", "pg_hba.conf"),
    ] {
        let mut command = with_connection(&uri(host, words));
        let output = command.args(["admin", "list-clients"]).output().expect("the program runs");
        let told = crate::admin::stderr(&output);
        assert!(!output.status.success() && told.contains(expected), "{words}: {told}");
    }
}

/// A pooler in front of a cluster. Killed when dropped.
struct Pooler {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Pooler {
    fn start(cluster: &Cluster) -> Option<Pooler> {
        let program = Path::new("/usr/sbin/pgbouncer");
        if !program.exists() {
            crate::util::skip("pgbouncer is not at /usr/sbin/pgbouncer; `tests/run` installs it");
            return None;
        }
        let dir = cluster::directory();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let port = cluster::free_port();
            let text = format!(
                "[databases]\npostgres = {}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 4\n\
                 max_client_conn = 200\n",
                cluster.local(DATABASE)
            );
            let config = dir.path().join("pgbouncer.ini");
            std::fs::write(&config, text).expect("a configuration");
            cluster::give(&config);
            let mut child = cluster::command(program)
                .arg(&config)
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .expect("the program starts");
            while child.try_wait().expect("the child can be waited for").is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Some(Pooler { child, port, _dir: dir });
                }
                assert!(Instant::now() < deadline, "pgbouncer does not listen");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_pooler_that_mixes_sessions_may_stand_in_between() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let Some(pooler) = Pooler::start(&cluster) else { return };
    let connection = format!("postgresql://postgres@127.0.0.1:{}/postgres", pooler.port);
    let args = ["--postgres-prepare=false"];
    let servers = [serve_at(&connection, &args), serve_at(&connection, &args)];
    let loads = under_load(&[&servers[0], &servers[1]], || std::thread::sleep(Duration::from_secs(1)));
    verify(&servers[0], &loads);
    let mut replica = Replica::of_new_client(&servers[0]);
    let first = replica.add_version(NIL, &vec![1; 5 << 20]).version();
    assert_eq!(replica.add_snapshot(&first, &vec![2; 5 << 20]).status, 200);
    assert!(Replica::new(&servers[1], &replica.client).snapshot().body == vec![2; 5 << 20]);
    assert_eq!(replica.walk(NIL).len(), 1);
    servers.into_iter().for_each(Server::stop);
}

/// A primary and a standby that has confirmed every commit before it is acknowledged.
fn pair() -> Option<(Cluster, Cluster)> {
    let primary = Cluster::start(&["wal_level=replica", "max_wal_senders=5", "fsync=on"])?;
    let dir = cluster::directory();
    let bin = cluster::binaries()?;
    cluster::run(
        cluster::command(&bin.join("pg_basebackup"))
            .args(["-R", "--checkpoint=fast", "--no-sync", "-d", &primary.local(DATABASE), "-D"])
            .arg(dir.path().join("data")),
    );
    let standby = Cluster::start_in(dir, &["hot_standby=on", "fsync=on"]);
    primary.sql(DATABASE, "ALTER SYSTEM SET synchronous_standby_names = '*'");
    primary.sql(DATABASE, "SELECT pg_reload_conf()");
    let deadline = Instant::now() + PATIENCE;
    let is_synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    while primary.sql(DATABASE, is_synchronous) != "1" {
        assert!(Instant::now() < deadline, "no standby follows: {}", standby.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    Some((primary, standby))
}

#[test]
fn after_a_failover_service_resumes_by_itself_and_nothing_acknowledged_is_lost() {
    let Some((mut primary, standby)) = pair() else { return };
    let connection = format!(
        "postgresql://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        primary.port, standby.port
    );
    let server = serve_at(&connection, &["--postgres-connect-timeout", "2s"]);
    let loads = under_load(&[&server], || {
        primary.kill();
        standby.sql(DATABASE, "SELECT pg_promote()");
        let promoted = Instant::now();
        wait_for_service(&server);
        eprintln!("service resumed {:?} after the promotion", promoted.elapsed());
        std::thread::sleep(Duration::from_millis(300));
    });
    verify(&server, &loads);
    assert_eq!(server.request("GET", "/readyz", &[], b"").status, 200);
    server.stop();
}

/// Passes bytes on between a port of its own and a cluster's, and cuts all connections when it is told.
struct Proxy {
    port: u16,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let all = open.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let ends = [(&near, &far), (&far, &near)];
                for (from, to) in ends {
                    let (from, to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                    std::thread::spawn(move || pass(from, to));
                }
                all.lock().expect("nobody panics").extend([near, far]);
            }
        });
        Proxy { port, open }
    }

    fn cut(&self) {
        for stream in self.open.lock().expect("nobody panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn connections_that_are_cut_in_the_middle_lose_nothing_and_double_nothing() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let proxy = Proxy::start(cluster.port);
    let connection = format!("postgresql://postgres@127.0.0.1:{}/postgres", proxy.port);
    let server = serve_at(&connection, &[]);
    let loads = under_load(&[&server], || {
        for _ in 0..40 {
            proxy.cut();
            std::thread::sleep(Duration::from_millis(50));
        }
        wait_for_service(&server);
    });
    verify(&server, &loads);
    server.stop();
}

#[test]
fn where_all_slots_are_taken_requests_wait_for_the_own_ones_or_are_refused() {
    let Some(cluster) = Cluster::start(&["max_connections=12", "superuser_reserved_connections=0"]) else {
        return;
    };
    let server = serve_at(&cluster.uri(DATABASE), &["--postgres-connections", "40"]);
    let client = Replica::of_new_client(&server).client;
    assert_eq!(Replica::new(&server, &client).add_version(NIL, b"x").status, 200);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..24)
            .map(|_| scope.spawn(|| Replica::of_new_client(&server).add_version(NIL, b"x").status))
            .collect();
        asking.into_iter().map(|asking| asking.join().expect("it is answered")).collect()
    });
    assert!(statuses.iter().all(|status| *status == 200 || *status == 503), "{statuses:?}");
    assert!(statuses.contains(&200), "{statuses:?}");
    wait_for_service(&server);
    server.stop();
}

#[test]
fn where_everything_is_serializable_replicas_that_race_are_served_all_the_same() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    cluster.sql(DATABASE, "ALTER DATABASE postgres SET default_transaction_isolation = 'serializable'");
    let servers = [serve_at(&cluster.uri(DATABASE), &[]), serve_at(&cluster.uri(DATABASE), &[])];
    let client = uuid::Uuid::new_v4().to_string();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let mut replica = Replica::new(&servers[n % 2], &client);
            scope.spawn(move || race(&mut replica, 20));
        }
    });
    assert_eq!(Replica::new(&servers[0], &client).walk(NIL).len(), 80);
    servers.into_iter().for_each(Server::stop);
}

#[test]
fn a_deadlock_is_tried_again_and_not_told_to_anybody() {
    let Some(cluster) = Cluster::start(&["deadlock_timeout=5s"]) else { return };
    let server = serve_at(&cluster.uri(DATABASE), &["--postgres-statement-timeout", "30s"]);
    let client = uuid::Uuid::new_v4();
    // Somebody else makes the same rows in the other order, and does not give way.
    let script = format!(
        "SET deadlock_timeout = '10min';
         BEGIN;
         INSERT INTO clients (client_id) VALUES ('{client}');
         DO $$ BEGIN
             WHILE NOT EXISTS (SELECT 1 FROM pg_stat_activity
                               WHERE wait_event_type = 'Lock' AND application_name = 'sync-server') LOOP
                 PERFORM pg_sleep(0.02);
                 PERFORM pg_stat_clear_snapshot();
             END LOOP;
         END $$;
         INSERT INTO sync_server_clients (client_id) VALUES ('{client}');
         ROLLBACK"
    );
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), script).expect("it can be written");
    std::thread::scope(|scope| {
        let other = scope.spawn(|| cluster.load(DATABASE, file.path()));
        let has_begun = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_stat_clear_snapshot%'
                         AND pid <> pg_backend_pid()";
        let deadline = Instant::now() + PATIENCE;
        while cluster.sql(DATABASE, has_begun) == "0" {
            assert!(Instant::now() < deadline, "the other does not begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        let added = Replica::new(&server, &client.to_string()).add_version(NIL, b"x");
        assert_eq!(added.status, 200, "{added:?}; the log:\n{}", server.log().text());
        other.join().expect("it ends");
    });
    assert!(cluster.log().contains("deadlock detected"), "{}", cluster.log());
    server.stop();
}

#[test]
fn a_client_whose_row_somebody_holds_is_refused_in_bounded_time_and_others_are_served() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let server = serve_at(&cluster.uri(DATABASE), &["--postgres-statement-timeout", "1s"]);
    let mut replica = Replica::of_new_client(&server);
    let first = replica.add_version(NIL, b"x").version();
    let script = format!(
        "BEGIN; SELECT 1 FROM clients WHERE client_id = '{}' FOR UPDATE; SELECT pg_sleep(6); ROLLBACK",
        replica.client
    );
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| cluster.sql(DATABASE, &script));
        let is_held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        while cluster.sql(DATABASE, is_held) == "0" && !holder.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let refused = replica.add_version(&first, b"y").status;
        let was_held = !holder.is_finished();
        // On a machine that is so slow that the lock is gone, it is served.
        assert!(refused == 503 || !was_held && refused == 200, "{refused}");
        assert_eq!(Replica::of_new_client(&server).add_version(NIL, b"x").status, 200);
        holder.join().expect("it ends");
    });
    assert_eq!(replica.child_version(NIL).version(), first);
    server.stop();
}
