//! `doctor`: all that a helpful colleague would look at, and what to do about it.

use super::columns::table;
use super::{FAILURE, Format, NOT_PERMITTED, Refusal, desk, print, refusal, user};
use crate::config::{Config, Environment};
use crate::control;
use crate::doctor::{self, Finding, Grade, Serving};
use crate::storage::location::{Location, Standing};
use crate::storage::lock;
use crate::storage::registry::{Entry, Event, Registry};
use crate::storage::sqlite::FILE_NAME;
use crate::storage::upkeep::{Examination, Measures};
use serde::Serialize;
use serde_json::json;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the database may look for damage.
const PATIENCE: Duration = Duration::from_secs(3);

/// Changes that are looked through for a backup.
const EVENTS: usize = 10_000;

#[derive(Serialize)]
struct Shown<'a> {
    topic: &'a str,
    grade: &'static str,
    seen: &'a str,
    advice: Option<&'a str>,
}

/// What was read of a database.
struct Stored {
    measures: Measures,
    examination: Examination,
    clients: Vec<Entry>,
    events: Vec<Event>,
}

/// Looks at everything and prints what came of it; returns the exit code. A configuration that is
/// wrong is what there is to say of it.
pub fn run(config: Result<&Config, &[String]>, environment: &Environment, format: Format) -> u8 {
    let findings = match config {
        Ok(config) => all(config, environment, format),
        Err(problems) => problems.iter().map(|problem| Finding::told("configuration", problem)).collect(),
    };
    let is_wrong = findings.iter().any(|finding| finding.grade == Grade::Wrong);
    match format {
        Format::People => print(&text(&findings)),
        Format::Programs => {
            let all: Vec<Shown> = findings.iter().map(shown).collect();
            print(&format!("{:#}\n", json!({ "well": !is_wrong, "findings": all })));
        }
    }
    if is_wrong { FAILURE } else { 0 }
}

fn all(config: &Config, environment: &Environment, format: Format) -> Vec<Finding> {
    let mut findings = doctor::configuration(config);
    let data_dir = match desk::locate(config, environment) {
        Ok(data_dir) => data_dir,
        Err(refusal) => {
            findings.push(Finding::told("data directory", refusal.message));
            return findings;
        }
    };
    if format == Format::People {
        eprintln!("database: {}", data_dir.join(FILE_NAME).display());
    }
    let is_running = control::is_there(&data_dir, environment);
    let serving = if is_running { Serving::Holder(lock::holder(&data_dir)) } else { Serving::Nobody };
    findings.extend(doctor::data_directory(&data_dir, user::service()));
    findings.push(doctor::space("disk", &data_dir, 0));
    // While this process may still be root, who sees more.
    findings.extend(doctor::ports(config, &serving));
    findings.extend(doctor::certificate(config, &data_dir, desk::now()));
    let backup_dir = config.backup.dir.as_deref();
    let stored = if data_dir.exists() { read(&data_dir) } else { Ok(None) };
    let mut latest = None;
    match stored {
        Err(refusal) => findings.push(Finding::told("database", refusal.message)),
        Ok(None) => findings.push(Finding::note(
            "database",
            "there is none yet, or one that the next start brings up to date",
        )),
        Ok(Some(stored)) => {
            let schema = stored.measures.schema;
            findings.push(Finding::well("schema", format!("version {schema}, as this program has it")));
            findings.push(doctor::damage(&stored.examination));
            findings.extend(doctor::clients(config, &stored.clients, is_running));
            findings.extend(doctor::backups(config, &stored.events, desk::now()));
            findings
                .extend(backup_dir.map(|dir| doctor::space("backup disk", dir, stored.measures.database)));
            latest = latest_of(&stored);
        }
    }
    findings.push(doctor::clock(desk::now(), latest));
    findings
}

/// What there is to read of a database; `None` where there is none or not one of today.
fn read(data_dir: &Path) -> Result<Option<Stored>, Refusal> {
    if !rustix::process::geteuid().is_root() {
        desk::check_user(data_dir, &data_dir.join(FILE_NAME))?;
    } else if let Ok(data) = data_dir.metadata() {
        user::become_user(data.uid(), data.gid()).map_err(|error| {
            refusal(
                NOT_PERMITTED,
                format!("cannot become uid {}, whose the data directory is: {error}", data.uid()),
            )
        })?;
    }
    let location = Location::Directory(data_dir.to_owned());
    if location.standing().map_err(super::failed)? != Standing::Current {
        return Ok(None);
    }
    let database = location.open().map_err(super::failed)?;
    let registry: &dyn Registry = &*database;
    let begun = Instant::now();
    let look = || {
        let measures = database.measure()?;
        let examination = database.examine(&mut || begun.elapsed() < PATIENCE)?;
        let (clients, events) =
            registry.consulting(|reader| Ok((reader.clients()?, reader.events(None, EVENTS)?)))?;
        Ok(Stored { measures, examination, clients, events })
    };
    look().map(Some).map_err(super::failed)
}

/// The latest moment that the database knows of.
fn latest_of(stored: &Stored) -> Option<i64> {
    let syncs = stored.clients.iter().filter_map(|client| client.last_sync);
    let snapshots =
        stored.clients.iter().filter_map(|client| client.snapshot.map(|snapshot| snapshot.timestamp));
    syncs.chain(snapshots).chain(stored.events.iter().map(|event| event.at)).max()
}

fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Well => "ok",
        Grade::Note => "note",
        Grade::Wrong => "problem",
    }
}

fn shown(finding: &Finding) -> Shown<'_> {
    Shown {
        topic: finding.topic,
        grade: word(finding.grade),
        seen: &finding.seen,
        advice: finding.advice.as_deref(),
    }
}

fn text(findings: &[Finding]) -> String {
    let mut lines = Vec::new();
    for Finding { topic, grade, seen, advice } in findings {
        lines.push(vec![word(*grade).to_uppercase(), (*topic).to_owned(), seen.clone()]);
        let advice = advice.as_ref().map(|advice| format!("what to do: {advice}"));
        lines.extend(advice.map(|advice| vec![String::new(), String::new(), advice]));
    }
    let wrong = findings.iter().filter(|finding| finding.grade == Grade::Wrong).count();
    let verdict = match wrong {
        0 => "Nothing needs doing.".to_owned(),
        1 => "1 problem.".to_owned(),
        wrong => format!("{wrong} problems."),
    };
    format!("{}\n{verdict}\n", table(&lines, &[]))
}
