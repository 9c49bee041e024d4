//! The lookup table: from digest to slot.
//!
//! It is an array of cache lines, so that the program that reads it calls no helper and userspace writes it through the memory
//! map without a system call. A [`Bucket`] has four places; a digest may lie in either of two buckets ([`buckets`]), which the
//! two lanes choose. A place holds the [`tag`] of a digest and the reference to its slot; a tag of zero means that it is free.
//!
//! There is one writer at a time. It publishes a flow by writing the reference first and the tag after it, replaces a flow's
//! reference in one store, and removes a flow by clearing the tag. Where both buckets are full it makes room as a cuckoo
//! does, moving another flow from its first bucket to its second: first there, then gone here. Readers look in that order
//! too, so they find it all the time. (A flow that moved the other way would escape a reader between its two looks.) A reader
//! can still meet a place between two flows; it then compares the key in the slot, sees another, and looks again.

use crate::digest::Digest;
use crate::slot::SlotRef;

/// Places of a bucket.
pub const PLACES: usize = 4;

/// One cache line of the table.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// Tags of the flows; 0 = free.
    pub tags: [u64; PLACES],
    /// Their slots.
    pub refs: [SlotRef; PLACES],
}

/// How many buckets a datapath with `slots` slots has: a power of two with two places for each slot.
pub const fn bucket_count(slots: usize) -> usize {
    let count = (slots * 2).div_ceil(PLACES).next_power_of_two();
    if count < 2 { 2 } else { count }
}

/// The tag of a digest, never 0.
#[inline(always)]
pub fn tag(digest: &Digest) -> u64 {
    let tag = digest.lanes[0].wrapping_add(u64::from(digest.mask_id).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    if tag == 0 { 1 } else { tag }
}

/// The two buckets of a digest, in a table of `mask + 1` buckets.
#[inline(always)]
pub fn buckets(digest: &Digest, mask: u32) -> (u32, u32) {
    let second = digest.lanes[1].wrapping_add(u64::from(digest.mask_id).wrapping_mul(0xc2b2_ae3d_27d4_eb4f));
    (spread(tag(digest)) & mask, spread(second) & mask)
}

#[inline(always)]
fn spread(x: u64) -> u32 {
    (x.wrapping_mul(0xff51_afd7_ed55_8ccd) >> 32) as u32
}
