//! The time, passed in: whoever makes a switch decides what clock ages its tables, so a test can stop it and move it on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Says the time.
pub trait Clock: Send + Sync {
    /// Milliseconds of `CLOCK_MONOTONIC`, or of whatever stands for it. It has to be the clock of the datapath, whose flows
    /// say on it when they were used last.
    fn now_ms(&self) -> u64;

    /// The same time in nanoseconds.
    fn now_ns(&self) -> u64 {
        self.now_ms().saturating_mul(1_000_000)
    }
}

/// The system's monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct MonotonicClock;

impl Clock for MonotonicClock {
    fn now_ms(&self) -> u64 {
        self.now_ns() / 1_000_000
    }

    fn now_ns(&self) -> u64 {
        use nix::time::{ClockId, clock_gettime};
        // Linux always has this clock.
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
    }
}

/// A clock that stands still until it is moved. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that shows `now_ms` milliseconds.
    pub fn new(now_ms: u64) -> Self {
        Self(Arc::new(AtomicU64::new(now_ms)))
    }

    /// Moves the clock on.
    pub fn advance_ms(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
