//! Datapath flows.

use core::fmt;
use std::sync::Arc;

use datapath_common::FlowKey;

use crate::action::Action;

/// Unique id of a flow, chosen by userspace from the flow's masked key (or at random).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ufid(pub u128);

impl fmt::Display for Ufid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = self.0;
        let (a, b, c, d, e) = (h >> 96, h >> 80 & 0xffff, h >> 64 & 0xffff, h >> 48 & 0xffff, h & 0xffff_ffff_ffff);
        write!(f, "ufid:{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
    }
}

impl fmt::Debug for Ufid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A hasher for tables of flows by their ids, which are hashes themselves: of an id it takes both halves, of anything else it makes
/// a simple sum.
#[derive(Clone, Copy, Default, Debug)]
pub struct UfidHasher(u64);

/// Makes [`UfidHasher`]s.
pub type UfidHashing = core::hash::BuildHasherDefault<UfidHasher>;

impl core::hash::Hasher for UfidHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    #[inline]
    fn write_u128(&mut self, id: u128) {
        self.0 ^= (id >> 64) as u64 ^ id as u64;
    }

    #[inline]
    fn finish(&self) -> u64 {
        // A part of a table has ids of equal lower bits, and those that somebody has made up may differ in few, anywhere.
        let product = u128::from(self.0) * 0x9e37_79b9_7f4a_7c15;
        (product >> 64) as u64 ^ product as u64
    }
}

/// What to do where the flow exists or doesn't.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutMode {
    /// The flow must be new.
    Create,
    /// The flow must exist; its actions are replaced, its statistics kept.
    Modify,
    /// Either.
    CreateOrModify,
}

/// A flow to install.
#[derive(Clone, PartialEq, Debug)]
pub struct FlowPut {
    /// Create or modify.
    pub mode: PutMode,
    /// Unique id.
    pub ufid: Ufid,
    /// The key, masked or not.
    pub key: FlowKey,
    /// Bits of the key that a packet must agree with.
    pub mask: FlowKey,
    /// What happens to a packet; nothing means drop. Shared with whoever keeps the flow.
    pub actions: Arc<[Action]>,
}

/// Statistics of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowStats {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// `CLOCK_MONOTONIC` of the last packet in milliseconds; 0 = never used.
    pub used_ms: u64,
    /// Union of the TCP flags seen, host order.
    pub tcp_flags: u16,
}

/// A flow as the datapath has it.
#[derive(Clone, PartialEq, Debug)]
pub struct DatapathFlow {
    /// Unique id.
    pub ufid: Ufid,
    /// The masked key.
    pub key: FlowKey,
    /// The mask.
    pub mask: FlowKey,
    /// The actions.
    pub actions: Arc<[Action]>,
    /// The statistics.
    pub stats: FlowStats,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::BuildHasher as _;

    /// Bits that a table of 128 places goes by, and those that it compares first.
    fn spread(ids: impl Iterator<Item = u128>) -> (usize, usize) {
        let hashes: Vec<u64> = ids.map(|id| UfidHashing::default().hash_one(Ufid(id))).collect();
        let places = |part: fn(&u64) -> u64| hashes.iter().map(part).collect::<HashSet<_>>().len();
        (places(|hash| hash & 127), places(|hash| hash >> 57))
    }

    #[test]
    fn ids_of_one_part_of_a_table_are_spread_over_its_places() {
        // Made up one after the other, alike in the lower half, alike in the upper half; all in part 7 of 512.
        for ids in [|n: u128| n << 9 | 7, |n: u128| n << 64 | 7, |n: u128| (n << 40) | (5 << 64) | 7] {
            let (places, tags) = spread((0..128).map(ids));
            assert!(places > 60 && tags > 40, "{places} {tags}");
        }
    }
}
