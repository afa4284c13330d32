//! The measurements themselves.

use crate::Result;
use crate::load::{Samples, Window, join, milliseconds, repeat, repeat_after, run, together};
use crate::options::Subject;
use crate::prefill::{Known, Prefilled};
use crate::replica::{Replica, body};
use crate::server::{Server, Trace, memory};
use crate::stage::Stage;
use crate::wire::{Connection, Id, NIL, Place, Request};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

const KIB: usize = 1024;
const MIB: usize = 1024 * 1024;

/// Clients of a large database.
const LARGE_CLIENTS: usize = 500;

/// Uploads at once, and how long each is.
const UPLOADS: usize = 8;
const UPLOAD: usize = 100 * MIB;

/// So few that no server writes its log back into the database meanwhile.
const TRACED_ADDS: usize = 100;

/// Something that can be measured.
pub struct Measurement {
    pub name: &'static str,
    pub about: &'static str,
    /// No figures: not possible with this server.
    pub run: fn(&Stage, &Subject) -> Result<Vec<Figure>>,
    pub yardstick: Yardstick,
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
        run: |stage, subject| adds(stage, subject, 1),
        yardstick: Yardstick::Disk,
    },
    Measurement {
        name: "syncs-per-add",
        about: "system calls that make files durable, per sequential add (checkpoints apart; needs strace)",
        run: syncs_per_add,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "adds-16",
        about: "adds on 16 connections",
        run: |stage, subject| adds(stage, subject, 16),
        yardstick: Yardstick::Disk,
    },
    Measurement {
        name: "adds-64",
        about: "adds on 64 connections",
        run: |stage, subject| adds(stage, subject, 64),
        yardstick: Yardstick::Disk,
    },
    Measurement {
        name: "adds-large",
        about: "adds on 64 connections to a large database (--versions)",
        run: adds_large,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "pause",
        about: "adds on 64 connections, twice as long: the longest time without any answer",
        run: pause,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "polls-1",
        about: "polls without news on 1 connection",
        run: |stage, subject| polls(stage, subject, 1),
        yardstick: Yardstick::Bare(|stage| bare(stage, 1, "", 404, 0)),
    },
    Measurement {
        name: "polls-16",
        about: "polls without news on 16 connections",
        run: |stage, subject| polls(stage, subject, 16),
        yardstick: Yardstick::Bare(|stage| bare(stage, 16, "", 404, 0)),
    },
    Measurement {
        name: "polls-64",
        about: "polls without news on 64 connections",
        run: |stage, subject| polls(stage, subject, 64),
        yardstick: Yardstick::Bare(|stage| bare(stage, 64, "", 404, 0)),
    },
    Measurement {
        name: "reads-1k",
        about: "reads of versions of 1 KiB on 16 connections",
        run: |stage, subject| reads(stage, subject, KIB, 100),
        yardstick: Yardstick::Bare(|stage| bare(stage, 16, "bytes/1024", 200, KIB)),
    },
    Measurement {
        name: "reads-100k",
        about: "reads of versions of 100 KiB on 16 connections",
        run: |stage, subject| reads(stage, subject, 100 * KIB, 10),
        yardstick: Yardstick::Bare(|stage| bare(stage, 16, "bytes/102400", 200, 100 * KIB)),
    },
    Measurement {
        name: "catch-up",
        about: "1,000 versions read one after the other on a new connection",
        run: catch_up,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "whole-syncs",
        about: "poll, add, poll on a new connection each time, 16 at once",
        run: whole_syncs,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "snapshot-puts",
        about: "snapshots of 10 MiB stored one after the other",
        run: snapshot_puts,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "snapshot-gets",
        about: "snapshots of 10 MiB read one after the other",
        run: snapshot_gets,
        yardstick: Yardstick::Bare(|stage| bare(stage, 1, "bytes/10485760", 200, 10 * MIB)),
    },
    Measurement {
        name: "uploads",
        about: "eight snapshots of 100 MiB stored at once: the server's memory",
        run: uploads,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "uploads-polls",
        about: "polls of four other clients, each 2 ms after its last, during such uploads",
        run: polls_during_uploads,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "idle",
        about: "memory two seconds after start and a first sync",
        run: idle,
        yardstick: Yardstick::None,
    },
    Measurement {
        name: "first-syncs",
        about: "first requests of a client among 10 and among many (--clients)",
        run: first_syncs,
        yardstick: Yardstick::None,
    },
];

fn adds(stage: &Stage, subject: &Subject, connections: usize) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = logged(&server, add_for(stage.length(), fresh(&server, connections)))?;
    Ok(add_figures(&samples))
}

