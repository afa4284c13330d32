//! Large bodies, and memory.

use super::{Figure, KIB, MIB, figures, logged};
use crate::Result;
use crate::clients::{Grown, fresh, grown};
use crate::load::{Samples, Window, join, median, milliseconds, repeat, repeat_after, run, together};
use crate::options::Subject;
use crate::replica::{Replica, body};
use crate::server::{Server, memory};
use crate::stage::Stage;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Uploads at once, and how long each is.
const UPLOADS: usize = 8;
const UPLOAD: usize = 100 * MIB;

pub fn snapshot_puts(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
    let server = stage.start(subject)?;
    let measured = run(stage.length(), async {
        let snapshot = body(10 * MIB);
        let mut replica = Replica::new(&server.place, body(KIB)).await?;
        let mut put = replica.snapshot_request(snapshot.clone());
        let window = Window::at_once(stage.length());
        let (begun, mut puts) = (Instant::now(), Vec::new());
        while !window.is_over() {
            // A snapshot for the version of the held one would not be stored again.
            replica.add().await?;
            let begun = Instant::now();
            replica.add_snapshot(&mut put).await?;
            puts.push(milliseconds(begun.elapsed()));
        }
        let spent = begun.elapsed();
        replica.snapshot_whole(&snapshot).await?;
        Ok((puts, spent))
    });
    let (puts, spent) = logged(&server, measured)?;
    Ok(vec![
        Figure::more("a second", puts.len() as f64 / spent.as_secs_f64()),
        Figure::less("of it the snapshot's ms", median(&puts).unwrap_or(f64::NAN)),
    ])
}

pub fn snapshot_gets(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
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

pub fn uploads(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
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
pub fn polls_during_uploads(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
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
            // Those that were done first waited, perhaps for longer than the server does.
            for replica in &mut replicas {
                replica.reconnect().await?;
            }
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

pub fn idle(stage: &Stage, subject: &Subject) -> Result<Vec<Figure>> {
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
