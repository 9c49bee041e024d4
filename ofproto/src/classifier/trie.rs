//! Prefixes, and how many bits of a value say which of them it begins with.

use std::sync::Arc;

/// A persistent set of prefixes of values of up to 128 bits, as a binary tree that skips over bits without a choice. Bits are
/// counted from the most significant one of the `u128`, so shorter values are shifted up.
#[derive(Clone, Debug, Default)]
pub(super) struct Trie {
    root: Option<Arc<Node>>,
}

#[derive(Clone, Debug)]
struct Node {
    /// The bits between the parent and here; 0 behind the first `len`.
    bits: u128,
    len: u32,
    /// How often the prefix that ends here was inserted.
    count: usize,
    /// By the next bit.
    children: [Option<Arc<Node>>; 2],
}

/// What a trie says of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefixes {
    /// So many bits of the value had to be looked at.
    pub(super) looked_at: u32,
    /// Which lengths the prefixes have that the value begins with: length 1 is the most significant bit.
    lens: u128,
}

impl Prefixes {
    /// Nothing is known: there may be prefixes of any length.
    pub(super) const ANY: Self = Self { looked_at: 0, lens: u128::MAX };

    /// Whether the value may begin with a prefix of `len` bits, 1 to 128.
    pub(super) fn may_have(&self, len: u32) -> bool {
        self.lens & bit_of(len) != 0
    }
}

impl Trie {
    /// The prefixes that `value`, of `width` bits, begins with. Other values that agree in the bits looked at begin with the
    /// same ones.
    pub(super) fn lookup(&self, value: u128, width: u32) -> Prefixes {
        let mut lens = 0;
        let mut depth = 0;
        let mut parent: Option<&Node> = None;
        let mut next = self.root.as_deref();
        while let Some(node) = next {
            let same = common(node.bits, value << depth).min(node.len);
            depth += same;
            if same < node.len {
                // The bit that differed was looked at, too.
                return Prefixes { looked_at: depth + 1, lens };
            }
            if node.count > 0 {
                lens |= bit_of(depth);
            }
            if depth >= width {
                return Prefixes { looked_at: width, lens };
            }
            parent = Some(node);
            next = node.child(value << depth);
        }
        // That there is no way on is told by the next bit, unless there is no way on for any value.
        let chose = parent.is_some_and(|node| node.children.iter().any(Option::is_some));
        Prefixes { looked_at: depth + u32::from(chose), lens }
    }

    /// Adds the first `len` bits of `value`, at least one.
    pub(super) fn insert(&mut self, value: u128, len: u32) {
        insert(&mut self.root, first(value, len), len);
    }

    /// Takes away a prefix once.
    pub(super) fn remove(&mut self, value: u128, len: u32) {
        remove(&mut self.root, first(value, len), len);
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.root.is_none()
    }
}

impl Node {
    fn leaf(bits: u128, len: u32) -> Arc<Self> {
        Arc::new(Self { bits, len, count: 1, children: [None, None] })
    }

    /// The way on for what begins with these bits.
    fn child(&self, bits: u128) -> Option<&Self> {
        let [zero, one] = &self.children;
        if is_one(bits) { one.as_deref() } else { zero.as_deref() }
    }

    fn child_mut(&mut self, bits: u128) -> &mut Option<Arc<Self>> {
        let [zero, one] = &mut self.children;
        if is_one(bits) { one } else { zero }
    }
}

fn insert(slot: &mut Option<Arc<Node>>, bits: u128, len: u32) {
    let Some(node) = slot else {
        *slot = Some(Node::leaf(bits, len));
        return;
    };
    let same = common(node.bits, bits).min(node.len).min(len);
    if same < node.len {
        let mut parent = Node { bits: first(bits, same), len: same, count: 0, children: [None, None] };
        let lower = Arc::make_mut(node);
        lower.bits <<= same;
        lower.len -= same;
        let branch = lower.bits;
        *parent.child_mut(branch) = slot.take();
        if same == len {
            parent.count = 1;
        } else {
            let rest = bits << same;
            *parent.child_mut(rest) = Some(Node::leaf(rest, len - same));
        }
        *slot = Some(Arc::new(parent));
    } else if same == len {
        Arc::make_mut(node).count += 1;
    } else {
        let rest = bits << same;
        insert(Arc::make_mut(node).child_mut(rest), rest, len - same);
    }
}

