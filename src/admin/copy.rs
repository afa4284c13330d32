//! `copy`: one database made the copy of another, to move from one kind to the other.

use super::columns::{plural, size};
use super::desk::{bring_up_to_date, enter, event, locate, not_restoring};
use super::progress::Progress;
use super::{FAILURE, Format, IN_USE, Output, Refusal, USAGE, failed, refusal, user};
use crate::config::{Config, Environment};
use crate::control;
use crate::storage::copying::Note;
use crate::storage::location::{Database, Location};
use crate::storage::lock::{self, DirectoryLock};
use crate::storage::registry::Registry;
use crate::transfer::{self, Copied, Copy, Obstacle};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What stands before the name of a file that holds a connection string.
const FILE: char = '@';

/// How long somebody who was just there may take to be gone.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is copied where, as it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The source; the configured database otherwise.
    pub from: Option<String>,
    /// The target; the configured database otherwise.
    pub to: Option<String>,
    /// Whether all is compared, not only what is carried.
    pub verify: bool,
    /// Whether connections of servers to the target are no reason to refuse.
    pub yes: bool,
}

#[derive(Serialize)]
struct Shown {
    from: String,
    to: String,
    clients: u64,
    versions: u64,
    changed: u64,
    carried_versions: u64,
    carried_bytes: u64,
    removed_versions: u64,
    verified: u64,
    verified_all: bool,
}

pub fn run(
    config: &Config,
    environment: &Environment,
    route: &Route,
    format: Format,
) -> Result<Output, Refusal> {
    let from = place(route.from.as_deref(), config, environment)?;
    let to = place(route.to.as_deref(), config, environment)?;
    if from == to {
        let message = format!(
            "{from} would be copied onto itself: name another database with --from or --to (a directory, a connection \
             string, or @FILE with one in it); the one that is not named is the configured one"
        );
        return Err(refusal(USAGE, message));
    }
    if format == Format::People {
        eprintln!("from {from}\nto {to}");
    }
    // Before the process becomes another user.
    let user = user::asking(environment);
    let source = open_source(config, environment, &from, format)?;
    let _lock = open_target(config, environment, &to, route.yes)?;
    let target = to.open().map_err(failed)?;
    // Recorded on both sides in the end, and what tells this source from every other.
    let begun = event(&user, "copy", None, &format!("to {to}"));
    let had = target.note().map_err(failed)?;
    let may = transfer::note(&*source, &*target, begun.id, from.to_string()).map_err(failed)?;
    let note = may.map_err(|obstacle| refused(&to, &obstacle))?;
    let registry: &dyn Registry = &*source;
    registry.amending(|writer| writer.record(&begun)).map_err(failed)?;
    control::note(from.directory(), environment, &format!("operator {user}: copy (to {to})"));
    target.begin_copy(&note, source.may_branch().map_err(failed)?).map_err(failed)?;
    // What a run left that did not come to its end was perhaps not compared.
    let verifies_all = route.verify || had.is_none_or(|had| !had.is_finished);
    let copied = carry(&*source, &*target, &note, verifies_all, format)?;
    Ok(output(&from, &to, &copied, verifies_all))
}

fn carry(
    source: &dyn Database,
    target: &dyn Database,
    note: &Note,
    verifies_all: bool,
    format: Format,
) -> Result<Copied, Refusal> {
    let mut progress = Progress::start("copying clients and versions", Some(0), format);
    let copy = Copy { source, target, run: note.run, verifies_all };
    let copied = transfer::run(&copy, &mut |step| progress.advance_of(step.more, step.of));
    progress.finish();
    copied.map_err(|error| {
        let again = "What was copied so far stays, and the same command goes on from there.";
        refusal(FAILURE, format!("{}. {again}", error.message.trim_end_matches('.')))
    })
}

/// The database that a word of the command line names.
fn place(named: Option<&str>, config: &Config, environment: &Environment) -> Result<Location, Refusal> {
    let Some(named) = named else { return locate(config, environment) };
    let text = match named.strip_prefix(FILE) {
        None => named.to_owned(),
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| {
                refusal(FAILURE, format!("cannot read {file}, which holds a connection string: {error}"))
            })?
            .trim()
            .to_owned(),
    };
    let what = if named.starts_with(FILE) { named } else { "the connection string" };
    let location = Location::parse(&text, config.postgres)
        .map_err(|why| refusal(USAGE, format!("{what} (its value is not shown) {why}")))?;
    Ok(match location {
        Location::Directory(directory) => Location::Directory(absolute(&directory)?),
        elsewhere => elsewhere,
    })
}

