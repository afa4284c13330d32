//! What goes wrong on real machines: full disks, lost permissions, damaged files. Each is told in a
//! message that helps, costs nothing that was acknowledged, and is over when its cause is gone.

use crate::util::{NIL, PATIENCE, Random, Replica, Server, program, skip_fault};
use rusqlite::Connection;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

const DATABASE: &str = "taskchampion-sync-server.sqlite3";

/// Somebody who owns nothing.
const NOBODY: u32 = 65534;

/// A chain of acknowledged versions.
struct Chain {
    replica: Replica,
    acknowledged: Vec<(String, Vec<u8>)>,
    random: Random,
}

impl Chain {
    fn new(server: &Server) -> Chain {
        Chain {
            replica: Replica::of_new_client(server),
            acknowledged: Vec::new(),
            random: Random::new("segments"),
        }
    }

    fn latest(&self) -> String {
        self.acknowledged.last().map_or(NIL, |(id, _)| id).to_owned()
    }

    /// Adds one version and returns the status.
    fn add(&mut self, length: usize) -> u16 {
        let segment = self.random.bytes(length);
        let response = self.replica.add_version(&self.latest(), &segment);
        if response.status == 200 {
            self.acknowledged.push((response.version(), segment));
        }
        response.status
    }

    /// Adds until it works again, without any help.
    fn recover(&mut self, server: &Server) {
        let begun = Instant::now();
        while self.add(1000) != 200 {
            assert!(begun.elapsed() < PATIENCE, "no recovery; the log:\n{}", server.log().text());
        }
    }

    /// Polls and reads work, whatever happens to writes.
    fn check_reads(&mut self) {
        assert_eq!(self.replica.child_version(&self.latest()).status, 404);
        let (id, segment) = self.acknowledged[0].clone();
        let first = self.replica.child_version(NIL);
        assert_eq!((first.status, first.version(), first.body), (200, id, segment));
    }

    /// Everything that was acknowledged is there, on this server, and nothing else.
    fn check(&self, server: &Server) {
        let chain = Replica::new(server, &self.replica.client).walk(NIL);
        let held: Vec<_> = chain.into_iter().map(|(_, id, segment)| (id, segment)).collect();
        assert!(held == self.acknowledged, "{} of {}", held.len(), self.acknowledged.len());
    }
}

#[test]
fn a_full_disk_refuses_adds_and_nothing_else_until_there_is_space() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(mut command) = with_mounts(r#"mount -t tmpfs -o size=12m tmpfs "$1""#, dir.path()) else {
        return;
    };
    command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path());
    let server = Server::spawn(command, dir.path());
    // The small file system, as it looks from outside of the server's namespace.
    let inside = PathBuf::from(format!("/proc/{}/root{}", server.pid(), dir.path().display()));
    let ballast = inside.join("ballast");
    fs::write(&ballast, vec![0; 6 << 20]).expect("the ballast fits");

    let mut chain = Chain::new(&server);
    let refused = (0..1000).map(|_| chain.add(64 << 10)).find(|status| *status != 200);
    assert_eq!(refused, Some(503), "{}", server.log().text());
    assert!(chain.acknowledged.len() > 10, "it was full at once");
    for _ in 0..5 {
        assert_eq!(chain.add(64 << 10), 503);
        chain.check_reads();
    }
    let line = server.log().wait_for("no space");
    expect(&line, &[&shown(dir.path()), "df -h"]);
    assert_eq!(server.log().text().matches("no space").count(), 1, "one line a minute");

    fs::remove_file(&ballast).expect("the ballast can be removed");
    chain.recover(&server);
    chain.check(&server);
    // On the disk, and not only in this server's view of it.
    let copy = tempfile::tempdir().expect("a temporary directory");
    for end in ["", "-wal"] {
        let name = format!("{DATABASE}{end}");
        fs::copy(inside.join(&name), copy.path().join(&name)).expect("the files can be copied");
    }
    chain.check(&Server::start_in(copy.path(), &[]));
}

#[test]
fn too_little_space_for_the_copy_is_told_with_what_is_needed_and_the_options() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let length = fixture().metadata().expect("the fixture is there").len();
    let file_system = format!(
        r#"mount -t tmpfs -o size={} tmpfs "$1" && cp "{}" "$1""#,
        length * 3 / 2,
        fixture().display()
    );
    let Some(command) = with_mounts(&file_system, dir.path()) else { return };
    let message = refusal(command, dir.path());
    expect(
        &message,
        &[&shown(dir.path()), &format!("{length} bytes"), "MIGRATION_COPY_DIR", "MIGRATION_COPY=false"],
    );
}

