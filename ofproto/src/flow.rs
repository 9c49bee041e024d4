//! What userspace knows of a packet on its way through the tables.
//!
//! A [`Flow`] is the datapath's key seen with OpenFlow's eyes, and what exists in the pipeline only: the registers, the
//! metadata, and in the second lookup of a conjunctive match its id. It differs from the key in three fields. `in_port` holds the bridge's [`OfPort`], not the datapath's port.
//! `eth_type` of an 802.3 frame without a type is 0x05ff, where the datapath says 0x0004. `ip_frag` is OpenFlow's two bits
//! ("is a fragment", "is a later one"), where the datapath counts.
//!
//! A mask has the same shape; each 1-bit is one that has been looked at. [`Flow::datapath_mask`] makes it the mask of a
//! megaflow. A false 1-bit there only makes the megaflow narrower, and the next packet pays an upcall; a false 0-bit lets the
//! datapath treat a packet as another one. So every step of that conversion may only add bits, or take away those of fields
//! that packets of this kind can't have.

use std::fmt;

use datapath_common::extract::{eth_type, ip_proto};
use datapath_common::key::{FRAG_FIRST, FRAG_LATER, KEY_WORDS};
use datapath_common::{Be16, Be32, Be64, FlowKey, Vlan};
use openflow::{MatchFields, OfPort};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute_mut, transmute_ref};

mod field;
mod place;

pub(crate) use place::Part;

/// Number of 64-bit words of a [`Flow`].
pub const FLOW_WORDS: usize = 2 + KEY_WORDS + REG_WORDS;
/// Words of a flow's first cache line: what nearly every lookup reads.
pub(crate) const LINE_WORDS: usize = 8;
/// Words of the registers, two in each.
const REG_WORDS: usize = 8;

/// `eth_type` of a frame without one, as OpenFlow says it.
pub const ETH_TYPE_NONE: u16 = 0x05ff;
/// `ip_frag`: a fragment.
pub const NW_FRAG_ANY: u8 = 1;
/// `ip_frag`: a fragment other than the first.
pub const NW_FRAG_LATER: u8 = 2;

/// A packet's fields in the pipeline or, with the same shape, a mask of them. It begins with a cache line, in which lies
/// what nearly every lookup reads.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow {
    metadata: u64,
    conj_id: u64,
    /// The datapath's fields, with the differences that the module's documentation names.
    pub key: FlowKey,
    regs: [u64; REG_WORDS],
}

impl Flow {
    /// No field, the mask that looks at nothing.
    pub const ZERO: Self = Self::of_key(FlowKey::ZERO);

    const fn of_key(key: FlowKey) -> Self {
        Self { metadata: 0, conj_id: 0, key, regs: [0; REG_WORDS] }
    }

    /// The mask of a datapath's flow, with all of what no datapath sees.
    pub(crate) fn of_mask(key: &FlowKey) -> Self {
        Self { key: *key, ..Self::pipeline_mask() }
    }

    /// The flow of a packet with the datapath's key `key` that came in at `in_port` of a bridge.
    pub fn from_key(key: &FlowKey, in_port: OfPort) -> Self {
        let mut flow = Self::of_key(*key);
        flow.set_in_port(in_port);
        if key.eth_type.get() == eth_type::NONE {
            flow.key.eth_type = Be16::new(ETH_TYPE_NONE);
        }
        flow.key.ip_frag = match key.ip_frag {
            FRAG_FIRST => NW_FRAG_ANY,
            FRAG_LATER => NW_FRAG_ANY | NW_FRAG_LATER,
            _ => 0,
        };
        flow
    }

