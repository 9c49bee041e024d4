//! The fields that a flow can match, set and move: one table of rows.
//!
//! Each row says the field's names, its width, which of its bits can be used, how its values are written, whether a
//! match may leave bits out, which other match it presupposes and whether actions may write it (ovs-fields(7)).
//! Parsing, formatting and checking are driven by this table; a new field is a new row and a place in
//! [`MatchFields`](crate::MatchFields).

use std::fmt;

mod subfield;
mod value;

pub use subfield::Subfield;
pub(crate) use value::{
    FieldText, Ipv4Text, Ipv6Text, MacText, TcpFlagsText, ValueUse, frag_word, parse_decimal, parse_field_value,
    parse_integer, parse_ipv4, parse_mac,
};

/// What is known about a field; the row of the table.
#[derive(Debug)]
pub struct FieldInfo {
    /// The field itself.
    pub id: FieldId,
    /// Its own name, as in `set_field:VALUE->NAME`.
    pub name: &'static str,
    /// Other names of it.
    pub aliases: &'static [&'static str],
    /// Names from the protocol's headers (NXM first), which subfields are written with; empty if it has none.
    pub header_names: &'static [&'static str],
    /// Width that subfields count in, 1 to 128.
    pub bits: u32,
    /// Width that text masks count in: a mask of all ones has this many.
    pub storage_bits: u32,
    /// Bits that a value may have.
    pub valid: u128,
    /// How values are written.
    pub format: FieldFormat,
    /// Whether a match may look at some bits only.
    pub maskable: Maskable,
    /// What a flow that uses the field must match as well.
    pub prerequisite: Prerequisite,
    /// Whether actions may write it.
    pub access: Access,
}

/// How a field's values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldFormat {
    /// A number, printed in decimal.
    Decimal,
    /// A number, printed in hexadecimal.
    Hex,
    /// `00:11:22:33:44:55`.
    Mac,
    /// Dotted quad.
    Ipv4,
    /// RFC 4291 text.
    Ipv6,
    /// An OpenFlow port's number or name.
    Port,
    /// `no`, `yes`, `first`, `later`, `not_later`.
    Frag,
    /// `syn|ack`, `+syn-ack`, or numbers.
    TcpFlags,
}

/// Whether a match may leave out some of a field's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maskable {
    /// All bits or none.
    Exact,
    /// Any bits.
    Masked,
}

/// Whether actions may write a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may be matched, moved from and output to, not written.
    ReadOnly,
    /// It may be written.
    ReadWrite,
}

/// What a flow must match before a field means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prerequisite {
    /// Nothing.
    None,
    /// An Ethernet frame; always so in this version.
    Ethernet,
    /// ARP or RARP.
    Arp,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// A VLAN tag.
    VlanVid,
    /// IPv4 or IPv6.
    Ip,
    /// TCP over IP, not a later fragment.
    Tcp,
    /// UDP over IP, not a later fragment.
    Udp,
    /// SCTP over IP, not a later fragment.
    Sctp,
    /// ICMP over IPv4.
    Icmp,
    /// ICMP over IPv6.
    Icmpv6,
    /// IPv6 neighbor solicitation or advertisement.
    Nd,
    /// IPv6 neighbor solicitation.
    NdSolicit,
    /// IPv6 neighbor advertisement.
    NdAdvert,
}

