//! The measurements, and what comes of one.

mod adds;
mod operators;
mod reads;
mod secure;
mod snapshots;

use crate::Result;
use crate::load::Samples;
use crate::options::Subject;
use crate::server::Server;
use crate::stage::Stage;

const KIB: usize = 1024;
const MIB: usize = 1024 * 1024;

/// Something that can be measured.
pub struct Measurement {
    pub name: &'static str,
    pub about: &'static str,
    /// No figures: not possible with this server.
    pub run: fn(&Stage, &Subject) -> Result<Vec<Figure>>,
    pub yardstick: Yardstick,
}

/// The measurements of databases that are files, and of what Postgres has no part in.
const OF_FILES: &[&str] = &["syncs-per-add", "adds-large", "first-syncs", "tls-", "verbs", "backup-pause"];

impl Measurement {
    /// Whether it is possible, or of use, with a database in files only.
    pub fn looks_into_files(&self) -> bool {
        OF_FILES.iter().any(|beginning| self.name.starts_with(beginning))
    }
}

/// What a measurement is held against.
pub enum Yardstick {
    None,
    Bare(fn(&Stage) -> Result<Vec<Figure>>),
    /// How often a second the disk makes an append durable.
    Disk,
}

/// One number of a measurement.
#[derive(Clone)]
pub struct Figure {
    pub label: String,
    pub value: f64,
    pub less_is_better: bool,
}

impl Figure {
    pub fn more(label: &str, value: f64) -> Figure {
        Figure { label: label.to_owned(), value, less_is_better: false }
    }

    pub fn less(label: &str, value: f64) -> Figure {
        Figure { label: label.to_owned(), value, less_is_better: true }
    }
}

pub const ALL: &[Measurement] = &[
    Measurement {
        name: "adds-1",
        about: "adds on 1 connection, one after the other; and an append with fdatasync",
        run: |stage, subject| adds::adds(stage, subject, 1),
        yardstick: Yardstick::Disk,
    },
    Measurement {
        name: "syncs-per-add",
        about: "system calls that make files durable, per sequential add (checkpoints apart; needs strace)",
        run: adds::syncs_per_add,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "adds-16",
        about: "adds on 16 connections",
        run: |stage, subject| adds::adds(stage, subject, 16),
        yardstick: Yardstick::Disk,
    },
    Measurement {
        name: "adds-64",
        about: "adds on 64 connections",
        run: |stage, subject| adds::adds(stage, subject, 64),
        yardstick: Yardstick::Disk,
    },
    Measurement {
        name: "memory",
        about: "memory of the server, and of it with its Postgres, after adds on 64 connections",
        run: adds::memory_after,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "adds-large",
        about: "adds on 64 connections to a large database (--versions)",
        run: adds::adds_large,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "pause",
        about: "adds on 64 connections, twice as long: the longest time without any answer",
        run: adds::pause,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "polls-1",
        about: "polls without news on 1 connection",
        run: |stage, subject| reads::polls(stage, subject, 1),
        yardstick: Yardstick::Bare(|stage| reads::bare(stage, 1, "", 404, 0)),
    },
    Measurement {
        name: "polls-16",
        about: "polls without news on 16 connections",
        run: |stage, subject| reads::polls(stage, subject, 16),
        yardstick: Yardstick::Bare(|stage| reads::bare(stage, 16, "", 404, 0)),
    },
    Measurement {
        name: "polls-64",
        about: "polls without news on 64 connections",
        run: |stage, subject| reads::polls(stage, subject, 64),
        yardstick: Yardstick::Bare(|stage| reads::bare(stage, 64, "", 404, 0)),
    },
    Measurement {
        name: "polls-unknown",
        about: "polls on 16 connections of clients that have never added anything",
        run: reads::polls_of_unknown,
        yardstick: Yardstick::Bare(|stage| reads::bare(stage, 16, "", 404, 0)),
    },
    Measurement {
        name: "reads-1k",
        about: "reads of versions of 1 KiB on 16 connections",
        run: |stage, subject| reads::reads(stage, subject, KIB, 100),
        yardstick: Yardstick::Bare(|stage| reads::bare(stage, 16, "bytes/1024", 200, KIB)),
    },
    Measurement {
        name: "reads-100k",
        about: "reads of versions of 100 KiB on 16 connections",
        run: |stage, subject| reads::reads(stage, subject, 100 * KIB, 10),
        yardstick: Yardstick::Bare(|stage| reads::bare(stage, 16, "bytes/102400", 200, 100 * KIB)),
    },
    Measurement {
        name: "catch-up",
        about: "1,000 versions read one after the other on a new connection",
        run: reads::catch_up,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "whole-syncs",
        about: "poll, add, poll on a new connection each time, 16 at once",
        run: reads::whole_syncs,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "snapshot-puts",
        about: "snapshots of 10 MiB stored one after the other, each with a version that it is for",
        run: snapshots::snapshot_puts,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "snapshot-gets",
        about: "snapshots of 10 MiB read one after the other",
        run: snapshots::snapshot_gets,
        yardstick: Yardstick::Bare(|stage| reads::bare(stage, 1, "bytes/10485760", 200, 10 * MIB)),
    },
    Measurement {
        name: "uploads",
        about: "eight snapshots of 100 MiB stored at once: the server's memory",
        run: snapshots::uploads,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "uploads-polls",
        about: "polls of four other clients, each 2 ms after its last, during such uploads",
        run: snapshots::polls_during_uploads,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "idle",
        about: "memory two seconds after start and a first sync",
        run: snapshots::idle,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "first-syncs",
        about: "first requests of a client among 10 and among many (--clients)",
        run: reads::first_syncs,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "tls-handshakes",
        about: "TLS 1.3 handshakes on new connections with one request each, 16 at once",
        run: secure::handshakes,
        yardstick: Yardstick::Bare(secure::bare_handshakes),
    },
    Measurement {
        name: "tls-probes",
        about: "requests over TLS that ask nothing of the database, on 16 connections",
        run: secure::probes,
        yardstick: Yardstick::Bare(secure::bare_requests),
    },
    Measurement {
        name: "tls-polls",
        about: "polls without news over TLS on 16 connections",
        run: secure::polls,
        yardstick: Yardstick::Bare(secure::bare_requests),
    },
    Measurement {
        name: "tls-idle",
        about: "memory with 10,000 idle TLS connections, and whole syncs on new ones meanwhile",
        run: secure::idle,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "verbs",
        about: "list-clients and backup of 10,000 clients with 1,000,000 versions, beside a copy of the file",
        run: operators::verbs,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "backup-pause",
        about: "adds on 64 connections while a large database (--versions) is backed up",
        run: operators::backup_pause,
        yardstick: Yardstick::None,
    },
];

fn figures(samples: &Samples) -> Vec<Figure> {
    vec![Figure::more("a second", samples.rate()), Figure::less("p99 ms", samples.percentile(0.99))]
}

/// Adds the end of the server's log to a failure.
fn logged<T>(server: &Server, result: Result<T>) -> Result<T> {
    result.map_err(|error| format!("{error}\n{}", server.log_end()).trim_end().to_owned())
}
