//! Clients on their way out, in steps that hold nobody up.

use super::{Pace, STEP};
use crate::protocol::ClientId;
use crate::storage::Result;
use crate::storage::location::Database;
use crate::storage::registry::{Registry, Removal, Writer};
use std::time::Instant;

/// Begins a removal in a transaction that records it too. Where all of it is little, it is done with
/// that; else the client is refused from its commit on, and [`carry_on`] does the rest, be it after a crash.
pub fn begin(writer: &mut dyn Writer, client: ClientId, removal: Removal) -> Result<bool> {
    writer.begin_removal(client, removal)?;
    Ok(writer.remove_some(client, STEP)?.is_done)
}

/// Does the rest of a removal that was begun. `go_on` hears how many versions more are gone, and says
/// whether to go on; returns whether nothing is left to do.
pub fn carry_on(
    database: &dyn Database,
    client: ClientId,
    pace: Pace,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<bool> {
    let registry: &dyn Registry = database;
    loop {
        let begun = Instant::now();
        let step = registry.amending(|writer| writer.remove_some(client, STEP))?;
        database.rest()?;
        if step.is_done {
            return Ok(true);
        }
        if !go_on(step.versions) {
            return Ok(false);
        }
        pace.pause(begun.elapsed());
    }
}
