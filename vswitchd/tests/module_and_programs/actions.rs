//! Lists of actions by chance, of those that the module and our programs have both.
//!
//! Left out, because one of the two refuses them or means something else: sets of ICMP and ARP (the module has none), transport
//! ports of fragments that have no transport header, truncation before a change of the packet
//! and recirculation before one (our programs refuse such lists, and userspace runs them), truncation below the headers (ours
//! drops and counts the output), sets of IP fields behind the push of a second tag (the module writes them four bytes too early).

use datapath_common::key::{FRAG_LATER, VLAN_PRESENT};
use datapath_common::{Be16, Be32, FlowKey, Vlan};
use dpif::{Action, HashAlg, KeyAttr, SetAction, UserspaceAction};
use fastrand::Rng;

use crate::side::OUT;

/// What is generated.
pub(crate) const NAMES: [&str; 11] = [
    "output",
    "trunc",
    "userspace",
    "set(eth)",
    "set(ip)",
    "set(transport)",
    "set(metadata)",
    "push_vlan",
    "pop_vlan",
    "hash",
    "recirc",
];
/// Shorter than this nothing is cut: no header that our programs may have to keep whole is longer.
const SHORTEST_CUT: u32 = 128;

/// The name of an action among [`NAMES`].
pub(crate) fn name(action: &Action) -> &'static str {
    match action {
        Action::Output(_) => "output",
        Action::Trunc(_) => "trunc",
        Action::Userspace(_) => "userspace",
        Action::PushVlan(_) => "push_vlan",
        Action::PopVlan => "pop_vlan",
        Action::Hash { .. } => "hash",
        Action::Recirc(_) => "recirc",
        Action::Drop(_) => "drop",
        Action::Set(set) => match set.attr {
            KeyAttr::Ethernet => "set(eth)",
            KeyAttr::Ipv4 | KeyAttr::Ipv6 => "set(ip)",
            KeyAttr::Tcp | KeyAttr::Udp => "set(transport)",
            _ => "set(metadata)",
        },
        _ => "other",
    }
}

/// A list for packets with this key; `drop`: there is the action of that name.
pub(crate) fn list(rng: &mut Rng, key: &FlowKey, drop: bool) -> Vec<Action> {
    loop {
        let mut actions = Vec::new();
        let mut inner_pushed = false;
        let mut tags = [key.vlan, key.cvlan].iter().filter(|tag| tag.tci.get() & VLAN_PRESENT != 0).count();
        for _ in 0..rng.usize(0..5) {
            change(rng, key, &mut tags, &mut inner_pushed, &mut actions);
            if rng.bool() {
                output(rng, &mut actions);
            }
        }
        match rng.u8(0..8) {
            0..3 => {
                if rng.bool() {
                    actions.push(Action::Hash { alg: HashAlg::L4, basis: rng.u32(..) });
                }
                actions.push(Action::Recirc(rng.u32(1..1000)));
            }
            3 => {
                actions.push(Action::Trunc(rng.u32(SHORTEST_CUT..200)));
                output(rng, &mut actions);
            }
            4 if drop => actions.push(Action::Drop(rng.u32(..2))),
            _ => output(rng, &mut actions),
        }
        if dpif::program::compile(&actions).is_ok() {
            return actions;
        }
    }
}

fn output(rng: &mut Rng, to: &mut Vec<Action>) {
    match rng.u8(0..5) {
        0 => {
            let cookie = (0..rng.usize(1..40)).map(|_| rng.u8(..)).collect();
            to.push(Action::Userspace(UserspaceAction { cookie, ..Default::default() }));
        }
        1 => to.extend(OUT.map(Action::Output)),
        _ => to.push(Action::Output(OUT[rng.usize(..2)])),
    }
}

/// One change of the packet.
fn change(rng: &mut Rng, key: &FlowKey, tags: &mut usize, inner_pushed: &mut bool, to: &mut Vec<Action>) {
    let v4 = key.eth_type.get() == 0x0800;
    let ip = (v4 || key.eth_type.get() == 0x86dd) && key.ip_proto != 0 && !*inner_pushed;
    let chosen = match rng.u8(0..8) {
        0 => Some(KeyAttr::Ethernet),
        1 | 2 if ip => Some(if v4 { KeyAttr::Ipv4 } else { KeyAttr::Ipv6 }),
        3 | 4 if ip && key.ip_frag != FRAG_LATER && !key.tp_src.is_zero() => match key.ip_proto {
            6 => Some(KeyAttr::Tcp),
            17 => Some(KeyAttr::Udp),
            _ => None,
        },
        5 => Some(if rng.bool() { KeyAttr::SkbMark } else { KeyAttr::Priority }),
        6 if *tags < 2 => {
            let tpid = Be16::new(if rng.bool() { 0x8100 } else { 0x88a8 });
            to.push(Action::PushVlan(Vlan { tpid, tci: Be16::new(rng.u16(..) | VLAN_PRESENT) }));
            *inner_pushed |= *tags > 0;
            *tags += 1;
            None
        }
        7 if *tags > 0 => {
            to.push(Action::PopVlan);
            *tags -= 1;
            None
        }
        _ => None,
    };
    to.extend(chosen.map(|attr| set(rng, attr)));
}

/// A set of an attribute's fields, some whole, some in part, some not at all, but of one bit at least.
pub(crate) fn set(rng: &mut Rng, attr: KeyAttr) -> Action {
    let fields: &[FlowKey] = &match attr {
        KeyAttr::Ethernet => {
            vec![FlowKey { eth_src: [0xff; 6], ..FlowKey::ZERO }, FlowKey { eth_dst: [0xff; 6], ..FlowKey::ZERO }]
        }
        KeyAttr::Ipv4 => vec![
            FlowKey { ipv4_src: Be32::MAX, ..FlowKey::ZERO },
            FlowKey { ipv4_dst: Be32::MAX, ..FlowKey::ZERO },
            FlowKey { ip_tos: 0xff, ..FlowKey::ZERO },
            FlowKey { ip_ttl: 0xff, ..FlowKey::ZERO },
        ],
        KeyAttr::Ipv6 => vec![
            FlowKey { ipv6_src: [0xff; 16], ..FlowKey::ZERO },
            FlowKey { ipv6_dst: [0xff; 16], ..FlowKey::ZERO },
            FlowKey { ipv6_label: Be32::new(0xf_ffff), ..FlowKey::ZERO },
            FlowKey { ip_tos: 0xff, ..FlowKey::ZERO },
            FlowKey { ip_ttl: 0xff, ..FlowKey::ZERO },
        ],
        KeyAttr::Tcp | KeyAttr::Udp => {
            vec![FlowKey { tp_src: Be16::MAX, ..FlowKey::ZERO }, FlowKey { tp_dst: Be16::MAX, ..FlowKey::ZERO }]
        }
        KeyAttr::SkbMark => vec![FlowKey { skb_mark: u32::MAX, ..FlowKey::ZERO }],
        _ => vec![FlowKey { skb_priority: u32::MAX, ..FlowKey::ZERO }],
    };
    let (mut value, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
    while mask == FlowKey::ZERO {
        for field in fields {
            let partly = match rng.u8(0..3) {
                0 => 0,
                1 => rng.u64(..),
                _ => u64::MAX,
            };
            for (index, bits) in field.words().iter().enumerate() {
                mask.words_mut()[index] |= bits & partly;
            }
        }
    }
    for (value, mask) in value.words_mut().iter_mut().zip(mask.words()) {
        *value = rng.u64(..) & mask;
    }
    Action::Set(Box::new(SetAction { attr, value, mask }))
}
