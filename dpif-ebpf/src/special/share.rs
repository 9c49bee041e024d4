//! Whether a specialised program is worth its attempts.
//!
//! A packet that it hands over costs about half as much again as it would have without it; one that it finishes costs about a third less.
//! Where it finishes few, it is taken away for a while and then tried again, each time that was in vain for longer.
//!
//! The first packet of a flow is always handed over. So that many new flows at once are no reason, few have to be finished in two
//! windows in a row.

use std::time::{Duration, Instant};

/// It is judged by what happens in this time.
const WINDOW: Duration = Duration::from_secs(1);
/// Where fewer lookups find a flow meanwhile, it doesn't matter.
const ENOUGH: u64 = 20_000;
/// It finishes at least one in so many.
const LEAST: u64 = 3;
/// In so many windows in a row it has to finish fewer.
const BAD_WINDOWS: u32 = 2;
/// For how long it is taken away at first, and at most.
const REST: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(64)];

/// Lookups that have found a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// By a specialised program.
    pub(crate) special: u64,
    /// By any.
    pub(crate) all: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    Stay,
    /// The specialised program goes.
    Leave,
    /// It may come back.
    Return,
}

/// The judgement so far.
pub(super) struct Share {
    /// Since when what is counted, once what a new program has to learn is over.
    window: Option<(Instant, Option<Found>)>,
    /// Windows in a row in which it has finished few.
    bad: u32,
    rest: Duration,
    /// Until when there is no specialised program, and why.
    resting: Option<(Instant, Found)>,
}

impl Share {
    /// Nothing is known.
    pub(super) fn new() -> Self {
        Self { window: None, bad: 0, rest: REST[0], resting: None }
    }

    /// Whether a specialised program has been taken away; then what it was that it found.
    pub(super) fn resting(&self) -> Option<Found> {
        self.resting.map(|(_, found)| found)
    }

    /// Another program runs: what was counted says nothing of it.
    pub(super) fn changed(&mut self) {
        (self.window, self.bad) = (None, 0);
    }

    /// Judges by what has been found until now. `special`: a specialised program runs.
    pub(super) fn look(&mut self, now: Instant, found: Found, special: bool) -> Change {
        if let Some((until, _)) = self.resting {
            if now < until {
                return Change::Stay;
            }
            self.resting = None;
            self.changed();
            return Change::Return;
        }
        if !special {
            self.changed();
            return Change::Stay;
        }
        match self.window {
            None => self.window = Some((now, None)),
            Some((since, _)) if now.duration_since(since) < WINDOW => {}
            Some((_, None)) => self.window = Some((now, Some(found))),
            Some((_, Some(before))) => {
                self.window = Some((now, Some(found)));
                let since = Found {
                    special: found.special.saturating_sub(before.special),
                    all: found.all.saturating_sub(before.all),
                };
                if since.all < ENOUGH {
                    return Change::Stay;
                }
                if since.special.saturating_mul(LEAST) >= since.all {
                    (self.bad, self.rest) = (0, REST[0]);
                    return Change::Stay;
                }
                self.bad += 1;
                if self.bad >= BAD_WINDOWS {
                    self.resting = Some((now + self.rest, since));
                    self.rest = (self.rest * 2).min(REST[1]);
                    return Change::Leave;
                }
            }
        }
        Change::Stay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time goes on, with a thousand lookups every ten milliseconds.
    struct Traffic {
        share: Share,
        now: Instant,
        found: Found,
    }

    impl Traffic {
        fn new() -> Self {
            Self { share: Share::new(), now: Instant::now(), found: Found::default() }
        }

        /// Goes on for this long at most, until something is to be done; how long that took. Of a hundred lookups so many are special.
        fn run(&mut self, time: Duration, special: u64, running: bool) -> (Change, u128) {
            let start = self.now;
            while self.now - start < time {
                self.now += WINDOW / 100;
                self.found.all += 1000;
                self.found.special += if running { 10 * special } else { 0 };
                let change = self.share.look(self.now, self.found, running);
                if change != Change::Stay {
                    return (change, (self.now - start).as_millis());
                }
            }
            (Change::Stay, 0)
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_that_finishes_few_is_taken_away_for_longer_and_longer() {
        let mut traffic = Traffic::new();
        let mut rests = Vec::new();
        for _ in 0..6 {
            let (change, after) = traffic.run(MINUTE, 20, true);
            // A second in which it learns what the flows are, and two that count.
            assert!(change == Change::Leave && (3000..3100).contains(&after), "{change:?} {after}");
            assert_eq!(traffic.share.resting().map(|found| (found.special, found.all)), Some((20_000, 100_000)));
            let (change, after) = traffic.run(2 * MINUTE, 0, false);
            assert_eq!((change, traffic.share.resting()), (Change::Return, None));
            rests.push(after / 1000);
        }
        assert_eq!(rests, [4, 8, 16, 32, 64, 64]);
        // Once it was worth it, the next doubt is short again.
        assert_eq!(traffic.run(MINUTE, 40, true).0, Change::Stay);
        assert_eq!(traffic.run(MINUTE, 0, true).0, Change::Leave);
        assert_eq!(traffic.run(MINUTE, 0, false), (Change::Return, 4000));
    }

    #[test]
    fn what_finishes_enough_or_has_little_to_do_stays() {
        let mut traffic = Traffic::new();
        assert_eq!(traffic.run(MINUTE, 34, true).0, Change::Stay);
        assert_eq!(traffic.run(MINUTE, 0, false).0, Change::Stay);
        // Many new flows at once.
        for _ in 0..50 {
            assert_eq!(traffic.run(WINDOW, 0, true).0, Change::Stay);
            assert_eq!(traffic.run(WINDOW * 2, 100, true).0, Change::Stay);
        }
        // A change of the program begins anew.
        for _ in 0..50 {
            traffic.share.changed();
            assert_eq!(traffic.run(WINDOW * 29 / 10, 0, true).0, Change::Stay);
        }
        let (mut share, start) = (Share::new(), Instant::now());
        for second in 0..60 {
            let found = Found { special: 0, all: u64::from(second) * (ENOUGH - 1) };
            assert_eq!(share.look(start + second * WINDOW, found, true), Change::Stay);
        }
    }
}
