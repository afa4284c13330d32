//! The operator's verbs on a database of many clients, while the server runs.

use super::Figure;
use crate::Result;
use crate::options::{How, Subject};
use crate::stage::Stage;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const CLIENTS: usize = 10_000;
const VERSIONS_EACH: usize = 100;

/// What takes this program's own server only.
pub fn verbs(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let How::Own = subject.how else { return Ok(Vec::new()) };
    let database = stage.prefilled(CLIENTS, VERSIONS_EACH)?;
    let server = stage.start_on(subject, &database)?;
    let Some(data_dir) = server.data_dir() else { return Ok(Vec::new()) };
    let verbs = [("list-clients", "list-clients s"), ("stats", "stats s"), ("check", "check s")];
    verbs.into_iter().map(|(verb, label)| Ok(Figure::less(label, seconds(&data_dir, verb)?))).collect()
}

fn seconds(data_dir: &Path, verb: &str) -> Result<f64> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sync-server"));
    command.args(["admin", verb, "--data-dir"]).arg(data_dir).env_clear();
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{verb}: {error}"))?;
    let took = begun.elapsed().as_secs_f64();
    if output.status.success() {
        return Ok(took);
    }
    Err(format!("{verb} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}
