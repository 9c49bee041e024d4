//! What a flow's actions send, read back from the wire byte by byte.
//!
//! Frames go over a veth pair into a port of the datapath and come out of others. [`frame`] says what must come, building the
//! frame anew from its fields; [`cases`] lists what each action changes; [`wires`] sends and compares. Every frame is sent as a
//! cable would carry it, and, where the local stack would do so, with its checksum left to the device and as a super-packet;
//! it comes out of a device that takes such frames over, and of one that the kernel has to finish them for.

mod common;

#[path = "actions_on_the_wire/cases.rs"]
mod cases;
#[path = "actions_on_the_wire/frame.rs"]
mod frame;
#[path = "actions_on_the_wire/wires.rs"]
mod wires;

use cases::{cases, push, set, tagged};
use common::{Host, QUIET, flow_of_port, output, system};
use datapath_common::{Be16, Be32};
use dpif::{
    Action, Dpif, Execute, FlowKey, FlowPut, HashAlg, KeyAttr, OdpPort, Packet, Ufid, UpcallBatch, UpcallKind,
    UserspaceAction,
};
use frame::{Frame, Mode, TCP, UDP, complete, over4, over6};
use testkit::{Netns, RawSocket, veth_pair};
use wires::{BARE, IN, PLAIN, Wires, same};

const COMPLETE: Mode = Mode::Complete;

/// The frame with a payload of this many bytes.
fn sized(mut frame: Frame, bytes: usize) -> Frame {
    frame.l4().payload = (0..bytes).map(|i| (i * 31 / 8) as u8).collect();
    frame
}

fn none_failed(failures: &[String], of: usize) {
    let shown = failures.iter().take(8).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {of} went wrong, such as\n{shown}", failures.len());
}

#[test]
fn every_change_of_a_frame_is_what_its_fields_say() {
    testkit::require_root_and_bpf!("every_change_of_a_frame_is_what_its_fields_say");
    testkit::require!("every_change_of_a_frame_is_what_its_fields_say"; testkit::Need::Tool("ethtool"));
    let wires = Wires::new("changes");
    let (mut failures, mut packets) = (Vec::new(), 0);
    for case in cases() {
        for mode in case.modes() {
            // A super-packet needs something to be cut.
            let grown = |frame: &Frame| {
                if matches!(mode, Mode::Gso(_)) { sized(frame.clone(), 3500) } else { frame.clone() }
            };
            let (before, after) = (grown(&case.frame), grown(&case.expected));
            // Copies and the packet itself to either device; and a copy from before the change, which must not be touched by it.
            for (first, last) in [(PLAIN, BARE), (BARE, PLAIN)] {
                for early in [false, true] {
                    let mut actions = if early { vec![output(first)] } else { vec![] };
                    actions.extend(case.actions.iter().cloned());
                    actions.extend(if early { vec![output(last)] } else { vec![output(first), output(last)] });
                    wires.flow(actions);
                    wires.send(&before, *mode);
                    let expected = [(first, if early { &before } else { &after }), (last, &after)];
                    for (port, frame) in expected {
                        packets += 1;
                        if let Err(text) = wires.check(port, frame, *mode) {
                            failures
                                .push(format!("{} ({mode:?}, {first} early: {early}), port {port}: {text}", case.name));
                            // What is still on its way would be taken for the next one's.
                            for port in [PLAIN, BARE] {
                                while wires.receive_soon(port).is_some() {}
                            }
                            break;
                        }
                    }
                    if failures.len() > 40 {
                        none_failed(&failures, packets);
                    }
                }
            }
        }
    }
    println!("{packets} packets compared");
    none_failed(&failures, packets);
    wires.end(&[]);
}

