//! Packets that only have to be sent.

use datapath_common::FlowKey;
use dpif::{Action, Dpif, DpifError, DpifOp, Execute, OdpPort, Packet, PortKind};
use dpif_netlink::NetlinkDpif;
use testkit::{Need, RawSocket, frames, require, veth_pair};

use crate::rig::Rig;
use crate::{SOON, spec};

/// Executes packets in one batch, all of which succeed and say so; how many frames the module had no part in.
fn execute(dpif: &NetlinkDpif, packets: &[(&Packet, FlowKey, &[Action])]) -> u64 {
    let before = dpif.transmitted();
    let executes = packets.iter().map(|(packet, key, actions)| Execute { packet, key, actions });
    let mut ops: Vec<_> =
        executes.map(|execute| DpifOp::Execute { execute, result: Err(DpifError::NoSuchFlow) }).collect();
    dpif.operate(&mut ops);
    for op in ops {
        assert!(matches!(op, DpifOp::Execute { result: Ok(()), .. }), "{op:?}");
    }
    dpif.transmitted() - before
}

#[test]
fn packets_that_only_have_to_be_sent_go_to_their_devices_and_the_rest_through_the_module() {
    const NAME: &str = "packets_that_only_have_to_be_sent_go_to_their_devices_and_the_rest_through_the_module";
    require!(NAME; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("transmit");
    rig.run(|| {
        let dpif = rig.open(None);
        dpif.handlers_set(1).unwrap();
        let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
        let b = dpif.port_add(&spec("b0", PortKind::System)).unwrap();
        let inside = dpif.port_add(&spec("inside", PortKind::Internal)).unwrap();
        rig.ns.ip("link set inside up").unwrap();
        let [to_a, to_b, to_inside] = ["a1", "b1", "inside"].map(|device| RawSocket::open(&rig.ns, device).unwrap());
        let packet = |number: u16| Packet::new(frames::udp(number));
        let comes = |wire: &RawSocket, packet: &Packet| {
            let frame = wire.recv_where(SOON, |frame| frame.bytes == packet.data).unwrap();
            assert!(frame.is_some(), "{:02x?}", packet.data);
        };
        let key = FlowKey { in_port: a.0, ..FlowKey::ZERO };
        let marked = FlowKey { skb_mark: 7, ..key };

        // One port, two; a port that is no device's; metadata; a device and the module's own in one list.
        let [one, two, host, mark, both] = [1, 2, 3, 4, 5].map(packet);
        let lists: [&[OdpPort]; 5] = [&[b], &[a, b], &[inside], &[b], &[b, inside]];
        let lists = lists.map(|ports| ports.iter().copied().map(Action::Output).collect::<Vec<_>>());
        let packets = [(&one, key), (&two, key), (&host, key), (&mark, marked), (&both, key)];
        let batch: Vec<_> =
            packets.iter().zip(&lists).map(|((packet, key), list)| (*packet, *key, &list[..])).collect();
        assert_eq!(execute(&dpif, &batch), 3);
        [
            (&to_b, &one),
            (&to_a, &two),
            (&to_b, &two),
            (&to_inside, &host),
            (&to_b, &mark),
            (&to_b, &both),
            (&to_inside, &both),
        ]
        .into_iter()
        .for_each(|(wire, packet)| comes(wire, packet));

        // What the device can't send is the module's to drop and count; what is behind it goes.
        let long = Packet::new([frames::udp(6), vec![0; 2000]].concat());
        let dropped = || dpif.port_stats(b).unwrap();
        let before = dropped();
        let [behind, list] = [packet(7), packet(8)];
        let to_both = [Action::Output(b), Action::Output(a)];
        assert_eq!(execute(&dpif, &[(&long, key, &to_both[..1]), (&behind, key, &to_both[..1])]), 1);
        comes(&to_b, &behind);
        assert_eq!(dropped().tx_packets, before.tx_packets + 1);
        rig.ns.ip("link set b0 down").unwrap();
        assert_eq!(execute(&dpif, &[(&list, key, &to_both)]), 1);
        comes(&to_a, &list);
        rig.ns.ip("link set b0 up").unwrap();

        // A number that becomes another device's.
        veth_pair(&rig.ns, "c0", &rig.ns, "c1").unwrap();
        let to_c = RawSocket::open(&rig.ns, "c1").unwrap();
        dpif.port_del(b).unwrap();
        let gone = packet(9);
        assert_eq!(execute(&dpif, &[(&gone, key, &[Action::Output(b)])]), 0);
        let again = dpif.port_add(&dpif::PortSpec { request: Some(b), ..spec("c0", PortKind::System) }).unwrap();
        assert_eq!(again, b);
        let other = packet(10);
        assert_eq!(execute(&dpif, &[(&other, key, &[Action::Output(b)])]), 1);
        comes(&to_c, &other);
        assert!(
            to_b.recv_where(std::time::Duration::from_millis(50), |frame| frame.bytes == other.data).unwrap().is_none()
        );
    });
}
