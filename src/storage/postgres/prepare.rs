//! Makes the tables of a new database or brings existing ones up to date, while any number of other
//! instances may be about the same.

use super::address::Address;
use super::fault::Fault;
use super::link::Link;
use super::schema::{ADOPTED, MIGRATIONS, PLAIN_INDEX, UNIQUE_INDEX, VERSION};
use super::tls::Connector;
use super::txn::{Txn, value};
use super::{Open, Postgres};
use crate::config::Postgres as Habits;
use crate::storage::location::Standing;
use crate::storage::schema::CURRENT;
use crate::storage::{Error, Kind, Result};
use std::time::{Duration, Instant};
use tokio_postgres::types::Type;

/// Keeps instances that start at once from making the same table, which would be an error.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7310575183467836783)";

/// For what may take long, and is no news where it was done before.
const UNHURRIED: &str =
    "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL client_min_messages = warning";

/// Broken chains that one warning lists; the rest is counted.
const LISTED: i64 = 20;

/// How long a server waits at its start for a database that is not there yet.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is in the database.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Found {
    has_clients: bool,
    /// `None` without a table that says so.
    version: Option<i64>,
    has_index: bool,
    is_unique: bool,
}

impl Found {
    fn is_current(&self) -> bool {
        self.has_clients && self.version == Some(CURRENT) && self.has_index
    }

    /// What is missing, as SQL.
    fn missing(&self) -> String {
        let mut sql = String::new();
        if !self.has_clients {
            sql.push_str(ADOPTED);
        }
        if self.version.is_none() {
            sql.push_str(VERSION);
        }
        let version = self.version.unwrap_or(0);
        let newer = MIGRATIONS.iter().filter(|(number, _)| *number > version);
        newer.for_each(|(_, migration)| sql.push_str(migration));
        if version < CURRENT {
            sql.push_str(&format!("UPDATE sync_server_schema SET version = {CURRENT};\n"));
        }
        if !self.has_index {
            sql.push_str(&format!("{UNIQUE_INDEX}\n"));
        }
        sql
    }
}

impl Postgres {
    /// Makes, adopts or migrates the tables, and returns what the operator should be warned of.
    ///
    /// With `migrates` off, tables that are not as they should be are an error that has the SQL.
    /// `progress` hears what takes long, and an empty text as a mere sign of life.
    pub fn prepare(
        address: &Address,
        habits: Habits,
        migrates: bool,
        progress: fn(&str),
    ) -> Result<Vec<String>> {
        let name = address.to_string();
        let mut link = connect(address, habits, progress)?;
        let found = look(&mut link, &name)?;
        if !found.is_current() {
            if !migrates {
                return Err(by_hand(&found, &name));
            }
            if found.has_clients {
                progress("bringing the tables of the database up to date");
            }
            migrate(&mut link, &name, progress)?;
        }
        if look(&mut link, &name)?.is_unique {
            return Ok(Vec::new());
        }
        Txn::new(&mut link, &name, false).branches(LISTED)
    }

    /// Looks at the tables, and changes nothing.
    pub fn standing(address: &Address, habits: Habits) -> Result<Standing> {
        let name = address.to_string();
        let mut link = open(address, habits)?;
        let found = look(&mut link, &name)?;
        Ok(match found {
            found if found.is_current() => Standing::Current,
            Found { has_clients: false, version: None, .. } => Standing::Missing,
            _ => Standing::Older,
        })
    }

    /// How many connections to it programs of the same name have, this one's apart.
    pub fn users(address: &Address, habits: Habits) -> Result<u64> {
        const DOING: &str = "looking who uses the database";
        let name = address.to_string();
        let mut link = open(address, habits)?;
        let mut txn = Txn::new(&mut link, &name, false);
        let rows = txn.ask(
            DOING,
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()
                   AND application_name = current_setting('application_name')",
            &[],
        )?;
        let count = rows.first().map(|row| value::<i64>(row, 0)).transpose();
        Ok(txn.told(DOING, count)?.unwrap_or(0).unsigned_abs())
    }

