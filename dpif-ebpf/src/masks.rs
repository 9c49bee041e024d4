//! The masks that the datapath tries a packet under.
//!
//! A mask lives as long as a flow has it. It stands in the lists of the ports whose flows have it ([`lists`]); a packet is tried under the
//! masks of its port's list, then under those of the list of no port in particular. So what one port's flows need costs no other
//! port's packets a look. In a list that mask comes first under which scans have found most lately.
//!
//! Masks and lists are in one of two buffers; buffer and number of masks are one word, so a program sees one state or the next, never
//! a mixture. A new mask is appended behind the published end and to its list, and then published. What is not used any more is
//! left out of a new state, and what is in a bad order is sorted, by writing all lists into the other buffer; that one may be
//! overwritten only when no program walks it any more, so two swaps are a grace period apart.
//!
//! The number of a mask is part of its flows' digests and is never given again.

mod lists;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use datapath_common::maps::{MASK_LISTS, MAX_MASKS};
use datapath_common::mask::list_of;
use datapath_common::{FlowKey, MaskEntry, MaskList};
use dpif::{DpifError, Result};
use parking_lot::Mutex;

use self::lists::Lists;
use crate::background::Background;
use crate::grace::{Grace, Ticket};
use crate::kernel::io_error;
use crate::maps::Maps;

/// How often it is looked whether masks are in the right order.
const LOOK: Duration = Duration::from_millis(500);
/// Fewer finds since the last time say nothing of the order.
const ENOUGH_USES: u64 = 256;

/// A mask in both shapes.
pub(crate) struct Mask {
    /// As the datapath walks it, with its number.
    pub(crate) entry: MaskEntry,
    /// As userspace knows it.
    pub(crate) key: FlowKey,
    /// Its place among all masks. This and the next are changed under the lock of the list.
    place: AtomicU8,
    /// Flows that have it.
    flows: AtomicUsize,
}

impl Mask {
    fn new(entry: MaskEntry, key: FlowKey, place: usize, flows: usize) -> Arc<Self> {
        // There are 256 places.
        Arc::new(Self { entry, key, place: AtomicU8::new(place as u8), flows: AtomicUsize::new(flows) })
    }

    fn place(&self) -> u8 {
        self.place.load(Ordering::Relaxed)
    }

    fn is_used(&self) -> bool {
        self.flows.load(Ordering::Relaxed) != 0
    }

    /// The list of a flow with this mask.
    fn list(&self, in_port: u32) -> u32 {
        list_of(in_port, self.key.in_port)
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
    /// The one that was asked for last, as long as it is among these: most flows have the mask of the one before.
    last: Option<Arc<Mask>>,
    /// As published.
    list: Vec<Arc<Mask>>,
    /// Of each of them, how often scans have found a flow under it, old finds counting less.
    weights: Vec<u64>,
    /// What the datapath had counted of each when that was looked at last.
    counted: Vec<u64>,
    /// As published.
    lists: Lists,
    buffer: usize,
    /// Lists of the other buffer that may not be empty.
    other_lists: Vec<u32>,
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
        let next_id = (0..maps.masks.len()).filter_map(|index| maps.masks.read(index)).map(|entry| entry.id);
        let next_id = next_id.max().unwrap_or_default().wrapping_add(1);
        let (mut by_key, mut list) = (HashMap::default(), Vec::new());
        for entry in (0..count).map_while(|index| maps.masks.read(buffer * MAX_MASKS + index)) {
            let mask = Mask::new(entry, entry.to_key(), list.len(), 0);
            by_key.insert(mask.key, Arc::clone(&mask));
            list.push(mask);
        }
        let mut lists = Lists::default();
        for (number, found) in lists_in(&maps, buffer) {
            lists.adopt(number, found.index.into_iter().take(found.count as usize));
        }
        let state = State {
            by_key,
            last: None,
            weights: vec![0; list.len()],
            counted: uses(&maps, buffer, list.len()),
            list,
            lists,
            buffer,
            other_lists: lists_in(&maps, buffer ^ 1).map(|(number, _)| number).collect(),
            next_id,
            other_free: Some(grace.ticket()),
        };
        Self { maps, grace, state: Mutex::new(state) }
    }

