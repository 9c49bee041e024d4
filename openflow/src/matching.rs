//! What a flow matches: a value and a mask for every field.
//!
//! [`FlowMatch`] holds two [`MatchFields`] of the same shape. A 1-bit in `mask` means that the packet's bit must equal
//! the one in `value`; a 0-bit means that the packet's bit does not matter, and then `value` has 0 there too, so that
//! equal matches compare equal. Nothing else is hidden in a match: who keeps flows in another layout converts member by
//! member.
//!
//! **Shared members.** As in the reference, protocols that exclude each other share room: `nw_src`, `nw_dst` and
//! `nw_proto` are ARP's sender and target addresses and operation in an ARP match, `tp_src` and `tp_dst` are ICMP's type
//! and code, `arp_sha` and `arp_tha` are the link-layer addresses of neighbor discovery. Which meaning holds follows from
//! `dl_type` and `nw_proto`, so a match on shared members is meaningful only with its prerequisite
//! ([`FlowMatch::missing_prerequisite`]).

use crate::field::{FieldId, Maskable, Prerequisite};

mod format;
mod parse;

pub(crate) use format::CHex;
pub(crate) use parse::MatchParser;

/// Ethertypes and IP protocols that the syntax has words for, and the bits of shared members.
pub mod proto {
    /// IPv4.
    pub const ETH_IP: u16 = 0x0800;
    /// ARP.
    pub const ETH_ARP: u16 = 0x0806;
    /// Reverse ARP.
    pub const ETH_RARP: u16 = 0x8035;
    /// 802.1Q tag.
    pub const ETH_VLAN: u16 = 0x8100;
    /// 802.1ad tag.
    pub const ETH_QINQ: u16 = 0x88a8;
    /// IPv6.
    pub const ETH_IPV6: u16 = 0x86dd;
    /// MPLS unicast.
    pub const ETH_MPLS: u16 = 0x8847;
    /// MPLS multicast.
    pub const ETH_MPLS_MCAST: u16 = 0x8848;
    /// ICMP over IPv4.
    pub const IP_ICMP: u8 = 1;
    /// TCP.
    pub const IP_TCP: u8 = 6;
    /// UDP.
    pub const IP_UDP: u8 = 17;
    /// ICMPv6.
    pub const IP_ICMPV6: u8 = 58;
    /// SCTP.
    pub const IP_SCTP: u8 = 132;
    /// ICMPv6 type of neighbor solicitation.
    pub const ND_SOLICIT: u16 = 135;
    /// ICMPv6 type of neighbor advertisement.
    pub const ND_ADVERT: u16 = 136;
    /// `vlan_tci`: a tag is present (the header's CFI bit has this place).
    pub const VLAN_PRESENT: u16 = 0x1000;
    /// `vlan_tci`: the VLAN id.
    pub const VLAN_VID: u16 = 0x0fff;
    /// `vlan_tci`: the priority.
    pub const VLAN_PCP: u16 = 0xe000;
    /// `nw_tos`: the DSCP.
    pub const TOS_DSCP: u8 = 0xfc;
    /// `nw_tos`: the ECN.
    pub const TOS_ECN: u8 = 0x03;
    /// `nw_frag`: the packet is a fragment.
    pub const FRAG_ANY: u8 = 1;
    /// `nw_frag`: the packet is a fragment other than the first.
    pub const FRAG_LATER: u8 = 2;
}

use proto::*;

