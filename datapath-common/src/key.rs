//! The flow key: what the datapath knows of a packet.
//!
//! It has room for every field of the kernel module's `struct sw_flow_key` (`net/openvswitch/flow.h`), laid out as 64-bit
//! words. The first [`HOT_WORDS`] words hold what nearly every flow matches on; the rest is cold, and a mask that doesn't
//! touch a cold word never reads it. Fields that exclude each other share room exactly where the kernel's do: ARP keeps its
//! addresses in the IPv4 words and its opcode in `ip_proto`, ICMP its type and code in `tp_src` and `tp_dst`, ARP's and
//! neighbour discovery's hardware addresses are one pair.
//!
//! A field that a packet doesn't have is zero. Metadata (`in_port`, `recirc_id`, …) are host integers, packet fields are in
//! network byte order.

use crate::be::{Be16, Be32, Be64};

/// Number of 64-bit words in a [`FlowKey`].
pub const KEY_WORDS: usize = 38;
/// Number of leading words that every lookup reads.
pub const HOT_WORDS: usize = 6;
/// Number of words behind the hot ones.
pub const COLD_WORDS: usize = KEY_WORDS - HOT_WORDS;

/// An 802.1Q or 802.1ad tag. Both fields are zero where there is no tag.
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Hash)]
pub struct Vlan {
    /// Tag protocol identifier, 0x8100 or 0x88a8.
    pub tpid: Be16,
    /// Priority, [`VLAN_PRESENT`] in place of the drop-eligible bit, VLAN id.
    pub tci: Be16,
}

/// Set in [`Vlan::tci`] of every tag that is present (the kernel's `VLAN_CFI_MASK`).
pub const VLAN_PRESENT: u16 = 0x1000;

/// `FlowKey::ip_frag`: not a fragment.
pub const FRAG_NONE: u8 = 0;
/// `FlowKey::ip_frag`: the first fragment, which has the transport header.
pub const FRAG_FIRST: u8 = 1;
/// `FlowKey::ip_frag`: a later fragment, which has none.
pub const FRAG_LATER: u8 = 2;

/// `FlowKey::mac_proto`: an Ethernet frame.
pub const MAC_PROTO_ETHERNET: u8 = 0;
/// `FlowKey::mac_proto`: a packet without a link-layer header.
pub const MAC_PROTO_NONE: u8 = 1;

/// The key of a packet or, with the same shape, the mask of a flow (a 1-bit is matched).
#[repr(C, align(8))]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[cfg_attr(not(feature = "user"), derive(PartialEq, Eq))]
#[derive(Clone, Copy, Debug)]
pub struct FlowKey {
    /// Datapath port of arrival.
    pub in_port: u32,
    /// Recirculation id, 0 on the first pass.
    pub recirc_id: u32,
    /// Ethernet destination.
    pub eth_dst: [u8; 6],
    /// Ethernet type behind all VLAN tags; 0x0004 (`ETH_P_802_2`) for 802.3 without SNAP.
    pub eth_type: Be16,
    /// Ethernet source.
    pub eth_src: [u8; 6],
    /// TCP flags, 12 bits.
    pub tcp_flags: Be16,
    /// Outer VLAN tag.
    pub vlan: Vlan,
    /// Inner VLAN tag.
    pub cvlan: Vlan,
    /// IP protocol, or the low byte of the ARP opcode.
    pub ip_proto: u8,
    /// IPv4 TOS or IPv6 traffic class.
    pub ip_tos: u8,
    /// IPv4 TTL or IPv6 hop limit.
    pub ip_ttl: u8,
    /// [`FRAG_NONE`], [`FRAG_FIRST`] or [`FRAG_LATER`].
    pub ip_frag: u8,
    /// Source port of TCP, UDP, SCTP; ICMP type.
    pub tp_src: Be16,
    /// Destination port of TCP, UDP, SCTP; ICMP code.
    pub tp_dst: Be16,
    /// IPv4 source or ARP sender protocol address.
    pub ipv4_src: Be32,
    /// IPv4 destination or ARP target protocol address.
    pub ipv4_dst: Be32,

