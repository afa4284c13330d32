//! The copy of a database that is kept before a migration changes it.

use super::fault::Context;
use crate::storage::{Error, Kind, Result};
use rusqlite::Connection;
use rusqlite::backup::Backup;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Pages that one step copies: large enough that steps cost nothing, small enough for progress.
const STEP: i32 = 4096;

/// Copies the database behind `connection` to `directory` and returns the copy's path.
///
/// The copy gets its final name only when it is whole and on the disk. An older one is replaced.
pub(super) fn keep(
    connection: &Connection,
    version: i64,
    directory: &Path,
    mut progress: impl FnMut(&str),
) -> Result<PathBuf> {
    let name = format!("{}.before-migration", super::FILE_NAME);
    let (whole, part) = (directory.join(&name), directory.join(format!("{name}.part")));
    // What a copy that was interrupted left behind; it takes the space that this one needs.
    let _ = std::fs::remove_file(&part);
    check_space(connection, &part)?;
    progress(&format!(
        "copying the database (schema {version}) to {} before it is migrated",
        whole.display()
    ));
    // Made here, so that nobody else can read it from its first byte on.
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&part)
        .context("making a copy", &part)?;
    let copied = copy(connection, &part, &mut progress).context("copying the database", &part);
    let settled = copied.and_then(|()| settle(&part, &whole).context("making the copy durable", &part));
    if settled.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    settled.map(|()| whole)
}

fn copy(connection: &Connection, part: &Path, progress: &mut impl FnMut(&str)) -> rusqlite::Result<()> {
    let mut target = Connection::open(part)?;
    let backup = Backup::new(connection, &mut target)?;
    let mut told = 0;
    loop {
        let step = backup.step(STEP)?;
        if step == rusqlite::backup::StepResult::Done {
            return Ok(());
        }
        let pages = backup.progress();
        let (all, left) = (i64::from(pages.pagecount), i64::from(pages.remaining));
        let tenths = 10 * (all - left) / all.max(1);
        if tenths > told {
            told = tenths;
            progress(&format!("copying the database: {told}0 %"));
        } else {
            progress("");
        }
    }
}

fn settle(part: &Path, whole: &Path) -> std::io::Result<()> {
    File::open(part)?.sync_all()?;
    std::fs::rename(part, whole)?;
    File::open(whole.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn check_space(connection: &Connection, part: &Path) -> Result<()> {
    let directory = part.parent().unwrap_or(Path::new("/"));
    let pages: i64 = connection
        .query_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", [], |row| {
            row.get(0)
        })
        .context("measuring the database", part)?;
    let needed = u64::try_from(pages).unwrap_or(0);
    let space =
        rustix::fs::statvfs(directory).map_err(std::io::Error::from).context("measuring free space", part)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free >= needed {
        return Ok(());
    }
    let message = format!(
        "before the database is migrated, a copy of it is kept in {0}, which needs {needed} bytes and has {free}: \
         make room, name another directory with migration.copy_dir (MIGRATION_COPY_DIR), or do without the \
         copy with migration.copy = false (MIGRATION_COPY=false)",
        directory.display()
    );
    Err(Error::new(Kind::Full, message))
}
