//! Everything changes while packets come (flows, ports, tables, options, numbers of threads), and in the end every packet is
//! accounted for:
//!
//! - lookups are those of the frames that came in and could be parsed, and of those that recirculated;
//! - each miss, and each packet that an action sent up, was queued or lost, and each loss has its reason;
//! - what was queued was received, or thrown away with its handler;
//! - what was received was executed, or dropped for a reason. A super-packet counts as one;
//! - no ukey, flow, slot, recirculation id or descriptor is left.
//!
//! The kernel's module counts less (see `account_module`).
//!
//! `SLUICE_CHURN_SECONDS` says how long at least (10, 5 in this process); `SLUICE_CHURN_SEED` another course of events.

mod lab;
#[path = "churn/senders.rs"]
mod senders;

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dpif::{DpStats, PortStats, UpcallStats};
use dpif_netlink::DispatchMode;
use lab::{Datapath, Lab, flows};
use ofproto::{Options, PortKind, PortVlan, Switch};
use senders::{Rng, Senders};
use testkit::wait_until;

/// Wires that always end in a port; those behind come and go.
const STEADY: usize = 3;
/// All wires.
const WIRES: usize = 6;
/// Most threads of each kind.
const MOST_THREADS: u32 = 3;

/// Tables between which the bridge changes. The last but one sends packets up that no datapath can handle.
const TABLES: [&[&str]; 6] = [
    &["actions=NORMAL"],
    &["ip,actions=move:NXM_OF_IP_DST[0..7]->NXM_NX_REG0[0..7],output:2,output:3", "actions=FLOOD"],
    &[
        "udp,actions=debug_recirc,resubmit(,1)",
        "table=1,udp,tp_src=0/1,actions=output:2,mod_nw_ttl:9,debug_recirc,output:3",
        "table=1,udp,actions=move:NXM_OF_UDP_SRC[]->NXM_NX_REG1[0..15],NORMAL",
        "priority=1,actions=output:3",
    ],
    &[
        "tcp,actions=load:7->NXM_NX_REG3[],debug_recirc,NORMAL",
        "udp,tp_dst=0x10/0x10,actions=drop",
        "priority=1,actions=NORMAL",
    ],
    &["udp,actions=output(port=2,max_len=64),mod_nw_ttl:9,output:3", "priority=1,actions=debug_recirc,NORMAL"],
    &[
        "in_port=1,udp,actions=move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],move:NXM_OF_UDP_DST[]->NXM_NX_REG1[0..15],output:4",
        "priority=1,actions=output:2,output:5",
    ],
];

#[test]
fn every_packet_is_accounted_for_on_ebpf() {
    churn("every_packet_is_accounted_for_on_ebpf", Datapath::Ebpf);
}

#[test]
fn every_packet_is_accounted_for_in_this_process() {
    churn("every_packet_is_accounted_for_in_this_process", Datapath::Userspace);
}

#[test]
fn every_packet_is_accounted_for_on_the_module_by_cpu() {
    churn("every_packet_is_accounted_for_on_the_module_by_cpu", Datapath::Netlink(DispatchMode::PerCpu));
}

#[test]
fn every_packet_is_accounted_for_on_the_module_by_port() {
    churn("every_packet_is_accounted_for_on_the_module_by_port", Datapath::Netlink(DispatchMode::PerPort));
}

fn churn(name: &str, datapath: Datapath) {
    // Descriptors are the process's.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !testkit::skip::have(name, datapath.needs()) {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("SLUICE_CHURN_SECONDS").unwrap_or(if datapath == Datapath::Userspace { 5 } else { 10 });
    let seed = number("SLUICE_CHURN_SEED").unwrap_or(1);
    let mut rng = Rng(seed);

    let lab = Lab::new(datapath, WIRES, STEADY, options(1, 1));
    lab.flows(TABLES[0]);
    lab.start();
    // The module cuts super-packets before it sends them up: a miss that is many upcalls.
    let senders = Senders::new(&lab, WIRES, seed, !matches!(datapath, Datapath::Netlink(_)));
    // All is done where the datapath is.
    lab.run(|_| events(&lab, &senders, seconds, &mut rng, seed));
}

