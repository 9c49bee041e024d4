//! Messages that whoever sends packets could make come without end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Lets a message through once in a while.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    next_ms: AtomicU64,
    suppressed: AtomicU64,
}

impl RateLimit {
    const INTERVAL_MS: u64 = 5_000;

    /// Whether the message may be written now: with how many were suppressed before.
    pub(crate) fn allow(&self, now_ms: u64) -> Option<u64> {
        let next = self.next_ms.load(Ordering::Relaxed);
        let won = now_ms >= next
            && self
                .next_ms
                .compare_exchange(next, now_ms + Self::INTERVAL_MS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if won {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// The messages of the upcall engine that packets cause.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    /// A packet came by a port that is on no bridge.
    pub(crate) unknown_port: RateLimit,
    /// Something went wrong with a packet or a flow.
    pub(crate) failed: RateLimit,
    /// Two flows have one id.
    pub(crate) conflict: RateLimit,
    /// A handler took too long.
    pub(crate) long_poll: RateLimit,
    /// The datapath lost upcalls.
    pub(crate) lost: RateLimit,
    /// A port has as many flows or masks as it may have. By port: one port's storm must not hide another's.
    pub(crate) caps: Mutex<HashMap<u32, RateLimit>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_one_message_and_a_number() {
        let rate = RateLimit::default();
        assert_eq!(rate.allow(100), Some(0));
        assert_eq!(rate.allow(101), None);
        assert_eq!(rate.allow(102), None);
        assert_eq!(rate.allow(5_100), Some(2));
    }
}
