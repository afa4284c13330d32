//! The deadlines of one connection.
//!
//! hyper knows a deadline for the head only, and lets it run while a kept connection idles. So the
//! stream counts what moves, the request's handler says which phase it is in, and [`Watch`], a pure
//! function of both and the time, says until when the next movement must come. One timer for each
//! connection is enough; see [`connection`](super::connection).

use crate::config::Limits;
use crate::peer::proxy;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes a second that a body must keep up on average, sent or received, beyond its first
/// deadline: enough for the slowest modem, too much for a trickle that only holds memory.
const LOWEST_RATE: u64 = 1024;

/// The first byte of every TLS connection, and of no HTTP request.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It waits for the next request.
    Idle,
    /// Some of a request's head has arrived.
    Head,
    /// A request's body is wanted.
    Body,
    /// The server works, or waits for itself.
    Busy,
}

/// What one connection has done so far; written by its stream and its requests' handler, which run
/// in one task.
#[derive(Default)]
pub struct Progress {
    phase: AtomicU8,
    /// Counts the changes of phase, so that no two phases look like one.
    turn: AtomicU32,
    read: AtomicU64,
    written: AtomicU64,
    is_blocked: AtomicBool,
    is_expired: AtomicBool,
    must_linger: AtomicBool,
    is_tls: AtomicBool,
    is_proxied: AtomicBool,
}

impl Progress {
    /// Begins a phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.turn.store(self.turn.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// The phase that was entered last.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Body,
            _ => Phase::Busy,
        }
    }

    /// Whether the peer does not take what is written.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked.load(Relaxed)
    }

    /// Says that the body that is being read has missed its deadline.
    pub fn expire(&self) {
        self.is_expired.store(true, Relaxed);
    }

    /// Whether the body that is being read has missed its deadline.
    pub fn is_expired(&self) -> bool {
        self.is_expired.load(Relaxed)
    }

    /// Says that an answer went out before all of its request was read.
    pub fn linger(&self) {
        self.must_linger.store(true, Relaxed);
    }

    /// Whether an answer went out before all of its request was read.
    pub fn must_linger(&self) -> bool {
        self.must_linger.load(Relaxed)
    }

    /// Whether the peer spoke TLS instead of HTTP.
    pub fn is_tls(&self) -> bool {
        self.is_tls.load(Relaxed)
    }

    /// Whether the peer began with a header of the PROXY protocol.
    pub fn is_proxied(&self) -> bool {
        self.is_proxied.load(Relaxed)
    }

    fn has_read(&self, bytes: u64) {
        self.read.store(self.read.load(Relaxed) + bytes, Relaxed);
        if bytes > 0 && self.phase() == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    fn has_written(&self, bytes: u64) {
        self.written.store(self.written.load(Relaxed) + bytes, Relaxed);
    }
}

/// Whose turn it is, as the deadlines see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The peer may send a request.
    Idle,
    /// The peer must go on with a head.
    Head,
    /// The peer must go on with a body.
    Body,
    /// The peer must take what is written.
    Write,
    /// The server's.
    Busy,
}

/// Turns progress into deadlines.
pub struct Watch {
    header_timeout: Duration,
    body_timeout: Duration,
    idle_timeout: Duration,
    stage: Stage,
    turn: u32,
    began: Instant,
    count_at_start: u64,
    moved: Instant,
    count: u64,
}

impl Watch {
    /// Of a connection that was opened at `now`.
    pub fn new(limits: &Limits, now: Instant) -> Watch {
        Watch {
            header_timeout: limits.header_timeout,
            body_timeout: limits.body_timeout,
            idle_timeout: limits.idle_timeout,
            stage: Stage::Idle,
            turn: 0,
            began: now,
            count_at_start: 0,
            moved: now,
            count: 0,
        }
    }

    /// What the connection is at since the last look.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Until when the peer must move, as things are `now`; `None` while it is the server's turn.
    pub fn deadline(&mut self, progress: &Progress, now: Instant) -> Option<Instant> {
        self.look(progress, now);
        match self.stage {
            Stage::Idle => Some(self.began + self.idle_timeout),
            Stage::Head => Some(self.began + self.header_timeout),
            Stage::Body | Stage::Write => {
                let earned = Duration::from_secs((self.count - self.count_at_start) / LOWEST_RATE);
                let patience = self.body_timeout;
                Some((self.moved + patience).min(self.began + patience + earned))
            }
            Stage::Busy => None,
        }
    }

    fn look(&mut self, progress: &Progress, now: Instant) {
        let (stage, count) = match progress.phase() {
            _ if progress.is_blocked() => (Stage::Write, progress.written.load(Relaxed)),
            Phase::Idle => (Stage::Idle, 0),
            Phase::Head => (Stage::Head, 0),
            Phase::Body => (Stage::Body, progress.read.load(Relaxed)),
            Phase::Busy => (Stage::Busy, 0),
        };
        let turn = progress.turn.load(Relaxed);
        // What arrives while an answer is written begins no phase that counts.
        if stage != self.stage || (turn != self.turn && stage != Stage::Write) {
            (self.stage, self.turn) = (stage, turn);
            (self.began, self.moved) = (now, now);
            (self.count_at_start, self.count) = (count, count);
        } else if count != self.count {
            (self.moved, self.count) = (now, count);
        }
    }
}

