//! Large bodies, in parts: the driver would hold each of them three times.

use super::link::Link;
use super::txn::{Txn, id, value};
use crate::protocol::{ClientId, VersionId};
use crate::storage::{Body, Error, Kind, Result, Sink};
use std::time::Duration;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

/// Larger bodies are read and written in parts.
pub(super) const INLINE: usize = 1024 * 1024;

/// Bytes of one part.
const PART: usize = 1024 * 1024;

/// The slowest that a database may put a body together, by second.
const SLOWEST: usize = 4 * 1024 * 1024;

impl Txn<'_> {
    pub(super) fn is_large(&self, bytes: &[u8]) -> bool {
        bytes.len() > INLINE
    }

    /// The segment of a version, whose length and bytes, where few, are in the row.
    pub(super) fn segment(
        &mut self,
        client: ClientId,
        of: VersionId,
        row: &Row,
        room: usize,
    ) -> Result<Body> {
        const SQL: &str = "SELECT substring(history_segment FROM $3 FOR $4) FROM versions
                           WHERE client_id = $1 AND version_id = $2";
        self.body("reading a version", SQL, client, of, (row, 4), room)
    }

    /// The same of a snapshot, which is another one as soon as its version is another.
    pub(super) fn snapshot_bytes(
        &mut self,
        client: ClientId,
        of: VersionId,
        row: &Row,
        room: usize,
    ) -> Result<Body> {
        const SQL: &str = "SELECT substring(snapshot FROM $3 FOR $4) FROM clients
                           WHERE client_id = $1 AND snapshot_version_id = $2";
        self.body("reading a snapshot", SQL, client, of, (row, 3), room)
    }

    pub(super) fn body(
        &mut self,
        doing: &str,
        sql: &'static str,
        client: ClientId,
        of: VersionId,
        (row, at): (&Row, usize),
        room: usize,
    ) -> Result<Body> {
        let found = value::<Option<i32>>(row, at);
        let length = usize::try_from(self.told(doing, found)?.unwrap_or(0)).unwrap_or(0);
        if length > room {
            return Ok(Body::TooLarge(length));
        }
        if length <= INLINE {
            let bytes = value::<Option<&[u8]>>(row, at + 1);
            return Ok(Body::Bytes(self.told(doing, bytes)?.unwrap_or_default().to_vec()));
        }
        self.parts(doing, sql, client, of, length).map(Body::Bytes)
    }

    /// Hands a snapshot out piece by piece, all of them of one state where the transaction sees one.
    pub(super) fn pour(&mut self, client: ClientId, piece: usize, sink: &mut Sink<'_>) -> Result<()> {
        const DOING: &str = "reading a snapshot";
        let size = i32::try_from(piece).unwrap_or(i32::MAX);
        let mut from: i32 = 1;
        loop {
            let rows = self.ask(
                DOING,
                "SELECT substring(snapshot FROM $2 FOR $3) FROM clients
                 WHERE client_id = $1 AND snapshot IS NOT NULL AND snapshot_version_id IS NOT NULL",
                &[id(&client.uuid()), (&from, Type::INT4), (&size, Type::INT4)],
            )?;
            let bytes = rows.first().map(|row| value::<&[u8]>(row, 0)).transpose();
            let bytes = self.told(DOING, bytes)?.unwrap_or_default();
            let is_last = bytes.len() < piece;
            if bytes.is_empty() || !sink(bytes.to_vec()) || is_last {
                return Ok(());
            }
            from = from.saturating_add(size);
        }
    }

    /// Reads a body of so many bytes, part after part.
    pub(super) fn parts(
        &mut self,
        doing: &str,
        sql: &'static str,
        client: ClientId,
        of: VersionId,
        length: usize,
    ) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let from = i32::try_from(bytes.len() + 1).unwrap_or(i32::MAX);
            let part = i32::try_from(PART).unwrap_or(i32::MAX);
            let rows = self.ask(
                doing,
                sql,
                &[id(&client.uuid()), id(&of.uuid()), (&from, Type::INT4), (&part, Type::INT4)],
            )?;
            let part = rows.first().map(|row| value::<Option<&[u8]>>(row, 0)).transpose();
            match self.told(doing, part)?.flatten() {
                Some(part) if !part.is_empty() => bytes.extend_from_slice(part),
                _ => return Err(self.replaced(doing)),
            }
        }
        if bytes.len() == length { Ok(bytes) } else { Err(self.replaced(doing)) }
    }

    /// Between two parts of it, a snapshot may give way to the next, or a client be removed.
    fn replaced(&mut self, doing: &str) -> Error {
        self.may_pass = true;
        Error::new(Kind::Busy, format!("{doing}: {}: it was replaced meanwhile; try again", self.database))
    }

    pub(super) fn append_in_parts(
        &mut self,
        client: ClientId,
        new: VersionId,
        parent: VersionId,
        segment: &[u8],
    ) -> Result<()> {
        const DOING: &str = "adding a version";
        self.insert_in_parts(DOING, client, new, parent, segment)?;
        let moved = self.ask(
            DOING,
            "UPDATE clients
             SET latest_version_id = $2, versions_since_snapshot = versions_since_snapshot + 1
             WHERE client_id = $1 RETURNING 1",
            &[id(&client.uuid()), id(&new.uuid())],
        )?;
        self.one_row(DOING, &moved)?;
        self.forget_parts(DOING, client)
    }

    /// Puts the version's row in its place, and leaves the parts.
    pub(super) fn insert_in_parts(
        &mut self,
        doing: &str,
        client: ClientId,
        new: VersionId,
        parent: VersionId,
        segment: &[u8],
    ) -> Result<()> {
        self.send(doing, client, segment)?;
        self.put_together(
            doing,
            "INSERT INTO versions (client_id, version_id, parent_version_id, history_segment)
             SELECT $1, $2, $3, (SELECT string_agg(bytes, ''::BYTEA ORDER BY part) FROM sync_server_parts
                                 WHERE client_id = $1)
             RETURNING 1",
            &[id(&client.uuid()), id(&new.uuid()), id(&parent.uuid())],
            segment.len(),
        )
        .map(|_| ())
    }

    pub(super) fn set_in_parts(
        &mut self,
        client: ClientId,
        of: VersionId,
        now: i64,
        snapshot: &[u8],
    ) -> Result<()> {
        const DOING: &str = "storing a snapshot";
        self.send(DOING, client, snapshot)?;
        let set = self.put_together(
            DOING,
            "UPDATE clients
             SET snapshot_version_id = $2, snapshot_timestamp = $3, versions_since_snapshot = 0,
                 snapshot = (SELECT string_agg(bytes, ''::BYTEA ORDER BY part) FROM sync_server_parts
                             WHERE client_id = $1)
             WHERE client_id = $1 RETURNING 1",
            &[id(&client.uuid()), id(&of.uuid()), (&now, Type::INT8)],
            snapshot.len(),
        )?;
        self.one_row(DOING, &set)?;
        self.forget_parts(DOING, client)
    }

    /// Puts a body beside its place. Nobody else ever sees it there: the transaction takes it away.
    pub(super) fn send(&mut self, doing: &str, client: ClientId, bytes: &[u8]) -> Result<()> {
        for (part, bytes) in (0_i64..).zip(bytes.chunks(PART)) {
            self.ask(
                doing,
                "INSERT INTO sync_server_parts (client_id, part, bytes) VALUES ($1, $2, $3)",
                &[id(&client.uuid()), (&part, Type::INT8), (&bytes, Type::BYTEA)],
            )?;
        }
        let unlimited = self.link.batch("SET LOCAL statement_timeout = 0");
        self.told(doing, unlimited)
    }

    /// The statement that moves all of a body at once may take longer than others.
    pub(super) fn put_together(
        &mut self,
        doing: &str,
        sql: &'static str,
        values: &[super::link::Value<'_>],
        length: usize,
    ) -> Result<Vec<Row>> {
        let deadline = self.link.deadline() + Duration::from_secs((length / SLOWEST) as u64);
        let rows = Link::query_within(self.link, deadline, sql, values);
        self.told(doing, rows)
    }

    pub(super) fn forget_parts(&mut self, doing: &str, client: ClientId) -> Result<()> {
        let client: Uuid = client.uuid();
        self.ask(doing, "DELETE FROM sync_server_parts WHERE client_id = $1", &[id(&client)]).map(|_| ())
    }
}
