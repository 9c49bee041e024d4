//! Fields by name: what `set_field`, `load`, `move` and `output:FIELD` work on.

use datapath_common::key::VLAN_PRESENT;
use datapath_common::{Be16, Be32, Be64, FlowKey};
use openflow::{FieldId, Prerequisite};

use super::place::Place;
use super::{Flow, NW_FRAG_ANY, NW_FRAG_LATER};
use datapath_common::extract::{eth_type, ip_proto};

const VID: u16 = 0x0fff;
const PCP: u16 = 0xe000;
const DSCP: u8 = 0xfc;
const ECN: u8 = 0x03;

impl Flow {
    /// A field's bits as one number, the least significant bit first, as [`FieldId`] counts.
    #[inline]
    pub fn get(&self, field: FieldId) -> u128 {
        match Place::of(field) {
            Some(place) => place.get(self).into(),
            None => self.get_parts(field),
        }
    }

    fn get_parts(&self, field: FieldId) -> u128 {
        use FieldId as F;
        if let Some((first, count)) = registers(field) {
            return (first..first + count).fold(0, |bits, n| (bits << 32) | u128::from(self.reg(n)));
        }
        let key = &self.key;
        let tci = key.vlan.tci.get();
        match field {
            F::DpHash => key.dp_hash.into(),
            F::RecircId => key.recirc_id.into(),
            F::ConjId => self.conj_id().into(),
            F::TunId => key.tun_id.get().into(),
            F::Metadata => self.metadata().into(),
            F::InPort => (key.in_port as u16).into(),
            F::PktMark => key.skb_mark.into(),
            F::EthSrc => mac_bits(key.eth_src),
            F::EthDst => mac_bits(key.eth_dst),
            F::EthType => key.eth_type.get().into(),
            F::VlanTci => tci.into(),
            F::DlVlan => (tci & VID).into(),
            F::VlanVid => (tci & (VID | VLAN_PRESENT)).into(),
            F::DlVlanPcp | F::VlanPcp => (tci >> 13).into(),
            F::IpSrc | F::ArpSpa => key.ipv4_src.get().into(),
            F::IpDst | F::ArpTpa => key.ipv4_dst.get().into(),
            F::Ipv6Src => u128::from_be_bytes(key.ipv6_src),
            F::Ipv6Dst => u128::from_be_bytes(key.ipv6_dst),
            F::Ipv6Label => key.ipv6_label.get().into(),
            F::IpProto | F::ArpOp => key.ip_proto.into(),
            F::IpTos => (key.ip_tos & DSCP).into(),
            F::IpDscp => (key.ip_tos >> 2).into(),
            F::IpEcn => (key.ip_tos & ECN).into(),
            F::IpTtl => key.ip_ttl.into(),
            F::IpFrag => key.ip_frag.into(),
            F::ArpSha | F::NdSll => mac_bits(key.arp_sha),
            F::ArpTha | F::NdTll => mac_bits(key.arp_tha),
            F::TcpSrc | F::UdpSrc | F::SctpSrc => key.tp_src.get().into(),
            F::TcpDst | F::UdpDst | F::SctpDst => key.tp_dst.get().into(),
            F::IcmpType | F::Icmpv6Type => (key.tp_src.get() & 0xff).into(),
            F::IcmpCode | F::Icmpv6Code => (key.tp_dst.get() & 0xff).into(),
            F::TcpFlags => key.tcp_flags.get().into(),
            F::NdTarget => u128::from_be_bytes(key.nd_target),
            // Registers were answered above.
            _ => 0,
        }
    }

    /// Sets a field's bits; those beyond its width are cut off. Setting OpenFlow 1.0's VLAN id or a priority also says that
    /// there is a tag.
    #[inline]
    pub fn set(&mut self, field: FieldId, bits: u128) {
        match Place::of(field) {
            Some(place) => place.set(self, bits as u64),
            None => self.set_parts(field, bits),
        }
    }

