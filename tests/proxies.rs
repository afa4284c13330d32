//! The proxies' configuration files under packaging/ as they stand, in a network of their own, with real
//! proxies and real clients.

use crate::clients::two_devices_agree_at;
use crate::util::{Connection, NIL, PATIENCE, Replica, SEGMENT, SNAPSHOT, Server, program, skip, skip_fault};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;

/// Where clients find the proxy, and so where they come from.
const PUBLIC: &str = "203.0.113.9";

/// A proxy that runs. Killed with all that it started when dropped.
struct Proxy(Child, #[expect(dead_code, reason = "removed with the proxy")] tempfile::TempDir);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process_group(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        );
        let _ = self.0.wait();
    }
}

fn packaged(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/proxies").join(path)
}

/// The server at 127.0.0.1:8080 of a network of its own, which this thread joins, and the proxy that the
/// command starts there. `None` where such a proxy or network is not to be had.
fn behind(name: &str, path: &str, prepare: impl FnOnce(&mut Command, &Path)) -> Option<(Server, Proxy)> {
    let binary =
        ["/usr/sbin", "/usr/bin"].map(|dir| Path::new(dir).join(name)).into_iter().find(|it| it.exists());
    let Some(binary) = binary else {
        skip(&format!("{name} is not installed; `tests/run` does that"));
        return None;
    };
    let make = format!("ip link set lo up && ip addr add {PUBLIC}/32 dev lo && exec \"$@\"");
    let alone = |last: &std::ffi::OsStr| {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", &make, "sh"]).arg(last);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        command
    };
    if !alone("true".as_ref()).output().is_ok_and(|output| output.status.success()) {
        skip_fault("no network of its own can be made here");
        return None;
    }
    let place = tempfile::tempdir().expect("a directory");
    let dir = place.path().to_owned();
    let mut server = alone(program().get_program());
    server
        .args(["--listen", "127.0.0.1:8080", "--trusted-proxies", "127.0.0.1", "--data-dir"])
        .arg(dir.join("data"));
    let server = Server::spawn(server, &dir);
    let network = File::open(format!("/proc/{}/ns/net", server.pid())).expect("the network can be opened");
    rustix::thread::move_into_link_name_space(network.as_fd(), None).expect("the network can be joined");
    let mut proxy = Command::new(binary);
    proxy.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", &dir).stdin(Stdio::null());
    proxy.stdout(Stdio::null()).stderr(File::create(dir.join("log")).expect("a file"));
    std::os::unix::process::CommandExt::process_group(&mut proxy, 0);
    prepare(&mut proxy, &dir);
    let mut proxy = Proxy(proxy.spawn().expect("the proxy starts"), place);
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect((PUBLIC, 80)).is_err() {
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(proxy.0.try_wait().expect("it is ours").is_none(), "{name} with {path} ended: {}", log());
        assert!(Instant::now() < deadline, "{name} does not listen: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    Some((server, proxy))
}

/// What every proxy must let through, and what it must tell.
fn is_transparent(server: &Server) {
    let address = format!("{PUBLIC}:80");
    let mut connection = Connection::open(&address);
    assert!(connection.request("GET", "/", &[], b"").text().starts_with("TaskChampion sync server v"));
    let client = uuid::Uuid::new_v4().to_string();
    let forged = ("X-Forwarded-For", "6.6.6.6");
    let ids = [("X-Client-Id", &*client), forged];
    let poll = connection.request("GET", &format!("/v1/client/get-child-version/{NIL}"), &ids, b"");
    assert_eq!(poll.status, 404);
    let line = server.log().wait_for("path=/v1/client/get-child-version/");
    assert!(line.contains(&format!("peer={PUBLIC}")), "{line}");

    let headers = |kind| [("X-Client-Id", &*client), ("Content-Type", kind), ("Accept-Encoding", "gzip")];
    let add = format!("/v1/client/add-version/{NIL}");
    let added = connection.request("POST", &add, &headers(SEGMENT), b"a segment");
    assert_eq!(added.status, 200);
    assert_eq!(added.header("x-snapshot-request"), Some("urgency=high"));
    let conflict = connection.request("POST", &add, &headers(SEGMENT), b"a segment");
    assert_eq!((conflict.status, conflict.header("x-parent-version-id")), (409, Some(&*added.version())));
    let path = format!("/v1/client/get-child-version/{NIL}");
    let child = connection.request("GET", &path, &headers(SEGMENT), b"");
    assert_eq!(
        (child.status, child.header("content-type"), &child.body[..]),
        (200, Some(SEGMENT), &b"a segment"[..])
    );
    assert_eq!(child.header("content-encoding"), None);

    // The largest that the server takes.
    let snapshot: Vec<u8> = (0..100 * MIB).map(|n| (n / 7) as u8).collect();
    let path = format!("/v1/client/add-snapshot/{}", added.version());
    let stored = Connection::open(&address).request("POST", &path, &headers(SNAPSHOT), &snapshot);
    assert_eq!(stored.status, 200, "{}", stored.text());
    let mut reader = Connection::open(&address);
    let held = reader.request("GET", "/v1/client/snapshot", &headers(SNAPSHOT), b"");
    assert_eq!((held.status, held.header("content-type")), (200, Some(SNAPSHOT)));
    assert!(held.body == snapshot, "{} bytes came back", held.body.len());
    // What was kept is what was sent, whoever is asked.
    let mut direct = Replica::new(server, &client);
    assert!(direct.snapshot().body == snapshot);
    two_devices_agree_at(&format!("http://{address}/"));
}

#[test]
fn through_nginx() {
    let site = packaged("nginx/sync-server.conf");
    let proxy = behind("nginx", "nginx/sync-server.conf", |command, dir| {
        let text = format!(
            "user root;\ndaemon off;\npid {0}/pid;\nerror_log {0}/log;\nevents {{}}\nhttp {{\n  access_log off;\n  \
             client_body_temp_path {0}/a;\n  proxy_temp_path {0}/b;\n  fastcgi_temp_path {0}/c;\n  \
             uwsgi_temp_path {0}/d;\n  scgi_temp_path {0}/e;\n  include {1};\n}}\n",
            dir.display(),
            site.display()
        );
        fs::write(dir.join("nginx.conf"), text).expect("a file");
        command.arg("-c").arg(dir.join("nginx.conf"));
    });
    let Some((server, _proxy)) = proxy else { return };
    is_transparent(&server);
}

#[test]
fn through_caddy() {
    let proxy = behind("caddy", "caddy/Caddyfile", |command, _| {
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(packaged("caddy/Caddyfile"));
    });
    let Some((server, _proxy)) = proxy else { return };
    is_transparent(&server);
}

#[test]
fn through_haproxy() {
    let proxy = behind("haproxy", "haproxy/haproxy.cfg", |command, _| {
        command.args(["-db", "-f"]).arg(packaged("haproxy/haproxy.cfg"));
    });
    let Some((server, _proxy)) = proxy else { return };
    is_transparent(&server);
}

#[test]
fn through_apache() {
    let site = packaged("apache/sync-server.conf");
    let proxy = behind("apache2", "apache/sync-server.conf", |command, dir| {
        let modules = ["mpm_event", "authz_core", "env", "headers", "proxy", "proxy_http", "reqtimeout"];
        let load =
            modules.map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"));
        let text = format!(
            "ServerRoot {0}\nDefaultRuntimeDir {0}\nPidFile {0}/pid\nErrorLog {0}/log\nUser www-data\nGroup www-data\n\
             Listen 80\n{1}Include {2}\n",
            dir.display(),
            load.concat(),
            site.display()
        );
        fs::write(dir.join("apache.conf"), text).expect("a file");
        command.args(["-DFOREGROUND", "-f"]).arg(dir.join("apache.conf"));
    });
    let Some((server, _proxy)) = proxy else { return };
    is_transparent(&server);
}
