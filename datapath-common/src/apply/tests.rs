//! Each set keeps key, bytes and checksums together.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::extract::extract;
use crate::packet::SlicePacket;

/// One's complement sum over bytes.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut s = start;
    for pair in bytes.chunks(2) {
        s += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while s >> 16 != 0 {
        s = (s & 0xffff) + (s >> 16);
    }
    s as u16
}

fn pseudo(frame: &[u8]) -> u32 {
    let len = |l4: usize| (frame.len() - l4) as u32;
    if frame[12] == 8 {
        u32::from(sum(&frame[26..34], u32::from(frame[23]) + len(34)))
    } else {
        u32::from(sum(&frame[22..54], u32::from(frame[20]) + len(54)))
    }
}

/// A frame with right checksums.
fn packet(v6: bool, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if v6 {
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, proto, 64]);
        f.extend([0x11; 16]);
        f.extend([0x22; 16]);
    } else {
        f.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let header = !sum(&f[14..34], 0);
        f[24..26].copy_from_slice(&header.to_be_bytes());
    }
    let l4 = f.len();
    let (header, at): (usize, usize) = match proto {
        6 => (20, 16),
        17 => (8, 6),
        _ => (8, 2),
    };
    f.resize(l4 + header, 0);
    f[l4..l4 + 4].copy_from_slice(if proto == 6 || proto == 17 { &[0, 80, 0, 90] } else { &[8, 0, 0, 0] });
    if proto == 6 {
        f[l4 + 12] = 0x50;
    }
    f.extend_from_slice(payload);
    let start = if proto == 1 { 0 } else { pseudo(&f) };
    let checksum = !sum(&f[l4..], start);
    f[l4 + at..l4 + at + 2].copy_from_slice(&checksum.to_be_bytes());
    f
}

fn assert_sums(frame: &[u8]) {
    let l4 = if frame[12] == 8 {
        assert_eq!(sum(&frame[14..34], 0), 0xffff, "IPv4 header checksum");
        34
    } else {
        54
    };
    let proto = if l4 == 34 { frame[23] } else { frame[20] };
    let start = if proto == 1 { 0 } else { pseudo(frame) };
    assert_eq!(sum(&frame[l4..], start), 0xffff, "layer-4 checksum of protocol {proto}");
}

proptest! {
    #[test]
    fn every_set_leaves_right_checksums_and_the_key_of_the_new_bytes(
        v6 in any::<bool>(),
        proto in prop::sample::select(vec![6u8, 17, 1]),
        payload in prop::collection::vec(any::<u8>(), 0..60),
        sets in prop::collection::vec((0usize..38, any::<u64>(), any::<u64>()), 1..6),
    ) {
        let proto = if v6 && proto == 1 { 58 } else { proto };
        let mut packet = SlicePacket::new(packet(v6, proto, &payload));
        assert_sums(&packet.bytes);
        let mut key = FlowKey::ZERO;
        let layers = extract(&packet, &mut key).unwrap();
        for (index, value, mask) in sets {
            let mut mask = mask & settable(index);
            if index == word::IP {
                // The protocol is ARP's opcode; ICMP's type and code have one byte each.
                mask &= !0xff;
                if proto == 1 || proto == 58 {
                    mask &= !0x00ff_00ff_0000_0000;
                }
            }
            let before = (packet.clone(), key);
            if mask != 0 && set_word(&mut packet, &mut key, &layers, index, value & mask, mask).is_err() {
                // What doesn't fit the packet fails and leaves the key.
                prop_assert_eq!(key, before.1);
                packet = before.0;
            }
        }
        assert_sums(&packet.bytes);
        let mut fresh = FlowKey::ZERO;
        fresh.skb_priority = key.skb_priority;
        fresh.skb_mark = key.skb_mark;
        extract(&packet, &mut fresh).unwrap();
        // Neighbour discovery fields follow type and code, which a set may have changed.
        if proto == 58 {
            for w in 17..=20 {
                fresh.words_mut()[w] = 0;
                key.words_mut()[w] = 0;
            }
        }
        prop_assert_eq!(key, fresh);
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let mut packet = SlicePacket::new(packet(false, 17, b"x"));
    packet.bytes[40..42].fill(0);
    let mut key = FlowKey::ZERO;
    let layers = extract(&packet, &mut key).unwrap();
    set_word(&mut packet, &mut key, &layers, word::IPV4, 0x0101_0101, 0xffff_ffff).unwrap();
    assert_eq!(packet.bytes[40..42], [0, 0]);
}

#[test]
fn a_partial_checksum_follows_addresses_and_not_ports() {
    let mut packet = SlicePacket::new(packet(false, 6, b"data"));
    let partial = sum(&[], pseudo(&packet.bytes));
    packet.bytes[50..52].copy_from_slice(&partial.to_be_bytes());
    packet.partial_checksum = true;
    let mut key = FlowKey::ZERO;
    let layers = extract(&packet, &mut key).unwrap();
    set_word(&mut packet, &mut key, &layers, word::IP, 0x1234_0000_0000, 0xffff_0000_0000).unwrap();
    assert_eq!(packet.bytes[50..52], partial.to_be_bytes());
    set_word(&mut packet, &mut key, &layers, word::IPV4, 0x0403_0201, 0xffff_ffff).unwrap();
    assert_eq!(packet.bytes[50..52], sum(&[], pseudo(&packet.bytes)).to_be_bytes());
}

#[test]
fn ports_of_a_later_fragment_cannot_be_set() {
    let mut packet = SlicePacket::new(packet(false, 17, b"x"));
    packet.bytes[21] = 1;
    let mut key = FlowKey::ZERO;
    let layers = extract(&packet, &mut key).unwrap();
    assert_eq!(set_word(&mut packet, &mut key, &layers, word::IP, 1 << 40, 0xffff_0000_0000), Err(EditFailed));
}
