//! From packet to key: `ovs_flow_key_extract` of the kernel module (`net/openvswitch/flow.c`), for every engine.
//!
//! Malformed headers are the rule here, not the exception: whoever sends a packet chooses its bytes. The module's answers are
//! kept one by one, because a flow installed by userspace must mean the same in every engine. A header that is cut off or lies
//! about its length ends the extraction with the fields from there on zero; only what the module drops (a frame shorter than
//! an Ethernet header, a broken NSH header) is [`Malformed`]. Nothing looks at IPv4's total length.
//!
//! Two walks have a bound that the module doesn't have, because a verifier must see their end: [`MAX_EXT_HEADERS`] IPv6
//! extension headers (a longer chain is treated as one that is cut off) and [`MAX_LABELS`] MPLS labels (likewise).

use crate::be::{Be16, Be32};
use crate::key::{FRAG_FIRST, FRAG_LATER, FRAG_NONE, FlowKey, HOT_WORDS, KEY_WORDS, VLAN_PRESENT, Vlan, word};
use crate::packet::PacketRead;

/// Bytes in front in which [`extract_plain_ipv4`] reads: Ethernet, IPv4 without options, TCP without options.
pub const HEAD: u32 = 54;

#[cfg(not(target_endian = "little"))]
compile_error!("the flow key is built from words as a little-endian machine loads them");

/// IPv6 extension headers that are walked.
pub const MAX_EXT_HEADERS: u32 = 16;
/// MPLS labels that are walked.
pub const MAX_LABELS: u32 = 16;
/// Neighbour discovery options that are walked.
pub const MAX_ND_OPTIONS: u32 = 16;

/// Ethernet types in host order.
pub mod eth_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// Reverse ARP.
    pub const RARP: u16 = 0x8035;
    /// 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad tag.
    pub const QINQ: u16 = 0x88a8;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// MPLS unicast.
    pub const MPLS: u16 = 0x8847;
    /// MPLS multicast.
    pub const MPLS_MC: u16 = 0x8848;
    /// Network service header.
    pub const NSH: u16 = 0x894f;
    /// What an 802.3 frame without SNAP gets (`ETH_P_802_2`).
    pub const NONE: u16 = 0x0004;
}

/// IP protocol numbers.
pub mod ip_proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 hop-by-hop options.
    pub const HOP: u8 = 0;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AUTH: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// No next header.
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DEST: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Where the headers lie, for the actions. Offsets from the Ethernet header, 0 = no such header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Layers {
    /// Network header.
    pub l3: u32,
    /// Transport header: behind a whole IP header of a packet that is no later fragment.
    pub l4: u32,
    /// 1: an IPv6 routing header has segments left, so the destination is not the checksum's.
    pub routing: u32,
    /// How far a walk over options has come.
    pub walk: u32,
}

/// The module drops this packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

pub(crate) const FIRST_6: u64 = 0x0000_ffff_ffff_ffff;

/// Clears what [`extract`] fills, keeping the metadata: for a packet that is extracted again.
#[inline(always)]
pub fn clear_packet_fields(key: &mut FlowKey) {
    let words = key.words_mut();
    clear(words, word::ETH_DST, word::IPV4);
    // The low half of this word is the original direction tuple's.
    words[word::IPV6_LABEL] &= 0xffff_ffff;
    clear(words, word::IPV6_SRC, 25);
}

/// Clears words `from` to `to` one by one: a compiler makes `memset` of anything else, which on some targets is a loop over
/// bytes.
#[inline(always)]
fn clear(words: &mut [u64; KEY_WORDS], from: usize, to: usize) {
    let mut i = from;
    while i <= to {
        volatile_set(&mut words[i], 0);
        i += 1;
    }
}

/// Fills the packet fields of `key`, which must be zero; metadata is the caller's.
#[inline(always)]
pub fn extract<P: PacketRead>(packet: &P, key: &mut FlowKey) -> Result<Layers, Malformed> {
    let mut layers = Layers::default();
    extract_into(packet, key, &mut layers)?;
    Ok(layers)
}

