//! What the flows of a datapath need, counted.

use std::sync::atomic::{AtomicUsize, Ordering};

use datapath_common::needs::{FITS, NAMES};

/// How many flows need what.
#[derive(Default)]
pub(super) struct Census {
    /// Flows that a specialised program can run.
    fitting: AtomicUsize,
    /// Of these, how many have each need.
    needing: [AtomicUsize; NAMES.len()],
}

impl Census {
    /// One flow more. Once this has returned, [`Census::needs`] says what it needs.
    pub(super) fn add(&self, needs: u16) {
        self.counters(needs).for_each(|counter| _ = counter.fetch_add(1, Ordering::SeqCst));
    }

    /// One flow less.
    pub(super) fn remove(&self, needs: u16) {
        self.counters(needs).for_each(|counter| _ = counter.fetch_sub(1, Ordering::SeqCst));
    }

    /// What is needed by some flow that a specialised program can run, or `None` if it can run no flow.
    pub(super) fn needs(&self) -> Option<u16> {
        if self.fitting() == 0 {
            return None;
        }
        let needed = NAMES.iter().zip(&self.needing).filter(|(_, counter)| counter.load(Ordering::SeqCst) != 0);
        Some(needed.fold(0, |all, ((need, _), _)| all | need))
    }

    /// Flows that a specialised program can run.
    pub(super) fn fitting(&self) -> usize {
        self.fitting.load(Ordering::SeqCst)
    }

    fn counters(&self, needs: u16) -> impl Iterator<Item = &AtomicUsize> {
        let fits = needs & FITS != 0;
        let needing = NAMES.iter().zip(&self.needing).filter(move |((need, _), _)| fits && needs & need != 0);
        needing.map(|(_, counter)| counter).chain(fits.then_some(&self.fitting))
    }
}
