//! What rules have in common with a packet, stage by stage.

use std::sync::Arc;

use super::map::{Map, hash};
use super::stage::N_STAGES;

/// The sums of a subtable's rules up to the end of each stage but the last with fields, and how many rules have them.
///
/// A lookup asks for all of them, and the answers are what a processor can't guess. So where there are not too many, a table
/// has a tag of each once more, and is looked at without a branch. That a packet's tag is that of another sum happens once in some
/// hundred million times, and only lets the lookup look at more.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// None where there are too many.
    table: Option<Arc<[Group]>>,
    counts: Map<Count>,
}

#[derive(Clone, Debug)]
struct Count {
    sum: u64,
    times: usize,
}

/// The tags of up to four sums; 0 is a free place.
#[repr(align(16))]
#[derive(Clone, Copy, Debug, Default)]
struct Group([u32; 4]);

/// A sum's place in a table.
#[derive(Clone, Copy)]
struct Place {
    /// Of as many groups as there can be.
    group: usize,
    /// Never 0.
    tag: u32,
}

/// Groups of a table, always a power of two.
const MIN_GROUPS: usize = 2;
const MAX_GROUPS: usize = 256;
const GROUP_SHIFT: u32 = u64::BITS - MAX_GROUPS.trailing_zeros();
/// Stages that there can be others behind.
const STAGES: usize = N_STAGES - 1;

impl Known {
    pub(super) fn new() -> Self {
        Self { table: Some(empty(MIN_GROUPS)), counts: Map::new() }
    }

    /// Of how many stages some rule has the sums. It has those of all stages before, too, so these are the first ones.
    #[inline]
    pub(super) fn stages(&self, sums: &[u64; STAGES]) -> usize {
        let Some(table) = self.table.as_deref() else { return self.counted_stages(sums) };
        let has = |(stage, sum): (usize, &u64)| {
            let Place { group, tag } = Place::new(of_stage(stage, *sum));
            let tags = table.get(group & table.len().wrapping_sub(1)).map_or([0; 4], |Group(tags)| *tags);
            tags.iter().fold(false, |found, other| found | (*other == tag))
        };
        sums.iter().enumerate().map(|sum| usize::from(has(sum))).sum()
    }

    /// The same of what is too much for a table.
    #[inline(never)]
    fn counted_stages(&self, sums: &[u64; STAGES]) -> usize {
        // Most packets that match no rule have the first fields in common with some, so the last stage is asked first.
        let is_counted = |(stage, sum): (usize, &u64)| {
            let sum = of_stage(stage, *sum);
            self.counts.find(hash(sum), |count| count.sum == sum).is_some()
        };
        let stages = || sums.iter().enumerate();
        stages().rev().find(|sum| is_counted(*sum)).map_or(0, |(stage, _)| stage + 1)
    }

    pub(super) fn add(&mut self, stage: usize, sum: u64) {
        let sum = of_stage(stage, sum);
        if let Some(count) = self.counts.get_mut(hash(sum), |count| count.sum == sum) {
            count.times += 1;
            return;
        }
        self.counts.insert(hash(sum), Count { sum, times: 1 });
        if let Some(table) = &mut self.table
            && !Place::new(sum).add_to(Arc::make_mut(table))
        {
            self.rebuild();
        }
    }

    pub(super) fn remove(&mut self, stage: usize, sum: u64) {
        let sum = of_stage(stage, sum);
        let is_it = |count: &Count| count.sum == sum;
        let Some(count) = self.counts.get_mut(hash(sum), is_it) else { return };
        count.times -= 1;
        if count.times > 0 {
            return;
        }
        self.counts.remove(hash(sum), is_it);
        match &mut self.table {
            Some(table) => Place::new(sum).remove_from(Arc::make_mut(table)),
            // Not at once: at the boundary each change would make a table, or find that it has no room.
            None if self.counts.len() <= MAX_GROUPS / 4 => self.rebuild(),
            None => {}
        }
    }

