//! Which headers a packet with a key has, and so which attributes belong to it.

use datapath_common::FlowKey;
use datapath_common::key::{FRAG_LATER, MAC_PROTO_ETHERNET, VLAN_PRESENT};

use crate::uapi::key as attr;

pub(super) const ETH_IPV4: u16 = 0x0800;
pub(super) const ETH_ARP: u16 = 0x0806;
pub(super) const ETH_RARP: u16 = 0x8035;
pub(super) const ETH_VLAN: u16 = 0x8100;
pub(super) const ETH_QINQ: u16 = 0x88a8;
pub(super) const ETH_IPV6: u16 = 0x86dd;
pub(super) const ETH_MPLS: u16 = 0x8847;
pub(super) const ETH_MPLS_MULTICAST: u16 = 0x8848;
pub(super) const ETH_NSH: u16 = 0x894f;
/// What a key says of an 802.3 frame without SNAP; on the wire of netlink it is the absence of an Ethernet type.
pub(super) const ETH_802_2: u16 = 0x0004;
/// Smallest Ethernet type; what is below is a length.
pub(super) const ETH_MIN: u16 = 0x0600;

const ICMPV6_NEIGHBOUR: [u16; 2] = [135, 136];

pub(super) fn is_vlan_type(eth_type: u16) -> bool {
    matches!(eth_type, ETH_VLAN | ETH_QINQ)
}

/// The network header, by the Ethernet type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Network {
    None,
    Ipv4,
    Ipv6,
    Arp,
    Mpls,
    Nsh,
}

impl Network {
    /// The attribute that holds it.
    pub(super) fn attr(self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Ipv4 => Some(attr::IPV4),
            Self::Ipv6 => Some(attr::IPV6),
            Self::Arp => Some(attr::ARP),
            Self::Mpls => Some(attr::MPLS),
            Self::Nsh => Some(attr::NSH),
        }
    }

    pub(super) fn is_ip(self) -> bool {
        matches!(self, Self::Ipv4 | Self::Ipv6)
    }
}

/// The transport header, by protocol and fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transport {
    None,
    Tcp,
    Udp,
    Sctp,
    Icmp,
    /// With the fields of neighbour discovery or without.
    Icmpv6 {
        nd: bool,
    },
}

impl Transport {
    /// The attribute that holds it.
    pub(super) fn attr(self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Tcp => Some(attr::TCP),
            Self::Udp => Some(attr::UDP),
            Self::Sctp => Some(attr::SCTP),
            Self::Icmp => Some(attr::ICMP),
            Self::Icmpv6 { .. } => Some(attr::ICMPV6),
        }
    }
}

/// Tags that a key has: none, one, two. A tag is there where its tci has [`VLAN_PRESENT`].
pub(super) fn tags(key: &FlowKey) -> usize {
    let present = |tci: u16| tci & VLAN_PRESENT != 0;
    match (present(key.vlan.tci.get()), present(key.cvlan.tci.get())) {
        (true, true) => 2,
        (true, false) => 1,
        _ => 0,
    }
}

pub(super) fn is_ethernet(key: &FlowKey) -> bool {
    key.mac_proto == MAC_PROTO_ETHERNET
}

pub(super) fn network(key: &FlowKey) -> Network {
    match key.eth_type.get() {
        ETH_IPV4 => Network::Ipv4,
        ETH_IPV6 => Network::Ipv6,
        ETH_ARP | ETH_RARP => Network::Arp,
        ETH_MPLS | ETH_MPLS_MULTICAST => Network::Mpls,
        ETH_NSH => Network::Nsh,
        _ => Network::None,
    }
}

pub(super) fn transport(key: &FlowKey) -> Transport {
    if key.ip_frag & FRAG_LATER != 0 {
        return Transport::None;
    }
    match (network(key), key.ip_proto) {
        (Network::Ipv4 | Network::Ipv6, 6) => Transport::Tcp,
        (Network::Ipv4 | Network::Ipv6, 17) => Transport::Udp,
        (Network::Ipv4 | Network::Ipv6, 132) => Transport::Sctp,
        (Network::Ipv4, 1) => Transport::Icmp,
        (Network::Ipv6, 58) => Transport::Icmpv6 { nd: ICMPV6_NEIGHBOUR.contains(&key.tp_src.get()) },
        _ => Transport::None,
    }
}

/// Whether the key has the original direction's tuple in a form that belongs to its packets. Neighbour discovery uses the
/// tuple's room in the kernel's key.
pub(super) fn has_ct_tuple(key: &FlowKey) -> bool {
    key.ct_orig_proto != 0 && network(key).is_ip() && transport(key) != Transport::Icmpv6 { nd: true }
}
