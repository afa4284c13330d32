//! A thread that writes: it commits whatever is queued in one transaction, or one job after the other
//! where several such threads do.

use super::syncs::Syncs;
use super::{Job, answer, each, in_time, is_large, panicked, unix_seconds};
use crate::metrics::Metrics;
use crate::protocol::Write;
use crate::service::{self, Policy};
use crate::storage::Storage;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// After so long without work the storage may expect that none comes soon.
const SOON: Duration = Duration::from_millis(50);

/// How often the storage sees to itself from then on.
const SELDOM: Duration = Duration::from_secs(1);

/// Writes until nobody is left who could ask for it.
pub fn write_all(
    storage: &dyn Storage,
    policy: &Policy,
    jobs: &Receiver<Job<Write>>,
    syncs: &Syncs,
    metrics: &Metrics,
) {
    let manner = storage.manner();
    let mut held_back = None;
    while let Some(first) = held_back.take().or_else(|| next(storage, jobs, manner.is_remote)) {
        let began = Instant::now();
        let Some(first) = in_time(first, manner.patience) else { continue };
        let Some(first) = at_once(storage, policy, first) else {
            metrics.groups.counted(1);
            metrics.commits.took(began.elapsed());
            note_apart(storage, syncs);
            continue;
        };
        let group = gather(first, jobs, &mut held_back, manner.group);
        let writes = group.iter().filter(|job| job.request.is_some()).count();
        // Only the first attempt takes them along: they must not fail the jobs.
        let along = if manner.is_remote { Vec::new() } else { syncs.take_due(unix_seconds()) };
        let noted = Cell::new(along);
        answer(group, |batch| {
            let taken = noted.take();
            let outcomes = storage.writing(|writer| {
                let outcomes = each(batch, |write, brought| {
                    service::write(writer, policy, write, brought, Uuid::now_v7().into(), unix_seconds())
                })?;
                writer.note_syncs(&taken)?;
                Ok(outcomes)
            });
            if outcomes.is_err() {
                syncs.give_back(taken);
            }
            outcomes
        });
        let committed = Instant::now();
        note_apart(storage, syncs);
        if let Err(error) = storage.rest() {
            log::warn!("between transactions: {error}");
        }
        // A mere sign of life commits nothing.
        if writes > 0 {
            metrics.groups.counted(writes);
            metrics.commits.took(committed - began);
            metrics.rests.took(committed.elapsed());
        }
    }
    let noted = syncs.take_all();
    if noted.is_empty() {
        return;
    }
    if let Err(error) = storage.writing(|writer| writer.note_syncs(&noted)) {
        log::warn!("who synced last is not noted: {error}");
    }
}

/// The next job; `None` where nobody is left who could ask.
fn next(storage: &dyn Storage, jobs: &Receiver<Job<Write>>, is_remote: bool) -> Option<Job<Write>> {
    if is_remote {
        return jobs.recv().ok();
    }
    let began = Instant::now();
    let mut patience = SOON;
    loop {
        match jobs.recv_timeout(patience) {
            Ok(job) => return Some(job),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {
                if let Err(error) = storage.linger(began.elapsed()) {
                    log::debug!("while nothing is written: {error}");
                }
                patience = SELDOM;
            }
        }
    }
}

/// Where several write at once, who synced last has a transaction of its own: in those of requests,
/// clients would wait for each other.
fn note_apart(storage: &dyn Storage, syncs: &Syncs) {
    if !storage.manner().is_remote {
        return;
    }
    let noted = syncs.take_due(unix_seconds());
    if noted.is_empty() {
        return;
    }
    if let Err(error) = storage.writing(|writer| writer.note_syncs(&noted)) {
        log::debug!("who synced last is noted later: {error}");
        syncs.give_back(noted);
    }
}

/// Answers a job that takes one step and no decision; gives it back where it takes more.
fn at_once(storage: &dyn Storage, policy: &Policy, job: Job<Write>) -> Option<Job<Write>> {
    let Some(write) = &job.request else { return Some(job) };
    let run = || service::write_at_once(storage, policy, write, Uuid::now_v7().into(), unix_seconds());
    let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(panicked()));
    match outcome.transpose() {
        None => Some(job),
        Some(outcome) => {
            let _ = job.reply.send(outcome);
            None
        }
    }
}

/// The first job and what is already queued behind it. A large job is held back for a group of its own.
fn gather(
    first: Job<Write>,
    jobs: &Receiver<Job<Write>>,
    held_back: &mut Option<Job<Write>>,
    most: usize,
) -> Vec<Job<Write>> {
    let alone = is_large(&first);
    let mut group = vec![first];
    while !alone && group.len() < most {
        match jobs.try_recv() {
            Ok(job) if is_large(&job) => {
                *held_back = Some(job);
                break;
            }
            Ok(job) => group.push(job),
            Err(_) => break,
        }
    }
    group
}
