//! What the module says of a packet beside its bytes and its key, and what it does with what it is told: the largest fragment of
//! a packet that was put together, tunnels, samples.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use datapath_common::{Be16, FlowKey};
use dpif::odp::{format_actions, parse_actions};
use dpif::{
    Action, Dpif, DpifError, Execute, FlowPut, OdpPort, Packet, PortKind, PutMode, Tunnel, Ufid, Upcall, UpcallKind,
};
use dpif_netlink::attr::{Attrs, u16_of, u32_of};
use dpif_netlink::codec::normalize;
use dpif_netlink::{NetlinkDpif, VportType};
use neli::consts::socket::NlFamily;
use neli::router::synchronous::NlRouter;
use neli::socket::NlSocket;
use neli::utils::Groups;
use testkit::{Need, RawSocket, frames, require};

use crate::rig::{self, Rig, extracted};
use crate::{MODES, SOON, spec};

/// The rig's second device has this address, and a neighbour on its wire the next one.
const HERE: [u8; 4] = [172, 31, 1, 1];
const THERE: [u8; 4] = [172, 31, 1, 2];
const THERE_MAC: &str = "02:00:00:00:00:99";

/// A flow of packets like `frame` that come in by `port`.
fn flow(dpif: &NetlinkDpif, frame: &[u8], port: OdpPort, actions: &[Action]) {
    let key = extracted(frame, port);
    // Not again behind a recirculation.
    let (recirc_id, in_port) = (u32::MAX, u32::MAX);
    let mask = FlowKey { recirc_id, in_port, eth_type: Be16::MAX, ip_proto: u8::MAX, ..FlowKey::ZERO };
    let mask = normalize(&key, &mask, true);
    let put = FlowPut { mode: PutMode::CreateOrModify, ufid: Ufid(1), key, mask, actions: actions.into() };
    dpif.flow_put(&put).unwrap_or_else(|error| panic!("{actions:?}: {error}"));
}