    /// From the values or the mask of a match.
    pub fn from_match(fields: &MatchFields) -> Self {
        let mut flow = Self::ZERO;
        let key = &mut flow.key;
        key.dp_hash = fields.dp_hash;
        key.recirc_id = fields.recirc_id;
        key.tun_id = datapath_common::Be64::new(fields.tun_id);
        key.in_port = fields.in_port.into();
        key.skb_mark = fields.pkt_mark;
        key.eth_src = fields.dl_src;
        key.eth_dst = fields.dl_dst;
        key.eth_type = Be16::new(fields.dl_type);
        key.vlan.tci = Be16::new(fields.vlan_tci);
        key.ipv4_src = Be32::new(fields.nw_src);
        key.ipv4_dst = Be32::new(fields.nw_dst);
        key.ipv6_src = fields.ipv6_src.to_be_bytes();
        key.ipv6_dst = fields.ipv6_dst.to_be_bytes();
        key.ipv6_label = Be32::new(fields.ipv6_label);
        key.ip_proto = fields.nw_proto;
        key.ip_tos = fields.nw_tos;
        key.ip_ttl = fields.nw_ttl;
        key.ip_frag = fields.nw_frag;
        key.arp_sha = fields.arp_sha;
        key.arp_tha = fields.arp_tha;
        key.nd_target = fields.nd_target.to_be_bytes();
        key.tp_src = Be16::new(fields.tp_src);
        key.tp_dst = Be16::new(fields.tp_dst);
        key.tcp_flags = Be16::new(fields.tcp_flags);
        flow.set_metadata(fields.metadata);
        flow.set_conj_id(fields.conj_id);
        for (n, reg) in fields.regs.iter().enumerate() {
            flow.set_reg(n, *reg);
        }
        flow
    }

    /// Word `index`; 0 beyond the last.
    #[inline]
    pub fn word(&self, index: usize) -> u64 {
        self.words().get(index).copied().unwrap_or(0)
    }

    /// All words, as they lie in memory.
    #[inline]
    pub const fn words(&self) -> &[u64; FLOW_WORDS] {
        transmute_ref!(self)
    }

    /// The first words.
    #[inline]
    pub(crate) const fn first_line(&self) -> &[u64; LINE_WORDS] {
        match self.words().first_chunk() {
            Some(line) => line,
            None => &[0; LINE_WORDS],
        }
    }

    /// Adds 1-bits to the first words.
    #[inline]
    pub(crate) fn add_first_line(&mut self, bits: &[u64; LINE_WORDS]) {
        for (word, bits) in self.words_mut().iter_mut().zip(bits) {
            *word |= bits;
        }
    }

    #[inline]
    fn words_mut(&mut self) -> &mut [u64; FLOW_WORDS] {
        transmute_mut!(self)
    }

    /// Adds 1-bits to word `index`, if there is one.
    #[inline]
    pub fn add_word(&mut self, index: usize, bits: u64) {
        if let Some(word) = self.words_mut().get_mut(index) {
            *word |= bits;
        }
    }

    /// Adds the 1-bits of `other`: un-wildcards them.
    pub fn add(&mut self, other: &Self) {
        for (word, other) in self.words_mut().iter_mut().zip(other.words()) {
            *word |= other;
        }
    }

    /// Adds the 1-bits of a datapath's key, as [`Self::add`].
    pub fn add_key(&mut self, other: &FlowKey) {
        for (word, other) in self.key.words_mut().iter_mut().zip(other.words()) {
            *word |= other;
        }
    }

    /// `self & mask`.
    #[must_use]
    pub fn masked(&self, mask: &Self) -> Self {
        let mut out = *self;
        for (word, mask) in out.words_mut().iter_mut().zip(mask.words()) {
            *word &= mask;
        }
        out
    }

    /// Whether this flow agrees with `value` in the bits of `mask`.
    pub fn matches(&self, value: &Self, mask: &Self) -> bool {
        let differs = |((word, value), mask): ((&u64, &u64), &u64)| (word ^ value) & mask;
        self.words().iter().zip(value.words()).zip(mask.words()).map(differs).fold(0, |all, one| all | one) == 0
    }

    /// Whether, taken as a mask, it has all bits of `other`.
    pub fn covers(&self, other: &Self) -> bool {
        self.words().iter().zip(other.words()).fold(0, |missing, (word, other)| missing | (other & !word)) == 0
    }

