//! Finding the flow of a packet.
//!
//! The flow that the last packet with the same hash had is tried first, then the mask that it had; only then are masks scanned:
//! those that have flows of the packet's port, then those that have flows of no port in particular; in both what finds most comes
//! first. Under each mask the masked key is digested, the digest looked up, and the key in the slot compared word by word.
//!
//! **The cache.** Each hash has a place, and the eight places of its cache line are its row. The flow that came last by a hash is
//! in the hash's own place, where it is found at once; the one that it drives out moves to another place of the row that was
//! never used, or to one chosen by chance. Only who is not in its own place looks through the row, where 16 bits of the hash tell
//! the places apart. So as long as no more than eight flows in use share a row, all of them end up in it, whatever lies there from
//! before. Specialised programs have a hash of their own ([`seen::hash`]); what they can run is remembered by that one.

use core::ffi::c_void;
use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_loop};
use datapath_common::digest::mix;
use datapath_common::key::{COLD_WORDS, HOT_WORDS, KEY_WORDS, word};
use datapath_common::maps::{ANY_PORT, FLOW_CACHE_PLACES, FLOW_CACHE_WAYS, Lane, MASK_LISTS as LISTS, MAX_MASKS};
use datapath_common::mask::list_of_packets;
use datapath_common::needs::FITS;
use datapath_common::{Digest, DigestSeeds, HotSlot, MaskEntry, Slot, needs, seen, table};

use crate::maps::{CONTROL, FLOWS, HOT_SLOTS, LANE, MASK_LISTS, MASK_USES, MASKS, SEEDS, SLOTS, Scratch};
use crate::stats;

/// Where a cached word has the index of the mask; below it is the slot.
const CACHED_MASK: u32 = 24;
/// Where it has the lower 16 bits of the slot's generation. That they come again is of no harm: the key is compared.
const CACHED_GENERATION: u32 = 32;
/// Where it has its tag, 16 bits of the packet's hash.
const CACHED_TAG: u32 = 48;
/// Slots with higher numbers are not cached.
const MAX_CACHED_SLOTS: u32 = 1 << CACHED_MASK;

/// What a callback of `bpf_loop` gets.
struct Scan {
    s: *mut Scratch,
}

/// Looks the key up, whose hash is `s.hash`, and counts. `again`: the packet recirculates. The flow's slot, whose number is
/// `s.slot` then.
#[inline(always)]
pub fn lookup(s: &mut Scratch, again: bool) -> Option<&'static HotSlot> {
    let lane = LANE.at(s.lane);
    // SAFETY: the map's element.
    if let Some(slot) = unsafe { in_cache(s, lane) } {
        if is_asked_for(s, slot) {
            tell(s);
        }
        // SAFETY: as above.
        unsafe {
            let stats = &raw mut (*lane).stats;
            stats::add(&raw mut (*stats).cache_hit, 1);
            if again {
                stats::add(&raw mut (*stats).recirculated, 1);
            }
        }
        return Some(slot);
    }
    let scanned = search(s);
    count(s, scanned as u32, u32::from(again));
    if s.found != 0 { Some(HOT_SLOTS.get(s.slot)) } else { None }
}

#[inline(always)]
fn hot_words(s: &Scratch) -> &[u64; HOT_WORDS] {
    // SAFETY: the first words of an array that has more.
    unsafe { &*s.words.as_ptr().cast() }
}

/// The flow that the cache has for the key. If it has none, `s` is ready for a [`search`].
///
/// # Safety
/// `lane` points to the lane of this CPU.
#[inline(always)]
pub unsafe fn in_cache(s: &mut Scratch, lane: *mut Lane) -> Option<&'static HotSlot> {
    s.mask_count = 0;
    s.mask_index = 0;
    // SAFETY: the caller's promise.
    let cached = unsafe { cached_in(lane, s.hash) };
    if let Some(slot) = cached_slot_here(cached)
        && slot.needs & FITS != 0
        && fits(&s.words, slot)
    {
        s.slot = cached_number(cached);
        if s.serves != 0 {
            s.mask_index = (cached >> CACHED_MASK) as u32 % MAX_MASKS as u32;
        }
        return Some(slot);
    }
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: the map's element; a word that is read and written whole, so that CPUs may share it.
    let masks = unsafe { core::ptr::read_volatile(&raw const (*control).masks) };
    if let Some(slot) = cached_flow(s, masks, cached) {
        s.slot = cached_number(cached);
        s.mask_index = (cached >> CACHED_MASK) as u32 % MAX_MASKS as u32;
        return Some(slot);
    }
    s.mask_base = if masks >> 32 == 0 { 0 } else { MAX_MASKS as u32 };
    let count = masks as u32;
    s.mask_count = if count <= MAX_MASKS as u32 { count } else { MAX_MASKS as u32 };
    s.mask_index = (cached >> CACHED_MASK) as u32 % MAX_MASKS as u32;
    None
}