#[test]
fn a_packet_goes_to_as_many_ports_as_it_should() {
    testkit::require_root_and_bpf!("a_packet_goes_to_as_many_ports_as_it_should");
    let host = Host::new("many");
    let source = host.neighbour("in");
    let far = Netns::new("far").unwrap();
    far.silence().unwrap();
    let dpif = host.open();
    assert_eq!(dpif.port_add(&system("in")).unwrap(), IN);
    let mut sockets = Vec::new();
    for i in 2..22 {
        let device = format!("p{i}");
        veth_pair(&host.netns, &device, &far, &device).unwrap();
        assert_eq!(dpif.port_add(&system(&device)).unwrap(), OdpPort(i));
        sockets.push(RawSocket::open(&far, &device).unwrap());
    }
    let frame = over4(TCP);
    let super_packet = sized(over6(TCP), 20_000);
    let mut sent = 0;
    for ports in [1, 2, 20] {
        let actions = (0..ports).map(|i| output(OdpPort(2 + i))).collect();
        let put = flow_of_port(IN, actions);
        dpif.flow_put(&put).unwrap();
        for (frame, mode) in [(&frame, COMPLETE), (&frame, Mode::Partial), (&super_packet, Mode::Gso(1400))] {
            let (bytes, offload) = frame.handed_over(mode);
            source.socket.send_offloaded(&bytes, offload).unwrap();
            sent += 1;
            for socket in &sockets[..ports as usize] {
                let mut received = socket.recv(common::SOON).unwrap().expect("a frame");
                assert_eq!(received.offload.gso.is_some(), offload.gso.is_some());
                if let Some(place) = received.offload.checksum {
                    complete(&mut received.bytes, place);
                }
                same(&received.bytes, &frame.build()).unwrap_or_else(|text| panic!("{ports} ports, {mode:?}: {text}"));
            }
        }
        assert_eq!(dpif.flow_get(put.ufid).unwrap().stats.packets, sent);
    }
    for (i, socket) in sockets.iter().enumerate() {
        assert!(socket.recv_all(QUIET / 10).unwrap().is_empty(), "port {}", i + 2);
    }
    // Each change is seen by those behind it alone.
    let mut actions = Vec::new();
    for i in 2..22 {
        actions.push(set(KeyAttr::Ipv4, |v, m| (v.ip_ttl, m.ip_ttl) = (i as u8, 255)));
        actions.push(output(OdpPort(i)));
    }
    dpif.flow_put(&flow_of_port(IN, actions)).unwrap();
    source.socket.send(&frame.build()).unwrap();
    for (i, socket) in sockets.iter().enumerate() {
        let mut expected = frame.clone();
        expected.ip4().ttl = i as u8 + 2;
        same(&socket.recv(common::SOON).unwrap().expect("a frame").bytes, &expected.build()).unwrap();
    }
    dpif.destroy().unwrap();
}

/// A flow of recirculated packets; `fields` puts what it matches on beside the recirculation id into key and mask.
fn recirculated(id: u32, number: u64, actions: Vec<Action>, fields: impl Fn(&mut FlowKey, &mut FlowKey)) -> FlowPut {
    let mut put = flow_of_port(IN, actions);
    put.ufid = Ufid(u128::from(id) << 64 | u128::from(number));
    (put.key.recirc_id, put.mask.recirc_id) = (id, u32::MAX);
    fields(&mut put.key, &mut put.mask);
    put
}

