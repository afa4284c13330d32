//! Who asks, and as whom the asked is done.

use crate::config::Environment;
use rustix::process::{Gid, Uid};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The user that a package makes for the server.
const SERVICE: &str = "sync-server";

/// The name of the user who asks, before the process became another.
pub fn asking(environment: &Environment) -> String {
    let us = rustix::process::getuid();
    let name = name_of(us.as_raw());
    // Only root can set this variable for a process of root.
    match environment.var("SUDO_USER") {
        Some(person) if us.is_root() && person != name => format!("{name} for {person}"),
        _ => name,
    }
}

/// Who shall own a data directory that does not exist: the service's user where a directory of the
/// system is above it, else whoever owns that one.
pub fn for_new(data_dir: &Path) -> Result<(u32, u32), Error> {
    let above = data_dir.ancestors().skip(1).find_map(|part| part.metadata().ok());
    let above = above.ok_or_else(|| Error::from(ErrorKind::NotFound))?;
    let service = if above.uid() == 0 { service() } else { None };
    Ok(service.unwrap_or((above.uid(), above.gid())))
}

/// Becomes another user for good. The process has no other thread yet: those that follow inherit it.
pub fn become_user(uid: u32, gid: u32) -> Result<(), Error> {
    if uid == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// The user that a package makes for the server, where there is one.
pub fn service() -> Option<(u32, u32)> {
    accounts().find(|account| account.name == SERVICE).map(|account| (account.uid, account.gid))
}

fn name_of(uid: u32) -> String {
    let account = accounts().find(|account| account.uid == uid);
    account.map_or_else(|| format!("uid {uid}"), |account| account.name)
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// The machine's own users. Others, of a directory service say, are known by number only.
fn accounts() -> impl Iterator<Item = Account> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let accounts: Vec<Account> = text.lines().filter_map(account).collect();
    accounts.into_iter()
}

fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let mut number = |skip| fields.nth(skip)?.parse().ok();
    Some(Account { name, uid: number(1)?, gid: number(0)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_user_list_is_taken_apart() {
        let account = account("sync-server:x:998:997:Sync:/var/lib/sync-server:/usr/sbin/nologin");
        let account = account.expect("it is one");
        assert_eq!((account.name.as_str(), account.uid, account.gid), ("sync-server", 998, 997));
        for line in ["", "+::::::", "name:x:many:0", "# a comment"] {
            assert!(super::account(line).is_none(), "{line:?}");
        }
    }

    #[test]
    fn the_owner_of_what_is_above_owns_a_new_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        if !rustix::process::geteuid().is_root() {
            let owner = dir.path().metadata().expect("it exists").uid();
            assert_eq!(for_new(&dir.path().join("a/b")).expect("an owner").0, owner);
            return;
        }
        std::os::unix::fs::chown(dir.path(), Some(4711), Some(4712)).expect("root may");
        assert_eq!(for_new(&dir.path().join("a/b")).expect("an owner"), (4711, 4712));
    }
}
