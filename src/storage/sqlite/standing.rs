//! A read transaction that stands while nothing is written, so that others cost less.
//!
//! Each read transaction takes a lock on its state of the WAL and gives it back: two system calls, inside a
//! lock that all connections of a process share. Where one that has the same state open holds that lock
//! already, SQLite takes the second from the first and asks nobody. It changes nothing of what readers see.

use super::{common_flags, execute};
use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// A connection whose read transaction stands, or has ended for a while.
pub(super) struct Standing(Connection);

impl Standing {
    /// Begins one.
    pub(super) fn new(path: &Path) -> rusqlite::Result<Standing> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | common_flags();
        Standing(Connection::open_with_flags(path, flags)?).begin()
    }

    /// Moves on to what others have written meanwhile, which could not leave the WAL before.
    pub(super) fn renew(self) -> rusqlite::Result<Standing> {
        self.end()?;
        self.begin()
    }

    /// Lets the WAL begin anew.
    pub(super) fn end(&self) -> rusqlite::Result<()> {
        if self.0.is_autocommit() { Ok(()) } else { execute(&self.0, "COMMIT") }
    }

    fn begin(self) -> rusqlite::Result<Standing> {
        execute(&self.0, "BEGIN")?;
        // A transaction has a state from its first look on.
        self.0.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FILE_NAME, Sqlite, checkpoint};
    use crate::config::Migration;
    use crate::protocol::ClientId;
    use crate::storage::Storage;
    use rusqlite::Connection;
    use std::time::Duration;
    use tempfile::TempDir;
    use uuid::Uuid;

    /// What another process does: makes a client, and says how many pages then wait for a checkpoint.
    fn make(other: &Connection, client: ClientId) -> i64 {
        let sql = "INSERT INTO clients (client_id, latest_version_id) VALUES (?1, ?2)";
        other.execute(sql, [client.uuid().to_string(), Uuid::nil().to_string()]).expect("the client is new");
        checkpoint(other, "PASSIVE").expect("a checkpoint waits for nobody")
    }

    #[test]
    fn it_hides_nothing_and_holds_the_wal_back_only_until_it_is_renewed_or_something_is_written() {
        let place = TempDir::new().expect("a directory");
        let migration = Migration { copy: true, copy_dir: None };
        Sqlite::prepare(place.path(), &migration, |_| {}).expect("the database can be made");
        let storage = Sqlite::open(place.path()).expect("the database opens");
        let other = Connection::open(place.path().join(FILE_NAME)).expect("the database opens");
        let exists = |client| {
            let storage: &dyn Storage = &storage;
            storage.reading(|reader| reader.client(client)).expect("it can be read").is_some()
        };
        let [first, second, third] = [1, 2, 3].map(|n| ClientId::from(Uuid::from_u128(n)));
        assert!(make(&other, first) == 0 && exists(first), "nothing stands");
        storage.linger(Duration::ZERO).expect("it begins");
        assert!(make(&other, second) > 0, "it does not stand");
        assert!(exists(second));
        storage.linger(Duration::ZERO).expect("it is renewed");
        assert_eq!(checkpoint(&other, "PASSIVE").expect("a checkpoint waits for nobody"), 0);
        make(&other, third);
        (&storage as &dyn Storage).writing(|_| Ok(())).expect("nothing is in the way");
        assert!(checkpoint(&other, "TRUNCATE").expect("nothing is in the way") == 0 && exists(third));
    }
}
