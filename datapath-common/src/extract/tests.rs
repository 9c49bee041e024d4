//! What single malformed packets become. Equality with other extractions over generated packets is tested where those are.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::packet::SlicePacket;

const ADDRESSES: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

fn frame(parts: &[&[u8]]) -> Vec<u8> {
    let mut frame = ADDRESSES.to_vec();
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

fn key_of(frame: &[u8]) -> (FlowKey, Layers) {
    let mut key = FlowKey::ZERO;
    let layers = extract(&SlicePacket::new(frame), &mut key).expect("the module takes this frame");
    (key, layers)
}

fn ipv4(proto: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![8, 0, 0x45, 0x10, 0, 0, 0, 0];
    p.extend(fragment.to_be_bytes());
    p.extend([64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    p.extend_from_slice(payload);
    p
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x86, 0xdd, 0x6a, 0xb1, 0x23, 0x45, 0, 0, next, 63];
    p.extend([0x11; 16]);
    p.extend([0x22; 16]);
    p.extend_from_slice(payload);
    p
}

fn tcp(offset: u8, flags: u8) -> Vec<u8> {
    let mut p = vec![0, 80, 1, 0];
    p.extend([0; 8]);
    p.extend([offset << 4 | 0x1, flags, 0, 0, 0, 0, 0, 0]);
    p
}

#[test]
fn a_frame_shorter_than_an_ethernet_header_is_malformed() {
    let mut key = FlowKey::ZERO;
    assert_eq!(extract(&SlicePacket::new(vec![0; 13]), &mut key), Err(Malformed));
    assert_eq!(key_of(&[0; 14]).0.eth_type.get(), eth_type::NONE);
}

#[test]
fn tcp_over_ipv4_has_ports_and_twelve_flag_bits() {
    let (key, layers) = key_of(&frame(&[&ipv4(6, 0, &tcp(5, 0x12))]));
    assert_eq!((key.ip_proto, key.ip_tos, key.ip_ttl, key.ip_frag), (6, 0x10, 64, 0));
    assert_eq!((key.tp_src.get(), key.tp_dst.get(), key.tcp_flags.get()), (80, 256, 0x112));
    assert_eq!((key.ipv4_src.get(), key.ipv4_dst.get()), (0x0a00_0001, 0x0a00_0002));
    assert_eq!(layers, Layers { l3: 14, l4: 34, ..Layers::default() });
}

#[test]
fn a_transport_header_that_lies_about_its_length_has_no_ports() {
    for payload in [tcp(4, 0x10), tcp(6, 0x10), tcp(5, 0x10)[..19].to_vec()] {
        let (key, layers) = key_of(&frame(&[&ipv4(6, 0, &payload)]));
        assert_eq!((key.ip_proto, key.tp_src.get(), key.tcp_flags.get()), (6, 0, 0));
        assert_eq!(layers.l4, 34, "the checksum of a cut header is still adapted where it is there");
    }
}

#[test]
fn a_bad_ipv4_header_length_blanks_the_network_layer_but_not_the_type() {
    for first in [0x44, 0x46] {
        let mut bytes = frame(&[&ipv4(17, 0, &[])]);
        bytes[14] = first;
        let (key, layers) = key_of(&bytes);
        assert_eq!(key.eth_type.get(), eth_type::IPV4);
        assert_eq!((key.ip_proto, key.ip_ttl, key.ipv4_src.get()), (0, 0, 0));
        assert_eq!(layers.l4, 0);
    }
}

#[test]
fn nothing_looks_at_the_ip_version_or_total_length() {
    let mut bytes = frame(&[&ipv4(17, 0, &[0, 1, 0, 2, 0, 8, 0, 0])]);
    bytes[14] = 0xf5;
    bytes[16] = 0xff;
    assert_eq!(key_of(&bytes).0.tp_dst.get(), 2);
}

#[test]
fn fragments_are_first_or_later_and_later_ones_have_no_ports() {
    let udp = [0, 1, 0, 2, 0, 8, 0, 0];
    let cases =
        [(0x4000, crate::key::FRAG_NONE, 1), (0x2000, FRAG_FIRST, 1), (0x2001, FRAG_LATER, 0), (0x0001, FRAG_LATER, 0)];
    for (field, frag, port) in cases {
        let (key, _) = key_of(&frame(&[&ipv4(17, field, &udp)]));
        assert_eq!((key.ip_frag, key.tp_src.get()), (frag, port), "{field:#x}");
    }
}

#[test]
fn icmp_type_and_code_are_in_the_ports() {
    let (key, _) = key_of(&frame(&[&ipv4(1, 0, &[8, 3, 0, 0, 0, 0, 0, 0])]));
    assert_eq!((key.tp_src.get(), key.tp_dst.get()), (8, 3));
    let (key, _) = key_of(&frame(&[&ipv4(1, 0, &[8, 3, 0, 0, 0, 0, 0])]));
    assert_eq!((key.tp_src.get(), key.tp_dst.get()), (0, 0), "an ICMP header has eight bytes");
}

#[test]
fn two_tags_are_keys_and_a_third_is_a_type() {
    let tags: [&[u8]; 3] = [&[0x88, 0xa8, 0x30, 5], &[0x81, 0, 0, 6], &[0x81, 0, 0, 7]];
    let ip = ipv4(17, 0, &[0, 1, 0, 2, 0, 8, 0, 0]);
    let (key, layers) = key_of(&frame(&[tags[0], tags[1], &ip]));
    assert_eq!((key.vlan.tpid.get(), key.vlan.tci.get()), (0x88a8, 0x3005));
    assert_eq!((key.cvlan.tpid.get(), key.cvlan.tci.get()), (0x8100, 0x1006));
    assert_eq!((key.eth_type.get(), layers.l3, key.tp_dst.get()), (0x0800, 22, 2));
    let (key, _) = key_of(&frame(&[tags[0], tags[1], tags[2], &ip]));
    assert_eq!((key.eth_type.get(), key.ip_proto), (0x8100, 0));
}

#[test]
fn an_accelerated_tag_is_the_outer_one() {
    let packet = SlicePacket {
        bytes: frame(&[&[0x81, 0, 0, 6], &ipv4(17, 0, &[0; 8])]),
        vlan: Vlan { tpid: Be16::new(0x8100), tci: Be16::new(9) },
        partial_checksum: false,
    };
    let mut key = FlowKey::ZERO;
    extract(&packet, &mut key).unwrap();
    assert_eq!((key.vlan.tci.get(), key.cvlan.tci.get(), key.eth_type.get()), (0x1009, 0x1006, 0x0800));
    let mut in_bytes = packet.clone();
    in_bytes.restore_vlan();
    let mut other = FlowKey::ZERO;
    extract(&in_bytes, &mut other).unwrap();
    assert_eq!(key, other);
}

#[test]
fn a_tag_that_is_cut_off_is_a_type() {
    let (key, _) = key_of(&frame(&[&[0x81, 0, 0, 5, 8]]));
    assert_eq!((key.eth_type.get(), key.vlan.tci.get()), (0x8100, 0));
}

#[test]
fn llc_has_a_type_only_with_snap_and_no_organisation() {
    let cases: [(&[u8], u16); 4] = [
        (&[0, 30, 0xaa, 0xaa, 3, 0, 0, 0, 8, 6], 0x0806),
        (&[0, 30, 0xaa, 0xaa, 3, 0, 0, 1, 8, 6], 4),
        (&[0, 30, 0xaa, 0xaa, 3, 0, 0, 0, 5, 0], 4),
        (&[0, 30, 0x42, 0x42, 3, 0, 0, 0, 8, 6], 4),
    ];
    for (bytes, expected) in cases {
        assert_eq!(key_of(&frame(&[bytes])).0.eth_type.get(), expected, "{bytes:x?}");
    }
}

#[test]
fn arp_is_a_key_only_for_ipv4_over_ethernet() {
    let mut arp = vec![8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    arp.extend([1; 6]);
    arp.extend([10, 0, 0, 1]);
    arp.extend([2; 6]);
    arp.extend([10, 0, 0, 2]);
    let (key, _) = key_of(&frame(&[&arp]));
    assert_eq!((key.ip_proto, key.ipv4_src.get(), key.arp_sha, key.arp_tha), (2, 0x0a00_0001, [1; 6], [2; 6]));
    let mut large = arp.clone();
    large[8] = 1;
    assert_eq!(key_of(&frame(&[&large])).0.ip_proto, 0, "opcodes beyond a byte are 0");
    for at in [3, 4, 6, 7] {
        let mut other = arp.clone();
        other[at] ^= 1;
        assert_eq!(key_of(&frame(&[&other])).0.arp_sha, [0; 6], "byte {at}");
    }
    assert_eq!(key_of(&frame(&[&arp[..29]])).0.ipv4_src.get(), 0);
}

#[test]
fn ipv6_walks_extension_headers() {
    let udp = [0, 1, 0, 2, 0, 8, 0, 0];
    let hop = [43, 0, 0, 0, 0, 0, 0, 0];
    let routing = |left| [17, 0, 4, left, 0, 0, 0, 0];
    let (key, layers) = key_of(&frame(&[&ipv6(0, &[&hop[..], &routing(1), &udp].concat())]));
    assert_eq!((key.ip_proto, key.tp_dst.get(), layers.l4, layers.routing), (17, 2, 70, 1));
    assert_eq!((key.ip_tos, key.ip_ttl, key.ipv6_label.get()), (0xab, 63, 0x12345));
    assert_eq!(key.ipv6_exthdrs, 1 << 6 | 1 << 5);
    let (key, layers) = key_of(&frame(&[&ipv6(0, &[&hop[..], &routing(0)[..3]].concat())]));
    assert_eq!((key.ip_proto, layers.l4), (59, 0), "a chain that is cut off has no protocol");
}

#[test]
fn ipv6_fragments_as_the_module_sees_them() {
    let udp = [0, 1, 0, 2, 0, 8, 0, 0];
    let fragment = |next, offset: u16| {
        let o = offset.to_be_bytes();
        [next, 0, o[0], o[1], 0, 0, 0, 0]
    };
    for (next, offset, frag, proto, port) in [
        (17, 1, FRAG_FIRST, 17, 1),
        (17, 8, FRAG_LATER, 44, 0),
        // The header behind the fragment header is another extension header: an error, and so not "later".
        (60, 8, FRAG_FIRST, 59, 0),
    ] {
        let (key, _) = key_of(&frame(&[&ipv6(44, &[&fragment(next, offset)[..], &udp].concat())]));
        assert_eq!((key.ip_frag, key.ip_proto, key.tp_src.get()), (frag, proto, port), "{next} {offset}");
    }
}

#[test]
fn a_link_layer_address_given_twice_invalidates_neighbour_discovery() {
    let mut ns = vec![135, 0, 0, 0, 0, 0, 0, 0];
    ns.extend([0x33; 16]);
    let option = |kind| [kind, 1, 4, 4, 4, 4, 4, 4];
    let (key, _) = key_of(&frame(&[&ipv6(58, &[&ns[..], &option(1)].concat())]));
    assert_eq!((key.tp_src.get(), key.nd_target, key.arp_sha, key.arp_tha), (135, [0x33; 16], [4; 6], [0; 6]));
    let (key, _) = key_of(&frame(&[&ipv6(58, &[&ns[..], &option(1), &option(1)].concat())]));
    assert_eq!((key.tp_src.get(), key.nd_target, key.arp_sha), (135, [0; 16], [0; 6]));
    let (key, _) = key_of(&frame(&[&ipv6(58, &[&ns[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat())]));
    assert_eq!(key.nd_target, [0x33; 16], "an option of length 0 ends the walk");
}

#[test]
fn mpls_labels_count_only_when_the_stack_has_a_bottom() {
    let (label, bottom) = ([0, 0, 0x10, 64], [0, 0, 0x11, 64]);
    for (stack, labels) in
        [(vec![bottom], 1), (vec![label, bottom], 3), (vec![label, label, label, bottom], 7), (vec![label, label], 0)]
    {
        let (key, _) = key_of(&frame(&[&[0x88, 0x47], &stack.concat()]));
        assert_eq!(key.mpls_labels, labels);
        assert_eq!(key.mpls_lse[0], Be32::from_raw(u32::from_ne_bytes(stack[0])));
    }
}

#[test]
fn a_broken_nsh_header_is_malformed() {
    let good = [0x89, 0x4f, 0x0f, 0xc6, 1, 3, 0, 0, 5, 1];
    let context = [7; 16];
    let (key, _) = key_of(&frame(&[&good, &context]));
    assert_eq!((key.nsh_ttl, key.nsh_mdtype, key.nsh_np, key.nsh_path.get()), (63, 1, 3, 0x0501));
    for (at, value) in [(2, 0x4f), (3, 0xc5), (4, 3)] {
        let mut bad = good;
        bad[at] = value;
        let mut key = FlowKey::ZERO;
        let bytes = frame(&[&bad, &context]);
        assert_eq!(extract(&SlicePacket::new(bytes), &mut key), Err(Malformed), "byte {at}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_extraction_panic_or_set_metadata(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut key = FlowKey::ZERO;
        let _ = extract(&SlicePacket::new(bytes), &mut key);
        let metadata = [0, 6, 7, 9, 10, 11, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37];
        prop_assert!(metadata.iter().all(|w| key.words()[*w] == 0));
        clear_packet_fields(&mut key);
        prop_assert_eq!(key, FlowKey::ZERO);
    }
}
