//! What a packet costs in the eBPF datapath: `cargo xtask bench datapath`.
//!
//! The TC program and the XDP hook run under `BPF_PROG_TEST_RUN`, on a datapath of the real backend with real ports; the kernel repeats the
//! program on one packet and says the mean. What an empty program of the hook takes in the same round is subtracted, sample by sample.
//! All measurements are taken in turn, round by round, so that a machine that changes its pace does so to all of them.
//!
//! `SLUICE_BENCH_ONLY` measures only what has this in its name, and not the verifier.
//!
//! A repeated run gets the packet as the run before has left it. Where a flow changes the packet there are two flows, each
//! making the other's packet: every run does the whole work.

#[path = "common/keys.rs"]
mod keys;
#[path = "../tests/common/object.rs"]
mod object;
#[path = "../tests/differential/rig.rs"]
mod rig;

use std::time::Instant;

use aya::programs::Program as AyaProgram;
use aya::{EbpfLoader, VerifierLogLevel};
use datapath_common::needs;
use datapath_common::{Be16, Be32, FlowKey, Vlan};
use dpif::{Action, Dpif as _, FlowPut, KeyAttr, OdpPort, PutMode, SetAction, Ufid, UpcallBatch};
use keys::{key, usual_mask};
use rig::{Arrival, Rig, SHOT, XDP_REDIRECT};
use testkit::Need;
use testkit::bpf::{Hook, Program};
use testkit::report::{self, Relation, Results};

/// Samples of each measurement.
const SAMPLES: usize = 15;
/// Runs of a sample.
const RUNS: u32 = 200_000;
/// Upcalls that are made before they are consumed: fewer than a port's credit.
const UPCALLS: u32 = 512;
/// Masks between which the cost of one more is measured.
const FEW_MASKS: usize = 8;
const MANY_MASKS: usize = 128;

fn main() {
    report::measure(&[Need::Namespaces, Need::Bpf, Need::EbpfObject], |results| {
        Rig::with("bench", |rig| {
            rig.enable_xdp();
            results.note(calm_down());
            measure(rig, results);
        });
        if only().is_empty() {
            verifier(results);
        }
        results
            .goal("tc-one-mask-ns", "tc-one-mask", Relation::AtMost, 65.0)
            .goal("tc-32-masks-warm-ns", "tc-32-masks-warm", Relation::AtMost, 110.0)
            .goal("tc-one-more-mask-ns", "tc-one-more-mask", Relation::AtMost, 25.0)
            .goal("tc-nat-ns", "tc-nat", Relation::AtMost, 80.0)
            .goal("tc-recirc-3-ns", "tc-recirc-3", Relation::AtMost, 160.0)
            .goal("xdp-one-mask-ns", "xdp-one-mask", Relation::AtMost, 55.0)
            .goal("tc-special-one-mask-ns", "tc-special-one-mask", Relation::AtMost, 45.0)
            .goal("xdp-special-one-mask-ns", "xdp-special-one-mask", Relation::AtMost, 35.0)
            .goal("tc-special-200-masks-ns", "tc-special-200-masks-warm", Relation::AtMost, 55.0)
            .goal("tc-special-nat-ns", "tc-special-nat", Relation::AtMost, 80.0)
            .goal("tc-special-recirc-3-ns", "tc-special-recirc-3", Relation::AtMost, 160.0);
        Ok(())
    });
}

/// One thing to measure: flows to install, and the packet.
struct Case {
    id: &'static str,
    flows: Vec<FlowPut>,
    arrival: Arrival,
    verdict: u32,
    kind: Kind,
    /// In front of the general program is one that is specialised in the flows.
    special: bool,
}

#[derive(PartialEq)]
enum Kind {
    /// Runs as they are.
    Plain,
    /// Runs in small batches, between which the upcalls are consumed.
    Upcalls,
    /// Runs in the XDP hook.
    Xdp,
}

/// What is in the names of the only measurements that are wanted.
fn only() -> String {
    std::env::var("SLUICE_BENCH_ONLY").unwrap_or_default()
}

