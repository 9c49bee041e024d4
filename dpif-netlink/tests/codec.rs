//! Keys, masks and actions to attributes and back, and attributes that nobody should have written.

mod generate;

use datapath_common::{Be16, Be32, FlowKey, Vlan};
use dpif::{Action, OdpPort};
use dpif_netlink::attr::{Attrs, Writer};
use dpif_netlink::codec::{
    CodecError, Fitness, MAX_DEPTH, TunnelOptions, decode_actions, decode_key, decode_mask, decode_tunnel,
    encode_actions, encode_key, encode_mask, encode_match, normalize,
};
use dpif_netlink::uapi::{self, key as attr};
use fastrand::Rng;
use generate::Known;
use proptest::prelude::*;

const EVERYTHING: Known = Known { drop: true, psample: true, sym_l4: true };
const KEY_AND_MASK: (u16, u16) = (uapi::flow::KEY, uapi::flow::MASK);

fn key_bytes(key: &FlowKey) -> Vec<u8> {
    let mut to = Writer::default();
    encode_key(key, &TunnelOptions::NONE, true, &mut to);
    to.bytes().to_vec()
}

fn decoded(bytes: &[u8]) -> Result<(Fitness, FlowKey, TunnelOptions), CodecError> {
    let (mut key, mut options) = (FlowKey::ZERO, TunnelOptions::NONE);
    decode_key(bytes, &mut key, &mut options).map(|fitness| (fitness, key, options))
}

fn decoded_mask(bytes: &[u8], key: &FlowKey) -> Result<(Fitness, FlowKey), CodecError> {
    let (mut mask, mut options) = (FlowKey::ZERO, TunnelOptions::NONE);
    decode_mask(bytes, key, &mut mask, &mut options).map(|fitness| (fitness, mask))
}

