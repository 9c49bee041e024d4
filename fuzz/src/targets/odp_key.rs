//! A flow's key and mask as text (`dpif::odp`).
//!
//! What is read can be written, in each style, and what was written is read as the same flow and written as the same text. What
//! the text of a style can't say is taken out before (`sayable`).

use datapath_common::{Be16, Be32, FlowKey};
use dpif::odp::{Style, parse_flow_key};

use crate::input::{same, text};

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Ok((key, mask)) = parse_flow_key(&text(bytes), None) else { return };
    for (verbose, packet_type) in [(false, false), (true, false), (false, true), (true, true)] {
        let style = Style { verbose, packet_type, ..Style::default() };
        let shown = style.key(&key, Some(&mask));
        let (key_again, mask_again) =
            parse_flow_key(&shown, None).unwrap_or_else(|error| panic!("{shown:?} is not read: {error}"));
        let (mask, mask_again) = (sayable(&key, mask, &style), sayable(&key, mask_again, &style));
        same(&mask_again, &mask, &format!("mask of {shown:?}"));
        same(&key_again.masked(&mask), &key.masked(&mask), &format!("key of {shown:?}"));
        // Without a packet type, a packet without link layer is one of which that is not said.
        let key_again = FlowKey { mac_proto: key.mac_proto, ..key_again };
        let shown_again = style.key(&key_again, Some(&mask_again));
        assert_eq!(style.key(&key, Some(&mask)), shown_again, "{shown:?} written again");
    }
    let _ = Style::default().key(&key, None);
}

/// What a text says of a mask.
fn sayable(key: &FlowKey, mut mask: FlowKey, style: &Style<'_>) -> FlowKey {
    // An id is matched, or isn't there; where everything is shown it is there.
    if mask.recirc_id != 0 || style.verbose {
        mask.recirc_id = u32::MAX;
    }
    if !style.packet_type {
        mask.mac_proto = 0;
    }
    // "No port" has no text.
    if key.in_port == u32::MAX {
        mask.in_port = 0;
    }
    // A stack of labels of which none is matched is not shown.
    if mask.mpls_lse == [Be32::ZERO; 3] {
        mask.mpls_labels = 0;
    }
    // A frame without tag is one, whether that is matched or not.
    for (tag, mask) in [(key.vlan, &mut mask.vlan), (key.cvlan, &mut mask.cvlan)] {
        if tag.tci.is_zero() {
            mask.tci = Be16::ZERO;
        }
    }
    mask
}