fn measure(rig: &mut Rig, results: &mut Results) {
    let only = only();
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.id.contains(&only)).collect();
    assert!(!cases.is_empty(), "no measurement has {only} in its name");
    let (empty, empty_xdp) = (BareProgram::empty(Hook::Tc), BareProgram::empty(Hook::Xdp));
    let (bare, bare_xdp) = (BareProgram::redirect(Hook::Tc), BareProgram::redirect(Hook::Xdp));
    let mut samples: Vec<Vec<f64>> = cases.iter().map(|_| Vec::new()).collect();
    let (mut empties, mut empties_xdp) = (Vec::new(), Vec::new());
    let (mut bares, mut bares_xdp) = (Vec::new(), Vec::new());
    for round in 0..=SAMPLES {
        eprintln!("round {round} of {SAMPLES}{}", if round == 0 { " (warming up)" } else { "" });
        let (base, base_xdp) = (empty.run(&cases[0].arrival), empty_xdp.run(&cases[0].arrival));
        let (redirect, redirect_xdp) = (bare.run(&cases[0].arrival) - base, bare_xdp.run(&cases[0].arrival) - base_xdp);
        let mut taken = Vec::new();
        for case in &cases {
            rig.dpif.flow_flush().expect("to flush");
            for flow in &case.flows {
                rig.dpif.flow_put(flow).unwrap_or_else(|error| panic!("{}: {error}", case.id));
            }
            // Off first: what packets of other cases have shown of it is forgotten.
            rig.specialise(false);
            rig.specialise(case.special);
            taken.push(sample(rig, case) - if case.kind == Kind::Xdp { base_xdp } else { base });
        }
        if round > 0 {
            empties.push(base);
            empties_xdp.push(base_xdp);
            bares.push(redirect);
            bares_xdp.push(redirect_xdp);
            samples.iter_mut().zip(taken).for_each(|(samples, sample)| samples.push(sample));
        }
    }
    let mut slopes = (Vec::new(), Vec::new());
    for (case, samples) in cases.iter().zip(samples) {
        match case.id {
            "miss-few-masks" => slopes.0 = samples,
            "miss-many-masks" => slopes.1 = samples,
            id => {
                results.row(id, "ns", samples);
            }
        }
    }
    let slope = slopes.0.iter().zip(&slopes.1).map(|(few, many)| (many - few) / (MANY_MASKS - FEW_MASKS) as f64);
    results.row("tc-one-more-mask", "ns", slope);
    results.row("tc-bare", "ns", bares);
    results.row("xdp-bare", "ns", bares_xdp);
    results.row("empty-program", "ns", empties);
    results.row("empty-xdp-program", "ns", empties_xdp);
    results.note(
        "ns per packet less the empty program's of the hook in the same round (rows empty-program, empty-xdp-program)",
    );
    results.note(format!(
        "{SAMPLES} samples of {RUNS} runs each; output is a redirect, whose sending is not part of a test run"
    ));
    results.note(format!(
        "tc-one-more-mask: a packet that no flow matches over {FEW_MASKS} and {MANY_MASKS} masks, nobody taking upcalls"
    ));
    results.note(format!("tc-miss-upcall: in batches of {UPCALLS}, consumed in between; the consuming is not counted"));
    results.note("tc-bare, xdp-bare: a program that redirects everything, unseen");
    results.note("special: with a program in front that is specialised in the flows; ipv6 and unfit are packets that it gives up");
    results.note("tc-nat: sets Ethernet addresses, IPv4 source, TTL and TCP source port, checksums included; two flows take turns");
}