    // From here on: the cold words.
    /// Datapath hash, the result of a hash action.
    pub dp_hash: u32,
    /// Packet priority.
    pub skb_priority: u32,
    /// Packet mark.
    pub skb_mark: u32,
    /// Connection mark.
    pub ct_mark: u32,
    /// Connection state bits.
    pub ct_state: u32,
    /// Connection tracking zone.
    pub ct_zone: u16,
    /// IP protocol of the original direction tuple.
    pub ct_orig_proto: u8,
    /// [`MAC_PROTO_ETHERNET`] or [`MAC_PROTO_NONE`].
    pub mac_proto: u8,
    /// Connection label.
    pub ct_label: [u8; 16],
    /// IPv4 source of the original direction tuple.
    pub ct_orig_ipv4_src: Be32,
    /// IPv4 destination of the original direction tuple.
    pub ct_orig_ipv4_dst: Be32,
    /// Source port of the original direction tuple.
    pub ct_orig_tp_src: Be16,
    /// Destination port of the original direction tuple.
    pub ct_orig_tp_dst: Be16,
    /// IPv6 flow label, 20 bits.
    pub ipv6_label: Be32,
    /// IPv6 source.
    pub ipv6_src: [u8; 16],
    /// IPv6 destination.
    pub ipv6_dst: [u8; 16],
    /// Neighbour discovery target.
    pub nd_target: [u8; 16],
    /// ARP sender hardware address, or the source link-layer address option of neighbour discovery.
    pub arp_sha: [u8; 6],
    /// IPv6 extension headers present (`OFPIEH_*` bits, OpenFlow 1.5 section 7.2.3.8). Host order.
    pub ipv6_exthdrs: u16,
    /// ARP target hardware address, or the target link-layer address option of neighbour discovery.
    pub arp_tha: [u8; 6],
    /// Bit i set: `mpls_lse[i]` is present. Host order.
    pub mpls_labels: u16,
    /// The outermost MPLS label stack entries.
    pub mpls_lse: [Be32; 3],
    /// NSH service path header.
    pub nsh_path: Be32,
    /// NSH flags.
    pub nsh_flags: u8,
    /// NSH TTL.
    pub nsh_ttl: u8,
    /// NSH metadata type.
    pub nsh_mdtype: u8,
    /// NSH next protocol.
    pub nsh_np: u8,
    /// Unused, zero.
    pub reserved0: u32,
    /// NSH context headers of metadata type 1.
    pub nsh_context: [Be32; 4],
    /// IPv6 source of the original direction tuple.
    pub ct_orig_ipv6_src: [u8; 16],
    /// IPv6 destination of the original direction tuple.
    pub ct_orig_ipv6_dst: [u8; 16],
    /// Tunnel id.
    pub tun_id: Be64,
    /// Outer IPv4 source.
    pub tun_ipv4_src: Be32,
    /// Outer IPv4 destination.
    pub tun_ipv4_dst: Be32,
    /// Outer IPv6 source.
    pub tun_ipv6_src: [u8; 16],
    /// Outer IPv6 destination.
    pub tun_ipv6_dst: [u8; 16],
    /// Tunnel flags (`TUNNEL_*` bits). Host order.
    pub tun_flags: u16,
    /// Outer TOS.
    pub tun_tos: u8,
    /// Outer TTL.
    pub tun_ttl: u8,
    /// Outer UDP source port.
    pub tun_tp_src: Be16,
    /// Outer UDP destination port.
    pub tun_tp_dst: Be16,
    /// Outer IPv6 flow label.
    pub tun_label: Be32,
    /// Address family of the tunnel, 0 where there is none (`AF_INET`, `AF_INET6`).
    pub tun_proto: u8,
    /// Bytes of tunnel options; the options themselves are a block of their own.
    pub tun_opts_len: u8,
    /// Unused, zero.
    pub reserved1: u16,
}

// Keys and masks are compared and hashed for each new flow: by words that takes a tenth of what it takes field by field.
#[cfg(feature = "user")]
impl PartialEq for FlowKey {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.words() == other.words()
    }
}

#[cfg(feature = "user")]
impl Eq for FlowKey {}

#[cfg(feature = "user")]
impl core::hash::Hash for FlowKey {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.words().hash(state);
    }
}

