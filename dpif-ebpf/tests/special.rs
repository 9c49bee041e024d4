//! The program that is specialised in the flows: it is the one that they need, and changing it costs no packet.

#[path = "differential/rig.rs"]
mod rig;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use datapath_common::packet::SlicePacket;
use datapath_common::{Be16, Be32, FlowKey, extract};
use dpif::{Action, Dpif as _, FlowPut, OdpPort, PutMode, Ufid};
use rig::{Arrival, REDIRECT, Rig, SHOT};

/// A UDP packet to this address, with a number in it.
fn packet(to: u32, number: u32) -> Arrival {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    bytes.extend([0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1]);
    bytes.extend(to.to_be_bytes());
    bytes.extend([0, 80, 0, 90, 0, 30, 0, 0]);
    bytes.extend(number.to_be_bytes());
    bytes.resize(64, 0);
    Arrival { port: 1, bytes, ..Arrival::default() }
}

/// A flow for packets of port 1 to this address, which is to match this too.
fn flow(ufid: u128, to: u32, actions: Vec<Action>, change: fn(&mut FlowKey)) -> FlowPut {
    let mut key = FlowKey { in_port: 1, ..FlowKey::ZERO };
    extract::extract(&SlicePacket::new(packet(to, 0).bytes), &mut key).expect("a whole packet");
    let mut mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, eth_type: Be16::MAX, ..FlowKey::ZERO };
    (mask.ipv4_dst, mask.ip_frag) = (Be32::MAX, 0xff);
    change(&mut mask);
    let ufid = Ufid(ufid);
    FlowPut { mode: PutMode::CreateOrModify, ufid, key: key.masked(&mask), mask, actions: actions.into() }
}

fn output(port: u32) -> Vec<Action> {
    vec![Action::Output(OdpPort(port))]
}

const ALL: [&str; 7] = ["eth_src", "ip", "ipv4", "l4", "set", "recirc", "drop"];

#[test]
fn the_program_is_the_one_that_the_flows_need() {
    testkit::require_root_and_bpf!("the_program_is_the_one_that_the_flows_need");
    Rig::with("needs", |rig| {
        assert_eq!(rig.dpif.program().expect("a program").why, "switched off");
        assert_eq!(rig.specialise(true), [] as [&str; 0]);
        assert_eq!(rig.dpif.program().expect("a program").why, "none of 0 flows fits a specialised one");

        let serves = |rig: &Rig| rig.dpif.program().expect("a program").serves.unwrap_or_default();
        let check = |rig: &mut Rig, to: u32, verdict| {
            for _ in 0..3 {
                assert_eq!(rig.run(&packet(to, 0), 1).verdict, verdict, "{to}");
            }
        };
        rig.dpif.flow_put(&flow(1, 1, output(2), |_| {})).expect("a flow");
        assert_eq!(serves(rig), ALL);
        check(rig, 1, REDIRECT);
        assert_eq!(rig.specialise(true), ["ipv4"]);
        check(rig, 1, REDIRECT);
        // It needs more: at once.
        rig.dpif.flow_put(&flow(2, 2, output(2), |mask| mask.tp_dst = Be16::MAX)).expect("a flow");
        assert_eq!(serves(rig), ALL);
        check(rig, 2, REDIRECT);
        assert_eq!(rig.specialise(true), ["ipv4", "l4"]);
        check(rig, 1, REDIRECT);
        check(rig, 2, REDIRECT);
        // So does another program.
        rig.dpif.flow_put(&flow(1, 1, vec![], |_| {})).expect("a flow");
        assert_eq!(serves(rig), ALL);
        check(rig, 1, SHOT);
        assert_eq!(rig.specialise(true), ["ipv4", "l4", "drop"]);
        check(rig, 1, SHOT);
        // A flow that no specialised program runs changes nothing; its packets are handed over.
        rig.dpif.flow_put(&flow(3, 3, output(2), |mask| mask.skb_mark = u32::MAX)).expect("a flow");
        assert_eq!(serves(rig), ["ipv4", "l4", "drop"]);
        check(rig, 3, REDIRECT);
        assert_eq!(rig.dpif.program().expect("a program").why, "as 2 of 3 flows need");

        rig.dpif.flow_del(Ufid(1)).expect("to delete");
        assert_eq!(rig.specialise(true), ["ipv4", "l4"]);
        rig.dpif.flow_flush().expect("to flush");
        assert_eq!(rig.specialise(true), [] as [&str; 0]);
        check(rig, 1, SHOT);
        assert_eq!(rig.dpif.program().expect("a program").refused, 0);
    });
}

