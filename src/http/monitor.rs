//! What is told to whoever watches over the server, at a listener of its own.

use super::App;
use super::refused::reason;
use super::wire::{self, Answer};
use crate::metrics::{self, Affairs, State};
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the workers may take to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at what happens beside the requests.
pub type Look = Box<dyn Fn() -> Affairs + Send + Sync>;

impl App {
    /// Whether the workers and the database answer. Why they do not is logged.
    pub(super) async fn is_ready(&self) -> bool {
        self.readiness().await.inspect_err(|why| log::warn!("not ready: {why}")).is_ok()
    }

    async fn readiness(&self) -> Result<(), String> {
        match tokio::time::timeout(PROBE_TIMEOUT, self.workers.probe()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => Err(reason(&failure)),
            Err(_) => Err(format!("the database did not answer within {} s", PROBE_TIMEOUT.as_secs())),
        }
    }

    /// All numbers.
    pub(super) fn metrics_text(&self) -> String {
        metrics::text(&self.metrics, &self.state())
    }

    /// Readiness with all that an operator should know, one line each: `+` for what is well, `-` for what
    /// is not. A backup that failed is no reason to send clients elsewhere, so the status tells of the
    /// database only.
    pub(super) async fn report(&self) -> Answer {
        let readiness = self.readiness().await;
        let state = self.state();
        let mut text = String::new();
        let _ = match &readiness {
            Ok(()) => writeln!(text, "+ database: it answers"),
            Err(why) => writeln!(text, "- database: {why}"),
        };
        let queues: Vec<String> =
            state.queues.iter().map(|(name, length)| format!("{name} {length}")).collect();
        let _ = writeln!(text, "+ waiting: {}", queues.join(", "));
        let _ = writeln!(text, "+ connections: {} of {}", state.connections, self.limits.connections);
        if let Some(backups) = &state.affairs.backups {
            let newest = backups.newest.map_or("none".to_owned(), date);
            let next = backups.next.map_or("now".to_owned(), date);
            let _ = match &backups.failure {
                None => writeln!(text, "+ backup: the newest is of {newest}, the next is due {next}"),
                Some((at, why)) => writeln!(
                    text,
                    "- backup: it failed {}: {}; the newest is of {newest}, the next attempt is due {next}",
                    date(*at),
                    why.replace('\n', " ")
                ),
            };
        }
        if let Some(certificate) = &state.affairs.certificate {
            let until =
                certificate.until.map_or("none yet".to_owned(), |at| format!("valid until {}", date(at)));
            let next =
                certificate.next.map_or(String::new(), |at| format!(", the next is asked for {}", date(at)));
            let _ = match &certificate.problem {
                None => writeln!(text, "+ certificate: {until}{next}"),
                Some(why) => writeln!(text, "- certificate: {}{next}", why.replace('\n', " ")),
            };
        }
        let started = date(state.affairs.started);
        let _ = writeln!(text, "+ version: {}, started {started}", env!("CARGO_PKG_VERSION"));
        wire::report(readiness.is_ok(), text)
    }

    fn state(&self) -> State {
        State {
            connections: self.crowd.len(),
            queues: self.workers.queues().to_vec(),
            affairs: (self.affairs)(),
        }
    }
}

/// Nothing here is from before 1970.
fn date(seconds: i64) -> String {
    let since = Duration::from_secs(seconds.try_into().unwrap_or(0));
    let time: SystemTime = UNIX_EPOCH + since;
    humantime::format_rfc3339_seconds(time).to_string()
}