/// A key without the metadata that a flow with this mask doesn't match: they are not said.
fn matched(mut key: FlowKey, mask: &FlowKey) -> FlowKey {
    let keep = |value: &mut u32, mask: u32| *value = if mask == 0 { 0 } else { *value };
    keep(&mut key.recirc_id, mask.recirc_id);
    keep(&mut key.dp_hash, mask.dp_hash);
    keep(&mut key.skb_priority, mask.skb_priority);
    keep(&mut key.skb_mark, mask.skb_mark);
    keep(&mut key.ct_state, mask.ct_state);
    keep(&mut key.ct_mark, mask.ct_mark);
    if mask.ct_zone == 0 {
        key.ct_zone = 0;
    }
    if mask.ct_label == [0; 16] {
        key.ct_label = [0; 16];
    }
    key
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn keys_and_masks_come_back(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let key = generate::key(&mut rng);
        let mask = generate::mask(&mut rng, &key);
        prop_assert_eq!(normalize(&key, &mask, true), mask);
        let mut to = Writer::default();
        prop_assert_eq!(encode_match(&key, &mask, true, KEY_AND_MASK, &mut to), Ok(()));
        let attrs: Vec<_> = Attrs::new(to.bytes()).collect::<Result<_, _>>().unwrap();
        let [(uapi::flow::KEY, key_attrs), (uapi::flow::MASK, mask_attrs)] = attrs[..] else { panic!("{attrs:?}") };
        prop_assert_eq!(decoded(key_attrs), Ok((Fitness::Perfect, matched(key, &mask), TunnelOptions::NONE)));
        prop_assert_eq!(decoded_mask(mask_attrs, &key), Ok((Fitness::Perfect, mask)));
    }

    #[test]
    fn a_mask_is_refused_or_the_kernel_matches_no_more(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let key = generate::key(&mut rng);
        let mut mask = FlowKey::ZERO;
        for word in mask.words_mut() {
            *word = [0, u64::MAX, rng.u64(..)][rng.usize(..3)];
        }
        (mask.reserved0, mask.reserved1) = (0, 0);
        // Where it is accepted, each packet that agrees with what the kernel matches agrees with the flow. Packets are the
        // key itself with bits changed that the kernel doesn't look at, and other keys.
        if encode_match(&key, &mask, true, KEY_AND_MASK, &mut Writer::default()).is_ok() {
            let kernel = normalize(&key, &mask, true);
            for _ in 0..16 {
                let other = generate::key(&mut rng);
                let mut packet = other;
                for ((packet, key), kernel) in packet.words_mut().iter_mut().zip(key.words()).zip(kernel.words()) {
                    *packet = *packet & !kernel | key & kernel;
                }
                if possible(&packet) {
                    prop_assert!(key.masked(&mask).matches(&mask, &packet), "{packet:?}\n{key:?}\n{mask:?}");
                }
            }
        }
    }

    #[test]
    fn actions_come_back(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let key = generate::key(&mut rng);
        let actions = generate::actions(&mut rng, &key, EVERYTHING);
        let mut to = Writer::default();
        prop_assert_eq!(encode_actions(&actions, &mut to), Ok(()));
        prop_assert_eq!(decode_actions(to.bytes()), Ok(actions));
    }

    #[test]
    fn changed_bytes_are_read_or_refused(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let key = generate::key(&mut rng);
        let mut to = Writer::default();
        encode_key(&key, &TunnelOptions::NONE, true, &mut to);
        let mut mask = Writer::default();
        encode_mask(&key, &generate::mask(&mut rng, &key), &TunnelOptions::NONE, true, &mut mask);
        let mut actions = Writer::default();
        let _ = encode_actions(&generate::actions(&mut rng, &key, EVERYTHING), &mut actions);
        for bytes in [to.bytes(), mask.bytes(), actions.bytes()] {
            let mut bytes = bytes.to_vec();
            for _ in 0..64 {
                mutate(&mut rng, &mut bytes);
                let read = decoded(&bytes);
                let of = read.map_or(key, |(_, key, _)| key);
                let _ = decoded_mask(&bytes, &of);
                let _ = decode_actions(&bytes);
                // What was read can be written.
                encode_key(&of, &TunnelOptions::NONE, true, &mut Writer::default());
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = decoded(&bytes);
        let _ = decoded_mask(&bytes, &FlowKey::ZERO);
        let _ = decode_actions(&bytes);
    }
}

/// Whether there can be a packet with this key: its own types give it back, there is no label below the bottom of the stack
/// and no connection where none was tracked.
fn possible(key: &FlowKey) -> bool {
    let labels = key.mpls_lse.iter().take(key.mpls_labels.count_ones() as usize);
    let deep = labels.rev().skip(1).any(|lse| lse.get() & 0x100 != 0);
    let untracked = key.ct_state & 0x20 == 0 && key.ct_orig_proto != 0;
    !deep && !untracked && decoded(&key_bytes(key)) == Ok((Fitness::Perfect, *key, TunnelOptions::NONE))
}

fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        bytes.push(rng.u8(..));
    }
    let at = rng.usize(..bytes.len());
    match rng.u8(..5) {
        0 => bytes[at] = rng.u8(..),
        1 => bytes[at] ^= 1 << rng.u8(..8),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, rng.u8(..)),
        _ => {
            let piece: Vec<u8> = bytes[at..].iter().take(12).copied().collect();
            bytes.extend(piece);
        }
    }
}

fn tcp_key() -> FlowKey {
    FlowKey {
        in_port: 3,
        eth_type: Be16::new(0x0800),
        ip_proto: 6,
        ipv4_src: Be32::new(0x0a00_0001),
        tp_dst: Be16::new(80),
        ..FlowKey::ZERO
    }
}

/// The attributes of a key but one.
fn without(kind: u16, key: &FlowKey) -> Vec<u8> {
    let mut to = Writer::default();
    for one in Attrs::new(&key_bytes(key)).map(Result::unwrap).filter(|(found, _)| *found != kind) {
        to.put(one.0, one.1);
    }
    to.bytes().to_vec()
}

fn with(key: &FlowKey, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut to = Writer::default();
    encode_key(key, &TunnelOptions::NONE, true, &mut to);
    to.put(kind, payload);
    to.bytes().to_vec()
}

fn fitness(bytes: &[u8]) -> Result<Fitness, CodecError> {
    decoded(bytes).map(|(fitness, ..)| fitness)
}

