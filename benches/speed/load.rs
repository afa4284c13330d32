//! Loads that last for a while, and what their answers tell.

use crate::Result;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;

/// Beyond the length of a load: how long its preparation and its last answers may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// When answers count: after a short warm-up, for a given length.
#[derive(Clone, Copy)]
pub struct Window {
    begin: Instant,
    end: Instant,
}

impl Window {
    /// Begins now, with a warm-up of a tenth.
    pub fn of(length: Duration) -> Window {
        let begin = Instant::now() + length / 10;
        Window { begin, end: begin + length }
    }

    /// Begins now, without a warm-up.
    pub fn at_once(length: Duration) -> Window {
        Window { begin: Instant::now(), end: Instant::now() + length }
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }
}

/// When answers came, and after how long.
pub struct Samples {
    window: Window,
    /// End, and latency.
    answers: Vec<(Instant, Duration)>,
}

impl Samples {
    /// Answers within the window per second.
    pub fn rate(&self) -> f64 {
        let within = self.answers.iter().filter(|(end, _)| *end <= self.window.end).count();
        within as f64 / (self.window.end - self.window.begin).as_secs_f64()
    }

    /// The latency that this part of the answers does not exceed, in milliseconds.
    pub fn percentile(&self, part: f64) -> f64 {
        let mut latencies: Vec<_> = self.answers.iter().map(|(_, latency)| *latency).collect();
        latencies.sort_unstable();
        let rank = (latencies.len() as f64 * part).ceil() as usize;
        latencies.get(rank.max(1) - 1).map_or(f64::NAN, |latency| milliseconds(*latency))
    }

    /// The longest time without any answer, in milliseconds.
    pub fn longest_gap(&self) -> f64 {
        let mut ends: Vec<_> = self.answers.iter().map(|(end, _)| *end).collect();
        ends.sort_unstable();
        ends.windows(2).map(|two| milliseconds(two[1] - two[0])).fold(f64::NAN, f64::max)
    }
}

/// The middle one, or what lies between the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len().is_multiple_of(2) { (sorted[sorted.len() / 2 - 1] + upper) / 2.0 } else { upper })
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Runs `work` on a single-threaded runtime on this thread; fails where it takes far too long.
pub fn run<T>(length: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let limit = length + length / 10 + PATIENCE;
    let bounded = async { tokio::time::timeout(limit, work).await };
    runtime.block_on(bounded).map_err(|_| format!("not done after {} s", limit.as_secs()))?
}

/// Runs all tasks at once, on this thread; the first failure is the result.
pub async fn together<T: 'static, F>(tasks: impl IntoIterator<Item = F>) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + 'static,
{
    let local = LocalSet::new();
    let handles: Vec<_> = tasks.into_iter().map(|task| local.spawn_local(task)).collect();
    let all = async {
        let mut results = Vec::new();
        for handle in handles {
            results.push(handle.await.map_err(|error| error.to_string())??);
        }
        Ok(results)
    };
    local.run_until(all).await
}

/// Takes one step after the other until the window is over.
pub async fn repeat(window: Window, step: impl AsyncFnMut() -> Result<()>) -> Result<Samples> {
    repeat_after(Duration::ZERO, window, step).await
}

/// The same with a pause before each step, which counts for nothing.
pub async fn repeat_after(
    pause: Duration,
    window: Window,
    mut step: impl AsyncFnMut() -> Result<()>,
) -> Result<Samples> {
    let mut samples = Samples { window, answers: Vec::with_capacity(1 << 14) };
    let mut begun = Instant::now();
    while begun < window.end {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
            begun = Instant::now();
        }
        step().await?;
        let ended = Instant::now();
        if begun >= window.begin {
            samples.answers.push((ended, ended - begun));
        }
        begun = ended;
    }
    Ok(samples)
}

/// [`repeat`] as a task of its own.
pub async fn repeat_owned(
    window: Window,
    step: impl AsyncFnMut() -> Result<()> + 'static,
) -> Result<Samples> {
    repeat(window, step).await
}

/// The samples of all connections as one.
pub fn join(all: Vec<Samples>) -> Result<Samples> {
    let joined = all.into_iter().reduce(|mut joined, one| {
        joined.answers.extend(one.answers);
        joined
    });
    match joined {
        Some(samples) if !samples.answers.is_empty() => Ok(samples),
        _ => Err("no answer came within the time: measure longer".to_owned()),
    }
}