    /// The SQL that brings the tables up to date; empty where they are.
    pub fn pending(address: &Address, habits: Habits) -> Result<String> {
        let name = address.to_string();
        let mut link = open(address, habits)?;
        Ok(look(&mut link, &name)?.missing())
    }
}

pub(super) fn open(address: &Address, habits: Habits) -> Result<Link> {
    let connector = Connector::new(address).map_err(|why| Error::new(Kind::Unavailable, why))?;
    Link::open(address, &connector, &habits)
        .map_err(|fault| fault.explain("connecting", &address.to_string()))
}

/// Connects, and waits for a database that starts at the same time.
fn connect(address: &Address, habits: Habits, progress: fn(&str)) -> Result<Link> {
    let connector = Connector::new(address).map_err(|why| Error::new(Kind::Unavailable, why))?;
    let name = address.to_string();
    let began = Instant::now();
    let mut is_told = false;
    loop {
        let fault = match Link::open(address, &connector, &habits) {
            Ok(link) => return Ok(link),
            Err(fault) => fault,
        };
        let error = fault.explain("connecting", &name);
        // A password that is wrong stays wrong.
        let may_pass = match &fault {
            Fault::Lost(_) | Fault::Late(_) => true,
            Fault::Refused { code, .. } => matches!(&code.code()[..2], "57" | "53"),
            Fault::Odd(_) => false,
        };
        if !may_pass || began.elapsed() > PATIENCE {
            return Err(error);
        }
        if !std::mem::replace(&mut is_told, true) {
            progress(&format!("waiting up to {PATIENCE:?} for the database: {error}"));
        }
        progress("");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn look(link: &mut Link, name: &str) -> Result<Found> {
    let mut txn = Txn::new(link, name, false);
    let names = tables(&mut txn)?;
    let has = |name: &str| names.iter().any(|known| known == name);
    let (has_clients, has_version) = (has("clients") && has("versions"), has("sync_server_schema"));
    let (is_unique, has_plain) = (has("sync_server_child"), has("sync_server_children"));
    let has_index = is_unique || has_plain;
    let version =
        if has_version { version(&mut txn, "SELECT version FROM sync_server_schema")? } else { None };
    if version.is_some_and(|version| version > CURRENT) {
        let message = format!(
            "{name} has schema version {}, made by a newer sync-server; this one knows versions up to {CURRENT}. \
             Install the newer program again",
            version.unwrap_or_default()
        );
        return Err(Error::new(Kind::Newer, message));
    }
    Ok(Found { has_clients, version, has_index, is_unique })
}

/// What there is of our names, as of now: the short ways to ask remember what was not there before.
fn tables(txn: &mut Txn) -> Result<Vec<String>> {
    const DOING: &str = "looking at the tables";
    let rows = txn.ask(
        DOING,
        "SELECT c.relname::TEXT FROM pg_catalog.pg_class c
         WHERE c.relname IN ('clients', 'versions', 'sync_server_schema', 'sync_server_child', 'sync_server_children')
               AND pg_catalog.pg_table_is_visible(c.oid)",
        &[],
    )?;
    let names = rows.iter().map(|row| value(row, 0)).collect();
    txn.told(DOING, names)
}

fn version(txn: &mut Txn, sql: &'static str) -> Result<Option<i64>> {
    const DOING: &str = "reading the schema's version";
    let rows = txn.ask(DOING, sql, &[])?;
    let version = rows.first().map(|row| value(row, 0)).transpose();
    txn.told(DOING, version)
}

/// Does what is missing in one transaction, alone.
fn migrate(link: &mut Link, name: &str, progress: fn(&str)) -> Result<()> {
    const DOING: &str = "bringing the tables up to date";
    // Where the advisory lock does nothing, whoever comes second finds the table made meanwhile.
    let mut attempts = 5;
    while let Err(fault) = make_version_table(link, progress) {
        attempts -= 1;
        let is_race = fault
            .code()
            .is_some_and(|code| matches!(code.code(), "23505" | "42P07" | "40001" | "40P01" | "XX000"));
        if !is_race || attempts == 0 {
            return Err(refused(&fault, link, name, DOING));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let open = Open::new(&mut *link, None);
    let done = (|| {
        open.0.begin_now()?;
        open.0.batch(UNHURRIED)?;
        open.0.batch_patiently("SELECT version FROM sync_server_schema FOR UPDATE", &|| progress(""))
    })();
    done.map_err(|fault: Fault| fault.explain(DOING, name))?;
    // As it is now that nobody else changes it.
    let found = look(&mut *open.0, name)?;
    let index = Found { has_clients: true, version: Some(CURRENT), ..found }.missing();
    let tables = Found { has_index: true, ..found }.missing();
    let done = (|| {
        open.0.batch_patiently(&tables, &|| progress(""))?;
        if !index.is_empty() {
            make_index(&mut *open.0, &index, progress)?;
        }
        open.0.commit()
    })();
    drop(open);
    done.map_err(|fault| refused(&fault, link, name, DOING))
}

fn make_version_table(link: &mut Link, progress: fn(&str)) -> super::fault::Outcome<()> {
    let open = Open::new(link, None);
    open.0.begin_now()?;
    open.0.batch(UNHURRIED)?;
    open.0.batch_patiently(LOCK, &|| progress(""))?;
    open.0.batch(VERSION)?;
    open.0.commit()
}

/// Where adopted rows break the chain's invariant, the transaction's own check must do.
fn make_index(link: &mut Link, index: &str, progress: fn(&str)) -> super::fault::Outcome<()> {
    link.batch("SAVEPOINT before_index")?;
    match link.batch_patiently(index, &|| progress("")) {
        Err(fault) if fault.code().is_some_and(|code| code.code() == "23505") => {
            link.back_to_savepoint("ROLLBACK TO SAVEPOINT before_index")?;
            link.batch_patiently(PLAIN_INDEX, &|| progress(""))
        }
        made => made,
    }
}

/// A role that may not make tables gets what somebody else must run.
fn refused(fault: &Fault, link: &mut Link, name: &str, doing: &str) -> Error {
    let error = fault.explain(doing, name);
    if fault.code().is_none_or(|code| code.code() != "42501") {
        return error;
    }
    match look(link, name) {
        Ok(found) => Error::new(
            Kind::Unavailable,
            format!(
                "{name}: the role may not make tables. Grant it CREATE on the schema, or have a role that may run this \
                 SQL, and grant this one SELECT, INSERT, UPDATE and DELETE on the tables:\n{}",
                found.missing()
            ),
        ),
        Err(_) => error,
    }
}

fn by_hand(found: &Found, name: &str) -> Error {
    let message = format!(
        "{name}: its tables are not those of this release, and migrate is off: run `sync-server admin migrate`, or \
         this SQL:\n{}",
        found.missing()
    );
    Error::new(Kind::Unavailable, message)
}

impl Txn<'_> {
    /// Where versions have more than one child, in words: so many of them, and how many more there are.
    pub(super) fn branches(&mut self, limit: i64) -> Result<Vec<String>> {
        const DOING: &str = "checking that chains have no branches";
        let rows = self.ask(
            DOING,
            "SELECT left(client_id::TEXT, 8), coalesce(parent_version_id::TEXT, 'NULL'),
                    string_agg(version_id::TEXT, ', ' ORDER BY version_id), count(*) OVER ()
             FROM versions GROUP BY client_id, parent_version_id HAVING count(*) > 1
             ORDER BY client_id LIMIT $1",
            &[(&limit, Type::INT8)],
        )?;
        let mut warnings = Vec::new();
        for row in &rows {
            let told: super::fault::Outcome<(String, String, String)> =
                (|| Ok((value(row, 0)?, value(row, 1)?, value(row, 2)?)))();
            let (client, parent, children) = self.told(DOING, told)?;
            warnings.push(format!(
                "client {client}: version {parent} has more than one child ({children}); the first is served, \
                 nothing was changed. A replica that holds another one cannot sync any more"
            ));
        }
        let all = rows.first().map(|row| value::<i64>(row, 3)).transpose();
        let more = self.told(DOING, all)?.unwrap_or(0) - limit;
        if more > 0 {
            warnings.push(format!("{more} more versions have more than one child"));
        }
        Ok(warnings)
    }
}
