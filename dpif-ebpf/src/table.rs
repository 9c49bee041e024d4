//! The lookup table, as userspace writes it: see [`datapath_common::table`] for what readers may rely on.

use std::sync::atomic::{AtomicU64, Ordering};

use datapath_common::table::{self, PLACES};
use datapath_common::{Bucket, Digest, SlotRef};
use parking_lot::Mutex;

use crate::mmap::Mapping;

/// How many flows are moved at most to make room for one.
const MAX_MOVES: usize = 64;

/// Why a flow was not published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TableError {
    /// A flow with this tag is there; its slot.
    Occupied(SlotRef),
    /// No room, even after moving other flows.
    Full,
    /// No flow with this digest.
    Missing,
}

/// The table. Readers are the programs; writers take turns.
pub(crate) struct LookupTable {
    buckets: Mapping<Bucket>,
    mask: u32,
    writer: Mutex<()>,
}

impl LookupTable {
    /// The table in these buckets, a power of two of them.
    pub(crate) fn new(buckets: Mapping<Bucket>) -> Self {
        let mask = u32::try_from(buckets.len()).unwrap_or(1 << 31).next_power_of_two().wrapping_sub(1);
        Self { buckets, mask, writer: Mutex::new(()) }
    }

    /// Publishes a flow. `digest_of` gives the digest of the flow that a reference stands for, which says where it may move
    /// to; `None` where the slot is nobody's.
    pub(crate) fn insert(
        &self,
        digest: &Digest,
        slot: SlotRef,
        digest_of: impl Fn(SlotRef) -> Option<Digest>,
    ) -> Result<(), TableError> {
        let _writer = self.writer.lock();
        if let Some(place) = self.find(digest) {
            return Err(TableError::Occupied(place.slot()));
        }
        let (first, second) = table::buckets(digest, self.mask);
        let place = match self.free_place(first).or_else(|| self.free_place(second)) {
            Some(place) => place,
            None => self.make_room(first, second, digest_of).ok_or(TableError::Full)?,
        };
        place.publish(table::tag(digest), slot);
        Ok(())
    }

    /// Replaces the reference of a flow in one store.
    pub(crate) fn replace(&self, digest: &Digest, slot: SlotRef) -> Result<(), TableError> {
        let _writer = self.writer.lock();
        self.find(digest).ok_or(TableError::Missing)?.reference.store(pack(slot), Ordering::Release);
        Ok(())
    }

    /// Removes a flow.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), TableError> {
        let _writer = self.writer.lock();
        self.find(digest).ok_or(TableError::Missing)?.tag.store(0, Ordering::Release);
        Ok(())
    }

    /// Keeps the entries that `keep` says, and frees the others: for adoption, when nobody else writes.
    pub(crate) fn retain(&self, mut keep: impl FnMut(u64, SlotRef) -> bool) {
        let _writer = self.writer.lock();
        for bucket in 0..=self.mask {
            for place in (0..PLACES).filter_map(|i| self.place(bucket, i)) {
                let tag = place.tag.load(Ordering::Acquire);
                if tag != 0 && !keep(tag, place.slot()) {
                    place.tag.store(0, Ordering::Release);
                }
            }
        }
    }

    fn place(&self, bucket: u32, i: usize) -> Option<Place<'_>> {
        let words = self.buckets.words(bucket as usize)?;
        Some(Place { tag: words.get(i)?, reference: words.get(PLACES + i)? })
    }

    fn find(&self, digest: &Digest) -> Option<Place<'_>> {
        let tag = table::tag(digest);
        let (first, second) = table::buckets(digest, self.mask);
        [first, second].into_iter().find_map(|bucket| {
            (0..PLACES).filter_map(|i| self.place(bucket, i)).find(|place| place.tag.load(Ordering::Relaxed) == tag)
        })
    }

    fn free_place(&self, bucket: u32) -> Option<Place<'_>> {
        (0..PLACES).filter_map(|i| self.place(bucket, i)).find(|place| place.tag.load(Ordering::Relaxed) == 0)
    }

    /// Finds by breadth-first search a chain of flows each of which can move to its other bucket, the last to a free place;
    /// then moves them from the last to the first. Nothing moves where there is no such chain.
    fn make_room(&self, first: u32, second: u32, digest_of: impl Fn(SlotRef) -> Option<Digest>) -> Option<Place<'_>> {
        // (bucket, place, index of the step before)
        let mut steps: Vec<(u32, usize, Option<usize>)> = Vec::new();
        for bucket in [first, second] {
            steps.extend((0..PLACES).map(|i| (bucket, i, None)));
        }
        let mut at = 0;
        while at < steps.len() && at < MAX_MOVES {
            let (bucket, i, _) = steps[at];
            let place = self.place(bucket, i)?;
            let other = digest_of(place.slot()).map(|digest| {
                let (a, b) = table::buckets(&digest, self.mask);
                if a == bucket { b } else { a }
            });
            match other {
                Some(other) if other != bucket => {
                    if let Some(free) = self.free_place(other) {
                        return self.shift(&steps, at, free);
                    }
                    steps.extend((0..PLACES).map(|i| (other, i, Some(at))));
                }
                _ => {}
            }
            at += 1;
        }
        None
    }

    /// Moves the flow of step `at` to `free`, the one before it to the place that becomes free, and so on.
    fn shift<'a>(&'a self, steps: &[(u32, usize, Option<usize>)], at: usize, mut free: Place<'a>) -> Option<Place<'a>> {
        let mut at = Some(at);
        while let Some(step) = at {
            let (bucket, i, before) = steps[step];
            let place = self.place(bucket, i)?;
            // First there, then gone here.
            free.publish(place.tag.load(Ordering::Relaxed), place.slot());
            place.tag.store(0, Ordering::Release);
            free = place;
            at = before;
        }
        Some(free)
    }
}

struct Place<'a> {
    tag: &'a AtomicU64,
    reference: &'a AtomicU64,
}

impl Place<'_> {
    fn slot(&self) -> SlotRef {
        let word = self.reference.load(Ordering::Acquire);
        SlotRef { slot: word as u32, generation: (word >> 32) as u32 }
    }

    fn publish(&self, tag: u64, slot: SlotRef) {
        self.reference.store(pack(slot), Ordering::Release);
        self.tag.store(tag, Ordering::Release);
    }
}

/// The reference as the word that lies in memory.
fn pack(slot: SlotRef) -> u64 {
    u64::from(slot.slot) | u64::from(slot.generation) << 32
}
