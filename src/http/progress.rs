//! What one connection has done so far, and whether it could make room for another.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// How long a connection may be each of these before it makes room where there are too many.
const SILENT: Duration = Duration::from_secs(2);
const LEAVING: Duration = Duration::from_secs(1);
const HEAD: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(5);
const SLOW: Duration = Duration::from_secs(10);

/// A body below this many bytes a second is slow where others wait for a connection.
const SLOW_RATE: u64 = 16 * 1024;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It waits for the next request, or for what comes before the first.
    Idle,
    /// Some of a request's head has arrived.
    Head,
    /// A request's body is wanted.
    Body,
    /// The server works, or waits for itself.
    Busy,
    /// Everything is said, and the peer may still be talking.
    Leaving,
}

/// How little is lost by the end of a connection, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It has asked for nothing yet, or will not get more.
    Silent,
    /// It is still asking.
    Head,
    /// It was answered, and may ask again.
    Idle,
    /// It sends or takes a body, slowly.
    Slow,
}

/// What one connection has done so far; written by its stream and its requests' handler, which run
/// in one task.
pub struct Progress {
    opened: Instant,
    phase: AtomicU8,
    /// Counts the changes of phase, so that no two phases look like one.
    turn: AtomicU32,
    read: AtomicU64,
    written: AtomicU64,
    /// When the stage that is timed now began, in milliseconds since the connection was opened, and
    /// what had been moved by then.
    since: AtomicU64,
    mark: AtomicU64,
    is_blocked: AtomicBool,
    is_expired: AtomicBool,
    must_linger: AtomicBool,
    is_tls: AtomicBool,
    is_proxied: AtomicBool,
    has_hung_up: AtomicBool,
    was_served: AtomicBool,
    has_large_body: AtomicBool,
    /// The status of what was written before a request was there to be answered.
    unread_status: AtomicU16,
    is_unwanted: AtomicBool,
    /// Wakes the connection's task.
    waker: Mutex<Option<Waker>>,
}