fn actions(text: &str) -> Vec<Action> {
    parse_actions(text, None).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Sets the checksum of an IPv4 header.
fn checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Two fragments of one UDP packet, of 220 and 120 bytes of IP.
fn fragments() -> [Vec<u8>; 2] {
    [(0x2000u16, 200usize, 0u8), (200 / 8, 100, 200)].map(|(place, len, first)| {
        let mut frame = frames::udp(7)[..34].to_vec();
        frame[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&place.to_be_bytes());
        checksum(&mut frame[14..34]);
        frame.extend((0..len).map(|at| first.wrapping_add(at as u8)));
        if first == 0 {
            frame[34..42].copy_from_slice(&[0, 7, 0, 9, 1, 44, 0, 0]);
        }
        frame
    })
}

#[test]
fn a_packet_that_was_put_together_is_cut_again_as_it_was() {
    require!("a_packet_that_was_put_together_is_cut_again_as_it_was"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("fragments");
    rig.run(|| {
        let dpif = rig.open(None);
        dpif.handlers_set(1).unwrap();
        let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
        let b = dpif.port_add(&spec("b0", PortKind::System)).unwrap();
        let [first, second] = fragments();
        flow(&dpif, &first, a, &actions("ct(zone=7),recirc(0x9)"));
        let (from, to) = (RawSocket::open(&rig.ns, "a1").unwrap(), RawSocket::open(&rig.ns, "b1").unwrap());
        from.send(&first).unwrap();
        from.send(&second).unwrap();
        let upcall = rig::receive(&dpif, 1, 1, SOON).remove(0);
        assert_eq!((upcall.kind, upcall.key.recirc_id, upcall.key.ip_frag), (UpcallKind::Miss, 9, 0));
        assert_eq!((upcall.packet.mru, upcall.packet.data.len()), (220, 14 + 20 + 300));
        // As the datapath had it, it is executed; without that it leaves in one piece.
        let whole = Packet { mru: 0, ..upcall.packet.clone() };
        for (packet, lengths) in [(&upcall.packet, &[220, 120][..]), (&whole, &[320])] {
            dpif.execute(Execute { packet, key: &upcall.key, actions: &[Action::Output(b)] }).unwrap();
            let mut payload = Vec::new();
            for len in lengths {
                let frame = to.recv(SOON).unwrap().expect("a piece").bytes;
                assert_eq!(frame.len(), 14 + len);
                payload.extend_from_slice(&frame[34..]);
            }
            assert_eq!(payload, upcall.packet.data[34..]);
        }
        // What was never in pieces says nothing.
        from.send(&frames::kinds()[10]).unwrap();
        assert_eq!(rig::receive(&dpif, 1, 1, SOON)[0].packet.mru, 0);
    });
}

/// A datapath with ports `a` and `tunnel`, a way to the tunnel's other end by `b0`.
fn with_tunnel(rig: &Rig, kind: VportType) -> (NetlinkDpif, OdpPort, OdpPort) {
    rig.ns.ip(&format!("addr add {}.{}.{}.{}/24 dev b0", HERE[0], HERE[1], HERE[2], HERE[3])).unwrap();
    let neighbour = format!("neigh add 172.31.1.2 lladdr {THERE_MAC} dev b0 nud permanent");
    rig.ns.ip(&neighbour).unwrap();
    let dpif = rig.open(None);
    dpif.handlers_set(1).unwrap();
    let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
    let tunnel = dpif.vport_add("tun_sys", kind, None).unwrap().port;
    (dpif, a, tunnel)
}

#[test]
fn an_upcall_says_its_flows_actions_and_the_tunnel_that_the_packet_would_take() {
    const NAME: &str = "an_upcall_says_its_flows_actions_and_the_tunnel_that_the_packet_would_take";
    require!(NAME; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("egress");
    rig.run(|| {
        let (dpif, a, tunnel) = with_tunnel(&rig, VportType::Tunnel(Tunnel::Vxlan { dst_port: 4790, gbp: false }));
        let frame = frames::udp(5);
        let set = "set(tunnel(tun_id=0x7b,dst=172.31.1.2,ttl=9,flags(df|key)))";
        let wire = RawSocket::open(&rig.ns, "a1").unwrap();
        let ask = |text: &str| -> Upcall {
            flow(&dpif, &frame, a, &actions(text));
            wire.send(&frame).unwrap();
            rig::receive(&dpif, 1, 1, SOON).remove(0)
        };
        let text = format!("{set},userspace(pid=0,userdata(0102),actions,tunnel_out_port={tunnel}),{tunnel}");
        let upcall = ask(&text);
        assert_eq!((upcall.kind, upcall.cookie.as_slice()), (UpcallKind::Action, &[1, 2][..]));
        let egress = upcall.egress_tunnel.expect("no tunnel");
        assert_eq!((egress.tun_proto, egress.tun_id.get(), egress.tun_ttl), (2, 0x7b, 9));
        let address = |address: [u8; 4]| u32::from_be_bytes(address);
        assert_eq!((egress.tun_ipv4_src.get(), egress.tun_ipv4_dst.get()), (address(HERE), address(THERE)));
        assert_eq!(egress.tun_tp_dst.get(), 4790);
        assert_ne!(egress.tun_tp_src.get(), 0);
        // The socket is what the flow was put with, not what it was asked for.
        let of_flow = dpif.flow_get(Ufid(1)).unwrap().actions;
        assert_eq!(upcall.actions.as_deref(), Some(&*of_flow));
        let shown = format_actions(&of_flow, None);
        assert!(shown.starts_with(&format!("{set},userspace(pid=")), "{shown}");
        assert!(shown.ends_with(&format!("userdata(0102),actions,tunnel_out_port={tunnel}),{tunnel}")), "{shown}");
        // Nobody asked.
        let upcall = ask(&format!("{set},userspace(pid=0,userdata(03)),{tunnel}"));
        assert_eq!((upcall.cookie.as_slice(), upcall.egress_tunnel, upcall.actions), (&[3][..], None, None));
        // A port that is no tunnel has none to say.
        let upcall = ask(&format!("userspace(pid=0,actions,tunnel_out_port={a}),{a}"));
        assert_eq!((upcall.egress_tunnel, upcall.actions.is_some()), (None, true));
        assert_eq!(dpif.unreadable_upcalls(), 0);
    });
}

#[test]
fn a_packet_leaves_through_the_tunnel_that_was_set() {
    require!("a_packet_leaves_through_the_tunnel_that_was_set"; Need::OvsModule, Need::Namespaces);
    let inner = frames::udp(5);
    // Flags and network id, 8 bytes of VXLAN or Geneve (with Geneve's type: Ethernet), 4 and the key of GRE.
    let vxlan = [8, 0, 0, 0, 0, 0, 0x7b, 0];
    let geneve = [0, 0, 0x65, 0x58, 0, 0, 0x7b, 0];
    let gre = [0x20, 0, 0x65, 0x58, 0, 0, 0, 0x7b];
    for (kind, proto, port, header) in [
        (VportType::Tunnel(Tunnel::Vxlan { dst_port: 4790, gbp: false }), 17, 4790u16, vxlan),
        (VportType::Tunnel(Tunnel::Geneve { dst_port: 6082 }), 17, 6082, geneve),
        (VportType::Tunnel(Tunnel::Gre), 47, 0, gre),
    ] {
        let rig = Rig::new("tunnel");
        rig.run(|| {
            let (dpif, a, tunnel) = with_tunnel(&rig, kind);
            let text = format!("set(tunnel(tun_id=0x7b,dst=172.31.1.2,tos=0x28,ttl=9,flags(df|key))),{tunnel}");
            flow(&dpif, &inner, a, &actions(&text));
            let (from, outside) = (RawSocket::open(&rig.ns, "a1").unwrap(), RawSocket::open(&rig.ns, "b1").unwrap());
            from.send(&inner).unwrap();
            let outer = outside.recv(SOON).unwrap().unwrap_or_else(|| panic!("{kind:?}: nothing comes")).bytes;
            assert_eq!(outer[..6], [2, 0, 0, 0, 0, 0x99], "{kind:?}");
            let (ip, rest) = outer[14..].split_at(20);
            assert_eq!((ip[0], ip[1], ip[6], ip[8], ip[9]), (0x45, 0x28, 0x40, 9, proto), "{kind:?}");
            assert_eq!((&ip[12..16], &ip[16..20]), (&HERE[..], &THERE[..]), "{kind:?}");
            let rest = if proto == 17 {
                assert_eq!(rest[2..4], port.to_be_bytes(), "{kind:?}");
                &rest[8..]
            } else {
                rest
            };
            assert_eq!((&rest[..8], &rest[8..]), (&header[..], &inner[..]), "{kind:?}");
            // And what comes back is known by the tunnel that it came through.
            let mut back = outer.clone();
            back[14 + 12..14 + 20].rotate_left(4);
            back[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
            let ours = rig.ns.ip("-o link show b0").unwrap();
            let ours = ours.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
            let ours: Vec<u8> = ours.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            back[..6].copy_from_slice(&ours);
            outside.send(&back).unwrap();
            let upcall = rig::receive(&dpif, 1, 1, SOON).remove(0);
            assert_eq!((upcall.key.in_port, &upcall.packet.data), (tunnel.0, &inner), "{kind:?}");
            assert_eq!((upcall.key.tun_id.get(), upcall.key.tun_proto), (0x7b, 2), "{kind:?}");
            assert_eq!(upcall.key.tun_ipv4_src.get(), u32::from_be_bytes(THERE), "{kind:?}");
            assert_eq!((upcall.key.tun_opts_len, upcall.packet.tunnel_options.len()), (0, 0), "{kind:?}");
            comes_again(&dpif, &upcall);
            if matches!(kind, VportType::Tunnel(Tunnel::Geneve { .. })) {
                let option = [0x01, 0x02, 0x80, 1, 9, 8, 7, 6];
                outside.send(&with_geneve_option(&back, option)).unwrap();
                let upcall = rig::receive(&dpif, 1, 1, SOON).remove(0);
                assert_eq!((upcall.key.in_port, &upcall.packet.data), (tunnel.0, &inner));
                assert_eq!((upcall.key.tun_opts_len, &upcall.packet.tunnel_options[..]), (8, &option[..]));
                comes_again(&dpif, &upcall);
                let without = Packet { tunnel_options: Vec::new(), ..upcall.packet };
                let refused = dpif.execute(Execute { packet: &without, key: &upcall.key, actions: &[] });
                assert!(matches!(refused, Err(DpifError::Invalid(_))), "{refused:?}");
            }
        });
    }
}

/// A packet that is executed as it came up comes up again by the same tunnel, with the same options.
fn comes_again(dpif: &NetlinkDpif, upcall: &Upcall) {
    let up = actions("userspace(pid=0,userdata(05))");
    dpif.execute(Execute { packet: &upcall.packet, key: &upcall.key, actions: &up }).unwrap();
    let again = rig::receive(dpif, 1, 1, SOON).remove(0);
    assert_eq!((again.kind, &again.key), (UpcallKind::Action, &upcall.key));
    assert_eq!(
        (&again.packet.data, &again.packet.tunnel_options),
        (&upcall.packet.data, &upcall.packet.tunnel_options)
    );
}

/// The frame, with an option behind its Geneve header.
fn with_geneve_option(frame: &[u8], option: [u8; 8]) -> Vec<u8> {
    let (ip, udp, geneve) = (14, 34, 42);
    let mut frame = [&frame[..geneve + 8], &option, &frame[geneve + 8..]].concat();
    // In words of four bytes.
    frame[geneve] = 2;
    for at in [ip + 2, udp + 4] {
        let len = u16::from_be_bytes([frame[at], frame[at + 1]]) + 8;
        frame[at..at + 2].copy_from_slice(&len.to_be_bytes());
    }
    checksum(&mut frame[ip..udp]);
    frame
}

/// `PSAMPLE_ATTR_*` (`linux/psample.h`).
mod psample {
    pub(super) const IIFINDEX: u16 = 0;
    pub(super) const ORIGSIZE: u16 = 2;
    pub(super) const GROUP: u16 = 3;
    pub(super) const RATE: u16 = 5;
    pub(super) const DATA: u16 = 6;
    pub(super) const COOKIE: u16 = 15;
    pub(super) const PROBABILITY: u16 = 16;
}

#[test]
fn a_sample_is_told_to_those_who_listen() {
    require!("a_sample_is_told_to_those_who_listen"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("psample");
    rig.run(|| {
        let dpif = rig.open(None);
        if !dpif.probed().psample {
            return println!("the kernel has no psample action: it came with 6.11");
        }
        dpif.handlers_set(1).unwrap();
        let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
        let (router, _) = NlRouter::connect(NlFamily::Generic, None, Groups::empty()).unwrap();
        let group = router.resolve_nl_mcast_group("psample", "packets").unwrap();
        let listener = NlSocket::connect(NlFamily::Generic, None, Groups::empty()).unwrap();
        listener.add_mcast_membership(Groups::new_groups(&[group])).unwrap();
        let (frame, wire) = (frames::udp(5), RawSocket::open(&rig.ns, "a1").unwrap());
        let always = "psample(group=7,cookie=0x0102030405)";
        let of_all = format!("sample(sample=100.0%,actions({always}))");
        for (text, len) in
            [(always.to_owned(), frame.len()), (of_all, frame.len()), (format!("trunc(40),{always}"), 40)]
        {
            flow(&dpif, &frame, a, &actions(&text));
            wire.send(&frame).unwrap();
            let message = next(&listener);
            // The message's header is as long as the family's, which has none of its own.
            let attrs = Attrs::new(&message[20..]);
            let part = |kind| attrs.clone().find(kind).unwrap_or_else(|| panic!("{text}: no attribute {kind}"));
            assert_eq!(
                (u32_of(part(psample::GROUP)), part(psample::COOKIE)),
                (Some(7), &[1, 2, 3, 4, 5][..]),
                "{text}"
            );
            assert_eq!(part(psample::DATA), &frame[..len], "{text}");
            assert_eq!(u32_of(part(psample::ORIGSIZE)), Some(frame.len() as u32), "{text}");
            assert_eq!(u32_of(part(psample::RATE)), Some(u32::MAX), "{text}");
            assert_eq!(part(psample::PROBABILITY), &[0u8; 0], "{text}");
            let device = nix::net::if_::if_nametoindex("a0").unwrap();
            assert_eq!(u16_of(part(psample::IIFINDEX)).map(u32::from), Some(device), "{text}");
        }
    });
}

/// The next message of a socket.
fn next(socket: &NlSocket) -> Vec<u8> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // SAFETY: the socket owns the descriptor and outlives the borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
    assert_eq!(poll(&mut polled, PollTimeout::try_from(SOON).unwrap()).unwrap(), 1, "no sample");
    let mut buffer = vec![0; 4096];
    let len = nix::sys::socket::recv(fd.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty()).unwrap();
    buffer.truncate(len);
    buffer
}

#[test]
fn flows_that_send_up_name_the_sockets_of_the_handlers_that_there_are() {
    const NAME: &str = "flows_that_send_up_name_the_sockets_of_the_handlers_that_there_are";
    require!(NAME; Need::OvsModule, Need::Namespaces);
    for mode in MODES {
        let rig = Rig::new("renew");
        rig.run(|| {
            let dpif = rig.open(Some(mode));
            dpif.handlers_set(3).unwrap();
            let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
            let put = |list: &str| flow(&dpif, &frames::udp(0), a, &actions(list));
            put("clone(userspace(pid=0,userdata(07)))");
            let wire = RawSocket::open(&rig.ns, "a1").unwrap();
            let comes = |cookie: u8, handlers: u32| {
                wire.send(&frames::udp(1)).unwrap();
                let upcall = rig::receive(&dpif, handlers, 1, SOON).remove(0);
                assert_eq!((upcall.kind, upcall.cookie.as_slice()), (UpcallKind::Action, &[cookie][..]), "{mode:?}");
            };
            comes(7, 3);
            for handlers in [1, 2] {
                dpif.handlers_set(0).unwrap();
                dpif.handlers_set(handlers).unwrap();
                comes(7, handlers);
            }
            // What is put while nobody is there names nobody.
            dpif.handlers_set(0).unwrap();
            put("userspace(pid=0,userdata(08))");
            dpif.handlers_set(2).unwrap();
            comes(8, 2);
            // Sockets of others are theirs.
            put("userspace(pid=77,userdata(09))");
            dpif.handlers_set(0).unwrap();
            dpif.handlers_set(2).unwrap();
            let flow = dpif.flow_get(Ufid(1)).unwrap();
            assert_eq!(*flow.actions, *actions("userspace(pid=77,userdata(09))"));
        });
    }
}

#[test]
fn a_packet_is_executed_with_its_hash() {
    require!("a_packet_is_executed_with_its_hash"; Need::OvsModule, Need::Namespaces);
    /// By software, and of layer 4 (`OVS_PACKET_HASH_SW_BIT`, `OVS_PACKET_HASH_L4_BIT` of `linux/openvswitch.h`).
    const KINDS: u64 = 3 << 32;
    let rig = Rig::new("hash");
    rig.run(|| {
        let dpif = rig.open(None);
        dpif.handlers_set(1).unwrap();
        let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
        let key = FlowKey { in_port: a.0, ..FlowKey::ZERO };
        for hash in [KINDS | 0x1234_5678, KINDS | 1] {
            let packet = Packet { hash, ..Packet::new(frames::udp(5)) };
            let up = actions("userspace(pid=0,userdata(07))");
            dpif.execute(Execute { packet: &packet, key: &key, actions: &up }).unwrap();
            let upcall = rig::receive(&dpif, 1, 1, SOON).remove(0);
            assert_eq!((upcall.packet.hash, upcall.hash), (hash, hash as u32));
            assert_ne!(upcall.packet.upcall_pid, 0, "a CPU's socket is named");
            // As it came, it goes again.
            dpif.execute(Execute { packet: &upcall.packet, key: &key, actions: &up }).unwrap();
            assert_eq!(rig::receive(&dpif, 1, 1, SOON).remove(0).packet.hash, hash);
        }
    });
}

#[test]
fn a_device_that_was_renamed_before_is_found_by_its_name() {
    require!("a_device_that_was_renamed_before_is_found_by_its_name"; Need::OvsModule, Need::Namespaces);
    let rig = Rig::new("renamed");
    rig.run(|| {
        let dpif = rig.open(None);
        let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
        drop(dpif);
        // Before Linux 6.2 one that is up keeps its name.
        rig.ns.ip("link set a0 down").unwrap();
        rig.ns.ip("link set a0 name lan0").unwrap();
        let dpif = rig.open(None);
        assert_eq!(dpif.port_by_name("lan0").unwrap().map(|info| info.port), Some(a));
        assert_eq!(dpif.port_by_name("a0").unwrap(), None);
    });
}

#[test]
fn an_action_in_every_mode_is_answered_by_a_socket_that_is_read() {
    const NAME: &str = "an_action_in_every_mode_is_answered_by_a_socket_that_is_read";
    require!(NAME; Need::OvsModule, Need::Namespaces);
    for mode in MODES {
        let rig = Rig::new("pid");
        rig.run(|| {
            let dpif = rig.open(Some(mode));
            dpif.handlers_set(2).unwrap();
            let a = dpif.port_add(&spec("a0", PortKind::System)).unwrap();
            let packet = Packet::new(frames::udp(5));
            let key = FlowKey { in_port: a.0, ..FlowKey::ZERO };
            let up = actions("userspace(pid=0,userdata(07))");
            dpif.execute(Execute { packet: &packet, key: &key, actions: &up }).unwrap();
            let upcall = rig::receive(&dpif, 2, 1, SOON).remove(0);
            assert_eq!(
                (upcall.kind, upcall.cookie.as_slice(), upcall.key.in_port),
                (UpcallKind::Action, &[7][..], a.0)
            );
        });
    }
}
