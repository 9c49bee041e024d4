//! What meets a stranger's bytes and is nobody else's business, for the fuzzers of the `fuzz` crate.

use datapath_common::FlowKey;
use dpif::{Action, Packet};

/// Runs actions on a packet in userspace, as for a flow that no datapath can run: `output` gets each piece that is left to the
/// datapath, with the packet as it is then.
pub fn execute(
    packet: &Packet,
    key: &FlowKey,
    actions: &[Action],
    output: &mut dyn FnMut(&Packet, &FlowKey, Action) -> Result<(), String>,
) -> Result<(), String> {
    crate::upcall::pieces(packet, key, actions, output)
}
