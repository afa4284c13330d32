//! The lock that keeps a second server away from a data directory.
//!
//! The lock belongs to the open file, so the system lets go of it with the last process that has
//! it, however that ends; the file itself stays. In it: the holder's process ID and where its
//! control socket is.

use super::owner;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// The file's name in the data directory.
pub const FILE_NAME: &str = "sync-server.lock";

/// A data directory that is ours until this is dropped by every process that inherited it.
pub struct DirectoryLock(File);

impl DirectoryLock {
    /// Takes the lock of an existing directory, and writes our process ID into it.
    ///
    /// Fails where another process holds it, which the message names, and where the file cannot be
    /// made or locked, with what helps.
    pub fn take(directory: &Path) -> Result<DirectoryLock, String> {
        let path = directory.join(FILE_NAME);
        let file = open(&path, directory).map_err(|error| refused(&error, &path, directory))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(directory)),
            Err(TryLockError::Error(error)) => return Err(refused(&error, &path, directory)),
        }
        let lock = DirectoryLock(file);
        lock.write_pid();
        Ok(lock)
    }

    /// Writes our process ID: once more after a fork.
    pub fn write_pid(&self) {
        self.write(b"");
    }

    /// Writes our process ID and where our control socket is.
    pub fn write_control_socket(&self, socket: &Path) {
        self.write(socket.as_os_str().as_bytes());
    }

    /// Says that the directory is held for a restore, during which its database takes no changes.
    pub fn write_restore(&self) {
        self.write(b"\nrestore");
    }

    /// The lock holds without what it says, so a full disk is no reason to refuse.
    fn write(&self, socket: &[u8]) {
        let text = [std::process::id().to_string().as_bytes(), b"\n", socket, b"\n"].concat();
        let _ = self.0.write_all_at(&text, 0).and_then(|()| self.0.set_len(text.len() as u64));
    }
}

/// Where the server that uses this directory, or used it last, has its control socket.
pub fn control_socket(directory: &Path) -> Option<PathBuf> {
    let text = std::fs::read(directory.join(FILE_NAME)).ok()?;
    let socket = text.split(|byte| *byte == b'\n').nth(1).filter(|line| !line.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(socket.to_vec())))
}

/// Whether somebody puts another database in the place of this directory's.
pub fn is_restoring(directory: &Path) -> bool {
    let path = directory.join(FILE_NAME);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    // The lock is looked at only then, as even a look could keep a server from starting.
    text.lines().nth(2) == Some("restore")
        && File::open(&path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Who uses this directory: "the process with ID 123".
pub fn holder(directory: &Path) -> String {
    let text = std::fs::read_to_string(directory.join(FILE_NAME)).unwrap_or_default();
    match text.lines().next() {
        Some(pid) if !pid.is_empty() => format!("the process with ID {pid}"),
        _ => "another process".to_owned(),
    }
}

/// A lock file made by root belongs to whom the directory belongs to: else it would lock out the
/// service's own user for good.
fn open(path: &Path, directory: &Path) -> Result<File, Error> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let owner = directory.metadata()?;
    if rustix::process::geteuid().is_root() && file.metadata()?.uid() != owner.uid() {
        fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(file)
}

fn held(directory: &Path) -> String {
    format!(
        "the data directory {} is in use by {}: two servers on one directory are refused",
        directory.display(),
        holder(directory)
    )
}

fn refused(error: &Error, path: &Path, directory: &Path) -> String {
    let advice = match error.kind() {
        ErrorKind::PermissionDenied if path.exists() => {
            format!("{}; this gives it to this process: {}", owner::whose(path), owner::give(directory, path))
        }
        ErrorKind::PermissionDenied => {
            format!(
                "{}; this gives it to this process: {}",
                owner::whose(directory),
                owner::give(directory, directory)
            )
        }
        ErrorKind::ReadOnlyFilesystem => format!(
            "the file system is mounted read-only: `mount -o remount,rw` it, or under systemd add \
             ReadWritePaths={} to the unit",
            directory.display()
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            format!("no space is left: `df -h {}` shows how much there is", owner::quoted(directory))
        }
        _ => owner::whose(directory),
    };
    format!("cannot lock the data directory with {}: {error}; {advice}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_whom_the_second_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = DirectoryLock::take(directory.path()).expect("it is free");
        let refusal = DirectoryLock::take(directory.path()).err().expect("it is taken");
        assert!(refusal.contains(&format!("the process with ID {}:", std::process::id())), "{refusal}");
        drop(lock);
        DirectoryLock::take(directory.path()).expect("it is free again");
    }

    #[test]
    fn the_control_socket_is_told_to_those_who_ask() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(control_socket(directory.path()), None);
        let lock = DirectoryLock::take(directory.path()).expect("it is free");
        assert_eq!(control_socket(directory.path()), None);
        lock.write_control_socket(Path::new("/run/x/control.sock"));
        assert_eq!(control_socket(directory.path()), Some(PathBuf::from("/run/x/control.sock")));
        lock.write_pid();
        assert_eq!(control_socket(directory.path()), None);
    }

    #[test]
    fn the_lock_file_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let _lock = DirectoryLock::take(directory.path()).expect("it is free");
        let mode = directory.path().join(FILE_NAME).metadata().expect("a file").mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
