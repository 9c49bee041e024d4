//! When a handler lets others finish.
//!
//! A handler that shares a processor with whoever sends packets stops that one for each packet or two, and pays for two switches of threads
//! and a round of system calls each time. Where many packets come, that is a third of what a new flow costs; so it asks not to be put
//! before others when it wakes, and answers together what has come meanwhile, as a network card moderates its interrupts. Where few come
//! the first one counts, and a handler is scheduled as any other thread.

use std::time::Duration;

use super::handler::NS_PER_MS;

/// It is judged by what comes in this time.
const WINDOW_NS: u64 = 10 * NS_PER_MS;
/// So many packets in a window, and fewer than so many at once: a handler begins to let others finish.
const MANY: u64 = 40;
const FEW_AT_ONCE: u64 = 8;
/// Fewer in a window: it ends.
const FEW: u64 = 20;

/// The judgement of one handler.
pub(super) struct Moderation {
    /// Told when it changes, on the handler's thread.
    schedule: fn(bool),
    moderates: bool,
    since_ns: u64,
    packets: u64,
    batches: u64,
}

impl Moderation {
    /// Nothing has come yet.
    pub(super) fn new(schedule: fn(bool)) -> Self {
        Self { schedule, moderates: false, since_ns: 0, packets: 0, batches: 0 }
    }

    /// How long a handler may sleep until this has to be judged again.
    pub(super) fn sleeps(&self) -> Option<Duration> {
        self.moderates.then_some(Duration::from_nanos(2 * WINDOW_NS))
    }

    /// None has come although there was time.
    pub(super) fn none_came(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.since_ns) >= WINDOW_NS {
            self.begin(now_ns, false);
        }
    }

    /// So many packets have come together.
    pub(super) fn came(&mut self, now_ns: u64, packets: u64) {
        self.packets += packets;
        self.batches += 1;
        let took = now_ns.saturating_sub(self.since_ns);
        if took < WINDOW_NS {
            return;
        }
        let in_window = self.packets.saturating_mul(WINDOW_NS) / took;
        let moderates = if self.moderates {
            in_window >= FEW
        } else {
            in_window >= MANY && self.packets < FEW_AT_ONCE * self.batches
        };
        self.begin(now_ns, moderates);
    }

    /// A window begins.
    fn begin(&mut self, now_ns: u64, moderates: bool) {
        if moderates != self.moderates {
            self.moderates = moderates;
            (self.schedule)(moderates);
        }
        (self.since_ns, self.packets, self.batches) = (now_ns, 0, 0);
    }
}

impl Drop for Moderation {
    /// The thread goes on with another handler where one has died.
    fn drop(&mut self) {
        if self.moderates {
            (self.schedule)(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static TOLD: Cell<Option<bool>> = const { Cell::new(None) };
    }

    /// For how long it goes on: batches of so many packets, so far apart.
    fn run(moderation: &mut Moderation, now_ns: &mut u64, time_ms: u64, packets: u64, apart_us: u64) -> Option<bool> {
        TOLD.set(None);
        let end = *now_ns + time_ms * NS_PER_MS;
        while *now_ns < end {
            *now_ns += apart_us * 1000;
            moderation.came(*now_ns, packets);
        }
        TOLD.get()
    }

    #[test]
    fn many_packets_one_by_one_are_answered_together_until_few_come() {
        let mut moderation = Moderation::new(|moderates| TOLD.set(Some(moderates)));
        let now = &mut 1_000_000_000;
        assert_eq!((run(&mut moderation, now, 100, 1, 1000), moderation.sleeps()), (None, None));
        *now += 100 * NS_PER_MS;
        assert_eq!(run(&mut moderation, now, 100, 64, 1000), None, "they come together already");
        assert_eq!(run(&mut moderation, now, 100, 2, 50), Some(true));
        assert!(moderation.sleeps().is_some());
        assert_eq!(run(&mut moderation, now, 100, 64, 800), None, "that is what was wanted");
        assert_eq!(run(&mut moderation, now, 100, 1, 1000), Some(false));
        assert_eq!(run(&mut moderation, now, 100, 2, 50), Some(true));
        // Nothing comes any more.
        *now += 20 * NS_PER_MS;
        TOLD.set(None);
        moderation.none_came(*now);
        assert_eq!((TOLD.get(), moderation.sleeps()), (Some(false), None));
        assert_eq!(run(&mut moderation, now, 100, 2, 50), Some(true));
        drop(moderation);
        assert_eq!(TOLD.get(), Some(false));
    }

    #[test]
    fn after_a_rest_the_first_packets_are_not_many() {
        let mut moderation = Moderation::new(|moderates| TOLD.set(Some(moderates)));
        TOLD.set(None);
        moderation.came(5_000 * NS_PER_MS, 64);
        for n in 0..90 {
            moderation.came(5_000 * NS_PER_MS + n, 1);
        }
        assert_eq!(TOLD.get(), None);
    }
}
