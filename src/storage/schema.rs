//! Numbered, append-only migrations of the SQLite database.
//!
//! Number 0 is what the reference server's databases hold; a new database begins with it too, so
//! that the reference server can open every one of ours. Later numbers only add tables and indexes
//! of our own, all named `sync_server_…`.

/// The version that this program reads and writes: the number of the last migration.
pub const CURRENT: i64 = 1;

/// What a database without our own tables holds: the reference server's tables, as it makes them.
pub const ADOPTED: &str = "
    CREATE TABLE clients (
        client_id STRING PRIMARY KEY,
        latest_version_id STRING,
        snapshot_version_id STRING,
        versions_since_snapshot INTEGER,
        snapshot_timestamp INTEGER,
        snapshot BLOB);
    CREATE TABLE versions (
        version_id STRING PRIMARY KEY,
        client_id STRING,
        parent_version_id STRING,
        history_segment BLOB);
";

/// What each version adds to the one before it; the first is version 1.
pub const MIGRATIONS: &[&str] = &["
    CREATE TABLE sync_server_schema (version INTEGER NOT NULL);
    INSERT INTO sync_server_schema (version) VALUES (0);
    -- Versions since the snapshot that are not yet counted in the client's own row, which cannot
    -- be changed without rewriting the snapshot that it holds.
    CREATE TABLE sync_server_counts (
        client_id STRING PRIMARY KEY,
        snapshot_version_id STRING NOT NULL,
        versions INTEGER NOT NULL) WITHOUT ROWID;
"];

/// The index that carries the chain's invariant: one child for each parent.
pub const UNIQUE_INDEX: &str = "sync_server_child";

/// Its stand-in where adopted rows break the invariant.
pub const PLAIN_INDEX: &str = "sync_server_children";