#[test]
fn a_disk_without_any_space_is_told_at_the_start() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let length = fixture().metadata().expect("the fixture is there").len();
    let file_system = format!(
        r#"mount -t tmpfs -o size={} tmpfs "$1" && cp "{}" "$1" && ! cat /dev/zero >"$1/rest" 2>/dev/null"#,
        length + 8192,
        fixture().display()
    );
    let Some(command) = with_mounts(&file_system, dir.path()) else { return };
    expect(&refusal(command, dir.path()), &[&shown(dir.path()), "no space", "df -h"]);
}

#[test]
fn something_else_in_the_place_of_the_database_is_named_and_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join(DATABASE);
    fs::create_dir(&file).expect("a directory");
    expect(&refusal(program(), dir.path()), &[&shown(&file), "a directory is in the file's place"]);
    fs::remove_dir(&file).expect("it is empty");
    let target = dir.path().join("elsewhere");
    std::os::unix::fs::symlink(&target, &file).expect("a link");
    expect(&refusal(program(), dir.path()), &[&shown(&file), "a link that leads nowhere"]);
    assert!(!target.exists());
}

#[test]
fn a_database_that_its_owner_may_not_write_is_named_with_the_command() {
    let user = User::without_rights();
    let dir = user.directory();
    let file = dir.path().join(DATABASE);
    fs::copy(fixture(), &file).expect("a copy");
    set_mode(&file, 0o400);
    user.own(&file);
    user.own(dir.path());
    expect(&refusal(user.program(), dir.path()), &[&shown(&file), "chmod -R u+rwX"]);
}

#[test]
fn files_that_become_immutable_refuse_adds_until_they_can_be_written_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start_in(dir.path(), &[]);
    let mut chain = Chain::new(&server);
    assert_eq!(chain.add(1000), 200);
    let immutable = Immutable::make([DATABASE.to_owned(), format!("{DATABASE}-wal")], dir.path());
    let Some(immutable) = immutable else { return };
    for _ in 0..5 {
        assert_eq!(chain.add(1000), 503, "{}", server.log().text());
        chain.check_reads();
    }
    server.log().wait_for(&shown(&dir.path().join(DATABASE)));
    drop(immutable);
    chain.recover(&server);
    chain.check(&server);
    server.stop();
    chain.check(&Server::start_in(dir.path(), &[]));
}

#[test]
fn a_directory_that_is_moved_away_and_back_loses_nothing() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (here, away) = (parent.path().join("data"), parent.path().join("away"));
    let server = Server::start_in(&here, &[]);
    let mut chain = Chain::new(&server);
    assert_eq!(chain.add(1000), 200);
    fs::rename(&here, &away).expect("the directory can be moved");
    for _ in 0..5 {
        assert_eq!(chain.add(1000), 503, "{}", server.log().text());
    }
    fs::rename(&away, &here).expect("the directory can be moved back");
    chain.recover(&server);
    chain.check(&server);
    server.stop();
    chain.check(&Server::start_in(&here, &[]));
}

/// What is written to a file without a name is lost with the process.
#[test]
fn a_database_that_was_removed_or_replaced_takes_no_adds_that_would_be_lost() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (here, away) = (dir.path().join(DATABASE), dir.path().join("away"));
    let server = Server::start_in(dir.path(), &[]);
    let mut chain = Chain::new(&server);
    assert_eq!(chain.add(1000), 200);
    chain.check_reads();
    for replacement in [None, Some(&away)] {
        fs::hard_link(&here, dir.path().join("kept")).expect("a second name");
        match replacement {
            None => fs::remove_file(&here).expect("the database can be removed"),
            Some(other) => {
                fs::copy(&here, other).expect("a copy of it");
                fs::rename(other, &here).expect("the database can be replaced");
            }
        }
        assert_eq!(chain.add(1000), 503);
        let said = server.log().wait_for("removed or replaced while");
        assert!(said.contains(&shown(&here)), "{said}");
        assert_eq!(server.request("GET", "/readyz", &[], b"").status, 503);
        fs::rename(dir.path().join("kept"), &here).expect("the same file comes back");
        assert_eq!(chain.add(1000), 200);
    }
    server.stop();
    chain.check(&Server::start_in(dir.path(), &[]));
}

