//! Does the datapath's key say what the packet says?
//!
//! Userspace extracts the packet's fields again and compares. A megaflow may only be made where both see the same: it is
//! translated from what userspace sees, and the datapath matches with what *it* sees.

use std::mem::offset_of;

use datapath_common::extract::{HEAD, clear_packet_fields, extract, extract_plain_ipv4};
use datapath_common::key::word;
use datapath_common::packet::Frame;
use datapath_common::{FlowKey, Layers};
use dpif::Features;

use crate::xlate::fits;

/// How a datapath's key fits its packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fitness {
    /// It says the same.
    Perfect,
    /// It has fields that userspace doesn't see.
    TooMuch,
    /// It lacks fields that userspace sees. A flow can't tell such packets from each other.
    TooLittle,
    /// Both have a field, with different values; or the packet has no readable headers.
    Error,
}

/// The word behind the last that a packet's fields are in.
const PACKET_FIELDS_END: usize = offset_of!(FlowKey, ct_orig_ipv6_src) / 8;

/// Whether the key says all that a packet says, of one of the kind that most are: IPv4 without options, without tags. Of any other
/// nothing is known by this.
pub(super) fn says_all(packet: &[u8], key: &FlowKey) -> bool {
    if packet.len() < HEAD as usize {
        return false;
    }
    let (mut plain, mut layers) = (FlowKey::ZERO, Layers::default());
    if !extract_plain_ipv4(&Frame(packet), &mut plain, &mut layers) {
        return false;
    }
    let (words, plain) = (key.words(), plain.words());
    let differs = |at: usize| words[at] ^ plain[at];
    let has = differs(word::ETH_DST) | differs(word::ETH_SRC) | differs(word::IP) | differs(word::IPV4);
    // Such a packet has no other fields; of the first word here the lower half is no packet's.
    let others = words[word::IPV6_LABEL] >> 32 | words[word::VLAN];
    words[word::IPV6_SRC..PACKET_FIELDS_END].iter().fold(has | others, |all, word| all | word) == 0
}

/// Extracts a packet's fields into `again`, with the metadata of the datapath's `key`, and says how that key fits: to say less than
/// the packet does is in order where such a datapath says no more and nobody asks. `None`: the packet is malformed.
pub(super) fn extract_again(packet: &[u8], key: &FlowKey, features: &Features, again: &mut FlowKey) -> Option<Fitness> {
    *again = *key;
    clear_packet_fields(again);
    extract(&Frame(packet), again).ok()?;
    // A tag that the datapath doesn't see is the Ethernet type to it.
    Some(if fits(again, features) { compare(key, again) } else { Fitness::TooLittle })
}

fn compare(datapath: &FlowKey, packet: &FlowKey) -> Fitness {
    if datapath == packet {
        return Fitness::Perfect;
    }
    let mut fitness = Fitness::Perfect;
    for (datapath, packet) in datapath.words().iter().zip(packet.words()) {
        if datapath == packet {
            continue;
        }
        let word = match (datapath & !packet != 0, packet & !datapath != 0) {
            (true, true) => return Fitness::Error,
            (true, false) => Fitness::TooMuch,
            (false, _) => Fitness::TooLittle,
        };
        // A key that lacks something lacks it, whatever else it has.
        if fitness != Fitness::TooLittle {
            fitness = word;
        }
    }
    fitness
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_common::Be16;

    #[test]
    fn keys_fit_as_far_as_they_say_the_same() {
        let packet = [
            &[2; 12][..],
            &[8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0],
            &[10, 0, 0, 1, 10, 0, 0, 2],
            &[1, 2, 3, 4, 0, 8, 0, 0],
        ]
        .concat();
        let mut key = FlowKey { in_port: 3, recirc_id: 9, skb_mark: 4, ..FlowKey::ZERO };
        let mut again = FlowKey::ZERO;
        let features = dpif::program::features();
        extract_again(&packet, &key, &features, &mut again);
        key = again;
        assert_eq!((key.in_port, key.recirc_id, key.skb_mark, key.tp_src.get()), (3, 9, 4, 0x0102));
        let mut fit = |key: &FlowKey| extract_again(&packet, key, &features, &mut again);
        assert_eq!(fit(&key), Some(Fitness::Perfect));
        assert_eq!(fit(&FlowKey { tp_src: Be16::new(0), tp_dst: Be16::new(0), ..key }), Some(Fitness::TooLittle));
        assert_eq!(fit(&FlowKey { nd_target: [1; 16], ..key }), Some(Fitness::TooMuch));
        assert_eq!(fit(&FlowKey { nd_target: [1; 16], tp_dst: Be16::new(0), ..key }), Some(Fitness::TooLittle));
        assert_eq!(fit(&FlowKey { ip_proto: 6, ..key }), Some(Fitness::Error));
        assert_eq!(extract_again(&packet[..13], &key, &features, &mut again), None);
    }

    #[test]
    fn what_is_told_at_a_glance_is_told_by_extraction_too() {
        let udp = [
            &[2; 12][..],
            &[8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0],
            &[10, 0, 0, 1, 10, 0, 0, 2],
            &[1, 2, 3, 4, 0, 20, 0, 0],
            &[0; 20],
        ]
        .concat();
        let changed = |at: usize, bytes: &[u8]| {
            let mut packet = udp.clone();
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            packet
        };
        let mut tagged = udp.clone();
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        let features = dpif::program::features();
        let metadata =
            FlowKey { in_port: 3, recirc_id: 9, skb_mark: 4, ct_label: [1; 16], tun_tos: 3, ..FlowKey::ZERO };
        let mut at_a_glance = 0;
        for packet in [
            udp.clone(),
            changed(23, &[6]),
            changed(23, &[1]),
            changed(20, &[0x20, 0]),
            changed(20, &[0, 9]),
            changed(14, &[0x46]),
            changed(12, &[0x86, 0xdd]),
            tagged,
            udp[..50].to_vec(),
        ] {
            let mut right = FlowKey::ZERO;
            assert!(extract_again(&packet, &metadata, &features, &mut right).is_some());
            at_a_glance += usize::from(says_all(&packet, &right));
            // Whatever bit is another, where extraction sees it.
            for bit in 0..64 * right.words().len() {
                let (mut key, mut again) = (right, FlowKey::ZERO);
                key.words_mut()[bit / 64] ^= 1 << (bit % 64);
                let fitness = extract_again(&packet, &key, &features, &mut again);
                if says_all(&packet, &key) {
                    assert_eq!((fitness, again), (Some(Fitness::Perfect), key), "bit {bit} of {packet:x?}");
                }
            }
        }
        assert_eq!(at_a_glance, 5, "what most packets are");
    }
}
