//! TLS with the operator's own certificate.
//!
//! Knows files, handshakes and certificates, and nothing of what is said inside: a connection whose
//! handshake is done goes to [`App::serve`](crate::http::App::serve).

mod accept;
pub mod client;
mod pem;

use crate::config::{self, Config};
use crate::http::{Certificate, Seldom};
use rustls::ServerConfig;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Makes TLS connections of TCP connections, with the files' latest usable content.
pub struct Acceptor {
    files: config::Tls,
    /// Until when a handshake must be done.
    patience: Duration,
    current: RwLock<Arc<ServerConfig>>,
    /// The files as they were when they were last read, usable or not.
    seen: Mutex<Vec<Mark>>,
    plain: Seldom,
    failed: Seldom,
}

/// What was found in the files, for the log.
#[derive(Debug)]
pub struct Report {
    /// Whose certificate it is, and until when it is valid.
    pub summary: String,
    /// What a person should mend, one line each.
    pub warnings: Vec<String>,
}

impl Report {
    /// Says it all.
    pub fn log(&self) {
        log::info!("{}", self.summary);
        for warning in &self.warnings {
            log::warn!("{warning}");
        }
    }
}

/// What tells one state of a file from another: device, inode, size, and both times of change with
/// their nanoseconds. A link that leads elsewhere is another inode.
type Mark = Option<[i64; 7]>;

impl Acceptor {
    /// Reads and checks the files that the configuration names; `None` where it names none.
    ///
    /// Starts nothing. An expired certificate is a warning: data that travels under a dead one is
    /// better than data that is not synced. The error names option and file, and what is wrong.
    pub fn load(config: &Config) -> Result<Option<(Acceptor, Report)>, String> {
        if config.tls.cert.is_none() {
            return Ok(None);
        }
        let files = config.tls.clone();
        let seen = Mutex::new(marks(&files));
        let (current, report) = pem::load(&files, SystemTime::now())?;
        let acceptor = Acceptor {
            files,
            patience: config.limits.header_timeout,
            current: RwLock::new(current),
            seen,
            plain: Seldom::default(),
            failed: Seldom::default(),
        };
        Ok(Some((acceptor, report)))
    }

    /// Reads the files anew; new connections get what is in them. Where they cannot be used, the
    /// error says why, and what was used before stays in use.
    pub fn reload(&self) -> Result<Report, String> {
        let mut seen = self.seen();
        // Looked at before they are read: a change in between is seen at the next look.
        *seen = marks(&self.files);
        let (loaded, report) = pem::load(&self.files, SystemTime::now())?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(report)
    }

    /// Looks at the files from time to time, on a thread that ends with the acceptor, and takes up
    /// what has changed in them.
    pub fn watch(self: &Arc<Acceptor>) -> io::Result<()> {
        let acceptor = Arc::downgrade(self);
        let mut before = marks(&self.files);
        let look = move || {
            while let Some(acceptor) = acceptor.upgrade() {
                before = acceptor.look(&before);
                drop(acceptor);
                thread::sleep(LOOK);
            }
        };
        // A thread of its own, because a file system that hangs must not hold up anything else.
        thread::Builder::new().name("certificate".to_owned()).spawn(look).map(drop)
    }

    /// Takes the files up where they have changed since they were read, and not since the look
    /// `before`: until then someone is still writing them.
    fn look(&self, before: &[Mark]) -> Vec<Mark> {
        let marks = marks(&self.files);
        if marks == before && marks != *self.seen() {
            match self.reload() {
                Ok(report) => report.log(),
                Err(why) => log::warn!("the old certificate stays in use: {why}"),
            }
        }
        marks
    }

    fn current(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Mark>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Certificate for Acceptor {
    fn is_there(&self) -> bool {
        true
    }

    fn proof(&self, _: &str) -> Option<String> {
        None
    }
}

fn marks(files: &config::Tls) -> Vec<Mark> {
    [&files.cert, &files.key, &files.client_ca].into_iter().flatten().map(|path| mark(path)).collect()
}

fn mark(path: &Path) -> Mark {
    let data = fs::metadata(path).ok()?;
    let (device, inode, size) = (data.dev() as i64, data.ino() as i64, data.size() as i64);
    Some([device, inode, size, data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()])
}
