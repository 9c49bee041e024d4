//! What a new flow costs: `cargo xtask bench upcall`.
//!
//! A neighbour sends 64-byte UDP packets, each of a flow of its own, over a veth pair to the switch, which sends them on over
//! another, where the neighbour receives them. The rule reads both UDP ports whole, so that each packet needs its own
//! megaflow. The same is done with the reference's daemon and its userspace datapath, and with ours on eBPF, round by round in
//! turn. The neighbour runs on CPU 0, the switch (handlers, revalidators, or the reference's daemon) on CPU 1; the eBPF
//! program of a packet's arrival runs on the sender's CPU, as it does on a host.

// For its allocator: the switch is measured with the one that the daemon has.
use vswitchd as _;

mod gate;
mod generator;
mod ours;
mod reference;

use std::time::Duration;

use generator::Generator;
use testkit::report::{self, Relation, Results};
use testkit::{Need, wait_until};

/// The rule: what it writes into a register nobody reads, but it has read the ports.
pub(crate) const RULE: &str = "in_port=1,udp,actions=move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],\
                               move:NXM_OF_UDP_DST[]->NXM_NX_REG1[0..15],output:2";
/// Rounds that count.
const ROUNDS: usize = 5;
/// Flows of a round: fewer than the dynamic flow limit begins with.
const FLOWS: u32 = 6_000;
/// Flows of a round one at a time.
const SINGLE: u32 = 1_500;
/// Packets on their way at a time.
const WINDOW: u32 = 64;

/// What carries the packets.
pub(crate) trait Subject {
    /// Deletes all flows of the datapath.
    fn flush(&mut self);
    /// Flows in the datapath.
    fn flows(&self) -> usize;
    /// What it is called.
    fn name(&self) -> &'static str;
}

fn main() {
    let mut needs = vec![Need::Namespaces, Need::Bpf, Need::EbpfObject];
    needs
        .extend(["ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl", "ovs-appctl"].map(Need::Tool));
    report::measure(&needs, |results| {
        measure(results);
        Ok(())
    });
}

/// Samples of one switch.
#[derive(Default)]
struct Samples {
    window: Vec<f64>,
    single: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    lost: Vec<f64>,
}

impl Samples {
    fn round(&mut self, subject: &mut dyn Subject, generator: &mut Generator) {
        // The forwarding of what is known, warm.
        subject.flush();
        let run = generator.windowed(FLOWS, WINDOW);
        let enough = || subject.flows() * 50 >= run.received as usize * 49;
        if !wait_until(Duration::from_secs(1), enough) {
            let (name, flows) = (subject.name(), subject.flows());
            panic!("{name}: {flows} flows for {} packets: what is measured is not a set-up each", run.received);
        }
        eprintln!("  {}: {} received, {} lost in {:?}", subject.name(), run.received, run.lost, run.took);
        self.window.push(f64::from(run.received) / run.took.as_secs_f64());
        self.lost.push(f64::from(run.lost));
        subject.flush();
        let mut times = generator.one_by_one(SINGLE);
        times.sort_unstable();
        let at = |thousandth: usize| {
            let time = times.get(times.len() * thousandth / 1000);
            time.map_or(f64::NAN, |time| time.as_nanos() as f64 / 1000.0)
        };
        let total: Duration = times.iter().sum();
        let (name, mean, most) = (subject.name(), total / SINGLE, times.last().copied().unwrap_or_default());
        eprintln!(
            "  {name}: one at a time: mean {mean:?}, 5 % {}, half {}, 99 % {}, 99.9 % {} us, most {most:?}",
            at(50),
            at(500),
            at(990),
            at(999)
        );
        self.single.push(times.len() as f64 / total.as_secs_f64());
        self.p50.push(at(500));
        self.p99.push(at(990));
    }

    fn median(samples: &[f64]) -> f64 {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Lets this process, and all that it starts, go before other work of the machine: a new packet's way is two wake-ups, and a
/// scheduler that shares may let each wait for milliseconds.
fn take_precedence(results: &mut Results) {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is that of the live `parameter`.
    let real_time = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) } == 0;
    let scheduler = if real_time { "SCHED_FIFO" } else { "the usual scheduler" };
    results.note(format!("both switches and the neighbour under {scheduler}"));
}

