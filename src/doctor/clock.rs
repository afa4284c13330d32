//! Whether the clock can be right. Pure.

use super::Finding;
use std::time::{Duration, UNIX_EPOCH};

/// Before this moment, in seconds since 1970, there was no such program: the year 2025.
const BEGINNING: i64 = 1_735_689_600;

/// So far may two clocks be apart, in seconds.
const APART: i64 = 60 * 60;

/// The clock says `now`; `latest` is the latest moment that the database knows of. In seconds since
/// 1970.
pub fn clock(now: i64, latest: Option<i64>) -> Finding {
    const TOPIC: &str = "clock";
    let advice = "set it, and keep it right: `timedatectl set-ntp true` does both where systemd runs. Snapshots, \
                  certificates and the age of versions go by it";
    if now < BEGINNING {
        return Finding::wrong(TOPIC, format!("it is at {}, long ago", moment(now)), advice);
    }
    match latest {
        Some(latest) if latest > now + APART => {
            let seen = format!("it is at {}, and the database knows of {}", moment(now), moment(latest));
            Finding::wrong(TOPIC, seen, advice)
        }
        _ => Finding::well(TOPIC, format!("it is at {}", moment(now))),
    }
}

fn moment(at: i64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at.max(0).unsigned_abs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;

    #[test]
    fn a_clock_is_wrong_that_was_ahead_or_never_set() {
        let grade = |now, latest| clock(now, latest).grade;
        let now = BEGINNING + 1_000_000;
        assert_eq!((grade(now, None), grade(now, Some(now + APART))), (Grade::Well, Grade::Well));
        assert_eq!((grade(7, None), grade(now, Some(now + APART + 1))), (Grade::Wrong, Grade::Wrong));
    }
}
