//! The in-process datapath from outside: what a packet does to it and what it does to a packet.

mod frames;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use datapath_common::op::DropReason;
use datapath_common::packet::SlicePacket;
use dpif::inproc::{Frame, InprocDatapath, InprocPort, Options};
use dpif::*;
use frames::{checksums_are_right, ethernet, tcp_frame, udp_frame};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::prelude::*;

/// A datapath with ports 1 to 3.
fn datapath() -> (InprocDatapath, [InprocPort; 3]) {
    with_options(Options::new("dp"))
}

fn with_options(options: Options) -> (InprocDatapath, [InprocPort; 3]) {
    let dp = InprocDatapath::with_options(options);
    let ports = ["p1", "p2", "p3"].map(|name| {
        let spec = PortSpec { name: name.into(), kind: PortKind::System, request: None };
        dp.port(dp.port_add(&spec).unwrap()).unwrap()
    });
    (dp, ports)
}

/// A flow for everything that comes in at port 1.
fn flow(ufid: u128, actions: Vec<Action>) -> FlowPut {
    let key = FlowKey { in_port: 1, ..FlowKey::ZERO };
    let mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, ..FlowKey::ZERO };
    FlowPut { mode: PutMode::Create, ufid: Ufid(ufid), key, mask, actions: actions.into() }
}

fn recirculated(ufid: u128, id: u32, actions: Vec<Action>) -> FlowPut {
    let mut put = flow(ufid, actions);
    put.key.recirc_id = id;
    put
}

fn output(port: u32) -> Action {
    Action::Output(OdpPort(port))
}

