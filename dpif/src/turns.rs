//! Ports take turns.
//!
//! What waits is kept by port, each port's in order. Whoever takes gets one from each port that has any, again and again. So a
//! port with few is served at once, however many another has waiting; that one gets all the turns that nobody else wants.

use std::collections::{HashMap, VecDeque};

/// Things that wait, by port.
#[derive(Debug)]
pub struct Turns<T> {
    ports: HashMap<u32, VecDeque<T>, ahash::RandomState>,
    /// Ports that have something waiting, each once; the next is in front.
    next: VecDeque<u32>,
    len: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { ports: HashMap::default(), next: VecDeque::new(), len: 0 }
    }
}

impl<T> Turns<T> {
    /// Something comes for a port. A port that had nothing waiting has its turn when all others have had one.
    pub fn push(&mut self, port: u32, item: T) {
        let waiting = self.ports.entry(port).or_default();
        if waiting.is_empty() {
            self.next.push_back(port);
        }
        waiting.push_back(item);
        self.len += 1;
    }

    /// The first of the port whose turn it is.
    pub fn pop(&mut self) -> Option<(u32, T)> {
        let port = self.next.pop_front()?;
        let waiting = self.ports.get_mut(&port)?;
        let item = waiting.pop_front()?;
        self.len -= 1;
        if !waiting.is_empty() {
            self.next.push_back(port);
        }
        Some((port, item))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_has_its_turn_and_keeps_its_order() {
        let mut turns = Turns::default();
        (0..5).for_each(|n| turns.push(1, n));
        turns.push(2, 10);
        assert_eq!(turns.pop(), Some((1, 0)));
        turns.push(3, 20);
        turns.push(2, 11);
        let rest: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(rest, [(2, 10), (1, 1), (3, 20), (2, 11), (1, 2), (1, 3), (1, 4)]);
        assert!(turns.is_empty() && turns.pop().is_none());
    }

    #[test]
    fn a_storm_makes_nobody_wait_longer_than_a_turn_of_each_port() {
        let mut turns = Turns::default();
        (0..10_000).for_each(|n| turns.push(1, n));
        for n in 0..100 {
            turns.push(2, n);
            let served: Vec<_> = (0..2).filter_map(|_| turns.pop()).collect();
            assert!(served.contains(&(2, n)), "{served:?}");
            assert_eq!(turns.len(), 9_999 - n);
        }
    }
}
