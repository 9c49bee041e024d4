//! Flows that a specialised program can run, by chance, such that exactly what is wanted is needed.

use datapath_common::key::FRAG_LATER;
use datapath_common::needs::{ALL, DROP, ETH_SRC, IP, IPV4, L4, NAMES, RECIRC, REWRITE};
use datapath_common::{Be16, FlowKey};
use dpif::{Action, FlowPut, KeyAttr, PutMode, Ufid};
use dpif_netlink::codec::normalize;
use fastrand::Rng;

use crate::actions;
use crate::side::OUT;

/// What is to be needed, one after the other: nothing, each thing alone (ports are matched with the protocol only), several, and
/// everything, which is the wide program.
pub(crate) const WANTED: [u16; 12] = [
    0,
    ETH_SRC,
    IP,
    IPV4,
    IP | L4,
    REWRITE,
    RECIRC,
    DROP,
    IP | IPV4 | L4,
    IPV4 | REWRITE | DROP,
    IP | L4 | REWRITE | RECIRC,
    ALL,
];

/// Names of needs, as a program says what it serves.
pub(crate) fn names(needs: u16) -> Vec<&'static str> {
    NAMES.iter().filter(|(need, _)| needs & need != 0).map(|(_, name)| *name).collect()
}

/// A flow for packets like the one with this key, told from those of others by their destination, and the one that its packets meet
/// when they come back, if they do.
pub(crate) fn flow(rng: &mut Rng, key: &FlowKey, wanted: u16, recirc_id: u32) -> Vec<FlowPut> {
    let actions = list(rng, key, wanted, recirc_id);
    let again = actions.contains(&Action::Recirc(recirc_id)) && rng.bool();
    let put = |ufid, key: FlowKey, mask, actions: Vec<Action>| {
        let mask = normalize(&key, &mask, true);
        FlowPut { mode: PutMode::Create, ufid, key, mask, actions: actions.into() }
    };
    let mut flows = vec![put(Ufid(rng.u128(..)), *key, mask(rng, key, wanted), actions)];
    if again {
        let mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, eth_type: Be16::MAX, ..FlowKey::ZERO };
        let key = FlowKey { recirc_id, ..*key };
        flows.push(put(Ufid(rng.u128(..)), key, mask, vec![output(rng)]));
    }
    flows
}

/// As our datapath's own flows are: what all its packets have alike isn't matched.
pub(crate) fn as_ours(put: &FlowPut) -> FlowPut {
    let mut put = put.clone();
    (put.mask.mac_proto, put.mask.tun_proto) = (0, 0);
    put
}

fn mask(rng: &mut Rng, key: &FlowKey, wanted: u16) -> FlowKey {
    let mut mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, eth_type: Be16::MAX, ..FlowKey::ZERO };
    mask.eth_dst = [0xff; 6];
    if wanted & ETH_SRC != 0 {
        mask.eth_src = std::array::from_fn(|_| rng.u8(..));
        mask.eth_src[5] |= 1;
    }
    if key.eth_type.get() != 0x0800 {
        return mask;
    }
    mask.ip_frag = u8::MAX;
    if wanted & IPV4 != 0 {
        (mask.ipv4_src.0, mask.ipv4_dst.0) = (rng.u32(..) | 1, rng.u32(..));
    }
    if wanted & IP != 0 {
        mask.ip_proto = u8::MAX;
        (mask.ip_tos, mask.ip_ttl) = (rng.u8(..), if rng.bool() { u8::MAX } else { 0 });
    }
    if wanted & L4 != 0 && key.ip_frag != FRAG_LATER && matches!(key.ip_proto, 1 | 6 | 17 | 132) {
        let whole = key.ip_proto == 1;
        (mask.tp_src.0, mask.tp_dst.0) = if whole { (u16::MAX, u16::MAX) } else { (rng.u16(..) | 1, rng.u16(..)) };
        if key.ip_proto == 6 && rng.bool() {
            mask.tcp_flags.0 = rng.u16(..);
        }
    }
    mask
}

fn output(rng: &mut Rng) -> Action {
    Action::Output(OUT[rng.usize(..2)])
}

fn list(rng: &mut Rng, key: &FlowKey, wanted: u16, recirc_id: u32) -> Vec<Action> {
    loop {
        let mut list = match rng.u8(0..4) {
            0 if wanted & DROP != 0 => Vec::new(),
            1 if wanted & RECIRC != 0 => vec![Action::Recirc(recirc_id)],
            2 | 3 if wanted & REWRITE != 0 => sets(rng, key, wanted),
            _ => vec![output(rng)],
        };
        if matches!(list.last(), Some(Action::Set(_))) {
            list.push(output(rng));
        }
        if dpif::program::compile(&list).is_ok() {
            return list;
        }
    }
}

fn sets(rng: &mut Rng, key: &FlowKey, wanted: u16) -> Vec<Action> {
    let mut attrs = vec![KeyAttr::Ethernet];
    if key.eth_type.get() == 0x0800 && key.ip_proto != 0 {
        attrs.push(KeyAttr::Ipv4);
        // A set of ports asks for the protocol and reads the rest of the ports.
        let ports = wanted & L4 != 0 && key.ip_frag == 0 && !key.tp_src.is_zero();
        attrs.extend(match key.ip_proto {
            6 if ports => Some(KeyAttr::Tcp),
            17 if ports => Some(KeyAttr::Udp),
            _ => None,
        });
    }
    rng.shuffle(&mut attrs);
    attrs.truncate(rng.usize(1..=attrs.len()));
    attrs.into_iter().map(|attr| actions::set(rng, attr)).collect()
}
