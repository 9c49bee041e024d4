//! Datapath flows.

use core::fmt;
use std::sync::Arc;

use datapath_common::FlowKey;

use crate::action::Action;

/// Unique id of a flow, chosen by userspace from the flow's masked key (or at random).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ufid(pub u128);

impl fmt::Display for Ufid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = self.0;
        let (a, b, c, d, e) = (h >> 96, h >> 80 & 0xffff, h >> 64 & 0xffff, h >> 48 & 0xffff, h & 0xffff_ffff_ffff);
        write!(f, "ufid:{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
    }
}

impl fmt::Debug for Ufid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What to do where the flow exists or doesn't.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutMode {
    /// The flow must be new.
    Create,
    /// The flow must exist; its actions are replaced, its statistics kept.
    Modify,
    /// Either.
    CreateOrModify,
}

/// A flow to install.
#[derive(Clone, PartialEq, Debug)]
pub struct FlowPut {
    /// Create or modify.
    pub mode: PutMode,
    /// Unique id.
    pub ufid: Ufid,
    /// The key, masked or not.
    pub key: FlowKey,
    /// Bits of the key that a packet must agree with.
    pub mask: FlowKey,
    /// What happens to a packet; nothing means drop. Shared with whoever keeps the flow.
    pub actions: Arc<[Action]>,
}

/// Statistics of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowStats {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// `CLOCK_MONOTONIC` of the last packet in milliseconds; 0 = never used.
    pub used_ms: u64,
    /// Union of the TCP flags seen, host order.
    pub tcp_flags: u16,
}

/// A flow as the datapath has it.
#[derive(Clone, PartialEq, Debug)]
pub struct DatapathFlow {
    /// Unique id.
    pub ufid: Ufid,
    /// The masked key.
    pub key: FlowKey,
    /// The mask.
    pub mask: FlowKey,
    /// The actions.
    pub actions: Arc<[Action]>,
    /// The statistics.
    pub stats: FlowStats,
}