/// Word numbers of the fields that actions can set, and of others that code names.
pub mod word {
    /// `in_port`, `recirc_id`.
    pub const IN_PORT: usize = 0;
    /// `eth_dst`, `eth_type`.
    pub const ETH_DST: usize = 1;
    /// `eth_src`, `tcp_flags`.
    pub const ETH_SRC: usize = 2;
    /// `vlan`, `cvlan`.
    pub const VLAN: usize = 3;
    /// `ip_proto`, `ip_tos`, `ip_ttl`, `ip_frag`, `tp_src`, `tp_dst`.
    pub const IP: usize = 4;
    /// `ipv4_src`, `ipv4_dst`.
    pub const IPV4: usize = 5;
    /// `dp_hash`, `skb_priority`.
    pub const DP_HASH: usize = 6;
    /// `skb_mark`, `ct_mark`.
    pub const SKB_MARK: usize = 7;
    /// `ct_state`, `ct_zone`, `ct_orig_proto`, `mac_proto`.
    pub const CT_STATE: usize = 8;
    /// `ct_orig_tp_src`, `ct_orig_tp_dst`, `ipv6_label`.
    pub const IPV6_LABEL: usize = 12;
    /// First of two words of `ipv6_src`.
    pub const IPV6_SRC: usize = 13;
    /// First of two words of `ipv6_dst`.
    pub const IPV6_DST: usize = 15;
    /// First of two words of `nd_target`.
    pub const ND_TARGET: usize = 17;
    /// `arp_sha` or the ND source link-layer address, `ipv6_exthdrs`.
    pub const ARP_SHA: usize = 19;
    /// `arp_tha` or the ND target link-layer address, `mpls_labels`.
    pub const ARP_THA: usize = 20;
}

const _: () = assert!(core::mem::size_of::<FlowKey>() == KEY_WORDS * 8);
const _: () = assert!(core::mem::offset_of!(FlowKey, dp_hash) == HOT_WORDS * 8);
const _: () = assert!(core::mem::offset_of!(FlowKey, ipv6_src) == word::IPV6_SRC * 8);
const _: () = assert!(core::mem::offset_of!(FlowKey, ipv6_dst) == word::IPV6_DST * 8);
const _: () = assert!(core::mem::offset_of!(FlowKey, nd_target) == word::ND_TARGET * 8);
const _: () = assert!(core::mem::offset_of!(FlowKey, arp_sha) == word::ARP_SHA * 8);
const _: () = assert!(core::mem::offset_of!(FlowKey, arp_tha) == word::ARP_THA * 8);
const _: () = assert!(core::mem::offset_of!(FlowKey, ct_orig_tp_src) == word::IPV6_LABEL * 8);
const _: () = assert!(core::mem::offset_of!(FlowKey, ipv4_src) == word::IPV4 * 8);

impl FlowKey {
    /// All fields zero: the key of nothing, the mask that matches everything.
    // SAFETY: every field is an integer or an array of integers, for which all-zero bytes are a value.
    pub const ZERO: Self = unsafe { core::mem::zeroed() };

    /// The key as words, in memory order.
    #[inline(always)]
    pub const fn words(&self) -> &[u64; KEY_WORDS] {
        // SAFETY: `FlowKey` is `repr(C)`, 8-aligned, KEY_WORDS * 8 bytes long and has no padding (asserted above and by the
        // layout test), so each word is initialised.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }

    /// The hot words.
    #[inline(always)]
    pub const fn hot_words(&self) -> &[u64; HOT_WORDS] {
        // SAFETY: as in `words`, of which these are the first.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }

    /// The key as words, to write.
    #[inline(always)]
    pub const fn words_mut(&mut self) -> &mut [u64; KEY_WORDS] {
        // SAFETY: as in `words`; every bit pattern of a word is a value of the fields in it.
        unsafe { &mut *core::ptr::from_mut(self).cast() }
    }

    /// From words in memory order.
    #[inline(always)]
    pub const fn from_words(words: &[u64; KEY_WORDS]) -> Self {
        // SAFETY: as in `words_mut`.
        unsafe { *core::ptr::from_ref(words).cast() }
    }

    /// `self & mask`, the key that a flow with this mask matches on.
    #[inline]
    pub fn masked(&self, mask: &FlowKey) -> FlowKey {
        let mut out = FlowKey::ZERO;
        for (o, (k, m)) in out.words_mut().iter_mut().zip(self.words().iter().zip(mask.words())) {
            *o = k & m;
        }
        out
    }

    /// Whether, taken as a mask, it has all bits of `other`: what matches on these bits matches on those.
    pub fn covers(&self, other: &FlowKey) -> bool {
        self.words().iter().zip(other.words()).all(|(word, other)| other & !word == 0)
    }

    /// Whether a packet with key `packet` matches this (masked) key under `mask`.
    pub fn matches(&self, mask: &FlowKey, packet: &FlowKey) -> bool {
        self.words().iter().zip(mask.words()).zip(packet.words()).all(|((k, m), p)| p & m == *k)
    }
}

impl Default for FlowKey {
    fn default() -> Self {
        Self::ZERO
    }
}