    /// Starts the thread that keeps masks in the order of their use.
    pub(crate) fn start(this: &Arc<Self>) -> std::io::Result<Background> {
        let this = Arc::clone(this);
        Background::start("dpif-ebpf-masks", move |stop| {
            while stop.sleep(LOOK)? {
                this.order()?;
            }
            Ok(())
        })
    }

    /// The mask with this number.
    pub(crate) fn by_id(&self, id: u32) -> Option<Arc<Mask>> {
        self.state.lock().list.iter().find(|mask| mask.entry.id == id).map(Arc::clone)
    }

    /// The mask for one more flow, whose key has this `in_port`; published if it is new, for this port or at all. Doesn't wait unless
    /// the list is full of masks without flows.
    pub(crate) fn acquire(&self, key: &FlowKey, in_port: u32) -> Result<Arc<Mask>> {
        let mut state = self.state.lock();
        let last = state.last.as_ref().filter(|mask| mask.key == *key);
        if let Some(mask) = last.or_else(|| state.by_key.get(key)).map(Arc::clone) {
            mask.flows.fetch_add(1, Ordering::Relaxed);
            self.add_to_list(&mut state, &mask, in_port);
            state.last = Some(Arc::clone(&mask));
            return Ok(mask);
        }
        if state.list.len() >= MAX_MASKS && !state.list.iter().all(|mask| mask.is_used()) {
            if let Some(ticket) = state.other_free {
                self.grace.wait_for(ticket).map_err(|error| io_error("waiting for a grace period", error))?;
            }
            self.rewrite(&mut state);
        }
        if state.list.len() >= MAX_MASKS {
            coverage::inc!("dpif_ebpf_masks_full");
            return Err(DpifError::TooManyMasks(MAX_MASKS));
        }
        let mask = Mask::new(MaskEntry::new(state.next_id, key), *key, state.list.len(), 1);
        state.next_id = state.next_id.wrapping_add(1);
        self.maps.masks.write(state.buffer * MAX_MASKS + state.list.len(), &mask.entry);
        state.by_key.insert(*key, Arc::clone(&mask));
        state.list.push(Arc::clone(&mask));
        state.weights.push(0);
        // A mask of before may have had this place, and a program count for it still.
        let counted = uses(&self.maps, state.buffer, state.list.len()).pop();
        state.counted.push(counted.unwrap_or_default());
        self.add_to_list(&mut state, &mask, in_port);
        self.publish(&state);
        Ok(mask)
    }

    /// One flow less has the mask; its key had this `in_port`.
    pub(crate) fn release(&self, mask: &Mask, in_port: u32) {
        let mut state = self.state.lock();
        mask.flows.fetch_sub(1, Ordering::Relaxed);
        state.lists.remove(mask.list(in_port), mask.place());
    }

    /// Leaves masks without flows out, if the other buffer is free by now.
    pub(crate) fn tidy(&self) {
        let mut state = self.state.lock();
        let all_used = state.lists.are_used() && state.list.iter().all(|mask| mask.is_used());
        if !all_used && self.is_other_free(&state) {
            self.rewrite(&mut state);
        }
    }

    /// Masks that flows have.
    pub(crate) fn in_use(&self) -> usize {
        self.state.lock().list.iter().filter(|mask| mask.is_used()).count()
    }

    /// Sorts the lists by what scans have found lately, if that spares enough.
    fn order(&self) -> std::io::Result<()> {
        let swapped = {
            let mut state = self.state.lock();
            let now = uses(&self.maps, state.buffer, state.list.len());
            let since = |(now, before): (&u64, &u64)| now.wrapping_sub(*before);
            let found: Vec<u64> = now.iter().zip(&state.counted).map(since).collect();
            if found.iter().sum::<u64>() < ENOUGH_USES {
                return Ok(());
            }
            for (weight, found) in state.weights.iter_mut().zip(found) {
                *weight = (*weight / 2).saturating_add(found);
            }
            state.counted = now;
            let is_due = state.lists.is_sorting_due(&state.weights) && self.is_other_free(&state);
            if is_due {
                self.rewrite(&mut state);
            }
            is_due
        };
        // So that whoever deletes the next flow finds the other buffer free.
        if swapped { self.grace.wait() } else { Ok(()) }
    }

