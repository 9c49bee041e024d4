//! Flow slots.
//!
//! A slot is written completely before it is published and not reused before a grace period, so a program that found it reads
//! it without locks. The lookup table holds [`SlotRef`]s, eight bytes that are replaced whole. A slot whose generation is not
//! the reference's has been given to another flow since: the reference is stale and the lookup is done again.

use crate::digest::Digest;
use crate::key::{FlowKey, HOT_WORDS};
use crate::op::{Op, SLOT_OPS};

/// A flow of the datapath.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Counts the flows that this slot has held. Even while free, odd while in use.
    pub generation: u32,
    /// [`SlotUse`] as a number.
    pub usage: u32,
    /// Number of the flow's statistics.
    pub stats_id: u32,
    /// Number of the flow's mask.
    pub mask_id: u32,
    /// [`Straight::flags`](crate::Straight) of the program.
    pub straight: u16,
    /// What a specialised program must have for the flow ([`needs`](crate::needs)); 0: none has it.
    pub needs: u16,
    /// [`Straight::arg`](crate::Straight) of the program.
    pub arg: u32,
    /// Masks of the hot words but the first, of which flows with needs match every bit.
    pub hot_mask: [u64; HOT_WORDS - 1],
    /// The masked key; in an execute slot the metadata of the packet. Its hot words are a cache line, all before them another.
    pub key: FlowKey,
    /// Where the flow is (or was) in the lookup table.
    pub digest: Digest,
    /// Unique flow id, for userspace.
    pub ufid: [u8; 16],
    /// [`Straight::rewrite`](crate::Straight) of the program.
    pub rewrite: [u64; 8],
    /// [`Straight::vlan`](crate::Straight) of the program.
    pub vlan: u32,
    /// Number of the group of ports that the packet goes to as it is ([`Group`](crate::maps::Group)), plus 1; 0: none. For who can flood.
    pub group: u32,
    /// The action program.
    pub ops: [Op; SLOT_OPS],
    /// Unused, zero: a slot is a whole number of cache lines.
    pub padding: [u64; 4],
}

/// What a packet's lookup reads of a flow, and where the packet goes, once more: two cache lines beside those of other flows. Slots lie
/// three to a page, these thirty-two, and with many flows it is the pages that a CPU has to look up.
///
/// It is written before the flow is published, as the slot, and has the slot's generation while that holds a flow, an even one else.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HotSlot {
    /// [`Slot::generation`] of a flow.
    pub generation: u32,
    /// [`Slot::stats_id`].
    pub stats_id: u32,
    /// [`Slot::straight`].
    pub straight: u16,
    /// [`Slot::needs`].
    pub needs: u16,
    /// [`Slot::arg`].
    pub arg: u32,
    /// [`Slot::mask_id`].
    pub mask_id: u32,
    /// [`Slot::group`].
    pub group: u32,
    /// [`Slot::hot_mask`].
    pub hot_mask: [u64; HOT_WORDS - 1],
    /// The hot words of [`Slot::key`].
    pub key: [u64; HOT_WORDS],
    /// Unused, zero.
    pub padding: [u64; 2],
}

impl HotSlot {
    /// That of a flow.
    pub fn of(slot: &Slot) -> Self {
        Self {
            generation: slot.generation,
            stats_id: slot.stats_id,
            straight: slot.straight,
            needs: slot.needs,
            arg: slot.arg,
            mask_id: slot.mask_id,
            group: slot.group,
            hot_mask: slot.hot_mask,
            key: *slot.key.hot_words(),
            padding: [0; 2],
        }
    }
}

impl Slot {
    /// A free slot that has never been used.
    // SAFETY: all fields are integers or arrays of integers.
    pub const ZERO: Self = unsafe { core::mem::zeroed() };
}

/// What a slot is used for.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotUse {
    /// Not used.
    Free = 0,
    /// A flow.
    Flow = 1,
    /// The continuation of another slot's program.
    Continuation = 2,
    /// The program of a packet that userspace executes.
    Execute = 3,
}

/// What the lookup table maps a digest to. One 64-bit word, read and replaced whole.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotRef {
    /// Index into the slots.
    pub slot: u32,
    /// The slot's generation when this was written.
    pub generation: u32,
}

/// Statistics of a flow, in one lane. Monotonic; the sum over the lanes is the flow's, of `used_ns` the maximum.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowStats {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// `CLOCK_MONOTONIC` of the last packet, coarse, in nanoseconds; 0 = never.
    pub used_ns: u64,
    /// In the lower 16 bits the union of the TCP flags seen, above them the tick (`jiffies`) at which `used_ns` was set: what
    /// most packets change nothing of is one word.
    pub seen: u64,
}
