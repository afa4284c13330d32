//! What operators wait for, and what clients notice of it. This package's own program only.

use super::adds::{LARGE_CLIENTS, add_for};
use super::{Figure, logged};
use crate::Result;
use crate::clients::returning;
use crate::load::milliseconds;
use crate::options::{How, Subject};
use crate::server::Server;
use crate::stage::Stage;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Clients of an installation that has many, and versions of each.
const MANY: (usize, usize) = (10_000, 100);

/// A list of all clients, and a backup held against a copy of the file, both on disk at the end.
pub fn verbs(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let How::Own = subject.how else { return Ok(Vec::new()) };
    let database = stage.prefilled(MANY.0, MANY.1)?;
    let server = stage.start_on(subject, &database)?;
    let listed = admin(&server, &["list-clients"])?;
    let (copied, saved) = (stage.dir().join("copied"), stage.dir().join("saved"));
    let copy = timed(|| copy(&server.data_file()?, &copied))?;
    let backup = admin(&server, &["backup", &saved.to_string_lossy()])?;
    for file in [copied, saved] {
        std::fs::remove_file(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(vec![
        Figure::less("list-clients ms", milliseconds(listed)),
        Figure::less("copy ms", milliseconds(copy)),
        Figure::less("backup ms", milliseconds(backup)),
        Figure::more("of the copy's speed", copy.as_secs_f64() / backup.as_secs_f64()),
    ])
}

/// Adds on 64 connections while a large database is backed up.
pub fn backup_pause(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let How::Own = subject.how else { return Ok(Vec::new()) };
    let database = stage.prefilled(LARGE_CLIENTS, (stage.options.versions / LARGE_CLIENTS).max(1))?;
    let server = stage.start_on(subject, &database)?;
    let file = stage.dir().join("saved");
    let known = database.clients.iter().step_by(LARGE_CLIENTS / 64).take(64);
    let (samples, backup) = std::thread::scope(|scope| {
        let backup = scope.spawn(|| {
            sleep(Duration::from_secs(1));
            admin(&server, &["backup", &file.to_string_lossy()])
        });
        let samples = logged(&server, add_for(3 * stage.length(), returning(&server, known)));
        (samples, backup.join())
    });
    let backup = backup.map_err(|_| "the backup's thread panicked".to_owned())??;
    let samples = samples?;
    std::fs::remove_file(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(vec![
        Figure::less("longest without answer ms", samples.longest_gap()),
        Figure::less("longest for one ms", samples.percentile(1.0)),
        Figure::less("p99 ms", samples.percentile(0.99)),
        Figure::less("backup ms", milliseconds(backup)),
    ])
}

/// How long a verb takes on the server's database.
fn admin(server: &Server, arguments: &[&str]) -> Result<Duration> {
    let data_file = server.data_file()?;
    let dir = data_file.parent().ok_or("a file without a directory")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_sync-server"));
    command.arg("admin").args(arguments).arg("--data-dir").arg(dir).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    timed(|| {
        let output = command.output().map_err(|error| format!("{arguments:?}: {error}"))?;
        let said = || format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.status.success().then_some(()).ok_or_else(said)
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = std::fs::copy(from, to).and_then(|_| File::open(to)?.sync_all());
    copied.map_err(|error| format!("{}: {error}", to.display()))
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begun = Instant::now();
    work().map(|()| begun.elapsed())
}
