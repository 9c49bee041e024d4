//! Averages over the last five seconds, minute and hour, and the text of `coverage/show`.
//!
//! Time is cut into slots of [`INTERVAL_MS`]. The last twelve slots are a ring, the minute; each full turn of it fills
//! one entry of a second ring of sixty, the hour. When the owner comes late, the events since its last visit are
//! spread evenly over the slots it missed: a rate is then smeared, never invented.

use std::fmt::Write;

use crate::{COUNTERS, Counter};

/// Length of a slot, and how often [`Rates::run`] wants to be called, in milliseconds.
pub const INTERVAL_MS: u64 = 5_000;

/// Slots in a minute.
const MINUTE: usize = (60_000 / INTERVAL_MS) as usize;
/// Minutes in an hour.
const HOUR: usize = 60;
/// Slots until both rings are back at their start.
const CYCLE: u64 = (MINUTE * HOUR) as u64;

/// Moving averages of every event of the process.
pub struct Rates {
    events: Vec<Event>,
    /// When the current slot ends; `None` before the first [`Rates::run`].
    slot_ends_ms: Option<u64>,
    /// The slot to be filled next, less than [`CYCLE`].
    next_slot: u64,
}

struct Event {
    name: &'static str,
    counters: Vec<&'static Counter>,
    last_total: u64,
    /// Events in each slot of the last minute.
    minute: [u64; MINUTE],
    /// Events in each minute of the last hour.
    hour: [u64; HOUR],
}

impl Rates {
    /// Averages of all events of the process, at zero.
    pub fn new() -> Rates {
        Rates::of(COUNTERS.iter().copied())
    }

    fn of(counters: impl IntoIterator<Item = &'static Counter>) -> Rates {
        let mut events: Vec<Event> = Vec::new();
        for counter in counters {
            match events.iter_mut().find(|event| event.name == counter.name()) {
                Some(event) => event.counters.push(counter),
                None => events.push(Event {
                    name: counter.name(),
                    counters: vec![counter],
                    last_total: 0,
                    minute: [0; MINUTE],
                    hour: [0; HOUR],
                }),
            }
        }
        events.sort_by_key(|event| event.name);
        Rates { events, slot_ends_ms: None, next_slot: 0 }
    }

    /// Closes the slots that ended by `now_ms` (milliseconds of any monotonic clock, always the same one). The first
    /// call starts the clock. Returns when it wants to be called again.
    pub fn run(&mut self, now_ms: u64) -> u64 {
        let slot_ends = *self.slot_ends_ms.get_or_insert(now_ms + INTERVAL_MS);
        if now_ms < slot_ends {
            return slot_ends;
        }
        let slots = (now_ms - slot_ends) / INTERVAL_MS + 1;
        // A cycle overwrites everything, so of a longer absence only the end is written.
        let written = slots.min(CYCLE);
        let first = (self.next_slot + (slots - written)) % CYCLE;
        for event in &mut self.events {
            let total = event.total();
            let count = total.wrapping_sub(event.last_total);
            event.last_total = total;
            for i in 0..written {
                let rest = if i == written - 1 { count % slots } else { 0 };
                event.fill(((first + i) % CYCLE) as usize, count / slots + rest);
            }
        }
        self.next_slot = (self.next_slot + slots) % CYCLE;
        let ends = now_ms + INTERVAL_MS;
        self.slot_ends_ms = Some(ends);
        ends
    }

    /// The text of `coverage/show`: a heading, one line per event that was hit, how many never were.
    pub fn show(&self) -> String {
        let totals: Vec<u64> = self.events.iter().map(Event::total).collect();
        let seconds = INTERVAL_MS / 1000;
        let hash = self.hash(&totals);
        let mut out = format!(
            "Event coverage, avg rate over last: {seconds} seconds, last minute, last hour,  hash={hash:08x}:\n"
        );
        let last_slot = (self.next_slot as usize + MINUTE - 1) % MINUTE;
        for (event, &total) in self.events.iter().zip(&totals).filter(|(_, total)| **total != 0) {
            // Writing to a string can't fail.
            let _ = writeln!(
                out,
                "{:<24} {:>5.1}/sec {:>9.3}/sec {:>13.4}/sec   total: {}",
                event.name,
                event.minute[last_slot] as f64 * 1000.0 / INTERVAL_MS as f64,
                event.minute.iter().sum::<u64>() as f64 / 60.0,
                event.hour.iter().sum::<u64>() as f64 / 3600.0,
                total
            );
        }
        let never = totals.iter().filter(|total| **total == 0).count();
        let _ = writeln!(out, "{never} events never hit");
        out
    }

