//! Flows at random that the kernel accepts: keys with the headers that their types ask for, masks that it can express, and
//! actions that fit the masked key.
//!
//! Never generated: tunnel options, NSH metadata of type 2, sets of NSH, a timeout policy of ct (it has to exist), frames that
//! end within a VLAN tag, keys without a port, IPv6 tunnels of which no address is matched (the kernel doesn't say their family),
//! the attributes that only the module itself or another datapath uses.
#![allow(dead_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::key::{MAC_PROTO_ETHERNET, MAC_PROTO_NONE, VLAN_PRESENT};
use datapath_common::{Be16, Be32, Be64, FlowKey, Vlan};
use dpif::{Action, CtAction, HashAlg, KeyAttr, NatAction, NatDirection, OdpPort, SetAction, UserspaceAction};
use dpif_netlink::codec::normalize;
use fastrand::Rng;

pub(crate) const ETH_TYPES: [u16; 12] =
    [0x0800, 0x0800, 0x86dd, 0x86dd, 0x0806, 0x8035, 0x8847, 0x8848, 0x894f, 0x0004, 0x88b5, 0x8100];

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn bytes<const N: usize>(rng: &mut Rng) -> [u8; N] {
    [(); N].map(|()| rng.u8(..))
}

fn be16(rng: &mut Rng) -> Be16 {
    Be16::new(rng.u16(..))
}

fn be32(rng: &mut Rng) -> Be32 {
    Be32::new(rng.u32(..))
}

/// A key with all fields of the headers that it has.
pub(crate) fn key(rng: &mut Rng) -> FlowKey {
    let mut key = FlowKey {
        in_port: rng.u32(..60000),
        recirc_id: rng.u32(..),
        dp_hash: rng.u32(..),
        skb_priority: rng.u32(..),
        skb_mark: rng.u32(..),
        ct_state: rng.u32(..0x100),
        ct_zone: rng.u16(..),
        ct_mark: rng.u32(..),
        ct_label: bytes(rng),
        ..FlowKey::ZERO
    };
    let mut eth_type = pick(rng, &ETH_TYPES);
    key.mac_proto = if rng.u8(..8) == 0 { MAC_PROTO_NONE } else { MAC_PROTO_ETHERNET };
    if key.mac_proto == MAC_PROTO_ETHERNET {
        (key.eth_src, key.eth_dst) = (bytes(rng), bytes(rng));
        let tag = |rng: &mut Rng| Vlan {
            tpid: Be16::new(pick(rng, &[0x8100, 0x88a8])),
            tci: Be16::new(rng.u16(..) | VLAN_PRESENT),
        };
        let tags = rng.u8(..4);
        if tags >= 2 || eth_type == 0x8100 {
            key.vlan = tag(rng);
        }
        if tags == 3 || eth_type == 0x8100 {
            key.cvlan = tag(rng);
        }
    } else if matches!(eth_type, 0x0004 | 0x8100) {
        eth_type = 0x0800;
    }
    key.eth_type = Be16::new(eth_type);
    if rng.u8(..4) == 0 {
        tunnel(rng, &mut key);
    }
    match eth_type {
        0x0800 | 0x86dd => ip(rng, &mut key),
        0x0806 | 0x8035 => {
            (key.ipv4_src, key.ipv4_dst, key.ip_proto) = (be32(rng), be32(rng), rng.u8(..));
            (key.arp_sha, key.arp_tha) = (bytes(rng), bytes(rng));
        }
        0x8847 | 0x8848 => {
            let count = rng.usize(1..=3);
            for (i, lse) in key.mpls_lse.iter_mut().take(count).enumerate() {
                let bottom = if i + 1 == count { 0x100 } else { 0 };
                *lse = Be32::new(rng.u32(..) & !0x100 | bottom);
            }
            key.mpls_labels = (1 << count) - 1;
        }
        0x894f => {
            (key.nsh_flags, key.nsh_ttl) = (rng.u8(..4), rng.u8(..64));
            (key.nsh_mdtype, key.nsh_np, key.nsh_path) = (pick(rng, &[1, 1, 2]), rng.u8(1..6), be32(rng));
            if key.nsh_mdtype == 1 {
                key.nsh_context = [(); 4].map(|()| be32(rng));
            }
        }
        _ => {}
    }
    key
}

