//! The one place where async meets blocking: named threads behind bounded queues.
//!
//! A read that the page cache can answer takes some microseconds, less than it takes to wake a
//! thread, so reads run where they are asked. As soon as some turn out slow, the disk is cold or
//! busy, and for a while all reads go to threads of their own, so that it does not hold up the
//! network. Bodies that take longer to copy than a thread to wake always do. Writes run on one thread
//! that commits whatever is queued in one transaction: while one commit waits for the disk, the next
//! group gathers. No timer delays it, so an idle server adds no latency. Nothing is answered before the
//! commit that contains it.

mod large;
mod syncs;
mod writer;

use self::large::read_large;
use self::syncs::Syncs;
use self::writer::write_all;
use crate::credential::Credential;
use crate::metrics::Metrics;
use crate::protocol::{ClientId, Outcome, Read, Request, VersionId, Write};
use crate::service::{self, Policy};
use crate::storage::{Error, Kind, Manner, Result, Storage};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// About so many jobs may wait in each queue. Above it a caller gets [`Failure::Busy`]. The queues grow
/// with what waits, for one that held room for all would take megabytes of an idle server.
const QUEUE: usize = 4096;

/// Bodies of up to this many bytes are read where they are asked for.
const HERE: usize = 128 * 1024;

/// A read that takes longer has waited for the disk, or for its turn on a busy processor.
const SLOW_READ: Duration = Duration::from_millis(1);

/// One slow read among this many others was the processor; the disk makes them come together.
const FAST_READS: u32 = 16;

/// Slow reads that come together until the disk counts as slow.
const SLOW_READS: u32 = 3;

/// How long reads then go to threads of their own.
const SLOW_SPELL: Duration = Duration::from_millis(500);

/// A body of this many bytes or more is moved by itself: it would hold up those that share its
/// transaction, and on the reading side the thread that they wait for.
const LARGE: usize = 512 * 1024;

/// Snapshots of this many bytes or more are better sent while they are read than afterwards.
pub const POURED: usize = LARGE;

/// The front desk: hands requests to the threads. Cheap to clone; the threads end when the last
/// clone is gone.
#[derive(Clone)]
pub struct Workers {
    metrics: Arc<Metrics>,
    reads: Sender<Job<Read>>,
    large_reads: Sender<LargeRead>,
    writes: Sender<Job<Write>>,
    probes: Sender<Job<Read>>,
    syncs: Arc<Syncs>,
    here: Arc<Here>,
    asked: Arc<AtomicU64>,
}

/// What answers reads where they are asked.
struct Here {
    storage: Arc<dyn Storage>,
    policy: Policy,
    manner: Manner,
    start: Instant,
    /// Until when the disk counts as slow, in microseconds since the start.
    slow_until: AtomicU64,
    /// Grows by [`FAST_READS`] with a slow read, and shrinks by one with any other. Threads may miss
    /// each other's changes: it is a rough measure.
    slowness: AtomicU32,
}

/// The threads, to be joined once every [`Workers`] is gone.
pub struct Threads(Vec<JoinHandle<()>>);

/// Why a request got no outcome.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The queue is full: try again later.
    Busy,
    /// The database failed.
    Storage(Error),
    /// The server is stopping.
    Stopped,
}

struct Job<T> {
    /// `None` asks only whether the thread is alive.
    request: Option<T>,
    /// The credential that the request brings.
    brought: Option<Credential>,
    since: Instant,
    reply: oneshot::Sender<Result<Outcome>>,
}

/// A body that comes in pieces. Where they end too early the reading failed, which the log explains.
pub type Pieces = mpsc::UnboundedReceiver<Vec<u8>>;

/// A read of a large body, and where a snapshot goes whose pieces are asked for.
type LargeRead = (Job<Read>, Option<mpsc::UnboundedSender<Vec<u8>>>);

