//! What the threads of a switch share: the datapath, the published configuration, and the megaflows that are installed.
//!
//! **Generations.** Whatever a translation depends on and that changes (configuration, learned addresses) changes first and
//! counts the generation up then. Whoever translates reads the generation *before* anything else, and a megaflow remembers it.
//! So a megaflow of the current generation was translated from nothing older; one of another generation may have been, and a
//! revalidator translates it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use dpif::{Dpif, Features};
use parking_lot::{Condvar, Mutex};

use crate::bridge::Config;
use crate::clock::Clock;
use crate::export::Exporter;
use crate::packet_in::PacketInSink;
use crate::upcall::{Caps, Census, FlowLimit, HandlerReport, LossWatch, RecentMasks, UkeyTable, Warnings};

/// What the threads of a switch share.
pub(crate) struct Backer {
    pub(crate) dpif: Arc<dyn Dpif>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) schedule: fn(bool),
    limits: ArcSwap<Limits>,
    config: ArcSwap<Config>,
    /// What the datapath can do: the same as in every configuration.
    pub(crate) features: Arc<Features>,
    /// Held while a new configuration is made.
    writer: Mutex<()>,
    generation: AtomicU64,
    pub(crate) ukeys: UkeyTable,
    pub(crate) census: Census,
    sinks: ArcSwap<Sinks>,
    pub(crate) recent: RecentMasks,
    pub(crate) adapted_limit: FlowLimit,
    pub(crate) losses: LossWatch,
    pub(crate) warnings: Warnings,
    revalidator: Mutex<RevalidatorState>,
    wake: Condvar,
    /// The revalidator's thread has fallen asleep.
    rest: Condvar,
    pub(crate) revalidation: crate::upcall::Revalidation,
    /// What handlers have counted that have ended.
    pub(crate) retired: Mutex<HandlerReport>,
}

/// Where packets go that come up for somebody else than the switch.
#[derive(Clone, Default)]
pub(crate) struct Sinks {
    pub(crate) packet_in: Option<Arc<dyn PacketInSink>>,
    pub(crate) exporter: Option<Arc<dyn Exporter>>,
}

/// Limits of the upcall engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) flow_limit: usize,
    pub(crate) caps: Caps,
    pub(crate) max_idle_ms: u64,
    pub(crate) max_revalidator_ms: u64,
    pub(crate) min_revalidate_pps: u64,
    pub(crate) megaflows: bool,
}

#[derive(Default)]
struct RevalidatorState {
    wanted: bool,
    stop: bool,
    /// The thread sleeps until a pass is due.
    asleep: bool,
}

impl Backer {
    pub(crate) fn new(dpif: Arc<dyn Dpif>, clock: Arc<dyn Clock>, limits: Limits, schedule: fn(bool)) -> Self {
        let features = Arc::new(dpif.features());
        Self {
            dpif,
            clock,
            schedule,
            limits: ArcSwap::from_pointee(limits),
            config: ArcSwap::from_pointee(Config::of(Arc::clone(&features))),
            features,
            writer: Mutex::new(()),
            // 0 is the generation of what has never been translated.
            generation: AtomicU64::new(1),
            ukeys: UkeyTable::default(),
            census: Census::default(),
            sinks: ArcSwap::default(),
            recent: RecentMasks::default(),
            adapted_limit: FlowLimit::default(),
            losses: LossWatch::default(),
            warnings: Warnings::default(),
            revalidator: Mutex::default(),
            wake: Condvar::new(),
            rest: Condvar::new(),
            revalidation: crate::upcall::Revalidation::default(),
            retired: Mutex::default(),
        }
    }

    /// The limits of the upcall engine.
    pub(crate) fn limits(&self) -> Limits {
        **self.limits.load()
    }

    /// Where they are read, for who reads them often.
    pub(crate) fn limits_source(&self) -> &ArcSwap<Limits> {
        &self.limits
    }

    /// Changes them.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
        // Whether flows are wide is among them.
        coverage::inc!("rev_reconfigure");
        self.changed();
    }

    /// Megaflows that may be installed: the operator's limit, or what the revalidator copes with.
    pub(crate) fn flow_limit(&self) -> usize {
        self.adapted_limit.adapted().min(self.limits().flow_limit)
    }

    /// Where packets go that come up for somebody else.
    pub(crate) fn sinks(&self) -> arc_swap::Guard<Arc<Sinks>> {
        self.sinks.load()
    }

    /// Changes that. No handler uses what there was before once it has passed its loop.
    pub(crate) fn set_sinks(&self, change: impl Fn(&mut Sinks)) {
        self.sinks.rcu(|sinks| {
            let mut sinks = Sinks::clone(sinks);
            change(&mut sinks);
            sinks
        });
    }

    /// The published configuration.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// The generation; read it before what a translation depends on.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Makes another configuration from the published one and publishes it, unless `change` fails.
    pub(crate) fn update<T, E>(&self, change: impl FnOnce(&mut Config) -> Result<T, E>) -> Result<T, E> {
        let _writer = self.writer.lock();
        let mut config = Config::clone(&self.config.load());
        let done = change(&mut config)?;
        self.config.store(Arc::new(config));
        self.changed();
        Ok(done)
    }

    /// Something that translations depend on has changed: all megaflows are to be looked at again.
    pub(crate) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.wake_revalidator();
    }

    /// An address was learned, moved or forgotten, which changes translations.
    pub(crate) fn learned(&self) {
        coverage::inc!("rev_mac_learning");
        self.changed();
    }

    /// Lets a revalidator begin a pass now.
    pub(crate) fn wake_revalidator(&self) {
        self.revalidator.lock().wanted = true;
        self.wake.notify_one();
    }

    /// Waits until a pass is due. `false`: the revalidator is to end.
    pub(crate) fn wait_for_pass(&self, at_most: Duration) -> bool {
        let mut state = self.revalidator.lock();
        if !state.wanted && !state.stop {
            state.asleep = true;
            self.rest.notify_all();
            self.wake.wait_for(&mut state, at_most);
            state.asleep = false;
        }
        state.wanted = false;
        !state.stop
    }

    /// Waits until the revalidator's thread has done the passes that it was woken for, `at_most` so long.
    pub(crate) fn await_rest(&self, at_most: Duration) {
        let mut state = self.revalidator.lock();
        let until = std::time::Instant::now() + at_most;
        while (state.wanted || !state.asleep) && !state.stop {
            if self.rest.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    /// Lets the revalidator end, or (`false`) begin anew.
    pub(crate) fn stop_revalidator(&self, stop: bool) {
        self.revalidator.lock().stop = stop;
        self.wake.notify_all();
        // Nobody waits for the rest of who has none.
        self.rest.notify_all();
    }
}
