//! A specialised program finds what the general one finds, or nothing.

use super::*;
use crate::extract::{Layers, extract_plain_ipv4};
use crate::key::{HOT_WORDS, word};
use crate::packet::SlicePacket;
use crate::seen::{self, Seen};
use crate::{Be16, Be32};
use proptest::prelude::*;

/// Frames of which most are plain, and alike enough to match each other's flows.
fn frame() -> impl Strategy<Value = [u8; 64]> {
    let byte = prop_oneof![4 => Just(0u8), 1 => any::<u8>()];
    (prop::collection::vec(byte, 64), prop_oneof![Just(6u8), Just(17), Just(1), any::<u8>()]).prop_map(
        |(bytes, proto)| {
            let mut frame = [0; 64];
            frame.copy_from_slice(&bytes);
            (frame[12], frame[13], frame[14], frame[23], frame[46]) = (8, 0, 0x45, proto, 0x50);
            frame
        },
    )
}

fn program(flags: u32) -> Straight {
    Straight { flags, ..Straight::default() }
}

/// A flow for this frame under a mask of the hot words, of which each is whole, random, or not there.
fn flow(frame: &[u8; 64], kinds: &[u8; HOT_WORDS], bits: &[u64; HOT_WORDS]) -> Option<(FlowKey, FlowKey)> {
    let (mut key, mut layers) = (FlowKey { in_port: 1, ..FlowKey::ZERO }, Layers::default());
    if !extract_plain_ipv4(&SlicePacket::new(frame.as_slice()), &mut key, &mut layers) {
        return None;
    }
    let mut mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, ..FlowKey::ZERO };
    for ((word, kind), bits) in mask.words_mut()[1..HOT_WORDS].iter_mut().zip(kinds).zip(bits) {
        *word = [0, 0, *bits, u64::MAX][usize::from(kind % 4)];
    }
    (mask.eth_type, mask.ip_frag) = (Be16::MAX, 0xff);
    Some((key.masked(&mask), mask))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_flow_that_is_served_is_found_by_its_packets_and_no_others(
        (own, other) in (frame(), frame()),
        (kinds, bits) in (any::<[u8; HOT_WORDS]>(), any::<[u64; HOT_WORDS]>()),
        serves in 0..=ALL,
    ) {
        let Some((key, mask)) = flow(&own, &kinds, &bits) else { return Ok(()) };
        let entry = MaskEntry::new(1, &mask);
        let needs = of(&key, &entry, &program(straight::OUTPUT));
        prop_assert!(needs & FITS != 0);
        let served = are_served(needs, serves);
        prop_assert_eq!(served, needs & ALL & !serves == 0);
        if !served {
            return Ok(());
        }
        let hot_mask: &[u64; HOT_WORDS - 1] = entry.hot[1..].try_into().expect("as many");
        for packet in [own, other] {
            // A fragment is handed over.
            let is_fragment = packet[20] & 0x3f != 0 || packet[21] != 0;
            let Some(seen) = Seen::read(&SlicePacket::new(packet), 1, serves) else {
                prop_assert!(is_fragment);
                continue;
            };
            prop_assert!(!is_fragment);
            let (mut whole, mut layers) = (FlowKey { in_port: 1, ..FlowKey::ZERO }, Layers::default());
            prop_assert!(extract_plain_ipv4(&SlicePacket::new(packet), &mut whole, &mut layers));
            prop_assert_eq!(seen.matches(key.hot_words(), hot_mask, serves), key.matches(&mask, &whole));
            prop_assert_eq!(seen.tcp_flags, whole.tcp_flags.get());
            // Where its own packets find it, as far as they differ in nothing that some flow may read.
            prop_assert_eq!(seen.hash(serves), seen::hash(whole.hot_words(), serves));
            if serves & REWRITE != 0 {
                let mut words = seen.words();
                let ports = if serves & L4 != 0 { 0 } else { u64::MAX << 32 };
                words[word::IP] |= whole.hot_words()[word::IP] & ports;
                prop_assert_eq!(words, *whole.hot_words());
            }
        }
    }
}

#[test]
fn what_a_specialised_program_can_not_run_has_no_needs() {
    let usual = FlowKey { eth_type: Be16::new(0x800), ..FlowKey::ZERO };
    let exact = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, eth_type: Be16::MAX, ..FlowKey::ZERO };
    let needs = |key: &FlowKey, mask: &FlowKey, flags| of(key, &MaskEntry::new(1, mask), &program(flags));
    let with = |change: fn(&mut FlowKey)| {
        let mut mask = exact;
        change(&mut mask);
        mask
    };
    assert_eq!(needs(&usual, &exact, straight::OUTPUT), FITS);
    assert_eq!(needs(&usual, &exact, straight::DROP), FITS | DROP);
    assert_eq!(needs(&usual, &exact, straight::RECIRC), FITS | RECIRC);
    assert_eq!(needs(&usual, &exact, straight::OUTPUT | straight::REWRITE), FITS | REWRITE);
    let mut ports = program(straight::OUTPUT | straight::REWRITE);
    ports.rewrite[5] = 1 << 40;
    assert_eq!(of(&usual, &MaskEntry::new(1, &exact), &ports), FITS | REWRITE | L4);
    for (mask, need) in [
        (with(|mask| mask.eth_src[5] = 1), ETH_SRC),
        (with(|mask| mask.tcp_flags = Be16::new(1)), L4),
        (with(|mask| mask.ip_ttl = 1), IP),
        (with(|mask| mask.tp_dst = Be16::new(1)), L4),
        (with(|mask| mask.ipv4_src = Be32::new(1)), IPV4),
        (with(|mask| mask.ip_frag = 0xff), 0),
        (with(|mask| mask.vlan.tci = Be16::MAX), 0),
    ] {
        assert_eq!(needs(&usual, &mask, straight::OUTPUT), FITS | need, "{mask:?}");
    }

    for flags in [0, straight::RECIRC | straight::REWRITE, straight::OUTPUT | straight::PUSH_VLAN] {
        assert_eq!(needs(&usual, &exact, flags), 0, "{flags}");
    }
    for mask in [
        with(|mask| mask.in_port = 0),
        with(|mask| mask.recirc_id = 0),
        with(|mask| mask.eth_type = Be16::ZERO),
        with(|mask| mask.skb_mark = 1),
        with(|mask| mask.ipv6_label = Be32::new(1)),
    ] {
        assert_eq!(needs(&usual, &mask, straight::OUTPUT), 0, "{mask:?}");
    }
    let ipv6 = FlowKey { eth_type: Be16::new(0x86dd), ..usual };
    let tagged = FlowKey { vlan: crate::Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1001) }, ..usual };
    for key in [ipv6, tagged] {
        assert_eq!(needs(&key, &exact, straight::OUTPUT), 0, "{key:?}");
    }
}
