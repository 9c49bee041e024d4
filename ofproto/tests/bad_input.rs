//! Input that is wrong, whoever made it so: records, keys and cookies that lie, numbers that stand for nothing, a datapath that
//! says no. Nothing panics, packets go on as far as they can, and every loss is counted.

mod common;
#[path = "upcall/faulty.rs"]
#[allow(dead_code)]
mod faulty;
#[path = "slow_path/world.rs"]
#[allow(dead_code)]
mod world;

use std::sync::atomic::Ordering;

use common::{MACS, Rng, key_of, random_frame, udp_frame};
use datapath_common::{Be16, Be64, FlowKey};
use dpif::odp::{Cookie, CookieKind, SlowPath};
use dpif::{Dpif, DpifError, Packet, Upcall, UpcallKind};
use ofproto::upcall::HandlerReport;
use world::World;

const A: [u8; 6] = MACS[0];
const B: [u8; 6] = MACS[1];
/// p1's number in the datapath.
const P1: u32 = 2;

/// What a datapath can answer: the kernel's ENOSPC, EEXIST, ENOENT and EBUSY.
const ERRORS: [fn() -> DpifError; 4] = [
    || DpifError::Full("no room".into()),
    || DpifError::FlowExists,
    || DpifError::NoSuchFlow,
    || DpifError::Io("busy".into(), std::io::Error::from_raw_os_error(16)),
];

fn miss(frame: Vec<u8>, change: impl FnOnce(&mut FlowKey)) -> Upcall {
    let mut key = key_of(&frame, P1).unwrap();
    change(&mut key);
    Upcall { key, packet: Packet::new(frame), ..Upcall::default() }
}

fn inject(world: &World, upcalls: Vec<Upcall>) -> HandlerReport {
    // A batch is what a datapath hands over at once.
    for upcalls in upcalls.chunks(60) {
        world.faulty.inject.lock().extend_from_slice(upcalls);
        world.switch.await_upcalls();
    }
    world.report()
}

/// Each upcall is in exactly one of these.
fn accounted(report: &HandlerReport) -> u64 {
    report.outcomes().iter().map(|(_, n)| n).sum()
}

#[test]
fn records_that_are_none_are_counted_and_the_next_one_is_answered() {
    // How a record is told from what is none is tested where records are: in the datapath that has a ring.
    let world = World::new(&["actions=2"]);
    world.faulty.bad_records.store(3, Ordering::SeqCst);
    world.switch.synchronize();
    assert_eq!((world.report().bad_record, world.report().received), (3, 0));
    world.ports[0].send(udp_frame(B, A, &[])).unwrap();
    assert_eq!((world.out(2).len(), world.flows().len()), (1, 1));
}

#[test]
fn keys_that_contradict_their_packets_are_dropped_and_make_no_flow() {
    type Change = fn(&mut FlowKey);
    let world = World::new(&["actions=2"]);
    let changes: [Change; 7] = [
        |key| key.ip_proto = 6,
        |key| key.eth_type = Be16::new(0x86dd),
        |key| key.ipv4_src = datapath_common::Be32::new(0x0a00_0006),
        |key| key.tp_dst = Be16::new(0x0f0f),
        |key| key.eth_dst = [0xaf; 6],
        |key| key.ip_ttl = 0x81,
        |key| key.ip_frag = 3,
    ];
    let n = changes.len() as u64;
    let report = inject(&world, changes.map(|change| miss(udp_frame(B, A, &[]), change)).to_vec());
    // The last says that the packet is a fragment: more than it says itself, and nothing against it.
    assert_eq!((report.received, report.contradictory, report.unfit), (n, n - 1, 1));
    assert_eq!((world.out(2).len(), world.flows().len()), (1, 1));
    assert!(world.flows()[0].ends_with("actions:userspace(pid=0,slow_path(match))"), "{:?}", world.flows());
}

#[test]
fn packets_without_readable_headers_are_dropped() {
    let world = World::new(&["actions=2"]);
    let short = |len| Upcall { packet: Packet::new(vec![0; len]), ..miss(udp_frame(B, A, &[]), |_| {}) };
    let report = inject(&world, [0, 1, 13].map(short).to_vec());
    assert_eq!((report.malformed, world.out(2).len(), world.flows().len()), (3, 0, 0));
}

#[test]
fn cookies_of_a_wrong_size_or_of_no_kind_are_dropped() {
    let world = World::new(&["actions=2"]);
    let good = Cookie::new(CookieKind::SlowPath(SlowPath::ACTION)).encode();
    let mut cookies: Vec<Vec<u8>> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
    cookies.push([good.clone(), vec![0]].concat());
    cookies.push(vec![0; good.len()]);
    cookies.push(vec![0xff; good.len()]);
    cookies.push(vec![1; 4096]);
    let n = cookies.len() as u64;
    let action = |cookie| Upcall { kind: UpcallKind::Action, cookie, ..miss(udp_frame(B, A, &[]), |_| {}) };
    let report = inject(&world, cookies.into_iter().map(action).collect());
    assert_eq!((report.received, report.bad_cookie, world.out(2).len(), world.flows().len()), (n, n, 0, 0));
    assert_eq!((inject(&world, vec![action(good)]).executed, world.out(2).len()), (1, 1));
}

