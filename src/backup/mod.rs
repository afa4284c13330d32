//! Backups as files: written beside their place, verified, and only then given their name.
//!
//! Knows files and when a backup is due; neither which database it is of nor who wants it.

pub mod directory;
mod flush;
mod problem;
pub mod schedule;
mod target;

pub use problem::{Problem, Reason};

use crate::archive::{Flaw, Head, Reader, Summary, Writer};
use crate::storage::contents::{Contents, Visit};
use crate::storage::{self, schema};
use flush::{Flushing, Following};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use target::Part;

/// How often it is looked how far a written backup is read again.
const LOOK: Duration = Duration::from_millis(10);

/// How far a backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes more of what [`Contents::extent`] tells were written.
    Written(u64),
    /// So many bytes more of the file were read again.
    Verified(u64),
}

/// Hears how far a backup is, and says whether to go on.
pub type Watch<'w> = dyn FnMut(Step) -> bool + 'w;

/// Where a backup that is made now comes from.
pub fn head(contents: &dyn Contents, now: i64) -> Head {
    Head {
        created: now,
        schema: schema::CURRENT,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        database: contents.kind().to_owned(),
    }
}

/// Writes a backup to a file that has it whole and verified, or is what it was before.
///
/// A file that is there already is kept, unless `replace`.
pub fn to_file(
    contents: &dyn Contents,
    head: &Head,
    target: &Path,
    replace: bool,
    watch: &mut Watch<'_>,
) -> Result<Summary, Problem> {
    let part = Part::begin(target, replace)?;
    let written = fill(contents, head, &part, watch);
    // Whatever went wrong, nothing of it stays.
    let summary = written.inspect_err(|_| part.remove())?;
    part.settle(replace)?;
    Ok(summary)
}

/// Writes the backup, and reads it again from the disk meanwhile.
fn fill(
    contents: &dyn Contents,
    head: &Head,
    part: &Part,
    watch: &mut Watch<'_>,
) -> Result<Summary, Problem> {
    let file = part.file();
    let again = File::open(part.path()).map_err(|error| part.failed(&error))?;
    let (synced, news) = channel();
    let (read, is_stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let verifier = scope.spawn(|| {
            verify(Following::new(again, news), &mut |step| {
                if let Step::Verified(bytes) = step {
                    read.fetch_add(bytes, Relaxed);
                }
                !is_stopped.load(Relaxed)
            })
        });
        let write = |out: Flushing| to_stream(contents, head, out, watch).map(|(_, summary)| summary);
        let (flushed, written) = flush::during(file, &synced, write);
        let summary = written.map_err(|problem| part.explain(problem))?;
        flushed.and_then(|()| file.sync_all()).map_err(|error| part.failed(&error))?;
        flush::tell(file, summary.bytes, &synced);
        drop(synced);
        while !verifier.is_finished() {
            if !watch(Step::Verified(read.swap(0, Relaxed))) {
                is_stopped.store(true, Relaxed);
            }
            thread::sleep(LOOK);
        }
        let verified = verifier.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (_, found) = verified.map_err(|problem| part.unverified(problem))?;
        if found == summary { Ok(summary) } else { Err(part.changed()) }
    })
}

/// Writes a backup to wherever it can be written. Nobody has read it again.
pub fn to_stream<W: Write>(
    contents: &dyn Contents,
    head: &Head,
    out: W,
    watch: &mut Watch<'_>,
) -> Result<(W, Summary), Problem> {
    let mut writer = Writer::new(out, head).map_err(|error| Problem::of_write(&error))?;
    let mut problem = None;
    let exported = contents.export(&mut |record| {
        let stopped = match writer.put(&record) {
            Ok(()) if watch(Step::Written(record.extent())) => return Ok(()),
            Ok(()) => Problem::stopped(),
            Err(error) => Problem::of_write(&error),
        };
        problem = Some(stopped);
        Err(storage::Error::new(storage::Kind::Other, "the backup was given up"))
    });
    if let Some(problem) = problem {
        return Err(problem);
    }
    exported.map_err(Problem::of_storage)?;
    writer.finish().map_err(|error| Problem::of_write(&error))
}

/// Reads a whole backup and says what it holds.
pub fn verify(input: impl Read, watch: &mut Watch<'_>) -> Result<(Head, Summary), Problem> {
    read(input, watch, &mut |_| Ok(()))
}

/// Reads a whole backup and shows each record. Only when this returns are they known to be all.
pub fn read(
    input: impl Read,
    watch: &mut Watch<'_>,
    visit: &mut Visit<'_>,
) -> Result<(Head, Summary), Problem> {
    let mut reader = Reader::new(input).map_err(Problem::of_flaw)?;
    let head = reader.head().clone();
    if head.schema > schema::CURRENT {
        return Err(Problem::newer_schema(&head));
    }
    let mut at = 0;
    while let Some(record) = reader.next_record().map_err(Problem::of_flaw)? {
        visit(record).map_err(Problem::of_storage)?;
        let read = reader.position() - std::mem::replace(&mut at, reader.position());
        if !watch(Step::Verified(read)) {
            return Err(Problem::stopped());
        }
    }
    let summary = reader.summary().cloned().ok_or_else(|| Problem::of_flaw(Flaw::Truncated { at }))?;
    Ok((head, summary))
}
