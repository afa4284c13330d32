//! The tables of a Postgres database.
//!
//! What the reference server makes comes first, so that it can open every database of ours; then
//! numbered, append-only migrations that add tables and indexes of our own, all named
//! `sync_server_…`. Every key begins with the client, so that tables can be spread by it.

/// The reference server's tables. Without its foreign key: what it sees to, this program does by
/// itself, and every version that is added would pay for it. Bodies are stored as they are: they
/// are encrypted, and an attempt to compress them is in vain.
pub(super) const ADOPTED: &str = "\
CREATE TABLE clients (
    client_id UUID PRIMARY KEY,
    latest_version_id UUID DEFAULT '00000000-0000-0000-0000-000000000000',
    snapshot_version_id UUID,
    versions_since_snapshot INTEGER,
    snapshot_timestamp BIGINT,
    snapshot BYTEA);
ALTER TABLE clients ALTER COLUMN snapshot SET STORAGE EXTERNAL;
CREATE TABLE versions (
    client_id UUID NOT NULL,
    version_id UUID NOT NULL,
    parent_version_id UUID,
    history_segment BYTEA,
    PRIMARY KEY (client_id, version_id));
ALTER TABLE versions ALTER COLUMN history_segment SET STORAGE EXTERNAL;
";

/// The table that says which version the schema has. Its only row is locked by whoever migrates:
/// some engines take advisory locks and do nothing.
pub(super) const VERSION: &str = "\
CREATE TABLE IF NOT EXISTS sync_server_schema (
    only_row BOOLEAN PRIMARY KEY,
    version BIGINT NOT NULL,
    adopted BIGINT NOT NULL DEFAULT extract(epoch FROM now())::BIGINT);
INSERT INTO sync_server_schema (only_row, version) VALUES (true, 0) ON CONFLICT DO NOTHING;
";

/// What each version adds to those before it. The numbers are those of SQLite's schema that holds
/// the same.
pub(super) const MIGRATIONS: &[(i64, &str)] = &[(
    3,
    "\
CREATE TABLE sync_server_clients (
    client_id UUID PRIMARY KEY,
    label TEXT,
    suspended BOOLEAN NOT NULL DEFAULT false,
    created BIGINT,
    devices BIGINT NOT NULL DEFAULT 0,
    removal INTEGER);
CREATE UNIQUE INDEX sync_server_label ON sync_server_clients (label);
CREATE INDEX sync_server_leaving ON sync_server_clients (client_id) WHERE removal IS NOT NULL;
CREATE TABLE sync_server_devices (
    client_id UUID NOT NULL,
    name TEXT NOT NULL,
    token_hash BYTEA NOT NULL,
    created BIGINT NOT NULL,
    PRIMARY KEY (client_id, name));
CREATE TABLE sync_server_syncs (
    client_id UUID NOT NULL,
    device TEXT NOT NULL,
    program TEXT NOT NULL,
    last_sync BIGINT NOT NULL,
    PRIMARY KEY (client_id, device, program));
CREATE TABLE sync_server_audit (
    client_id UUID NOT NULL,
    event_id UUID NOT NULL,
    at BIGINT NOT NULL,
    local_user TEXT NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (client_id, event_id));
CREATE UNLOGGED TABLE sync_server_parts (
    client_id UUID NOT NULL,
    part BIGINT NOT NULL,
    bytes BYTEA NOT NULL,
    PRIMARY KEY (client_id, part));
ALTER TABLE sync_server_parts ALTER COLUMN bytes SET STORAGE EXTERNAL;
",
)];

/// The index that carries the chain's invariant: one child for each parent.
pub(super) const UNIQUE_INDEX: &str =
    "CREATE UNIQUE INDEX sync_server_child ON versions (client_id, parent_version_id);";

/// Its stand-in where adopted rows break the invariant.
pub(super) const PLAIN_INDEX: &str =
    "CREATE INDEX sync_server_children ON versions (client_id, parent_version_id);";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::schema::CURRENT;

    #[test]
    fn both_kinds_of_database_are_at_the_same_version() {
        assert!(MIGRATIONS.is_sorted_by_key(|(version, _)| *version));
        assert_eq!(MIGRATIONS.last().map(|(version, _)| *version), Some(CURRENT));
    }
}
