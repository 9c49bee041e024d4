//! Packets through the datapath: forwarded, sent up, executed.

mod common;

use common::*;
use dpif::{
    Action, Dpif, DpifError, DpifOp, Execute, FlowKey, OdpPort, Packet, PutMode, Ufid, UpcallBatch, UpcallKind,
    UserspaceAction,
};
use testkit::raw::GsoKind;
use testkit::{Gso, Offload};

const P1: OdpPort = OdpPort(1);
const P2: OdpPort = OdpPort(2);

#[test]
fn a_flow_forwards_and_counts() {
    testkit::require_root_and_bpf!("a_flow_forwards_and_counts");
    let host = Host::new("forward");
    let (dpif, left, right) = two_ports(&host);
    let put = flow_of_port(P1, vec![output(P2)]);
    dpif.flow_put(&put).unwrap();
    for len in [60, 1514] {
        left.socket.send(&udp(len, 7)).unwrap();
        assert_eq!(right.recv().unwrap(), udp(len, 7));
    }
    right.assert_quiet();
    let flow = dpif.flow_get(put.ufid).unwrap();
    assert_eq!((flow.stats.packets, flow.stats.bytes), (2, 1574));
    assert!(flow.stats.used_ms > 0);
    let (one, two) = (dpif.port_stats(P1).unwrap(), dpif.port_stats(P2).unwrap());
    assert_eq!((one.rx_packets, one.rx_bytes, two.tx_packets, two.tx_bytes), (2, 1574, 2, 1574));
    let stats = dpif.stats().unwrap();
    assert_eq!((stats.hit, stats.missed, stats.flows, stats.masks), (2, 0, 1, 1));

    // Without handlers a miss is lost, and counted for its port.
    right.socket.send(&udp(60, 7)).unwrap();
    assert!(testkit::wait_until(SOON, || dpif.stats().unwrap().lost == 1));
    assert_eq!(dpif.port_stats(P2).unwrap().upcall_lost, 1);

    // A modified flow keeps its statistics; a deleted one says them.
    let put = dpif::FlowPut { mode: PutMode::Modify, actions: Default::default(), ..put };
    dpif.flow_put(&put).unwrap();
    left.socket.send(&udp(100, 7)).unwrap();
    assert!(testkit::wait_until(SOON, || dpif.flow_get(put.ufid).unwrap().stats.packets == 3));
    right.assert_quiet();
    assert_eq!(dpif.flow_del(put.ufid).unwrap().bytes, 1674);
    assert!(matches!(dpif.flow_del(put.ufid), Err(DpifError::NoSuchFlow)));
    assert_eq!(dpif.stats().unwrap().masks, 0);
    dpif.destroy().unwrap();
}

#[test]
fn a_miss_goes_up_whole_whatever_its_size() {
    testkit::require_root_and_bpf!("a_miss_goes_up_whole_whatever_its_size");
    let host = Host::new("miss");
    let (dpif, left, _right) = two_ports(&host);
    for device in ["left", "right"] {
        host.netns.ip(&format!("link set {device} mtu 9000")).unwrap();
    }
    left.netns.ip("link set eth0 mtu 9000").unwrap();
    dpif.handlers_set(1).unwrap();
    let mut batch = UpcallBatch::default();
    for len in [60, 100, 256, 257, 1000, 1514, 5000, 9014] {
        let frame = udp(len, 1);
        left.socket.send(&frame).unwrap();
        assert_eq!(wait_for_upcalls(&dpif, &mut batch), 1, "{len}");
        let upcall = &batch.upcalls()[0];
        assert_eq!(upcall.packet.data, frame);
        assert_eq!((upcall.kind, upcall.orig_len as usize, upcall.packet.gso_size), (UpcallKind::Miss, len, 0));
        assert_eq!((upcall.key.in_port, upcall.key.ip_proto, upcall.key.tp_dst.get()), (1, 17, 53));
        assert!(!upcall.packet.partial_checksum && upcall.arrival_ns > 0);
    }
    // Tagged: the kernel takes the tag off, the upcall has it again.
    let mut tagged = udp(100, 1);
    tagged.splice(12..12, [0x81, 0, 0x60, 0x05]);
    left.socket.send(&tagged).unwrap();
    assert_eq!(wait_for_upcalls(&dpif, &mut batch), 1);
    assert_eq!(batch.upcalls()[0].packet.data, tagged);
    assert_eq!(batch.upcalls()[0].key.vlan.tci.get(), 0x7005);
    // Super-packets, as the local stack leaves them to the device.
    for len in [3000, 30000, 65535] {
        let gso = Gso { kind: GsoKind::Tcp4, size: 1400, headers: 54 };
        let frame = tcp_super_packet(len);
        left.socket.send_offloaded(&frame, Offload { checksum: Some((34, 16)), gso: Some(gso) }).unwrap();
        assert_eq!(wait_for_upcalls(&dpif, &mut batch), 1, "{len}");
        let packet = &batch.upcalls()[0].packet;
        assert!(packet.data == frame, "{len}");
        assert_eq!((packet.gso_size, packet.partial_checksum), (1400, true));
    }
    assert_eq!(dpif.stats().unwrap().lost, 0);
    assert_eq!(dpif.port_stats(P1).unwrap().upcalls, 12);
    dpif.destroy().unwrap();
}

