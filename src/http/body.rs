//! Bodies on their way in, bounded in size, memory and time, and on their way out.

use super::decode::{self, Decoder, Encoded, Step};
use super::memory::{Exhausted, Memory, Reservation, SMALL};
use super::progress::{Phase, Progress};
use super::wire::{Coding, Problem};
use crate::workers::Pieces;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

const MIB: usize = 1024 * 1024;

/// The most that is handed to the connection at once: a write that makes progress is seen to.
const SLICE: usize = 256 * 1024;

/// A body of unknown size asks for at least and at most this much more memory at a time.
const GROWTH: (usize, usize) = (MIB, 16 * MIB);

/// A request's body as it comes from the connection.
pub struct Source {
    incoming: Incoming,
    is_read: bool,
}

impl Source {
    /// Of which nothing has been read.
    pub fn new(incoming: Incoming) -> Source {
        let is_read = incoming.is_end_stream();
        Source { incoming, is_read }
    }

    /// Whether it is, or may become, larger than what small bodies share.
    pub fn is_large(&self) -> bool {
        self.incoming.size_hint().exact().is_none_or(|length| length > SMALL as u64)
    }

    /// Whether nothing more of it can come.
    pub fn is_read(&self) -> bool {
        self.is_read
    }
}

/// A request's body that is being read.
pub struct Reading<'a> {
    /// The body.
    pub source: &'a mut Source,
    /// The connection's progress, which knows when the body is late.
    pub progress: &'a Progress,
    /// Where the memory comes from.
    pub memory: &'a Memory,
    /// The largest body in bytes, decoded.
    pub limit: usize,
}

/// A whole body and the memory that it is in.
pub type Collected = (Vec<u8>, Reservation);

impl Reading<'_> {
    /// Reads the whole body and decodes it. Its memory is reserved before it is read.
    pub async fn collect(mut self, coding: Option<Coding>) -> Result<Collected, Problem> {
        let announced = self.source.incoming.size_hint().exact();
        let announced = announced.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        match (announced, coding) {
            (Some(0), _) => Err(Problem::EmptyBody),
            (Some(length), _) if length > self.limit => Err(self.too_large()),
            (Some(length), None) => self.whole(length).await,
            (_, None) => self.growing().await,
            (_, Some(coding)) => self.encoded(coding).await,
        }
    }

    async fn whole(&mut self, length: usize) -> Result<Collected, Problem> {
        let reservation = self.memory.reserve(length).await?;
        self.progress.hold_large_body(reservation.is_large());
        let mut body = Vec::with_capacity(length);
        self.progress.enter(Phase::Body);
        while let Some(bytes) = self.next().await? {
            body.extend_from_slice(&bytes);
        }
        self.progress.enter(Phase::Busy);
        Ok((body, reservation))
    }

    async fn growing(&mut self) -> Result<Collected, Problem> {
        let mut reservation = self.memory.reserve(SMALL.min(self.limit)).await?;
        let mut body = Vec::new();
        self.progress.enter(Phase::Body);
        while let Some(bytes) = self.next().await? {
            let length = body.len() + bytes.len();
            if length > self.limit {
                return Err(self.too_large());
            }
            self.hold(&mut reservation, length, self.limit).await?;
            make_room(&mut body, bytes.len(), reservation.bytes().min(self.limit));
            body.extend_from_slice(&bytes);
        }
        self.progress.enter(Phase::Busy);
        finish(body, reservation)
    }

    async fn encoded(&mut self, coding: Coding) -> Result<Collected, Problem> {
        // Where memory is that scarce, the decoder's own is not counted in full.
        let overhead = decode::overhead(coding).min(self.memory.largest().saturating_sub(self.limit));
        // Both forms of the body may be held for a while, though input goes as output comes.
        let claim = (self.limit * 2 + overhead).min(self.memory.largest());
        let mut reservation = self.memory.reserve(SMALL.min(self.limit)).await?;
        let mut encoded = Encoded::default();
        self.progress.enter(Phase::Body);
        while let Some(bytes) = self.next().await? {
            encoded.push(&bytes);
            if encoded.len() > self.limit {
                return Err(self.too_large());
            }
            self.hold(&mut reservation, encoded.len(), claim).await?;
        }
        self.progress.enter(Phase::Busy);
        let mut decoder = Decoder::new(coding, encoded)?;
        let mut body = Vec::new();
        loop {
            let capacity = room_for(&body, decode::STEP, self.limit + decode::STEP);
            self.hold(&mut reservation, decoder.left() + capacity + overhead, claim).await?;
            body.reserve_exact(capacity - body.len());
            let step = decoder.step(&mut body)?;
            if body.len() > self.limit {
                return Err(self.too_large());
            }
            if step == Step::End {
                return finish(body, reservation);
            }
            tokio::task::yield_now().await;
        }
    }

    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = poll_fn(|cx| {
                if self.progress.is_expired() {
                    return Poll::Ready(Err(Problem::TimedOut));
                }
                // An error is a broken chunk or a lost connection: only one of them is answered,
                // and the connection ends with both.
                match Pin::new(&mut self.source.incoming).poll_frame(cx) {
                    // The end of the connection came before its own.
                    Poll::Pending if self.progress.has_hung_up() => Poll::Ready(Err(Problem::BrokenBody)),
                    frame => frame.map(Ok),
                }
            });
            match frame.await? {
                None => {
                    self.source.is_read = true;
                    return Ok(None);
                }
                Some(Err(_)) => return Err(Problem::BrokenBody),
                // Trailers mean nothing here.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(_) => continue,
                },
            }
        }
    }

    /// Makes sure that the reservation holds this many bytes. While memory is waited for, the
    /// peer is not late.
    async fn hold(&self, reservation: &mut Reservation, bytes: usize, claim: usize) -> Result<(), Problem> {
        let held = reservation.bytes();
        if bytes <= held {
            return Ok(());
        }
        if bytes > claim {
            return Err(self.too_large());
        }
        let phase = self.progress.phase();
        let step = held.clamp(GROWTH.0, GROWTH.1);
        self.progress.enter(Phase::Busy);
        self.memory.grow(reservation, bytes.max(held + step).min(claim), claim).await?;
        self.progress.hold_large_body(reservation.is_large());
        self.progress.enter(phase);
        Ok(())
    }

    fn too_large(&self) -> Problem {
        Problem::TooLarge { limit: self.limit }
    }
}

