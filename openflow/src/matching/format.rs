//! Writing a match, in the reference's order and forms.

use std::fmt::{self, Display, LowerHex};

use super::proto::*;
use super::{FlowMatch, MatchFields};
use crate::field::{FieldId, Ipv4Text, Ipv6Text, MacText, Prerequisite, TcpFlagsText, frag_word};
use crate::flow_mod::DEFAULT_PRIORITY;
use crate::port::{NoPortNames, OfPort, PortNames};

impl FlowMatch {
    /// The text with interface names where `names` has them, and the priority in front if it is not the default one.
    pub fn display<'a>(&'a self, priority: u16, names: &'a dyn PortNames) -> impl Display + 'a {
        MatchText { flow: self, priority, names }
    }
}

impl Display for FlowMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.display(DEFAULT_PRIORITY, &NoPortNames).fmt(f)
    }
}

struct MatchText<'a> {
    flow: &'a FlowMatch,
    priority: u16,
    names: &'a dyn PortNames,
}

impl Display for MatchText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FlowMatch { value, mask } = self.flow;
        let mut items = Items::default();
        if self.priority != DEFAULT_PRIORITY {
            items.put("priority", self.priority);
        }
        items.hex("pkt_mark", value.pkt_mark.into(), mask.pkt_mark.into(), u32::MAX.into());
        items.hex("recirc_id", value.recirc_id.into(), mask.recirc_id.into(), u32::MAX.into());
        items.hex("dp_hash", value.dp_hash.into(), mask.dp_hash.into(), u32::MAX.into());
        if mask.conj_id != 0 {
            items.put("conj_id", value.conj_id);
        }
        if mask.recirc_id != 0 && looks_at_frame(mask) {
            // Flows on recirculation are the datapath's, which says the packet's type.
            items.0.push("eth".to_string());
        }
        let named = protocol_word(value, mask);
        if let Some((word, _)) = named {
            items.0.push(word.to_string());
        }
        for (n, (value, mask)) in value.regs.iter().zip(mask.regs).enumerate() {
            items.hex(&format!("reg{n}"), (*value).into(), mask.into(), u32::MAX.into());
        }
        items.hex("tun_id", value.tun_id, mask.tun_id, u64::MAX);
        items.hex("metadata", value.metadata, mask.metadata, u64::MAX);
        if mask.in_port != 0 {
            items.put("in_port", OfPort(value.in_port).display(self.names));
        }
        items.vlan(value.vlan_tci, mask.vlan_tci);
        items.mac("dl_src", value.dl_src, mask.dl_src);
        items.mac("dl_dst", value.dl_dst, mask.dl_dst);
        if named.is_none() && mask.dl_type != 0 {
            items.put("dl_type", format_args!("{:#06x}", value.dl_type));
        }
        items.network(value, mask, named.is_some_and(|(_, names_proto)| names_proto));
        items.transport(value, mask);
        f.write_str(&items.0.join(","))
    }
}

/// Whether anything of the frame itself is looked at, rather than only metadata.
fn looks_at_frame(mask: &MatchFields) -> bool {
    FieldId::all().any(|field| field.info().prerequisite != Prerequisite::None && mask.get(field) != 0)
}

/// The word for the ethertype, and whether it says the IP protocol as well.
fn protocol_word(value: &MatchFields, mask: &MatchFields) -> Option<(&'static str, bool)> {
    if mask.dl_type == 0 {
        return None;
    }
    let proto = (mask.nw_proto != 0).then_some(value.nw_proto);
    Some(match (value.dl_type, proto) {
        (ETH_IP, Some(IP_ICMP)) => ("icmp", true),
        (ETH_IP, Some(IP_TCP)) => ("tcp", true),
        (ETH_IP, Some(IP_UDP)) => ("udp", true),
        (ETH_IP, Some(IP_SCTP)) => ("sctp", true),
        (ETH_IP, _) => ("ip", false),
        (ETH_IPV6, Some(IP_ICMPV6)) => ("icmp6", true),
        (ETH_IPV6, Some(IP_TCP)) => ("tcp6", true),
        (ETH_IPV6, Some(IP_UDP)) => ("udp6", true),
        (ETH_IPV6, Some(IP_SCTP)) => ("sctp6", true),
        (ETH_IPV6, _) => ("ipv6", false),
        (ETH_ARP, _) => ("arp", false),
        (ETH_RARP, _) => ("rarp", false),
        (ETH_MPLS, _) => ("mpls", false),
        (ETH_MPLS_MCAST, _) => ("mplsm", false),
        _ => return None,
    })
}

#[derive(Default)]
struct Items(Vec<String>);

impl Items {
    fn put(&mut self, name: &str, value: impl Display) {
        self.0.push(format!("{name}={value}"));
    }

    fn hex(&mut self, name: &str, value: u64, mask: u64, all: u64) {
        if mask == all {
            self.put(name, CHex(value));
        } else if mask != 0 {
            self.put(name, format_args!("{}/{}", CHex(value), CHex(mask)));
        }
    }

    fn number(&mut self, name: &str, value: u16, mask: u16) {
        if mask == u16::MAX {
            self.put(name, value);
        } else if mask != 0 {
            self.put(name, format_args!("{value:#x}/{mask:#x}"));
        }
    }

    fn mac(&mut self, name: &str, value: [u8; 6], mask: [u8; 6]) {
        if mask != [0; 6] {
            self.put(name, MacText { value, mask });
        }
    }

    fn ipv4(&mut self, name: &str, value: u32, mask: u32) {
        if mask != 0 {
            self.put(name, Ipv4Text { value, mask });
        }
    }

