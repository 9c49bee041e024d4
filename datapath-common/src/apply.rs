//! What a set action does to a packet: `execute_set_action` of the kernel module (`net/openvswitch/actions.c`).
//!
//! A set is expressed on a word of the key: bits `mask` become `value`, in the key and in the packet. The word says which
//! fields it holds, the key says which header they lie in. Checksums follow each change; later fragments have no layer-4
//! checksum to adapt, and a UDP checksum of zero stays zero. A set that doesn't fit the packet fails, and the packet is dropped.

use crate::extract::{Layers, eth_type, ip_proto};
use crate::key::{FlowKey, word};
use crate::packet::{Balanced, Edit, EditFailed, L4Sum, PacketEdit};

/// Bits of each key word that a set action may change in some packet: what a compiler checks first.
pub const fn settable(word: usize) -> u64 {
    const FIRST_6: u64 = 0x0000_ffff_ffff_ffff;
    match word {
        word::ETH_DST | word::ETH_SRC | word::ARP_SHA | word::ARP_THA => FIRST_6,
        // All but `ip_frag`; `ip_proto` is the ARP opcode.
        word::IP => u64::from_le_bytes([0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff]),
        word::IPV4 => u64::MAX,
        // `skb_priority`.
        word::DP_HASH => 0xffff_ffff_0000_0000,
        // `skb_mark`.
        word::SKB_MARK => 0xffff_ffff,
        word::IPV6_LABEL => (0x000f_ffffu32.to_be() as u64) << 32,
        13..=16 => u64::MAX,
        _ => 0,
    }
}

/// Sets bits `mask` of key word `index` to `value` in packet and key.
#[inline(always)]
pub fn set_word<P: PacketEdit>(
    packet: &mut P,
    key: &mut FlowKey,
    layers: &Layers,
    index: usize,
    value: u64,
    mask: u64,
) -> Edit {
    if index >= crate::key::KEY_WORDS {
        return Err(EditFailed);
    }
    let old = key.words()[index];
    let new = (old & !mask) | (value & mask);
    if new != old {
        match index {
            word::ETH_DST => packet.store_6(0, new)?,
            word::ETH_SRC => packet.store_6(6, new)?,
            word::IP => set_ip(packet, key, layers, old, new)?,
            word::IPV4 => set_ipv4(packet, key, layers, old, new)?,
            word::DP_HASH => packet.set_metadata((new >> 32) as u32, key.skb_mark),
            word::SKB_MARK => packet.set_metadata(key.skb_priority, new as u32),
            word::IPV6_LABEL => set_label(packet, key, layers, (new >> 32) as u32)?,
            13..=16 => set_ipv6(packet, key, layers, index, old, new)?,
            word::ARP_SHA | word::ARP_THA => {
                if !is_arp(key) || layers.l3 == 0 {
                    return Err(EditFailed);
                }
                packet.store_6(layers.l3 + if index == word::ARP_SHA { 8 } else { 18 }, new)?;
            }
            _ => return Err(EditFailed),
        }
        key.words_mut()[index] = new;
    }
    Ok(())
}

#[inline(always)]
fn is_arp(key: &FlowKey) -> bool {
    matches!(key.eth_type.get(), eth_type::ARP | eth_type::RARP)
}

/// The word of `ip_proto`, `ip_tos`, `ip_ttl`, `ip_frag`, `tp_src`, `tp_dst`.
#[inline(always)]
fn set_ip<P: PacketEdit>(packet: &mut P, key: &FlowKey, layers: &Layers, old: u64, new: u64) -> Edit {
    let l3 = layers.l3;
    let [proto, tos, ttl, ..] = new.to_le_bytes();
    let [old_proto, old_tos, old_ttl, ..] = old.to_le_bytes();
    match key.eth_type.get() {
        eth_type::IPV4 => {
            if tos != old_tos {
                packet.l3_checksum(l3 + 10, u32::from(old_tos) << 8, u32::from(tos) << 8, 2)?;
                packet.store_u8(l3 + 1, tos, Balanced::Yes)?;
            }
            if ttl != old_ttl {
                packet.l3_checksum(l3 + 10, u32::from(old_ttl), u32::from(ttl), 2)?;
                packet.store_u8(l3 + 8, ttl, Balanced::Yes)?;
            }
        }
        eth_type::IPV6 => {
            if tos != old_tos {
                let head = u16::from_be(packet.u16(l3).ok_or(EditFailed)?);
                packet.store_u16(l3, ((head & 0xf00f) | (u16::from(tos) << 4)).to_be(), Balanced::No)?;
            }
            if ttl != old_ttl {
                packet.store_u8(l3 + 7, ttl, Balanced::No)?;
            }
        }
        eth_type::ARP | eth_type::RARP => {
            if proto != old_proto {
                packet.store_u16(l3 + 6, u16::from(proto).to_be(), Balanced::Yes)?;
            }
        }
        _ => return Err(EditFailed),
    }
    if proto != old_proto && !is_arp(key) {
        return Err(EditFailed);
    }
    let (ports, old_ports) = ((new >> 32) as u32, (old >> 32) as u32);
    if ports != old_ports {
        set_ports(packet, key, layers.l4, old_ports, ports)?;
    }
    Ok(())
}

