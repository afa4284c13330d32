//! Who used the server last, kept in memory until a write takes it along.

use crate::protocol::ClientId;
use crate::storage::Noted;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seconds between two times that facts are written.
const PAUSE: i64 = 60;

/// Programs, on whichever device, that are remembered for each client; whoever invents more names is
/// not.
const PROGRAMS: usize = 32;

/// Parts of what was noted, each for some of the clients: threads that serve different clients then do not
/// wait for each other.
const PARTS: usize = 16;

/// What was noted since it was last written.
#[derive(Default)]
pub struct Syncs {
    parts: [Part; PARTS],
    /// When something was last taken to be written, in seconds since 1970.
    taken: AtomicI64,
}

/// When each program of a client was last seen. Alone on the lines of a processor's cache.
#[derive(Default)]
#[repr(align(128))]
struct Part(Mutex<HashMap<ClientId, Vec<Seen>>>);

struct Seen {
    device: Option<String>,
    program: String,
    /// In seconds since 1970.
    at: i64,
}

impl Syncs {
    /// Notes that a client was used by a program, on the device that the request named, at `now`.
    pub fn note(&self, client: ClientId, device: Option<&str>, program: &str, now: i64) {
        let mut seen = self.parts[client.uuid().as_u128() as usize % PARTS].seen();
        let programs = seen.entry(client).or_default();
        let is_same = |seen: &&mut Seen| seen.program == program && seen.device.as_deref() == device;
        if let Some(seen) = programs.iter_mut().find(is_same) {
            seen.at = now.max(seen.at);
        } else if programs.len() < PROGRAMS {
            let (device, program) = (device.map(str::to_owned), program.to_owned());
            programs.push(Seen { device, program, at: now });
        }
    }

    /// What is to be written in a transaction that begins at `now`: nothing within a minute of the last.
    pub fn take_due(&self, now: i64) -> Vec<Noted> {
        if now.saturating_sub(self.taken.load(Relaxed)) < PAUSE {
            return Vec::new();
        }
        let noted = self.take_all();
        if !noted.is_empty() {
            self.taken.store(now, Relaxed);
        }
        noted
    }

    /// All that was not written yet.
    pub fn take_all(&self) -> Vec<Noted> {
        self.parts.iter().flat_map(|part| std::mem::take(&mut *part.seen())).flat_map(each).collect()
    }

    /// Takes back what could not be written.
    pub fn give_back(&self, noted: Vec<Noted>) {
        for Noted { client, device, program, at } in noted {
            self.note(client, device.as_deref(), &program, at);
        }
    }
}

impl Part {
    fn seen(&self) -> MutexGuard<'_, HashMap<ClientId, Vec<Seen>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn each((client, programs): (ClientId, Vec<Seen>)) -> impl Iterator<Item = Noted> {
    let noted = move |Seen { device, program, at }| Noted { client, device, program, at };
    programs.into_iter().map(noted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn facts_are_due_once_a_minute_and_none_is_lost_meanwhile() {
        let (syncs, client) = (Syncs::default(), ClientId::from(Uuid::from_u128(7)));
        let noted = |at| vec![Noted { client, device: None, program: "taskchampion/3.1.0".to_owned(), at }];
        syncs.note(client, None, "taskchampion/3.1.0", 1000);
        assert_eq!(syncs.take_due(1000), noted(1000));
        syncs.note(client, None, "taskchampion/3.1.0", 1010);
        syncs.note(client, None, "taskchampion/3.1.0", 1005);
        assert_eq!(syncs.take_due(1059), []);
        assert_eq!(syncs.take_due(1060), noted(1010));
        syncs.give_back(noted(1010));
        assert_eq!(syncs.take_all(), noted(1010));
        assert_eq!(syncs.take_all(), []);
    }

    #[test]
    fn invented_names_of_programs_do_not_fill_the_memory() {
        let (syncs, client) = (Syncs::default(), ClientId::from(Uuid::from_u128(7)));
        (0..1000).for_each(|n| syncs.note(client, None, &format!("program {n}"), n));
        assert_eq!(syncs.take_all().len(), PROGRAMS);
    }

    #[test]
    fn the_same_program_on_two_devices_is_noted_for_each() {
        let (syncs, client) = (Syncs::default(), ClientId::from(Uuid::from_u128(7)));
        for device in [Some("laptop"), Some("phone"), Some("laptop"), None] {
            syncs.note(client, device, "taskchampion/3.1.0", 5);
        }
        let noted = syncs.take_all();
        let devices: Vec<_> = noted.iter().map(|noted| noted.device.as_deref()).collect();
        assert_eq!(devices, [Some("laptop"), Some("phone"), None]);
    }
}