/// As [`extract`], with the layers in the caller's memory. What the walk has found is read back from there: a verifier would
/// otherwise go through all that follows once for each place where a header can begin.
#[inline(always)]
pub fn extract_into<P: PacketRead>(packet: &P, key: &mut FlowKey, layers: &mut Layers) -> Result<(), Malformed> {
    let len = packet.len();
    if len < 14 {
        return Err(Malformed);
    }
    let dst = packet.u64_or_zero(0);
    let src = packet.u64_or_zero(6);
    let (ether_type, l3) = link_layer(packet, key, (src >> 48) as u16)?;
    key.words_mut()[word::ETH_DST] = (dst & FIRST_6) | (u64::from(ether_type) << 48);
    key.words_mut()[word::ETH_SRC] = src & FIRST_6;

    volatile_set(layers, Layers { l3, ..Layers::default() });
    let l3 = volatile_get(&layers.l3);
    match u16::from_be(ether_type) {
        eth_type::IPV4 => ipv4(packet, key, layers),
        eth_type::IPV6 => ipv6(packet, key, layers),
        eth_type::ARP | eth_type::RARP => arp(packet, key, l3),
        eth_type::MPLS | eth_type::MPLS_MC => mpls(packet, key, l3),
        eth_type::NSH => nsh(packet, key, l3)?,
        _ => {}
    }
    Ok(())
}

/// VLAN tags and Ethernet type. `at_12`: the two bytes behind the addresses. Returns the type (memory order) and where the
/// network header begins.
#[inline(always)]
fn link_layer<P: PacketRead>(packet: &P, key: &mut FlowKey, at_12: u16) -> Result<(u16, u32), Malformed> {
    let len = packet.len();
    let mut offset = 12;
    let mut tpid = at_12;

    let accelerated = packet.accelerated_vlan();
    if !accelerated.tpid.is_zero() {
        key.vlan = Vlan { tpid: accelerated.tpid, tci: accelerated.tci | Be16::new(VLAN_PRESENT) };
    } else if is_tag(tpid) && len >= offset + 6 {
        key.vlan = tag(tpid, packet.u16(offset + 2).ok_or(Malformed)?);
        offset += 4;
        tpid = packet.u16(offset).ok_or(Malformed)?;
    }
    // The module looks for an inner tag only behind an outer one.
    if !key.vlan.tpid.is_zero() && is_tag(tpid) && len >= offset + 6 {
        key.cvlan = tag(tpid, packet.u16(offset + 2).ok_or(Malformed)?);
        offset += 4;
        tpid = packet.u16(offset).ok_or(Malformed)?;
    }

    offset += 2;
    if u16::from_be(tpid) >= 0x600 {
        return Ok((tpid, offset));
    }
    // 802.3: the field was a length. LLC with SNAP (AA AA, control, OUI 0) carries an Ethernet type, anything else none.
    if len >= offset + 8 {
        let llc = packet.u64(offset).ok_or(Malformed)?;
        if llc & 0x0000_ffff_ff00_ffff == 0x0000_0000_0000_aaaa {
            let snap_type = (llc >> 48) as u16;
            if u16::from_be(snap_type) >= 0x600 {
                return Ok((snap_type, offset + 8));
            }
            return Ok((eth_type::NONE.to_be(), offset + 8));
        }
    }
    Ok((eth_type::NONE.to_be(), offset))
}

#[inline(always)]
fn is_tag(raw: u16) -> bool {
    raw == eth_type::VLAN.to_be() || raw == eth_type::QINQ.to_be()
}

#[inline(always)]
fn tag(tpid: u16, tci: u16) -> Vlan {
    Vlan { tpid: Be16::from_raw(tpid), tci: Be16::from_raw(tci) | Be16::new(VLAN_PRESENT) }
}

/// What [`plain_ipv4`] has read.
struct Plain {
    /// The hot words of the key; of word 0, which is the engine's, nothing.
    words: [u64; HOT_WORDS],
    /// The transport header follows: the packet is no later fragment.
    l4: bool,
}

/// Where the network header of a plain packet is.
pub(crate) const PLAIN_L3: u32 = 14;
/// Where the transport header is.
pub(crate) const PLAIN_L4: u32 = 34;

