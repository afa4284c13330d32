//! What the database says about its own health.

use super::fault::Context;
use super::txn::{Text, Txn, state_at};
use super::{BUSY_TIMEOUT, Sqlite, common_flags};
use crate::protocol::{ClientId, VersionId};
use crate::storage::upkeep::{Chain, Examination, Holder, Link, Measures, Upkeep};
use crate::storage::{Kind, Result};
use rusqlite::{Connection, InterruptHandle, OpenFlags, OptionalExtension, Row};
use std::fs::metadata;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How much damage is told of.
const TOLD: i64 = 50;

/// How often whoever waits is asked whether to go on.
const LOOK: Duration = Duration::from_millis(100);

/// While the file is looked at in one piece, what is written meanwhile stays in the WAL. By this many
/// bytes it may grow.
const GROWTH: u64 = 512 * 1024 * 1024;

/// An ID as every statement looks for it: lower case with dashes.
pub(super) const ID: &str = "[0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]-\
                  [0-9a-f][0-9a-f][0-9a-f][0-9a-f]-[0-9a-f][0-9a-f][0-9a-f][0-9a-f]-\
                  [0-9a-f][0-9a-f][0-9a-f][0-9a-f]-\
                  [0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f][0-9a-f]";

impl Upkeep for Sqlite {
    fn measure(&self) -> Result<Measures> {
        let wal = metadata(wal_of(&self.path)).map_or(0, |data| data.len());
        let mut measures = None;
        self.on_reader(|txn| {
            let sql = "SELECT page_count * page_size, freelist_count * page_size,
                              s.version, s.adopted
                       FROM pragma_page_count, pragma_freelist_count, pragma_page_size, sync_server_schema s";
            let found = txn.connection.query_row(sql, [], |row| {
                Ok(Measures {
                    database: row.get::<_, i64>(0)?.unsigned_abs(),
                    wal: Some(wal),
                    unused: Some(row.get::<_, i64>(1)?.unsigned_abs()),
                    schema: row.get(2)?,
                    adopted: row.get(3)?,
                })
            });
            measures = Some(found.context("measuring the database", txn.path)?);
            Ok(())
        })?;
        measures.ok_or_else(crate::storage::not_run)
    }

    fn examine(&self, go_on: &mut dyn FnMut() -> bool) -> Result<Examination> {
        // Not one of the readers that requests wait for.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | common_flags();
        let connection =
            Connection::open_with_flags(&self.path, flags).context("opening the database", &self.path)?;
        connection.busy_timeout(BUSY_TIMEOUT).context("opening the database", &self.path)?;
        let begun = metadata(wal_of(&self.path)).map_or(0, |data| data.len());
        let mut watch = || {
            let grown = metadata(wal_of(&self.path)).map_or(0, |data| data.len()).saturating_sub(begun);
            if grown > GROWTH {
                return Some(
                    "so much was written meanwhile that looking on would have filled the disk: try again \
                             at a quieter time"
                        .to_owned(),
                );
            }
            (!go_on()).then(|| "it was given up".to_owned())
        };
        let handle = connection.get_interrupt_handle();
        let ((mut flaws, looked), stopped) = watched(&handle, &mut watch, move || {
            let mut flaws = Vec::new();
            let looked = look(&connection, &mut flaws);
            (flaws, looked)
        });
        match (looked.context("looking for damage", &self.path), stopped) {
            (Ok(()), _) => Ok(Examination { flaws, unfinished: None }),
            (Err(_), Some(why)) => Ok(Examination { flaws, unfinished: Some(why) }),
            (Err(error), None) if error.kind == Kind::Corrupt => {
                flaws.push(error.message);
                Ok(Examination { flaws, unfinished: None })
            }
            (Err(error), None) => Err(error),
        }
    }

    fn holders(&self) -> Result<Vec<Holder>> {
        let mut holders = Vec::new();
        self.on_reader(|txn| {
            holders = txn.holders().context("listing the clients", txn.path)?;
            Ok(())
        })?;
        Ok(holders)
    }

    fn chain(&self, client: ClientId) -> Result<Chain> {
        let mut chain = Chain::NONE;
        self.on_reader(|txn| {
            chain = txn.chain(client).context("reading a client's chain", txn.path)?;
            Ok(())
        })?;
        Ok(chain)
    }
}