#[test]
fn a_recirculated_packet_finds_the_flow_of_what_it_has_become() {
    testkit::require_root_and_bpf!("a_recirculated_packet_finds_the_flow_of_what_it_has_become");
    testkit::require!("a_recirculated_packet_finds_the_flow_of_what_it_has_become"; testkit::Need::Tool("ethtool"));
    let wires = Wires::new("recirc");
    let new = Be32::new(0x0808_0808);
    let first = |id| {
        let address = set(KeyAttr::Ipv4, |v, m| (v.ipv4_dst, m.ipv4_dst) = (new, Be32::MAX));
        vec![Action::PopVlan, address, Action::Recirc(id)]
    };
    let port = |port: u16| set(KeyAttr::Tcp, move |v, m| (v.tp_dst, m.tp_dst) = (Be16::new(port), Be16::MAX));
    let untagged_to = |address: Be32| {
        move |k: &mut FlowKey, m: &mut FlowKey| {
            (k.eth_type, m.eth_type) = (Be16::new(0x800), Be16::MAX);
            (k.ipv4_dst, m.ipv4_dst, m.vlan.tci, m.vlan.tpid) = (address, Be32::MAX, Be16::MAX, Be16::MAX);
        }
    };
    let right = recirculated(7, 1, vec![port(1), push(0x8100, 9), Action::Recirc(8)], untagged_to(new));
    let old = recirculated(7, 2, vec![port(2), output(BARE)], untagged_to(Be32::new(0xc0a8_0a14)));
    let last = recirculated(8, 1, vec![output(PLAIN), output(BARE)], |k, m| {
        (k.vlan.tci, m.vlan.tci) = (Be16::new(0x1009), Be16::new(0x1fff));
        (k.eth_type, m.eth_type) = (Be16::new(0x800), Be16::MAX);
        (k.ip_proto, m.ip_proto, k.tp_dst, m.tp_dst) = (TCP, 255, Be16::new(1), Be16::MAX);
    });
    for put in [&right, &old, &last] {
        wires.dpif.flow_put(put).unwrap();
    }
    wires.flow(first(7));
    let modes = [COMPLETE, Mode::Partial, Mode::Gso(1000)];
    for mode in modes {
        let len = if matches!(mode, Mode::Gso(_)) { 5000 } else { 50 };
        let frame = sized(tagged(over4(TCP), &[(0x8100, 5)]), len);
        wires.send(&frame, mode);
        let mut expected = frame;
        (expected.tags, expected.ip4().dst, expected.l4().b) = (vec![(0x8100, 9)], 0x0808_0808, 1);
        for port in [PLAIN, BARE] {
            wires.check(port, &expected, mode).unwrap_or_else(|text| panic!("{mode:?}, port {port}: {text}"));
        }
    }
    let packets = |put: &FlowPut| wires.dpif.flow_get(put.ufid).unwrap().stats.packets;
    assert_eq!((packets(&right), packets(&old), packets(&last)), (3, 0, 3));

    // Outputs behind a recirculation send what the packet was before it.
    let frame = tagged(over4(TCP), &[(0x8100, 5)]);
    wires.dpif.flow_put(&recirculated(9, 1, vec![Action::PopVlan, output(BARE)], |_, _| {})).unwrap();
    wires.flow(vec![Action::Recirc(9), output(PLAIN)]);
    wires.send(&frame, COMPLETE);
    wires.check(PLAIN, &frame, COMPLETE).unwrap();
    wires.check(BARE, &over4(TCP), COMPLETE).unwrap();
    // What isn't in the packet goes along: priority, and a mark set bit by bit.
    let put = recirculated(11, 1, vec![output(PLAIN)], |k, m| {
        (k.skb_mark, m.skb_mark, k.skb_priority, m.skb_priority) = (0x1034, u32::MAX, 7, u32::MAX);
    });
    wires.dpif.flow_put(&put).unwrap();
    wires.flow(vec![
        set(KeyAttr::SkbMark, |v, m| (v.skb_mark, m.skb_mark) = (0x1230, 0xfff0)),
        set(KeyAttr::SkbMark, |v, m| (v.skb_mark, m.skb_mark) = (0x0004, 0x0f0f)),
        set(KeyAttr::Priority, |v, m| (v.skb_priority, m.skb_priority) = (7, u32::MAX)),
        Action::Recirc(11),
    ]);
    wires.send(&frame, COMPLETE);
    wires.check(PLAIN, &frame, COMPLETE).unwrap();
    // Round and round it doesn't go.
    wires.dpif.flow_put(&recirculated(10, 1, vec![Action::Recirc(10)], |_, _| {})).unwrap();
    wires.flow(vec![Action::Recirc(10)]);
    wires.send(&frame, COMPLETE);
    assert!(testkit::wait_until(common::SOON, || wires.drops("recirc-limit") == 1));
    wires.end(&[("recirc-limit", 1)]);
}

