//! What a round of the revalidators costs with many flows: `cargo xtask bench revalidate`.
//!
//! The eBPF datapath in a namespace of its own, a bridge with two tables whose rules force one megaflow per packet, and
//! 200,000 packets that come in by a wire, miss, and are set up one by one as in real life. Then rounds of the two revalidators
//! are timed: one in which nothing has changed, one in which every flow has counted a packet since the last, one that
//! translates every flow again and finds it right, and one that changes every flow's actions.

// For its allocator: the switch is measured with the one that the daemon has.
use vswitchd as _;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dpif::Dpif as _;
use dpif_ebpf::EbpfDpif;
use ofproto::{BridgeSettings, FailMode, Options, PortKind, PortVlan, Switch};
use openflow::{FlowMod, NoPortNames};
use testkit::report::{self, Relation, Results};
use testkit::{Need, Netns, RawSocket, veth_pair};

/// Flows that are set up.
const FLOWS: u32 = 200_000;
/// Packets that are sent before the sender waits for their flows: fewer than a port's credit.
const BURST: u32 = 256;
/// Samples of the cheap rounds.
const MANY: usize = 15;
/// Samples of those that take a while to prepare.
const FEW: usize = 5;
/// Longer than the measuring: no flow gets idle.
const NEVER_MS: u64 = 600_000;

fn main() {
    report::measure(&[Need::Namespaces, Need::Bpf, Need::EbpfObject], |results| {
        measure(results);
        Ok(())
    });
}

fn measure(results: &mut Results) {
    let (host, far) = (Netns::new("reval").expect("a namespace"), Netns::new("far").expect("a namespace"));
    host.silence().expect("a quiet namespace");
    far.silence().expect("a quiet namespace");
    for wire in ["p1", "p2"] {
        veth_pair(&host, wire, &far, wire).expect("a wire");
    }
    let socket = RawSocket::open(&far, "p1").expect("a raw socket");
    let options = dpif_ebpf::Options {
        bpffs: "/run/sluice-test/bpf".into(),
        slots: FLOWS as usize + FLOWS as usize / 8,
        ..dpif_ebpf::Options::default()
    };
    host.run(|| {
        let name = format!("b{}", std::process::id());
        let dpif = Arc::new(EbpfDpif::open(&name, &options).unwrap_or_else(|error| panic!("{error}")));
        let bench = Bench::new(Arc::clone(&dpif), socket);
        let measured = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bench.measure(results)));
        bench.switch.destroy().expect("to destroy the datapath");
        if let Err(panic) = measured {
            std::panic::resume_unwind(panic);
        }
    })
    .expect("to enter the namespace");
    results
        .goal("revalidate-unchanged-ms", "round-unchanged", Relation::AtMost, 60.0)
        .goal("revalidate-translated-ms", "round-translated", Relation::AtMost, 1000.0)
        .goal("revalidate-memory-bytes", "memory-per-flow", Relation::AtMost, 1024.0);
}

struct Bench {
    dpif: Arc<EbpfDpif>,
    switch: Switch,
    socket: RawSocket,
}

impl Bench {
    fn new(dpif: Arc<EbpfDpif>, socket: RawSocket) -> Self {
        let options = Options {
            n_handlers: Some(1),
            n_revalidators: Some(2),
            flow_limit: FLOWS as usize * 2,
            max_idle_ms: NEVER_MS,
            // All are translated however long that takes.
            min_revalidate_pps: 0,
            ..Options::default()
        };
        let switch = Switch::new(Arc::clone(&dpif) as Arc<dyn dpif::Dpif>, options);
        let settings = BridgeSettings { fail_mode: FailMode::Secure, ..BridgeSettings::default() };
        switch.bridge_add("br0", settings).expect("a bridge");
        for port in ["p1", "p2"] {
            switch.port_add("br0", port, PortKind::System, PortVlan::default(), None).expect("a port");
        }
        let bench = Self { dpif, switch, socket };
        bench.flow(
            "udp,actions=move:NXM_OF_IP_SRC[]->NXM_NX_REG0[],move:NXM_OF_UDP_SRC[]->NXM_NX_REG1[0..15],resubmit(,1)",
        );
        bench.flow("table=1,actions=output:2");
        bench.switch.start().expect("to start");
        bench.switch.set_dynamic_flow_limit(FLOWS as usize * 2);
        bench.switch.pause_revalidators();
        bench
    }

    fn flow(&self, text: &str) {
        let flow_mod = FlowMod::parse(text, &NoPortNames).expect("a flow");
        self.switch.flow_mods_apply("br0", &[flow_mod]).expect("to change a flow");
    }

