//! Programs that need no interpreter.
//!
//! Most flows send the packet to one port, drop it, or look it up again, perhaps after they have rewritten Ethernet addresses,
//! IPv4 addresses, TTL or ports, pushed a tag or popped one. What such a program does is said once more in a form that runs
//! straight through ([`Straight`]): which bits of which words become what, and where the packet goes then. It lies in the
//! flow's slot beside the operations, which hold the whole program all the same: an engine that meets a packet that the
//! straight form doesn't fit (a header that isn't where most packets have it, a checksum that the device is to complete) runs
//! the operations instead.
//!
//! [`rewrite`] changes the packet in place, with one look at each checksum. What it leaves is what
//! [`set_word`](crate::apply::set_word) leaves, operation by operation; a test compares them.

use crate::extract::{HEAD, Layers, eth_type, ip_proto};
use crate::key::{FRAG_LATER, HOT_WORDS, word};
use crate::op::{Op, kind};
use crate::packet::PacketHead;

/// [`Straight::flags`]: send the packet to port [`Straight::arg`].
pub const OUTPUT: u32 = 1;
/// [`Straight::flags`]: drop the packet.
pub const DROP: u32 = 1 << 1;
/// [`Straight::flags`]: look the packet up again with recirculation id [`Straight::arg`].
pub const RECIRC: u32 = 1 << 2;
/// [`Straight::flags`]: before that, rewrite as [`Straight::rewrite`] says.
pub const REWRITE: u32 = 1 << 3;
/// [`Straight::flags`]: after that, push the tag [`Straight::vlan`]. Only in front of an output.
pub const PUSH_VLAN: u32 = 1 << 4;
/// [`Straight::flags`]: after that, pop the outer tag. Only in front of an output.
pub const POP_VLAN: u32 = 1 << 5;

/// Words of the key that [`Straight::rewrite`] can change, in its order.
pub const WORDS: [usize; 4] = [word::ETH_DST, word::ETH_SRC, word::IP, word::IPV4];

/// A program that runs straight through.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Straight {
    /// What it does ([`OUTPUT`], …); 0: the program is for the interpreter.
    pub flags: u32,
    /// Datapath port or recirculation id.
    pub arg: u32,
    /// For each of [`WORDS`] its value and its mask, as in [`OpKind::SetWord`](crate::OpKind::SetWord).
    pub rewrite: [u64; 8],
    /// As the operand of [`OpKind::PushVlan`](crate::OpKind::PushVlan).
    pub vlan: u32,
    /// Unused, zero.
    pub reserved: u32,
}

impl Straight {
    /// The straight form of a program.
    pub fn of(ops: &[Op]) -> Self {
        Self::find(ops).unwrap_or_default()
    }

    fn find(ops: &[Op]) -> Option<Self> {
        let mut straight = Self::default();
        let Some((last, before)) = ops.split_last() else { return Some(Self { flags: DROP, ..straight }) };
        for op in before {
            match op.kind {
                kind::SET_WORD if straight.flags & (PUSH_VLAN | POP_VLAN) == 0 => straight.add(op)?,
                kind::PUSH_VLAN if straight.flags & (PUSH_VLAN | POP_VLAN) == 0 => {
                    straight.flags |= PUSH_VLAN;
                    straight.vlan = op.arg;
                }
                kind::POP_VLAN if straight.flags & (PUSH_VLAN | POP_VLAN) == 0 => straight.flags |= POP_VLAN,
                _ => return None,
            }
        }
        let tag = straight.flags & (PUSH_VLAN | POP_VLAN) != 0;
        straight.flags |= match last.kind {
            kind::OUTPUT if last.is_last() => OUTPUT,
            // A tag moves the headers, which the next lookup has to find again.
            kind::RECIRC if last.is_last() && !tag => RECIRC,
            kind::DROP | kind::END if before.is_empty() => DROP,
            _ => return None,
        };
        straight.arg = last.arg;
        Some(straight)
    }

    /// One more set. Two sets of the same bits are none: that the second is of what the first has left says more than one mask.
    fn add(&mut self, op: &Op) -> Option<()> {
        let at = WORDS.iter().position(|word| *word == op.arg as usize)?;
        let [value, mask] = self.rewrite.get_mut(2 * at..2 * at + 2)? else { return None };
        if *mask & op.b != 0 {
            return None;
        }
        *value |= op.a;
        *mask |= op.b;
        self.flags |= REWRITE;
        Some(())
    }
}

/// What [`rewrite`] returns where it has not changed anything, because the straight form doesn't fit the packet.
pub const UNFIT: u64 = u64::MAX;

/// Offsets of what an untagged IPv4 packet without options has.
mod at {
    pub(super) const L3: u32 = 14;
    pub(super) const TOS: u32 = L3 + 1;
    pub(super) const LENGTH: u32 = L3 + 2;
    pub(super) const TTL: u32 = L3 + 8;
    pub(super) const L3_SUM: u32 = L3 + 10;
    pub(super) const ADDRESSES: u32 = L3 + 12;
    pub(super) const L4: u32 = L3 + 20;
    pub(super) const UDP_SUM: u32 = L4 + 6;
    pub(super) const TCP_SUM: u32 = L4 + 16;
}

const _: () = assert!(at::TCP_SUM + 4 == HEAD);