#[test]
fn swaps_of_the_tc_program_under_full_traffic_lose_no_packet() {
    testkit::require_root_and_bpf!("swaps_of_the_tc_program_under_full_traffic_lose_no_packet");
    Rig::with("swaps", swaps);
}

#[test]
fn swaps_of_the_xdp_program_under_full_traffic_lose_no_packet() {
    testkit::require_root_and_bpf!("swaps_of_the_xdp_program_under_full_traffic_lose_no_packet");
    Rig::with("swaps", |rig| {
        rig.enable_xdp();
        swaps(rig);
    });
}

/// Sends packets of two flows, to ports 2 and 3, while flows come and go that need more, until the program was changed a hundred
/// times: each comes out of its port, once and in its order, and none elsewhere.
fn swaps(rig: &mut Rig) {
    const SWAPS: u64 = 100;
    /// Packets on their way: fewer than a socket holds.
    const WINDOW: u64 = 64;
    let to = |number: u32| 2 + number % 2;
    for port in [2, 3] {
        rig.dpif.flow_put(&flow(port.into(), port, output(port), |_| {})).expect("a flow");
    }
    rig.dpif.set_specialise(true).expect("to specialise");
    let before = rig.dpif.stats().expect("statistics");
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let received = [AtomicU64::new(0), AtomicU64::new(0)];
    let (wires, dpif) = rig.parts();
    let program = || dpif.program().expect("a program");
    let first = program().swaps;
    std::thread::scope(|scope| {
        let (sent, stop, received) = (&sent, &stop, &received);
        scope.spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !stop.load(Ordering::SeqCst) && Instant::now() < deadline {
                let there: u64 = received.iter().map(|n| n.load(Ordering::SeqCst)).sum();
                let number = sent.load(Ordering::SeqCst);
                if number - there < WINDOW {
                    wires[0].send(&packet(to(number as u32), number as u32).bytes).expect("to send");
                    sent.store(number + 1, Ordering::SeqCst);
                } else {
                    std::thread::yield_now();
                }
            }
            stop.store(true, Ordering::SeqCst);
        });
        for (port, received) in [2u32, 3].into_iter().zip(received) {
            scope.spawn(move || {
                let mut next = port - 2;
                let mut last = Instant::now();
                // Until the last one had its time.
                while !stop.load(Ordering::SeqCst) || last.elapsed() < Duration::from_millis(500) {
                    let Some(frame) = wires[port as usize - 1].recv(Duration::from_millis(100)).expect("to receive")
                    else {
                        continue;
                    };
                    last = Instant::now();
                    let number = frame.bytes.get(42..46).and_then(|bytes| bytes.try_into().ok());
                    assert_eq!(number.map(u32::from_be_bytes), Some(next), "of port {port}");
                    next += 2;
                    received.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let more: [fn(&mut FlowKey); 4] = [
            |mask| mask.ip_ttl = 0xff,
            |mask| mask.tp_dst = Be16::MAX,
            |mask| mask.eth_src = [0xff; 6],
            |mask| (mask.tp_src, mask.ip_tos) = (Be16::MAX, 0xff),
        ];
        let start = Instant::now();
        for change in more.into_iter().cycle() {
            if program().swaps - first >= SWAPS || start.elapsed() > Duration::from_secs(50) {
                break;
            }
            dpif.flow_put(&flow(9, 9, output(3), change)).expect("a flow");
            std::thread::sleep(Duration::from_millis(20));
            dpif.flow_del(Ufid(9)).expect("to delete");
            // Narrow programs wait the longer the more often they were too narrow; this doesn't.
            dpif.set_specialise(false).expect("to switch off");
            dpif.set_specialise(true).expect("to switch on");
        }
        stop.store(true, Ordering::SeqCst);
    });
    let swaps = program().swaps - first;
    let (sent, received) = (sent.into_inner(), received.map(AtomicU64::into_inner));
    println!("{sent} packets during {swaps} changes of the program");
    assert!(swaps >= SWAPS, "{swaps} changes");
    assert_eq!(received.iter().sum::<u64>(), sent);
    assert!(sent > 1000, "{sent} packets are no traffic");
    let after = dpif.stats().expect("statistics");
    assert_eq!((after.hit - before.hit, after.missed), (sent, before.missed));
}