#[inline(always)]
fn own_place(hash: u64) -> u32 {
    (hash >> 40) as u32
}

/// A place of the cache of the lane that this points to, by its number, of which the bits that are too high don't count.
///
/// # Safety
/// `lane` points to a lane.
#[inline(always)]
unsafe fn place_in(lane: *mut Lane, number: u32) -> *mut u64 {
    // SAFETY: the caller's promise; the place is below the length of the cache.
    unsafe { (&raw mut (*lane).cache).cast::<u64>().add(crate::opaque(number) as usize % FLOW_CACHE_PLACES) }
}

/// What is in the place of packets with this hash, in the lane that this points to.
///
/// # Safety
/// `lane` points to a lane.
#[inline(always)]
pub unsafe fn cached_in(lane: *mut Lane, hash: u64) -> u64 {
    // SAFETY: the caller's promise; a word that is read whole.
    unsafe { core::ptr::read_volatile(place_in(lane, own_place(hash))) }
}

/// The tag of packets with this hash, where a cached word has it.
#[inline(always)]
fn tag(hash: u64) -> u64 {
    (hash >> 24) << CACHED_TAG
}

/// The cached word of this hash in another place of its row than its own; 0 if there is none. Where there are several, by
/// chance, it is one of them. Not inlined: the way of a hit stays short.
#[cold]
#[inline(never)]
pub fn cached_in_row(lane: u32, hash: u64) -> u64 {
    let (mut way, mut found) = (1, 0);
    let lane = LANE.at(lane);
    while way < FLOW_CACHE_WAYS as u32 {
        // SAFETY: the map's element.
        let place = unsafe { place_in(lane, own_place(hash) ^ way) };
        // SAFETY: the map's element, a word that is read whole.
        let cached = unsafe { core::ptr::read_volatile(place) };
        if (cached ^ tag(hash)) >> CACHED_TAG == 0 {
            found = cached;
        }
        way += 1;
    }
    found
}

/// The slot that a cached word names.
#[inline(always)]
pub fn cached_number(cached: u64) -> u32 {
    cached as u32 % MAX_CACHED_SLOTS
}

/// What lookups read of the slot that a cached word names, if that still holds the flow that it held then.
#[inline(always)]
fn cached_slot(cached: u64) -> Option<&'static HotSlot> {
    let generation = (cached >> CACHED_GENERATION) as u16;
    let slot = HOT_SLOTS.get(cached_number(cached));
    // That of an empty place is even.
    if !generation.is_multiple_of(2) && slot.generation as u16 == generation { Some(slot) } else { None }
}

/// As [`cached_slot`], shorter. (In the loop over a row it would have the verifier look at twice as much.)
#[inline(always)]
pub fn cached_slot_here(cached: u64) -> Option<&'static HotSlot> {
    // An empty place names the first slot, which holds no flow.
    if cached == 0 {
        return None;
    }
    // The map is smaller than what a cached word has room for, so that what is above the slot there doesn't count.
    let slot = HOT_SLOTS.get(cached as u32);
    // Cached generations are odd, as those of flows; a flow that is gone has left an even one.
    if slot.generation as u16 == (cached >> CACHED_GENERATION) as u16 { Some(slot) } else { None }
}

/// What [`in_row`] returns when it has found the flow.
const IN_ROW: i64 = -1;