#[test]
fn a_storm_of_one_port_is_bounded_and_counted() {
    testkit::require_root_and_bpf!("a_storm_of_one_port_is_bounded_and_counted");
    let host = Host::new("storm");
    let (dpif, left, right) = two_ports(&host);
    dpif.handlers_set(1).unwrap();
    let sent = 3000;
    for i in 0..sent {
        left.socket.send(&udp(60, i)).unwrap();
    }
    let stats = |port| dpif.port_stats(port).unwrap();
    assert!(testkit::wait_until(SOON, || stats(P1).rx_packets == u64::from(sent)));
    let queued = stats(P1).upcalls;
    assert!(queued <= 1024 && queued + stats(P1).upcall_lost == u64::from(sent), "{:?}", stats(P1));
    // The other port still gets through.
    right.socket.send(&udp(60, 1)).unwrap();
    assert!(testkit::wait_until(SOON, || stats(P2).upcalls == 1));
    let mut batch = UpcallBatch::default();
    let mut received = 0;
    while received <= queued {
        let n = wait_for_upcalls(&dpif, &mut batch);
        assert!(n > 0 && n <= UpcallBatch::MAX, "{received}");
        received += n as u64;
    }
    // The credit is back.
    left.socket.send(&udp(60, 1)).unwrap();
    assert_eq!(wait_for_upcalls(&dpif, &mut batch), 1);
    left.socket.send(&udp(60, 1)).unwrap();
    assert!(testkit::wait_until(SOON, || stats(P1).upcalls == queued + 2));
    assert_eq!(dpif.recv_purge(0).unwrap(), 1);
    assert_eq!(dpif.recv(0, &mut batch).unwrap(), 0);
    dpif.destroy().unwrap();
}

