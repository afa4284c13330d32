//! Wrong credentials, counted by the address that they come from. Pure: the time is an argument.
//!
//! The first few are answered at once, for everybody mistypes. Further ones wait, each longer than
//! the one before, and where too many of an address wait already, the rest is turned away. Valid
//! credentials are never asked about here, so nobody can lock out a device by guessing beside it.

use crate::peer::Source;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Wrong attempts of an address that are answered at once.
const FREE: u32 = 5;

/// How long the next one waits; each further one twice as long, up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// An address is forgotten when nothing wrong came from it for this long.
const MEMORY: Duration = Duration::from_secs(600);

/// Attempts that may wait at once: of one address, and of all.
const WAITING: (u32, u32) = (32, 256);

/// Addresses that are remembered, more than may wait. Beyond it, those heard of longest ago go.
const ADDRESSES: usize = 4096;

/// How long nothing more is said of one address.
const SAID: Duration = Duration::from_secs(60);

/// What happens to a wrong attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is answered.
    Now,
    /// It is answered after this time, at the end of which [`Attempts::leave`] is called.
    After(Duration),
    /// It is turned away.
    Never,
}

/// Who tried wrong credentials of late.
#[derive(Default)]
pub struct Attempts {
    /// All who never wait share one record.
    records: HashMap<Option<Source>, Record>,
    waiting: u32,
}

struct Record {
    wrong: u32,
    waiting: u32,
    last: Instant,
    said: Option<Instant>,
}

impl Attempts {
    /// Counts a wrong attempt at `now`, and says what happens to it and whether the operator should
    /// hear of it: once a minute for each address. Without a source, nothing ever waits.
    pub fn wrong(&mut self, source: Option<Source>, now: Instant) -> (Turn, bool) {
        self.make_room(source, now);
        let new = || Record { wrong: 0, waiting: 0, last: now, said: None };
        let record = self.records.entry(source).or_insert_with(new);
        if record.waiting == 0 && now.saturating_duration_since(record.last) >= MEMORY {
            record.wrong = 0;
        }
        record.wrong = record.wrong.saturating_add(1);
        record.last = now;
        let is_news = record.said.is_none_or(|said| now.saturating_duration_since(said) >= SAID);
        if is_news {
            record.said = Some(now);
        }
        let turn = match record.wrong.saturating_sub(FREE) {
            0 => Turn::Now,
            _ if source.is_none() => Turn::Now,
            _ if record.waiting >= WAITING.0 || self.waiting >= WAITING.1 => Turn::Never,
            nth => {
                record.waiting += 1;
                self.waiting += 1;
                Turn::After(pause(nth))
            }
        };
        (turn, is_news)
    }

    /// Ends the wait of one attempt.
    pub fn leave(&mut self, source: Option<Source>) {
        if let Some(record) = self.records.get_mut(&source) {
            record.waiting = record.waiting.saturating_sub(1);
            self.waiting = self.waiting.saturating_sub(1);
        }
    }

    fn make_room(&mut self, source: Option<Source>, now: Instant) {
        if self.records.len() < ADDRESSES || self.records.contains_key(&source) {
            return;
        }
        let is_idle = |record: &Record| record.waiting == 0;
        self.records
            .retain(|_, record| !is_idle(record) || now.saturating_duration_since(record.last) < MEMORY);
        let idle = self.records.values().filter(|record| is_idle(record));
        let mut lasts: Vec<Instant> = idle.map(|record| record.last).collect();
        if self.records.len() >= ADDRESSES && !lasts.is_empty() {
            // Half of them at once: looking for the oldest one each time would take longer.
            let half = lasts.len() / 2;
            let middle = *lasts.select_nth_unstable(half).1;
            self.records.retain(|_, record| !is_idle(record) || record.last > middle);
        }
    }
}

fn pause(nth: u32) -> Duration {
    let factor = 1_u32.checked_shl(nth - 1).unwrap_or(u32::MAX);
    PAUSE.0.saturating_mul(factor).min(PAUSE.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn public(n: u32) -> Option<Source> {
        Some(IpAddr::from(Ipv4Addr::from(0x0800_0000 + n)).into())
    }

    /// The turns of this many attempts at one moment, none of which waits to its end.
    fn turns(attempts: &mut Attempts, source: Option<Source>, now: Instant, count: usize) -> Vec<Turn> {
        (0..count).map(|_| attempts.wrong(source, now).0).collect()
    }

    #[test]
    fn the_first_are_answered_at_once_and_each_further_one_later_up_to_a_limit() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let turns = turns(&mut attempts, public(1), now, 13);
        assert_eq!(turns[..5], [Turn::Now; 5]);
        let millis = [250, 500, 1000, 2000, 4000, 8000, 8000, 8000];
        assert_eq!(turns[5..], millis.map(|millis| Turn::After(Duration::from_millis(millis))));
        assert_eq!(attempts.wrong(public(2), now).0, Turn::Now, "another address has its own");
        assert_eq!(pause(u32::MAX), PAUSE.1);
    }

    #[test]
    fn where_many_wait_the_rest_is_turned_away_until_one_of_them_leaves() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let turns = turns(&mut attempts, public(1), now, 5 + 32 + 3);
        assert!(matches!(turns[5 + 31], Turn::After(_)));
        assert_eq!(turns[5 + 32..], [Turn::Never; 3]);
        attempts.leave(public(1));
        assert!(matches!(attempts.wrong(public(1), now).0, Turn::After(_)));
        assert_eq!(attempts.wrong(public(1), now).0, Turn::Never);
    }

    #[test]
    fn all_addresses_together_do_not_take_all_connections() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let all: Vec<Turn> = (0..100).flat_map(|n| turns(&mut attempts, public(n), now, 5 + 32)).collect();
        let waiting = all.iter().filter(|turn| matches!(turn, Turn::After(_))).count();
        assert_eq!(waiting, 256);
        for n in 0..100 {
            (0..40).for_each(|_| attempts.leave(public(n)));
        }
        assert_eq!(attempts.waiting, 0, "nobody leaves twice");
    }

    #[test]
    fn an_address_is_forgotten_after_some_minutes_of_peace() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        turns(&mut attempts, public(1), now, 20);
        (0..15).for_each(|_| attempts.leave(public(1)));
        let soon = now + MEMORY - Duration::from_secs(1);
        assert_eq!(attempts.wrong(public(1), soon).0, Turn::After(PAUSE.1));
        attempts.leave(public(1));
        assert_eq!(attempts.wrong(public(1), soon + MEMORY).0, Turn::Now);
    }

    #[test]
    fn the_operator_hears_of_an_address_once_a_minute() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let mut news = |second| attempts.wrong(public(1), now + Duration::from_secs(second)).1;
        assert_eq!([0, 1, 59, 60, 61].map(&mut news), [true, false, false, true, false]);
        assert!(attempts.wrong(public(2), now).1);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_those_who_wait() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        turns(&mut attempts, public(0), now, 6);
        for n in 1..20_000 {
            attempts.wrong(public(n), now + Duration::from_millis(u64::from(n)));
        }
        assert!(attempts.records.len() <= ADDRESSES, "{}", attempts.records.len());
        assert!(attempts.records.len() >= ADDRESSES / 2, "{}", attempts.records.len());
        assert!(attempts.records.contains_key(&public(0)), "it waits");
        assert!(attempts.records.contains_key(&public(19_999)));
        assert!(!attempts.records.contains_key(&public(1)));
    }

    #[test]
    fn who_has_no_address_of_its_own_never_waits() {
        assert_eq!(turns(&mut Attempts::default(), None, Instant::now(), 100), [Turn::Now; 100]);
    }
}
