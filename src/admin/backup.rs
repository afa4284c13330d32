//! `backup` and `verify-backup`.

use super::columns::{moment, plural, size};
use super::desk::{Desk, now};
use super::progress::Progress;
use super::{DAMAGED, FAILURE, Format, NEWER, NOT_PERMITTED, Output, Refusal, USAGE, refusal};
use crate::archive::{Head, Summary};
use crate::backup::{self, Problem, Reason, Step};
use serde::Serialize;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::Path;

/// What stands for standard input or output.
pub const STANDARD: &str = "-";

/// A backup as programs get it.
#[derive(Serialize)]
pub struct Shown<'a> {
    file: &'a str,
    created: String,
    program_version: &'a str,
    database: &'a str,
    schema_version: i64,
    clients: u64,
    versions: u64,
    devices: u64,
    bytes: u64,
    sha256: String,
}

impl<'a> Shown<'a> {
    pub fn of(file: &'a str, head: &'a Head, summary: &Summary) -> Shown<'a> {
        Shown {
            file,
            created: moment(head.created),
            program_version: &head.program,
            database: &head.database,
            schema_version: head.schema,
            clients: summary.counts.clients,
            versions: summary.counts.versions,
            devices: summary.counts.devices,
            bytes: summary.bytes,
            sha256: hex(&summary.digest),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn write(desk: &Desk, file: &str, yes: bool) -> Result<Output, Refusal> {
    let contents = desk.contents();
    let head = backup::head(contents, now());
    let extent = contents.extent().map_err(super::failed)?;
    let mut progress = Steps::new("writing the backup", Some(extent), desk.format);
    let mut watch = |step| progress.take(step);
    let written = if file == STANDARD {
        let out = standard_output()?;
        backup::to_stream(contents, &head, out, &mut watch).map(|(_, summary)| summary)
    } else {
        backup::to_file(contents, &head, Path::new(file), yes, &mut watch)
    };
    drop(progress);
    let summary = written.map_err(|problem| not_written(file, problem))?;
    let holds = holds(&summary);
    let recorded = desk.record("backup", &format!("{holds}, to {}", target(file)));
    let text = if file == STANDARD {
        format!(
            "Wrote a backup to standard output: {holds}. Nobody has read it again: `sync-server admin verify-backup` \
             does.\n"
        )
    } else {
        format!("Wrote {file}, and verified it: {holds}.\n")
    };
    let mut output = Output::new(text, &Shown::of(file, &head, &summary));
    output.aside = file == STANDARD;
    // The backup is as good without a note of it.
    output
        .warnings
        .extend(recorded.err().map(|refusal| format!("the backup was not recorded: {}", refusal.message)));
    Ok(output)
}

pub fn verify(file: &str, format: Format) -> Result<Output, Refusal> {
    let (input, length) = open(file)?;
    let mut progress = Steps::new("verifying the backup", length, format);
    let verified = backup::verify(input, &mut |step| progress.take(step));
    drop(progress);
    let (head, summary) = verified.map_err(|problem| unusable(file, problem))?;
    Ok(Output::new(described(file, &head, &summary), &Shown::of(file, &head, &summary)))
}

fn described(file: &str, head: &Head, summary: &Summary) -> String {
    format!(
        "{} is whole: {}, made {} by sync-server {} ({}, schema version {}).\n",
        source(file),
        holds(summary),
        moment(head.created),
        head.program,
        head.database,
        head.schema
    )
}

/// A backup to be read, and how long it is where that can be told.
pub fn open(file: &str) -> Result<(File, Option<u64>), Refusal> {
    let failed = |error: std::io::Error| {
        let code = if error.kind() == std::io::ErrorKind::PermissionDenied { NOT_PERMITTED } else { FAILURE };
        refusal(code, format!("cannot open the backup {file}: {error}"))
    };
    let opened = if file == STANDARD {
        std::io::stdin().as_fd().try_clone_to_owned().map(File::from)
    } else {
        File::open(file)
    };
    let opened = opened.map_err(failed)?;
    let data = opened.metadata().map_err(failed)?;
    if data.is_dir() {
        return Err(refusal(DAMAGED, format!("{file} is a directory: name a backup in it")));
    }
    Ok((opened, data.is_file().then_some(data.len())))
}

fn standard_output() -> Result<File, Refusal> {
    let out = std::io::stdout();
    if out.is_terminal() {
        return Err(refusal(
            USAGE,
            "a backup is nothing for a terminal: send standard output to a file or a program",
        ));
    }
    let failed = |error| refusal(FAILURE, format!("standard output cannot be used: {error}"));
    out.as_fd().try_clone_to_owned().map(File::from).map_err(failed)
}

pub fn holds(summary: &Summary) -> String {
    let counts = &summary.counts;
    format!(
        "{}, {}, {}",
        plural(counts.clients, "client"),
        plural(counts.versions, "version"),
        size(summary.bytes)
    )
}

/// Where a backup goes.
fn target(file: &str) -> &str {
    if file == STANDARD { "standard output" } else { file }
}

/// Where one comes from.
fn source(file: &str) -> &str {
    if file == STANDARD { "standard input" } else { file }
}

fn not_written(file: &str, problem: Problem) -> Refusal {
    let message =
        if file == STANDARD { format!("the backup was not written: {problem}") } else { problem.message };
    refusal(code(problem.reason), message)
}

/// A backup that cannot be used.
pub fn unusable(file: &str, problem: Problem) -> Refusal {
    refusal(code(problem.reason), format!("{}: {problem}", source(file)))
}

fn code(reason: Reason) -> u8 {
    match reason {
        Reason::Damaged => DAMAGED,
        Reason::Newer => NEWER,
        Reason::Exists => USAGE,
        Reason::NotPermitted => NOT_PERMITTED,
        Reason::Stopped | Reason::Failed => FAILURE,
    }
}

/// The two halves of a backup: what was written is read again.
pub struct Steps {
    progress: Progress,
    format: Format,
    /// Of what is being shown.
    verifying: bool,
    written: u64,
}

impl Steps {
    pub fn new(label: &'static str, total: Option<u64>, format: Format) -> Steps {
        Steps {
            progress: Progress::start(label, total, format).in_bytes(),
            format,
            verifying: total.is_none(),
            written: 0,
        }
    }

    pub fn take(&mut self, step: Step) -> bool {
        match step {
            Step::Written(bytes) => {
                self.written += bytes;
                self.progress.advance(bytes);
            }
            Step::Verified(bytes) => {
                if self.written > 0 && !self.verifying {
                    self.verifying = true;
                    let again =
                        Progress::start("reading it again", Some(self.written), self.format).in_bytes();
                    std::mem::replace(&mut self.progress, again).finish();
                }
                self.progress.advance(bytes);
            }
        }
        true
    }
}