/// As [`extract_into`] for what most packets are: IPv4 without options behind an Ethernet header without tags. False, and
/// nothing done, for any other. Where everything lies is known here, so loads from the first [`HEAD`] bytes can be cheap.
#[inline(always)]
pub fn extract_plain_ipv4<P: PacketRead>(head: &P, key: &mut FlowKey, layers: &mut Layers) -> bool {
    let Some(plain) = plain_ipv4(head) else { return false };
    let words = key.words_mut();
    words[word::ETH_DST] = plain.words[word::ETH_DST];
    words[word::ETH_SRC] = plain.words[word::ETH_SRC];
    words[word::IP] = plain.words[word::IP];
    words[word::IPV4] = plain.words[word::IPV4];
    volatile_set(&mut layers.l3, PLAIN_L3);
    volatile_set(&mut layers.l4, if plain.l4 { PLAIN_L4 } else { 0 });
    volatile_set(&mut layers.routing, 0);
    volatile_set(&mut layers.walk, 0);
    true
}

#[inline(always)]
fn plain_ipv4<P: PacketRead>(head: &P) -> Option<Plain> {
    let (src, first) = (head.u64_or_zero(6), head.u64_or_zero(PLAIN_L3));
    let untagged = !head.has_accelerated_vlan() && (src >> 48) as u16 == eth_type::IPV4.to_be();
    if !untagged || first & 0xf != 5 {
        return None;
    }
    let mut words = [0; HOT_WORDS];
    words[word::ETH_DST] = (head.u64_or_zero(0) & FIRST_6) | (u64::from(eth_type::IPV4.to_be()) << 48);
    words[word::ETH_SRC] = src & FIRST_6;
    let header = ipv4_header(head, PLAIN_L3, first);
    words[word::IPV4] = header.addresses;
    words[word::IP] = header.ip.into();
    let l4 = !header.is_later();
    if l4 {
        let transport = transport_header(head, header.proto(), PLAIN_L4, ip_proto::ICMP, || true);
        words[word::IP] |= u64::from(transport.ports) << 32;
        words[word::ETH_SRC] |= transport.flags_in_word();
    }
    Some(Plain { words, l4 })
}

#[inline(always)]
fn ipv4<P: PacketRead>(packet: &P, key: &mut FlowKey, layers: &mut Layers) {
    let l3 = volatile_get(&layers.l3);
    let first = packet.u64_or_zero(l3);
    let header = ((first & 0xf) as u32) * 4;
    if header < 20 || packet.len() < l3 + header {
        return;
    }
    let fields = ipv4_header(packet, l3, first);
    key.words_mut()[word::IPV4] = fields.addresses;
    key.words_mut()[word::IP] = fields.ip.into();
    if !fields.is_later() {
        volatile_set(&mut layers.l4, l3 + header);
        transport(packet, key, volatile_get(&layers.l4), ip_proto::ICMP);
    }
}

/// What an IPv4 header says.
struct Ipv4 {
    /// Word [`word::IPV4`].
    addresses: u64,
    /// The lower half of word [`word::IP`].
    ip: u32,
}

impl Ipv4 {
    #[inline(always)]
    fn proto(&self) -> u8 {
        self.ip as u8
    }
    #[inline(always)]
    fn is_later(&self) -> bool {
        (self.ip >> 24) as u8 == FRAG_LATER
    }
}

/// The fields of a whole IPv4 header that begins with `first`.
#[inline(always)]
fn ipv4_header<P: PacketRead>(packet: &P, l3: u32, first: u64) -> Ipv4 {
    let fragment = u16::from_be((first >> 48) as u16);
    let kind = if fragment & 0x1fff != 0 {
        FRAG_LATER
    } else if fragment & 0x2000 != 0 || packet.is_ufo() {
        FRAG_FIRST
    } else {
        FRAG_NONE
    };
    // Bytes 0–7: version and header length, TOS, total length, id, fragment; 8–11: TTL, protocol, checksum; then addresses.
    let second = packet.u32_or_zero(l3 + 8);
    let (proto, tos, ttl) = ((second >> 8) as u8, (first >> 8) as u8, second as u8);
    Ipv4 { addresses: packet.u64_or_zero(l3 + 12), ip: u32::from_le_bytes([proto, tos, ttl, kind]) }
}

