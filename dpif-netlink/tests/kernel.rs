//! With the real module: run by `cargo xtask test-vm`, which boots kernels that have it.

#[path = "kernel/allocations.rs"]
mod allocations;
mod generate;
#[path = "kernel/oracle.rs"]
mod oracle;
#[path = "kernel/rig.rs"]
mod rig;
#[path = "kernel/said.rs"]
mod said;
#[path = "kernel/transmit.rs"]
mod transmit;

use std::time::{Duration, Instant};

use datapath_common::{Be16, FlowKey};
use dpif::{
    Action, Dpif, DpifError, DpifOp, Execute, FlowPut, OdpPort, Packet, PortEvent, PortKind, PortSpec, PutMode, Tunnel,
    Ufid, UpcallBatch, UpcallKind, UserspaceAction,
};
use dpif_netlink::codec::normalize;
use dpif_netlink::{DispatchMode, VportType};
use fastrand::Rng;
use generate::Known;
use rig::{Rig, extracted};
use testkit::{Need, RawSocket, frames, require};

const MODES: [DispatchMode; 3] = [DispatchMode::PerCpu, DispatchMode::PerPort, DispatchMode::PerPortHandler];
/// Generous: the machine is emulated.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_datapath_is_made_found_again_and_ended() {
    require!("a_datapath_is_made_found_again_and_ended"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("life");
    rig.run(|| {
        let dpif = rig.open(None);
        assert_eq!((dpif.name(), dpif.datapath_type(), dpif.engine()), ("dp-test", "system", "netlink"));
        let ports = dpif.ports().unwrap();
        assert_eq!(ports.len(), 1);
        assert_eq!((ports[0].port, ports[0].name.as_str(), ports[0].kind), (OdpPort(0), "dp-test", PortKind::Internal));
        assert_eq!(ports[0].error, None);
        let port = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
        // A second process would see the same datapath.
        let again = rig.open(None);
        assert_eq!(again.ports().unwrap().iter().filter(|info| info.port == port && info.name == "a0").count(), 1);
        drop(again);
        assert_eq!(dpif.stats().unwrap().flows, 0);
        println!("probed: {:?}", dpif.probed());
        assert!(dpif.features().clone && dpif.features().ct && dpif.features().check_pkt_len);
        dpif.destroy().unwrap();
        assert!(dpif.stats().unwrap_err().to_string().contains("gone"));
    });
}

