//! A key and a mask as netlink attributes (`dpif_netlink::codec`).
//!
//! Input: the key's attributes as a part (two bytes of length before it), the mask's attributes.
//!
//! - A key that is read can be written, and is read again as the same, perfectly.
//! - What the kernel makes of a mask, it makes of that again; and it is written and read as the same.
//! - Where key and mask are accepted for a flow, the kernel matches every bit that the flow does.

use datapath_common::extract::eth_type;
use datapath_common::key::MAC_PROTO_ETHERNET;
use datapath_common::{Be16, FlowKey};
use dpif_netlink::attr::{Attrs, Writer};
use dpif_netlink::codec::{
    Fitness, TunnelOptions, decode_key, decode_mask, encode_key, encode_mask, encode_match, normalize,
};

use crate::input::{Input, same};

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (key_attrs, mask_attrs) = (input.part(), input.rest());
    let (mut key, mut options) = (FlowKey::ZERO, TunnelOptions::NONE);
    let Ok(fitness) = decode_key(key_attrs, &mut key, &mut options) else { return };
    if fitness == Fitness::TooLittle {
        let (mut mask, mut options) = (FlowKey::ZERO, TunnelOptions::NONE);
        let _ = decode_mask(mask_attrs, &key, &mut mask, &mut options);
        return;
    }
    let mut to = Writer::default();
    encode_key(&key, &options, true, &mut to);
    let (mut again, mut options_again) = (FlowKey::ZERO, TunnelOptions::NONE);
    let fitness = decode_key(to.bytes(), &mut again, &mut options_again);
    let mut expected = key;
    // Only a masked key has no type, and the module takes none such: left out, it is that of a frame without one.
    if key.eth_type.is_zero() && key.mac_proto == MAC_PROTO_ETHERNET {
        expected.eth_type = Be16::new(eth_type::NONE);
    }
    same(&(fitness, again, options_again), &(Ok(Fitness::Perfect), expected, options), "the key comes back");

    let (mut mask, mut options) = (FlowKey::ZERO, TunnelOptions::NONE);
    if decode_mask(mask_attrs, &key, &mut mask, &mut options).is_err() {
        return;
    }
    let normal = normalize(&key, &mask, true);
    same(&normalize(&key, &normal, true), &normal, "what is normal stays");
    let mut to = Writer::default();
    encode_mask(&key, &mask, &TunnelOptions::NONE, true, &mut to);
    let fitness = decode_mask(to.bytes(), &key, &mut again, &mut options_again);
    same(&(fitness, again), &(Ok(Fitness::Perfect), normal), "the mask comes back");

    accepted(&key, &mask);
    accepted(&key, &normal);
}

/// What is accepted for a flow is read as the flow that it was, as far as it matches, or as a narrower one.
fn accepted(key: &FlowKey, mask: &FlowKey) {
    let mut to = Writer::default();
    if encode_match(key, mask, true, (1, 2), &mut to).is_err() {
        return;
    }
    let attrs = Attrs::new(to.bytes());
    let part = |kind| attrs.clone().find(kind).expect("both parts are there");
    let (mut key_again, mut mask_again, mut options) = (FlowKey::ZERO, FlowKey::ZERO, TunnelOptions::NONE);
    assert_eq!(decode_key(part(1), &mut key_again, &mut options), Ok(Fitness::Perfect));
    assert_eq!(decode_mask(part(2), &key_again, &mut mask_again, &mut options), Ok(Fitness::Perfect));
    same(&key_again.masked(mask), &key.masked(mask), "a flow");
}