/// Ports, TCP flags, ICMP type and code; all zero where the header is cut off.
///
/// Here and behind [`ipv4_header`] whole words are written: the lookup reads them next, and a load that has to gather what
/// several smaller stores have left waits until these have reached the cache.
#[inline(always)]
fn transport<P: PacketRead>(packet: &P, key: &mut FlowKey, l4: u32, icmp: u8) {
    let transport = transport_header(packet, key.ip_proto, l4, icmp, || true);
    key.words_mut()[word::IP] |= u64::from(transport.ports) << 32;
    key.words_mut()[word::ETH_SRC] |= transport.flags_in_word();
}

/// What a transport header says.
#[derive(Default)]
pub(crate) struct Transport {
    /// Source and destination port in memory order, the source in the low half.
    pub(crate) ports: u32,
    /// In host order.
    pub(crate) tcp_flags: u16,
}

impl Transport {
    /// The TCP flags where word [`word::ETH_SRC`] has them.
    #[inline(always)]
    fn flags_in_word(&self) -> u64 {
        u64::from(self.tcp_flags.to_be()) << 48
    }
}

/// Reads a transport header, of other protocols than TCP only if `ports` are wanted.
#[inline(always)]
pub(crate) fn transport_header<P: PacketRead>(
    packet: &P,
    proto: u8,
    l4: u32,
    icmp: u8,
    ports: impl Fn() -> bool,
) -> Transport {
    let len = packet.len();
    let none = Transport::default();
    if proto == ip_proto::TCP {
        if len < l4 + 20 {
            return none;
        }
        let offset_flags = u16::from_be(packet.u16_or_zero(l4 + 12));
        let header = u32::from(offset_flags >> 12) * 4;
        if header < 20 || len < l4 + header {
            return none;
        }
        let ports = if ports() { packet.u32_or_zero(l4) } else { 0 };
        return Transport { ports, tcp_flags: offset_flags & 0x0fff };
    }
    if !ports() {
        return none;
    }
    if proto == icmp {
        let type_code = if len >= l4 + 8 { packet.u16_or_zero(l4) } else { 0 };
        let ports = u32::from((type_code & 0xff).to_be()) | u32::from((type_code >> 8).to_be()) << 16;
        return Transport { ports, tcp_flags: 0 };
    }
    let header = match proto {
        ip_proto::UDP => 8,
        ip_proto::SCTP => 12,
        _ => return none,
    };
    Transport { ports: if len >= l4 + header { packet.u32_or_zero(l4) } else { 0 }, tcp_flags: 0 }
}

#[inline(always)]
fn arp<P: PacketRead>(packet: &P, key: &mut FlowKey, l3: u32) {
    if packet.len() < l3 + 28 {
        return;
    }
    let head = packet.u64_or_zero(l3);
    // Hardware type Ethernet, protocol IPv4, address lengths 6 and 4.
    if head & FIRST_6 != u64::from_le_bytes([0, 1, 8, 0, 6, 4, 0, 0]) {
        return;
    }
    let (sha, spa) = (packet.u64_or_zero(l3 + 8), packet.u32_or_zero(l3 + 14));
    let (tha, tpa) = (packet.u64_or_zero(l3 + 18), packet.u32_or_zero(l3 + 24));
    let opcode = u16::from_be((head >> 48) as u16);
    key.ip_proto = if opcode <= 0xff { opcode as u8 } else { 0 };
    key.ipv4_src = Be32::from_raw(spa);
    key.ipv4_dst = Be32::from_raw(tpa);
    key.words_mut()[word::ARP_SHA] = sha & FIRST_6;
    key.words_mut()[word::ARP_THA] = tha & FIRST_6;
}

