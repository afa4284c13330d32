//! Runs what was asked for, and prints it as a table.

use crate::Result;
use crate::disk;
use crate::load::median;
use crate::measurements::{ALL, Figure, Measurement, Yardstick};
use crate::stage::Stage;
use std::fmt;

/// Everything that was measured.
pub struct Report {
    machine: String,
    /// The names of the servers, then of the yardsticks.
    columns: Vec<String>,
    rows: Vec<Row>,
    failures: Vec<String>,
}

struct Row {
    measurement: &'static str,
    label: String,
    less_is_better: bool,
    /// One for each column and round.
    values: Vec<Vec<f64>>,
}

impl Report {
    /// Runs the measurements. One that fails leaves a gap and a line in [`Report::failures`].
    pub fn fill(stage: &Stage) -> Report {
        let mut columns: Vec<_> = stage.options.subjects.iter().map(|subject| subject.name.clone()).collect();
        columns.extend(["hyper".to_owned(), "fdatasync".to_owned()]);
        let mut report = Report { machine: machine(), columns, rows: Vec::new(), failures: Vec::new() };
        let chosen = |one: &&Measurement| {
            if stage.cluster().is_some() && one.looks_into_files() {
                return false;
            }
            let only = &stage.options.only;
            only.is_empty() || only.iter().any(|beginning| one.name.starts_with(beginning))
        };
        for one in ALL.iter().filter(chosen) {
            // In turns: what else the machine does then is not all with one of them.
            (0..stage.options.rounds).for_each(|_| report.run(stage, one));
        }
        report
    }

    /// Fails where a measurement failed, or nothing was measured at all.
    pub fn failures(&self) -> Result<()> {
        match self.failures.join("\n") {
            none if none.is_empty() && self.rows.is_empty() => Err("nothing was measured".to_owned()),
            none if none.is_empty() => Ok(()),
            failures => Err(failures),
        }
    }

    fn run(&mut self, stage: &Stage, one: &Measurement) {
        let subjects = &stage.options.subjects;
        for (column, subject) in subjects.iter().enumerate() {
            self.take(one, column, (one.run)(stage, subject));
        }
        match one.yardstick {
            Yardstick::None => {}
            Yardstick::Bare(run) => self.take(one, subjects.len(), run(stage)),
            Yardstick::Disk => {
                let rate = disk::syncs_per_second(stage.dir(), stage.length());
                self.take(one, subjects.len() + 1, rate.map(|rate| vec![Figure::more("a second", rate)]));
            }
        }
    }

    fn take(&mut self, one: &Measurement, column: usize, measured: Result<Vec<Figure>>) {
        let name = &self.columns[column];
        match measured {
            Ok(figures) if figures.is_empty() => eprintln!("{}: {name}: not possible here", one.name),
            Ok(figures) => {
                let texts: Vec<_> =
                    figures.iter().map(|it| format!("{} {}", shown(it.value), it.label)).collect();
                eprintln!("{}: {name}: {}", one.name, texts.join(", "));
                figures.into_iter().for_each(|figure| self.put(one, column, figure));
            }
            Err(error) => {
                eprintln!("{}: {name}: FAILED: {error}", one.name);
                self.failures.push(format!("{} failed with {name}: {error}", one.name));
            }
        }
    }

    fn put(&mut self, one: &Measurement, column: usize, figure: Figure) {
        let is_it = |row: &Row| row.measurement == one.name && row.label == figure.label;
        let at = self.rows.iter().position(is_it).unwrap_or_else(|| {
            let values = vec![Vec::new(); self.columns.len()];
            let Figure { label, less_is_better, .. } = figure.clone();
            self.rows.push(Row { measurement: one.name, label, less_is_better, values });
            self.rows.len() - 1
        });
        self.rows[at].values[column].push(figure.value);
    }
}

/// What the figures depend on besides the servers.
fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    format!("{processors} processors, shared by load and server; load average {load} before the run")
}

impl Row {
    fn value(&self, column: usize) -> Option<f64> {
        median(&self.values[column])
    }

    /// How many times as good as another column the first one is.
    fn ratio(&self, column: usize) -> Option<f64> {
        let (first, other) = (self.value(0)?, self.value(column)?);
        Some(if self.less_is_better { other / first } else { first / other })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}\n", self.machine)?;
        write!(f, "{:14} {:26}", "measurement", "figure")?;
        for name in &self.columns {
            write!(f, " {name:>12}")?;
        }
        for name in &self.columns[1..] {
            write!(f, " {:>11}", format!("× {name}"))?;
        }
        writeln!(f)?;
        self.rows.iter().try_for_each(|row| line(f, row))
    }
}

fn line(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    write!(f, "{:14} {:26}", row.measurement, row.label)?;
    for column in 0..row.values.len() {
        write!(f, " {:>12}", row.value(column).map_or("–".to_owned(), shown))?;
    }
    for column in 1..row.values.len() {
        write!(f, " {:>11}", row.ratio(column).map_or("–".to_owned(), |ratio| format!("{ratio:.2}")))?;
    }
    writeln!(f)
}

/// Three digits or more, thousands apart.
fn shown(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