/// One value (or mask) for every field that can be matched; all integers in host order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MatchFields {
    /// Hash that the datapath computed.
    pub dp_hash: u32,
    /// Recirculation id.
    pub recirc_id: u32,
    /// Id of the conjunctive flow of which this flow is the end.
    pub conj_id: u32,
    /// Tunnel key.
    pub tun_id: u64,
    /// OpenFlow metadata.
    pub metadata: u64,
    /// Number of the OpenFlow port ([`OfPort`](crate::OfPort)) the packet came in by.
    pub in_port: u16,
    /// Packet mark.
    pub pkt_mark: u32,
    /// `reg0` to `reg15`; `xregN` is registers 2N (high half) and 2N+1, `xxregN` registers 4N (highest part) to 4N+3.
    pub regs: [u32; 16],
    /// Ethernet source.
    pub dl_src: [u8; 6],
    /// Ethernet destination.
    pub dl_dst: [u8; 6],
    /// Ethertype after VLAN tags; 0x05ff for an 802.3 frame without one.
    pub dl_type: u16,
    /// The outer VLAN tag: PCP in 0xe000, "a tag is present" in 0x1000, VID in 0x0fff. 0 is no tag.
    pub vlan_tci: u16,
    /// IPv4 source, or ARP sender; first octet in the highest byte.
    pub nw_src: u32,
    /// IPv4 destination, or ARP target.
    pub nw_dst: u32,
    /// IPv6 source; first octet in the highest byte.
    pub ipv6_src: u128,
    /// IPv6 destination.
    pub ipv6_dst: u128,
    /// IPv6 flow label, low 20 bits.
    pub ipv6_label: u32,
    /// IP protocol, or ARP operation.
    pub nw_proto: u8,
    /// The TOS or traffic class byte: DSCP in 0xfc, ECN in 0x03.
    pub nw_tos: u8,
    /// Time to live, or hop limit.
    pub nw_ttl: u8,
    /// Fragment bits: [`FRAG_ANY`], [`FRAG_LATER`].
    pub nw_frag: u8,
    /// ARP sender's hardware address, or neighbor solicitation's source link-layer address.
    pub arp_sha: [u8; 6],
    /// ARP target's hardware address, or neighbor advertisement's target link-layer address.
    pub arp_tha: [u8; 6],
    /// Neighbor discovery target.
    pub nd_target: u128,
    /// Transport source port, or ICMP type.
    pub tp_src: u16,
    /// Transport destination port, or ICMP code.
    pub tp_dst: u16,
    /// TCP flags, low 12 bits.
    pub tcp_flags: u16,
}

impl MatchFields {
    /// The field's bits as one number. On a mask this is the field's mask.
    pub fn get(&self, field: FieldId) -> u128 {
        use FieldId as F;
        if let Some(word) = self.registers(field) {
            return word;
        }
        match field {
            F::DpHash => self.dp_hash.into(),
            F::RecircId => self.recirc_id.into(),
            F::ConjId => self.conj_id.into(),
            F::TunId => self.tun_id.into(),
            F::Metadata => self.metadata.into(),
            F::InPort => self.in_port.into(),
            F::PktMark => self.pkt_mark.into(),
            F::EthSrc => mac_bits(self.dl_src),
            F::EthDst => mac_bits(self.dl_dst),
            F::EthType => self.dl_type.into(),
            F::VlanTci => self.vlan_tci.into(),
            F::DlVlan => (self.vlan_tci & VLAN_VID).into(),
            F::VlanVid => (self.vlan_tci & (VLAN_VID | VLAN_PRESENT)).into(),
            F::DlVlanPcp | F::VlanPcp => (self.vlan_tci >> 13).into(),
            F::IpSrc | F::ArpSpa => self.nw_src.into(),
            F::IpDst | F::ArpTpa => self.nw_dst.into(),
            F::Ipv6Src => self.ipv6_src,
            F::Ipv6Dst => self.ipv6_dst,
            F::Ipv6Label => self.ipv6_label.into(),
            F::IpProto | F::ArpOp => self.nw_proto.into(),
            F::IpTos => (self.nw_tos & TOS_DSCP).into(),
            F::IpDscp => (self.nw_tos >> 2).into(),
            F::IpEcn => (self.nw_tos & TOS_ECN).into(),
            F::IpTtl => self.nw_ttl.into(),
            F::IpFrag => self.nw_frag.into(),
            F::ArpSha | F::NdSll => mac_bits(self.arp_sha),
            F::ArpTha | F::NdTll => mac_bits(self.arp_tha),
            F::TcpSrc | F::UdpSrc | F::SctpSrc => self.tp_src.into(),
            F::TcpDst | F::UdpDst | F::SctpDst => self.tp_dst.into(),
            F::IcmpType | F::Icmpv6Type => (self.tp_src & 0xff).into(),
            F::IcmpCode | F::Icmpv6Code => (self.tp_dst & 0xff).into(),
            F::TcpFlags => self.tcp_flags.into(),
            F::NdTarget => self.nd_target,
            // Registers were answered above.
            _ => 0,
        }
    }

