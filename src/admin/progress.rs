//! How far something is that takes long: a bar on a terminal, a plain line now and then elsewhere.

use super::Format;
use super::columns::size;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// What is over sooner needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two states of the bar.
const BLINK: Duration = Duration::from_millis(100);

/// Between two plain lines.
const PAUSE: Duration = Duration::from_secs(5);

/// Characters of the bar.
const WIDTH: usize = 30;

/// What is being done, shown on standard error. Programs are shown nothing.
pub struct Progress {
    label: &'static str,
    total: Option<u64>,
    done: u64,
    bytes: bool,
    look: Look,
    begun: Instant,
    next: Instant,
    /// Characters that stand in the terminal's line now.
    shown: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Look {
    Bar,
    Lines,
    Nothing,
}

impl Progress {
    /// Begins something of which there is so much, where that is known. `label` says what is done:
    /// "checking the database".
    pub fn start(label: &'static str, total: Option<u64>, format: Format) -> Progress {
        let look = match format {
            Format::Programs => Look::Nothing,
            Format::People if std::io::stderr().is_terminal() => Look::Bar,
            Format::People => Look::Lines,
        };
        Progress::looking(label, total, look)
    }

    fn looking(label: &'static str, total: Option<u64>, look: Look) -> Progress {
        let begun = Instant::now();
        let next = begun + if look == Look::Bar { PATIENCE } else { PAUSE };
        Progress { label, total, done: 0, bytes: false, look, begun, next, shown: 0 }
    }

    /// What is counted are bytes.
    pub fn in_bytes(mut self) -> Progress {
        self.bytes = true;
        self
    }

    /// So much more of so much is done.
    pub fn advance_of(&mut self, more: u64, of: u64) {
        self.total = Some(of);
        self.advance(more);
    }

    /// So much more is done.
    pub fn advance(&mut self, more: u64) {
        self.done += more;
        if self.look == Look::Nothing {
            return;
        }
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + if self.look == Look::Bar { BLINK } else { PAUSE };
        self.show();
    }

    /// All is done, or given up: takes the bar away.
    pub fn finish(mut self) {
        self.clear();
    }

    fn show(&mut self) {
        let text = self.text();
        // Nobody is left to be told where standard error is gone.
        let mut out = std::io::stderr().lock();
        let _ = match self.look {
            Look::Bar => {
                let width = text.chars().count();
                let blank = " ".repeat(self.shown.saturating_sub(width));
                self.shown = width;
                write!(out, "\r{text}{blank}").and_then(|()| out.flush())
            }
            _ => writeln!(out, "{text}"),
        };
    }

    fn clear(&mut self) {
        if self.shown > 0 {
            let mut out = std::io::stderr().lock();
            let _ = write!(out, "\r{}\r", " ".repeat(self.shown)).and_then(|()| out.flush());
            self.shown = 0;
        }
    }

    fn text(&self) -> String {
        let amount = |amount| if self.bytes { size(amount) } else { amount.to_string() };
        let done = amount(self.done);
        let Some(total) = self.total.filter(|total| *total > 0) else {
            if self.done == 0 {
                return format!("{}: {} s", self.label, self.begun.elapsed().as_secs());
            }
            return format!("{}: {done} after {} s", self.label, self.begun.elapsed().as_secs());
        };
        // What is measured beforehand may have grown meanwhile.
        let share = self.done.min(total) as f64 / total as f64;
        let numbers = format!("{:.0} % ({done} of {})", share * 100.0, amount(total.max(self.done)));
        if self.look != Look::Bar {
            return format!("{}: {numbers}", self.label);
        }
        let full = (share * WIDTH as f64) as usize;
        format!("{} [{}{}] {numbers}", self.label, "#".repeat(full), "-".repeat(WIDTH - full))
    }
}

/// Whatever ends early leaves a clean line for the reason.
impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_and_a_line_counts() {
        let mut bar = Progress::looking("checking", Some(200), Look::Bar);
        bar.done = 50;
        let expected = format!("checking [{}{}] 25 % (50 of 200)", "#".repeat(7), "-".repeat(23));
        assert_eq!(bar.text(), expected);
        bar.done = 300;
        assert!(bar.text().ends_with("100 % (300 of 300)"), "{}", bar.text());
        let mut line = Progress::looking("writing", Some(1 << 30), Look::Lines).in_bytes();
        line.done = 1 << 29;
        assert_eq!(line.text(), "writing: 50 % (512.0 MiB of 1.0 GiB)");
    }

    #[test]
    fn what_has_no_known_end_tells_how_long_it_takes() {
        for total in [None, Some(0)] {
            let mut line = Progress::looking("reading", total, Look::Lines);
            line.done = 7;
            assert_eq!(line.text(), "reading: 7 after 0 s");
        }
    }
}
