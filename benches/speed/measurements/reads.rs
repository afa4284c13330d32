//! Polls, reads and whole syncs.

use super::{Figure, KIB, figures, logged};
use crate::Result;
use crate::clients::{Grown, fresh, grown};
use crate::load::{Window, join, median, milliseconds, repeat, repeat_owned, run, together};
use crate::options::Subject;
use crate::prefill::Prefilled;
use crate::replica::{Replica, body};
use crate::stage::Stage;
use crate::wire::{Connection, NIL, Place, Request};
use std::time::Instant;

pub fn polls(stage: &Stage, subject: &Subject, connections: usize) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = run(stage.length(), async {
        let replicas = grown(&server, connections, KIB, 1).await?;
        let window = Window::of(stage.length());
        let poll = |(mut replica, _): Grown| repeat_owned(window, async move || replica.poll().await);
        join(together(replicas.into_iter().map(poll)).await?)
    });
    Ok(figures(&logged(&server, samples)?))
}

pub fn polls_of_unknown(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = run(stage.length(), async {
        let replicas = fresh(&server, 16).await?;
        let window = Window::of(stage.length());
        let poll = |mut replica: Replica| repeat_owned(window, async move || replica.poll().await);
        join(together(replicas.into_iter().map(poll)).await?)
    });
    Ok(figures(&logged(&server, samples)?))
}

pub fn bare(
    stage: &Stage,
    connections: usize,
    path: &str,
    status: u16,
    length: usize,
) -> Result<Vec<Figure>> {
    let place = &stage.bare().place;
    let samples = run(stage.length(), async {
        let window = Window::of(stage.length());
        let mut tasks = Vec::new();
        for _ in 0..connections {
            let request = Request::path(place, path);
            let mut connection = Connection::open(place).await?;
            tasks.push(repeat_owned(window, async move || {
                connection.exchange(&request).await?.expect(status, length).map(|_| ())
            }));
        }
        join(together(tasks).await?)
    })?;
    Ok(figures(&samples))
}

pub fn reads(stage: &Stage, subject: &Subject, size: usize, versions: usize) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = run(stage.length(), async {
        let replicas = grown(&server, 16, size, versions).await?;
        let window = Window::of(stage.length());
        let read = |(mut replica, links): Grown| {
            let mut next = 0;
            repeat_owned(window, async move || {
                let (parent, version) = &links[next];
                next = (next + 1) % links.len();
                replica.read(parent, version).await
            })
        };
        join(together(replicas.into_iter().map(read)).await?)
    });
    Ok(figures(&logged(&server, samples)?))
}

pub fn catch_up(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = run(stage.length(), async {
        let (mut replica, links) = grown(&server, 1, KIB, 1000).await?.remove(0);
        let once = async || {
            replica.reconnect().await?;
            for (parent, version) in &links {
                replica.read(parent, version).await?;
            }
            replica.poll().await
        };
        join(vec![repeat(Window::at_once(stage.length()), once).await?])
    });
    Ok(vec![Figure::less("median ms", logged(&server, samples)?.percentile(0.5))])
}

pub fn whole_syncs(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = run(stage.length(), async {
        let replicas = fresh(&server, 16).await?;
        let window = Window::of(stage.length());
        let sync = |mut replica: Replica| {
            repeat_owned(window, async move || {
                replica.reconnect().await?;
                replica.poll().await?;
                replica.add().await?;
                replica.poll().await
            })
        };
        join(together(replicas.into_iter().map(sync)).await?)
    });
    Ok(figures(&logged(&server, samples)?))
}

pub fn first_syncs(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut medians = Vec::new();
    for clients in [10, stage.options.clients] {
        let database = stage.prefilled(clients, 1)?;
        let server = stage.start_on(subject, &database)?;
        if server.pid().is_none() {
            return Ok(Vec::new());
        }
        let measured = run(stage.length(), first_syncs_on(&server.place, &database));
        let (existing, new) = logged(&server, measured)?;
        figures.push(Figure::less(&format!("first read of {clients} ms"), existing));
        figures.push(Figure::less(&format!("new client of {clients} ms"), new));
        medians.push((existing, new));
    }
    figures.push(Figure::less("first read, times longer", medians[1].0 / medians[0].0));
    figures.push(Figure::less("new client, times longer", medians[1].1 / medians[0].1));
    Ok(figures)
}

/// Medians of the first read of a fresh replica of a client in the database, and of the first sync
/// of a client that is not in it, in milliseconds.
async fn first_syncs_on(place: &Place, database: &Prefilled) -> Result<(f64, f64)> {
    let mut reads = Vec::new();
    for turn in 0..200 {
        // A large prime, so that the clients come from all over the database.
        let known = &database.clients[turn * 7919 % database.clients.len()];
        let mut replica = Replica::of(place, known.client.clone(), known.latest, body(KIB)).await?;
        let begun = Instant::now();
        replica.read(&NIL, &known.first).await?;
        reads.push(milliseconds(begun.elapsed()));
    }
    let mut syncs = Vec::new();
    for _ in 0..100 {
        let mut replica = Replica::new(place, body(KIB)).await?;
        let begun = Instant::now();
        replica.poll().await?;
        replica.add().await?;
        replica.poll().await?;
        syncs.push(milliseconds(begun.elapsed()));
    }
    let middle = |times: &[f64]| median(times).ok_or("nothing was measured");
    Ok((middle(&reads)?, middle(&syncs)?))
}
