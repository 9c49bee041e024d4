//! A persistent hash map of items that know their keys, made for being read.
//!
//! The map is a tree whose branches divide by four bits of the hash and whose leaves hold up to 64 entries in flat arrays: few
//! steps to a leaf, and a small map is one leaf. A version shares with the one it was cloned from all but the way to what was
//! changed since, so that changing a map of a hundred thousand entries costs some hundred copies, not a hundred thousand.
//!
//! The caller hashes, because it has use for the hash itself, and says which item has the key; equal keys must have equal hashes.

use std::sync::Arc;

/// Children of a branch, by four bits of the hash, the lowest first.
const FANOUT: usize = 16;
const FANOUT_BITS: u32 = FANOUT.trailing_zeros();
/// Branches on the way to a leaf at most. Whatever has more hash bits in common stays in one leaf.
const MAX_DEPTH: u32 = 12;
/// Entries of a leaf that can still be divided.
const LEAF: usize = 64;
/// A leaf's slots are looked at in groups of four, which are one word: an entry has its slot in the group that its hash says, or in
/// the next one with room. With twice as many slots as entries most are in the first.
const GROUPS: usize = 2 * LEAF / LANES;
const LANES: usize = 4;
/// A slot's bits in the word of its group: a tag from the entry's hash, never 0, which is a slot without an entry.
const LANE_BITS: u32 = u64::BITS / LANES as u32;
/// 1 in each slot of a group.
const ONES: u64 = u64::MAX / 0xffff;
/// Groups and tags are chosen by hash bits that no branch looks at.
const GROUP_SHIFT: u32 = u64::BITS - GROUPS.trailing_zeros();
const TAG_SHIFT: u32 = GROUP_SHIFT - LANE_BITS + 1;

/// Items by the hashes of their keys.
#[derive(Clone, Debug)]
pub(super) struct Map<T> {
    root: Node<T>,
}

#[derive(Clone, Debug)]
enum Node<T> {
    Leaf(Arc<Leaf<T>>),
    Branch(Arc<Branch<T>>),
}

#[derive(Clone, Debug)]
struct Branch<T> {
    len: usize,
    children: [Node<T>; FANOUT],
}

#[derive(Clone, Debug)]
struct Leaf<T> {
    /// Which of the groups are full and have entries that stand in a later one.
    spilled: u32,
    /// Tags of the first [`LEAF`] entries, which are all unless the leaf is beyond what can be divided.
    groups: [u64; GROUPS],
    /// Where in the arrays below the entry of a slot is.
    places: [[u8; LANES]; GROUPS],
    hashes: Vec<u64>,
    items: Vec<T>,
}

/// An entry to be: the hash of its key, its item.
struct Entry<T> {
    hash: u64,
    item: T,
}

impl<T: Clone> Map<T> {
    pub(super) fn new() -> Self {
        Self { root: Node::empty() }
    }

    pub(super) fn len(&self) -> usize {
        self.root.len()
    }

    /// The item with this hash of which `is_it` says so.
    #[inline(always)]
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(&T) -> bool) -> Option<&T> {
        let mut node = &self.root;
        let mut rest = hash;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf.find(hash, is_it).map(|(_, item)| item),
                Node::Branch(branch) => {
                    node = branch.child(rest);
                    rest >>= FANOUT_BITS;
                }
            }
        }
    }

    /// As [`Self::find`], to be changed.
    pub(super) fn get_mut(&mut self, hash: u64, is_it: impl Fn(&T) -> bool) -> Option<&mut T> {
        // Looked for first: what isn't there needs no copies.
        self.find(hash, &is_it)?;
        let mut node = &mut self.root;
        let mut rest = hash;
        loop {
            match node {
                Node::Leaf(leaf) => {
                    let leaf = Arc::make_mut(leaf);
                    let (at, _) = leaf.find(hash, is_it)?;
                    return leaf.items.get_mut(at);
                }
                Node::Branch(branch) => {
                    node = Arc::make_mut(branch).child_mut(rest);
                    rest >>= FANOUT_BITS;
                }
            }
        }
    }

    /// Adds an item whose key is not there.
    pub(super) fn insert(&mut self, hash: u64, item: T) {
        self.root.insert(Entry { hash, item }, 0);
    }

    pub(super) fn remove(&mut self, hash: u64, is_it: impl Fn(&T) -> bool) -> Option<T> {
        self.find(hash, &is_it)?;
        self.root.remove(hash, &is_it, 0)
    }

    /// All items, in no order.
    pub(super) fn items(&self) -> impl Iterator<Item = &T> {
        let mut nodes = vec![&self.root];
        let leaves = std::iter::from_fn(move || {
            loop {
                match nodes.pop()? {
                    Node::Leaf(leaf) => return Some(&leaf.items),
                    Node::Branch(branch) => nodes.extend(&branch.children),
                }
            }
        });
        leaves.flatten()
    }
}

