//! How many megaflows there may be: as many as the revalidators cope with.
//!
//! After each round the limit follows the round's duration: one that took more than two seconds divides it by the seconds, one
//! over 1.3 seconds takes a quarter off, one under a second that would have done with more flows adds a thousand. It is at
//! least a thousand and at most what the operator allows.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Flows that there may be at first.
const FIRST_LIMIT: usize = 10_000;
/// Flows that there may be however long a round takes, if the operator allows so many.
const LEAST_LIMIT: usize = 1_000;

/// The dynamic flow limit, and what it is computed from.
pub(crate) struct FlowLimit {
    limit: AtomicUsize,
    average: AtomicUsize,
    dump_ms: AtomicU64,
}

impl Default for FlowLimit {
    fn default() -> Self {
        Self { limit: AtomicUsize::new(FIRST_LIMIT), average: AtomicUsize::new(0), dump_ms: AtomicU64::new(0) }
    }
}

impl FlowLimit {
    /// How many flows the revalidators cope with.
    pub(crate) fn adapted(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets that; the next round goes on from there.
    pub(crate) fn set(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Flows on average over the last rounds.
    pub(crate) fn average(&self) -> usize {
        self.average.load(Ordering::Relaxed)
    }

    /// Milliseconds that the last round took.
    pub(crate) fn dump_ms(&self) -> u64 {
        self.dump_ms.load(Ordering::Relaxed)
    }

    /// A round that began with `flows` flows has ended after `dump_ms` (at least one) milliseconds. The operator allows `most`.
    pub(crate) fn round_ended(&self, dump_ms: u64, flows: usize, most: usize) {
        let limit = self.adapted();
        let per_second = flows as u64 * 1000 / dump_ms.max(1);
        let adapted = match dump_ms {
            2001.. => {
                coverage::inc!("upcall_flow_limit_scaled");
                limit / (dump_ms / 1000).try_into().unwrap_or(usize::MAX)
            }
            1301.. => {
                coverage::inc!("upcall_flow_limit_reduced");
                limit.saturating_mul(3) / 4
            }
            0..1000 if (limit as u64) < per_second => {
                coverage::inc!("upcall_flow_limit_grew");
                limit + 1000
            }
            _ => limit,
        };
        self.limit.store(adapted.max(LEAST_LIMIT).min(most), Ordering::Relaxed);
        self.dump_ms.store(dump_ms, Ordering::Relaxed);
        self.average.store((self.average() + flows) / 2, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_take_long_lower_the_limit_and_quick_ones_raise_it() {
        let limit = FlowLimit::default();
        for (dump_ms, expected) in [
            (10, 11_000),
            (999, 12_000),
            (1_000, 12_000),
            (1_300, 12_000),
            (1_301, 9_000),
            (2_000, 6_750),
            (2_001, 3_375),
            (3_100, 1_125),
            (9_000, 1_000),
            (10, 2_000),
        ] {
            limit.round_ended(dump_ms, 20_000, 200_000);
            assert_eq!(limit.adapted(), expected, "after {dump_ms} ms");
        }
    }

    #[test]
    fn the_limit_grows_only_where_it_is_needed_and_allowed() {
        let limit = FlowLimit::default();
        // 9 flows in 1 ms are 9,000 a second: the limit is above that.
        limit.round_ended(1, 9, 200_000);
        assert_eq!(limit.adapted(), 10_000);
        limit.round_ended(1, 10_000, 10_500);
        assert_eq!(limit.adapted(), 10_500);
        // What the operator allows goes before what there is at least.
        limit.round_ended(1, 10_000, 500);
        assert_eq!(limit.adapted(), 500);
        limit.set(7);
        assert_eq!(limit.adapted(), 7);
    }

    #[test]
    fn the_average_follows_the_rounds() {
        let limit = FlowLimit::default();
        for (flows, average) in [(100, 50), (100, 75), (0, 37)] {
            limit.round_ended(5, flows, 200_000);
            assert_eq!((limit.average(), limit.dump_ms()), (average, 5));
        }
    }
}
