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

/// The data directory of a server that keeps its data there; `None` for one that keeps it elsewhere.
///
/// # Errors
/// As [`data_dir`].
pub fn local(config: &Config, environment: &Environment) -> Result<Option<PathBuf>, String> {
    match config.connection {
        Some(_) => Ok(None),
        None => data_dir(config, environment).map(Some),
    }
}

/// Where certificates are kept that the server gets by itself; of no meaning where it gets none.
///
/// # Errors
/// As [`data_dir`].
pub fn certificates(config: &Config, environment: &Environment) -> Result<PathBuf, String> {
    if config.connection.is_some() && !config.acme.is_on() {
        return Ok(PathBuf::new());
    }
    data_dir(config, environment)
}

/// Whether a data directory that [`data_dir`] gave is the calling user's own: nobody named it, and it
/// is neither the service manager's nor the system's.
pub fn is_personal(config: &Config, environment: &Environment, data_dir: &Path) -> bool {
    config.data_dir.is_none()
        && environment.var("STATE_DIRECTORY").is_none()
        && !data_dir.starts_with(Path::new("/").join(OURS))
        && !REFERENCE.iter().any(|reference| data_dir.starts_with(Path::new("/").join(reference)))
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
///
/// A link that leads nowhere is an error: what it leads to may only be missing for now.
fn database(dir: &Path) -> io::Result<Option<PathBuf>> {
    let file = dir.join(DATABASE);
    for path in [dir, &file] {
        match path.symlink_metadata() {
            Ok(_) => path.metadata()?,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
    }
    accessat(CWD, &file, Access::READ_OK, AtFlags::EACCESS)?;
    file.canonicalize().map(Some)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A file system in which /var/lib exists and these directories hold a database.
    fn root(holders: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(root.path().join("var/lib")).expect("a directory");
        for holder in holders {
            fs::create_dir_all(root.path().join(holder)).expect("a directory");
            fs::write(root.path().join(holder).join(DATABASE), "").expect("a file");
        }
        root
    }

    fn found(environment: Environment, root: &tempfile::TempDir) -> Result<PathBuf, String> {
        let dir = find(&environment, root.path())?;
        Ok(dir.strip_prefix(root.path()).map(Path::to_owned).unwrap_or(dir))
    }

    #[test]
    fn a_named_directory_is_used_whatever_is_there() {
        let config = Config { data_dir: Some("/named".into()), ..Config::default() };
        let environment = Environment::from([("STATE_DIRECTORY", "/state")]);
        assert_eq!(data_dir(&config, &environment), Ok("/named".into()));
    }

    #[test]
    fn the_service_managers_directory_comes_first_and_its_first_counts() {
        let environment = Environment::from([("STATE_DIRECTORY", "/state/a:/state/b")]);
        assert_eq!(found(environment, &root(&[])), Ok("/state/a".into()));
    }

    #[test]
    fn the_systems_directory_is_used_where_it_is_or_can_be_made() {
        assert_eq!(found(Environment::default(), &root(&[])), Ok(OURS.into()));
        assert_eq!(found(Environment::default(), &root(&[OURS])), Ok(OURS.into()));
    }

    #[test]
    fn the_users_directory_is_used_where_the_systems_cannot_be_written() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let home = [("HOME", "/home/me")];
        assert_eq!(found(Environment::from(home), &root), Ok("/home/me/.local/share/sync-server".into()));
        let xdg = [("HOME", "/home/me"), ("XDG_DATA_HOME", "/home/me/data")];
        assert_eq!(found(Environment::from(xdg), &root), Ok("/home/me/data/sync-server".into()));
        let relative = [("HOME", "/home/me"), ("XDG_DATA_HOME", "data")];
        assert_eq!(found(Environment::from(relative), &root), Ok("/home/me/.local/share/sync-server".into()));
        let told = found(Environment::default(), &root).expect_err("there is no place");
        assert!(told.contains("DATA_DIR"), "{told}");
    }

    #[test]
    fn a_file_in_the_place_of_the_systems_directory_is_not_used() {
        let root = root(&[]);
        fs::write(root.path().join(OURS), "").expect("a file");
        let home = [("HOME", "/home/me")];
        assert_eq!(found(Environment::from(home), &root), Ok("/home/me/.local/share/sync-server".into()));
    }

    #[test]
    fn the_reference_servers_database_is_used_where_ours_holds_none() {
        for holder in REFERENCE {
            assert_eq!(found(Environment::default(), &root(&[holder])), Ok(holder.into()));
        }
        let root = root(&[REFERENCE[0]]);
        fs::create_dir(root.path().join(OURS)).expect("a directory");
        assert_eq!(found(Environment::default(), &root), Ok(REFERENCE[0].into()));
        let state = root.path().join("state");
        let environment = Environment::from([("STATE_DIRECTORY", state.to_str().expect("plain text"))]);
        assert_eq!(found(environment, &root), Ok(REFERENCE[0].into()));
    }

    #[test]
    fn two_databases_are_refused_with_both_paths() {
        for holders in [[OURS, REFERENCE[0]], [OURS, REFERENCE[1]], REFERENCE] {
            let root = root(&holders);
            let told = found(Environment::default(), &root).expect_err("which one?");
            for holder in holders {
                assert!(told.contains(root.path().join(holder).to_str().expect("plain text")), "{told}");
            }
            assert!(told.contains("DATA_DIR"), "{told}");
        }
    }

    #[test]
    fn one_database_behind_a_link_is_one() {
        let root = root(&[REFERENCE[0]]);
        symlink(root.path().join(REFERENCE[0]), root.path().join(OURS)).expect("a link");
        assert_eq!(found(Environment::default(), &root), Ok(OURS.into()));
    }

    #[test]
    fn what_cannot_be_looked_at_is_refused_with_both_paths() {
        for link in [REFERENCE[0].to_owned(), format!("{}/{DATABASE}", REFERENCE[1])] {
            let root = root(&[]);
            let link = root.path().join(link);
            fs::create_dir_all(link.parent().expect("it has one")).expect("a directory");
            symlink("nowhere", &link).expect("a link");
            let told = found(Environment::default(), &root).expect_err("it may hold one");
            assert!(told.contains(link.to_str().expect("plain text")), "{told}");
            assert!(told.contains(root.path().join(OURS).to_str().expect("plain text")), "{told}");
        }
    }
}
