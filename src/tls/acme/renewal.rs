//! The thread that gets certificates, and what it says of each attempt.

use super::errands::Errand;
use super::history::Kind;
use super::order::{Asking, Failure, What};
use super::{Acme, Loaded, is_for, pem, terms};
use crate::tls::{Acceptor, Facts, at, span};
use rustls_acme::acme::Account;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, SystemTime};
use tokio::runtime::{Builder, Runtime};

/// How long one attempt may take altogether.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// How often the clock is looked at: it may be set, and machines sleep.
const LOOK: Duration = Duration::from_secs(60);

/// Starts the thread. It ends with the acceptor.
pub fn start(acceptor: &Arc<Acceptor>, acme: &Acme) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let (errands, acceptor) = (acme.errands.receive(), Arc::downgrade(acceptor));
    let work = move || {
        while let Some(pause) = work_once(&acceptor, &runtime) {
            if !wait(&acceptor, &runtime, &errands, pause) {
                return;
            }
        }
    };
    thread::Builder::new().name("acme".to_owned()).spawn(work).map(drop)
}

/// Makes an attempt if one is due; gives the time until the next look.
fn work_once(acceptor: &Weak<Acceptor>, runtime: &Runtime) -> Option<Duration> {
    let acceptor = acceptor.upgrade()?;
    let acme = acceptor.acme.as_ref()?;
    let due = || {
        let held = acceptor.facts();
        let held = held.as_ref().and_then(|facts| acme.fitting(facts));
        let due = acme.history().due(held, acme.wanted.retry);
        due.duration_since(SystemTime::now()).unwrap_or_default()
    };
    if due().is_zero() {
        // What came of it is in the log.
        let _ = acme.attempt(&acceptor, runtime);
    }
    Some(due())
}

/// Waits, and runs what operators ask for meanwhile; false at the end of it all.
fn wait(
    acceptor: &Weak<Acceptor>,
    runtime: &Runtime,
    errands: &Receiver<(u64, Errand)>,
    pause: Duration,
) -> bool {
    match errands.recv_timeout(pause.min(LOOK)) {
        Ok((number, errand)) => {
            let Some(acceptor) = acceptor.upgrade() else { return false };
            let Some(acme) = &acceptor.acme else { return false };
            let outcome = match errand {
                Errand::Renew => acme.attempt(&acceptor, runtime),
                Errand::Test => acme.try_out(runtime),
            };
            acme.errands.conclude(number, outcome);
            true
        }
        Err(RecvTimeoutError::Timeout) => true,
        Err(RecvTimeoutError::Disconnected) => false,
    }
}

impl Acme {
    /// Gets a certificate and has it served; says in the log what came of it.
    fn attempt(&self, acceptor: &Acceptor, runtime: &Runtime) -> Result<String, String> {
        let held = acceptor.facts();
        let fitting = held.as_ref().and_then(|facts| self.fitting(facts));
        self.history().begin(SystemTime::now(), fitting, self.wanted.retry);
        // What is not on the disk before would be forgotten by a crash, and repeated after it.
        let got = self.keep_history().and_then(|()| self.get(runtime));
        let now = SystemTime::now();
        match got {
            Ok((kind, pem, loaded)) => {
                self.history().succeed(now, &loaded.facts, fitting.is_some(), kind, self.wanted.retry);
                let kept = self.store.keep_certificate(&pem).and_then(|()| self.keep_history());
                *self.held() = Some(pem);
                let said = format!("{} ({})", self.summary(&loaded.facts), kind.name());
                acceptor.replace(loaded);
                log::info!("a new {said}");
                if let Err(why) = kept {
                    log::error!(
                        "the new certificate is served and will be lost when the server stops: {why}; make that \
                         possible, then `sync-server admin cert renew`"
                    );
                }
                Ok(format!("a new {said}"))
            }
            Err(why) => {
                self.history().fail(now, &why, fitting, self.wanted.retry);
                let next = at(self.history().due(fitting, self.wanted.retry));
                if let Err(why) = self.keep_history() {
                    log::error!("when the authority may be asked again cannot be kept: {why}");
                }
                complain(held.as_ref(), now, &why, &next);
                Err(why)
            }
        }
    }