    /// The place of the mask goes into the list of a flow's port, if it isn't there yet.
    fn add_to_list(&self, state: &mut State, mask: &Mask, in_port: u32) {
        let number = mask.list(in_port);
        if let Some(at) = state.lists.add(number, mask.place()) {
            let element = state.buffer * MASK_LISTS + number as usize;
            let (word, shift) = (1 + at / 8, at % 8 * 8);
            if let (Some(word), Some(count)) =
                (self.maps.mask_lists.word(element, word), self.maps.mask_lists.word(element, 0))
            {
                let others = word.load(Ordering::Relaxed) & !(0xff << shift);
                word.store(others | u64::from(mask.place()) << shift, Ordering::Relaxed);
                count.store(at as u64 + 1, Ordering::Release);
            }
        }
    }

    fn is_other_free(&self, state: &State) -> bool {
        state.other_free.is_none_or(|ticket| self.grace.passed(ticket))
    }

    /// Writes what is used into the other buffer, in the order of use, and publishes that.
    fn rewrite(&self, state: &mut State) {
        let before = state.lists.numbers();
        let (mut places, mut weights, mut next) = (Vec::new(), Vec::new(), 0u8);
        for (mask, weight) in state.list.iter().zip(&state.weights) {
            places.push(mask.is_used().then_some(next));
            if mask.is_used() {
                weights.push(*weight);
                next = next.wrapping_add(1);
            }
        }
        state.lists.renumber(&places, &state.weights);
        state.weights = weights;
        state.list.retain(|mask| mask.is_used());
        state.by_key.retain(|_, mask| mask.is_used());
        state.last = state.last.take().filter(|mask| mask.is_used());

        state.buffer ^= 1;
        for (index, mask) in state.list.iter().enumerate() {
            mask.place.store(index as u8, Ordering::Relaxed);
            self.maps.masks.write(state.buffer * MAX_MASKS + index, &mask.entry);
        }
        for number in std::mem::replace(&mut state.other_lists, before) {
            if let Some(count) = self.maps.mask_lists.word(state.buffer * MASK_LISTS + number as usize, 0) {
                count.store(0, Ordering::Relaxed);
            }
        }
        for (number, places) in state.lists.iter() {
            let mut list = MaskList { count: 0, reserved: 0, index: [0; MAX_MASKS] };
            for (to, from) in list.index.iter_mut().zip(places) {
                (*to, list.count) = (from, list.count + 1);
            }
            self.maps.mask_lists.write(state.buffer * MASK_LISTS + number as usize, &list);
        }
        state.counted = uses(&self.maps, state.buffer, state.list.len());
        self.publish(state);
        state.other_free = Some(self.grace.ticket());
    }

    fn publish(&self, state: &State) {
        let word = (state.buffer as u64) << 32 | state.list.len() as u64;
        self.maps.published_masks().store(word, Ordering::Release);
    }
}

/// The lists of a buffer that are not empty, as they lie in the map.
fn lists_in(maps: &Maps, buffer: usize) -> impl Iterator<Item = (u32, MaskList)> + '_ {
    (0..MASK_LISTS as u32).filter_map(move |number| {
        let list = maps.mask_lists.read(buffer * MASK_LISTS + number as usize)?;
        (list.count != 0).then_some((number, list))
    })
}

/// How often scans have found a flow under each of the first masks of a buffer.
fn uses(maps: &Maps, buffer: usize, masks: usize) -> Vec<u64> {
    let mut uses = vec![0u64; masks];
    for lane in 0..maps.lanes {
        for (index, sum) in uses.iter_mut().enumerate() {
            let word = maps.mask_uses.word((lane * 2 + buffer) * MAX_MASKS + index, 0);
            *sum = sum.wrapping_add(word.map_or(0, |word| word.load(Ordering::Relaxed)));
        }
    }
    uses
}