#[inline(always)]
fn mpls<P: PacketRead>(packet: &P, key: &mut FlowKey, l3: u32) {
    let mut count = 0;
    while count < MAX_LABELS {
        let Some(lse) = packet.u32(l3 + count * 4) else { return };
        match count {
            0 => key.mpls_lse[0] = Be32::from_raw(lse),
            1 => key.mpls_lse[1] = Be32::from_raw(lse),
            2 => key.mpls_lse[2] = Be32::from_raw(lse),
            _ => {}
        }
        count += 1;
        // Bottom of stack.
        if u32::from_be(lse) & 0x100 != 0 {
            key.mpls_labels = if count >= 3 { 7 } else { (1 << count) - 1 };
            return;
        }
    }
}

#[inline(always)]
fn nsh<P: PacketRead>(packet: &P, key: &mut FlowKey, l3: u32) -> Result<(), Malformed> {
    let base = packet.u64(l3).ok_or(Malformed)?;
    let bits = u16::from_be(base as u16);
    let length = u32::from(bits & 0x3f) * 4;
    if bits >> 14 != 0 || packet.len() < l3 + length {
        return Err(Malformed);
    }
    key.nsh_flags = ((bits >> 12) & 3) as u8;
    key.nsh_ttl = ((bits >> 6) & 0x3f) as u8;
    key.nsh_mdtype = (base >> 16) as u8;
    key.nsh_np = (base >> 24) as u8;
    key.nsh_path = Be32::from_raw((base >> 32) as u32);
    match key.nsh_mdtype {
        1 => {
            if length != 24 {
                return Err(Malformed);
            }
            key.words_mut()[24] = packet.u64(l3 + 8).ok_or(Malformed)?;
            key.words_mut()[25] = packet.u64(l3 + 16).ok_or(Malformed)?;
            Ok(())
        }
        2 => Ok(()),
        _ => Err(Malformed),
    }
}

#[inline(always)]
fn ipv6<P: PacketRead>(packet: &P, key: &mut FlowKey, layers: &mut Layers) {
    let l3 = volatile_get(&layers.l3);
    if packet.len() < l3 + 40 {
        return;
    }
    let words = key.words_mut();
    words[word::IPV6_SRC] = packet.u64_or_zero(l3 + 8);
    words[word::IPV6_SRC + 1] = packet.u64_or_zero(l3 + 16);
    words[word::IPV6_DST] = packet.u64_or_zero(l3 + 24);
    words[word::IPV6_DST + 1] = packet.u64_or_zero(l3 + 32);
    let first = packet.u64_or_zero(l3);
    let flow = u32::from_be(first as u32);
    key.ip_tos = (flow >> 20) as u8;
    key.ipv6_label = Be32::new(flow & 0x000f_ffff);
    key.ip_ttl = (first >> 56) as u8;
    key.ip_proto = ip_proto::NONE;

    let next = (first >> 48) as u8;
    if !is_extension(next) {
        key.ip_proto = next;
        volatile_set(&mut layers.l4, l3 + 40);
    } else {
        extension_bits(packet, key, layers, next);
        walk_extensions(packet, key, layers, next);
    }
    let l4 = volatile_get(&layers.l4);
    if l4 == 0 {
        return;
    }
    if packet.is_ufo() {
        key.ip_frag = FRAG_FIRST;
    }
    transport(packet, key, l4, ip_proto::ICMPV6);
    if key.ip_proto == ip_proto::ICMPV6 {
        neighbour_discovery(packet, key, layers);
    }
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(
        next,
        ip_proto::HOP | ip_proto::ROUTING | ip_proto::FRAGMENT | ip_proto::AUTH | ip_proto::NONE | ip_proto::DEST
    )
}