impl From<Exhausted> for Problem {
    fn from(_: Exhausted) -> Problem {
        Problem::NoMemory
    }
}

impl From<decode::Broken> for Problem {
    fn from(_: decode::Broken) -> Problem {
        Problem::BrokenBody
    }
}

/// Lets a vector grow to what is reserved rather than to twice its size.
fn make_room(body: &mut Vec<u8>, more: usize, reserved: usize) {
    if body.capacity() - body.len() < more {
        let wanted = body.capacity().max(32 * 1024).saturating_mul(2).min(reserved);
        body.reserve_exact(more.max(wanted.saturating_sub(body.len())));
    }
}

/// The capacity that a vector needs for `more` bytes, in steps that keep copying rare.
fn room_for(body: &[u8], more: usize, most: usize) -> usize {
    let needed = body.len() + more;
    let step = needed.next_power_of_two().min(GROWTH.1);
    needed.next_multiple_of(step).min(most.max(needed))
}

fn finish(mut body: Vec<u8>, mut reservation: Reservation) -> Result<Collected, Problem> {
    if body.is_empty() {
        return Err(Problem::EmptyBody);
    }
    body.shrink_to_fit();
    reservation.shrink(body.len());
    Ok((body, reservation))
}

/// A response's body with the memory that it is in: whole and handed out in slices, or as it comes.
///
/// When it is dropped, all of it is with the connection, and the next request may come.
pub struct Reply {
    rest: Bytes,
    /// How many bytes are still to come, and from where.
    poured: Option<(usize, Pieces)>,
    /// The memory of what is poured.
    _reservation: Option<Reservation>,
    progress: Arc<Progress>,
}

/// What was poured ended before its announced length.
#[derive(Debug)]
pub struct Short;

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a body ended before its announced length")
    }
}

impl std::error::Error for Short {}

