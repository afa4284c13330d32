//! The group that a unix socket is for.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::chown;
use std::path::Path;

/// Gives the file to the group, which is told by name or number. The error is for people.
pub fn give(path: &Path, group: &str) -> Result<(), String> {
    let id = id(group)?;
    chown(path, None, Some(id)).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => format!(
            "unix.group: uid {} may not give it to the group {group}, for it is no member: `usermod -a -G {group}` \
             with the server's user, or SupplementaryGroups={group} in its unit, and start it anew",
            rustix::process::geteuid().as_raw()
        ),
        _ => format!("unix.group: it cannot be given to the group {group}: {error}"),
    })
}

/// The machine's own groups. Others, of a directory service say, are known by number only.
fn id(group: &str) -> Result<u32, String> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let groups: io::Result<String> = fs::read_to_string("/etc/group");
    let groups =
        groups.map_err(|error| format!("unix.group: cannot read /etc/group: {error}; give a number"))?;
    find(&groups, group).ok_or_else(|| {
        format!("unix.group: /etc/group has no group {group}; `groupadd --system {group}` makes it, or give a number")
    })
}

fn find(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() == Some(name) { fields.nth(1)?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_known_by_name_and_by_number() {
        let groups = "root:x:0:\n# www-data:x:1:\nwww:x:2:\nwww-data:x:33:alice,bob\nodd\nbad:x:many:\n";
        assert_eq!(find(groups, "www-data"), Some(33));
        assert_eq!(find(groups, "odd"), None);
        assert_eq!(find(groups, "bad"), None);
        assert_eq!(id("4711"), Ok(4711));
        assert!(id("no group is called so").is_err_and(|why| why.contains("groupadd")));
    }
}