/// `ipv6_find_hdr` for the last header: protocol, fragment type and transport offset. Leaves `layers.l4` 0 where the chain is
/// broken or the packet is a later fragment.
#[inline(always)]
fn walk_extensions<P: PacketRead>(packet: &P, key: &mut FlowKey, layers: &mut Layers, first: u8) {
    let mut next = first;
    volatile_set(&mut layers.walk, layers.l3 + 40);
    let mut i = 0;
    while i < MAX_EXT_HEADERS {
        i += 1;
        let offset = volatile_get(&layers.walk);
        if next == ip_proto::NONE || !is_extension(next) {
            key.ip_proto = next;
            volatile_set(&mut layers.l4, offset);
            return;
        }
        let Some(head) = packet.u16(offset) else { return };
        let (following, length) = (head as u8, u32::from(head >> 8));
        let step = match next {
            ip_proto::FRAGMENT => {
                key.ip_frag = FRAG_FIRST;
                let Some(fragment) = packet.u16(offset + 2) else { return };
                if u16::from_be(fragment) & !7 != 0 {
                    // A later fragment of a packet whose fragmentable part begins with an extension header is an error
                    // to the module, and stays "first".
                    if following == ip_proto::NONE || !is_extension(following) {
                        key.ip_frag = FRAG_LATER;
                        key.ip_proto = ip_proto::FRAGMENT;
                    }
                    return;
                }
                8
            }
            ip_proto::AUTH => (length + 2) * 4,
            ip_proto::ROUTING => {
                let Some(routing) = packet.u32(offset) else { return };
                if routing >> 24 != 0 {
                    layers.routing = 1;
                }
                (length + 1) * 8
            }
            _ => (length + 1) * 8,
        };
        volatile_set(&mut layers.walk, offset + step);
        next = following;
    }
}

/// Bits of `FlowKey::ipv6_exthdrs` (OpenFlow 1.5 `OFPIEH_*`).
mod ieh {
    pub(super) const NONEXT: u16 = 1 << 0;
    pub(super) const AUTH: u16 = 1 << 2;
    pub(super) const DEST: u16 = 1 << 3;
    pub(super) const FRAG: u16 = 1 << 4;
    pub(super) const ROUTER: u16 = 1 << 5;
    pub(super) const HOP: u16 = 1 << 6;
    pub(super) const UNREP: u16 = 1 << 7;
    pub(super) const UNSEQ: u16 = 1 << 8;
}

/// Which extension headers there are, and whether repeated or out of the order that RFC 8200 recommends. The module steps by
/// the generic length here even over fragment and authentication headers.
///
/// What is known so far lies in the key and is read back from there, with the number of destination options headers above
/// the bits: a verifier follows constants in registers into every combination of headers, and knows nothing of memory.
#[inline(always)]
fn extension_bits<P: PacketRead>(packet: &P, key: &mut FlowKey, layers: &mut Layers, first: u8) {
    const DESTINATION: u16 = 1 << 12;
    let known = &mut key.ipv6_exthdrs;
    let mut next = first;
    volatile_set(&mut layers.walk, layers.l3 + 40);
    let mut i = 0;
    while i < MAX_EXT_HEADERS {
        i += 1;
        let bits = volatile_get(known);
        let destinations = bits / DESTINATION;
        let late = if destinations >= 2 { ieh::UNSEQ } else { 0 };
        let seen = bits & (DESTINATION - 1);
        let add = match next {
            ip_proto::NONE => {
                volatile_set(known, bits | ieh::NONEXT);
                break;
            }
            ip_proto::HOP => repeated(seen, ieh::HOP) | if seen == 0 { ieh::HOP } else { ieh::UNSEQ },
            ip_proto::DEST => {
                let add = match destinations {
                    0 => ieh::DEST | misplaced(seen, ieh::HOP),
                    1 => misplaced(seen, ieh::HOP | ieh::DEST | ieh::ROUTER | ieh::FRAG | ieh::AUTH),
                    _ => ieh::UNREP,
                };
                // Two are enough to know.
                if destinations < 2 { add + DESTINATION } else { add }
            }
            ip_proto::ROUTING => {
                ieh::ROUTER
                    | late
                    | repeated(seen, ieh::ROUTER)
                    | misplaced_now(seen, ieh::ROUTER, ieh::HOP | ieh::DEST)
            }
            ip_proto::FRAGMENT => {
                let before = ieh::HOP | ieh::DEST | ieh::ROUTER;
                ieh::FRAG | late | repeated(seen, ieh::FRAG) | misplaced_now(seen, ieh::FRAG, before)
            }
            ip_proto::AUTH => {
                let before = ieh::HOP | ieh::DEST | ieh::ROUTER | ieh::FRAG;
                ieh::AUTH | late | repeated(seen, ieh::AUTH) | misplaced_now(seen, ieh::AUTH, before)
            }
            _ => break,
        };
        // The count of destination options is added, everything else united.
        volatile_set(
            known,
            ((bits | add) & (DESTINATION - 1)) | ((bits & !(DESTINATION - 1)) + (add & !(DESTINATION - 1))),
        );
        let offset = volatile_get(&layers.walk);
        let Some(head) = packet.u16(offset) else { break };
        next = head as u8;
        volatile_set(&mut layers.walk, offset + (u32::from(head >> 8) + 1) * 8);
    }
    key.ipv6_exthdrs = volatile_get(&key.ipv6_exthdrs) & (DESTINATION - 1);
}