impl Workers {
    /// Starts the threads.
    pub fn start(storage: Arc<dyn Storage>, policy: Policy) -> std::io::Result<(Workers, Threads)> {
        let (reads, read_jobs) = unbounded();
        let (large_reads, large_jobs) = unbounded();
        let (writes, write_jobs) = unbounded();
        let (probes, probe_jobs) = unbounded();
        let manner = storage.manner();
        let here = Here {
            storage: storage.clone(),
            policy,
            manner,
            start: Instant::now(),
            slow_until: AtomicU64::new(0),
            slowness: AtomicU32::new(0),
        };
        let mut threads = Vec::new();
        for n in 0..manner.readers {
            threads.push(reader(format!("reader-{n}"), storage.clone(), policy, read_jobs.clone())?);
        }
        let large_storage = storage.clone();
        threads.push(spawn("reader-large".to_owned(), move || {
            read_large(&*large_storage, &policy, &large_jobs);
        })?);
        let syncs = Arc::new(Syncs::default());
        let metrics = Arc::new(Metrics::default());
        if manner.is_remote {
            threads.push(reader("prober".to_owned(), storage.clone(), policy, probe_jobs)?);
        }
        for n in 0..manner.writers {
            let name = if manner.writers == 1 { "writer".to_owned() } else { format!("writer-{n}") };
            let (storage, jobs) = (storage.clone(), write_jobs.clone());
            let (noted, counted) = (syncs.clone(), metrics.clone());
            threads.push(spawn(name, move || write_all(&*storage, &policy, &jobs, &noted, &counted))?);
        }
        let (here, asked) = (Arc::new(here), Arc::default());
        Ok((Workers { metrics, reads, large_reads, writes, probes, syncs, here, asked }, Threads(threads)))
    }

    /// Answers one request. A write is durable when its outcome arrives.
    ///
    /// `brought` is the credential that the request brings; it counts where one is needed.
    pub async fn call(
        &self,
        request: Request,
        brought: Option<Credential>,
    ) -> std::result::Result<Outcome, Failure> {
        self.asked.fetch_add(1, Relaxed);
        match request {
            Request::Read(read) if room(&read) >= LARGE => {
                send(&self.large_reads, Some(read), brought, |job| (job, None)).await
            }
            Request::Read(read) => match self.here.try_answer(&read, brought.as_ref()) {
                None => self.read(read, brought).await,
                // The copying is better done beside the sending of others.
                Some(Ok(Outcome::NeedsRoom { len, .. })) if len <= room(&read) => {
                    self.read(read, brought).await
                }
                Some(answer) => answer,
            },
            Request::Write(write) => send(&self.writes, Some(write), brought, |job| job).await,
        }
    }

    /// Answers a read on this thread, which it holds up for no longer than it takes to wake another; `None`
    /// where it could. [`Outcome::NeedsRoom`] says that the body is larger than it was given room, or is better
    /// copied elsewhere.
    pub fn call_here(
        &self,
        read: &Read,
        brought: Option<&Credential>,
    ) -> Option<std::result::Result<Outcome, Failure>> {
        self.asked.fetch_add(1, Relaxed);
        self.here.try_answer(read, brought)
    }

    async fn read(&self, read: Read, brought: Option<Credential>) -> std::result::Result<Outcome, Failure> {
        send(&self.reads, Some(read), brought, |job| job).await
    }

    /// Answers GetSnapshot. [`Outcome::NeedsRoom`] with no more than `room` bytes says that they come in
    /// pieces, of which none is held back for who reads slowly.
    pub async fn pour_snapshot(
        &self,
        client: ClientId,
        room: usize,
        brought: Option<Credential>,
    ) -> std::result::Result<(Outcome, Pieces), Failure> {
        let (sink, pieces) = mpsc::unbounded_channel();
        let read = Read::GetSnapshot { client, room };
        let outcome = send(&self.large_reads, Some(read), brought, |job| (job, Some(sink))).await?;
        Ok((outcome, pieces))
    }

