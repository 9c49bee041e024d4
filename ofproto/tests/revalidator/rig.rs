//! A switch on the in-process datapath between which and the switch a test can step in.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dpif::inproc::{InprocDatapath, InprocPort, Options as DpOptions};
use dpif::layer::{Layer, one_by_one};
use dpif::{Dpif, DpifError, DpifOp, FlowPut, FlowStats, PutMode, Result, Ufid};
use ofproto::{BridgeSettings, Clock, FailMode, ManualClock, Options, PortKind, PortVlan, Switch};
use openflow::{FlowMod, NoPortNames};
use parking_lot::{Mutex, MutexGuard};

/// A datapath with its whims.
pub(crate) struct Between {
    pub(crate) dp: InprocDatapath,
    clock: ManualClock,
    /// Milliseconds that a dump takes.
    pub(crate) dump_takes: AtomicU64,
    /// Flows that dumps don't show.
    pub(crate) hidden: Mutex<HashSet<Ufid>>,
    /// Dumps end with an error.
    pub(crate) dump_fails: Mutex<bool>,
    /// Flows can't be modified.
    pub(crate) modify_fails: Mutex<bool>,
    /// Each flow is dumped so often.
    pub(crate) copies: AtomicUsize,
    /// Parts that a dump comes in, and the threads that read them.
    pub(crate) parts: AtomicUsize,
    pub(crate) readers: Mutex<HashSet<std::thread::ThreadId>>,
    /// A part is read only when so many threads are there for it, or none comes.
    pub(crate) crowd: AtomicUsize,
}

impl Layer for Between {
    fn below(&self) -> &dyn Dpif {
        &self.dp
    }

    fn flow_put(&self, put: &FlowPut) -> Result<()> {
        if put.mode == PutMode::Modify && *self.modify_fails.lock() {
            return Err(DpifError::Invalid("the test says no".into()));
        }
        self.dp.flow_put(put)
    }

    fn operate(&self, ops: &mut [DpifOp<'_>]) {
        one_by_one(self, ops);
    }

    fn flow_dump_parts(&self) -> usize {
        self.parts.load(Ordering::SeqCst)
    }

    fn flow_dump_stats_part(&self, part: usize, flows: &mut Vec<(Ufid, FlowStats)>) -> Result<()> {
        self.wait_for_company();
        if part == 0 {
            self.clock.advance_ms(self.dump_takes.load(Ordering::SeqCst));
        }
        let hidden = self.hidden.lock().clone();
        let parts = Layer::flow_dump_parts(self) as u128;
        self.dp.flow_dump_stats(&mut |ufid, stats| {
            if ufid.0 % parts == part as u128 && !hidden.contains(&ufid) {
                flows.extend(std::iter::repeat_n((ufid, stats), self.copies.load(Ordering::SeqCst)));
            }
            true
        })?;
        if *self.dump_fails.lock() { Err(DpifError::Invalid("the test says no".into())) } else { Ok(()) }
    }
}

impl Between {
    fn wait_for_company(&self) {
        self.readers.lock().insert(std::thread::current().id());
        let wanted = self.crowd.load(Ordering::SeqCst);
        for _ in 0..2000 {
            if self.readers.lock().len() >= wanted {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// A switch with one bridge whose revalidators work only when they are told to.
pub(crate) struct Rig {
    pub(crate) between: Arc<Between>,
    pub(crate) switch: Switch,
    pub(crate) clock: ManualClock,
    pub(crate) ports: Vec<InprocPort>,
}

/// Counters are the process's: one test at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock()
}

impl Rig {
    /// With these flows and three ports.
    pub(crate) fn new(flows: &[&str]) -> Self {
        Self::with(flows, |_| {})
    }

    pub(crate) fn with(flows: &[&str], change: impl FnOnce(&mut Options)) -> Self {
        let clock = ManualClock::new(1_000_000);
        let dp_clock = clock.clone();
        let mut dp_options = DpOptions::new("ovs-netdev");
        dp_options.clock = Arc::new(move || dp_clock.now_ms() * 1_000_000);
        let between = Arc::new(Between {
            dp: InprocDatapath::with_options(dp_options),
            clock: clock.clone(),
            dump_takes: AtomicU64::new(0),
            hidden: Mutex::default(),
            dump_fails: Mutex::default(),
            modify_fails: Mutex::default(),
            copies: AtomicUsize::new(1),
            parts: AtomicUsize::new(1),
            readers: Mutex::default(),
            crowd: AtomicUsize::new(0),
        });
        let rig = Self::over(between, clock, flows, change);
        rig.switch.start().unwrap();
        rig.switch.pause_revalidators();
        rig
    }

    /// A switch that is not started, over a datapath that may have flows.
    pub(crate) fn over(
        between: Arc<Between>,
        clock: ManualClock,
        flows: &[&str],
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let mut options = Options { clock: Arc::new(clock.clone()), n_handlers: Some(1), ..Options::default() };
        change(&mut options);
        let switch = Switch::new(Arc::clone(&between) as Arc<dyn Dpif>, options);
        let settings = BridgeSettings { fail_mode: FailMode::Secure, ..BridgeSettings::default() };
        switch.bridge_add("br0", settings).unwrap();
        let ports = ["p1", "p2", "p3"].map(|port| {
            switch.port_add("br0", port, PortKind::System, PortVlan::default(), None).unwrap();
            between.dp.port_by_name(port).unwrap()
        });
        let rig = Self { between, switch, clock, ports: ports.into() };
        rig.flows(flows);
        rig
    }

    /// Replaces the flows.
    pub(crate) fn flows(&self, text: &[&str]) {
        let mods: Vec<_> = text.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect();
        self.switch.flows_replace("br0", Some(&mods)).unwrap();
    }

    /// Changes them by one flow mod.
    pub(crate) fn flow_mod(&self, text: &str) {
        self.switch.flow_mods_apply("br0", &[FlowMod::parse(text, &NoPortNames).unwrap()]).unwrap();
    }

    /// A frame comes in by port 1, and its upcall, if any, is answered. No round runs.
    pub(crate) fn send(&self, frame: &[u8]) {
        self.ports[0].send(frame).unwrap();
        self.switch.await_upcalls();
    }

    /// What came out of a port.
    pub(crate) fn received(&self, port: usize) -> usize {
        std::iter::from_fn(|| self.ports[port - 1].recv()).count()
    }

    /// A round now, `ms` milliseconds later.
    pub(crate) fn round_after(&self, ms: u64) {
        self.clock.advance_ms(ms);
        self.switch.revalidate_now();
    }

    /// Ids of the flows in the datapath.
    pub(crate) fn ufids(&self) -> Vec<Ufid> {
        self.switch.flows_of_datapath().unwrap().iter().map(|flow| flow.ufid).collect()
    }

    /// Ukeys.
    pub(crate) fn ukeys(&self) -> usize {
        self.switch.upcall_summary().current
    }

    /// `n_packets` of the only rule whose text has `what` in it.
    pub(crate) fn packets(&self, what: &str) -> u64 {
        let dump = self.switch.dump_flows("br0").unwrap();
        let lines: Vec<_> = dump.lines().filter(|line| line.contains(what)).collect();
        let [line] = lines.as_slice() else { panic!("{what} is not in one line of\n{dump}") };
        let count = line.split("n_packets=").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
        count.parse().unwrap()
    }
}

/// How often something is counted while `work` runs.
pub(crate) fn counted(name: &str, work: impl FnOnce()) -> u64 {
    let before = coverage::total(name).unwrap_or_else(|| panic!("there is no counter {name}"));
    work();
    coverage::total(name).unwrap() - before
}
