//! What a helpful colleague would look at before anything is wrong.
//!
//! Each look gives findings; none changes anything. Knows what to look at and what it means; knows
//! neither for whom the findings are nor as which user it runs.

mod clock;
mod machine;
mod ports;
mod stored;

pub use clock::clock;
pub use machine::{data_directory, space};
pub use ports::{Serving, ports};
pub use stored::{backups, clients, damage};

use crate::config::{Config, Endpoint};
use crate::tls::Acceptor;
use std::path::Path;

/// What was looked at, and what came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub topic: &'static str,
    /// Whether anything needs doing.
    pub grade: Grade,
    /// What was seen.
    pub seen: String,
    /// What to do, where anything is to be done.
    pub advice: Option<String>,
}

/// Whether anything needs doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// It is as it should be.
    Well,
    /// It may be meant so.
    Note,
    /// Somebody should do something.
    Wrong,
}

impl Finding {
    /// It is as it should be.
    pub fn well(topic: &'static str, seen: impl Into<String>) -> Finding {
        Finding { topic, grade: Grade::Well, seen: seen.into(), advice: None }
    }

    /// It may be meant so.
    pub fn note(topic: &'static str, seen: impl Into<String>) -> Finding {
        Finding { topic, grade: Grade::Note, seen: seen.into(), advice: None }
    }

    /// Somebody should do something.
    pub fn wrong(topic: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { topic, grade: Grade::Wrong, seen: seen.into(), advice: Some(advice.into()) }
    }

    /// Somebody should do what the text itself says.
    pub fn told(topic: &'static str, seen: impl Into<String>) -> Finding {
        Finding { topic, grade: Grade::Wrong, seen: seen.into(), advice: None }
    }
}

/// What the configuration says that is probably not meant.
pub fn configuration(config: &Config) -> Vec<Finding> {
    const TOPIC: &str = "configuration";
    let mut findings: Vec<Finding> =
        config.warnings.iter().map(|warning| Finding::told(TOPIC, warning)).collect();
    let is_open = config.create_clients && config.client_id.is_none();
    if let (true, Some(url)) = (is_open && config.listen.iter().all(Endpoint::is_local), &config.public_url) {
        findings.push(Finding::wrong(
            TOPIC,
            format!("others reach the server at {url} (public_url), and everyone who does may store data"),
            "name the clients that may use it in CLIENT_ID, or set CREATE_CLIENTS=false once they all exist",
        ));
    }
    if findings.is_empty() {
        let file = config.file.as_ref().map_or("no file".to_owned(), |file| file.display().to_string());
        findings.push(Finding::well(TOPIC, format!("nothing is wrong with it ({file})")));
    }
    findings
}

/// The server's certificate, its own or one that it gets by itself, as it is `now`, in seconds since 1970.
pub fn certificate(config: &Config, data_dir: &Path, now: i64) -> Vec<Finding> {
    const TOPIC: &str = "certificate";
    match Acceptor::load(config, data_dir) {
        Ok(None) => Vec::new(),
        Err(problem) => vec![Finding::told(TOPIC, problem)],
        Ok(Some((acceptor, report))) if report.warnings.is_empty() => {
            let status = acceptor.status();
            let next = status.next_attempt.map(humantime::format_rfc3339_seconds);
            let next = next.map_or(String::new(), |next| format!("; the next attempt is at {next}"));
            match status.problem(now) {
                None => vec![Finding::well(TOPIC, report.summary)],
                Some(problem) => vec![Finding::wrong(
                    TOPIC,
                    format!("{problem}{next}"),
                    "`sync-server admin cert status` says more, `sync-server admin cert renew` tries now",
                )],
            }
        }
        Ok(Some((_, report))) => {
            report.warnings.into_iter().map(|warning| Finding::told(TOPIC, warning)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_a_proxy_opens_to_strangers_is_told_of() {
        let url = Some("https://tasks.example.org/".to_owned());
        let open = Config { public_url: url.clone(), ..Config::default() };
        let found = configuration(&open);
        assert_eq!((found.len(), found[0].grade), (1, Grade::Wrong));
        assert!(found[0].seen.contains("https://tasks.example.org/"), "{found:?}");
        let closed = Config { public_url: url, create_clients: false, ..Config::default() };
        assert_eq!(configuration(&closed)[0].grade, Grade::Well);
        assert_eq!(configuration(&Config::default())[0].grade, Grade::Well);
    }

    #[test]
    fn no_certificate_is_nothing_to_tell_of_and_a_missing_one_is() {
        let certificate = |config: &Config| certificate(config, Path::new("/missing"), 0);
        assert_eq!(certificate(&Config::default()), []);
        let mut config = Config::default();
        (config.tls.cert, config.tls.key) =
            (Some("/missing/cert.pem".into()), Some("/missing/key.pem".into()));
        let found = certificate(&config);
        assert!(found[0].grade == Grade::Wrong && found[0].seen.contains("/missing/cert.pem"), "{found:?}");
        let mut config = Config::default();
        config.acme.domains = vec!["tasks.example.com".to_owned()];
        let found = certificate(&config);
        assert!(found[0].grade == Grade::Wrong && found[0].seen.contains("no certificate yet"), "{found:?}");
    }
}