    fn set_parts(&mut self, field: FieldId, bits: u128) {
        use FieldId as F;
        if let Some((first, count)) = registers(field) {
            for n in 0..count {
                self.set_reg(first + n, (bits >> (32 * (count - 1 - n))) as u32);
            }
            return;
        }
        let key = &mut self.key;
        let tci = key.vlan.tci.get();
        let mut set_tci = |tci| key.vlan.tci = Be16::new(tci);
        match field {
            F::DpHash => key.dp_hash = bits as u32,
            F::RecircId => key.recirc_id = bits as u32,
            F::ConjId => self.set_conj_id(bits as u32),
            F::TunId => key.tun_id = Be64::new(bits as u64),
            F::Metadata => self.set_metadata(bits as u64),
            F::InPort => key.in_port = (bits as u16).into(),
            F::PktMark => key.skb_mark = bits as u32,
            F::EthSrc => key.eth_src = mac_bytes(bits),
            F::EthDst => key.eth_dst = mac_bytes(bits),
            F::EthType => key.eth_type = Be16::new(bits as u16),
            F::VlanTci => set_tci(bits as u16),
            F::DlVlan => set_tci((tci & PCP) | VLAN_PRESENT | (bits as u16 & VID)),
            F::VlanVid => set_tci((tci & PCP) | (bits as u16 & (VLAN_PRESENT | VID))),
            F::DlVlanPcp | F::VlanPcp => set_tci((tci & VID) | VLAN_PRESENT | ((bits as u16) << 13)),
            F::IpSrc | F::ArpSpa => key.ipv4_src = Be32::new(bits as u32),
            F::IpDst | F::ArpTpa => key.ipv4_dst = Be32::new(bits as u32),
            F::Ipv6Src => key.ipv6_src = bits.to_be_bytes(),
            F::Ipv6Dst => key.ipv6_dst = bits.to_be_bytes(),
            F::Ipv6Label => key.ipv6_label = Be32::new(bits as u32 & 0xf_ffff),
            F::IpProto | F::ArpOp => key.ip_proto = bits as u8,
            F::IpTos => key.ip_tos = (key.ip_tos & ECN) | (bits as u8 & DSCP),
            F::IpDscp => key.ip_tos = (key.ip_tos & ECN) | ((bits as u8) << 2),
            F::IpEcn => key.ip_tos = (key.ip_tos & DSCP) | (bits as u8 & ECN),
            F::IpTtl => key.ip_ttl = bits as u8,
            F::IpFrag => key.ip_frag = bits as u8 & (NW_FRAG_ANY | NW_FRAG_LATER),
            F::ArpSha | F::NdSll => key.arp_sha = mac_bytes(bits),
            F::ArpTha | F::NdTll => key.arp_tha = mac_bytes(bits),
            F::TcpSrc | F::UdpSrc | F::SctpSrc => key.tp_src = Be16::new(bits as u16),
            F::TcpDst | F::UdpDst | F::SctpDst => key.tp_dst = Be16::new(bits as u16),
            F::IcmpType | F::Icmpv6Type => key.tp_src = Be16::new((bits as u8).into()),
            F::IcmpCode | F::Icmpv6Code => key.tp_dst = Be16::new((bits as u8).into()),
            F::TcpFlags => key.tcp_flags = Be16::new(bits as u16 & 0xfff),
            F::NdTarget => key.nd_target = bits.to_be_bytes(),
            _ => {}
        }
    }

    /// In a mask: adds these bits of a field. Of a VLAN's id or priority also the tag's presence.
    #[inline]
    pub fn look_at(&mut self, field: FieldId, bits: u128) {
        match Place::of(field) {
            Some(place) => place.add(self, bits as u64),
            None => self.look_at_parts(field, bits),
        }
    }

    fn look_at_parts(&mut self, field: FieldId, bits: u128) {
        // What a field can't hold may be set where it is a part of something wider, and stays.
        let FlowKey { in_port, ip_frag, tp_src, tp_dst, tcp_flags, ipv6_label, .. } = self.key;
        self.set(field, self.get(field) | bits);
        let key = &mut self.key;
        (key.in_port, key.ip_frag) = (key.in_port | in_port, key.ip_frag | ip_frag);
        (key.tp_src, key.tp_dst) = (key.tp_src | tp_src, key.tp_dst | tp_dst);
        (key.tcp_flags, key.ipv6_label) = (key.tcp_flags | tcp_flags, key.ipv6_label | ipv6_label);
        if matches!(field, FieldId::VlanVid | FieldId::VlanPcp | FieldId::DlVlan | FieldId::DlVlanPcp) {
            key.vlan.tci = key.vlan.tci | Be16::new(VLAN_PRESENT);
        }
    }

