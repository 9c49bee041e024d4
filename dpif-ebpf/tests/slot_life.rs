//! Slots that are put, modified, deleted and reused while traffic runs on several CPUs.
//!
//! Each version of each flow writes its signature, flow and version, into two places of the packet, the second one in
//! another slot than the first where the program is long. The sender writes into the packet which version was certainly
//! there when it was sent. So each packet that arrives tells which program ran on it, whether the whole program was of one
//! version, and whether that version may have run at all.
//!
//! `SLUICE_SLOT_CHANGES` says how many changes are made (default 100,000).

mod common;

use std::env;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use dpif::{Action, Dpif, DpifOp, FlowKey, FlowPut, KeyAttr, OdpPort, PutMode, SetAction, Ufid};
use dpif_ebpf::EbpfDpif;

/// Flows: the first half is only ever modified, the second half comes and goes.
const FLOWS: usize = 64;
const STEADY: usize = FLOWS / 2;
/// Frames that may be on their way at once: fewer than the receiver's socket has room for.
const WINDOW: u64 = 2000;
/// Where a packet says which version was there when it was sent.
const PAYLOAD: usize = 42;

#[derive(Default)]
struct Flow {
    /// The newest version that may be in the datapath.
    begun: AtomicU32,
    /// The newest version that certainly was in the datapath once.
    done: AtomicU32,
    sent: AtomicU64,
    received: AtomicU64,
}

