//! Numbered, append-only migrations of the SQLite database.
//!
//! Number 0 is what the reference server's databases hold; a new database begins with it too, so
//! that the reference server can open every one of ours. Later numbers only add tables and indexes
//! of our own, all named `sync_server_…`.

/// The version that this program reads and writes: the number of the last migration.
pub const CURRENT: i64 = 3;

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
pub const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE sync_server_schema (version INTEGER NOT NULL);
    INSERT INTO sync_server_schema (version) VALUES (0);
    -- Versions since the snapshot that are not yet counted in the client's own row, which cannot
    -- be changed without rewriting the snapshot that it holds.
    CREATE TABLE sync_server_counts (
        client_id STRING PRIMARY KEY,
        snapshot_version_id STRING NOT NULL,
        versions INTEGER NOT NULL) WITHOUT ROWID;
",
    "
    -- What operators decided about clients. There need not be a row for a client, and a row may
    -- outlive its client, whose own row others may delete. Times are in seconds since 1970.
    CREATE TABLE sync_server_clients (
        client_id STRING PRIMARY KEY,
        label TEXT,
        suspended INTEGER NOT NULL DEFAULT 0,
        created INTEGER,
        devices INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
    CREATE UNIQUE INDEX sync_server_label ON sync_server_clients (label);
    -- The devices that have a credential of their own; token_hash is SHA-256.
    CREATE TABLE sync_server_devices (
        client_id STRING NOT NULL,
        name TEXT NOT NULL,
        token_hash BLOB NOT NULL,
        created INTEGER NOT NULL,
        PRIMARY KEY (client_id, name)) WITHOUT ROWID;
    -- Who synced last; device is empty where none is known, program as it names itself.
    CREATE TABLE sync_server_syncs (
        client_id STRING NOT NULL,
        device TEXT NOT NULL,
        program TEXT NOT NULL,
        last_sync INTEGER NOT NULL,
        PRIMARY KEY (client_id, device, program)) WITHOUT ROWID;
    -- How much each client holds in the versions up to sync_server_sized.up_to, a rowid. Versions
    -- after it are counted when somebody asks, so whoever adds them need not know of this.
    CREATE TABLE sync_server_sizes (
        client_id STRING PRIMARY KEY,
        versions INTEGER NOT NULL,
        bytes INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE sync_server_sized (up_to INTEGER NOT NULL);
    INSERT INTO sync_server_sized (up_to) VALUES (0);
    -- What operators changed; client_id is the nil UUID where it was not one client alone.
    CREATE TABLE sync_server_audit (
        client_id STRING NOT NULL,
        event_id STRING NOT NULL,
        at INTEGER NOT NULL,
        local_user TEXT NOT NULL,
        action TEXT NOT NULL,
        detail TEXT NOT NULL,
        PRIMARY KEY (client_id, event_id)) WITHOUT ROWID;
",
    "
    -- What is being removed in steps: 1 the client and all that is its, 2 its history alone.
    ALTER TABLE sync_server_clients ADD COLUMN removal INTEGER;
    CREATE INDEX sync_server_leaving ON sync_server_clients (client_id) WHERE removal IS NOT NULL;
    -- When this program took the database over: so old are versions whose IDs have no time in them.
    ALTER TABLE sync_server_schema ADD COLUMN adopted INTEGER;
    UPDATE sync_server_schema SET adopted = unixepoch();
",
];

/// The index that carries the chain's invariant: one child for each parent.
pub const UNIQUE_INDEX: &str = "sync_server_child";

/// Its stand-in where adopted rows break the invariant.
pub const PLAIN_INDEX: &str = "sync_server_children";