    /// Whether the packet has what a field presupposes. Adds to `looked_at` the mask of what says so.
    pub fn meets(&self, prerequisite: Prerequisite, looked_at: &mut Flow) -> bool {
        looked_at.key.eth_type = Be16::MAX;
        let key = &self.key;
        let ether = key.eth_type.get();
        match prerequisite {
            Prerequisite::None | Prerequisite::Ethernet => true,
            Prerequisite::Arp => self.is_arp(),
            Prerequisite::Ipv4 => ether == eth_type::IPV4,
            Prerequisite::Ipv6 => ether == eth_type::IPV6,
            Prerequisite::Ip => self.is_ip(),
            Prerequisite::VlanVid => {
                looked_at.key.vlan.tci = looked_at.key.vlan.tci | Be16::new(VLAN_PRESENT);
                key.vlan.tci.get() & VLAN_PRESENT != 0
            }
            Prerequisite::Tcp | Prerequisite::Udp | Prerequisite::Sctp => {
                (looked_at.key.ip_proto, looked_at.key.ip_frag) = (u8::MAX, u8::MAX);
                let proto = match prerequisite {
                    Prerequisite::Tcp => ip_proto::TCP,
                    Prerequisite::Udp => ip_proto::UDP,
                    _ => ip_proto::SCTP,
                };
                self.is_ip() && key.ip_proto == proto && !self.is_later_fragment()
            }
            Prerequisite::Icmp | Prerequisite::Icmpv6 => {
                (looked_at.key.ip_proto, looked_at.key.ip_frag) = (u8::MAX, u8::MAX);
                let ours = if prerequisite == Prerequisite::Icmp { eth_type::IPV4 } else { eth_type::IPV6 };
                ether == ours && self.is_icmp() && !self.is_later_fragment()
            }
            Prerequisite::Nd | Prerequisite::NdSolicit | Prerequisite::NdAdvert => {
                (looked_at.key.ip_proto, looked_at.key.ip_frag) = (u8::MAX, u8::MAX);
                (looked_at.key.tp_src, looked_at.key.tp_dst) = (Be16::MAX, Be16::MAX);
                let kind = key.tp_src.get();
                self.is_nd()
                    && match prerequisite {
                        Prerequisite::NdSolicit => kind == 135,
                        Prerequisite::NdAdvert => kind == 136,
                        _ => true,
                    }
            }
        }
    }
}

/// First register and number of registers of a register field.
fn registers(field: FieldId) -> Option<(usize, usize)> {
    field
        .register()
        .map(|n| (n, 1))
        .or_else(|| field.double_register().map(|n| (2 * n, 2)))
        .or_else(|| field.quad_register().map(|n| (4 * n, 4)))
}

fn mac_bits(mac: [u8; 6]) -> u128 {
    mac.iter().fold(0, |bits, byte| (bits << 8) | u128::from(*byte))
}

fn mac_bytes(bits: u128) -> [u8; 6] {
    let [.., a, b, c, d, e, f] = bits.to_be_bytes();
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;
    use openflow::FieldId;
    use proptest::prelude::*;
    use zerocopy::FromBytes as _;

    proptest! {
        #[test]
        fn a_field_in_its_place_is_the_field_by_its_parts(
            bytes in prop::collection::vec(any::<u8>(), size_of::<Flow>()),
            bits: u128,
        ) {
            let flow = Flow::read_from_bytes(&bytes).expect("a flow's bytes");
            for field in FieldId::all() {
                prop_assert_eq!(flow.get(field), flow.get_parts(field), "{}", field);
                let (mut by_place, mut by_parts) = (flow, flow);
                by_place.set(field, bits);
                by_parts.set_parts(field, bits);
                prop_assert_eq!(by_place, by_parts, "{}", field);
                let (mut by_place, mut by_parts) = (flow, flow);
                by_place.look_at(field, bits);
                by_parts.look_at_parts(field, bits);
                prop_assert_eq!(by_place, by_parts, "{}", field);
            }
        }

        #[test]
        fn looking_at_a_field_adds_its_bits_and_takes_none_away(
            bytes in prop::collection::vec(any::<u8>(), size_of::<Flow>()),
            bits: u128,
        ) {
            for field in FieldId::all() {
                let bits = bits & field.full_mask();
                let mut before = Flow::read_from_bytes(&bytes).expect("a flow's bytes");
                before.set_conj_id(before.conj_id());
                let mut mask = Flow::ZERO;
                mask.set(field, bits);
                if matches!(field, FieldId::VlanVid | FieldId::VlanPcp | FieldId::DlVlan | FieldId::DlVlanPcp) {
                    mask.key.vlan.tci = mask.key.vlan.tci | Be16::new(VLAN_PRESENT);
                }
                let mut slowly = before;
                slowly.add(&mask);
                let mut looked = before;
                looked.look_at(field, bits);
                prop_assert_eq!(looked, slowly, "{}", field);
            }
        }
    }
}
