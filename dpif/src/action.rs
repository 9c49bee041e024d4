//! Datapath actions: the vocabulary of `enum ovs_action_attr` (`linux/openvswitch.h`).

use std::net::IpAddr;

use datapath_common::{Be16, Be32, FlowKey, Vlan};

use crate::port::OdpPort;

/// One datapath action. A list of them, in order, is what a flow does; an empty list drops.
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub enum Action {
    /// Send to a port.
    Output(OdpPort),
    /// Send to userspace.
    Userspace(UserspaceAction),
    /// Change header fields.
    Set(Box<SetAction>),
    /// Push a VLAN tag; its tci carries the present bit.
    PushVlan(Vlan),
    /// Remove the outer VLAN tag.
    PopVlan,
    /// Look up again with this recirculation id.
    Recirc(u32),
    /// Compute the datapath hash.
    Hash {
        /// Algorithm.
        alg: HashAlg,
        /// Mixed into the hash.
        basis: u32,
    },
    /// Let the next output send at most this many bytes.
    Trunc(u32),
    /// Drop, with an explicit reason.
    Drop(u32),
    /// Run actions on a clone with a probability of `probability` in 2³².
    Sample {
        /// Probability; `u32::MAX` is always.
        probability: u32,
        /// What is run.
        actions: Vec<Action>,
    },
    /// Connection tracking.
    Ct(CtAction),
    /// Forget the connection tracking state.
    CtClear,
    /// Push an MPLS label stack entry and an Ethernet type.
    PushMpls {
        /// The label stack entry.
        lse: Be32,
        /// 0x8847 or 0x8848.
        eth_type: Be16,
    },
    /// Remove the outer MPLS label; the Ethernet type becomes this.
    PopMpls(Be16),
    /// Push an Ethernet header.
    PushEth {
        /// Source address.
        src: [u8; 6],
        /// Destination address.
        dst: [u8; 6],
    },
    /// Remove the Ethernet header.
    PopEth,
    /// Push a network service header.
    PushNsh(Vec<u8>),
    /// Remove the network service header.
    PopNsh,
    /// Apply a meter.
    Meter(u32),
    /// Run actions on a clone.
    Clone(Vec<Action>),
    /// Branch on the packet's length.
    CheckPktLen {
        /// Length in bytes.
        pkt_len: u16,
        /// Run where the packet is longer.
        if_greater: Vec<Action>,
        /// Run where it is not.
        if_less_equal: Vec<Action>,
    },
    /// Push an MPLS label at the outer or inner header.
    AddMpls {
        /// The label stack entry.
        lse: Be32,
        /// 0x8847 or 0x8848.
        eth_type: Be16,
        /// `OVS_MPLS_L3_TUNNEL_FLAG_MASK`.
        flags: u16,
    },
    /// Decrement the TTL, running these actions where it is used up.
    DecTtl(Vec<Action>),
    /// Sample to a psample group.
    Psample {
        /// Group.
        group: u32,
        /// Cookie, at most 16 bytes.
        cookie: Vec<u8>,
    },
}

/// Algorithm of a hash action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashAlg {
    /// `OVS_HASH_ALG_L4`.
    L4,
    /// `OVS_HASH_ALG_SYM_L4`.
    SymL4,
}

/// Which part of the key a set action changes (`enum ovs_key_attr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum KeyAttr {
    /// `skb_priority`.
    Priority,
    /// `skb_mark`.
    SkbMark,
    /// `eth_src`, `eth_dst`.
    Ethernet,
    /// `ipv4_src`, `ipv4_dst`, `ip_tos`, `ip_ttl`.
    Ipv4,
    /// `ipv6_src`, `ipv6_dst`, `ipv6_label`, `ip_tos` (traffic class), `ip_ttl` (hop limit).
    Ipv6,
    /// `tp_src`, `tp_dst`.
    Tcp,
    /// `tp_src`, `tp_dst`.
    Udp,
    /// `tp_src`, `tp_dst`.
    Sctp,
    /// `tp_src` (type), `tp_dst` (code).
    Icmp,
    /// `tp_src` (type), `tp_dst` (code).
    Icmpv6,
    /// `ipv4_src` (sender), `ipv4_dst` (target), `ip_proto` (opcode), `arp_sha`, `arp_tha`.
    Arp,
    /// `nd_target`, `arp_sha` (source option), `arp_tha` (target option).
    Nd,
    /// `mpls_lse`.
    Mpls,
    /// Tunnel key of the packet when it is sent.
    Tunnel,
    /// `nsh_*`.
    Nsh,
}

/// A masked set: bits `mask` of the fields of `attr` become those of `value`. Fields of other attributes are zero in both.
#[derive(Clone, PartialEq, Debug)]
pub struct SetAction {
    /// Which fields.
    pub attr: KeyAttr,
    /// Their new value; no bit outside the mask.
    pub value: FlowKey,
    /// Bits to change.
    pub mask: FlowKey,
}

/// Sending to userspace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UserspaceAction {
    /// Netlink socket to send to; backends with rings don't use it.
    pub pid: u32,
    /// Cookie, given back in the upcall.
    pub cookie: Vec<u8>,
    /// Port whose tunnel key goes along.
    pub egress_tunnel_port: Option<OdpPort>,
    /// The flow's actions go along.
    pub with_actions: bool,
}

/// Connection tracking (`OVS_ACTION_ATTR_CT`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CtAction {
    /// Commit the connection.
    pub commit: bool,
    /// Commit it, even where it is known in the other direction.
    pub force: bool,
    /// Zone.
    pub zone: u16,
    /// Value and mask of the connection's mark; no bit of the value outside the mask.
    pub mark: Option<(u32, u32)>,
    /// Value and mask of the connection's label; no bit of the value outside the mask.
    pub label: Option<([u8; 16], [u8; 16])>,
    /// Name of a helper, such as `ftp`.
    pub helper: Option<String>,
    /// Address translation.
    pub nat: Option<NatAction>,
    /// Which events are reported (`IPCT_*` bits); `None` leaves it to the system.
    pub event_mask: Option<u32>,
    /// Name of a timeout policy.
    pub timeout: Option<String>,
}

/// Address translation of a connection (`OVS_CT_ATTR_NAT`). Without a direction, that of the connection as committed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NatAction {
    /// What is translated in new connections.
    pub direction: Option<NatDirection>,
    /// First and last address; equal where there is one. Both of one family.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// First and last port, host order; equal where there is one.
    pub ports: Option<(u16, u16)>,
    /// The same mapping across reboots.
    pub persistent: bool,
    /// Ports by a hash.
    pub hash: bool,
    /// Ports at random.
    pub random: bool,
}

/// Which end of a connection is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NatDirection {
    /// The source.
    Src,
    /// The destination.
    Dst,
}
