//! Generates flows: every field, mask form and action that the syntax can say, each flow consistent in itself.

use openflow::field::{Access, FieldFormat, Maskable};
use openflow::matching::proto::*;
use openflow::{
    Action, Controller, FieldId, FlowCommand, FlowFlags, FlowMatch, FlowMod, MaskedCookie, OfPort, PacketInReason,
    Subfield, check_actions,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// A match whose prerequisites hold.
pub(crate) fn matches() -> impl Strategy<Value = FlowMatch> {
    (protocol(), vec((any::<Index>(), any::<u128>(), any::<u128>(), any::<bool>()), 0..10)).prop_map(
        |(protocol, fields)| {
            let all: Vec<FieldId> = FieldId::all().collect();
            let mut flow = protocol;
            for (index, value, mask, exact) in fields {
                let field = *index.get(&all);
                // The protocol's own fields are settled; a fragment's kind has words only, of which the protocol has one.
                let settled = matches!(field, FieldId::EthType | FieldId::IpProto | FieldId::ArpOp | FieldId::IpFrag)
                    || (matches!(
                        field,
                        FieldId::IcmpType | FieldId::IcmpCode | FieldId::Icmpv6Type | FieldId::Icmpv6Code
                    ) && flow.mask.tp_src != 0);
                if !settled && flow.missing_prerequisite(field).is_none() {
                    let mask = if exact || field.info().maskable == Maskable::Exact { u128::MAX } else { mask };
                    flow.set(field, value & field.full_mask(), mask);
                }
            }
            flow
        },
    )
}

/// The ethertype, IP protocol, fragment kind and ICMP type that the rest depends on.
fn protocol() -> impl Strategy<Value = FlowMatch> {
    let dl_type = prop_oneof![
        Just(None),
        select(vec![ETH_IP, ETH_IPV6, ETH_ARP, ETH_RARP, ETH_MPLS, ETH_MPLS_MCAST, 0x88cc, 0x05ff]).prop_map(Some),
        select(vec![ETH_IP, ETH_IPV6]).prop_map(Some),
    ];
    let ip_proto = prop_oneof![
        Just(None),
        select(vec![IP_ICMP, IP_TCP, IP_UDP, IP_SCTP, IP_ICMPV6, 89, 0]).prop_map(Some),
        select(vec![IP_TCP, IP_UDP, IP_SCTP, IP_ICMP, IP_ICMPV6]).prop_map(Some),
    ];
    let frag = prop_oneof![Just(None), select(vec![(3, 0), (3, 1), (3, 3), (1, 1), (2, 0)]).prop_map(Some)];
    let discovery = prop_oneof![Just(None), select(vec![ND_SOLICIT, ND_ADVERT, 128]).prop_map(Some)];
    (dl_type, ip_proto, frag, discovery).prop_map(|(dl_type, ip_proto, frag, discovery)| {
        let mut flow = FlowMatch::catch_all();
        let Some(dl_type) = dl_type else { return flow };
        flow.set_exact(FieldId::EthType, dl_type.into());
        let ip = matches!(dl_type, ETH_IP | ETH_IPV6);
        if let Some(proto) = ip_proto
            && (ip || matches!(dl_type, ETH_ARP | ETH_RARP))
        {
            flow.set_exact(FieldId::IpProto, proto.into());
        }
        if let Some((mask, value)) = frag
            && ip
        {
            flow.set(FieldId::IpFrag, value, mask);
        }
        if let Some(kind) = discovery
            && flow.missing_prerequisite(FieldId::Icmpv6Type).is_none()
        {
            flow.set_exact(FieldId::Icmpv6Type, kind.into());
        }
        flow
    })
}

/// A field's value and mask as an action may set them.
fn settable() -> impl Strategy<Value = (FieldId, u128, u128)> {
    let fields: Vec<FieldId> = FieldId::all().filter(|field| field.info().access == Access::ReadWrite).collect();
    (select(fields), any::<u128>(), any::<u128>(), any::<bool>()).prop_map(|(field, value, mask, exact)| {
        let full = field.full_mask();
        let whole = exact || field.info().maskable == Maskable::Exact || field.info().format == FieldFormat::Port;
        let mask = if whole || mask & full == 0 { full } else { mask & full };
        (field, value & mask, mask)
    })
}

fn subfields(of: Vec<FieldId>, max_bits: u32) -> impl Strategy<Value = Subfield> {
    (select(of), any::<Index>(), any::<Index>(), any::<bool>()).prop_map(move |(field, offset, bits, whole)| {
        let width = field.info().bits;
        if whole && width <= max_bits {
            return Subfield::whole(field);
        }
        let offset = offset.index(width as usize) as u32;
        let bits = 1 + bits.index((width - offset).min(max_bits) as usize) as u32;
        Subfield::new(field, offset, bits).expect("within the field")
    })
}

fn ports() -> impl Strategy<Value = OfPort> {
    prop_oneof![
        (0u16..0xff00).prop_map(OfPort),
        select(vec![OfPort::IN_PORT, OfPort::TABLE, OfPort::NORMAL, OfPort::FLOOD, OfPort::ALL, OfPort::LOCAL]),
    ]
}

fn controllers() -> impl Strategy<Value = Controller> {
    let reasons = vec![
        PacketInReason::NoMatch,
        PacketInReason::Action,
        PacketInReason::InvalidTtl,
        PacketInReason::ActionSet,
        PacketInReason::Group,
        PacketInReason::PacketOut,
    ];
    let id = prop_oneof![Just(0), any::<u16>()];
    (prop_oneof![Just(u16::MAX), any::<u16>()], select(reasons), id, vec(any::<u8>(), 0..4))
        .prop_map(|(max_len, reason, id, userdata)| Controller { max_len, reason, id, userdata })
}

/// An action that is no instruction, whether or not it goes with the flow.
fn actions() -> BoxedStrategy<Action> {
    let readable: Vec<FieldId> = FieldId::all().collect();
    let writable: Vec<FieldId> = readable.iter().copied().filter(|f| f.info().access == Access::ReadWrite).collect();
    let moves = (subfields(readable.clone(), 128), subfields(writable.clone(), 128)).prop_map(|(src, dst)| {
        let bits = src.bits.min(dst.bits);
        let cut = |sub: Subfield| Subfield { bits, ..sub };
        Action::Move { src: cut(src), dst: cut(dst) }
    });
    let loads = (subfields(writable, 64), any::<u64>()).prop_map(|(dst, value)| {
        let value = dst.extract(dst.insert(0, value.into()) & dst.field.full_mask()) as u64;
        Action::Load { value, dst }
    });
    let trunc_ports = prop_oneof![(0u16..0xff00).prop_map(OfPort), select(vec![OfPort::LOCAL, OfPort::IN_PORT])];
    let resubmits = prop_oneof![
        (0u16..0xff00).prop_map(|port| Action::Resubmit { port: Some(OfPort(port)), table: None }),
        (0u8..255).prop_map(|table| Action::Resubmit { port: None, table: Some(table) }),
        (0u16..0xff00, 0u8..255)
            .prop_map(|(port, table)| Action::Resubmit { port: Some(OfPort(port)), table: Some(table) }),
    ];
    prop_oneof![
        ports().prop_map(Action::Output),
        (trunc_ports, 14u32..).prop_map(|(port, max_len)| Action::OutputTrunc { port, max_len }),
        subfields(readable, 128).prop_map(Action::OutputReg),
        controllers().prop_map(Action::Controller),
        settable().prop_map(|(field, value, mask)| Action::SetField { field, value, mask }),
        loads,
        moves,
        (0u16..4096, any::<bool>()).prop_map(|(vid, push)| Action::SetVlanVid { vid, push }),
        (0u8..8, any::<bool>()).prop_map(|(pcp, push)| Action::SetVlanPcp { pcp, push }),
        select(vec![Action::StripVlan, Action::PopVlan, Action::Exit, Action::DecTtl(vec![0])]),
        select(vec![ETH_VLAN, ETH_QINQ]).prop_map(Action::PushVlan),
        any::<[u8; 6]>().prop_map(Action::ModDlSrc),
        any::<[u8; 6]>().prop_map(Action::ModDlDst),
        any::<u32>().prop_map(|ip| Action::ModNwSrc(ip.into())),
        any::<u32>().prop_map(|ip| Action::ModNwDst(ip.into())),
        (0u8..64).prop_map(|dscp| Action::ModNwTos(dscp << 2)),
        (0u8..4).prop_map(Action::ModNwEcn),
        any::<u8>().prop_map(Action::ModNwTtl),
        vec(any::<u16>(), 2..4).prop_map(Action::DecTtl),
        any::<u16>().prop_map(Action::ModTpSrc),
        any::<u16>().prop_map(Action::ModTpDst),
        (any::<u64>(), any::<bool>())
            .prop_map(|(id, wide)| Action::SetTunnel { id: if wide { id } else { id >> 32 }, wide }),
        resubmits,
        vec(any::<u8>(), 1..5).prop_map(Action::Note),
    ]
    .boxed()
}

/// Instructions in their order, any of them left out; `goto_table` leads on from table 100 or less.
fn instructions() -> impl Strategy<Value = Vec<Action>> {
    let write = vec(actions(), 0..3).prop_map(Action::WriteActions);
    let metadata = (any::<u64>(), prop_oneof![Just(u64::MAX), any::<u64>()])
        .prop_map(|(value, mask)| Action::WriteMetadata { value: value & mask, mask });
    let maybe = |strategy: BoxedStrategy<Action>| proptest::option::weighted(0.2, strategy);
    (
        maybe(Just(Action::ClearActions).boxed()),
        maybe(write.boxed()),
        maybe(metadata.boxed()),
        maybe((101u8..255).prop_map(Action::GotoTable).boxed()),
    )
        .prop_map(|(a, b, c, d)| [a, b, c, d].into_iter().flatten().collect())
}

/// An addition of a flow whose actions go with its match.
pub(crate) fn additions() -> impl Strategy<Value = FlowMod> {
    let settings = (
        proptest::option::of(0u8..=100),
        any::<u16>(),
        proptest::option::of(any::<u64>()),
        select(vec![0, 1, 65535]),
        select(vec![0, 60]),
        select(vec![0, 7]),
    );
    (matches(), vec(actions(), 0..6), instructions(), settings, any::<[bool; 5]>()).prop_map(
        |(matched, candidates, instructions, settings, flags)| {
            let (table, priority, cookie, idle_timeout, hard_timeout, importance) = settings;
            let mut actions = Vec::new();
            for action in candidates.into_iter().chain(instructions) {
                actions.push(action);
                if check_actions(&matched, table, &actions).is_err() {
                    actions.pop();
                }
            }
            let [send_flow_rem, check_overlap, reset_counts, no_packet_counts, no_byte_counts] = flags;
            FlowMod {
                table,
                priority,
                cookie,
                idle_timeout,
                hard_timeout,
                importance,
                flags: FlowFlags { send_flow_rem, check_overlap, reset_counts, no_packet_counts, no_byte_counts },
                r#match: matched,
                actions,
                ..FlowMod::default()
            }
        },
    )
}

/// Any command.
#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn flow_mods() -> impl Strategy<Value = FlowMod> {
    let commands = vec![
        FlowCommand::Add,
        FlowCommand::Modify,
        FlowCommand::ModifyStrict,
        FlowCommand::Delete,
        FlowCommand::DeleteStrict,
    ];
    let filter = proptest::option::of((any::<u64>(), 1u64..));
    (additions(), select(commands), filter, proptest::option::of(ports())).prop_map(
        |(mut flow, command, filter, out_port)| {
            flow.command = command;
            if command != FlowCommand::Add {
                flow.importance = 0;
                flow.cookie_filter = filter.map(|(value, mask)| MaskedCookie { value: value & mask, mask });
            }
            if command == FlowCommand::Delete {
                flow.priority = FlowMod::default().priority;
            }
            if command.is_delete() {
                let FlowMod { command, table, priority, cookie_filter, r#match, .. } = flow;
                flow = FlowMod { command, table, priority, cookie_filter, out_port, r#match, ..FlowMod::default() };
            }
            flow
        },
    )
}
