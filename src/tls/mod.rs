//! TLS with a certificate of the operator's own, or one that the server gets by itself.
//!
//! Knows files, handshakes and certificates, and nothing of what is said inside: a connection whose
//! handshake is done goes to [`App::serve`](crate::http::App::serve).

mod accept;
mod acme;
pub mod client;
mod pem;
mod status;

use self::acme::Acme;
pub use self::pem::Facts;
use self::pem::Loaded;
pub use self::status::Status;
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

/// How often a certificate that ends soon is told of, and one that has ended.
const REMINDERS: (Duration, Duration) = (Duration::from_secs(24 * 60 * 60), Duration::from_secs(60 * 60));

/// Makes TLS connections of TCP connections, with the latest usable certificate.
pub struct Acceptor {
    files: config::Tls,
    /// Who gets certificates, where the operator has none.
    acme: Option<Acme>,
    /// Until when a handshake must be done.
    patience: Duration,
    current: RwLock<Current>,
    /// The files as they were when they were last read, usable or not.
    seen: Mutex<Vec<Mark>>,
    plain: Seldom,
    failed: Seldom,
    bare: Seldom,
}

/// What is served.
struct Current {
    config: Arc<ServerConfig>,
    /// About the certificate; `None` while there is none.
    facts: Option<Facts>,
}

impl From<Loaded> for Current {
    fn from(loaded: Loaded) -> Current {
        Current { config: loaded.config, facts: Some(loaded.facts) }
    }
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
    /// Reads and checks the files that the configuration names, or those that the data directory
    /// holds; `None` where TLS is not wanted.
    ///
    /// Starts nothing. An expired certificate is a warning: data that travels under a dead one is
    /// better than data that is not synced. The error names option and file, and what is wrong.
    pub fn load(config: &Config, data_dir: &Path) -> Result<Option<(Acceptor, Report)>, String> {
        if !config.is_secure() {
            return Ok(None);
        }
        let files = config.tls.clone();
        let seen = Mutex::new(marks(&files));
        let (acme, current, report) = if config.acme.is_on() {
            let (acme, loaded, report) = Acme::load(config, data_dir)?;
            let current = match loaded {
                Some(loaded) => Current::from(loaded),
                None => Current { config: pem::none()?, facts: None },
            };
            (Some(acme), current, report)
        } else {
            let (loaded, report) = pem::load(&files, SystemTime::now())?;
            (None, Current::from(loaded), report)
        };
        let acceptor = Acceptor {
            files,
            acme,
            patience: config.limits.header_timeout,
            current: RwLock::new(current),
            seen,
            plain: Seldom::default(),
            failed: Seldom::default(),
            bare: Seldom::default(),
        };
        Ok(Some((acceptor, report)))
    }

    /// Reads the files anew; new connections get what is in them. Where they cannot be used, the
    /// error says why, and what was used before stays in use.
    pub fn reload(&self) -> Result<Option<Report>, String> {
        let mut seen = self.seen();
        // Looked at before they are read: a change in between is seen at the next look.
        *seen = marks(&self.files);
        let loaded = match &self.acme {
            Some(acme) => acme.reload()?,
            None => Some(pem::load(&self.files, SystemTime::now())?),
        };
        Ok(loaded.map(|(loaded, report)| {
            self.replace(loaded);
            report
        }))
    }

    /// Starts what works by itself, on threads that end with the acceptor: one looks at the files from
    /// time to time and takes up what has changed in them, one gets certificates.
    pub fn start(self: &Arc<Acceptor>) -> io::Result<()> {
        if let Some(acme) = &self.acme {
            acme.start(self)?;
        }
        let acceptor = Arc::downgrade(self);
        let mut before = marks(&self.files);
        let mut reminded = SystemTime::now();
        let look = move || {
            while let Some(acceptor) = acceptor.upgrade() {
                before = acceptor.look(&before);
                acceptor.remind(&mut reminded, SystemTime::now());
                drop(acceptor);
                thread::sleep(LOOK);
            }
        };
        // A thread of its own, because a file system that hangs must not hold up anything else.
        thread::Builder::new().name("certificate".to_owned()).spawn(look).map(drop)
    }

    /// How it is about the certificate.
    pub fn status(&self) -> Status {
        match &self.acme {
            Some(acme) => acme.status_now(self.facts()),
            None => Status { facts: self.facts(), ..Status::default() },
        }
    }

    /// What an operator asks for who has a certificate got now.
    pub fn answer(&self, words: &str) -> Result<String, String> {
        match &self.acme {
            Some(acme) => acme.errands().answer(words),
            None => Err("the certificate is your own (tls.cert): put a new one into its file".to_owned()),
        }
    }

    /// Takes the files up where they have changed since they were read, and not since the look
    /// `before`: until then someone is still writing them.
    fn look(&self, before: &[Mark]) -> Vec<Mark> {
        let marks = marks(&self.files);
        if marks == before && marks != *self.seen() {
            match self.reload() {
                Ok(report) => report.iter().for_each(Report::log),
                Err(why) => log::warn!("the old certificate stays in use: {why}"),
            }
        }
        marks
    }

    /// Tells of a certificate of the operator's own that ends soon or has ended, again and again.
    fn remind(&self, reminded: &mut SystemTime, now: SystemTime) {
        let (Some(cert), Some(facts)) = (&self.files.cert, self.facts()) else { return };
        let has_ended = facts.until <= now;
        let pause = if has_ended { REMINDERS.1 } else { REMINDERS.0 };
        if !(has_ended || facts.is_ending(now))
            || now.duration_since(*reminded).is_ok_and(|since| since < pause)
        {
            return;
        }
        *reminded = now;
        pem::describe(cert, &facts, now).1.iter().for_each(|warning| log::warn!("{warning}"));
    }

    fn replace(&self, loaded: Loaded) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded.into();
    }

    /// What is served, and whether there is a certificate in it.
    fn current(&self) -> (Arc<ServerConfig>, bool) {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        (current.config.clone(), current.facts.is_some())
    }

    fn facts(&self) -> Option<Facts> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).facts.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Mark>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Certificate for Acceptor {
    fn is_there(&self) -> bool {
        self.current().1
    }

    fn proof(&self, token: &str) -> Option<String> {
        self.acme.as_ref()?.challenges().proof(token)
    }
}

/// A time for people.
fn at(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A length of time for people, without what nobody wants to know so exactly.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let rounded = match seconds {
        0..60 => seconds,
        60..3600 => seconds / 60 * 60,
        3600..172_800 => seconds / 3600 * 3600,
        _ => seconds / 86_400 * 86_400,
    };
    humantime::format_duration(Duration::from_secs(rounded)).to_string()
}

fn marks(files: &config::Tls) -> Vec<Mark> {
    [&files.cert, &files.key, &files.client_ca].into_iter().flatten().map(|path| mark(path)).collect()
}

fn mark(path: &Path) -> Mark {
    let data = fs::metadata(path).ok()?;
    let (device, inode, size) = (data.dev() as i64, data.ino() as i64, data.size() as i64);
    Some([device, inode, size, data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()])
}