fn events(lab: &Lab, senders: &Senders, seconds: u64, rng: &mut Rng, seed: u64) {
    let datapath = lab.datapath;
    let mut operator =
        Operator { lab, senders, attached: [false; WIRES], ended_ports: PortStats::default(), did: [0; 12] };
    // What is made once and stays is there before anything is counted.
    operator.threads(MOST_THREADS, MOST_THREADS);
    (STEADY..WIRES).for_each(|wire| operator.attach(wire));
    (STEADY..WIRES).for_each(|wire| operator.detach(wire));
    operator.threads(1, 1);
    lab.switch.synchronize();
    let descriptors = descriptors();

    (1..=STEADY).for_each(|wire| senders.open(wire - 1));
    let end = Instant::now() + Duration::from_secs(seconds);
    // A slow machine takes longer until everything has happened.
    let latest = end + Duration::from_secs(120);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ended = &ended;
        (0..2).for_each(|thread| drop(scope.spawn(move || senders.run(thread, ended))));
        lab.run(|switch| {
            let is_missing = |operator: &Operator| operator.did.contains(&0) || missing(lab, senders).is_some();
            while Instant::now() < end || (Instant::now() < latest && is_missing(&operator)) {
                operator.act(switch, rng);
                std::thread::sleep(Duration::from_millis(rng.below(20)));
            }
        });
        ended.store(true, Ordering::Relaxed);
    });
    (STEADY..WIRES).for_each(|wire| operator.detach(wire));
    operator.threads(1, 1);
    lab.switch.resume_revalidators();

    let mut before = DpStats::default();
    let settled = wait_until(Duration::from_secs(60), || {
        lab.switch.synchronize();
        let stats = lab.switch.dpif().stats().unwrap();
        std::mem::replace(&mut before, stats) == before
    });
    assert!(settled, "packets go on without senders: {before:?}");
    println!("{datapath:?}, {seconds} s, seed {seed}: operations {:?}", operator.did);
    match datapath {
        Datapath::Netlink(_) => account_module(lab, senders, operator.ended_ports),
        _ => account(lab, senders, operator.ended_ports),
    }
    assert_eq!(missing(lab, senders), None, "it was a quiet day");
    nothing_is_left(lab, descriptors);
    assert!(operator.did.iter().all(|n| *n > 0), "not all was done: {:?}", operator.did);
}

fn options(handlers: u32, revalidators: u32) -> Options {
    Options { n_handlers: Some(handlers), n_revalidators: Some(revalidators), max_idle_ms: 1_500, ..Options::default() }
}

/// Who changes things.
struct Operator<'a> {
    lab: &'a Lab,
    senders: &'a Senders,
    attached: [bool; WIRES],
    /// What ports have counted that are no more.
    ended_ports: PortStats,
    /// How often each thing was done.
    did: [u32; 12],
}