fn set(attr: KeyAttr, change: impl Fn(&mut FlowKey, &mut FlowKey)) -> Action {
    let (mut value, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
    change(&mut value, &mut mask);
    Action::Set(Box::new(SetAction { attr, value, mask }))
}

fn vlan(tpid: u16, tci: u16) -> Vlan {
    Vlan { tpid: Be16::new(tpid), tci: Be16::new(tci) }
}

fn drops(dp: &InprocDatapath) -> Vec<(&'static str, u64)> {
    dp.stats().unwrap().drops.into_iter().filter(|d| d.1 != 0).collect()
}

fn tagged(tags: &[[u8; 4]], frame: &[u8]) -> Vec<u8> {
    let mut f = frame[..12].to_vec();
    f.extend(tags.iter().flatten());
    f.extend(&frame[12..]);
    f
}

#[test]
fn a_miss_goes_up_and_what_userspace_answers_carries_the_next_packet() {
    let (dp, [p1, p2, _]) = datapath();
    dp.handlers_set(1).unwrap();
    let frame = udp_frame(53, b"question");
    p1.send(frame.as_slice()).unwrap();

    let mut batch = UpcallBatch::default();
    assert_eq!(dp.recv(0, &mut batch).unwrap(), 1);
    let upcall = &batch.upcalls()[0];
    assert_eq!((upcall.kind, upcall.orig_len, &upcall.packet.data), (UpcallKind::Miss, frame.len() as u32, &frame));
    assert_eq!((upcall.key.in_port, upcall.key.tp_dst), (1, Be16::new(53)));
    assert!(upcall.arrival_ns != 0 && upcall.cookie.is_empty());

    dp.flow_put(&flow(1, vec![output(2)])).unwrap();
    dp.execute(Execute { packet: &upcall.packet, key: &upcall.key, actions: &[output(2)] }).unwrap();
    p1.send(frame.as_slice()).unwrap();
    assert_eq!(
        [p2.recv(), p2.recv(), p2.recv()].map(|p| p.map(|p| p.data)),
        [Some(frame.clone()), Some(frame.clone()), None]
    );

    let stats = dp.flow_get(Ufid(1)).unwrap().stats;
    assert_eq!((stats.packets, stats.bytes), (1, frame.len() as u64));
    let stats = dp.stats().unwrap();
    assert_eq!((stats.hit, stats.missed, stats.lost, stats.mask_hit), (1, 1, 0, 1));
    let (rx, tx) = (dp.port_stats(OdpPort(1)).unwrap(), dp.port_stats(OdpPort(2)).unwrap());
    assert_eq!((rx.rx_packets, rx.rx_bytes, rx.upcalls), (2, 2 * frame.len() as u64, 1));
    assert_eq!((tx.tx_packets, tx.tx_bytes), (2, 2 * frame.len() as u64));
}

#[test]
fn actions_change_the_packet_and_its_checksums() {
    let plain = udp_frame(53, b"payload");
    let [prefix, rest] = [&plain[..12], &plain[12..]];
    let with_tag = |tag: &[u8]| [prefix, tag, rest].concat();
    let set_ip = set(KeyAttr::Ipv4, |v, m| (v.ipv4_dst, m.ipv4_dst) = (Be32::new(0x0a09_0807), Be32::MAX));
    let set_port = set(KeyAttr::Udp, |v, m| (v.tp_dst, m.tp_dst) = (Be16::new(5353), Be16::MAX));
    let cases = [
        ("push", plain.clone(), vec![Action::PushVlan(vlan(0x8100, 0x100a))], with_tag(&[0x81, 0, 0, 0x0a])),
        ("pop", with_tag(&[0x81, 0, 0x20, 5]), vec![Action::PopVlan], plain.clone()),
        ("pop without a tag", plain.clone(), vec![Action::PopVlan], plain.clone()),
        (
            "push twice",
            plain.clone(),
            vec![Action::PushVlan(vlan(0x8100, 0x100a)), Action::PushVlan(vlan(0x88a8, 0x3014))],
            with_tag(&[0x88, 0xa8, 0x20, 0x14, 0x81, 0, 0, 0x0a]),
        ),
        (
            "set behind a pop",
            with_tag(&[0x81, 0, 0x20, 5]),
            vec![Action::PopVlan, set_port.clone(), set_port.clone()],
            udp_frame(5353, b"payload"),
        ),
    ];
    for (name, frame, mut actions, expected) in cases {
        let (dp, _) = datapath();
        actions.push(output(2));
        dp.flow_put(&flow(1, actions)).unwrap();
        let trace = dp.process(OdpPort(1), frame.as_slice());
        assert_eq!(trace.outputs(), [(OdpPort(2), expected.as_slice())], "{name}");
    }

    let (dp, _) = datapath();
    dp.flow_put(&flow(1, vec![set_ip, set_port, output(2)])).unwrap();
    let trace = dp.process(OdpPort(1), plain.as_slice());
    let sent = trace.outputs()[0].1;
    assert_eq!((&sent[30..34], &sent[36..38]), ([10, 9, 8, 7].as_slice(), 5353u16.to_be_bytes().as_slice()));
    assert!(checksums_are_right(sent));
}

#[test]
fn a_truncation_holds_for_the_next_output_only() {
    let (dp, _) = datapath();
    let cookie = (0..20).collect::<Vec<u8>>();
    let up = Action::Userspace(UserspaceAction { cookie: cookie.clone(), ..Default::default() });
    dp.handlers_set(1).unwrap();
    dp.flow_put(&flow(1, vec![Action::Trunc(20), up, Action::Trunc(30), output(2), output(3)])).unwrap();
    let frame = udp_frame(1, &[7; 40]);
    let mut packet = SlicePacket::new(frame.clone());
    packet.vlan = vlan(0x8100, 5);
    let trace = dp.process(OdpPort(1), packet);
    let upcall = trace.upcalls()[0];
    // The tag that was taken off is not part of the length that a truncation counts.
    assert_eq!((upcall.packet.data.len(), upcall.orig_len), (24, frame.len() as u32 + 4));
    assert_eq!((upcall.kind, &upcall.cookie), (UpcallKind::Action, &cookie));
    let lengths: Vec<_> = trace.outputs().iter().map(|o| (o.0.0, o.1.len())).collect();
    assert_eq!(lengths, [(3, frame.len() + 4), (2, 34)]);
}

#[test]
fn what_cannot_be_sent_is_counted_and_the_program_goes_on() {
    let (dp, [_, p2, _]) = datapath();
    dp.flow_put(&flow(1, vec![output(77), output(2), output(3)])).unwrap();
    p2.set_mtu(100);
    let frame = udp_frame(1, &[0; 73]);
    let trace = dp.process(OdpPort(1), frame.as_slice());
    assert_eq!(trace.drops(), [DropReason::NoPort, DropReason::Mtu]);
    assert_eq!(trace.outputs().len(), 1);
    assert_eq!(dp.port_stats(OdpPort(2)).unwrap().tx_dropped, 1);

    // One tag is not part of what the MTU limits, wherever it is; a super-packet is cut to fit later.
    let fits = udp_frame(1, &[0; 72]);
    let mut accelerated = SlicePacket::new(fits.clone());
    accelerated.vlan = vlan(0x8100, 5);
    let gso = Frame { packet: SlicePacket::new(frame), gso_size: 1000, ..Frame::default() };
    let one_tag = tagged(&[[0x81, 0, 0, 5]], &fits);
    let two_tags = tagged(&[[0x88, 0xa8, 0, 5], [0x81, 0, 0, 5]], &fits);
    for (name, frame, sent) in [
        ("exactly the MTU", Frame::from(fits.as_slice()), true),
        ("with an accelerated tag", accelerated.into(), true),
        ("super-packet", gso, true),
        ("with a tag in the bytes", one_tag.into(), true),
        ("with two tags", two_tags.into(), false),
    ] {
        let trace = dp.process(OdpPort(1), frame);
        assert_eq!(trace.outputs().iter().any(|o| o.0 == OdpPort(2)), sent, "{name}");
    }
}

#[test]
fn drops_are_counted_by_reason() {
    let set_tcp = set(KeyAttr::Tcp, |v, m| (v.tp_dst, m.tp_dst) = (Be16::new(1), Be16::MAX));
    let cases: Vec<(Vec<Action>, Vec<u8>, DropReason)> = vec![
        (vec![], udp_frame(1, b""), DropReason::Flow),
        (vec![Action::Drop(3)], udp_frame(1, b""), DropReason::Flow),
        // The frame ends in the TCP header.
        (vec![set_tcp, output(2)], tcp_frame(2)[..40].to_vec(), DropReason::Action),
        (vec![output(2)], vec![0; 13], DropReason::Malformed),
        (vec![Action::Recirc(0)], udp_frame(1, b""), DropReason::RecircLimit),
        (vec![output(9)], udp_frame(1, b""), DropReason::NoPort),
        // Three tags hide a broken NSH header; with one less it shows.
        (
            vec![Action::PopVlan, Action::Hash { alg: HashAlg::L4, basis: 0 }, output(2)],
            tagged(&[[0x81, 0, 0, 1]; 3], &ethernet(0x894f, &[0; 3])),
            DropReason::Malformed,
        ),
    ];
    for (actions, frame, reason) in cases {
        let (dp, _) = datapath();
        dp.flow_put(&flow(1, actions)).unwrap();
        let trace = dp.process(OdpPort(1), frame);
        assert_eq!((trace.drops(), trace.outputs().len()), (vec![reason], 0));
        let name = DropReason::ALL.iter().find(|r| r.0 == reason).unwrap().1;
        assert_eq!(drops(&dp), [(name, 1)]);
    }
    let (dp, _) = datapath();
    assert_eq!(dp.process(OdpPort(9), udp_frame(1, b"")).drops(), [DropReason::UnknownInPort]);
}

#[test]
fn a_recirculated_packet_is_looked_up_with_its_id_and_hash() {
    let (dp, _) = datapath();
    let hash = Action::Hash { alg: HashAlg::L4, basis: 7 };
    let push = Action::PushVlan(vlan(0x8100, 0x1009));
    dp.flow_put(&flow(1, vec![push, hash, Action::Recirc(5)])).unwrap();
    dp.flow_put(&recirculated(2, 5, vec![Action::PopVlan, output(2)])).unwrap();
    let frame = udp_frame(53, b"x");
    let trace = dp.process(OdpPort(1), frame.as_slice());
    assert_eq!(trace.outputs(), [(OdpPort(2), frame.as_slice())]);
    let keys: Vec<_> = trace
        .events
        .iter()
        .filter_map(|e| match e {
            dpif::inproc::Event::Lookup { key, ufid, .. } => Some((key, *ufid)),
            _ => None,
        })
        .collect();
    assert_eq!((keys[0].0.recirc_id, keys[0].0.dp_hash, keys[0].1), (0, 0, Some(Ufid(1))));
    assert_eq!((keys[1].0.recirc_id, keys[1].1), (5, Some(Ufid(2))));
    assert!(keys[1].0.dp_hash != 0 && keys[1].0.vlan == vlan(0x8100, 0x1009));
    assert_eq!(dp.stats().unwrap().hit, 2);
}

#[test]
fn execute_runs_lists_that_a_flow_cannot_have() {
    let (dp, [_, p2, p3]) = datapath();
    let list = [Action::Trunc(60), output(2), Action::PushVlan(vlan(0x8100, 0x1002)), output(3)];
    assert!(matches!(dp.flow_put(&flow(1, list.to_vec())), Err(DpifError::Unsupported(..))));
    let packet = Packet::new(udp_frame(1, &[0; 50]));
    let key = FlowKey { in_port: 1, ..FlowKey::ZERO };
    dp.execute(Execute { packet: &packet, key: &key, actions: &list }).unwrap();
    assert_eq!(p2.recv().unwrap().data.len(), 60);
    assert_eq!(p3.recv().unwrap().data, tagged(&[[0x81, 0, 0, 2]], &packet.data));

    dp.flow_put(&recirculated(2, 9, vec![output(2)])).unwrap();
    let list = [Action::Recirc(9), Action::PushVlan(vlan(0x8100, 0x1002)), output(3)];
    dp.execute(Execute { packet: &packet, key: &key, actions: &list }).unwrap();
    assert_eq!(p2.recv().unwrap().data, packet.data);
    assert_eq!(p3.recv().unwrap().data.len(), packet.data.len() + 4);

    let short = Packet::new(vec![0; 5]);
    let error = dp.execute(Execute { packet: &short, key: &key, actions: &list }).unwrap_err();
    assert!(error.to_string().contains("5 bytes"), "{error}");
}

#[test]
fn upcalls_are_lost_without_handlers_and_beyond_the_credit() {
    let (dp, [p1, p2, _]) = with_options(Options { credit: 3, ..Options::new("dp") });
    p1.send(udp_frame(1, b"")).unwrap();
    assert_eq!(drops(&dp), [("upcall-no-handler", 1)]);

    dp.handlers_set(1).unwrap();
    for _ in 0..5 {
        p1.send(udp_frame(1, b"")).unwrap();
    }
    // The other port has its own credit.
    p2.send(udp_frame(1, b"")).unwrap();
    assert_eq!(drops(&dp), [("upcall-no-handler", 1), ("upcall-credit", 2)]);
    let stats = dp.port_stats(OdpPort(1)).unwrap();
    assert_eq!((stats.upcalls, stats.upcall_lost, dp.stats().unwrap().lost), (3, 3, 3));

    let mut batch = UpcallBatch::default();
    assert_eq!(dp.recv(0, &mut batch).unwrap(), 4);
    p1.send(udp_frame(1, b"")).unwrap();
    assert_eq!(dp.recv(0, &mut batch).unwrap(), 1);

    p1.send(vec![0; 65537]).unwrap();
    assert!(drops(&dp).contains(&("upcall-too-large", 1)));
    p1.send(udp_frame(1, b"")).unwrap();
    assert_eq!(dp.recv_purge(0).unwrap(), 1);
    assert!(dp.handlers_set(1000).is_err() && dp.recv(1, &mut batch).is_err());
}

#[test]
fn large_upcalls_of_one_port_leave_room_for_another() {
    let (dp, [p1, p2, p3]) = datapath();
    dp.handlers_set(1).unwrap();
    for port in [&p1, &p2, &p3] {
        for _ in 0..20 {
            port.send(vec![0; 60000]).unwrap();
        }
    }
    for port in 1..=3 {
        let stats = dp.port_stats(OdpPort(port)).unwrap();
        assert!(stats.upcalls >= 10 && stats.upcall_lost > 0, "{stats:?}");
    }
}

#[test]
fn the_descriptor_is_readable_while_there_are_upcalls() {
    let (dp, [p1, ..]) = datapath();
    dp.handlers_set(2).unwrap();
    let send = || {
        for port in 0..64 {
            p1.send(udp_frame(port, b"")).unwrap();
        }
    };
    let readable = || {
        [0, 1].map(|h| {
            let mut fds = [PollFd::new(dp.recv_fd(h).unwrap(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
        })
    };
    let mut batch = UpcallBatch::default();
    send();
    // 64 flows spread over both handlers.
    assert_eq!(readable(), [true, true]);
    let n: usize = [0, 1].map(|h| dp.recv(h, &mut batch).unwrap()).iter().sum();
    assert_eq!((n, readable()), (64, [false, false]));
    send();
    assert_eq!(readable(), [true, true]);
    dp.recv_purge(0).unwrap();
    assert_eq!(readable(), [false, true]);
    assert!(dp.recv_fd(2).is_err());
}

#[test]
fn flows_are_put_and_changed_as_asked() {
    let (dp, _) = with_options(Options { max_flows: 2, max_masks: 2, ..Options::new("dp") });
    let put = |mode, ufid, key: u32, mask: u32, out| {
        let key = FlowKey { in_port: 1, skb_mark: key, ..FlowKey::ZERO };
        let mask = FlowKey { in_port: u32::MAX, skb_mark: mask, ..FlowKey::ZERO };
        dp.flow_put(&FlowPut { mode, ufid: Ufid(ufid), key, mask, actions: [output(out)].into() })
    };
    use PutMode::*;
    assert!(matches!(put(Modify, 1, 0, 1, 2), Err(DpifError::NoSuchFlow)));
    put(Create, 1, 0xfe, 1, 2).unwrap();
    assert_eq!(dp.flow_get(Ufid(1)).unwrap().key.skb_mark, 0);
    assert!(matches!(put(Create, 1, 0, 1, 2), Err(DpifError::FlowExists)));
    assert!(matches!(put(Create, 2, 2, 1, 2), Err(DpifError::FlowExists)));
    assert!(matches!(put(CreateOrModify, 1, 1, 1, 2), Err(DpifError::Invalid(_))));

    dp.process(OdpPort(1), tcp_frame(0x12));
    put(Modify, 1, 0, 1, 3).unwrap();
    assert_eq!(dp.process(OdpPort(1), tcp_frame(0x01)).outputs()[0].0, OdpPort(3));
    put(CreateOrModify, 2, 1, 1, 3).unwrap();
    assert!(matches!(put(Create, 3, 1, 3, 3), Err(DpifError::Full(_))));
    assert_eq!(dp.stats().unwrap().masks, 1);

    let mut seen = vec![];
    dp.flow_dump_stats(&mut |ufid, stats| {
        seen.push((ufid.0, stats.packets));
        true
    })
    .unwrap();
    seen.sort();
    assert_eq!(seen, [(1, 2), (2, 0)]);

    let last = dp.flow_del(Ufid(1)).unwrap();
    assert_eq!((last.packets, last.tcp_flags), (2, 0x13));
    assert!(matches!(dp.flow_del(Ufid(1)), Err(DpifError::NoSuchFlow)));
    dp.flow_flush().unwrap();
    assert_eq!((dp.stats().unwrap().flows, dp.stats().unwrap().masks), (0, 0));
}

#[test]
fn a_flow_says_when_it_was_last_used() {
    let now = Arc::new(AtomicU64::new(5_000_000));
    let clock = Arc::clone(&now);
    let options = Options { clock: Arc::new(move || clock.load(Ordering::Relaxed)), ..Options::new("dp") };
    let (dp, _) = with_options(options);
    dp.flow_put(&flow(1, vec![])).unwrap();
    assert_eq!(dp.flow_get(Ufid(1)).unwrap().stats.used_ms, 0);
    dp.process(OdpPort(1), tcp_frame(0));
    assert_eq!(dp.flow_get(Ufid(1)).unwrap().stats.used_ms, 5);
    now.store(9_999_999, Ordering::Relaxed);
    dp.process(OdpPort(1), tcp_frame(0));
    assert_eq!(dp.flow_get(Ufid(1)).unwrap().stats.used_ms, 9);
}

#[test]
fn ports_get_numbers_and_say_what_happens_to_them() {
    let (dp, [p1, ..]) = datapath();
    let add = |name: &str, kind, request| dp.port_add(&PortSpec { name: name.into(), kind, request });
    assert_eq!(add("dp", PortKind::Internal, None).unwrap(), OdpPort(0));
    assert_eq!(add("x", PortKind::System, Some(OdpPort(40))).unwrap(), OdpPort(40));
    assert_eq!(add("y", PortKind::System, Some(OdpPort(40))).unwrap(), OdpPort(4));
    assert!(matches!(add("y", PortKind::System, None), Err(DpifError::Exists(_))));
    for name in ["", "sixteen-bytes-xx", "a/b", "a b", ".."] {
        assert!(matches!(add(name, PortKind::System, None), Err(DpifError::Invalid(_))), "{name}");
    }

    p1.set_mtu(9000);
    p1.set_mtu(9000);
    p1.detach("device p1 was deleted");
    assert_eq!(
        dp.port_events(),
        [PortEvent::Changed(OdpPort(1)), PortEvent::Detached(OdpPort(1), "device p1 was deleted".into())]
    );
    assert!(dp.port_events().is_empty());
    let info = &dp.ports().unwrap()[1];
    assert_eq!((info.mtu, info.error.as_deref()), (9000, Some("device p1 was deleted")));
    assert!(p1.send(udp_frame(1, b"")).is_err());
    dp.flow_put(&FlowPut { key: FlowKey { in_port: 2, ..FlowKey::ZERO }, ..flow(1, vec![output(1)]) }).unwrap();
    assert_eq!(dp.process(OdpPort(2), udp_frame(1, b"")).drops(), [DropReason::NoPort]);

    dp.port_del(OdpPort(1)).unwrap();
    assert!(matches!(dp.port_del(OdpPort(1)), Err(DpifError::NoSuchPort(_))));
    assert_eq!(add("p1", PortKind::System, None).unwrap(), OdpPort(1));
    assert!(p1.send(udp_frame(1, b"")).is_err(), "the handle is the old port's");
}

#[test]
fn the_statistics_of_a_deleted_flow_are_final_and_nothing_is_lost() {
    const SENDERS: u64 = 2;
    const PACKETS: u64 = 20_000;
    let (dp, [p1, ..]) = with_options(Options { port_queue: usize::MAX, ..Options::new("dp") });
    let done = AtomicBool::new(false);
    let counted: u64 = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..PACKETS {
                        p1.send(udp_frame(1, b"")).unwrap();
                    }
                })
            })
            .collect();
        let churn = scope.spawn(|| {
            let (mut counted, mut ufid) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                ufid += 1;
                dp.flow_put(&flow(ufid, vec![output(2)])).unwrap();
                let mut put = flow(ufid, vec![output(3)]);
                put.mode = PutMode::Modify;
                dp.flow_put(&put).unwrap();
                std::thread::yield_now();
                counted += dp.flow_del(Ufid(ufid)).unwrap().packets;
            }
            counted
        });
        for sender in senders {
            sender.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        churn.join().unwrap()
    });
    let stats = dp.stats().unwrap();
    assert_eq!((stats.hit, stats.hit + stats.missed, stats.lost), (counted, SENDERS * PACKETS, stats.missed));
    let sent: u64 = [2, 3].map(|p| dp.port_stats(OdpPort(p)).unwrap().tx_packets).iter().sum();
    assert_eq!(sent, counted);
}