#[test]
fn a_hash_chooses_the_flow_of_a_connection() {
    testkit::require_root_and_bpf!("a_hash_chooses_the_flow_of_a_connection");
    testkit::require!("a_hash_chooses_the_flow_of_a_connection"; testkit::Need::Tool("ethtool"));
    let wires = Wires::new("hash");
    wires.dpif.handlers_set(1).unwrap();
    let mut batch = UpcallBatch::default();
    let mut hash = |basis: u32, frame: &Frame| {
        wires.flow(vec![Action::Hash { alg: HashAlg::L4, basis }, Action::Recirc(5)]);
        wires.send(frame, COMPLETE);
        let upcall = &wires.upcalls(&mut batch)[0];
        assert_eq!((upcall.kind, upcall.key.recirc_id), (UpcallKind::Miss, 5));
        same(&upcall.packet.data, &frame.build()).unwrap();
        upcall.key.dp_hash
    };
    let from = |port| {
        let mut frame = over4(TCP);
        frame.l4().a = port;
        frame
    };
    // The same for all packets of a connection, another one with another basis.
    let mut other = sized(from(1), 300);
    (other.ip4().ttl, other.ip4().tos, other.l4().seq) = (9, 0, 77);
    assert_eq!(hash(0, &from(1)), hash(0, &other));
    assert_ne!(hash(0, &from(1)), hash(1, &from(1)));
    let hashes: Vec<u32> = (0..64).map(|port| hash(0, &from(1000 + port))).collect();
    assert!(!hashes.contains(&0));

    // As a select group does it: a bit of the hash, or all of it, chooses the port.
    for (bit, to) in [(0, PLAIN), (1, BARE)] {
        let put = recirculated(5, bit.into(), vec![output(to)], |k, m| (k.dp_hash, m.dp_hash) = (bit, 1));
        wires.dpif.flow_put(&put).unwrap();
    }
    let mut to_plain = 0;
    for (port, hash) in (0..64).zip(&hashes) {
        let to = if hash & 1 == 0 { PLAIN } else { BARE };
        to_plain += u32::from(to == PLAIN);
        let mode = if port % 2 == 0 { COMPLETE } else { Mode::Partial };
        wires.send(&from(1000 + port), mode);
        wires.check(to, &from(1000 + port), mode).unwrap();
    }
    assert!((8..=56).contains(&to_plain), "{to_plain} of 64");
    for bit in 0..2u32 {
        wires.dpif.flow_del(Ufid(5 << 64 | u128::from(bit))).unwrap();
    }
    let put = recirculated(5, 9, vec![output(BARE)], |k, m| (k.dp_hash, m.dp_hash) = (hashes[0], u32::MAX));
    wires.dpif.flow_put(&put).unwrap();
    wires.send(&from(1000), COMPLETE);
    wires.check(BARE, &from(1000), COMPLETE).unwrap();
    wires.send(&from(1001), COMPLETE);
    assert_ne!(wires.upcalls(&mut batch)[0].key.dp_hash, hashes[0]);
    wires.end(&[]);
}

#[test]
fn a_truncated_output_is_the_beginning_and_others_are_whole() {
    testkit::require_root_and_bpf!("a_truncated_output_is_the_beginning_and_others_are_whole");
    testkit::require!("a_truncated_output_is_the_beginning_and_others_are_whole"; testkit::Need::Tool("ethtool"));
    let wires = Wires::new("trunc");
    let check = |what: &str, frame: &Frame, mode: Mode, port: OdpPort, len: Option<usize>| {
        let Some(len) = len else {
            return wires.check(port, frame, mode).unwrap_or_else(|text| panic!("{what}, whole: {text}"));
        };
        // What is left to the device is computed over what is left of the frame, as the module has it.
        let (mut expected, left) = frame.handed_over(mode);
        expected.truncate(len);
        if let Some(place) = left.checksum {
            complete(&mut expected, place);
        }
        let mut received = wires.receive(port).unwrap_or_else(|| panic!("{what}: nothing came"));
        assert_eq!(received.offload.gso, None, "{what}");
        assert!(port == PLAIN || received.offload.checksum.is_none(), "{what}");
        if let Some(place) = received.offload.checksum {
            complete(&mut received.bytes, place);
        }
        same(&received.bytes, &expected).unwrap_or_else(|text| panic!("{what}: {text}"));
    };
    let frames = [
        (over4(UDP), COMPLETE),
        (over6(TCP), COMPLETE),
        (over4(TCP), Mode::Partial),
        (over6(UDP), Mode::Partial),
        (sized(over4(TCP), 4000), Mode::Gso(1000)),
    ];
    for (frame, mode) in frames {
        // 74 bytes of headers at most.
        for len in [74, 80, 100, 5000] {
            let what = format!("{len} bytes, {mode:?}");
            let n = (len < frame.build().len()).then_some(len);
            let trunc = Action::Trunc(len as u32);
            for (cut, whole) in [(PLAIN, BARE), (BARE, PLAIN)] {
                wires.flow(vec![trunc.clone(), output(cut)]);
                wires.send(&frame, mode);
                check(&what, &frame, mode, cut, n);

                // Whole ones before and behind it.
                wires.flow(vec![output(whole), trunc.clone(), output(cut)]);
                wires.send(&frame, mode);
                check(&what, &frame, mode, whole, None);
                check(&what, &frame, mode, cut, n);
                wires.flow(vec![output(cut), trunc.clone(), output(cut), output(whole), output(cut)]);
                wires.send(&frame, mode);
                check(&what, &frame, mode, whole, None);
                // The truncated one goes last.
                for n in [None, None, n] {
                    check(&what, &frame, mode, cut, n);
                }
            }
        }
        // A changed packet's beginning.
        let mac = set(KeyAttr::Ethernet, |v, m| (v.eth_src, m.eth_src) = ([2, 4, 6, 8, 10, 12], [255; 6]));
        wires.flow(vec![output(PLAIN), mac, Action::Trunc(90), output(BARE)]);
        wires.send(&frame, mode);
        check("before the change", &frame, mode, PLAIN, None);
        let mut changed = frame;
        changed.src = [2, 4, 6, 8, 10, 12];
        check("after the change", &changed, mode, BARE, Some(90));
    }
    // The kernel doesn't let a program cut off a checksum that is left to the device: nothing is sent, and that is counted.
    let mut cut_off = 0;
    for (frame, mode, end) in [(over4(TCP), Mode::Partial, 52), (over6(UDP), Mode::Partial, 62)] {
        for (len, sent) in [(end, true), (end - 1, false), (14, false)] {
            wires.flow(vec![Action::Trunc(len), output(PLAIN)]);
            wires.send(&frame, mode);
            if sent {
                check("to the checksum", &frame, mode, PLAIN, Some(len as usize));
            } else {
                cut_off += 1;
                assert!(testkit::wait_until(common::SOON, || wires.drops("action") == cut_off), "{len} bytes");
            }
        }
    }
    wires.end(&[("action", cut_off)]);
}

