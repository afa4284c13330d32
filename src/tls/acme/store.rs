//! The files of one authority: account, certificate with its key, and history.
//!
//! Only their owner can read them, and none is ever half written: each is made beside its place, is
//! on the disk, and then takes it.

use super::history::History;
use rustix::fs::{CWD, Gid, Uid};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where the directories of all authorities are, below the data directory.
const FOLDER: &str = "acme";

const ACCOUNT: &str = "account.der";
const CERTIFICATE: &str = "certificate.pem";
const HISTORY: &str = "history.json";

/// The directory of one authority.
pub struct Store {
    data_dir: PathBuf,
    dir: PathBuf,
}

impl Store {
    /// Of the authority with this URL. Touches nothing.
    pub fn new(data_dir: &Path, directory: &str) -> Store {
        let host = directory.split('/').nth(2).unwrap_or("authority").replace([':', '[', ']'], "_");
        let hash = ring::digest::digest(&ring::digest::SHA256, directory.as_bytes());
        let hash: String = hash.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        Store { data_dir: data_dir.to_owned(), dir: data_dir.join(FOLDER).join(format!("{host}-{hash}")) }
    }

    /// Where the certificate is kept.
    pub fn certificate_path(&self) -> PathBuf {
        self.dir.join(CERTIFICATE)
    }

    /// The key of the account, if there is one.
    pub fn account(&self) -> Result<Option<Vec<u8>>, String> {
        self.read(ACCOUNT)
    }

    /// Keeps the key of the account.
    pub fn keep_account(&self, key: &[u8]) -> Result<(), String> {
        self.write(ACCOUNT, key)
    }

    /// Puts an account aside that the authority does not take any more.
    pub fn forget_account(&self) -> Result<(), String> {
        let path = self.dir.join(ACCOUNT);
        let aside = path.with_extension("refused");
        fs::rename(&path, &aside).map_err(|error| failed("rename", &path, &error))
    }

    /// The certificate and its key, if there is one.
    pub fn certificate(&self) -> Result<Option<Vec<u8>>, String> {
        self.read(CERTIFICATE)
    }

    /// Keeps a certificate and its key.
    pub fn keep_certificate(&self, pem: &[u8]) -> Result<(), String> {
        self.write(CERTIFICATE, pem)
    }

    /// The history, empty where there is none.
    pub fn history(&self) -> Result<History, String> {
        let Some(text) = self.read(HISTORY)? else { return Ok(History::default()) };
        let path = self.dir.join(HISTORY);
        serde_json::from_slice(&text).map_err(|error| format!("{} is damaged: {error}", path.display()))
    }

    /// Keeps the history.
    pub fn keep_history(&self, history: &History) -> Result<(), String> {
        let text = serde_json::to_vec_pretty(history).map_err(|error| error.to_string())?;
        self.write(HISTORY, &text)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, String> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), String> {
        let path = self.dir.join(name);
        self.replace(&path, content).map_err(|error| failed("write", &path, &error))
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let folder = self.data_dir.join(FOLDER);
        for directory in [&folder, &self.dir] {
            match DirBuilder::new().mode(0o700).create(directory) {
                Ok(()) => self.give(directory)?,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        let new = path.with_extension("new");
        // What a crash left behind may have another mode.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        self.give(&new)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        for directory in [&self.dir, &folder] {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }

    /// What root makes in someone's data directory would lock that one out.
    fn give(&self, path: &Path) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let owner = fs::metadata(&self.data_dir)?;
        let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        rustix::fs::chownat(CWD, path, Some(user), Some(group), rustix::fs::AtFlags::empty())?;
        Ok(())
    }
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> String {
    let us = rustix::process::geteuid().as_raw();
    format!("cannot {verb} {}: {error}; uid {us} must be able to", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const URL: &str = "https://ca.example:14000/dir";

    #[test]
    fn what_is_kept_is_private_and_found_again() {
        let data_dir = tempfile::tempdir().unwrap();
        let store = Store::new(data_dir.path(), URL);
        assert_eq!(store.certificate(), Ok(None));
        assert_eq!(store.history(), Ok(History::default()));
        assert!(!data_dir.path().join(FOLDER).exists(), "looking makes nothing");
        let history = History { failures: 3, ..History::default() };
        store.keep_account(b"key").unwrap();
        store.keep_certificate(b"old").unwrap();
        store.keep_certificate(b"new").unwrap();
        store.keep_history(&history).unwrap();
        let again = Store::new(data_dir.path(), URL);
        assert_eq!(again.account(), Ok(Some(b"key".to_vec())));
        assert_eq!(again.certificate(), Ok(Some(b"new".to_vec())));
        assert_eq!(again.history(), Ok(history));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.dir), 0o700);
        for file in fs::read_dir(&store.dir).unwrap() {
            assert_eq!(mode(&file.unwrap().path()), 0o600);
        }
        assert_eq!(fs::read_dir(&store.dir).unwrap().count(), 3, "nothing is left beside them");
        store.forget_account().unwrap();
        assert_eq!(again.account(), Ok(None));
    }

    #[test]
    fn authorities_are_kept_apart() {
        let data_dir = tempfile::tempdir().unwrap();
        Store::new(data_dir.path(), URL).keep_account(b"key").unwrap();
        assert_eq!(Store::new(data_dir.path(), "https://ca.example:14000/other").account(), Ok(None));
    }

    #[test]
    fn a_damaged_history_is_told_and_names_its_file() {
        let data_dir = tempfile::tempdir().unwrap();
        let store = Store::new(data_dir.path(), URL);
        store.keep_account(b"key").unwrap();
        fs::write(store.dir.join(HISTORY), "{").unwrap();
        assert!(store.history().unwrap_err().contains("history.json is damaged"));
    }
}