impl Operator<'_> {
    fn act(&mut self, switch: &Switch, rng: &mut Rng) {
        // Each once, however slow the machine, and then at random.
        let random = [0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11][rng.below(18) as usize];
        let what = self.did.iter().position(|n| *n == 0).unwrap_or(random);
        self.did[what] += 1;
        match what {
            0 => switch.flows_replace("br0", Some(&flows(TABLES[rng.below(6) as usize]))).unwrap(),
            1 => {
                let text = format!("priority=9,udp,tp_src={},actions=output:{}", rng.below(64), 1 + rng.below(3));
                switch.flow_mods_apply("br0", &flows(&[&text])).unwrap();
            }
            2 => {
                let wire = STEADY + rng.below((WIRES - STEADY) as u64) as usize;
                if self.attached[wire] { self.detach(wire) } else { self.attach(wire) }
            }
            3 => switch.purge_flows(),
            4 => switch.flush().unwrap(),
            5 => {
                let (handlers, revalidators) = (1 + rng.below(3) as u32, 1 + rng.below(3) as u32);
                let flow_limit = if rng.below(3) == 0 { 300 } else { 200_000 };
                let megaflows = rng.below(4) > 0;
                let all = Options { flow_limit, megaflows, ..options(handlers, revalidators) };
                switch.set_options(&all).unwrap();
            }
            6 => switch.fdb_flush(None).unwrap(),
            7 => switch.revalidate_now(),
            8 => {
                switch.pause_revalidators();
                std::thread::sleep(Duration::from_millis(20));
                switch.resume_revalidators();
            }
            9 => {
                // Nobody is there for a while.
                switch.stop();
                std::thread::sleep(Duration::from_millis(5));
                switch.start().unwrap();
            }
            10 => {
                let vlan = if rng.below(2) > 0 { PortVlan::Access(7) } else { PortVlan::default() };
                switch.port_set_vlan("br0", "v3", vlan).unwrap();
            }
            _ => {
                let dump = switch.dump_ukeys(None);
                assert!(switch.upcall_show().contains("upcalls: (received "), "{dump}");
            }
        }
    }

    fn threads(&self, handlers: u32, revalidators: u32) {
        self.lab.run(|switch| switch.set_options(&options(handlers, revalidators))).unwrap();
    }

    fn attach(&mut self, wire: usize) {
        let name = format!("v{}", wire + 1);
        self.lab.run(|switch| switch.port_add("br0", &name, PortKind::System, PortVlan::default(), None)).unwrap();
        self.attached[wire] = true;
        self.senders.open(wire);
    }

    /// Nobody sends while the port goes, so that what it has counted is known.
    fn detach(&mut self, wire: usize) {
        if !std::mem::take(&mut self.attached[wire]) {
            return;
        }
        let sent = self.senders.close(wire);
        let (odp, dpif) = (self.lab.odp(wire + 1), self.lab.switch.dpif());
        let (mut last, mut changed) = (dpif.port_stats(odp).unwrap(), Instant::now());
        // A datapath that reads its devices itself may be behind, or may not get all.
        while last.rx_packets < sent && changed.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(1));
            let now = dpif.port_stats(odp).unwrap();
            if std::mem::replace(&mut last, now).rx_packets != now.rx_packets {
                changed = Instant::now();
            }
        }
        let device = format!("v{}", wire + 1);
        assert!(wait_until(Duration::from_secs(120), || unread(&device) == 0), "{device} has frames that nobody reads");
        // The last one is counted before it is looked up.
        std::thread::sleep(Duration::from_millis(30));
        // Handlers still execute packets of this port, of which some come up again.
        let paused = self.senders.pause();
        self.lab.switch.synchronize();
        last = dpif.port_stats(odp).unwrap();
        drop(paused);
        add(&mut self.ended_ports, &last);
        self.lab.run(|switch| switch.port_del("br0", &device)).unwrap();
    }
}

/// Bytes that wait in packet sockets on a device of this namespace (`/proc/net/packet`).
fn unread(device: &str) -> u64 {
    let index = nix::net::if_::if_nametoindex(device).unwrap().to_string();
    let sockets = fs::read_to_string("/proc/thread-self/net/packet").unwrap();
    let of_device = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (fields[4] == index).then(|| fields[6].parse::<u64>().unwrap())
    };
    sockets.lines().skip(1).filter_map(of_device).sum()
}

fn add(sum: &mut PortStats, of: &PortStats) {
    sum.rx_packets += of.rx_packets;
    sum.rx_dropped += of.rx_dropped;
    sum.upcalls += of.upcalls;
    sum.upcall_lost += of.upcall_lost;
}

