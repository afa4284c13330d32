//! What came of earlier attempts, and when the next one may be made. Pure.
//!
//! Authorities count what they are asked, for a week. So the history is kept on disk, and an attempt
//! is in it before it begins: a server that crashes and starts again and again asks as rarely as one
//! that fails and goes on.

use crate::config::{self, Challenge};
use crate::tls::Facts;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Further apart than this attempts are not made.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);

/// Attempts that come closer than this many floors would be more than authorities like, even where a
/// certificate is about to end.
const CLOSEST: u32 = 3;

/// How much longer one waits after each certificate that was got and is in nobody's hand.
const LOST: u32 = 12;

/// After several of these the wait is as long as this, in floors.
const LONGEST_LOST: u32 = LOST * LOST * LOST;

/// One of the ways to show that the server has its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// In a TLS handshake.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// Over plain HTTP.
    #[serde(rename = "http-01")]
    Http01,
}

impl Kind {
    /// The way that is not this one.
    pub fn other(self) -> Kind {
        match self {
            Kind::TlsAlpn01 => Kind::Http01,
            Kind::Http01 => Kind::TlsAlpn01,
        }
    }

    /// As authorities call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::TlsAlpn01 => "tls-alpn-01",
            Kind::Http01 => "http-01",
        }
    }
}

/// What came of earlier attempts. Times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// The names that all of this is about.
    pub domains: Vec<String>,
    /// Attempts begun since the last one that succeeded.
    pub failures: u32,
    /// Certificates got since one was last renewed in time.
    pub issued: u32,
    /// When the last attempt began.
    pub last_attempt: Option<u64>,
    /// When a certificate was last got.
    pub last_success: Option<u64>,
    /// Why the last attempt failed, if it did.
    pub last_error: Option<String>,
    /// Before this, no attempt is made that nobody asks for.
    pub not_before: u64,
    /// What worked last.
    pub worked: Option<Kind>,
    /// The URL of the authority's terms.
    pub terms: Option<String>,
}

impl History {
    /// The history of asking for these names: who asks for others begins anew.
    pub fn about(self, domains: &[String]) -> History {
        if self.domains == domains {
            return self;
        }
        History { domains: domains.to_vec(), terms: self.terms, worked: self.worked, ..History::default() }
    }

    /// An attempt begins. Until more is known it counts as one that failed.
    pub fn begin(&mut self, now: SystemTime, held: Option<&Facts>, floor: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.last_attempt = Some(seconds(now));
        self.last_error = Some("the attempt was interrupted".to_owned());
        self.not_before = seconds(now + self.pause(now, held, floor));
    }

    /// It failed.
    pub fn fail(&mut self, now: SystemTime, why: &str, held: Option<&Facts>, floor: Duration) {
        let mut pause = self.pause(now, held, floor);
        if why.contains("rateLimited") {
            pause = pause.max(floor * LOST).min(LONGEST);
        }
        self.last_error = Some(why.to_owned());
        self.not_before = seconds(now + pause);
    }

    /// It led to a certificate, where one was held before or not.
    pub fn succeed(&mut self, now: SystemTime, got: &Facts, was_held: bool, kind: Kind, floor: Duration) {
        // One that has to be renewed at once will be so again: this machine's clock is wrong, say.
        let is_sound = was_held && got.renewal() > now;
        self.issued = if is_sound { 1 } else { self.issued.saturating_add(1) };
        self.failures = 0;
        self.last_error = None;
        self.last_success = Some(seconds(now));
        self.worked = Some(kind);
        let lost = LOST.saturating_pow(self.issued).min(LONGEST_LOST);
        self.not_before = seconds(now + floor * lost);
    }

    /// When the next attempt is to be made, with the certificate that is held for these names.
    pub fn due(&self, held: Option<&Facts>, floor: Duration) -> SystemTime {
        let allowed = UNIX_EPOCH + Duration::from_secs(self.not_before);
        let Some(held) = held else { return allowed };
        let got = self.last_success.map(|at| UNIX_EPOCH + Duration::from_secs(at));
        let is_sound = got.is_none_or(|got| held.renewal() > got);
        if self.failures > 0 || !is_sound {
            return held.renewal().max(allowed);
        }
        held.renewal().max(got.map_or(UNIX_EPOCH, |got| got + floor))
    }

    /// The ways to try in one attempt. Each that fails is counted by the authority.
    pub fn kinds(&self, challenge: Challenge) -> Vec<Kind> {
        let first = match challenge {
            Challenge::TlsAlpn01 => return vec![Kind::TlsAlpn01],
            Challenge::Http01 => return vec![Kind::Http01],
            Challenge::Auto => self.worked.unwrap_or(Kind::TlsAlpn01),
        };
        match self.failures.max(1) {
            // Nobody wants to wait for the first certificate only since one door is shut.
            1 if self.last_success.is_none() => vec![first, first.other()],
            failures if failures % 2 == 0 => vec![first.other()],
            _ => vec![first],
        }
    }

    /// How long to wait after the latest failure.
    fn pause(&self, now: SystemTime, held: Option<&Facts>, floor: Duration) -> Duration {
        let doubled = floor * 2u32.saturating_pow(self.failures.saturating_sub(1).min(16));
        let left = held.map(|held| held.until.duration_since(now).unwrap_or_default());
        let longest = left.map_or(LONGEST, |left| (left / 3).min(LONGEST));
        doubled.min(longest.max(floor * CLOSEST)).min(LONGEST.max(floor))
    }
}