fn tunnel(rng: &mut Rng, key: &mut FlowKey) {
    if rng.bool() {
        key.tun_proto = 2;
        (key.tun_ipv4_src, key.tun_ipv4_dst) = (be32(rng), Be32::new(rng.u32(1..)));
    } else {
        key.tun_proto = 10;
        (key.tun_ipv6_src, key.tun_ipv6_dst) = (bytes(rng), bytes(rng));
        key.tun_ipv6_dst[0] |= 0x20;
    }
    key.tun_flags = rng.u16(..) & 0x0301;
    if rng.bool() {
        key.tun_flags |= 0x0004;
        key.tun_id = Be64::new(rng.u64(..));
    }
    (key.tun_tos, key.tun_ttl) = (rng.u8(..), rng.u8(1..));
    (key.tun_tp_src, key.tun_tp_dst) = (be16(rng), be16(rng));
}

fn ip(rng: &mut Rng, key: &mut FlowKey) {
    let v6 = key.eth_type.get() == 0x86dd;
    (key.ip_tos, key.ip_ttl, key.ip_frag) = (rng.u8(..), rng.u8(..), pick(rng, &[0, 0, 0, 1, 2]));
    key.ip_proto = if v6 { pick(rng, &[6, 17, 132, 58, 58, 89]) } else { pick(rng, &[6, 17, 132, 1, 89]) };
    if v6 {
        (key.ipv6_src, key.ipv6_dst) = (bytes(rng), bytes(rng));
        key.ipv6_label = Be32::new(rng.u32(..) & 0xf_ffff);
        key.ipv6_exthdrs = rng.u16(..) & 0x01ff;
    } else {
        (key.ipv4_src, key.ipv4_dst) = (be32(rng), be32(rng));
    }
    let mut nd = false;
    if key.ip_frag != 2 {
        match key.ip_proto {
            6 | 17 | 132 => (key.tp_src, key.tp_dst) = (be16(rng), be16(rng)),
            1 | 58 => {
                nd = key.ip_proto == 58 && rng.bool();
                let kind = if nd { pick(rng, &[135, 136]) } else { rng.u16(..128) };
                (key.tp_src, key.tp_dst) = (Be16::new(kind), Be16::new(rng.u16(..256)));
            }
            _ => {}
        }
        if key.ip_proto == 6 {
            key.tcp_flags = Be16::new(rng.u16(..) & 0xfff);
        }
        if nd {
            key.nd_target = bytes(rng);
            (key.arp_sha, key.arp_tha) = (bytes(rng), bytes(rng));
        }
    }
    if !nd && rng.u8(..4) == 0 {
        (key.ct_orig_proto, key.ct_state) = (rng.u8(1..), key.ct_state | 0x20);
        (key.ct_orig_tp_src, key.ct_orig_tp_dst) = (be16(rng), be16(rng));
        if v6 {
            (key.ct_orig_ipv6_src, key.ct_orig_ipv6_dst) = (bytes(rng), bytes(rng));
        } else {
            (key.ct_orig_ipv4_src, key.ct_orig_ipv4_dst) = (be32(rng), be32(rng));
        }
    }
}

/// A mask that the kernel accepts with this key, as the kernel has it: words whole, in part or not at all, under the rule that
/// fields behind a type are matched only where the type is, exactly.
pub(crate) fn mask(rng: &mut Rng, key: &FlowKey) -> FlowKey {
    let mut mask = FlowKey::ZERO;
    for word in mask.words_mut() {
        *word = match rng.u8(..4) {
            0 => 0,
            1 => rng.u64(..),
            _ => u64::MAX,
        };
    }
    // Flows of a test differ in this.
    mask.recirc_id = u32::MAX;
    mask.eth_type = if rng.u8(..8) == 0 { Be16::ZERO } else { Be16::MAX };
    mask.nsh_mdtype = pick(rng, &[u8::MAX, u8::MAX, 0]);
    let mut mask = normalize(key, &mask, true);
    if key.tun_proto == 10 {
        // A bit that the key has: the kernel shows a tunnel's family by its addresses alone.
        mask.tun_ipv6_dst[0] |= 0x20;
    }
    if mask.eth_type.is_zero() {
        without_headers(&mut mask);
    }
    let ip = matches!(key.eth_type.get(), 0x0800 | 0x86dd) && !mask.eth_type.is_zero();
    if ip && rng.bool() {
        (mask.ip_proto, mask.ip_frag) = (u8::MAX, u8::MAX);
    }
    if ip && (mask.ip_proto != u8::MAX || mask.ip_frag != u8::MAX) {
        without_transport(&mut mask);
    }
    if key.ip_proto == 58 && mask.tp_src.get() != 0xff {
        mask.nd_target = [0; 16];
        if ip {
            (mask.arp_sha, mask.arp_tha) = ([0; 6], [0; 6]);
        }
    }
    if mask.nsh_mdtype != u8::MAX {
        mask.nsh_context = [Be32::ZERO; 4];
    }
    if mask.ct_orig_proto != u8::MAX {
        without_tuple(&mut mask);
    }
    // What follows would be neighbour discovery if its type were matched and the fields were there.
    normalize(key, &mask, true)
}

