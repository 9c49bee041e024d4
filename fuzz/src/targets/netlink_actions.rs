//! Actions as netlink attributes (`dpif_netlink::codec`).
//!
//! Actions that are read can be written, or are refused as what the module can't be told, and are read again as the same. They can be shown, and compiled or refused.

use dpif::odp::format_actions;
use dpif_netlink::attr::Writer;
use dpif_netlink::codec::{CodecError, decode_actions, encode_actions};

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Ok(actions) = decode_actions(bytes) else { return };
    let mut to = Writer::default();
    match encode_actions(&actions, &mut to) {
        Ok(()) => {}
        // Options of a tunnel are not among the actions.
        Err(CodecError::Inexpressible(_)) => return,
        Err(error) => panic!("{error}: {actions:?}"),
    }
    if !to.is_too_long() {
        assert_eq!(decode_actions(to.bytes()), Ok(actions.clone()), "the actions come back");
    }
    let _ = format_actions(&actions, None);
    assert_eq!(dpif::program::check(&actions).is_ok(), dpif::program::compile(&actions).is_ok());
    let _ = dpif::program::compile_in_order(&actions);
}
