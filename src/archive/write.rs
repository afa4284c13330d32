//! Records into bytes.

use super::digest::Digest;
use super::{BLOCK, Counts, END, FORMAT, Head, MAGIC, Summary, fields};
use crate::storage::contents::Record;
use std::io::{Result, Write};

/// Writes a backup. What is written is one only after [`Writer::finish`].
pub struct Writer<W> {
    out: W,
    digest: Digest,
    bytes: u64,
    counts: Counts,
    /// The block that is being filled.
    block: Vec<u8>,
    /// The fields of the record that is being written.
    fields: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a backup.
    pub fn new(out: W, head: &Head) -> Result<Writer<W>> {
        let mut writer = Writer {
            out,
            digest: Digest::new(),
            bytes: 0,
            counts: Counts::default(),
            block: Vec::with_capacity(BLOCK),
            fields: Vec::new(),
        };
        writer.write(MAGIC)?;
        writer.write(format!("{FORMAT}\n").as_bytes())?;
        let kind = fields::of_head(head, &mut writer.fields);
        writer.put_fields(kind, &[])?;
        Ok(writer)
    }

    /// Adds a record.
    pub fn put(&mut self, record: &Record) -> Result<()> {
        let (kind, bytes) = fields::of_record(record, &mut self.fields);
        self.counts.count(record);
        self.put_fields(kind, bytes)
    }

    /// Ends the backup. Nothing is flushed to a disk.
    pub fn finish(mut self) -> Result<(W, Summary)> {
        fields::of_counts(&self.counts, &mut self.fields);
        self.put_fields(END, &[])?;
        self.end_block()?;
        self.write(&0_u32.to_le_bytes())?;
        let digest = self.digest.finish();
        self.out.write_all(&digest)?;
        let bytes = self.bytes + digest.len() as u64;
        Ok((self.out, Summary { counts: self.counts, bytes, digest }))
    }

    fn put_fields(&mut self, kind: u8, bytes: &[u8]) -> Result<()> {
        let fields = std::mem::take(&mut self.fields);
        let length = (fields.len() + bytes.len()) as u64;
        self.fill(&[kind])?;
        self.fill(&length.to_le_bytes())?;
        self.fill(&fields)?;
        self.fill(bytes)?;
        self.fields = fields;
        self.fields.clear();
        Ok(())
    }

    fn fill(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK {
                self.end_block()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn end_block(&mut self) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.block);
        let length = (block.len() as u32).to_le_bytes();
        let mut sum = crc32fast::Hasher::new();
        sum.update(&length);
        sum.update(&block);
        self.write(&length)?;
        self.write(&block)?;
        self.write(&sum.finalize().to_le_bytes())?;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}
