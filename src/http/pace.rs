//! What one address may have of the server, so that there is enough for the others.

use super::App;
use super::addresses::Addresses;
use super::attempts::Turn;
use super::progress::Progress;
use super::wire::Problem;
use crate::peer::{Peer, Source};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What is counted by address. Cheap to clone; all clones count the same.
#[derive(Clone)]
pub struct Counts(Arc<Mutex<Addresses>>);

impl Counts {
    /// Of nobody yet.
    pub fn new(addresses: Addresses) -> Counts {
        Counts(Arc::new(Mutex::new(addresses)))
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that counts until this is dropped.
pub struct Counted {
    counts: Counts,
    source: Source,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counts.lock().close(self.source, Instant::now());
    }
}

/// Its address has too many connections open.
pub struct Crowded;

impl App {
    /// Counts a connection by its address. Whoever has none of its own is not counted.
    pub fn count(&self, peer: Peer) -> Result<Option<Counted>, Crowded> {
        let Some(source) = self.trust.source(peer) else { return Ok(None) };
        match self.counts.lock().open(source, Instant::now()) {
            Ok(()) => Ok(Some(Counted { counts: self.counts.clone(), source })),
            Err(is_news) => {
                self.metrics.refused();
                if is_news {
                    log::warn!(
                        "{source} has {} connections open, and further ones are refused: if that is no abuse, raise \
                         the option address.connections, name the address in address.exempt, or, if it is your \
                         proxy, in trusted_proxies; said at most once a minute for each address",
                        self.limits.address_connections
                    );
                }
                Err(Crowded)
            }
        }
    }

    /// When a request of this peer has its turn.
    pub(super) fn turn(&self, peer: Peer) -> Turn {
        let Some(source) = self.trust.source(peer) else { return Turn::Now };
        let (turn, is_news) = self.counts.lock().ask(source, Instant::now());
        if is_news {
            log::warn!(
                "{source} sends more than {} requests a minute, and waits for its turns: if that is no abuse, raise the \
                 option address.requests, name the address in address.exempt, or, if it is your proxy, in \
                 trusted_proxies; said at most once a minute for each address",
                self.limits.address_requests
            );
        }
        turn
    }

    /// Waits for the turn, or says that there is none.
    pub(super) async fn take(&self, turn: Turn, progress: &Progress) -> Result<(), Problem> {
        match turn {
            Turn::Now => Ok(()),
            Turn::After(pause) if self.waiting.pause(pause, progress).await => Ok(()),
            Turn::After(_) | Turn::Never => Err(Problem::TooManyRequests),
        }
    }
}
