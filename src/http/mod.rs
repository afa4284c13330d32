//! One HTTP connection: deadlines, limits, dispatch, and the log line of each request.
//!
//! Knows what the workers answer, not how; what an answer looks like is [`wire`]'s business.

mod addresses;
mod attempts;
mod body;
mod connection;
mod crowd;
mod decode;
mod fetch;
mod forwarding;
mod line;
mod memory;
mod monitor;
mod pace;
mod progress;
mod refused;
mod seldom;
mod sender;
mod side;
mod timed;
mod unread;
pub mod wire;

use self::addresses::Addresses;
use self::attempts::Turn;
use self::body::{Reading, Reply, Source};
use self::connection::Seat;
pub use self::connection::{Visit, say, soon_after};
pub use self::crowd::Crowd;
use self::forwarding::Forwarding;
use self::line::Line;
use self::memory::{Memory, Reservation};
pub use self::monitor::Look;
use self::pace::Counts;
pub use self::pace::Crowded;
pub use self::progress::{Phase, Progress};
use self::refused::{Waiting, warn_of_memory};
pub use self::seldom::Seldom;
use self::sender::Sender;
pub use self::side::{Certificate, Entrance, SideDoor};

use self::wire::{Answer, Aside, Ask, Cors, Fetch, Problem, Upload};
use crate::config::{Config, Limits};
use crate::credential::Credential;
use crate::metrics::{Metrics, Transaction};
use crate::peer::{Peer, Trust};
use crate::protocol::{ClientId, Dropped, Outcome, Refusal, Request, VersionId, Write};
use crate::workers::{Failure, Pieces, Workers};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A body of this many bytes keeps its reservation while the workers have it, even where its
/// connection is lost meanwhile.
const KEPT: usize = 16 * 1024;

/// What all connections share.
pub struct App {
    workers: Workers,
    base_path: String,
    allowed: Option<BTreeSet<ClientId>>,
    require_device: bool,
    limits: Limits,
    memory: Memory,
    /// When someone last spoke TLS where HTTP is expected.
    strays: Seldom,
    /// When the database last failed for everyone.
    troubles: Seldom,
    /// When a request was last put off.
    delays: Seldom,
    waiting: Waiting,
    trust: Trust,
    forwarding: Forwarding,
    counts: Counts,
    /// Plain HTTP beside HTTPS.
    side: Option<SideDoor>,
    metrics: Arc<Metrics>,
    crowd: Arc<Crowd>,
    affairs: Look,
    cors: Cors,
}

/// An answer and what the log says of its request.
struct Answered {
    answer: Answer,
    client: Option<ClientId>,
    received: usize,
    reservation: Option<Reservation>,
    /// What follows the answer's head, and how long it is.
    poured: Option<(usize, Pieces)>,
}

impl Answered {
    fn new(answer: Answer, client: Option<ClientId>) -> Answered {
        Answered { answer, client, received: 0, reservation: None, poured: None }
    }
}

impl App {
    /// Takes what it needs of the configuration; `side` is said where plain HTTP is only an aside.
    /// `affairs` looks at what happens beside the requests.
    pub fn new(config: &Config, workers: Workers, side: Option<SideDoor>, affairs: Look) -> App {
        App {
            metrics: workers.metrics(),
            workers,
            base_path: config.base_path.clone(),
            allowed: config.client_id.clone(),
            require_device: config.require_device,
            limits: config.limits,
            memory: Memory::new(&config.limits),
            strays: Seldom::default(),
            troubles: Seldom::default(),
            delays: Seldom::default(),
            waiting: Waiting::default(),
            trust: Trust::new(config),
            forwarding: Forwarding::default(),
            counts: Counts::new(Addresses::new(&config.limits)),
            side,
            crowd: Arc::default(),
            affairs,
            cors: Cors::new(&config.cors_origins),
        }
    }

    /// How many connections may be open at once.
    pub fn connections(&self) -> usize {
        self.limits.connections
    }

