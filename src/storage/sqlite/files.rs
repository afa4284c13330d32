//! The files of an open database, and whether their names still lead to them.
//!
//! SQLite goes on writing to files that were removed or replaced, where nobody would ever find again
//! what was acknowledged.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Which files a database's connections have open: it, its WAL, and the WAL's index.
pub(super) struct Files([(PathBuf, Option<Identity>); 3]);

/// Device and inode.
type Identity = (u64, u64);

/// A file whose name leads to another file, or to none.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Displaced {
    pub(super) file: PathBuf,
    /// Whether it is the database itself and not one of those beside it.
    pub(super) is_database: bool,
    /// Whether the name leads nowhere.
    pub(super) is_missing: bool,
}

impl Files {
    /// The files that a connection opened just now, which has read something.
    pub(super) fn of(database: &Path) -> io::Result<Files> {
        let beside = |end: &str| PathBuf::from(format!("{}{end}", database.display()));
        let files = [database.to_owned(), beside("-wal"), beside("-shm")];
        let [main, wal, shm] = files.map(|file| {
            let identity = identity(&file);
            (file, identity)
        });
        let main = (main.0, Some(main.1?));
        Ok(Files([main, (wal.0, wal.1.ok()), (shm.0, shm.1.ok())]))
    }

    /// The first file whose name leads somewhere else.
    pub(super) fn displaced(&self) -> Option<Displaced> {
        let known = self.0.iter().enumerate().filter_map(|(n, (file, opened))| Some((n, file, (*opened)?)));
        known.map(|(n, file, opened)| (n, file, opened, identity(file).ok())).find_map(
            |(n, file, opened, found)| {
                (found != Some(opened)).then(|| Displaced {
                    file: file.clone(),
                    is_database: n == 0,
                    is_missing: found.is_none(),
                })
            },
        )
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    path.metadata().map(|data| (data.dev(), data.ino()))
}
