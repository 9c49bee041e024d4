//! Which masks the packets of a port are tried under, in which order: the lists as they are published, with the flows behind them.

use std::cmp::Reverse;
use std::collections::HashMap;

/// The lists by number.
#[derive(Default)]
pub(super) struct Lists {
    lists: HashMap<u32, Vec<Entry>, ahash::RandomState>,
    /// Entries without flows.
    unused: usize,
}

/// A mask of a list.
struct Entry {
    /// Its place among all masks.
    place: u8,
    /// Flows that it is in the list for.
    flows: usize,
}

impl Lists {
    /// A list as it was found, for no flows yet.
    pub(super) fn adopt(&mut self, number: u32, places: impl Iterator<Item = u8>) {
        let list: Vec<Entry> = places.map(|place| Entry { place, flows: 0 }).collect();
        self.unused += list.len();
        self.lists.insert(number, list);
    }

    /// One flow more for a mask of a list. If the mask wasn't there: where in the list it is now, which is behind all others.
    pub(super) fn add(&mut self, number: u32, place: u8) -> Option<usize> {
        let list = self.lists.entry(number).or_default();
        if let Some(entry) = list.iter_mut().find(|entry| entry.place == place) {
            self.unused -= usize::from(entry.flows == 0);
            entry.flows += 1;
            return None;
        }
        list.push(Entry { place, flows: 1 });
        Some(list.len() - 1)
    }

    /// One flow less. The mask stays in the list until the next [`Lists::renumber`].
    pub(super) fn remove(&mut self, number: u32, place: u8) {
        let entries = self.lists.get_mut(&number).into_iter().flatten();
        if let Some(entry) = entries.into_iter().find(|entry| entry.place == place && entry.flows != 0) {
            entry.flows -= 1;
            self.unused += usize::from(entry.flows == 0);
        }
    }

    /// Whether all masks are in their lists for some flow.
    pub(super) fn are_used(&self) -> bool {
        self.unused == 0
    }

    /// The numbers of the lists.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.lists.keys().copied().collect()
    }

    /// The lists: number, and masks by their places.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, impl Iterator<Item = u8>)> {
        self.lists.iter().map(|(number, list)| (*number, list.iter().map(|entry| entry.place)))
    }

    /// Leaves masks without flows out and gives the others their new places, in the order of `weights` (by old place): the heaviest
    /// first, of equal ones as before.
    pub(super) fn renumber(&mut self, places: &[Option<u8>], weights: &[u64]) {
        let new = |place: u8| places.get(usize::from(place)).copied().flatten();
        self.lists.retain(|_, list| {
            list.sort_by_key(|entry| Reverse(weight(weights, entry)));
            list.retain_mut(|entry| {
                let place = new(entry.place).filter(|_| entry.flows != 0);
                entry.place = place.unwrap_or(entry.place);
                place.is_some()
            });
            !list.is_empty()
        });
        self.unused = 0;
    }

    /// Whether scans would look at a tenth fewer masks if the lists were sorted by `weights`, which say how often each is found.
    pub(super) fn is_sorting_due(&self, weights: &[u64]) -> bool {
        let cost = |found: &[u64]| found.iter().zip(1..).map(|(n, at)| u128::from(*n) * at).sum::<u128>();
        let (mut now, mut best) = (0, 0);
        for list in self.lists.values() {
            let mut found: Vec<u64> = list.iter().map(|entry| weight(weights, entry)).collect();
            now += cost(&found);
            found.sort_unstable_by_key(|n| Reverse(*n));
            best += cost(&found);
        }
        best * 10 < now * 9
    }
}

fn weight(weights: &[u64], entry: &Entry) -> u64 {
    weights.get(usize::from(entry.place)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(lists: &Lists, number: u32) -> Vec<u8> {
        lists.iter().find(|list| list.0 == number).map(|list| list.1.collect()).unwrap_or_default()
    }

    #[test]
    fn a_mask_is_in_the_list_of_each_port_that_has_flows_with_it() {
        let mut lists = Lists::default();
        assert_eq!((lists.add(1, 7), lists.add(1, 9), lists.add(2, 9)), (Some(0), Some(1), Some(0)));
        assert_eq!((lists.add(1, 9), lists.are_used()), (None, true));
        lists.remove(1, 9);
        assert!(lists.are_used());
        lists.remove(1, 9);
        assert!(!lists.are_used());
        // It is still there, and not a second time if it is wanted again.
        assert_eq!((lists.add(1, 9), lists.are_used()), (None, true));
        lists.remove(1, 9);
        let (keep, moved) = (Some(7), Some(3));
        let mut new = [None; 10];
        (new[7], new[9]) = (keep, moved);
        lists.renumber(&new, &[]);
        assert_eq!((places(&lists, 1), places(&lists, 2), lists.are_used()), (vec![7], vec![3], true));
        lists.remove(2, 3);
        lists.renumber(&new, &[]);
        assert_eq!(lists.numbers(), [1]);
        // What was never there is not taken away.
        lists.remove(2, 3);
        lists.remove(1, 200);
        assert!(lists.are_used());
    }

    #[test]
    fn adopted_masks_go_unless_a_flow_has_them() {
        let mut lists = Lists::default();
        lists.adopt(4, [0, 1, 2].into_iter());
        assert_eq!((lists.are_used(), lists.add(4, 1)), (false, None));
        lists.renumber(&[Some(0), Some(1), Some(2)], &[]);
        assert_eq!((places(&lists, 4), lists.are_used()), (vec![1], true));
    }

    #[test]
    fn what_is_found_most_comes_first_if_that_spares_enough() {
        let mut lists = Lists::default();
        for place in 0..4 {
            lists.add(1, place);
            lists.add(2, 3 - place);
        }
        let same: [Option<u8>; 4] = std::array::from_fn(|place| Some(place as u8));
        assert!(!lists.is_sorting_due(&[]) && !lists.is_sorting_due(&[5; 4]));
        // Better for one is worse for the other by as much, and both are not as they should be.
        assert!(lists.is_sorting_due(&[0, 1, 2, 30]));
        lists.renumber(&same, &[0, 1, 2, 30]);
        assert_eq!((places(&lists, 1), places(&lists, 2)), (vec![3, 2, 1, 0], vec![3, 2, 1, 0]));
        assert!(!lists.is_sorting_due(&[0, 1, 2, 30]));
        // Sorted it would be better, but hardly.
        assert!(!lists.is_sorting_due(&[0, 21, 20, 1000]));
        // Equal ones stay in their order.
        lists.renumber(&same, &[9, 1, 1, 1]);
        assert_eq!(places(&lists, 1), [0, 3, 2, 1]);
    }
}
