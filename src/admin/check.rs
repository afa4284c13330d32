//! `check`: whether everything that the database holds is whole.

use super::columns::{plural, size};
use super::desk::Desk;
use super::progress::Progress;
use super::{FAILURE, Output, Refusal, failed};
use crate::upkeep::{self, Finding, Report, Step};
use serde::Serialize;

#[derive(Serialize)]
struct Shown<'a> {
    clients: u64,
    leaving_clients: u64,
    versions: u64,
    bytes: u64,
    snapshots: u64,
    snapshot_bytes: u64,
    damage: &'a [String],
    unfinished: Option<&'a str>,
    findings: Vec<ShownFinding<'a>>,
}

#[derive(Serialize)]
struct ShownFinding<'a> {
    client_id: String,
    label: Option<&'a str>,
    flaw: &'static str,
    problem: String,
    advice: String,
}

const DAMAGED: &str = "restore the latest backup that `sync-server admin verify-backup` finds whole, or set up a disk \
                       that can be trusted and restore it there; what still can be read, `sync-server admin backup` \
                       saves";

pub fn run(desk: &Desk) -> Result<Output, Refusal> {
    let mut shown =
        Steps { desk, progress: Progress::start("checking the database", None, desk.format), of: None };
    let report = upkeep::check(desk.upkeep(), &mut |step| shown.take(step));
    drop(shown);
    let report = report.map_err(failed)?;
    let mut output = Output::new(text(&report), &to_programs(&report));
    let is_well = report.findings.is_empty() && report.examination.flaws.is_empty();
    if !is_well || report.examination.unfinished.is_some() {
        output.exit_code = FAILURE;
    }
    Ok(output)
}

/// The two halves of a check.
struct Steps<'d> {
    desk: &'d Desk<'d>,
    progress: Progress,
    of: Option<u64>,
}

impl Steps<'_> {
    fn take(&mut self, step: Step) {
        match step {
            Step::Examining => self.progress.advance(0),
            Step::Client { of, .. } => {
                if self.of.is_none() {
                    self.of = Some(of);
                    let chains = Progress::start("checking the clients", Some(of), self.desk.format);
                    std::mem::replace(&mut self.progress, chains).finish();
                }
                self.progress.advance(1);
            }
        }
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let name = name(finding);
        text.push_str(&format!("client {name}: {}\n", finding.flaw.problem()));
        text.push_str(&format!("  what to do: {}\n", finding.flaw.advice(&name)));
    }
    for flaw in &report.examination.flaws {
        text.push_str(&format!("damage: {flaw}\n"));
    }
    if !report.examination.flaws.is_empty() {
        text.push_str(&format!("  what to do: {DAMAGED}\n"));
    }
    if let Some(why) = &report.examination.unfinished {
        text.push_str(&format!("not looked at for damage to the end: {why}\n"));
    }
    if report.leaving > 0 {
        let what = plural(report.leaving, "client");
        text.push_str(&format!(
            "{what} being removed, or the history: the running server goes on with it, and so does the same command\n"
        ));
    }
    let found = report.findings.len() + report.examination.flaws.len();
    let verdict = match (found, &report.examination.unfinished) {
        (0, None) => "all is well".to_owned(),
        (0, Some(_)) => "nothing wrong was found so far".to_owned(),
        _ => format!("{} found", plural(found as u64, "problem")),
    };
    text.push_str(&format!(
        "Looked at {} with {} ({}) and {} ({}): {verdict}.\n",
        plural(report.clients, "client"),
        plural(report.versions, "version"),
        size(report.bytes),
        plural(report.snapshots, "snapshot"),
        size(report.snapshot_bytes),
    ));
    text
}

/// How the operator names it.
fn name(finding: &Finding) -> String {
    finding.label.clone().unwrap_or_else(|| finding.client.short())
}

fn to_programs(report: &Report) -> Shown<'_> {
    let shown = |finding: &'_ Finding| (finding.client.uuid().to_string(), name(finding));
    let findings = report.findings.iter().map(|finding| {
        let (client_id, name) = shown(finding);
        ShownFinding {
            client_id,
            label: finding.label.as_deref(),
            flaw: finding.flaw.word(),
            problem: finding.flaw.problem(),
            advice: finding.flaw.advice(&name),
        }
    });
    Shown {
        clients: report.clients,
        leaving_clients: report.leaving,
        versions: report.versions,
        bytes: report.bytes,
        snapshots: report.snapshots,
        snapshot_bytes: report.snapshot_bytes,
        damage: &report.examination.flaws,
        unfinished: report.examination.unfinished.as_deref(),
        findings: findings.collect(),
    }
}
