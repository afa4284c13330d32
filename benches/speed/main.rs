//! How fast servers are that speak the sync protocol, measured side by side in one run.
//!
//! ```text
//! cargo bench --bench speed
//! cargo bench --bench speed -- --rounds 5 --seconds 2 --only adds,polls
//! cargo bench --bench speed -- --compare tss='taskchampion-sync-server --listen 127.0.0.1:{port} --data-dir {dir}'
//! cargo bench --bench speed -- --postgres --compare other='program --listen 127.0.0.1:{port} -c {connection}'
//! cargo bench --bench speed -- --without-own --address there=http://127.0.0.1:8080/
//! ```
//!
//! Each server is started afresh for each measurement, in a directory of its own below the target
//! directory, which must be on a real disk. Its log goes to a file there: written as a deployment
//! would write it, without a reader that takes part of the processor. A server named by `--address`
//! runs already; what needs its process or its database is left out for it.
//!
//! A command's environment is empty but for PATH: where a server logs only when a variable says so,
//! `--compare NAME='env RUST_LOG=info PROGRAM …'` measures it with its log. `{port}` is a free port and
//! `{dir}` an empty directory; the first word is run as it is, without a shell.
//!
//! With `--postgres` a PostgreSQL is started, as Debian's package has it, and each server gets an empty
//! database in it; what looks into files is left out.
//!
//! Two yardsticks run in between: a bare hyper server, with rustls where TLS is measured, in a process of its
//! own with the same library versions, and a loop of 4 KiB appends with `fdatasync`. The load comes from one thread
//! with prebuilt requests and next to no parsing, because it shares the processors with the server;
//! yet it checks every answer, and whatever it does not expect fails the measurement and the run.
//!
//! Bodies have 1 KiB unless a measurement says otherwise. On N connections each connection is a
//! client with a chain of its own. A column `×` says how many times as good as the other the first
//! server is: for times and sizes, how many times less.

mod bare;
mod clients;
#[path = "../../tests/postgres/cluster.rs"]
#[expect(dead_code, reason = "the integration tests use more of it")]
mod cluster;
mod disk;
mod load;
mod measurements;
mod options;
mod prefill;
mod replica;
mod report;
mod server;
mod stage;
mod tls;
mod wire;

use options::Options;
use stage::Stage;
use std::process::ExitCode;

/// What went wrong, for a person.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(bare::ARGUMENT) {
        return ended(bare::serve());
    }
    ended(measure(&Options::parse()))
}

fn measure(options: &Options) -> Result<()> {
    if options.list {
        measurements::ALL.iter().for_each(|one| println!("{:14} {}", one.name, one.about));
        return Ok(());
    }
    let stage = Stage::new(options)?;
    let report = report::Report::fill(&stage);
    print!("{report}");
    report.failures()
}

fn ended(result: Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("{error}");
    ExitCode::FAILURE
}
