//! Event coverage: what happened how often in this process, cheap enough to stay on in production.
//!
//! A place in the code that matters says so where it happens:
//!
//! ```
//! coverage::inc!("flow_extract");
//! coverage::add!("dpif_upcall_bytes", 1500);
//! ```
//!
//! Three properties make that free of ceremony:
//!
//! * **Nothing to register.** Each use places a static counter in a linker section, so the process knows all of its
//!   counters before the first one is hit, and `coverage/show` can say how many never were.
//! * **One event, many places.** Counters with the same name, in whatever crate, are one event.
//! * **No shared cache line.** A counter is a few lanes, one cache line each; a thread always adds to its own lane.
//!   Reading sums the lanes. Totals are exact and never decrease; a sum taken during an addition may miss it.
//!
//! [`Rates`] turns totals into the averages of the last five seconds, minute and hour. It has no clock of its own: who
//! owns it passes the time in.
#![forbid(unsafe_code)]

mod rates;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub use rates::{INTERVAL_MS, Rates};

#[doc(hidden)]
pub use linkme;

/// All counters of the process, in link order; several may share a name.
#[doc(hidden)]
#[linkme::distributed_slice]
pub static COUNTERS: [&'static Counter];

/// The static [`Counter`] of the event `NAME` (a string literal) at this place, as `&'static Counter`.
///
/// Each use is a counter of its own; those of one name are summed when read.
#[macro_export]
macro_rules! counter {
    ($name:literal) => {{
        static COUNTER: $crate::Counter = $crate::Counter::new($name);
        #[$crate::linkme::distributed_slice($crate::COUNTERS)]
        #[linkme(crate = $crate::linkme)]
        static REGISTERED: &'static $crate::Counter = &COUNTER;
        &COUNTER
    }};
}

/// Counts one event `NAME` (a string literal).
#[macro_export]
macro_rules! inc {
    ($name:literal) => {
        $crate::counter!($name).add(1)
    };
}

/// Counts the event `NAME` (a string literal) a number of times (`u64`).
#[macro_export]
macro_rules! add {
    ($name:literal, $n:expr) => {
        $crate::counter!($name).add($n)
    };
}

/// Lanes of a counter. Threads are dealt to lanes in turn; beyond this many threads some share one, which is slower
/// but still exact.
const LANES: usize = 8;

/// A lane on a cache line of its own.
#[repr(align(64))]
struct Lane(AtomicU64);

/// How often one event happened at one place. Made by [`counter!`], never moved or freed.
pub struct Counter {
    name: &'static str,
    lanes: [Lane; LANES],
}

impl Counter {
    /// A counter at zero. Use [`counter!`]: a counter made by hand is not listed anywhere.
    #[doc(hidden)]
    pub const fn new(name: &'static str) -> Counter {
        Counter { name, lanes: [const { Lane(AtomicU64::new(0)) }; LANES] }
    }

    /// The event's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Counts `n` events.
    #[inline]
    pub fn add(&self, n: u64) {
        self.lanes[my_lane()].0.fetch_add(n, Ordering::Relaxed);
    }

    /// Events counted here since the process started.
    pub fn total(&self) -> u64 {
        self.lanes.iter().fold(0, |sum, lane| sum.wrapping_add(lane.0.load(Ordering::Relaxed)))
    }
}

/// The lane of the calling thread, less than [`LANES`].
#[inline]
fn my_lane() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % LANES;
    }
    // While a thread's storage is being torn down it shares the first lane.
    LANE.try_with(|lane| *lane).unwrap_or(0)
}

/// The total of each event of the process by its name, events never hit included.
pub fn totals() -> BTreeMap<&'static str, u64> {
    sum(COUNTERS.iter().copied())
}

/// The total of the event `name`; `None` if there is no such event.
pub fn total(name: &str) -> Option<u64> {
    COUNTERS.iter().filter(|c| c.name == name).map(|c| c.total()).reduce(u64::wrapping_add)
}

fn sum<'a>(counters: impl IntoIterator<Item = &'a Counter>) -> BTreeMap<&'static str, u64> {
    let mut totals = BTreeMap::new();
    for counter in counters {
        let total: &mut u64 = totals.entry(counter.name).or_default();
        *total = total.wrapping_add(counter.total());
    }
    totals
}
