//! A directory of scheduled backups: the names in it tell when each was made.

use super::target::{self, UNFINISHED};
use std::fs::OpenOptions;
use std::io::Result;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const BEFORE: &str = "sync-server-";
const BEHIND: &str = ".backup";

/// A scheduled backup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// When it was begun, in seconds since 1970.
    pub at: i64,
    /// Where it is.
    pub path: PathBuf,
}

/// The name of a backup begun at `at` seconds since 1970.
pub fn name(at: i64) -> String {
    format!("{BEFORE}{}{BEHIND}", stamp(at))
}

/// A time for the name of a file: `20261121T120455Z`.
pub fn stamp(at: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(at.max(0).unsigned_abs());
    humantime::format_rfc3339_seconds(time).to_string().replace(['-', ':'], "")
}

/// The scheduled backups in a directory, oldest first. Other files are none.
pub fn list(directory: &Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let at = path.file_name().and_then(|name| begun(name.to_str()?));
        if let Some(at) = at
            && path.is_file()
        {
            found.push(Found { at, path });
        }
    }
    found.sort();
    Ok(found)
}

/// Removes all backups but the newest `keep`; returns those that are gone.
pub fn prune(directory: &Path, keep: usize) -> Result<Vec<Found>> {
    let mut found = list(directory)?;
    found.truncate(found.len().saturating_sub(keep));
    found.iter().try_for_each(|old| std::fs::remove_file(&old.path))?;
    Ok(found)
}

/// Removes what interrupted backups left behind, and nothing that somebody is writing.
pub fn clear(directory: &Path) -> Result<()> {
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(UNFINISHED));
        if inner.and_then(begun).is_some() {
            let file = OpenOptions::new().write(true).open(&path)?;
            if target::lock(&file, &path)? {
                std::fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

/// When the backup of this name was begun; `None` for other names.
fn begun(file: &str) -> Option<i64> {
    let stamp = file.strip_prefix(BEFORE)?.strip_suffix(BEHIND)?;
    let (date, time) = stamp.split_once('T')?;
    let written = format!(
        "{}-{}-{}T{}:{}:{}",
        date.get(..4)?,
        date.get(4..6)?,
        date.get(6..)?,
        time.get(..2)?,
        time.get(2..4)?,
        time.get(4..)?
    );
    let at = humantime::parse_rfc3339(&written).ok()?;
    let at = at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    let at = i64::try_from(at).ok()?;
    // Names that only look like one belong to somebody else.
    (name(at) == file).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_when() {
        assert_eq!(name(1_700_000_000), "sync-server-20231114T221320Z.backup");
        assert_eq!(begun("sync-server-20231114T221320Z.backup"), Some(1_700_000_000));
        for other in [
            "sync-server-20231114T221320Z.backup.part",
            "sync-server-20231114T221320.5Z.backup",
            "sync-server-20231314T221320Z.backup",
            "sync-server-2023ä114T221320Z.backup",
            "sync-server-.backup",
            "my-20231114T221320Z.backup",
            "",
        ] {
            assert_eq!(begun(other), None, "{other}");
        }
    }

    #[test]
    fn only_the_oldest_of_our_own_are_pruned() {
        let place = tempfile::tempdir().expect("a directory");
        let path = |name: &str| place.path().join(name);
        for at in [300, 100, 200] {
            std::fs::write(path(&name(at)), "").expect("a file");
        }
        std::fs::write(path("sync-server-notes.backup"), "").expect("a file");
        std::fs::create_dir(path(&name(50))).expect("a directory");
        std::fs::write(path(&format!(".{}.part", name(90))), "").expect("a file");
        let at = |found: Vec<Found>| found.into_iter().map(|found| found.at).collect::<Vec<_>>();
        assert_eq!(at(list(place.path()).expect("a directory")), [100, 200, 300]);
        assert_eq!(at(prune(place.path(), 2).expect("they go")), [100]);
        assert_eq!(at(prune(place.path(), 2).expect("nothing goes")), Vec::<i64>::new());
        assert_eq!(at(list(place.path()).expect("a directory")), [200, 300]);
        clear(place.path()).expect("it can be cleared");
        assert!(!path(&format!(".{}.part", name(90))).exists());
        assert!(path("sync-server-notes.backup").exists() && path(&name(50)).exists());
    }
}
