//! Packets of a batch that only have to be sent: they take another way than the others, and nobody can tell.

mod common;

use common::*;
use datapath_common::{Be16, Vlan};
use dpif::{Action, Dpif, DpifError, DpifOp, Execute, FlowKey, OdpPort, Packet};
use testkit::{Offload, raw::GsoKind};

const P1: OdpPort = OdpPort(1);
const P2: OdpPort = OdpPort(2);

fn packet(data: Vec<u8>) -> Packet {
    Packet { data, ..Packet::default() }
}

/// Executes each packet with its actions, as one batch.
fn execute(dpif: &impl Dpif, packets: &[(Packet, Vec<Action>)], key: &FlowKey) {
    let op = |(packet, actions)| DpifOp::Execute {
        execute: Execute { packet, key, actions },
        result: Err(DpifError::NoSuchFlow),
    };
    let mut ops: Vec<_> = packets.iter().map(|(packet, actions)| op((packet, actions))).collect();
    dpif.operate(&mut ops);
    for op in ops {
        assert!(matches!(op, DpifOp::Execute { result: Ok(()), .. }), "{op:?}");
    }
}

fn drops(dpif: &impl Dpif, reason: &str) -> u64 {
    dpif.stats().unwrap().drops.iter().find(|(name, _)| *name == reason).map_or(0, |(_, count)| *count)
}

#[test]
fn none_overtakes_another_whatever_is_done_to_it() {
    testkit::require_root_and_bpf!("none_overtakes_another_whatever_is_done_to_it");
    let host = Host::new("order");
    let (dpif, left, right) = two_ports(&host);
    let vlan = Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1005) };
    let push = Action::PushVlan(vlan);
    // Every seventh is changed on its way.
    let actions = |i: u16| if i % 7 == 3 { vec![push.clone(), output(P2)] } else { vec![output(P2)] };
    let packets: Vec<_> = (0..200u16).map(|i| (packet(udp(60 + usize::from(i), i)), actions(i))).collect();
    execute(&dpif, &packets, &FlowKey::ZERO);
    for (i, (packet, actions)) in packets.iter().enumerate() {
        let mut frame = packet.data.clone();
        if actions.len() > 1 {
            frame.splice(12..12, [0x81, 0, 0, 5]);
        }
        assert_eq!(right.recv().as_ref(), Some(&frame), "{i}");
    }
    left.assert_quiet();
    right.assert_quiet();
    // A tag in front is not counted, as it is none of the frame's bytes while the kernel has it.
    let bytes: usize = packets.iter().map(|(packet, _)| packet.data.len()).sum();
    let stats = dpif.port_stats(P2).unwrap();
    assert_eq!((stats.tx_packets, stats.tx_bytes, stats.tx_dropped), (200, bytes as u64, 0));
    dpif.destroy().unwrap();
}

#[test]
fn one_packet_leaves_by_many_ports() {
    testkit::require_root_and_bpf!("one_packet_leaves_by_many_ports");
    let host = Host::new("flood");
    let (dpif, left, right) = two_ports(&host);
    // More frames than a system call sends.
    let flood: Vec<Action> = (0..50).flat_map(|_| [output(P1), output(P2)]).collect();
    execute(&dpif, &[(packet(udp(60, 1)), flood)], &FlowKey::ZERO);
    for neighbour in [&left, &right] {
        for i in 0..50 {
            assert_eq!(neighbour.recv(), Some(udp(60, 1)), "{i}");
        }
        neighbour.assert_quiet();
    }
    assert_eq!(dpif.port_stats(P1).unwrap().tx_packets, 50);
    dpif.destroy().unwrap();
}

#[test]
fn what_cant_be_sent_is_counted_and_keeps_nothing_else_back() {
    testkit::require_root_and_bpf!("what_cant_be_sent_is_counted_and_keeps_nothing_else_back");
    let host = Host::new("unsent");
    let (dpif, _left, right) = two_ports(&host);
    let [tagged, provider] = [[0x81, 0, 0, 5], [0x88, 0xa8, 0, 5]].map(|tag| {
        let mut frame = udp(1514, 9);
        frame.splice(12..12, tag);
        frame
    });
    let packets = [
        (packet(udp(1514, 1)), vec![output(P2)]),
        (packet(udp(1515, 2)), vec![output(P2)]),
        (packet(tagged.clone()), vec![output(P2)]),
        // Packet sockets have no room for this one, devices have.
        (packet(provider.clone()), vec![output(P2)]),
        (packet(udp(60, 3)), vec![output(OdpPort(77))]),
        (packet(udp(60, 4)), vec![output(OdpPort(100_000)), output(P2)]),
    ];
    execute(&dpif, &packets, &FlowKey::ZERO);
    for frame in [udp(1514, 1), tagged, provider, udp(60, 4)] {
        assert_eq!(right.recv(), Some(frame));
    }
    right.assert_quiet();
    assert_eq!((drops(&dpif, "mtu"), drops(&dpif, "no-port"), drops(&dpif, "output")), (1, 2, 0));
    let stats = dpif.port_stats(P2).unwrap();
    assert_eq!((stats.tx_packets, stats.tx_dropped), (4, 1));

    // A device that is down, between two that are not.
    host.netns.ip("link set right down").unwrap();
    let packets: Vec<_> = [P2, P1, P2].map(|port| (packet(udp(60, 5)), vec![output(port)])).into();
    execute(&dpif, &packets, &FlowKey::ZERO);
    assert_eq!(drops(&dpif, "output"), 2);
    assert_eq!((dpif.port_stats(P1).unwrap().tx_packets, dpif.port_stats(P2).unwrap().tx_dropped), (1, 3));
    dpif.destroy().unwrap();
}

#[test]
fn what_is_left_to_the_device_and_marks_go_along() {
    testkit::require_root_and_bpf!("what_is_left_to_the_device_and_marks_go_along");
    let host = Host::new("offload");
    let (dpif, left, right) = two_ports(&host);
    dpif.handlers_set(1).unwrap();
    let mut batch = dpif::UpcallBatch::default();
    // An unfinished checksum and a super-packet come up, and go out as they came.
    let segments = testkit::Gso { kind: GsoKind::Tcp4, size: 1400, headers: 54 };
    for gso in [None, Some(segments)] {
        let frame = tcp_super_packet(if gso.is_some() { 5000 } else { 500 });
        left.socket.send_offloaded(&frame, Offload { checksum: Some((34, 16)), gso }).unwrap();
        assert_eq!(wait_for_upcalls(&dpif, &mut batch), 1);
        let upcall = &batch.upcalls()[0];
        assert!(upcall.packet.partial_checksum);
        execute(&dpif, &[(upcall.packet.clone(), vec![output(P2)])], &upcall.key);
        assert_eq!(right.recv(), Some(frame));
    }
    // A mark stays with the packet: what goes out at one end of a wire comes in at the other with it.
    testkit::veth_pair(&host.netns, "one", &host.netns, "other").unwrap();
    let ports = ["one", "other"].map(|name| host.run(|| dpif.port_add(&system(name)).unwrap()));
    for mark in [7, 0] {
        let key = FlowKey { skb_mark: mark, ..FlowKey::ZERO };
        execute(&dpif, &[(packet(udp(60, 1)), vec![output(ports[0])])], &key);
        assert_eq!(wait_for_upcalls(&dpif, &mut batch), 1);
        let key = &batch.upcalls()[0].key;
        assert_eq!((key.in_port, key.skb_mark), (ports[1].0, mark));
    }
    dpif.destroy().unwrap();
}