#[test]
fn a_miss_with_an_unknown_recirculation_id_is_a_counted_drop_without_a_flow() {
    let world = World::new(&["actions=2"]);
    for id in [1, 77, u32::MAX] {
        let before = (coverage::total("xlate_no_recirculation_context"), world.report().dropped);
        let report = inject(&world, vec![miss(udp_frame(B, A, &[]), |key| key.recirc_id = id)]);
        assert_eq!(report.dropped, before.1 + 1, "{id}");
        assert!(coverage::total("xlate_no_recirculation_context") > before.0, "{id}");
        assert_eq!((world.out(2).len(), world.flows().len()), (0, 0), "{id}");
    }
}

#[test]
fn a_queue_that_fills_up_again_and_again_loses_only_what_it_counts() {
    let world = World::new(&["actions=2"]);
    let (mut sent, mut out) = (0, 0);
    for round in 1..=4u64 {
        {
            let _gate = world.faulty.gate.write();
            // No flow may spare them the queue.
            world.dp.flow_flush().unwrap();
            for _ in 0..20_000 {
                world.ports[0].send(udp_frame(B, A, &[])).unwrap();
                sent += 1;
            }
        }
        out += world.out(2).len() as u64;
        let (stats, report) = (world.dp.stats().unwrap(), world.report());
        assert!(stats.lost > 0, "round {round}: the queue was not full");
        assert_eq!(report.received + stats.lost + stats.hit, sent, "round {round}");
        assert_eq!((accounted(&report), report.executed + stats.hit), (report.received, out), "round {round}");
    }
}

#[test]
fn whatever_the_datapath_says_to_a_flow_or_a_packet_the_other_goes_on() {
    for error in ERRORS {
        let world = World::new(&["actions=2"]);
        *world.faulty.put_error.lock() = Some(error);
        world.ports[0].send(udp_frame(B, A, &[])).unwrap();
        assert_eq!(world.out(2).len(), 1, "{:?}", error());
        let report = world.report();
        let refused = if matches!(error(), DpifError::FlowExists) { (0, 1) } else { (1, 0) };
        assert_eq!((report.put_failed, report.duplicate, report.installed), (refused.0, refused.1, 0), "{:?}", error());
        *world.faulty.put_error.lock() = None;

        *world.faulty.execute_error.lock() = Some(error);
        world.ports[0].send(udp_frame(B, A, &[])).unwrap();
        assert_eq!(world.out(2).len(), 0, "{:?}", error());
        let report = world.report();
        assert_eq!((report.execute_failed, report.installed, accounted(&report)), (1, 1, 2), "{:?}", error());
        *world.faulty.execute_error.lock() = None;
        world.ports[0].send(udp_frame(B, A, &[])).unwrap();
        assert_eq!((world.out(2).len(), world.report().received), (1, 2), "{:?}: the flow is there", error());
    }
}

#[test]
fn a_flow_that_the_datapath_does_not_delete_is_deleted_when_it_does() {
    for error in ERRORS {
        let world = World::new(&["actions=2"]);
        world.ports[0].send(udp_frame(B, A, &[])).unwrap();
        assert_eq!((world.out(2).len(), world.flows().len()), (1, 1));
        *world.faulty.del_error.lock() = Some(error);
        for _ in 0..3 {
            world.clock.advance_ms(20_000);
            world.switch.revalidate_now();
            assert_eq!(world.flows().len(), 1, "{:?}", error());
        }
        *world.faulty.del_error.lock() = None;
        for _ in 0..3 {
            world.clock.advance_ms(20_000);
            world.switch.revalidate_now();
        }
        assert_eq!((world.flows().len(), world.switch.upcall_summary().current), (0, 0), "{:?}", error());
    }
}

#[test]
fn a_datapath_that_does_not_hand_over_upcalls_is_asked_again() {
    let world = World::new(&["actions=2"]);
    *world.faulty.recv_error.lock() = Some(ERRORS[3]);
    world.ports[0].send(udp_frame(B, A, &[])).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert_eq!((world.report().received, world.report().restarts), (0, 0));
    *world.faulty.recv_error.lock() = None;
    let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while world.report().executed == 0 && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(world.out(2).len(), 1);
}

