//! Frames to keys (`datapath_common::extract`).
//!
//! Input: the frame.
//!
//! - The key is the one that a slow and simple reading of the frame (`reading.rs`) finds.
//! - Frame and packet, a tag in the bytes and one that the device took off, the plain IPv4 way and the long way: the same key.
//! - Extracting again into a key with metadata changes the packet's fields only, and finds the same.

use datapath_common::extract::{HEAD, Layers, clear_packet_fields, extract, extract_into, extract_plain_ipv4};
use datapath_common::packet::{Frame, SlicePacket};
use datapath_common::{Be16, FlowKey, Vlan};

use crate::input::same;
use crate::reading;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let mut key = FlowKey::ZERO;
    let layers = extract(&Frame(bytes), &mut key).ok();
    let found = layers.map(|_| key);
    same(&found, &reading::key(bytes), "the simple reading");
    if let Some(layers) = layers {
        assert!(layers.l3 as usize <= bytes.len() && layers.l4 as usize <= bytes.len() + 2048, "{layers:?}");
    }

    let mut packet = SlicePacket::new(bytes);
    let mut again = FlowKey::ZERO;
    assert_eq!(extract(&packet, &mut again).ok(), layers);
    same(&again, &key, "a packet of the same bytes");

    let (mut plain, mut plain_layers) = (FlowKey::ZERO, Layers::default());
    if bytes.len() >= HEAD as usize && extract_plain_ipv4(&Frame(bytes), &mut plain, &mut plain_layers) {
        same(&(plain, Some(plain_layers)), &(key, layers), "the plain IPv4 way");
    }

    let mut other = key;
    (other.in_port, other.recirc_id, other.skb_mark, other.ct_zone) = (1, 2, 3, 4);
    let metadata = other;
    clear_packet_fields(&mut other);
    let mut again = Layers::default();
    assert_eq!(extract_into(&Frame(bytes), &mut other, &mut again).is_ok(), layers.is_some());
    same(&other, &metadata, "extracted again");

    // The device takes the outer tag off. Such a tag stands in front of a frame that is whole without it.
    if let (Some([0x81 | 0x88, _]), true) = (bytes.get(12..14), bytes.len() >= 18)
        && !key.vlan.tpid.is_zero()
    {
        let tag: Vec<u8> = packet.bytes.drain(12..16).collect();
        let half = |at: usize| Be16::new(u16::from_be_bytes([tag[at], tag[at + 1]]));
        packet.vlan = Vlan { tpid: half(0), tci: half(2) };
        let mut other = FlowKey::ZERO;
        assert_eq!(extract(&packet, &mut other).is_ok(), layers.is_some());
        same(&other, &key, "the tag taken off");
    }
}
