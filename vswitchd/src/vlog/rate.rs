//! How often one place in the code may log.
//!
//! Each place that asks for a limit has a bucket of tokens: it starts full, a message takes a minute's worth, and the
//! rate fills it again. What finds it empty is dropped and counted.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;

/// Milliseconds of a rate of one message a minute that a message costs.
const COST: u64 = 60_000;

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// Messages a minute.
    pub(super) rate: u64,
    /// Messages at once.
    pub(super) burst: u64,
}

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is logged.
    Pass,
    /// It is logged after this one about those that were not.
    PassAfter(String),
    /// It is dropped.
    Drop,
}

/// The buckets of all places that have a limit.
#[derive(Default)]
pub(super) struct RateLimits(Mutex<HashMap<Identifier, Bucket>>);

impl RateLimits {
    /// Takes a message of `place` at the time `now`.
    pub(super) fn take(&self, place: Identifier, limit: Limit, now: Instant) -> Verdict {
        self.0.lock().entry(place).or_insert_with(|| Bucket::full(limit, now)).take(limit, now)
    }
}

struct Bucket {
    tokens: u64,
    filled: Instant,
    dropped: u64,
    first_dropped: Instant,
    last_dropped: Instant,
}

impl Bucket {
    fn full(limit: Limit, now: Instant) -> Bucket {
        let tokens = limit.burst.saturating_mul(COST);
        Bucket { tokens, filled: now, dropped: 0, first_dropped: now, last_dropped: now }
    }

    fn take(&mut self, limit: Limit, now: Instant) -> Verdict {
        let elapsed = u64::try_from(now.saturating_duration_since(self.filled).as_millis()).unwrap_or(u64::MAX);
        self.filled += Duration::from_millis(elapsed);
        let gained = elapsed.saturating_mul(limit.rate);
        self.tokens = self.tokens.saturating_add(gained).min(limit.burst.saturating_mul(COST));
        if self.tokens < COST {
            if self.dropped == 0 {
                self.first_dropped = now;
            }
            self.last_dropped = now;
            self.dropped += 1;
            return Verdict::Drop;
        }
        self.tokens -= COST;
        match std::mem::take(&mut self.dropped) {
            0 => Verdict::Pass,
            dropped => {
                let first = now.saturating_duration_since(self.first_dropped).as_secs();
                let last = now.saturating_duration_since(self.last_dropped).as_secs();
                Verdict::PassAfter(format!(
                    "Dropped {dropped} log messages in last {first} seconds (most recently, {last} seconds ago) due to excessive rate"
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_and_what_was_dropped_is_told() {
        let start = Instant::now();
        let limit = Limit { rate: 6, burst: 2 };
        let mut bucket = Bucket::full(limit, start);
        // Six a minute is one in ten seconds. Each case: seconds since the start, what becomes of a message then.
        let told = |n, first, last| {
            Verdict::PassAfter(format!(
                "Dropped {n} log messages in last {first} seconds (most recently, {last} seconds ago) due to excessive rate"
            ))
        };
        for (seconds, verdict) in [
            (0, Verdict::Pass),
            (0, Verdict::Pass),
            (1, Verdict::Drop),
            (9, Verdict::Drop),
            (10, told(2, 9, 1)),
            (11, Verdict::Drop),
            (20, told(1, 9, 9)),
            (3600, Verdict::Pass),
            (3600, Verdict::Pass),
            (3600, Verdict::Drop),
        ] {
            assert_eq!(bucket.take(limit, start + Duration::from_secs(seconds)), verdict, "at {seconds} s");
        }
    }

    #[test]
    fn frequent_messages_do_not_keep_the_bucket_empty() {
        let start = Instant::now();
        let limit = Limit { rate: 60, burst: 1 };
        let mut bucket = Bucket::full(limit, start);
        let passed = (0..10_000)
            .filter(|i| bucket.take(limit, start + Duration::from_micros(i * 1_000)) != Verdict::Drop)
            .count();
        assert_eq!(passed, 10);
    }

    #[test]
    fn absurd_limits_do_not_overflow() {
        let now = Instant::now();
        let limit = Limit { rate: u64::MAX, burst: u64::MAX };
        assert_eq!(Bucket::full(limit, now).take(limit, now + Duration::from_secs(1 << 40)), Verdict::Pass);
        let never = Limit { rate: 0, burst: 0 };
        assert_eq!(Bucket::full(never, now).take(never, now), Verdict::Drop);
    }
}
