//! What operators ask for while the server runs: an attempt now, or one for trial.
//!
//! Whoever asks gets a number at once and comes back with it for what came of it: an authority may
//! take minutes.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Outcomes that are remembered at most.
const REMEMBERED: usize = 16;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// A new certificate, whatever the back-off says.
    Renew,
    /// A certificate for trial, which is thrown away.
    Test,
}

/// What came of it, in words, good or bad; `None` while it is under way.
type Outcome = Option<Result<String, String>>;

/// Errands and their outcomes.
#[derive(Default)]
pub struct Errands(Mutex<State>);

#[derive(Default)]
struct State {
    sender: Option<Sender<(u64, Errand)>>,
    last: u64,
    outcomes: BTreeMap<u64, Outcome>,
}

impl Errands {
    /// Answers whoever asks from outside: `renew` and `test` give a number, `outcome` and that number
    /// `pending` or `done` and what came of it.
    pub fn answer(&self, words: &str) -> Result<String, String> {
        match words.split_once(' ') {
            None if words == "renew" => self.send(Errand::Renew).map(|number| number.to_string()),
            None if words == "test" => self.send(Errand::Test).map(|number| number.to_string()),
            Some(("outcome", number)) => {
                let outcome = number.parse().ok().and_then(|number| self.outcome(number));
                match outcome {
                    Some(None) => Ok("pending".to_owned()),
                    Some(Some(outcome)) => outcome.map(|said| format!("done {said}")),
                    None => Err("the server knows nothing of it: was it restarted?".to_owned()),
                }
            }
            _ => Err(format!("about the certificate this server knows no {words:?}")),
        }
    }

    /// Where the errands arrive, for the one who runs them.
    pub fn receive(&self) -> Receiver<(u64, Errand)> {
        let (sender, receiver) = channel();
        self.state().sender = Some(sender);
        receiver
    }

    /// Has an errand run; gives its number.
    fn send(&self, errand: Errand) -> Result<u64, String> {
        let mut state = self.state();
        let number = state.last + 1;
        let sent = state.sender.as_ref().is_some_and(|sender| sender.send((number, errand)).is_ok());
        if !sent {
            return Err("nobody is there to run it: the thread for certificates has ended".to_owned());
        }
        state.last = number;
        state.outcomes.insert(number, None);
        if state.outcomes.len() > REMEMBERED {
            state.outcomes.pop_first();
        }
        Ok(number)
    }

    /// Notes what came of an errand.
    pub fn conclude(&self, number: u64, outcome: Result<String, String>) {
        self.state().outcomes.insert(number, Some(outcome));
    }

    /// What came of an errand; `None` if there was none of that number.
    fn outcome(&self, number: u64) -> Option<Outcome> {
        self.state().outcomes.get(&number).cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errand_is_run_once_and_its_outcome_kept_for_whoever_comes_back() {
        let errands = Errands::default();
        assert!(errands.send(Errand::Test).is_err(), "nobody is there yet");
        let receiver = errands.receive();
        let number = errands.send(Errand::Renew).unwrap();
        assert_eq!(errands.outcome(number), Some(None));
        assert_eq!(receiver.try_recv(), Ok((number, Errand::Renew)));
        assert_eq!(errands.answer(&format!("outcome {number}")).as_deref(), Ok("pending"));
        errands.conclude(number, Ok("done".to_owned()));
        assert_eq!(errands.outcome(number), Some(Some(Ok("done".to_owned()))));
        assert_eq!(errands.outcome(number + 1), None);
        for _ in 0..REMEMBERED {
            errands.send(Errand::Test).unwrap();
        }
        assert_eq!(errands.outcome(number), None, "it was long ago");
        assert!(errands.answer(&format!("outcome {number}")).is_err());
    }
}
