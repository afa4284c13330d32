//! What can be wrong with a backup.

use super::FORMAT;
use std::fmt;
use std::io;

/// Why a backup cannot be used. Says what is wrong with the bytes; which file they are of, and what
/// to do, is said by those who know.
#[derive(Debug)]
pub enum Flaw {
    /// It is something else.
    NoBackup,
    /// A newer program wrote it, in this format.
    NewerFormat(u32),
    /// It ends before its end, after so many bytes.
    Truncated { at: u64 },
    /// It is not what was written, in the part that begins at this byte.
    Altered { at: u64, what: &'static str },
    /// It could not be read to its end.
    Unreadable(io::Error),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::NoBackup => write!(f, "it is no backup of sync-server"),
            Flaw::NewerFormat(number) => write!(
                f,
                "it has format {number}, made by a newer sync-server; this one knows formats up to {FORMAT}"
            ),
            Flaw::Truncated { at } => write!(f, "it was cut off after {at} bytes, before its end"),
            Flaw::Altered { at, what } => {
                write!(f, "it is damaged or was altered in what begins at byte {at}: {what}")
            }
            Flaw::Unreadable(error) => write!(f, "it cannot be read: {error}"),
        }
    }
}

impl std::error::Error for Flaw {}
