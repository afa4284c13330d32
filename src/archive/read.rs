//! Bytes into records. Trusts nothing: memory grows only with bytes that are there.

use super::digest::Digest;
use super::{BLOCK, Counts, END, FORMAT, Flaw, HEAD, Head, LONGEST, MAGIC, Summary, fields};
use crate::storage::contents::Record;
use std::io::{ErrorKind, Read};

/// The longest number of a format, its end of line included.
const LONGEST_NUMBER: usize = 11;

/// Reads a backup. It is whole once [`Reader::next_record`] has given `None`.
pub struct Reader<R> {
    input: R,
    digest: Digest,
    /// How many bytes were read.
    at: u64,
    head: Head,
    counts: Counts,
    block: Vec<u8>,
    /// How much of the block was taken.
    taken: usize,
    /// Where the block begins.
    block_at: u64,
    /// The record that was read last.
    content: Vec<u8>,
    summary: Option<Summary>,
}

impl<R: Read> Reader<R> {
    /// Reads the beginning of a backup.
    pub fn new(input: R) -> Result<Reader<R>, Flaw> {
        let mut reader = Reader {
            input,
            digest: Digest::new(),
            at: 0,
            head: Head { created: 0, schema: 0, program: String::new(), database: String::new() },
            counts: Counts::default(),
            block: Vec::with_capacity(BLOCK),
            taken: 0,
            block_at: 0,
            content: Vec::new(),
            summary: None,
        };
        reader.read_magic()?;
        let kind = reader.read_record()?;
        if kind != HEAD {
            return Err(reader.altered("it does not begin with its head"));
        }
        reader.head = fields::head(&reader.content).map_err(|what| reader.altered(what))?;
        Ok(reader)
    }