fn sample(rig: &mut Rig, case: &Case) -> f64 {
    rig.dpif.handlers_set(u32::from(case.kind == Kind::Upcalls)).expect("to set the handlers");
    let check = |rig: &mut Rig, repeat| {
        let ran = match case.kind {
            Kind::Xdp => rig.run_xdp(&case.arrival, repeat),
            Kind::Plain | Kind::Upcalls => rig.run(&case.arrival, repeat),
        };
        assert_eq!(ran.verdict, case.verdict, "{}", case.id);
        ran.ns as f64
    };
    // Caches are warm, and what was measured is what was meant.
    check(rig, 1000.min(UPCALLS));
    if case.kind != Kind::Upcalls {
        return check(rig, RUNS);
    }
    let mut batch = UpcallBatch::default();
    let lost = rig.dpif.stats().expect("statistics").lost;
    let mut total = 0.0;
    let batches = RUNS.div_ceil(UPCALLS);
    let mut consume = |rig: &Rig| while rig.dpif.recv(0, &mut batch).expect("to receive") != 0 {};
    consume(rig);
    for _ in 0..batches {
        total += check(rig, UPCALLS);
        consume(rig);
    }
    assert_eq!(rig.dpif.stats().expect("statistics").lost, lost, "upcalls were lost");
    total / f64::from(batches)
}

fn cases() -> Vec<Case> {
    let udp = arrival(ethernet(&[], 0x0800, &ipv4(17, &[0, 80, 0, 90, 0, 26, 0, 0])));
    let plain = |id, flows, arrival: &Arrival| Case {
        id,
        flows,
        arrival: arrival.clone(),
        verdict: rig::REDIRECT,
        kind: Kind::Plain,
        special: false,
    };
    let xdp =
        |id, flows, arrival: &Arrival| Case { verdict: XDP_REDIRECT, kind: Kind::Xdp, ..plain(id, flows, arrival) };
    let mut cases = vec![plain("tc-one-mask", with_masks(&udp, 1, true), &udp)];
    cases.push(xdp("xdp-one-mask", with_masks(&udp, 1, true), &udp));
    for (id, n) in [
        ("tc-2-masks-warm", 2),
        ("tc-8-masks-warm", 8),
        ("tc-32-masks-warm", 32),
        ("tc-128-masks-warm", 128),
        ("tc-200-masks-warm", 200),
    ] {
        cases.push(plain(id, with_masks(&udp, n, true), &udp));
    }
    cases.push(xdp("xdp-200-masks-warm", with_masks(&udp, 200, true), &udp));
    cases.push(xdp("xdp-nat", nat(), &tcp()));
    cases.push(xdp("xdp-recirc-3", recirculations(&udp), &udp));
    for (id, n) in [("miss-few-masks", FEW_MASKS), ("miss-many-masks", MANY_MASKS)] {
        cases.push(Case { verdict: SHOT, ..plain(id, with_masks(&udp, n, false), &udp) });
    }

    let mut ip6 = vec![0x60, 0, 0, 0, 0, 26, 17, 64];
    ip6.extend((0..32).map(|i| if i % 16 == 0 { 0xfd } else { i }));
    ip6.extend([0, 80, 0, 90, 0, 26, 0, 0]);
    let ip6 = arrival(ethernet(&[], 0x86dd, &ip6));
    let mut mask = usual_mask();
    (mask.ipv6_src, mask.ipv6_dst) = ([0xff; 16], [0xff; 16]);
    // Packets that a specialised program gives up, at once or because their flow is none of its own; it is there for another flow.
    let given_up = |id, frame: &Arrival, mask| {
        plain(id, vec![flow(1, frame, mask, vec![output()]), flow(2, &tcp(), usual_mask(), vec![output()])], frame)
    };
    cases.push(given_up("tc-ipv6", &ip6, mask));
    cases.push(Case { special: true, ..given_up("tc-special-ipv6", &ip6, mask) });
    let unfit = FlowKey { skb_mark: u32::MAX, ..usual_mask() };
    cases.push(given_up("tc-unfit", &udp, unfit));
    cases.push(Case { special: true, ..given_up("tc-special-unfit", &udp, unfit) });

    let tagged = arrival(ethernet(&[0x81, 0, 0, 10], 0x0800, &ipv4(17, &[0, 80, 0, 90, 0, 26, 0, 0])));
    let mut mask = usual_mask();
    mask.vlan = Vlan { tpid: Be16::MAX, tci: Be16::MAX };
    mask.ipv4_dst = Be32::MAX;
    cases.push(plain("tc-vlan", vec![flow(1, &tagged, mask, vec![output()])], &tagged));

    cases.push(plain("tc-nat", nat(), &tcp()));
    cases.push(plain("tc-recirc-3", recirculations(&udp), &udp));
    cases.push(Case { verdict: SHOT, kind: Kind::Upcalls, ..plain("tc-miss-upcall", vec![], &udp) });
    for case in [
        plain("tc-special-one-mask", with_masks(&udp, 1, true), &udp),
        plain("tc-special-200-masks-warm", with_masks(&udp, 200, true), &udp),
        plain("tc-special-nat", nat(), &tcp()),
        plain("tc-special-recirc-3", recirculations(&udp), &udp),
        xdp("xdp-special-one-mask", with_masks(&udp, 1, true), &udp),
        xdp("xdp-special-200-masks-warm", with_masks(&udp, 200, true), &udp),
        xdp("xdp-special-nat", nat(), &tcp()),
        xdp("xdp-special-recirc-3", recirculations(&udp), &udp),
    ] {
        cases.push(Case { special: true, ..case });
    }
    cases
}

