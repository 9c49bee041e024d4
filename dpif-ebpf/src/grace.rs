//! Grace periods: waiting until no program runs that may have seen what is gone.
//!
//! A packet's program runs inside an RCU read-side section. Whatever it could find when it started (a slot by its reference,
//! a list of masks) may be reused only when all programs that were running have ended. The kernel offers that wait to
//! whoever replaces an element of an ARRAY_OF_MAPS: the update returns after `synchronize_rcu()`. (`membarrier(2)` with
//! `MEMBARRIER_CMD_GLOBAL` waits as long, but does nothing on one CPU and refuses on a `nohz_full` machine.) It takes some
//! milliseconds, so it is shared: one wait serves all who asked before it began.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use dpif::Result;
use parking_lot::{Condvar, Mutex};

use crate::kernel::{io_error, map_error};
use crate::sys::bpf;

/// What a grace period is waited for with; the state is under a lock while it runs.
pub(crate) type Synchronize = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Number of a grace period, in the order in which they begin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ticket(u64);

/// The grace periods of a datapath.
pub(crate) struct Grace {
    state: Mutex<State>,
    ended: Condvar,
    synchronize: Synchronize,
}

#[derive(Default)]
struct State {
    begun: u64,
    ended: u64,
    running: bool,
}

impl Grace {
    /// Waits by replacing the element of an array of maps that is made for this alone.
    pub(crate) fn of_the_kernel() -> Result<Self> {
        const WHAT: &str = "can't make the array of maps that waits for grace periods";
        let inner = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, 4, 4, 1, 0);
        let inner = MapData::create(inner, "grace.inner", None).map_err(|error| map_error(WHAT, error))?;
        let outer = bpf::array_of_maps(inner.fd().as_fd()).map_err(|error| io_error(WHAT, error))?;
        Ok(Self::new(Box::new(move || {
            bpf::map_update(outer.as_fd(), &0u32, &(inner.fd().as_fd().as_raw_fd() as u32), 0)
        })))
    }

    /// Waits by `synchronize`.
    pub(crate) fn new(synchronize: Synchronize) -> Self {
        Self { state: Mutex::default(), ended: Condvar::new(), synchronize }
    }

    /// The first grace period that begins after this call: when it has ended, nobody uses what was gone before the call.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(self.state.lock().begun + 1)
    }

    /// Whether that grace period has ended.
    pub(crate) fn passed(&self, ticket: Ticket) -> bool {
        self.state.lock().ended >= ticket.0
    }

    /// Waits for a whole grace period.
    pub(crate) fn wait(&self) -> io::Result<()> {
        self.wait_for(self.ticket())
    }

    /// Waits until the grace period has ended, running it if nobody does.
    pub(crate) fn wait_for(&self, ticket: Ticket) -> io::Result<()> {
        let mut state = self.state.lock();
        while state.ended < ticket.0 {
            if state.running {
                self.ended.wait(&mut state);
                continue;
            }
            state.running = true;
            state.begun += 1;
            let number = state.begun;
            drop(state);
            let result = (self.synchronize)();
            state = self.state.lock();
            state.running = false;
            if result.is_ok() {
                state.ended = number;
            }
            self.ended.notify_all();
            result?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_ticket_passes_only_with_a_period_that_began_after_it() {
        let grace = Grace::new(Box::new(|| Ok(())));
        let before = grace.ticket();
        grace.wait().unwrap();
        let after = grace.ticket();
        assert!(grace.passed(before));
        assert!(!grace.passed(after));
    }

    #[test]
    fn many_waiters_share_a_period() {
        const WAITERS: usize = 16;
        let (periods, waiters) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counter, all) = (Arc::clone(&periods), Arc::clone(&waiters));
        // No period ends before everyone waits.
        let grace = Grace::new(Box::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            while all.load(Ordering::SeqCst) < WAITERS {
                std::thread::yield_now();
            }
            Ok(())
        }));
        std::thread::scope(|scope| {
            for _ in 0..WAITERS {
                scope.spawn(|| {
                    let ticket = grace.ticket();
                    waiters.fetch_add(1, Ordering::SeqCst);
                    grace.wait_for(ticket).unwrap();
                });
            }
        });
        // One that some of them may have come too late for, and one for all the others.
        assert!(periods.load(Ordering::SeqCst) <= 2, "{periods:?}");
    }

    #[test]
    fn a_failed_wait_is_no_grace_period() {
        let grace = Grace::new(Box::new(|| Err(io::Error::from_raw_os_error(libc::EPERM))));
        let ticket = grace.ticket();
        assert!(grace.wait().is_err());
        assert!(!grace.passed(ticket));
    }
}