#[test]
fn a_full_port_drops_and_counts() {
    let (dp, [p1, p2, _]) = with_options(Options { port_queue: 2, ..Options::new("dp") });
    dp.flow_put(&flow(1, vec![output(2)])).unwrap();
    for _ in 0..3 {
        p1.send(udp_frame(1, b"")).unwrap();
    }
    assert_eq!(drops(&dp), [("output", 1)]);
    assert_eq!([p2.recv(), p2.recv(), p2.recv()].iter().flatten().count(), 2);
}

/// Any action that a flow can have, with values that packets may or may not fit.
fn any_action() -> impl Strategy<Value = Action> {
    let any_set = (0usize..9, any::<[u64; 4]>()).prop_map(|(which, bits)| {
        use KeyAttr::*;
        let attr = [Ethernet, Ipv4, Ipv6, Tcp, Udp, Icmp, Icmpv6, Arp, SkbMark][which];
        set(attr, |v, m| {
            let words: &[usize] = match attr {
                Ethernet => &[1, 2],
                Ipv4 => &[4, 5],
                Ipv6 => &[4, 12, 13, 16],
                Arp => &[4, 5, 19, 20],
                SkbMark => &[7],
                _ => &[4],
            };
            for (word, bits) in words.iter().zip(bits) {
                let mask = bits.rotate_left(7) & datapath_common::apply::settable(*word);
                (v.words_mut()[*word], m.words_mut()[*word]) = (bits & mask, mask);
            }
        })
    });
    prop_oneof![
        3 => (1u32..5).prop_map(output),
        4 => any_set,
        1 => any::<[u16; 2]>().prop_map(|[t, tci]| Action::PushVlan(vlan(if t & 1 == 0 { 0x8100 } else { 0x88a8 }, tci | 0x1000))),
        1 => Just(Action::PopVlan),
        1 => (0u32..3).prop_map(Action::Recirc),
        1 => any::<u32>().prop_map(|basis| Action::Hash { alg: HashAlg::L4, basis }),
        1 => (14u32..100).prop_map(Action::Trunc),
        1 => prop::collection::vec(any::<u8>(), 0..40)
            .prop_map(|cookie| Action::Userspace(UserspaceAction { cookie, ..Default::default() })),
    ]
}

