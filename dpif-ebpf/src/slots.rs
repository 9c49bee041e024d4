//! Flow slots and statistics numbers: who has them, and when they may be had again.
//!
//! A slot is free (its generation even), or holds a flow, a piece of a longer program, or a program for packet execution
//! (odd). It is written whole before anything points to it, and after nothing points to it any more it rests for a grace
//! period, because a packet that found it may still be running its program. Whoever retires a slot on a handler's way doesn't
//! wait: the slot is remembered with the grace period that will free it, and the next one who waits anyway frees it too.
//!
//! A statistics number belongs to a flow, not to a slot: a modified flow moves to another slot and keeps counting. Its
//! counters are zero whenever the number is free.

use std::collections::VecDeque;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datapath_common::maps::EXECUTE_SLOTS;
use datapath_common::op::SLOT_OPS;
use datapath_common::slot::SlotUse;
use datapath_common::{Digest, FlowKey, HotSlot, MaskEntry, Op, OpKind, Slot, SlotRef, Straight, needs};
use dpif::{DpifError, FlowStats, Result, SlotStats, Ufid};
use parking_lot::Mutex;

use crate::grace::{Grace, Ticket};
use crate::kernel::io_error;
use crate::maps::Maps;
use crate::prefetch::fetch_all;

const WORD_STATS: usize = offset_of!(Slot, stats_id) / 8;
const WORD_DIGEST: usize = offset_of!(Slot, digest) / 8;
const WORD_UFID: usize = offset_of!(Slot, ufid) / 8;
const WORD_KEY: usize = offset_of!(Slot, key) / 8;
const WORD_STRAIGHT: usize = offset_of!(Slot, straight) / 8;
const WORD_HOT_MASK: usize = offset_of!(Slot, hot_mask) / 8;
const WORD_REWRITE: usize = offset_of!(Slot, rewrite) / 8;
const WORD_VLAN: usize = offset_of!(Slot, vlan) / 8;
const WORD_OPS: usize = offset_of!(Slot, ops) / 8;
/// In a [`HotSlot`].
const HOT_WORD_STATS: usize = offset_of!(HotSlot, generation) / 8;
const HOT_WORD_STRAIGHT: usize = offset_of!(HotSlot, straight) / 8;
const HOT_WORD_MASK_ID: usize = offset_of!(HotSlot, mask_id) / 8;
const HOT_WORD_MASK: usize = offset_of!(HotSlot, hot_mask) / 8;
const HOT_WORD_KEY: usize = offset_of!(HotSlot, key) / 8;
/// Words of an operation.
const OP_WORDS: usize = size_of::<Op>() / 8;
/// Words of a slot that most flows are written to.
const USUAL_WORDS: usize = WORD_OPS + 2 * OP_WORDS;
/// A slot that counts nothing.
const NO_STATS: u32 = u32::MAX;

/// The slots of a program, the first of them the one that is pointed to. Most programs need no other, and no memory of their
/// own here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chain {
    head: u32,
    rest: Box<[u32]>,
}

impl Chain {
    /// The chain of these slots, at least one.
    pub(crate) fn new(mut slots: impl Iterator<Item = u32>) -> Option<Self> {
        Some(Self { head: slots.next()?, rest: slots.collect() })
    }

    /// The slot that is pointed to.
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    fn slots(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        std::iter::once(self.head).chain(self.rest.iter().copied())
    }
}

/// What is written into a flow's slot beside its program.
pub(crate) struct FlowHeader<'a> {
    pub(crate) stats_id: u32,
    pub(crate) digest: &'a Digest,
    pub(crate) ufid: Ufid,
    pub(crate) key: &'a FlowKey,
    pub(crate) mask: &'a MaskEntry,
    /// As in [`Slot::group`].
    pub(crate) group: u32,
}

/// All slots and statistics numbers of a datapath.
pub(crate) struct Slots {
    maps: Arc<Maps>,
    grace: Arc<Grace>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: Vec<u32>,
    free_stats: Vec<u32>,
    /// Retired, in the order of their grace periods.
    resting: VecDeque<(Ticket, Chain)>,
}

impl State {
    /// So many slots, or none.
    fn take(&mut self, n: usize) -> Option<Chain> {
        if n == 1 {
            return self.free.pop().map(|head| Chain { head, rest: Box::default() });
        }
        let at = self.free.len().checked_sub(n)?;
        Chain::new(self.free.drain(at..).rev())
    }
}

