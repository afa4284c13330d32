//! The file that a backup becomes. Until it is whole and verified it has another name, and a lock by
//! which others see that somebody is writing it.

use super::{Problem, Reason};
use crate::storage::owner;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the name of an unfinished backup ends in.
pub(super) const UNFINISHED: &str = ".part";

/// A backup that is not whole yet.
pub struct Part {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Part {
    /// Begins the file, for its owner alone, in place of what an interrupted backup left behind.
    pub fn begin(target: &Path, replace: bool) -> Result<Part, Problem> {
        check_place(target, replace)?;
        let path = beside(target);
        let file = open(&path).map_err(|error| refused(target, &error))?;
        if !lock(&file, &path).map_err(|error| refused(target, &error))? {
            let message =
                format!("another backup is just being written to {}: wait for it", target.display());
            return Err(Problem::new(Reason::Failed, message));
        }
        file.set_len(0).map_err(|error| refused(target, &error))?;
        Ok(Part { file, path, target: target.to_owned() })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes away what was written.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Gives the whole backup its name, durably.
    pub fn settle(self, replace: bool) -> Result<(), Problem> {
        let named = if replace {
            std::fs::rename(&self.path, &self.target)
        } else {
            rename_to_new(&self.path, &self.target)
        };
        let durable = named.and_then(|()| File::open(directory(&self.target))?.sync_all());
        durable.map_err(|error| {
            self.remove();
            match error.kind() {
                ErrorKind::AlreadyExists => exists(&self.target),
                _ => self.failed(&error),
            }
        })
    }

    /// Says where a failed write went to.
    pub fn explain(&self, problem: Problem) -> Problem {
        match problem.reason {
            Reason::Failed => self.problem(&problem.message),
            _ => problem,
        }
    }

    pub fn failed(&self, error: &Error) -> Problem {
        self.explain(Problem::of_write(error))
    }

    /// What was written does not read as a backup.
    pub fn unverified(&self, problem: Problem) -> Problem {
        match problem.reason {
            Reason::Stopped => problem,
            _ => self.problem(&format!("read again after writing, {}", problem.message)),
        }
    }

    pub fn changed(&self) -> Problem {
        self.problem("read again after writing, it is another backup than the one that was written")
    }

    fn problem(&self, what: &str) -> Problem {
        let directory = directory(&self.target);
        let message = format!(
            "{}: {what}; nothing of it was kept. `df -h {}` shows how much space there is",
            self.target.display(),
            owner::quoted(directory)
        );
        Problem::new(Reason::Failed, message)
    }
}

fn check_place(target: &Path, replace: bool) -> Result<(), Problem> {
    let Ok(found) = target.symlink_metadata() else { return Ok(()) };
    if found.is_dir() {
        let message = format!("{} is a directory: name a file in it", target.display());
        return Err(Problem::new(Reason::Exists, message));
    }
    if !found.is_file() && !found.is_symlink() {
        let message = format!("{} is no file: `-` stands for standard output", target.display());
        return Err(Problem::new(Reason::Exists, message));
    }
    if replace { Ok(()) } else { Err(exists(target)) }
}

fn exists(target: &Path) -> Problem {
    let message =
        format!("{} exists and was not changed: choose another name, or say --yes", target.display());
    Problem::new(Reason::Exists, message)
}

fn beside(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    directory(target).join(format!(".{name}{UNFINISHED}"))
}

pub(super) fn directory(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)
}

/// Whether the file is ours alone. One that got its final name while we waited for it is not.
pub(super) fn lock(file: &File, path: &Path) -> Result<bool, Error> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let ours = file.metadata()?;
    Ok(path.symlink_metadata().is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())))
}

/// Like a rename, and fails where the name is taken.
fn rename_to_new(from: &Path, to: &Path) -> Result<(), Error> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(Error::from) {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            // Some file systems know this way only.
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        renamed => renamed,
    }
}

fn refused(target: &Path, error: &Error) -> Problem {
    let place = directory(target);
    let file = target.file_name().unwrap_or_default().to_string_lossy();
    let advice = match error.kind() {
        ErrorKind::NotFound => format!("this makes the directory: {}", owner::make(place)),
        ErrorKind::PermissionDenied => format!(
            "{}; make it a directory of its own: {}, and name {}; or let the shell write it: sync-server admin backup \
             - > FILE",
            owner::whose(place),
            owner::make(&place.join("sync-server")),
            owner::quoted(&place.join("sync-server").join(&*file)),
        ),
        ErrorKind::ReadOnlyFilesystem => format!(
            "it is mounted read-only: name another place, or under systemd add ReadWritePaths={} to the unit",
            place.display()
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            format!("no space is left: `df -h {}` shows how much there is", owner::quoted(place))
        }
        _ => owner::whose(place),
    };
    let reason = match error.kind() {
        ErrorKind::PermissionDenied => Reason::NotPermitted,
        _ => Reason::Failed,
    };
    Problem::new(reason, format!("cannot write {}: {error}; {advice}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_part_is_ours_alone_until_it_is_named() {
        let place = tempfile::tempdir().expect("a directory");
        let target = place.path().join("b");
        let part = Part::begin(&target, false).expect("it begins");
        let second = Part::begin(&target, false).err().expect("somebody writes it");
        assert!(second.message.contains("another backup"), "{second}");
        part.file().write_all(b"x").expect("it is written");
        let path = part.path().to_owned();
        part.settle(false).expect("it gets its name");
        assert!(!path.exists());
        assert_eq!(std::fs::read(&target).expect("a file"), b"x");
        let third = Part::begin(&target, false).err().expect("it exists");
        assert_eq!(third.reason, Reason::Exists);
    }

    #[test]
    fn what_took_the_name_meanwhile_is_kept() {
        let place = tempfile::tempdir().expect("a directory");
        let target = place.path().join("b");
        let part = Part::begin(&target, false).expect("it begins");
        std::fs::write(&target, "other").expect("a file");
        let path = part.path().to_owned();
        assert_eq!(part.settle(false).expect_err("it is taken").reason, Reason::Exists);
        assert_eq!(std::fs::read(&target).expect("a file"), b"other");
        assert!(!path.exists());
    }

    #[test]
    fn a_file_in_the_working_directory_has_one() {
        assert_eq!(directory(Path::new("b")), Path::new("."));
        assert_eq!(directory(Path::new("/b")), Path::new("/"));
        assert_eq!(beside(Path::new("/a/b")), Path::new("/a/.b.part"));
    }
}
