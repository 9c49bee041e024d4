//! Does the datapath's key say what the packet says?
//!
//! Userspace extracts the packet's fields again and compares. A megaflow may only be made where both see the same: it is
//! translated from what userspace sees, and the datapath matches with what *it* sees.

use datapath_common::FlowKey;
use datapath_common::extract::{clear_packet_fields, extract};
use datapath_common::packet::Frame;
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
}
