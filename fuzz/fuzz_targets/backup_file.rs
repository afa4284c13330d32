//! Whatever the bytes of a backup are, reading it ends in records or a reason, and one that
//! is whole can be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sync_server::archive::{Reader, Writer};

/// What every backup begins with.
const BEGINNING: &[u8] = b"sync-server backup 1\n";

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    // Most bytes are no backup: as content behind a right beginning and right checksums they get further.
    read(&framed(bytes));
});

fn read(bytes: &[u8]) {
    let Ok(mut reader) = Reader::new(bytes) else { return };
    let head = reader.head().clone();
    let mut writer = Writer::new(Vec::new(), &head).expect("memory takes everything");
    loop {
        match reader.next_record() {
            Ok(Some(record)) => writer.put(&record).expect("memory takes everything"),
            Ok(None) => break,
            Err(_) => return,
        }
    }
    let (again, summary) = writer.finish().expect("memory takes everything");
    assert_eq!(Some(summary.counts), reader.summary().map(|found| found.counts));
    let mut reader = Reader::new(&again[..]).expect("what was written is a backup");
    while reader.next_record().expect("what was written is whole").is_some() {}
}

/// One block with the right checksum.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length);
    sum.update(bytes);
    [BEGINNING, &length, bytes, &sum.finalize().to_le_bytes()].concat()
}
