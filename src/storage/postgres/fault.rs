//! What went wrong, for the program: may it be tried again? And for people: what helps?

use crate::storage::{Error, Kind};
use std::error::Error as _;
use std::time::Duration;
use tokio_postgres::error::{Severity, SqlState};

/// Why a statement did not do what it was sent for.
#[derive(Debug)]
pub(super) enum Fault {
    /// The database said no: nothing of the statement remains.
    Refused { code: SqlState, message: String, is_fatal: bool },
    /// The connection is lost, and with it the answer.
    Lost(String),
    /// No answer came in this time.
    Late(Duration),
    /// A row is not what it should be.
    Odd(String),
}

pub(super) type Outcome<T> = Result<T, Fault>;

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Fault {
        if let Some(refusal) = error.as_db_error() {
            let severity = refusal.parsed_severity();
            return Fault::Refused {
                code: refusal.code().clone(),
                message: refusal.message().to_owned(),
                is_fatal: matches!(severity, Some(Severity::Fatal | Severity::Panic)),
            };
        }
        let why = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let is_lost = error.is_closed() || error.source().is_some_and(|source| source.is::<std::io::Error>());
        if is_lost || error.source().is_none() { Fault::Lost(why) } else { Fault::Odd(why) }
    }
}

impl Fault {
    /// Whether the connection is of no use any more.
    pub(super) fn breaks(&self) -> bool {
        match self {
            // Told so by a primary that became a standby, or a pooler whose database went away.
            Fault::Refused { code, is_fatal, .. } => {
                *is_fatal || *code == SqlState::READ_ONLY_SQL_TRANSACTION || code.code().starts_with("08")
            }
            Fault::Lost(_) | Fault::Late(_) => true,
            Fault::Odd(_) => false,
        }
    }

    /// Whether the same may work in a moment, where nothing of it can have happened.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Fault::Lost(_) => true,
            Fault::Late(_) | Fault::Odd(_) => false,
            Fault::Refused { code, is_fatal, .. } => {
                *code == SqlState::T_R_SERIALIZATION_FAILURE
                    || *code == SqlState::T_R_DEADLOCK_DETECTED
                    || *code == SqlState::READ_ONLY_SQL_TRANSACTION
                    // A plan that was made before the tables changed.
                    || *code == SqlState::FEATURE_NOT_SUPPORTED
                    || code.code().starts_with("08")
                    || (*is_fatal && code.code().starts_with("57"))
            }
        }
    }

    /// Whether nobody knows what came of it.
    pub(super) fn is_unknown(&self) -> bool {
        match self {
            Fault::Lost(_) | Fault::Late(_) => true,
            Fault::Refused { code, is_fatal, .. } => *is_fatal || code.code().starts_with("08"),
            Fault::Odd(_) => false,
        }
    }

    /// The SQLSTATE, where the database gave one.
    pub(super) fn code(&self) -> Option<&SqlState> {
        match self {
            Fault::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// In words that help.
    pub(super) fn explain(&self, doing: &str, database: &str) -> Error {
        let (kind, what, advice) = match self {
            Fault::Lost(why) => (
                Kind::Unavailable,
                why.clone(),
                "the connection is lost: it is opened anew as soon as the database answers".to_owned(),
            ),
            Fault::Late(limit) => (
                Kind::Unavailable,
                format!("no answer within {limit:?}"),
                "the database hangs, or is overloaded; postgres.statement_timeout is how long it may take"
                    .to_owned(),
            ),
            Fault::Odd(why) => (
                Kind::Corrupt,
                why.clone(),
                "the database holds what no program of this kind puts there".to_owned(),
            ),
            Fault::Refused { code, message, .. } => {
                let (kind, advice) = advice(code);
                (kind, format!("{message} (SQLSTATE {})", code.code()), advice.to_owned())
            }
        };
        Error::new(kind, format!("{doing}: {database}: {what}; {advice}"))
    }
}

fn advice(code: &SqlState) -> (Kind, &'static str) {
    if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        return (
            Kind::Unavailable,
            "the role lacks a right: grant it SELECT, INSERT, UPDATE and DELETE on the tables",
        );
    }
    if *code == SqlState::TOO_MANY_CONNECTIONS || *code == SqlState::CONFIGURATION_LIMIT_EXCEEDED {
        return (Kind::Unavailable, "lower postgres.connections, or raise max_connections of the database");
    }
    if *code == SqlState::DISK_FULL {
        return (Kind::Full, "no space is left where the database keeps its data");
    }
    if *code == SqlState::QUERY_CANCELED || *code == SqlState::LOCK_NOT_AVAILABLE {
        return (Kind::Unavailable, "it took longer than postgres.statement_timeout, or somebody ended it");
    }
    if *code == SqlState::INVALID_SQL_STATEMENT_NAME || *code == SqlState::DUPLICATE_PSTATEMENT {
        return (
            Kind::Unavailable,
            "a pooler in between does not keep prepared statements: set postgres.prepare to false",
        );
    }
    if *code == SqlState::PROTOCOL_VIOLATION {
        return (Kind::Unavailable, "a pooler in between may not know a setting of the connection string");
    }
    if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::UNDEFINED_COLUMN {
        return (
            Kind::Unavailable,
            "its tables are not this program's: `sync-server admin migrate` makes them",
        );
    }
    if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        return (
            Kind::Unavailable,
            "it is a standby: name the other hosts too, with target_session_attrs=read-write",
        );
    }
    match &code.code()[..2] {
        "28" => (
            Kind::Unavailable,
            "check user and password in the connection string, and the server's pg_hba.conf",
        ),
        "3D" => (Kind::Unavailable, "there is no such database: make it with createdb, or name another"),
        "40" => (Kind::Busy, "others were in the way several times: try again"),
        "08" | "57" | "53" | "58" => (Kind::Unavailable, "the database's own log says more"),
        "XX" => (Kind::Corrupt, "the database's own log says more; see that there is a backup"),
        _ => (Kind::Other, "this should not happen: please report it"),
    }
}