/// Looks through the rest of the row for the flow, whose slot `s.slot` is then. If it isn't there, `s.free_way` says where else there is room.
#[inline(never)]
fn in_row(s: &mut Scratch) -> i64 {
    let Some(control) = CONTROL.get_ptr(0) else { return 0 };
    // SAFETY: the map's element, a word that is read whole.
    let masks = unsafe { core::ptr::read_volatile(&raw const (*control).masks) };
    let mut way = 1;
    let lane = LANE.at(s.lane);
    set_free_way(s, 0);
    while way < FLOW_CACHE_WAYS as u32 {
        // SAFETY: the map's element.
        let place = unsafe { place_in(lane, own_place(s.hash) ^ way) };
        // SAFETY: the map's element, a word that is read whole.
        let cached = unsafe { core::ptr::read_volatile(place) };
        if cached == 0 {
            set_free_way(s, way);
        } else if (cached ^ tag(s.hash)) >> CACHED_TAG == 0 && cached_flow(s, masks, cached).is_some() {
            s.slot = cached_number(cached);
            return IN_ROW;
        }
        way += 1;
    }
    0
}

/// Puts it where the verifier doesn't follow it: it would walk what comes behind for each way.
#[inline(always)]
fn set_free_way(s: &mut Scratch, way: u32) {
    // SAFETY: a field of the working memory.
    unsafe { (&raw mut s.free_way).write_volatile(way) };
}

/// Remembers the flow of slot `s.slot` in the hash's own place, and what was there in another place of the row: by `s.free_way`, or, if
/// that is 0, where chance has it.
#[inline(always)]
fn remember(s: &Scratch, hash: u64, generation: u32) {
    if s.slot >= MAX_CACHED_SLOTS {
        return;
    }
    // SAFETY: a field of the working memory.
    let way = match unsafe { (&raw const s.free_way).read_volatile() } {
        // SAFETY: the helper takes nothing.
        0 => (unsafe { bpf_get_prandom_u32() }) % FLOW_CACHE_WAYS as u32,
        way => way,
    };
    let lane = LANE.at(s.lane);
    // SAFETY: the map's element.
    let (own, other) = unsafe { (place_in(lane, own_place(hash)), place_in(lane, own_place(hash) ^ way)) };
    let generation = u64::from(generation as u16) << CACHED_GENERATION;
    let entry = u64::from(s.slot) | u64::from(s.mask_index) << CACHED_MASK | generation | tag(hash);
    // SAFETY: the map's elements, each read and written whole. They may be the same: then what was there is gone.
    unsafe {
        let driven_out = core::ptr::read_volatile(own);
        // This packet's flow of before, or nothing, needs no place.
        if driven_out != 0 && (driven_out ^ entry) >> CACHED_TAG != 0 {
            core::ptr::write_volatile(other, driven_out);
        }
        core::ptr::write_volatile(own, entry);
    }
}

/// Whether a specialised program handed the packet over that could have run its flow.
#[inline(always)]
pub fn is_asked_for(s: &Scratch, slot: &HotSlot) -> bool {
    s.serves != 0 && needs::are_served(slot.needs, s.serves as u16)
}

/// Remembers the flow of slot `s.slot` where the specialised program looks for it that handed the packet over. 0: that can't run it.
#[inline(never)]
pub fn tell(s: &mut Scratch) -> i64 {
    let serves = s.serves as u16;
    let slot = HOT_SLOTS.get(s.slot);
    let generation = slot.generation;
    if generation.is_multiple_of(2) || !needs::are_served(slot.needs, serves) {
        return 0;
    }
    let hash = seen::hash(hot_words(s), serves);
    let mut way = 1;
    let lane = LANE.at(s.lane);
    set_free_way(s, 0);
    while way < FLOW_CACHE_WAYS as u32 {
        // SAFETY: the map's element.
        let place = unsafe { place_in(lane, own_place(hash) ^ way) };
        // SAFETY: the map's element, a word that is read whole.
        if unsafe { core::ptr::read_volatile(place) } == 0 {
            set_free_way(s, way);
        }
        way += 1;
    }
    remember(s, hash, generation);
    1
}

