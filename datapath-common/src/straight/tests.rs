//! The straight form does what the operations do, or nothing.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::apply::{set_word, settable};
use crate::extract::extract;
use crate::key::FlowKey;
use crate::op::{OP_LAST, OpKind};
use crate::packet::SlicePacket;

fn last(kind: OpKind, arg: u32) -> Op {
    Op { flags: OP_LAST, ..Op::new(kind, arg) }
}

#[test]
fn programs_that_run_straight_are_known() {
    let output = last(OpKind::Output, 7);
    let recirc = last(OpKind::Recirc, 9);
    let set = Op::set_word(word::IP, 1 << 16, 0xff << 16);
    let push = Op::new(OpKind::PushVlan, 0x8100);
    let pop = Op::new(OpKind::PopVlan, 0);
    let drop = Op::new(OpKind::Drop, 0);
    for (ops, flags, arg) in [
        (&[][..], DROP, 0),
        (&[drop], DROP, 0),
        (&[output], OUTPUT, 7),
        (&[recirc], RECIRC, 9),
        (&[set, output], REWRITE | OUTPUT, 7),
        (&[set, recirc], REWRITE | RECIRC, 9),
        (&[set, push, output], REWRITE | PUSH_VLAN | OUTPUT, 7),
        (&[pop, output], POP_VLAN | OUTPUT, 7),
        // Sets behind a tag, several tags, several outputs, truncation, words without a place: all the interpreter's.
        (&[push, set, output], 0, 0),
        (&[push, recirc], 0, 0),
        (&[pop, push, output], 0, 0),
        (&[output, output], 0, 0),
        (&[Op::new(OpKind::Output, 7)], 0, 0),
        (&[set, drop], 0, 0),
        (&[Op::new(OpKind::Trunc, 60), output], 0, 0),
        (&[Op::set_word(word::IPV6_SRC, 1, 1), output], 0, 0),
        (&[set, set, output], 0, 0),
        (&[Op::new(OpKind::Userspace, 0)], 0, 0),
    ] {
        let straight = Straight::of(ops);
        assert_eq!((straight.flags, straight.arg), (flags, arg), "{ops:?}");
    }
}

#[test]
fn sets_of_several_fields_of_a_word_are_one_mask() {
    let ops = [
        Op::set_word(word::IP, 0x3f << 16, 0xff << 16),
        Op::set_word(word::IPV4, 5, u64::MAX),
        Op::set_word(word::IP, 0x1234 << 32, 0xffff << 32),
        last(OpKind::Output, 1),
    ];
    let straight = Straight::of(&ops);
    assert_eq!(straight.flags, REWRITE | OUTPUT);
    assert_eq!(straight.rewrite, [0, 0, 0, 0, 0x1234_003f_0000, 0xffff_00ff_0000, 5, u64::MAX]);
}

/// Runs `ops` both ways; true if the straight form fits.
fn both(bytes: &[u8], ops: &[Op]) -> Result<bool, TestCaseError> {
    let mut key = FlowKey::ZERO;
    let layers = extract(&SlicePacket::new(bytes), &mut key).map_err(|_| TestCaseError::reject("malformed"))?;
    let straight = Straight::of(ops);
    prop_assert_eq!(straight.flags, REWRITE | OUTPUT);

    let mut words = *key.hot_words();
    let mut packet = SlicePacket::new(bytes);
    if bytes.len() < HEAD as usize || rewrite(&mut packet, &mut words, &layers, &straight.rewrite) == UNFIT {
        prop_assert_eq!(&packet.bytes, bytes);
        prop_assert_eq!(&words, key.hot_words());
        return Ok(false);
    }
    let mut slowly = SlicePacket::new(bytes);
    for op in ops.iter().filter(|op| op.kind == kind::SET_WORD) {
        prop_assert!(set_word(&mut slowly, &mut key, &layers, op.arg as usize, op.a, op.b).is_ok());
    }
    prop_assert_eq!(&packet.bytes, &slowly.bytes);
    prop_assert_eq!(&words, key.hot_words());
    Ok(true)
}

