//! Packets that come up beside misses: for protocols, for controllers, for exporters; and the flows that send them up.

mod common;
#[path = "upcall/faulty.rs"]
#[allow(dead_code)]
mod faulty;
#[path = "slow_path/world.rs"]
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{MACS, frame, ipv4, udp, udp_frame};
use datapath_common::{Be16, FlowKey};
use dpif::odp::{Cookie, CookieKind, SlowPath};
use dpif::{Action, Dpif, MeterBand, MeterConfig, MeterUnit, OdpPort, Packet, Upcall, UpcallKind, UserspaceAction};
use ofproto::export::{Direction, Exporter, Sample, SampleKind};
use ofproto::packet_in::{PacketIn, PacketInQueue, PacketInSink};
use ofproto::protocol::{Look, Protocol, ProtocolKind, Received};
use ofproto::{PortKind, PortVlan, VirtualMeter};
use openflow::{FieldId, OfPort, PacketInReason};
use parking_lot::Mutex;
use world::World;

const A: [u8; 6] = MACS[0];
const B: [u8; 6] = MACS[1];

/// A protocol that takes the packets that have these fields, and keeps them.
#[derive(Debug)]
struct Stub {
    kind: ProtocolKind,
    fields: Vec<(FieldId, u128)>,
    received: Mutex<Vec<(String, OfPort, Vec<u8>)>>,
}

impl Stub {
    fn new(kind: ProtocolKind, fields: &[(FieldId, u128)]) -> Arc<Self> {
        Arc::new(Self { kind, fields: fields.to_vec(), received: Mutex::default() })
    }

    fn received(&self) -> Vec<(String, OfPort, Vec<u8>)> {
        std::mem::take(&mut self.received.lock())
    }
}

impl Protocol for Stub {
    fn kind(&self) -> ProtocolKind {
        self.kind
    }

    fn takes(&self, _: OfPort, look: &mut Look<'_>) -> bool {
        self.fields.iter().all(|(field, value)| look.field(*field) == Some(*value))
    }

    fn receive(&self, received: &Received<'_>) {
        let Received { bridge, port, packet } = received;
        self.received.lock().push((bridge.to_string(), *port, packet.data.clone()));
    }
}

