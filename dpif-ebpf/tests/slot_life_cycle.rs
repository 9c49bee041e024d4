//! Slots put, modified, deleted and reused under traffic on all CPUs: every packet runs one whole program of its own flow.
//!
//! Each flow goes through numbered [states](plan::state): absent, then a program, then another one, then absent again. A program
//! writes its flow's and its state's number into several fields of the packet, from the first to the last of its operations,
//! of which it has as many as one slot, two, three, or some dozens hold. Writers take the flows from state to state through the
//! [`Dpif`](dpif::Dpif); the slots are so few that each of them is given to other flows all the time. Meanwhile
//! [traffic](traffic) runs the TC program on each CPU by `BPF_PROG_TEST_RUN`, and looks at every packet:
//!
//! * what it carries must be the number of *its* flow, and of a state that the flow was in between the start and the end of the
//!   run; all fields must say the same, and the checksums must be right;
//! * a miss is right only if the flow was absent for a moment of the run, and leaves the packet as it was.
//!
//! In the end each flow's statistics, those of the deletions and of what is left, are exactly the packets that it was seen to
//! run on, and misses are exactly the upcalls, received or lost.
//!
//! `SLUICE_LIFE_CYCLE` says how many operations on slots are done.

mod common;
#[path = "slot_life_cycle/plan.rs"]
mod plan;
#[path = "slot_life_cycle/traffic.rs"]
mod traffic;
#[path = "slot_life_cycle/writer.rs"]
mod writer;

use std::env;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Host, SOON, two_ports};
use datapath_common::maps::EXECUTE_SLOTS;
use dpif::{Dpif, OdpPort, UpcallBatch, UpcallKind};
use dpif_ebpf::EbpfDpif;
use parking_lot::Mutex;

use plan::FLOWS;

/// Slots for flows. The flows' programs need two each on average; the others rest between two flows.
const SLOTS: usize = 4096;
/// Threads that change flows, each its own ones.
pub(crate) const WRITERS: usize = 2;
/// Findings after which the test gives up.
const ENOUGH: usize = 4;
/// No run takes longer.
const LIMIT: Duration = Duration::from_secs(600);

/// What the threads share.
pub(crate) struct Shared {
    /// For each flow the last state that a writer has begun to bring about.
    begun: Vec<AtomicU32>,
    /// For each flow the last state that is brought about: no older one can be seen by who starts now.
    done: Vec<AtomicU32>,
    operations: AtomicU64,
    wanted: u64,
    stop: AtomicBool,
    findings: Mutex<Vec<String>>,
}

impl Shared {
    pub(crate) fn report(&self, text: String) {
        let mut findings = self.findings.lock();
        findings.push(text);
        if findings.len() >= ENOUGH {
            self.stop.store(true, Ordering::SeqCst);
        }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Ends the other threads when its own one does, be it by a panic.
pub(crate) struct StopAtEnd<'a>(&'a Shared);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

#[test]
fn every_packet_runs_one_whole_program_of_its_own_flow_while_slots_are_reused() {
    testkit::require_root_and_bpf!("every_packet_runs_one_whole_program_of_its_own_flow_while_slots_are_reused");
    let wanted = env::var("SLUICE_LIFE_CYCLE").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let mut host = Host::new("slots");
    host.options.slots = EXECUTE_SLOTS + SLOTS;
    let (dpif, _left, _right) = two_ports(&host);
    // Copies go to a third port, at whose other end nobody listens.
    let common::Neighbour { netns: _aside, socket } = host.neighbour("aside");
    drop(socket);
    assert_eq!(dpif.port_add(&common::system("aside")).unwrap(), OdpPort(3));
    dpif.handlers_set(1).unwrap();
    let pins = host.pins();
    let zeros = || (0..FLOWS).map(|_| AtomicU32::new(0)).collect();
    let shared = Shared {
        begun: zeros(),
        done: zeros(),
        operations: AtomicU64::new(0),
        wanted,
        stop: AtomicBool::new(false),
        findings: Mutex::default(),
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let started = Instant::now();

    let (traffic, written, upcalls) = std::thread::scope(|scope| {
        let upcalls = scope.spawn(|| receive(&dpif, &shared));
        let (shared, dpif, pins, host) = (&shared, &dpif, &pins, &host);
        let traffic: Vec<_> =
            (0..cpus).map(|cpu| scope.spawn(move || host.run(|| traffic::run(cpu, pins, shared)))).collect();
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || writer::run(writer, dpif, shared, LIMIT))).collect();
        // The writers say when it is over: all of them, or the first that panics.
        let written: Vec<_> = writers.into_iter().map(|thread| thread.join().expect("a writer")).collect();
        shared.stop.store(true, Ordering::SeqCst);
        let traffic: Vec<_> = traffic.into_iter().map(|thread| thread.join().expect("traffic")).collect();
        (traffic, written, upcalls.join().expect("the handler"))
    });
    let took = started.elapsed();

    let findings = shared.findings.into_inner();
    assert!(findings.is_empty(), "{} packets went wrong, such as\n{}", findings.len(), findings.join("\n"));
    let operations = shared.operations.load(Ordering::SeqCst);
    assert!(operations >= wanted, "{operations} operations in {took:?}");

