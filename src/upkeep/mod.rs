//! What keeps a database in order: a look at everything that it holds.
//!
//! Everything happens in steps between which others are let in. Knows what the storage says of itself and what is wrong with it; knows neither which database it is nor who asks.

pub mod chain;

use crate::protocol::ClientId;
use crate::storage::upkeep::{Examination, Upkeep};
use crate::storage::{Kind, Result};
use chain::Flaw;

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
