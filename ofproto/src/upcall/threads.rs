//! The threads of the upcall engine: how many there are, how they begin and how they end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle, available_parallelism};
use std::time::{Duration, Instant};

use dpif::Features;

use super::handler::Handler;
use super::latch::{Latch, Until};
use super::revalidator::{self, revalidate};
use super::stats::{HandlerReport, HandlerStats, count};
use crate::backer::Backer;
use crate::switch::SwitchError;

/// Threads are given so long to end.
const JOIN: Duration = Duration::from_secs(5);
/// Handlers are given so long to get through their loop, or to the end of their ring.
const SYNCHRONIZE: Duration = Duration::from_secs(2);

/// Between a revalidator's panic and its next attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// Numbers of threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ThreadCounts {
    /// That answer upcalls.
    pub(crate) handlers: u32,
    /// That look after flows.
    pub(crate) revalidators: u32,
    /// The datapath insists on the number of handlers.
    forced: bool,
}

impl ThreadCounts {
    /// The numbers for what was asked for (0: choose) on this machine, within what the datapath insists on or serves at most.
    pub(crate) fn choose(features: &Features, handlers: u32, revalidators: u32) -> Self {
        let cpus = available_parallelism().map_or(1, |n| n.get() as u32);
        let counts = Self::of_cpus(features.required_handlers, handlers, revalidators, cpus);
        Self { handlers: counts.handlers.min(features.max_handlers.unwrap_or(u32::MAX)), ..counts }
    }

    fn of_cpus(required: Option<u32>, handlers: u32, revalidators: u32, cpus: u32) -> Self {
        let cpus = cpus.max(2);
        if let Some(required) = required {
            let handlers = required.max(1);
            let chosen = if required == 0 { cpus } else { required } / 4 + 1;
            let revalidators = if revalidators == 0 { chosen } else { revalidators };
            return Self { handlers, revalidators, forced: true };
        }
        let revalidators = match (revalidators, handlers) {
            (0, 0) => cpus / 4 + 1,
            (0, handlers) => cpus.saturating_sub(handlers).max(1),
            (revalidators, _) => revalidators,
        };
        let handlers = if handlers == 0 { cpus.saturating_sub(revalidators).max(1) } else { handlers };
        Self { handlers, revalidators, forced: false }
    }

    /// Says what the numbers are now.
    pub(crate) fn log(&self, datapath: &str) {
        let Self { handlers, revalidators, forced } = self;
        let what = if *forced { "overriding" } else { "setting" };
        tracing::info!(
            "{datapath}: {what} n-handler-threads to {handlers}, setting n-revalidator-threads to {revalidators}"
        );
    }
}

/// The threads of a switch.
pub(crate) struct Engine {
    counts: ThreadCounts,
    handlers: Vec<HandlerThread>,
    revalidators: Vec<JoinHandle<()>>,
}

struct HandlerThread {
    latch: Arc<Latch>,
    stats: Arc<HandlerStats>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Adopts the flows that are there and starts the threads.
    pub(crate) fn start(backer: &Arc<Backer>, counts: ThreadCounts) -> Result<Self, SwitchError> {
        let failed = |what: &str| {
            let what = format!("{what} of datapath {}", backer.dpif.name());
            move |error| SwitchError::Datapath(what, error)
        };
        revalidator::adopt(backer).map_err(failed("adopting the flows"))?;
        // What ports have lost from here on is told.
        super::loss::look(backer, backer.clock.now_ms());
        backer.dpif.handlers_set(counts.handlers).map_err(failed("setting the handlers"))?;
        backer.stop_revalidator(false);
        let mut engine = Self { counts, handlers: Vec::new(), revalidators: Vec::new() };
        match engine.spawn(backer) {
            Ok(()) => Ok(engine),
            Err(error) => {
                engine.stop(backer);
                Err(error.into())
            }
        }
    }

    fn spawn(&mut self, backer: &Arc<Backer>) -> std::io::Result<()> {
        for id in 0..self.counts.handlers {
            let (latch, stats) = (Arc::new(Latch::new()?), Arc::new(HandlerStats::default()));
            self.handlers.push(HandlerThread { latch: Arc::clone(&latch), stats: Arc::clone(&stats), thread: None });
            let backer = Arc::clone(backer);
            let run = move || {
                supervise(&backer, id, &latch, &stats);
                latch.ended();
            };
            let thread = thread::Builder::new().name(format!("handler{id}")).spawn(run)?;
            if let Some(handler) = self.handlers.last_mut() {
                handler.thread = Some(thread);
            }
        }
        backer.revalidation.hire(self.counts.revalidators.saturating_sub(1));
        for id in 0..self.counts.revalidators {
            let backer = Arc::clone(backer);
            self.revalidators
                .push(thread::Builder::new().name(format!("revalidator{id}")).spawn(move || tend(&backer, id))?);
        }
        Ok(())
    }

    /// The numbers that the threads were started with.
    pub(crate) fn counts(&self) -> ThreadCounts {
        self.counts
    }

