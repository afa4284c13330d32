//! How much each client holds, without reading every version whenever somebody asks.
//!
//! Sizes are kept for the versions up to a row number and counted for those after it, so that they
//! are right whoever added them. Other programs may also delete rows, or number them anew as VACUUM
//! does: the exact number of versions, which an index gives cheaply, tells where kept sizes are
//! wrong, and those clients are counted in full.

use super::registry::client_at;
use super::txn::Text;
use crate::protocol::ClientId;
use rusqlite::{Connection, Row};
use std::collections::HashMap;

/// Number of versions and of their bytes.
pub(super) type Size = (u64, u64);

/// The size of one client, counted in full.
pub(super) fn of(connection: &Connection, client: &Text) -> rusqlite::Result<Size> {
    let mut statement = connection.prepare_cached(
        "SELECT count(*), coalesce(sum(length(history_segment)), 0) FROM versions WHERE client_id = ?1",
    )?;
    statement.query_row([client], |row| size_at(row, 0))
}

/// The sizes of all clients that have versions.
pub(super) fn of_all(connection: &Connection) -> rusqlite::Result<HashMap<ClientId, Size>> {
    let mut sizes = query(connection, "SELECT client_id, versions, bytes FROM sync_server_sizes")?;
    let recent = query(
        connection,
        "SELECT client_id, count(*), coalesce(sum(length(history_segment)), 0) FROM versions
         WHERE rowid > (SELECT up_to FROM sync_server_sized) AND client_id IS NOT NULL GROUP BY client_id",
    )?;
    for (client, (versions, bytes)) in recent {
        let size = sizes.entry(client).or_default();
        *size = (size.0 + versions, size.1 + bytes);
    }
    let counted = query(
        connection,
        "SELECT client_id, count(*), 0 FROM versions WHERE client_id IS NOT NULL GROUP BY client_id",
    )?;
    counted
        .into_iter()
        .map(|(client, (versions, _))| match sizes.get(&client) {
            Some(size) if size.0 == versions => Ok((client, *size)),
            _ => Ok((client, of(connection, &Text::of(client.uuid()))?)),
        })
        .collect()
}

/// Takes the versions that were added since the last time into the kept sizes. In a transaction.
pub(super) fn keep(connection: &Connection) -> rusqlite::Result<()> {
    let (last, _) = bounds(connection)?;
    connection.execute(
        "INSERT INTO sync_server_sizes (client_id, versions, bytes)
         SELECT client_id, count(*), coalesce(sum(length(history_segment)), 0) FROM versions
         WHERE rowid > (SELECT up_to FROM sync_server_sized) AND client_id IS NOT NULL GROUP BY client_id
         ON CONFLICT (client_id) DO UPDATE SET
             versions = versions + excluded.versions, bytes = bytes + excluded.bytes",
        [],
    )?;
    connection.execute("UPDATE sync_server_sized SET up_to = ?1", [last]).map(|_| ())
}

/// Forgets the kept sizes where others deleted the last rows or numbered them anew: the next
/// [`keep`] counts everything.
pub(super) fn distrust(connection: &Connection) -> rusqlite::Result<()> {
    let (last, up_to) = bounds(connection)?;
    if last < up_to {
        connection.execute("DELETE FROM sync_server_sizes", [])?;
        connection.execute("UPDATE sync_server_sized SET up_to = 0", [])?;
    }
    Ok(())
}

/// Whether [`keep`] has something to do.
pub(super) fn is_behind(connection: &Connection) -> rusqlite::Result<bool> {
    let (last, up_to) = bounds(connection)?;
    Ok(last != up_to)
}

/// Takes removed versions, by their row numbers and lengths, out of what is kept of their client.
pub(super) fn subtract(
    connection: &Connection,
    client: &Text,
    removed: &[(i64, i64)],
) -> rusqlite::Result<()> {
    let (_, up_to) = bounds(connection)?;
    let kept = || removed.iter().filter(|(rowid, _)| *rowid <= up_to);
    let versions = i64::try_from(kept().count()).unwrap_or(i64::MAX);
    let bytes: i64 = kept().map(|(_, bytes)| bytes).sum();
    let sql =
        "UPDATE sync_server_sizes SET versions = versions - ?2, bytes = bytes - ?3 WHERE client_id = ?1";
    connection.prepare_cached(sql)?.execute(rusqlite::params![client, versions, bytes]).map(|_| ())
}

/// To be called after versions were removed together with what was kept of them: the next version
/// gets the number that follows the highest that is left.
pub(super) fn after_removal(connection: &Connection) -> rusqlite::Result<()> {
    let (last, up_to) = bounds(connection)?;
    connection.execute("UPDATE sync_server_sized SET up_to = ?1", [up_to.min(last)]).map(|_| ())
}

/// The highest row number, and the one up to which sizes are kept.
fn bounds(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    connection.query_row(
        "SELECT coalesce((SELECT max(rowid) FROM versions), 0), (SELECT up_to FROM sync_server_sized)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

fn query(connection: &Connection, sql: &str) -> rusqlite::Result<HashMap<ClientId, Size>> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| Ok((client_at(row, 0)?, size_at(row, 1)?)))?;
    rows.collect()
}

fn size_at(row: &Row, column: usize) -> rusqlite::Result<Size> {
    Ok((row.get::<_, i64>(column)?.unsigned_abs(), row.get::<_, i64>(column + 1)?.unsigned_abs()))
}