/// What all ports have counted, with those that are no more.
fn ports(lab: &Lab, ended: PortStats) -> PortStats {
    let (dpif, mut sum) = (lab.switch.dpif(), ended);
    for port in dpif.ports().unwrap() {
        add(&mut sum, &dpif.port_stats(port.port).unwrap());
    }
    sum
}

/// The equations.
fn account(lab: &Lab, senders: &Senders, ended_ports: PortStats) {
    let (switch, dpif) = (&lab.switch, lab.switch.dpif());
    let stats = dpif.stats().unwrap();
    let PortStats { rx_packets: received, rx_dropped: malformed, .. } = ports(lab, ended_ports);
    let totals = switch.upcall_totals();
    println!("  {} frames sent, {received} came in, {malformed} malformed", senders.sent());
    println!("  {stats:?}");
    println!("  {:?}, {} received", totals.outcomes(), totals.received);

    assert_eq!(stats.hit + stats.missed, received - malformed + stats.recirculated, "lookups");
    let Some(upcalls) = stats.upcalls else { panic!("the datapath doesn't count its upcalls") };
    let UpcallStats { misses, actions, lost_misses, lost_actions, discarded } = upcalls;
    assert_eq!(stats.missed, misses + lost_misses, "misses are queued or lost");
    let reasons: u64 = stats.drops.iter().filter(|(reason, _)| reason.starts_with("upcall-")).map(|(_, n)| n).sum();
    assert_eq!((stats.lost, stats.lost), (lost_misses + lost_actions, reasons), "losses have reasons");
    assert_eq!(misses + actions, totals.received + totals.bad_record + discarded, "what is queued is received");
    let outcomes: u64 = totals.outcomes().iter().map(|(_, n)| n).sum();
    assert_eq!(totals.received, outcomes, "what is received is answered");
    assert_eq!((totals.bad_record, totals.lost_in_panic, totals.contradictory, totals.bad_cookie), (0, 0, 0, 0));
    if lab.datapath == Datapath::Userspace {
        let overruns = stats.drops.iter().find(|(reason, _)| *reason == "receive-overrun").map_or(0, |(_, n)| *n);
        // A wire that comes to nobody in time (its end's backlog is full) drops, and says so.
        let wires = dropped_by_wires(lab);
        let seen = received + overruns;
        assert!(
            (seen..=seen + wires).contains(&senders.sent()),
            "what is sent comes in, or is counted: {} sent, {received} in, {overruns} overrun, {wires} dropped by wires",
            senders.sent()
        );
    }
}

/// Frames that the senders' ends of the wires have dropped.
fn dropped_by_wires(lab: &Lab) -> u64 {
    let devices = lab.hosts.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap().unwrap();
    // Eight numbers of what came, then bytes, packets, errors and drops of what went.
    let dropped = |line: &str| line.split_once(':')?.1.split_whitespace().nth(11)?.parse::<u64>().ok();
    devices.lines().filter_map(dropped).sum()
}

/// What should have happened in such a time and has not.
fn missing(lab: &Lab, senders: &Senders) -> Option<&'static str> {
    let (stats, totals) = (lab.switch.dpif().stats().unwrap(), lab.switch.upcall_totals());
    let mut all = vec![
        ("hits", stats.hit),
        ("misses", totals.missed),
        ("lost upcalls", stats.lost),
        ("malformed frames", senders.malformed()),
        ("executed", totals.executed),
        ("dropped", totals.dropped),
        ("answered by a flow", totals.hit_installed),
    ];
    // The module doesn't say.
    if let Some(upcalls) = stats.upcalls {
        all.extend([
            ("packets of actions", upcalls.actions),
            ("lost misses", upcalls.lost_misses),
            ("recirculations", stats.recirculated),
            ("super-packets", senders.super_packets()),
        ]);
    }
    all.into_iter().find(|(_, n)| *n == 0).map(|(what, _)| what)
}