/// What is in a WAL without a name is lost with the process, unless that stops in order.
#[test]
fn a_wal_that_was_removed_or_replaced_takes_no_adds_and_a_restart_has_everything() {
    for end in ["-wal", "-shm"] {
        for replaced in [false, true] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let beside = dir.path().join(format!("{DATABASE}{end}"));
            let server = Server::start_in(dir.path(), &[]);
            let mut chain = Chain::new(&server);
            assert_eq!(chain.add(1000), 200);
            if replaced {
                fs::rename(&beside, dir.path().join("away")).expect("it can be moved");
                fs::copy(dir.path().join("away"), &beside).expect("a copy of it");
            } else {
                fs::remove_file(&beside).expect("it can be removed");
            }
            assert_eq!(chain.add(1000), 503, "{end}");
            let said = server.log().wait_for("removed or replaced while");
            expect(&said, &[&shown(&beside), "SIGTERM", "start it again"]);
            assert_eq!(server.request("GET", "/readyz", &[], b"").status, 503);
            if replaced {
                fs::rename(dir.path().join("away"), &beside).expect("the same file comes back");
                chain.recover(&server);
            }
            server.stop();
            let server = Server::start_in(dir.path(), &[]);
            chain.check(&server);
            assert_eq!(Chain::new(&server).add(1000), 200);
        }
    }
}

#[test]
fn a_read_only_file_system_is_named_at_the_start() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    Server::start_in(dir.path(), &[]).stop();
    let read_only = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1""#;
    let Some(command) = with_mounts(read_only, dir.path()) else { return };
    let message = refusal(command, dir.path());
    expect(&message, &[&shown(dir.path()), "read-only", "ReadWritePaths="]);
}

#[test]
fn a_directory_of_someone_else_is_named_with_both_users_and_the_command() {
    let user = User::without_rights();
    let dir = user.directory();
    set_mode(dir.path(), 0o555);
    let message = refusal(user.program(), dir.path());
    expect(&message, &[&shown(dir.path()), &format!("uid {}", user.uid), "chown"]);
}

#[test]
fn a_database_of_someone_else_is_named_with_both_users_and_the_command() {
    let user = User::without_rights();
    let dir = user.directory();
    Server::start_in(dir.path(), &[]).stop();
    fs::remove_file(dir.path().join("sync-server.lock")).expect("the lock is there");
    set_mode(&dir.path().join(DATABASE), 0o400);
    user.own(dir.path());
    let message = refusal(user.program(), dir.path());
    expect(&message, &[&shown(&dir.path().join(DATABASE)), &format!("uid {}", user.uid), "chown"]);
}

#[test]
fn a_missing_directory_that_cannot_be_made_is_named_with_the_command() {
    let user = User::without_rights();
    let dir = user.directory();
    set_mode(dir.path(), 0o555);
    let missing = dir.path().join("below/data");
    let message = refusal(user.program(), &missing);
    expect(&message, &[&shown(&missing), &format!("uid {}", user.uid), "install -d"]);
}

#[test]
fn a_file_that_is_no_database_is_named_and_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join(DATABASE);
    let content = "these are notes, not a database\n".repeat(300);
    fs::write(&file, &content).expect("the file can be written");
    let message = refusal(program(), dir.path());
    expect(&message, &[&shown(&file), "no SQLite database", "sqlite3"]);
    assert_eq!(fs::read_to_string(&file).expect("the file"), content);
}

#[test]
fn a_corrupt_page_is_named_at_the_start_where_the_migration_meets_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join(DATABASE);
    fs::copy(fixture(), &file).expect("the fixture can be copied");
    corrupt(&file);
    let message = refusal(program(), dir.path());
    expect(&message, &[&shown(&file), "damaged", "sqlite3", ".recover"]);
}

#[test]
fn a_corrupt_page_fails_only_those_who_need_it_and_is_named_in_the_log() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join(DATABASE);
    fs::copy(fixture(), &file).expect("the fixture can be copied");
    Server::start_in(dir.path(), &[]).stop();
    let (client, parent) = corrupt(&file);
    let server = Server::start_in(dir.path(), &[]);
    let mut replica = Replica::new(&server, &client);
    let answer = replica.child_version(&parent);
    assert_eq!(answer.status, 500, "{answer:?}");
    expect(&server.log().wait_for("damaged"), &[&shown(&file), "sqlite3"]);
    // Everyone else is served as before, and the server lives on.
    let mut chain = Chain::new(&server);
    assert_eq!(chain.add(1000), 200);
    chain.check(&server);
    assert_eq!(replica.child_version(&parent).status, 500);
}

