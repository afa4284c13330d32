//! The thread that reads large bodies, and pours those that are sent while they are read.

use super::{Job, LargeRead, answer, each, in_time, panicked};
use crate::protocol::{ClientId, Outcome, Read};
use crate::service::{self, Policy};
use crate::storage::{Error, Kind, Storage};
use crossbeam_channel::Receiver;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokio::sync::mpsc;

/// How much of such a snapshot is read at a time: few enough bytes to still be in the processor's cache
/// when they are sent.
const PIECE: usize = 256 * 1024;

/// Answers jobs until there will be none.
pub(super) fn read_large(storage: &dyn Storage, policy: &Policy, jobs: &Receiver<LargeRead>) {
    let patience = storage.manner().patience;
    for (job, sink) in jobs {
        let Some(job) = in_time(job, patience) else { continue };
        match (&job.request, sink) {
            (Some(Read::GetSnapshot { client, room }), Some(sink)) => {
                let (client, room) = (*client, *room);
                pour(storage, policy, job, (client, room), &sink);
            }
            _ => answer(vec![job], |batch| {
                storage.reading(|reader| {
                    each(batch, |read, brought| service::read(reader, policy, read, brought))
                })
            }),
        }
    }
}

/// Answers as soon as the snapshot is found, and reads it behind its own answer, in one transaction.
fn pour(
    storage: &dyn Storage,
    policy: &Policy,
    job: Job<Read>,
    (client, room): (ClientId, usize),
    sink: &mpsc::UnboundedSender<Vec<u8>>,
) {
    let Job { brought, reply, .. } = job;
    let reply = Cell::new(Some(reply));
    let answer = |outcome| {
        // Nobody waits any more where the connection is gone.
        reply.take().map(|reply| reply.send(outcome));
    };
    let is_begun = Cell::new(false);
    let run = || {
        storage.reading(|reader| {
            if is_begun.get() {
                // The storage begins again, and what was sent cannot be taken back.
                return Err(Error::new(Kind::Unavailable, "reading it was interrupted"));
            }
            let read = Read::GetSnapshot { client, room: 0 };
            let outcome = service::read(reader, policy, &read, brought.as_ref())?;
            let is_poured = matches!(outcome, Outcome::NeedsRoom { len, .. } if len <= room);
            answer(Ok(outcome));
            is_begun.set(true);
            match is_poured {
                true => reader.pour_snapshot(client, PIECE, &mut |piece| sink.send(piece).is_ok()),
                false => Ok(()),
            }
        })
    };
    if let Err(error) = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(panicked())) {
        match reply.take() {
            Some(reply) => drop(reply.send(Err(error))),
            None => log::error!("the snapshot of client {client:?} was sent in part only: {error}"),
        }
    }
}
