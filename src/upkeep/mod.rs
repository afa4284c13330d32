//! What keeps a database in order: a look at everything that it holds, and the removal of what is to go.
//!
//! Everything happens in steps between which others are let in. Knows what the storage says of itself
//! and what is wrong with it; knows neither which database it is nor who asks.

pub mod chain;
pub mod prune;
pub mod removal;

use crate::protocol::{ClientId, State};
use crate::storage::registry::Portion;
use crate::storage::upkeep::{Examination, Upkeep};
use crate::storage::{Kind, Result};
use chain::Flaw;
use std::time::Duration;

/// What one transaction removes at most: some milliseconds' work, since each version of many clients'
/// lies on pages of its own in the table and in every index.
const STEP: Portion = Portion { rows: 64, bytes: 1024 * 1024 };

/// How much time a step leaves to others before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// None: nobody else writes.
    Alone,
    /// As much again, and enough for a server in another process to get its turn.
    Beside,
    /// Twice as much, and more than that after a short one: nobody waits for the end.
    Leisurely,
}

impl Pace {
    /// Waits after a step that took so long.
    pub fn pause(self, took: Duration) {
        let pause = match self {
            Pace::Alone => return,
            Pace::Beside => took.max(Duration::from_millis(10)),
            Pace::Leisurely => (took * 2).max(Duration::from_millis(20)),
        };
        std::thread::sleep(pause.min(Duration::from_millis(500)));
    }
}

/// How far a look at everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The database is still looking for damage.
    Examining,
    /// So many of so many clients were looked at.
    Client { done: u64, of: u64 },
}

/// What a look at everything found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What the database says of itself.
    pub examination: Examination,
    /// What is wrong with clients, ordered by ID.
    pub findings: Vec<Finding>,
    /// How many clients exist.
    pub clients: u64,
    /// How many are being removed, or their histories.
    pub leaving: u64,
    /// How many versions there are.
    pub versions: u64,
    /// How much their segments hold together.
    pub bytes: u64,
    /// How many snapshots there are.
    pub snapshots: u64,
    /// How much those hold together.
    pub snapshot_bytes: u64,
}

/// Something that is wrong with a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The client.
    pub client: ClientId,
    /// What the operator calls it.
    pub label: Option<String>,
    /// What is wrong.
    pub flaw: Flaw,
}

/// Looks at everything that a database holds. `watch` hears how far it is.
pub fn check(upkeep: &dyn Upkeep, watch: &mut dyn FnMut(Step)) -> Result<Report> {
    let examination = upkeep.examine(&mut || {
        watch(Step::Examining);
        true
    })?;
    let mut report = Report { examination, ..Report::default() };
    match check_clients(upkeep, &mut report, watch) {
        // What is damaged is told of already, and how far it reaches.
        Err(error) if error.kind == Kind::Corrupt => report.examination.flaws.push(error.message),
        done => done?,
    }
    Ok(report)
}

fn check_clients(upkeep: &dyn Upkeep, report: &mut Report, watch: &mut dyn FnMut(Step)) -> Result<()> {
    let holders = upkeep.holders()?;
    let of = holders.len() as u64;
    for (done, holder) in (1..).zip(holders) {
        let chain = upkeep.chain(holder.client)?;
        report.clients += u64::from(chain.exists);
        report.versions += chain.links.len() as u64;
        report.bytes += chain.links.iter().map(|link| link.bytes).sum::<u64>();
        report.snapshots += u64::from(chain.snapshot.is_some());
        report.snapshot_bytes += chain.snapshot_bytes;
        report.leaving += u64::from(chain.state == State::Leaving);
        let mut flaws = chain::flaws(&chain);
        if !holder.exists && !chain.exists && chain.links.is_empty() {
            flaws.push(Flaw::Ghost);
        }
        let finding = |flaw| Finding { client: holder.client, label: holder.label.clone(), flaw };
        report.findings.extend(flaws.into_iter().map(finding));
        watch(Step::Client { done, of });
    }
    Ok(())
}
