//! The list of masks that the datapath scans.
//!
//! A mask lives as long as a flow has it. The list is in one of two buffers; buffer and length are one word, so a program sees
//! one list or the next, never a mixture. A new mask is appended behind the published end and then published with it. Masks
//! that no flow has any more are left out of a new list, written whole into the other buffer; that one may be overwritten only
//! when no program walks it any more, so two swaps are a grace period apart.
//!
//! The number of a mask is part of its flows' digests and is never given again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datapath_common::maps::MAX_MASKS;
use datapath_common::{FlowKey, MaskEntry};
use dpif::{DpifError, Result};
use parking_lot::Mutex;

use crate::grace::{Grace, Ticket};
use crate::kernel::io_error;
use crate::maps::Maps;

/// A mask in both shapes.
pub(crate) struct Mask {
    /// As the datapath walks it, with its number.
    pub(crate) entry: MaskEntry,
    /// As userspace knows it.
    pub(crate) key: FlowKey,
    /// Flows that have it. Changed under the lock of the list.
    flows: AtomicUsize,
}

impl Mask {
    fn new(entry: MaskEntry, key: FlowKey, flows: usize) -> Arc<Self> {
        Arc::new(Self { entry, key, flows: AtomicUsize::new(flows) })
    }

    fn is_used(&self) -> bool {
        self.flows.load(Ordering::Relaxed) != 0
    }
}

/// The masks of a datapath.
pub(crate) struct Masks {
    maps: Arc<Maps>,
    grace: Arc<Grace>,
    state: Mutex<State>,
}

struct State {
    by_key: HashMap<FlowKey, Arc<Mask>, ahash::RandomState>,
    /// As published.
    list: Vec<Arc<Mask>>,
    buffer: usize,
    next_id: u32,
    /// The grace period after which nobody walks the other buffer.
    other_free: Option<Ticket>,
}

impl Masks {
    /// The masks that are published; none of them has a flow yet. Numbers begin behind all that `MASKS` ever held.
    pub(crate) fn adopt(maps: Arc<Maps>, grace: Arc<Grace>) -> Self {
        let published = maps.published_masks().load(Ordering::Acquire);
        let buffer = usize::from(published >> 32 != 0);
        let count = (published as u32 as usize).min(MAX_MASKS);
        let mut state = State {
            by_key: HashMap::default(),
            list: Vec::new(),
            buffer,
            next_id: 1,
            other_free: Some(grace.ticket()),
        };
        for index in 0..maps.masks.len() {
            let Some(entry) = maps.masks.read(index) else { break };
            state.next_id = state.next_id.max(entry.id.wrapping_add(1));
        }
        for index in 0..count {
            let Some(entry) = maps.masks.read(buffer * MAX_MASKS + index) else { break };
            let mask = Mask::new(entry, entry.to_key(), 0);
            state.by_key.insert(mask.key, Arc::clone(&mask));
            state.list.push(mask);
        }
        Self { maps, grace, state: Mutex::new(state) }
    }

    /// The mask with this number.
    pub(crate) fn by_id(&self, id: u32) -> Option<Arc<Mask>> {
        self.state.lock().list.iter().find(|mask| mask.entry.id == id).map(Arc::clone)
    }

    /// The mask for one more flow, published if it is new. Doesn't wait unless the list is full of masks without flows.
    pub(crate) fn acquire(&self, key: &FlowKey) -> Result<Arc<Mask>> {
        let mut state = self.state.lock();
        if let Some(mask) = state.by_key.get(key) {
            mask.flows.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(mask));
        }
        if state.list.len() >= MAX_MASKS && !state.list.iter().all(|mask| mask.is_used()) {
            if let Some(ticket) = state.other_free {
                self.grace.wait_for(ticket).map_err(|error| io_error("waiting for a grace period", error))?;
            }
            self.compact(&mut state);
        }
        if state.list.len() >= MAX_MASKS {
            coverage::inc!("dpif_ebpf_masks_full");
            return Err(DpifError::TooManyMasks(MAX_MASKS));
        }
        let mask = Mask::new(MaskEntry::new(state.next_id, key), *key, 1);
        state.next_id = state.next_id.wrapping_add(1);
        self.maps.masks.write(state.buffer * MAX_MASKS + state.list.len(), &mask.entry);
        state.by_key.insert(*key, Arc::clone(&mask));
        state.list.push(Arc::clone(&mask));
        self.publish(&state);
        Ok(mask)
    }

    /// One flow less has the mask.
    pub(crate) fn release(&self, mask: &Mask) {
        let _state = self.state.lock();
        mask.flows.fetch_sub(1, Ordering::Relaxed);
    }

    /// Leaves masks without flows out of the list, if the other buffer is free by now.
    pub(crate) fn tidy(&self) {
        let mut state = self.state.lock();
        let free = state.other_free.is_none_or(|ticket| self.grace.passed(ticket));
        if free && !state.list.iter().all(|mask| mask.is_used()) {
            self.compact(&mut state);
        }
    }

    /// Masks that flows have.
    pub(crate) fn in_use(&self) -> usize {
        self.state.lock().list.iter().filter(|mask| mask.is_used()).count()
    }

    fn compact(&self, state: &mut State) {
        state.list.retain(|mask| mask.is_used());
        state.by_key.retain(|_, mask| mask.is_used());
        state.buffer ^= 1;
        for (index, mask) in state.list.iter().enumerate() {
            self.maps.masks.write(state.buffer * MAX_MASKS + index, &mask.entry);
        }
        self.publish(state);
        state.other_free = Some(self.grace.ticket());
    }

    fn publish(&self, state: &State) {
        let word = (state.buffer as u64) << 32 | state.list.len() as u64;
        self.maps.published_masks().store(word, Ordering::Release);
    }
}
