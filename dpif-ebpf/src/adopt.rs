//! Finding the flows of a datapath that another process left.
//!
//! The lookup table says which flows there are; what it points to is believed only as far as it is consistent: the slot is in
//! use with the same generation and digest, its mask is published, key and mask give the digest, the program is one that the
//! compiler makes. What is not is removed. Everything else, such as slots that were written and never published, becomes free.

use std::collections::HashSet;

use datapath_common::digest::digest;
use datapath_common::maps::EXECUTE_SLOTS;
use datapath_common::op::{MAX_PROGRAM_OPS, SLOT_OPS};
use datapath_common::slot::SlotUse;
use datapath_common::{HotSlot, MaskEntry, Op, OpKind, Slot, SlotRef, Straight, needs, table};
use dpif::program::decompile;
use dpif::{Result, Ufid};

use crate::flows::Flow;
use crate::maps::Maps;
use crate::masks::Masks;
use crate::slots::{Chain, set_group};

/// What is in use in the maps of an adopted datapath.
pub(crate) struct Adopted {
    /// The flows.
    pub(crate) flows: Vec<(Ufid, Flow)>,
    /// By slot.
    pub(crate) slots: Vec<bool>,
    /// By statistics number.
    pub(crate) stats: Vec<bool>,
}

/// Reads the flows of a datapath whose maps nobody else changes. Flows that make no sense are removed.
pub(crate) fn adopt(maps: &Maps, masks: &Masks) -> Result<Adopted> {
    let mut adopted = Adopted { flows: Vec::new(), slots: vec![false; maps.n_slots], stats: vec![false; maps.n_slots] };
    let mut ufids = HashSet::new();
    maps.flows.retain(|tag, reference| {
        let found = flow(maps, masks, tag, reference, &adopted);
        match found {
            Some((ufid, flow, chain, _)) if ufids.insert(ufid) => {
                for slot in chain {
                    mark(&mut adopted.slots, slot);
                }
                mark(&mut adopted.stats, flow.stats_id);
                adopted.flows.push((ufid, flow));
                true
            }
            found => {
                if let Some((_, flow, _, in_port)) = found {
                    masks.release(&flow.mask, in_port);
                }
                tracing::warn!("removing a flow of the pinned datapath that is not consistent");
                false
            }
        }
    });
    Ok(adopted)
}

/// The flow that a reference stands for, with its slots and the port in its key.
fn flow(
    maps: &Maps,
    masks: &Masks,
    tag: u64,
    reference: SlotRef,
    adopted: &Adopted,
) -> Option<(Ufid, Flow, Vec<u32>, u32)> {
    let slot = maps.slots.read(reference.slot as usize)?;
    let consistent = slot.generation == reference.generation
        && slot.generation & 1 == 1
        && slot.usage == SlotUse::Flow as u32
        && table::tag(&slot.digest) == tag
        && adopted.stats.get(slot.stats_id as usize) == Some(&false);
    if !consistent {
        return None;
    }
    let key = slot.digest;
    let mask = masks.by_id(key.mask_id)?;
    if digest(&slot.key, &mask.entry, &maps.seeds) != key || slot.key.masked(&mask.key) != slot.key {
        return None;
    }
    let (slots, ops) = program(maps, reference.slot, &slot, adopted)?;
    let hot = maps.hot_slots.read(reference.slot as usize)?;
    if !has_shape_of(&slot, &mask.entry, &ops) || hot != (HotSlot { group: hot.group, ..HotSlot::of(&slot) }) {
        return None;
    }
    let actions = decompile(&ops, &slot.key)?.into();
    let mask = masks.acquire(&mask.key, slot.key.in_port).ok()?;
    let ufid = Ufid(u128::from_ne_bytes(slot.ufid));
    let chain = Chain::new(slots.iter().copied())?;
    // The group of its ports has another number from now on.
    set_group(maps, reference.slot, 0);
    Some((ufid, Flow { mask, actions, chain, stats_id: slot.stats_id }, slots, slot.key.in_port))
}

/// Whether the slot says of mask and program what those who run it straight through go by.
fn has_shape_of(slot: &Slot, mask: &MaskEntry, ops: &[Op]) -> bool {
    let straight = Straight::of(ops);
    let shape = (u32::from(slot.straight), slot.arg, slot.rewrite, slot.vlan);
    shape == (straight.flags, straight.arg, straight.rewrite, straight.vlan)
        && slot.needs == needs::of(&slot.key, mask, &straight)
        && slot.hot_mask == mask.hot[1..]
}

/// The operations of a program and the slots they lie in.
fn program(maps: &Maps, head: u32, first: &Slot, adopted: &Adopted) -> Option<(Vec<u32>, Vec<Op>)> {
    let (mut slots, mut ops) = (vec![head], Vec::new());
    let mut piece = *first;
    loop {
        let at = piece.ops.iter().position(|op| op.kind == OpKind::End as u16 || op.kind == OpKind::Continue as u16);
        ops.extend_from_slice(piece.ops.get(..at.unwrap_or(SLOT_OPS))?);
        if ops.len() > MAX_PROGRAM_OPS {
            return None;
        }
        let next = match at.and_then(|at| piece.ops.get(at)) {
            Some(op) if op.kind == OpKind::Continue as u16 => op.arg,
            _ => break,
        };
        piece = maps.slots.read(next as usize)?;
        if piece.usage != SlotUse::Continuation as u32 || slots.contains(&next) {
            return None;
        }
        slots.push(next);
    }
    // No slot may belong to two flows.
    let free = |slot: &u32| (*slot as usize) >= EXECUTE_SLOTS && adopted.slots.get(*slot as usize) == Some(&false);
    slots.iter().all(free).then_some((slots, ops))
}

fn mark(list: &mut [bool], index: u32) {
    if let Some(used) = list.get_mut(index as usize) {
        *used = true;
    }
}