fn adds_large(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let database = stage.prefilled(LARGE_CLIENTS, (stage.options.versions / LARGE_CLIENTS).max(1))?;
    let server = stage.start_on(subject, &database)?;
    if server.pid().is_none() {
        return Ok(Vec::new());
    }
    let known = database.clients.iter().step_by(LARGE_CLIENTS / 64).take(64);
    let samples = logged(&server, add_for(stage.length(), returning(&server, known)))?;
    Ok(add_figures(&samples))
}

fn pause(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = logged(&server, add_for(2 * stage.length(), fresh(&server, 64)))?;
    Ok(vec![
        Figure::less("longest without answer ms", samples.longest_gap()),
        Figure::less("longest for one ms", samples.percentile(1.0)),
    ])
}

fn add_figures(samples: &Samples) -> Vec<Figure> {
    let mut figures = figures(samples);
    figures.insert(1, Figure::less("p50 ms", samples.percentile(0.5)));
    figures.push(Figure::less("max ms", samples.percentile(1.0)));
    figures
}

fn figures(samples: &Samples) -> Vec<Figure> {
    vec![Figure::more("a second", samples.rate()), Figure::less("p99 ms", samples.percentile(0.99))]
}

fn add_for(length: Duration, replicas: impl Future<Output = Result<Vec<Replica>>>) -> Result<Samples> {
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

fn syncs_per_add(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
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

fn polls(stage: &Stage, subject: &Subject, connections: usize) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = run(stage.length(), async {
        let replicas = grown(&server, connections, KIB, 1).await?;
        let window = Window::of(stage.length());
        let poll = |(mut replica, _): Grown| repeat_owned(window, async move || replica.poll().await);
        join(together(replicas.into_iter().map(poll)).await?)
    });
    Ok(figures(&logged(&server, samples)?))
}

fn bare(stage: &Stage, connections: usize, path: &str, status: u16, length: usize) -> Result<Vec<Figure>> {
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

fn reads(stage: &Stage, subject: &Subject, size: usize, versions: usize) -> Result<Vec<Figure>> {
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

fn catch_up(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
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

fn whole_syncs(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
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

fn snapshot_puts(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let rate = run(stage.length(), async {
        let snapshot = body(10 * MIB);
        let mut replica = Replica::new(&server.place, body(KIB)).await?;
        let mut put = replica.snapshot_request(snapshot.clone());
        let window = Window::at_once(stage.length());
        let (mut count, mut spent) = (0, Duration::ZERO);
        while !window.is_over() {
            // A snapshot for the version of the held one would not be stored again.
            replica.add().await?;
            let begun = Instant::now();
            replica.add_snapshot(&mut put).await?;
            spent += begun.elapsed();
            count += 1;
        }
        replica.snapshot_whole(&snapshot).await?;
        Ok(f64::from(count) / spent.as_secs_f64())
    });
    Ok(vec![Figure::more("a second", logged(&server, rate)?)])
}

fn snapshot_gets(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let samples = run(stage.length(), async {
        let snapshot = body(10 * MIB);
        let mut replica = Replica::new(&server.place, body(KIB)).await?;
        replica.add().await?;
        let mut put = replica.snapshot_request(snapshot.clone());
        replica.add_snapshot(&mut put).await?;
        replica.snapshot_whole(&snapshot).await?;
        let get = async || replica.snapshot(snapshot.len()).await;
        join(vec![repeat(Window::of(stage.length()), get).await?])
    });
    Ok(figures(&logged(&server, samples)?))
}

fn uploads(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let Some(pid) = server.pid() else { return Ok(Vec::new()) };
    let measured = run(stage.length(), async {
        let snapshot = body(UPLOAD);
        let replicas = fresh(&server, UPLOADS).await?;
        let begun = Instant::now();
        let replicas = upload(replicas, &snapshot).await?;
        let spent = begun.elapsed();
        let peak = memory(pid, "VmHWM")?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let resident = memory(pid, "VmRSS")?;
        // A snapshot that was dropped is answered like one that was stored.
        for mut replica in replicas {
            replica.reconnect().await?;
            replica.snapshot_whole(&snapshot).await?;
        }
        Ok((spent, peak, resident))
    });
    let (spent, peak, resident) = logged(&server, measured)?;
    Ok(vec![
        Figure::less("peak memory MiB", peak),
        Figure::less("memory 2 s later MiB", resident),
        Figure::less("all eight ms", milliseconds(spent)),
    ])
}

/// Each appends a version and stores a snapshot for it, all at once.
async fn upload(replicas: Vec<Replica>, snapshot: &Arc<Vec<u8>>) -> Result<Vec<Replica>> {
    let one = |mut replica: Replica| {
        let mut put = replica.snapshot_request(snapshot.clone());
        async move {
            replica.add().await?;
            replica.add_snapshot(&mut put).await?;
            Ok(replica)
        }
    };
    together(replicas.into_iter().map(one)).await
}

/// The uploads have a thread of their own, so that the time that sending takes is not the polls'.
fn polls_during_uploads(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let length = stage.length();
    let samples = std::thread::scope(|scope| {
        let uploads = scope.spawn(|| upload_until_over(&server, length));
        let polls = poll_until_over(&server, length);
        uploads.join().map_err(|_| "the uploads' thread panicked".to_owned())??;
        polls
    });
    let samples = logged(&server, samples)?;
    Ok(vec![
        Figure::less("p50 ms", samples.percentile(0.5)),
        Figure::less("p99 ms", samples.percentile(0.99)),
        Figure::less("max ms", samples.percentile(1.0)),
    ])
}

fn upload_until_over(server: &Server, length: Duration) -> Result<()> {
    run(length, async {
        let snapshot = body(UPLOAD);
        let window = Window::at_once(length);
        let mut replicas = fresh(server, UPLOADS).await?;
        while !window.is_over() {
            replicas = upload(replicas, &snapshot).await?;
        }
        Ok(())
    })
}

fn poll_until_over(server: &Server, length: Duration) -> Result<Samples> {
    run(length, async {
        let replicas = grown(server, 4, KIB, 1).await?;
        let window = Window::at_once(length);
        let poll = |(mut replica, _): Grown| async move {
            repeat_after(Duration::from_millis(2), window, async || replica.poll().await).await
        };
        join(together(replicas.into_iter().map(poll)).await?)
    })
}

fn idle(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let Some(pid) = server.pid() else { return Ok(Vec::new()) };
    let synced = run(stage.length(), async {
        let mut replica = Replica::new(&server.place, body(KIB)).await?;
        replica.poll().await?;
        replica.add().await?;
        replica.poll().await
    });
    logged(&server, synced)?;
    sleep(Duration::from_secs(2));
    Ok(vec![Figure::less("memory MiB", memory(pid, "VmRSS")?)])
}

fn first_syncs(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
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
        reads.push(begun.elapsed());
    }
    let mut syncs = Vec::new();
    for _ in 0..100 {
        let mut replica = Replica::new(place, body(KIB)).await?;
        let begun = Instant::now();
        replica.poll().await?;
        replica.add().await?;
        replica.poll().await?;
        syncs.push(begun.elapsed());
    }
    Ok((median(reads), median(syncs)))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    milliseconds(times[times.len() / 2])
}

/// Clients that the server does not know, each with a connection.
async fn fresh(server: &Server, count: usize) -> Result<Vec<Replica>> {
    let segment = body(KIB);
    let mut replicas = Vec::new();
    for _ in 0..count {
        replicas.push(Replica::new(&server.place, segment.clone()).await?);
    }
    Ok(replicas)
}

/// Clients of the server's database, each with a connection.
async fn returning(server: &Server, clients: impl Iterator<Item = &Known>) -> Result<Vec<Replica>> {
    let segment = body(KIB);
    let mut replicas = Vec::new();
    for known in clients {
        let client = known.client.clone();
        replicas.push(Replica::of(&server.place, client, known.latest, segment.clone()).await?);
    }
    Ok(replicas)
}

/// A client with each of its versions' parent and ID.
type Grown = (Replica, Vec<(Id, Id)>);

/// New clients with so many versions of this size each. Their connections are new too: those that
/// waited for the others might have been closed.
async fn grown(server: &Server, count: usize, size: usize, versions: usize) -> Result<Vec<Grown>> {
    let segment = body(size);
    let mut tasks = Vec::new();
    for _ in 0..count {
        let mut replica = Replica::new(&server.place, segment.clone()).await?;
        tasks.push(async move {
            let links = replica.grow(versions).await?;
            replica.read_latest().await?;
            Ok((replica, links))
        });
    }
    let mut grown: Vec<Grown> = together(tasks).await?;
    for (replica, _) in &mut grown {
        replica.reconnect().await?;
    }
    Ok(grown)
}

/// [`repeat`] as a task of its own.
async fn repeat_owned(window: Window, step: impl AsyncFnMut() -> Result<()> + 'static) -> Result<Samples> {
    repeat(window, step).await
}

/// Adds the end of the server's log to a failure.
fn logged<T>(server: &Server, result: Result<T>) -> Result<T> {
    result.map_err(|error| format!("{error}\n{}", server.log_end()))
}