/// Whether a certificate is for all the names that are wanted.
pub fn is_for(facts: &Facts, wanted: &config::Acme) -> bool {
    wanted.domains.iter().all(|domain| facts.names.iter().any(|name| name.eq_ignore_ascii_case(domain)))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const FLOOR: Duration = Duration::from_secs(300);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn at(minutes: u32) -> SystemTime {
        UNIX_EPOCH + 10_000 * DAY + MINUTE * minutes
    }

    fn facts(from: SystemTime, days: u32) -> Facts {
        Facts { names: vec!["a.example".to_owned()], from, until: from + DAY * days }
    }

    /// The minutes at which a server that fails, or crashes, begins its attempts.
    fn attempts(until: u32, ends_well: impl Fn(u32) -> bool) -> Vec<u32> {
        let (mut history, mut attempts) = (History::default(), Vec::new());
        for minute in 0..until {
            if history.due(None, FLOOR) <= at(minute) {
                attempts.push(minute);
                history.begin(at(minute), None, FLOOR);
                if ends_well(minute) {
                    history.succeed(at(minute), &facts(at(minute), 90), false, Kind::Http01, FLOOR);
                }
            }
        }
        attempts
    }

    #[test]
    fn attempts_that_fail_or_are_interrupted_come_further_and_further_apart() {
        let attempts = attempts(3 * 24 * 60, |_| false);
        assert_eq!(attempts[..6], [0, 5, 15, 35, 75, 155]);
        assert_eq!(attempts[9..], [1995, 2715, 3435, 4155], "twelve hours at most");
    }

    #[test]
    fn a_server_that_loses_every_certificate_asks_four_times_a_week() {
        assert_eq!(attempts(7 * 24 * 60, |_| true), [0, 60, 780, 9420]);
    }

    #[test]
    fn a_certificate_in_hand_is_renewed_at_two_thirds_of_its_life() {
        let mut history = History::default();
        let held = facts(at(0), 90);
        history.begin(at(0), None, FLOOR);
        history.succeed(at(0), &held, false, Kind::TlsAlpn01, FLOOR);
        assert_eq!(history.due(Some(&held), FLOOR), at(0) + 60 * DAY);
        let renewal = at(0) + 60 * DAY;
        history.begin(renewal, Some(&held), FLOOR);
        history.fail(renewal, "no", Some(&held), FLOOR);
        assert_eq!(history.due(Some(&held), FLOOR), renewal + FLOOR);
        history.begin(renewal + FLOOR, Some(&held), FLOOR);
        let new = facts(renewal, 90);
        history.succeed(renewal + FLOOR, &new, true, Kind::Http01, FLOOR);
        assert_eq!((history.failures, history.issued, history.last_error.as_deref()), (0, 1, None));
        assert_eq!(history.due(Some(&new), FLOOR), renewal + 60 * DAY);
    }

    #[test]
    fn a_certificate_that_is_old_when_it_comes_is_not_asked_for_again_and_again() {
        let (mut history, stale) = (History::default(), facts(at(0) - 89 * DAY, 90));
        history.begin(at(0), Some(&stale), FLOOR);
        history.succeed(at(0), &stale, true, Kind::Http01, FLOOR);
        assert_eq!(history.due(Some(&stale), FLOOR), at(60));
        history.begin(at(60), Some(&stale), FLOOR);
        history.succeed(at(60), &stale, true, Kind::Http01, FLOOR);
        assert_eq!(history.due(Some(&stale), FLOOR), at(60 + 720));
    }

    #[test]
    fn the_nearer_the_end_the_shorter_the_pause_but_never_too_short() {
        let mut history = History { failures: 9, ..History::default() };
        let pause = |history: &History, left: Duration| {
            let held = Facts { until: at(0) + left, ..facts(at(0), 1) };
            history.pause(at(0), Some(&held), FLOOR)
        };
        assert_eq!(pause(&history, 30 * DAY), LONGEST);
        assert_eq!(pause(&history, DAY), DAY / 3);
        assert_eq!(pause(&history, MINUTE), FLOOR * CLOSEST);
        assert_eq!(pause(&history, Duration::ZERO), FLOOR * CLOSEST);
        history.failures = 1;
        assert_eq!(pause(&history, MINUTE), FLOOR);
    }

    #[test]
    fn an_authority_that_has_enough_is_left_alone_for_an_hour() {
        let mut history = History::default();
        history.begin(at(0), None, FLOOR);
        history.fail(at(0), "urn:ietf:params:acme:error:rateLimited: too many", None, FLOOR);
        assert_eq!(history.due(None, FLOOR), at(60));
    }

    #[test]
    fn other_names_begin_anew() {
        let mut history = History::default().about(&["a.example".to_owned()]);
        history.begin(at(0), None, FLOOR);
        assert_eq!(history.clone().about(&["a.example".to_owned()]), history);
        assert_eq!(history.about(&["b.example".to_owned()]).due(None, FLOOR), UNIX_EPOCH);
    }

    #[test]
    fn ways_are_tried_in_turn_and_what_worked_comes_first() {
        let mut history = History::default();
        assert_eq!(history.kinds(Challenge::Auto), [Kind::TlsAlpn01, Kind::Http01]);
        history.failures = 1;
        assert_eq!(history.kinds(Challenge::Auto), [Kind::TlsAlpn01, Kind::Http01]);
        assert_eq!(history.kinds(Challenge::Http01), [Kind::Http01]);
        history.failures = 2;
        assert_eq!(history.kinds(Challenge::Auto), [Kind::Http01]);
        history.failures = 3;
        assert_eq!(history.kinds(Challenge::Auto), [Kind::TlsAlpn01]);
        history =
            History { failures: 1, worked: Some(Kind::Http01), last_success: Some(1), ..History::default() };
        assert_eq!(history.kinds(Challenge::Auto), [Kind::Http01]);
        history.failures = 2;
        assert_eq!(history.kinds(Challenge::Auto), [Kind::TlsAlpn01]);
    }
}