impl Default for Progress {
    /// Of a connection that is opened now.
    fn default() -> Progress {
        Progress {
            opened: Instant::now(),
            phase: AtomicU8::new(Phase::Idle as u8),
            turn: AtomicU32::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            since: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            is_blocked: AtomicBool::new(false),
            is_expired: AtomicBool::new(false),
            must_linger: AtomicBool::new(false),
            is_tls: AtomicBool::new(false),
            is_proxied: AtomicBool::new(false),
            has_hung_up: AtomicBool::new(false),
            was_served: AtomicBool::new(false),
            has_large_body: AtomicBool::new(false),
            unread_status: AtomicU16::new(0),
            is_unwanted: AtomicBool::new(false),
            waker: Mutex::new(None),
        }
    }
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
            3 => Phase::Busy,
            _ => Phase::Leaving,
        }
    }

    /// Which change of phase was the last.
    pub fn turn(&self) -> u32 {
        self.turn.load(Relaxed)
    }

    /// Bytes read so far.
    pub fn read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Whether the peer does not take what is written.
    pub fn is_blocked(&self) -> bool {
        self.is_blocked.load(Relaxed)
    }

    /// Says whether the peer takes what is written.
    pub fn block(&self, is_blocked: bool) {
        self.is_blocked.store(is_blocked, Relaxed);
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

    /// Says that the peer speaks TLS instead of HTTP.
    pub fn found_tls(&self) {
        self.is_tls.store(true, Relaxed);
    }

    /// Whether the peer spoke TLS instead of HTTP.
    pub fn is_tls(&self) -> bool {
        self.is_tls.load(Relaxed)
    }

    /// Says that the peer began with a header of the PROXY protocol.
    pub fn found_proxy(&self) {
        self.is_proxied.store(true, Relaxed);
    }

    /// Whether the peer began with a header of the PROXY protocol.
    pub fn is_proxied(&self) -> bool {
        self.is_proxied.load(Relaxed)
    }

    /// Says that the peer will send nothing more, though it may listen.
    pub fn hang_up(&self) {
        self.has_hung_up.store(true, Relaxed);
    }

    /// Whether the peer will send nothing more, though it may listen.
    pub fn has_hung_up(&self) -> bool {
        self.has_hung_up.load(Relaxed)
    }

    /// Says that a request is there to be answered.
    pub fn serve(&self) {
        self.was_served.store(true, Relaxed);
        self.enter(Phase::Busy);
    }

    /// Whether nothing at all was asked yet.
    pub fn is_silent(&self) -> bool {
        self.phase() == Phase::Idle && !self.was_served.load(Relaxed)
    }

    /// Says whether a body that is sent or received holds memory of the large share.
    pub fn hold_large_body(&self, does: bool) {
        self.has_large_body.store(does, Relaxed);
    }

    /// Whether a body that is sent or received holds memory of the large share.
    pub fn has_large_body(&self) -> bool {
        self.has_large_body.load(Relaxed)
    }

    /// Says that this status was written though no request was there to be answered.
    pub fn found_unread(&self, status: u16) {
        self.unread_status.store(status, Relaxed);
    }

    /// The status that was written though no request was there to be answered.
    pub fn unread_status(&self) -> Option<u16> {
        Some(self.unread_status.load(Relaxed)).filter(|status| *status >= 400)
    }

    /// Says that so many bytes were read.
    pub fn has_read(&self, bytes: u64) {
        self.read.store(self.read.load(Relaxed) + bytes, Relaxed);
        if bytes > 0 && self.phase() == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    /// Says that so many bytes were written.
    pub fn has_written(&self, bytes: u64) {
        self.written.store(self.written.load(Relaxed) + bytes, Relaxed);
    }

    /// Says that what is timed now began at `now`, with so many bytes moved until then.
    pub fn began(&self, now: Instant, count: u64) {
        let since = now.saturating_duration_since(self.opened);
        self.since.store(u64::try_from(since.as_millis()).unwrap_or(u64::MAX), Relaxed);
        self.mark.store(count, Relaxed);
    }

    /// How long what is timed has been going on at `now`.
    pub fn age(&self, now: Instant) -> Duration {
        let since = Duration::from_millis(self.since.load(Relaxed));
        now.saturating_duration_since(self.opened).saturating_sub(since)
    }

    /// How little would be lost at `now`, and since when; `None`: more than may be.
    pub fn spare(&self, now: Instant) -> Option<(Rank, Duration)> {
        let age = self.age(now);
        let slow = |count: u64| {
            let moved = count.saturating_sub(self.mark.load(Relaxed));
            (Rank::Slow, SLOW, moved < SLOW_RATE.saturating_mul(age.as_secs()))
        };
        let (rank, patience, is_spare) = match self.phase() {
            Phase::Leaving => (Rank::Silent, LEAVING, true),
            _ if self.is_blocked() => slow(self.written()),
            _ if self.is_silent() => (Rank::Silent, SILENT, true),
            Phase::Idle => (Rank::Idle, IDLE, true),
            Phase::Head => (Rank::Head, HEAD, true),
            Phase::Body => slow(self.read()),
            // Most who say that this was all are gone. Few still listen, and may ask again.
            Phase::Busy if self.has_hung_up() => (Rank::Silent, LEAVING, true),
            Phase::Busy => return None,
        };
        (is_spare && age >= patience).then_some((rank, age))
    }

    /// Asks the connection to end.
    pub fn send_away(&self) {
        self.is_unwanted.store(true, Relaxed);
        if let Some(waker) = self.waker().take() {
            waker.wake();
        }
    }

    /// Whether the connection was asked to end, which is forgotten by asking.
    pub fn is_unwanted(&self) -> bool {
        self.is_unwanted.load(Relaxed) && self.is_unwanted.swap(false, Relaxed)
    }

    /// Has this task woken when the connection is asked to end.
    pub fn attend(&self, waker: &Waker) {
        let mut held = self.waker();
        if !held.as_ref().is_some_and(|held| held.will_wake(waker)) {
            *held = Some(waker.clone());
        }
    }

    /// Ends when the connection is asked to.
    pub async fn unwanted(&self) {
        poll_fn(|cx| {
            self.attend(cx.waker());
            if self.is_unwanted() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_or_is_slow_makes_room_after_a_while_and_who_is_owed_an_answer_never() {
        let progress = Progress::default();
        let start = Instant::now();
        let at = |seconds| progress.spare(start + Duration::from_secs(seconds)).map(|(rank, _)| rank);
        assert_eq!([at(1), at(3)], [None, Some(Rank::Silent)]);
        progress.has_read(10);
        assert_eq!([at(1), at(4)], [None, Some(Rank::Head)]);
        progress.serve();
        assert_eq!(at(3600), None);
        progress.enter(Phase::Body);
        progress.has_read(SLOW_RATE * 20);
        assert_eq!([at(9), at(15), at(60)], [None, None, Some(Rank::Slow)]);
        progress.enter(Phase::Idle);
        progress.began(start + Duration::from_secs(60), 0);
        assert_eq!([at(63), at(66)], [None, Some(Rank::Idle)]);
        progress.block(true);
        assert_eq!([at(66), at(72)], [None, Some(Rank::Slow)]);
        progress.enter(Phase::Leaving);
        assert_eq!(at(62), Some(Rank::Silent));
        let gone = Progress::default();
        gone.serve();
        gone.hang_up();
        assert_eq!(gone.spare(start + Duration::from_secs(3)).map(|(rank, _)| rank), Some(Rank::Silent));
    }

    #[test]
    fn an_order_to_end_is_heard_once() {
        let progress = Progress::default();
        progress.attend(Waker::noop());
        assert!(!progress.is_unwanted());
        progress.send_away();
        assert_eq!([progress.is_unwanted(), progress.is_unwanted()], [true, false]);
    }
}
