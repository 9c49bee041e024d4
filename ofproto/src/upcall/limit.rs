//! How many megaflows there may be: as many as the revalidator copes with.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Flows that there may be at first.
const FIRST_LIMIT: usize = 10_000;
/// Flows that there may be however long a pass takes.
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
    /// How many flows the revalidator copes with.
    pub(crate) fn adapted(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Flows on average over the last passes.
    pub(crate) fn average(&self) -> usize {
        self.average.load(Ordering::Relaxed)
    }

    /// Milliseconds that the last pass took.
    pub(crate) fn dump_ms(&self) -> u64 {
        self.dump_ms.load(Ordering::Relaxed)
    }

    /// A pass of the revalidator over `flows` flows has ended. One that takes long lowers the number of flows that there may
    /// be, one that would do with more flows in a second raises it, to `most`.
    pub(crate) fn pass_ended(&self, dump_ms: u64, flows: usize, most: usize) {
        let limit = self.adapted();
        let per_second = flows as u64 * 1000 / dump_ms.max(1);
        let adapted = match dump_ms {
            2001.. => limit / (dump_ms as usize / 1000),
            1301.. => limit / 4 * 3,
            0..1000 if (limit as u64) < per_second => limit + 1000,
            _ => limit,
        };
        self.limit.store(adapted.max(LEAST_LIMIT).min(most.max(LEAST_LIMIT)), Ordering::Relaxed);
        self.dump_ms.store(dump_ms, Ordering::Relaxed);
        self.average.store((self.average() + flows) / 2, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_that_take_long_lower_the_limit_and_quick_ones_raise_it() {
        let table = FlowLimit::default();
        for (dump_ms, limit) in
            [(10, 11_000), (999, 12_000), (1_100, 12_000), (1_400, 9_000), (3_100, 3_000), (9_000, 1_000), (10, 2_000)]
        {
            table.pass_ended(dump_ms, 20_000, 200_000);
            assert_eq!(table.adapted(), limit, "after {dump_ms} ms");
        }
    }
}