/// A stream that counts what moves.
pub struct Timed<S> {
    stream: S,
    progress: Arc<Progress>,
}

impl<S> Timed<S> {
    /// Counts into `progress`.
    pub fn new(stream: S, progress: Arc<Progress>) -> Timed<S> {
        Timed { stream, progress }
    }

    /// The stream itself.
    pub fn into_inner(self) -> S {
        self.stream
    }

    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.progress.is_blocked.store(result.is_pending(), Relaxed);
        if let Poll::Ready(Ok(bytes)) = result {
            self.progress.has_written(bytes as u64);
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.progress.read.load(Relaxed) == 0 {
            let first = &buf.filled()[before..];
            if first.first() == Some(&TLS_HANDSHAKE) {
                // For hyper the peer has hung up: an answer in plain text would only confuse it.
                self.progress.is_tls.store(true, Relaxed);
                buf.set_filled(before);
            } else if proxy::is_begun(first) {
                self.progress.is_proxied.store(true, Relaxed);
            }
        }
        self.progress.has_read((buf.filled().len() - before) as u64);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.progress.is_blocked.store(result.is_pending(), Relaxed);
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.progress.is_blocked.store(result.is_pending(), Relaxed);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const SECOND: Duration = Duration::from_secs(1);

    struct Clock {
        watch: Watch,
        progress: Progress,
        start: Instant,
    }

    impl Clock {
        fn new() -> Clock {
            let start = Instant::now();
            let limits = Limits {
                header_timeout: 10 * SECOND,
                body_timeout: 30 * SECOND,
                idle_timeout: 75 * SECOND,
                ..Config::default().limits
            };
            Clock { watch: Watch::new(&limits, start), progress: Progress::default(), start }
        }

        /// The deadline in seconds since the start, seen at this many seconds.
        fn deadline_at(&mut self, seconds: u32) -> Option<u64> {
            let now = self.start + seconds * SECOND;
            let deadline = self.watch.deadline(&self.progress, now);
            deadline.map(|deadline| deadline.duration_since(self.start).as_secs())
        }
    }

    #[test]
    fn an_idle_connection_waits_long_and_a_begun_head_does_not() {
        let mut clock = Clock::new();
        assert_eq!(clock.deadline_at(0), Some(75));
        clock.progress.has_read(1);
        assert_eq!(clock.deadline_at(40), Some(50));
        clock.progress.has_read(1);
        assert_eq!(clock.deadline_at(49), Some(50));
        assert_eq!(clock.watch.stage(), Stage::Head);
    }

    #[test]
    fn there_is_no_deadline_while_the_server_works_and_a_new_one_after_each_request() {
        let mut clock = Clock::new();
        clock.progress.has_read(100);
        clock.progress.enter(Phase::Busy);
        assert_eq!(clock.deadline_at(1), None);
        clock.progress.enter(Phase::Idle);
        assert_eq!(clock.deadline_at(100), Some(175));
        // A whole request between two looks.
        clock.progress.has_read(100);
        clock.progress.enter(Phase::Busy);
        clock.progress.enter(Phase::Idle);
        assert_eq!(clock.deadline_at(120), Some(195));
    }

    #[test]
    fn a_body_must_move_and_keep_up_a_rate() {
        let mut clock = Clock::new();
        clock.progress.enter(Phase::Body);
        assert_eq!(clock.deadline_at(0), Some(30));
        // A trickle moves but earns nothing.
        for second in 1..29 {
            clock.progress.has_read(1);
            assert_eq!(clock.deadline_at(second), Some(30));
        }
        // A hundred seconds' worth of bytes: now only a stall ends it.
        clock.progress.has_read(100 * 1024);
        assert_eq!(clock.deadline_at(29), Some(59));
        assert_eq!(clock.deadline_at(40), Some(59));
    }

    #[test]
    fn a_slow_reader_is_timed_by_what_it_takes_whatever_it_sends_meanwhile() {
        let mut clock = Clock::new();
        clock.progress.enter(Phase::Idle);
        clock.progress.is_blocked.store(true, Relaxed);
        assert_eq!(clock.deadline_at(5), Some(35));
        clock.progress.has_read(10);
        assert_eq!(clock.deadline_at(6), Some(35));
        clock.progress.has_written(1024 * 1024);
        assert_eq!(clock.deadline_at(20), Some(50));
        // Once the answer is out, the head that came meanwhile has all its time.
        clock.progress.is_blocked.store(false, Relaxed);
        assert_eq!(clock.deadline_at(45), Some(55));
        assert_eq!(clock.watch.stage(), Stage::Head);
    }
}