/// One name for each directory, so that nothing is copied onto itself.
fn absolute(directory: &Path) -> Result<PathBuf, Refusal> {
    let known = directory.canonicalize().or_else(|_| std::path::absolute(directory));
    known.map_err(|error| refusal(FAILURE, format!("{}: {error}", directory.display())))
}

fn open_source(
    config: &Config,
    environment: &Environment,
    from: &Location,
    format: Format,
) -> Result<Arc<dyn Database>, Refusal> {
    if let Some(directory) = from.directory() {
        if !directory.exists() {
            return Err(refusal(FAILURE, format!("there is no directory {}", directory.display())));
        }
        enter(environment, directory)?;
        not_restoring(directory)?;
    }
    bring_up_to_date(config, from, format, false)?;
    let source = from.open().map_err(failed)?;
    if let Some(note) = source.note().map_err(failed)?.filter(|note| !note.is_finished) {
        let message =
            format!("{from} is itself a copy of {} that is not whole: finish that first", note.original);
        return Err(refusal(FAILURE, message));
    }
    Ok(source)
}

/// Sees to it that nobody uses the target, and that it has its tables.
fn open_target(
    config: &Config,
    environment: &Environment,
    to: &Location,
    yes: bool,
) -> Result<Option<DirectoryLock>, Refusal> {
    let lock = match to.directory() {
        None => None,
        Some(directory) => {
            enter(environment, directory)?;
            let taken = DirectoryLock::take(directory);
            Some(taken.map_err(|why| match why.contains("is in use by") {
                true => refusal(
                    IN_USE,
                    format!(
                        "{} uses {}, and what is copied there would be mixed with what it writes: stop it first. Nothing \
                         was changed",
                        lock::holder(directory),
                        directory.display()
                    ),
                ),
                false => refusal(FAILURE, why),
            })?)
        }
    };
    to.prepare(config.migrate, &config.migration, |_| ()).map_err(failed)?;
    let begun = Instant::now();
    while !yes && to.users().map_err(failed)? > 0 {
        if begun.elapsed() > PATIENCE {
            let message = format!(
                "a server, or another verb, is connected to {to}, and what is copied there would be mixed with what that \
                 writes: stop it first. If there is none, because a pooler keeps the connection, say --yes. Nothing was \
                 changed"
            );
            return Err(refusal(IN_USE, message));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(lock)
}

fn refused(to: &Location, obstacle: &Obstacle) -> Refusal {
    let message = match obstacle {
        Obstacle::HoldsData => format!(
            "{to} holds data of its own: it is no copy, or was one and is used by a server since. Nothing was changed: name \
             an empty database"
        ),
        Obstacle::OfAnother(original) => format!(
            "{to} is a copy of another database, {original}, or of this one before it was restored from a backup. Nothing \
             was changed: name an empty database"
        ),
    };
    refusal(USAGE, message)
}

fn output(from: &Location, to: &Location, copied: &Copied, verified_all: bool) -> Output {
    let compared = if verified_all { "everything" } else { "what was carried" };
    let text = format!(
        "Copied: {} with {} are in {to} now; {} and {} were carried, {} removed. The counts are the same, and {compared} was \
         read again from both and has the same SHA-256.\n\
         What is written to the source from now on comes with the next run. To change over: stop the server, run this \
         once more, and start the server on the copy, which then is a copy no more.\n",
        plural(copied.clients, "client"),
        plural(copied.versions, "version"),
        plural(copied.carried, "version"),
        size(copied.bytes),
        copied.removed,
    );
    let shown = Shown {
        from: from.to_string(),
        to: to.to_string(),
        clients: copied.clients,
        versions: copied.versions,
        changed: copied.changed,
        carried_versions: copied.carried,
        carried_bytes: copied.bytes,
        removed_versions: copied.removed,
        verified: copied.verified,
        verified_all,
    };
    Output::new(text, &shown)
}