    /// Whether, taken as masks, all its bits are in one of the two.
    pub(crate) fn is_within(&self, one: &Self, other: &Self) -> bool {
        let within = self.words().iter().zip(one.words()).zip(other.words());
        within.fold(0, |missing, ((word, one), other)| missing | (word & !one & !other)) == 0
    }

    /// The port that the packet came in by.
    pub fn in_port(&self) -> OfPort {
        OfPort(self.key.in_port as u16)
    }

    /// Lets the packet come in by another port.
    pub fn set_in_port(&mut self, port: OfPort) {
        self.key.in_port = port.0.into();
    }

    /// The OpenFlow metadata.
    pub fn metadata(&self) -> u64 {
        self.metadata
    }

    /// Sets the OpenFlow metadata.
    pub fn set_metadata(&mut self, metadata: u64) {
        self.metadata = metadata;
    }

    /// Register `n`, 0 to 15.
    pub fn reg(&self, n: usize) -> u32 {
        let pair = self.regs.get(n / 2).copied().unwrap_or(0);
        (if n.is_multiple_of(2) { pair >> 32 } else { pair }) as u32
    }

    /// Sets register `n`, 0 to 15.
    pub fn set_reg(&mut self, n: usize, value: u32) {
        if let Some(pair) = self.regs.get_mut(n / 2) {
            let shift = if n.is_multiple_of(2) { 32 } else { 0 };
            *pair = (*pair & !(0xffff_ffff << shift)) | (u64::from(value) << shift);
        }
    }

    /// The conjunctive flow whose clauses all matched; 0 is none.
    pub fn conj_id(&self) -> u32 {
        self.conj_id as u32
    }

    /// Sets the conjunctive flow.
    pub fn set_conj_id(&mut self, id: u32) {
        self.conj_id = id.into();
    }

    /// The mask of what is in the pipeline only.
    pub const fn pipeline_mask() -> Self {
        Self { metadata: u64::MAX, conj_id: u64::MAX, key: FlowKey::ZERO, regs: [u64::MAX; REG_WORDS] }
    }

    /// Forgets what belongs to one bridge's pipeline only: registers and metadata.
    pub fn clear_pipeline(&mut self) {
        *self = Self::of_key(self.key);
    }

    /// Forgets the tunnel that the packet came through.
    pub fn clear_tunnel(&mut self) {
        self.key = FlowKey {
            tun_id: Be64::ZERO,
            tun_ipv4_src: Be32::ZERO,
            tun_ipv4_dst: Be32::ZERO,
            tun_ipv6_src: [0; 16],
            tun_ipv6_dst: [0; 16],
            tun_tp_src: Be16::ZERO,
            tun_tp_dst: Be16::ZERO,
            tun_flags: 0,
            tun_tos: 0,
            tun_label: Be32::ZERO,
            tun_ttl: 0,
            tun_proto: 0,
            tun_opts_len: 0,
            ..self.key
        };
    }

    /// Whether the packet is IPv4 or IPv6.
    pub fn is_ip(&self) -> bool {
        matches!(self.key.eth_type.get(), eth_type::IPV4 | eth_type::IPV6)
    }

    /// Whether the packet is ARP or RARP.
    pub fn is_arp(&self) -> bool {
        matches!(self.key.eth_type.get(), eth_type::ARP | eth_type::RARP)
    }

    /// Whether the packet is a fragment, the first or a later one.
    pub fn is_fragment(&self) -> bool {
        self.key.ip_frag & NW_FRAG_ANY != 0
    }

    /// Whether the packet is a later fragment, which has no transport header.
    pub fn is_later_fragment(&self) -> bool {
        self.key.ip_frag & NW_FRAG_LATER != 0
    }