impl Slots {
    /// The slots of a datapath of which `in_use` and `stats_in_use` say which ones a flow has. All others become free; the
    /// caller knows that no program uses them.
    pub(crate) fn new(maps: Arc<Maps>, grace: Arc<Grace>, in_use: &[bool], stats_in_use: &[bool]) -> Self {
        let used = |list: &[bool], index: usize| list.get(index).copied().unwrap_or_default();
        let slots = Self { maps, grace, state: Mutex::default() };
        let n = slots.maps.n_slots;
        {
            let mut state = slots.state.lock();
            // From the back: the lowest numbers are used first, and the memory that was never touched stays so.
            for index in (EXECUTE_SLOTS..n).rev().filter(|index| !used(in_use, *index)) {
                slots.set_free(index as u32);
                state.free.push(index as u32);
            }
            for index in (0..n).rev().filter(|index| !used(stats_in_use, *index)) {
                slots.clear_stats(index as u32);
                state.free_stats.push(index as u32);
            }
        }
        slots
    }

    /// Takes slots for a program of `ops`, and a statistics number. Waits as [`Slots::take`].
    pub(crate) fn take_with_stats(&self, ops: &[Op]) -> Result<(Chain, u32)> {
        let n = pieces(ops).count();
        self.take_from(|state| {
            // Both or none.
            if state.free_stats.is_empty() {
                return None;
            }
            let taken = (state.take(n)?, state.free_stats.pop()?);
            // Where many flows come, the one that the next flow takes.
            if let Some(next) = state.free.last() {
                self.prepare(*next);
            }
            Some(taken)
        })
    }

    /// A slot is going to be written.
    fn prepare(&self, slot: u32) {
        if let Some(words) = self.maps.slots.words(slot as usize) {
            fetch_all(words.get(..USUAL_WORDS).unwrap_or_default());
        }
        if let Some(words) = self.maps.hot_slots.words(slot as usize) {
            fetch_all(words);
        }
    }

    /// Takes slots for a program of `ops`. Waits for a grace period only if all slots are taken but some are resting.
    pub(crate) fn take(&self, ops: &[Op]) -> Result<Chain> {
        self.take_slots(pieces(ops).count())
    }

    /// Takes the slots that a program for packet execution needs beside its execute slot; `None` if it needs no more.
    pub(crate) fn take_rest(&self, ops: &[Op]) -> Result<Option<Chain>> {
        match pieces(ops).count() {
            1 => Ok(None),
            n => self.take_slots(n - 1).map(Some),
        }
    }

    fn take_slots(&self, n: usize) -> Result<Chain> {
        self.take_from(|state| state.take(n))
    }

    fn take_from<T>(&self, mut take: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        loop {
            let mut state = self.state.lock();
            self.reclaim_passed(&mut state);
            if let Some(taken) = take(&mut state) {
                return Ok(taken);
            }
            let Some((ticket, _)) = state.resting.back() else {
                coverage::inc!("dpif_ebpf_slots_full");
                let flows = self.maps.n_slots - EXECUTE_SLOTS;
                return Err(DpifError::Full(format!("the datapath's {flows} flow slots are in use")));
            };
            let ticket = *ticket;
            drop(state);
            self.grace.wait_for(ticket).map_err(|error| io_error("waiting for a grace period", error))?;
        }
    }

    /// Gives back a statistics number that no flow was published with, or whose flow has rested.
    pub(crate) fn give_back_stats(&self, stats_id: u32) {
        self.clear_stats(stats_id);
        self.state.lock().free_stats.push(stats_id);
    }

    /// Gives back slots that were never pointed to, or that have rested.
    pub(crate) fn give_back(&self, chain: Chain) {
        let mut state = self.state.lock();
        self.free(&mut state, chain);
    }

    /// Lets slots rest that are not pointed to any more. Doesn't wait.
    pub(crate) fn retire(&self, chain: Chain) {
        let mut state = self.state.lock();
        // Under the lock, so that the tickets in the queue ascend.
        let ticket = self.grace.ticket();
        state.resting.push_back((ticket, chain));
    }

    /// How many slots are taken.
    pub(crate) fn count(&self) -> SlotStats {
        let mut state = self.state.lock();
        self.reclaim_passed(&mut state);
        let resting = state.resting.iter().map(|(_, chain)| chain.slots().count()).sum::<usize>();
        let used = (self.maps.n_slots - EXECUTE_SLOTS).saturating_sub(state.free.len() + resting);
        SlotStats { used: used as u64, resting: resting as u64 }
    }

