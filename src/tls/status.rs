//! How it is about the certificate, for operators and their programs.

use super::Facts;
use super::acme::Acme;
use super::pem;
use crate::config::Config;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How it is about the certificate.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The certificate in use; `None` while the first one is being waited for.
    pub facts: Option<Facts>,
    /// The URL of the authority's directory; `None` where the certificate is the operator's own.
    pub authority: Option<String>,
    /// The names that are asked for.
    pub wanted: Vec<String>,
    /// The URL of the authority's terms.
    pub terms: Option<String>,
    /// When the authority is asked next.
    pub next_attempt: Option<SystemTime>,
    /// When it was asked last.
    pub last_attempt: Option<SystemTime>,
    /// When it last gave a certificate.
    pub last_success: Option<SystemTime>,
    /// Why the last attempt failed, if it did.
    pub last_error: Option<String>,
    /// Attempts that failed since the last one that did not.
    pub failures: u32,
}

impl Status {
    /// What the files say, whether the server runs or not; `None` for plain HTTP.
    pub fn read(config: &Config, data_dir: &Path) -> Result<Option<Status>, String> {
        if config.acme.is_on() {
            return Acme::status(&config.acme, data_dir).map(Some);
        }
        let Some(cert) = &config.tls.cert else { return Ok(None) };
        let chain = pem::certificates("tls.cert", cert)?;
        Ok(Some(Status { facts: Some(Facts::of(&chain[0])?), ..Status::default() }))
    }

    /// What a person should do something about at `now`, in seconds since 1970, if anything.
    pub fn problem(&self, now: i64) -> Option<String> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.try_into().unwrap_or(0));
        let reason = self.last_error.as_deref().map_or(String::new(), |why| format!(": {why}"));
        match &self.facts {
            None => Some(format!("there is no certificate yet{reason}")),
            Some(facts) if facts.until <= now => {
                Some(format!("the certificate expired at {}{reason}", super::at(facts.until)))
            }
            Some(facts) if facts.is_ending(now) => {
                Some(format!("the certificate ends at {}{reason}", super::at(facts.until)))
            }
            Some(_) if self.failures > 0 => Some(format!("the certificate was not renewed{reason}")),
            Some(_) => None,
        }
    }
}