#[inline(always)]
fn repeated(seen: u16, bit: u16) -> u16 {
    if seen & bit != 0 { ieh::UNREP } else { 0 }
}

/// Out of sequence: something other than `before` was seen.
#[inline(always)]
fn misplaced(seen: u16, before: u16) -> u16 {
    if seen & !(before | ieh::UNREP) != 0 { ieh::UNSEQ } else { 0 }
}

/// As [`misplaced`], with the repetition of `bit` counting as such too.
#[inline(always)]
fn misplaced_now(seen: u16, bit: u16, before: u16) -> u16 {
    misplaced(seen, before) | if seen & bit != 0 { ieh::UNSEQ } else { 0 }
}

/// Reads memory that a compiler or verifier must not know the contents of.
#[inline(always)]
fn volatile_get<T: Copy>(from: &T) -> T {
    // SAFETY: a reference is readable.
    unsafe { core::ptr::read_volatile(from) }
}

/// Writes such memory.
#[inline(always)]
fn volatile_set<T: Copy>(to: &mut T, value: T) {
    // SAFETY: a unique reference is writable.
    unsafe { core::ptr::write_volatile(to, value) };
}

/// Target and link-layer address options of neighbour solicitations and advertisements (RFC 4861).
#[inline(always)]
fn neighbour_discovery<P: PacketRead>(packet: &P, key: &mut FlowKey, layers: &mut Layers) {
    const SOLICITATION: u16 = 135;
    const ADVERTISEMENT: u16 = 136;
    const SOURCE_OPTION: u8 = 1;
    const TARGET_OPTION: u8 = 2;
    let kind = key.tp_src.get();
    if !key.tp_dst.is_zero() || !(kind == SOLICITATION || kind == ADVERTISEMENT) {
        return;
    }
    let (len, l4) = (packet.len(), volatile_get(&layers.l4));
    if len < l4 + 24 {
        return;
    }
    let (t0, t1) = (packet.u64_or_zero(l4 + 8), packet.u64_or_zero(l4 + 16));
    let words = key.words_mut();
    let mut valid = true;
    volatile_set(&mut layers.walk, l4 + 24);
    let mut i = 0;
    while i < MAX_ND_OPTIONS {
        i += 1;
        // Read back, as what was seen is below: else the verifier follows every way to every place.
        let offset = volatile_get(&layers.walk);
        if len < offset + 8 {
            break;
        }
        let Some(option) = packet.u64(offset) else { break };
        let length = ((option >> 8) as u32 & 0xff) * 8;
        if length == 0 || length > len - offset {
            break;
        }
        let kind = option as u8;
        if length == 8 && (kind == SOURCE_OPTION || kind == TARGET_OPTION) {
            // An address given twice makes the whole message invalid. What was seen is read back from the key, for the reason
            // given at `extension_bits`.
            let word = if kind == SOURCE_OPTION { &mut words[word::ARP_SHA] } else { &mut words[word::ARP_THA] };
            let seen = volatile_get(word);
            if seen & FIRST_6 != 0 {
                valid = false;
                break;
            }
            volatile_set(word, seen | (option >> 16));
        }
        volatile_set(&mut layers.walk, offset + length);
    }
    if valid {
        words[word::ND_TARGET] = t0;
        words[word::ND_TARGET + 1] = t1;
    } else {
        words[word::ARP_SHA] &= !FIRST_6;
        words[word::ARP_THA] &= !FIRST_6;
    }
}

#[cfg(test)]
mod tests;