#[test]
fn handlers_that_die_again_and_again_are_started_again_and_counted() {
    let world = World::new(&["actions=2"]);
    for n in 1..=3 {
        world.faulty.panics.store(true, Ordering::SeqCst);
        world.dp.flow_flush().unwrap();
        // What is left of the flow that was not put is no obstacle for long.
        (0..5).for_each(|_| world.switch.revalidate_now());
        world.ports[0].send(udp_frame(B, A, &[])).unwrap();
        world.switch.synchronize();
        let report = world.report();
        assert_eq!((report.restarts, report.lost_in_panic, accounted(&report)), (n, 0, report.received));
        assert_eq!(world.out(2).len(), 1, "a packet alone goes before its flow is put");
        (0..5).for_each(|_| world.switch.revalidate_now());
        world.ports[0].send(udp_frame(B, A, &[])).unwrap();
        assert_eq!(world.out(2).len(), 1, "{n}");
    }
}

/// Upcalls at random: right ones with something wrong about them.
#[test]
fn whatever_comes_up_nothing_panics_and_everything_is_counted() {
    let flows = [
        "priority=9,ip,actions=dec_ttl,controller(max_len=60),mod_nw_tos:4,2",
        "priority=8,ipv6,actions=debug_recirc,3",
        "priority=7,arp,actions=output(port=2,max_len=40),mod_dl_src:02:00:00:00:00:07,3",
        "priority=1,actions=NORMAL",
    ];
    let world = World::new(&flows);
    world.switch.set_packet_in_sink(Some(std::sync::Arc::new(ofproto::packet_in::PacketInQueue::new(10))));
    let mut rng = Rng(common::env("BAD_INPUT_SEED", 7) as u64);
    let n = common::env("BAD_INPUT_CASES", 6_000);
    let upcalls = (0..n).map(|_| random_upcall(&mut rng)).collect();
    let report = inject(&world, upcalls);
    assert_eq!((report.restarts, report.lost_in_panic), (0, 0));
    // Packets that were executed for a controller come up again, by the datapath.
    assert!(report.received >= n as u64);
    assert_eq!(accounted(&report), report.received, "{report:?}");
    for (what, count) in [
        ("bad cookies", report.bad_cookie),
        ("contradictory keys", report.contradictory),
        ("malformed packets", report.malformed),
        ("unfit keys", report.unfit),
        ("packets for controllers", report.packet_in),
        ("samples", report.ipfix),
        ("ports of no bridge", report.unknown_port),
        ("packets executed", report.executed),
    ] {
        assert!(count > 0, "there were no {what}: {report:?}");
    }
}

fn random_upcall(rng: &mut Rng) -> Upcall {
    let mut frame = random_frame(rng);
    let mut key = key_of(&frame, rng.pick(&[P1, P1, P1, 3, 4, 99])).unwrap_or(FlowKey::ZERO);
    if rng.one_in(4) {
        key.recirc_id = rng.pick(&[0, 1, 2, 77]);
    }
    if rng.one_in(4) {
        let words = key.words_mut();
        let at = rng.below(words.len());
        let flipped = words[at] ^ (1 << rng.below(64));
        words[at] = rng.pick(&[0, u64::MAX, flipped]);
    }
    match rng.below(8) {
        0 => frame.truncate(rng.below(frame.len() + 1)),
        1 => frame.extend(vec![0; rng.below(3000)]),
        2 => {
            let at = rng.below(frame.len());
            frame[at] = rng.next() as u8;
        }
        _ => {}
    }
    let kinds = [
        CookieKind::SlowPath(rng.next() as u32),
        CookieKind::Ipfix { output_port: rng.next() as u32 },
        CookieKind::SFlow { vlan_tci: Be16::new(1), output: 0 },
        CookieKind::Controller {
            dont_send: false,
            continuation: true,
            reason: rng.pick(&[0, 1, 6, 7, 0xffff]),
            recirc_id: rng.pick(&[0, 1, 2, 3]),
            rule_cookie: Be64::new(rng.next()),
            controller_id: 0,
            max_len: rng.pick(&[0, 1, 100, 0xffff]),
        },
    ];
    let mut cookie = Cookie { in_port: rng.next() as u32, bridge: 0, kind: rng.pick(&kinds) }.encode();
    if rng.one_in(3) {
        cookie.resize(rng.below(100), rng.next() as u8);
    }
    let packet = Packet {
        data: frame,
        gso_size: rng.pick(&[0, 0, 1, 100, 0xffff]),
        partial_checksum: rng.one_in(3),
        mru: rng.pick(&[0, 1400, 1]),
        ..Packet::default()
    };
    let kind = rng.pick(&[UpcallKind::Miss, UpcallKind::Action]);
    let arrival_ns = rng.pick(&[0, u64::MAX, 1_000_000_000]);
    Upcall { kind, packet, key, cookie, arrival_ns, ..Upcall::default() }
}
