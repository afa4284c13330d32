//! Lines between those who log and the one thread that writes.
//!
//! Whoever logs only copies a line into a buffer of bounded size. What does not fit is counted,
//! and the count takes the lost lines' place. Knows bytes and lines, not what they say.

use std::io::{ErrorKind, Write};
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that may wait. At 50,000 requests a second that is a sixth of a second.
const BYTES: usize = 1024 * 1024;

/// Capacity that an idle queue keeps.
const IDLE_BYTES: usize = 64 * 1024;

/// How long the writer rests after it has written: under load it then finds many lines at once,
/// and those who log need not wake it for each.
const REST: Duration = Duration::from_millis(2);

/// How long the writer waits before it tries again a pipe that takes nothing just now.
const RETRY: Duration = Duration::from_millis(10);

const TOO_SLOW: &str = "they came faster than they could be written";

/// A place to write lines to.
pub type Output = Box<dyn Write + Send>;

/// The bounded queue.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    lost: u64,
    /// A new place to write to, for the lines behind this many bytes.
    redirected: Option<(usize, Output)>,
    /// Whether the writer sleeps until it is woken.
    asleep: bool,
    finishing: bool,
    finished: bool,
}

impl Queue {
    /// Appends a line, or counts it as lost. Never waits for the writer.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.lines.len() + line.len() > BYTES {
            state.lost += 1;
            return;
        }
        state.lines.extend_from_slice(line);
        self.wake(state);
    }

    /// Lines that are pushed from now on go to `output`.
    pub fn redirect(&self, output: Output) {
        let mut state = self.lock();
        state.redirected = Some((state.lines.len(), output));
        self.wake(state);
    }

    /// Tells the writer to end, and waits until it has written everything, but not longer than `patience`.
    pub fn finish(&self, patience: Duration) {
        let mut state = self.lock();
        state.finishing = true;
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, patience, |state| !state.finished);
        drop(waited);
    }

    /// The writer: writes until [`Queue::finish`]. `report` makes the line that says how many lines
    /// were lost and why. A failure to write loses lines and nothing else.
    pub fn drain(&self, mut output: Output, report: impl Fn(u64, &str) -> Vec<u8>) {
        let mut pen = Pen::default();
        let mut taken = State::default();
        while !taken.finishing {
            taken = self.take(taken.lines);
            let mut lines = &taken.lines[..];
            if let Some((bytes, redirected)) = taken.redirected.take() {
                pen.write(&mut output, &lines[..bytes]);
                lines = &lines[bytes..];
                output = redirected;
                pen.torn = false;
            }
            pen.write(&mut output, lines);
            pen.lose(taken.lost, TOO_SLOW);
            pen.report(&mut output, &report);
            std::thread::sleep(if taken.finishing { Duration::ZERO } else { REST });
        }
        self.lock().finished = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to do and takes all of it, leaving `spare` to be filled next.
    fn take(&self, mut spare: Vec<u8>) -> State {
        spare.clear();
        spare.shrink_to(IDLE_BYTES);
        let mut state = self.lock();
        while state.lines.is_empty() && state.redirected.is_none() && !state.finishing {
            state.asleep = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        let finishing = state.finishing;
        mem::replace(&mut *state, State { lines: spare, finishing, ..State::default() })
    }

    /// Wakes the writer where it sleeps; it finds what comes until then by itself.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let asleep = mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes, and remembers what was lost until that could be written.
#[derive(Default)]
struct Pen {
    lost: u64,
    cause: String,
    /// Whether the last line that was written lacks its end.
    torn: bool,
}

impl Pen {
    fn write(&mut self, output: &mut Output, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.torn {
            match put(output, b"\n") {
                (_, Ok(())) => self.torn = false,
                (_, Err(error)) => return self.lose(count(lines), &error.to_string()),
            }
        }
        if let (written, Err(error)) = put(output, lines) {
            let (written, lost) = lines.split_at(written);
            self.torn = written.last().is_some_and(|byte| *byte != b'\n');
            self.lose(count(lost), &error.to_string());
        }
    }

    fn lose(&mut self, lines: u64, cause: &str) {
        if lines > 0 {
            self.lost += lines;
            cause.clone_into(&mut self.cause);
        }
    }

    fn report(&mut self, output: &mut Output, report: impl Fn(u64, &str) -> Vec<u8>) {
        if self.lost == 0 {
            return;
        }
        let (lost, cause) = (mem::take(&mut self.lost), mem::take(&mut self.cause));
        let line = report(lost, &cause);
        self.write(output, &line);
        // A report that is itself lost counts as what it reports.
        if mem::take(&mut self.lost) > 0 {
            self.lose(lost, &cause);
        }
    }
}

/// How many bytes could be written, and why not all.
fn put(output: &mut Output, bytes: &[u8]) -> (usize, std::io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match output.write(&bytes[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, mpsc};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn report(lost: u64, cause: &str) -> Vec<u8> {
        format!("lost {lost}: {cause}\n").into_bytes()
    }

    /// Shared bytes with room for some; more is a full disk.
    #[derive(Clone)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Disk {
        fn with_room(room: usize) -> Disk {
            Disk(Arc::new(Mutex::new((Vec::new(), room))))
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic").0.clone()).expect("UTF-8")
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().expect("no panic");
            let n = bytes.len().min(disk.1);
            if n == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            disk.1 -= n;
            disk.0.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Takes nothing until it may.
    struct Blocked(mpsc::Receiver<()>, Disk);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // The other end is gone once it may.
            let _ = self.0.recv();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_pushed_is_written_in_order_by_the_time_it_is_finished() {
        let queue = Arc::new(Queue::default());
        let disk = Disk::with_room(usize::MAX);
        let (writer, output) = (queue.clone(), disk.clone());
        let thread = std::thread::spawn(move || writer.drain(Box::new(output), report));
        let expected: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        for line in expected.split_inclusive('\n') {
            queue.push(line.as_bytes());
        }
        queue.finish(PATIENCE);
        assert_eq!(disk.text(), expected);
        thread.join().expect("the writer ends");
    }

    #[test]
    fn a_blocked_output_loses_lines_and_says_how_many_once_it_takes_them_again() {
        let queue = Arc::new(Queue::default());
        let disk = Disk::with_room(usize::MAX);
        let (unblock, blocked) = mpsc::channel();
        let (writer, output) = (queue.clone(), disk.clone());
        std::thread::spawn(move || writer.drain(Box::new(Blocked(blocked, output)), report));
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        queue.push(&line);
        // The writer takes it, and is held up by it.
        while !queue.lock().lines.is_empty() {
            std::thread::yield_now();
        }
        for _ in 1..5000 {
            queue.push(&line);
        }
        queue.finish(Duration::from_millis(50));
        assert_eq!(disk.text(), "");
        drop(unblock);
        queue.finish(PATIENCE);
        let text = disk.text();
        let written = text.lines().filter(|line| line.starts_with('x')).count();
        assert_eq!(written, 1 + BYTES / line.len());
        let lost = format!("lost {}: {TOO_SLOW}\n", 5000 - written);
        assert_eq!(text.matches("lost").count(), 1);
        assert!(text.ends_with(&lost), "{}", &text[text.len() - 100..]);
    }

    #[test]
    fn a_full_disk_loses_lines_and_the_next_one_that_fits_begins_a_new_line() {
        let mut disk = Disk::with_room(12);
        let mut output: Output = Box::new(disk.clone());
        let mut pen = Pen::default();
        pen.write(&mut output, b"line one\nline two\nline three\n");
        pen.report(&mut output, report);
        assert_eq!(disk.text(), "line one\nlin");
        disk.0.lock().expect("no panic").1 = 100;
        pen.write(&mut output, b"line four\n");
        pen.report(&mut output, report);
        pen.report(&mut output, report);
        disk.flush().expect("it does nothing");
        let cause = io::Error::from(ErrorKind::StorageFull);
        assert_eq!(disk.text(), format!("line one\nlin\nline four\nlost 2: {cause}\n"));
    }

    #[test]
    fn redirected_lines_go_to_the_new_output_and_earlier_ones_to_the_old() {
        let queue = Queue::default();
        let (old, new) = (Disk::with_room(usize::MAX), Disk::with_room(usize::MAX));
        queue.push(b"old\n");
        queue.redirect(Box::new(new.clone()));
        queue.push(b"new\n");
        queue.lock().finishing = true;
        queue.drain(Box::new(old.clone()), report);
        assert_eq!((old.text().as_str(), new.text().as_str()), ("old\n", "new\n"));
    }

    #[test]
    fn an_output_that_would_block_is_tried_again() {
        struct Reluctant(u32, Disk);
        impl Write for Reluctant {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0.is_multiple_of(2) { self.1.write(bytes) } else { Err(ErrorKind::WouldBlock.into()) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let disk = Disk::with_room(usize::MAX);
        let mut output: Output = Box::new(Reluctant(0, disk.clone()));
        Pen::default().write(&mut output, b"line\n");
        assert_eq!(disk.text(), "line\n");
    }
}