    /// Frees what has rested for long enough.
    pub(crate) fn reclaim(&self) {
        self.reclaim_passed(&mut self.state.lock());
    }

    fn reclaim_passed(&self, state: &mut State) {
        while state.resting.front().is_some_and(|(ticket, _)| self.grace.passed(*ticket)) {
            if let Some((_, chain)) = state.resting.pop_front() {
                self.free(state, chain);
            }
        }
    }

    fn free(&self, state: &mut State, chain: Chain) {
        // Backwards, as they were taken: what was free longest is taken last.
        for slot in chain.slots().rev() {
            self.set_free(slot);
            state.free.push(slot);
        }
    }

    /// Writes a flow into slots that nothing points to yet, and gives the reference to publish and what the flow needs.
    pub(crate) fn write_flow(&self, chain: &Chain, header: &FlowHeader<'_>, ops: &[Op]) -> (SlotRef, u16) {
        let straight = Straight::of(ops);
        let needs = needs::of(header.key, header.mask, &straight);
        self.write_program(chain, ops, &straight, needs, header.group);
        let [_, hot_mask @ ..] = &header.mask.hot;
        let head = chain.head();
        if let Some(words) = self.maps.slots.words(head as usize) {
            let mask_id = header.digest.mask_id;
            let ufid = header.ufid.0.to_ne_bytes();
            let digest = [header.digest.lanes[0], header.digest.lanes[1], u64::from(mask_id)];
            let ufid = [0, 8].map(|at| ufid[at..].first_chunk().map_or(0, |word| u64::from_ne_bytes(*word)));
            store(words, WORD_STATS, &[u64::from(header.stats_id) | u64::from(mask_id) << 32]);
            store(words, WORD_DIGEST, &digest);
            store(words, WORD_UFID, &ufid);
            store(words, WORD_KEY, header.key.words());
            store(words, WORD_HOT_MASK, hot_mask);
        }
        let generation = self.set_used(head, SlotUse::Flow);
        if let Some(words) = self.maps.hot_slots.words(head as usize) {
            store(words, HOT_WORD_STRAIGHT, &[shape(&straight, needs)]);
            store(words, HOT_WORD_MASK_ID, &[u64::from(header.digest.mask_id) | u64::from(header.group) << 32]);
            store(words, HOT_WORD_MASK, hot_mask);
            store(words, HOT_WORD_KEY, header.key.hot_words());
            if let Some(word) = words.get(HOT_WORD_STATS) {
                word.store(u64::from(generation) | u64::from(header.stats_id) << 32, Ordering::Release);
            }
        }
        (SlotRef { slot: head, generation }, needs)
    }

    /// What the flow in a slot that its caller owns needs.
    pub(crate) fn needs(&self, head: u32) -> u16 {
        let word = self.maps.slots.word(head as usize, WORD_STRAIGHT);
        word.map_or(0, |word| (word.load(Ordering::Relaxed) >> 16) as u16)
    }

    /// The group in a slot that its caller owns, as in [`Slot::group`].
    pub(crate) fn group(&self, head: u32) -> u32 {
        self.maps.slots.word(head as usize, WORD_VLAN).map_or(0, |word| (word.load(Ordering::Relaxed) >> 32) as u32)
    }

    /// Sets the group in a slot that its caller owns, whatever programs read it meanwhile.
    pub(crate) fn set_group(&self, head: u32, group: u32) {
        set_group(&self.maps, head, group);
    }

    /// The digest of the flow in a slot that its caller owns.
    pub(crate) fn digest(&self, head: u32) -> Digest {
        let Some(words) = self.maps.slots.words(head as usize) else { return Digest::default() };
        let [a, b, id] = load(words, WORD_DIGEST);
        Digest { lanes: [a, b], mask_id: id as u32, reserved: 0 }
    }

    /// The masked key of the flow in a slot that its caller owns.
    pub(crate) fn key(&self, head: u32) -> FlowKey {
        self.maps.slots.words(head as usize).map_or(FlowKey::ZERO, |words| FlowKey::from_words(&load(words, WORD_KEY)))
    }