    /// Sets the field's bits; those beyond the field's width are cut off. Setting `dl_vlan` or a priority also marks the
    /// tag as present.
    pub fn set(&mut self, field: FieldId, bits: u128) {
        use FieldId as F;
        if self.set_registers(field, bits) {
            return;
        }
        match field {
            F::DpHash => self.dp_hash = bits as u32,
            F::RecircId => self.recirc_id = bits as u32,
            F::ConjId => self.conj_id = bits as u32,
            F::TunId => self.tun_id = bits as u64,
            F::Metadata => self.metadata = bits as u64,
            F::InPort => self.in_port = bits as u16,
            F::PktMark => self.pkt_mark = bits as u32,
            F::EthSrc => self.dl_src = mac_bytes(bits),
            F::EthDst => self.dl_dst = mac_bytes(bits),
            F::EthType => self.dl_type = bits as u16,
            F::VlanTci => self.vlan_tci = bits as u16,
            F::DlVlan => self.vlan_tci = (self.vlan_tci & VLAN_PCP) | VLAN_PRESENT | (bits as u16 & VLAN_VID),
            F::VlanVid => self.vlan_tci = (self.vlan_tci & VLAN_PCP) | (bits as u16 & (VLAN_PRESENT | VLAN_VID)),
            F::DlVlanPcp | F::VlanPcp => {
                self.vlan_tci = (self.vlan_tci & VLAN_VID) | VLAN_PRESENT | ((bits as u16) << 13);
            }
            F::IpSrc | F::ArpSpa => self.nw_src = bits as u32,
            F::IpDst | F::ArpTpa => self.nw_dst = bits as u32,
            F::Ipv6Src => self.ipv6_src = bits,
            F::Ipv6Dst => self.ipv6_dst = bits,
            F::Ipv6Label => self.ipv6_label = bits as u32 & 0xf_ffff,
            F::IpProto | F::ArpOp => self.nw_proto = bits as u8,
            F::IpTos => self.nw_tos = (self.nw_tos & TOS_ECN) | (bits as u8 & TOS_DSCP),
            F::IpDscp => self.nw_tos = (self.nw_tos & TOS_ECN) | ((bits as u8) << 2),
            F::IpEcn => self.nw_tos = (self.nw_tos & TOS_DSCP) | (bits as u8 & TOS_ECN),
            F::IpTtl => self.nw_ttl = bits as u8,
            F::IpFrag => self.nw_frag = bits as u8 & (FRAG_ANY | FRAG_LATER),
            F::ArpSha | F::NdSll => self.arp_sha = mac_bytes(bits),
            F::ArpTha | F::NdTll => self.arp_tha = mac_bytes(bits),
            F::TcpSrc | F::UdpSrc | F::SctpSrc => self.tp_src = bits as u16,
            F::TcpDst | F::UdpDst | F::SctpDst => self.tp_dst = bits as u16,
            F::IcmpType | F::Icmpv6Type => self.tp_src = (bits as u8).into(),
            F::IcmpCode | F::Icmpv6Code => self.tp_dst = (bits as u8).into(),
            F::TcpFlags => self.tcp_flags = bits as u16 & 0xfff,
            F::NdTarget => self.nd_target = bits,
            _ => {}
        }
    }

    /// Whether a packet with these values meets a field's prerequisite.
    pub fn meets(&self, prerequisite: Prerequisite) -> bool {
        let ip = self.dl_type == ETH_IP || self.dl_type == ETH_IPV6;
        let transport = |proto| ip && self.nw_proto == proto && self.nw_frag & FRAG_LATER == 0;
        let icmpv6 = self.dl_type == ETH_IPV6 && self.nw_proto == IP_ICMPV6;
        let discovery = |kind| icmpv6 && self.tp_src == kind && self.tp_dst == 0;
        match prerequisite {
            Prerequisite::None | Prerequisite::Ethernet => true,
            Prerequisite::Arp => self.dl_type == ETH_ARP || self.dl_type == ETH_RARP,
            Prerequisite::Ipv4 => self.dl_type == ETH_IP,
            Prerequisite::Ipv6 => self.dl_type == ETH_IPV6,
            Prerequisite::VlanVid => self.vlan_tci & VLAN_PRESENT != 0,
            Prerequisite::Ip => ip,
            Prerequisite::Tcp => transport(IP_TCP),
            Prerequisite::Udp => transport(IP_UDP),
            Prerequisite::Sctp => transport(IP_SCTP),
            Prerequisite::Icmp => self.dl_type == ETH_IP && self.nw_proto == IP_ICMP,
            Prerequisite::Icmpv6 => icmpv6,
            Prerequisite::Nd => discovery(ND_SOLICIT) || discovery(ND_ADVERT),
            Prerequisite::NdSolicit => discovery(ND_SOLICIT),
            Prerequisite::NdAdvert => discovery(ND_ADVERT),
        }
    }