impl fmt::Display for Prerequisite {
    /// What to write into the match to have it met.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None | Self::Ethernet => "nothing",
            Self::Arp => "arp or rarp",
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ipv6",
            Self::VlanVid => "a VLAN tag, such as dl_vlan=VID or vlan_tci=0x1000/0x1000",
            Self::Ip => "ip or ipv6",
            Self::Tcp => "tcp or tcp6, and no ip_frag=later",
            Self::Udp => "udp or udp6, and no ip_frag=later",
            Self::Sctp => "sctp or sctp6, and no ip_frag=later",
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmp6",
            Self::Nd => "icmp6,icmpv6_type=135 or icmp6,icmpv6_type=136",
            Self::NdSolicit => "icmp6,icmpv6_type=135",
            Self::NdAdvert => "icmp6,icmpv6_type=136",
        })
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $id:ident: $name:literal [$($alias:literal),*] [$($header:literal),*],
        bits $bits:literal of $storage:literal, valid $valid:expr,
        $format:ident $maskable:ident, $prerequisite:ident $access:ident;)*) => {
        /// A field of a packet or of its state in the pipeline.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum FieldId {
            $($(#[$doc])* $id,)*
        }

        /// All fields, in the order of [`FieldId`].
        static FIELDS: &[FieldInfo] = &[$(FieldInfo {
            id: FieldId::$id,
            name: $name,
            aliases: &[$($alias),*],
            header_names: &[$($header),*],
            bits: $bits,
            storage_bits: $storage,
            valid: $valid,
            format: FieldFormat::$format,
            maskable: Maskable::$maskable,
            prerequisite: Prerequisite::$prerequisite,
            access: Access::$access,
        },)*];

        impl FieldId {
            /// What is known about the field.
            #[inline]
            pub fn info(self) -> &'static FieldInfo {
                // A match rather than an index: there is no field without a row.
                match self {
                    $(Self::$id => const { field_row(FieldId::$id as usize) },)*
                }
            }
        }
    };
}

