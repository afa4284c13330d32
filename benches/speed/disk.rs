//! What the disk alone can do.

use crate::Result;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

const APPEND: [u8; 4096] = [7; 4096];

/// `TMPFS_MAGIC` of the kernel.
const TMPFS: u64 = 0x0102_1994;

/// Fails where a directory is in memory: figures of writes would mean nothing.
pub fn check(dir: &Path) -> Result<()> {
    let found = rustix::fs::statfs(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    if u64::try_from(found.f_type) == Ok(TMPFS) {
        return Err(format!("{} is in memory (tmpfs): measure on a disk", dir.display()));
    }
    Ok(())
}

/// How often a second 4 KiB can be appended to a file and made durable.
pub fn syncs_per_second(dir: &Path, length: Duration) -> Result<f64> {
    let path = dir.join("fdatasync");
    let rate = append(&path, length).map_err(|error| format!("{}: {error}", path.display()));
    let _ = std::fs::remove_file(&path);
    rate
}

fn append(path: &Path, length: Duration) -> std::io::Result<f64> {
    let mut file = File::create(path)?;
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < length {
        file.write_all(&APPEND)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}