    fn registers(&self, field: FieldId) -> Option<u128> {
        let join = |first: usize, count: usize| {
            self.regs.iter().skip(first).take(count).fold(0u128, |bits, reg| (bits << 32) | u128::from(*reg))
        };
        field
            .register()
            .map(|n| join(n, 1))
            .or_else(|| field.double_register().map(|n| join(2 * n, 2)))
            .or_else(|| field.quad_register().map(|n| join(4 * n, 4)))
    }

    fn set_registers(&mut self, field: FieldId, bits: u128) -> bool {
        let place = field
            .register()
            .map(|n| (n, 1))
            .or_else(|| field.double_register().map(|n| (2 * n, 2)))
            .or_else(|| field.quad_register().map(|n| (4 * n, 4)));
        let Some((first, count)) = place else { return false };
        for (n, reg) in self.regs.iter_mut().skip(first).take(count).enumerate() {
            *reg = (bits >> (32 * (count - 1 - n))) as u32;
        }
        true
    }
}

/// Which packets a flow is for: those whose bits equal `value` wherever `mask` has a 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowMatch {
    /// Bits to compare with; 0 wherever `mask` is 0.
    pub value: MatchFields,
    /// Bits to look at.
    pub mask: MatchFields,
}

impl FlowMatch {
    /// Matches every packet.
    pub fn catch_all() -> Self {
        Self::default()
    }

    /// Whether every packet matches.
    pub fn is_catch_all(&self) -> bool {
        self.mask == MatchFields::default()
    }

    /// The value and mask of a field.
    pub fn get(&self, field: FieldId) -> (u128, u128) {
        (self.value.get(field), self.mask.get(field))
    }

    /// Matches the whole field. `dl_vlan` 0xffff stands for "no VLAN tag".
    pub fn set_exact(&mut self, field: FieldId, value: u128) {
        self.set(field, value, field.full_mask());
    }

    /// Replaces the match on one field: the bits in `mask` (cut to [`FieldId::full_mask`]) must equal those in `value`.
    /// A mask of 0 no longer looks at the field. Of a field that can only be matched as a whole, any other mask matches
    /// the whole. Matching a VLAN id or priority in OpenFlow 1.0's terms (`dl_vlan`, `dl_vlan_pcp`, `vlan_pcp`) asks for
    /// a tag to be present as well.
    pub fn set(&mut self, field: FieldId, value: u128, mask: u128) {
        let mask = match field.info().maskable {
            Maskable::Exact if mask != 0 => field.full_mask(),
            _ => mask & field.full_mask(),
        };
        match field {
            FieldId::DlVlan | FieldId::VlanVid if mask == 0 => self.forget_vlan(VLAN_VID, VLAN_PCP),
            FieldId::DlVlanPcp | FieldId::VlanPcp if mask == 0 => self.forget_vlan(VLAN_PCP, VLAN_VID),
            FieldId::DlVlan if value == 0xffff => {
                self.value.vlan_tci = 0;
                self.mask.vlan_tci = 0xffff;
            }
            FieldId::DlVlan | FieldId::DlVlanPcp | FieldId::VlanPcp => {
                // Marks the tag as present in both; the other half of the tag keeps its match.
                self.value.set(field, value);
                self.mask.set(field, mask);
            }
            FieldId::IcmpType | FieldId::Icmpv6Type => {
                // The type fills its member: the byte that ICMP does not have is known to be 0.
                self.value.set(field, value & mask);
                self.mask.tp_src = if mask == 0 { 0 } else { 0xffff };
            }
            FieldId::IcmpCode | FieldId::Icmpv6Code => {
                self.value.set(field, value & mask);
                self.mask.tp_dst = if mask == 0 { 0 } else { 0xffff };
            }
            _ => {
                self.value.set(field, value & mask);
                self.mask.set(field, mask);
            }
        }
    }

