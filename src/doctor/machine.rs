//! The data directory and the disk that it is on.

use super::Finding;
use crate::storage::owner::quoted;
use rustix::fs::statvfs;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// With less than this a disk is full soon: two of the largest bodies, and the log of them.
const LITTLE: u64 = 512 * 1024 * 1024;

/// Files that a disk should have room for.
const FEW_FILES: u64 = 1_000;

/// Files that are named before the rest is counted.
const NAMED: usize = 3;

/// Whose the data directory is, whether all in it is theirs, and who else can look into it. `service`
/// is the user that a package made for the server.
pub fn data_directory(directory: &Path, service: Option<(u32, u32)>) -> Vec<Finding> {
    const TOPIC: &str = "data directory";
    let shown = directory.display();
    let data = match directory.metadata() {
        Ok(data) if data.is_dir() => data,
        Ok(_) => return vec![Finding::wrong(TOPIC, format!("{shown} is no directory"), "name another one")],
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return vec![Finding::note(TOPIC, format!("there is no {shown} yet: the first start makes it"))];
        }
        Err(error) => {
            let advice = "run this as root, or as the server's user";
            return vec![Finding::wrong(TOPIC, format!("cannot look at {shown}: {error}"), advice)];
        }
    };
    let owner = match service {
        // What root started once by hand, and the service cannot use.
        Some(service) if data.uid() == 0 => service,
        _ => (data.uid(), data.gid()),
    };
    let chown = format!("sudo chown -R {}:{} {}", owner.0, owner.1, quoted(directory));
    let mut findings = Vec::new();
    if data.uid() != owner.0 {
        let seen =
            format!("{shown} belongs to root, and the server's own user, uid {}, cannot use it", owner.0);
        findings.push(Finding::wrong(TOPIC, seen, chown.clone()));
    }
    match files(directory, |data| data.uid() != owner.0) {
        Ok(foreign) if foreign.is_empty() => {}
        Ok(foreign) => findings.push(Finding::wrong(
            TOPIC,
            format!("not of uid {}, as which the server runs: {}", owner.0, names(&foreign)),
            chown,
        )),
        Err(error) => findings.push(Finding::wrong(
            TOPIC,
            format!("cannot look into {shown}: {error}"),
            "run this as root, or as the server's user",
        )),
    }
    let can_be_entered = data.mode() & 0o001 != 0;
    let readable = files(directory, |data| data.is_file() && data.mode() & 0o004 != 0).unwrap_or_default();
    if can_be_entered && !readable.is_empty() {
        let seen = format!("every user of this machine can read {}", names(&readable));
        findings.push(Finding::wrong(TOPIC, seen, format!("chmod o-rwx {}", quoted(directory))));
    }
    if findings.is_empty() {
        let seen = format!("{shown} and all in it belong to uid {}", owner.0);
        findings.push(Finding::well(TOPIC, seen));
    }
    findings
}

/// The files of a directory that are so, ordered by name.
fn files(directory: &Path, is_so: impl Fn(&Metadata) -> bool) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        // What went away meanwhile is nobody's.
        if path.symlink_metadata().is_ok_and(|data| is_so(&data)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn names(paths: &[PathBuf]) -> String {
    let named: Vec<String> = paths.iter().take(NAMED).map(|path| path.display().to_string()).collect();
    let more = paths.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

/// Whether the disk of a directory has room for `needed` bytes more, and some to spare.
pub fn space(topic: &'static str, directory: &Path, needed: u64) -> Finding {
    let Some(there) = directory.ancestors().find(|part| part.exists()) else {
        return Finding::note(topic, format!("there is no {}", directory.display()));
    };
    let disk = match statvfs(there) {
        Ok(disk) => disk,
        Err(error) => {
            return Finding::note(topic, format!("cannot look at the disk of {}: {error}", there.display()));
        }
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    // Some file systems do not count files.
    let has_few_files = disk.f_files > 0 && disk.f_favail < FEW_FILES;
    let seen = format!(
        "{} free on the disk of {}",
        bytesize::ByteSize::b(free).display().iec(),
        directory.display()
    );
    if free < LITTLE.max(needed) || has_few_files {
        let advice = format!(
            "make room, or use another disk: `df -h {0}` and `df -i {0}` show how much there is. When it is full, \
             uploads are refused until there is room again",
            quoted(there)
        );
        return Finding::wrong(topic, seen, advice);
    }
    Finding::well(topic, seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_that_is_open_to_all_is_told_with_the_line_that_closes_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let mode =
            |path: &Path, mode| set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
        let file = directory.path().join("file");
        write(&file, "").expect("a file");
        for (of_directory, of_file) in [(0o700, 0o644), (0o755, 0o640)] {
            mode(directory.path(), of_directory);
            mode(&file, of_file);
            assert_eq!(data_directory(directory.path(), None)[0].grade, Grade::Well);
        }
        mode(&file, 0o644);
        let found = data_directory(directory.path(), None);
        assert!(
            found[0].advice.as_deref().is_some_and(|line| line.starts_with("chmod o-rwx /")),
            "{found:?}"
        );
        assert_eq!(data_directory(&directory.path().join("missing"), None)[0].grade, Grade::Note);
        assert_eq!(data_directory(&file, None)[0].grade, Grade::Wrong);
    }

    #[test]
    fn a_disk_without_room_for_what_is_needed_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(space("disk", directory.path(), u64::MAX).grade, Grade::Wrong);
        assert_eq!(space("disk", Path::new("/proc/self"), 0).topic, "disk");
    }
}