    /// Makes the smallest table that has room, if there is one.
    fn rebuild(&mut self) {
        // What is fuller soon has no room again.
        let fits = |n: &usize| self.counts.len() <= 2 * n;
        let sizes = std::iter::successors(Some(MIN_GROUPS), |n| Some(2 * n)).take_while(|n| *n <= MAX_GROUPS);
        self.table = sizes.filter(fits).find_map(|n| {
            let mut table = empty(n);
            let groups = Arc::make_mut(&mut table);
            self.counts.items().all(|count| Place::new(count.sum).add_to(groups)).then_some(table)
        });
    }
}

impl Place {
    #[inline]
    fn new(sum: u64) -> Self {
        // The product's upper bits depend on all of the sum's.
        let product = sum.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { group: (product >> GROUP_SHIFT) as usize, tag: ((product >> 32) ^ sum) as u32 | 1 }
    }

    /// Whether there was room.
    fn add_to(self, table: &mut [Group]) -> bool {
        self.replace(table, 0, self.tag)
    }

    fn remove_from(self, table: &mut [Group]) {
        self.replace(table, self.tag, 0);
    }

    /// Puts one tag in the place of another; false if that isn't there.
    fn replace(self, table: &mut [Group], old: u32, new: u32) -> bool {
        let group = self.group & table.len().wrapping_sub(1);
        match table.get_mut(group).and_then(|Group(tags)| tags.iter_mut().find(|tag| **tag == old)) {
            Some(tag) => {
                *tag = new;
                true
            }
            None => false,
        }
    }
}

/// Where fields are zero the sum of a stage is that of the one before: here they differ.
#[inline]
fn of_stage(stage: usize, sum: u64) -> u64 {
    sum ^ (stage as u64).wrapping_mul(0x5bd1_e995)
}

fn empty(n: usize) -> Arc<[Group]> {
    std::iter::repeat_n(Group::default(), n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// What undoes the multiplication that chooses a group.
    const INVERSE: u64 = 0xf1de_83e1_9937_733d;

    proptest! {
        #[test]
        fn a_stage_is_known_that_was_added_more_often_than_removed(
            crowded: bool,
            changes in prop::collection::vec((0u64..600, any::<bool>()), 1..2000),
        ) {
            // Well spread, or most of them in one group. Two items have the first stage in common, one has the second for itself.
            let sum = |n: u64| if crowded { n.wrapping_mul(INVERSE << 8) } else { n };
            let sums = |n: u64| [sum(n / 2), sum(n + 10_000), 0];
            let change = |set: &mut Known, n: u64, adds: bool| {
                for (stage, sum) in sums(n).into_iter().enumerate().take(2) {
                    if adds { set.add(stage, sum) } else { set.remove(stage, sum) }
                }
            };
            let (mut set, mut model) = (Known::new(), HashMap::new());
            let mut versions = Vec::new();
            for (at, (n, adds)) in changes.iter().enumerate() {
                let times = model.entry(*n).or_insert(0);
                if *adds || *times > 0 {
                    change(&mut set, *n, *adds);
                    *times = if *adds { *times + 1 } else { *times - 1 };
                }
                if at % 500 == 0 {
                    versions.push((set.clone(), model.clone()));
                }
            }
            versions.push((set.clone(), model.clone()));
            // What is left is little enough for a table again.
            for (n, times) in model.iter_mut().filter(|(n, _)| **n > 5) {
                (0..std::mem::take(times)).for_each(|_| change(&mut set, *n, false));
            }
            prop_assert!(set.table.is_some());
            versions.push((set, model));
            for (set, model) in versions {
                let is_there = |n: u64| model.get(&n).is_some_and(|times| *times > 0);
                for n in 0..600 {
                    let expected = usize::from(is_there(n) || is_there(n ^ 1)) + usize::from(is_there(n));
                    prop_assert_eq!(set.counted_stages(&sums(n)), expected);
                    prop_assert_eq!(set.stages(&sums(n)), expected);
                }
            }
        }
    }
}