/// `n` masks of a usual shape; the flow under the last matches the packet if `hit`, all others don't.
fn with_masks(arrival: &Arrival, n: usize, hit: bool) -> Vec<FlowPut> {
    let one = |i: usize| {
        let mut mask = usual_mask();
        mask.ipv4_dst = Be32::MAX;
        let matches = hit && i + 1 == n;
        if !matches {
            mask.ipv4_src = Be32::new(u32::MAX << (i % 24));
            mask.tp_src = Be16::new(u16::MAX << (i / 24));
        }
        let mut put = flow(i as u128 + 1, arrival, mask, vec![output()]);
        if !matches {
            put.key.ipv4_src = Be32::new(0xc0a8_0000 << (i % 4)).masked(mask.ipv4_src);
        }
        put
    };
    (0..n).map(one).collect()
}

trait Masked {
    fn masked(self, mask: Self) -> Self;
}

impl Masked for Be32 {
    fn masked(self, mask: Self) -> Self {
        self & mask
    }
}

/// Two flows that make each other's packet.
fn nat() -> Vec<FlowPut> {
    let (inside, outside) = (tcp(), {
        let mut outside = tcp();
        rewrite(&mut outside);
        outside
    });
    let list = |to: &Arrival| {
        let key = key(to.port, &to.bytes);
        let set = |attr, change: fn(&mut FlowKey, &FlowKey)| {
            let (mut value, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
            change(&mut value, &key);
            change(&mut mask, &ALL);
            Action::Set(Box::new(SetAction { attr, value, mask }))
        };
        vec![
            set(KeyAttr::Ethernet, |to, from| (to.eth_src, to.eth_dst) = (from.eth_src, from.eth_dst)),
            set(KeyAttr::Ipv4, |to, from| (to.ipv4_src, to.ip_ttl) = (from.ipv4_src, from.ip_ttl)),
            set(KeyAttr::Tcp, |to, from| to.tp_src = from.tp_src),
            output(),
        ]
    };
    let mut mask = usual_mask();
    (mask.eth_src, mask.ip_ttl, mask.ipv4_src) = ([0xff; 6], 0xff, Be32::MAX);
    (mask.ipv4_dst, mask.tp_src) = (Be32::MAX, Be16::MAX);
    vec![flow(1, &inside, mask, list(&outside)), flow(2, &outside, mask, list(&inside))]
}

const ALL: FlowKey = FlowKey::from_words(&[u64::MAX; datapath_common::key::KEY_WORDS]);

fn rewrite(arrival: &mut Arrival) {
    let bytes = &mut arrival.bytes;
    (bytes[5], bytes[11], bytes[22]) = (9, 8, 63);
    bytes[26..30].copy_from_slice(&[192, 0, 2, 1]);
    bytes[34..36].copy_from_slice(&[0x9c, 0x40]);
}

/// Three recirculations, then the output.
fn recirculations(arrival: &Arrival) -> Vec<FlowPut> {
    let one = |id: u32| {
        let action = if id < 3 { Action::Recirc(id + 1) } else { output() };
        let mut put = flow(id.into(), arrival, usual_mask(), vec![action]);
        put.key.recirc_id = id;
        put
    };
    (0..4).map(one).collect()
}

fn flow(ufid: u128, arrival: &Arrival, mask: FlowKey, actions: Vec<Action>) -> FlowPut {
    FlowPut {
        mode: PutMode::Create,
        ufid: Ufid(ufid),
        key: key(arrival.port, &arrival.bytes).masked(&mask),
        mask,
        actions: actions.into(),
    }
}

fn output() -> Action {
    Action::Output(OdpPort(2))
}

fn arrival(bytes: Vec<u8>) -> Arrival {
    Arrival { port: 1, bytes, ..Arrival::default() }
}

fn tcp() -> Arrival {
    arrival(ethernet(&[], 0x0800, &ipv4(6, &[0, 80, 0, 90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0])))
}

fn ethernet(tag: &[u8], eth_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(tag);
    frame.extend(eth_type.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(64), 0);
    frame
}

fn ipv4(proto: u8, segment: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 50, 0, 0, 0, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    packet.extend(segment);
    packet
}

/// What the verifier makes of the programs.
fn verifier(results: &mut Results) {
    let object = object::filled(needs::ALL, 1, false);
    for program in ["sluice_tc", "sluice_execute", "sluice_xdp", "sluice_tc_s", "sluice_xdp_s"] {
        let (mut counts, mut times) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            let mut loader = EbpfLoader::new();
            let mut loaded =
                loader.verifier_log_level(VerifierLogLevel::DISABLE).load(&object.bytes).expect("the object's maps");
            let start = Instant::now();
            let info = match loaded.program_mut(program).expect("the program") {
                AyaProgram::SchedClassifier(classifier) => classifier.load().and_then(|()| classifier.info()),
                AyaProgram::Xdp(xdp) => xdp.load().and_then(|()| xdp.info()),
                other => panic!("{program} is {other:?}"),
            };
            times.push(start.elapsed().as_secs_f64() * 1e3);
            let info = info.unwrap_or_else(|error| panic!("{program}: {error}"));
            counts.extend(info.verified_instruction_count().map(f64::from));
        }
        let name = program.trim_start_matches("sluice_");
        results.row(&format!("{name}-verified"), "insns", counts);
        results.row(&format!("{name}-load"), "ms", times);
    }
}

