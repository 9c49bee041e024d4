//! The megaflows of the benchmarks.

use datapath_common::packet::SlicePacket;
use datapath_common::{Be16, FlowKey, extract};

/// What about every megaflow of a learning switch matches on.
pub(crate) fn usual_mask() -> FlowKey {
    FlowKey {
        in_port: u32::MAX,
        recirc_id: u32::MAX,
        eth_dst: [0xff; 6],
        eth_type: Be16::MAX,
        ip_proto: 0xff,
        ip_frag: 0xff,
        ..FlowKey::ZERO
    }
}

/// The key of a frame that came in at a port.
pub(crate) fn key(in_port: u32, frame: &[u8]) -> FlowKey {
    let mut key = FlowKey { in_port, ..FlowKey::ZERO };
    extract::extract(&SlicePacket::new(frame), &mut key).expect("a whole packet");
    key
}
