//! The checksum over all, computed beside what else there is to do: it is nearly half of the work.

use ring::digest::{Context, SHA256};
use std::mem;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// Bytes that the thread takes at a time.
const PIECE: usize = 1024 * 1024;

/// Pieces that may wait for it.
const WAITING: usize = 4;

/// SHA-256 of what comes, on a thread of its own from the first mebibyte on.
pub struct Digest {
    piece: Vec<u8>,
    thread: Option<Thread>,
}

struct Thread {
    pieces: SyncSender<Vec<u8>>,
    /// Pieces that were taken, to be filled again: new memory would be cleared first, each time.
    spares: Receiver<Vec<u8>>,
    handle: JoinHandle<Context>,
}

impl Digest {
    /// Of nothing yet.
    pub fn new() -> Digest {
        Digest { piece: Vec::new(), thread: None }
    }

    /// Takes more bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.piece.len()));
            self.piece.extend_from_slice(now);
            if self.piece.len() == PIECE {
                let thread = self.thread.get_or_insert_with(start);
                let spare = thread.spares.try_recv().unwrap_or_else(|_| Vec::with_capacity(PIECE));
                // A thread that is gone has panicked, which the end reports.
                let _ = thread.pieces.send(mem::replace(&mut self.piece, spare));
            }
            bytes = later;
        }
    }

    /// The digest.
    pub fn finish(self) -> [u8; 32] {
        let mut context = match self.thread {
            Some(Thread { pieces, handle, .. }) => {
                drop(pieces);
                handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
            None => Context::new(&SHA256),
        };
        context.update(&self.piece);
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }
}

fn start() -> Thread {
    let (pieces, received) = sync_channel::<Vec<u8>>(WAITING);
    let (taken, spares) = sync_channel(WAITING);
    let handle = thread::spawn(move || {
        let mut context = Context::new(&SHA256);
        for mut piece in received {
            context.update(&piece);
            piece.clear();
            // What nobody wants back is freed.
            let _ = taken.try_send(piece);
        }
        context
    });
    Thread { pieces, spares, handle }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_digest_of_all_bytes_however_they_come() {
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 9 * PIECE + 5] {
            let bytes: Vec<u8> = (0..len).map(|n| (n / 251) as u8 ^ n as u8).collect();
            for step in [1000, PIECE, 3 * PIECE] {
                let mut digest = Digest::new();
                bytes.chunks(step).for_each(|part| digest.update(part));
                assert_eq!(digest.finish(), ring::digest::digest(&SHA256, &bytes).as_ref(), "{len} {step}");
            }
        }
    }
}