    /// Ends the threads and pushes the statistics of all flows a last time. The flows stay. A thread that doesn't end in time is
    /// named and left to itself.
    pub(crate) fn stop(self, backer: &Backer) {
        self.handlers.iter().for_each(|handler| handler.latch.exit());
        backer.stop_revalidator(true);
        backer.revalidation.dismiss();
        let deadline = Instant::now() + JOIN;
        for (id, handler) in self.handlers.into_iter().enumerate() {
            let Some(thread) = handler.thread else { continue };
            if !handler.latch.wait(0, Until::Ended, deadline) {
                tracing::error!("handler{id} has not ended after {} s; it is left behind", JOIN.as_secs());
            } else if thread.join().is_err() {
                tracing::error!("handler{id} had panicked");
            }
            backer.retired.lock().add(&handler.stats.report(id as u32));
        }
        let mut at_rest = true;
        for (id, thread) in self.revalidators.into_iter().enumerate() {
            if !ends_by(&thread, deadline) {
                tracing::error!("revalidator{id} has not ended after {} s; it is left behind", JOIN.as_secs());
                at_rest = false;
            } else if thread.join().is_err() {
                tracing::error!("revalidator{id} had panicked");
            }
        }
        if let Err(error) = backer.dpif.handlers_set(0) {
            tracing::warn!("datapath {} keeps its handlers: {error}", backer.dpif.name());
        }
        // A round that hangs would not let another begin.
        if at_rest {
            revalidate(backer);
        }
    }

    /// Waits until each handler has passed its loop once: whatever it does from now on, it does with what was published
    /// before. `false`: one did not in two seconds.
    pub(crate) fn synchronize(&self) -> bool {
        self.ask(Until::Passed, Instant::now() + SYNCHRONIZE)
    }

    /// Waits until no upcall waits and no handler works, two seconds at most.
    pub(crate) fn drain(&self) -> bool {
        let deadline = Instant::now() + SYNCHRONIZE;
        loop {
            // An answer may send another packet up, to a handler that had nothing to do before.
            let received = self.received();
            if !self.ask(Until::Empty, deadline) {
                return false;
            }
            if self.received() == received {
                return true;
            }
        }
    }

    fn ask(&self, until: Until, deadline: Instant) -> bool {
        let asked: Vec<_> = self.handlers.iter().map(|handler| (&handler.latch, handler.latch.ask())).collect();
        asked.into_iter().all(|(latch, number)| latch.wait(number, until, deadline))
    }

    fn received(&self) -> u64 {
        self.handlers.iter().map(|handler| handler.stats.counters.received.load(Ordering::SeqCst)).sum()
    }

    /// What each handler has counted since it was started.
    pub(crate) fn reports(&self) -> Vec<HandlerReport> {
        self.handlers.iter().enumerate().map(|(id, handler)| handler.stats.report(id as u32)).collect()
    }
}

/// Whether a thread that was told to end does so in time. One that has nothing to do ends at once.
fn ends_by(thread: &JoinHandle<()>, deadline: Instant) -> bool {
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// A handler's thread. One packet must not end it: after a panic it begins anew with the next batch.
fn supervise(backer: &Backer, id: u32, latch: &Latch, stats: &HandlerStats) {
    while !latch.exits() {
        // What the handler had in hand is dropped with it: ukeys take care of themselves, and a panic leaves no lock held.
        let ended = catch_unwind(AssertUnwindSafe(|| Handler::new(backer, id, stats).run(latch)));
        if ended.is_ok() {
            return;
        }
        coverage::inc!("handler_restart");
        count(&stats.counters.restarts);
        // What was received and has no outcome yet.
        let report = stats.report(id);
        let settled: u64 = report.outcomes().iter().map(|(_, n)| n).sum();
        let lost = report.received.saturating_sub(settled);
        stats.counters.lost_in_panic.fetch_add(lost, Ordering::Relaxed);
        tracing::error!("handler{id} panicked with {lost} upcalls in hand, which are lost; it goes on with the next");
    }
}

/// A revalidator's thread. One flow must not end it: after a panic it begins anew, and what it had in hand is for the next round.
fn tend(backer: &Backer, id: u32) {
    let work = || if id == 0 { revalidator::lead(backer) } else { revalidator::follow(backer) };
    while catch_unwind(AssertUnwindSafe(work)).is_err() {
        coverage::inc!("revalidator_restart");
        tracing::error!("revalidator{id} panicked; it begins anew");
        // What panics each time should not do so without a pause.
        thread::sleep(PAUSE);
        backer.wake_revalidator();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_threads_go_by_the_processors_and_by_each_other() {
        // CPUs, required, asked for; handlers and revalidators then.
        for (cpus, required, asked, expected) in [
            (1, None, (0, 0), (1, 1)),
            (2, None, (0, 0), (1, 1)),
            (4, None, (0, 0), (2, 2)),
            (8, None, (0, 0), (5, 3)),
            (52, None, (0, 0), (38, 14)),
            (8, None, (3, 0), (3, 5)),
            (8, None, (0, 2), (6, 2)),
            (8, None, (20, 0), (20, 1)),
            (8, None, (0, 20), (1, 20)),
            (8, None, (2, 9), (2, 9)),
            (8, Some(8), (2, 0), (8, 3)),
            (8, Some(8), (2, 7), (8, 7)),
            (8, Some(1), (0, 0), (1, 1)),
        ] {
            let counts = ThreadCounts::of_cpus(required, asked.0, asked.1, cpus);
            assert_eq!((counts.handlers, counts.revalidators), expected, "{cpus} {required:?} {asked:?}");
            assert_eq!(counts.forced, required.is_some());
        }
    }

    #[test]
    fn a_datapath_gets_no_more_handlers_than_it_serves() {
        let features = |required_handlers| Features { required_handlers, max_handlers: Some(3), ..Features::default() };
        for (required, asked, handlers) in
            [(None, 2, 2), (None, 4, 3), (None, 1000, 3), (Some(2), 9, 2), (Some(5), 0, 3)]
        {
            assert_eq!(ThreadCounts::choose(&features(required), asked, 1).handlers, handlers, "{required:?} {asked}");
        }
        assert!(ThreadCounts::choose(&features(None), 0, 0).handlers <= 3);
    }
}