/// Looks for a flow that is not in its own place of the cache: in the rest of the row, then under the mask that the own place
/// names, then under those of its lists. It is found if `s.found` is not 0, and has slot `s.slot` then. Returns how many masks were
/// scanned: 0 if it was in the cache, or the mask that the cache names was right.
#[inline(never)]
pub fn search(s: &mut Scratch) -> i64 {
    (s.found, s.scanned, s.retries) = (0, 0, 0);
    if in_row(s) == IN_ROW {
        s.found = 1;
        if s.serves != 0 {
            tell(s);
        }
        return 0;
    }
    if s.mask_index < s.mask_count {
        s.found = try_mask(s);
    }
    if s.found == 0 {
        // SAFETY: the working memory is ours.
        unsafe { scan_lists(s) };
    }
    if s.retries != 0 {
        retried(s);
    }
    s.slot = s.found.wrapping_sub(1);
    // A flow that the specialised program runs is not looked for here again.
    if s.found != 0 && (s.serves == 0 || tell(s) == 0) {
        remember(s, s.hash, s.generation);
    }
    s.scanned.into()
}

/// Tries the masks of the packet's port, then those of no port in particular. A global function: the verifier looks at it once.
///
/// # Safety
/// `s` is null or points to working memory (the verifier makes every caller prove it).
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn scan_lists(s: *mut Scratch) -> i32 {
    if s.is_null() {
        return 0;
    }
    // SAFETY: the caller's working memory.
    let s = unsafe { &mut *s };
    (s.mask_list, s.mask_at) = (lists(s) + list_of_packets(s.words[word::IN_PORT] as u32), 0);
    let mut scan = Scan { s };
    // SAFETY: the callback gets the context that is given here.
    unsafe {
        bpf_loop(
            2 * (MAX_MASKS as u32 / MASKS_PER_CALL + 1),
            next_masks as *mut c_void,
            core::ptr::from_mut(&mut scan).cast(),
            0,
        );
    }
    if s.found != 0 {
        used(s);
    }
    0
}

/// The first list of the published buffer.
#[inline(always)]
fn lists(s: &Scratch) -> u32 {
    if s.mask_base == 0 { 0 } else { LISTS as u32 }
}

/// Counts that a scan has found a flow under the mask.
#[inline(never)]
fn used(s: &Scratch) -> i64 {
    let number = s.lane.wrapping_mul(2 * MAX_MASKS as u32).wrapping_add(s.mask_base).wrapping_add(s.mask_index);
    if let Some(uses) = MASK_USES.get_ptr_mut(number) {
        // SAFETY: the map's element.
        unsafe { stats::add(uses, 1) };
    }
    0
}

/// Counts a search.
#[inline(never)]
fn count(s: &Scratch, scanned: u32, again: u32) -> i64 {
    let stats = stats::datapath(s);
    // SAFETY: the map's element.
    unsafe {
        stats::add(&raw mut (*stats).recirculated, again.into());
        if s.found != 0 && scanned == 0 {
            stats::add(&raw mut (*stats).cache_hit, 1);
        } else {
            stats::add(&raw mut (*stats).mask_hit, scanned.into());
            if s.found != 0 {
                stats::add(&raw mut (*stats).hit, 1);
            } else {
                stats::add(&raw mut (*stats).missed, 1);
            }
        }
    }
    0
}

/// The flow that the cache remembers, if its slot still holds it (generations of flows are odd), and the flow's key is this
/// packet's under its mask.
#[inline(always)]
fn cached_flow(s: &Scratch, masks: u64, cached: u64) -> Option<&'static HotSlot> {
    let index = (cached >> CACHED_MASK) as u32 % MAX_MASKS as u32;
    let base = if masks >> 32 == 0 { 0 } else { MAX_MASKS as u32 };
    if let Some(slot) = cached_slot(cached)
        && index < masks as u32
        && let Some(mask) = MASKS.get(base + index)
        && slot.mask_id == mask.id
        && hot_difference(&s.words, mask, &slot.key) == 0
        && (mask.n_cold == 0 || has_cold_words(&s.words, mask, cached_number(cached)))
    {
        return Some(slot);
    }
    None
}