impl Reply {
    /// The reservation is given back once the last slice has been written or the connection is gone.
    pub fn new(
        body: Vec<u8>,
        poured: Option<(usize, Pieces)>,
        mut reservation: Option<Reservation>,
        progress: Arc<Progress>,
    ) -> Reply {
        progress.hold_large_body(reservation.as_ref().is_some_and(Reservation::is_large));
        let rest = match reservation.take_if(|_| !body.is_empty()) {
            Some(reservation) => Bytes::from_owner(Owned { body, _reservation: reservation }),
            None => Bytes::from(body),
        };
        Reply { rest, poured, _reservation: reservation, progress }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Short>>> {
        let Some((left, pieces)) = &mut self.poured else { return Poll::Ready(None) };
        if *left == 0 {
            return Poll::Ready(None);
        }
        let piece = ready!(pieces.poll_recv(cx)).filter(|piece| piece.len() <= *left).ok_or(Short);
        *left -= piece.as_ref().map_or(0, Vec::len);
        Poll::Ready(Some(piece.map(|piece| Frame::data(Bytes::from(piece)))))
    }

    fn left(&self) -> usize {
        self.rest.len() + self.poured.as_ref().map_or(0, |(left, _)| *left)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.progress.enter(Phase::Idle);
    }
}

struct Owned {
    body: Vec<u8>,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Short;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Short>>> {
        if self.rest.is_empty() {
            return self.poll_piece(cx);
        }
        let length = self.rest.len().min(SLICE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poured_reply_ends_with_an_error_where_its_pieces_do_not_make_its_length() {
        let frames = |pieces: &[usize]| {
            let (sink, source) = tokio::sync::mpsc::unbounded_channel();
            pieces.iter().for_each(|len| sink.send(vec![7; *len]).expect("it is taken"));
            drop(sink);
            let mut reply = Reply::new(Vec::new(), Some((5, source)), None, Arc::default());
            assert_eq!(reply.size_hint().exact(), Some(5));
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let (mut frames, mut ended) = (Vec::new(), false);
            while !ended {
                let Poll::Ready(frame) = Pin::new(&mut reply).poll_frame(&mut cx) else { break };
                ended = !matches!(frame, Some(Ok(_)));
                frames.push(frame.map(|frame| frame.map(|data| data.into_data().expect("data").len()).ok()));
            }
            frames
        };
        assert_eq!(frames(&[2, 3]), [Some(Some(2)), Some(Some(3)), None]);
        assert_eq!(frames(&[2]), [Some(Some(2)), Some(None)]);
        assert_eq!(frames(&[2, 4]), [Some(Some(2)), Some(None)]);
    }

    #[test]
    fn a_reply_is_handed_out_in_slices_and_knows_its_length() {
        let mut reply = Reply::new(vec![7; 2 * SLICE + 1], None, None, Arc::default());
        assert_eq!(reply.size_hint().exact(), Some(2 * SLICE as u64 + 1));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut lengths = Vec::new();
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut reply).poll_frame(&mut cx) {
            lengths.push(frame.into_data().unwrap().len());
        }
        assert_eq!(lengths, [SLICE, SLICE, 1]);
        assert!(reply.is_end_stream());
    }

    #[test]
    fn a_growing_vector_stays_within_what_is_reserved() {
        let mut body = Vec::new();
        make_room(&mut body, 1000, MIB);
        assert_eq!(body.capacity(), 64 * 1024);
        body.resize(MIB - 10, 0);
        make_room(&mut body, 10, MIB);
        assert_eq!(body.capacity(), MIB);
    }

    #[test]
    fn decoded_bodies_get_room_in_steps_and_never_past_the_limit() {
        assert_eq!(room_for(&[], 64 * 1024, 100 * MIB), 64 * 1024);
        assert_eq!(room_for(&vec![0; MIB], 64 * 1024, 100 * MIB), 2 * MIB);
        assert_eq!(room_for(&vec![0; 40 * MIB], 64 * 1024, 100 * MIB), 48 * MIB);
        assert_eq!(room_for(&vec![0; 99 * MIB], 64 * 1024, 100 * MIB), 100 * MIB);
    }
}
