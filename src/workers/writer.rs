//! The one thread that writes: whatever is queued is committed in one transaction.

use super::syncs::Syncs;
use super::{GROUP, Job, answer, each, is_large, unix_seconds};
use crate::metrics::Metrics;
use crate::protocol::Write;
use crate::service::{self, Policy};
use crate::storage::Storage;
use crossbeam_channel::Receiver;
use std::cell::Cell;
use std::time::Instant;
use uuid::Uuid;

/// Writes until nobody is left who could ask for it.
pub fn write_all(
    storage: &dyn Storage,
    policy: &Policy,
    jobs: &Receiver<Job<Write>>,
    syncs: &Syncs,
    metrics: &Metrics,
) {
    let mut held_back = None;
    while let Some(first) = held_back.take().or_else(|| jobs.recv().ok()) {
        let group = gather(first, jobs, &mut held_back);
        let began = Instant::now();
        let writes = group.iter().filter(|job| job.request.is_some()).count();
        // Only the first attempt takes them along: they must not fail the jobs.
        let noted = Cell::new(syncs.take_due(unix_seconds()));
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

/// The first job and what is already queued behind it. A large job is held back for a group of its own.
fn gather(
    first: Job<Write>,
    jobs: &Receiver<Job<Write>>,
    held_back: &mut Option<Job<Write>>,
) -> Vec<Job<Write>> {
    let alone = is_large(&first);
    let mut group = vec![first];
    while !alone && group.len() < GROUP {
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