    /// What is counted.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// How many jobs wait, by the name of their queue.
    pub fn queues(&self) -> [(&'static str, usize); 3] {
        [("reads", self.reads.len()), ("large_reads", self.large_reads.len()), ("writes", self.writes.len())]
    }

    /// How many requests there were, which tells quiet times from others.
    pub fn asked(&self) -> Arc<AtomicU64> {
        self.asked.clone()
    }

    /// Notes that a client was served for a program on a device, if the request named one, which
    /// operators may want to know. It is written with one of the next writes: a crash may lose it.
    pub fn note(&self, client: ClientId, device: Option<&str>, program: &str) {
        self.syncs.note(client, device, program, unix_seconds());
    }

    /// How long a thread may wait for a database elsewhere until it gives up: for a connection, for its
    /// answer, and for what became of it where that was lost.
    pub fn longest_wait(&self) -> Duration {
        let manner = self.here.manner;
        if manner.is_remote { manner.patience * 4 } else { Duration::ZERO }
    }

    /// Asks whether the threads still answer: a real read, and a sign of life from the writer.
    pub async fn probe(&self) -> std::result::Result<(), Failure> {
        let client = Uuid::nil().into();
        let parent = VersionId::NIL;
        let read = Read::GetChildVersion { client, parent, room: 0 };
        if self.here.manner.is_remote {
            // A thread of its own, so that it says what the database does and not how many wait for it.
            return send(&self.probes, Some(read), None, |job| job).await.map(|_| ());
        }
        let read = self.read(read, None);
        let (read, written) = tokio::join!(read, send(&self.writes, None, None, |job| job));
        read.and(written).map(|_| ())
    }
}

impl Here {
    fn is_slow(&self) -> bool {
        let until = self.slow_until.load(Relaxed);
        // Without a look at the clock where it never was.
        until > 0 && until > self.micros()
    }

    fn try_answer(
        &self,
        read: &Read,
        brought: Option<&Credential>,
    ) -> Option<std::result::Result<Outcome, Failure>> {
        if self.manner.is_remote || self.is_slow() {
            return None;
        }
        Some(self.answer(&with_room(read.clone(), HERE), brought).map_err(Failure::Storage))
    }

    fn answer(&self, read: &Read, brought: Option<&Credential>) -> Result<Outcome> {
        let began = self.micros();
        let run = || self.storage.glancing(|reader| service::read(reader, &self.policy, read, brought));
        let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(panicked()));
        self.learn(began);
        outcome
    }

    fn learn(&self, began: u64) {
        let (now, slowness) = (self.micros(), self.slowness.load(Relaxed));
        if now - began <= SLOW_READ.as_micros() as u64 {
            if slowness > 0 {
                self.slowness.store(slowness - 1, Relaxed);
            }
        } else if slowness < FAST_READS * (SLOW_READS - 1) {
            self.slowness.store(slowness + FAST_READS, Relaxed);
        } else {
            // What it has come to stays: after the spell, one slow read is enough for another.
            self.slow_until.store(now + SLOW_SPELL.as_micros() as u64, Relaxed);
        }
    }

