//! What is said of those who are refused, and how long they wait to hear it.

use super::attempts::{Attempts, Turn};
use super::line::Shown;
use super::progress::Progress;
use super::{Answered, App, wire};
use crate::http::wire::Problem;
use crate::peer::{Peer, Source};
use crate::protocol::{ClientId, Refusal};
use crate::storage::{Error, Kind};
use crate::workers::Failure;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Where wrong credentials wait for their answers.
pub struct Waiting {
    attempts: Mutex<Attempts>,
    /// Whether nobody shall wait any more, as the server is stopping.
    hurry: watch::Sender<bool>,
}

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting { attempts: Mutex::default(), hurry: watch::Sender::new(false) }
    }
}

impl Waiting {
    /// Lets everyone go who waits, and lets nobody wait any more.
    pub fn end(&self) {
        self.hurry.send_replace(true);
    }

    /// This long, unless the server stops; false where the peer hangs up meanwhile.
    pub async fn pause(&self, pause: Duration, progress: &Progress) -> bool {
        let mut hurry = self.hurry.subscribe();
        let mut pause = pin!(tokio::time::timeout(pause, hurry.wait_for(|hurry| *hurry)));
        // The connection that finds out runs in the same task, before this.
        poll_fn(|cx| match progress.has_hung_up() {
            true => Poll::Ready(false),
            false => pause.as_mut().poll(cx).map(|_| true),
        })
        .await
    }

    async fn wait(&self, source: Option<Source>, pause: Duration, progress: &Progress) -> bool {
        let _place = Place { waiting: self, source };
        self.pause(pause, progress).await
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt that waits.
struct Place<'a> {
    waiting: &'a Waiting,
    source: Option<Source>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.attempts().leave(self.source);
    }
}

impl App {
    /// Takes its time with the answer to a request that had no valid credential. `brought` says whether
    /// it had one at all.
    pub(super) async fn slow_down(
        &self,
        answered: Answered,
        brought: bool,
        peer: Peer,
        progress: &Progress,
    ) -> Answered {
        let source = self.trust.source(peer);
        let (turn, is_news) = self.waiting.attempts().wrong(source, Instant::now());
        if is_news && let Some(client) = answered.client {
            self.warn_of_credential(client, brought, peer);
        }
        // Nobody holds memory while waiting.
        let answered = Answered { reservation: None, ..answered };
        match turn {
            Turn::Now => answered,
            Turn::After(pause) if self.waiting.wait(source, pause, progress).await => answered,
            Turn::After(_) | Turn::Never => {
                Answered { answer: wire::problem(&Problem::TooManyAttempts), ..answered }
            }
        }
    }

    /// A client that was given a wrong path.
    pub(super) fn warn_of_prefix(&self, problem: &Problem, path: &str) {
        if let Problem::Prefix(prefix) = problem {
            log::warn!(
                "a client asked for {} under {}, but this server serves {}: change the URL in the \
                 client's settings, or the option base_path",
                Shown(path),
                Shown(prefix),
                self.base_path
            );
        }
    }

    /// What fails every request alike, a full disk for one, fills no log; each request has its own line
    /// with its status.
    pub(super) fn warn_of_failure(&self, failure: &Failure, client: ClientId, path: &str) {
        match failure {
            Failure::Storage(error @ Error { kind: Kind::Full | Kind::Unavailable | Kind::Busy, .. }) => {
                if self.troubles.is_due(Instant::now()) {
                    log::error!(
                        "{} failed for client {client:?}: {error}; said at most once a minute",
                        Shown(path)
                    );
                }
            }
            Failure::Storage(error) => log::error!("{} failed for client {client:?}: {error}", Shown(path)),
            Failure::Busy | Failure::Stopped => {
                if self.delays.is_due(Instant::now()) {
                    let reason = reason(failure);
                    log::warn!(
                        "{} was put off for client {client:?}: {reason}; said at most once a minute",
                        Shown(path)
                    );
                }
            }
        }
    }

    fn warn_of_credential(&self, client: ClientId, brought: bool, peer: Peer) {
        let why = if !self.is_listed(client) {
            "it is not in the list of allowed clients, the option client_id"
        } else if brought {
            "its device's name or token is wrong, or the device was removed"
        } else {
            "it brought no name and token of a device; `sync-server admin add-device` makes them"
        };
        log::warn!(
            "client {client:?} was refused at {peer}: {why}; said at most once a minute for each address"
        );
    }
}

/// Tells the operator who is refused and what lets them in. Missing credentials are told of elsewhere.
pub fn warn(client: ClientId, refusal: Refusal) {
    let why = match refusal {
        Refusal::NotAllowed => {
            "it is not in the list of allowed clients; add its ID to the option client_id to let it in"
        }
        Refusal::UnknownClient => {
            "this server does not know it and creates no clients; make it with `sync-server admin \
             add-client --id`, or set the option create_clients to true to let it in"
        }
        Refusal::Suspended => "it is suspended; `sync-server admin resume-client` lets it in again",
        Refusal::Leaving => {
            "it or its history is being removed; where that was interrupted, the server carries it on within a minute"
        }
        Refusal::NoCredential => return,
    };
    log::warn!("client {client:?} was refused: {why}");
}

/// A request for whose body there was no room.
pub fn warn_of_memory(client: ClientId) {
    log::warn!(
        "a request of client {client:?} was refused: no memory for its body became free in time; \
         if this happens often, raise the option body.memory"
    );
}

/// Why the workers did not carry something out, for the operator.
pub fn reason(failure: &Failure) -> String {
    match failure {
        Failure::Busy => "too many requests wait for the database".to_owned(),
        Failure::Stopped => "the server is stopping".to_owned(),
        Failure::Storage(error) => error.message.clone(),
    }
}