#[test]
fn a_packet_for_userspace_is_what_it_is_at_that_point() {
    testkit::require_root_and_bpf!("a_packet_for_userspace_is_what_it_is_at_that_point");
    testkit::require!("a_packet_for_userspace_is_what_it_is_at_that_point"; testkit::Need::Tool("ethtool"));
    let wires = Wires::new("userspace");
    wires.dpif.handlers_set(1).unwrap();
    let up = |cookie: &[u8]| Action::Userspace(UserspaceAction { cookie: cookie.to_vec(), ..Default::default() });
    let address = set(KeyAttr::Ipv4, |v, m| (v.ipv4_src, m.ipv4_src) = (Be32::new(0x0101_0101), Be32::MAX));
    let long: Vec<u8> = (0..128).collect();
    wires.flow(vec![
        up(b"as it came"),
        output(PLAIN),
        address,
        push(0x88a8, 0x2064),
        up(&long),
        Action::Trunc(100),
        up(&[]),
        output(BARE),
    ]);
    let mut batch = UpcallBatch::default();
    for mode in [COMPLETE, Mode::Partial, Mode::Gso(1200)] {
        let frame = sized(tagged(over4(TCP), &[(0x8100, 3)]), if matches!(mode, Mode::Gso(_)) { 6000 } else { 200 });
        let mut changed = frame.clone();
        changed.ip4().src = 0x0101_0101;
        changed.tags.insert(0, (0x88a8, 0x2064));
        wires.send(&frame, mode);
        wires.check(PLAIN, &frame, mode).unwrap();
        wires.check(BARE, &changed, mode).unwrap();
        let expected = [(&b"as it came"[..], &frame, None), (&long, &changed, None), (&[], &changed, Some(100))];
        let mut received = 0;
        while received < expected.len() {
            for upcall in wires.upcalls(&mut batch) {
                let (cookie, frame, trunc) = expected[received];
                let what = format!("{mode:?}, upcall {received}");
                let (_, left) = frame.handed_over(mode);
                let mut data = upcall.packet.data.clone();
                let mut whole = frame.build();
                assert_eq!(upcall.orig_len as usize, whole.len(), "{what}");
                if let Some(len) = trunc {
                    // The tag beside the bytes comes on top of what is counted.
                    assert!(data.len() == len || data.len() == len + 4, "{what}: {}", data.len());
                    whole = frame.handed_over(mode).0;
                    whole.truncate(data.len());
                } else if upcall.packet.partial_checksum {
                    complete(&mut data, left.checksum.expect("a checksum that was left"));
                }
                same(&data, &whole).unwrap_or_else(|text| panic!("{what}: {text}"));
                assert_eq!((upcall.kind, &upcall.cookie[..]), (UpcallKind::Action, cookie), "{what}");
                if trunc.is_none() {
                    assert_eq!(upcall.packet.partial_checksum, left.checksum.is_some(), "{what}");
                    assert_eq!(upcall.packet.gso_size, left.gso.map_or(0, |gso| gso.size), "{what}");
                }
                let (key, mut of) = (&upcall.key, frame.clone());
                let tag = frame.tags[0];
                assert_eq!((key.in_port, key.recirc_id, key.ip_proto), (1, 0, TCP), "{what}");
                assert_eq!((key.vlan.tpid.get(), key.vlan.tci.get()), (tag.0, tag.1 | 0x1000), "{what}");
                assert_eq!(key.cvlan.tci.get(), frame.tags.get(1).map_or(0, |tag| tag.1 | 0x1000), "{what}");
                assert_eq!((key.ipv4_src.get(), key.tp_dst.get()), (of.ip4().src, of.l4().b), "{what}");
                received += 1;
            }
        }
    }
    assert_eq!(wires.dpif.port_stats(IN).unwrap().upcalls, 9);
    wires.end(&[]);
}