fn without_headers(mask: &mut FlowKey) {
    (mask.ipv4_src, mask.ipv4_dst) = (Be32::ZERO, Be32::ZERO);
    (mask.ipv6_src, mask.ipv6_dst, mask.ipv6_label) = ([0; 16], [0; 16], Be32::ZERO);
    (mask.ip_proto, mask.ip_tos, mask.ip_ttl, mask.ip_frag, mask.ipv6_exthdrs) = (0, 0, 0, 0, 0);
    (mask.arp_sha, mask.arp_tha) = ([0; 6], [0; 6]);
    (mask.mpls_lse, mask.mpls_labels) = ([Be32::ZERO; 3], 0);
    (mask.nsh_flags, mask.nsh_ttl, mask.nsh_mdtype, mask.nsh_np) = (0, 0, 0, 0);
    (mask.nsh_path, mask.nsh_context) = (Be32::ZERO, [Be32::ZERO; 4]);
    without_transport(mask);
    without_tuple(mask);
}

fn without_transport(mask: &mut FlowKey) {
    (mask.tp_src, mask.tp_dst, mask.tcp_flags) = (Be16::ZERO, Be16::ZERO, Be16::ZERO);
    mask.nd_target = [0; 16];
    (mask.arp_sha, mask.arp_tha) = ([0; 6], [0; 6]);
}

fn without_tuple(mask: &mut FlowKey) {
    mask.ct_orig_proto = 0;
    (mask.ct_orig_ipv4_src, mask.ct_orig_ipv4_dst) = (Be32::ZERO, Be32::ZERO);
    (mask.ct_orig_ipv6_src, mask.ct_orig_ipv6_dst) = ([0; 16], [0; 16]);
    (mask.ct_orig_tp_src, mask.ct_orig_tp_dst) = (Be16::ZERO, Be16::ZERO);
}

/// Which actions a kernel knows beside those of 6.1.
#[derive(Clone, Copy, Default)]
pub(crate) struct Known {
    pub(crate) drop: bool,
    pub(crate) psample: bool,
    pub(crate) sym_l4: bool,
}

/// Actions that the kernel accepts for flows with this masked key.
pub(crate) fn actions(rng: &mut Rng, key: &FlowKey, known: Known) -> Vec<Action> {
    list(rng, key, known, 0)
}

fn list(rng: &mut Rng, key: &FlowKey, known: Known, depth: usize) -> Vec<Action> {
    let mut key = *key;
    let mut actions = Vec::new();
    for _ in 0..rng.usize(..4) {
        let action = one(rng, &key, known, depth);
        if let Some(Action::PushVlan(tag)) = action {
            key.vlan = tag;
        }
        actions.extend(action);
    }
    // These change what packets look like, so nothing that depends on it may follow.
    actions.extend(last(rng, &key, known));
    actions
}