/// Whether the key is one of a flow that has needs: its mask is in the slot too, and has nothing behind these words.
#[inline(always)]
fn fits(words: &[u64; 64], slot: &HotSlot) -> bool {
    let mut diff = words[word::IN_PORT] ^ slot.key[word::IN_PORT];
    let mut i = 1;
    while i < HOT_WORDS {
        diff |= (words[i] & slot.hot_mask[i - 1]) ^ slot.key[i];
        i += 1;
    }
    diff == 0
}

/// A hash of what tells connections apart, for the cache alone: whoever makes it collide loses time, not packets. TCP flags
/// change within a connection and are left out. Its upper bits are the best ones.
#[inline(always)]
pub fn cache_hash(words: &[u64; 64]) -> u64 {
    let mut h = plain_hash(words);
    h = h.wrapping_add(words[word::VLAN].wrapping_mul(0x27d4_eb2f_1656_67c5));
    h = h.wrapping_add(words[word::IPV6_SRC + 1].wrapping_mul(0x8764_6ab0_9d3f_2c5b));
    h.wrapping_add(words[word::IPV6_DST + 1].wrapping_mul(0xb492_b66f_be98_f273))
}

/// As [`cache_hash`], for what is IPv4 and has no tag.
#[inline(always)]
pub fn plain_hash(words: &[u64; 64]) -> u64 {
    let mut h = words[word::IN_PORT].wrapping_mul(seen::PORT_FACTOR);
    h = h.wrapping_add(words[word::ETH_DST].wrapping_mul(0xc2b2_ae3d_27d4_eb4f));
    h = h.wrapping_add((words[word::ETH_SRC] << 16).wrapping_mul(0x1656_67b1_9e37_79f9));
    h = h.wrapping_add(words[word::IP].wrapping_mul(0xff51_afd7_ed55_8ccd));
    h.wrapping_add(words[word::IPV4].wrapping_mul(0xc4ce_b9fe_1a85_ec53))
}

/// Masks that one call of the scan's callback tries: a return costs about as much as half a mask.
const MASKS_PER_CALL: u32 = 4;

/// One step of the scan: tries masks of the list from `s.mask_at` on, and leaves it behind the last one tried. At the end of the
/// port's list it goes on to the one of no port. 1 = found, or no more.
extern "C" fn next_masks(_: u32, scan: *mut Scan) -> i64 {
    // SAFETY: the context of the loop; its scratch is map memory.
    let s = unsafe { &mut *(*scan).s };
    let Some(list) = MASK_LISTS.get_ptr(s.mask_list) else { return 1 };
    // SAFETY: the map's element; userspace writes whole words.
    let count = unsafe { core::ptr::read_volatile(&raw const (*list).count) };
    let mut i = 0;
    while i < MASKS_PER_CALL {
        let at = crate::opaque(s.mask_at) as usize;
        if at >= MAX_MASKS || at as u32 >= count {
            let last = lists(s) + ANY_PORT;
            let is_last = s.mask_list == last;
            (s.mask_list, s.mask_at) = (last, 0);
            return is_last.into();
        }
        // SAFETY: as above; the index is below the length.
        s.mask_index = unsafe { core::ptr::read_volatile((&raw const (*list).index).cast::<u8>().add(at)) }.into();
        s.mask_at = at as u32 + 1;
        s.scanned = s.scanned.wrapping_add(1);
        s.found = try_mask(s);
        if s.found != 0 {
            return 1;
        }
        i += 1;
    }
    0
}

/// Looks the key up under mask `s.mask_index`. The slot plus 1, or 0.
#[inline(always)]
fn try_mask(s: &mut Scratch) -> u32 {
    let (Some(mask), Some(seeds)) = (MASKS.get(s.mask_base.wrapping_add(s.mask_index)), SEEDS.get(0)) else { return 0 };
    let digest = digest(&s.words, mask, seeds);
    let (first, second) = table::buckets(&digest, stats::global(&stats::BUCKET_MASK));
    let tag = table::tag(&digest);
    // Twice: a place of the table can be given to another flow between the look at its tag and the read of its reference,
    // when its flow has moved to its other bucket or was modified. The second look finds the flow if it is still there.
    let mut attempt = 0;
    while attempt < 2 {
        let mut found = find(first, tag);
        if found == 0 {
            found = find(second, tag);
        }
        if found == 0 {
            return 0;
        }
        let (index, generation) = (found as u32, (found >> 32) as u32);
        if let Some(slot) = SLOTS.get(index)
            && slot.generation == generation
            && slot.mask_id == mask.id
            && same_key(&s.words, mask, slot)
        {
            s.generation = generation;
            return index.wrapping_add(1);
        }
        // Counted by who is not as deep in the stack.
        s.retries = s.retries.wrapping_add(1);
        attempt += 1;
    }
    0
}