/// Asks for a CPU and for real-time priority; says what was given.
fn calm_down() -> String {
    let mut cpus = nix::sched::CpuSet::new();
    let last = std::thread::available_parallelism().map_or(0, |n| n.get() - 1);
    let pinned = cpus.set(last).and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus));
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is that of the live `parameter`.
    let real_time = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) } == 0;
    let scheduler = if real_time { "SCHED_FIFO" } else { "the usual scheduler" };
    match pinned {
        Ok(()) => format!("on CPU {last}, under {scheduler}"),
        Err(error) => format!("on any CPU ({error}), under {scheduler}"),
    }
}

/// A program that looks at nothing: `return VERDICT`, which every measurement is compared with, or a redirect, the least that one of
/// the hook can do.
struct BareProgram {
    hook: Hook,
    program: Program,
    verdict: u32,
}

impl BareProgram {
    fn empty(hook: Hook) -> Self {
        let verdict = hook.drop_verdict();
        Self { hook, program: Program::verdict(hook, verdict).expect("to load the empty program"), verdict }
    }

    /// To a device that a test run doesn't send to.
    fn redirect(hook: Hook) -> Self {
        let verdict = if hook == Hook::Tc { rig::REDIRECT } else { XDP_REDIRECT };
        Self { hook, program: Program::redirect(hook, 1).expect("to load the redirect"), verdict }
    }

    /// Nanoseconds of a run.
    fn run(&self, arrival: &Arrival) -> f64 {
        // What an XDP program gets beside the frame the kernel makes up by itself.
        let context = if self.hook == Hook::Tc { rig::context(arrival).to_vec() } else { Vec::new() };
        let ran = self.program.run(&arrival.bytes, &context, RUNS).expect("to run a bare program");
        assert_eq!(ran.returned, self.verdict);
        ran.ns.into()
    }
}