    /// A number that is equal for two states in which the same events were hit in the same order of frequency: people
    /// compare it to see whether two daemons do the same kind of work.
    fn hash(&self, totals: &[u64]) -> u32 {
        let mut ranked: Vec<(u64, &str)> =
            totals.iter().zip(&self.events).filter(|(t, _)| **t != 0).map(|(t, e)| (*t, e.name)).collect();
        ranked.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        // FNV-1a over the names, with a mark where a new rank begins.
        let mut hash = 0x811c_9dc5_u32;
        let mut mix = |byte: u8| hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        let mut previous = None;
        for (total, name) in ranked {
            mix(if previous == Some(total) { 0 } else { 1 });
            previous = Some(total);
            name.bytes().for_each(&mut mix);
        }
        hash
    }
}

impl Default for Rates {
    fn default() -> Rates {
        Rates::new()
    }
}

impl Event {
    fn total(&self) -> u64 {
        self.counters.iter().fold(0, |sum, counter| sum.wrapping_add(counter.total()))
    }

    fn fill(&mut self, slot: usize, count: u64) {
        let (in_minute, minute) = (slot % MINUTE, slot / MINUTE);
        self.minute[in_minute] = count;
        self.hour[minute] = if in_minute == 0 { count } else { self.hour[minute] + count };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rates table of its own over freshly made counters.
    fn rates<const N: usize>(names: [&'static str; N]) -> (Rates, [&'static Counter; N]) {
        let counters = names.map(|name| &*Box::leak(Box::new(Counter::new(name))));
        (Rates::of(counters), counters)
    }

    /// The three averages and the total of the only event shown.
    fn shown(rates: &Rates) -> String {
        rates.show().lines().nth(1).unwrap_or_default().to_owned()
    }

    #[test]
    fn shows_the_text_the_field_knows() {
        let (mut rates, [often, once, _never, _nor_this]) = rates(["xlate_actions", "a", "b", "c"]);
        rates.run(0);
        often.add(50);
        once.add(1);
        rates.run(5_000);
        let text = rates.show();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("Event coverage, avg rate over last: 5 seconds, last minute, last hour,  hash="),
            "{text}"
        );
        assert!(lines[0].ends_with(':'), "{text}");
        assert_eq!(
            lines[1..],
            [
                "a                          0.2/sec     0.017/sec        0.0003/sec   total: 1",
                "xlate_actions             10.0/sec     0.833/sec        0.0139/sec   total: 50",
                "2 events never hit",
            ]
        );
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn averages_decay_after_their_time() {
        let (mut rates, [counter]) = rates(["e"]);
        rates.run(0);
        counter.add(60);
        // Each case: the time, then the averages over 5 s, minute and hour.
        let cases = [
            (4_999, "0.0/sec 0.000/sec 0.0000/sec"),
            (5_000, "12.0/sec 1.000/sec 0.0167/sec"),
            (10_000, "0.0/sec 1.000/sec 0.0167/sec"),
            (60_000, "0.0/sec 1.000/sec 0.0167/sec"),
            (65_000, "0.0/sec 0.000/sec 0.0167/sec"),
            (3_600_000, "0.0/sec 0.000/sec 0.0167/sec"),
            (3_605_000, "0.0/sec 0.000/sec 0.0000/sec"),
        ];
        for (until, expected) in cases {
            let mut now = rates.slot_ends_ms.unwrap();
            while now <= until {
                now = rates.run(now);
            }
            let line = shown(&rates).split_whitespace().skip(1).take(3).collect::<Vec<_>>().join(" ");
            assert_eq!(line, expected, "at {until} ms");
        }
    }

    #[test]
    fn a_late_visit_spreads_the_events_over_the_slots_it_missed() {
        let (mut rates, [counter]) = rates(["e"]);
        rates.run(0);
        counter.add(30);
        assert_eq!(rates.run(15_000), 20_000);
        assert_eq!(rates.events[0].minute[..4], [10, 10, 10, 0]);
        assert_eq!(rates.next_slot, 3);
    }

    #[test]
    fn an_absence_of_years_is_bounded_work_and_leaves_no_old_rate() {
        let (mut rates, [counter]) = rates(["e"]);
        rates.run(0);
        counter.add(7);
        rates.run(u64::MAX / 2);
        // Seven events among billions of slots: the last slot has the rest of the division.
        let sum: u64 = rates.events[0].minute.iter().sum();
        assert_eq!(sum, 7);
    }

    #[test]
    fn events_before_the_first_run_count_in_the_first_slot() {
        let (mut rates, [counter]) = rates(["e"]);
        counter.add(5);
        rates.run(1_000_000);
        rates.run(1_005_000);
        assert!(shown(&rates).contains("1.0/sec"), "{}", rates.show());
    }

    #[test]
    fn the_hash_depends_on_the_order_of_frequency_only() {
        let (rates, [a, b, _]) = rates(["a", "b", "c"]);
        let hash = |a_adds: u64, b_adds: u64| {
            a.add(a_adds);
            b.add(b_adds);
            rates.show().split_once("hash=").map(|(_, rest)| rest[..8].to_owned()).unwrap()
        };
        let a_first = hash(10, 5);
        assert_eq!(hash(100, 1), a_first);
        assert_ne!(hash(0, 1_000), a_first);
    }
}