    /// Whether the protocol is ICMP in the version that goes with IP's.
    pub fn is_icmp(&self) -> bool {
        match self.key.eth_type.get() {
            eth_type::IPV4 => self.key.ip_proto == ip_proto::ICMP,
            eth_type::IPV6 => self.key.ip_proto == ip_proto::ICMPV6,
            _ => false,
        }
    }

    /// Whether the packet is a neighbor solicitation or advertisement.
    pub fn is_nd(&self) -> bool {
        self.key.eth_type.get() == eth_type::IPV6
            && self.key.ip_proto == ip_proto::ICMPV6
            && !self.is_later_fragment()
            && matches!(self.key.tp_src.get(), 135 | 136)
            && self.key.tp_dst.is_zero()
    }

    /// Whether an ICMPv6 packet that agrees with this one under `mask` may be a neighbor solicitation or advertisement.
    fn may_be_nd(&self, mask: &FlowKey) -> bool {
        let agrees = |port: Be16, mask: Be16, value: u16| (port.get() ^ value) & mask.get() == 0;
        self.key.eth_type.get() == eth_type::IPV6
            && self.is_icmp()
            && !self.is_later_fragment()
            && [135, 136].iter().any(|kind| agrees(self.key.tp_src, mask.tp_src, *kind))
            && agrees(self.key.tp_dst, mask.tp_dst, 0)
    }

    /// How many VLAN tags there are, at most two.
    pub fn n_vlans(&self) -> usize {
        [self.key.vlan, self.key.cvlan].iter().take_while(|vlan| is_present(**vlan)).count()
    }

    /// Taken as the mask of what was looked at in `packet` (a flow as it came in), of which [these bits](Self::present_fields) are
    /// `present`: the mask of the megaflow.
    ///
    /// It always has port, recirculation id, Ethernet type and, for IP, the kind of fragment; a field deeper in the packet
    /// brings those that say that the field is there; and bits of fields that such packets don't have are left out.
    pub fn datapath_mask(&self, packet: &Self, present: &FlowKey) -> FlowKey {
        let mut mask = self.key;
        mask.in_port = u32::MAX;
        mask.recirc_id = u32::MAX;
        mask.eth_type = Be16::MAX;
        if mask.cvlan != Vlan::default() {
            mask.cvlan.tpid = Be16::MAX;
            mask.vlan.tci = mask.vlan.tci | Be16::new(datapath_common::key::VLAN_PRESENT);
        }
        if mask.vlan != Vlan::default() {
            mask.vlan.tpid = Be16::MAX;
        }
        if packet.is_ip() {
            mask.ip_frag = u8::MAX;
            let deep = |mask: &FlowKey| {
                !(mask.tp_src.is_zero() && mask.tp_dst.is_zero() && mask.tcp_flags.is_zero())
                    || mask.nd_target != [0; 16]
                    || mask.arp_sha != [0; 6]
                    || mask.arp_tha != [0; 6]
            };
            if deep(&mask) {
                mask.ip_proto = u8::MAX;
            }
            let discovery = mask.nd_target != [0; 16] || mask.arp_sha != [0; 6] || mask.arp_tha != [0; 6];
            if discovery && packet.may_be_nd(&mask) {
                mask.tp_src = Be16::MAX;
                mask.tp_dst = Be16::MAX;
            }
        }
        for (word, present) in mask.words_mut().iter_mut().zip(present.words()) {
            *word &= present;
        }
        mask
    }