#[test]
fn a_packet_is_executed_whatever_its_size_and_its_actions() {
    testkit::require_root_and_bpf!("a_packet_is_executed_whatever_its_size_and_its_actions");
    let host = Host::new("execute");
    let (dpif, left, right) = two_ports(&host);
    for device in ["left", "right"] {
        host.netns.ip(&format!("link set {device} mtu 9000")).unwrap();
    }
    for neighbour in [&left, &right] {
        neighbour.netns.ip("link set eth0 mtu 9000").unwrap();
    }
    assert!(testkit::wait_until(SOON, || dpif.ports().unwrap().iter().all(|port| port.mtu == 9000)));
    dpif.handlers_set(1).unwrap();
    let mut key = FlowKey::ZERO;
    key.in_port = 1;
    let run = |packet: &Packet, actions: &[Action]| dpif.execute(Execute { packet, key: &key, actions });

    for len in [60, 1514, 9014] {
        run(&Packet::new(udp(len, 1)), &[output(P2)]).unwrap();
        assert_eq!(right.recv().unwrap(), udp(len, 1), "{len}");
    }
    // Larger than the MTU: dropped, counted.
    run(&Packet::new(udp(9015, 1)), &[output(P2)]).unwrap();
    right.assert_quiet();
    assert!(dpif.stats().unwrap().drops.contains(&("mtu", 1)));

    for len in [3000, 65535] {
        let packet =
            Packet { data: tcp_super_packet(len), gso_size: 1400, partial_checksum: true, ..Packet::default() };
        run(&packet, &[output(P2)]).unwrap();
        let frame = right.socket.recv(SOON).unwrap().unwrap();
        assert!(frame.bytes == packet.data, "{len}");
        assert_eq!(frame.offload.checksum, Some((34, 16)));
        assert_eq!(frame.offload.gso.map(|gso| (gso.kind, gso.size)), Some((GsoKind::Tcp4, 1400)));
    }

    // A list that one packet without copies can't run.
    let vlan = dpif::Vlan { tpid: dpif::Be16::new(0x8100), tci: dpif::Be16::new(0x1005) };
    run(&Packet::new(udp(100, 1)), &[Action::Trunc(60), output(P1), Action::PushVlan(vlan), output(P2)]).unwrap();
    assert_eq!(left.recv().unwrap(), udp(100, 1)[..60]);
    let mut tagged = udp(100, 1);
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    assert_eq!(right.recv().unwrap(), tagged);

    // A long list, with a cookie at the seam between two slots.
    let mut actions = vec![output(P1); 25];
    actions.push(Action::Userspace(UserspaceAction { cookie: (0..100).collect(), ..UserspaceAction::default() }));
    actions.extend(vec![output(P2); 200]);
    run(&Packet::new(udp(60, 1)), &actions).unwrap();
    for (neighbour, n) in [(&left, 25), (&right, 200)] {
        assert_eq!(neighbour.socket.recv_all(QUIET).unwrap().len(), n);
    }
    let mut batch = UpcallBatch::default();
    assert_eq!(wait_for_upcalls(&dpif, &mut batch), 1);
    let upcall = &batch.upcalls()[0];
    assert_eq!((upcall.kind, upcall.key.in_port), (UpcallKind::Action, 1));
    assert_eq!(upcall.cookie, (0..100).collect::<Vec<u8>>());

    // Recirculation finds flows of this key.
    let mut put = flow_of_port(P1, vec![output(P2)]);
    (put.key.recirc_id, put.mask.recirc_id) = (77, u32::MAX);
    dpif.flow_put(&put).unwrap();
    run(&Packet::new(udp(60, 9)), &[Action::Recirc(77)]).unwrap();
    assert_eq!(right.recv().unwrap(), udp(60, 9));
    assert_eq!(dpif.flow_get(put.ufid).unwrap().stats.packets, 1);

    // Nothing to do, too short, unknown.
    run(&Packet::new(udp(60, 1)), &[]).unwrap();
    assert!(matches!(run(&Packet::new([0; 13]), &[output(P2)]), Err(DpifError::Invalid(_))));
    let error = run(&Packet::new(udp(60, 1)), &[Action::Meter(3)]).unwrap_err();
    assert!(matches!(&error, DpifError::Unsupported(what, _) if what.contains("meter")), "{error}");
    right.assert_quiet();
    dpif.destroy().unwrap();
}

#[test]
fn threads_execute_side_by_side() {
    testkit::require_root_and_bpf!("threads_execute_side_by_side");
    let host = Host::new("threads");
    let (dpif, left, right) = two_ports(&host);
    let (threads, each) = (8, 200);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let dpif = &dpif;
            scope.spawn(move || {
                for i in 0..each {
                    let port = if (thread + i) % 2 == 0 { P1 } else { P2 };
                    // The port in the packet says where it must arrive.
                    let packet = Packet::new(udp(60, port.0 as u16));
                    dpif.execute(Execute { packet: &packet, key: &FlowKey::ZERO, actions: &[output(port)] }).unwrap();
                }
            });
        }
    });
    for (neighbour, port) in [(&left, 1), (&right, 2)] {
        let frames = neighbour.socket.recv_all(QUIET).unwrap();
        assert_eq!(frames.len(), threads * each / 2);
        assert!(frames.iter().all(|frame| frame.bytes == udp(60, port)));
    }
    dpif.destroy().unwrap();
}