    fn ipv6(&mut self, name: &str, value: u128, mask: u128) {
        if mask != 0 {
            self.put(name, Ipv6Text { value, mask });
        }
    }

    /// A tag that is present, with its id or priority matched as a whole, has OpenFlow 1.0's form; all else is bits.
    fn vlan(&mut self, tci: u16, mask: u16) {
        let (vid, pcp) = (mask & VLAN_VID, mask & VLAN_PCP);
        let whole = |part, all| part == 0 || part == all;
        if mask & tci & VLAN_PRESENT != 0 && whole(vid, VLAN_VID) && whole(pcp, VLAN_PCP) && vid | pcp != 0 {
            if vid != 0 {
                self.put("dl_vlan", tci & VLAN_VID);
            }
            if pcp != 0 {
                self.put("dl_vlan_pcp", tci >> 13);
            }
        } else if mask == u16::MAX {
            self.put("vlan_tci", format_args!("{tci:#06x}"));
        } else if mask != 0 {
            self.put("vlan_tci", format_args!("{tci:#06x}/{mask:#06x}"));
        }
    }

    fn network(&mut self, value: &MatchFields, mask: &MatchFields, proto_is_named: bool) {
        let arp = matches!(value.dl_type, ETH_ARP | ETH_RARP);
        if value.dl_type == ETH_IPV6 {
            self.ipv6("ipv6_src", value.ipv6_src, mask.ipv6_src);
            self.ipv6("ipv6_dst", value.ipv6_dst, mask.ipv6_dst);
            match mask.ipv6_label {
                0 => {}
                0xf_ffff => self.put("ipv6_label", format_args!("{:#07x}", value.ipv6_label)),
                label => self.put("ipv6_label", format_args!("{:#07x}/{label:#07x}", value.ipv6_label)),
            }
        } else {
            self.ipv4(if arp { "arp_spa" } else { "nw_src" }, value.nw_src, mask.nw_src);
            self.ipv4(if arp { "arp_tpa" } else { "nw_dst" }, value.nw_dst, mask.nw_dst);
        }
        if !proto_is_named && mask.nw_proto != 0 {
            self.put(if arp { "arp_op" } else { "nw_proto" }, value.nw_proto);
        }
        if arp {
            self.mac("arp_sha", value.arp_sha, mask.arp_sha);
            self.mac("arp_tha", value.arp_tha, mask.arp_tha);
        }
        if mask.nw_tos & TOS_DSCP != 0 {
            self.put("nw_tos", value.nw_tos & TOS_DSCP);
        }
        if mask.nw_tos & TOS_ECN != 0 {
            self.put("nw_ecn", value.nw_tos & TOS_ECN);
        }
        if mask.nw_ttl != 0 {
            self.put("nw_ttl", value.nw_ttl);
        }
        if mask.nw_frag != 0 {
            self.put("nw_frag", frag_word(value.nw_frag, mask.nw_frag));
        }
    }

    fn transport(&mut self, value: &MatchFields, mask: &MatchFields) {
        let icmp = value.dl_type == ETH_IP && value.nw_proto == IP_ICMP;
        let icmpv6 = value.dl_type == ETH_IPV6 && value.nw_proto == IP_ICMPV6;
        self.number(if icmp || icmpv6 { "icmp_type" } else { "tp_src" }, value.tp_src, mask.tp_src);
        self.number(if icmp || icmpv6 { "icmp_code" } else { "tp_dst" }, value.tp_dst, mask.tp_dst);
        if icmpv6 {
            self.ipv6("nd_target", value.nd_target, mask.nd_target);
            self.mac("nd_sll", value.arp_sha, mask.arp_sha);
            self.mac("nd_tll", value.arp_tha, mask.arp_tha);
        }
        if mask.tcp_flags != 0 && matches!(value.dl_type, ETH_IP | ETH_IPV6) && value.nw_proto == IP_TCP {
            self.put("tcp_flags", TcpFlagsText { value: value.tcp_flags, mask: mask.tcp_flags });
        }
    }
}

/// C's `%#x`: zero has no prefix.
pub(crate) struct CHex<T>(pub(crate) T);

impl<T: LowerHex + PartialEq + Default> Display for CHex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == T::default() { f.write_str("0") } else { write!(f, "{:#x}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_are_written_in_the_reference_s_order() {
        for (text, written) in [
            ("", ""),
            (
                "tp_dst=80,nw_dst=10.0.0.0/8,dl_vlan=10,in_port=1,tcp",
                "tcp,in_port=1,dl_vlan=10,nw_dst=10.0.0.0/8,tp_dst=80",
            ),
            ("dl_vlan=0xffff", "vlan_tci=0x0000"),
            ("vlan_tci=0x1000/0x1000", "vlan_tci=0x1000/0x1000"),
            ("vlan_vid=0x1005/0x1fff,vlan_pcp=3", "dl_vlan=5,dl_vlan_pcp=3"),
            (
                "dl_type=0x88cc,dl_dst=01:00:00:00:00:00/01:00:00:00:00:00",
                "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00,dl_type=0x88cc",
            ),
            ("icmp6,icmpv6_type=135,nd_target=fe80::1", "icmp6,icmp_type=135,nd_target=fe80::1"),
            ("metadata=0,reg3=0/0xf", "reg3=0/0xf,metadata=0"),
            ("ipv6,ipv6_label=5,nw_proto=89", "ipv6,ipv6_label=0x00005,nw_proto=89"),
            ("arp,arp_op=1,arp_sha=00:00:00:00:00:01", "arp,arp_op=1,arp_sha=00:00:00:00:00:01"),
        ] {
            assert_eq!(FlowMatch::parse(text, &NoPortNames).unwrap().to_string(), written, "{text}");
        }
    }
}