    fn micros(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}

impl Threads {
    /// Waits until every queued job is answered and the threads have ended.
    pub fn join(self) {
        for thread in self.0 {
            // A panic of a worker was already answered and reported where it happened.
            let _ = thread.join();
        }
    }
}

fn room(read: &Read) -> usize {
    match read {
        Read::GetChildVersion { room, .. } | Read::GetSnapshot { room, .. } => *room,
    }
}

fn with_room(mut read: Read, most: usize) -> Read {
    let (Read::GetChildVersion { room, .. } | Read::GetSnapshot { room, .. }) = &mut read;
    *room = most.min(*room);
    read
}

async fn send<T, J>(
    queue: &Sender<J>,
    request: Option<T>,
    brought: Option<Credential>,
    queued: impl FnOnce(Job<T>) -> J,
) -> std::result::Result<Outcome, Failure> {
    if queue.len() >= QUEUE {
        return Err(Failure::Busy);
    }
    let (reply, answer) = oneshot::channel();
    let job = queued(Job { request, brought, since: Instant::now(), reply });
    queue.send(job).map_err(|_| Failure::Stopped)?;
    answer.await.map_err(|_| Failure::Stopped)?.map_err(Failure::Storage)
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(work)
}

fn reader(
    name: String,
    storage: Arc<dyn Storage>,
    policy: Policy,
    jobs: Receiver<Job<Read>>,
) -> std::io::Result<JoinHandle<()>> {
    spawn(name, move || {
        let patience = storage.manner().patience;
        for job in &jobs {
            let Some(job) = in_time(job, patience) else { continue };
            answer(vec![job], |batch| {
                storage.glancing(|reader| {
                    each(batch, |read, brought| service::read(reader, &policy, read, brought))
                })
            });
        }
    })
}

/// The job, unless it has waited for so long that its answer must not wait for the database as well.
fn in_time<T>(job: Job<T>, patience: Duration) -> Option<Job<T>> {
    if job.since.elapsed() <= patience {
        return Some(job);
    }
    let message = format!("the request waited {patience:?} for its turn, for the database is too slow");
    // Nobody waits any more where the connection is gone.
    let _ = job.reply.send(Err(Error::new(Kind::Busy, message)));
    None
}

fn is_large(job: &Job<Write>) -> bool {
    job.request.as_ref().is_some_and(|write| write.len() >= LARGE)
}

/// Runs `work` on each request of a batch; a mere sign of life is answered without work.
fn each<T>(
    batch: &[Job<T>],
    mut work: impl FnMut(&T, Option<&Credential>) -> Result<Outcome>,
) -> Result<Vec<Outcome>> {
    let answer = |job: &Job<T>| match &job.request {
        Some(request) => work(request, job.brought.as_ref()),
        None => Ok(Outcome::UpToDate),
    };
    batch.iter().map(answer).collect()
}

/// Answers a batch together; where that fails, each job by itself, so that one request that cannot
/// be served does not fail those that happened to share its transaction. A database that another
/// process holds fails all of them alike, and each attempt would wait for it anew.
fn answer<T>(batch: Vec<Job<T>>, run: impl Fn(&[Job<T>]) -> Result<Vec<Outcome>> + Copy) {
    match catch_unwind(AssertUnwindSafe(|| run(&batch))).unwrap_or_else(|_| Err(panicked())) {
        Ok(outcomes) => {
            for (job, outcome) in batch.into_iter().zip(outcomes) {
                // Nobody waits any more where the connection is gone.
                let _ = job.reply.send(Ok(outcome));
            }
        }
        Err(error) if batch.len() > 1 && error.kind != Kind::Busy => {
            batch.into_iter().for_each(|job| answer(vec![job], run))
        }
        Err(error) => batch.into_iter().for_each(|job| {
            let _ = job.reply.send(Err(error.clone()));
        }),
    }
}

fn panicked() -> Error {
    Error::new(Kind::Other, "a defect in this program stopped the transaction; the log has the details")
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Answers three requests whose transactions all fail like this; returns how many were tried.
    fn attempts(kind: Kind) -> usize {
        let (jobs, mut replies): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| {
                let (reply, answer) = oneshot::channel();
                (Job { request: Some(()), brought: None, since: Instant::now(), reply }, answer)
            })
            .unzip();
        let attempts = Cell::new(0);
        answer(jobs, |_| {
            attempts.set(attempts.get() + 1);
            Err(Error::new(kind, "no"))
        });
        for reply in &mut replies {
            assert_eq!(reply.try_recv().unwrap().unwrap_err().kind, kind);
        }
        attempts.get()
    }

    #[test]
    fn a_failed_group_is_tried_one_by_one_except_where_another_process_is_in_the_way() {
        assert_eq!(attempts(Kind::Full), 1 + 3);
        assert_eq!(attempts(Kind::Busy), 1);
    }
}