impl<T: Clone> Node<T> {
    fn empty() -> Self {
        Self::Leaf(Arc::new(Leaf::new()))
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.items.len(),
            Self::Branch(branch) => branch.len,
        }
    }

    fn insert(&mut self, entry: Entry<T>, depth: u32) {
        match self {
            Self::Leaf(leaf) if leaf.items.len() < LEAF || depth == MAX_DEPTH => Arc::make_mut(leaf).push(entry),
            Self::Leaf(leaf) => {
                let mut branch = Branch { len: 0, children: std::array::from_fn(|_| Self::empty()) };
                for old in leaf.entries() {
                    branch.insert(old, depth);
                }
                branch.insert(entry, depth);
                *self = Self::Branch(Arc::new(branch));
            }
            Self::Branch(branch) => Arc::make_mut(branch).insert(entry, depth),
        }
    }

    fn remove(&mut self, hash: u64, is_it: &impl Fn(&T) -> bool, depth: u32) -> Option<T> {
        match self {
            Self::Leaf(leaf) => Arc::make_mut(leaf).remove(hash, is_it),
            Self::Branch(shared) => {
                let branch = Arc::make_mut(shared);
                let removed = branch.child_mut(hash >> (depth * FANOUT_BITS)).remove(hash, is_it, depth + 1)?;
                branch.len -= 1;
                // Not at once: at the boundary each change would divide or join.
                if branch.len <= LEAF / 2 {
                    let mut leaf = Leaf::new();
                    branch.collect(&mut leaf);
                    *self = Self::Leaf(Arc::new(leaf));
                }
                Some(removed)
            }
        }
    }
}

impl<T: Clone> Branch<T> {
    #[inline]
    fn child(&self, hash: u64) -> &Node<T> {
        // Within the array, whatever the hash.
        &self.children[hash as usize % FANOUT]
    }

    fn child_mut(&mut self, hash: u64) -> &mut Node<T> {
        &mut self.children[hash as usize % FANOUT]
    }

    fn insert(&mut self, entry: Entry<T>, depth: u32) {
        self.len += 1;
        self.child_mut(entry.hash >> (depth * FANOUT_BITS)).insert(entry, depth + 1);
    }

    /// Copies all entries below into one leaf.
    fn collect(&self, into: &mut Leaf<T>) {
        for child in &self.children {
            match child {
                Node::Leaf(leaf) => leaf.entries().for_each(|entry| into.push(entry)),
                Node::Branch(branch) => branch.collect(into),
            }
        }
    }
}

impl<T: Clone> Leaf<T> {
    fn new() -> Self {
        Self { spilled: 0, groups: [0; GROUPS], places: [[0; LANES]; GROUPS], hashes: Vec::new(), items: Vec::new() }
    }

    /// The entry with this hash of which `is_it` says so, and where it is.
    #[inline(always)]
    fn find(&self, hash: u64, is_it: impl Fn(&T) -> bool) -> Option<(usize, &T)> {
        let group = first_group(hash);
        let found = self.find_in(group, hash, &is_it);
        if found.is_none() && self.spilled >> group & 1 != 0 {
            return self.find_spilled(group, hash, &is_it);
        }
        found
    }

    /// The entry, if its slot is in this group.
    #[inline(always)]
    fn find_in(&self, group: usize, hash: u64, is_it: &impl Fn(&T) -> bool) -> Option<(usize, &T)> {
        // The lowest bit that this finds is right; a later one may be of a tag that differs in its last bit, and its entry's key
        // will differ.
        let differ = self.groups[group] ^ (tag(hash) * ONES);
        let mut same = differ.wrapping_sub(ONES) & !differ & (ONES << (LANE_BITS - 1));
        while same != 0 {
            let at = usize::from(self.places[group][(same.trailing_zeros() / LANE_BITS) as usize % LANES]);
            if let Some(item) = self.items.get(at).filter(|item| is_it(item)) {
                return Some((at, item));
            }
            same &= same - 1;
        }
        None
    }