/// The packets of each protocol, and what tells them from others.
fn protocols() -> [(&'static str, Arc<Stub>, Vec<u8>); 5] {
    let by_type = |kind, eth_type| Stub::new(kind, &[(FieldId::EthType, eth_type)]);
    let stp = u128::from(u64::from_be_bytes([0, 0, 0x01, 0x80, 0xc2, 0, 0, 0]));
    let bfd = [(FieldId::IpProto, 17), (FieldId::UdpDst, 3784)];
    let control = udp(49152, 3784, &[0x20, 0xc0, 3, 24]);
    [
        ("cfm", by_type(ProtocolKind::Cfm, 0x8902), frame([1, 0x80, 0xc2, 0, 0, 0x30], A, &[], 0x8902, &[0; 60])),
        (
            "bfd",
            Stub::new(ProtocolKind::Bfd, &bfd),
            frame(B, A, &[], 0x0800, &ipv4(17, [10, 0, 0, 1], [10, 0, 0, 2], 255, 0, 0, &control)),
        ),
        ("lacp", by_type(ProtocolKind::Lacp, 0x8809), frame([1, 0x80, 0xc2, 0, 0, 2], A, &[], 0x8809, &[1; 110])),
        (
            "stp",
            Stub::new(ProtocolKind::Stp, &[(FieldId::EthDst, stp)]),
            frame([1, 0x80, 0xc2, 0, 0, 0], A, &[], 38, &[0x42; 46]),
        ),
        ("lldp", by_type(ProtocolKind::Lldp, 0x88cc), frame([1, 0x80, 0xc2, 0, 0, 14], A, &[], 0x88cc, &[2; 60])),
    ]
}

#[test]
fn a_protocol_gets_its_packets_and_its_flow_says_which_it_is() {
    for (name, stub, frame) in protocols() {
        let world = World::new(&["actions=NORMAL"]);
        world.switch.protocol_attach("br0", Some("p1"), Arc::clone(&stub) as Arc<dyn Protocol>).unwrap();
        for n in 1..=3 {
            world.ports[0].send(frame.clone()).unwrap();
            assert_eq!(world.out(2), Vec::<Vec<u8>>::new(), "{name}: the tables don't see it");
            assert_eq!(stub.received(), [("br0".to_string(), OfPort(1), frame.clone())], "{name}: packet {n}");
        }
        let flows = world.flows();
        let [flow] = flows.as_slice() else { panic!("{name}: {flows:?}") };
        assert!(flow.ends_with(&format!(", actions:userspace(pid=0,slow_path({name}))")), "{name}: {flow}");
        let report = world.report();
        assert_eq!((report.missed, report.slow_path, report.installed, report.dropped), (1, 2, 1, 3), "{name}");
        assert!(world.switch.upcall_show().contains("  kinds: (miss 1) (slow_path 2) (controller 0)"), "{name}");

        // Other packets go their way, and another port's are nobody's.
        world.ports[0].send(udp_frame(B, A, &[])).unwrap();
        assert_eq!(world.out(2).len(), 1, "{name}");
        world.ports[2].send(frame).unwrap();
        world.switch.synchronize();
        assert!(stub.received().is_empty(), "{name}");
    }
}

#[test]
fn a_protocol_that_goes_takes_its_flows_with_it() {
    let world = World::new(&["actions=2"]);
    let [(_, cfm, frame), ..] = protocols();
    let protocol: Arc<dyn Protocol> = cfm.clone();
    world.switch.protocol_attach("br0", None, Arc::clone(&protocol)).unwrap();
    assert!(world.switch.protocol_attach("br9", None, Arc::clone(&protocol)).is_err());
    assert!(world.switch.protocol_attach("br0", Some("p9"), Arc::clone(&protocol)).is_err());
    world.ports[0].send(frame.clone()).unwrap();
    world.ports[2].send(frame.clone()).unwrap();
    assert_eq!((world.out(2).len(), cfm.received().len()), (0, 2), "of all ports of the bridge");
    world.switch.protocol_detach(&protocol);
    world.switch.revalidate_now();
    world.ports[0].send(frame.clone()).unwrap();
    assert_eq!((world.out(2).len(), cfm.received().len()), (1, 0));
    assert!(world.flows().iter().all(|flow| !flow.contains("slow_path")), "{:?}", world.flows());

    // With its port a protocol is gone, whoever gets the number then.
    world.switch.protocol_attach("br0", Some("p1"), protocol).unwrap();
    world.switch.port_del("br0", "p1").unwrap();
    world.switch.port_add("br0", "q1", PortKind::System, PortVlan::default(), Some(OfPort(1))).unwrap();
    world.dp.port_by_name("q1").unwrap().send(frame).unwrap();
    assert_eq!((world.out(2).len(), cfm.received().len()), (1, 0));
}

#[test]
fn behind_a_patch_port_a_protocol_takes_its_share_and_the_rest_goes_on() {
    let world = World::new(&["actions=2,9"]);
    let [_, _, (_, lacp, frame), ..] = protocols();
    world.patch("br0", 9, "br1", 7);
    world.switch.protocol_attach("br1", Some("to-br0"), Arc::clone(&lacp) as Arc<dyn Protocol>).unwrap();
    for _ in 0..2 {
        world.ports[0].send(frame.clone()).unwrap();
        assert_eq!(world.out(2), vec![frame.clone()]);
        assert_eq!(lacp.received(), [("br1".to_string(), OfPort(7), frame.clone())]);
    }
    assert!(world.flows()[0].ends_with("actions:userspace(pid=0,slow_path(lacp))"), "{:?}", world.flows());
}

#[test]
fn reasons_are_shown_together_and_actions_that_no_datapath_has_are_one() {
    let world = World::new(&["actions=output(port=2,max_len=60),mod_dl_src:02:00:00:00:00:09,output:3,9"]);
    let [(_, cfm, frame), ..] = protocols();
    world.patch("br0", 9, "br1", 7);
    world.switch.protocol_attach("br1", None, Arc::clone(&cfm) as Arc<dyn Protocol>).unwrap();
    for _ in 0..2 {
        world.ports[0].send(frame.clone()).unwrap();
        assert_eq!(world.out(2), [frame[..60].to_vec()]);
        assert_eq!(world.out(3)[0][6..12], [2, 0, 0, 0, 0, 9]);
        assert_eq!(cfm.received().len(), 1);
    }
    assert!(world.flows()[0].ends_with("actions:userspace(pid=0,slow_path(cfm,action))"), "{:?}", world.flows());
}

fn pktps(rate: u32, burst: u32) -> MeterConfig {
    MeterConfig { unit: MeterUnit::Pktps, bands: vec![MeterBand { rate, burst }] }
}

#[test]
fn a_slow_path_meter_stands_before_the_packets_that_come_up_and_drops_what_exceeds_it() {
    let world = World::new(&["actions=2"]);
    let [(_, cfm, frame), ..] = protocols();
    world.switch.protocol_attach("br0", None, Arc::clone(&cfm) as Arc<dyn Protocol>).unwrap();
    world.ports[0].send(frame.clone()).unwrap();
    world.switch.synchronize();
    assert_eq!(cfm.received().len(), 1);
    world.switch.set_virtual_meter(VirtualMeter::SlowPath, Some(&pktps(1, 3))).unwrap();
    world.switch.revalidate_now();
    let id = world.dp.meter_features().max_meters - 1;
    let expected = format!("sample(sample=100.0%,actions(meter({id}),userspace(pid=0,slow_path(cfm))))");
    assert!(world.flows()[0].ends_with(&expected), "{:?}", world.flows());
    for _ in 0..10 {
        world.ports[0].send(frame.clone()).unwrap();
    }
    world.switch.synchronize();
    assert_eq!(cfm.received().len(), 3);
    assert_eq!(world.dp.meter_get(id).unwrap().bands[0].packets, 7);
    world.switch.set_virtual_meter(VirtualMeter::SlowPath, None).unwrap();
    assert!(world.flows()[0].ends_with("actions:userspace(pid=0,slow_path(cfm))"), "{:?}", world.flows());
    assert!(world.dp.meter_get(id).is_err());
    world.switch.set_virtual_meter(VirtualMeter::SlowPath, None).unwrap();
    assert!(world.switch.set_virtual_meter(VirtualMeter::SlowPath, Some(&pktps(0, 0))).is_err(), "no such meter");
}

/// Keeps packets for controllers.
#[derive(Default)]
struct Recorder(Mutex<Vec<PacketIn>>);

impl PacketInSink for Recorder {
    fn packet_in(&self, packet_in: PacketIn) {
        self.0.lock().push(packet_in);
    }
}

impl Recorder {
    fn on(world: &World) -> Arc<Self> {
        let recorder = Arc::new(Self::default());
        world.switch.set_packet_in_sink(Some(Arc::clone(&recorder) as Arc<dyn PacketInSink>));
        recorder
    }

    fn take(&self, world: &World) -> Vec<PacketIn> {
        world.switch.synchronize();
        std::mem::take(&mut self.0.lock())
    }
}

#[test]
fn a_controller_action_delivers_what_it_says() {
    let world = World::new(&[
        "table=0,cookie=0x1234,in_port=1,actions=set_field:7->reg3,set_field:9->metadata,mod_dl_dst:02:00:00:00:00:09,resubmit(,4)",
        "table=4,cookie=0x77,actions=controller(max_len=20,id=5,userdata=01.02.ff),mod_dl_dst:02:00:00:00:00:0a,2",
    ]);
    let recorder = Recorder::on(&world);
    let frame = udp_frame(B, A, &[]);
    let mut shown = frame.clone();
    shown[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    for n in 1..=3 {
        world.ports[0].send(frame.clone()).unwrap();
        assert_eq!(world.out(2)[0][..6], [2, 0, 0, 0, 0, 0x0a], "packet {n}");
        let packet_ins = recorder.take(&world);
        let [packet_in] = packet_ins.as_slice() else { panic!("packet {n}: {packet_ins:?}") };
        let mut regs = [0; 16];
        regs[3] = 7;
        let expected = PacketIn {
            bridge: "br0".into(),
            reason: PacketInReason::Action,
            is_table_miss: true,
            table: 4,
            cookie: 0x77,
            controller_id: 5,
            max_len: 20,
            total_len: frame.len(),
            data: shown[..20].to_vec(),
            in_port: OfPort(1),
            metadata: 9,
            regs,
            key: packet_in.key.clone(),
            userdata: vec![1, 2, 255],
        };
        // The rule of table 4 has no match, but its priority is not that of a table-miss rule.
        assert_eq!(packet_in, &PacketIn { is_table_miss: false, ..expected });
        assert_eq!(packet_in.key.eth_dst, [2, 0, 0, 0, 0, 9]);
    }
    let flows = world.flows();
    let [flow] = flows.as_slice() else { panic!("{flows:?}") };
    let actions = "userspace(pid=0,controller(reason=1,dont_send=0,continuation=0,recirc_id=1,rule_cookie=0x77,\
                   controller_id=5,max_len=20))";
    assert!(flow.contains(actions), "{flow}");
    let report = world.report();
    assert_eq!((report.controller, report.packet_in, report.packet_in_lost), (3, 3, 0));
    assert_eq!(world.switch.n_recirc_ids(), 1, "held by the flow");
    world.switch.purge_flows();
    assert_eq!(world.switch.n_recirc_ids(), 0);
}

#[test]
fn reasons_and_cookies_are_those_of_the_rule_that_sends() {
    for (flows, reason, is_table_miss, cookie) in [
        (["priority=0,cookie=5,actions=controller"], PacketInReason::Action, true, 5),
        (["priority=0,udp,cookie=5,actions=controller"], PacketInReason::Action, false, 5),
        (["priority=1,cookie=5,actions=controller"], PacketInReason::Action, false, 5),
        (["priority=0,cookie=5,actions=controller(reason=no_match)"], PacketInReason::NoMatch, false, 5),
        (["ip,cookie=8,actions=mod_nw_ttl:1,dec_ttl,2"], PacketInReason::InvalidTtl, false, 8),
        (["cookie=9,actions=debug_recirc,controller"], PacketInReason::Action, false, 9),
    ] {
        let world = World::new(&flows);
        let recorder = Recorder::on(&world);
        for _ in 0..2 {
            world.ports[0].send(udp_frame(B, A, &[])).unwrap();
            let packet_ins = recorder.take(&world);
            let seen: Vec<_> = packet_ins.iter().map(|p| (p.reason, p.is_table_miss, p.cookie, p.total_len)).collect();
            assert_eq!(seen, [(reason, is_table_miss, cookie, 72)], "{flows:?}");
            assert!(world.out(2).is_empty());
        }
    }
}

#[test]
fn several_controllers_and_ports_get_the_packet_each_as_it_is_then() {
    let world = World::new(&["actions=dec_ttl(3,4),controller:30,mod_nw_tos:184,2,controller(id=9)"]);
    let recorder = Recorder::on(&world);
    let packet =
        |ttl| frame(B, A, &[], 0x0800, &ipv4(17, [10, 0, 0, 1], [10, 0, 0, 2], ttl, 0, 0, &udp(1, 2, &[0; 30])));
    world.ports[0].send(packet(64)).unwrap();
    let seen: Vec<_> =
        recorder.take(&world).iter().map(|p| (p.controller_id, p.data.len(), p.data[15], p.data[22])).collect();
    assert_eq!(seen, [(0, 30, 0, 63), (9, 72, 184, 63)]);
    assert_eq!(world.out(2).len(), 1);
    world.ports[0].send(packet(1)).unwrap();
    let seen: Vec<_> = recorder.take(&world).iter().map(|p| (p.controller_id, p.reason, p.data[22])).collect();
    assert_eq!(seen, [(3, PacketInReason::InvalidTtl, 1), (4, PacketInReason::InvalidTtl, 1)]);
    assert!(world.out(2).is_empty());
}

/// Two TCP segments of 1000 and 500 bytes as one super-packet, its checksum left to the device.
fn super_packet() -> (Packet, Vec<u8>) {
    let payload: Vec<u8> = (0..1500).map(|n| n as u8).collect();
    let mut tcp = vec![0, 80, 4, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0];
    tcp.extend(&payload);
    let data = frame(B, A, &[(0x8100, 5)], 0x0800, &ipv4(6, [10, 0, 0, 1], [10, 0, 0, 2], 64, 0, 0, &tcp));
    (Packet { data, gso_size: 1000, partial_checksum: true, ..Packet::default() }, payload)
}

#[test]
fn a_controller_sees_packets_as_they_are_on_the_wire() {
    let world = World::new(&["actions=controller,2"]);
    let recorder = Recorder::on(&world);
    let (packet, payload) = super_packet();
    // The device took the tag off.
    let mut bytes = packet.data.clone();
    bytes.drain(12..16);
    let tag = datapath_common::Vlan { tpid: Be16::new(0x8100), tci: Be16::new(5) };
    let slice = datapath_common::packet::SlicePacket { bytes, vlan: tag, partial_checksum: true };
    for _ in 0..2 {
        let frame = dpif::inproc::Frame { packet: slice.clone(), gso_size: 1000, ..Default::default() };
        world.ports[0].send(frame).unwrap();
        let packet_ins = recorder.take(&world);
        let lengths: Vec<_> = packet_ins.iter().map(|packet_in| (packet_in.total_len, packet_in.data.len())).collect();
        assert_eq!(lengths, [(1058, 1058), (558, 558)]);
        let mut whole = Vec::new();
        for packet_in in &packet_ins {
            assert_eq!(packet_in.data[12..18], [0x81, 0, 0, 5, 8, 0], "the tag is there");
            let ip = smoltcp::wire::Ipv4Packet::new_checked(&packet_in.data[18..]).unwrap();
            assert!(ip.verify_checksum());
            let tcp = smoltcp::wire::TcpPacket::new_checked(ip.payload()).unwrap();
            assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
            assert_eq!(tcp.seq_number().0 as usize, 7 + whole.len());
            whole.extend_from_slice(tcp.payload());
        }
        assert_eq!(whole, payload);
        // The port gets it in one piece, as its device wants it.
        let out = world.ports[1].recv().unwrap();
        assert_eq!((out.gso_size, out.partial_checksum, out.data), (1000, true, packet.data.clone()));
    }
    assert_eq!((world.report().controller, world.report().packet_in), (2, 4));
}

#[test]
fn a_packet_that_can_not_be_cut_is_counted_and_goes_its_other_ways() {
    let world = World::new(&["actions=controller,2"]);
    let recorder = Recorder::on(&world);
    let packet = Packet { data: frame(B, A, &[], 0x0899, &[0; 2000]), gso_size: 1000, ..Packet::default() };
    world.ports[0].send(packet).unwrap();
    assert!(recorder.take(&world).is_empty());
    assert_eq!((world.out(2).len(), world.report().packet_in_lost), (1, 1));
}

#[test]
fn the_mru_of_a_reassembled_packet_is_kept_on_its_way() {
    for flow in ["actions=2", "actions=output(port=3,max_len=60),mod_nw_tos:184,2"] {
        let world = World::new(&[flow]);
        for _ in 0..2 {
            world.ports[0].send(Packet { mru: 1300, ..Packet::new(udp_frame(B, A, &[])) }).unwrap();
            world.switch.synchronize();
            assert_eq!(world.ports[1].recv().unwrap().mru, 1300, "{flow}");
        }
    }
}

#[test]
fn a_queue_takes_as_many_as_it_has_room_for_and_counts_the_others() {
    let world = World::new(&["actions=controller(id=3)"]);
    let queue = Arc::new(PacketInQueue::new(4));
    world.switch.set_packet_in_sink(Some(Arc::clone(&queue) as Arc<dyn PacketInSink>));
    for _ in 0..10 {
        world.ports[0].send(udp_frame(B, A, &[])).unwrap();
    }
    world.switch.synchronize();
    assert_eq!((queue.len(), queue.dropped()), (4, 6));
    assert!((0..4).all(|_| queue.pop().is_some_and(|packet_in| packet_in.controller_id == 3)));
    assert!(
        queue.is_empty() && queue.pop().is_none() && queue.pop_within(std::time::Duration::from_millis(1)).is_none()
    );
    world.switch.set_packet_in_sink(None);
    world.ports[0].send(udp_frame(B, A, &[])).unwrap();
    world.switch.synchronize();
    assert_eq!((queue.len(), queue.dropped()), (0, 6), "nobody wants it");
}

#[test]
fn a_controller_meter_holds_for_the_controllers_only() {
    let world = World::new(&["actions=controller,2"]);
    let recorder = Recorder::on(&world);
    world.switch.set_virtual_meter(VirtualMeter::Controller, Some(&pktps(1, 2))).unwrap();
    for _ in 0..6 {
        world.ports[0].send(udp_frame(B, A, &[])).unwrap();
    }
    assert_eq!((world.out(2).len(), recorder.take(&world).len()), (6, 2));
    let id = world.dp.meter_features().max_meters - 2;
    assert!(
        world.flows()[0].contains(&format!("sample(sample=100.0%,actions(meter({id}),userspace(pid=0,controller("))
    );
}

#[test]
fn a_flow_of_an_earlier_process_tells_the_controllers_nothing_that_is_not_so() {
    let flows = ["actions=set_field:7->metadata,controller,2"];
    let world = World::new(&flows);
    world.ports[0].send(udp_frame(B, A, &[])).unwrap();
    assert_eq!(world.out(2).len(), 1);
    world.switch.stop();
    // Another process takes the datapath over, and nobody looks at the flows for a while.
    let next = world.another(&flows);
    let recorder = Arc::new(Recorder::default());
    next.set_packet_in_sink(Some(Arc::clone(&recorder) as Arc<dyn PacketInSink>));
    next.pause_revalidators();
    next.start().unwrap();
    world.ports[0].send(udp_frame(B, A, &[])).unwrap();
    next.await_upcalls();
    // Another flow gets an id, which is not the old one.
    world.ports[2].send(udp_frame(B, A, &[])).unwrap();
    next.await_upcalls();
    assert_eq!(recorder.0.lock().iter().map(|p| (p.in_port, p.metadata)).collect::<Vec<_>>(), [(OfPort(3), 7)]);
    world.ports[0].send(udp_frame(B, A, &[])).unwrap();
    next.await_upcalls();
    assert_eq!((recorder.0.lock().len(), next.handler_reports()[0].packet_in_lost), (1, 2));
    // Translated again, it says what is so.
    next.revalidate_now();
    world.ports[0].send(udp_frame(B, A, &[])).unwrap();
    next.synchronize();
    assert_eq!(recorder.0.lock().last().map(|p| (p.in_port, p.metadata)), Some((OfPort(1), 7)));
}

#[test]
fn a_packet_for_controllers_whose_state_is_gone_is_counted() {
    let world = World::new(&["actions=2"]);
    let recorder = Recorder::on(&world);
    let controller = |recirc_id, reason| CookieKind::Controller {
        dont_send: false,
        continuation: false,
        reason,
        recirc_id,
        rule_cookie: datapath_common::Be64::new(0),
        controller_id: 0,
        max_len: 0,
    };
    let frame = udp_frame(B, A, &[]);
    let upcall = |kind| Upcall {
        kind: UpcallKind::Action,
        cookie: Cookie::new(kind).encode(),
        key: common::key_of(&frame, 2).unwrap(),
        packet: Packet::new(frame.clone()),
        ..Upcall::default()
    };
    world.faulty.inject.lock().extend([controller(99, 1), controller(0, 1)].map(upcall));
    assert!(recorder.take(&world).is_empty());
    assert_eq!((world.report().controller, world.report().packet_in_lost), (2, 2));
}

/// What an exporter got: kind, bridge, port, length, tunnel, actions.
type Exported = (SampleKind, String, OfPort, usize, Option<FlowKey>, Option<Vec<Action>>);

/// Counts samples and keeps what came with them.
#[derive(Default)]
struct Counter {
    n: AtomicU64,
    last: Mutex<Vec<Exported>>,
}

impl Exporter for Counter {
    fn export(&self, sample: &Sample<'_>) {
        self.n.fetch_add(1, Ordering::Relaxed);
        let Sample { kind, bridge, in_port, packet, key, egress_tunnel, actions } = sample;
        assert_eq!(key.in_port, 2, "the datapath's number of p1");
        let actions = actions.as_deref().map(<[Action]>::to_vec);
        self.last.lock().push((
            *kind,
            bridge.to_string(),
            *in_port,
            packet.data.len(),
            egress_tunnel.copied(),
            actions,
        ));
    }
}

#[test]
fn samples_reach_the_exporter_with_flow_tunnel_and_actions() {
    let world = World::new(&["actions=3"]);
    let counter = Arc::new(Counter::default());
    world.switch.set_exporter(Some(Arc::clone(&counter) as Arc<dyn Exporter>));
    let flow_sample = CookieKind::FlowSample {
        probability: 100,
        collector_set_id: 1,
        obs_domain_id: 2,
        obs_point_id: 3,
        output_port: 4,
        direction: 2,
    };
    let of_flow = SampleKind::Flow {
        probability: 100,
        collector_set_id: 1,
        obs_domain_id: 2,
        obs_point_id: 3,
        output_port: Some(OdpPort(4)),
        direction: Some(Direction::Egress),
    };
    let tci = Be16::new(0x1005);
    for (kind, expected, n) in [
        (CookieKind::SFlow { vlan_tci: tci, output: 9 }, SampleKind::SFlow { vlan_tci: tci, output: 9 }, 0),
        (flow_sample, of_flow, 1),
        (CookieKind::Ipfix { output_port: u32::MAX }, SampleKind::Ipfix { output_port: None }, 2),
    ] {
        let cookie = Cookie { in_port: 1, bridge: 0, kind }.encode();
        let action = UserspaceAction { cookie, with_actions: true, ..Default::default() };
        let list = vec![Action::Userspace(action), Action::Output(OdpPort(4))];
        world.put(n, list.clone());
        world.ports[0].send(udp_frame(B, A, &[])).unwrap();
        world.switch.await_upcalls();
        let report = world.report();
        assert_eq!(
            [report.sflow, report.flow_sample, report.ipfix],
            std::array::from_fn(|i| u64::from(i as u128 == n))
        );
        let exported = std::mem::take(&mut *counter.last.lock());
        assert_eq!(exported, [(expected, "br0".to_string(), OfPort(1), 72, None, Some(list))]);
    }
    assert_eq!(counter.n.load(Ordering::Relaxed), 3);
    let kinds = "  kinds: (miss 0) (slow_path 0) (controller 0) (sflow 1) (flow_sample 1) (ipfix 1) (bad 0)\n";
    assert!(world.switch.upcall_show().contains(kinds), "{}", world.switch.upcall_show());
}

#[test]
fn a_sample_without_actions_gets_those_of_its_flow_and_brings_the_tunnel_of_its_record() {
    let world = World::new(&["udp,tp_dst=80,actions=3", "priority=60000,udp,nw_ttl=7,actions=2"]);
    let counter = Arc::new(Counter::default());
    world.switch.set_exporter(Some(Arc::clone(&counter) as Arc<dyn Exporter>));
    let tunnel = FlowKey { tun_id: datapath_common::Be64::new(42), tun_ttl: 64, ..FlowKey::ZERO };
    let expected = SampleKind::Ipfix { output_port: Some(OdpPort(3)) };
    let sample = |ttl| {
        let packet = ipv4(17, [10, 0, 0, 1], [10, 0, 0, 2], ttl, 0, 0, &udp(1000, 80, &[0; 30]));
        let frame = frame(B, A, &[], 0x0800, &packet);
        let upcall = Upcall {
            kind: UpcallKind::Action,
            cookie: Cookie::new(CookieKind::Ipfix { output_port: 3 }).encode(),
            key: common::key_of(&frame, 2).unwrap(),
            packet: Packet::new(frame.clone()),
            egress_tunnel: Some(Box::new(tunnel)),
            ..Upcall::default()
        };
        let exported = || {
            world.faulty.inject.lock().push(upcall.clone());
            world.switch.synchronize();
            std::mem::take(&mut *counter.last.lock())
        };
        let unknown = exported();
        world.ports[0].send(frame).unwrap();
        world.switch.synchronize();
        (unknown, exported())
    };
    for (ttl, output) in [(64, 4), (7, 3)] {
        let with = |actions| [(expected, "br0".to_string(), OfPort(0xffff), 72, Some(tunnel), actions)];
        let (unknown, known) = sample(ttl);
        assert_eq!(unknown, with(None), "there is no flow yet");
        assert_eq!(known, with(Some(vec![Action::Output(OdpPort(output))])));
    }
}

#[test]
fn a_flow_for_packets_that_the_datapath_sees_otherwise_is_never_translated_from_its_key() {
    let world = World::new(&["udp,tp_dst=80,actions=2", "udp,tp_dst=0,actions=3"]);
    let frame = udp_frame(B, A, &[]);
    let mut key = common::key_of(&frame, 2).unwrap();
    (key.tp_src, key.tp_dst) = (Be16::ZERO, Be16::ZERO);
    world.faulty.inject.lock().push(Upcall { packet: Packet::new(frame), key, ..Upcall::default() });
    world.switch.synchronize();
    let cookie = |flow: &str| flow.contains("slow_path(match)");
    assert!(world.flows().iter().all(|flow| cookie(flow)) && world.flows().len() == 1, "{:?}", world.flows());
    // Something else changes: the key alone would be sent to port 3.
    world.add_flow("arp,actions=2");
    world.switch.revalidate_now();
    assert!(world.flows().is_empty(), "{:?}", world.flows());
    assert!(world.switch.upcall_show().contains("deleted: bad ODP flow fit"), "{}", world.switch.upcall_show());
}

#[test]
fn every_reason_has_its_bit_and_no_two_share_one() {
    let kinds = [ProtocolKind::Cfm, ProtocolKind::Bfd, ProtocolKind::Lacp, ProtocolKind::Stp, ProtocolKind::Lldp];
    let bits = kinds.iter().map(|kind| kind.slow_path()).chain([SlowPath::ACTION, SlowPath::MATCH]);
    assert_eq!(bits.collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64]);
}
