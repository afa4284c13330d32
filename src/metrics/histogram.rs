//! How often something was how large.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counts by upper bounds.
pub struct Histogram<const N: usize> {
    bounds: [f64; N],
    /// Each value counts in the first bound that holds it; those beyond all, at the end.
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    /// In millionths.
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    /// With these bounds, in rising order.
    pub fn new(bounds: [f64; N]) -> Histogram<N> {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Histogram { bounds, counts, beyond: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// Counts a time, in seconds.
    pub fn took(&self, time: Duration) {
        self.add(time.as_secs_f64(), u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts a number.
    pub fn counted(&self, number: usize) {
        self.add(number as f64, (number as u64).saturating_mul(1_000_000));
    }

    fn add(&self, value: f64, millionths: u64) {
        let place = self.bounds.iter().position(|bound| value <= *bound);
        place.map_or(&self.beyond, |at| &self.counts[at]).fetch_add(1, Relaxed);
        self.sum.fetch_add(millionths, Relaxed);
    }

    /// Each bound and how many values are within it; then the number of all, and their sum.
    pub fn look(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut within = 0;
        let counts = self.bounds.iter().zip(&self.counts).map(|(bound, count)| {
            within += count.load(Relaxed);
            (*bound, within)
        });
        let counts = counts.collect();
        (counts, within + self.beyond.load(Relaxed), self.sum.load(Relaxed) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_within_their_bounds() {
        let histogram = Histogram::new([0.001, 0.01]);
        for micros in [500, 1000, 1001, 10_001] {
            histogram.took(Duration::from_micros(micros));
        }
        assert_eq!(histogram.look(), (vec![(0.001, 2), (0.01, 3)], 4, 0.012502));
        let histogram = Histogram::new([1.0, 2.0]);
        [1, 2, 3].iter().for_each(|number| histogram.counted(*number));
        assert_eq!(histogram.look(), (vec![(1.0, 1), (2.0, 2)], 3, 6.0));
    }
}
