//! What the database holds, and whether it is kept elsewhere too.

use super::Finding;
use crate::backup::directory;
use crate::config::Config;
use crate::protocol::State;
use crate::storage::registry::{Entry, Event};
use crate::storage::upkeep::Examination;
use std::io::ErrorKind;
use std::path::Path;

/// How late a backup may be, in seconds: the next attempt after a failure comes sooner.
const LATE: i64 = 60 * 60;

/// A backup by hand counts for so long, in seconds: a month.
const FRESH: i64 = 30 * 86_400;

/// What a short look for damage found.
pub fn damage(found: &Examination) -> Finding {
    const TOPIC: &str = "database";
    let check = "`sync-server admin check` looks at everything and says what to do";
    match (found.flaws.first(), &found.unfinished) {
        (Some(flaw), _) => {
            let more = found.flaws.len() - 1;
            let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
            Finding::wrong(TOPIC, format!("it is damaged: {flaw}{more}"), check)
        }
        (None, None) => Finding::well(TOPIC, "it has no damage that it knows of"),
        (None, Some(_)) => {
            Finding::note(TOPIC, format!("it has no damage that a short look would find; {check}"))
        }
    }
}

/// Who can use the server at all, and who is on the way out.
pub fn clients(config: &Config, clients: &[Entry], is_running: bool) -> Vec<Finding> {
    const TOPIC: &str = "clients";
    let mut findings = Vec::new();
    let leaving = clients.iter().filter(|client| client.state == State::Leaving).count();
    if leaving > 0 && !is_running {
        let seen = format!("{leaving} being removed, or the history, and nobody goes on with that");
        findings.push(Finding::wrong(TOPIC, seen, "start the server, or give the same command again"));
    }
    if clients.is_empty() && !config.create_clients {
        let seen = "none exists, and unknown ones are refused, so nobody can sync";
        findings.push(Finding::wrong(TOPIC, seen, "`sync-server admin add-client` makes one"));
    } else if findings.is_empty() {
        findings.push(Finding::well(TOPIC, format!("{} of them", clients.len())));
    }
    findings
}

/// When the last backup was made, at `now` seconds since 1970.
pub fn backups(config: &Config, events: &[Event], now: i64) -> Vec<Finding> {
    const TOPIC: &str = "backups";
    let by_hand = events.iter().filter(|event| event.action == "backup").map(|event| event.at).max();
    let (Some(place), Some(interval)) = (&config.backup.dir, config.backup.interval) else {
        let days = |at: i64| now.saturating_sub(at).max(0) / 86_400;
        return vec![match by_hand {
            Some(at) if now - at < FRESH => {
                Finding::well(TOPIC, format!("the last one was made by hand {} days ago", days(at)))
            }
            Some(at) => Finding::wrong(
                TOPIC,
                format!("the last one was made by hand {} days ago", days(at)),
                "`sync-server admin backup FILE` makes one, and with backup.dir and backup.interval the server does so",
            ),
            None => Finding::note(
                TOPIC,
                "none was ever made: `sync-server admin backup FILE` makes one, and with backup.dir and \
                 backup.interval the server does so by itself",
            ),
        }];
    };
    let interval = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX);
    vec![scheduled(TOPIC, place, interval, now)]
}

fn scheduled(topic: &'static str, place: &Path, interval: i64, now: i64) -> Finding {
    let shown = place.display();
    let advice = "the server's log says why, as an error; `sync-server admin backup FILE` makes one at once";
    match directory::list(place) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Finding::note(topic, format!("there is no {shown} yet: the server makes it with the first one"))
        }
        Err(error) => {
            let advice = "the server's user must be able to read and write it";
            Finding::wrong(topic, format!("cannot look into backup.dir, {shown}: {error}"), advice)
        }
        Ok(found) => match found.last() {
            None => Finding::wrong(topic, format!("there is none in backup.dir, {shown}"), advice),
            Some(newest) if newest.at.saturating_add(interval).saturating_add(LATE) < now => {
                let seen = format!("the newest, {}, is too old: one was due since", newest.path.display());
                Finding::wrong(topic, seen, advice)
            }
            Some(newest) => Finding::well(topic, format!("the newest is {}", newest.path.display())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;
    use std::time::Duration;
    use uuid::Uuid;

    const NOW: i64 = 2_000_000_000;

    fn made_at(at: i64) -> Event {
        let text = |text: &str| text.to_owned();
        Event { id: Uuid::nil(), at, client: None, user: text("a"), action: text("backup"), detail: text("") }
    }

    #[test]
    fn backups_by_hand_grow_old() {
        let grade = |events: &[Event]| backups(&Config::default(), events, NOW)[0].grade;
        assert_eq!(grade(&[]), Grade::Note);
        assert_eq!(grade(&[made_at(NOW - FRESH + 1)]), Grade::Well);
        assert_eq!(grade(&[made_at(7), made_at(NOW - FRESH)]), Grade::Wrong);
    }

    #[test]
    fn scheduled_backups_are_there_in_time_or_something_failed() {
        let place = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        config.backup.interval = Some(Duration::from_secs(3_600));
        config.backup.dir = Some(place.path().join("missing"));
        assert_eq!(backups(&config, &[], NOW)[0].grade, Grade::Note);
        config.backup.dir = Some(place.path().to_owned());
        assert_eq!(backups(&config, &[], NOW)[0].grade, Grade::Wrong);
        let make = |at| std::fs::write(place.path().join(directory::name(at)), "").expect("a file");
        make(NOW - 3_600 - LATE - 1);
        assert_eq!(backups(&config, &[], NOW)[0].grade, Grade::Wrong);
        make(NOW - 3_600 - LATE);
        assert_eq!(backups(&config, &[], NOW)[0].grade, Grade::Well);
    }

    #[test]
    fn damage_and_a_look_that_did_not_end_are_told() {
        let flaws = vec!["page 7".to_owned(), "page 8".to_owned()];
        let damaged = damage(&Examination { flaws, unfinished: None });
        assert!(damaged.grade == Grade::Wrong && damaged.seen.contains("page 7 (and 1 more)"), "{damaged:?}");
        let short = Examination { flaws: Vec::new(), unfinished: Some("too long".to_owned()) };
        assert_eq!(damage(&short).grade, Grade::Note);
        assert_eq!(damage(&Examination::default()).grade, Grade::Well);
    }

    #[test]
    fn nobody_who_can_sync_is_told() {
        let closed = Config { create_clients: false, ..Config::default() };
        assert_eq!(clients(&closed, &[], true)[0].grade, Grade::Wrong);
        assert_eq!(clients(&Config::default(), &[], true)[0].grade, Grade::Well);
    }
}
