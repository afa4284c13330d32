//! The deadlines of one connection.
//!
//! hyper knows a deadline for the head only, and lets it run while a kept connection idles. So the
//! stream counts what moves, the request's handler says which phase it is in, and [`Watch`], a pure
//! function of both and the time, says until when the next movement must come. One timer for each
//! connection is enough; see [`connection`](super::connection).

use super::progress::{Phase, Progress};
use crate::config::Limits;
use crate::peer::proxy;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes a second that a body must keep up on average, sent or received, beyond its first
/// deadline: enough for the slowest modem, too much for a trickle that only holds memory.
const LOWEST_RATE: u64 = 1024;

/// The same for bodies that hold memory of the large share while someone else waits for it: else two
/// that trickle would hold all of it for a day. A body of 100 MiB still has half an hour.
const WANTED_RATE: u64 = 64 * 1024;

/// What they are given beyond that.
const WANTED_PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether someone waits.
const LOOK: Duration = Duration::from_secs(2);

/// The first byte of every TLS connection, and of no HTTP request.
const TLS_HANDSHAKE: u8 = 0x16;

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
    /// `is_wanted` says whether someone waits for memory of the large share.
    pub fn deadline(&mut self, progress: &Progress, now: Instant, is_wanted: bool) -> Option<Instant> {
        self.look(progress, now);
        let is_wanted = is_wanted && progress.has_large_body();
        match self.stage {
            Stage::Idle => Some(self.began + self.idle_timeout),
            Stage::Head => Some(self.began + self.header_timeout),
            Stage::Body | Stage::Write => {
                let patience = self.body_timeout;
                let (rate, start) = match is_wanted {
                    true => (WANTED_RATE, WANTED_PATIENCE.min(patience)),
                    false => (LOWEST_RATE, patience),
                };
                let earned = Duration::from_secs((self.count - self.count_at_start) / rate);
                Some((self.moved + patience).min(self.began + start + earned))
            }
            Stage::Busy => None,
        }
    }

    /// When to look again, before the deadline, whether it still is one.
    pub fn next_look(&self, progress: &Progress, now: Instant, deadline: Instant) -> Instant {
        let is_timed = matches!(self.stage, Stage::Body | Stage::Write);
        if is_timed && progress.has_large_body() { deadline.min(now + LOOK) } else { deadline }
    }

    fn look(&mut self, progress: &Progress, now: Instant) {
        let (stage, count) = match progress.phase() {
            _ if progress.is_blocked() => (Stage::Write, progress.written()),
            Phase::Idle => (Stage::Idle, 0),
            Phase::Head => (Stage::Head, 0),
            Phase::Body => (Stage::Body, progress.read()),
            Phase::Busy | Phase::Leaving => (Stage::Busy, 0),
        };
        let turn = progress.turn();
        // What arrives while an answer is written begins no phase that counts.
        if stage != self.stage || (turn != self.turn && stage != Stage::Write) {
            (self.stage, self.turn) = (stage, turn);
            (self.began, self.moved) = (now, now);
            (self.count_at_start, self.count) = (count, count);
            progress.began(now, count);
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

    /// Whether an answer is still to be given or taken.
    fn is_owed(&self) -> bool {
        self.progress.is_blocked() || matches!(self.progress.phase(), Phase::Busy | Phase::Body)
    }

    fn wrote(&self, first: &[u8], result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if self.progress.phase() == Phase::Head
            && let Some(status) = status(first)
        {
            self.progress.found_unread(status);
        }
        self.progress.block(result.is_pending());
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
        if self.progress.has_hung_up() {
            return if self.is_owed() { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let is_end =
            matches!(result, Poll::Ready(Ok(()))) && buf.filled().len() == before && buf.remaining() > 0;
        if is_end && self.progress.phase() != Phase::Idle {
            // Whoever has asked and said that this was all still wants to hear the answer. For hyper it
            // would be the end, so it learns of it later, when a head that is whole has been heeded.
            self.progress.hang_up();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.progress.read() == 0 {
            let first = &buf.filled()[before..];
            if first.first() == Some(&TLS_HANDSHAKE) {
                // For hyper the peer has hung up: an answer in plain text would only confuse it.
                self.progress.found_tls();
                buf.set_filled(before);
            } else if proxy::is_begun(first) {
                self.progress.found_proxy();
            }
        }
        self.progress.has_read((buf.filled().len() - before) as u64);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(buf, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(bufs.first().map_or(&[], |first| first), result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.progress.block(result.is_pending());
        if self.progress.has_hung_up() && !self.is_owed() {
            // The end can be told now.
            cx.waker().wake_by_ref();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.progress.block(result.is_pending());
        result
    }
}

/// The status of an answer that begins here.
fn status(written: &[u8]) -> Option<u16> {
    let digits = written.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
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
        is_wanted: bool,
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
            Clock {
                watch: Watch::new(&limits, start),
                progress: Progress::default(),
                start,
                is_wanted: false,
            }
        }

        /// The deadline in seconds since the start, seen at this many seconds.
        fn deadline_at(&mut self, seconds: u32) -> Option<u64> {
            let now = self.start + seconds * SECOND;
            let deadline = self.watch.deadline(&self.progress, now, self.is_wanted);
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
    fn a_large_body_must_be_faster_while_someone_waits_for_its_memory() {
        let mut clock = Clock::new();
        clock.progress.enter(Phase::Body);
        assert_eq!(clock.deadline_at(0), Some(30));
        clock.progress.has_read(640 * 1024);
        assert_eq!(clock.deadline_at(25), Some(55));
        clock.is_wanted = true;
        assert_eq!(clock.deadline_at(25), Some(55), "a small one holds nothing that others want");
        clock.progress.hold_large_body(true);
        assert_eq!(clock.deadline_at(25), Some(20));
        let look = clock.watch.next_look(&clock.progress, clock.start, clock.start + 40 * SECOND);
        assert_eq!(look, clock.start + LOOK);
    }

    #[test]
    fn a_slow_reader_is_timed_by_what_it_takes_whatever_it_sends_meanwhile() {
        let mut clock = Clock::new();
        clock.progress.enter(Phase::Idle);
        clock.progress.block(true);
        assert_eq!(clock.deadline_at(5), Some(35));
        clock.progress.has_read(10);
        assert_eq!(clock.deadline_at(6), Some(35));
        clock.progress.has_written(1024 * 1024);
        assert_eq!(clock.deadline_at(20), Some(50));
        // Once the answer is out, the head that came meanwhile has all its time.
        clock.progress.block(false);
        assert_eq!(clock.deadline_at(45), Some(55));
        assert_eq!(clock.watch.stage(), Stage::Head);
    }
}