    fn measure(&self, results: &mut Results) {
        // Threads and buffers are there before the memory is looked at.
        self.send(0..BURST);
        self.wait_for(BURST as usize);
        self.switch.purge_flows();
        let before = memory();
        let began = Instant::now();
        self.set_up();
        eprintln!("{FLOWS} flows set up in {:.1} s", began.elapsed().as_secs_f64());
        let flows = self.flows();
        assert!(flows >= FLOWS as usize, "{flows} flows");
        let per_flow = memory().saturating_sub(before) as f64 / flows as f64;
        self.round();

        self.rounds(results, "round-unchanged", MANY, |_| {});
        self.rounds(results, "round-counted", FEW, |_| {
            (0..FLOWS).step_by(BURST as usize).for_each(|at| self.send(at..(at + BURST).min(FLOWS)));
        });
        self.rounds(results, "round-translated", MANY, |i| self.flow(&format!("table=9,priority={i},actions=drop")));
        self.rounds(results, "round-modified", FEW, |i| {
            self.flow(&format!("modify table=1,actions=output:{}", ["LOCAL", "2"][i % 2]));
        });
        assert_eq!(self.flows(), flows, "flows went:\n{}", self.switch.upcall_show());
        let began = Instant::now();
        self.switch.purge_flows();
        results.row("purge", "ms", [began.elapsed().as_secs_f64() * 1e3]);
        results.row("memory-per-flow", "bytes", [per_flow]);
        results.note(format!("{flows} megaflows on the eBPF datapath, two tables, 2 revalidators that are not pinned"));
        results.note(
            "memory-per-flow: anonymous memory of the process with the flows less without; maps of the kernel are none",
        );
        results.note("round-counted: every flow had one packet since the round before; round-modified: every flow changes its output");
        results.note("…-cpu: processor time of all threads for the round above: on a machine that has other work too, the better measure");
        results.note("purge: all flows deleted, with their final statistics");
    }

    /// Times a round each after `prepare`; adds its duration, and what it cost in processor time of all threads.
    fn rounds(&self, results: &mut Results, id: &str, samples: usize, prepare: impl Fn(usize)) {
        let (mut took, mut cost) = (Vec::new(), Vec::new());
        for i in 0..samples {
            prepare(i);
            let before = processor_time();
            took.push(self.round());
            cost.push((processor_time() - before).as_secs_f64() * 1e3);
        }
        eprintln!("{id}: {took:.1?} ms, {cost:.1?} ms of processor time");
        results.row(id, "ms", took);
        results.row(&format!("{id}-cpu"), "ms", cost);
    }

    /// A round now; says how many milliseconds it took.
    fn round(&self) -> f64 {
        // A slow round lowers the limit, and the next would delete instead of doing what is measured.
        self.switch.set_dynamic_flow_limit(FLOWS as usize * 2);
        self.switch.revalidate_now();
        self.switch.upcall_summary().round_us as f64 / 1e3
    }

    fn set_up(&self) {
        let (mut next, until) = (0, Instant::now() + Duration::from_secs(120));
        while self.flows() < FLOWS as usize {
            assert!(Instant::now() < until, "only {} flows after two minutes", self.flows());
            let there = self.flows();
            self.send(next..next + BURST);
            next += BURST;
            self.wait_for(there + BURST as usize);
            // What was lost is sent again.
            if next >= FLOWS {
                next = 0;
            }
        }
    }

    fn flows(&self) -> usize {
        self.dpif.stats().expect("statistics").flows as usize
    }

    /// Waits for so many flows, or until no more come.
    fn wait_for(&self, flows: usize) {
        let until = Instant::now() + Duration::from_millis(20);
        while self.flows() < flows && Instant::now() < until {
            std::thread::yield_now();
        }
    }

    fn send(&self, packets: std::ops::Range<u32>) {
        for i in packets {
            self.socket.send(&packet(i)).expect("to send");
        }
    }
}

/// A UDP packet of 64 bytes of a flow of its own.
fn packet(i: u32) -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    frame[14..26].copy_from_slice(&[0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame[26..30].copy_from_slice(&(0x0a00_0000 + (i >> 10)).to_be_bytes());
    frame[30..34].copy_from_slice(&[10, 1, 0, 1]);
    frame[34..36].copy_from_slice(&(1024 + (i & 1023) as u16).to_be_bytes());
    frame[36..40].copy_from_slice(&[0, 53, 0, 30]);
    frame
}

/// Time that this process's threads have run so far.
fn processor_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("the process's clock");
    Duration::from(time)
}

/// Anonymous memory of this process in bytes.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its anonymous memory");
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).expect("a number") * 1024
}
