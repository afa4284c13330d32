//! What anyone can make the server say, it says seldom.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing more of one kind is said.
const PAUSE: Duration = Duration::from_secs(60);

/// Lets one line of a kind through each minute.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether the line may be written at `now`; if so, the next minute's may not.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= PAUSE);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_is_due() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let due = |second| seldom.is_due(start + Duration::from_secs(second));
        assert_eq!([0, 1, 59, 60, 61, 200].map(due), [true, false, false, true, false, true]);
    }
}