#[test]
fn what_types_ask_for_and_is_missing_is_too_little() {
    let mut nd = tcp_key();
    (nd.eth_type, nd.ip_proto, nd.ipv4_src) = (Be16::new(0x86dd), 58, Be32::ZERO);
    (nd.tp_src, nd.tp_dst) = (Be16::new(135), Be16::ZERO);
    let cases = [(attr::IPV4, tcp_key()), (attr::TCP, tcp_key()), (attr::IPV6, nd), (attr::ICMPV6, nd), (attr::ND, nd)];
    for (kind, key) in cases {
        assert_eq!(fitness(&key_bytes(&key)), Ok(Fitness::Perfect));
        assert_eq!(fitness(&without(kind, &key)), Ok(Fitness::TooLittle), "without {kind}");
    }
    let vlan = FlowKey { vlan: Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1001) }, ..tcp_key() };
    assert_eq!(fitness(&without(attr::ENCAP, &vlan)), Ok(Fitness::TooLittle));
}

#[test]
fn what_is_not_known_is_too_much_and_the_rest_is_read() {
    for (kind, payload) in [(33, &[1, 2, 3][..]), (200, &[]), (29, &[0, 0, 0, 0]), (attr::UDP, &[0, 1, 0, 2])] {
        let read = decoded(&with(&tcp_key(), kind, payload));
        assert_eq!(read, Ok((Fitness::TooMuch, tcp_key(), TunnelOptions::NONE)), "attribute {kind}");
    }
}

#[test]
fn a_tuple_that_the_packet_cant_have_is_too_much() {
    // Source, destination, ports, protocol, padding.
    let v4 = |proto| [&[10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2][..], &[proto, 0, 0, 0]].concat();
    let tracked = FlowKey {
        ct_orig_ipv4_src: Be32::new(0x0a00_0001),
        ct_orig_ipv4_dst: Be32::new(0x0a00_0002),
        ct_orig_tp_src: Be16::new(1),
        ct_orig_tp_dst: Be16::new(2),
        ct_orig_proto: 6,
        ..tcp_key()
    };
    let read = |key: &FlowKey, proto| decoded(&with(key, attr::CT_ORIG_TUPLE_IPV4, &v4(proto)));
    assert_eq!(read(&tcp_key(), 6), Ok((Fitness::Perfect, tracked, TunnelOptions::NONE)));
    assert_eq!(read(&tcp_key(), 0), Ok((Fitness::TooMuch, tcp_key(), TunnelOptions::NONE)));
    let other = FlowKey { eth_type: Be16::new(0x88b5), in_port: 3, ..FlowKey::ZERO };
    assert_eq!(read(&other, 6), Ok((Fitness::TooMuch, other, TunnelOptions::NONE)));
}

#[test]
fn contradictions_are_errors() {
    let key = tcp_key();
    assert_eq!(fitness(&with(&key, attr::IN_PORT, &[0; 4])), Err(CodecError::Duplicate(attr::IN_PORT)));
    let short = [&without(attr::TCP, &key)[..], &[7, 0, attr::TCP as u8, 0, 1, 2, 3, 0]].concat();
    assert_eq!(fitness(&short), Err(CodecError::Length("the transport ports", 3)));
    let cut = [&key_bytes(&key)[..], &[200, 0, 2, 0]].concat();
    assert_eq!(fitness(&cut), Err(CodecError::Truncated));
    for (eth_type, is_read) in [([0xff, 0xff], true), ([0, 0], true), ([0xff, 0], false)] {
        let mut mask = Writer::default();
        mask.put(attr::ETHERTYPE, &eth_type);
        assert_eq!(decoded_mask(mask.bytes(), &key).is_ok(), is_read, "{eth_type:?}");
    }
    let tagged = FlowKey { vlan: Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1001) }, ..key };
    for (tci, is_read) in [(0x10u8, true), (0, false)] {
        let mut mask = Writer::default();
        mask.put(attr::VLAN, &[tci, 0]);
        assert_eq!(decoded_mask(mask.bytes(), &tagged).is_ok(), is_read);
        mask.put(attr::ETHERTYPE, &[0xff, 0xfe]);
        assert!(decoded_mask(mask.bytes(), &tagged).is_err());
    }
    let untagged = FlowKey { vlan: Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1001) }, ..key };
    let mut bytes = key_bytes(&untagged);
    let tag = bytes.windows(6).position(|w| w == [6, 0, attr::VLAN as u8, 0, 0x10, 1]).unwrap();
    bytes[tag + 4] = 0;
    assert!(matches!(fitness(&bytes), Err(CodecError::Contradiction(_))));
    let arp = FlowKey { eth_type: Be16::new(0x0806), ip_proto: 1, in_port: 1, ..FlowKey::ZERO };
    let mut bytes = key_bytes(&arp);
    let operation = bytes.windows(4).position(|w| w == [28, 0, attr::ARP as u8, 0]).unwrap() + 12;
    bytes[operation] = 1;
    assert!(matches!(fitness(&bytes), Err(CodecError::Contradiction(_))));
}