/// Frames that are right, cut off, damaged, or noise.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let tag = [0x81, 0, 0, 5];
    let base = prop_oneof![
        Just(udp_frame(53, b"some payload")),
        Just(tcp_frame(0x12)),
        Just(tagged(&[tag], &tcp_frame(0x10))),
        Just(tagged(&[[0x88, 0xa8, 0, 1], tag, tag], &udp_frame(1, b""))),
        Just(ethernet(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1, 1, 1, 1, 1, 1, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2])),
        Just(ethernet(
            0x86dd,
            &[&[0x60, 0, 0, 0, 0, 40, 0, 64][..], &[1; 32], &[58, 0, 0, 0, 0, 0, 0, 0, 135], &[0; 40]].concat()
        )),
        prop::collection::vec(any::<u8>(), 0..120),
    ];
    (
        base,
        any::<prop::sample::Index>(),
        any::<bool>(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    )
        .prop_map(|(mut frame, cut, whole, damage)| {
            for (at, byte) in damage {
                if !frame.is_empty() {
                    let at = at.index(frame.len());
                    frame[at] = byte;
                }
            }
            if !whole {
                frame.truncate(cut.index(frame.len() + 1));
            }
            frame
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn no_frame_and_no_program_is_too_strange(
        actions in prop::collection::vec(any_action(), 0..8),
        frames in prop::collection::vec((any_frame(), any::<bool>(), any::<bool>()), 1..4),
    ) {
        let (dp, _) = datapath();
        dp.handlers_set(2).unwrap();
        let installed = dp.flow_put(&flow(1, actions.clone())).is_ok();
        let mut bytes = 0;
        for (frame, partial_checksum, accelerated) in frames {
            bytes += frame.len() as u64;
            let tag = if accelerated { vlan(0x8100, 7) } else { Vlan::default() };
            let packet = SlicePacket { bytes: frame.clone(), vlan: tag, partial_checksum };
            let trace = dp.process(OdpPort(1), packet);
            // Each packet ends somewhere, unless its program only changed it.
            let ends = trace.outputs().len() + trace.upcalls().len() + trace.drops().len();
            let sends = actions.iter().any(|a| matches!(a, Action::Output(_) | Action::Userspace(_) | Action::Recirc(_)));
            prop_assert!(ends > 0 || !sends);
            let key = FlowKey { in_port: 1, ..FlowKey::ZERO };
            let _ = dp.process_execute(Execute { packet: &Packet::new(frame), key: &key, actions: &actions });
        }
        let stats = dp.stats().unwrap();
        let port = dp.port_stats(OdpPort(1)).unwrap();
        prop_assert_eq!(port.rx_bytes, bytes);
        if installed && !actions.iter().any(|a| matches!(a, Action::Recirc(_))) {
            let flow = dp.flow_get(Ufid(1)).unwrap().stats;
            prop_assert_eq!(flow.packets, stats.hit);
            prop_assert_eq!(flow.packets + port.rx_dropped, port.rx_packets);
        }
    }
}
