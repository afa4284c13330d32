//! What TLS costs. This package's own program only, which must be given the certificate.

use super::{Figure, figures, logged};
use crate::Result;
use crate::load::{Window, join, repeat_owned, run, together};
use crate::options::{How, Subject};
use crate::replica::{Replica, body};
use crate::server::memory;
use crate::stage::Stage;
use crate::wire::{Connection, Place, Request};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Connections that do nothing.
const IDLE: usize = 10_000;

/// So many of them come from one address.
const OF_ONE_ADDRESS: usize = 1000;

/// Of which so many are made at once.
const AT_ONCE: usize = 16;

/// Files that a process has open beside its connections.
const OTHER_FILES: u64 = 500;

/// A new connection each time, with one request to see that both ends are done with the handshake.
pub fn handshakes(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let How::Own = subject.how else { return Ok(Vec::new()) };
    let server = stage.start_secure(subject, &[])?;
    let samples = run(stage.length(), handshakes_with(stage, server.place.clone(), "healthz", 200));
    Ok(figures(&logged(&server, samples)?))
}

pub fn bare_handshakes(stage: &Stage) -> Result<Vec<Figure>> {
    Ok(figures(&run(stage.length(), handshakes_with(stage, stage.bare().secure.clone(), "bytes/3", 200))?))
}

async fn handshakes_with(
    stage: &Stage<'_>,
    place: Place,
    path: &str,
    status: u16,
) -> Result<crate::load::Samples> {
    let window = Window::of(stage.length());
    let mut tasks = Vec::new();
    for _ in 0..AT_ONCE {
        let (place, request) = (place.clone(), Request::path(&place, path));
        tasks.push(repeat_owned(window, async move || {
            let mut fresh = Connection::open(&place).await?;
            fresh.exchange(&request).await?.expect_status(status).map(|_| ())
        }));
    }
    join(together(tasks).await?)
}

/// Requests that the door answers by itself, without a line in the log.
pub fn probes(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let How::Own = subject.how else { return Ok(Vec::new()) };
    let server = stage.start_secure(subject, &[])?;
    let samples = run(stage.length(), requests(stage, &server.place, "healthz", 200));
    Ok(figures(&logged(&server, samples)?))
}

pub fn bare_requests(stage: &Stage) -> Result<Vec<Figure>> {
    Ok(figures(&run(stage.length(), requests(stage, &stage.bare().secure, "bytes/3", 200))?))
}

async fn requests(stage: &Stage<'_>, place: &Place, path: &str, status: u16) -> Result<crate::load::Samples> {
    let mut connections = Vec::new();
    for _ in 0..AT_ONCE {
        connections.push(Connection::open(place).await?);
    }
    let window = Window::of(stage.length());
    let task = |mut connection: Connection| {
        let request = Request::path(place, path);
        repeat_owned(window, async move || connection.exchange(&request).await?.expect(status, 3).map(|_| ()))
    };
    join(together(connections.into_iter().map(task)).await?)
}

/// Polls without news, as clients make them.
pub fn polls(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let How::Own = subject.how else { return Ok(Vec::new()) };
    let server = stage.start_secure(subject, &[])?;
    let samples = run(stage.length(), async {
        let mut replicas = Vec::new();
        for _ in 0..AT_ONCE {
            let mut replica = Replica::new(&server.place, body(super::KIB)).await?;
            replica.add().await?;
            replicas.push(replica);
        }
        let window = Window::of(stage.length());
        let poll = |mut replica: Replica| repeat_owned(window, async move || replica.poll().await);
        join(together(replicas.into_iter().map(poll)).await?)
    });
    Ok(figures(&logged(&server, samples)?))
}

/// Many connections that were used once and are open, and whole syncs on new ones meanwhile, none of which
/// may fail.
pub fn idle(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let How::Own = subject.how else { return Ok(Vec::new()) };
    allow_files(IDLE as u64 + OTHER_FILES)?;
    let limit = (IDLE + AT_ONCE).to_string();
    let server = stage.start_secure(subject, &["--connections-limit", &limit, "--idle-timeout", "30m"])?;
    let pid = server.pid().ok_or("the server has no process")?;
    let before = memory(pid, "VmRSS")?;
    let length = stage.length() + Duration::from_secs(120);
    let done = run(length, async {
        let opening = (0..AT_ONCE).map(|part| open(server.place.clone(), part));
        let mut idle: Vec<Connection> = together(opening).await?.into_iter().flatten().collect();
        let window = Window::of(stage.length());
        let mut replicas = Vec::new();
        for _ in 0..4 {
            replicas.push(Replica::new(&server.place, body(super::KIB)).await?);
        }
        let sync = |mut replica: Replica| {
            repeat_owned(window, async move || {
                replica.reconnect().await?;
                replica.poll().await?;
                replica.add().await?;
                replica.poll().await
            })
        };
        let syncs = join(together(replicas.into_iter().map(sync)).await?)?;
        let held = memory(pid, "VmRSS")?;
        // They are what was measured only if each of them is still there.
        for connection in &mut idle {
            connection.exchange(&Request::path(&server.place, "healthz")).await?.expect_status(200)?;
        }
        Ok((syncs, held))
    });
    let (syncs, held) = logged(&server, done)?;
    Ok(vec![
        Figure::less("memory MiB", held),
        Figure::less("KiB for each", (held - before) * 1024.0 / IDLE as f64),
        Figure::more("syncs a second", syncs.rate()),
        Figure::less("p99 ms", syncs.percentile(0.99)),
    ])
}

/// One part of the idle connections.
async fn open(place: Place, part: usize) -> Result<Vec<Connection>> {
    let request = Request::path(&place, "healthz");
    let mut idle = Vec::new();
    for n in (part..IDLE).step_by(AT_ONCE) {
        let source = Ipv4Addr::new(127, 0, 1, 1 + (n / OF_ONE_ADDRESS) as u8);
        let mut connection = Connection::open_from(&place, source).await?;
        connection.exchange(&request).await?.expect_status(200)?;
        idle.push(connection);
    }
    Ok(idle)
}

/// Lets this process, and those that it starts, open so many files.
fn allow_files(count: u64) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= count) {
        return Ok(());
    }
    let maximum = maximum.map(|maximum| maximum.max(count));
    setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum })
        .map_err(|error| format!("{count} open files are needed (ulimit -n): {error}"))
}
