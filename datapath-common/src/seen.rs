//! What a specialised program reads of a packet.
//!
//! A specialised program hashes and compares what some flow reads, and nothing else ([`needs`](crate::needs)). So it doesn't make a key of
//! the packet: it loads words as the packet has them, of which some bits belong to something else, and leaves these out where it
//! hashes and compares.

use crate::extract::{FIRST_6, PLAIN_L3, PLAIN_L4, eth_type, ip_proto, transport_header};
use crate::key::{HOT_WORDS, word};
use crate::needs::{ETH_SRC, IP, IP_BITS, IPV4, L4, REWRITE, Served};
use crate::packet::PacketRead;

/// A packet that is IPv4 without options behind an Ethernet header without tags, and no fragment. What isn't served is anything: a zero in
/// its place would cost an instruction, and often a word of the stack.
#[derive(Clone, Copy)]
pub struct Seen {
    /// Word [`word::IN_PORT`].
    pub port: u64,
    /// The Ethernet destination, and two bytes that are not.
    eth_dst: u64,
    /// The Ethernet source likewise.
    eth_src: u64,
    /// Word [`word::IP`].
    ip: u64,
    /// Word [`word::IPV4`].
    ipv4: u64,
    /// In host order.
    pub tcp_flags: u16,
}

/// Where an IPv4 header, whose first eight bytes were loaded as they are, says that it has options, or that the packet is a fragment.
const ODD: u64 = 0xff3f << 48 | 0xf;

impl Seen {
    /// Reads of a packet of `port` what a program that serves this needs; the TCP flags in any case. `None`: it is of another kind.
    #[inline(always)]
    pub fn read<P: PacketRead>(head: &P, port: u32, serves: impl Served) -> Option<Self> {
        if head.has_accelerated_vlan() || head.u16_or_zero(12) != eth_type::IPV4.to_be() {
            return None;
        }
        let first = head.u64_or_zero(PLAIN_L3);
        if first & ODD != 5 || head.is_ufo() {
            return None;
        }
        let eth_dst = head.u64_or_zero(0);
        let eth_src = if serves.any::<{ ETH_SRC | REWRITE }>(first) { head.u64_or_zero(6) } else { first };
        let ipv4 = if serves.any::<{ IPV4 | REWRITE }>(first) { head.u64_or_zero(PLAIN_L3 + 12) } else { first };
        let proto = head.u8_or_zero(PLAIN_L3 + 9);
        let transport = transport_header(head, proto, PLAIN_L4, ip_proto::ICMP, || serves.any::<L4>(first));
        let mut ip = first;
        if serves.any::<{ IP | L4 | REWRITE }>(first) {
            let ttl = u64::from(head.u8_or_zero(PLAIN_L3 + 8));
            let mut word = first & 0xff00 | u64::from(proto) | ttl << 16;
            if serves.any::<L4>(first) {
                word |= u64::from(transport.ports) << 32;
            }
            ip = word;
        }
        Some(Self { port: port.into(), eth_dst, eth_src, ip, ipv4, tcp_flags: transport.tcp_flags })
    }

    /// Its [`hash`].
    #[inline(always)]
    pub fn hash(&self, serves: impl Served) -> u64 {
        mix(self.port, self.eth_dst, self.eth_src, self.ip, self.ipv4, serves)
    }

    /// Whether it is a packet of a flow that has needs, all of them served: `key` are the first words of the slot's key, `mask` those of
    /// its mask but the first. What isn't served is not compared, for no mask reads it.
    #[inline(always)]
    pub fn matches(&self, key: &[u64; HOT_WORDS], mask: &[u64; HOT_WORDS - 1], serves: impl Served) -> bool {
        let differs = |word: u64, i: usize| (word & mask[i - 1]) ^ key[i];
        // Neither the packet has a tag nor the flow, and both are IPv4.
        let mut diff = self.port ^ key[word::IN_PORT];
        diff |= differs(self.eth_dst, word::ETH_DST) << 16;
        if serves.any::<ETH_SRC>(diff) {
            diff |= differs(self.eth_src, word::ETH_SRC) << 16;
        }
        if serves.any::<L4>(diff) {
            diff |= differs(u64::from(self.tcp_flags.to_be()) << 48, word::ETH_SRC) >> 48;
        }
        // The fragment type is in this word, and every flow may read it; the packet has none.
        if serves.any::<{ IP | L4 }>(diff) {
            diff |= differs(self.ip, word::IP);
        } else {
            diff |= key[word::IP];
        }
        if serves.any::<IPV4>(diff) {
            diff |= differs(self.ipv4, word::IPV4);
        }
        diff == 0
    }

    /// The first words of its key, of which only those are right that are served; of a program that serves rewriting all but ports.
    #[inline(always)]
    pub fn words(&self) -> [u64; HOT_WORDS] {
        let mut words = [0; HOT_WORDS];
        words[word::IN_PORT] = self.port;
        words[word::ETH_DST] = (self.eth_dst & FIRST_6) | u64::from(eth_type::IPV4.to_be()) << 48;
        words[word::ETH_SRC] = (self.eth_src & FIRST_6) | u64::from(self.tcp_flags.to_be()) << 48;
        (words[word::IP], words[word::IPV4]) = (self.ip, self.ipv4);
        words
    }
}

/// Factor of the word of `in_port` and `recirc_id` in hashes for the flow cache.
pub const PORT_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash by which a specialised program finds its place in the flow cache, of the words of a key: of what some flow reads alone, so
/// packets that differ in nothing else share a place. Whoever makes it collide loses time, not packets. Its upper bits are the best ones.
#[inline(always)]
pub fn hash(words: &[u64; HOT_WORDS], serves: impl Served) -> u64 {
    let [port, eth_dst, eth_src, _, ip, ipv4] = *words;
    mix(port, eth_dst, eth_src, ip, ipv4, serves)
}

#[inline(always)]
fn mix(port: u64, eth_dst: u64, eth_src: u64, ip: u64, ipv4: u64, serves: impl Served) -> u64 {
    let mut h = port.wrapping_mul(PORT_FACTOR);
    h = serves.add(h, (eth_dst << 16).wrapping_mul(0xc2b2_ae3d_27d4_eb4f));
    if serves.any::<ETH_SRC>(h) {
        h = serves.add(h, (eth_src << 16).wrapping_mul(0x1656_67b1_9e37_79f9));
    }
    if serves.any::<L4>(h) {
        h = serves.add(h, (ip >> 32).wrapping_mul(0xff51_afd7_ed55_8ccd));
    }
    if serves.any::<IP>(h) {
        h = serves.add(h, (ip & IP_BITS).wrapping_mul(0x27d4_eb2f_1656_67c5));
    }
    if serves.any::<IPV4>(h) {
        h = serves.add(h, ipv4.wrapping_mul(0xc4ce_b9fe_1a85_ec53));
    }
    h
}

/// What is added to [`hash`], and to that of the general program, where nothing of the key but the recirculation id changes.
#[inline(always)]
pub fn rehash(in_port_word: u64, recirc_id: u32) -> u64 {
    u64::from(recirc_id).wrapping_sub(in_port_word >> 32).wrapping_mul(PORT_FACTOR << 32)
}