/// Large snapshots are sent while they are read: when the damage shows, the answer has begun.
#[test]
fn a_corrupt_page_in_a_large_snapshot_cuts_the_answer_short_and_is_named_in_the_log() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join(DATABASE);
    let server = Server::start_in(dir.path(), &[]);
    let mut replica = Replica::of_new_client(&server);
    let version = replica.add_version(NIL, b"a version").version();
    let snapshot = Random::new("a snapshot to damage").bytes(3 << 20);
    assert_eq!(replica.add_snapshot(&version, &snapshot).status, 200);
    let client = replica.client.clone();
    server.stop();
    let server = Server::start_in(dir.path(), &[]);
    assert!(Replica::new(&server, &client).snapshot().body == snapshot, "it came back changed");
    server.stop();

    let bytes = fs::read(&file).expect("the file can be read");
    let part = &snapshot[2 << 20..][..40];
    let at = bytes.windows(40).position(|window| window == part).expect("the snapshot is in the file");
    let page_size = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    let database = fs::OpenOptions::new().write(true).open(&file).expect("the file can be written");
    database
        .write_all_at(&[0xff; 4], (at / page_size * page_size) as u64)
        .expect("a page can be overwritten");

    let server = Server::start_in(dir.path(), &[]);
    let headers = [("X-Client-Id", client.as_str())];
    let cut = server.connect().try_request("GET", "/v1/client/snapshot", &headers, b"");
    let kind = cut.expect_err("the snapshot cannot be read whole").kind();
    assert!(matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{kind:?}");
    expect(&server.log().wait_for("sent in part only"), &[&client[..8], &shown(&file), "sqlite3"]);
    let mut chain = Chain::new(&server);
    assert_eq!(chain.add(1000), 200);
    chain.check(&server);
}

/// Destroys the page that holds the middle version of the fixture's longest chain; returns its
/// client and its parent.
fn corrupt(file: &Path) -> (String, String) {
    let database = Connection::open(file).expect("the database opens");
    let sql =
        "SELECT client_id, parent_version_id, history_segment FROM versions ORDER BY rowid LIMIT 1 OFFSET 80";
    let row = |row: &rusqlite::Row| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let (client, parent, segment): (_, _, Vec<u8>) = database.query_row(sql, [], row).expect("a version");
    drop(database);
    let bytes = fs::read(file).expect("the file can be read");
    let at =
        bytes.windows(40).position(|window| window == &segment[..40]).expect("the segment is in the file");
    let page_size = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    let page = at / page_size * page_size;
    let file = fs::OpenOptions::new().write(true).open(file).expect("the file can be written");
    file.write_all_at(&[0xff; 512], page as u64).expect("the page can be overwritten");
    (client, parent)
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tss-sqlite").join(DATABASE)
}

/// Starts it in this directory, and returns what it says when it gives up.
fn refusal(mut command: Command, data_dir: &Path) -> String {
    command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("the child can be waited for") {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("the server started where it cannot serve");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    let mut message = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut message).expect("a message");
    assert_eq!(status.code(), Some(1), "{message}");
    message
}

fn expect(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The program in a mount namespace of its own, after a mount in it: with the process it is all gone.
pub fn with_mounts(mount: &str, dir: &Path) -> Option<Command> {
    let unshare = if is_root() { "-m" } else { "-rm" };
    let start = |last: &std::ffi::OsStr| {
        let mut command = Command::new("unshare");
        command.arg(unshare).args(["sh", "-c", &format!(r#"{mount} && shift && exec "$@""#), "sh"]);
        command.arg(dir).arg(last).env_clear().stdin(Stdio::null());
        command
    };
    let tried = start("true".as_ref()).output();
    if tried.as_ref().is_ok_and(|output| output.status.success()) {
        return Some(start(program().get_program()));
    }
    skip_fault(&format!("nothing can be mounted here: {tried:?}"));
    None
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Files that nobody can write, not even through handles that are open, until this is dropped.
struct Immutable(Vec<PathBuf>);

impl Immutable {
    fn make(names: [String; 2], dir: &Path) -> Option<Immutable> {
        let immutable = Immutable(names.map(|name| dir.join(name)).into());
        if immutable.change("+i") {
            return Some(immutable);
        }
        skip_fault("no file can be made immutable here");
        None
    }

    fn change(&self, to: &str) -> bool {
        let output = Command::new("chattr").arg(to).args(&self.0).output();
        output.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        self.change("-i");
    }
}

/// Someone who may not write what was locked: another user where the tests run as root.
struct User {
    uid: u32,
    /// Where this user finds the program, as the build's directory may be hidden from it.
    program: PathBuf,
    _place: TempDir,
}

impl User {
    fn without_rights() -> User {
        let place = tempfile::tempdir().expect("a temporary directory");
        set_mode(place.path(), 0o755);
        let copy = place.path().join("sync-server");
        fs::copy(program().get_program(), &copy).expect("the program can be copied");
        let uid = if is_root() { NOBODY } else { rustix::process::geteuid().as_raw() };
        User { uid, program: copy, _place: place }
    }

    /// One that this user can look into.
    fn directory(&self) -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        set_mode(dir.path(), 0o755);
        dir
    }

    fn program(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().stdin(Stdio::null());
        if is_root() {
            command.uid(self.uid).gid(self.uid);
        }
        command
    }

    fn own(&self, path: &Path) {
        if is_root() {
            std::os::unix::fs::chown(path, Some(self.uid), Some(self.uid)).expect("root may do that");
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the mode can be set");
}