#[test]
fn tags_nest_and_what_is_behind_them_is_in_the_innermost() {
    let tag = |tpid, vid: u16| Vlan { tpid: Be16::new(tpid), tci: Be16::new(0x1000 | vid) };
    let key = FlowKey { vlan: tag(0x88a8, 10), cvlan: tag(0x8100, 20), ..tcp_key() };
    let bytes = key_bytes(&key);
    let outer = Attrs::new(&bytes);
    assert_eq!(outer.clone().find(attr::ETHERTYPE), Some(&[0x88, 0xa8][..]));
    assert_eq!(outer.clone().find(attr::IPV4), None);
    let inner = Attrs::new(outer.find(attr::ENCAP).unwrap());
    assert_eq!(inner.clone().find(attr::ETHERTYPE), Some(&[0x81, 0x00][..]));
    let innermost = Attrs::new(inner.find(attr::ENCAP).unwrap());
    assert_eq!(innermost.clone().find(attr::ETHERTYPE), Some(&[0x08, 0x00][..]));
    assert!(innermost.find(attr::TCP).is_some());
    assert_eq!(decoded(&bytes), Ok((Fitness::Perfect, key, TunnelOptions::NONE)));
}

#[test]
fn tunnel_options_of_each_kind_come_back() {
    let tunnel = FlowKey { tun_proto: 2, tun_ipv4_dst: Be32::new(1), tun_ttl: 64, ..tcp_key() };
    for (flag, bytes) in [(0x0800, &[1, 2, 0x80, 1, 9, 9, 9, 9][..]), (0x1000, &[7, 0, 0, 0]), (0x4000, &[2; 12])] {
        let key = FlowKey { tun_flags: flag, tun_opts_len: bytes.len() as u8, ..tunnel };
        let options = TunnelOptions::new(bytes).unwrap();
        let mut to = Writer::default();
        encode_key(&key, &options, true, &mut to);
        assert_eq!(decoded(to.bytes()), Ok((Fitness::Perfect, key, options)));
    }
    // Options of no length are none.
    let mut to = Writer::default();
    to.put_u8(4, 64);
    to.put(8, &[]);
    assert_eq!(decode_tunnel(to.bytes()).map(|(key, options)| (key.tun_flags, options)), Ok((0, TunnelOptions::NONE)));
    assert_eq!(TunnelOptions::new(&[0; 256]), None);
    assert_eq!(TunnelOptions::new(&[0; 3]), None);
}

