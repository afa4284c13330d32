//! The file format of backups: records into bytes and back, checked.
//!
//! Knows neither databases nor files: it reads and writes whatever [`std::io`] can. The format is
//! ours and the same whatever database is behind it.
//!
//! # The format, number 1
//!
//! All integers are little-endian.
//!
//! ```text
//! file    = "sync-server backup 1\n" block… end
//! block   = length u32 (1 to 262,144), so many bytes, CRC-32 u32 of length and bytes
//! end     = 0 u32, SHA-256 (32 bytes) of everything before it
//! ```
//!
//! The bytes of all blocks, one after the other, are records; a record may begin in one block and end in
//! another. A damaged place is found by its block, a file that was cut off or put together by its
//! end: `head -c -32 FILE | sha256sum` computes what its last 32 bytes must be.
//!
//! ```text
//! record  = kind u8, length u64 of what follows, fields
//! uuid    = its 16 bytes        int  = i64            bytes = all that is left of the record
//! text    = length u32, UTF-8   x?   = 0 u8, or 1 u8 and then x
//! ```
//!
//! | kind | record | fields |
//! |---|---|---|
//! | 1 | head: always the first | created int, schema int, program text, database text |
//! | 2 | client | client uuid, latest uuid, (version uuid, stored int, versions since int, bytes)? |
//! | 3 | version | client uuid, version uuid, parent uuid, bytes |
//! | 4 | decision | client uuid, label text?, suspended int (0 or 1), created int? |
//! | 5 | device | client uuid, name text, created int, token hash bytes |
//! | 6 | sync | client uuid, device text, program text, at int |
//! | 7 | event | event uuid, at int, client uuid?, user text, action text, detail text |
//! | 255 | end: always the last | the numbers of records of kinds 2 to 7, an int each |
//!
//! Times are in seconds since 1970. The nil UUID stands for "no version". A program that meets a
//! higher format number, or a kind that it does not know, refuses the file.

mod digest;
mod fields;
mod flaw;
mod read;
mod write;

pub use flaw::Flaw;
pub use read::Reader;
pub use write::Writer;

use crate::storage::contents::Record;

/// What every backup begins with, before the number of its format.
const MAGIC: &[u8] = b"sync-server backup ";

/// The number of the format that is written, and the highest that is read.
pub const FORMAT: u32 = 1;

/// The most bytes in one block.
const BLOCK: usize = 256 * 1024;

/// The longest record. A database row with a body of 900 MiB fits.
const LONGEST: u64 = 1 << 30;

const HEAD: u8 = 1;
const CLIENT: u8 = 2;
const VERSION: u8 = 3;
const DECISION: u8 = 4;
const DEVICE: u8 = 5;
const SYNC: u8 = 6;
const EVENT: u8 = 7;
const END: u8 = 255;

/// Where a backup comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// The version of the schema that the database had.
    pub schema: i64,
    /// The version of the program that made it.
    pub program: String,
    /// What kind of database it was.
    pub database: String,
}

/// How many records of each kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub clients: u64,
    pub versions: u64,
    pub decisions: u64,
    pub devices: u64,
    pub syncs: u64,
    pub events: u64,
}

impl Counts {
    fn count(&mut self, record: &Record) {
        let number = match record {
            Record::Client(_) => &mut self.clients,
            Record::Version(_) => &mut self.versions,
            Record::Decision(_) => &mut self.decisions,
            Record::Device(_) => &mut self.devices,
            Record::Sync(_) => &mut self.syncs,
            Record::Event(_) => &mut self.events,
        };
        *number += 1;
    }

    fn numbers(&self) -> [u64; 6] {
        [self.clients, self.versions, self.decisions, self.devices, self.syncs, self.events]
    }
}

/// A backup that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// What it holds.
    pub counts: Counts,
    /// How many bytes it has.
    pub bytes: u64,
    /// Its last bytes: SHA-256 of all before them.
    pub digest: [u8; 32],
}