/// Rewrites the first [`HEAD`] bytes of a packet, and the words of its key. `rewrite` is [`Straight::rewrite`]. A layer-4
/// checksum that the device is to complete is left alone, and so is all the rest: [`UNFIT`].
///
/// Such a checksum holds the sum of the pseudo-header, and nothing else says so everywhere: one that is this sum by chance is
/// taken for one, which costs time only. Super-packets, which need not count their length in, are the caller's to keep away.
///
/// Otherwise returns what a sum that the device has made over the whole packet (`CHECKSUM_COMPLETE`) changes by, in the lower
/// half and in one's complement: 0 unless addresses changed that a layer-4 checksum covers too.
#[inline(always)]
pub fn rewrite<H: PacketHead>(head: &mut H, words: &mut [u64; HOT_WORDS], layers: &Layers, rewrite: &[u64; 8]) -> u64 {
    let picked = |old: u64, i: usize| (old & !rewrite[2 * i + 1]) | rewrite[2 * i];
    let (dst, src) = (picked(words[word::ETH_DST], 0), picked(words[word::ETH_SRC], 1));
    let mut complete = 0;
    if rewrite[5] | rewrite[7] != 0 {
        let (old_ip, old) = (words[word::IP], words[word::IPV4]);
        let (new_ip, new) = (picked(old_ip, 2), picked(old, 3));
        complete = rewrite_ipv4(head, words[word::ETH_DST], layers, [old_ip, new_ip], [old, new]);
        if complete == UNFIT {
            return UNFIT;
        }
        words[word::IP] = new_ip;
        words[word::IPV4] = new;
    }
    // Twelve bytes of addresses; the words' upper two are others' (Ethernet type, TCP flags).
    head.put_u64(0, (dst & 0x0000_ffff_ffff_ffff) | src << 48);
    head.put_u32(8, (src >> 16) as u32);
    words[word::ETH_DST] = dst;
    words[word::ETH_SRC] = src;
    complete
}

/// `ip`, `addresses`: words `IP` and `IPV4` as they were and as they are to be.
#[inline(always)]
fn rewrite_ipv4<H: PacketHead>(
    head: &mut H,
    eth_dst: u64,
    layers: &Layers,
    [old_ip, new_ip]: [u64; 2],
    [old, new]: [u64; 2],
) -> u64 {
    let (l3, l4) = (layers.l3, layers.l4);
    // A header that isn't whole has left the fields of the key zero: they are not what the packet has.
    let later = l4 == 0 && (old_ip >> 24) as u8 == FRAG_LATER;
    let elsewhere = l3 != at::L3 || !(l4 == at::L4 || later);
    // Of the lower half all but TOS and TTL is out of reach: the protocol, which only ARP's sets change.
    let odd = (old_ip ^ new_ip) & 0xff00_00ff != 0;
    if (eth_dst >> 48) as u16 != eth_type::IPV4.to_be() || elsewhere || odd {
        return UNFIT;
    }
    let (old_ports, new_ports) = (old_ip >> 32, new_ip >> 32);
    // One's complement: all that the addresses add to a sum.
    let addresses = low(!old) + high(!old) + low(new) + high(new);
    let covered = old_ports != new_ports || old != new;

    let proto = old_ip as u8;
    let is_udp = proto == ip_proto::UDP;
    let mut complete = 0;
    if covered && l4 != 0 && (is_udp || proto == ip_proto::TCP) {
        let sum = if is_udp { head.u16_or_zero(at::UDP_SUM) } else { head.u16_or_zero(at::TCP_SUM) };
        let length = u16::from_be(head.u16_or_zero(at::LENGTH)).wrapping_sub(20).to_be();
        let pseudo = low(old) + high(old) + u64::from(u16::from(proto).to_be()) + u64::from(length);
        // Equal but for the two representations of zero.
        if fold(pseudo + u64::from(!sum) + 0xffff_0000) == 0xffff {
            return UNFIT;
        }
        if !(is_udp && sum == 0) {
            let new_sum = !fold(u64::from(!sum) + 0xffff_0000 + addresses + low(!old_ports) + new_ports);
            if is_udp {
                head.put_u16(at::UDP_SUM, if new_sum == 0 { 0xffff } else { new_sum });
            } else {
                head.put_u16(at::TCP_SUM, new_sum);
            }
            if old != new {
                complete = fold_32(low(old) + high(old) + low(!new) + high(!new));
            }
        }
        // Where a TCP header is too short to be one the key has no ports, and the packet keeps what is in their place.
        if old_ports != new_ports {
            head.put_u32(at::L4, new_ports as u32);
        }
    } else if old_ports != new_ports {
        return UNFIT;
    }

    let (old_rest, new_rest) = (tos_ttl(old_ip), tos_ttl(new_ip));
    if old_rest != new_rest || old != new {
        let sum = head.u16_or_zero(at::L3_SUM);
        head.put_u16(at::L3_SUM, !fold(u64::from(!sum) + 0xffff_0000 + addresses + low(!old_rest) + new_rest));
        head.put_u8(at::TOS, (new_ip >> 8) as u8);
        head.put_u8(at::TTL, (new_ip >> 16) as u8);
        head.put_u64(at::ADDRESSES, new);
    }
    complete
}

#[inline(always)]
fn low(word: u64) -> u64 {
    word & 0xffff_ffff
}

#[inline(always)]
fn high(word: u64) -> u64 {
    word >> 32
}

/// What TOS and TTL add to a header's sum: the one is the second byte of its 16 bits, the other the first.
#[inline(always)]
fn tos_ttl(ip: u64) -> u64 {
    (ip & 0xff00) + (ip >> 16 & 0xff)
}

/// A one's complement sum in 16 bits: 0 only of 0.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = low(sum) + high(sum);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Likewise in 32 bits.
#[inline(always)]
fn fold_32(sum: u64) -> u64 {
    let sum = low(sum) + high(sum);
    low(low(sum) + high(sum))
}

#[cfg(test)]
mod tests;
