//! The two fields of our key that the reference's flow lacks, the obvious way: a list first, then questions about it.

use datapath_common::extract::{MAX_EXT_HEADERS, MAX_LABELS, ip_proto};

/// `ipv6_exthdrs` of a packet that begins with a whole IPv6 header.
pub(crate) fn extension_bits(packet: &[u8]) -> u16 {
    const NONE: u16 = 1 << 0;
    const AUTH: u16 = 1 << 2;
    const DEST: u16 = 1 << 3;
    const FRAGMENT: u16 = 1 << 4;
    const ROUTING: u16 = 1 << 5;
    const HOP: u16 = 1 << 6;
    const REPEATED: u16 = 1 << 7;
    const DISORDERED: u16 = 1 << 8;

    let mut bits = 0;
    let mut destinations = 0;
    for kind in extensions(packet) {
        // The bit of the header, and those of the headers that may stand before it.
        let (bit, before) = match kind {
            ip_proto::NONE => return bits | NONE,
            ip_proto::HOP => (HOP, 0),
            ip_proto::ROUTING => (ROUTING, HOP | DEST),
            ip_proto::FRAGMENT => (FRAGMENT, HOP | DEST | ROUTING),
            ip_proto::AUTH => (AUTH, HOP | DEST | ROUTING | FRAGMENT),
            _ if destinations == 0 => (DEST, HOP),
            _ if destinations == 1 => (DEST, HOP | DEST | ROUTING | FRAGMENT | AUTH),
            _ => (DEST, u16::MAX),
        };
        // The second of the destination options belongs before the upper layer; from then on all is disorder.
        let is_destination = kind == ip_proto::DEST;
        let again = if is_destination { destinations >= 2 } else { bits & bit != 0 };
        let late = destinations >= 2 && !is_destination && kind != ip_proto::HOP;
        // A repetition is no disorder by itself, but for hop-by-hop options, which are the first header or out of place.
        let seen = if kind == ip_proto::HOP { bits | (u16::from(again) * REPEATED) } else { bits & !REPEATED };
        let disordered = late || seen & !before != 0;
        bits |= (u16::from(again) * REPEATED) | (u16::from(disordered) * DISORDERED);
        bits |= if kind == ip_proto::HOP && disordered { 0 } else { bit };
        destinations += u32::from(is_destination);
    }
    bits
}

/// The extension headers, each stepped over by the generic length. One of which not even that is there is the last.
fn extensions(packet: &[u8]) -> Vec<u8> {
    let (mut kinds, mut kind, mut rest) = (vec![], packet[6], &packet[40..]);
    while matches!(kind, 0 | 43 | 44 | 51 | 59 | 60) && kinds.len() < MAX_EXT_HEADERS as usize {
        kinds.push(kind);
        let [next, length, ..] = rest else { break };
        kind = *next;
        rest = rest.get((usize::from(*length) + 1) * 8..).unwrap_or_default();
    }
    kinds
}

/// `mpls_labels` of a packet that begins with a label stack.
pub(crate) fn label_bits(packet: &[u8]) -> u16 {
    let mut labels = packet.chunks_exact(4).take(MAX_LABELS as usize);
    match labels.position(|label| label[2] & 1 != 0) {
        None => 0,
        Some(bottom) => [1, 3, 7][bottom.min(2)],
    }
}
