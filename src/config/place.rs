//! Which data directory is used where nobody names one. Looks, and creates nothing.

use super::{Config, Environment};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use std::io;
use std::path::{Path, PathBuf};

/// The name of the database in the data directory: the reference server's own.
pub const DATABASE: &str = "taskchampion-sync-server.sqlite3";

const OURS: &str = "var/lib/sync-server";
const REFERENCE: [&str; 2] = ["var/lib/taskchampion-sync-server", "var/lib/taskchampion-sync-server/data"];

/// The data directory: the one that the operator named, else the default one, else that of a
/// reference server that ran here before. It may not exist yet.
///
/// # Errors
/// What to do, where an empty start might fork people's histories: two directories hold a
/// database, or one may and cannot be read. Also where there is no place at all.
pub fn data_dir(config: &Config, environment: &Environment) -> Result<PathBuf, String> {
    match &config.data_dir {
        Some(dir) => Ok(dir.clone()),
        None => find(environment, Path::new("/")),
    }
}

/// The data directory where nobody names one, in the file system below `root`.
fn find(environment: &Environment, root: &Path) -> Result<PathBuf, String> {
    let ours = default_dir(environment, root)?;
    let mut holders = Vec::new();
    for dir in std::iter::once(ours.clone()).chain(REFERENCE.map(|dir| root.join(dir))) {
        match database(&dir) {
            Ok(Some(file)) if holders.iter().all(|(_, other)| *other != file) => holders.push((dir, file)),
            Ok(_) => {}
            Err(error) => {
                return Err(format!(
                    "data_dir: cannot see whether {} holds a database: {error}; name the data directory with \
                     DATA_DIR (it would be {} otherwise), or run the server as the user that may read it",
                    dir.join(DATABASE).display(),
                    ours.display()
                ));
            }
        }
    }
    match &holders[..] {
        [] => Ok(ours),
        [(dir, _)] => Ok(dir.clone()),
        several => {
            let dirs: Vec<String> = several.iter().map(|(dir, _)| dir.display().to_string()).collect();
            Err(format!(
                "data_dir: {} hold a database each, and a start with the wrong one would fork people's \
                 histories; name the right directory with DATA_DIR, or move the other away",
                dirs.join(" and ")
            ))
        }
    }
}

/// The directory for a server that starts from nothing.
fn default_dir(environment: &Environment, root: &Path) -> Result<PathBuf, String> {
    if let Some(dirs) = environment.var("STATE_DIRECTORY") {
        let first = dirs.split(':').next().unwrap_or_default();
        return Ok(root.join(first));
    }
    let system = root.join(OURS);
    if can_be_written(&system) {
        return Ok(system);
    }
    let absolute = |name| environment.var(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data_home = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    data_home.map(|dir| dir.join("sync-server")).ok_or_else(|| {
        format!(
            "data_dir: {} cannot be written and neither XDG_DATA_HOME nor HOME is set; name the data directory \
             with DATA_DIR",
            system.display()
        )
    })
}

/// Whether this process may put files into the directory, or make it.
fn can_be_written(dir: &Path) -> bool {
    let writable =
        |dir: &Path| accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok();
    match dir.symlink_metadata() {
        Ok(_) => dir.is_dir() && writable(dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => dir.parent().is_some_and(writable),
        Err(_) => false,
    }
}

/// The database that a directory holds, under its real path so that links do not make it two.
fn database(dir: &Path) -> io::Result<Option<PathBuf>> {
    let file = match dir.join(DATABASE).canonicalize() {
        Ok(file) => file,
        Err(error) => {
            let none = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
            return if none { Ok(None) } else { Err(error) };
        }
    };
    accessat(CWD, &file, Access::READ_OK, AtFlags::EACCESS)?;
    Ok(Some(file))
}