fn one(rng: &mut Rng, key: &FlowKey, known: Known, depth: usize) -> Option<Action> {
    let ethernet = key.mac_proto == MAC_PROTO_ETHERNET;
    let eth_type = key.eth_type.get();
    Some(match rng.u8(..17) {
        0 | 1 => Action::Output(OdpPort(rng.u32(..60000))),
        2 => Action::Userspace(UserspaceAction {
            pid: rng.u32(1..),
            cookie: (0..rng.usize(..60)).map(|_| rng.u8(..)).collect(),
            egress_tunnel_port: rng.bool().then(|| OdpPort(rng.u32(..60000))),
            with_actions: rng.bool(),
        }),
        3 => Action::Recirc(rng.u32(..)),
        4 => Action::Hash {
            alg: if known.sym_l4 && rng.bool() { HashAlg::SymL4 } else { HashAlg::L4 },
            basis: rng.u32(..),
        },
        5 => Action::Trunc(rng.u32(14..)),
        6 => Action::Meter(rng.u32(..)),
        7 => Action::CtClear,
        8 if ethernet => {
            let tci = Be16::new(rng.u16(..) | VLAN_PRESENT);
            Action::PushVlan(Vlan { tpid: Be16::new(pick(rng, &[0x8100, 0x88a8])), tci })
        }
        9 if depth < 3 => Action::Sample { probability: rng.u32(..), actions: list(rng, key, known, depth + 1) },
        10 if depth < 3 => Action::Clone(list(rng, key, known, depth + 1)),
        11 if depth < 3 => Action::CheckPktLen {
            pkt_len: rng.u16(..),
            if_greater: list(rng, key, known, depth + 1),
            if_less_equal: list(rng, key, known, depth + 1),
        },
        12 if depth < 3 && matches!(eth_type, 0x0800 | 0x86dd) => Action::DecTtl(list(rng, key, known, depth + 1)),
        13 if matches!(eth_type, 0x0800 | 0x86dd) => Action::Ct(ct(rng, eth_type == 0x86dd, key.ip_proto == 6)),
        14 | 15 => Action::Set(Box::new(set(rng, key)?)),
        16 if known.psample => {
            Action::Psample { group: rng.u32(..), cookie: (0..rng.usize(..=16)).map(|_| rng.u8(..)).collect() }
        }
        _ => return None,
    })
}

fn last(rng: &mut Rng, key: &FlowKey, known: Known) -> Option<Action> {
    let ethernet = key.mac_proto == MAC_PROTO_ETHERNET;
    let tagged = key.vlan.tci.get() & VLAN_PRESENT != 0;
    let eth_type = key.eth_type.get();
    let mpls = matches!(eth_type, 0x8847 | 0x8848);
    let lse = be32(rng);
    let mpls_type = Be16::new(pick(rng, &[0x8847, 0x8848]));
    match rng.u8(..10) {
        0 if ethernet => Some(Action::PopVlan),
        1 if !tagged && matches!(eth_type, 0x0800 | 0x86dd | 0x0806) => {
            Some(Action::PushMpls { lse, eth_type: mpls_type })
        }
        2 if !tagged && mpls => Some(Action::PopMpls(Be16::new(0x0800))),
        3 if ethernet && !tagged => Some(Action::PopEth),
        4 if !ethernet => Some(Action::PushEth { src: bytes(rng), dst: bytes(rng) }),
        5 if eth_type == 0x894f && matches!(key.nsh_np, 1..=3) => Some(Action::PopNsh),
        // The header says what follows it: a frame, or what the Ethernet type is.
        6 if ethernet || matches!(eth_type, 0x0800 | 0x86dd) => Some(Action::PushNsh(nsh_header(rng))),
        7 if !tagged && matches!(eth_type, 0x0800 | 0x86dd | 0x0806) => {
            Some(Action::AddMpls { lse, eth_type: mpls_type, flags: u16::from(rng.bool()) })
        }
        8 if known.drop => Some(Action::Drop(rng.u32(..))),
        _ => None,
    }
}

fn nsh_header(rng: &mut Rng) -> Vec<u8> {
    let ttl = rng.u8(..64);
    let mut header = vec![rng.u8(..4) << 4 | ttl >> 2, ttl << 6 | 6, 1, rng.u8(1..4)];
    header.extend((0..20).map(|_| rng.u8(..)));
    header
}

fn ct(rng: &mut Rng, v6: bool, tcp: bool) -> CtAction {
    let mut ct = CtAction { zone: rng.u16(..), ..CtAction::default() };
    ct.commit = rng.bool();
    if ct.commit {
        ct.force = rng.bool();
        let mark: u32 = rng.u32(1..);
        ct.mark = rng.bool().then(|| (rng.u32(..) & mark, mark));
        let mut label: ([u8; 16], [u8; 16]) = (bytes(rng), bytes(rng));
        label.1[0] |= 1;
        label.0.iter_mut().zip(label.1).for_each(|(value, mask)| *value &= mask);
        ct.label = rng.bool().then_some(label);
        ct.event_mask = rng.bool().then(|| rng.u32(..));
    }
    ct.helper = (tcp && rng.bool()).then(|| "ftp".into());
    ct.nat = rng.bool().then(|| nat(rng, ct.commit, v6));
    ct
}

