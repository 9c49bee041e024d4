//! Flows: requests about them and how they are read.

use datapath_common::FlowKey;
use dpif::{DatapathFlow, FlowPut, FlowStats, PutMode, Ufid};

use crate::attr::{Attrs, Writer, array, u8_of, u64_of};
use crate::codec::{self, CodecError, Fitness, TunnelOptions};
use crate::kernel::words;
use crate::message::F_CREATE;
use crate::uapi::{cmd, flow};

/// Commands and flags of a put, of which one has to succeed. The module's own "create or modify" finds a flow by its id and
/// then compares its key with the new one before that is masked, so it refuses what is the same flow.
pub(crate) fn put_commands(mode: PutMode) -> &'static [(u8, u16)] {
    const MODIFY: (u8, u16) = (cmd::SET, 0);
    // The module takes this flag for the one that says "and not modify", which means a dump to generic netlink.
    const CREATE: (u8, u16) = (cmd::NEW, F_CREATE);
    match mode {
        PutMode::Create => &[CREATE],
        PutMode::Modify => &[MODIFY],
        PutMode::CreateOrModify => &[MODIFY, CREATE],
    }
}

/// Writes a flow's attributes. `pid` is where packets for userspace go that name no socket.
pub(crate) fn write(put: &FlowPut, pid: u32, exthdrs: bool, to: &mut Writer) -> codec::Result<()> {
    put_ufid(put.ufid, to);
    codec::encode_match(&put.key, &put.mask, exthdrs, (flow::KEY, flow::MASK), to)?;
    let nest = to.begin_nest(flow::ACTIONS);
    codec::encode_actions_for(&put.actions, pid, to)?;
    to.end(nest);
    Ok(())
}

pub(crate) fn put_ufid(ufid: Ufid, to: &mut Writer) {
    to.put(flow::UFID, &ufid.0.to_be_bytes());
}

/// Asks to leave key, mask and actions out of the answer.
pub(crate) fn put_terse(to: &mut Writer) {
    to.put_u32(flow::UFID_FLAGS, flow::OMIT_ALL);
}

/// A flow that was dumped, its key and actions not yet read.
pub(crate) fn ufid_and_stats(attrs: &[u8]) -> Option<(Ufid, FlowStats)> {
    let attrs = Attrs::new(attrs);
    let ufid = attrs.clone().find(flow::UFID).and_then(array).map(u128::from_be_bytes)?;
    let [packets, bytes] = words(attrs.clone().find(flow::STATS).unwrap_or_default());
    let used_ms = attrs.clone().find(flow::USED).and_then(u64_of).unwrap_or(0);
    let tcp_flags = attrs.find(flow::TCP_FLAGS).and_then(u8_of).unwrap_or(0).into();
    Some((Ufid(ufid), FlowStats { packets, bytes, used_ms, tcp_flags }))
}

/// The key of a flow, as the kernel says it.
pub(crate) fn key(attrs: &[u8]) -> Option<&[u8]> {
    Attrs::new(attrs).find(flow::KEY)
}

/// Reads a whole flow, and says how well its key fits. One without an id is not one of ours.
pub(crate) fn read(attrs: &[u8]) -> codec::Result<(Fitness, DatapathFlow)> {
    let missing = CodecError::Contradiction("a flow without an id");
    let (ufid, stats) = ufid_and_stats(attrs).ok_or(missing)?;
    let attrs = Attrs::new(attrs);
    let part = |kind| attrs.clone().find(kind).unwrap_or_default();
    let (mut key, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
    let mut options = TunnelOptions::NONE;
    let fitness = codec::decode_key(part(flow::KEY), &mut key, &mut options)?;
    let of_mask = codec::decode_mask(part(flow::MASK), &key, &mut mask, &mut options)?;
    let actions = codec::decode_actions(part(flow::ACTIONS))?;
    // The kernel's key of a flow is masked; "no port" is not said by one that doesn't match the port.
    let key = key.masked(&mask);
    Ok((fitness.max(of_mask), DatapathFlow { ufid, key, mask, actions: actions.into(), stats }))
}
