//! Why a backup was not written or cannot be used.

use crate::archive::{Flaw, Head};
use crate::storage;
use crate::storage::schema;
use std::fmt;
use std::io::{Error, ErrorKind};

/// What went wrong with a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What it means for whoever asked.
    pub reason: Reason,
    /// What failed, on what, and what to do.
    pub message: String,
}

/// What a problem means for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The file is no backup, or not all of one.
    Damaged,
    /// A newer program wrote it.
    Newer,
    /// There is a file of that name.
    Exists,
    /// This user may not do it.
    NotPermitted,
    /// Whoever watched did not want to go on.
    Stopped,
    /// Anything else.
    Failed,
}

impl Problem {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Problem {
        Problem { reason, message: message.into() }
    }

    pub(super) fn stopped() -> Problem {
        Problem::new(Reason::Stopped, "it was stopped before it was done")
    }

    pub(super) fn of_storage(error: storage::Error) -> Problem {
        Problem::new(Reason::Failed, error.message)
    }

    /// A failure to write. Where to is said by those who know.
    pub(super) fn of_write(error: &Error) -> Problem {
        let message = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "no space is left".to_owned(),
            ErrorKind::BrokenPipe => "whoever read it has gone".to_owned(),
            _ => error.to_string(),
        };
        Problem::new(Reason::Failed, message)
    }

    pub(super) fn of_flaw(flaw: Flaw) -> Problem {
        let (reason, advice) = match flaw {
            Flaw::NoBackup => (Reason::Damaged, "give a file that `sync-server admin backup` has written"),
            Flaw::NewerFormat(_) => (Reason::Newer, "install that version, or a later one"),
            Flaw::Truncated { .. } => {
                (Reason::Damaged, "copy it anew from where it is whole, or use another one")
            }
            Flaw::Altered { .. } => {
                (Reason::Damaged, "copy it anew from where it is whole, or use another one")
            }
            Flaw::Unreadable(_) => (Reason::Failed, "use another one if the disk is failing"),
        };
        Problem::new(reason, format!("{flaw}; {advice}"))
    }

    pub(super) fn newer_schema(head: &Head) -> Problem {
        let message = format!(
            "it is of a database with schema version {}, made by sync-server {}; this one knows versions up to \
             {}; install that version, or a later one",
            head.schema,
            head.program,
            schema::CURRENT
        );
        Problem::new(Reason::Newer, message)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}
