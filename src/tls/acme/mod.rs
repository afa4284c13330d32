//! Certificates from an authority, got and renewed by the server itself.
//!
//! It does no harm: what is held is served until something better is there, whatever fails, and the
//! authority is asked as rarely as [`history`] allows, restarts or not. Knows the authority and the
//! files; connections are its room's business.

mod challenges;
mod errands;
mod history;
mod order;
mod renewal;
mod store;
mod terms;
mod words;

pub use self::challenges::Challenges;
pub use self::errands::Errands;
use self::history::{History, is_for};
use self::store::Store;
use super::pem::{self, Loaded};
use super::status::Status;
use super::{Acceptor, Facts, Report, at};
use crate::config::{self, Config};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// What a server has that gets its certificates by itself.
pub struct Acme {
    wanted: config::Acme,
    /// Who vouches for clients: not the authority's business, but part of what is served.
    client_ca: Option<PathBuf>,
    client: Arc<ClientConfig>,
    store: Store,
    challenges: Challenges,
    history: Mutex<History>,
    /// The certificate that is served, with its key.
    held: Mutex<Option<Vec<u8>>>,
    errands: Errands,
}

impl Acme {
    /// Reads what the data directory holds. Starts nothing, and makes no file.
    ///
    /// What cannot be read there is a warning: a server that does not start helps nobody.
    pub fn load(config: &Config, data_dir: &Path) -> Result<(Acme, Option<Loaded>, Report), String> {
        let wanted = config.acme.clone();
        let client_ca = config.tls.client_ca.clone();
        pem::check_client_ca(client_ca.as_deref())?;
        let store = Store::new(data_dir, &wanted.directory);
        let mut warnings = Vec::new();
        let history = store.history().unwrap_or_else(|why| {
            warnings
                .push(format!("{why}; it says when the authority may be asked again, so that is put off"));
            put_off(&wanted)
        });
        let acme = Acme {
            client: client(wanted.root.as_deref())?,
            challenges: Challenges::default(),
            history: Mutex::new(history.about(&wanted.domains)),
            held: Mutex::default(),
            errands: Errands::default(),
            wanted,
            client_ca,
            store,
        };
        let (loaded, summary) = match acme.read_kept() {
            Ok(Some(loaded)) => {
                let summary = acme.summary(&loaded.facts);
                (Some(loaded), summary)
            }
            Ok(None) => (None, acme.waiting()),
            Err(why) => {
                warnings.push(format!(
                    "the certificate that was kept cannot be used: {why}; another will be got"
                ));
                (None, acme.waiting())
            }
        };
        Ok((acme, loaded, Report { summary, warnings }))
    }

    /// What is shown to the authority.
    pub fn challenges(&self) -> &Challenges {
        &self.challenges
    }

    /// What operators ask for while the server runs.
    pub fn errands(&self) -> &Errands {
        &self.errands
    }

    /// Starts the thread that gets certificates for this acceptor.
    pub fn start(&self, acceptor: &Arc<Acceptor>) -> io::Result<()> {
        renewal::start(acceptor, self)
    }

    /// Reads the certificate and the clients' authorities anew.
    pub fn reload(&self) -> Result<Option<(Loaded, Report)>, String> {
        let loaded = match self.read_kept() {
            Ok(Some(loaded)) => Some(loaded),
            _ => self.held().as_ref().map(|pem| pem::issued(pem, self.client_ca.as_deref())).transpose()?,
        };
        Ok(loaded.map(|loaded| {
            let summary = self.summary(&loaded.facts);
            (loaded, Report { summary, warnings: Vec::new() })
        }))
    }

    /// What can be said without a running server, from the files alone.
    pub fn status(config: &config::Acme, data_dir: &Path) -> Result<Status, String> {
        let store = Store::new(data_dir, &config.directory);
        let facts = match store.certificate()? {
            Some(pem) => Some(pem::issued(&pem, None)?.facts),
            None => None,
        };
        Ok(described(config, &store.history()?.about(&config.domains), facts))
    }

    /// The same of this server, which serves what these facts are about.
    pub fn status_now(&self, facts: Option<Facts>) -> Status {
        described(&self.wanted, &self.history(), facts)
    }

    /// What is being waited for where there is no certificate yet.
    pub fn waiting(&self) -> String {
        let history = self.history();
        let for_what = format!(
            "no certificate for {} yet, from {}",
            self.wanted.domains.join(", "),
            self.wanted.directory
        );
        match &history.last_error {
            Some(why) => {
                let next = at(history.due(None, self.wanted.retry));
                format!("{for_what}: {why}; the next attempt is at {next}")
            }
            None => format!("{for_what}: it is being asked for"),
        }
    }

    fn summary(&self, facts: &Facts) -> String {
        let next = at(self.history().due(self.fitting(facts), self.wanted.retry));
        format!(
            "certificate for {}, valid until {}, from {}; to be renewed at {next}",
            facts.names.join(", "),
            at(facts.until),
            self.wanted.directory
        )
    }

    fn read_kept(&self) -> Result<Option<Loaded>, String> {
        let Some(pem) = self.store.certificate()? else { return Ok(None) };
        let loaded = pem::issued(&pem, self.client_ca.as_deref())
            .map_err(|why| format!("{}: {why}", self.store.certificate_path().display()))?;
        *self.held() = Some(pem);
        Ok(Some(loaded))
    }

    /// A certificate for other names is better than none, and is to be replaced at once.
    fn fitting<'a>(&self, facts: &'a Facts) -> Option<&'a Facts> {
        Some(facts).filter(|facts| is_for(facts, &self.wanted))
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A history of which nothing is known but that there was one.
fn put_off(wanted: &config::Acme) -> History {
    let mut history = History::default().about(&wanted.domains);
    history.begin(SystemTime::now(), None, wanted.retry);
    history
}

fn described(wanted: &config::Acme, history: &History, facts: Option<Facts>) -> Status {
    let time = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let fitting = facts.as_ref().filter(|facts| is_for(facts, wanted));
    Status {
        authority: Some(wanted.directory.clone()),
        wanted: wanted.domains.clone(),
        terms: history.terms.clone(),
        next_attempt: Some(history.due(fitting, wanted.retry).max(SystemTime::now())),
        last_attempt: history.last_attempt.map(time),
        last_success: history.last_success.map(time),
        last_error: history.last_error.clone(),
        failures: history.failures,
        facts,
    }
}

/// Recognises the authority's own server.
fn client(root: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match root {
        Some(path) => {
            for certificate in pem::certificates("acme.root", path)? {
                roots
                    .add(certificate)
                    .map_err(|error| format!("acme.root: {} cannot be used: {error}", path.display()))?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