    /// `in_port` in the key of the flow in a slot that its caller owns.
    pub(crate) fn in_port(&self, head: u32) -> u32 {
        const { assert!(offset_of!(FlowKey, in_port) == 0) };
        self.maps.slots.word(head as usize, WORD_KEY).map_or(0, |word| word.load(Ordering::Relaxed) as u32)
    }

    /// Arms execute slot `queue` with a program and the metadata of a packet. A long program goes on in `rest`.
    pub(crate) fn write_execute(&self, queue: u32, rest: Option<&Chain>, ops: &[Op], key: &FlowKey) {
        let rest = rest.iter().flat_map(|rest| rest.slots()).collect();
        self.write_program(&Chain { head: queue, rest }, ops, &Straight::of(ops), 0, 0);
        if let Some(words) = self.maps.slots.words(queue as usize) {
            store(words, WORD_STATS, &[u64::from(NO_STATS)]);
            store(words, WORD_KEY, key.words());
        }
        self.set_used(queue, SlotUse::Execute);
    }

    /// Ends an execution: a packet that comes now finds no program.
    pub(crate) fn disarm(&self, queue: u32) {
        self.set_free(queue);
    }

    /// Makes references to the slot stale: who holds one looks its flow up again.
    pub(crate) fn invalidate(&self, chain: &Chain) {
        self.set_free(chain.head());
    }

    fn write_program(&self, chain: &Chain, ops: &[Op], straight: &Straight, needs: u16, group: u32) {
        if chain.rest.is_empty() {
            // Most programs.
            self.write_ops(chain.head(), ops, Op::default());
        } else {
            let nexts = chain.slots().skip(1).map(Some).chain(std::iter::once(None));
            for ((slot, next), piece) in chain.slots().zip(nexts).zip(pieces(ops)) {
                self.write_ops(slot, piece, next.map_or(Op::default(), |next| Op::new(OpKind::Continue, next)));
                if slot != chain.head() {
                    self.set_used(slot, SlotUse::Continuation);
                }
            }
        }
        if let Some(words) = self.maps.slots.words(chain.head() as usize) {
            store(words, WORD_STRAIGHT, &[shape(straight, needs)]);
            store(words, WORD_REWRITE, &straight.rewrite);
            store(words, WORD_VLAN, &[u64::from(straight.vlan) | u64::from(group) << 32]);
        }
    }

    /// Writes operations into a slot, and the one that follows if there is room.
    fn write_ops(&self, slot: u32, ops: &[Op], end: Op) {
        let Some(words) = self.maps.slots.words(slot as usize).and_then(|words| words.get(WORD_OPS..)) else { return };
        for (place, op) in words.chunks_exact(OP_WORDS).take(SLOT_OPS).zip(ops.iter().chain([&end])) {
            let head = u64::from(op.kind) | u64::from(op.flags) << 16 | u64::from(op.arg) << 32;
            store(place, 0, &[head, op.a, op.b]);
        }
    }

    /// Marks a written slot as used; the store orders all that was written before it. Returns its generation.
    fn set_used(&self, slot: u32, usage: SlotUse) -> u32 {
        let Some(word) = self.maps.slots.word(slot as usize, 0) else { return 0 };
        let generation = word.load(Ordering::Relaxed) as u32 | 1;
        word.store(u64::from(generation) | u64::from(usage as u32) << 32, Ordering::Release);
        generation
    }

    fn set_free(&self, slot: u32) {
        let Some(word) = self.maps.slots.word(slot as usize, 0) else { return };
        let old = word.load(Ordering::Relaxed);
        let generation = old as u32;
        let free = generation.wrapping_add(generation & 1);
        // A slot that was never used keeps its page untouched. What lookups read says first that the flow is gone.
        if slot as usize >= EXECUTE_SLOTS
            && let Some(hot) = self.maps.hot_slots.word(slot as usize, HOT_WORD_STATS)
        {
            let old = hot.load(Ordering::Relaxed);
            if old as u32 != free {
                hot.store(u64::from(free) | old & !0xffff_ffff, Ordering::Release);
            }
        }
        if old != u64::from(free) {
            word.store(u64::from(free) | (SlotUse::Free as u64) << 32, Ordering::Release);
        }
    }

