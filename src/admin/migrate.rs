//! `migrate`: the database's tables as this release wants them.

use super::desk::{bring_up_to_date, enter};
use super::{Format, Output, Refusal, failed};
use crate::config::{Config, Environment};
use crate::storage::location::{Location, Standing};
use serde::Serialize;

#[derive(Serialize)]
struct Shown<'a> {
    /// Whether anything was done.
    migrated: bool,
    /// What is to be done, or was.
    sql: &'a str,
}

pub fn run(
    config: &Config,
    environment: &Environment,
    location: &Location,
    dry_run: bool,
    format: Format,
) -> Result<Output, Refusal> {
    if let Some(data_dir) = location.directory() {
        let is_missing = !data_dir.exists();
        if !(dry_run && is_missing) {
            enter(environment, data_dir)?;
        }
    }
    let is_current = location.standing().map_err(failed)? == Standing::Current;
    let sql = location.pending().map_err(failed)?;
    if dry_run {
        let text = if sql.is_empty() { NOTHING.to_owned() } else { sql.clone() };
        return Ok(Output::new(text, &Shown { migrated: false, sql: &sql }));
    }
    if is_current {
        return Ok(Output::new(NOTHING.to_owned(), &Shown { migrated: false, sql: "" }));
    }
    // Whoever asks for it by name wants it.
    bring_up_to_date(&Config { migrate: true, ..config.clone() }, location, format, true)?;
    let text = "The tables are up to date now.\n".to_owned();
    Ok(Output::new(text, &Shown { migrated: true, sql: &sql }))
}

const NOTHING: &str = "-- The tables are up to date: there is nothing to do.\n";