#[test]
fn ports_of_every_type_come_back_with_their_options() {
    require!("ports_of_every_type_come_back_with_their_options"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("ports");
    rig.run(|| {
        let dpif = rig.open(None);
        let wanted = [
            ("a0", VportType::Netdev, Some(OdpPort(7))),
            ("int0", VportType::Internal, None),
            ("gre_sys", VportType::Tunnel(Tunnel::Gre), None),
            ("vxlan_sys", VportType::Tunnel(Tunnel::Vxlan { dst_port: 4790, gbp: true }), None),
            ("vxlan_too", VportType::Tunnel(Tunnel::Vxlan { dst_port: 4789, gbp: false }), None),
            ("gen_sys", VportType::Tunnel(Tunnel::Geneve { dst_port: 6081 }), Some(OdpPort(1000))),
        ];
        for (name, kind, request) in wanted {
            let made = dpif.vport_add(name, kind, request).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((made.name.as_str(), made.kind), (name, kind));
            assert!(request.is_none_or(|port| port == made.port));
            assert_eq!(dpif.vport_by_name(name).unwrap(), made);
        }
        assert_eq!(dpif.vports().unwrap().len(), wanted.len() + 1);
        // What can't be is told apart.
        let error = |name, kind| dpif.vport_add(name, kind, None).unwrap_err();
        assert!(matches!(error("nowhere0", VportType::Netdev), DpifError::NoSuchDevice(_)));
        assert!(matches!(error("a0", VportType::Netdev), DpifError::Exists(_)));
        assert!(matches!(error("odd", VportType::Other(99)), DpifError::Unsupported(..)));
        assert!(matches!(dpif.port_del(OdpPort(555)), Err(DpifError::NoSuchPort(_))));
        assert!(matches!(dpif.port_stats(OdpPort(555)), Err(DpifError::NoSuchPort(_))));
        dpif.port_del(OdpPort(1000)).unwrap();
        assert_eq!(dpif.vports().unwrap().len(), wanted.len());
    });
}

#[test]
fn a_device_that_goes_is_told() {
    require!("a_device_that_goes_is_told"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("events");
    rig.run(|| {
        let dpif = rig.open(None);
        let (a, b) = (dpif.port_add(&spec("a0", PortKind::System)), dpif.port_add(&spec("b0", PortKind::System)));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(dpif.port_events(), [PortEvent::Changed(a), PortEvent::Changed(b)]);
        dpif.port_del(b).unwrap();
        rig.ns.ip("link del a0").unwrap();
        let events = rig::wait(SOON, || Some(dpif.port_events()).filter(|events| !events.is_empty()));
        assert!(
            matches!(&events[..], [PortEvent::Detached(port, text)] if *port == a && text.contains("a0")),
            "{events:?}"
        );
    });
}

#[test]
fn a_port_that_comes_and_goes_unheard_is_not_lost() {
    require!("a_port_that_comes_and_goes_unheard_is_not_lost"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("unheard");
    rig.run(|| {
        let dpif = rig.open(None);
        let b = dpif.port_add(&spec("b0", PortKind::System)).unwrap();
        for _ in 0..2 {
            let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
            dpif.port_del(a).unwrap();
        }
        // Changes of devices have all ports looked at.
        for turn in ["down", "up"] {
            rig.ns.ip(&format!("link set b0 {turn}")).unwrap();
            assert!(dpif.port_events().iter().all(|event| *event == PortEvent::Changed(b)));
        }
        let left: Vec<_> = dpif.ports().unwrap().into_iter().map(|info| (info.port, info.error)).collect();
        assert_eq!(left, [(OdpPort(0), None), (b, None)]);
    });
}

#[test]
fn the_number_of_a_device_that_went_unheard_is_not_given_to_another() {
    require!("the_number_of_a_device_that_went_unheard_is_not_given_to_another"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("unheard-end");
    rig.run(|| {
        let dpif = rig.open(None);
        let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
        rig.ns.ip("link del a0").unwrap();
        rig::wait(SOON, || dpif.vports().unwrap().iter().all(|info| info.port != a).then_some(()));
        let b = dpif.port_add(&spec("b0", PortKind::System)).unwrap();
        assert_ne!(a, b);
        let events = dpif.port_events();
        let told: Vec<_> = events.iter().filter(|event| matches!(event, PortEvent::Detached(..))).collect();
        assert!(
            matches!(told[..], [PortEvent::Detached(port, text)] if *port == a && text.contains("a0")),
            "{events:?}"
        );
        dpif.port_del(a).unwrap();
        // Who deletes a port before its loss is heard has nothing more to hear.
        rig.ns.ip("link del b0").unwrap();
        rig::wait(SOON, || dpif.vports().unwrap().iter().all(|info| info.port != b).then_some(()));
        dpif.port_del(b).unwrap();
        assert_eq!((dpif.port_events(), dpif.ports().unwrap().len()), (vec![], 1));
    });
}

#[test]
fn generated_flows_come_back_as_they_were_put() {
    require!("generated_flows_come_back_as_they_were_put"; Need::OvsModule, Need::Namespaces);
    const BATCH: usize = 200;
    const BATCHES: usize = 52;
    let rig = Rig::new("flows");
    rig.run(|| {
        let dpif = rig.open(None);
        let probed = dpif.probed().clone();
        let known = Known { drop: probed.explicit_drop, psample: probed.psample, sym_l4: probed.hash_sym_l4 };
        let mut rng = Rng::with_seed(1);
        let mut equal = 0;
        let mut attrs = [0u32; 64];
        for batch in 0..BATCHES {
            let puts: Vec<FlowPut> =
                (0..BATCH).map(|i| rig::flow(&mut rng, known, (batch * BATCH + i) as u32)).collect();
            rig::put_all(&dpif, &puts);
            let mut dumped = 0;
            dpif.flow_dump(&mut |flow| {
                dumped += 1;
                let put = puts.iter().find(|put| put.ufid == flow.ufid).expect("a flow that was not put");
                let (key, mask) = (put.key.masked(&put.mask), &put.mask);
                assert_eq!((&flow.key, &flow.mask), (&key, mask), "\nput {put:?}");
                assert_eq!(flow.actions, put.actions, "\nput {put:?}");
                assert_eq!(flow.stats.packets, 0);
                rig::count(&put.actions, &mut attrs);
                true
            })
            .unwrap();
            assert_eq!(dumped, BATCH);
            // Each alone, and the terse dump, say the same.
            let one = &puts[rng.usize(..BATCH)];
            let got = dpif.flow_get(one.ufid).unwrap();
            assert_eq!((got.key, &got.actions), (one.key.masked(&one.mask), &one.actions));
            let mut terse = 0;
            dpif.flow_dump_stats(&mut |ufid, stats| {
                terse += usize::from(puts.iter().any(|put| put.ufid == ufid) && stats.packets == 0);
                true
            })
            .unwrap();
            assert_eq!(terse, BATCH);
            equal += dumped;
            dpif.flow_flush().unwrap();
        }
        assert_eq!(dpif.stats().unwrap().flows, 0);
        let never: Vec<_> =
            rig::ACTIONS.iter().filter(|(number, _)| attrs[*number] == 0).map(|(_, name)| *name).collect();
        println!("{equal} flows equal; actions never put here: {never:?}");
        assert!(equal >= 10_000);
    });
}

#[test]
fn puts_gets_and_dels_say_what_went_wrong() {
    require!("puts_gets_and_dels_say_what_went_wrong"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("flow-errors");
    rig.run(|| {
        let dpif = rig.open(None);
        let mut put = rig::flow(&mut Rng::with_seed(7), Known::default(), 1);
        put.actions = [Action::Output(OdpPort(1))].into();
        put.mode = PutMode::Modify;
        assert!(matches!(dpif.flow_put(&put), Err(DpifError::NoSuchFlow)));
        put.mode = PutMode::Create;
        dpif.flow_put(&put).unwrap();
        assert!(matches!(dpif.flow_put(&put), Err(DpifError::FlowExists)));
        put.mode = PutMode::CreateOrModify;
        put.actions = [Action::Output(OdpPort(2))].into();
        dpif.flow_put(&put).unwrap();
        assert_eq!(dpif.flow_get(put.ufid).unwrap().actions, put.actions);
        put.mode = PutMode::Modify;
        put.actions = [Action::Output(OdpPort(3))].into();
        dpif.flow_put(&put).unwrap();
        assert_eq!(dpif.flow_get(put.ufid).unwrap().actions, put.actions);
        // The kernel's own checks: no such action on such packets.
        put.actions = [Action::PopNsh, Action::PopNsh].into();
        assert!(matches!(dpif.flow_put(&put), Err(DpifError::Invalid(_))));
        assert_eq!(dpif.flow_del(put.ufid).unwrap().packets, 0);
        assert!(matches!(dpif.flow_del(put.ufid), Err(DpifError::NoSuchFlow)));
        assert!(matches!(dpif.flow_get(put.ufid), Err(DpifError::NoSuchFlow)));
    });
}

#[test]
fn a_batch_runs_in_order_and_each_operation_has_its_result() {
    require!("a_batch_runs_in_order_and_each_operation_has_its_result"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("batch");
    rig.run(|| {
        let dpif = rig.open(None);
        let mut rng = Rng::with_seed(3);
        let mut puts: Vec<FlowPut> = (0..300).map(|i| rig::flow(&mut rng, Known::default(), i)).collect();
        // One that the interface can't say, in the middle.
        puts[150].mask = FlowKey { nd_target: [255; 16], ..puts[150].mask };
        puts[150].mask.eth_type = Be16::ZERO;
        let mut ops = Vec::new();
        for put in &puts {
            ops.push(DpifOp::FlowPut { put, result: Ok(()) });
            ops.push(DpifOp::FlowGet { ufid: put.ufid, result: Err(DpifError::NoSuchFlow) });
            ops.push(DpifOp::FlowDel { ufid: put.ufid, result: Err(DpifError::NoSuchFlow) });
            ops.push(DpifOp::FlowDel { ufid: put.ufid, result: Ok(Default::default()) });
        }
        dpif.operate(&mut ops);
        for (i, four) in ops.chunks(4).enumerate() {
            let [
                DpifOp::FlowPut { result: put, .. },
                DpifOp::FlowGet { result: get, .. },
                DpifOp::FlowDel { result: del, .. },
                DpifOp::FlowDel { result: again, .. },
            ] = four
            else {
                panic!("the operations were changed")
            };
            assert!(matches!(again, Err(DpifError::NoSuchFlow)), "{i}: {again:?}");
            if i == 150 {
                assert!(matches!((put, get), (Err(DpifError::Unsupported(..)), Err(DpifError::NoSuchFlow))), "{put:?}");
                continue;
            }
            put.as_ref().unwrap_or_else(|error| panic!("{i}: {error}"));
            assert_eq!(get.as_ref().unwrap().actions, puts[i].actions);
            assert_eq!(del.as_ref().unwrap().packets, 0);
        }
    });
}

#[test]
fn upcalls_come_with_the_key_of_their_packet_in_every_mode() {
    require!("upcalls_come_with_the_key_of_their_packet_in_every_mode"; Need::OvsModule, Need::Namespaces);
    for mode in MODES {
        let rig = Rig::new("upcalls");
        rig.run(|| {
            let dpif = rig.open(Some(mode));
            assert_eq!(dpif.dispatch_mode(), mode);
            // One port before the handlers, one after.
            let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
            dpif.handlers_set(3).unwrap();
            let b = dpif.port_add(&spec("b0", PortKind::System)).unwrap();
            for (port, device) in [(a, "a1"), (b, "b1")] {
                let socket = RawSocket::open(&rig.ns, device).unwrap();
                let kinds = frames::kinds();
                for frame in &kinds {
                    socket.send(frame).unwrap();
                }
                let upcalls = rig::receive(&dpif, 3, kinds.len(), SOON);
                let mut left = kinds.clone();
                for upcall in &upcalls {
                    let at =
                        left.iter().position(|frame| *frame == upcall.packet.data).expect("a packet that was not sent");
                    let frame = left.swap_remove(at);
                    let key = extracted(&frame, port);
                    assert_eq!((upcall.kind, upcall.orig_len as usize), (UpcallKind::Miss, frame.len()), "{mode:?}");
                    assert_eq!(upcall.key, key, "{mode:?}: {frame:02x?}");
                }
                assert!(left.is_empty());
            }
            assert_eq!(dpif.unreadable_upcalls(), 0);
            // Ports count upcalls since 6.3; of what came after, this is the next that is probed.
            let counted = dpif.port_stats(a).unwrap();
            let expected = if dpif.probed().hash_sym_l4 { frames::kinds().len() as u64 } else { 0 };
            assert_eq!((counted.upcalls, counted.upcall_lost), (expected, 0), "{mode:?}");
            // By a flow's action, with its cookie, cut.
            let key = extracted(&frames::udp(5), a);
            let mask = normalize(&key, &FlowKey { in_port: u32::MAX, eth_type: Be16::MAX, ..FlowKey::ZERO }, true);
            let cookie: Vec<u8> = (0..50).collect();
            let to_userspace = UserspaceAction { cookie: cookie.clone(), ..Default::default() };
            let actions = [Action::Trunc(40), Action::Userspace(to_userspace)].into();
            dpif.flow_put(&FlowPut { mode: PutMode::Create, ufid: Ufid(9), key, mask, actions }).unwrap();
            let socket = RawSocket::open(&rig.ns, "a1").unwrap();
            socket.send(&frames::udp(5)).unwrap();
            let upcalls = rig::receive(&dpif, 3, 1, SOON);
            assert_eq!((upcalls[0].kind, &upcalls[0].cookie), (UpcallKind::Action, &cookie));
            assert_eq!((upcalls[0].packet.data.len(), upcalls[0].orig_len as usize), (40, frames::udp(5).len()));
            let stats = dpif.flow_get(Ufid(9)).unwrap().stats;
            assert_eq!((stats.packets, stats.bytes as usize), (1, frames::udp(5).len()));
            assert_ne!(stats.used_ms, 0);
            // Nobody listens: what comes is lost, and counted.
            dpif.handlers_set(0).unwrap();
            let lost = dpif.stats().unwrap().lost;
            RawSocket::open(&rig.ns, "b1").unwrap().send(&frames::udp(6)).unwrap();
            rig::wait(SOON, || (dpif.stats().unwrap().lost == lost + 1).then_some(()));
            assert!(dpif.recv(0, &mut UpcallBatch::default()).is_err());
        });
    }
}

#[test]
fn a_packet_that_is_executed_goes_out() {
    require!("a_packet_that_is_executed_goes_out"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("execute");
    rig.run(|| {
        let dpif = rig.open(None);
        let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
        dpif.handlers_set(1).unwrap();
        let wire = RawSocket::open(&rig.ns, "a1").unwrap();
        let packet = Packet::new(frames::udp(1));
        let key = FlowKey { in_port: 0, skb_mark: 7, ..FlowKey::ZERO };
        let tag = datapath_common::Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1005) };
        let actions = [Action::Output(a), Action::PushVlan(tag), Action::Output(a), Action::Recirc(5)];
        dpif.execute(Execute { packet: &packet, key: &key, actions: &actions }).unwrap();
        let mut tagged = frames::udp(1);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        for expected in [frames::udp(1), tagged.clone()] {
            let frame = wire.recv_where(SOON, |frame| frame.bytes == expected).unwrap();
            assert!(frame.is_some(), "{expected:02x?}");
        }
        // What was recirculated has no flow: it comes up, as it was, with its metadata.
        let upcalls = rig::receive(&dpif, 1, 1, SOON);
        assert_eq!((upcalls[0].key.recirc_id, upcalls[0].key.skb_mark, &upcalls[0].packet.data), (5, 7, &tagged));
        let stats = dpif.port_stats(a).unwrap();
        assert_eq!((stats.tx_packets, stats.tx_bytes as usize), (2, 2 * frames::udp(1).len()));
        let nowhere = [Action::Set(Box::new(dpif::SetAction {
            attr: dpif::KeyAttr::Ipv6,
            value: FlowKey::ZERO,
            mask: FlowKey { ip_ttl: 255, ..FlowKey::ZERO },
        }))];
        let refused = dpif.execute(Execute { packet: &packet, key: &key, actions: &nowhere });
        assert!(matches!(refused, Err(DpifError::Invalid(_))), "{refused:?}");
        let unfinished = Packet { gso_size: 1000, ..packet.clone() };
        let refused = dpif.execute(Execute { packet: &unfinished, key: &key, actions: &actions });
        assert!(matches!(refused, Err(DpifError::Unsupported(..))), "{refused:?}");
    });
}

/// What the module makes of a frame is what the shared extraction makes of it, which is the source of the eBPF programs'.
#[test]
fn the_module_and_our_extraction_agree_about_generated_frames() {
    require!("the_module_and_our_extraction_agree_about_generated_frames"; Need::OvsModule, Need::Namespaces);
    const FRAMES: usize = 12_000;
    let rig = Rig::new("oracle");
    rig.run(|| {
        let dpif = rig.open(None);
        dpif.handlers_set(1).unwrap();
        let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
        let wire = RawSocket::open(&rig.ns, "a1").unwrap();
        let mut rng = Rng::with_seed(7);
        let (kinds, mut batch) = (frames::kinds(), UpcallBatch::default());
        let (mut agreed, mut refused, mut chains, mut differ) = (0, 0, 0, Vec::new());
        let old = !dpif.probed().hash_sym_l4;
        for _ in 0..FRAMES {
            let frame = frames::by_chance(&mut rng, &kinds);
            if oracle::has_a_known_difference(&frame) {
                continue;
            }
            let mut key = FlowKey { in_port: a.0, ..FlowKey::ZERO };
            let ours = datapath_common::extract::extract(
                &datapath_common::packet::SlicePacket::new(frame.as_slice()),
                &mut key,
            );
            if key.mpls_labels == 0 {
                // Of a stack without an end the module's key has labels too, but an upcall can't say them.
                key.mpls_lse = Default::default();
            }
            let ours = ours.ok().map(|_| key).filter(|_| !oracle::ends_before_the_switch(&frame));
            wire.send(&frame).unwrap();
            // It came up before the sender went on, or it doesn't.
            let mut received = dpif.recv(0, &mut batch).unwrap();
            if received == 0 && ours.is_some() {
                std::thread::sleep(Duration::from_millis(20));
                received = dpif.recv(0, &mut batch).unwrap();
            }
            let theirs = batch.upcalls().first().filter(|_| received == 1);
            match (ours, theirs) {
                (Some(ours), Some(theirs)) if ours == theirs.key && frame == theirs.packet.data => agreed += 1,
                (None, None) => refused += 1,
                // Older kernels say of a broken chain of extension headers that nothing follows, newer ones what we say.
                (Some(ours), Some(theirs)) if old && oracle::differ_in_a_broken_chain(&ours, &theirs.key) => {
                    chains += 1
                }
                (ours, theirs) => {
                    let shown = |key: &FlowKey| dpif::odp::Style { verbose: true, ..Default::default() }.key(key, None);
                    let ours = ours.as_ref().map_or_else(|| "refused".into(), shown);
                    let theirs = theirs.map_or_else(|| "refused".into(), |upcall| shown(&upcall.key));
                    differ.push(format!("{frame:02x?}\n  ours   {ours}\n  theirs {theirs}"));
                }
            }
        }
        println!(
            "{agreed} keys equal, {refused} frames refused by both, {chains} broken chains, {} differ",
            differ.len()
        );
        assert!(differ.is_empty(), "{}", differ[..differ.len().min(10)].join("\n"));
        assert!(agreed >= 10_000, "{agreed}");
        assert_eq!(dpif.unreadable_upcalls(), 0);
    });
}

#[test]
fn meters_limit_what_passes() {
    require!("meters_limit_what_passes"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("meters");
    rig.run(|| {
        let dpif = rig.open(None);
        let features = dpif.meter_features();
        assert!(features.max_meters > 0 && features.max_bands > 0, "{features:?}");
        let (a, b) = (dpif.port_add(&spec("a0", PortKind::System)), dpif.port_add(&spec("b0", PortKind::System)));
        let (a, b) = (a.unwrap(), b.unwrap());
        let band = dpif::MeterBand { rate: 1, burst: 3 };
        let config = dpif::MeterConfig { unit: dpif::MeterUnit::Pktps, bands: vec![band] };
        dpif.meter_set(5, &config).unwrap();
        let key = extracted(&frames::udp(5), a);
        let mask = normalize(&key, &FlowKey { in_port: u32::MAX, eth_type: Be16::MAX, ..FlowKey::ZERO }, true);
        let actions = [Action::Meter(5), Action::Output(b)].into();
        dpif.flow_put(&FlowPut { mode: PutMode::Create, ufid: Ufid(9), key, mask, actions }).unwrap();
        let wire = RawSocket::open(&rig.ns, "a1").unwrap();
        const SENT: u64 = 50;
        (0..SENT).for_each(|_| wire.send(&frames::udp(5)).unwrap());
        let passed = rig::wait(SOON, || {
            let stats = dpif.meter_get(5).unwrap();
            let passed = dpif.port_stats(b).unwrap().tx_packets;
            (stats.packets == SENT && stats.bands[0].packets + passed == SENT).then_some(passed)
        });
        // One a second, and no more than a few in what this takes.
        assert!((1..SENT / 2).contains(&passed), "{passed}");
        assert_eq!(dpif.meter_del(5).unwrap().packets, SENT);
        assert!(dpif.meter_get(5).is_err() && dpif.meter_del(5).is_err());
    });
}

#[test]
fn a_socket_that_overflows_is_told_with_its_port_and_nothing_is_uncounted() {
    require!("a_socket_that_overflows_is_told_with_its_port_and_nothing_is_uncounted"; Need::OvsModule, Need::Namespaces);
    const SENT: usize = 12_000;
    for mode in MODES {
        let rig = Rig::new("overflow");
        rig.run(|| {
            let dpif = rig.open(Some(mode));
            dpif.handlers_set(1).unwrap();
            let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
            let b = dpif.port_add(&spec("b0", PortKind::System)).unwrap();
            let (from_a, from_b) = (RawSocket::open(&rig.ns, "a1").unwrap(), RawSocket::open(&rig.ns, "b1").unwrap());
            for _ in 0..SENT {
                from_a.send(&frames::udp(1)).unwrap();
            }
            from_b.send(&frames::udp(2)).unwrap();
            let sent = SENT as u64 + 1;
            rig::wait(SOON, || (dpif.stats().unwrap().missed == sent).then_some(()));
            let lost = dpif.stats().unwrap().lost;
            assert!(lost > 0, "{mode:?}: {SENT} upcalls fit");
            let received = rig::receive(&dpif, 1, (sent - lost) as usize, SOON);
            assert_eq!(received.len() as u64 + lost, sent, "{mode:?}");
            let overflows = dpif.overflows();
            let port = (mode != DispatchMode::PerCpu).then_some(a);
            assert!(
                matches!(&overflows[..], [(o, 1..)] if o.handler == 0 && o.port == port),
                "{mode:?}: {overflows:?}"
            );
            // A storm on one port costs the others nothing where ports have sockets.
            let of_b = received.iter().filter(|upcall| upcall.key.in_port == b.0).count();
            assert!(of_b == 1 || mode == DispatchMode::PerCpu, "{mode:?}");
            // And reading goes on.
            from_b.send(&frames::udp(3)).unwrap();
            assert_eq!(rig::receive(&dpif, 1, 1, SOON)[0].packet.data, frames::udp(3));
        });
    }
}

#[test]
fn receiving_upcalls_allocates_nothing() {
    require!("receiving_upcalls_allocates_nothing"; Need::OvsModule, Need::Namespaces);
    const FRAMES: usize = UpcallBatch::MAX;
    for mode in MODES {
        let rig = Rig::new("allocate");
        rig.run(|| {
            let dpif = rig.open(Some(mode));
            dpif.handlers_set(1).unwrap();
            dpif.port_add(&spec("a0", PortKind::System)).unwrap();
            let wire = RawSocket::open(&rig.ns, "a1").unwrap();
            let mut batch = UpcallBatch::default();
            // The first batch has to make its buffers.
            for round in 0..3 {
                (0..FRAMES as u16).for_each(|i| wire.send(&frames::udp(i)).unwrap());
                rig::wait(SOON, || (dpif.stats().unwrap().missed == (round + 1) * FRAMES as u64).then_some(()));
                let before = allocations::so_far();
                let mut received = 0;
                for _ in 0..FRAMES {
                    received += dpif.recv(0, &mut batch).unwrap();
                }
                let allocated = allocations::so_far() - before;
                assert_eq!(received, FRAMES, "{mode:?}");
                assert!(round == 0 || allocated == 0, "{mode:?}: {allocated} allocations");
            }
        });
    }
}

#[test]
fn handlers_share_the_upcalls_of_ports() {
    require!("handlers_share_the_upcalls_of_ports"; Need::OvsModule, Need::Namespaces);
    const HANDLERS: u32 = 2;
    let rig = Rig::new("share");
    rig.run(|| {
        let dpif = rig.open(Some(DispatchMode::PerPortHandler));
        dpif.handlers_set(HANDLERS).unwrap();
        dpif.port_add(&spec("a0", PortKind::System)).unwrap();
        let pids = dpif.vport_by_name("a0").unwrap().upcall_pids;
        assert_eq!(pids.len(), HANDLERS as usize);
        let wire = RawSocket::open(&rig.ns, "a1").unwrap();
        (0..200).for_each(|i| wire.send(&frames::udp(i)).unwrap());
        let mut by_handler = [0; HANDLERS as usize];
        let started = Instant::now();
        let mut batch = UpcallBatch::default();
        while by_handler.iter().sum::<usize>() < 200 && started.elapsed() < SOON {
            for (handler, count) in by_handler.iter_mut().enumerate() {
                *count += dpif.recv(handler as u32, &mut batch).unwrap();
            }
        }
        assert_eq!(by_handler.iter().sum::<usize>(), 200);
        assert!(by_handler.iter().all(|count| *count > 20), "{by_handler:?}");
    });
}

fn spec(name: &str, kind: PortKind) -> PortSpec {
    PortSpec { name: name.into(), kind, request: None }
}
