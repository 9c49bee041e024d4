//! What a flow needs of a specialised program.
//!
//! A specialised program finishes what most packets are (IPv4 without options behind an Ethernet header without tags) and hands
//! every other packet over to the general one. It is loaded for what the flows need at the time: fields that no mask reads it
//! doesn't hash or compare, and actions that no flow has it hasn't. What a flow needs is written in its slot, so a program that
//! finds a flow which needs more than it serves hands the packet over, whatever userspace is doing.

use crate::extract::eth_type;
use crate::key::{FRAG_LATER, FlowKey, HOT_WORDS, word};
use crate::mask::MaskEntry;
use crate::straight::{self, Straight};

/// A specialised program can run the flow, if it serves what the other bits say.
pub const FITS: u16 = 1 << 15;
/// Ethernet source.
pub const ETH_SRC: u16 = 1;
/// IP protocol, TOS, TTL.
pub const IP: u16 = 1 << 1;
/// IPv4 addresses.
pub const IPV4: u16 = 1 << 2;
/// Ports, ICMP type and code, TCP flags.
pub const L4: u16 = 1 << 3;
/// A rewrite in front of the output.
pub const REWRITE: u16 = 1 << 4;
/// Recirculation.
pub const RECIRC: u16 = 1 << 5;
/// A drop.
pub const DROP: u16 = 1 << 6;
/// Everything that a specialised program can serve.
pub const ALL: u16 = (1 << 7) - 1;

/// All needs with their names.
pub const NAMES: [(u16, &str); 7] = [
    (ETH_SRC, "eth_src"),
    (IP, "ip"),
    (IPV4, "ipv4"),
    (L4, "l4"),
    (REWRITE, "set"),
    (RECIRC, "recirc"),
    (DROP, "drop"),
];

/// Bits of word [`word::ETH_SRC`] that are the address; above them are the TCP flags.
const ADDRESS: u64 = 0x0000_ffff_ffff_ffff;
/// Bits of word [`word::IP`] that are protocol, TOS and TTL.
const IP_BITS: u64 = 0x00ff_ffff;
/// Bits of word [`word::IP`] that are the ports.
const PORT_BITS: u64 = 0xffff_ffff << 32;

/// What the flow with this masked key needs; 0 if no specialised program can run it. `program`: the straight form of its program.
pub fn of(key: &FlowKey, mask: &MaskEntry, program: &Straight) -> u16 {
    let [all, eth_dst, eth_src, _, ip, ipv4] = mask.hot;
    let plain =
        key.eth_type.get() == eth_type::IPV4 && key.vlan == Default::default() && key.cvlan == Default::default();
    // The fragment type of a packet that can't be would make the flow one that is never met.
    let fits = all == u64::MAX && eth_dst >> 48 == 0xffff && plain && mask.n_cold == 0 && key.ip_frag <= FRAG_LATER;
    let actions = match program.flags {
        straight::OUTPUT => 0,
        straight::DROP => DROP,
        straight::RECIRC => RECIRC,
        flags if flags == straight::OUTPUT | straight::REWRITE => REWRITE,
        _ => return 0,
    };
    if !fits {
        return 0;
    }
    let reads = |bits: u64, need: u16| if bits != 0 { need } else { 0 };
    FITS | actions
        | reads(eth_src & ADDRESS, ETH_SRC)
        | reads(ip & IP_BITS, IP)
        | reads(ipv4, IPV4)
        // Ports of which a rewrite changes some bits must have been read.
        | reads((ip | program.rewrite[5]) & PORT_BITS | eth_src & !ADDRESS, L4)
}

/// Whether a specialised program that serves this can run a flow that needs this.
#[inline(always)]
pub const fn are_served(needs: u16, serves: u16) -> bool {
    needs & (FITS | (ALL & !serves)) == FITS
}

/// Factor of the word of `in_port` and `recirc_id` in hashes for the flow cache.
pub const PORT_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash by which a specialised program finds its place in the flow cache: of what some flow reads alone, so packets that
/// differ in nothing else share a place. Whoever makes it collide loses time, not packets. Its upper bits are the best ones.
#[inline(always)]
pub fn hash(words: &[u64; HOT_WORDS], serves: u16) -> u64 {
    let mut h = words[word::IN_PORT].wrapping_mul(PORT_FACTOR);
    h = h.wrapping_add(words[word::ETH_DST].wrapping_mul(0xc2b2_ae3d_27d4_eb4f));
    if serves & ETH_SRC != 0 {
        h = h.wrapping_add((words[word::ETH_SRC] << 16).wrapping_mul(0x1656_67b1_9e37_79f9));
    }
    if serves & L4 != 0 {
        h = h.wrapping_add((words[word::IP] >> 32).wrapping_mul(0xff51_afd7_ed55_8ccd));
    }
    if serves & IP != 0 {
        h = h.wrapping_add((words[word::IP] & IP_BITS).wrapping_mul(0x27d4_eb2f_1656_67c5));
    }
    if serves & IPV4 != 0 {
        h = h.wrapping_add(words[word::IPV4].wrapping_mul(0xc4ce_b9fe_1a85_ec53));
    }
    h
}

/// What is added to [`hash`], and to that of the general program, where nothing of the key but the recirculation id changes.
#[inline(always)]
pub fn rehash(in_port_word: u64, recirc_id: u32) -> u64 {
    u64::from(recirc_id).wrapping_sub(in_port_word >> 32).wrapping_mul(PORT_FACTOR << 32)
}

/// Whether a packet is the one of a flow that has needs: `key` are the first words of the slot's key, `mask` those of its mask
/// but the first. Words that the program doesn't serve are not compared: the caller knows that no mask reads them.
#[inline(always)]
pub fn matches(words: &[u64; HOT_WORDS], key: &[u64; HOT_WORDS], mask: &[u64; HOT_WORDS - 1], serves: u16) -> bool {
    let differs = |i: usize| (words[i] & mask[i - 1]) ^ key[i];
    // Neither the packet has a tag nor the flow.
    let mut diff = words[word::IN_PORT] ^ key[word::IN_PORT];
    diff |= differs(word::ETH_DST);
    // The fragment type is in this word, and every flow may read it.
    diff |= differs(word::IP);
    if serves & (ETH_SRC | L4) != 0 {
        diff |= differs(word::ETH_SRC);
    }
    if serves & IPV4 != 0 {
        diff |= differs(word::IPV4);
    }
    diff == 0
}

#[cfg(test)]
mod tests;