/// The reference beside `tag` in a bucket, or 0, which refers to no flow (generations of flows are odd).
#[inline(always)]
fn find(bucket: u32, tag: u64) -> u64 {
    let Some(bucket) = FLOWS.get_ptr(bucket) else { return 0 };
    let mut i = 0;
    while i < table::PLACES {
        // SAFETY: the map's element; userspace writes whole words.
        unsafe {
            if core::ptr::read_volatile((&raw const (*bucket).tags).cast::<u64>().add(i)) == tag {
                return core::ptr::read_volatile((&raw const (*bucket).refs).cast::<u64>().add(i));
            }
        }
        i += 1;
    }
    0
}

#[inline(never)]
fn retried(s: &Scratch) -> i64 {
    // SAFETY: the map's element.
    unsafe { stats::add(&raw mut (*stats::datapath(s)).retried, s.retries.into()) };
    0
}

/// As [`datapath_common::digest::digest`], with bounds that the verifier sees.
#[inline(always)]
fn digest(words: &[u64; 64], mask: &MaskEntry, seeds: &DigestSeeds) -> Digest {
    let mut lanes = [0u64; 2];
    let mut i = 0;
    while i < HOT_WORDS {
        if mask.hot[i] != 0 {
            mix(&mut lanes, words[i] & mask.hot[i], seeds.lanes[2 * i], seeds.lanes[2 * i + 1]);
        }
        // One word after the other: ten registers don't hold all of them, and the stack is short.
        compiler_fence(Ordering::SeqCst);
        i += 1;
    }
    let mut n = 0;
    while n < COLD_WORDS {
        if n as u32 >= mask.n_cold {
            break;
        }
        let w = crate::opaque(u32::from(mask.cold_index[n])) as usize;
        if w >= KEY_WORDS {
            break;
        }
        mix(&mut lanes, words[w] & mask.cold[n], seeds.lanes[2 * w], seeds.lanes[2 * w + 1]);
        n += 1;
    }
    Digest { lanes, mask_id: mask.id, reserved: 0 }
}

/// As [`datapath_common::digest::equal_masked`].
#[inline(always)]
fn same_key(words: &[u64; 64], mask: &MaskEntry, slot: &Slot) -> bool {
    hot_difference(words, mask, slot.key.hot_words()) | cold_difference(words, mask, slot) == 0
}

/// The difference of the hot words.
#[inline(always)]
fn hot_difference(words: &[u64; 64], mask: &MaskEntry, key: &[u64; HOT_WORDS]) -> u64 {
    let mut diff = 0;
    let mut i = 0;
    while i < HOT_WORDS {
        diff |= (words[i] & mask.hot[i]) ^ key[i];
        compiler_fence(Ordering::SeqCst);
        i += 1;
    }
    diff
}

/// Whether the words behind are those of the flow in a slot. Not inlined: most masks have none.
#[inline(never)]
fn has_cold_words(words: &[u64; 64], mask: &MaskEntry, slot: u32) -> bool {
    SLOTS.get(slot).is_some_and(|slot| cold_difference(words, mask, slot) == 0)
}

/// The difference of the words behind.
#[inline(always)]
fn cold_difference(words: &[u64; 64], mask: &MaskEntry, slot: &Slot) -> u64 {
    let key = slot.key.words();
    let mut diff = 0;
    let mut n = 0;
    while n < COLD_WORDS {
        if n as u32 >= mask.n_cold {
            break;
        }
        let w = crate::opaque(u32::from(mask.cold_index[n])) as usize;
        if w >= KEY_WORDS {
            break;
        }
        diff |= (words[w] & mask.cold[n]) ^ key[w];
        n += 1;
    }
    diff
}