    // What is left, and what the deletions said.
    let mut counted = vec![dpif::FlowStats::default(); FLOWS];
    let mut add = |flow: usize, stats: dpif::FlowStats| {
        counted[flow].packets += stats.packets;
        counted[flow].bytes += stats.bytes;
    };
    let mut left = 0;
    dpif.flow_dump_stats(&mut |ufid, stats| {
        add(plan::flow_of(ufid), stats);
        left += 1;
        true
    })
    .unwrap();
    for (flow, stats) in
        written.iter().flat_map(|writer| &writer.deleted).enumerate().map(|(i, stats)| (i % FLOWS, stats))
    {
        add(flow, *stats);
    }
    let sum = |of: fn(&traffic::Seen) -> &[u64], flow| traffic.iter().map(|seen| of(seen)[flow]).sum::<u64>();
    let (mut hits, mut misses, mut sent_bytes, mut copies) = (0, 0, 0, 0);
    for (flow, counted) in counted.iter().enumerate() {
        let (hit, missed) = (sum(|seen| &seen.hits, flow), sum(|seen| &seen.misses, flow));
        let len = plan::frame(flow).len() as u64;
        assert_eq!((counted.packets, counted.bytes), (hit, hit * len), "flow {flow}: counted, seen");
        let absent = plan::state(flow, shared.done[flow].load(Ordering::SeqCst)).is_none();
        assert_eq!(dpif.flow_get(plan::ufid(flow)).is_err(), absent, "flow {flow}");
        copies += if plan::is_slow(flow) { hit * plan::COPIES as u64 } else { 0 };
        (hits, misses, sent_bytes) = (hits + hit, misses + missed, sent_bytes + (hit + missed) * len);
    }
    let (stats, one, two) =
        (dpif.stats().unwrap(), dpif.port_stats(OdpPort(1)).unwrap(), dpif.port_stats(OdpPort(2)).unwrap());
    assert_eq!((stats.hit, stats.missed, stats.flows), (hits, misses, left));
    assert_eq!((one.rx_packets, one.rx_bytes), (hits + misses, sent_bytes));
    assert_eq!((two.tx_packets, two.tx_dropped), (hits, 0));
    assert_eq!(upcalls + stats.lost, misses, "upcalls received, lost");
    let dropped: u64 = stats.drops.iter().map(|(_, count)| count).sum();
    // A queue of the kernel may have been full of copies.
    let three = dpif.port_stats(OdpPort(3)).unwrap();
    assert_eq!(three.tx_packets + three.tx_dropped, copies);
    assert_eq!(dropped, stats.lost + three.tx_dropped, "{:?}", stats.drops);
    assert!(hits > wanted / 100 && misses > 0 && traffic.iter().all(|seen| seen.between > 0), "too quiet a test");

    let total = |of: fn(&writer::Written) -> u64| written.iter().map(of).sum::<u64>();
    println!(
        "{operations} operations ({} put, {} modified, {} deleted), {} slots taken of {SLOTS}, in {:.1} s; \
         {} packets on {cpus} CPUs: {hits} hits, {misses} misses ({upcalls} received, {} lost), \
         {} while their flow was changing, {} of them with the newer program",
        total(|w| w.created),
        total(|w| w.modified),
        total(|w| w.deletions),
        total(|w| w.slots),
        took.as_secs_f64(),
        hits + misses,
        stats.lost,
        traffic.iter().map(|seen| seen.between).sum::<u64>(),
        traffic.iter().map(|seen| seen.newer).sum::<u64>(),
    );
    dpif.flow_flush().unwrap();
    assert_eq!((dpif.stats().unwrap().flows, dpif.stats().unwrap().masks), (0, 0));
    // Every slot and every statistics number is free again.
    for flow in 0..SLOTS {
        dpif.flow_put(&plan::one_slot(flow)).unwrap();
        assert_eq!(dpif.flow_get(plan::ufid(flow)).unwrap().stats, dpif::FlowStats::default());
    }
    assert!(matches!(dpif.flow_put(&plan::one_slot(SLOTS)), Err(dpif::DpifError::Full(_))));
    dpif.destroy().unwrap();
}

/// Receives upcalls until the traffic is over; each must be a miss with its packet as it was sent. Says how many.
fn receive(dpif: &EbpfDpif, shared: &Shared) -> u64 {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let _stop = StopAtEnd(shared);
    let frames: Vec<_> = (0..FLOWS).map(plan::frame).collect();
    let (mut batch, mut received, mut quiet) = (UpcallBatch::default(), 0, None::<Instant>);
    while quiet.is_none_or(|since| since.elapsed() < SOON / 10) {
        let n = dpif.recv(0, &mut batch).expect("to receive");
        received += n as u64;
        for upcall in batch.upcalls() {
            let flow = usize::from(upcall.key.tp_dst.get());
            let whole = frames.get(flow).is_some_and(|frame| *frame == upcall.packet.data);
            if upcall.kind != UpcallKind::Miss || upcall.key.in_port != 1 || !whole {
                shared.report(format!("an upcall that isn't a miss of a packet that was sent: {upcall:?}"));
            }
        }
        if n == 0 {
            let fd = dpif.recv_fd(0).expect("the handler's descriptor");
            let mut wait = [PollFd::new(fd, PollFlags::POLLIN)];
            poll(&mut wait, PollTimeout::from(20u8)).expect("to wait");
        }
        // What the last packets sent up is there by now, or soon.
        quiet = if n == 0 && shared.stopped() { quiet.or_else(|| Some(Instant::now())) } else { None };
    }
    received
}