/// The equations as far as the module counts. It doesn't say how many lookups were of packets that recirculated, nor how many
/// upcalls were an action's; those are known by port since 6.3.
fn account_module(lab: &Lab, senders: &Senders, ended_ports: PortStats) {
    let stats = lab.switch.dpif().stats().unwrap();
    let totals = lab.switch.upcall_totals();
    let sum = ports(lab, ended_ports);
    // A device's own counters, which the module shows, go on when it becomes another port: what was sent has come in.
    println!("  {} frames sent, {} malformed", senders.sent(), senders.malformed());
    println!("  {stats:?}\n  {} upcalls, {} lost by port", sum.upcalls, sum.upcall_lost);
    println!("  {:?}, {} received, {} of them misses", totals.outcomes(), totals.received, totals.missed);

    assert!(stats.hit + stats.missed >= senders.sent() - senders.malformed(), "each frame is looked up");
    let unread: u64 = stats.drops.iter().map(|(_, n)| n).sum();
    let came = totals.received + totals.bad_record + unread;
    assert!(stats.missed <= came + stats.lost, "a miss is queued or lost, and what is queued is received or counted");
    let counts_by_port = sum.upcalls > 0;
    if counts_by_port {
        assert_eq!(came, sum.upcalls, "what is queued is received");
        // A port counts no upcall that it has no socket for.
        assert!(sum.upcall_lost <= stats.lost, "what a port has lost, the datapath has");
    }
    let outcomes: u64 = totals.outcomes().iter().map(|(_, n)| n).sum();
    assert_eq!(totals.received, outcomes, "what is received is answered");
    assert_eq!(totals.execute_failed, 0, "nothing is asked of the module that it refuses");
    assert_eq!((totals.bad_record, totals.lost_in_panic, totals.contradictory, totals.bad_cookie), (0, 0, 0, 0));
    assert_eq!(stats.drops.iter().find(|(reason, _)| *reason == "upcall-unreadable"), Some(&("upcall-unreadable", 0)));
}

fn nothing_is_left(lab: &Lab, descriptors_before: Descriptors) {
    let (switch, dpif) = (&lab.switch, lab.switch.dpif());
    switch.purge_flows();
    switch.revalidate_now();
    let stats = dpif.stats().unwrap();
    assert_eq!((switch.upcall_summary().current, stats.flows, switch.dump_ukeys(None)), (0, 0, String::new()));
    assert_eq!((switch.n_recirc_ids(), switch.n_inherited_recirc_ids()), (0, 0));
    let slots_are_free = || dpif.stats().unwrap().slots.is_none_or(|slots| slots.used == 0);
    assert!(wait_until(Duration::from_secs(5), slots_are_free), "{:?}", dpif.stats().unwrap().slots);
    // Threads that ask the module at the same time have a socket each, which is kept for the next.
    let kept = if matches!(lab.datapath, Datapath::Netlink(_)) { 2 * MOST_THREADS as usize } else { 0 };
    let same = || {
        let (before, now) = (descriptors_before, descriptors());
        (before.others..=before.others + kept).contains(&now.others)
            && now.programs <= before.programs + NARROW_PROGRAMS
    };
    assert!(wait_until(Duration::from_secs(5), same), "{:?}, before {descriptors_before:?}", descriptors());
}

/// Specialised programs that stay loaded for the next time: eight for each hook.
const NARROW_PROGRAMS: usize = 2 * 8;

/// What this process has open.
#[derive(Clone, Copy, Debug)]
struct Descriptors {
    /// eBPF programs.
    programs: usize,
    others: usize,
}

fn descriptors() -> Descriptors {
    let all = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let (programs, others): (Vec<_>, Vec<_>) = all.partition(|target| target.as_os_str() == "anon_inode:bpf-prog");
    Descriptors { programs: programs.len(), others: others.len() }
}
