//! Flow tables to look for differences with: flows that the frames at hand match, under random masks, with random programs.
//!
//! Flows of a datapath don't overlap; which of two overlapping ones a packet finds is nobody's promise. So a flow that would
//! overlap is left out. Flows behind a recirculation are made from the keys that packets have when they come there.

use datapath_common::key::HOT_WORDS;
use datapath_common::packet::SlicePacket;
use dpif::inproc::{Event, Frame, InprocDatapath};
use dpif::{
    Action, Be16, Be32, Dpif as _, FlowKey, FlowPut, HashAlg, KeyAttr, OdpPort, PutMode, SetAction, Ufid,
    UserspaceAction, Vlan,
};
use fastrand::Rng;

use super::frames::edge;
use super::rig::{Arrival, MTUS};

/// What the programs of a table may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// Anything.
    Any,
    /// One output, the last action: the program redirects the packet and clones nothing. For super-packets, which a test run
    /// makes only half and no device would send.
    OneOutput,
    /// What specialised programs run, in the main: flows that match these hot words alone (by bit), and do little.
    Plain(u8),
}

impl Shape {
    /// One of the last kind.
    pub(crate) fn plain(rng: &mut Rng) -> Self {
        Self::Plain(rng.u8(..))
    }
}

/// A frame for such flows: most are IPv4 without tags.
pub(crate) fn plain_frame(rng: &mut Rng) -> Vec<u8> {
    loop {
        let frame = super::frames::valid(rng);
        if frame.get(12..15) == Some(&[8, 0, 0x45]) || rng.u8(..16) == 0 {
            return frame;
        }
    }
}

/// Recirculation ids that programs use.
const RECIRC_IDS: u32 = 4;
/// A port that is not there.
const NO_PORT: u32 = 77;

/// A table: flows that don't overlap, for these frames.
pub(crate) fn table(
    rng: &mut Rng,
    twin: impl Fn() -> InprocDatapath,
    arrivals: &[Arrival],
    shape: Shape,
) -> Vec<FlowPut> {
    let scratch = twin();
    let mut flows: Vec<FlowPut> = Vec::new();
    let most = rng.usize(1..40);
    for _ in 0..5 {
        for arrival in arrivals {
            let trace = scratch.process(OdpPort(arrival.port), entering(arrival));
            let missed = trace.events.iter().find_map(|event| match event {
                Event::Lookup { key, ufid: None, .. } => Some(**key),
                _ => None,
            });
            let Some(key) = missed.filter(|_| rng.u8(..6) != 0) else { continue };
            let put = flow(rng, flows.len() as u128 + 1, key, shape);
            let overlaps = |other: &FlowPut| {
                let bits = put.mask.masked(&other.mask);
                put.key.masked(&bits) == other.key.masked(&bits)
            };
            if !flows.iter().any(overlaps) && scratch.flow_put(&put).is_ok() {
                flows.push(put);
            }
            if flows.len() >= most {
                return flows;
            }
        }
    }
    flows
}

/// The frame as the in-process datapath gets it.
pub(crate) fn entering(arrival: &Arrival) -> Frame {
    let mut packet = SlicePacket::new(arrival.bytes.as_slice());
    if let Some([a, b, c, d]) = arrival.accelerated() {
        packet.vlan = Vlan { tpid: Be16::new(u16::from_be_bytes([a, b])), tci: Be16::new(u16::from_be_bytes([c, d])) };
        packet.bytes.drain(12..16);
    }
    Frame { packet, gso_size: arrival.gso_size, skb_priority: arrival.priority, skb_mark: arrival.mark, mru: 0 }
}

fn flow(rng: &mut Rng, ufid: u128, key: FlowKey, shape: Shape) -> FlowPut {
    let mut mask = FlowKey::ZERO;
    if let Shape::Plain(words) = shape {
        for (i, word) in mask.words_mut().iter_mut().enumerate().take(HOT_WORDS) {
            if words >> i & 1 == 1 && rng.u8(..3) != 0 {
                *word = [0xff << (rng.u32(..8) * 8), u64::MAX, u64::MAX, rng.u64(..)][rng.usize(..4)];
            }
        }
        (mask.recirc_id, mask.in_port, mask.eth_type) = (u32::MAX, u32::MAX, Be16::MAX);
        // Few flows of a table do more than send the packet.
        let actions = match rng.u8(..8) {
            0 if words & 1 == 1 => vec![set(rng, &key), output(rng)],
            1 if words & 8 == 8 => vec![Action::Recirc(rng.u32(1..=RECIRC_IDS))],
            2 if words & 64 == 64 => vec![],
            3 if words & 128 == 128 => actions(rng, &key, Shape::OneOutput),
            _ => vec![output(rng)],
        };
        return FlowPut {
            mode: PutMode::Create,
            ufid: Ufid(ufid),
            key: key.masked(&mask),
            mask,
            actions: actions.into(),
        };
    }
    let density = [0, 0, 1, 1, 4, 12][rng.usize(..6)];
    for word in mask.words_mut() {
        if rng.u8(..16) < density {
            *word = match rng.u8(..4) {
                0 => 0xff << (rng.u32(..8) * 8),
                1 => rng.u64(..),
                _ => u64::MAX,
            };
        }
    }
    mask.recirc_id = u32::MAX;
    mask.in_port = if rng.u8(..4) != 0 { u32::MAX } else { 0 };
    if rng.bool() {
        mask.eth_type = Be16::MAX;
        mask.ip_proto = 0xff;
    }
    let actions = actions(rng, &key, shape);
    FlowPut { mode: PutMode::Create, ufid: Ufid(ufid), key: key.masked(&mask), mask, actions: actions.into() }
}