#[test]
fn a_batch_is_done_in_order() {
    testkit::require_root_and_bpf!("a_batch_is_done_in_order");
    let host = Host::new("batch");
    let (dpif, left, right) = two_ports(&host);
    let put = flow_of_port(P1, vec![output(P2)]);
    dpif.flow_put(&put).unwrap();
    left.socket.send(&udp(60, 1)).unwrap();
    right.recv().unwrap();
    let nothing = || Err(DpifError::NoSuchFlow);
    let create = dpif::FlowPut { mode: PutMode::Create, actions: Default::default(), ..put.clone() };
    let mut ops = [
        DpifOp::FlowPut { put: &create, result: Ok(()) },
        DpifOp::FlowDel { ufid: put.ufid, result: Err(DpifError::NoSuchFlow) },
        DpifOp::FlowDel { ufid: put.ufid, result: Ok(Default::default()) },
        DpifOp::FlowPut { put: &create, result: Err(DpifError::NoSuchFlow) },
        DpifOp::FlowGet { ufid: put.ufid, result: nothing() },
    ];
    dpif.operate(&mut ops);
    let [first, deleted, again, created, got] = ops;
    assert!(matches!(first, DpifOp::FlowPut { result: Err(DpifError::FlowExists), .. }));
    assert!(matches!(deleted, DpifOp::FlowDel { result: Ok(stats), .. } if stats.packets == 1));
    assert!(matches!(again, DpifOp::FlowDel { result: Err(DpifError::NoSuchFlow), .. }));
    assert!(matches!(created, DpifOp::FlowPut { result: Ok(()), .. }));
    assert!(
        matches!(got, DpifOp::FlowGet { result: Ok(flow), .. } if flow.stats.packets == 0 && flow.actions.is_empty())
    );
    dpif.destroy().unwrap();
}

#[test]
fn what_the_tables_can_not_hold_is_refused() {
    testkit::require_root_and_bpf!("what_the_tables_can_not_hold_is_refused");
    let mut host = Host::new("full");
    host.options.slots = 64 + 300;
    let dpif = host.open();
    let flow = |i: u32, mask: u64| {
        let mut put = flow_of_port(P1, vec![]);
        put.ufid = Ufid(u128::from(i) + 1000);
        put.key.dp_hash = i;
        put.mask.dp_hash = u32::MAX;
        put.mask.words_mut()[1] = mask;
        put
    };
    for i in 0..300 {
        dpif.flow_put(&flow(i, 0)).unwrap();
    }
    let error = dpif.flow_put(&flow(300, 0)).unwrap_err();
    assert!(matches!(&error, DpifError::Full(text) if text.contains("300 flow slots")), "{error}");
    assert_eq!(dpif.stats().unwrap().flows, 300);
    // The same flow under another id; another flow under the same id.
    dpif.flow_del(flow(0, 0).ufid).unwrap();
    let twin = dpif::FlowPut { ufid: Ufid(5), ..flow(1, 0) };
    assert!(matches!(dpif.flow_put(&twin), Err(DpifError::FlowExists)));
    let other = dpif::FlowPut { ufid: flow(2, 0).ufid, ..flow(3, 0) };
    assert!(matches!(dpif.flow_put(&other), Err(DpifError::FlowExists)));
    dpif.flow_flush().unwrap();
    assert_eq!((dpif.stats().unwrap().flows, dpif.stats().unwrap().masks), (0, 0));

    for i in 0..256 {
        dpif.flow_put(&flow(i, u64::from(i))).unwrap();
    }
    let error = dpif.flow_put(&flow(256, 256)).unwrap_err();
    assert!(matches!(&error, DpifError::TooManyMasks(256)), "{error}");
    // One mask goes, another one fits.
    dpif.flow_del(flow(7, 7).ufid).unwrap();
    dpif.flow_put(&flow(256, 256)).unwrap();
    assert_eq!(dpif.stats().unwrap().masks, 256);

    // A program longer than the slots that are left.
    let long = dpif::FlowPut { actions: vec![output(P2); 4000].into(), ..flow(9999, 1) };
    assert!(matches!(dpif.flow_put(&long), Err(DpifError::Full(_))));
    dpif.flow_flush().unwrap();
    dpif.flow_put(&long).unwrap();
    let longer = dpif::FlowPut { actions: vec![output(P2); 5000].into(), ..flow(9998, 1) };
    assert!(matches!(dpif.flow_put(&longer), Err(DpifError::Invalid(_))));
    dpif.destroy().unwrap();
}
