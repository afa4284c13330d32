//! Brings a file to the disk while it is written, and reads it again from there, close behind. One long sync
//! at its end would take longer, and hold up everyone else who waits for the same disk.

use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::{Read, Result, Write};
use std::num::NonZeroU64;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::thread;

/// Bytes after which what was written is brought to the disk.
const STEP: u64 = 32 * 1024 * 1024;

/// A file that is being written.
pub struct Flushing<'f> {
    file: &'f File,
    written: u64,
    /// How much was written when the disk was last asked for it.
    asked: u64,
    due: SyncSender<u64>,
}

/// Runs `work`, which writes, and tells `synced` how many bytes are on the disk. The first result is the
/// disk's: it reports a failure just once.
pub fn during<T>(file: &File, synced: &Sender<u64>, work: impl FnOnce(Flushing<'_>) -> T) -> (Result<()>, T) {
    let (due, asked) = sync_channel(1);
    thread::scope(|scope| {
        let flush = scope.spawn(move || {
            asked.into_iter().try_for_each(|written| {
                file.sync_data()?;
                tell(file, written, synced);
                Ok(())
            })
        });
        let done = work(Flushing { file, written: 0, asked: 0, due });
        (flush.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), done)
    })
}

/// Says that so many bytes are on the disk, and lets the kernel forget them: what it remembers says nothing
/// about what the disk has.
pub fn tell(file: &File, written: u64, synced: &Sender<u64>) {
    let _ = fadvise(file, 0, NonZeroU64::new(written), Advice::DontNeed);
    // Whoever reads has found something, and says so.
    let _ = synced.send(written);
}

impl Write for Flushing<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = self.file.write(bytes)?;
        self.written += count as u64;
        // A disk that is behind was asked already.
        if self.written - self.asked >= STEP && self.due.try_send(self.written).is_ok() {
            self.asked = self.written;
        }
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush()
    }
}

/// A file that is read as far as it is on the disk, and ends where nobody tells of more.
pub struct Following {
    file: File,
    at: u64,
    until: u64,
    synced: Receiver<u64>,
}

impl Following {
    /// From the file's start on.
    pub fn new(file: File, synced: Receiver<u64>) -> Following {
        Following { file, at: 0, until: 0, synced }
    }
}

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        while self.at == self.until {
            match self.synced.recv() {
                Ok(until) => self.until = self.until.max(until),
                Err(_) => return Ok(0),
            }
        }
        let most = usize::try_from(self.until - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..most])?;
        self.at += count as u64;
        Ok(count)
    }
}