/// `ports`: source in the low half, destination in the high one, memory order.
#[inline(always)]
fn set_ports<P: PacketEdit>(packet: &mut P, key: &FlowKey, l4: u32, old: u32, new: u32) -> Edit {
    if l4 == 0 {
        return Err(EditFailed);
    }
    match key.ip_proto {
        ip_proto::TCP => {
            if packet.len() < l4 + 20 {
                return Err(EditFailed);
            }
            packet.l4_checksum(l4 + 16, old, new, 4, L4Sum::Covered, false)?;
            packet.store_u32(l4, new, Balanced::Yes)
        }
        ip_proto::UDP => {
            if packet.len() < l4 + 8 {
                return Err(EditFailed);
            }
            packet.l4_checksum(l4 + 6, old, new, 4, L4Sum::Covered, true)?;
            packet.store_u32(l4, new, Balanced::Yes)
        }
        ip_proto::ICMP | ip_proto::ICMPV6 => {
            // Type and code are 16-bit fields of the key whose high bytes are zero.
            if packet.len() < l4 + 8 || new & 0x00ff_00ff != 0 {
                return Err(EditFailed);
            }
            let pack = |ports: u32| (ports >> 8) & 0xff | (ports >> 16) & 0xff00;
            packet.l4_checksum(l4 + 2, pack(old), pack(new), 2, L4Sum::Covered, false)?;
            packet.store_u16(l4, pack(new) as u16, Balanced::Yes)
        }
        _ => Err(EditFailed),
    }
}

#[inline(always)]
fn set_ipv4<P: PacketEdit>(packet: &mut P, key: &FlowKey, layers: &Layers, old: u64, new: u64) -> Edit {
    let l3 = layers.l3;
    let (src, old_src) = (new as u32, old as u32);
    let (dst, old_dst) = ((new >> 32) as u32, (old >> 32) as u32);
    if is_arp(key) {
        packet.store_u32(l3 + 14, src, Balanced::Yes)?;
        return packet.store_u32(l3 + 24, dst, Balanced::Yes);
    }
    // A header that was not whole left the key's IP fields zero; a TTL of zero alone is no sign of that.
    if key.eth_type.get() != eth_type::IPV4 {
        return Err(EditFailed);
    }
    if src != old_src {
        set_ipv4_address(packet, key, layers, l3 + 12, old_src, src)?;
    }
    if dst != old_dst {
        set_ipv4_address(packet, key, layers, l3 + 16, old_dst, dst)?;
    }
    Ok(())
}

#[inline(always)]
fn set_ipv4_address<P: PacketEdit>(
    packet: &mut P,
    key: &FlowKey,
    layers: &Layers,
    at: u32,
    old: u32,
    new: u32,
) -> Edit {
    adapt_l4(packet, key, layers.l4, old, new)?;
    packet.l3_checksum(layers.l3 + 10, old, new, 4)?;
    packet.store_u32(at, new, Balanced::Yes)
}

/// The layer-4 checksum after four bytes of the pseudo-header changed. Nothing where the header is cut off.
#[inline(always)]
fn adapt_l4<P: PacketEdit>(packet: &mut P, key: &FlowKey, l4: u32, old: u32, new: u32) -> Edit {
    if l4 == 0 {
        return Ok(());
    }
    let room = packet.len().saturating_sub(l4);
    match key.ip_proto {
        ip_proto::TCP if room >= 20 => packet.l4_checksum(l4 + 16, old, new, 4, L4Sum::PseudoHeader, false),
        ip_proto::UDP if room >= 8 => packet.l4_checksum(l4 + 6, old, new, 4, L4Sum::PseudoHeader, true),
        ip_proto::ICMPV6 if room >= 8 && key.eth_type.get() == eth_type::IPV6 => {
            packet.l4_checksum(l4 + 2, old, new, 4, L4Sum::PseudoHeader, false)
        }
        _ => Ok(()),
    }
}

#[inline(always)]
fn set_label<P: PacketEdit>(packet: &mut P, key: &FlowKey, layers: &Layers, label: u32) -> Edit {
    if key.eth_type.get() != eth_type::IPV6 {
        return Err(EditFailed);
    }
    let head = packet.u32(layers.l3).ok_or(EditFailed)?;
    let field = 0x000f_ffffu32.to_be();
    packet.store_u32(layers.l3, (head & !field) | (label & field), Balanced::No)
}

/// One half (word `index`, 13 to 16) of an IPv6 address.
#[inline(always)]
fn set_ipv6<P: PacketEdit>(packet: &mut P, key: &FlowKey, layers: &Layers, index: usize, old: u64, new: u64) -> Edit {
    if key.eth_type.get() != eth_type::IPV6 {
        return Err(EditFailed);
    }
    // With segments left the checksum is over the last segment's address, not over this one.
    if index < word::IPV6_DST || layers.routing == 0 {
        adapt_l4(packet, key, layers.l4, old as u32, new as u32)?;
        adapt_l4(packet, key, layers.l4, (old >> 32) as u32, (new >> 32) as u32)?;
    }
    // The helper that adapts the checksum takes the header to have a checksum of its own, as IPv4's has; saying that nothing
    // makes up for this store undoes that.
    packet.store_u64(layers.l3 + 8 + (index as u32 - word::IPV6_SRC as u32) * 8, new, Balanced::No)
}

#[cfg(test)]
mod tests;