#[test]
fn a_dropped_packet_goes_nowhere_and_is_counted() {
    testkit::require_root_and_bpf!("a_dropped_packet_goes_nowhere_and_is_counted");
    testkit::require!("a_dropped_packet_goes_nowhere_and_is_counted"; testkit::Need::Tool("ethtool"));
    let wires = Wires::new("drop");
    let frame = over4(TCP);
    let lists = [
        vec![],
        vec![Action::Drop(0)],
        vec![Action::Drop(42)],
        vec![output(PLAIN), Action::Drop(3)],
        vec![output(PLAIN), Action::Drop(3), output(BARE)],
        vec![push(0x8100, 1), Action::Drop(3)],
    ];
    let mut put = None;
    for (i, actions) in lists.into_iter().enumerate() {
        let sent = actions.first() == Some(&output(PLAIN));
        put = Some(wires.flow(actions));
        wires.send(&frame, COMPLETE);
        if sent {
            wires.check(PLAIN, &frame, COMPLETE).unwrap();
        }
        assert!(testkit::wait_until(common::SOON, || wires.drops("flow") == i as u64 + 1), "list {i}");
    }
    assert_eq!(wires.dpif.flow_get(put.unwrap().ufid).unwrap().stats.packets, 6);
    wires.end(&[("flow", 6)]);
}

#[test]
fn jumbo_frames_and_super_packets_are_forwarded_and_executed() {
    testkit::require_root_and_bpf!("jumbo_frames_and_super_packets_are_forwarded_and_executed");
    testkit::require!("jumbo_frames_and_super_packets_are_forwarded_and_executed"; testkit::Need::Tool("ethtool"));
    let wires = Wires::new("large");
    wires.jumbo();
    let frames = [
        (over4(TCP), COMPLETE),
        (over6(UDP), COMPLETE),
        (over4(UDP), Mode::Partial),
        (over6(TCP), Mode::Partial),
        // 9000 bytes of IP.
        (sized(over4(UDP), 9000 - 28), COMPLETE),
        (sized(over6(TCP), 9000 - 60), Mode::Partial),
        // 64 KiB less a byte, the most that a device takes in one piece.
        (sized(over4(TCP), 65_535 - 54), Mode::Gso(1400)),
        (sized(over6(TCP), 65_535 - 74), Mode::Gso(8900)),
        (sized(over4(TCP), 30_000), Mode::Gso(536)),
    ];
    let mut key = FlowKey::ZERO;
    key.in_port = IN.0;
    for (frame, mode) in frames {
        let (ipv4, len) = (matches!(frame.body, frame::Body::Ip4(..)), frame.build().len());
        let attr = if ipv4 { KeyAttr::Ipv4 } else { KeyAttr::Ipv6 };
        let address = set(attr, |v, m| match ipv4 {
            true => (v.ipv4_dst, m.ipv4_dst) = (Be32::new(0x0909_0909), Be32::MAX),
            false => (v.ipv6_dst, m.ipv6_dst) = ([0x99; 16], [255; 16]),
        });
        let mut changed = frame.clone();
        match ipv4 {
            true => changed.ip4().dst = 0x0909_0909,
            false => changed.ip6().dst = [0x99; 16],
        }
        changed.tags.push((0x8100, 77));
        let actions = vec![output(PLAIN), address, push(0x8100, 77), output(PLAIN), output(BARE)];
        let check = |how: &str| {
            for (port, frame) in [(PLAIN, &frame), (PLAIN, &changed), (BARE, &changed)] {
                wires.check(port, frame, mode).unwrap_or_else(|text| panic!("{how} {len} bytes ({mode:?}): {text}"));
            }
        };
        wires.flow(actions.clone());
        wires.send(&frame, mode);
        check("forwarded");

        let (data, left) = frame.handed_over(mode);
        let gso_size = left.gso.map_or(0, |gso| gso.size);
        let packet = Packet { data, gso_size, partial_checksum: left.checksum.is_some(), ..Packet::default() };
        wires.dpif.execute(Execute { packet: &packet, key: &key, actions: &actions }).unwrap();
        check("executed");
    }
    wires.end(&[]);
}