fn remove(slot: &mut Option<Arc<Node>>, bits: u128, len: u32) {
    let Some(shared) = slot else { return };
    if shared.len > len || common(shared.bits, bits) < shared.len {
        return;
    }
    let node = Arc::make_mut(shared);
    if node.len == len {
        node.count = node.count.saturating_sub(1);
    } else {
        let (rest, left) = (bits << node.len, len - node.len);
        remove(node.child_mut(rest), rest, left);
    }
    if node.count > 0 {
        return;
    }
    // A node without a prefix of its own is there for a choice between two.
    match &mut node.children {
        [None, None] => *slot = None,
        [Some(_), Some(_)] => {}
        [only, None] | [None, only] => {
            if let Some(mut child) = only.take() {
                let lower = Arc::make_mut(&mut child);
                lower.bits = node.bits | lower.bits.checked_shr(node.len).unwrap_or(0);
                lower.len += node.len;
                *slot = Some(child);
            }
        }
    }
}

fn common(a: u128, b: u128) -> u32 {
    (a ^ b).leading_zeros()
}

/// The first `len` bits, 0 behind them.
fn first(bits: u128, len: u32) -> u128 {
    bits & u128::MAX.checked_shl(u128::BITS.saturating_sub(len)).unwrap_or(0)
}

fn is_one(bits: u128) -> bool {
    bits >> (u128::BITS - 1) != 0
}

/// The bit that stands for a length of 1 to 128.
fn bit_of(len: u32) -> u128 {
    1u128.checked_shl(u128::BITS.saturating_sub(len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same from a list: a bit has to be looked at as long as some prefix goes on behind the bits before it.
    fn slowly(list: &[(u128, u32)], value: u128, width: u32) -> Prefixes {
        let goes_on = |depth| list.iter().any(|(bits, len)| *len > depth && first(*bits, depth) == first(value, depth));
        let looked_at = (0..width).find(|depth| !goes_on(*depth)).unwrap_or(width);
        let matching = list.iter().filter(|(bits, len)| first(*bits, *len) == first(value, *len));
        Prefixes { looked_at, lens: matching.fold(0, |lens, (_, len)| lens | bit_of(*len)) }
    }

    proptest! {
        #[test]
        fn a_trie_says_what_a_list_says(
            width in prop::sample::select(vec![3u32, 32, 128]),
            changes in prop::collection::vec((any::<u8>(), any::<u8>(), 1u32..=128, any::<bool>()), 1..60),
            values in prop::collection::vec((any::<u8>(), any::<u8>()), 20),
        ) {
            // Bits at both ends, so that prefixes have much in common.
            let value = |(high, low): (u8, u8)| first(u128::from(high & 0x93) << 120 | u128::from(low & 0x13) << (128 - width), width);
            let (mut trie, mut list) = (Trie::default(), Vec::new());
            for (high, low, len, adds) in changes {
                let len = len.min(width);
                if adds || list.is_empty() {
                    let bits = value((high, low));
                    trie.insert(bits, len);
                    list.push((bits, len));
                } else {
                    let (bits, len) = list.swap_remove(usize::from(high) % list.len());
                    trie.remove(bits, len);
                }
            }
            for seed in values {
                let value = value(seed);
                prop_assert_eq!(trie.lookup(value, width), slowly(&list, value, width));
            }
            for (bits, len) in list.drain(..) {
                trie.remove(bits, len);
            }
            prop_assert!(trie.is_empty());
        }
    }
}
