//! The lookup table, as userspace writes it: see [`datapath_common::table`] for what readers may rely on.

use std::sync::atomic::{AtomicU64, Ordering};

use datapath_common::table::{self, PLACES};
use datapath_common::{Bucket, Digest, SlotRef};
use parking_lot::Mutex;

use crate::mmap::Mapping;
use crate::prefetch::fetch_all;

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

    /// A flow with this digest is going to be inserted.
    pub(crate) fn prepare(&self, digest: &Digest) {
        let (first, second) = table::buckets(digest, self.mask);
        for bucket in [first, second] {
            fetch_all(self.buckets.words(bucket as usize).unwrap_or_default());
        }
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

    /// Finds by breadth-first search a chain of flows each of which can move from its first to its second bucket, the last to a
    /// free place; then moves them from the last to the first. Nothing moves where there is no such chain.
    ///
    /// A reader looks into the first bucket and then into the second, so it can't pass a flow that goes the same way. One that
    /// came back from the second would slip by a reader between the two looks; a flow in its second bucket stays there.
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
            match digest_of(place.slot()).map(|digest| table::buckets(&digest, self.mask)) {
                Some((first, second)) if first == bucket && second != bucket => {
                    if let Some(free) = self.free_place(second) {
                        return self.shift(&steps, at, free);
                    }
                    steps.extend((0..PLACES).map(|i| (second, i, Some(at))));
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

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_common::table::bucket_count;
    use std::collections::HashMap;
    use std::os::fd::AsFd as _;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    /// A table in memory of its own, for `slots` flows.
    fn table(slots: usize) -> LookupTable {
        let buckets = bucket_count(slots);
        let memory = nix::sys::memfd::memfd_create("table", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memory, (buckets * size_of::<Bucket>()) as i64).unwrap();
        LookupTable::new(Mapping::new(memory.as_fd(), buckets).unwrap())
    }

    /// The digest of flow `i`; its slot is `i + 1`, and so says which flow it is.
    fn digest(i: u32) -> Digest {
        let lane = |salt: u64| {
            let x = (u64::from(i) + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (x ^ x >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        };
        Digest { lanes: [lane(1), lane(1 << 40)], mask_id: i % 5, reserved: 0 }
    }

    fn slot(i: u32, generation: u32) -> SlotRef {
        SlotRef { slot: i + 1, generation }
    }

    fn digest_of(slot: SlotRef) -> Option<Digest> {
        Some(digest(slot.slot.checked_sub(1)?))
    }

    /// What the program does: first bucket, second bucket, and once more if it met another flow.
    fn look_up(table: &LookupTable, i: u32) -> Option<SlotRef> {
        let digest = digest(i);
        let (tag, (first, second)) = (table::tag(&digest), table::buckets(&digest, table.mask));
        for _ in 0..2 {
            let mut places = [first, second].into_iter().flat_map(|bucket| (0..PLACES).map(move |i| (bucket, i)));
            let found = places.find_map(|(bucket, i)| {
                let place = table.place(bucket, i)?;
                (place.tag.load(Ordering::Acquire) == tag).then(|| place.slot())
            })?;
            if found.slot == i + 1 {
                return Some(found);
            }
        }
        None
    }

    #[test]
    fn a_table_is_what_was_written_to_it() {
        let table = table(4096);
        let (mut model, mut random) = (HashMap::new(), 12345u64);
        for step in 0..100_000u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let i = (random >> 40) as u32 % 6000;
            let reference = slot(i, step | 1);
            match (random >> 33) % 4 {
                0 | 1 if model.len() < 4096 => match table.insert(&digest(i), reference, digest_of) {
                    Ok(()) => assert_eq!(model.insert(i, reference), None),
                    Err(error) => assert_eq!(model.get(&i).map(|slot| TableError::Occupied(*slot)), Some(error)),
                },
                2 => assert_eq!(table.replace(&digest(i), reference).is_ok(), model.contains_key(&i)),
                _ => assert_eq!(table.remove(&digest(i)).is_ok(), model.remove(&i).is_some()),
            }
            if let Some(slot) = model.get_mut(&i)
                && (random >> 33) % 4 == 2
            {
                *slot = reference;
            }
            assert_eq!(look_up(&table, i), model.get(&i).copied());
        }
        assert!((0..6000).all(|i| look_up(&table, i) == model.get(&i).copied()));
        table.retain(|_, reference| reference.slot % 2 == 0);
        assert!((0..6000).all(|i| look_up(&table, i).is_some() == (model.contains_key(&i) && i % 2 == 1)));
    }

    #[test]
    fn there_is_room_for_as_many_flows_as_there_are_slots() {
        for slots in [100, 4096, 65536] {
            let table = table(slots);
            for i in 0..slots as u32 {
                assert_eq!(table.insert(&digest(i), slot(i, 1), digest_of), Ok(()), "flow {i} of {slots}");
            }
            assert!((0..slots as u32).all(|i| look_up(&table, i) == Some(slot(i, 1))));
        }
    }

    #[test]
    fn a_flow_is_found_while_others_push_it_around() {
        // So full that flows move all the time.
        let table = table(1024);
        let mut installed = 0;
        while table.insert(&digest(installed), slot(installed, 1), digest_of).is_ok() {
            installed += 1;
        }
        assert!(installed > 1024, "{installed}");
        let steady = installed / 2;
        let (stop, looked) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for i in 0..steady {
                        assert_eq!(look_up(&table, i), Some(slot(i, 1)), "flow {i} was missed");
                    }
                    looked.fetch_add(1, Ordering::Relaxed);
                }
            });
            // The flows that may go are replaced by others, oldest first.
            let mut going: std::collections::VecDeque<u32> = (steady..installed).collect();
            for i in installed..installed + 200_000 {
                // Where no chain of moves helps, this one stays out.
                if table.insert(&digest(i), slot(i, 1), digest_of).is_ok() {
                    going.push_back(i);
                }
                if let Some(gone) = going.pop_front_if(|_| i % 2 == 0) {
                    table.remove(&digest(gone)).unwrap();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(looked.load(Ordering::Relaxed) > 0);
    }
}