/// A frame that is an IPv4 packet in the main: header length, fragment, protocol and checksums are chosen so that each case
/// comes up often.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let edge = || prop_oneof![Just(0u16), Just(0xffff), any::<u16>()];
    let header = prop_oneof![8 => Just(0x45u8), 1 => Just(0x46), 1 => any::<u8>()];
    let fragment = prop_oneof![6 => Just(0u16), 1 => Just(0x2000), 1 => Just(0x0007), 1 => any::<u16>()];
    let proto = prop_oneof![4 => Just(6u8), 4 => Just(17), 1 => Just(1), 1 => any::<u8>()];
    let ether_type = prop_oneof![8 => Just(0x0800u16), 1 => Just(0x86dd), 1 => any::<u16>()];
    let data_offset = prop_oneof![4 => Just(0x50u8), 1 => any::<u8>()];
    let sums = (edge(), edge(), edge());
    let rest = prop::collection::vec(any::<u8>(), 40..90);
    (header, fragment, proto, ether_type, data_offset, sums, rest).prop_map(
        |(header, fragment, proto, ether_type, data_offset, sums, rest)| {
            let mut f = vec_of(14, &rest);
            f[12..14].copy_from_slice(&ether_type.to_be_bytes());
            f.extend(vec_of(20, &rest[7..]));
            f[14] = header;
            f[20..22].copy_from_slice(&fragment.to_be_bytes());
            f[23] = proto;
            f[24..26].copy_from_slice(&sums.0.to_be_bytes());
            f.extend_from_slice(&rest);
            f[46] = data_offset;
            f[40..42].copy_from_slice(&sums.1.to_be_bytes());
            f[50..52].copy_from_slice(&sums.2.to_be_bytes());
            f
        },
    )
}

fn vec_of(len: usize, from: &[u8]) -> Vec<u8> {
    from.iter().copied().cycle().take(len).collect()
}

fn sets() -> impl Strategy<Value = Vec<Op>> {
    let one = (0usize..4, prop_oneof![Just(0u64), Just(u64::MAX), any::<u64>()], any::<u8>());
    prop::collection::vec(one, 1..6).prop_map(|sets| {
        let (mut ops, mut taken) = (Vec::new(), [0u64; 4]);
        for (i, value, bytes) in sets {
            let chosen =
                (0..8).filter(|byte| bytes >> byte & 1 == 1).fold(0u64, |mask, byte| mask | 0xff << (byte * 8));
            // The protocol is ARP's to set.
            let proto = if WORDS[i] == word::IP { 0xff } else { 0 };
            let mask = settable(WORDS[i]) & !proto & chosen & !taken[i];
            if mask != 0 {
                taken[i] |= mask;
                ops.push(Op::set_word(WORDS[i], value, mask));
            }
        }
        if ops.is_empty() {
            ops.push(Op::set_word(word::ETH_DST, 1, 0xff));
        }
        ops.push(last(OpKind::Output, 1));
        ops
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn what_runs_straight_leaves_what_the_operations_leave(frame in frame(), ops in sets()) {
        both(&frame, &ops)?;
    }
}

#[test]
fn usual_packets_run_straight() {
    let mut frame = std::vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 6, 0x12, 0x34, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 80, 0, 90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0x56, 0x78, 0, 0, 1, 2, 3, 4, 5, 6]);
    let output = last(OpKind::Output, 1);
    let sets = [
        Op::set_word(word::ETH_SRC, 7, 0xffff_ffff_ffff),
        Op::set_word(word::IP, 63 << 16 | 0x3412 << 32, 0xff << 16 | 0xffff << 32),
        Op::set_word(word::IPV4, 0x0101_0101, 0xffff_ffff),
        output,
    ];
    assert!(both(&frame, &sets).unwrap());
    frame[23] = 17;
    for sum in [0, 0x1234u16, 0xffff] {
        frame[40..42].copy_from_slice(&sum.to_be_bytes());
        assert!(both(&frame, &sets).unwrap(), "{sum:#x}");
    }
    // No ports to set, but the rest.
    frame[23] = 1;
    assert!(!both(&frame, &sets).unwrap());
    assert!(both(&frame, &[sets[0], sets[2], output]).unwrap());
    frame[23] = 6;
    frame[20..22].copy_from_slice(&[0, 9]);
    assert!(!both(&frame, &sets).unwrap(), "a later fragment has no ports");
    assert!(both(&frame, &[sets[0], sets[2], output]).unwrap());
}

/// A sum that the device is to complete is told by its value: that of the pseudo-header, in either form of zero.
#[test]
fn a_partial_checksum_is_left_alone() {
    for (proto, at) in [(6u8, 50), (17, 40)] {
        for addresses in [[10u8, 0, 0, 1, 10, 0, 0, 2], [0xff; 8], [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xd3 - proto]] {
            let mut frame = std::vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
            frame.extend([0x45, 0, 0, 64, 0, 0, 0, 0, 64, proto, 0, 0]);
            frame.extend(addresses);
            frame.extend([0, 80, 0, 90, 0, 52, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0]);
            frame.resize(78, 0);
            let mut sum = u32::from(proto) + 44;
            sum += addresses.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
            let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
            let ops = [Op::set_word(word::IPV4, 0x0909_0909, u64::MAX), last(OpKind::Output, 1)];
            frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            assert!(!both(&frame, &ops).unwrap(), "{proto} {addresses:?} {sum:#x}");
            if sum == 0xffff {
                frame[at..at + 2].copy_from_slice(&[0, 0]);
                assert!(!both(&frame, &ops).unwrap());
            }
            frame[at + 1] ^= 1;
            assert!(both(&frame, &ops).unwrap());
        }
    }
}