fn measure(results: &mut Results) {
    take_precedence(results);
    if std::env::args().nth(1).as_deref() == Some("core") {
        // For who profiles: our part alone.
        let mut ours = ours::Ours::start();
        let mut generator = Generator::new(&ours.wires);
        results.row(
            "handler-core",
            "flows/s",
            (0..std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(20))
                .map(|_| ours.handler_alone(&mut generator)),
        );
        for (name, ns) in ours.split(&mut generator) {
            results.row(&format!("cost-{name}"), "ns", [ns]);
        }
        return;
    }
    let mut reference = reference::Reference::start();
    let mut ours = ours::Ours::start();
    let mut peer = Generator::new(&reference.wires);
    let mut generator = Generator::new(&ours.wires);
    let (mut theirs, mut mine) = (Samples::default(), Samples::default());
    for round in 0..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}{}", if round == 0 { " (warming up)" } else { "" });
        theirs.round(&mut reference, &mut peer);
        mine.round(&mut ours, &mut generator);
        if round == 0 {
            (theirs, mine) = (Samples::default(), Samples::default());
        }
    }
    let half = Samples::median(&mine.window) / 2.0;
    let mut lost_at_half = Vec::new();
    let mut p50_at_half = Vec::new();
    for _ in 0..3 {
        ours.flush();
        let before = ours.latency();
        let run = generator.paced(FLOWS, half);
        lost_at_half.push(f64::from(run.lost));
        p50_at_half.push(ours.latency().since(&before).quantile(0.5) as f64 / 1000.0);
    }
    drop(reference);
    let mut core = Vec::new();
    for round in 0..=ROUNDS {
        let rate = ours.handler_alone(&mut generator);
        if round > 0 {
            core.push(rate);
        }
    }
    let split = ours.split(&mut generator);

    let ratio = |ours: &[f64], theirs: &[f64]| ours.iter().zip(theirs).map(|(a, b)| a / b).collect::<Vec<_>>();
    results
        .row("window-ratio", "", ratio(&mine.window, &theirs.window))
        .row("single-ratio", "", ratio(&mine.single, &theirs.single))
        .row("first-packet-ratio", "", ratio(&mine.p50, &theirs.p50))
        .row("window-ours", "flows/s", mine.window)
        .row("window-reference", "flows/s", theirs.window)
        .row("single-ours", "flows/s", mine.single)
        .row("single-reference", "flows/s", theirs.single)
        .row("first-packet-ours", "us", mine.p50)
        .row("first-packet-reference", "us", theirs.p50)
        .row("first-packet-p99-ours", "us", mine.p99)
        .row("first-packet-p99-reference", "us", theirs.p99)
        .row("window-lost-ours", "packets", mine.lost)
        .row("window-lost-reference", "packets", theirs.lost)
        .row("half-load-lost", "packets", lost_at_half)
        .row("half-load-ring-to-executed-p50", "us", p50_at_half)
        .row("handler-core", "flows/s", core);
    for (name, ns) in split {
        results.row(&format!("cost-{name}"), "ns", [ns]);
    }
    results
        .goal("upcall-window-ratio", "window-ratio", Relation::AtLeast, 1.0)
        .goal("upcall-single-ratio", "single-ratio", Relation::AtLeast, 1.5)
        .goal("upcall-first-packet-ratio", "first-packet-ratio", Relation::AtMost, 0.7)
        .goal("upcall-half-load-lost", "half-load-lost", Relation::AtMost, 0.0)
        .goal("upcall-handler-core", "handler-core", Relation::AtLeast, 150_000.0)
        .goal("upcall-handler-core-stretch", "handler-core", Relation::AtLeast, 300_000.0);
    results.note(
        "64-byte UDP packets, each of a new flow; the rule reads both ports, so each packet gets its own megaflow",
    );
    results.note("sender and receiver on CPU 0; all of the switch's threads on CPU 1 (1 handler, 1 revalidator; the reference's daemon whole), which receives for the neighbour's stack too");
    results.note(format!("window: {WINDOW} packets in flight, {FLOWS} flows a round; single: one at a time, {SINGLE} a round; both switches in turn"));
    results.note("handler-core: a ring filled while nobody receives, then emptied by one handler with nothing else to do; from the first record to the last executed packet");
    results.note("cost: per packet of such a run, with a clock read between the parts");
}