    /// What `field`, used by this match, presupposes and this match does not say. ARP takes IPv4's `nw_src`, `nw_dst`
    /// and `nw_proto` for its own, and `icmp_type` and `icmp_code` serve ICMPv6 too, since that is how flows are printed.
    pub fn missing_prerequisite(&self, field: FieldId) -> Option<Prerequisite> {
        let own = field.info().prerequisite;
        let lenient = match field {
            FieldId::IpSrc | FieldId::IpDst | FieldId::IpProto => Some(Prerequisite::Arp),
            FieldId::IcmpType | FieldId::IcmpCode => Some(Prerequisite::Icmpv6),
            _ => None,
        };
        let met = self.value.meets(own) || lenient.is_some_and(|other| self.value.meets(other));
        (!met).then_some(own)
    }

    /// Looks no longer at `part` of the VLAN tag, and at the tag's presence only if `other` is still looked at.
    fn forget_vlan(&mut self, part: u16, other: u16) {
        let keep = if self.mask.vlan_tci & other != 0 { !part } else { 0 };
        self.mask.vlan_tci &= keep;
        self.value.vlan_tci &= keep;
    }
}

pub(crate) fn mac_bits(mac: [u8; 6]) -> u128 {
    mac.iter().fold(0, |bits, byte| (bits << 8) | u128::from(*byte))
}

pub(crate) fn mac_bytes(bits: u128) -> [u8; 6] {
    let [.., a, b, c, d, e, f] = bits.to_be_bytes();
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_reads_back_what_was_set() {
        for field in FieldId::all() {
            for bits in [1u128, 0x5555_5555_5555_5555_5555_5555_5555_5555, u128::MAX] {
                let mut fields = MatchFields::default();
                // An ARP operation is kept in eight bits, of IP's TOS only the DSCP is this field.
                let bits = bits & field.full_mask();
                fields.set(field, bits);
                assert_eq!(fields.get(field), bits, "{field}");
            }
        }
    }

    #[test]
    fn wider_registers_are_the_narrow_ones_highest_first() {
        let mut fields = MatchFields::default();
        fields.set(FieldId::Xxreg1, 0x0000_0001_0000_0002_0000_0003_0000_0004);
        assert_eq!(fields.regs[4..8], [1, 2, 3, 4]);
        assert_eq!(fields.get(FieldId::Xreg2), 0x1_0000_0002);
        assert_eq!(fields.get(FieldId::Reg7), 4);
    }

    #[test]
    fn vlan_fields_share_one_tag() {
        let tci = |steps: &[(FieldId, u128, u128)]| {
            let mut flow = FlowMatch::catch_all();
            for (field, value, mask) in steps {
                flow.set(*field, *value, *mask);
            }
            (flow.value.vlan_tci, flow.mask.vlan_tci)
        };
        let all = u128::MAX;
        assert_eq!(tci(&[(FieldId::DlVlan, 10, all)]), (0x100a, 0x1fff));
        assert_eq!(tci(&[(FieldId::DlVlan, 0xffff, all)]), (0, 0xffff));
        assert_eq!(tci(&[(FieldId::VlanVid, 10, all)]), (0x000a, 0x1fff));
        assert_eq!(tci(&[(FieldId::VlanVid, 0x1000, 0x1000)]), (0x1000, 0x1000));
        assert_eq!(tci(&[(FieldId::DlVlanPcp, 7, all)]), (0xf000, 0xf000));
        assert_eq!(tci(&[(FieldId::DlVlan, 10, all), (FieldId::VlanPcp, 1, all)]), (0x300a, 0xffff));
        assert_eq!(
            tci(&[(FieldId::DlVlan, 10, all), (FieldId::VlanPcp, 1, all), (FieldId::DlVlan, 0, 0)]),
            (0x3000, 0xf000)
        );
        assert_eq!(tci(&[(FieldId::DlVlan, 10, all), (FieldId::DlVlan, 0, 0)]), (0, 0));
    }
}
