//! How long something took: a histogram that any thread may add to without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets for each power of two: a value is known to an eighth.
const PER_OCTAVE: usize = 8;
const OCTAVES: usize = 64;
const BUCKETS: usize = PER_OCTAVE * OCTAVES;

/// Counts of durations by length.
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&self, ns: u64) {
        if let Some(bucket) = self.buckets.get(index(ns)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts as they are now.
    pub fn snapshot(&self) -> Latency {
        Latency { buckets: self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect() }
    }
}

/// A [`Histogram`] at one time, or the sum of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    buckets: Vec<u64>,
}

impl Latency {
    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The duration in nanoseconds that a part of all stay below or at: 0.5 gives the median. Rounded up to an eighth. 0 where
    /// nothing was counted.
    pub fn quantile(&self, part: f64) -> u64 {
        let wanted = ((self.count() as f64 * part.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut sum = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            sum += count;
            if sum >= wanted {
                return upper(index);
            }
        }
        0
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Self) {
        self.buckets.resize(self.buckets.len().max(other.buckets.len()), 0);
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += count;
        }
    }

    /// What was counted since an earlier snapshot of the same histogram.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = earlier.buckets.iter().copied().chain(std::iter::repeat(0));
        Self { buckets: self.buckets.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect() }
    }
}

fn index(ns: u64) -> usize {
    let Some(octave) = ns.checked_ilog2().map(|log| log as usize).filter(|octave| *octave >= 3) else {
        return ns as usize;
    };
    octave * PER_OCTAVE + ((ns >> (octave - 3)) & 7) as usize
}

/// The greatest value of a bucket.
fn upper(index: usize) -> u64 {
    let (octave, part) = (index / PER_OCTAVE, (index % PER_OCTAVE) as u64);
    if octave < 3 { index as u64 } else { (8 + part) << (octave - 3) | ((1 << (octave - 3)) - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_tells_it_to_an_eighth() {
        for value in (0..70).chain([1000, 4096, 123_456_789, u64::MAX / 3, u64::MAX]) {
            let upper = upper(index(value));
            assert!(upper >= value && upper - value <= value / 8, "{value} {upper}");
        }
    }

    #[test]
    fn quantiles_are_of_what_was_counted() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot().quantile(0.5), 0);
        (1..=100).for_each(|n| histogram.add(n * 1000));
        let all = histogram.snapshot();
        assert_eq!(all.count(), 100);
        let about = |value: u64, expected: u64| value >= expected && value <= expected + expected / 8;
        assert!(
            about(all.quantile(0.5), 50_000) && about(all.quantile(0.99), 99_000) && about(all.quantile(1.0), 100_000)
        );
        histogram.add(7);
        let new = histogram.snapshot().since(&all);
        assert_eq!((new.count(), new.quantile(0.0)), (1, 7));
        let mut sum = Latency::default();
        sum.merge(&all);
        sum.merge(&new);
        assert_eq!(sum, histogram.snapshot());
    }
}
