//! How things look to people: tables, sizes, times.

use bytesize::ByteSize;
use std::time::{Duration, UNIX_EPOCH};

/// Lines of columns as wide as their widest cell; the first line is the heading. `right` are the
/// columns of numbers.
pub fn table(lines: &[Vec<String>], right: &[usize]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| lines.iter().filter_map(move |line| line.get(column));
    let width = |column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A size such as `1.5 MiB`.
pub fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// A number of things: `1 client`, `2 clients`.
pub fn plural(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// How long ago, in one unit: `3 days`.
pub fn age(at: i64, now: i64) -> String {
    let seconds = now.saturating_sub(at).max(0);
    let (count, unit) = match seconds {
        0..60 => return "under a minute".to_owned(),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    plural(count.unsigned_abs(), unit)
}

/// The moment as RFC 3339 has it, in UTC.
pub fn moment(at: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(at.max(0).unsigned_abs());
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let line = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let lines = [line(["NAME", "NUMBER", "X"]), line(["ä", "7", ""]), line(["longer", "1234567", "y"])];
        assert_eq!(table(&lines, &[1]), "NAME     NUMBER  X\nä             7\nlonger  1234567  y\n");
    }

    #[test]
    fn ages_are_told_in_one_unit() {
        for (seconds, told) in [
            (-5, "under a minute"),
            (59, "under a minute"),
            (60, "1 minute"),
            (7_200, "2 hours"),
            (86_400 * 3 + 5, "3 days"),
        ] {
            assert_eq!(age(1_000_000, 1_000_000 + seconds), told);
        }
        assert_eq!(moment(1_700_000_000), "2023-11-14T22:13:20Z");
    }
}
