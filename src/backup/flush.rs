//! Brings a file to the disk while it is written. One long sync at its end would take longer, and hold
//! up everyone else who waits for the same disk.

use std::fs::File;
use std::io::{Result, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

/// Bytes after which what was written is brought to the disk.
const STEP: usize = 32 * 1024 * 1024;

/// A file that is being written.
pub struct Flushing<'f> {
    file: &'f File,
    /// Bytes since the disk was last asked for.
    written: usize,
    due: SyncSender<()>,
}

/// Runs `work`, which writes. The first result is the disk's: it reports a failure just once.
pub fn during<T>(file: &File, work: impl FnOnce(Flushing<'_>) -> T) -> (Result<()>, T) {
    let (due, asked) = sync_channel(1);
    thread::scope(|scope| {
        let flush = scope.spawn(move || asked.into_iter().try_for_each(|()| file.sync_data()));
        let done = work(Flushing { file, written: 0, due });
        (flush.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), done)
    })
}

impl Write for Flushing<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = self.file.write(bytes)?;
        self.written += count;
        if self.written >= STEP {
            self.written = 0;
            // A disk that is behind is asked already.
            let _ = self.due.try_send(());
        }
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush()
    }
}
