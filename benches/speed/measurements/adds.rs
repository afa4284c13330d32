//! Adds: how many, how long each takes, what each costs the disk.

use super::{Figure, KIB, figures, logged};
use crate::Result;
use crate::clients::{fresh, returning};
use crate::load::{Samples, Window, join, repeat, run, together};
use crate::options::Subject;
use crate::replica::{Replica, body};
use crate::server::{Trace, shared_memory};
use crate::stage::Stage;
use std::time::Duration;

/// Clients of a large database.
pub const LARGE_CLIENTS: usize = 500;

/// So few that no server writes its log back into the database meanwhile.
const TRACED_ADDS: usize = 100;

pub fn adds(stage: &Stage, subject: &Subject, connections: usize) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = logged(&server, add_for(stage.length(), fresh(&server, connections)))?;
    Ok(add_figures(&samples))
}

pub fn memory_after(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let Some(pid) = server.pid() else { return Ok(Vec::new()) };
    logged(&server, add_for(stage.length(), fresh(&server, 64)))?;
    let own = shared_memory(pid)?;
    let mut figures = vec![Figure::less("server MiB", own)];
    if let Some(cluster) = stage.cluster() {
        figures.push(Figure::less("with its database MiB", own + shared_memory(cluster.pid())?));
    }
    Ok(figures)
}

pub fn adds_large(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let database = stage.prefilled(LARGE_CLIENTS, (stage.options.versions / LARGE_CLIENTS).max(1))?;
    let server = stage.start_on(subject, &database)?;
    if server.pid().is_none() {
        return Ok(Vec::new());
    }
    let known = database.clients.iter().step_by(LARGE_CLIENTS / 64).take(64);
    let samples = logged(&server, add_for(stage.length(), returning(&server, known)))?;
    Ok(add_figures(&samples))
}

pub fn pause(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = logged(&server, add_for(2 * stage.length(), fresh(&server, 64)))?;
    Ok(vec![
        Figure::less("longest without answer ms", samples.longest_gap()),
        Figure::less("longest for one ms", samples.percentile(1.0)),
    ])
}

pub fn syncs_per_add(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let Some(pid) = server.pid() else { return Ok(Vec::new()) };
    let count = run(stage.length(), async {
        let mut replica = Replica::new(&server.place, body(KIB)).await?;
        replica.grow(10).await?;
        let Some(trace) = Trace::start(pid, stage.dir())? else {
            eprintln!("there is no strace to count system calls with");
            return Ok(None);
        };
        replica.grow(TRACED_ADDS).await?;
        trace.finish().map(Some)
    });
    let per_add = |count| Figure::less("calls", count as f64 / TRACED_ADDS as f64);
    Ok(logged(&server, count)?.map(per_add).into_iter().collect())
}

pub fn add_for(length: Duration, replicas: impl Future<Output = Result<Vec<Replica>>>) -> Result<Samples> {
    run(length, async {
        let replicas = replicas.await?;
        let window = Window::of(length);
        let add = |mut replica: Replica| async move {
            let samples = repeat(window, async || replica.add().await).await?;
            replica.read_latest().await?;
            Ok(samples)
        };
        join(together(replicas.into_iter().map(add)).await?)
    })
}

fn add_figures(samples: &Samples) -> Vec<Figure> {
    let mut figures = figures(samples);
    figures.insert(1, Figure::less("p50 ms", samples.percentile(0.5)));
    figures.push(Figure::less("max ms", samples.percentile(1.0)));
    figures
}