    /// Does what an attempt does where it costs nothing, and throws away what it gets.
    fn try_out(&self, runtime: &Runtime) -> Result<String, String> {
        let directory = self.wanted.for_trial();
        let kinds = self.history().kinds(self.wanted.challenge);
        // An account for this once: the real one is not known there.
        let outcome = self.order(runtime, directory, &Account::generate_key_pair(), &kinds);
        match outcome {
            Ok((kind, pem)) => {
                let facts = pem::issued(&pem, None)?.facts;
                let said = format!(
                    "{directory} gave a certificate for {} by {}, which was thrown away",
                    facts.names.join(", "),
                    kind.name()
                );
                log::info!("tried out: {said}");
                Ok(said)
            }
            Err(Failure { why, .. }) => {
                log::warn!("tried out: {why}");
                Err(why)
            }
        }
    }

    /// A certificate that can be served for all names.
    fn get(&self, runtime: &Runtime) -> Result<(Kind, Vec<u8>, Loaded), String> {
        let account = self.account()?;
        let kinds = self.history().kinds(self.wanted.challenge);
        let (kind, pem) = self.order(runtime, &self.wanted.directory, &account, &kinds).map_err(
            |Failure { why, what }| {
                if what == What::Account
                    && let Err(why) = self.store.forget_account()
                {
                    log::warn!("another account will be needed: {why}");
                }
                why
            },
        )?;
        let loaded = pem::issued(&pem, self.client_ca.as_deref())
            .map_err(|why| format!("what the authority gave cannot be used: {why}"))?;
        if !is_for(&loaded.facts, &self.wanted) {
            return Err(format!(
                "what the authority gave is for {}, and not for {}",
                loaded.facts.names.join(", "),
                self.wanted.domains.join(", ")
            ));
        }
        Ok((kind, pem, loaded))
    }

    /// Tries one way after the other.
    fn order(
        &self,
        runtime: &Runtime,
        directory: &str,
        account: &[u8],
        kinds: &[Kind],
    ) -> Result<(Kind, Vec<u8>), Failure> {
        let contact = self.wanted.contact.as_deref();
        let (client, domains) = (&self.client, &*self.wanted.domains);
        let asking = Asking { client, directory, contact, account, domains };
        let others = self.wanted.challenge == crate::config::Challenge::Auto;
        let mut failures = Vec::new();
        for kind in kinds {
            let order = asking.order(*kind, others, &self.challenges);
            let got = runtime.block_on(async { tokio::time::timeout(PATIENCE, order).await });
            self.challenges.clear();
            match got {
                Ok(Ok(pem)) => return Ok((*kind, pem)),
                Ok(Err(failure)) => failures.push(failure),
                Err(_) => {
                    let why = format!("{directory} did not finish within {}", span(PATIENCE));
                    failures.push(Failure { why, what: What::Other });
                }
            }
            if failures.last().is_some_and(|failure| failure.what != What::Proof) {
                break;
            }
        }
        let what = failures.pop().map_or((Vec::new(), What::Other), |last| (vec![last.why], last.what));
        let whys: Vec<String> = failures.into_iter().map(|failure| failure.why).chain(what.0).collect();
        Err(Failure { why: whys.join("; then: "), what: what.1 })
    }

    /// The key of the account, a new one where there is none.
    fn account(&self) -> Result<Vec<u8>, String> {
        if let Some(key) = self.store.account()? {
            return Ok(key);
        }
        let terms = terms::url(&self.wanted.directory, &self.client);
        if let Some(url) = &terms {
            log::info!(
                "{} opens an account; by acme.domain you have agreed to the terms at {url}",
                self.wanted.directory
            );
        }
        self.history().terms = terms;
        let key = Account::generate_key_pair();
        self.store.keep_account(&key)?;
        Ok(key)
    }

    fn keep_history(&self) -> Result<(), String> {
        let history = self.history().clone();
        self.store.keep_history(&history)
    }
}

/// Says that there is no new certificate: the nearer the end of the old one, the louder.
fn complain(held: Option<&Facts>, now: SystemTime, why: &str, next: &str) {
    let Some(held) = held else {
        log::warn!("no certificate yet, so nobody can sync: {why}; the next attempt is at {next}");
        return;
    };
    let until = at(held.until);
    match held.until.duration_since(now) {
        Ok(left) if left > held.life() / 6 => log::warn!(
            "the certificate was not renewed: {why}; the one in use is valid for another {}; the next attempt is \
             at {next}",
            span(left)
        ),
        Ok(left) => log::error!(
            "THE CERTIFICATE IS STILL NOT RENEWED and ends in {}, at {until}: {why}; the next attempt is at {next}",
            span(left)
        ),
        Err(_) => log::error!(
            "THE CERTIFICATE EXPIRED at {until}, so clients refuse this server, and it was not renewed: {why}; the \
             next attempt is at {next}"
        ),
    }
}
