//! What the database says about its own health.

use super::fault::Outcome;
use super::registry::client;
use super::txn::{Txn, id, state, state_sql, value, version};
use super::{Postgres, READ};
use crate::protocol::{ClientId, VersionId};
use crate::storage::upkeep::{Chain, Examination, Holder, Link, Measures, Upkeep};
use crate::storage::{Kind, Result};
use std::time::Duration;

/// All that a client holds, looked at byte by byte: what the disk cannot give back, or the engine finds
/// damaged, is an error.
const SCAN: &str =
    "SELECT (SELECT sum(length(snapshot || '\\x00')) FROM clients WHERE client_id = $1)::BIGINT,
            (SELECT sum(length(history_segment || '\\x00')) FROM versions WHERE client_id = $1)::BIGINT";

/// How long that may take for one client.
const LONGEST: Duration = Duration::from_secs(600);

impl Upkeep for Postgres {
    fn measure(&self) -> Result<Measures> {
        const DOING: &str = "measuring the database";
        self.on_link(None, |txn| {
            let rows = txn.ask(
                DOING,
                "SELECT (pg_total_relation_size('clients') + pg_total_relation_size('versions'))::BIGINT,
                        version, adopted
                 FROM sync_server_schema",
                &[],
            )?;
            let found: Outcome<Option<(i64, i64, i64)>> =
                rows.first().map(|row| Ok((value(row, 0)?, value(row, 1)?, value(row, 2)?))).transpose();
            let (database, schema, adopted) = txn.told(DOING, found)?.unwrap_or_default();
            Ok(Measures { database: database.unsigned_abs(), wal: None, unused: None, schema, adopted })
        })
    }

    fn examine(&self, go_on: &mut dyn FnMut() -> bool) -> Result<Examination> {
        let mut flaws = Vec::new();
        for holder in self.holders()? {
            if !go_on() {
                return Ok(Examination { flaws, unfinished: Some("it was given up".to_owned()) });
            }
            match self.on_link(Some(READ), |txn| txn.scan(holder.client)) {
                Ok(()) => {}
                Err(error) if error.kind == Kind::Corrupt => flaws.push(error.message),
                Err(error) => return Err(error),
            }
        }
        Ok(Examination { flaws, unfinished: None })
    }

    fn holders(&self) -> Result<Vec<Holder>> {
        const DOING: &str = "listing the clients";
        self.on_link(None, |txn| {
            let rows = txn.ask(
                DOING,
                "SELECT h.client_id, r.label, c.client_id IS NOT NULL
                 FROM (SELECT client_id FROM clients UNION SELECT client_id FROM versions
                       UNION SELECT client_id FROM sync_server_clients) h
                      LEFT JOIN clients c ON c.client_id = h.client_id
                      LEFT JOIN sync_server_clients r ON r.client_id = h.client_id
                 ORDER BY h.client_id",
                &[],
            )?;
            let holder =
                |row| Ok(Holder { client: client(row, 0)?, label: value(row, 1)?, exists: value(row, 2)? });
            txn.told(DOING, rows.iter().map(holder).collect())
        })
    }

    fn chain(&self, client: ClientId) -> Result<Chain> {
        self.on_link(Some(READ), |txn| txn.chain(client))
    }
}

impl Txn<'_> {
    fn scan(&mut self, client: ClientId) -> Result<()> {
        let doing = format!("reading all that client {client:?} holds");
        self.ask(&doing, "SET LOCAL statement_timeout = 0", &[])?;
        let rows = self.link.query_within(LONGEST, SCAN, &[id(&client.uuid())]);
        self.told(&doing, rows).map(|_| ())
    }

    fn chain(&mut self, client: ClientId) -> Result<Chain> {
        const DOING: &str = "reading a client's chain";
        let rows = self.ask(
            DOING,
            concat!(
                "SELECT c.latest_version_id, c.snapshot_version_id, octet_length(c.snapshot), ",
                state_sql!(),
                "
             FROM clients c LEFT JOIN sync_server_clients r ON r.client_id = $1
             WHERE c.client_id = $1"
            ),
            &[id(&client.uuid())],
        )?;
        let found: Outcome<Option<Chain>> = rows
            .first()
            .map(|row| {
                Ok(Chain {
                    exists: true,
                    state: state(row, 3)?,
                    latest: version(row, 0)?.unwrap_or(VersionId::NIL),
                    snapshot: version(row, 1)?,
                    snapshot_bytes: bytes(value(row, 2)?),
                    links: Vec::new(),
                })
            })
            .transpose();
        let mut chain = self.told(DOING, found)?.unwrap_or(Chain::NONE);
        let rows = self.ask(
            DOING,
            "SELECT version_id, parent_version_id, octet_length(history_segment) FROM versions
             WHERE client_id = $1",
            &[id(&client.uuid())],
        )?;
        let links: Outcome<Vec<Link>> = rows
            .iter()
            .map(|row| {
                Ok(Link {
                    version: version(row, 0)?.unwrap_or(VersionId::NIL),
                    parent: version(row, 1)?.unwrap_or(VersionId::NIL),
                    bytes: bytes(value(row, 2)?),
                })
            })
            .collect();
        chain.links = self.told(DOING, links)?;
        Ok(chain)
    }
}

fn bytes(length: Option<i32>) -> u64 {
    length.map_or(0, |length| u64::from(length.unsigned_abs()))
}