/// A list of actions for packets like `key`; what it does need not fit them.
pub(crate) fn actions(rng: &mut Rng, key: &FlowKey, shape: Shape) -> Vec<Action> {
    // Some are longer than a slot, and one is.
    let n = match rng.u8(..32) {
        0 => rng.usize(30..100),
        1..4 => 0,
        4..12 => 1,
        _ => rng.usize(2..8),
    };
    let mut actions: Vec<Action> = (0..n).map(|_| action(rng, key)).collect();
    // Sets alone: what runs straight through, if an output or a recirculation follows.
    if n < 8 && rng.u8(..4) == 0 {
        actions = (0..n).map(|_| set(rng, key)).collect();
    }
    if shape == Shape::OneOutput {
        actions.retain(|action| !matches!(action, Action::Output(_) | Action::Recirc(_)));
    }
    // Most do something with the packet in the end.
    if n > 0 && rng.u8(..4) != 0 {
        actions.push(if rng.u8(..3) == 0 { Action::Recirc(rng.u32(1..=RECIRC_IDS)) } else { output(rng) });
    }
    actions
}

fn action(rng: &mut Rng, key: &FlowKey) -> Action {
    match rng.u8(..32) {
        0..10 => output(rng),
        10..18 => set(rng, key),
        18..21 => Action::PushVlan(Vlan {
            tpid: Be16::new(if rng.bool() { 0x8100 } else { 0x88a8 }),
            tci: Be16::new(0x1000 | rng.u16(..)),
        }),
        21..24 => Action::PopVlan,
        24 => Action::Hash { alg: HashAlg::L4, basis: rng.u32(..4) },
        25 | 26 => Action::Trunc(if rng.bool() { rng.u32(14..80) } else { rng.u32(14..2000) }),
        27..30 => Action::Userspace(UserspaceAction {
            cookie: (0..rng.usize(0..=128)).map(|_| rng.u8(..)).collect(),
            ..UserspaceAction::default()
        }),
        30 if rng.u8(..4) == 0 => Action::Drop(rng.u32(..4)),
        _ if rng.u8(..4) == 0 => Action::Recirc(rng.u32(1..=RECIRC_IDS)),
        _ => output(rng),
    }
}

fn output(rng: &mut Rng) -> Action {
    let port = if rng.u8(..24) == 0 { NO_PORT } else { rng.u32(1..=MTUS.len() as u32) };
    Action::Output(OdpPort(port))
}

/// A masked set, mostly of a field that such packets have.
fn set(rng: &mut Rng, key: &FlowKey) -> Action {
    use KeyAttr::{Arp, Ethernet, Icmp, Icmpv6, Ipv4, Ipv6, Priority, SkbMark, Tcp, Udp};
    let network = match key.eth_type.get() {
        0x0800 => Ipv4,
        0x86dd => Ipv6,
        0x0806 | 0x8035 => Arp,
        _ => Ethernet,
    };
    let transport = match key.ip_proto {
        6 => Tcp,
        17 => Udp,
        1 => Icmp,
        58 => Icmpv6,
        _ => network,
    };
    let attr = match rng.u8(..16) {
        0..5 => network,
        5..10 => transport,
        10..12 => Ethernet,
        12 => [Priority, SkbMark][rng.usize(..2)],
        _ => [Ethernet, Ipv4, Ipv6, Tcp, Udp, Icmp, Icmpv6, Arp][rng.usize(..8)],
    };
    let mut fields = FlowKey::ZERO;
    match attr {
        Priority => fields.skb_priority = u32::MAX,
        SkbMark => fields.skb_mark = u32::MAX,
        Ethernet => (fields.eth_src, fields.eth_dst) = ([0xff; 6], [0xff; 6]),
        Ipv4 => {
            (fields.ipv4_src, fields.ipv4_dst) = (Be32::MAX, Be32::MAX);
            (fields.ip_tos, fields.ip_ttl) = (0xff, 0xff);
        }
        Ipv6 => {
            (fields.ipv6_src, fields.ipv6_dst) = ([0xff; 16], [0xff; 16]);
            (fields.ip_tos, fields.ip_ttl, fields.ipv6_label) = (0xff, 0xff, Be32::new(0xf_ffff));
        }
        Arp => {
            (fields.ipv4_src, fields.ipv4_dst, fields.ip_proto) = (Be32::MAX, Be32::MAX, 0xff);
            (fields.arp_sha, fields.arp_tha) = ([0xff; 6], [0xff; 6]);
        }
        Icmp | Icmpv6 => (fields.tp_src, fields.tp_dst) = (Be16::new(0xff), Be16::new(0xff)),
        _ => (fields.tp_src, fields.tp_dst) = (Be16::MAX, Be16::MAX),
    }
    // An ICMP type or code of more than eight bits fits no packet.
    if matches!(attr, Icmp | Icmpv6) && rng.u8(..16) == 0 {
        fields.tp_src = Be16::MAX;
    }
    let (mut mask, mut value) = (fields, FlowKey::ZERO);
    let whole = rng.bool();
    for (mask, value) in mask.words_mut().iter_mut().zip(value.words_mut()) {
        if !whole {
            // Some bytes, some bits.
            *mask &= u64::from_ne_bytes(std::array::from_fn(|_| [0, 0xff, 0xff, edge(rng)][rng.usize(..4)]));
        }
        *value = match rng.u8(..6) {
            0 => 0,
            1 => u64::MAX,
            _ => rng.u64(..),
        } & *mask;
    }
    Action::Set(Box::new(SetAction { attr, value, mask }))
}
