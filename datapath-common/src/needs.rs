//! What a flow needs of a specialised program.
//!
//! A specialised program finishes what most packets are (IPv4 without options behind an Ethernet header without tags) and hands
//! every other packet over to the general one. It is loaded for what the flows need at the time: fields that no mask reads it
//! doesn't hash or compare, and actions that no flow has it hasn't. What a flow needs is written in its slot, so a program that
//! finds a flow which needs more than it serves hands the packet over, whatever userspace is doing.

use crate::extract::eth_type;
use crate::key::{FRAG_LATER, FlowKey};
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

/// What a program serves. Each question is put where its answer is used: a program that is loaded for it has the answer in its code.
pub trait Served: Copy {
    /// Whether it serves one of these needs. `at_hand`: anything that is in use there, of which a program makes its question.
    fn any<const NEEDS: u16>(self, at_hand: u64) -> bool;
    /// The sum. (Who asks many questions wants the terms added one by one where they are, not all in the end.)
    fn add(self, sum: u64, term: u64) -> u64;
}

/// As bits.
impl Served for u16 {
    #[inline(always)]
    fn any<const NEEDS: u16>(self, _at_hand: u64) -> bool {
        self & NEEDS != 0
    }
    #[inline(always)]
    fn add(self, sum: u64, term: u64) -> u64 {
        sum.wrapping_add(term)
    }
}

/// The bits of which a flow's needs have [`FITS`] alone, if a program that serves this can run it.
pub const fn unserved(serves: u16) -> u16 {
    FITS | (ALL & !serves)
}

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

/// Bits of word [`word::ETH_SRC`](crate::key::word) that are the address; above them are the TCP flags.
const ADDRESS: u64 = 0x0000_ffff_ffff_ffff;
/// Bits of word [`word::IP`](crate::key::word) that are protocol, TOS and TTL.
pub(crate) const IP_BITS: u64 = 0x00ff_ffff;
/// Those that are the ports.
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
    needs & unserved(serves) == FITS
}

#[cfg(test)]
mod tests;