impl Txn<'_> {
    fn holders(&self) -> rusqlite::Result<Vec<Holder>> {
        let mut statement = self.connection.prepare(
            "SELECT h.client_id, r.label, c.client_id IS NOT NULL
             FROM (SELECT client_id FROM clients UNION SELECT client_id FROM versions
                   UNION SELECT client_id FROM sync_server_clients) h
                  LEFT JOIN clients c ON c.client_id = h.client_id
                  LEFT JOIN sync_server_clients r ON r.client_id = h.client_id
             ORDER BY h.client_id",
        )?;
        let mut rows = statement.query([])?;
        let mut holders = Vec::new();
        while let Some(row) = rows.next()? {
            // What is no ID is told of as damage.
            let Some(client) = text_at(row, 0)?.and_then(ClientId::parse) else { continue };
            holders.push(Holder { client, label: row.get(1)?, exists: row.get(2)? });
        }
        Ok(holders)
    }

    fn chain(&self, client: ClientId) -> rusqlite::Result<Chain> {
        let id = Text::of(client.uuid());
        let mut statement = self.statement(
            "SELECT c.latest_version_id, c.snapshot_version_id, length(c.snapshot),
                    iif(r.removal IS NULL, r.suspended, 2)
             FROM clients c LEFT JOIN sync_server_clients r ON r.client_id = ?1
             WHERE c.client_id = ?1",
        )?;
        let found = statement.query_row([&id], |row| {
            Ok(Chain {
                exists: true,
                state: state_at(row, 3)?,
                latest: text_at(row, 0)?.and_then(VersionId::parse).unwrap_or(VersionId::NIL),
                snapshot: text_at(row, 1)?.and_then(VersionId::parse),
                snapshot_bytes: row.get::<_, Option<i64>>(2)?.map_or(0, i64::unsigned_abs),
                links: Vec::new(),
            })
        });
        let mut chain = found.optional()?.unwrap_or(Chain::NONE);
        let mut statement = self.statement(
            "SELECT version_id, parent_version_id, length(history_segment) FROM versions WHERE client_id = ?1",
        )?;
        let mut rows = statement.query([&id])?;
        while let Some(row) = rows.next()? {
            let ids = (text_at(row, 0)?, text_at(row, 1)?);
            let (Some(version), Some(parent)) =
                (ids.0.and_then(VersionId::parse), ids.1.and_then(VersionId::parse))
            else {
                continue;
            };
            let bytes = row.get::<_, Option<i64>>(2)?.map_or(0, i64::unsigned_abs);
            chain.links.push(Link { version, parent, bytes });
        }
        Ok(chain)
    }
}

/// Runs `work` on a thread, and asks `watch` meanwhile for a reason to stop it.
fn watched<T: Send>(
    handle: &InterruptHandle,
    watch: &mut dyn FnMut() -> Option<String>,
    work: impl FnOnce() -> T + Send,
) -> (T, Option<String>) {
    let (done, end) = channel();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let result = work();
            // Nobody listens any more where it was stopped.
            let _ = done.send(());
            result
        });
        let mut stopped = None;
        while end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            stopped = stopped.or_else(&mut *watch);
            if stopped.is_some() {
                handle.interrupt();
            }
        }
        let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (result, stopped)
    })
}

fn look(connection: &Connection, flaws: &mut Vec<String>) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(&format!("PRAGMA integrity_check({TOLD})"))?;
    for told in statement.query_map([], |row| row.get::<_, String>(0))? {
        flaws.extend(Some(told?).filter(|told| told != "ok"));
    }
    let rows = [
        ("versions", ["version_id", "client_id", "parent_version_id"].as_slice(), ""),
        ("clients", &["client_id"], ""),
        // A row that an operator inserted by hand may name no version at all.
        ("clients", &["latest_version_id", "snapshot_version_id"], "IS NOT NULL AND"),
    ];
    for (table, columns, unless) in rows {
        for column in columns {
            let condition = if unless.is_empty() { String::new() } else { format!("{column} {unless}") };
            let sql = format!(
                "SELECT rowid FROM {table} WHERE {condition} ({column} GLOB '{ID}') IS NOT TRUE LIMIT {TOLD}"
            );
            let mut statement = connection.prepare(&sql)?;
            let rows = statement.query_map([], |row| row.get::<_, i64>(0))?;
            for rowid in rows {
                flaws.push(format!("row {} of {table}: {column} is no ID", rowid?));
            }
        }
    }
    Ok(())
}

fn text_at<'r>(row: &'r Row, column: usize) -> rusqlite::Result<Option<&'r str>> {
    Ok(row.get_ref(column)?.as_str_or_null().unwrap_or(None))
}

fn wal_of(database: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", database.display()))
}
