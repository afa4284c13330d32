//! What whoever watches over the server is told, at a listener of its own.

use crate::tls::{Authority, ask, secure};
use crate::util::{Connection, NIL, PATIENCE, Replica, Response, SEGMENT, Server};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn start(args: &[&str]) -> (Server, String) {
    let server = Server::start(&[&["--metrics-listen", "127.0.0.1:0"], args].concat());
    let line = server.log().wait_for("metrics at http://");
    let address =
        line.split("://").nth(1).and_then(|rest| rest.strip_suffix("/metrics")).expect("an address");
    (server, address.to_owned())
}

fn get(address: &str, path: &str) -> Response {
    Connection::open(address).request("GET", path, &[], b"")
}

/// The value of this sample.
fn value(page: &str, sample: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {sample} in\n{page}")).parse().expect("a number")
}

#[test]
fn everything_is_counted_where_it_happens_and_told_at_one_place_only() {
    let (server, address) = start(&["--backup-dir", "/proc/nowhere", "--backup-interval", "1h"]);
    let mut replica = Replica::of_new_client(&server);
    let version = replica.add_version(NIL, &[7; 1000]).version();
    assert_eq!(replica.add_version(NIL, b"no").status, 409);
    assert_eq!(replica.child_version(NIL).body.len(), 1000);
    assert_eq!(replica.child_version(&version).status, 404);
    assert_eq!(replica.snapshot().status, 404);
    let mut stranger = server.connect();
    stranger.send(b"nonsense\r\n\r\n");
    assert_eq!(stranger.response().status, 400);
    server.log().wait_for("status=400");

    let answer = get(&address, "/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let page = answer.text();
    let requests = |transaction: &str, status: u16| {
        let labels = format!("{{transaction=\"{transaction}\",status=\"{status}\"}}");
        value(&page, &format!("sync_server_requests_total{labels}"))
    };
    assert_eq!((requests("add_version", 200), requests("add_version", 409)), (1.0, 1.0));
    assert_eq!((requests("get_child_version", 200), requests("get_child_version", 404)), (1.0, 1.0));
    assert_eq!((requests("get_snapshot", 404), requests("other", 400)), (1.0, 1.0));
    let count = "sync_server_request_seconds_count{transaction=\"add_version\"}";
    assert_eq!(value(&page, count), 2.0);
    assert_eq!(value(&page, "sync_server_received_bytes_total"), 1002.0);
    assert!(value(&page, "sync_server_sent_bytes_total") >= 1000.0);
    assert!(value(&page, "sync_server_connections") >= 2.0);
    assert_eq!(value(&page, "sync_server_commit_group_size_sum"), 2.0);
    assert_eq!(value(&page, "sync_server_queue_length{queue=\"writes\"}"), 0.0);
    assert!(!page.contains(&replica.client[..8]), "a client is named");

    // Neither at the public listener, nor the protocol here.
    assert_eq!(server.request("GET", "/metrics", &[], b"").status, 404);
    assert_eq!(server.request("GET", "/readyz?verbose", &[], b"").text(), "ok\n");
    let path = format!("/v1/client/get-child-version/{NIL}");
    let asked = Connection::open(&address).request("GET", &path, &[("X-Client-Id", &replica.client)], b"");
    assert_eq!(asked.status, 404);
    assert_eq!(Connection::open(&address).request("POST", "/metrics", &[], b"").status, 405);
    assert_eq!(get(&address, "/readyz").text(), "ok\n");
    assert_eq!(get(&address, "/healthz").text(), "ok\n");
}

#[test]
fn a_backup_that_failed_is_told_by_readyz_verbose_and_by_the_numbers() {
    let (server, address) = start(&["--backup-dir", "/proc/nowhere", "--backup-interval", "1h"]);
    server.log().wait_for("the scheduled backup failed");
    let deadline = Instant::now() + PATIENCE;
    let report = loop {
        let answer = get(&address, "/readyz?verbose");
        assert_eq!(answer.status, 200, "clients can be served");
        if answer.text().contains("- backup: it failed") {
            break answer.text();
        }
        assert!(Instant::now() < deadline, "{}", answer.text());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(report.contains("/proc/nowhere") && report.contains("+ database: it answers"), "{report}");
    assert!(report.contains("+ waiting: reads 0, large_reads 0, writes 0\n"), "{report}");
    let page = get(&address, "/metrics").text();
    assert_eq!(value(&page, "sync_server_backup_failed"), 1.0);
    assert!(value(&page, "sync_server_next_backup_timestamp_seconds") > 1.7e9);

    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("backups");
    let (server, address) =
        start(&["--backup-dir", place.to_str().expect("plain text"), "--backup-interval", "1h"]);
    server.log().wait_for(" verified");
    let deadline = Instant::now() + PATIENCE;
    while !get(&address, "/readyz?verbose").text().contains("+ backup: the newest is of 2") {
        assert!(Instant::now() < deadline, "{}", get(&address, "/readyz?verbose").text());
        std::thread::sleep(Duration::from_millis(50));
    }
    let page = get(&address, "/metrics").text();
    assert!(value(&page, "sync_server_last_backup_timestamp_seconds") > 1.7e9);
    assert_eq!(value(&page, "sync_server_backup_failed"), 0.0);
}

#[test]
fn every_metric_of_the_dashboard_exists() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("backups");
    let authority = Authority::new();
    authority.write_pair("cert.pem", "key.pem");
    let [cert, key] = authority.flags();
    let place = place.to_str().expect("plain text");
    let args = ["--backup-dir", place, "--backup-interval", "1h", &cert, &key];
    let (server, address) = start(&args);
    let mut stream = secure(&server, authority.client());
    let headers = format!("X-Client-Id: {}\r\nContent-Type: {SEGMENT}\r\n", uuid::Uuid::new_v4());
    let added = ask(&mut stream, &format!("POST /v1/client/add-version/{NIL}"), &headers, "segment");
    assert_eq!(added.expect("an answer").0, 200);
    let page = get(&address, "/metrics").text();
    let dashboard = include_str!("../packaging/grafana/sync-server.json");
    serde_json::from_str::<serde_json::Value>(dashboard).expect("JSON");
    let is_part = |char: char| char.is_ascii_lowercase() || char == '_';
    let named: BTreeSet<&str> = dashboard
        .match_indices("sync_server_")
        .map(|(at, _)| dashboard[at..].split(|char| !is_part(char)).next().expect("a name"))
        .collect();
    let declared = |name: &str| page.contains(&format!("# TYPE {name} "));
    for name in &named {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let exists = declared(name) || family.is_some_and(declared);
        assert!(exists, "the dashboard asks for {name}, which there is not:\n{page}");
    }
    let all = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in all {
        assert!(named.iter().any(|named| named.starts_with(name)), "{name} is on no panel");
    }
}
