//! GetChildVersion and GetSnapshot: the memory for the answer first, then the answer.

use super::refused::warn_of_memory;
use super::sender::Sender;
use super::wire::{self, Fetch, Problem};
use super::{Answered, App};
use crate::credential::Credential;
use crate::protocol::{Outcome, Request};
use crate::workers::{Failure, POURED, Pieces};

/// The room that every read brings along; most segments are smaller.
const FIRST_ROOM: usize = 128 * 1024;

/// How often a read may find that what it asked for has become larger than it was told.
const ROOM_ATTEMPTS: usize = 4;

impl App {
    /// Answers at once what takes no waiting; else says how much room to begin with.
    pub(super) fn fetch_here(&self, fetch: Fetch, sender: &mut Sender<'_>) -> Result<Answered, usize> {
        let client = fetch.client();
        if let Err(problem) = self.admit(client, sender) {
            return Ok(Answered::new(wire::problem(&problem), Some(client)));
        }
        let mut reservation = self.memory.reserve_now(FIRST_ROOM).ok_or(FIRST_ROOM)?;
        let result = self.workers.call_here(&fetch.read(FIRST_ROOM), sender.credential.as_ref());
        match result.ok_or(FIRST_ROOM)? {
            Ok(Outcome::NeedsRoom { len, .. }) => Err(len),
            result => {
                let answer = self.conclude(client, sender, result);
                reservation.shrink(answer.body().len());
                Ok(Answered { reservation: Some(reservation), ..Answered::new(answer, Some(client)) })
            }
        }
    }

    /// Answers what [`App::fetch_here`] did not.
    pub(super) async fn fetch(&self, fetch: Fetch, mut room: usize, sender: Sender<'_>) -> Answered {
        let client = fetch.client();
        for _ in 0..ROOM_ATTEMPTS {
            let Ok(mut reservation) = self.memory.reserve(room).await else { break };
            // Whoever finds out how large the body is gives back this much before asking for more:
            // nobody waits for memory while holding some.
            let (result, pieces) = self.ask(fetch, room, sender.credential.clone()).await;
            match (result, pieces) {
                (Ok(Outcome::NeedsRoom { version, len }), Some(pieces)) if len <= room => {
                    let answer = wire::snapshot_head(version);
                    reservation.shrink(len);
                    self.note(client, &sender);
                    return Answered {
                        reservation: Some(reservation),
                        poured: Some((len, pieces)),
                        ..Answered::new(answer, Some(client))
                    };
                }
                (Ok(Outcome::NeedsRoom { len, .. }), _) => room = len,
                (result, _) => {
                    let answer = self.conclude(client, &sender, result);
                    reservation.shrink(answer.body().len());
                    return Answered {
                        reservation: Some(reservation),
                        ..Answered::new(answer, Some(client))
                    };
                }
            }
        }
        warn_of_memory(client);
        Answered::new(wire::problem(&Problem::NoMemory), Some(client))
    }

    /// Asks the workers; a large snapshot comes in pieces.
    async fn ask(
        &self,
        fetch: Fetch,
        room: usize,
        brought: Option<Credential>,
    ) -> (Result<Outcome, Failure>, Option<Pieces>) {
        match fetch {
            Fetch::Snapshot { client } if room >= POURED => {
                match self.workers.pour_snapshot(client, room, brought).await {
                    Ok((outcome, pieces)) => (Ok(outcome), Some(pieces)),
                    Err(failure) => (Err(failure), None),
                }
            }
            _ => (self.workers.call(Request::Read(fetch.read(room)), brought).await, None),
        }
    }
}
