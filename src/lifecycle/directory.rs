//! The data directory, made where it is missing.

use crate::storage::owner;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use std::fs::DirBuilder;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Makes the directory and those above it, for this process' user alone.
///
/// The error names the path, whose it is, who we are, and the command that helps.
pub fn make(path: &Path) -> Result<(), String> {
    match path.metadata() {
        Ok(data) if data.is_dir() => Ok(()),
        Ok(_) => Err(format!("the data directory {} is not a directory: name another", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|error| refused("make", path, &error))
        }
        Err(error) => Err(refused("use", path, &error)),
    }
}

fn refused(verb: &str, path: &Path, error: &Error) -> String {
    let advice = match error.kind() {
        ErrorKind::PermissionDenied if !can_be_entered(obstacle(path)) => format!(
            "{}; this lets it through: sudo chmod a+x {}",
            owner::whose(obstacle(path)),
            owner::quoted(obstacle(path))
        ),
        ErrorKind::PermissionDenied => {
            format!("{}; this makes it: {}", owner::whose(obstacle(path)), owner::make(path))
        }
        ErrorKind::ReadOnlyFilesystem => format!(
            "the file system is mounted read-only: name another data directory, or under systemd add \
             ReadWritePaths={} to the unit",
            path.display()
        ),
        _ => owner::whose(obstacle(path)),
    };
    format!("cannot {verb} the data directory {}: {error}; {advice}", path.display())
}

fn can_be_entered(directory: &Path) -> bool {
    accessat(CWD, directory, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

/// The lowest part of the path that can be looked at: what is below it is missing or hidden.
fn obstacle(path: &Path) -> &Path {
    path.ancestors().find(|part| part.metadata().is_ok()).unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_missing_directory_is_made_with_its_parents_for_the_owner_alone() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("a/b");
        make(&path).expect("it can be made");
        make(&path).expect("it may exist");
        assert_eq!(path.metadata().expect("a directory").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("file");
        std::fs::write(&path, "").expect("a file");
        assert!(make(&path).expect_err("a file").contains(&format!("{} is not a directory", path.display())));
        let below = make(&path.join("below")).expect_err("below a file");
        assert!(below.contains(&format!("{} belongs to uid", path.display())), "{below}");
    }
}
