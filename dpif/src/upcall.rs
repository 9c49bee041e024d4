//! Upcalls.

use std::sync::Arc;

use datapath_common::FlowKey;

use crate::action::Action;
use crate::packet::Packet;

pub use datapath_common::upcall::UpcallKind;

/// A packet that the datapath sent up.
#[derive(Clone, Debug)]
pub struct Upcall {
    /// Miss or action.
    pub kind: UpcallKind,
    /// The packet, its accelerated VLAN tag restored. What its sender left to the device is left still ([`crate::offload`]).
    pub packet: Packet,
    /// Length before truncation.
    pub orig_len: u32,
    /// The key that the datapath extracted.
    pub key: FlowKey,
    /// Cookie of the userspace action; empty for a miss.
    pub cookie: Vec<u8>,
    /// The key under which a tunnel would send the packet, its tunnel fields only, where the userspace action names a tunnel port.
    pub egress_tunnel: Option<Box<FlowKey>>,
    /// The actions of the flow that sent it up, where the userspace action asks for them.
    pub actions: Option<Arc<[Action]>>,
    /// The datapath's hash of the packet.
    pub hash: u32,
    /// `CLOCK_MONOTONIC` in nanoseconds when the datapath queued it.
    pub arrival_ns: u64,
}

impl Default for Upcall {
    fn default() -> Self {
        Self {
            kind: UpcallKind::Miss,
            packet: Packet::default(),
            orig_len: 0,
            key: FlowKey::ZERO,
            cookie: Vec::new(),
            egress_tunnel: None,
            actions: None,
            hash: 0,
            arrival_ns: 0,
        }
    }
}

/// Upcalls received in one go. Its buffers are kept from batch to batch, so that receiving allocates nothing.
#[derive(Default, Debug)]
pub struct UpcallBatch {
    upcalls: Vec<Upcall>,
    used: usize,
    bad: usize,
}

impl UpcallBatch {
    /// Most upcalls that a batch takes.
    pub const MAX: usize = 64;

    /// Forgets the upcalls, keeps their buffers.
    pub fn clear(&mut self) {
        self.used = 0;
        self.bad = 0;
    }

    /// A record was read that is none, and dropped.
    pub fn count_bad(&mut self) {
        self.bad += 1;
    }

    /// Records that were none.
    pub fn bad(&self) -> usize {
        self.bad
    }

    /// Whether the batch takes no more.
    pub fn is_full(&self) -> bool {
        self.used >= Self::MAX
    }

    /// A place for one more upcall. What an earlier batch left in it is for the caller to overwrite, but for the egress tunnel and
    /// the actions, which few have: they are gone. `None` when full.
    pub fn next_slot(&mut self) -> Option<&mut Upcall> {
        if self.is_full() {
            return None;
        }
        if self.used == self.upcalls.len() {
            self.upcalls.push(Upcall::default());
        }
        self.used += 1;
        let slot = self.upcalls.get_mut(self.used - 1)?;
        (slot.egress_tunnel, slot.actions) = (None, None);
        Some(slot)
    }

    /// Takes back the place given last.
    pub fn cancel_slot(&mut self) {
        self.used = self.used.saturating_sub(1);
    }

    /// The upcalls.
    pub fn upcalls(&self) -> &[Upcall] {
        self.upcalls.get(..self.used).unwrap_or_default()
    }

    /// The upcalls, to change.
    pub fn upcalls_mut(&mut self) -> &mut [Upcall] {
        let used = self.used;
        self.upcalls.get_mut(..used).unwrap_or_default()
    }
}