    /// The statistics of a flow: the sum over the lanes.
    pub(crate) fn stats(&self, stats_id: u32) -> FlowStats {
        let (mut stats, mut used_ns) = (FlowStats::default(), 0);
        for lane in 0..self.maps.lanes {
            let Some(part) = self.maps.flow_stats.read(lane * self.maps.n_slots + stats_id as usize) else { continue };
            stats.packets = stats.packets.wrapping_add(part.packets);
            stats.bytes = stats.bytes.wrapping_add(part.bytes);
            stats.tcp_flags |= part.seen as u16;
            used_ns = used_ns.max(part.used_ns);
        }
        // A flow that was used in the first millisecond of the clock was used all the same.
        stats.used_ms = if used_ns == 0 { 0 } else { (used_ns / 1_000_000).max(1) };
        stats
    }

    fn clear_stats(&self, stats_id: u32) {
        for lane in 0..self.maps.lanes {
            let Some(words) = self.maps.flow_stats.words(lane * self.maps.n_slots + stats_id as usize) else {
                continue;
            };
            for word in words.iter().filter(|word| word.load(Ordering::Relaxed) != 0) {
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// As [`Slots::set_group`], of slots that are still to be adopted.
pub(crate) fn set_group(maps: &Maps, head: u32, group: u32) {
    let words = [maps.slots.word(head as usize, WORD_VLAN), maps.hot_slots.word(head as usize, HOT_WORD_MASK_ID)];
    for word in words.into_iter().flatten() {
        let other = word.load(Ordering::Relaxed) as u32;
        word.store(u64::from(other) | u64::from(group) << 32, Ordering::Relaxed);
    }
}

/// The word of what a slot says of its program in short.
fn shape(straight: &Straight, needs: u16) -> u64 {
    u64::from(straight.flags as u16) | u64::from(needs) << 16 | u64::from(straight.arg) << 32
}

#[inline]
fn store<const N: usize>(words: &[AtomicU64], at: usize, values: &[u64; N]) {
    let Some(words) = words.get(at..).and_then(|words| words.first_chunk::<N>()) else { return };
    for (word, value) in words.iter().zip(values) {
        word.store(*value, Ordering::Relaxed);
    }
}

fn load<const N: usize>(words: &[AtomicU64], at: usize) -> [u64; N] {
    std::array::from_fn(|i| words.get(at + i).map_or(0, |word| word.load(Ordering::Relaxed)))
}

/// Cuts a program into what each slot holds: all but the last piece leave room for the operation that goes on in the next
/// slot, and an operation stays together with the `Data` behind it. A program of nothing is one empty piece.
fn pieces(ops: &[Op]) -> impl Iterator<Item = &[Op]> {
    let mut rest = Some(ops);
    std::iter::from_fn(move || {
        let ops = rest?;
        if ops.len() <= SLOT_OPS {
            return rest.take();
        }
        let is_data = |at: usize| ops.get(at).is_some_and(|op| op.kind == OpKind::Data as u16);
        let mut cut = SLOT_OPS - 1;
        while cut > 1 && is_data(cut) {
            cut -= 1;
        }
        let (piece, others) = ops.split_at(cut);
        rest = Some(others);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(kind: OpKind, arg: u32) -> Op {
        Op::new(kind, arg)
    }

    #[test]
    fn a_program_is_cut_so_that_every_piece_fits_with_its_link() {
        for len in [0, 1, 31, 32, 33, 62, 63, 64, 500, 4096] {
            let ops: Vec<Op> = (0..len).map(|i| op(OpKind::Output, i)).collect();
            let pieces: Vec<_> = pieces(&ops).collect();
            assert_eq!(pieces.concat(), ops);
            let (last, others) = pieces.split_last().unwrap();
            assert!(last.len() <= SLOT_OPS && others.iter().all(|p| p.len() < SLOT_OPS), "{len}");
            assert_eq!(pieces.len(), if len <= 32 { 1 } else { (len as usize - 2) / 31 + 1 }, "{len}");
        }
    }

    #[test]
    fn a_cookie_stays_with_its_operation() {
        for before in 20..32 {
            let mut ops: Vec<Op> = (0..before).map(|i| op(OpKind::Output, i)).collect();
            ops.push(op(OpKind::Userspace, 128));
            ops.extend((0..8).map(|_| op(OpKind::Data, 0)));
            ops.extend((0..10).map(|i| op(OpKind::Output, i)));
            let pieces: Vec<_> = pieces(&ops).collect();
            assert_eq!(pieces.concat(), ops);
            assert!(pieces.iter().all(|p| p[0].kind != OpKind::Data as u16), "{before}");
            assert!(pieces.iter().all(|p| p.len() <= SLOT_OPS));
        }
    }
}
