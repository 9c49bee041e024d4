//! Our switch on eBPF, in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dpif::Dpif;
use dpif_ebpf::{EbpfDpif, Options as DpOptions};
use ofproto::upcall::{HandlerReport, Latency, Split};
use ofproto::{BridgeSettings, FailMode, Options, PortKind, PortVlan, Switch};
use openflow::{FlowMod, NoPortNames};
use testkit::Netns;

use crate::gate::Gated;
use crate::generator::{Generator, Wires, pin};
use crate::{RULE, Subject};

/// The CPU that its threads run on.
const CPU: usize = 1;
/// Upcalls that wait before a handler begins: fewer than a port's credit.
const WAITING: u32 = 1_000;
/// How long the measuring thread sleeps between two looks at the handler's counters: under a hundredth of what is measured.
const GLANCE: Duration = Duration::from_micros(20);
/// Flows that there may be: fewer than the dynamic flow limit begins with.
const MOST: usize = 9_000;

pub(crate) struct Ours {
    dpif: Arc<Gated>,
    switch: Switch,
    pub(crate) wires: Wires,
    _netns: Netns,
}

impl Ours {
    pub(crate) fn start() -> Self {
        let netns = Netns::new("bench-ours").expect("a network namespace");
        let wires = Wires::to(&netns, "bench-hosts");
        let options = DpOptions { bpffs: "/run/sluice-test/bpf".into(), ..DpOptions::default() };
        let name = format!("t{}-bench", std::process::id());
        let (dpif, switch) = netns
            .run(|| {
                pin(CPU);
                let dpif = Arc::new(Gated::new(EbpfDpif::open(&name, &options).expect("a datapath")));
                let options = Options { n_handlers: Some(1), n_revalidators: Some(1), ..Options::default() };
                let switch = Switch::new(Arc::clone(&dpif) as Arc<dyn Dpif>, options);
                let settings = BridgeSettings { fail_mode: FailMode::Secure, ..BridgeSettings::default() };
                switch.bridge_add("br0", settings).expect("a bridge");
                for name in ["v1", "v2"] {
                    switch.port_add("br0", name, PortKind::System, PortVlan::default(), None).expect("a port");
                }
                let rule = FlowMod::parse(RULE, &NoPortNames).expect("a rule");
                switch.flows_replace("br0", Some(&[rule])).expect("a table");
                switch.start().expect("to start");
                (dpif, switch)
            })
            .expect("to enter the namespace");
        Self { dpif, switch, wires, _netns: netns }
    }

    fn report(&self) -> HandlerReport {
        self.switch.handler_reports().into_iter().next().expect("a handler")
    }

    pub(crate) fn latency(&self) -> Latency {
        self.report().latency
    }

    /// Lets all flows go if those of another measurement don't fit in beside them.
    fn make_room(&mut self) {
        if self.flows() + WAITING as usize > MOST {
            self.flush();
        }
    }

    /// Flows per second of a handler that finds its ring full, and has its CPU to itself but for the revalidator.
    pub(crate) fn handler_alone(&mut self, generator: &mut Generator) -> f64 {
        self.make_room();
        generator.drain();
        let before = self.report();
        let gate = self.dpif.gate.write();
        generator.fill(WAITING);
        let began = Instant::now();
        drop(gate);
        let done = |report: &HandlerReport| report.executed - before.executed + report.execute_failed;
        let deadline = began + Duration::from_secs(5);
        // Asleep: who spins on the other CPU takes half a core from the handler where both are one core's threads.
        while done(&self.report()) < u64::from(WAITING) && Instant::now() < deadline {
            std::thread::sleep(GLANCE);
        }
        let took = began.elapsed();
        let received = generator.drain();
        assert_eq!((received, self.report().installed - before.installed), (WAITING, u64::from(WAITING)));
        f64::from(WAITING) / took.as_secs_f64()
    }

    /// Nanoseconds per packet of each part.
    pub(crate) fn split(&mut self, generator: &mut Generator) -> Vec<(&'static str, f64)> {
        let parts = |split: Split| {
            [split.packets, split.receive, split.decode, split.translate, split.ukey, split.finish]
                .map(|part| part as f64)
        };
        let mut total = [0.0; 6];
        self.dpif.timed.store(true, Ordering::Relaxed);
        for _ in 0..10 {
            // A flush makes the handlers anew, and they count from nothing.
            self.make_room();
            let before = parts(self.report().split);
            self.handler_alone(generator);
            for ((sum, now), before) in total.iter_mut().zip(parts(self.report().split)).zip(before) {
                *sum += now - before;
            }
        }
        self.dpif.timed.store(false, Ordering::Relaxed);
        let [packets, receive, decode, translate, ukey, finish] = total;
        let mean =
            |sum: &[AtomicU64; 2]| sum[0].load(Ordering::Relaxed) as f64 / sum[1].load(Ordering::Relaxed).max(1) as f64;
        vec![
            ("receive", receive / packets),
            ("decode", decode / packets),
            ("translate", translate / packets),
            ("ukey", ukey / packets),
            ("put", mean(&self.dpif.puts)),
            ("execute", mean(&self.dpif.executes)),
            ("finish", finish / packets),
        ]
    }
}

impl Subject for Ours {
    fn flush(&mut self) {
        // Threads are made anew, on the CPU of whoever makes them.
        std::thread::scope(|scope| {
            let flush = || {
                pin(CPU);
                self.switch.flush().expect("to flush");
            };
            scope.spawn(flush).join().expect("to flush");
        });
    }

    fn name(&self) -> &'static str {
        "ours"
    }

    fn flows(&self) -> usize {
        self.dpif.stats().expect("statistics").flows as usize
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if let Err(error) = self.switch.destroy() {
            eprintln!("the datapath is left: {error}");
        }
    }
}