    /// The entry, if its slot is in a later group than the first, or it has none.
    #[inline(never)]
    fn find_spilled(&self, first: usize, hash: u64, is_it: &impl Fn(&T) -> bool) -> Option<(usize, &T)> {
        if self.items.len() > LEAF {
            return self.items.iter().enumerate().find(|(_, item)| is_it(item));
        }
        let mut group = first;
        while self.spilled >> group & 1 != 0 {
            group = (group + 1) % GROUPS;
            if let Some(found) = self.find_in(group, hash, is_it) {
                return Some(found);
            }
        }
        None
    }

    fn push(&mut self, entry: Entry<T>) {
        self.place(entry.hash, self.items.len());
        self.hashes.push(entry.hash);
        self.items.push(entry.item);
    }

    /// Lets a slot lead to the entry `at`.
    fn place(&mut self, hash: u64, at: usize) {
        if at >= LEAF {
            // Whoever doesn't find an entry looks through them all.
            self.spilled = u32::MAX;
            return;
        }
        let mut group = first_group(hash);
        loop {
            // Half of the slots are empty, so this ends.
            let tags = self.groups[group];
            if let Some(lane) = (0..LANES).find(|lane| lane_of(tags, *lane) == 0) {
                self.groups[group] |= tag(hash) << (lane as u32 * LANE_BITS);
                self.places[group][lane] = at as u8;
                return;
            }
            self.spilled |= 1 << group;
            group = (group + 1) % GROUPS;
        }
    }

    fn remove(&mut self, hash: u64, is_it: &impl Fn(&T) -> bool) -> Option<T> {
        let (at, _) = self.find(hash, is_it)?;
        self.hashes.swap_remove(at);
        let item = self.items.swap_remove(at);
        // Anew: entries behind the one removed may have been placed where they are because of it.
        (self.spilled, self.groups) = (0, [0; GROUPS]);
        for at in 0..self.items.len() {
            self.place(self.hashes[at], at);
        }
        Some(item)
    }

    fn entries(&self) -> impl Iterator<Item = Entry<T>> {
        self.hashes.iter().zip(&self.items).map(|(hash, item)| Entry { hash: *hash, item: item.clone() })
    }
}

/// A hash of what differs in any bits.
#[inline]
pub(super) fn hash(sum: u64) -> u64 {
    let product = u128::from(sum ^ 0x2d35_8dcc_aa6c_78a5) * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}

/// The bits of a hash that stand in a slot.
#[inline]
fn tag(hash: u64) -> u64 {
    (hash >> TAG_SHIFT & 0x7fff) << 1 | 1
}

/// The group in which an entry has its slot, if there is room.
#[inline]
fn first_group(hash: u64) -> usize {
    (hash >> GROUP_SHIFT) as usize % GROUPS
}

/// The tag in slot `lane` of a group.
fn lane_of(tags: u64, lane: usize) -> u64 {
    tags >> (lane as u32 * LANE_BITS) & 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Few bits and many collisions, or a good hash.
    fn hash(key: u64, good: bool) -> u64 {
        if good { key.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) } else { key % 3 }
    }

    proptest! {
        #[test]
        fn a_map_holds_what_a_hash_map_holds_and_versions_stay(
            good: bool,
            changes in prop::collection::vec((0u64..400, any::<bool>(), 0u32..9), 1..900),
        ) {
            let mut map = Map::new();
            let mut model = HashMap::new();
            let mut versions = Vec::new();
            for (key, adds, value) in changes {
                let (hash, is_it) = (hash(key, good), |item: &(u64, u32)| item.0 == key);
                match (adds, map.get_mut(hash, is_it)) {
                    (true, Some(item)) => item.1 = value,
                    (true, None) => map.insert(hash, (key, value)),
                    (false, _) => prop_assert_eq!(map.remove(hash, is_it).map(|item| item.1), model.remove(&key)),
                }
                if adds {
                    model.insert(key, value);
                }
                if versions.len() < 8 && value == 0 {
                    versions.push((map.clone(), model.clone()));
                }
            }
            versions.push((map, model));
            for (map, model) in versions {
                prop_assert_eq!(map.items().count(), model.len());
                prop_assert_eq!(map.len(), model.len());
                for key in 0..400 {
                    let found = map.find(hash(key, good), |item| item.0 == key);
                    prop_assert_eq!(found.map(|item| item.1), model.get(&key).copied());
                }
            }
        }
    }
}
