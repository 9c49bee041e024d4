//! When it is time to change to another program: not before the flows have needed the same for a while, and the more seldom the
//! more often that turned out to be wrong.

use std::time::{Duration, Instant};

/// The longest wait, in shortest ones.
const LONGEST: u32 = 32;

/// What the flows have needed lately.
pub(super) struct Hold {
    shortest: Duration,
    wait: Duration,
    /// What they need now, and since when.
    wanted: Option<(Instant, Option<u16>)>,
    changed: Option<Instant>,
}

impl Hold {
    /// Waits at least for this long.
    pub(super) fn new(shortest: Duration) -> Self {
        Self { shortest, wait: shortest, wanted: None, changed: None }
    }

    /// The shortest wait.
    pub(super) fn shortest(&self) -> Duration {
        self.shortest
    }

    /// Whether to change now from a program for `running` to one for `wanted`.
    pub(super) fn is_over(&mut self, now: Instant, running: Option<u16>, wanted: Option<u16>) -> bool {
        if running == wanted {
            self.wanted = None;
            // What lasted was right.
            if self.changed.is_some_and(|changed| now.duration_since(changed) >= 4 * self.wait) {
                self.wait = self.shortest;
            }
            return false;
        }
        match self.wanted {
            Some((since, before)) if before == wanted => now.duration_since(since) >= self.wait,
            _ => {
                self.wanted = Some((now, wanted));
                self.wait.is_zero()
            }
        }
    }

    /// The program was changed to a narrower one.
    pub(super) fn narrowed(&mut self, now: Instant) {
        self.changed = Some(now);
        self.wanted = None;
    }

    /// It was too narrow for a flow that came.
    pub(super) fn widened(&mut self, now: Instant) {
        self.wanted = None;
        if self.changed.take().is_some_and(|changed| now.duration_since(changed) < 4 * self.wait) {
            self.wait = (self.wait * 2).min(self.shortest * LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_wait_begins_anew_when_something_else_is_needed() {
        let (mut hold, start) = (Hold::new(3 * SECOND), Instant::now());
        assert!(!hold.is_over(start, Some(7), Some(1)));
        assert!(!hold.is_over(start + 2 * SECOND, Some(7), Some(1)));
        assert!(!hold.is_over(start + 3 * SECOND, Some(7), Some(3)));
        assert!(!hold.is_over(start + 5 * SECOND, Some(7), Some(3)));
        assert!(hold.is_over(start + 6 * SECOND, Some(7), Some(3)));
        hold.narrowed(start + 6 * SECOND);
        assert!(!hold.is_over(start + 6 * SECOND, Some(3), Some(3)));
    }

    #[test]
    fn who_narrowed_too_early_waits_longer_the_next_time() {
        let (mut hold, mut now) = (Hold::new(SECOND), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..9 {
            let start = now;
            while !hold.is_over(now, Some(7), Some(1)) {
                now += SECOND / 2;
            }
            waits.push((now - start).as_secs());
            hold.narrowed(now);
            hold.widened(now + SECOND / 4);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 32, 32, 32]);
        // After some time in which nothing was wrong it is as in the beginning.
        hold.narrowed(now);
        assert!(!hold.is_over(now + 300 * SECOND, Some(1), Some(1)));
        hold.widened(now + 301 * SECOND);
        now += 302 * SECOND;
        assert!(!hold.is_over(now, Some(7), Some(1)));
        assert!(hold.is_over(now + SECOND, Some(7), Some(1)));
    }
}