fn nat(rng: &mut Rng, commit: bool, v6: bool) -> NatAction {
    let mut nat = NatAction::default();
    if !commit || rng.u8(..4) == 0 {
        return nat;
    }
    nat.direction = Some(if rng.bool() { NatDirection::Src } else { NatDirection::Dst });
    let mut address =
        || -> IpAddr { if v6 { Ipv6Addr::from(bytes::<16>(rng)).into() } else { Ipv4Addr::from(rng.u32(..)).into() } };
    let (first, last) = (address(), address());
    if rng.bool() {
        nat.addresses = Some((first.min(last), if rng.bool() { first.max(last) } else { first.min(last) }));
        if rng.bool() {
            let (first, last) = (rng.u16(1..), rng.u16(1..));
            nat.ports = Some((first.min(last), first.max(last)));
        }
        nat.persistent = rng.bool();
        nat.hash = nat.ports.is_some() && rng.bool();
        nat.random = nat.ports.is_some() && !nat.hash && rng.bool();
    }
    nat
}

fn set(rng: &mut Rng, key: &FlowKey) -> Option<SetAction> {
    let mut mask = FlowKey::ZERO;
    let attr = match rng.u8(..7) {
        0 => {
            mask.skb_priority = rng.u32(..);
            KeyAttr::Priority
        }
        1 => {
            mask.skb_mark = rng.u32(..);
            KeyAttr::SkbMark
        }
        2 if key.mac_proto == MAC_PROTO_ETHERNET => {
            (mask.eth_src, mask.eth_dst) = (bytes(rng), bytes(rng));
            KeyAttr::Ethernet
        }
        3 => {
            let mut value = FlowKey::ZERO;
            tunnel(rng, &mut value);
            return Some(SetAction { attr: KeyAttr::Tunnel, mask: exact_tunnel(&value), value });
        }
        4 if matches!(key.eth_type.get(), 0x8847 | 0x8848) => {
            mask.mpls_lse[0] = be32(rng);
            KeyAttr::Mpls
        }
        _ => return set_ip(rng, key),
    };
    Some(with_value(rng, attr, mask))
}

fn set_ip(rng: &mut Rng, key: &FlowKey) -> Option<SetAction> {
    let mut mask = FlowKey::ZERO;
    let v6 = match key.eth_type.get() {
        0x0800 => false,
        0x86dd => true,
        _ => return None,
    };
    let attr = match key.ip_proto {
        6 | 17 | 132 if rng.bool() => {
            (mask.tp_src, mask.tp_dst) = (be16(rng), be16(rng));
            match key.ip_proto {
                6 => KeyAttr::Tcp,
                17 => KeyAttr::Udp,
                _ => KeyAttr::Sctp,
            }
        }
        // The kernel asks for a protocol, which a key that doesn't match it has not.
        0 => return None,
        _ if v6 => {
            (mask.ipv6_src, mask.ipv6_dst) = (bytes(rng), bytes(rng));
            (mask.ipv6_label, mask.ip_tos, mask.ip_ttl) = (Be32::new(rng.u32(..) & 0xf_ffff), rng.u8(..), rng.u8(..));
            KeyAttr::Ipv6
        }
        _ => {
            (mask.ipv4_src, mask.ipv4_dst) = (be32(rng), be32(rng));
            (mask.ip_tos, mask.ip_ttl) = (rng.u8(..), rng.u8(..));
            KeyAttr::Ipv4
        }
    };
    Some(with_value(rng, attr, mask))
}

fn with_value(rng: &mut Rng, attr: KeyAttr, mask: FlowKey) -> SetAction {
    let mut value = mask;
    value.words_mut().iter_mut().for_each(|word| *word &= rng.u64(..));
    SetAction { attr, value, mask }
}

fn exact_tunnel(value: &FlowKey) -> FlowKey {
    let mut mask = FlowKey { tun_proto: u8::MAX, tun_flags: u16::MAX, ..FlowKey::ZERO };
    (mask.tun_id, mask.tun_tos, mask.tun_ttl) = (Be64::MAX, u8::MAX, u8::MAX);
    (mask.tun_tp_src, mask.tun_tp_dst) = (Be16::MAX, Be16::MAX);
    if value.tun_proto == 2 {
        (mask.tun_ipv4_src, mask.tun_ipv4_dst) = (Be32::MAX, Be32::MAX);
    } else {
        (mask.tun_ipv6_src, mask.tun_ipv6_dst) = ([u8::MAX; 16], [u8::MAX; 16]);
    }
    mask
}