fields! {
/// Hash of the packet that the datapath computed.
DpHash: "dp_hash" [] ["NXM_NX_DP_HASH", "NXOXM_ET_DP_HASH"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadOnly;
/// Recirculation id; 0 is a packet that has just been received.
RecircId: "recirc_id" [] ["NXM_NX_RECIRC_ID"], bits 32 of 32, valid 0xffffffff, Decimal Exact, None ReadOnly;
/// Id of the conjunctive flow whose clauses all matched; 0 is none.
ConjId: "conj_id" [] ["NXM_NX_CONJ_ID"], bits 32 of 32, valid 0xffffffff, Decimal Exact, None ReadOnly;
/// Tunnel key (VNI).
TunId: "tun_id" ["tunnel_id"] ["NXM_NX_TUN_ID", "OXM_OF_TUNNEL_ID"], bits 64 of 64, valid 0xffffffffffffffff, Hex Masked, None ReadWrite;
/// OpenFlow's scratch pad of a packet in the pipeline.
Metadata: "metadata" [] ["OXM_OF_METADATA"], bits 64 of 64, valid 0xffffffffffffffff, Hex Masked, None ReadWrite;
/// OpenFlow port the packet came in by.
InPort: "in_port" [] ["NXM_OF_IN_PORT"], bits 16 of 16, valid 0xffff, Port Exact, None ReadWrite;
/// Packet mark of the host's stack (`skb->mark`).
PktMark: "pkt_mark" [] ["NXM_NX_PKT_MARK"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 0.
Reg0: "reg0" [] ["NXM_NX_REG0"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 1.
Reg1: "reg1" [] ["NXM_NX_REG1"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 2.
Reg2: "reg2" [] ["NXM_NX_REG2"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 3.
Reg3: "reg3" [] ["NXM_NX_REG3"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 4.
Reg4: "reg4" [] ["NXM_NX_REG4"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 5.
Reg5: "reg5" [] ["NXM_NX_REG5"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 6.
Reg6: "reg6" [] ["NXM_NX_REG6"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 7.
Reg7: "reg7" [] ["NXM_NX_REG7"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 8.
Reg8: "reg8" [] ["NXM_NX_REG8"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 9.
Reg9: "reg9" [] ["NXM_NX_REG9"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 10.
Reg10: "reg10" [] ["NXM_NX_REG10"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 11.
Reg11: "reg11" [] ["NXM_NX_REG11"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 12.
Reg12: "reg12" [] ["NXM_NX_REG12"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 13.
Reg13: "reg13" [] ["NXM_NX_REG13"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 14.
Reg14: "reg14" [] ["NXM_NX_REG14"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Register 15.
Reg15: "reg15" [] ["NXM_NX_REG15"], bits 32 of 32, valid 0xffffffff, Hex Masked, None ReadWrite;
/// Registers 0 (high half) and 1 as one.
Xreg0: "xreg0" [] ["OXM_OF_PKT_REG0"], bits 64 of 64, valid 0xffffffffffffffff, Hex Masked, None ReadWrite;
/// Registers 2 (high half) and 3 as one.
Xreg1: "xreg1" [] ["OXM_OF_PKT_REG1"], bits 64 of 64, valid 0xffffffffffffffff, Hex Masked, None ReadWrite;
/// Registers 4 (high half) and 5 as one.
Xreg2: "xreg2" [] ["OXM_OF_PKT_REG2"], bits 64 of 64, valid 0xffffffffffffffff, Hex Masked, None ReadWrite;
/// Registers 6 (high half) and 7 as one.
Xreg3: "xreg3" [] ["OXM_OF_PKT_REG3"], bits 64 of 64, valid 0xffffffffffffffff, Hex Masked, None ReadWrite;
/// Registers 8 (high half) and 9 as one.
Xreg4: "xreg4" [] ["OXM_OF_PKT_REG4"], bits 64 of 64, valid 0xffffffffffffffff, Hex Masked, None ReadWrite;
/// Registers 10 (high half) and 11 as one.
Xreg5: "xreg5" [] ["OXM_OF_PKT_REG5"], bits 64 of 64, valid 0xffffffffffffffff, Hex Masked, None ReadWrite;
/// Registers 12 (high half) and 13 as one.
Xreg6: "xreg6" [] ["OXM_OF_PKT_REG6"], bits 64 of 64, valid 0xffffffffffffffff, Hex Masked, None ReadWrite;
/// Registers 14 (high half) and 15 as one.
Xreg7: "xreg7" [] ["OXM_OF_PKT_REG7"], bits 64 of 64, valid 0xffffffffffffffff, Hex Masked, None ReadWrite;
/// Registers 0 (highest part) to 3 as one.
Xxreg0: "xxreg0" [] ["NXM_NX_XXREG0"], bits 128 of 128, valid u128::MAX, Hex Masked, None ReadWrite;
/// Registers 4 (highest part) to 7 as one.
Xxreg1: "xxreg1" [] ["NXM_NX_XXREG1"], bits 128 of 128, valid u128::MAX, Hex Masked, None ReadWrite;
/// Registers 8 (highest part) to 11 as one.
Xxreg2: "xxreg2" [] ["NXM_NX_XXREG2"], bits 128 of 128, valid u128::MAX, Hex Masked, None ReadWrite;
/// Registers 12 (highest part) to 15 as one.
Xxreg3: "xxreg3" [] ["NXM_NX_XXREG3"], bits 128 of 128, valid u128::MAX, Hex Masked, None ReadWrite;
/// Ethernet source.
EthSrc: "eth_src" ["dl_src"] ["NXM_OF_ETH_SRC", "OXM_OF_ETH_SRC"], bits 48 of 48, valid 0xffffffffffff, Mac Masked, Ethernet ReadWrite;
/// Ethernet destination.
EthDst: "eth_dst" ["dl_dst"] ["NXM_OF_ETH_DST", "OXM_OF_ETH_DST"], bits 48 of 48, valid 0xffffffffffff, Mac Masked, Ethernet ReadWrite;
/// Ethertype after VLAN tags; 0x05ff is an 802.3 frame without one.
EthType: "eth_type" ["dl_type"] ["NXM_OF_ETH_TYPE", "OXM_OF_ETH_TYPE"], bits 16 of 16, valid 0xffff, Hex Exact, Ethernet ReadOnly;
/// The outer VLAN tag's TCI, bit 0x1000 meaning that a tag is present; 0 is a packet without a tag.
VlanTci: "vlan_tci" [] ["NXM_OF_VLAN_TCI"], bits 16 of 16, valid 0xffff, Hex Masked, Ethernet ReadWrite;
/// OpenFlow 1.0's VLAN id; a match on 0xffff means no tag.
DlVlan: "dl_vlan" [] [], bits 12 of 16, valid 0xfff, Decimal Exact, Ethernet ReadWrite;
/// OpenFlow 1.2's VLAN id, bit 0x1000 meaning that a tag is present.
VlanVid: "vlan_vid" [] ["OXM_OF_VLAN_VID"], bits 12 of 16, valid 0x1fff, Decimal Masked, Ethernet ReadWrite;
/// OpenFlow 1.0's VLAN priority.
DlVlanPcp: "dl_vlan_pcp" [] [], bits 3 of 8, valid 0x7, Decimal Exact, Ethernet ReadWrite;
/// OpenFlow 1.2's VLAN priority.
VlanPcp: "vlan_pcp" [] ["OXM_OF_VLAN_PCP"], bits 3 of 8, valid 0x7, Decimal Exact, VlanVid ReadWrite;
/// IPv4 source.
IpSrc: "ip_src" ["nw_src"] ["NXM_OF_IP_SRC", "OXM_OF_IPV4_SRC"], bits 32 of 32, valid 0xffffffff, Ipv4 Masked, Ipv4 ReadWrite;
/// IPv4 destination.
IpDst: "ip_dst" ["nw_dst"] ["NXM_OF_IP_DST", "OXM_OF_IPV4_DST"], bits 32 of 32, valid 0xffffffff, Ipv4 Masked, Ipv4 ReadWrite;
/// IPv6 source.
Ipv6Src: "ipv6_src" [] ["NXM_NX_IPV6_SRC", "OXM_OF_IPV6_SRC"], bits 128 of 128, valid u128::MAX, Ipv6 Masked, Ipv6 ReadWrite;
/// IPv6 destination.
Ipv6Dst: "ipv6_dst" [] ["NXM_NX_IPV6_DST", "OXM_OF_IPV6_DST"], bits 128 of 128, valid u128::MAX, Ipv6 Masked, Ipv6 ReadWrite;
/// IPv6 flow label.
Ipv6Label: "ipv6_label" [] ["NXM_NX_IPV6_LABEL", "OXM_OF_IPV6_FLABEL"], bits 20 of 32, valid 0xfffff, Hex Masked, Ipv6 ReadWrite;
/// IP protocol, of IPv6 the last header's.
IpProto: "nw_proto" ["ip_proto"] ["NXM_OF_IP_PROTO", "OXM_OF_IP_PROTO"], bits 8 of 8, valid 0xff, Decimal Exact, Ip ReadOnly;
/// The DSCP in its place within the TOS or traffic class byte (bits 2 to 7).
IpTos: "nw_tos" [] ["NXM_OF_IP_TOS"], bits 8 of 8, valid 0xfc, Decimal Exact, Ip ReadWrite;
/// The DSCP as a number of its own.
IpDscp: "ip_dscp" [] ["OXM_OF_IP_DSCP"], bits 6 of 8, valid 0x3f, Decimal Exact, Ip ReadWrite;
/// Explicit congestion notification, the low two bits of the TOS or traffic class byte.
IpEcn: "nw_ecn" ["ip_ecn"] ["NXM_NX_IP_ECN", "OXM_OF_IP_ECN"], bits 2 of 8, valid 0x3, Decimal Exact, Ip ReadWrite;
/// Time to live or hop limit.
IpTtl: "nw_ttl" [] ["NXM_NX_IP_TTL"], bits 8 of 8, valid 0xff, Decimal Exact, Ip ReadWrite;
/// Fragment bits: 1 is any fragment, 2 a later fragment.
IpFrag: "ip_frag" ["nw_frag"] ["NXM_NX_IP_FRAG"], bits 2 of 8, valid 0x3, Frag Masked, Ip ReadOnly;
/// ARP operation; only 1 to 255 can be matched.
ArpOp: "arp_op" [] ["NXM_OF_ARP_OP", "OXM_OF_ARP_OP"], bits 16 of 16, valid 0xff, Decimal Exact, Arp ReadWrite;
/// ARP sender's IPv4 address.
ArpSpa: "arp_spa" [] ["NXM_OF_ARP_SPA", "OXM_OF_ARP_SPA"], bits 32 of 32, valid 0xffffffff, Ipv4 Masked, Arp ReadWrite;
/// ARP target's IPv4 address.
ArpTpa: "arp_tpa" [] ["NXM_OF_ARP_TPA", "OXM_OF_ARP_TPA"], bits 32 of 32, valid 0xffffffff, Ipv4 Masked, Arp ReadWrite;
/// ARP sender's Ethernet address.
ArpSha: "arp_sha" [] ["NXM_NX_ARP_SHA", "OXM_OF_ARP_SHA"], bits 48 of 48, valid 0xffffffffffff, Mac Masked, Arp ReadWrite;
/// ARP target's Ethernet address.
ArpTha: "arp_tha" [] ["NXM_NX_ARP_THA", "OXM_OF_ARP_THA"], bits 48 of 48, valid 0xffffffffffff, Mac Masked, Arp ReadWrite;
/// TCP source port; as `tp_src` in a match, of whatever transport protocol is matched.
TcpSrc: "tcp_src" ["tp_src"] ["NXM_OF_TCP_SRC", "OXM_OF_TCP_SRC"], bits 16 of 16, valid 0xffff, Decimal Masked, Tcp ReadWrite;
/// TCP destination port; as `tp_dst` in a match, of whatever transport protocol is matched.
TcpDst: "tcp_dst" ["tp_dst"] ["NXM_OF_TCP_DST", "OXM_OF_TCP_DST"], bits 16 of 16, valid 0xffff, Decimal Masked, Tcp ReadWrite;
/// TCP flags.
TcpFlags: "tcp_flags" [] ["NXM_NX_TCP_FLAGS", "ONFOXM_ET_TCP_FLAGS", "OXM_OF_TCP_FLAGS"], bits 12 of 16, valid 0xfff, TcpFlags Masked, Tcp ReadOnly;
/// UDP source port.
UdpSrc: "udp_src" [] ["NXM_OF_UDP_SRC", "OXM_OF_UDP_SRC"], bits 16 of 16, valid 0xffff, Decimal Masked, Udp ReadWrite;
/// UDP destination port.
UdpDst: "udp_dst" [] ["NXM_OF_UDP_DST", "OXM_OF_UDP_DST"], bits 16 of 16, valid 0xffff, Decimal Masked, Udp ReadWrite;
/// SCTP source port.
SctpSrc: "sctp_src" [] ["OXM_OF_SCTP_SRC"], bits 16 of 16, valid 0xffff, Decimal Masked, Sctp ReadWrite;
/// SCTP destination port.
SctpDst: "sctp_dst" [] ["OXM_OF_SCTP_DST"], bits 16 of 16, valid 0xffff, Decimal Masked, Sctp ReadWrite;
/// ICMP type.
IcmpType: "icmp_type" [] ["NXM_OF_ICMP_TYPE", "OXM_OF_ICMPV4_TYPE"], bits 8 of 8, valid 0xff, Decimal Exact, Icmp ReadWrite;
/// ICMP code.
IcmpCode: "icmp_code" [] ["NXM_OF_ICMP_CODE", "OXM_OF_ICMPV4_CODE"], bits 8 of 8, valid 0xff, Decimal Exact, Icmp ReadWrite;
/// ICMPv6 type.
Icmpv6Type: "icmpv6_type" [] ["NXM_NX_ICMPV6_TYPE", "OXM_OF_ICMPV6_TYPE"], bits 8 of 8, valid 0xff, Decimal Exact, Icmpv6 ReadWrite;
/// ICMPv6 code.
Icmpv6Code: "icmpv6_code" [] ["NXM_NX_ICMPV6_CODE", "OXM_OF_ICMPV6_CODE"], bits 8 of 8, valid 0xff, Decimal Exact, Icmpv6 ReadWrite;
/// Neighbor discovery target.
NdTarget: "nd_target" [] ["NXM_NX_ND_TARGET", "OXM_OF_IPV6_ND_TARGET"], bits 128 of 128, valid u128::MAX, Ipv6 Masked, Nd ReadWrite;
/// Neighbor solicitation's source link-layer address.
NdSll: "nd_sll" [] ["NXM_NX_ND_SLL", "OXM_OF_IPV6_ND_SLL"], bits 48 of 48, valid 0xffffffffffff, Mac Masked, NdSolicit ReadWrite;
/// Neighbor advertisement's target link-layer address.
NdTll: "nd_tll" [] ["NXM_NX_ND_TLL", "OXM_OF_IPV6_ND_TLL"], bits 48 of 48, valid 0xffffffffffff, Mac Masked, NdAdvert ReadWrite;}

impl FieldId {
    /// All fields.
    pub fn all() -> impl Iterator<Item = Self> {
        FIELDS.iter().map(|field| field.id)
    }

    /// The field's own name.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// The field of that name or alias (not header name), case-sensitive as in the reference.
    pub fn by_name(name: &str) -> Option<Self> {
        FIELDS.iter().find(|field| field.name == name || field.aliases.contains(&name)).map(|field| field.id)
    }

    /// The field with that protocol header name, e.g. `NXM_NX_REG0` or `OXM_OF_ETH_DST`.
    pub fn by_header_name(name: &str) -> Option<Self> {
        FIELDS.iter().find(|field| field.header_names.contains(&name)).map(|field| field.id)
    }

    /// The mask that selects the whole field.
    #[inline]
    pub fn full_mask(self) -> u128 {
        self.info().valid
    }

    /// The index of `reg0` to `reg15`.
    #[inline]
    pub fn register(self) -> Option<usize> {
        self.offset_in(Self::Reg0, Self::Reg15)
    }

    /// The index of `xreg0` to `xreg7`.
    #[inline]
    pub fn double_register(self) -> Option<usize> {
        self.offset_in(Self::Xreg0, Self::Xreg7)
    }

    /// The index of `xxreg0` to `xxreg3`.
    #[inline]
    pub fn quad_register(self) -> Option<usize> {
        self.offset_in(Self::Xxreg0, Self::Xxreg3)
    }

    #[inline]
    fn offset_in(self, first: Self, last: Self) -> Option<usize> {
        (first..=last).contains(&self).then(|| self as usize - first as usize)
    }
}

impl fmt::Display for FieldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether the reference has a field of that name which this version lacks.
pub(crate) fn is_unsupported_name(name: &str) -> bool {
    const NAMES: &[&str] = &["packet_type", "in_port_oxm", "actset_output", "skb_priority"];
    const FAMILIES: &[&str] = &["tun_", "ct_", "mpls_", "nsh_", "nshc"];
    const HEADERS: &[&str] = &[
        "OXM_OF_PACKET_TYPE",
        "OXM_OF_IN_PORT",
        "OXM_OF_ACTSET_OUTPUT",
        "ONFOXM_ET_ACTSET_OUTPUT",
        "NXM_NX_TUN_",
        "NXM_NX_CT_",
        "NXM_NX_MPLS_",
        "OXM_OF_MPLS_",
        "NXOXM_NSH_",
        "NXOXM_ET_",
        "ERICOXM_OF_",
    ];
    NAMES.contains(&name)
        || matches!(name, "nsp" | "nsi" | "nd_reserved" | "nd_options_type")
        || FAMILIES.iter().chain(HEADERS).any(|prefix| name.starts_with(prefix))
}

const fn field_row(index: usize) -> &'static FieldInfo {
    &FIELDS[index]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_field_has_its_own_row_and_names() {
        let mut names = HashSet::new();
        for (index, field) in FIELDS.iter().enumerate() {
            assert_eq!(field.id as usize, index, "{}", field.name);
            assert_eq!(field.id.info().name, field.name);
            assert!(field.bits <= field.storage_bits && field.storage_bits <= 128, "{}", field.name);
            for name in std::iter::once(&field.name).chain(field.aliases).chain(field.header_names) {
                assert!(names.insert(*name), "{name} is used twice");
                assert!(
                    !is_unsupported_name(name) || FieldId::by_name(name).or(FieldId::by_header_name(name)).is_some()
                );
            }
        }
    }

    #[test]
    fn names_find_their_fields() {
        for (name, id) in [("dl_dst", FieldId::EthDst), ("eth_dst", FieldId::EthDst), ("tp_src", FieldId::TcpSrc)] {
            assert_eq!(FieldId::by_name(name), Some(id));
        }
        assert_eq!(FieldId::by_header_name("NXM_NX_REG3"), Some(FieldId::Reg3));
        assert_eq!(FieldId::by_name("NXM_NX_REG3"), None);
        assert_eq!(FieldId::Reg3.register(), Some(3));
        assert_eq!(FieldId::Xxreg3.quad_register(), Some(3));
        assert_eq!(FieldId::EthDst.register(), None);
    }
}