#[test]
fn masks_that_would_come_out_wider_are_refused() {
    let refused =
        |key: &FlowKey, mask: &FlowKey| encode_match(key, mask, true, KEY_AND_MASK, &mut Writer::default()).is_err();
    let key = tcp_key();
    let exact = FlowKey { eth_type: Be16::MAX, ip_proto: 255, ip_frag: 255, ..FlowKey::ZERO };
    assert!(!refused(&key, &exact));
    // Neighbour discovery's target is in no TCP packet, but only where it is known that all are TCP.
    let target = FlowKey { nd_target: [255; 16], ..exact };
    assert!(!refused(&key, &target));
    assert!(refused(&key, &FlowKey { ip_proto: 0, ..target }));
    assert!(refused(&key, &FlowKey { eth_type: Be16::ZERO, ..target }));
    // Such a flow would match nothing; the kernel's would match.
    assert!(refused(&FlowKey { nd_target: [1; 16], ..key }, &target));
    // No frame has this type; one without a type has another in the key.
    assert!(refused(
        &FlowKey { eth_type: Be16::ZERO, ..FlowKey::ZERO },
        &FlowKey { eth_type: Be16::MAX, ..FlowKey::ZERO }
    ));
    assert!(!refused(
        &FlowKey { eth_type: Be16::new(4), ..FlowKey::ZERO },
        &FlowKey { eth_type: Be16::MAX, ..FlowKey::ZERO }
    ));
    // The number of labels alone.
    let mpls = FlowKey { eth_type: Be16::new(0x8847), mpls_labels: 1, ..FlowKey::ZERO };
    assert!(refused(&mpls, &FlowKey { eth_type: Be16::MAX, mpls_labels: 1, ..FlowKey::ZERO }));
    // A field that the kernel at hand doesn't know.
    let v6 = FlowKey { eth_type: Be16::new(0x86dd), ..FlowKey::ZERO };
    let exthdrs = FlowKey { eth_type: Be16::MAX, ipv6_exthdrs: 1, ..FlowKey::ZERO };
    assert!(!refused(&v6, &exthdrs));
    assert!(encode_match(&v6, &exthdrs, false, KEY_AND_MASK, &mut Writer::default()).is_err());
}

#[test]
fn nested_actions_have_an_end() {
    let nest = |depth| (0..depth).fold(vec![Action::Output(OdpPort(1))], |list, _| vec![Action::Clone(list)]);
    let mut to = Writer::default();
    assert_eq!(encode_actions(&nest(MAX_DEPTH), &mut to), Ok(()));
    assert_eq!(decode_actions(to.bytes()), Ok(nest(MAX_DEPTH)));
    assert_eq!(encode_actions(&nest(MAX_DEPTH + 1), &mut Writer::default()), Err(CodecError::TooDeep));
    // Deeper than any writer of ours goes.
    let mut bytes: Vec<u8> = Vec::new();
    for _ in 0..1000 {
        let len = (bytes.len() as u16 + 4).to_ne_bytes();
        bytes = [&len[..], &uapi::action::CLONE.to_ne_bytes(), &bytes].concat();
    }
    assert_eq!(decode_actions(&bytes), Err(CodecError::TooDeep));
}

#[test]
fn an_action_that_is_not_known_is_named() {
    let mut to = Writer::default();
    to.put_u32(uapi::action::OUTPUT, 1);
    to.put_u32(99, 1);
    assert_eq!(decode_actions(to.bytes()), Err(CodecError::UnknownAction(99)));
}

/// What real kernels sent, and what our own extraction says of the same frames.
#[cfg(target_endian = "little")]
#[test]
fn recorded_upcalls_are_read_as_their_packets_are() {
    use datapath_common::extract::extract;
    use datapath_common::packet::SlicePacket;

    let bytes = |hex: &str| -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    };
    for recorded in [include_str!("recorded/upcalls-6.1.txt"), include_str!("recorded/upcalls-6.12.txt")] {
        let lines: Vec<_> = recorded.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), 19);
        for line in lines {
            let [command, packet, attrs] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let (fitness, key, options) = decoded(&bytes(attrs)).unwrap();
            assert_eq!((fitness, options), (Fitness::Perfect, TunnelOptions::NONE), "{line}");
            // A packet that an action sends up may have been cut.
            if command == "1" {
                let mut own = FlowKey { in_port: key.in_port, ..FlowKey::ZERO };
                extract(&SlicePacket::new(bytes(packet)), &mut own).unwrap();
                assert_eq!(key, own, "{line}");
            }
            assert_eq!(decoded(&key_bytes(&key)), Ok((Fitness::Perfect, key, options)), "{line}");
        }
    }
}
