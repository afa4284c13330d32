//! What each address has open and asks for. Pure: the time is an argument.
//!
//! A minute's worth of requests is answered at once. Further ones wait for their turn, as often as the
//! limit says, so that a device which fetches a long history is slower for it and does not fail; and
//! where too many of an address wait already, the rest is turned away.

use super::attempts::Turn;
use crate::config::Limits;
use crate::peer::Source;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What may come at once: this long a time's worth.
const BURST: Duration = Duration::from_secs(60);

/// No request waits longer for its turn; clients give up after a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Addresses that are remembered without a connection. Beyond it, those that asked longest ago go.
const ADDRESSES: usize = 16 * 1024;

/// How long nothing more is said of one address.
const SAID: Duration = Duration::from_secs(60);

/// Who has what open, and asked for how much of late.
pub struct Addresses {
    /// Connections of one address, if they are limited.
    connections: Option<u32>,
    /// From one request's turn to the next, if they are limited.
    interval: Option<Duration>,
    records: HashMap<Source, Record>,
}

struct Record {
    open: u32,
    /// When all that was asked for will have had its turn.
    paid: Instant,
    said: Option<Instant>,
}

impl Record {
    fn is_news(&mut self, now: Instant) -> bool {
        let is_news = self.said.is_none_or(|said| now.saturating_duration_since(said) >= SAID);
        if is_news {
            self.said = Some(now);
        }
        is_news
    }
}

impl Addresses {
    /// With these limits.
    pub fn new(limits: &Limits) -> Addresses {
        let limit = |number: u32| (number > 0).then_some(number);
        Addresses {
            connections: limit(limits.address_connections),
            interval: limit(limits.address_requests).map(|requests| BURST / requests),
            records: HashMap::new(),
        }
    }

    /// Counts a connection that was opened at `now`, unless there are too many: then it is not counted,
    /// and the error says whether the operator should hear of it.
    pub fn open(&mut self, source: Source, now: Instant) -> Result<(), bool> {
        let limit = self.connections.unwrap_or(u32::MAX);
        let record = self.record(source, now);
        if record.open >= limit {
            return Err(record.is_news(now));
        }
        record.open += 1;
        Ok(())
    }

    /// A connection that was counted has ended.
    pub fn close(&mut self, source: Source, now: Instant) {
        let Some(record) = self.records.get_mut(&source) else { return };
        record.open = record.open.saturating_sub(1);
        if record.open == 0 && record.paid <= now {
            self.records.remove(&source);
        }
    }

    /// Counts a request at `now`, and says when it has its turn and whether the operator should hear of it.
    pub fn ask(&mut self, source: Source, now: Instant) -> (Turn, bool) {
        let Some(interval) = self.interval else { return (Turn::Now, false) };
        let record = self.record(source, now);
        let paid = record.paid.max(now) + interval;
        let wait = paid.saturating_duration_since(now + BURST);
        if wait > LONGEST_WAIT {
            return (Turn::Never, record.is_news(now));
        }
        record.paid = paid;
        if wait.is_zero() { (Turn::Now, false) } else { (Turn::After(wait), record.is_news(now)) }
    }

    fn record(&mut self, source: Source, now: Instant) -> &mut Record {
        if self.records.len() >= ADDRESSES && !self.records.contains_key(&source) {
            self.make_room(now);
        }
        self.records.entry(source).or_insert(Record { open: 0, paid: now, said: None })
    }

    fn make_room(&mut self, now: Instant) {
        self.records.retain(|_, record| record.open > 0 || record.paid > now);
        let away = self.records.values().filter(|record| record.open == 0);
        let mut times: Vec<Instant> = away.map(|record| record.paid).collect();
        if self.records.len() >= ADDRESSES && !times.is_empty() {
            // Half of them at once: looking for one each time would take longer.
            let half = times.len() / 2;
            let middle = *times.select_nth_unstable(half).1;
            self.records.retain(|_, record| record.open > 0 || record.paid > middle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::net::{IpAddr, Ipv4Addr};

    fn addresses(connections: u32, requests: u32) -> Addresses {
        let limits = Config::default().limits;
        Addresses::new(&Limits { address_connections: connections, address_requests: requests, ..limits })
    }

    fn source(n: u32) -> Source {
        IpAddr::from(Ipv4Addr::from(0x0800_0000 + n)).into()
    }

    #[test]
    fn each_address_may_have_so_many_connections() {
        let (mut addresses, now) = (addresses(2, 0), Instant::now());
        assert_eq!(
            [0, 0, 0, 0].map(|_| addresses.open(source(1), now)),
            [Ok(()), Ok(()), Err(true), Err(false)]
        );
        assert_eq!(addresses.open(source(2), now), Ok(()), "another has its own");
        assert_eq!(addresses.open(source(1), now + SAID), Err(true), "said once a minute");
        addresses.close(source(1), now);
        assert_eq!([0, 0].map(|_| addresses.open(source(1), now)), [Ok(()), Err(false)]);
        for _ in 0..3 {
            addresses.close(source(1), now);
            addresses.close(source(2), now);
        }
        assert!(addresses.records.is_empty(), "nobody is remembered for nothing");
    }

    #[test]
    fn a_minutes_worth_of_requests_is_answered_at_once_and_the_rest_in_turn() {
        let (mut addresses, now) = (addresses(0, 60), Instant::now());
        for _ in 0..60 {
            assert_eq!(addresses.ask(source(1), now), (Turn::Now, false));
        }
        for second in 1..=10 {
            let (turn, is_news) = addresses.ask(source(1), now);
            assert_eq!((turn, is_news), (Turn::After(Duration::from_secs(second)), second == 1));
        }
        assert_eq!(addresses.ask(source(1), now), (Turn::Never, false));
        assert_eq!(addresses.ask(source(2), now), (Turn::Now, false), "another has its own");
        // Who keeps to its turns is never refused, and a minute of peace is worth a minute.
        let later = now + Duration::from_secs(10);
        assert!((0..600).all(|n| addresses.ask(source(1), later + Duration::from_secs(n)).0 != Turn::Never));
        let peace = later + Duration::from_secs(600) + BURST + LONGEST_WAIT;
        assert!((0..60).all(|_| addresses.ask(source(1), peace).0 == Turn::Now));
    }

    #[test]
    fn nought_is_no_limit() {
        let (mut addresses, now) = (addresses(0, 0), Instant::now());
        assert!((0..10_000).all(|_| addresses.open(source(1), now).is_ok()));
        assert!((0..10_000).all(|_| addresses.ask(source(1), now).0 == Turn::Now));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_those_who_are_connected() {
        let (mut addresses, now) = (addresses(9, 60), Instant::now());
        assert_eq!(addresses.open(source(0), now), Ok(()));
        for n in 1..100_000 {
            addresses.ask(source(n), now + Duration::from_micros(n.into()));
        }
        assert!(addresses.records.len() <= ADDRESSES, "{}", addresses.records.len());
        assert!(addresses.records.contains_key(&source(0)));
        assert!(addresses.records.contains_key(&source(99_999)));
    }
}