    /// All connections that are open.
    pub fn crowd(&self) -> &Arc<Crowd> {
        &self.crowd
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whom the operator believes.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// How long the head of a request, and whatever comes before it, may take.
    pub fn header_timeout(&self) -> Duration {
        self.limits.header_timeout
    }

    /// How long requests in flight may take to finish once the server is told to stop.
    pub fn shutdown_timeout(&self) -> Duration {
        self.limits.shutdown_timeout
    }

    /// The server is stopping: whoever waits for an answer that is only held back gets it now.
    pub fn hurry(&self) {
        self.waiting.end();
    }

    /// Answers one request. What may wait is boxed, so that a request that does not takes no room for it.
    async fn answer(&self, head: &Parts, source: &mut Source, seat: &Seat) -> Response<Reply> {
        let began = Instant::now();
        let Seat { entrance, ref progress, .. } = *seat;
        progress.serve();
        let path = head.uri.path();
        let peer = self.real(seat.peer, &head.headers);
        let ask = match entrance {
            Entrance::Side => Ok(wire::ask_aside(&self.base_path, &head.method, path)),
            Entrance::Monitor => wire::ask_monitor(&head.method, &head.uri),
            Entrance::Main => wire::ask(&self.base_path, &head.method, path, &head.headers),
        };
        let mut sender = Sender::new(path, &head.headers);
        let brought = sender.credential.is_some();
        let is_probe = entrance == Entrance::Monitor || matches!(ask, Ok(Ask::Health | Ask::Ready));
        let transaction = ask.as_ref().map_or(Transaction::Other, Ask::transaction);
        let ask = match self.turn(peer) {
            Turn::Now => ask,
            turn => Box::pin(self.take(turn, progress)).await.and(ask),
        };
        let answered = match ask {
            Ok(Ask::Banner) => Answered::new(wire::banner(), None),
            Ok(Ask::Health) => Answered::new(wire::health(true), None),
            Ok(Ask::Ready) => Answered::new(wire::health(Box::pin(self.is_ready()).await), None),
            Ok(Ask::Metrics) => Answered::new(wire::metrics(self.metrics_text()), None),
            Ok(Ask::Verbose) => Answered::new(Box::pin(self.report()).await, None),
            Ok(Ask::Aside(aside)) => Answered::new(self.answer_aside(&aside, head, peer), None),
            Ok(Ask::Fetch(fetch)) => match self.fetch_here(fetch, &mut sender) {
                Ok(answered) => answered,
                Err(room) => Box::pin(self.fetch(fetch, room, sender)).await,
            },
            Ok(Ask::Upload(upload)) => Box::pin(self.upload(upload, sender, source, progress)).await,
            Err(problem) => {
                self.warn_of_prefix(&problem, path);
                let preflight = self.cors.preflight(&problem, &head.headers);
                let preflight =
                    preflight.filter(|_| head.method == Method::OPTIONS && entrance == Entrance::Main);
                Answered::new(preflight.unwrap_or_else(|| wire::problem(&problem)), None)
            }
        };
        let answered = match wire::wants_credential(&answered.answer) {
            true => Box::pin(self.slow_down(answered, brought, peer, progress)).await,
            false => answered,
        };
        let mut response = answered.answer;
        if entrance == Entrance::Main {
            self.cors.tell(&head.headers, response.headers_mut());
        }
        if !source.is_read() {
            // What is left of the body would be taken for the next request.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            progress.linger();
        }
        let poured = answered.poured.as_ref().map_or(0, |(len, _)| *len);
        let sent = response.body().len() + poured;
        let (status, took) = (response.status().as_u16(), began.elapsed());
        self.metrics.answered(transaction, status, took, (answered.received, sent));
        let line = Line {
            method: &head.method,
            path,
            status,
            client: answered.client,
            bytes: if answered.received > 0 { answered.received } else { sent },
            took,
            peer: if peer == seat.peer { Cow::Borrowed(&seat.name) } else { Cow::Owned(peer.to_string()) },
            is_probe,
        };
        line.log();
        response.map(|body| Reply::new(body, answered.poured, answered.reservation, progress.clone()))
    }

    fn answer_aside(&self, aside: &Aside, head: &Parts, peer: Peer) -> Answer {
        match &self.side {
            Some(side) => side.answer(aside, &head.uri, &head.headers, peer),
            None => wire::problem(&Problem::NotFound),
        }
    }

    async fn upload(
        &self,
        upload: Upload,
        mut sender: Sender<'_>,
        source: &mut Source,
        progress: &Progress,
    ) -> Answered {
        let client = upload.client;
        let admitted = match self.admit(client, &mut sender) {
            Ok(()) if source.is_large() || self.require_device => self.admit_body(client, &sender).await,
            admitted => admitted,
        };
        let collected = match admitted {
            Ok(()) => {
                let reading = Reading { source, progress, memory: &self.memory, limit: self.limits.body };
                reading.collect(upload.coding).await
            }
            Err(problem) => Err(problem),
        };
        progress.enter(Phase::Busy);
        match collected {
            Ok((body, reservation)) => {
                let received = body.len();
                let brought = sender.credential.clone();
                let result = self.store(upload.with_body(body), brought, reservation).await;
                let answer = self.conclude(client, &sender, result);
                Answered { received, ..Answered::new(answer, Some(client)) }
            }
            Err(problem) => {
                if problem == Problem::NoMemory {
                    warn_of_memory(client);
                }
                Answered::new(wire::problem(&problem), Some(client))
            }
        }
    }

    async fn store(
        &self,
        write: Write,
        brought: Option<Credential>,
        reservation: Reservation,
    ) -> Result<Outcome, Failure> {
        if write.len() < KEPT {
            return self.workers.call(Request::Write(write), brought).await;
        }
        let workers = self.workers.clone();
        let stored = tokio::spawn(async move {
            let result = workers.call(Request::Write(write), brought).await;
            drop(reservation);
            result
        });
        stored.await.unwrap_or(Err(Failure::Stopped))
    }

    /// Turns away a client that is not in the list of allowed ones. Where every request needs a
    /// credential, such a client has none that is valid: the list is not to be guessed either.
    fn admit(&self, client: ClientId, sender: &mut Sender) -> Result<(), Problem> {
        if self.is_listed(client) {
            return Ok(());
        }
        if self.require_device {
            sender.credential = None;
            return Ok(());
        }
        refused::warn(client, Refusal::NotAllowed);
        Err(Problem::Refused(Refusal::NotAllowed))
    }

    fn is_listed(&self, client: ClientId) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(&client))
    }

    /// A large body is not read, and no memory held for it, only to find that its client is not to
    /// be created, or suspended, or that the request comes from no device of it; nor is any body where
    /// every request needs a device. Whatever else is in the way, the transaction itself finds out.
    async fn admit_body(&self, client: ClientId, sender: &Sender<'_>) -> Result<(), Problem> {
        let look = Fetch::ChildVersion { client, parent: VersionId::NIL };
        match self.workers.call(Request::Read(look.read(0)), sender.credential.clone()).await {
            Ok(Outcome::Refused(refusal)) => {
                refused::warn(client, refusal);
                Err(Problem::Refused(refusal))
            }
            _ => Ok(()),
        }
    }

    /// Turns what the workers said into an answer, and tells the operator what a person must know.
    fn conclude(&self, client: ClientId, sender: &Sender, result: Result<Outcome, Failure>) -> Answer {
        let path = sender.path;
        match &result {
            Ok(Outcome::Refused(refusal)) => refused::warn(client, *refusal),
            Ok(Outcome::SnapshotDropped(dropped)) => log::warn!(
                "a snapshot of client {client:?} was dropped: {}",
                match dropped {
                    Dropped::OlderThanHeld => "the held one is for a later version; nothing needs to be done",
                    Dropped::NotRecent => {
                        "it is for none of the client's last five versions. Nothing is lost, and another will be \
                         asked for; if this happens again and again, let one device sync while the others do not"
                    }
                }
            ),
            Err(failure) => self.warn_of_failure(failure, client, path),
            Ok(_) => {}
        }
        if !matches!(result, Err(_) | Ok(Outcome::Refused(_) | Outcome::NoSuchClient)) {
            self.note(client, sender);
        }
        match result {
            Ok(outcome) => wire::outcome(outcome),
            Err(failure) => wire::failure(&failure),
        }
    }

    fn note(&self, client: ClientId, sender: &Sender) {
        self.workers.note(client, sender.credential.as_ref().map(Credential::name), sender.program);
    }
}