#[test]
fn no_packet_meets_a_program_that_is_not_its_flows() {
    testkit::require_root_and_bpf!("no_packet_meets_a_program_that_is_not_its_flows");
    let changes: u64 = env::var("SLUICE_SLOT_CHANGES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let host = Host::new("slots");
    let (dpif, left, right) = two_ports(&host);
    let other = host.neighbour("other");
    dpif.port_add(&system("other")).unwrap();
    let flows: Vec<Flow> = (0..FLOWS).map(|_| Flow::default()).collect();
    for i in 0..FLOWS {
        dpif.flow_put(&put(&flows, i)).unwrap();
        flows[i].done.store(1, Ordering::SeqCst);
    }
    let (stop, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    let missed = || dpif.stats().unwrap().missed;
    let sent = || flows.iter().map(|flow| flow.sent.load(Ordering::SeqCst)).sum::<u64>();
    let mut deleted = vec![0; FLOWS];

    std::thread::scope(|scope| {
        // Two senders: the receive path of a veth runs on the sender's CPU.
        for (number, neighbour) in [&left, &other].into_iter().enumerate() {
            let (flows, stop, seen, dpif) = (&flows, &stop, &seen, &dpif);
            scope.spawn(move || {
                pin_to_cpu(number);
                let mut frame = udp(60, 0);
                for i in (0..FLOWS).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    while flows.iter().map(|f| f.sent.load(Ordering::SeqCst)).sum::<u64>()
                        >= seen.load(Ordering::SeqCst) + dpif.stats().unwrap().missed + WINDOW
                    {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                    frame[34..36].copy_from_slice(&(i as u16).to_be_bytes());
                    frame[PAYLOAD..PAYLOAD + 4].copy_from_slice(&flows[i].done.load(Ordering::SeqCst).to_be_bytes());
                    flows[i].sent.fetch_add(1, Ordering::SeqCst);
                    neighbour.socket.send(&frame).unwrap();
                }
            });
        }
        let receiver = scope.spawn(|| {
            loop {
                let Some(frame) = right.socket.recv(Duration::from_millis(300)).unwrap() else {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    continue;
                };
                check(&flows, &frame.bytes);
                seen.fetch_add(1, Ordering::SeqCst);
            }
        });

        let started = Instant::now();
        let mut made = 0;
        while made < changes && !receiver.is_finished() {
            made += modify(&dpif, &flows);
            made += replace(&dpif, &flows, &mut deleted);
        }
        stop.store(true, Ordering::SeqCst);
        let packets = sent();
        println!("{made} changes, {packets} packets, {} missed, {:?}", missed(), started.elapsed());
    });

    assert_eq!(sent(), seen.load(Ordering::SeqCst) + missed(), "packets were lost");
    for (i, flow) in flows.iter().enumerate() {
        let (sent, received) = (flow.sent.load(Ordering::SeqCst), flow.received.load(Ordering::SeqCst));
        assert!(
            sent > 0 && received > 0 && (i >= STEADY || sent == received),
            "flow {i}: {sent} sent, {received} received"
        );
        deleted[i] += dpif.flow_del(Ufid(i as u128 + 1)).unwrap().packets;
        assert_eq!(deleted[i], received, "flow {i}: counted and received");
    }
    dpif.destroy().unwrap();
}

/// Modifies all steady flows some times.
fn modify(dpif: &EbpfDpif, flows: &[Flow]) -> u64 {
    let rounds = 50;
    for i in (0..STEADY).cycle().take(STEADY * rounds) {
        let put = FlowPut { mode: PutMode::Modify, ..put(flows, i) };
        dpif.flow_put(&put).unwrap();
        flows[i].done.store(flows[i].begun.load(Ordering::SeqCst), Ordering::SeqCst);
    }
    (STEADY * rounds) as u64
}

/// Deletes the other flows and puts them again, in one batch.
fn replace(dpif: &EbpfDpif, flows: &[Flow], deleted: &mut [u64]) -> u64 {
    let puts: Vec<FlowPut> = (STEADY..FLOWS).map(|i| FlowPut { mode: PutMode::Create, ..put(flows, i) }).collect();
    let mut ops = Vec::new();
    for put in &puts {
        ops.push(DpifOp::FlowDel { ufid: put.ufid, result: Err(dpif::DpifError::NoSuchFlow) });
        ops.push(DpifOp::FlowPut { put, result: Ok(()) });
    }
    dpif.operate(&mut ops);
    for op in ops {
        match op {
            DpifOp::FlowDel { ufid, result } => deleted[ufid.0 as usize - 1] += result.unwrap().packets,
            DpifOp::FlowPut { put, result } => {
                result.unwrap();
                let flow = &flows[put.ufid.0 as usize - 1];
                flow.done.store(flow.begun.load(Ordering::SeqCst), Ordering::SeqCst);
            }
            _ => {}
        }
    }
    2 * puts.len() as u64
}

/// The next version of flow `i`.
fn put(flows: &[Flow], i: usize) -> FlowPut {
    let version = flows[i].begun.fetch_add(1, Ordering::SeqCst) + 1;
    let (mut key, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
    (key.eth_type, mask.eth_type) = (dpif::Be16::new(0x0800), dpif::Be16::MAX);
    (key.ip_proto, mask.ip_proto) = (17, u8::MAX);
    (key.tp_src, mask.tp_src) = (dpif::Be16::new(i as u16), dpif::Be16::MAX);
    // Some flows share a mask, some have others beside them.
    mask.eth_dst[5] = (i % 4) as u8;
    key.eth_dst = [2, 0, 0, 0, 0, 2];

    let [a, b, c, d] = version.to_be_bytes();
    let signature = [2, i as u8, a, b, c, d];
    let set = |attr, change: &dyn Fn(&mut FlowKey, &mut FlowKey)| {
        let mut set = SetAction { attr, value: FlowKey::ZERO, mask: FlowKey::ZERO };
        change(&mut set.value, &mut set.mask);
        Action::Set(Box::new(set))
    };
    let mut actions =
        vec![set(KeyAttr::Ethernet, &|value, mask| (value.eth_src, mask.eth_src) = (signature, [255; 6]))];
    if version.is_multiple_of(3) {
        // Long enough to go on in another slot.
        for mark in 0..40 {
            actions.push(set(KeyAttr::SkbMark, &|value, mask| (value.skb_mark, mask.skb_mark) = (mark, u32::MAX)));
        }
    }
    actions.push(set(KeyAttr::Ethernet, &|value, mask| (value.eth_dst, mask.eth_dst) = (signature, [255; 6])));
    actions.push(output(OdpPort(2)));
    FlowPut { mode: PutMode::Create, ufid: Ufid(i as u128 + 1), key, mask, actions }
}

fn check(flows: &[Flow], frame: &[u8]) {
    let (first, second) = (&frame[6..12], &frame[0..6]);
    assert_eq!(first, second, "a packet met the programs of two versions: {frame:02x?}");
    let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    let i = usize::from(u16::from_be_bytes([frame[34], frame[35]]));
    assert_eq!(usize::from(frame[7]), i, "a packet met the program of another flow: {frame:02x?}");
    let (version, at_least) = (number(8), number(PAYLOAD));
    let at_most = flows[i].begun.load(Ordering::SeqCst);
    assert!(version >= at_least && version <= at_most, "flow {i}: {at_least} <= {version} <= {at_most}");
    flows[i].received.fetch_add(1, Ordering::SeqCst);
}

fn pin_to_cpu(number: usize) {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut set = nix::sched::CpuSet::new();
    set.set(number % cpus).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
}
