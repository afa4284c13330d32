//! What went wrong, in words that help whoever runs the server: the file, who owns it, who we are,
//! and the command that helps.

use super::files::Displaced;
use crate::storage::{Error, Kind, Result, owner};
use rusqlite::ErrorCode;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Adds to a failure what was being done, and on which file.
pub(super) trait Context<T> {
    fn context(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for rusqlite::Result<T> {
    fn context(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|error| explain(&error, doing, path))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::Full,
                _ => Kind::Unavailable,
            };
            Error::new(kind, message(&error, kind, doing, path))
        })
    }
}

/// A failure to get a connection out of the pool of readers.
pub(super) fn of_pool(error: &r2d2::Error, path: &Path) -> Error {
    Error::new(Kind::Unavailable, message(error, Kind::Unavailable, "opening the database for reading", path))
}

/// A database of which a name no longer leads to the file that is open.
pub(super) fn displaced(displaced: &Displaced, path: &Path) -> Error {
    let file = path.display();
    if !displaced.is_database {
        let message = format!(
            "{} was moved, removed or replaced while the server has it open: what is written now would be lost, so \
             nothing is. What was acknowledged is in the file that is open, and goes into {file} when the server \
             stops: stop it with SIGTERM, never by force, and start it again. Nothing but the server may touch \
             the files beside its database",
            displaced.file.display()
        );
        return Error::new(Kind::Unavailable, message);
    }
    let message = format!(
        "{file} was moved, removed or replaced while the server has it open: what is written now would be lost, so \
         nothing is. Put the same file back; or stop the server, put another one in its place without {file}-wal \
         and {file}-shm, which belong to the old one, and start the server again"
    );
    Error::new(Kind::Unavailable, message)
}

/// A stored value that is not what its column holds everywhere else.
pub(super) fn damaged(column: usize, text: &str) -> rusqlite::Error {
    let why = format!("{} bytes that are no UUID", text.len());
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, why.into())
}

fn explain(error: &rusqlite::Error, doing: &str, path: &Path) -> Error {
    let kind = match kind_of(error) {
        Kind::Unavailable if obstacle(path).is_none() && has_no_space(directory(path)) => Kind::Full,
        kind => kind,
    };
    Error::new(kind, message(error, kind, doing, path))
}

fn kind_of(error: &rusqlite::Error) -> Kind {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Kind::Full,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Kind::Busy,
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::SystemIoFailure
            | ErrorCode::FileLockingProtocolFailed,
        ) => Kind::Unavailable,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Kind::Corrupt,
        _ if matches!(error, rusqlite::Error::FromSqlConversionFailure(..)) => Kind::Corrupt,
        _ => Kind::Other,
    }
}

/// Less than SQLite takes at a time for the files beside the database. It calls some failures to
/// get it an error of the disk.
const TOO_LITTLE: u64 = 64 * 1024;

fn has_no_space(directory: &Path) -> bool {
    rustix::fs::statvfs(directory)
        .is_ok_and(|space| space.f_bfree.saturating_mul(space.f_frsize) < TOO_LITTLE)
}

fn message(error: &dyn Display, kind: Kind, doing: &str, path: &Path) -> String {
    let file = path.display();
    let advice = match kind {
        Kind::Full => {
            format!("no space is left for it: `df -h {}` shows how much there is", directory(path).display())
        }
        Kind::Busy => {
            "another process holds it: end that process, `fuser -v` on the file names it".to_owned()
        }
        Kind::Corrupt => format!(
            "the file is damaged or no SQLite database, or the disk cannot read it (errors of the disk are in \
             `dmesg`; then move the data to another one first): stop the server, keep a copy of the file, and restore \
             a backup or salvage what is readable with `sqlite3 {file} .recover`"
        ),
        Kind::Unavailable => {
            obstacle(path).unwrap_or_else(|| {
                "the disk did not do what it was told: `dmesg` has its errors; keep a copy of the data elsewhere".to_owned()
            })
        }
        Kind::Newer | Kind::Other => "this should not happen: please report it".to_owned(),
    };
    format!("{doing}: {file}: {error}; {advice}")
}

/// What stands in the way of writing the database, and the command that removes it.
fn obstacle(path: &Path) -> Option<String> {
    let directory = directory(path);
    if !directory.exists() {
        return Some(format!(
            "the directory {0} does not exist: mount it, or `mkdir -p {0}`",
            directory.display()
        ));
    }
    if path.is_dir() {
        return Some("a directory is in the file's place: move it away".to_owned());
    }
    if !path.exists() && path.symlink_metadata().is_ok() {
        return Some("it is a link that leads nowhere: mount what it leads to, or remove it".to_owned());
    }
    let beside = ["-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", path.display())));
    let files = [directory, path].into_iter().chain(beside.iter().map(PathBuf::as_path));
    files.filter(|file| file.exists()).find_map(|file| why_not_writable(file, directory))
}

fn why_not_writable(file: &Path, directory: &Path) -> Option<String> {
    match accessat(CWD, file, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS) {
        Err(Errno::ROFS) => Some(format!(
            "{0} is on a file system that is mounted read-only: `mount -o remount,rw` it, or under systemd \
             add ReadWritePaths={1} to the unit",
            file.display(),
            directory.display()
        )),
        Err(_) => Some(format!(
            "{}; this gives it to this process: {}",
            owner::whose(file),
            owner::give(directory, file)
        )),
        Ok(()) => None,
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}