    /// All bits that a packet of this kind (which Ethernet type, IP protocol, kind of fragment, tags) can have set.
    pub fn present_fields(&self) -> FlowKey {
        let mut has = FlowKey::from_words(&[u64::MAX; KEY_WORDS]);
        has.reserved0 = 0;
        has.reserved1 = 0;
        if !is_present(self.key.vlan) {
            has.cvlan = Vlan::default();
        }
        let (ip, arp) = (self.is_ip(), self.is_arp());
        let ipv6 = self.key.eth_type.get() == eth_type::IPV6;
        if !ip {
            (has.ip_tos, has.ip_ttl, has.ip_frag) = (0, 0, 0);
        }
        if !ip && !arp {
            has.ip_proto = 0;
        }
        if !arp && (!ip || ipv6) {
            (has.ipv4_src, has.ipv4_dst) = (Be32::ZERO, Be32::ZERO);
        }
        if !ipv6 {
            (has.ipv6_src, has.ipv6_dst, has.ipv6_label, has.ipv6_exthdrs) = ([0; 16], [0; 16], Be32::ZERO, 0);
        }
        if ipv6 {
            has.ipv6_label = Be32::new(0x000f_ffff);
        }
        let proto = if ip && !self.is_later_fragment() { self.key.ip_proto } else { 0 };
        match proto {
            ip_proto::TCP => has.tcp_flags = Be16::new(0x0fff),
            ip_proto::UDP | ip_proto::SCTP => has.tcp_flags = Be16::ZERO,
            _ if proto != 0 && self.is_icmp() => {
                has.tcp_flags = Be16::ZERO;
                // Type and code are bytes in 16-bit fields.
                (has.tp_src, has.tp_dst) = (Be16::new(0xff), Be16::new(0xff));
            }
            _ => (has.tp_src, has.tp_dst, has.tcp_flags) = (Be16::ZERO, Be16::ZERO, Be16::ZERO),
        }
        if !self.is_nd() {
            has.nd_target = [0; 16];
            if !arp {
                (has.arp_sha, has.arp_tha) = ([0; 6], [0; 6]);
            }
        }
        if !matches!(self.key.eth_type.get(), eth_type::MPLS | eth_type::MPLS_MC) {
            (has.mpls_lse, has.mpls_labels) = ([Be32::ZERO; 3], 0);
        }
        if self.key.eth_type.get() != eth_type::NSH {
            (has.nsh_path, has.nsh_context) = (Be32::ZERO, [Be32::ZERO; 4]);
            (has.nsh_flags, has.nsh_ttl, has.nsh_mdtype, has.nsh_np) = (0, 0, 0, 0);
        }
        has
    }
}

/// Whether there is a tag.
pub fn is_present(vlan: Vlan) -> bool {
    vlan.tci.get() & datapath_common::key::VLAN_PRESENT != 0
}

impl Default for Flow {
    fn default() -> Self {
        Self::ZERO
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.words().iter().enumerate().filter(|(_, word)| **word != 0);
        f.debug_map().entries(set.map(|(i, word)| (i, format!("{word:#x}")))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openflow::FieldId;

    #[test]
    fn a_field_is_where_a_match_puts_it() {
        for field in FieldId::all() {
            for bits in [1u128, 0x5a5a_5a5a_5a5a_5a5a_a5a5, u128::MAX].map(|bits| bits & field.full_mask()) {
                let mut fields = MatchFields::default();
                fields.set(field, bits);
                let flow = Flow::from_match(&fields);
                assert_eq!(flow.get(field), bits, "{field}");
                let mut again = Flow::ZERO;
                again.set(field, bits);
                assert_eq!(again, flow, "{field}");
            }
        }
    }

    #[test]
    fn a_deep_field_brings_what_says_that_it_is_there() {
        let mut key = FlowKey::ZERO;
        key.eth_type = Be16::new(eth_type::IPV4);
        key.ip_proto = ip_proto::ICMP;
        let packet = Flow::from_key(&key, OfPort(1));
        let mut mask = Flow::ZERO;
        mask.key.tp_src = Be16::MAX;
        mask.key.ipv6_src = [0xff; 16];
        let mask = mask.datapath_mask(&packet, &packet.present_fields());
        assert_eq!((mask.ip_proto, mask.ip_frag, mask.eth_type), (0xff, 0xff, Be16::MAX));
        assert_eq!(mask.tp_src.get(), 0xff, "an ICMP type has eight bits");
        assert_eq!(mask.ipv6_src, [0; 16], "an IPv4 packet has no IPv6 address");
    }
}