    /// Where the backup comes from.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// How many bytes were read so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next record; `None` once the backup has ended and was found whole.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, Flaw> {
        if self.summary.is_some() {
            return Ok(None);
        }
        let kind = self.read_record()?;
        let at = self.block_at;
        if kind == END {
            fields::check_counts(&self.content, &self.counts).map_err(|what| self.altered(what))?;
            self.summary = Some(self.read_end()?);
            return Ok(None);
        }
        let record = fields::record(kind, &self.content).map_err(|what| Flaw::Altered { at, what })?;
        self.counts.count(&record);
        Ok(Some(record))
    }

    /// What the whole backup held; `None` before [`Reader::next_record`] has given `None`.
    pub fn summary(&self) -> Option<&Summary> {
        self.summary.as_ref()
    }

    fn read_magic(&mut self) -> Result<(), Flaw> {
        let mut found = Vec::new();
        for expected in MAGIC {
            match self.byte()? {
                Some(byte) if byte == *expected => found.push(byte),
                None if !found.is_empty() => return Err(Flaw::Truncated { at: self.at }),
                _ => return Err(Flaw::NoBackup),
            }
        }
        let mut number = String::new();
        loop {
            match self.byte()? {
                Some(b'\n') => break,
                Some(digit) if digit.is_ascii_digit() && number.len() < LONGEST_NUMBER => {
                    number.push(digit.into())
                }
                Some(_) => return Err(Flaw::NoBackup),
                None => return Err(Flaw::Truncated { at: self.at }),
            }
        }
        match number.parse() {
            Ok(FORMAT) => Ok(()),
            Ok(number) if number > FORMAT => Err(Flaw::NewerFormat(number)),
            _ => Err(Flaw::NoBackup),
        }
    }

    fn byte(&mut self) -> Result<Option<u8>, Flaw> {
        let mut byte = [0];
        match self.read(&mut byte) {
            Ok(()) => Ok(Some(byte[0])),
            Err(Flaw::Truncated { .. }) => Ok(None),
            Err(flaw) => Err(flaw),
        }
    }

    /// Reads one record into `content` and returns its kind.
    fn read_record(&mut self) -> Result<u8, Flaw> {
        let mut start = [0; 9];
        let mut filled = 0;
        while filled < start.len() {
            let part = self.part(start.len() - filled)?;
            let part = self.block[part].to_vec();
            start[filled..filled + part.len()].copy_from_slice(&part);
            filled += part.len();
        }
        let [kind, length @ ..] = start;
        let length = u64::from_le_bytes(length);
        if length > LONGEST {
            return Err(self.altered("a record is longer than any can be"));
        }
        self.content.clear();
        while (self.content.len() as u64) < length {
            let part = self.part(length as usize - self.content.len())?;
            self.content.extend_from_slice(&self.block[part]);
        }
        Ok(kind)
    }

    /// The next bytes of the block, at most `most`, of the next block where this one is used up.
    fn part(&mut self, most: usize) -> Result<std::ops::Range<usize>, Flaw> {
        if self.taken == self.block.len() {
            self.read_block()?;
        }
        let end = self.block.len().min(self.taken + most);
        Ok(std::mem::replace(&mut self.taken, end)..end)
    }

    fn read_block(&mut self) -> Result<(), Flaw> {
        self.block_at = self.at;
        let length: [u8; 4] = self.array()?;
        let count = u32::from_le_bytes(length) as usize;
        if count == 0 || count > BLOCK {
            return Err(self.altered("a block has an impossible length"));
        }
        let mut block = std::mem::take(&mut self.block);
        block.resize(count, 0);
        let read = self.read(&mut block);
        self.block = block;
        self.taken = 0;
        read?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&length);
        sum.update(&self.block);
        if self.array()? != sum.finalize().to_le_bytes() {
            return Err(self.altered("the block's checksum is wrong"));
        }
        Ok(())
    }

    fn read_end(&mut self) -> Result<Summary, Flaw> {
        if self.taken != self.block.len() {
            return Err(self.altered("something follows the last record"));
        }
        self.block_at = self.at;
        if self.array()? != [0; 4] {
            return Err(self.altered("something follows the last record"));
        }
        let computed = std::mem::replace(&mut self.digest, Digest::new()).finish();
        let digest: [u8; 32] = self.array()?;
        if digest != computed {
            return Err(Flaw::Altered { at: 0, what: "the checksum of the whole is wrong" });
        }
        let bytes = self.at;
        match self.byte()? {
            None => Ok(Summary { counts: self.counts, bytes, digest }),
            Some(_) => Err(Flaw::Altered { at: bytes, what: "something follows its end" }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let mut bytes = [0; N];
        self.read(&mut bytes).map(|()| bytes)
    }

    fn read(&mut self, mut bytes: &mut [u8]) -> Result<(), Flaw> {
        while !bytes.is_empty() {
            match self.input.read(bytes) {
                Ok(0) => return Err(Flaw::Truncated { at: self.at }),
                Ok(count) => {
                    let (now, later) = bytes.split_at_mut(count);
                    self.digest.update(now);
                    self.at += count as u64;
                    bytes = later;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Flaw::Unreadable(error)),
            }
        }
        Ok(())
    }

    fn altered(&self, what: &'static str) -> Flaw {
        Flaw::Altered { at: self.block_at, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Writer;
    use crate::protocol::{ClientId, Snapshot, State, VersionId};
    use crate::storage::contents::{Client, Decision, Device, LastUse, Version};
    use crate::storage::registry::Event;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn head() -> Head {
        Head { created: 1_700_000_000, schema: 2, program: "0.1.0".to_owned(), database: "sqlite".to_owned() }
    }

    fn client(n: u128) -> ClientId {
        Uuid::from_u128(n).into()
    }

    fn version(n: u128) -> VersionId {
        Uuid::from_u128(n).into()
    }

    /// One record of each kind and shape.
    fn records(bytes: &[u8]) -> Vec<Record<'_>> {
        let snapshot = Snapshot { version: version(3), timestamp: -5, versions_since: u32::MAX };
        let text = |text: &str| text.to_owned();
        vec![
            Record::Client(Client { client: client(1), latest: VersionId::NIL, snapshot: None }),
            Record::Client(Client {
                client: client(2),
                latest: version(4),
                snapshot: Some((snapshot, bytes)),
            }),
            Record::Version(Version {
                client: client(2),
                id: version(4),
                parent: version(3),
                segment: bytes,
            }),
            Record::Version(Version { client: client(9), id: version(5), parent: version(3), segment: b"" }),
            Record::Decision(Decision {
                client: client(2),
                label: Some(text("ä")),
                state: State::Suspended,
                created: Some(7),
            }),
            Record::Decision(Decision {
                client: client(1),
                label: None,
                state: State::Active,
                created: None,
            }),
            Record::Device(Device {
                client: client(2),
                name: text("laptop"),
                token_hash: &[7; 32],
                created: 8,
            }),
            Record::Sync(LastUse { client: client(2), device: text(""), program: text("p"), at: 9 }),
            Record::Event(Event {
                id: Uuid::from_u128(6),
                at: 10,
                client: None,
                user: text("root"),
                action: text("backup"),
                detail: text(""),
            }),
        ]
    }

    fn written(records: &[Record]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &head()).expect("memory takes everything");
        records.iter().try_for_each(|record| writer.put(record)).expect("memory takes everything");
        let (bytes, summary) = writer.finish().expect("memory takes everything");
        assert_eq!(summary.bytes, bytes.len() as u64);
        bytes
    }

    fn check(bytes: &[u8]) -> Result<Summary, Flaw> {
        let mut reader = Reader::new(bytes)?;
        while reader.next_record()?.is_some() {}
        Ok(reader.summary().expect("it has ended").clone())
    }

    #[test]
    fn every_record_comes_back_byte_for_byte_across_blocks() {
        for length in [0, 1, 1000, BLOCK - 9, BLOCK, 3 * BLOCK + 1] {
            let bytes: Vec<u8> = (0..length).map(|n| (n * 31) as u8).collect();
            let records = records(&bytes);
            let file = written(&records);
            let mut reader = Reader::new(&file[..]).expect("it is one");
            assert_eq!(reader.head(), &head());
            for record in &records {
                assert_eq!(reader.next_record().expect("it is whole").as_ref(), Some(record));
            }
            assert_eq!(reader.next_record().expect("it is whole"), None);
            let counts = Counts { clients: 2, versions: 2, decisions: 2, devices: 1, syncs: 1, events: 1 };
            assert_eq!(reader.summary().expect("it has ended").counts, counts);
        }
    }

    #[test]
    fn the_last_bytes_are_the_digest_of_all_others() {
        let file = written(&records(b"x"));
        let (all, end) = file.split_at(file.len() - 32);
        assert_eq!(ring::digest::digest(&ring::digest::SHA256, all).as_ref(), end);
        assert_eq!(check(&file).expect("it is whole").digest, end);
    }

    #[test]
    fn a_beginning_of_a_backup_is_told_from_a_whole_one() {
        let file = written(&records(&[1; 100]));
        assert!(matches!(check(b""), Err(Flaw::NoBackup)));
        for length in 1..file.len() {
            match check(&file[..length]) {
                Err(Flaw::Truncated { at }) => assert_eq!(at, length as u64),
                other => panic!("{length} bytes: {other:?}"),
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_added_byte_is_noticed() {
        let file = written(&records(&[1; 100]));
        for at in 0..file.len() * 8 {
            let mut file = file.clone();
            file[at / 8] ^= 1 << (at % 8);
            check(&file).expect_err("a bit is wrong");
        }
        let mut longer = file.clone();
        longer.push(0);
        assert!(matches!(check(&longer), Err(Flaw::Altered { at, .. }) if at == file.len() as u64));
    }

    #[test]
    fn damage_is_located() {
        let bytes = vec![3; 3 * BLOCK];
        let mut file = written(&records(&bytes));
        let at = 2 * BLOCK + 100;
        file[at] ^= 1;
        match check(&file) {
            Err(Flaw::Altered { at: found, .. }) => {
                assert!((found..found + BLOCK as u64 + 8).contains(&(at as u64)), "{found}")
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_block_that_was_taken_out_or_swapped_is_noticed() {
        let bytes = vec![3; 3 * BLOCK];
        let file = written(&records(&bytes));
        let (start, size) = (MAGIC.len() + 2, BLOCK + 8);
        let mut shorter = file.clone();
        shorter.drain(start + size..start + 2 * size);
        check(&shorter).expect_err("a block is missing");
        // Equal blocks in another order are the same file.
        let mut swapped = file.clone();
        swapped[start..start + 2 * size].rotate_left(size);
        check(&swapped).expect_err("two blocks changed places");
    }

    #[test]
    fn other_files_and_newer_formats_are_told_apart() {
        for other in [&b"SQLite format 3\0"[..], b"sync-server config", b"sync-server backup x\n", b"\0"] {
            assert!(matches!(check(other), Err(Flaw::NoBackup)), "{other:?}");
        }
        let file = written(&records(b"x"));
        let newer = [b"sync-server backup 12\n", &file[MAGIC.len() + 2..]].concat();
        assert!(matches!(check(&newer), Err(Flaw::NewerFormat(12))));
        assert!(matches!(check(b"sync-server backup 0\n"), Err(Flaw::NoBackup)));
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_reading_them_ends(mut bytes: Vec<u8>, begin: bool) {
            if begin {
                bytes.splice(0..0, b"sync-server backup 1\n".iter().copied());
            }
            prop_assert!(check(&bytes).is_err());
        }
    }
}
